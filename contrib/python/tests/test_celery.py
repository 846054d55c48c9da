"""Real Celery workers on a real Redis."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manager import APPS, Manager, Worker, eventually

LIMIT = 60.0

COMES_BACK = 150.0
"""What was not acknowledged comes back within this many seconds: before kombu 5.7 a worker looks for it only every 100 s."""


class Broker:
    """A redis-server of the test's own, and the application that sends tasks to it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "redis.sock"
        self.url = f"redis+socket://{self.path}"
        server = shutil.which("redis-server")
        assert server, "redis-server is not installed (Debian: apt-get install redis-server)"
        self.command = [server, "--port", "0", "--unixsocket", str(self.path), "--save", "", "--dir", str(directory)]
        self.start()
        os.environ["TEST_REDIS"] = self.url
        sys.path.insert(0, str(APPS))
        sys.modules.pop("celery_app", None)
        import celery_app  # type: ignore[import-not-found]

        self.tasks: Any = celery_app

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        eventually(self.path.exists, "redis listens")

    def names(self, what: str) -> list[str]:
        return [entry.decode().split()[0] for entry in self.tasks.store.lrange(what, 0, -1)]

    def pids(self, what: str) -> set[int]:
        return {int(entry.decode().split()[1]) for entry in self.tasks.store.lrange(what, 0, -1)}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.close()


def start(manager: Manager, broker: Broker, *arguments: str, **environment: Any) -> Worker:
    command = ("celery", "-A", "celery_app", "worker", "--loglevel=INFO", "--without-mingle", *arguments)
    return manager.start(*command, TEST_REDIS=broker.url, **environment)


POOLS = {"solo": ["-P", "solo"], "threads": ["-P", "threads", "-c", "3"]}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> list[str]:
    arguments: list[str] = POOLS[request.param]
    return arguments


def test_tasks_are_counted_as_requests(empty_manager: Manager, broker: Broker, pool: list[str]) -> None:
    worker = start(empty_manager, broker, *pool, PADDOCK_MAX_REQUESTS=12).ready(LIMIT)
    for number in range(11):
        broker.tasks.work.delay(str(number))
    broker.tasks.fail.delay()
    worker.wait_for("X_PADDOCK_REQUESTS", "12", 20)
    assert len(broker.names("ended")) == 11


def test_ready_means_that_the_broker_is_there(empty_manager: Manager, broker: Broker) -> None:
    broker.close()
    broker.path.unlink(missing_ok=True)
    worker = start(empty_manager, broker, WATCHDOG_USEC=3_000_000)
    eventually(lambda: "Cannot connect" in worker.output(), "it has tried", LIMIT)
    assert not worker.values("READY")
    broker.start()
    worker.ready(LIMIT)


def test_a_drain_finishes_the_task_and_leaves_the_rest_to_others(empty_manager: Manager, broker: Broker, pool: list[str]) -> None:
    worker = start(empty_manager, broker, *pool).ready(LIMIT)
    for number in range(8):
        broker.tasks.work.delay(str(number), 1.0)
    eventually(lambda: broker.names("begun"), "a task has begun")
    worker.drain()
    worker.wait_for("STOPPING", "1")
    assert worker.wait() == 0
    ended = broker.names("ended")
    assert sorted(broker.names("begun")) == sorted(ended) and len(ended) < 8
    other = start(empty_manager, broker, *pool).ready(LIMIT)
    eventually(lambda: len(broker.names("ended")) == 8, "the others are done", LIMIT)
    assert Counter(broker.names("ended")) == Counter(str(number) for number in range(8))
    assert other.pid in broker.pids("ended")


def test_nothing_is_lost_through_replacements(empty_manager: Manager, broker: Broker, pool: list[str]) -> None:
    """Start, ready, drain, five times, under a stream of early and late acknowledged tasks."""
    current = start(empty_manager, broker, *pool).ready(LIMIT)
    sent = 0
    for _ in range(5):
        for _ in range(20):
            broker.tasks.work.delay(f"early{sent}", 0.01)
            broker.tasks.late.delay(f"late{sent}", 0.01)
            sent += 1
        replacement = start(empty_manager, broker, *pool).ready(LIMIT)
        current.drain()
        assert current.wait() == 0
        current = replacement
    eventually(lambda: len(set(broker.names("ended"))) == 2 * sent, "all tasks ended", LIMIT)
    assert Counter(broker.names("ended")) == Counter(broker.names("begun"))
    early = [name for name in broker.names("ended") if name.startswith("early")]
    assert len(early) == sent


