"""The requests of this worker: how many were served, which are in flight, which are hung.

Begin and end are on the way of every request, so what only a hung one needs is worked out when one hangs.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections.abc import Callable
from time import monotonic
from typing import Any, Optional

Stack = Callable[[], Optional[list[str]]]
"""Where a request waits, as :func:`traceback.format_stack` gives it; None while it runs in its thread."""


class Request:
    """One request in flight that may hang."""

    __slots__ = ("active", "hung", "stack", "thread", "timeout", "touched", "what")

    def __init__(self, what: Any, stack: Optional[Stack], timeout: float) -> None:
        self.what = what
        self.stack = stack
        self.timeout = timeout
        self.thread = get_ident()
        self.touched = monotonic()
        self.active = True
        self.hung = False

    def wait_for_client(self) -> None:
        """The client is slow to read or to send: not the application's fault, so the clock stands still."""
        self.active = False

    def touch(self) -> None:
        """The request moved: data went out or came in."""
        self.touched = monotonic()
        self.active = True

    def overdue(self) -> bool:
        """Whether it has shown no sign of life for as long as it may."""
        return self.active and monotonic() - self.touched >= self.timeout


class Requests:
    """Counts and watches. Methods may be called from any thread.

    ``report`` sends a count to the manager and says whether that worked; ``wake`` is called when the housekeeper has something
    to look at; ``describe`` names the ``what`` of a request for the log.
    """

    REPORT_EVERY = 0.1
    """Least time between two counts, in seconds, but for the one that reaches the quota."""

    def __init__(self, quota: int, report: Callable[[int], bool], wake: Callable[[], None], timeout: Optional[float] = None) -> None:
        self.quota = quota
        self.timeout = timeout
        self.total = 0
        self.describe: Callable[[Any], str] = str
        self._report = report
        self._wake = wake
        self._lock = allocate_lock()
        self._reported = 0
        self._reported_at = float("-inf")
        self._woken = False
        self._unwatched = 0
        self._flying: dict[int, Request] = {}
        self._watched = False

    @property
    def in_flight(self) -> int:
        """How many requests have begun and not ended."""
        return self._unwatched + len(self._flying)

    def overdue(self) -> int:
        """How many of them have shown no sign of life for as long as they may."""
        return sum(request.overdue() for request in list(self._flying.values()))

    def begin(self, what: Any, stack: Optional[Stack] = None, timeout: Optional[float] = None) -> Optional[Request]:
        """A request reaches the application; ``timeout`` is its own, if not that of all. None: it may take for ever."""
        if timeout is None:
            timeout = self.timeout
        if timeout is None:
            with self._lock:
                self._unwatched += 1
            return None
        request = Request(what, stack, timeout)
        self._flying[id(request)] = request
        if not self._watched:
            self._watched = True
            self._wake()
        return request

    def end(self, request: Optional[Request]) -> None:
        """It is over, whatever came of it, and counts."""
        if request is not None:
            self._flying.pop(id(request), None)
        self._count(request is None)

    def counted(self, serve: Callable[..., Any], *, threads: bool) -> Callable[..., Any]:
        """``serve``, every call of which is one request that may take for ever: :meth:`begin` and :meth:`end` in one piece.

        ``threads``: it is called in several. Without them nothing comes between the halves of an addition: greenlets switch only
        where they wait, and the housekeeper only reads.
        """
        lock = self._lock

        def in_threads(*arguments: Any) -> Any:
            with lock:
                self._unwatched += 1
            try:
                return serve(*arguments)
            finally:
                with lock:
                    self._unwatched -= 1
                    self.total = total = self.total + 1
                if not self._woken or total == self.quota:
                    self._tell(total)

        def in_one_thread(*arguments: Any) -> Any:
            self._unwatched += 1
            try:
                return serve(*arguments)
            finally:
                self._unwatched -= 1
                self.total = total = self.total + 1
                if not self._woken or total == self.quota:
                    self._tell(total)

        return in_threads if threads else in_one_thread

    def count(self) -> None:
        """One was served that never began, for a server that tells only of the end, and always in the same thread."""
        # No lock: nobody else adds. :meth:`flush` clears the mark before it looks at the total, so that one of the two sees the other.
        self.total = total = self.total + 1
        if not self._woken or total == self.quota:
            self._tell(total)

    def _count(self, unwatched: bool) -> None:
        with self._lock:
            self._unwatched -= unwatched
            self.total = total = self.total + 1
        if not self._woken or total == self.quota:
            self._tell(total)

    def _tell(self, total: int) -> None:
        """Reported at once on reaching the quota, else at most every :attr:`REPORT_EVERY`, by the housekeeper."""
        with self._lock:
            now = monotonic()
            due = total == self.quota or now - self._reported_at >= self.REPORT_EVERY
            if due:
                self._reported_at = now
            else:
                self._woken = True
        if not due:
            self._wake()
        elif self._report(total):
            self._reported = total

    def flush(self) -> Optional[float]:
        """The housekeeper's visit: reports what was held back.

        Returns the seconds until the next visit. None: nothing was served since the last, so no more visits until woken.
        """
        with self._lock:
            self._woken = False
            if self._reported >= self.total:
                return None
            self._woken = True
            now = monotonic()
            wait = self._reported_at + self.REPORT_EVERY - now
            if wait > 0:
                return wait
            self._reported_at = now
            total = self.total
        if self._report(total):
            self._reported = total
            return self.REPORT_EVERY
        return 1.0

    def look(self) -> tuple[list[Request], Optional[float]]:
        """The requests that are newly hung, and the seconds until the next look; None: nothing is in flight that could hang."""
        # Cleared first: a request that begins from here on wakes the housekeeper again.
        self._watched = False
        flying = list(self._flying.values())
        if not flying:
            return [], None
        self._watched = True
        now = monotonic()
        hung = []
        # Signs of life move a deadline, so it is looked at again within a second.
        wait = 1.0
        for request in flying:
            if request.hung or not request.active:
                continue
            left = request.touched + request.timeout - now
            if left <= 0:
                request.hung = True
                hung.append(request)
            else:
                wait = min(wait, left)
        return hung, max(0.01, wait)
