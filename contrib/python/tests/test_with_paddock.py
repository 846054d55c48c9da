"""The real manager with the real servers: what the small manager of the other tests promises, it keeps.

The program is ``$PADDOCK``, else what cargo has built last in this repository.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from manager import APPS, BOUND, Client, eventually
from test_http import SERVERS

BIN = str(Path(sys.executable).parent)
TARGET = Path(__file__).parents[3] / "target"


def program() -> Optional[str]:
    built = [path for path in (TARGET / "release" / "paddock", TARGET / "debug" / "paddock") if path.exists()]
    newest = max(built, key=lambda path: path.stat().st_mtime, default=None)
    return os.environ.get("PADDOCK") or (newest and str(newest))


pytestmark = pytest.mark.skipif(program() is None, reason="no paddock: build it with cargo, or name it in $PADDOCK")


class Paddock:
    """One app under the real manager; most tests are about its messages and the workers' drains, and need no fences."""

    isolation = "none"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address = sock.getsockname()
        self.process: Optional[subprocess.Popen[bytes]] = None

    def run(self, *arguments: str, program_of: Optional[list[str]] = None, bind: bool = True, **options: Any) -> None:
        """Starts it with ``python -m paddock_worker ARGUMENTS``, or another program; options become flags."""
        command = [program() or "", "run", "--runtime-directory", str(self.directory / "run"), f"--isolation={self.isolation}"]
        if bind:
            command.append(f"--bind={self.address[0]}:{self.address[1]}")
        command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command += ["--", *(program_of or [sys.executable, "-m", "paddock_worker"]), *arguments]
        with open(self.log, "wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(APPS)}
            self.process = subprocess.Popen(command, env=environment, cwd=self.directory, stdout=log, stderr=log)
        eventually(lambda: self.says(": ready: ") or self.process is None or self.process.poll() is not None, "the app is ready")
        assert self.process.poll() is None, self.text()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str) -> int:
        return self.text().count(words)

    def client(self) -> Client:
        def connect() -> socket.socket:
            return socket.create_connection(self.address, BOUND)

        return Client(connect(), connect)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(BOUND)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                self.process.wait(BOUND)


@pytest.fixture
def paddock(tmp_path: Path) -> Iterator[Paddock]:
    paddock = Paddock(tmp_path)
    yield paddock
    paddock.close()


