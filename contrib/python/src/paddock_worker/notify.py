"""Messages to the manager: datagrams as sd_notify(3) describes them.

Socket and lock are the interpreter's own (``_socket``, ``_thread``), so that gevent's monkey patching never reaches them:
messages are sent from whatever thread has something to say, and never block it.
"""

from __future__ import annotations

import _socket
import array
import os
from _thread import allocate_lock
from select import poll
from typing import Optional



class Notifier:
    """Sends to one ``NOTIFY_SOCKET``. Without one every message counts as sent."""

    def __init__(self, address: Optional[str]) -> None:
        self._address: Optional[str] = None
        self._pending: list[str] = []
        self._lock = allocate_lock()
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def connected(self) -> bool:
        """Whether anybody was named to listen."""
        return self._address is not None

    def post(self, message: str) -> bool:
        """Sends once. False: the manager's queue is full, or it is not there just now."""
        if self._address is None:
            return True
        try:
            # The address is looked up each time: a restarted manager binds the same path anew.
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True

    def insist(self, message: str) -> None:
        """Sends a message that must arrive; :meth:`retry` repeats it until it does."""
        with self._lock:
            if self._pending or not self.post(message):
                self._pending.append(message)

    def retry(self) -> bool:
        """Sends what is waiting, in order. True: nothing is left."""
        with self._lock:
            while self._pending:
                if not self.post(self._pending[0]):
                    return False
                del self._pending[0]
        return True

    def barrier(self, timeout: float) -> bool:
        """Waits until the manager has read everything sent so far, at most ``timeout`` seconds (sd_notify_barrier(3)).

        A message of a process that is already gone is not believed, so a worker with something left to say ends with this.
        """
        if self._address is None:
            return True
        reader, writer = os.pipe()
        try:
            rights = array.array("i", [writer]).tobytes()
            try:
                self._socket.sendmsg([b"BARRIER=1"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], 0, self._address)
            except OSError:
                return False
            finally:
                os.close(writer)
            waiter = poll()
            waiter.register(reader, 0)
            return bool(waiter.poll(max(0, int(timeout * 1000))))
        finally:
            os.close(reader)
