"""A request that hangs: every server, every way of hanging, with ``--request-timeout`` and the watchdog together."""

from __future__ import annotations

import time

import pytest
from manager import Manager, Worker, eventually
from test_http import SERVERS

WAYS = {
    "sleep": "/sleep/60",  # cooperative where the server has a loop
    "block": "/block/60",  # a C function that lets other threads run
    "spin": "/spin/60",  # Python code without end
}
THREADS = ("wsgi", "gthread")
LOOPS = [name for name in SERVERS if name not in (*THREADS, "sync")]
GOES_ON = {*((name, way) for name in THREADS if name in SERVERS for way in WAYS), *((name, "sleep") for name in LOOPS)}
"""Where the process can still run: threads go on beside anything, an event loop beside what lets it turn."""


def silent(worker: Worker) -> bool:
    """A second without a ping, of which three were due."""
    before = len(worker.values("WATCHDOG"))
    time.sleep(1.0)
    return len(worker.values("WATCHDOG")) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SERVERS)
def test_a_hung_request_is_noticed_in_its_time(manager: Manager, name: str, way: str) -> None:
    worker = manager.start(*SERVERS[name], "--request-timeout=0.5", WATCHDOG_USEC=900_000).ready()
    with manager.client() as hung:
        began = time.monotonic()
        hung.send(WAYS[way])
        noticed = worker.wait_for("X_PADDOCK_RECYCLE", "1")
        assert 0.4 <= noticed.at - began <= 3
        assert f"GET {WAYS[way]}" in worker.output() and "plain.py" in worker.output()
        if (name, way) in GOES_ON:
            with manager.client() as other:
                assert other.get().text == str(worker.pid)
            before = len(worker.values("WATCHDOG"))
            eventually(lambda: len(worker.values("WATCHDOG")) > before + 2, "it says that it goes on")
        else:
            eventually(lambda: silent(worker), "the pings stop, so that the manager ends it")


@pytest.mark.parametrize("name", SERVERS)
def test_a_process_that_is_blocked_as_a_whole_stops_its_pings(manager: Manager, name: str) -> None:
    """Nothing of ours runs then, so it is the watchdog's."""
    worker = manager.start(*SERVERS[name], "--request-timeout=0.5", WATCHDOG_USEC=900_000).ready()
    eventually(lambda: worker.values("WATCHDOG"), "it pings")
    with manager.client() as hung:
        hung.send("/hold/60")
        eventually(lambda: silent(worker), "the pings stop")
    assert not worker.values("X_PADDOCK_RECYCLE")
