"""The same small application twice, as WSGI and as ASGI.

/            the pid                      /sleep/S     answers after S seconds (ASGI: cooperatively)
/spin/S      computes for S seconds       /block/S     blocks the thread, whatever monkey has patched
/hold/S      blocks the process: a C function that keeps the interpreter's lock
/pool/S      ASGI: sleeps in the default executor
/stream/N/S  N pieces, S seconds apart    /big/MB      a body of so many megabytes
/pulses      how often memory pressure was felt        /boom  raises
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time

import paddock_worker

pulses = 0


@paddock_worker.on_memory_pressure
def felt() -> None:
    global pulses
    pulses += 1


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def words(path: str) -> tuple[str, float, float]:
    parts = [*path.strip("/").split("/"), "0", "0"]
    numbers = [float(part) if part.replace(".", "", 1).isdigit() else 0.0 for part in parts[1:3]]
    return parts[0], numbers[0], numbers[1]


def application(environ, start_response):
    word, first, second = words(environ["PATH_INFO"])
    if word == "boom":
        raise RuntimeError("boom")
    if word == "sleep":
        time.sleep(first)
    elif word == "block":
        ctypes.CDLL(None).sleep(int(first))
    elif word == "hold":
        ctypes.PyDLL(None).sleep(int(first))
    elif word == "spin":
        spin(first)
    elif word == "exit":
        os._exit(7)
    elif word == "recycle":
        paddock_worker.request_recycle("told so")
    elif word == "stream":
        start_response("200 OK", [("Content-Type", "text/plain")])

        def pieces():
            for number in range(int(first)):
                yield b"%d\n" % number
                time.sleep(second)

        return pieces()
    if word == "big":
        body = b"x" * int(first * 1e6)
    elif word == "pulses":
        body = str(pulses).encode()
    else:
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            print("lifespan", message["type"], file=sys.stderr)
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    word, first, second = words(scope["path"])
    if word == "boom":
        raise RuntimeError("boom")
    if word == "sleep":
        await asyncio.sleep(first)
    elif word == "block":
        ctypes.CDLL(None).sleep(int(first))
    elif word == "hold":
        ctypes.PyDLL(None).sleep(int(first))
    elif word == "spin":
        spin(first)
    elif word == "pool":
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, first)
    elif word == "recycle":
        paddock_worker.request_recycle("told so")
    elif word == "stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(int(first)):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await asyncio.sleep(second)
        await send({"type": "http.response.body", "body": b""})
        return
    body = str(pulses if word == "pulses" else os.getpid()).encode()
    if word == "big":
        body = b"x" * int(first * 1e6)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def create():
    return application


def create_asgi():
    return app
