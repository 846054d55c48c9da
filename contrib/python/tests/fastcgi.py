"""As much of a FastCGI client as a test of php-fpm needs: one request for each connection."""

from __future__ import annotations

import socket
import struct

BEGIN, END, PARAMS, STDIN, STDOUT = 1, 3, 4, 5, 6
RESPONDER = 1


def record(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBHHBB", 1, kind, 1, len(body), 0, 0) + body


def pair(name: str, value: str) -> bytes:
    """Lengths of one byte each: nothing here is longer."""
    return bytes([len(name), len(value)]) + name.encode() + value.encode()


def get(connection: socket.socket, script: str, query: str = "") -> str:
    """The body of the answer; ``ConnectionError`` if it does not come to its end."""
    variables = {"SCRIPT_FILENAME": script, "REQUEST_METHOD": "GET", "QUERY_STRING": query, "SERVER_PROTOCOL": "HTTP/1.1"}
    parameters = b"".join(pair(*variable) for variable in variables.items())
    begin = record(BEGIN, struct.pack(">HB5x", RESPONDER, 0))
    connection.sendall(begin + record(PARAMS, parameters) + record(PARAMS, b"") + record(STDIN, b""))
    waiting, output = b"", b""
    while True:
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("closed before the response was complete")
        waiting += data
        while len(waiting) >= 8:
            _, kind, _, length, padding, _ = struct.unpack(">BBHHBB", waiting[:8])
            if len(waiting) < 8 + length + padding:
                break
            body, waiting = waiting[8 : 8 + length], waiting[8 + length + padding :]
            if kind == STDOUT:
                output += body
            elif kind == END:
                return output.partition(b"\r\n\r\n")[2].decode()
