"""Answers what GREETING was when it was imported."""

import os

body = os.environ.get("GREETING", "nothing").encode()


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
