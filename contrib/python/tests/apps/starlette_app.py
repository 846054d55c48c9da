"""Synchronous endpoints, which run in anyio's thread pool, and a WebSocket."""

import time

import anyio.to_thread
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute


async def total(request):
    return JSONResponse({"sum": sum(await request.json())})


def block(request):
    time.sleep(float(request.path_params["seconds"]))
    return PlainTextResponse("done")


async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def few_threads(app):
    anyio.to_thread.current_default_thread_limiter().total_tokens = 2


class Lifespan:
    def __init__(self, app):
        pass

    async def __aenter__(self):
        await few_threads(None)

    async def __aexit__(self, *_):
        pass


routes = [Route("/sum", total, methods=["POST"]), Route("/block/{seconds}", block), WebSocketRoute("/echo", echo)]
app = Starlette(routes=routes, lifespan=Lifespan)
