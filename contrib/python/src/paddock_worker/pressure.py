"""The memory pressure pulse: give back what can be given back.

The manager listens on a unix stream socket (``MEMORY_PRESSURE_WATCH``) and writes one byte to each connection when the
worker reaches its soft limit. The answer is the application's own caches, then ``gc.collect()``, then ``malloc_trim(3)``.
"""

from __future__ import annotations

import _socket
import ctypes
import gc
import logging
from collections.abc import Callable
from typing import Optional

logger = logging.getLogger("paddock_worker")

_callbacks: list[Callable[[], object]] = []


def on_memory_pressure(callback: Callable[[], object]) -> Callable[[], object]:
    """Registers a function that sheds caches; returns it, so it can be used as a decorator.

    It is called in a thread of its own kind (never in the one that serves), before ``gc.collect()``.
    """
    _callbacks.append(callback)
    return callback


def relieve() -> None:
    """Sheds what can be shed. What a callback raises is logged and does not stop the others."""
    for callback in list(_callbacks):
        try:
            callback()
        except Exception:
            logger.exception("on_memory_pressure: %r failed", callback)
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        # Only glibc has it.
        pass


class Pulse:
    """The connection on which the byte comes."""

    RETRY = 5.0
    """Seconds between attempts to find a manager that has gone away."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket: Optional[_socket.socket] = None

    def connect(self) -> bool:
        """Connects unless it is already so. False: nobody listens there."""
        if self._socket is not None:
            return True
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.connect(self._address)
        except OSError:
            sock.close()
            return False
        self._socket = sock
        return True

    def fileno(self) -> int:
        """The descriptor to wait on; -1 while not connected."""
        return -1 if self._socket is None else self._socket.fileno()

    def drain(self) -> bool:
        """Reads what is there. True: a pulse came. A closed connection is forgotten, to be made anew."""
        if self._socket is None:
            return False
        try:
            data = self._socket.recv(64)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._socket.close()
            self._socket = None
        return bool(data)
