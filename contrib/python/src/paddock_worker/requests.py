"""The requests of this worker: how many were served, which are in flight, which are hung."""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections.abc import Callable
from time import monotonic
from typing import Optional


Stack = Callable[[], Optional[list[str]]]
"""Where a request waits, as :func:`traceback.format_stack` gives it; None while it runs in its thread."""


class Request:
    """One request in flight."""

    __slots__ = ("active", "hung", "name", "stack", "thread", "timeout", "touched")

    def __init__(self, name: Callable[[], str], stack: Optional[Stack], timeout: Optional[float]) -> None:
        self.name = name
        self.stack = stack
        self.timeout = timeout
        self.thread = get_ident()
        self.touched = monotonic()
        self.active = True
        self.hung = False

    def wait_for_client(self) -> None:
        """The client is slow to read or to send: not the application's fault, so the clock stands still."""
        self.active = False

    def overdue(self) -> bool:
        """Whether it has shown no sign of life for as long as it may."""
        return self.timeout is not None and self.active and monotonic() - self.touched >= self.timeout

    def touch(self) -> None:
        """The request moved: data went out or came in."""
        self.touched = monotonic()
        self.active = True


class Requests:
    """Counts and watches. Methods may be called from any thread.

    ``wake`` is called when the housekeeper has something to look at.
    """

    REPORT_EVERY = 0.1
    """Least time between two counts, in seconds, but for the one that reaches the quota."""

    def __init__(self, quota: int, report: Callable[[int], bool], wake: Callable[[], None], timeout: Optional[float] = None) -> None:
        self.quota = quota
        self.timeout = timeout
        self.total = 0
        self._report = report
        self._wake = wake
        self._lock = allocate_lock()
        self._reported = 0
        self._reported_at = float("-inf")
        self._woken = False
        self._flying: dict[int, Request] = {}
        self._watched = False

    @property
    def in_flight(self) -> int:
        """How many requests have begun and not ended."""
        return len(self._flying)

    def overdue(self) -> int:
        """How many of them have shown no sign of life for as long as they may."""
        return sum(request.overdue() for request in list(self._flying.values()))

    def begin(self, name: Callable[[], str], stack: Optional[Stack] = None, timeout: Optional[float] = None) -> Request:
        """A request reaches the application; ``timeout`` is its own, if not that of all.

        ``name`` is called only if it must be named in the log, and so is ``stack``.
        """
        request = Request(name, stack, self.timeout if timeout is None else timeout)
        self._flying[id(request)] = request
        if request.timeout is not None and not self._watched:
            self._watched = True
            self._wake()
        return request

    def end(self, request: Request, *, served: bool = True) -> None:
        """It is over, whatever came of it; ``served`` false does not count it."""
        self._flying.pop(id(request), None)
        if served:
            self.count()

    def count(self) -> None:
        """One more was served. Reported at once on reaching the quota, else at most every :attr:`REPORT_EVERY`."""
        now = monotonic()
        with self._lock:
            self.total += 1
            total = self.total
            due = total == self.quota or now - self._reported_at >= self.REPORT_EVERY
            if due:
                self._reported_at = now
            elif self._woken:
                return
            else:
                self._woken = True
        if not due:
            self._wake()
        elif self._report(total):
            self._reported = total

    def flush(self) -> Optional[float]:
        """Reports a count that was held back. Returns the seconds until there is something to do, None: nothing."""
        with self._lock:
            if self._reported >= self.total:
                self._woken = False
                return None
            wait = self._reported_at + self.REPORT_EVERY - monotonic()
            if wait > 0:
                return wait
            self._woken = False
            self._reported_at = monotonic()
            total = self.total
        if self._report(total):
            self._reported = total
            return None
        with self._lock:
            self._woken = True
        return 1.0

    def look(self) -> tuple[list[Request], Optional[float]]:
        """The requests that are newly hung, and the seconds until the next look; None: nothing is in flight that could hang."""
        # Cleared first: a request that begins from here on wakes the housekeeper again.
        self._watched = False
        flying = [request for request in list(self._flying.values()) if request.timeout is not None]
        if not flying:
            return [], None
        self._watched = True
        now = monotonic()
        hung = []
        # Signs of life move a deadline, so it is looked at again within a second.
        wait = 1.0
        for request in flying:
            if request.hung or not request.active or request.timeout is None:
                continue
            left = request.touched + request.timeout - now
            if left <= 0:
                request.hung = True
                hung.append(request)
            else:
                wait = min(wait, left)
        return hung, max(0.01, wait)
