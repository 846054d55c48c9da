"""The parts by themselves, where a whole server would leave it to chance."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from manager import APPS, eventually
from paddock_worker import apps, on_memory_pressure, pressure
from paddock_worker.environment import Environment, EnvironmentProblem, listeners
from paddock_worker.notify import Notifier
from paddock_worker.requests import Requests
from paddock_worker.worker import Pool, Watchdog


class Reports:
    """A manager that can be made deaf."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.woken = 0
        self.deaf = False

    def report(self, total: int) -> bool:
        if not self.deaf:
            self.counts.append(total)
        return not self.deaf

    def wake(self) -> None:
        self.woken += 1

    def requests(self, quota: int = 0, timeout: Optional[float] = None) -> Requests:
        return Requests(quota, self.report, self.wake, timeout)


def serve(requests: Requests, number: int) -> None:
    for _ in range(number):
        requests.end(requests.begin(None))


def test_the_quota_is_reported_in_the_call_that_reaches_it() -> None:
    reports = Reports()
    requests = reports.requests(quota=5)
    serve(requests, 7)
    # The first, since nothing was reported before; the fifth; the others are the housekeeper's.
    assert reports.counts == [1, 5]
    assert reports.woken == 1


def test_the_housekeeper_reports_what_was_held_back_and_goes() -> None:
    reports = Reports()
    requests = reports.requests()
    serve(requests, 3)
    wait = requests.flush()
    assert reports.counts == [1] and wait is not None and 0 < wait <= requests.REPORT_EVERY
    requests.REPORT_EVERY = 0.0  # type: ignore[misc]
    assert requests.flush() is not None
    assert reports.counts == [1, 3]
    assert requests.flush() is None
    assert reports.counts == [1, 3]


def test_a_count_that_was_not_heard_is_said_again() -> None:
    reports = Reports()
    requests = reports.requests()
    reports.deaf = True
    serve(requests, 4)
    requests.REPORT_EVERY = 0.0  # type: ignore[misc]
    assert requests.flush() == 1.0
    reports.deaf = False
    requests.flush()
    assert reports.counts == [4]


@pytest.mark.parametrize("in_one_piece", [False, True])
def test_no_request_is_counted_twice_or_not_at_all_by_threads(in_one_piece: bool) -> None:
    reports = Reports()
    requests = reports.requests(quota=4000)
    counted = requests.counted(lambda: None, threads=True)

    def serve_in_one_piece() -> None:
        for _ in range(500):
            counted()

    serve_some = serve_in_one_piece if in_one_piece else lambda: serve(requests, 500)
    threads = [threading.Thread(target=serve_some) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert requests.total == 4000 and requests.in_flight == 0
    assert 4000 in reports.counts


def test_a_request_is_hung_once_and_only_without_a_sign_of_life() -> None:
    reports = Reports()
    requests = reports.requests(timeout=0.05)
    stuck, slow_client = requests.begin("stuck"), requests.begin("slow client")
    assert stuck is not None and slow_client is not None and reports.woken == 1
    slow_client.wait_for_client()
    assert requests.look()[0] == []
    eventually(lambda: stuck.overdue(), "it is overdue", 2)
    assert requests.look()[0] == [stuck]
    assert requests.look()[0] == []
    # The client is done: now it is the application's time again, from the start.
    slow_client.touch()
    assert not slow_client.overdue()
    eventually(lambda: slow_client.overdue(), "it is overdue too", 2)
    assert requests.look()[0] == [slow_client] and requests.overdue() == 2
    requests.end(stuck)
    requests.end(slow_client)
    assert requests.look() == ([], None)


def test_a_request_may_have_a_timeout_of_its_own() -> None:
    requests = Reports().requests()
    assert requests.begin("for ever") is None
    own = requests.begin("limited", timeout=0.01)
    assert own is not None
    eventually(own.overdue, "it is overdue", 2)
    assert requests.look()[0] == [own] and requests.in_flight == 2


def test_a_pool_gets_on_while_one_is_free_or_one_came_free() -> None:
    pool = Pool(2)
    assert pool.progresses(1, 0)
    assert not pool.progresses(2, 0)
    assert pool.progresses(2, 1)
    assert not pool.progresses(2, 1)
    assert pool.progresses(1, 1)


@pytest.fixture
def manager_socket(tmp_path: Path) -> Any:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(2)
    yield sock
    sock.close()


def test_a_full_queue_loses_no_message_that_must_arrive(manager_socket: socket.socket) -> None:
    notifier = Notifier(manager_socket.getsockname())
    while notifier.post("STATUS=full"):
        pass
    notifier.insist("READY=1")
    notifier.insist("X_PADDOCK_RECYCLE=1")
    assert not notifier.retry()
    while manager_socket.recv(100) == b"STATUS=full":
        if notifier.retry():
            break
    rest = []
    manager_socket.setblocking(False)
    try:
        while True:
            rest.append(manager_socket.recv(100))
    except BlockingIOError:
        pass
    assert [message for message in rest if message != b"STATUS=full"] == [b"READY=1", b"X_PADDOCK_RECYCLE=1"]


def test_a_new_manager_at_the_same_path_hears_what_the_old_one_missed(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier(path)
    notifier.insist("READY=1")
    assert not notifier.retry()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        assert notifier.retry()
        assert sock.recv(100) == b"READY=1"


def test_a_barrier_waits_until_it_was_read_and_not_for_ever(manager_socket: socket.socket) -> None:
    notifier = Notifier(manager_socket.getsockname())
    assert not notifier.barrier(0.05)
    manager_socket.recv(100)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(notifier.barrier(5)))
    waiter.start()
    data, ancillary, _, _ = manager_socket.recvmsg(100, 100)
    assert data == b"BARRIER=1" and answers == []
    os.close(int.from_bytes(ancillary[0][2][:4], sys.byteorder))
    waiter.join(5)
    assert answers == [True]


def test_without_a_manager_everything_goes_well() -> None:
    notifier = Notifier(None)
    notifier.insist("READY=1")
    assert notifier.retry() and notifier.barrier(0) and not notifier.connected
    watchdog = Watchdog(notifier, None)
    watchdog.feed()
    assert watchdog.wait() is None and not watchdog.due()


def test_a_watchdog_is_fed_no_more_often_than_needed(manager_socket: socket.socket) -> None:
    watchdog = Watchdog(Notifier(manager_socket.getsockname()), 3.0)
    watchdog.feed()
    watchdog.feed()
    assert manager_socket.recv(100) == b"WATCHDOG=1"
    manager_socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager_socket.recv(100)
    wait = watchdog.wait()
    assert wait is not None and 0.5 < wait <= 1.0


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, "fds", (3, 4)),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "http"}, "names", ("http", "unknown")),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "8"}, "fds", ()),
        ({"LISTEN_FDS": "2"}, "fds", ()),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": "7"}, "fds", ()),
        ({"LISTEN_FDS": "99999999", "LISTEN_PID": "7"}, "fds", ()),
        ({"LISTEN_FDS": "²", "LISTEN_PID": "7"}, "fds", ()),
        ({"WATCHDOG_USEC": "1500000"}, "watchdog", 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, "watchdog", 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, "watchdog", None),
        ({"WATCHDOG_USEC": "soon"}, "watchdog", None),
        ({"WATCHDOG_USEC": "0"}, "watchdog", None),
        ({"PADDOCK_MAX_REQUESTS": "50"}, "quota", 50),
        ({"PADDOCK_MAX_REQUESTS": ""}, "quota", 0),
        ({"PADDOCK_SLOT": "3"}, "slot", 3),
        ({"PADDOCK_SLOT": "three"}, "slot", None),
        ({"MEMORY_PRESSURE_WATCH": "/dev/null"}, "pressure_address", None),
        ({"MEMORY_PRESSURE_WATCH": "/run/x"}, "pressure_address", "/run/x"),
    ],
)
def test_the_environment_is_read_and_distrusted(given: dict[str, str], field: str, value: object) -> None:
    assert getattr(Environment.read(dict(given), pid=7), field) == value


