"""gunicorn's worker classes, taught to speak with paddock instead of with gunicorn's master.

A class is made on the fly from the one that the configuration names, so a subclass of a user's own works too.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Optional

from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker as GunicornWorker

from .environment import Listener, backlog
from .requests import Request
from .worker import Pool, Worker

if TYPE_CHECKING:
    from types import FrameType

FOREVER = 10**8
"""Seconds: how long a draining worker waits by itself. The bound is the manager's."""


class _Paddock(GunicornWorker):  # type: ignore[misc]
    """What all classes have in common."""

    paddock: Worker
    linger: float

    # The master's death is not a reason to end: a new manager adopts this worker.
    @property
    def ppid(self) -> int:
        return os.getppid()

    @ppid.setter
    def ppid(self, value: int) -> None:
        pass

    def notify(self) -> None:
        """Gunicorn's loops call this where they tell the master that they are alive."""
        watchdog = self.paddock.watchdog
        if watchdog.due():
            watchdog.feed(self.progresses())

    def progresses(self) -> bool:
        """Whether being in the loop means that requests get served."""
        return True

    def is_parent_alive(self) -> bool:
        """Some loops ask in every turn."""
        return True

    def init_signals(self) -> None:
        # The dump comes first, then gunicorn's own handler with its worker_abort hook. Turned off meanwhile, because turning
        # it off puts back what was there before it, and that would be gunicorn's handler gone.
        faulthandler.disable()
        super().init_signals()
        faulthandler.enable()

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        super().handle_exit(sig, frame)
        # Said when it is so: nothing is accepted from here on.
        self.paddock.stopping()

    def run(self) -> None:
        self.paddock.ready(f"gunicorn {type(self).__name__}")
        super().run()


