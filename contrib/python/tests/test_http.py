"""What every HTTP server must do as a worker, each with the real server."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time

import pytest
from gunicorn.workers import gthread
from manager import Client, Manager, eventually

SERVERS = {
    "wsgi": ["wsgi", "plain:application", "--threads=4"],
    "asgi": ["asgi", "plain:app", "--loop=asyncio", "--http=h11"],
    "asgi-fast": ["asgi", "plain:app", "--loop=uvloop", "--http=httptools"],
    "sync": ["gunicorn", "plain:application"],
    "gthread": ["gunicorn", "plain:application", "--worker-class=gthread", "--threads=4"],
    "gevent": ["gunicorn", "plain:application", "--worker-class=gevent", "--worker-connections=100"],
    "uvicorn-worker": ["gunicorn", "plain:app", "--worker-class=uvicorn_worker.UvicornWorker"],
}
if importlib.util.find_spec("gevent") is None:
    # There is no wheel of it for every Python.
    del SERVERS["gevent"]
if not hasattr(gthread, "STOP_KEEPALIVE_LINGER"):
    # Before this it drops connections when it stops, which test_gunicorn.py sees announced.
    del SERVERS["gthread"]
CONCURRENT = [name for name in SERVERS if name != "sync"]
"""Servers that do several things at a time, and keep connections alive."""


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> list[str]:
    arguments: list[str] = SERVERS[request.param]
    return arguments


@pytest.fixture(params=CONCURRENT)
def concurrent(request: pytest.FixtureRequest) -> list[str]:
    arguments: list[str] = SERVERS[request.param]
    return arguments


def serving(server: list[str], module: str) -> list[str]:
    """The same server with another application."""
    target = module if ":" in module else server[1].replace("plain", module)
    return [server[0], target, *server[2:]]


def test_serves_on_the_inherited_socket(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    assert manager.get().text == str(worker.pid)


def test_serves_on_every_inherited_socket(manager: Manager, server: list[str]) -> None:
    manager.bind("admin", unix=True).bind("extra")
    worker = manager.start(*server).ready()
    assert [manager.get("/", index).text for index in range(3)] == [str(worker.pid)] * 3


def test_serves_only_on_the_sockets_that_are_asked_for(manager: Manager, server: list[str]) -> None:
    manager.bind("admin", unix=True)
    manager.start(*server, "--socket-name=admin").ready()
    assert manager.get("/", 1).status == 200
    with manager.client(0) as client:
        client.send()
        client.sock.settimeout(0.3)
        with pytest.raises(socket.timeout):
            client.receive()


def test_is_not_ready_before_it_has_loaded(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*serving(server, "slow"))
    began = time.monotonic()
    assert worker.ready().wait_for("READY").at - began >= 0.9
    assert manager.get().status == 200


def test_sockets_of_another_process_are_not_touched(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, sockets=False, LISTEN_FDS=1, LISTEN_PID=1)
    assert worker.wait() == 1
    assert "LISTEN_PID=1 is another process" in worker.output() or "no listening socket" in worker.output()
    assert not worker.values("READY")


def test_an_import_error_is_shown_and_ends_it(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*serving(server, "broken"))
    assert worker.wait() == 1
    assert "ZeroDivisionError" in worker.output() and "Traceback" in worker.output()
    assert not worker.values("READY")


def test_a_missing_attribute_is_named(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*serving(server, "plain:nothing"))
    assert worker.wait() == 1
    assert "'nothing'" in worker.output() and "plain" in worker.output()


def test_a_factory_is_called(manager: Manager, server: list[str]) -> None:
    name = "create_asgi()" if server[1] == "plain:app" else "create()"
    manager.start(*serving(server, f"plain:{name}")).ready()
    assert manager.get().status == 200


@pytest.mark.parametrize("arguments", [["wsgi", "plain:create"], ["asgi", "plain:create_asgi"]], ids=lambda arguments: arguments[0])
def test_a_factory_without_parentheses_needs_the_option(manager: Manager, arguments: list[str]) -> None:
    manager.start(*arguments, "--factory").ready()
    assert manager.get().status == 200


def test_app_dir_is_searched_first(manager: Manager, server: list[str]) -> None:
    directory = manager.directory / "elsewhere"
    directory.mkdir()
    (directory / "here.py").write_text("from plain import app, application")
    manager.start(*serving(server, "here"), f"--app-dir={directory}").ready()
    assert manager.get().status == 200


def test_counts_requests_and_reports_the_quota_at_once(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, PADDOCK_MAX_REQUESTS=25).ready()
    with manager.client() as client:
        for _ in range(25):
            client.get()
        worker.wait_for("X_PADDOCK_REQUESTS", "25", 2)
        for _ in range(7):
            client.get()
        # The last ones were held back, and come all the same.
        worker.wait_for("X_PADDOCK_REQUESTS", "32", 2)


def test_reports_at_most_ten_counts_a_second(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    began = time.monotonic()
    with manager.client() as client:
        while time.monotonic() < began + 1.0:
            client.get()
    eventually(lambda: worker.values("X_PADDOCK_REQUESTS"), "a count")
    worker.drain()
    assert worker.wait() == 0
    at = [message.at for message in worker.messages if "X_PADDOCK_REQUESTS" in message.fields]
    # One more at the very end: the last words.
    assert len(at) <= (at[-1] - began) * 10 + 2


def test_a_failed_request_counts_too(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, PADDOCK_MAX_REQUESTS=1).ready()
    assert manager.get("/boom").status == 500
    worker.wait_for("X_PADDOCK_REQUESTS", "1", 5)


def test_feeds_the_watchdog(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, WATCHDOG_USEC=600_000).ready()
    eventually(lambda: len(worker.values("WATCHDOG")) >= 8, "eight pings")
    at = [message.at for message in worker.messages if "WATCHDOG" in message.fields]
    gaps = sorted(later - earlier for earlier, later in zip(at, at[1:]))
    assert gaps[len(gaps) // 2] <= 0.35, gaps


def test_says_nothing_to_a_watchdog_of_another_process(manager: Manager, server: list[str]) -> None:
    # launch.py writes the worker's own pid, so the wrong one goes in behind it.
    command = ["env", "WATCHDOG_PID=1", "WATCHDOG_USEC=300000", sys.executable, "-m", "paddock_worker", *server]
    worker = manager.start(command=command).ready()
    manager.get("/sleep/0.5")
    assert not worker.values("WATCHDOG")


def test_a_blocked_server_stops_feeding_the_watchdog(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, WATCHDOG_USEC=600_000).ready()
    clients = [Client(manager.connect()) for _ in range(4)]
    for client in clients:
        # All threads there are, or the event loop's own.
        client.send("/block/60")
    pings = 0

    def silent() -> bool:
        nonlocal pings
        before, pings = pings, len(worker.values("WATCHDOG"))
        time.sleep(1.0)
        return len(worker.values("WATCHDOG")) == pings == before

    eventually(silent, "two seconds without a ping")
    worker.signal(signal.SIGABRT)
    eventually(lambda: "in application" in worker.output() or "in app" in worker.output(), "the stacks are printed")


def test_one_slow_request_does_not_stop_the_pings(manager: Manager, concurrent: list[str]) -> None:
    worker = manager.start(*concurrent, WATCHDOG_USEC=600_000).ready()
    with manager.client() as client:
        client.send("/sleep/1.5")
        before = len(worker.values("WATCHDOG"))
        client.receive()
    assert len(worker.values("WATCHDOG")) - before >= 4


def test_a_hung_request_asks_for_a_replacement_and_the_others_are_answered(manager: Manager, concurrent: list[str]) -> None:
    worker = manager.start(*concurrent, "--request-timeout=0.5").ready()
    with manager.client() as hung, manager.client() as other:
        began = time.monotonic()
        hung.send("/sleep/60")
        message = worker.wait_for("X_PADDOCK_RECYCLE", "1")
        assert 0.4 <= message.at - began <= 3
        assert other.get().text == str(worker.pid)
    assert "GET /sleep/60" in worker.output() and "plain.py" in worker.output()
    assert worker.values("X_PADDOCK_RECYCLE") == ["1"]


def test_a_spinning_request_asks_for_a_replacement(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--request-timeout=0.5").ready()
    with manager.client() as hung:
        hung.send("/spin/3")
        worker.wait_for("X_PADDOCK_RECYCLE", "1", 2.5)
        assert hung.receive().status == 200


def test_a_streaming_request_is_not_hung(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--request-timeout=1.5").ready()
    assert manager.get("/stream/5/0.4").body == b"0\n1\n2\n3\n4\n"
    assert not worker.values("X_PADDOCK_RECYCLE")


def test_a_stream_that_stops_moving_is_hung(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--request-timeout=0.5").ready()
    with manager.client() as client:
        client.send("/stream/3/2")
        worker.wait_for("X_PADDOCK_RECYCLE", "1", 5)


def test_a_client_that_does_not_read_is_not_a_hung_request(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--request-timeout=0.4").ready()
    with manager.client() as client:
        client.send("/big/20")
        # The socket's buffers fill and the server has to wait for us.
        time.sleep(1.2)
        assert not worker.values("X_PADDOCK_RECYCLE")
        assert len(client.receive().body) == 20_000_000


def test_an_application_can_ask_for_its_replacement(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    assert manager.get("/recycle").status == 200
    worker.wait_for("X_PADDOCK_RECYCLE", "1")


def test_the_pressure_pulse_is_felt_once_each(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    worker.pulse()
    eventually(lambda: manager.get("/pulses").text == "1", "the pulse")


def test_drain_answers_what_is_in_flight_and_closes(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    with manager.client() as client:
        client.get()
        client.send("/sleep/1")
        time.sleep(0.3)
        worker.drain()
        worker.wait_for("STOPPING", "1")
        response = client.receive()
        assert response.text == str(worker.pid) and response.closes
        assert client.at_end()
    assert worker.wait(5) == 0


def test_drain_finishes_a_response_that_has_begun(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server).ready()
    with manager.client() as client:
        client.send("/stream/5/0.2")
        time.sleep(0.3)
        worker.drain()
        assert client.receive().body == b"0\n1\n2\n3\n4\n"
    assert worker.wait(6) == 0


def test_drain_leaves_new_connections_to_others(manager: Manager, concurrent: list[str]) -> None:
    worker = manager.start(*concurrent).ready()
    manager.get()
    with manager.client() as busy:
        busy.send("/sleep/1")
        time.sleep(0.2)
        worker.drain()
        worker.wait_for("STOPPING", "1")
        with manager.client() as late:
            late.send()
            other = manager.start(*concurrent).ready()
            assert late.receive().text == str(other.pid)
        assert busy.receive().text == str(worker.pid)
    assert worker.wait(5) == 0


def test_drain_answers_one_more_request_on_an_idle_connection(manager: Manager, concurrent: list[str]) -> None:
    worker = manager.start(*concurrent, "--drain-linger=5").ready()
    with manager.client() as idle, manager.client() as fresh:
        idle.get()
        # Accepted, and has not said a word yet.
        manager.get()
        worker.drain()
        worker.wait_for("STOPPING", "1")
        for client in (idle, fresh):
            response = client.get()
            assert response.text == str(worker.pid) and response.closes
            assert client.at_end()
    assert worker.wait(3) == 0


def test_drain_ends_although_a_connection_stays_idle(manager: Manager, concurrent: list[str]) -> None:
    worker = manager.start(*concurrent, "--drain-linger=0.5").ready()
    with manager.client() as idle:
        idle.get()
        began = time.monotonic()
        worker.drain()
        assert worker.wait(5) == 0
        assert time.monotonic() - began >= 0.45
        assert idle.at_end()


def test_drain_waits_for_a_request_that_is_still_arriving(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--drain-linger=1").ready()
    with manager.client() as slow:
        slow.sock.sendall(b"GET / HTTP/1.1\r\nHo")
        # A busy machine may take that long to accept it.
        time.sleep(1)
        worker.drain()
        time.sleep(0.5)
        slow.sock.sendall(b"st: test\r\n\r\n")
        assert slow.receive().text == str(worker.pid)
    assert worker.wait(5) == 0


def test_an_idle_worker_drains_at_once(manager: Manager, server: list[str]) -> None:
    worker = manager.start(*server, "--drain-linger=60").ready()
    manager.get()
    worker.drain()
    assert worker.wait(20) == 0


@pytest.mark.parametrize("keep_alive", [True, False])
def test_nothing_is_lost_while_workers_are_replaced(manager: Manager, server: list[str], keep_alive: bool) -> None:
    """Six replacements under four clients that do not retry: start, ready, drain, as the manager does it."""
    current = manager.start(*server).ready()
    stop = threading.Event()
    lost: list[BaseException] = []
    served: dict[str, int] = {}

    def client() -> None:
        connection = None
        while not stop.is_set():
            try:
                connection = connection or Client(manager.connect())
                connection.send(head="" if keep_alive else "Connection: close\r\n")
                response = connection.receive()
                assert response.status == 200
                served[response.text] = served.get(response.text, 0) + 1
                if response.closes:
                    connection.sock.close()
                    connection = None
            except (OSError, AssertionError) as error:
                lost.append(error)
                connection = None

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            replacement = manager.start(*server).ready()
            current.drain()
            assert current.wait() == 0
            current = replacement
            eventually(lambda: served.get(str(current.pid), 0) > 20, "the replacement serves")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert lost == []
    assert len(served) == 7


@pytest.mark.parametrize("blocking", [True, False])
def test_the_listener_is_never_made_blocking(empty_manager: Manager, server: list[str], blocking: bool) -> None:
    manager = empty_manager.bind(blocking=blocking)
    listener = manager.listeners[0]
    first, second = manager.start(*server).ready(), manager.start(*server).ready()
    assert not os.get_blocking(listener.fileno())
    first.drain()
    assert first.wait() == 0
    assert not os.get_blocking(listener.fileno())
    assert manager.get().text == str(second.pid)


def test_the_backlog_is_left_alone(empty_manager: Manager, server: list[str]) -> None:
    manager = empty_manager.bind(backlog=37)
    manager.start(*server).ready()
    info = manager.listeners[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert int.from_bytes(info[28:32], sys.byteorder) == 37
