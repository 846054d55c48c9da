"""What counting, watching and draining cost: each server alone against the same server under ``paddock_worker``.

Usage: target/python-venv/bin/python contrib/python/benchmark.py [PAIRS] [SECONDS] [SERVER]      (needs wrk)

Eight connections each, kept alive where the server can, in pairs of which now the one and now the other goes first: at the same
time they would take each other's processor. What is compared is the processor time of the serving process for one request (user and system, from
/proc/PID/schedstat, in nanoseconds). A ratio of 0.98 means: 98 % of the requests that the server alone would have served in
that time.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tests"))

from manager import APPS, Client, Manager, eventually  # noqa: E402

BIN = Path(sys.executable).parent
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


def cost(pid: int, address: tuple[str, int], seconds: int) -> float:
    """Nanoseconds for one request, under as much load as the server takes."""
    before = spent(pid)
    command = ["wrk", "-t1", "-c8", f"-d{seconds}s", f"http://{address[0]}:{address[1]}/"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    served = int(output.split(" requests in ")[0].split()[-1])
    return (spent(pid) - before) / served


def answers(address: tuple[str, int]) -> int:
    """The pid that answers there; 0: nobody yet."""
    try:
        client = Client(socket.create_connection(address, 5))
        pid = int(client.get().text)
        client.sock.close()
        return pid
    except (OSError, ValueError):
        return 0


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(f"{'server':28}{'alone':>10}{'here':>10}{'ratio':>8}   (µs for one request; median of {pairs} pairs of {seconds} s)")
    for name, (alone, here) in PAIRS.items():
        if len(sys.argv) > 3 and sys.argv[3] not in name:
            continue
        directory = Path(tempfile.mkdtemp())
        manager = Manager(directory).bind()
        address = ("127.0.0.1", free_port())
        command = [part.format(port=address[1]) for part in alone]
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(APPS)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            worker = manager.start(*here, WATCHDOG_USEC=30_000_000, PADDOCK_MAX_REQUESTS=10**9).ready()
            pid = eventually(lambda: answers(address), f"{name} answers")
            costs: tuple[list[float], list[float]] = ([], [])
            halves = ((pid, address), (worker.pid, manager.address))
            for number in range(pairs):
                for which in (number % 2, 1 - number % 2):
                    costs[which].append(cost(*halves[which], seconds))
            ratio = statistics.median(one / other for one, other in zip(*costs))
            medians = [statistics.median(each) / 1000 for each in costs]
            print(f"{name:28}{medians[0]:10.1f}{medians[1]:10.1f}{ratio:8.3f}", flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
            manager.close()
            shutil.rmtree(directory)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
