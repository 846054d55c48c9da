"""``wsgi``: a WSGI application on waitress, with threads.

Waitress reads requests and writes responses in one loop and gives a thread only complete requests, so slow clients hold no
thread. The loop also feeds the watchdog, unless every thread is busy and none came free since the last ping.
"""

from __future__ import annotations

import argparse
import logging
import select
import signal
import socket
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Optional

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer, UnixWSGIServer
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import queue_logger

from . import apps, cli
from .environment import Listener, listeners
from .requests import Request
from .worker import Pool, Worker

logger = logging.getLogger("waitress")

_OWNED = {
    "host": "set [listen] bind",
    "port": "set [listen] bind",
    "listen": "set [listen] bind",
    "unix_socket": "set [listen] bind",
    "unix_socket_perms": "set [listen] socket_mode",
    "sockets": "set [listen] bind",
    "ipv4": "set [listen] bind",
    "ipv6": "set [listen] bind",
    "backlog": "set [listen] backlog",
    "asyncore_use_poll": "it uses poll where select cannot be used",
    "asyncore_loop_timeout": "it sleeps until there is something to do",
}

_SELECT_MOST = 1024
"""select(2) knows descriptors below this number (`FD_SETSIZE`)."""

_PARTIAL_GRACE = 5.0
"""How long a drain waits, in seconds, for the next byte of a request that has begun to arrive."""

_THREAD_GRACE = 5.0
"""How long the end waits for threads, in seconds, as waitress does. They are daemons."""

_JOIN_MOST = 65_536
"""The longest first piece of a body, in bytes, that is copied to leave in one piece with the head."""

_FIRST_BYTES = 0.01
"""How long a new connection is taken, in seconds, for a request that is about to arrive. Short: it may never come."""


class _OfThread(threading.local):
    counts = False


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    def build_response_header(self) -> bytes:
        if self.channel.server.paddock.worker.draining:
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header


class _Task(WSGITask):  # type: ignore[misc]
    """One request in its thread."""

    def service(self) -> None:
        channel, requests = self.channel, self.channel.server.paddock.worker.requests
        request = requests.begin(self.request)
        channel.paddock_request = request
        try:
            super().service()
        finally:
            channel.paddock_request = None
            requests.end(request)
            channel.server.paddock.task_done()

    def build_response_header(self) -> bytes:
        if self.channel.server.paddock.worker.draining:
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header

    def write(self, data: bytes) -> None:
        # Head and first piece are two writes to waitress: two system calls, and twice the interpreter's lock changes hands.
        if self.wrote_header or not 0 < len(data) <= _JOIN_MOST:
            super().write(data)
            return
        channel = self.channel
        channel.paddock_held = b""
        try:
            super().write(data)
        finally:
            held, channel.paddock_held = channel.paddock_held, None
            if held:
                channel.write_soon(held)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection."""

    task_class = _Task
    error_task_class = _ErrorTask
    paddock_request: Optional[Request] = None
    paddock_held: Optional[bytes] = None
    """What is held back, to be written together with what follows; None: nothing is held back now."""
    paddock_seen: tuple[float, float] = (0.0, 0.0)

    def __init__(self, server: _Base, *arguments: Any, **keywords: Any) -> None:
        super().__init__(server, *arguments, **keywords)
        # Read at once: only a request that was read keeps this worker, busy now, from accepting the next one.
        if self.bytes_waiting():
            self.handle_read()
        else:
            server.paddock.expect(self)

    def service(self) -> None:
        paddock = self.server.paddock
        paddock.of_thread.counts = True
        try:
            super().service()
        finally:
            counted = paddock.of_thread.counts
            paddock.task_done()
            # Otherwise waitress has woken its loop since.
            if counted or not self.connected:
                paddock.wake()

    def write_soon(self, data: Any) -> int:
        written: int
        held = self.paddock_held
        if held is not None:
            if not self.connected:
                raise ClientDisconnected
            self.paddock_held = held + data
            return len(data)
        request = self.paddock_request
        if request is None:
            written = super().write_soon(data)
            return written
        request.wait_for_client()
        try:
            written = super().write_soon(data)
        finally:
            request.touch()
        return written

    def quiet_since(self, drain_began: float) -> Optional[float]:
        """Since when, by the monotonic clock, nothing has happened here; None while a request is being answered."""
        if self.requests or self.total_outbufs_len or self.close_when_flushed or self.will_close:
            return None
        # Waitress notes activity by the wall clock, which may jump: only that it changed is taken from it.
        if self.paddock_seen[0] != self.last_activity:
            first = self.paddock_seen[0] == 0.0
            self.paddock_seen = (self.last_activity, drain_began if first else time.monotonic())
        return self.paddock_seen[1]

    def bytes_waiting(self) -> bool:
        """Whether the client has sent something that was not read yet (its end counts)."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))


