"""What is the wsgi server's own: its loop, and how it writes."""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
import threading

from manager import BOUND, Manager
from paddock_worker.environment import Environment, Listener
from paddock_worker.worker import Worker
from paddock_worker.wsgi import Server, _poll
from waitress.adjustments import Adjustments

DATA_SEGMENTS = 152
"""Where ``tcpi_data_segs_in`` is in the kernel's struct tcp_info (include/uapi/linux/tcp.h)."""


def test_head_and_body_arrive_in_one_segment(manager: Manager) -> None:
    manager.start("wsgi", "plain:application").ready()
    with manager.client() as client:
        client.get()
        info = client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        assert struct.unpack_from("=I", info, DATA_SEGMENTS)[0] == 1


def test_a_head_without_a_body_is_not_held_back(manager: Manager) -> None:
    (manager.directory / "empty.py").write_text(
        """
def application(environ, start_response):
    start_response("204 No Content", [])
    return [b"which no response of this status may have"]
"""
    )
    manager.start("wsgi", "--app-dir=.", "empty:application").ready()
    with manager.client() as client:
        client.send()
        answer = b""
        # Waitress closes after a response without a length.
        while data := client.sock.recv(65536):
            answer += data
        assert answer.startswith(b"HTTP/1.1 204 ") and answer.endswith(b"\r\n\r\n")


def test_a_drain_asked_for_while_the_loop_is_awake_is_not_slept_through() -> None:
    with Listener(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        socket.socket.listen(listener)
        worker = Worker(Environment())
        server = Server(lambda *_: [], [listener], worker, Adjustments(), 0.0)
        # As it is from when the loop wakes up until it looks around again; nobody wakes it then.
        server._woken = True
        server.drain()
        loop = threading.Thread(target=server.run, daemon=True)
        loop.start()
        loop.join(BOUND)
        assert not loop.is_alive()
        worker.finish()


def test_descriptors_of_any_number_are_watched() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        one, other = socket.socketpair()
        with one, other, socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD, 1100)) as high:
            fd = high.fileno()
            assert fd >= 1024 and _poll([fd], [], 0.01) == ([], [])
            other.send(b"x")
            assert _poll([fd], [], None) == ([fd], [])
            assert _poll([], [fd], None) == ([], [fd])
            high.recv(1)
            other.close()
            assert _poll([fd], [], None) == ([fd], [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
