"""``gunicorn``: one of gunicorn's workers, configured as gunicorn is configured, without gunicorn's master.

The command line, ``gunicorn.conf.py`` and ``GUNICORN_CMD_ARGS`` are read by gunicorn itself and stay as they are. What the
master would have done with a setting is the manager's work now; each such setting is named once in the log.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import gunicorn
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket

from . import cli
from .environment import Listener, backlog, listeners
from .gunicorn_workers import FOREVER, adapt
from .worker import Worker, leave

TAKEN_OVER = {
    "bind": "set [listen] bind",
    "backlog": "set [listen] backlog",
    "workers": "set workers",
    "max_requests": "set [recycle] max_requests; without it the worker itself asks for its replacement after so many",
    "max_requests_jitter": "set [recycle] max_requests_jitter",
    "timeout": "set [timeouts] watchdog; for the sync class it is also the default of --request-timeout",
    "graceful_timeout": "set [timeouts] graceful",
    "reload": "run paddock reload",
    "reload_engine": "run paddock reload",
    "reload_extra_files": "run paddock reload",
    "user": "set user",
    "group": "set group",
    "initgroups": "set user: its supplementary groups come with it",
    "umask": "set umask",
}
"""Settings that the manager has a key for, or an equal of: what to do instead."""

WITHOUT_MEANING = {
    "preload_app": "every worker starts by itself, so nothing is shared",
    "reuse_port": "all workers accept on the same socket",
    "daemon": "paddock runs in the foreground",
    "pidfile": "paddock status shows the pids",
    "worker_tmp_dir": "signs of life go to the manager as messages, not through a file",
    "enable_stdio_inheritance": "nothing is made a daemon",
    "enable_backlog_metric": "the master measured it",
    "control_socket": "use paddock's own commands",
    "control_socket_disable": "use paddock's own commands",
    "control_socket_mode": "use paddock's own commands",
    "dirty_apps": "dirty workers belong to gunicorn's master: run them as an app of their own",
    "dirty_workers": "dirty workers belong to gunicorn's master: run them as an app of their own",
    "dirty_timeout": "see dirty_workers",
    "dirty_threads": "see dirty_workers",
    "dirty_graceful_timeout": "see dirty_workers",
    "on_dirty_starting": "see dirty_workers",
    "dirty_post_fork": "see dirty_workers",
    "dirty_worker_init": "see dirty_workers",
    "dirty_worker_exit": "see dirty_workers",
    "on_reload": "the master called it",
    "pre_exec": "the master called it",
    "nworkers_changed": "the master called it",
}
"""Settings that nothing can be done with, and why."""

ONCE_PER_SERVICE = ("on_starting", "when_ready", "on_exit")
"""Hooks of the master that ran once for all workers."""

_NEUTRAL: dict[str, Any] = {
    # wsgi.multiprocess tells applications that they are not alone.
    "workers": 2,
    "max_requests": 0,
    "max_requests_jitter": 0,
    "graceful_timeout": FOREVER,
    "reload": False,
    "preload_app": False,
    "daemon": False,
    "pidfile": None,
    "reuse_port": False,
    "initgroups": False,
    "control_socket_disable": True,
    "dirty_apps": [],
    "dirty_workers": 0,
}


class Master:
    """What hooks get as ``server``: the facts that gunicorn's master would have had, as far as there are any."""

    def __init__(self, app: Any, log: Any, sockets: list[Any]) -> None:
        self.app = app
        self.cfg = app.cfg
        self.log = log
        self.pid = os.getpid()
        self.master_pid = os.getppid()
        self.address = app.cfg.address
        self.timeout = app.cfg.timeout
        self.proc_name = app.cfg.proc_name
        self.num_workers = app.cfg.workers
        self.worker_age = 1
        self.LISTENERS = sockets
        self.WORKERS: dict[int, Any] = {}


class _Run(BaseApplication):  # type: ignore[misc]
    """Stands in the line of classes where gunicorn would start its master."""

    options: cli.Options
    server_hooks: bool

    def run(self) -> None:
        _serve(self, self.options, self.server_hooks)


class Application(WSGIApplication, _Run):  # type: ignore[misc]
    """gunicorn's application object: configuration and import are its own."""

    daemon_wanted = False

    def run(self) -> None:
        # Gunicorn would put itself into the background before it gets to _Run.
        self.daemon_wanted = self.cfg.daemon
        self.cfg.set("daemon", False)
        super().run()


