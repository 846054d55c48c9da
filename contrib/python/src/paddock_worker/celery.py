"""``celery``: one Celery worker process, with the solo or the threads pool, and tasks counted as requests.

Celery's own command line and configuration are read by Celery itself. A warm shutdown is the drain.

The watchdog: Celery's loop feeds it between tasks. A task may take as long as it likes unless it has a time limit, and in the
solo pool it keeps the loop from turning; so while a task is within its limit a thread of ours feeds in the loop's place.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from _thread import start_new_thread
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any, Optional

import click
from celery import signals
from celery.app.utils import find_app
from celery.bin.celery import celery as celery_command
from celery.utils.nodenames import default_nodename, host_format
from celery.worker import state
from celery.worker.consumer import consumer

from . import cli
from .environment import Environment
from .requests import Request
from .worker import Worker

logger = logging.getLogger("paddock_worker")

_POOLS = ("solo", "threads")

_ENVIRONMENT = {
    "broker": "CELERY_BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "loader": "CELERY_LOADER",
    "config": "CELERY_CONFIG_MODULE",
}
"""Global options that Celery turns into environment variables before it imports the application; so do we."""

_REFUSED = {
    "beat": "every worker would send every periodic task: run `celery beat` as a service of its own",
    "detach": "paddock keeps its workers in the foreground",
    "autoscale": "use paddock scale",
}

_WITHOUT_MEANING = {
    "max_memory_per_child": "set [memory] max and recycle_at",
    "pidfile": "paddock status shows the pids",
}


class _Pulse:
    """Tasks, and the watchdog."""

    LOOP_MAY_TAKE = 3.0
    """Celery's loop comes round at least every 2 s (the longest it waits for the broker), in seconds with a margin."""

    def __init__(self, worker: Worker, threads: int, solo: bool) -> None:
        self._worker = worker
        self._threads = threads
        self._solo = solo
        self._tasks: dict[str, Optional[Request]] = {}
        self._turned = monotonic()
        self._ready = False

    def connect(self) -> None:
        """Hooks into Celery."""
        signals.worker_ready.connect(self.on_ready, weak=False)
        signals.worker_shutting_down.connect(self.on_shutting_down, weak=False)
        signals.task_prerun.connect(self.on_prerun, weak=False)
        signals.task_postrun.connect(self.on_postrun, weak=False)
        original = state.maybe_shutdown

        def turned() -> None:
            # Both of Celery's loops call it once in each turn.
            self._turned = monotonic()
            self._worker.watchdog.feed(self._progresses())
            original()

        state.maybe_shutdown = turned
        # This one is called once a second while the broker cannot be reached: no reason to be shot.
        consumer.maybe_shutdown = turned

    def on_ready(self, **_: Any) -> None:
        # Celery says so again after each reconnection to the broker.
        if self._ready:
            return
        self._ready = True
        # Celery would exec itself anew, behind the manager's back.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._worker.ready(f"celery, {'solo' if self._solo else f'{self._threads} threads'}")
        if self._worker.watchdog.interval is not None:
            start_new_thread(self._stand_in, (self._worker.watchdog.interval,))

    def on_shutting_down(self, **_: Any) -> None:
        self._worker.stopping()

    def on_prerun(self, task_id: str, task: Any, **_: Any) -> None:
        self._tasks[task_id] = self._worker.requests.begin(f"task {task.name} {task_id}", timeout=_time_limit(task))

    def on_postrun(self, task_id: str, **_: Any) -> None:
        if task_id in self._tasks:
            self._worker.requests.end(self._tasks.pop(task_id))

    def _progresses(self) -> bool:
        """Whether a thread is free, or will be: a task within its time limit frees it."""
        return self._worker.requests.overdue() < self._threads

    def _stand_in(self, interval: float) -> None:
        """The solo pool's task runs where the loop would turn."""
        while not self._worker.draining:
            sleep(interval / 2)
            fresh = monotonic() - self._turned < max(self.LOOP_MAY_TAKE, interval)
            if fresh or (self._solo and self._worker.requests.in_flight):
                self._worker.watchdog.feed(self._progresses())


def _time_limit(task: Any) -> Optional[float]:
    """A task's time limit in seconds, hard before soft: of this call, of the task, of the application."""
    hard, soft = task.request.timelimit or (None, None)
    conf = task.app.conf
    for limit in (hard, task.time_limit, conf.task_time_limit, soft, task.soft_time_limit, conf.task_soft_time_limit):
        if limit:
            return float(limit)
    return None


