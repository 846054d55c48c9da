"""The same leak as Celery tasks. A task says that it is done, and in which process, to the list that it was told."""

import os

import redis
from celery import Celery

URL = os.environ["LEAK_BROKER"]
app = Celery("leaking_tasks", broker=f"redis+socket://{URL}")
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
# What a process holds back, no other can do meanwhile.
app.conf.worker_prefetch_multiplier = 1

done = redis.Redis(unix_socket_path=URL)
kept = []


@app.task(name="front")
def front(answer):
    done.rpush(answer, os.getpid())


@app.task(name="leak")
def leak(answer):
    kept.append([0] * 10_000_000)
    done.rpush(answer, os.getpid())
