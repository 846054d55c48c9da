"""The live demonstration: load on a leaking shop, and what paddock does about it.

Run it with ./demo from the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "leaky-shop"
MIB = 2**20
BAR = 32


class Load:
    """Clients that order teapots, on connections that stay open, until they are told to stop."""

    def __init__(self, port: int, clients: int, pause: float) -> None:
        self.port = port
        self.pause = pause
        self.lock = threading.Lock()
        self.answered = 0
        self.lost: list[str] = []
        self.slowest = 0.0
        self.pids: set[str] = set()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.client, daemon=True) for _ in range(clients)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                connection.request("POST", "/order", body="1=2&6=1", headers={"Content-Type": "application/x-www-form-urlencoded"})
                answer = connection.getresponse()
                body = answer.read()
                problem = None if answer.status == 200 and json.loads(body)["total"] else f"HTTP {answer.status}"
                pid = answer.headers.get("X-Worker-Pid", "")
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem, pid = f"{type(error).__name__}: {error}", ""
                connection.close()
            with self.lock:
                if problem:
                    self.lost.append(problem)
                else:
                    self.answered += 1
                    self.pids.add(pid)
                    self.slowest = max(self.slowest, time.monotonic() - begun)
            self.over.wait(self.pause)
        connection.close()


class Screen:
    """A picture that is drawn over itself on a terminal, and single lines elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.height = 0

    def paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.live else text

    def draw(self, lines: list[str], summary: str) -> None:
        if not self.live:
            print(summary, flush=True)
            return
        if self.height:
            sys.stdout.write(f"\x1b[{self.height}A\x1b[J")
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        self.height = len(lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mib(count: int | None) -> str:
    return "-" if count is None else f"{count / MIB:.0f} MiB"


def table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


class Demonstration:
    def __init__(self, options: argparse.Namespace, directory: pathlib.Path) -> None:
        self.options = options
        self.directory = directory
        self.runtime = directory / "run"
        self.port = free_port()
        self.screen = Screen()
        self.log = options.log or directory / "log"
        self.manager: subprocess.Popen[bytes] | None = None
        self.load = Load(self.port, options.clients, options.pause)
        self.peak_tree = 0
        self.peak_worker = 0
        self.least_ready = options.workers
        self.report: dict[str, object] = {}
        self.reload: subprocess.Popen[bytes] | None = None
        self.deaths: dict[str, int] = {}

    def paddock(self, *arguments: str) -> list[str]:
        return [str(self.options.paddock), "--runtime-directory", str(self.runtime), *arguments]

    def start(self) -> None:
        # A copy: a manager of root's refuses a file that the checkout's owner, if that is another user, can change.
        configuration = shutil.copy(ROOT / "examples/leaky-shop/paddock.toml", self.directory)
        command = self.paddock(
            "run",
            str(configuration),
            "--bind", f"127.0.0.1:{self.port}",
            "--workers", str(self.options.workers),
            "--environment", f"LEAK_MB={self.options.leak_mb}",
            "--log-format", "json",
        )  # fmt: skip
        environment = dict(os.environ, PATH=f"{pathlib.Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        with self.log.open("wb") as log:
            self.manager = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
        deadline = time.monotonic() + 120
        while subprocess.run(self.paddock("status", NAME, "--ready"), capture_output=True).returncode != 0:
            if self.manager.poll() is not None or time.monotonic() > deadline:
                sys.exit("the shop did not start:\n" + self.log.read_text()[-4000:])
            time.sleep(0.2)

    def look(self) -> None:
        """Take one reading."""
        answer = subprocess.run(self.paddock("status", NAME, "--json"), capture_output=True)
        with contextlib.suppress(ValueError):
            found = json.loads(answer.stdout)
            self.report = found[0] if isinstance(found, list) else found
        held = [worker["memory"].get("current") or 0 for worker in self.report.get("workers", [])]
        peaks = [worker["memory"].get("peak") or 0 for worker in self.report.get("workers", [])]
        self.peak_tree = max(self.peak_tree, sum(held))
        self.peak_worker = max([self.peak_worker, *held, *peaks])
        self.least_ready = min(self.least_ready, int(self.report.get("ready", 0)))

    def show(self, left: float) -> None:
        report, load = self.report, self.load
        lines = [
            f"{NAME}: {report.get('ready')} of {report.get('workers_wanted')} workers ready, generation {report.get('generation')},"
            f" isolation {report.get('isolation')}; {left:.0f} s to go",
            "",
        ]
        for worker in report.get("workers", []):
            memory = worker["memory"]
            limit, held, edge = memory.get("limit") or 1, memory.get("current") or 0, memory.get("recycle_at") or 0
            filled = min(BAR, round(BAR * held / limit))
            bar = "█" * filled + "·" * (BAR - filled)
            mark = min(BAR - 1, round(BAR * edge / limit))
            bar = bar[:mark] + "|" + bar[mark + 1 :]
            colour = {"ready": "32", "draining": "33", "starting": "36"}.get(worker["state"], "31")
            cause = worker.get("cause") or ""
            lines.append(
                f"  slot {worker['slot']} {worker.get('pid') or '-':>7} {self.screen.paint(colour, format(worker['state'], '<9'))}"
                f" [{bar}] {mib(held):>8} of {mib(limit)}  {worker.get('requests') or 0:>3} of {worker.get('quota') or '-'} requests {cause}"
            )
        recycles = ", ".join(f"{count} {cause}" for cause, count in sorted(report.get("recycles", {}).items())) or "none yet"
        lines += [
            "",
            f"  requests answered {load.answered}, lost {len(load.lost)}; replaced: {recycles}",
            f"  leaked so far {load.answered * self.options.leak_mb:.0f} MiB; held by all workers {mib(sum((w['memory'].get('current') or 0) for w in report.get('workers', [])))}",
        ]
        self.screen.draw(lines, lines[-2].strip() + "; " + lines[-1].strip())

    def run(self) -> None:
        print(f"==> starting {self.options.workers} workers of a shop that leaks {self.options.leak_mb} MiB a request")
        self.start()
        self.look()
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                message = json.loads(line).get("message", "")
                if message.startswith("isolation"):
                    print(f"==> {message}")
        print(f"==> {self.options.clients} clients for {self.options.seconds} seconds, a reload after half of them")
        self.load.start()
        begun = time.monotonic()
        while (left := begun + self.options.seconds - time.monotonic()) > 0:
            if self.reload is None and left < self.options.seconds / 2:
                self.reload = subprocess.Popen(self.paddock("reload", NAME), stdout=subprocess.DEVNULL)
            self.look()
            self.show(left)
            time.sleep(0.5 if self.screen.live else 3)
        # The clients stop first, so that every request they sent can be answered.
        self.load.stop()
        self.look()
        self.finish()

    def finish(self) -> None:
        reload_status = self.reload_status()
        manager_status = self.stop()
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                note = json.loads(line)
                if note.get("event") == "worker-died":
                    verdict = str(note.get("reason"))
                    self.deaths[verdict] = self.deaths.get(verdict, 0) + 1
        leaked = self.load.answered * self.options.leak_mb
        limit = max((w["memory"].get("limit") or 0 for w in self.report.get("workers", [])), default=0)
        recycles = self.report.get("recycles", {})
        print("\n==> result")
        print(
            table(
                [
                    ("isolation", str(self.report.get("isolation"))),
                    ("requests answered", str(self.load.answered)),
                    ("requests lost", str(len(self.load.lost))),
                    ("slowest answer", f"{self.load.slowest * 1000:.0f} ms"),
                    ("leaked by the application", f"{leaked:.0f} MiB"),
                    ("most that all workers held", mib(self.peak_tree)),
                    ("most that one worker held", f"{mib(self.peak_worker)} of {mib(limit)}"),
                    ("fewest workers ready", f"{self.least_ready} of {self.options.workers}"),
                    ("workers replaced", ", ".join(f"{count} {cause}" for cause, count in sorted(recycles.items())) or "none"),
                    ("how workers ended", ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.deaths.items())) or "-"),
                    ("reload in the middle", "done" if reload_status == 0 else f"failed ({reload_status})"),
                ]
            )
        )
        if self.load.lost or reload_status or manager_status:
            print("\nlost:", *self.load.lost[:5], sep="\n  ")
            print("\nthe log's end:", self.log.read_text(errors="replace")[-3000:], sep="\n")
            sys.exit(1)

    def reload_status(self) -> int:
        if self.reload is None:
            return 0
        try:
            return self.reload.wait(timeout=60)
        except subprocess.TimeoutExpired:
            return -1

    def stop(self) -> int:
        if self.manager is None:
            return 0
        if self.manager.poll() is None:
            self.manager.send_signal(signal.SIGTERM)
        try:
            return self.manager.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.manager.send_signal(signal.SIGINT)
            return self.manager.wait(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Load on a leaking shop, and what paddock does about it.")
    parser.add_argument("--paddock", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--leak-mb", type=int, default=8)
    parser.add_argument("--log", type=pathlib.Path, help="keep the log of the manager here")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two requests of one client")
    options = parser.parse_args()
    options.paddock = options.paddock.resolve()
    with tempfile.TemporaryDirectory(prefix="paddock-demo-") as directory:
        demonstration = Demonstration(options, pathlib.Path(directory))
        try:
            demonstration.run()
        finally:
            demonstration.stop()


if __name__ == "__main__":
    main()
