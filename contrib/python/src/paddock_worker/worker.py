"""One worker, seen from the manager: what it reports, and the thread that does the reporting.

The watchdog is the exception: it is fed by whoever serves (:class:`Watchdog`), never by this thread, or it would say that all
is well while nothing is.

What the housekeeper's thread calls is taken from the modules at import, before gevent can patch them: it must work when the
event loop does not.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
import threading
import traceback
from _thread import start_new_thread
from collections.abc import Callable
from select import POLLIN, poll
from time import monotonic, sleep
from typing import Optional

from .environment import Environment
from .notify import Notifier
from .pressure import Pulse, relieve
from .requests import Request, Requests

logger = logging.getLogger("paddock_worker")

_current: Optional[Worker] = None


def request_recycle(reason: str = "the application asked for it") -> None:
    """Asks the manager to replace this worker: the replacement is started first, then this one is drained.

    The worker serves on until then. Without a manager nothing happens.
    """
    if _current is not None:
        _current.recycle(reason)


def leave(code: int) -> None:
    """The worker's last words and its end, if there is one; else nothing.

    Exit handlers run and streams are flushed, but the heap is not taken apart: the interpreter would look through every object
    once more, seconds of it in a worker that has leaked, and all the while its memory is held and its slot is closed.
    """
    if _current is None:
        return
    _current.finish()
    # What the interpreter does at its end, in its order: threads that are not daemons, then the exit handlers.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # There is none, or nobody reads it any more.
            pass
    os._exit(code)


class Watchdog:
    """The serving path's pings. Call :meth:`feed` from there, at least every :attr:`interval` seconds."""

    def __init__(self, notifier: Notifier, period: Optional[float]) -> None:
        self._notifier = notifier
        self._next = float("-inf")
        self.interval: Optional[float] = None if period is None else period / 3
        """Seconds between pings; None: nobody watches."""

    def wait(self) -> Optional[float]:
        """Seconds until the next ping is due."""
        return None if self.interval is None else max(0.0, self._next - monotonic())

    def due(self) -> bool:
        """Whether :meth:`feed` would send now."""
        return self.interval is not None and monotonic() >= self._next

    def feed(self, progress: bool = True) -> None:
        """Sends a ping if one is due. ``progress`` false withholds it until the next one is due."""
        if self.interval is None:
            return
        now = monotonic()
        if now < self._next:
            return
        self._next = now + self.interval
        if progress:
            self._notifier.post("WATCHDOG=1")