def _parser() -> argparse.ArgumentParser:
    """The options of Celery's that concern the process it runs in; all others go to Celery unread."""
    parser = argparse.ArgumentParser(prog="python -m paddock_worker celery", add_help=False, allow_abbrev=False)
    for flags in (
        ("-A", "--app"),
        ("-b", "--broker"),
        ("--result-backend",),
        ("--loader",),
        ("--config",),
        ("--workdir",),
        ("-n", "--hostname"),
        ("-P", "--pool"),
        ("-c", "--concurrency"),
        ("--prefetch-multiplier",),
        ("--max-tasks-per-child",),
        ("--max-memory-per-child",),
        ("--autoscale",),
        ("--pidfile",),
    ):
        parser.add_argument(*flags)
    parser.add_argument("-B", "--beat", action="store_true")
    parser.add_argument("-D", "--detach", action="store_true")
    return parser


def _node_name(given: Optional[str], env: Environment) -> str:
    """A name that no other life has: while a worker is replaced, two lives of a slot are there at once."""
    name, _, host = host_format(default_nodename(given)).partition("@")
    if given is None:
        name = env.app or name
    slot = "" if env.slot is None else f"-{env.slot}"
    return f"{name}{slot}-{os.getpid()}@{host}"


def _pool(given: Optional[str], conf: Any) -> str:
    if given is None:
        configured = conf.worker_pool
        return configured if configured in _POOLS else "solo"
    if given not in _POOLS:
        raise cli.UsageProblem(f"--pool={given}: a paddock worker is one process. Use solo (and set workers), or threads")
    return given


def _number(text: Optional[str], option: str) -> int:
    if text is None:
        return 0
    if not text.isdigit():
        raise cli.UsageProblem(f"{option}={text}: not a number")
    return int(text)


def run(argv: Sequence[str]) -> int:
    """The ``celery`` command. Returns its exit code."""
    options, rest, help_wanted = cli.split("celery", argv, factory=False, http=False)
    other = [word for word in rest if word in celery_command.commands]
    if other and "worker" not in other:
        raise cli.UsageProblem(f"celery {other[0]}: only workers run under paddock")
    if help_wanted:
        result: Any = celery_command.main(args=["worker", "--help"], prog_name="celery", standalone_mode=False)
        return int(result or 0)
    given, rest = _parser().parse_known_args(rest)
    for name, remedy in _REFUSED.items():
        if getattr(given, name):
            raise cli.UsageProblem(f"--{name}: {remedy}")
    # Celery's global options stand before the word, the worker's own behind it.
    at = rest.index("worker") if "worker" in rest else 0
    before, after = rest[:at], rest[at + ("worker" in rest) :]

    if given.workdir:
        os.chdir(given.workdir)
    env = cli.prepare(options)
    for option, variable in _ENVIRONMENT.items():
        if getattr(given, option):
            os.environ[variable] = getattr(given, option)
    target = given.app or os.environ.get("APP")
    if not target:
        raise cli.UsageProblem("which application? Give -A module")
    # Celery would find it by itself, but keep the traceback of a failure to itself.
    conf = find_app(target).conf

    pool = _pool(given.pool, conf)
    concurrency = _number(given.concurrency, "--concurrency") or int(conf.worker_concurrency or 0)
    threads = 1 if pool == "solo" else concurrency or 4
    if pool == "solo" and concurrency > 1:
        logger.warning("concurrency = %d is paddock's here: set workers = %d", concurrency, concurrency)
    own_quota = _number(given.max_tasks_per_child, "--max-tasks-per-child") or int(conf.worker_max_tasks_per_child or 0)
    if own_quota:
        logger.warning("max_tasks_per_child = %d is paddock's here: set [recycle] max_requests (and its jitter)", own_quota)
    for name, remedy in _WITHOUT_MEANING.items():
        if getattr(given, name) or getattr(conf, f"worker_{name}", None):
            logger.warning("%s has no effect here: %s", name, remedy)
    # What a worker has taken from the queue and not begun is given back when it drains, but is in the way until then.
    prefetch = given.prefetch_multiplier or "1"

    worker = Worker(env, request_timeout=options.request_timeout, own_quota=own_quota)
    _Pulse(worker, threads, pool == "solo").connect()
    arguments = ["-A", target, *before, "worker", "-n", _node_name(given.hostname, env), "-P", pool, "-c", str(threads)]
    arguments += ["--prefetch-multiplier", prefetch, *after]
    # Celery shows its command line as the process's title.
    sys.argv = ["celery", *arguments]
    try:
        code: Any = celery_command.main(args=arguments, prog_name="celery", standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        return 2
    return int(code or 0)