def test_what_is_this_processs_own_is_not_handed_on() -> None:
    env = {"LISTEN_FDS": "1", "LISTEN_PID": "7", "WATCHDOG_USEC": "1", "MEMORY_PRESSURE_WATCH": "x", "NOTIFY_SOCKET": "/n", "HOME": "/"}
    Environment.read(env, pid=7)
    assert env == {"NOTIFY_SOCKET": "/n", "HOME": "/"}


def test_a_promised_socket_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvironmentProblem, match="fd 900"):
        listeners(Environment(fds=(900,), names=("http",)))
    with pytest.raises(EnvironmentProblem, match="no socket is named admin"):
        listeners(Environment(fds=(3,), names=("http",)), ("admin",))


def test_what_does_not_listen_is_left_alone() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        duplicate = os.dup(listening.fileno())
        fds = (datagram.fileno(), duplicate)
        (found,) = listeners(Environment(fds=fds, names=("log", "http")))
        assert found.getsockname() == listening.getsockname()
        # Still open, for the application.
        os.fstat(datagram.fileno())
        found.close()


def test_a_listener_that_somebody_made_blocking_does_not_hang() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        (listener,) = listeners(Environment(fds=(os.dup(held.fileno()),), names=("http",)))
        with listener:
            listener.setblocking(False)
            # As a service manager does that starts the service again.
            os.set_blocking(held.fileno(), True)
            outcome: list[type[BaseException]] = []

            def accept() -> None:
                try:
                    listener.accept()
                except BaseException as error:
                    outcome.append(type(error))

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            thread.join(5)
            assert outcome == [BlockingIOError]


def test_a_listener_keeps_its_backlog() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(37)
        (listener,) = listeners(Environment(fds=(os.dup(held.fileno()),), names=("http",)))
        with listener:
            assert listener.backlog() == 37
            listener.listen(5)
            assert listener.backlog() == 37


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (":app", "does not name a module"),
        ("plain:app.nothing", "no attribute 'app.nothing'"),
        ("plain:app)", "after the colon"),
        ("plain:create(os.sep)", "after the colon"),
        ("plain:create(**x)", "after the colon"),
        ("plain:[1]", "after the colon"),
        ("plain:pulses", "not an application"),
    ],
)
def test_a_target_that_cannot_be_is_explained(target: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    with pytest.raises(apps.TargetProblem, match=problem.replace("(", r"\(")):
        apps.load(target)


def test_a_callback_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "_callbacks", [])
    felt = []

    @on_memory_pressure
    def fails() -> None:
        raise RuntimeError("told so")

    on_memory_pressure(lambda: felt.append(1))
    pressure.relieve()
    assert felt == [1]