class _Wsgi(_Paddock):
    """Classes whose ``handle_request`` serves one request of a WSGI application."""

    threads = True
    """Whether requests are served in several threads. Without certainty, as for a class of a user's own, they are."""

    def load_wsgi(self) -> None:
        super().load_wsgi()
        requests = self.paddock.requests
        requests.describe = _name
        if requests.timeout is not None:
            application: Callable[..., Any] = getattr(self, "wsgi")  # noqa: B009
            self.wsgi = self._watched(application)
        # In place of the methods, here where it is known what has to be done for a request: this is on the way of each.
        for name in ("handle_request", "handle_http2_request"):
            serve = getattr(self, name, None)
            if serve is not None:
                setattr(self, name, requests.counted(serve, threads=self.threads) if requests.timeout is None else self._timed(serve))

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        _announce_close()
        super().handle_exit(sig, frame)

    def _timed(self, serve: Callable[..., Any]) -> Callable[..., Any]:
        begin, end = self.paddock.requests.begin, self.paddock.requests.end

        def timed(*arguments: Any) -> Any:
            request = begin(arguments, self.stack_of_this())
            if request is not None:
                self.remember(request)
            try:
                return serve(*arguments)
            finally:
                end(request)

        return timed

    def stack_of_this(self) -> Optional[Callable[[], Optional[list[str]]]]:
        """How to find later where the request that begins now waits; None: its thread tells."""
        return None

    def remember(self, request: Request) -> None:
        """Notes which request the running thread, or greenlet, is at."""
        self._request = request

    def this(self) -> Request:
        """The request that the running thread, or greenlet, is at."""
        return self._request

    def _watched(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Signs of life: only time spent in the application counts, not time spent waiting for the client."""

        def watched(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            request = self.this()
            if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
                environ["wsgi.input"] = _WatchedBody(environ["wsgi.input"], request)
            response = application(environ, start_response)
            if isinstance(response, (list, tuple, environ["wsgi.file_wrapper"])):
                # The application is done; from here on it is between the server and the client.
                request.wait_for_client()
                return response
            request.touch()
            return _watched_pieces(response, request)

        return watched


def _announce_close() -> None:
    """From now on every response whose head is not sent yet says that the connection closes, also if its request came before.

    Gunicorn does so only for requests that begin now. Nothing is done about it before the drain, so nothing is paid for it.
    """
    original = Response.should_close

    def should_close(response: Any) -> bool:
        if not response.headers_sent:
            response.force_close()
        closes: bool = original(response)
        return closes

    Response.should_close = should_close


class _WatchedBody:
    """``wsgi.input``: while it is read, the client is at it."""

    def __init__(self, body: Any, request: Request) -> None:
        self._body = body
        self._request = request

    def _wait(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self._request.wait_for_client()
        try:
            return method(*arguments)
        finally:
            self._request.touch()

    def read(self, *size: Any) -> Any:
        return self._wait(self._body.read, *size)

    def readline(self, *size: Any) -> Any:
        return self._wait(self._body.readline, *size)

    def readlines(self, *hint: Any) -> Any:
        return self._wait(self._body.readlines, *hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _watched_pieces(response: Any, request: Request) -> Iterator[bytes]:
    try:
        for piece in response:
            # Until it comes back for more, the server writes to the client.
            request.wait_for_client()
            yield piece
            request.touch()
    finally:
        if hasattr(response, "close"):
            response.close()


def _name(arguments: tuple[Any, ...]) -> str:
    for argument in arguments:
        if hasattr(argument, "method") and hasattr(argument, "path"):
            return f"{argument.method} {argument.path}"
    return "a request"


class _Sync(_Wsgi):
    """sync: one request at a time."""

    threads = False


class _Finished:
    """Takes the place of gthread's ``method_queue``, by which its threads hand back connections to its loop.

    Gunicorn's writes a byte to its pipe for each; this one only if the loop has not been woken yet, because a thread that enters
    the kernel gives up the interpreter's lock and has to wait for it again.
    """

    def __init__(self) -> None:
        self._reader = self._writer = -1
        self._queue: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._woken = False

    def init(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken = False

    def close(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    def fileno(self) -> int:
        return self._reader

    def defer(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """Has the loop call it. For any thread, and for signal handlers."""
        self._queue.put(partial(callback, *arguments))
        if not self._woken:
            self._woken = True
            try:
                os.write(self._writer, b"\0")
            except OSError:
                # Full: it will wake up. Closed: it is over.
                pass

    def run_callbacks(self, _: Any) -> None:
        """Calls what is waiting, now that the pipe can be read."""
        try:
            os.read(self._reader, 4096)
        except OSError:
            return
        # Cleared before the queue is looked at: what comes later wakes the loop again.
        self._woken = False
        for _ in range(self._queue.qsize()):
            self._queue.get_nowait()()


def _public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


class _Threads(_Wsgi):
    """gthread: the loop runs on while its threads hang, so the pings depend on the pool."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        import threading

        super().__init__(*arguments, **keywords)
        self._pool = Pool(self.cfg.threads)
        self._local = threading.local()
        interval = self.paddock.watchdog.interval
        self._longest_sleep = float("inf") if interval is None else interval / 2
        self._spares = 0
        self.paddock.on_hung = self._substitute
        # Older versions have none; a later one may ask more of it.
        if hasattr(self, "method_queue") and _public(self.method_queue) <= _public(_Finished):
            self.method_queue: Any = _Finished()

    def remember(self, request: Request) -> None:
        self._local.request = request

    def this(self) -> Request:
        request: Request = self._local.request
        return request

    def progresses(self) -> bool:
        requests = self.paddock.requests
        return self._pool.progresses(requests.in_flight, requests.total)

    def accept(self, listener: Any) -> None:
        # In the turn of the loop in which the drain begins, a connection is better left to the others.
        if self.alive:
            super().accept(listener)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, self._longest_sleep))

    def _substitute(self, request: Request) -> None:
        # The queue behind a hung thread shall be answered while the replacement starts; one extra for each, up to twice the pool.
        if self._spares < self.cfg.threads and hasattr(self.tpool, "_max_workers"):
            self._spares += 1
            self._pool.size += 1
            self.tpool._max_workers += 1
            # The pool looks for room for one more thread when it is given work.
            self.tpool.submit(int)


