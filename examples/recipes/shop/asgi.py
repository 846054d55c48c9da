"""The application of the Python recipes: `/` answers the worker's pid, `/grow` takes memory until the fence ends it."""

import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    if scope["path"] == "/grow":
        # Given back when it is answered; it is not, where [memory] max is enforced.
        _taken = [b"x" * (1 << 20) for _ in range(256)]
    body = str(os.getpid()).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
