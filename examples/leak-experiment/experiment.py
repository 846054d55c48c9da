"""Runs the rows of the leak experiment and writes what came of them. Start it with ``run``, which see."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import http.client
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator

import celery
import kombu.exceptions
import redis
import report
from account import Accounts, Group, Samples, status
from rows import ROWS, Place, Row

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STORE = ROOT / "target/leak-experiment/measured"
MIB = 2**20
MARKS = (10, 20, 50, 100)
PATIENCE = 60.0
"""Seconds after which a request without an answer, or a task that did not end, is lost."""
LOSSES = (OSError, http.client.HTTPException, redis.RedisError, kombu.exceptions.OperationalError)
SAMPLE = 0.05
"""Seconds between two looks at the tree, for the curve and the processes' own high-water marks."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Clients:
    """So many clients, which together send so many requests, each as soon as its last one was answered."""

    def __init__(self, clients: int, requests: int) -> None:
        self._left = requests
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]
        self.done = 0
        self.lost: list[str] = []
        self.pids: set[str] = set()
        self.slowest = 0.0
        self.on_done = lambda done: None

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _client(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                self._left -= 1
            began = time.monotonic()
            try:
                pid, problem = self.ask("leak"), ""
            except LOSSES as error:
                pid, problem = "", f"{type(error).__name__}: {error}"
            with self._lock:
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.done += 1
                if problem:
                    self.lost.append(problem)
                else:
                    self.pids.add(pid)
                self.on_done(self.done)

    def ask(self, what: str) -> str:
        """The pid that did it."""
        raise NotImplementedError


class Browsers(Clients):
    """Over HTTP, a new connection for each request, and no second try."""

    def __init__(self, port: int, clients: int, requests: int) -> None:
        super().__init__(clients, requests)
        self._port = port

    def ask(self, what: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request("GET", f"/{what}" if what == "leak" else "/", headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise http.client.HTTPException(f"HTTP {answer.status}")
        return body


class Senders(Clients):
    """Of tasks, over Redis; each waits until its task has ended."""

    def __init__(self, broker: pathlib.Path, clients: int, requests: int) -> None:
        super().__init__(clients, requests)
        # An application of its own: each row has a broker of its own, and producers are kept by application.
        self._app = celery.Celery("sender", broker=f"redis+socket://{broker}", set_as_current=False)
        self._answers = redis.Redis(unix_socket_path=str(broker))
        self._sent = 0

    def ask(self, what: str) -> str:
        self._sent += 1
        answer = f"{what}-{threading.get_ident()}-{self._sent}"
        self._app.send_task(what, [answer])
        came = self._answers.blpop([answer], timeout=int(PATIENCE))
        if came is None:
            raise redis.RedisError("the task did not end")
        return came[1].decode()


@contextlib.contextmanager
def broker(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A redis-server, outside the account: it leaks nothing and stands for another machine."""
    path = directory / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(path.exists, 20, "redis-server listens")
        yield path
    finally:
        server.terminate()
        server.wait()


def until(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.05)


def serves(clients: Clients) -> bool:
    try:
        return bool(clients.ask("front"))
    except LOSSES:
        return False


class Watch:
    """The curve of the tree's memory, and the largest process: high-water marks that the kernel keeps, read before each is gone."""

    def __init__(self, account: Group | Samples, clients: Clients) -> None:
        self._account = account
        self._clients = clients
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.curve: list[tuple[float, int, int]] = []
        self.largest = 0
        self._began = time.monotonic()

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self, done: int) -> int:
        usage = self._account.usage()
        self.curve.append((round(time.monotonic() - self._began, 3), done, usage))
        return usage

    def _run(self) -> None:
        while not self._over.wait(SAMPLE):
            self.look(self._clients.done)
            self.largest = max([self.largest, *(status(pid, "VmHWM") for pid in self._account.pids())])


@dataclasses.dataclass
class Options:
    paddock: pathlib.Path
    requests: int


def measure(row: Row, clients_wanted: int, accounts: Accounts, options: Options) -> dict:
    """One row, from the start of its server to its end."""
    with tempfile.TemporaryDirectory(prefix="leak-") as name, contextlib.ExitStack() as after:
        directory = pathlib.Path(name)
        (directory / "run").mkdir()
        redis_socket = after.enter_context(broker(directory)) if row.tasks else directory / "none"
        place = Place(free_port(), directory, options.paddock, redis_socket)
        account = accounts.open(row.name)
        after.callback(account.close)
        command = row.command(place)
        if row.family == "paddock":
            # Not `auto`: scopes of systemd's would lie outside the group that is measured.
            command[2:2] = ["--isolation=cgroup" if account.source == "kernel" else "--isolation=none"]
        log = directory / "log"
        environment = {**os.environ, "PYTHONPATH": str(HERE), "LEAK_BROKER": str(redis_socket)}
        with log.open("wb") as output:
            server = subprocess.Popen(account.wrap(command), cwd=directory, env=environment, stdout=output, stderr=output)
        clients: Clients
        if row.tasks:
            clients = Senders(redis_socket, clients_wanted, options.requests)
        else:
            clients = Browsers(place.port, clients_wanted, options.requests)
        try:
            until(lambda: server.poll() is not None or serves(clients), 60, f"{row.name} serves")
            if server.poll() is not None:
                raise RuntimeError(f"{row.name} ended with {server.returncode}")
            # The other three workers, and uWSGI's first, unlimited second.
            time.sleep(2)
            at: dict[int, int] = {}
            with Watch(account, clients) as watch:

                def on_done(done: int) -> None:
                    usage = watch.look(done)
                    if done in MARKS:
                        at[done] = usage

                clients.on_done = on_done
                began = time.monotonic()
                clients.run()
                took = time.monotonic() - began
            peak = account.peak()
        except (RuntimeError, TimeoutError) as error:
            raise RuntimeError(f"{error}; it said:\n{log.read_text(errors='replace')[-3000:]}") from None
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(20)
            account.close()
            server.wait()
            (STORE.parent / f"{row.name}.{clients_wanted}.log").write_bytes(log.read_bytes())
        return {
            "row": row.name,
            "clients": clients_wanted,
            "requests": options.requests,
            "source": account.source,
            "at": {str(mark): usage for mark, usage in at.items()},
            "peak": peak,
            "largest": watch.largest,
            "lost": len(clients.lost),
            "problems": dict(Counter(clients.lost)),
            "workers": len(clients.pids),
            "slowest": round(clients.slowest, 3),
            "took": round(took, 2),
            "deaths": deaths(log) if row.family == "paddock" else {},
            "curve": thin(watch.curve),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "load": round(os.getloadavg()[0], 2),
        }


def deaths(log: pathlib.Path) -> dict[str, int]:
    """How paddock's workers ended, by its own log, until the stop."""
    found: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            note = json.loads(line)
            if isinstance(note, dict) and note.get("event") == "worker-died":
                found[str(note.get("reason"))] += 1
    return dict(found)


def thin(curve: list[tuple[float, int, int]], points: int = 400) -> list[tuple[float, int, int]]:
    """Fewer points, but of each run of them the highest, so that no peak is lost."""
    size = -(-len(curve) // points)
    return [max(curve[start : start + size], key=lambda point: point[2]) for start in range(0, len(curve), size)]


def machine() -> dict:
    """What it ran on, for the page."""
    with open("/proc/meminfo") as lines:
        memory = int(next(lines).split()[1]) * 1024
    names = ("celery", "flask", "gevent", "granian", "gunicorn", "uvicorn", "uwsgi", "waitress")
    return {
        "cpus": os.cpu_count(),
        "memory": memory,
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples/leak-experiment/run", description="The leak experiment.")
    parser.add_argument("--paddock", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rows", default="*", help="names of rows, with * and ?, separated by commas (default: all)")
    parser.add_argument("--clients", default="1,8", help="numbers of clients (default: 1,8)")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3, help="measure the rows of --repeat-rows so often; the table gives the median (default: 3)")
    parser.add_argument(
        "--repeat-rows", default="uwsgi-rss-0,paddock-memory", help="the rows to repeat (default: uwsgi-rss-0,paddock-memory, which are compared)"
    )
    parser.add_argument("--minutes", type=float, default=17, help="begin no repeat after so many minutes (default: 17)")
    parser.add_argument("--limit", type=int, default=12, help="GiB that the whole experiment may hold (default: 12)")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier, interrupted run has measured")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--report-only", action="store_true", help="write the page from what is measured, and end")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{row.name:26}{row.family}: {row.settings.replace('`', '')}" for row in ROWS))
        return
    options = Options(given.paddock.resolve(), given.requests)
    wanted = chosen(given.rows)
    if not wanted:
        sys.exit(f"no row is called {given.rows}; --list names them")
    STORE.mkdir(parents=True, exist_ok=True)
    failed = False
    if not given.report_only:
        failed = not run(wanted, given, options)
    found = [json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))]
    report.write(found, machine(), ROOT / "docs")
    if failed:
        sys.exit(1)


def chosen(patterns: str) -> list[Row]:
    return [row for row in ROWS if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns.split(","))]


def busy(seconds: float = 0.5) -> float:
    """The share of this machine's processors that is taken, by whatever else runs: nothing of ours does yet."""

    def ticks() -> tuple[int, int]:
        with open("/proc/stat") as lines:
            fields = [int(field) for field in next(lines).split()[1:9]]
        # Idle, and waiting for a disk.
        return sum(fields), fields[3] + fields[4]

    all_before, idle_before = ticks()
    time.sleep(seconds)
    all_after, idle_after = ticks()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def run(wanted: list[Row], given: argparse.Namespace, options: Options) -> bool:
    # Column by column within a row, and repeat by repeat over the rows, so that what is compared ran close together.
    again = chosen(given.repeat_rows)
    plan = [
        (repeat, row, int(clients))
        for repeat in range(given.repeat)
        for row in wanted
        if not repeat or row in again
        for clients in given.clients.split(",")
    ]
    if not given.resume:
        # An earlier run's figures must not be added to this one's; other rows' stay.
        for row, clients in {(row.name, clients) for _, row, clients in plan}:
            for path in STORE.glob(f"{row}.{clients}.*.json"):
                path.unlink()
    began = time.monotonic()
    accounts = Accounts(given.limit * 2**30)
    if accounts.why_not:
        print(f"==> no control group ({accounts.why_not}): memory is sampled, and paddock's limits are not enforced")
    good = True
    try:
        for number, (repeat, row, clients) in enumerate(plan, 1):
            path = STORE / f"{row.name}.{clients}.{repeat}.json"
            head = f"[{number}/{len(plan)}] {row.name}, {clients} client{'s' * (clients > 1)}"
            if given.resume and path.exists():
                print(f"{head}: kept", flush=True)
                continue
            if repeat and time.monotonic() - began > given.minutes * 60:
                print(f"{head}: left out after {given.minutes:.0f} minutes", flush=True)
                continue
            print(f"{head} …", end="", flush=True)
            others = round(busy(), 3)
            try:
                result = measure(row, clients, accounts, options)
            except (RuntimeError, OSError, redis.RedisError, subprocess.SubprocessError) as error:
                print(f" failed: {type(error).__name__}: {error}", flush=True)
                good = False
                continue
            result["others"] = others
            path.write_text(json.dumps(result))
            print(
                f" peak {result['peak'] / MIB:.0f} MiB, largest worker {result['largest'] / MIB:.0f} MiB, lost {result['lost']}"
                f" of {result['requests']}, slowest {result['slowest']:.1f} s, {result['took']:.0f} s {result['deaths'] or ''}",
                flush=True,
            )
    finally:
        accounts.close()
    print(f"measured in {(time.monotonic() - began) / 60:.1f} minutes")
    return good


if __name__ == "__main__":
    main()
