"""The command line: ``python -m paddock_worker SERVER [options] TARGET``."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from .apps import TargetProblem, add_directory
from .environment import Environment, EnvironmentProblem
from .worker import leave

SERVERS = {
    "wsgi": ("wsgi", "a WSGI application on waitress: threads"),
    "asgi": ("asgi", "an ASGI application on uvicorn: one event loop"),
    "celery": ("celery", "a Celery worker: one process, the solo or the threads pool"),
    "gunicorn": ("gunicorn", "gunicorn's own worker classes and configuration, without its master"),
}
"""The first word of the command line: the module behind it, and what it is."""


class UsageProblem(Exception):
    """The command line is wrong; the text says how to put it right."""


@dataclass(frozen=True)
class Options:
    """What every server takes."""

    app_dir: str = ""
    factory: bool = False
    request_timeout: Optional[float] = None
    drain_linger: float = 2.0
    sockets: tuple[str, ...] = ()


def common_parser(server: str, *, factory: bool, http: bool) -> argparse.ArgumentParser:
    """The options of :class:`Options`; all others are left for the server's own parser.

    ``factory``: the server leaves it to us to find the application; ``http``: it serves connections.
    """
    parser = argparse.ArgumentParser(prog=f"python -m paddock_worker {server}", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("paddock_worker")
    group.add_argument("-h", "--help", action="store_true", help="show this, and the server's own options")
    group.add_argument("--app-dir", default="", metavar="DIR", help="look for the application here first (default: the working directory)")
    if factory:
        group.add_argument("--factory", action="store_true", help="the target is called, and what it returns is the application")
    group.add_argument(
        "--request-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="a request without a sign of life for so long makes the worker ask for its replacement (default: off)",
    )
    if not http:
        return parser
    group.add_argument(
        "--drain-linger",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long a drain leaves an idle keep-alive connection its chance to send one more request (default: 2)",
    )
    group.add_argument(
        "--socket-name",
        action="append",
        default=[],
        metavar="NAME",
        help="serve only on the sockets of this name (repeatable; default: all listening sockets)",
    )
    return parser


def split(server: str, argv: Sequence[str], *, factory: bool = True, http: bool = True) -> tuple[Options, list[str], bool]:
    """Takes our options out of ``argv``: the options, the rest in order, and whether help was asked for."""
    parser = common_parser(server, factory=factory, http=http)
    known, rest = parser.parse_known_args(list(argv))
    given = vars(known)
    options = Options(
        app_dir=known.app_dir,
        factory=given.get("factory", False),
        request_timeout=known.request_timeout,
        drain_linger=given.get("drain_linger", Options.drain_linger),
        sockets=tuple(given.get("socket_name", ())),
    )
    if known.help:
        parser.print_help()
    return options, rest, known.help


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs a server until it is drained. Exit codes: 0 drained, 1 it failed, 2 the command line is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in SERVERS:
        print(f"usage: python -m paddock_worker {{{','.join(SERVERS)}}} [options]…\n", file=sys.stderr)
        for name, (_, what) in SERVERS.items():
            print(f"  {name:10} {what}", file=sys.stderr)
        print("\nEach has a --help of its own.", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    server = arguments[0]
    try:
        module = importlib.import_module(f".{SERVERS[server][0]}", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("paddock_worker"):
            raise
        print(f"paddock_worker: {error.name} is not installed: pip install 'paddock-worker[{server}]'", file=sys.stderr)
        return 1
    try:
        code: int = module.run(arguments[1:])
    except UsageProblem as problem:
        print(f"paddock_worker: {problem}", file=sys.stderr)
        return 2
    except (EnvironmentProblem, TargetProblem) as problem:
        print(f"paddock_worker: {problem}", file=sys.stderr)
        return 1
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        return 1
    leave(code)
    return code


def prepare(options: Options) -> Environment:
    """What comes before the application's import: its directory, and the manager's environment."""
    add_directory(options.app_dir or ".")
    return Environment.read()


def owned_by_paddock(option: str, remedy: str) -> UsageProblem:
    """An option of the server's for something that is the manager's here."""
    return UsageProblem(f"{option} is paddock's here: {remedy}")
