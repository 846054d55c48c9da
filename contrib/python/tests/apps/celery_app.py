"""Tasks that note in Redis when they begin and when they end."""

import os
import time

import redis
from celery import Celery

URL = os.environ["TEST_REDIS"]
app = Celery("celery_app", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = {"visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
app.conf.worker_max_memory_per_child = 100_000

store = redis.Redis.from_url(URL.replace("redis+socket", "unix"))


def note(what, name):
    store.rpush(what, f"{name} {os.getpid()}")


@app.task
def work(name, seconds=0.0):
    note("begun", name)
    time.sleep(seconds)
    note("ended", name)


@app.task(acks_late=True)
def late(name, seconds=0.0):
    note("begun", name)
    time.sleep(seconds)
    note("ended", name)


@app.task(acks_late=True)
def hungry(name):
    """Wants half a gigabyte, the first time."""
    note("begun", name)
    held = []
    if store.incr(f"tries of {name}") == 1:
        held += [bytearray(b"x") * 2**20 for _ in range(512)]
    note("ended", name)


@app.task(time_limit=2)
def limited(name, seconds):
    note("begun", name)
    time.sleep(seconds)
    note("ended", name)


@app.task
def fail():
    raise ValueError("told so")
