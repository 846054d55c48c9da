"""`paddock import` against the real gunicorn, uWSGI and Celery: its tables know what they know, and what it writes starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager import APPS, BOUND, Client, eventually
from test_with_paddock import BIN, Paddock, paddock, program

__all__ = ["paddock"]

pytestmark = pytest.mark.skipif(program() is None, reason="no paddock: build it with cargo, or name it in $PADDOCK")

ROOT = Path(__file__).parents[3]
NEEDS_UWSGI = pytest.mark.skipif(shutil.which("uwsgi", path=BIN) is None, reason="uwsgi could not be built here (it needs Python's headers)")
ROW = re.compile(r"^\| (?P<names>`[^|]*`) \| (?P<fate>[^|]*) \| (?P<note>.*) \|$", re.M)


def table(peer: str) -> dict[str, str]:
    """Every name of a peer's table, with what becomes of it: names with a star stand for all that begin so."""
    said = subprocess.run([program() or "", "import", peer, "--list"], check=True, capture_output=True, text=True).stdout
    return {name: row["fate"] for row in ROW.finditer(said) for name in re.findall(r"`([^`]+)`", row["names"])}


def missing(known: set[str], listed: dict[str, str]) -> set[str]:
    prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))
    return {name for name in known if name not in listed and not (prefixes and name.startswith(prefixes))}


def is_newest(peer: str) -> bool:
    """Whether this is the version whose names the repository keeps. Another Python may only have an older one."""
    return (ROOT / "tests/golden/import" / f"{peer}-{importlib.metadata.version(peer)}.names").exists()


def test_every_setting_of_the_real_gunicorn_has_a_row() -> None:
    from gunicorn.config import KNOWN_SETTINGS

    known, listed = {setting.name for setting in KNOWN_SETTINGS}, table("gunicorn")
    assert len(known) > 80 and missing(known, listed) == set()
    if is_newest("gunicorn"):
        assert set(listed) - known == set()


def test_the_table_says_of_gunicorn_what_the_worker_does() -> None:
    """What the worker warns about is not called kept, and what it says nothing about is."""
    from paddock_worker.gunicorn import ONCE_PER_SERVICE, TAKEN_OVER, WITHOUT_MEANING

    kept = {name for name, fate in table("gunicorn").items() if fate.startswith("kept")}
    warned = {*TAKEN_OVER, *WITHOUT_MEANING, *ONCE_PER_SERVICE}
    assert kept & warned == set()
    # These two only print and end, and gunicorn goes on reading the third.
    assert set(table("gunicorn")) - kept == warned | {"check_config", "print_config", "proc_name"}


def test_every_setting_and_option_of_the_real_celery_has_a_row() -> None:
    import click
    from celery.app.defaults import NAMESPACES, flatten
    from celery.bin.celery import celery
    from celery.bin.worker import worker

    settings = {name for name, _ in flatten(NAMESPACES) if name.startswith(("worker_", "task_"))}
    ours = [option for command in (celery, worker) for option in command.params if isinstance(option, click.Option)]
    # It prints something and ends.
    options = {max(option.opts, key=len) for option in ours} - {"--version"}
    listed = table("celery")
    assert len(settings) > 60 and len(options) > 30
    assert missing(settings | options, listed) == set()
    if is_newest("celery"):
        assert {name for name in listed if name.startswith(("worker_", "task_")) and not name.endswith("*")} - settings == set()


def test_the_table_says_of_celery_what_the_worker_does() -> None:
    from paddock_worker import celery

    listed = table("celery")
    for name in celery._WITHOUT_MEANING:
        for spelling in (f"worker_{name}", f"--{name.replace('_', '-')}"):
            assert not listed.get(spelling, "not there").startswith("kept"), spelling


@NEEDS_UWSGI
def test_every_option_of_the_real_uwsgi_is_known() -> None:
    said = subprocess.run([os.path.join(BIN, "uwsgi"), "--help"], capture_output=True, text=True).stdout
    options = set(re.findall(r"^\s+(?:-\S\|)?--(\S+)", said, re.M))
    known = {line.split(" ")[0] for line in (ROOT / "src/import/uwsgi/options.txt").read_text().splitlines()}
    assert len(options) > 500 and options - known == set()
    # Of those about processes none may fall to the rule for the rest, which is to hand it on.
    processes = re.compile(r"worker|process|master|cheap|reload|harakiri|lifetime|emperor|vassal|daemon|idle|(^|-)max-requests")
    assert missing({option for option in options if processes.search(option)}, table("uwsgi")) == set()


@contextlib.contextmanager
def imported(paddock: Paddock, peer: str, file: str, text: str) -> Iterator[str]:
    """What the importer makes of a configuration, run as it is."""
    (paddock.directory / file).write_text(text.format(host=paddock.address[0], port=paddock.address[1], apps=APPS))
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [program() or "", "import", peer, file, "--python", sys.executable, "--output", "imported.toml"]
    subprocess.run(command, cwd=paddock.directory, env=environment, check=True)
    written = (paddock.directory / "imported.toml").read_text()
    command = [program() or "", "run", "imported.toml", "--runtime-directory", str(paddock.directory / "run"), "--isolation=none"]
    with open(paddock.log, "wb") as log:
        paddock.process = subprocess.Popen(command, cwd=paddock.directory, env=environment, stdout=log, stderr=log)
    eventually(lambda: paddock.says(": ready: ") or (paddock.process and paddock.process.poll() is not None), "the app is ready")
    assert paddock.process.poll() is None, paddock.text()
    yield written
    assert paddock.stop() == 0


def test_an_imported_gunicorn_conf_serves(paddock: Paddock) -> None:
    conf = (
        "bind = '{host}:{port}'\nworkers = 2\nworker_class = 'gthread'\nthreads = 2\nmax_requests = 500\nmax_requests_jitter = 50\n"
        "timeout = 20\npythonpath = '{apps}'\nwsgi_app = 'plain:application'\npidfile = 'gunicorn.pid'\n"
    )
    with imported(paddock, "gunicorn", "gunicorn.conf.py", conf) as written:
        for line in ("workers = 2", "max_requests = 500", "max_requests_jitter = 50", 'watchdog = "30s"'):
            assert f"\n{line}\n" in written
        client = paddock.client()
        assert client.get().text.isdigit()
        client.sock.close()
        # It is ready when one slot is, so the other's worker may come a little later.
        eventually(lambda: len(set(re.findall(r"pid (\d+): ready", paddock.text()))) == 2, "both workers are ready", BOUND)
        assert "pidfile has no meaning here" in paddock.text()


@NEEDS_UWSGI
def test_an_imported_uwsgi_ini_serves(paddock: Paddock) -> None:
    ini = (
        "[uwsgi]\nhttp-socket = {host}:{port}\nmaster = true\nprocesses = 2\npythonpath = {apps}\nmodule = plain:application\n"
        "reload-on-rss = 200\nmax-worker-lifetime = 3600\ncheaper = 1\n"
    )
    with imported(paddock, "uwsgi", "shop.ini", ini) as written:
        for line in ("workers = 2", 'recycle_at = "200M"', 'drain_signal = "HUP"'):
            assert f"\n{line}\n" in written
        client: Client = paddock.client()
        assert client.get().text.isdigit()
        client.sock.close()