class Pool:
    """Whether a fixed set of threads gets anywhere: it has a free one, or one came free since the last look."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ended_before = 0

    def progresses(self, busy: int, ended: int) -> bool:
        """``busy`` threads work on requests now; ``ended`` requests were ever finished."""
        moved = ended != self._ended_before
        self._ended_before = ended
        return moved or busy < self.size


class Worker:
    """The manager's view of this process."""

    def __init__(self, env: Environment, *, request_timeout: Optional[float] = None, own_quota: int = 0) -> None:
        """``own_quota``: after so many requests ask for a replacement, where the manager has set no quota."""
        global _current
        self.env = env
        self._own_quota = 0 if env.quota else own_quota
        self.notifier = Notifier(env.notify_address)
        self.watchdog = Watchdog(self.notifier, env.watchdog)
        self.requests = Requests(env.quota or own_quota, self._report, self._wake, request_timeout)
        self.on_hung: Optional[Callable[[Request], None]] = None
        """Called in the housekeeper's thread for each request found hung, after the manager was asked for a replacement."""
        self.draining = False
        self._pulse = Pulse(env.pressure_address) if env.pressure_address else None
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._waiter = poll()
        self._waiter.register(self._wake_reader, POLLIN)
        self._ended = False
        self._asked = False
        self._said_stopping = False
        for warning in env.warnings:
            logger.warning("%s", warning)
        if sys.stderr is not None:
            # On SIGABRT, which a watchdog sends first, every thread says where it is.
            faulthandler.enable()
        _current = self
        # A native thread whatever gevent does to threading: it must run when the serving thread cannot.
        start_new_thread(self._keep_house, ())

    # What the server says.

    def ready(self, status: str) -> None:
        """Connections are answered from now on."""
        self.watchdog.feed()
        self.notifier.insist(f"READY=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """One line for people."""
        self.notifier.post(f"STATUS={_line(text)}")

    def stopping(self) -> None:
        """The drain began. May be called in a signal handler, so it takes no lock: the housekeeper says it."""
        self.draining = True
        self._wake()

    def recycle(self, reason: str) -> None:
        """Asks for a replacement, once per life."""
        if not self._asked:
            self._asked = True
            logger.warning("asking to be replaced: %s", reason)
            self.notifier.insist(f"X_PADDOCK_RECYCLE=1\nSTATUS={_line(reason)}")
            self._wake()

    def finish(self) -> None:
        """The last words: the final count, and the certainty that the manager has read it."""
        self._ended = True
        self._wake()
        if self.notifier.connected:
            self._say_stopping()
            self.notifier.post(f"X_PADDOCK_REQUESTS={self.requests.total}")
            self.notifier.retry()
            self.notifier.barrier(1.0)

    # The housekeeper: a thread that sleeps until there is something to do.

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b"x")
        except OSError:
            # Full: it is awake. Closed: it is gone.
            pass

    def _report(self, total: int) -> bool:
        if self._own_quota and total >= self._own_quota:
            self.recycle(f"{total} requests served")
        return self.notifier.post(f"X_PADDOCK_REQUESTS={total}")

    def _say_stopping(self) -> None:
        if self.draining and not self._said_stopping:
            self._said_stopping = True
            self.notifier.insist(f"STOPPING=1\nSTATUS=draining, {self.requests.in_flight} in flight")

    def _keep_house(self) -> None:
        while not self._ended:
            try:
                self._housekeeping()
            except Exception:
                if self._ended:
                    return
                logger.exception("the housekeeper stumbled")
                sleep(1)

    def _housekeeping(self) -> None:
        self._say_stopping()
        waits = [self.requests.flush(), None if self.notifier.retry() else 1.0]
        hung, look_again = self.requests.look()
        for request in hung:
            self._hung(request)
        waits.append(look_again)
        if self._pulse is not None and self._pulse.fileno() < 0:
            if self._pulse.connect():
                self._waiter.register(self._pulse.fileno(), POLLIN)
            else:
                waits.append(Pulse.RETRY)
        known = [wait for wait in waits if wait is not None]
        for fd, _ in self._waiter.poll(int(min(known) * 1000) + 1 if known else None):
            if fd == self._wake_reader:
                os.read(self._wake_reader, 4096)
            elif self._pulse is not None:
                self._feel_pulse(self._pulse, fd)

    def _feel_pulse(self, pulse: Pulse, fd: int) -> None:
        felt = pulse.drain()
        if pulse.fileno() < 0:
            # The manager has closed it. It is looked for again on the next round.
            self._waiter.unregister(fd)
        if felt:
            started = monotonic()
            relieve()
            logger.info("memory pressure: shed what could be shed in %.3f s", monotonic() - started)

    def _hung(self, request: Request) -> None:
        try:
            name = self.requests.describe(request.what)
        except Exception:
            name = "a request"
        lines = [f"{name} has been at it for {request.timeout:g} s without a sign of life; it is here:\n"]
        suspended = request.stack() if request.stack is not None else None
        thread = sys._current_frames().get(request.thread)
        if suspended is not None:
            lines += suspended
        elif thread is not None:
            lines += traceback.format_stack(thread)
        logger.warning("%s", "".join(lines).rstrip())
        self.recycle(f"{name} is hung")
        if self.on_hung is not None:
            self.on_hung(request)


def _line(text: str) -> str:
    """One line of a notify message: a newline in it would start another assignment."""
    return text.replace("\r", " ").replace("\n", " ")[:200]