class _Base:
    """What both kinds of listening socket have in common; waitress's own class follows it in each."""

    channel_class = _Channel
    paddock: Server

    def accept_connections(self) -> None:
        # Waitress would call listen() here, but the socket listens already.
        self.accepting = True

    def set_reuse_addr(self) -> None:
        """Nothing: the socket is bound already, and its options are its owner's."""

    def add_task(self, task: _Channel) -> None:
        self.paddock.task_given(task)
        super().add_task(task)  # type: ignore[misc]

    def pull_trigger(self) -> None:
        self.paddock.wake()

    def handle_accept(self) -> None:
        # Another listener, or an old connection, may have taken the last thread in this very turn of the loop.
        if not self.paddock.saturated():
            super().handle_accept()  # type: ignore[misc]

    def readable(self) -> bool:
        # Without a free thread a new connection is better left to the siblings.
        ready: bool = super().readable()  # type: ignore[misc]
        return ready and not self.paddock.saturated()


class _Tcp(_Base, TcpWSGIServer):  # type: ignore[misc]
    pass


class _Unix(_Base, UnixWSGIServer):  # type: ignore[misc]
    pass


class _Dispatcher:
    """The threads. Waitress's own wake each other through a condition variable: several locks where this queue takes one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._queue: SimpleQueue[Optional[_Channel]] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def set_thread_count(self, count: int) -> None:
        """Starts as many as are missing. There are never fewer again before the end."""
        while len(self._threads) < count:
            name = f"waitress-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def add_task(self, task: _Channel) -> None:
        self._queue.put(task)
        waiting = self._server.tasks - len(self._threads)
        if waiting > 0:
            queue_logger.warning("Task queue depth is %d", waiting)

    def _serve(self) -> None:
        get = self._queue.get
        while True:
            task = get()
            if task is None:
                return
            try:
                task.service()
            except BaseException:
                logger.exception("Exception when servicing %r", task)
            # A thread that waits keeps nothing of its last connection.
            del task

    def shutdown(self) -> None:
        """Ends the threads that are idle; called when no request is left."""
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + _THREAD_GRACE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))


class Server:
    """Waitress on inherited sockets, and its loop."""

    def __init__(
        self,
        application: Callable[..., Any],
        sockets: Sequence[Listener],
        worker: Worker,
        adjustments: Adjustments,
        linger: float,
    ) -> None:
        self.worker = worker
        self.adjustments = adjustments
        self._linger = linger
        self._map: dict[int, Any] = {}
        self._threads: int = adjustments.threads
        self._spares = 0
        self._pool = Pool(self._threads)
        self.tasks = 0
        """Requests that a thread works on or that wait for one."""
        self._tasks_lock = allocate_lock()
        self._dispatcher = _Dispatcher(self)
        self._dispatcher.set_thread_count(self._threads)
        self._woken = False
        self.of_thread = _OfThread()
        """Whether the thread that asks counts as one with a request."""
        self._expected: dict[_Channel, float] = {}
        # With connections: waitress looks for overdue ones when it passes by, and the watchdog is fed in time.
        self._between_looks = min(1.0, (worker.watchdog.interval or 2.0) / 2) + 0.001
        self._drain_wanted = False
        self._drain_began: Optional[float] = None
        worker.requests.describe = lambda request: f"{request.command} {request.path}"
        worker.on_hung = lambda _: self._substitute()
        self._servers = []
        for sock in sockets:
            kind = _Unix if sock.family == socket.AF_UNIX else _Tcp
            info = (sock.family, sock.type, sock.proto, sock.getsockname())
            server = kind(
                application, self._map, True, sock, dispatcher=self._dispatcher, adj=adjustments, bind_socket=False, sockinfo=info
            )
            server.paddock = self
            self._servers.append(server)

    @property
    def threads(self) -> int:
        """How many there are, substitutes for hung ones included."""
        return self._threads + self._spares

    def saturated(self) -> bool:
        """Whether every thread has a request, counting those that wait for one or are about to arrive. For the loop's thread."""
        if self._expected:
            now = time.monotonic()
            self._expected = {channel: until for channel, until in self._expected.items() if until > now}
        return self.tasks + len(self._expected) >= self.threads

    def expect(self, channel: _Channel) -> None:
        """A connection was accepted, and its request is still on the way. For the loop's thread."""
        self._expected[channel] = time.monotonic() + _FIRST_BYTES

    def task_given(self, channel: _Channel) -> None:
        """A request is complete and waits for a thread. For any thread: only a connection's first one changes what is expected."""
        self._expected.pop(channel, None)
        with self._tasks_lock:
            self.tasks += 1

    def task_done(self) -> None:
        """This thread is free again, or about to be, if it is not so already. The loop, which may have left the listeners out of
        its poll, is to be woken."""
        if self.of_thread.counts:
            self.of_thread.counts = False
            with self._tasks_lock:
                self.tasks -= 1

    def wake(self) -> None:
        """Makes the loop look around. For any thread, and for signal handlers."""
        # While the loop is awake it will look by itself, once it has cleared the mark: it sees what was changed before this line.
        if not self._woken:
            self._woken = True
            self._servers[0].trigger.pull_trigger()

    def drain(self) -> None:
        """Asks for the drain. For signal handlers."""
        self._drain_wanted = True
        self.wake()

    def run(self) -> None:
        """Serves until drained."""
        watchdog, requests = self.worker.watchdog, self.worker.requests
        while True:
            # Cleared before anything is looked at: see wake().
            self._woken = False
            if self._drain_wanted and self._drain_began is None:
                self._begin_drain()
            if self._drain_began is not None and self._drained(self._drain_began):
                break
            self._turn(self._wait())
            if watchdog.due():
                watchdog.feed(self._pool.progresses(requests.in_flight, requests.total))
        self._dispatcher.shutdown()

    def _turn(self, timeout: Optional[float]) -> None:
        """Waits until something can be read or written, and does it: :func:`wasyncore.poll`, with less for each connection."""
        reading, writing = [], []
        lookahead = self.adjustments.channel_request_lookahead
        for fd, found in list(self._map.items()):
            if type(found) is not _Channel:
                if found.readable():
                    reading.append(fd)
            # What its writable() and readable() say: they are never both true.
            elif found.total_outbufs_len or found.will_close or found.close_when_flushed:
                writing.append(fd)
            elif len(found.requests) <= lookahead:
                reading.append(fd)
        if max(self._map) < _SELECT_MOST:
            reading, writing, _ = select.select(reading, writing, (), timeout)
        else:
            reading, writing = _poll(reading, writing, timeout)
        self._woken = True
        for fds, handle in (reading, wasyncore.read), (writing, wasyncore.write):
            for fd in fds:
                # It may be gone since: closed by another's handler.
                found = self._map.get(fd)
                if found is not None:
                    handle(found)

    def _substitute(self) -> None:
        # The queue behind a hung thread shall be answered while the replacement starts; one extra for each, up to twice the pool.
        if self._spares < self._threads:
            self._spares += 1
            self._pool.size = self.threads
            self._dispatcher.set_thread_count(self.threads)
            self.wake()

    def _channels(self) -> list[_Channel]:
        return [found for found in self._map.values() if isinstance(found, _Channel)]

    def _wait(self) -> Optional[float]:
        if self._drain_began is None and not self._expected and len(self._map) > 2 * len(self._servers):
            return self._between_looks
        waits = []
        ping = self.worker.watchdog.wait()
        if ping is not None:
            waits.append(ping)
        if self._drain_began is not None:
            waits.append(self._next_goodbye(self._drain_began))
        if self._expected:
            waits.append(max(0.0, min(self._expected.values()) - time.monotonic()))
        # poll2 counts in whole milliseconds and would spin through the last one.
        return min(waits) + 0.001 if waits else None

    def _begin_drain(self) -> None:
        self._drain_began = time.monotonic()
        self.worker.stopping()
        for server in self._servers:
            # The trigger stays: finished threads wake the loop through it.
            server.accepting = False
            server.del_channel()
            server.socket.close()

    def _patience(self, channel: _Channel) -> float:
        return self._linger if channel.request is None else max(self._linger, _PARTIAL_GRACE)

    def _next_goodbye(self, began: float) -> float:
        now = time.monotonic()
        wait = 1.0
        for channel in self._channels():
            quiet = channel.quiet_since(began)
            if quiet is not None:
                wait = min(wait, quiet + self._patience(channel) - now)
        return max(0.0, wait)

    def _drained(self, began: float) -> bool:
        now = time.monotonic()
        for channel in self._channels():
            quiet = channel.quiet_since(began)
            if quiet is not None and now - quiet >= self._patience(channel) and not channel.bytes_waiting():
                channel.handle_close()
        return not self._channels() and not self.tasks


