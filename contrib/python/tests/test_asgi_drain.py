"""The turn of the event loop in which the drain begins."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

from paddock_worker.asgi import _stop_accepting


def test_what_was_accepted_in_the_last_turn_is_served() -> None:
    """The order that loses it: the drain's step is due in the next turn already when the connection is accepted in this one."""

    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        made: list[str] = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.append("served")
                transport.close()

        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        server = await loop.create_server(Protocol, sock=listener)
        client = socket.create_connection(listener.getsockname())

        async def drain() -> None:
            await _stop_accepting([server])
            server.close()

        step = loop.create_task(drain())
        # What the selector would call now; its transport comes after the drain's first step.
        cast(Any, loop)._accept_connection(Protocol, listener, server=server)
        await step
        await asyncio.sleep(0.1)
        client.close()
        return made

    assert asyncio.run(scenario()) == ["served"]


def test_a_server_of_another_kind_is_closed_at_once() -> None:
    closed: list[bool] = []
    asyncio.run(_stop_accepting([cast(Any, SimpleNamespace(close=lambda: closed.append(True)))]))
    assert closed == [True]