def test_a_late_acknowledged_task_survives_the_workers_death(empty_manager: Manager, broker: Broker) -> None:
    worker = start(empty_manager, broker).ready(LIMIT)
    broker.tasks.late.delay("survivor", 30)
    eventually(lambda: broker.names("begun") == ["survivor"], "it has begun")
    worker.signal(signal.SIGKILL)
    worker.wait()
    start(empty_manager, broker).ready(LIMIT)
    # After the visibility timeout, shortened in the application.
    eventually(lambda: broker.names("begun") == ["survivor"] * 2, "it begins again", COMES_BACK)


def test_two_lives_have_two_node_names(empty_manager: Manager, broker: Broker) -> None:
    one = start(empty_manager, broker, PADDOCK_SLOT=3).ready(LIMIT)
    two = start(empty_manager, broker, PADDOCK_SLOT=3).ready(LIMIT)
    three = start(empty_manager, broker, "-n", "mail@%h", PADDOCK_SLOT=4).ready(LIMIT)
    names = eventually(lambda: len(found := broker.tasks.app.control.ping(timeout=2)) == 3 and found, "three answer", LIMIT)
    found = {name.partition("@")[0] for answer in names for name in answer}
    assert found == {f"test-3-{one.pid}", f"test-3-{two.pid}", f"mail-4-{three.pid}"}
    stats = broker.tasks.app.control.inspect(timeout=2).stats()
    # What it holds back, no other can do.
    assert {entry["prefetch_count"] for entry in stats.values()} == {1}


def test_a_long_task_does_not_trip_the_watchdog(empty_manager: Manager, broker: Broker, pool: list[str]) -> None:
    worker = start(empty_manager, broker, *pool, WATCHDOG_USEC=900_000).ready(LIMIT)
    for number in range(3):
        broker.tasks.work.delay(str(number), 6)
    eventually(lambda: broker.names("begun"), "a task has begun")
    # Longer than Celery's loop may take for a turn.
    time.sleep(3.5)
    before = len(worker.values("WATCHDOG"))
    time.sleep(1.5)
    assert len(worker.values("WATCHDOG")) - before >= 3


def test_a_task_past_its_time_limit_trips_the_watchdog(empty_manager: Manager, broker: Broker) -> None:
    worker = start(empty_manager, broker, WATCHDOG_USEC=900_000).ready(LIMIT)
    broker.tasks.limited.delay("long", 60)
    eventually(lambda: broker.names("begun"), "it has begun")
    began = time.monotonic()
    worker.wait_for("X_PADDOCK_RECYCLE", "1")
    time.sleep(1)
    last = [message.at for message in worker.messages if "WATCHDOG" in message.fields][-1]
    # Its limit is two seconds.
    assert 1.3 <= last - began <= 2.6
    assert "celery_app.limited" in worker.output() and "time.sleep" in worker.output()


def test_one_of_three_threads_past_its_limit_does_not(empty_manager: Manager, broker: Broker) -> None:
    worker = start(empty_manager, broker, *POOLS["threads"], WATCHDOG_USEC=900_000).ready(LIMIT)
    broker.tasks.limited.delay("long", 60)
    worker.wait_for("X_PADDOCK_RECYCLE", "1")
    before = len(worker.values("WATCHDOG"))
    time.sleep(1.5)
    assert len(worker.values("WATCHDOG")) > before
    broker.tasks.work.delay("other")
    eventually(lambda: "other" in broker.names("ended"), "the other is done")


def test_an_idle_worker_feeds_the_watchdog(empty_manager: Manager, broker: Broker, pool: list[str]) -> None:
    worker = start(empty_manager, broker, *pool, WATCHDOG_USEC=900_000).ready(LIMIT)
    eventually(lambda: len(worker.values("WATCHDOG")) > 6, "pings")


def test_its_own_limits_are_mapped_and_named(empty_manager: Manager, broker: Broker) -> None:
    worker = start(empty_manager, broker, "-c", "8", "--max-tasks-per-child=2").ready(LIMIT)
    for name in ("one", "two"):
        broker.tasks.work.delay(name)
    worker.wait_for("X_PADDOCK_RECYCLE", "1")
    output = worker.output()
    assert "set workers = 8" in output
    assert "max_tasks_per_child = 2 is paddock's here" in output
    assert "max_memory_per_child has no effect here" in output


def test_what_cannot_work_is_refused(empty_manager: Manager, broker: Broker) -> None:
    for arguments, why in (
        (["-P", "prefork"], "one process"),
        (["-B"], "celery beat"),
        (["--autoscale=3,1"], "paddock scale"),
        (["-c", "many"], "not a number"),
        (["--no-such-option"], "no-such-option"),
    ):
        worker = start(empty_manager, broker, *arguments)
        assert worker.wait() == 2, arguments
        assert why in worker.output()
    worker = empty_manager.start("celery", "-A", "celery_app", "beat", TEST_REDIS=broker.url)
    assert worker.wait() == 2
    worker = empty_manager.start("celery", "-A", "broken", "worker")
    assert worker.wait() == 1
    assert "ZeroDivisionError" in worker.output()