@contextlib.contextmanager
def load(paddock: Paddock) -> Iterator[Counter[str]]:
    """Six clients, of whom half keep their connections; none of them tries again. Gives the count of answers by pid."""
    lost: list[BaseException] = []
    served: Counter[str] = Counter()
    stop = threading.Event()

    def client_of(keep_alive: bool) -> None:
        client = paddock.client()
        while not stop.is_set():
            try:
                client.send(head="" if keep_alive else "Connection: close\r\n")
                response = client.receive()
                assert response.status == 200
                served[response.text] += 1
            except (OSError, AssertionError) as error:
                lost.append(error)
                client = paddock.client()
            time.sleep(0.01)
        client.sock.close()

    threads = [threading.Thread(target=client_of, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield served
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert lost == []


def send(paddock: Paddock, requests: int, keep_alive: bool) -> tuple[Counter[str], list[str]]:
    """So many requests from 16 clients, of whom none tries again: the answers by pid, and what was lost.

    They pause between two requests, or a quota would be served many times over before its replacement has started.
    """
    answers: list[str] = []
    lost: list[str] = []
    left = iter(range(requests))
    pause = float(os.environ.get("PADDOCK_TEST_PAUSE", "0.03"))

    def client_of() -> None:
        client: Optional[Client] = None
        for _ in left:
            if len(lost) > 100:
                # Nobody serves: each further request would take as long as patience lasts.
                return
            try:
                client = client or paddock.client()
                client.send(head="" if keep_alive else "Connection: close\r\n")
                response = client.receive()
                assert response.status == 200, response.status
                # Not into the counter: two threads that add at the same time would add one.
                answers.append(response.text)
                if response.closes:
                    # At once: gunicorn's sync class waits for it.
                    client.sock.close()
                    client = None
            except (OSError, AssertionError) as error:
                lost.append(repr(error))
                if client is not None:
                    client.sock.close()
                client = None
            time.sleep(pause)
        if client is not None:
            client.sock.close()

    threads = [threading.Thread(target=client_of) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(answers), lost


@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "close"])
@pytest.mark.parametrize("name", SERVERS)
def test_workers_reach_their_quota_and_nothing_is_lost(paddock: Paddock, name: str, keep_alive: bool) -> None:
    """The real thing is 20,000 requests: PADDOCK_TEST_REQUESTS=20000. Prints what it found (pytest -rP -n 0)."""
    requests = int(os.environ.get("PADDOCK_TEST_REQUESTS", "1600"))
    paddock.run(*SERVERS[name], workers=2, max_requests=200, max_requests_jitter="10%", timeout_watchdog="30s")
    began = time.monotonic()
    served, lost = send(paddock, requests, keep_alive)
    took = time.monotonic() - began
    print(f"{name}, {'keep-alive' if keep_alive else 'new connections'}: {sum(served.values())} answered by {len(served)} workers, ", end="")
    print(f"{len(lost)} lost, {requests / took:.0f}/s")
    # How many workers serve depends on how fast a replacement starts: until then a worker serves on.
    end = time.monotonic() + BOUND
    while len(served) <= 2 and not lost and time.monotonic() < end:
        more, lost = send(paddock, 160, keep_alive)
        served += more
        requests += 160
    assert lost == []
    assert sum(served.values()) == requests
    assert len(served) > 2, served
    assert paddock.stop() == 0
    for word in ("drain-deadline", "not believed", "watchdog:", "exit status"):
        assert word not in paddock.text()


@pytest.mark.skipif(shutil.which("uwsgi", path=BIN) is None, reason="uwsgi could not be built here (it needs Python's headers)")
def test_uwsgi_needs_no_help_from_us(paddock: Paddock) -> None:
    """The recipe of the README: uWSGI says READY by itself, and HUP without a master ends it when its requests are answered."""
    uwsgi = [os.path.join(BIN, "uwsgi"), "--http-socket", "fd://3", "--module", "plain:application", "--need-app"]
    paddock.run("--add-header", "Connection: close", program_of=uwsgi, workers=2, drain_signal="HUP", max_lifetime="2s", timeout_graceful="8s")
    with load(paddock) as served:
        eventually(lambda: len(served) >= 6, "four replacements have served", 60)
        busy = paddock.client()
        busy.send("/sleep/1")
        pid = busy.receive().text
    assert pid.isdigit()
    # Before the stop: a uWSGI that is still starting does not hear HUP, and one may be just then.
    assert "drain-deadline" not in paddock.text()
    assert paddock.stop() == 0


def test_a_hung_request_is_replaced_around_and_the_others_are_answered(paddock: Paddock) -> None:
    paddock.run("wsgi", "--request-timeout=0.5", "plain:application", workers=1, timeout_graceful="1s")
    hung, other = paddock.client(), paddock.client()
    hung.send("/sleep/60")
    first = other.get().text

    def replaced() -> bool:
        client = paddock.client()
        text = client.get().text
        client.sock.close()
        return text != first

    eventually(replaced, "a replacement answers")
    assert "GET /sleep/60 has been at it for 0.5 s" in paddock.text()
    eventually(lambda: paddock.says("drain-deadline"), "the hung one is cut at the drain's deadline")


def test_a_blocked_worker_is_shot_with_its_stacks_in_the_log(paddock: Paddock) -> None:
    paddock.run("asgi", "plain:app", workers=1, timeout_watchdog="2s", timeout_abort="1s")
    blocked = paddock.client()
    first = blocked.get().text
    blocked.send("/block/60")
    eventually(lambda: paddock.says("Fatal Python error: Aborted"), "the stacks are printed")
    eventually(lambda: paddock.says("watchdog"), "the verdict")
    eventually(lambda: paddock.client().get().text != first, "the new one answers")


def test_an_application_that_does_not_import_ends_the_start(paddock: Paddock) -> None:
    with pytest.raises(AssertionError):
        paddock.run("wsgi", "broken:application", workers=1)
    assert paddock.process is not None and paddock.process.wait(BOUND) == 1
    assert "ZeroDivisionError" in paddock.text()
