"""The rows of the table: who serves the leaking application, and with which settings against the leak."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable

BIN = pathlib.Path(sys.executable).parent
WORKERS = 4


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a row runs."""

    port: int
    directory: pathlib.Path
    paddock: pathlib.Path
    broker: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    family: str
    settings: str
    """As a user writes them, for the table."""
    command: Callable[[Place], list[str]]
    tasks: bool = False
    """Celery tasks in place of requests."""
    drawn: bool = False
    """Shown in the plot of memory against requests."""


def gunicorn(*arguments: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [f"{BIN}/gunicorn", f"--bind=127.0.0.1:{place.port}", f"--workers={WORKERS}", "--timeout=120", *arguments, "leaking:app"]

    return command


def uwsgi(*arguments: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        fixed = [f"{BIN}/uwsgi", "--http-socket", f"127.0.0.1:{place.port}", "--master", "--processes", str(WORKERS)]
        return [*fixed, "--module=leaking:app", "--need-app", "--disable-logging", "--die-on-term", *arguments]

    return command


def granian(*arguments: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        fixed = [f"{BIN}/granian", "--interface=wsgi", f"--port={place.port}", f"--workers={WORKERS}", "--blocking-threads=1"]
        return [*fixed, *arguments, "leaking:app"]

    return command


def uvicorn(*arguments: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        fixed = [f"{BIN}/uvicorn", "--interface=wsgi", f"--port={place.port}", f"--workers={WORKERS}", "--no-access-log"]
        return [*fixed, *arguments, "leaking:app"]

    return command


def celery(*arguments: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        fixed = [f"{BIN}/celery", "-A", "leaking_tasks", "worker", f"--concurrency={WORKERS}", "--loglevel=WARNING"]
        return [*fixed, f"--hostname=leak{place.port}@%h", *arguments]

    return command


def paddock(*arguments: str, tasks: bool = False) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        fixed = [str(place.paddock), "run", f"--runtime-directory={place.directory}/run", "--name=leak", "--log-format=json"]
        if tasks:
            worker = ["celery", "-A", "leaking_tasks", "worker", "--loglevel=WARNING"]
        else:
            fixed.append(f"--bind=127.0.0.1:{place.port}")
            worker = ["wsgi", "--threads=1", "leaking:app"]
        return [*fixed, f"--workers={WORKERS}", *arguments, "--", f"{BIN}/python", "-m", "paddock_worker", *worker]

    return command


MEMORY = ("--memory-max=512M", "--memory-recycle-at=70%")
QUOTA = ("--max-requests=20", "--max-requests-jitter=2")
UNTIL_RSS = ("--reload-on-rss=512",)

ROWS = [
    Row("gunicorn-sync", "gunicorn", "sync, no limit", gunicorn(), drawn=True),
    Row("gunicorn-sync-20", "gunicorn", "sync, `max_requests = 20`, `max_requests_jitter = 2`", gunicorn(*QUOTA)),
    Row(
        "gunicorn-gthread-20",
        "gunicorn",
        "gthread (2 threads), `max_requests = 20`, `max_requests_jitter = 2`",
        gunicorn("--worker-class=gthread", "--threads=2", *QUOTA),
    ),
    Row(
        "gunicorn-gevent-20",
        "gunicorn",
        "gevent, `max_requests = 20`, `max_requests_jitter = 2`",
        gunicorn("--worker-class=gevent", *QUOTA),
        drawn=True,
    ),
    Row("uwsgi-as", "uWSGI", "`reload-on-as = 2048`", uwsgi("--memory-report", "--reload-on-as=2048")),
    Row("uwsgi-rss", "uWSGI", "`reload-on-rss = 512`", uwsgi("--memory-report", *UNTIL_RSS)),
    Row(
        "uwsgi-rss-0",
        "uWSGI",
        "`reload-on-rss = 512`, `min-worker-lifetime = 0`",
        uwsgi("--memory-report", *UNTIL_RSS, "--min-worker-lifetime=0"),
        drawn=True,
    ),
    Row("uwsgi-limit-as", "uWSGI", "`limit-as = 2048`", uwsgi("--limit-as=2048")),
    Row("granian-rss", "granian", "`--workers-max-rss 512` (sampled every 30 s)", granian("--workers-max-rss=512")),
    Row(
        "granian-rss-1s",
        "granian",
        "`--workers-max-rss 512 --rss-sample-interval 1`",
        granian("--workers-max-rss=512", "--rss-sample-interval=1"),
    ),
    Row("uvicorn-20", "uvicorn", "`--limit-max-requests 20`", uvicorn("--limit-max-requests=20")),
    Row("celery-20", "Celery", "`worker_max_tasks_per_child = 20`", celery("--max-tasks-per-child=20"), tasks=True),
    Row(
        "celery-rss", "Celery", "`worker_max_memory_per_child = 524288` (512 MiB)", celery("--max-memory-per-child=524288"), tasks=True
    ),
    Row("paddock-memory", "paddock", '`max = "512M"`, `recycle_at = "70%"`', paddock(*MEMORY), drawn=True),
    Row(
        "paddock-quota",
        "paddock",
        "`max_requests = 20`, `max_requests_jitter = 2` (`spread = true`)",
        paddock(*QUOTA),
        drawn=True,
    ),
    Row(
        "paddock-quota-unspread",
        "paddock",
        "`max_requests = 20`, `max_requests_jitter = 2`, `spread = false`",
        paddock(*QUOTA, "--spread=false"),
    ),
    Row("paddock-both", "paddock", '`max = "512M"`, `recycle_at = "70%"`, `max_requests = 20`', paddock(*MEMORY, *QUOTA)),
    Row(
        "paddock-no-headroom",
        "paddock",
        '`max = "512M"`, `recycle_at = "98%"`: **headroom smaller than a request**',
        paddock("--memory-max=512M", "--memory-recycle-at=98%"),
    ),
    Row(
        "paddock-celery-20",
        "paddock",
        "Celery tasks: `max_requests = 20`, `max_requests_jitter = 2`",
        paddock(*QUOTA, tasks=True),
        tasks=True,
    ),
    Row(
        "paddock-celery-memory",
        "paddock",
        'Celery tasks: `max = "512M"`, `recycle_at = "70%"`',
        paddock(*MEMORY, tasks=True),
        tasks=True,
    ),
]
