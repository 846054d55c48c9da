"""Celery under the real manager, through everything that replaces a worker."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter

import pytest
from manager import eventually
from test_celery import Broker, broker
from test_with_paddock import Paddock, paddock, program

__all__ = ["broker", "paddock"]

pytestmark = pytest.mark.skipif(program() is None, reason="no paddock: build it with cargo, or name it in $PADDOCK")


def test_no_task_is_lost_through_recycles_a_reload_and_oom_kills(paddock: Paddock, broker: Broker) -> None:
    """The real thing is 2,000 tasks: PADDOCK_TEST_TASKS=2000. Prints what it found (pytest -rP -n 0).

    Half of the tasks are acknowledged when they begin, half when they have ended; of the latter some make the kernel kill
    their worker the first time, and come back after the visibility timeout (5 s here).
    """
    count = int(os.environ.get("PADDOCK_TEST_TASKS", "200"))
    paddock.isolation = "cgroup"
    celery = ("celery", "-A", "celery_app", "worker", "--loglevel=WARNING", "--without-mingle", "--without-gossip")
    os.environ["TEST_REDIS"] = broker.url
    try:
        paddock.run(
            *celery, bind=False, name="tasks", workers=4, memory_max="160M", max_requests=20, max_requests_jitter="10%", timeout_watchdog="30s"
        )
    except AssertionError:
        if "is not available here" in paddock.text():
            pytest.skip("no control groups for us here, so nothing kills at the limit")
        raise
    began = time.monotonic()
    early = [f"early{number}" for number in range(count // 2)]
    hungry = [f"hungry{number}" for number in range(count // 50)]
    late = [f"late{number}" for number in range(count - len(early) - len(hungry))]
    for number in range(max(len(early), len(late))):
        for name in early[number : number + 1]:
            broker.tasks.work.delay(name, 0.1)
        for name in late[number : number + 1]:
            broker.tasks.late.delay(name, 0.1)
        if number % 25 == 0 and number // 25 < len(hungry):
            broker.tasks.hungry.delay(hungry[number // 25])
    for name in hungry[(max(len(early), len(late)) + 24) // 25 :]:
        broker.tasks.hungry.delay(name)
    wanted = {*early, *late, *hungry}

    eventually(lambda: len(set(broker.names("ended"))) >= count // 3, "a third is done", 600)
    command = [program() or "", "--runtime-directory", str(paddock.directory / "run"), "reload", "tasks"]
    for _ in range(20):
        reload = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if "did not hold: oom-kill" not in reload.stderr:
            break
        # A hungry task came to the canary, so the roll was rightly undone.
    assert reload.returncode == 0, reload.stderr
    eventually(lambda: set(broker.names("ended")) == wanted, "every task has ended", 600)
    took = time.monotonic() - began
    assert paddock.stop() == 0

    begun, ended = Counter(broker.names("begun")), Counter(broker.names("ended"))
    oom_kills = paddock.says(": oom-kill")
    lives = len(broker.pids("begun"))
    twice = sum(times - 1 for times in ended.values())
    print(f"{count} tasks, {lives} workers, {oom_kills} OOM kills, a reload, {took:.0f} s: {count - len(ended)} lost, {twice} ran to the end twice")
    # Acknowledged when they began, so nobody would ever begin them again.
    assert {name: begun[name] for name in early} == {name: ended[name] for name in early}
    assert all(begun[name] >= 2 for name in hungry)
    assert oom_kills >= len(hungry)
    assert paddock.says("recycle due, quota") >= 4
