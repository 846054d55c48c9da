"""The real frameworks, and the package as it is installed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from manager import Client, Manager, eventually

ROOT = Path(__file__).parent.parent
SHOP = ROOT.parent.parent / "examples" / "leaky-shop"


@pytest.mark.parametrize(
    "arguments",
    [
        ["wsgi", "flask_app:app"],
        ["wsgi", "django_app:application"],
        ["asgi", "django_app:app"],
        ["asgi", "starlette_app:app"],
        ["asgi", "flask_app:app", "--interface=wsgi"],
    ],
    ids=" ".join,
)
def test_a_request_with_a_body_goes_through(manager: Manager, arguments: list[str]) -> None:
    manager.start(*arguments).ready()
    body = json.dumps(list(range(1000)))
    with manager.client() as client:
        for _ in range(2):
            client.sock.sendall(
                f"POST /sum HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            response = client.receive()
            assert response.status == 200 and json.loads(response.body) == {"sum": 499500}


def test_an_exhausted_pool_of_anyio_stops_the_pings(manager: Manager) -> None:
    worker = manager.start("asgi", "starlette_app:app", WATCHDOG_USEC=600_000).ready()
    clients = [Client(manager.connect()) for _ in range(4)]
    for client in clients:
        # Two threads; the other two requests wait.
        client.send("/block/60")

    def silent() -> bool:
        before = len(worker.values("WATCHDOG"))
        time.sleep(1.0)
        return len(worker.values("WATCHDOG")) == before

    eventually(silent, "a second without a ping")


def test_an_exhausted_default_executor_stops_the_pings(manager: Manager) -> None:
    worker = manager.start("asgi", "plain:app", WATCHDOG_USEC=600_000).ready()
    clients = [Client(manager.connect()) for _ in range(40)]
    for client in clients:
        client.send("/pool/60")

    def silent() -> bool:
        before = len(worker.values("WATCHDOG"))
        time.sleep(1.0)
        return len(worker.values("WATCHDOG")) == before

    eventually(silent, "a second without a ping")


def test_a_hung_thread_of_wsgi_gets_a_substitute(manager: Manager) -> None:
    worker = manager.start("wsgi", "plain:application", "--threads=2", "--request-timeout=0.5").ready()
    with manager.client() as one, manager.client() as two, manager.client() as three:
        one.send("/sleep/60")
        two.send("/sleep/60")
        time.sleep(0.2)
        # Both threads are taken for a minute.
        assert three.get().text == str(worker.pid)


def test_a_full_pool_leaves_new_connections_to_others(manager: Manager) -> None:
    worker = manager.start("wsgi", "plain:application", "--threads=1").ready()
    with manager.client() as busy:
        busy.send("/sleep/3")
        time.sleep(0.3)
        with manager.client() as late:
            late.send()
            other = manager.start("wsgi", "plain:application").ready()
            assert late.receive().text == str(other.pid)
        assert busy.receive().text == str(worker.pid)
        # And it takes part again.
        other.drain()
        assert other.wait() == 0
        assert manager.get().text == str(worker.pid)


def test_a_websocket_is_told_goodbye(manager: Manager) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    worker = manager.start("asgi", "starlette_app:app", "--ws=websockets-sansio", "--request-timeout=0.5").ready()
    host, port = manager.address
    with connect(f"ws://{host}:{port}/echo", proxy=None) as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"
        # Idle for longer than the request timeout, which is not about WebSockets.
        time.sleep(1)
        assert not worker.values("X_PADDOCK_RECYCLE")
        worker.drain()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    assert worker.wait(5) == 0


def test_the_example_shop_leaks_what_it_says(manager: Manager) -> None:
    worker = manager.start("wsgi", "--app-dir", str(SHOP), "wsgi:application", LEAK_MB=4).ready()
    with manager.client() as client:
        for path in ("/", "/product/3", "/product/99"):
            client.get(path)
        state = json.loads(client.get("/worker").body)
        assert client.get("/health").text == "ok\n"
    assert (state["pid"], state["served"], state["leaked_mb"]) == (worker.pid, 3, 12.0)
    rss = int(next(line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])
    assert rss > 12 * 1024


def test_wheel_and_sdist_are_complete(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    modules = {f"paddock_worker/{path.name}" for path in (ROOT / "src" / "paddock_worker").iterdir() if path.is_file()}
    assert modules <= set(names) and "paddock_worker/py.typed" in names
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed == []
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("tests/test_http.py") for name in archive.getnames())


def test_the_command_line_names_what_is_paddocks(manager: Manager) -> None:
    for arguments, remedy in (
        (["wsgi", "--listen=*:80", "plain"], "--listen is paddock's here: set [listen] bind"),
        (["asgi", "--workers=2", "plain"], "--workers is paddock's here: set workers"),
        (["wsgi", "--threads=many", "plain"], "invalid literal"),
        (["wsgi", "--no-such-option", "plain"], "--no-such-option"),
        (["asgi", "--no-such-option", "plain"], "--no-such-option"),
        ([], "usage"),
    ):
        worker = manager.start(*arguments)
        assert worker.wait() == 2, arguments
        assert remedy in worker.output(), (arguments, worker.output())


def test_signals_before_readiness_end_it(manager: Manager) -> None:
    worker = manager.start("wsgi", "slow:application")
    eventually(lambda: "importing" in worker.output(), "the import has begun")
    worker.drain()
    assert worker.wait(5) == -signal.SIGTERM
    assert not worker.values("READY")


def test_counts_are_exact_under_threads(manager: Manager) -> None:
    worker = manager.start("wsgi", "plain:application", "--threads=8", PADDOCK_MAX_REQUESTS=400).ready()

    def client() -> None:
        with manager.client() as connection:
            for _ in range(50):
                assert connection.get().status == 200

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.wait_for("X_PADDOCK_REQUESTS", "400", 5)
    worker.drain()
    assert worker.wait() == 0
    assert worker.requests() == 400
