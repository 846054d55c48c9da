"""A small manager for the tests: everything that a worker can see of the real one, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

HERE = Path(__file__).parent
APPS = HERE / "apps"
BOUND = 30.0
"""Longest wait for anything, in seconds. A test that needs it has failed already."""


def eventually(condition: Callable[[], Any], what: str, bound: float = BOUND) -> Any:
    """Waits until ``condition`` gives something true, and returns that."""
    end = time.monotonic() + bound
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.01)


class Message:
    """One datagram: its assignments, when it came, and whether the worker itself sent it."""

    def __init__(self, text: str, sender: int) -> None:
        self.fields = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
        self.sender = sender
        self.at = time.monotonic()

    def __repr__(self) -> str:
        return f"{self.at:.3f} {self.fields}"


class Worker:
    """One life of a command."""

    def __init__(self, manager: Manager, command: list[str], environment: dict[str, str], directory: Path, sockets: bool) -> None:
        self.manager = manager
        self.messages: list[Message] = []
        self._changed = threading.Condition()
        self.stderr_path = directory / f"stderr-{time.monotonic_ns()}"
        self.notify_path = str(directory / f"notify-{time.monotonic_ns()}")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind(self.notify_path)
        self._notify.settimeout(0.2)
        self.pressure_path = str(directory / f"pressure-{time.monotonic_ns()}")
        self._pressure = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pressure.bind(self.pressure_path)
        self._pressure.listen()
        self._pressure.settimeout(BOUND)
        env = {
            **os.environ,
            "NOTIFY_SOCKET": self.notify_path,
            "MEMORY_PRESSURE_WATCH": self.pressure_path,
            "PADDOCK_APP": "test",
            "PADDOCK_SLOT": "0",
            "PADDOCK_GENERATION": "1",
            "PYTHONPATH": str(APPS),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        env = {name: value for name, value in env.items() if value != ""}
        passed: list[int] = []
        if sockets and manager.listeners:
            env["LISTEN_FDS"] = str(len(manager.listeners))
            env["LISTEN_FDNAMES"] = ":".join(manager.names)
            passed = [fcntl.fcntl(sock, fcntl.F_DUPFD, 200) for sock in manager.listeners]
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(HERE / "launch.py"), ",".join(map(str, passed)), *command],
                env=env,
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=directory,
            )
        for fd in passed:
            os.close(fd)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._notify.recvmsg(65536, 1024)
            except socket.timeout:
                if self.process.returncode is not None:
                    return
                continue
            except OSError:
                return
            sender = 0
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender = struct.unpack("3i", value[:12])[0]
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    # A barrier: closing it is the answer.
                    for (fd,) in struct.iter_unpack("i", value[: len(value) // 4 * 4]):
                        os.close(fd)
            with self._changed:
                self.messages.append(Message(data.decode(), sender))
                self._changed.notify_all()

    def values(self, name: str) -> list[str]:
        """Every value that ``name`` was given, in order."""
        return [message.fields[name] for message in list(self.messages) if name in message.fields]

    def wait_for(self, name: str, value: Optional[str] = None, bound: float = BOUND) -> Message:
        """The first message that assigns ``value`` (any, if None) to ``name``."""
        end = time.monotonic() + bound
        with self._changed:
            while True:
                for message in self.messages:
                    if name in message.fields and (value is None or message.fields[name] == value):
                        return message
                left = end - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._changed.wait(0.5)):
                    raise AssertionError(f"no {name}={value}; exit {self.process.poll()}; got {self.messages}; it said:\n{self.output()}")
                self._changed.wait(min(left, 0.5))

    def ready(self, bound: float = BOUND) -> Worker:
        message = self.wait_for("READY", "1", bound)
        assert message.sender == self.pid
        return self

    def requests(self) -> int:
        """The highest count reported."""
        return max(map(int, self.values("X_PADDOCK_REQUESTS")), default=0)

    def pulse(self) -> None:
        """Says that memory runs short, as the manager does."""
        connection, _ = self._pressure.accept()
        with connection:
            connection.send(b"\1")
            connection.settimeout(BOUND)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def drain(self) -> None:
        self.signal(signal.SIGTERM)

    def wait(self, bound: float = BOUND) -> int:
        """Its exit status."""
        try:
            return self.process.wait(bound)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end; it said:\n{self.output()}") from None

    def output(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self._notify.close()
        self._pressure.close()


class Manager:
    """Holds the sockets and starts workers on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.listeners: list[socket.socket] = []
        self.names: list[str] = []
        self.workers: list[Worker] = []

    def bind(self, name: str = "http", *, unix: bool = False, backlog: int = 512, blocking: bool = True) -> Manager:
        if unix:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(str(self.directory / f"{name}.sock"))
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
        sock.listen(backlog)
        sock.setblocking(blocking)
        self.listeners.append(sock)
        self.names.append(name)
        return self

    @property
    def address(self) -> Any:
        return self.listeners[0].getsockname()

    def start(self, *arguments: str, sockets: bool = True, command: Optional[list[str]] = None, **environment: Any) -> Worker:
        """Starts ``python -m paddock_worker ARGUMENTS`` (or ``command``). Keywords become environment variables."""
        full = command or [sys.executable, "-m", "paddock_worker", *arguments]
        worker = Worker(self, full, {name: str(value) for name, value in environment.items()}, self.directory, sockets)
        self.workers.append(worker)
        return worker

    def connect(self, index: int = 0) -> socket.socket:
        listener = self.listeners[index]
        sock = socket.socket(listener.family, socket.SOCK_STREAM)
        sock.settimeout(BOUND)
        sock.connect(listener.getsockname())
        return sock

    @contextlib.contextmanager
    def client(self, index: int = 0) -> Iterator[Client]:
        client = Client(self.connect(index), lambda: self.connect(index))
        try:
            yield client
        finally:
            client.sock.close()

    def get(self, path: str = "/", index: int = 0) -> Response:
        with self.client(index) as client:
            return client.get(path)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for listener in self.listeners:
            listener.close()


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A keep-alive client that never retries: what it loses is lost. It connects again after ``Connection: close``."""

    def __init__(self, sock: socket.socket, connect: Optional[Callable[[], socket.socket]] = None) -> None:
        self.sock = sock
        self._connect = connect
        self._buffer = b""
        self._over = False

    def send(self, path: str = "/", *, head: str = "") -> None:
        if self._over and self._connect is not None:
            self.sock.close()
            self.sock, self._buffer, self._over = self._connect(), b"", False
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode())

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._fill()
        found, self._buffer = self._buffer.split(mark, 1)
        return found

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed before the response was complete")
        self._buffer += data

    def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            self._fill()
        found, self._buffer = self._buffer[:length], self._buffer[length:]
        return found

    def receive(self) -> Response:
        lines = self._until(b"\r\n\r\n").decode().split("\r\n")
        status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while True:
                size = int(self._until(b"\r\n"), 16)
                body += self._exactly(size)
                self._exactly(2)
                if not size:
                    break
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            body = b""
            with contextlib.suppress(ConnectionError):
                while True:
                    self._fill()
            body, self._buffer = self._buffer, b""
        response = Response(status, headers, body)
        self._over = response.closes
        return response

    def get(self, path: str = "/") -> Response:
        self.send(path)
        return self.receive()

    def at_end(self) -> bool:
        """Waits for the server's close: True for an orderly one."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return False
