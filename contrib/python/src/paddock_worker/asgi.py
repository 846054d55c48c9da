"""``asgi``: an ASGI application on uvicorn.

The event loop itself feeds the watchdog, so a blocked loop is noticed; so is a thread pool (anyio's, or the loop's default
executor) that has work waiting and finishes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional
from unittest import mock

import click
import uvicorn

from . import apps, cli
from .environment import Listener, backlog, listeners
from .requests import Request, Requests
from .worker import Worker

logger = logging.getLogger("uvicorn.error")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_OWNED = {
    "host": "set [listen] bind",
    "port": "set [listen] bind",
    "uds": "set [listen] bind",
    "fd": "all inherited sockets are served (--socket-name picks some)",
    "backlog": "set [listen] backlog",
    "workers": "set workers",
    "reload": "use paddock reload",
    "reload_dirs": "use paddock reload",
    "reload_includes": "use paddock reload",
    "reload_excludes": "use paddock reload",
    "reload_delay": "use paddock reload",
    "limit_max_requests": "set [recycle] max_requests",
    "limit_max_requests_jitter": "set [recycle] max_requests_jitter",
    "timeout_graceful_shutdown": "set [timeouts] graceful",
    "timeout_worker_healthcheck": "set [timeouts] watchdog",
}

_TICK = 1.0
"""Seconds between uvicorn's ticks (the Date header is renewed then)."""

_TLS_GRACE = 1.0
"""How long a drain leaves a TLS handshake, in seconds, to become a connection that uvicorn knows."""


class _Total:
    """Stands where uvicorn keeps its count of what it has answered, to which it adds one each time."""

    __slots__ = ("_count", "_requests")

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._count = requests.count

    def __iadd__(self, one: int) -> _Total:
        self._count()
        return self

    def __ge__(self, limit: int) -> bool:
        return self._requests.total >= limit


class _Watched:
    """The application, watched for requests that hang. They are counted here too, because begin and end belong together."""

    def __init__(self, app: _App, requests: Requests) -> None:
        self._app = app
        self._requests = requests
        requests.describe = lambda scope: f"{scope['method']} {scope['path']}"

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        task = asyncio.current_task()
        request = self._requests.begin(scope, lambda: _where_it_waits(task))
        try:
            if request is not None:
                receive, send = _signs_of_life(request, receive, send)
            await self._app(scope, receive, send)
        finally:
            self._requests.end(request)


def _where_it_waits(task: Optional[asyncio.Task[Any]]) -> Optional[list[str]]:
    """The stack of a suspended task, outermost first (``Task.get_stack`` gives only the outermost frame)."""
    coroutine: Any = None if task is None else task.get_coro()
    if coroutine is None or coroutine.cr_running:
        return None
    lines: list[str] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            lines += traceback.format_stack(frame, 1)
        coroutine = getattr(coroutine, "cr_await", None)
    return lines


def _signs_of_life(request: Request, receive: _Receive, send: _Send) -> tuple[_Receive, _Send]:
    """Data that comes or goes. Time spent waiting for the client does not count against the application."""
    body_complete = False

    async def watched_receive() -> _Message:
        nonlocal body_complete
        if not body_complete:
            request.wait_for_client()
        message = await receive()
        if message["type"] == "http.request":
            body_complete = not message.get("more_body", False)
        request.touch()
        return message

    async def watched_send(message: _Message) -> None:
        request.wait_for_client()
        try:
            await send(message)
        finally:
            request.touch()

    return watched_receive, watched_send


