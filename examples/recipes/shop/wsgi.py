"""The application of uWSGI's recipe: `/` answers the worker's pid, `/grow` takes memory until the fence ends it."""

import os


def application(environ, start_response):
    if environ["PATH_INFO"] == "/grow":
        # Given back when it is answered; it is not, where [memory] max is enforced.
        _taken = [b"x" * (1 << 20) for _ in range(256)]
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
