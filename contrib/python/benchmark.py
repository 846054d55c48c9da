"""What counting, watching and draining cost: each server alone against the same server under ``paddock_worker``.

Usage: target/python-venv/bin/python contrib/python/benchmark.py [PAIRS] [SECONDS] [SERVER] [--noise]      (needs wrk)

Eight connections each, kept alive where the server can. The two of a pair take turns of a tenth of a second: at the same time they
would take each other's processor, and in turns of seconds each would have another processor, in a virtual machine at least. What is
compared is the processor time of the serving process for one request (user and system, from /proc/PID/schedstat, in nanoseconds).
A ratio of 0.98 means: 98 % of the requests that the server alone would have served in that time.

Both processes of a pair are new, with the same seed for their hashes: where things lie in memory makes a process up to a tenth
faster or slower than the next of the same program, for all its life. With ``--noise`` the server alone stands on both sides.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tests"))

from manager import APPS, Client, Manager, eventually  # noqa: E402

BIN = Path(sys.executable).parent
Side = tuple[int, tuple[str, int]]
"""A process that serves, and its address."""

SLICE = 0.1
"""Seconds that one side serves before it is the other's turn."""

QUIET = ["--no-access-log", "--log-level=warning"]
PAIRS = {
    "wsgi (waitress)": ([str(BIN / "waitress-serve"), "--listen=127.0.0.1:{port}", "plain:application"], ["wsgi", "plain:application"]),
    "asgi (uvicorn, httptools)": (
        [str(BIN / "uvicorn"), "--port={port}", "--http=httptools", *QUIET, "plain:app"],
        ["asgi", "--http=httptools", *QUIET, "plain:app"],
    ),
    **{
        f"gunicorn {name}": (
            [str(BIN / "gunicorn"), "-w1", "-b127.0.0.1:{port}", *arguments],
            ["gunicorn", *arguments],
        )
        for name, arguments in {
            "sync": ["plain:application"],
            "gthread": ["-kgthread", "--threads=4", "plain:application"],
            "gevent": ["-kgevent", "plain:application"],
            "uvicorn-worker": ["-kuvicorn_worker.UvicornWorker", "plain:app"],
        }.items()
    },
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def spent(pid: int) -> int:
    """Nanoseconds of processor time, over all threads."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def costs(sides: tuple[Side, Side], seconds: int, first: int) -> tuple[float, float]:
    """Nanoseconds for one request of each, under as much load as each takes."""
    before = [spent(pid) for pid, _ in sides]
    loads = []
    for _, (host, port) in sides:
        command = ["wrk", "-t1", "-c8", f"-d{2 * seconds}s", f"http://{host}:{port}/"]
        loads.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    turn = first
    while any(load.poll() is None for load in loads):
        loads[1 - turn].send_signal(signal.SIGSTOP)
        loads[turn].send_signal(signal.SIGCONT)
        time.sleep(SLICE)
        turn = 1 - turn
    served = [int(load.communicate()[0].split(" requests in ")[0].split()[-1]) for load in loads]
    one, two = ((spent(pid) - used) / count for (pid, _), used, count in zip(sides, before, served))
    return one, two


def answers(address: tuple[str, int]) -> int:
    """The pid that answers there; 0: nobody yet."""
    try:
        client = Client(socket.create_connection(address, 5))
        pid = int(client.get().text)
        client.sock.close()
        return pid
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def alone(command: list[str], seed: str) -> Iterator[Side]:
    """The server by itself: the pid that serves, and where."""
    address = ("127.0.0.1", free_port())
    server = subprocess.Popen(
        [part.format(port=address[1]) for part in command],
        env={**os.environ, "PYTHONPATH": str(APPS), "PYTHONHASHSEED": seed},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield eventually(lambda: answers(address), f"{command[0]} answers"), address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def here(command: list[str], seed: str) -> Iterator[Side]:
    """The same under ``paddock_worker``, with everything that a manager asks of it."""
    with tempfile.TemporaryDirectory() as directory:
        manager = Manager(Path(directory)).bind()
        try:
            worker = manager.start(*command, WATCHDOG_USEC=30_000_000, PADDOCK_MAX_REQUESTS=10**9, PYTHONHASHSEED=seed).ready()
            yield worker.pid, manager.address
        finally:
            manager.close()


def pair(number: int, commands: tuple[list[str], list[str]], seconds: int, noise: bool) -> tuple[float, float]:
    """What one request costs on each side."""
    seed = str(number + 1)
    other = alone(commands[0], seed) if noise else here(commands[1], seed)
    with alone(commands[0], seed) as one, other as two:
        # What is imported, compiled or allocated only once.
        costs((one, two), 1, 0)
        return costs((one, two), seconds, number % 2)


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--noise"]
    noise = len(arguments) < len(sys.argv) - 1
    pairs = int(arguments[0]) if arguments else 15
    seconds = int(arguments[1]) if len(arguments) > 1 else 1
    print(f"{'server':28}{'alone':>10}{'alone' if noise else 'here':>10}{'ratio':>8}   µs for one request; median of {pairs} pairs of {seconds} s; quartiles")
    for name, commands in PAIRS.items():
        if len(arguments) > 2 and arguments[2] not in name:
            continue
        found = [pair(number, commands, seconds, noise) for number in range(pairs)]
        ratios = sorted(one / two for one, two in found)
        medians = [statistics.median(each) / 1000 for each in zip(*found)]
        quartiles = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
        print(f"{name:28}{medians[0]:10.1f}{medians[1]:10.1f}{statistics.median(ratios):8.3f}   {quartiles}", flush=True)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