def _serve(app: Any, options: cli.Options, server_hooks: bool) -> None:
    cfg = app.cfg
    env = cli.prepare(options)
    inherited = listeners(env, options.sockets)
    request_timeout = options.request_timeout
    if request_timeout is None and cfg.worker_class_str in ("sync", "gunicorn.workers.sync.SyncWorker") and cfg.timeout:
        request_timeout = float(cfg.timeout)
    own_quota = cfg.max_requests + random.randint(0, cfg.max_requests_jitter) if cfg.max_requests > 0 else 0
    paddock = Worker(env, request_timeout=request_timeout, own_quota=own_quota)
    os.environ["SERVER_SOFTWARE"] = f"gunicorn/{gunicorn.__version__}"
    log = cfg.logger_class(cfg)
    _explain(app, log, server_hooks)
    for name, value in _NEUTRAL.items():
        if name in cfg.settings:
            cfg.set(name, value)
    # Older versions call listen() on an inherited socket too.
    cfg.set("backlog", backlog(inherited))
    cfg.set("user", os.geteuid())
    cfg.set("group", os.getegid())
    for name, value in cfg.env.items():
        os.environ[name] = value

    worker_class, known = adapt(cfg.worker_class, paddock, options.drain_linger)
    if not known:
        log.warning("paddock does not know the worker class %s: see that it counts requests and drains", cfg.worker_class_str)
    _set_linger(worker_class, options.drain_linger, log)
    if hasattr(worker_class, "check_config"):
        worker_class.check_config(cfg, log)
    sockets = [_wrap(sock, cfg, log) for sock in inherited]
    master = Master(app, log, sockets)
    if server_hooks:
        cfg.on_starting(master)
    interval = paddock.watchdog.interval
    worker = worker_class(master.worker_age, os.getppid(), sockets, app, 30.0 if interval is None else interval, cfg, log)
    worker.pid = os.getpid()
    master.WORKERS[worker.pid] = worker
    code = 0
    try:
        cfg.pre_fork(master, worker)
        cfg.post_fork(master, worker)
        if server_hooks:
            cfg.when_ready(master)
        util._setproctitle(f"worker [{cfg.proc_name}]")
        log.info("Booting worker with pid: %s", worker.pid)
        worker.init_process()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except AppImportError:
        traceback.print_exc()
        code = 1
    except Exception:
        log.exception("Exception in worker process")
        code = 1
    finally:
        log.info("Worker exiting (pid: %s)", worker.pid)
        worker.tmp.close()
        for hook in (cfg.worker_exit, cfg.child_exit):
            try:
                hook(master, worker)
            except Exception:
                log.exception("a hook failed at the worker's exit")
        if server_hooks:
            cfg.on_exit(master)
    leave(code)
    sys.exit(code)


def _wrap(sock: Listener, cfg: Any, log: Any) -> Any:
    """gunicorn's own kind of listener around an inherited socket."""
    kind = {socket.AF_UNIX: UnixSocket, socket.AF_INET6: TCP6Socket}.get(sock.family, TCPSocket)
    address = sock.getsockname()
    wrapper = kind(address, cfg, log, fd=sock.detach())
    wrapper.sock = Listener(fileno=wrapper.sock.detach())
    wrapper.sock.set_inheritable(False)
    return wrapper


def _set_linger(worker_class: type, linger: float, log: Any) -> None:
    from gunicorn.workers import gthread

    if issubclass(worker_class, gthread.ThreadWorker):
        if hasattr(gthread, "STOP_KEEPALIVE_LINGER"):
            gthread.STOP_KEEPALIVE_LINGER = linger
        else:
            log.warning(
                "gthread of gunicorn %s closes idle keep-alive connections when it drains, and a client that is just sending "
                "meets a reset: upgrade gunicorn, or set keepalive = 0",
                gunicorn.__version__,
            )


def _explain(app: Any, log: Any, server_hooks: bool) -> None:
    """Names every setting that does not do here what it does under gunicorn's master."""
    settings, plain = app.cfg.settings, Config().settings

    def differs(name: str) -> bool:
        return name in settings and settings[name].get() != plain[name].get()

    for name, remedy in TAKEN_OVER.items():
        if differs(name):
            log.warning("%s is paddock's here: %s", name, remedy)
    for name, reason in WITHOUT_MEANING.items():
        if differs(name) or (name == "daemon" and app.daemon_wanted):
            log.warning("%s has no meaning here: %s", name, reason)
    for name in ONCE_PER_SERVICE:
        if differs(name) and not server_hooks:
            log.warning(
                "%s ran once for all workers, and here there is no such moment: use the service unit's ExecStartPre= and "
                "ExecStopPost=, or --server-hooks to run it in every worker",
                name,
            )


def run(argv: Sequence[str]) -> int:
    """The ``gunicorn`` command. Ends the process as gunicorn's worker would: 0 drained, else what went wrong."""
    options, rest, help_wanted = cli.split("gunicorn", argv, factory=False)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--server-hooks", action="store_true")
    mine, rest = own.parse_known_args(rest)
    if help_wanted:
        print("  --server-hooks        run on_starting, when_ready and on_exit in every worker\n")
        rest = ["--help"]
    # gunicorn reads the command line itself.
    sys.argv = ["gunicorn", *rest]
    app = Application("%(prog)s [OPTIONS] [APP_MODULE]", prog="python -m paddock_worker gunicorn")
    app.options = options
    app.server_hooks = mine.server_hooks
    app.run()
    return 0
