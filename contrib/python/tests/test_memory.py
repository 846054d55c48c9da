"""What decides how much memory a worker can come to hold: how much it does at a time, and how soon it is gone."""

from __future__ import annotations

import signal

import pytest
from manager import Client, Manager
from test_http import SERVERS, serving


def test_a_busy_thread_leaves_the_next_connection_to_a_sibling(manager: Manager) -> None:
    """What waits behind a request in its thread allocates too, before the worker can be drained."""
    arguments = ("wsgi", "--threads=1", "plain:application")
    busy, sibling = manager.start(*arguments).ready(), manager.start(*arguments).ready()
    busy.signal(signal.SIGSTOP)
    sibling.signal(signal.SIGSTOP)
    first, second = Client(manager.connect()), Client(manager.connect())
    first.send("/stream/2/20")
    second.send("/")
    # Both are there when it looks.
    busy.signal(signal.SIGCONT)
    assert first.sock.recv(1)
    sibling.signal(signal.SIGCONT)
    assert second.receive().text == str(sibling.pid)


def test_a_connection_that_says_nothing_is_not_waited_for(manager: Manager) -> None:
    worker = manager.start("wsgi", "--threads=1", "plain:application").ready()
    silent = [manager.connect() for _ in range(3)]
    assert manager.get().text == str(worker.pid)
    assert len(silent) == 3


@pytest.mark.parametrize("name", SERVERS)
def test_a_worker_ends_without_taking_its_heap_apart(manager: Manager, name: str) -> None:
    worker = manager.start(*serving(SERVERS[name], "farewell")).ready()
    worker.drain()
    assert worker.wait() == 0
    said = worker.output()
    assert "the thread is done" in said
    assert said.index("the thread is done") < said.index("the exit handler runs")
    assert "the heap is taken apart" not in said