class _Gevent(_Wsgi):
    """gevent: one greenlet for each connection."""

    threads = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._pool = Pool(self.worker_connections)
        self._greenlets: dict[Any, Request] = {}

    def patch(self) -> None:
        super().patch()
        import gevent

        self._gevent: Any = gevent

    def stack_of_this(self) -> Optional[Callable[[], Optional[list[str]]]]:
        greenlet = self._gevent.getcurrent()

        def stack() -> Optional[list[str]]:
            frame = greenlet.gr_frame
            return None if frame is None else traceback.format_stack(frame)

        return stack

    def remember(self, request: Request) -> None:
        # An attribute of the greenlet: it goes when the greenlet goes.
        self._gevent.getcurrent().paddock_request = request

    def this(self) -> Request:
        request: Request = self._gevent.getcurrent().paddock_request
        return request

    def progresses(self) -> bool:
        requests = self.paddock.requests
        return self._pool.progresses(requests.in_flight, requests.total)

    def run(self) -> None:
        """Gunicorn's own, but for two things: no second is spent asleep before the drain begins, or after it is over."""
        from gevent.event import Event
        from gevent.pool import Pool as Greenlets
        from gevent.server import StreamServer
        from gunicorn.sock import ssl_context

        self._drain = Event()
        self._loop = self._gevent.get_hub().loop
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        servers = []
        for sock in self.sockets:
            # Gevent's socket: this is about how the greenlets see it, the listener itself stays non-blocking.
            sock.setblocking(1)
            server = StreamServer(sock, handle=partial(self.handle, sock), spawn=Greenlets(self.worker_connections), **tls)
            # One at a time: the others may have less to do.
            server.max_accept = 1
            server.start()
            servers.append(server)
        if self.paddock.watchdog.interval is not None:
            self._gevent.spawn(self._feed)
        self.paddock.ready(f"gunicorn {type(self).__name__}")
        while self.alive:
            self._drain.wait()
        for server in servers:
            server.close()
        for server in servers:
            # An idle keep-alive connection ends by itself after `keepalive` seconds without a request.
            server.pool.join()

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        super().handle_exit(sig, frame)
        if hasattr(self, "_loop"):
            # A signal interrupts anything, the event loop's own callbacks too.
            self._loop.run_callback_threadsafe(self._drain.set)

    def _feed(self) -> None:
        while True:
            self.notify()
            self._gevent.sleep(self.paddock.watchdog.wait() or 0)


class _Uvicorn(_Paddock):
    """uvicorn-worker: :class:`paddock_worker.asgi.Server` takes the place of uvicorn's own."""

    def notify(self) -> None:
        """Nothing: the server feeds the watchdog, knowing more than that the loop turns."""

    def run(self) -> None:
        from . import asgi

        sockets: list[Listener] = [wrapper.sock for wrapper in self.sockets]
        self.config.backlog = backlog(sockets)
        code = asgi.serve(self.config, self.wsgi, sockets, self.paddock, self.linger)
        if code:
            sys.exit(code)


def adapt(worker_class: type, paddock: Worker, linger: float) -> tuple[type, bool]:
    """The class to run in place of ``worker_class``, and whether it is of a kind that is known to count and to drain."""
    from gunicorn.workers.gthread import ThreadWorker
    from gunicorn.workers.sync import SyncWorker

    kind: type
    known = True
    if issubclass(worker_class, ThreadWorker):
        kind = _Threads
    elif issubclass(worker_class, SyncWorker):
        kind = _Sync
    elif _is_gevent(worker_class):
        kind = _Gevent
    elif hasattr(worker_class, "CONFIG_KWARGS") and hasattr(worker_class, "callback_notify"):
        kind = _Uvicorn
    else:
        kind = _Wsgi if hasattr(worker_class, "handle_request") else _Paddock
        known = False
    adapted = type(worker_class.__name__, (kind, worker_class), {"paddock": paddock, "linger": linger})
    return adapted, known


def _is_gevent(worker_class: type) -> bool:
    module = sys.modules.get("gunicorn.workers.ggevent")
    return module is not None and issubclass(worker_class, module.GeventWorker) and worker_class.server_class is None  # type: ignore[attr-defined]