class Server(uvicorn.Server):
    """Uvicorn with paddock's readiness, watchdog and drain."""

    def __init__(self, config: uvicorn.Config, worker: Worker, linger: float) -> None:
        super().__init__(config)
        self._worker = worker
        self._linger = linger
        self._pools_seen: Optional[int] = None
        if worker.requests.timeout is None:
            self.server_state.total_requests = _Total(worker.requests)  # type: ignore[assignment]
        self._executor = ThreadPoolExecutor(thread_name_prefix="asyncio")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: the handlers come with readiness. Until then TERM ends the process as it does any other."""
        yield

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        """Starts the application, then listens."""
        # The same that the loop would make when one is first needed; this one can be asked how it is.
        asyncio.get_running_loop().set_default_executor(self._executor)
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Uvicorn calls this when it has started up and listens."""
        loop = asyncio.get_running_loop()
        self._drain = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain.set)
        pings = asyncio.ensure_future(self._feed())
        self._worker.ready(f"uvicorn {uvicorn.__version__}")
        try:
            while not await self.on_tick(0) and not self._drain.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drain.wait(), _TICK)
        finally:
            pings.cancel()

    async def _feed(self) -> None:
        watchdog = self._worker.watchdog
        if watchdog.interval is None:
            return
        while True:
            watchdog.feed(self._pools_progress())
            await asyncio.sleep(watchdog.wait() or 0)

    def _pools_progress(self) -> bool:
        """Whether no thread pool is stuck: all its threads busy, work waiting, and no request finished since the last look."""
        before, self._pools_seen = self._pools_seen, self._worker.requests.total
        if before != self._pools_seen:
            return True
        # qsize() of a pool's queue: work that no thread takes.
        return not (self._executor._work_queue.qsize() or _anyio_full())

    async def shutdown(self, sockets: Optional[list[socket.socket]] = None) -> None:
        """The drain. Nothing more is accepted; what is in flight is answered; idle connections get their chance.

        Uvicorn would close idle keep-alive connections at once, under the hands of a client that is just sending. Here each
        stays until it has been idle for the linger, and what comes on it is answered with ``Connection: close``.
        """
        # The headers that uvicorn adds to every response: those to come say that the connection closes.
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        began = time.monotonic()
        quiet: dict[Any, float] = {}
        # What is in flight has its headers already, and may be answered in the next turn.
        self._unfinished(began, quiet)
        self._worker.stopping()
        await _stop_accepting(self.servers)
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        # What was accepted in the last turn of the loop is not yet among the connections.
        await asyncio.sleep(0.02)
        while self._unfinished(began, quiet):
            await asyncio.sleep(0.02)
        await self.lifespan.shutdown()

    def _unfinished(self, began: float, quiet: dict[Any, float]) -> bool:
        now = time.monotonic()
        connections = list(self.server_state.connections)
        for gone in [known for known in quiet if known not in self.server_state.connections]:
            del quiet[gone]
        for connection in connections:
            cycle: Any = getattr(connection, "cycle", _NOT_HTTP1)
            if cycle is _NOT_HTTP1:
                # A WebSocket, or HTTP/2: both have a goodbye of their own.
                if connection not in quiet:
                    quiet[connection] = now
                    connection.shutdown()
            elif cycle is not None and not cycle.response_complete:
                quiet.pop(connection, None)
                if not cycle.response_started and _CLOSE not in cycle.default_headers:
                    cycle.default_headers = [*cycle.default_headers, _CLOSE]
            elif now - quiet.setdefault(connection, now) >= self._linger and not _bytes_waiting(connection):
                connection.shutdown()
        if self.config.is_ssl and now - began < _TLS_GRACE:
            return True
        return bool(self.server_state.connections or self.server_state.tasks)


async def _stop_accepting(servers: Sequence[asyncio.AbstractServer]) -> None:
    """Accepts nothing more, and lets what was accepted in the last turn of the loop become a connection.

    asyncio makes its transport a turn later, and drops it, which the client sees as a reset, if the server is closed by then.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        if not isinstance(server, asyncio.base_events.Server):
            # Uvloop's, which makes the transport as it accepts; a turn more would be a turn in which it accepts more.
            server.close()
            continue
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())
    await asyncio.sleep(0)


_NOT_HTTP1 = object()
_CLOSE = (b"connection", b"close")


def _bytes_waiting(connection: Any) -> bool:
    sock = connection.transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _anyio_full() -> bool:
    """Anyio's thread pool (synchronous endpoints of Starlette and FastAPI) has work that waits for a thread."""
    module = sys.modules.get("anyio.to_thread")
    if module is None:
        return False
    statistics = module.current_default_thread_limiter().statistics()
    return bool(statistics.tasks_waiting)


def _config(argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Reads uvicorn's own command line as uvicorn does; gives the arguments it would run with, and the target."""
    given: dict[str, Any] = {}

    def instead_of_running(app: str, **arguments: Any) -> None:
        given.update(arguments, app=app)

    # Not `uvicorn.main`: the package gives that name to the command.
    module = importlib.import_module("uvicorn.main")
    command: click.Command = module.main
    context = command.make_context("python -m paddock_worker asgi", list(argv))
    for name, remedy in _OWNED.items():
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            raise cli.owned_by_paddock("--" + name.replace("_", "-"), remedy)
        if source is click.core.ParameterSource.ENVIRONMENT:
            logger.warning("UVICORN_%s has no effect under paddock: %s", name.upper(), remedy)
    # The command's body turns options into arguments; what it would call with them is replaced for the moment.
    with mock.patch.object(module, "run", instead_of_running):
        command.invoke(context)
    target: str = given.pop("app")
    return given, target


def run(argv: Sequence[str]) -> int:
    """The ``asgi`` command. Returns its exit code."""
    options, rest, help_wanted = cli.split("asgi", argv)
    if help_wanted:
        rest = ["--help"]
    try:
        given, target = _config(rest)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as problem:
        problem.show()
        return 2
    env = cli.prepare(options)
    sockets: list[Listener] = listeners(env, options.sockets)
    worker = Worker(env, request_timeout=options.request_timeout)
    given.pop("app_dir", None)
    given.pop("factory", None)
    for name in _OWNED:
        given.pop(name, None)
    given["workers"] = 1
    given["backlog"] = backlog(sockets)
    # In this order: --env-file takes effect with the Config, before the application's import.
    config = uvicorn.Config(target, **given)
    application = apps.load(target, factory=options.factory, defaults=("app", "application"))
    return serve(config, application, sockets, worker, options.drain_linger)


def serve(config: uvicorn.Config, application: Any, sockets: Sequence[Listener], worker: Worker, linger: float) -> int:
    """Serves until drained. Returns the exit code: 3, uvicorn's own, if the application did not start up."""
    config.app = application
    config.load()
    if worker.requests.timeout is not None:
        config.loaded_app = _Watched(config.loaded_app, worker.requests)
    server = Server(config, worker, linger)
    server.run(sockets=list(sockets))
    return 0 if server.started else 3
