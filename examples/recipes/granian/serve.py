"""Granian on an inherited socket.

Its command line can only bind sockets of its own, so this replaces the method that does. The method is not part of
granian's public interface: checked with granian 2.8; look again before you move to another version.
"""

import socket

from granian import Granian
from granian.http import HTTP1Settings
from granian.net import SocketHolder

FIRST = 3
BACKLOG = 2048


class Inherited(Granian):
    def _init_shared_socket(self):
        self._sso = socket.socket(fileno=FIRST)
        self._sso.set_inheritable(True)
        self._sfd = FIRST
        self._shd = SocketHolder(FIRST, self._sso.family == socket.AF_UNIX, BACKLOG)
        self._ssp = None


if __name__ == "__main__":
    # When it drains, granian closes connections that wait for their next request, and clients that were just sending
    # it lose it. So each connection is for one request; behind a proxy on the same machine that costs little.
    settings = HTTP1Settings(keep_alive=False)
    Inherited("asgi:app", interface="asgi", workers=1, http1_settings=settings).serve()