def _poll(reading: list[int], writing: list[int], timeout: Optional[float]) -> tuple[list[int], list[int]]:
    """Like select(2), but for descriptors of any number."""
    poll = select.poll()
    for fd in reading:
        poll.register(fd, select.POLLIN)
    for fd in writing:
        poll.register(fd, select.POLLOUT)
    ready = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
    return [fd for fd in reading if fd in ready], [fd for fd in writing if fd in ready]


def _server_options(argv: Sequence[str], *, only_help: bool = False) -> tuple[str, dict[str, Any]]:
    """Waitress's own options, all of them, as ``--name VALUE`` or ``--[no-]name``."""
    parser = argparse.ArgumentParser(prog="python -m paddock_worker wsgi", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("waitress (see its documentation of arguments)")
    booleans = {name for name, cast in Adjustments._params if cast.__name__ == "asbool"}
    for name, _ in Adjustments._params:
        if name in _OWNED and only_help:
            continue
        flag = name.replace("_", "-")
        if name in booleans:
            group.add_argument(f"--{flag}", dest=name, action="store_const", const="true", default=argparse.SUPPRESS)
            group.add_argument(f"--no-{flag}", dest=name, action="store_const", const="false", default=argparse.SUPPRESS)
        else:
            group.add_argument(f"--{flag}", dest=name, metavar="VALUE", default=argparse.SUPPRESS)
    if only_help:
        print("\n" + parser.format_help().split("\n\n", 1)[1])
        return "", {}
    parser.add_argument("target", metavar="module:app")
    given = vars(parser.parse_args(list(argv)))
    target: str = given.pop("target")
    for name in given:
        if name in _OWNED:
            raise cli.owned_by_paddock("--" + name.replace("_", "-"), _OWNED[name])
    return target, given


def run(argv: Sequence[str]) -> int:
    """The ``wsgi`` command. Returns its exit code."""
    options, rest, help_wanted = cli.split("wsgi", argv)
    if help_wanted:
        _server_options((), only_help=True)
        return 0
    target, given = _server_options(rest)
    try:
        adjustments = Adjustments(**given)
    except ValueError as problem:
        raise cli.UsageProblem(str(problem)) from None
    env = cli.prepare(options)
    sockets = listeners(env, options.sockets)
    worker = Worker(env, request_timeout=options.request_timeout)
    application = apps.load(target, factory=options.factory)
    # After the import, so that an application's own set-up of logging wins, as in waitress.serve().
    logging.basicConfig()
    server = Server(application, sockets, worker, adjustments, options.drain_linger)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.drain())
    worker.ready(f"waitress {_version()}, {adjustments.threads} threads")
    server.run()
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("waitress")
    except PackageNotFoundError:
        return ""
