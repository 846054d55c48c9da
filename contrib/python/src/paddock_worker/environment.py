"""What the manager tells a worker through its environment.

The variables are systemd's (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3), the memory pressure protocol) plus
``PADDOCK_*``. They come from outside, so a value that makes no sense is reported and then treated as absent.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

FIRST_FD = 3
"""The first file descriptor of the socket activation protocol."""

_MAX_FDS = 4096


class EnvironmentProblem(Exception):
    """The environment cannot be used; the text says what to do about it."""


@dataclass(frozen=True)
class Environment:
    """One worker's environment, parsed. Times are in seconds."""

    fds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    notify_address: Optional[str] = None
    watchdog: Optional[float] = None
    pressure_address: Optional[str] = None
    app: str = ""
    slot: Optional[int] = None
    generation: Optional[int] = None
    quota: int = 0
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, env: Optional[MutableMapping[str, str]] = None, *, pid: Optional[int] = None) -> Environment:
        """Reads ``env`` (default: this process's) and removes what must not be taken for itself by a child.

        ``NOTIFY_SOCKET`` stays, so that an application may send messages of its own.
        """
        env = os.environ if env is None else env
        pid = os.getpid() if pid is None else pid
        warnings: list[str] = []

        def number(name: str) -> Optional[int]:
            text = env.get(name)
            if text is None or text == "":
                return None
            if text.isascii() and text.isdigit() and len(text) < 19:
                return int(text)
            warnings.append(f"{name}={text!r} is not a number: ignored")
            return None

        fds: tuple[int, ...] = ()
        names: tuple[str, ...] = ()
        count = number("LISTEN_FDS") or 0
        if count and number("LISTEN_PID") != pid:
            warnings.append(f"LISTEN_PID={env.get('LISTEN_PID')} is another process: the sockets of LISTEN_FDS are not ours")
        elif count > _MAX_FDS:
            warnings.append(f"LISTEN_FDS={count} is more than a process can have: ignored")
        elif count:
            fds = tuple(range(FIRST_FD, FIRST_FD + count))
            given = env.get("LISTEN_FDNAMES", "").split(":") if env.get("LISTEN_FDNAMES") else []
            names = tuple(given[i] if i < len(given) else "unknown" for i in range(count))

        watchdog: Optional[float] = None
        usec = number("WATCHDOG_USEC")
        if usec:
            watchdog_pid = number("WATCHDOG_PID")
            if watchdog_pid is None or watchdog_pid == pid:
                watchdog = usec / 1e6

        pressure = env.get("MEMORY_PRESSURE_WATCH") or None
        if pressure == os.devnull:
            pressure = None

        result = cls(
            fds=fds,
            names=names,
            notify_address=env.get("NOTIFY_SOCKET") or None,
            watchdog=watchdog,
            pressure_address=pressure,
            app=env.get("PADDOCK_APP", ""),
            slot=number("PADDOCK_SLOT"),
            generation=number("PADDOCK_GENERATION"),
            quota=number("PADDOCK_MAX_REQUESTS") or 0,
            warnings=tuple(warnings),
        )
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_USEC", "WATCHDOG_PID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"):
            env.pop(name, None)
        return result


class Listener(socket.socket):
    """A listening socket that the manager and the sibling workers hold too.

    Whatever is set on it is set for all of them, so: its backlog is left alone, and it is made non-blocking (by the server, or
    at the latest here) and never blocking again. Setting it is harmless to siblings, which are workers of the same kind. A service manager may have cleared
    the flag since (systemd does at each start of a service without ``NonBlocking=yes``); a worker that then loses the race
    for a connection would hang in accept(), hence the look before each one.
    """

    _kind: Optional[tuple[int, int, int]] = None

    def listen(self, backlog: int = 0) -> None:
        """Does nothing: the socket listens already, with the backlog that its owner gave it."""

    def accept(self) -> tuple[socket.socket, object]:
        """Like :meth:`socket.socket.accept`, and never blocks.

        Raises ``BlockingIOError`` when a sibling was faster.
        """
        fd = self.fileno()
        if os.get_blocking(fd):
            os.set_blocking(fd, False)
        if self._kind is None:
            self._kind = int(self.family), int(self.type), self.proto
        # As socket.accept() does it, but for making an enumeration's member of each number anew for each connection.
        accepted, address = self._accept()  # type: ignore[attr-defined]
        connection = socket.socket(*self._kind, fileno=accepted)
        if socket.getdefaulttimeout() is None and self.gettimeout():
            connection.setblocking(True)
        return connection, address

    def backlog(self, default: int = 2048) -> int:
        """The length of the accept queue as its owner set it; ``default`` where the kernel does not say (unix sockets).

        For a listening TCP socket ``TCP_INFO`` carries it as ``tcpi_sacked``, the second 32-bit word after ``tcpi_unacked``
        (net/ipv4/tcp.c, tcp_get_info).
        """
        if self.family == socket.AF_UNIX:
            return default
        try:
            info = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        except OSError:
            return default
        value: int = struct.unpack_from("=I", info, 28)[0] if len(info) >= 32 else 0
        return value or default


def backlog(sockets: Sequence[Listener]) -> int:
    """What to hand to a server that insists on setting the accept queue's length: the longest that it has already."""
    return max(sock.backlog() for sock in sockets)


def listeners(env: Environment, wanted: tuple[str, ...] = ()) -> list[Listener]:
    """The listening stream sockets that were passed in; with ``wanted`` only those of these names.

    Other descriptors (datagram sockets, stored files) are left to the application. Raises :class:`EnvironmentProblem` when
    there is nothing to serve on.
    """
    missing = [name for name in wanted if name not in env.names]
    if missing:
        have = ", ".join(env.names) or "none"
        raise EnvironmentProblem(f"no socket is named {', '.join(missing)} (names passed in: {have})")
    found: list[Listener] = []
    for fd, name in zip(env.fds, env.names):
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            os.set_inheritable(fd, False)
        except OSError as error:
            raise EnvironmentProblem(f"LISTEN_FDS promises fd {fd} ({name}), but it is not open: {error.strerror}") from error
        if wanted and name not in wanted:
            continue
        # A second object on the same fd only looks; detach() keeps it from closing the fd.
        probe = socket.socket(fileno=fd)
        try:
            listening = probe.type == socket.SOCK_STREAM and bool(probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        finally:
            probe.detach()
        if listening:
            found.append(Listener(fileno=fd))
    if not found:
        raise EnvironmentProblem(
            "no listening socket was passed in. Start the worker through its manager, for example: "
            "paddock run --bind 127.0.0.1:8000 -- python -m paddock_worker …"
        )
    return found
