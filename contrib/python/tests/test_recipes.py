"""The recipes for servers without any help from us, as they stand in examples/recipes, under the real manager.

Each is started from its own paddock.toml, is rolled under load, and loses a worker to the OOM killer (or to SIGKILL
where this machine has no fence, or the server's application nothing that grows).
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import fastcgi
import pytest
from manager import BOUND, Client, eventually
from test_with_paddock import BIN, TARGET, program

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
PATH = os.pathsep.join([BIN, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
ADDRESS = "127.0.0.1:8000"
"""The one in the recipes; each test has another."""


@dataclass(frozen=True)
class Recipe:
    name: str
    program: str
    """What has to be there."""
    package: str
    """Where Debian has it."""
    lost_for_each_drain: int = 0
    """Requests that the server itself may lose: it closes a connection that it has accepted, but not yet read from.

    uvicorn: `shutdown` of its protocols closes where no request is under way; hypercorn: its idle timeout ends with the
    drain; granian: hyper's `graceful_shutdown` closes what has read nothing (hyperium/hyper#2730 asked for it).
    """
    grows: bool = True
    """Whether its application can take memory without a bound."""
    counts: bool = False
    """Whether it tells how many requests it has served."""


SERVERS = [
    Recipe("uvicorn", "uvicorn", "", lost_for_each_drain=1),
    Recipe("hypercorn", "hypercorn", "", lost_for_each_drain=1),
    Recipe("granian", "granian", "", lost_for_each_drain=1),
    Recipe("uwsgi", "uwsgi", "python3-dev, to build it"),
    Recipe("node", "node", "nodejs"),
    Recipe("nginx", "nginx", "nginx-light", grows=False),
    Recipe("php-fpm", "php-fpm8.2", "php-fpm"),
    Recipe("go", "go", "golang-go", counts=True),
    Recipe("rust", "", "", counts=True),
]

pytestmark = pytest.mark.skipif(program() is None, reason="no paddock: build it with cargo, or name it in $PADDOCK")


class App:
    """A copy of a recipe, on an address of its own."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.directory = recipe, directory
        self.log = directory / "log"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address = sock.getsockname()
        self.process: Optional[subprocess.Popen[bytes]] = None
        here = directory / recipe.name
        shutil.copytree(RECIPES / "shop", directory / "shop")
        shutil.copytree(RECIPES / recipe.name, here)
        for path in here.iterdir():
            path.write_text(path.read_text().replace(ADDRESS, f"127.0.0.1:{self.address[1]}"))
        # Servers that drop their privileges read it, too.
        for path in [directory, *directory.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        build(recipe, here)

    def start(self) -> None:
        command = [program() or "", "run", "paddock.toml", "--runtime-directory", str(self.directory / "run"), "--reload-hold=200ms"]
        if self.recipe.counts:
            command += ["--max-requests=150", "--max-requests-jitter=0"]
        # What a machine's editor or shell exports must not reach the servers' configuration.
        environment = {"PATH": PATH, "HOME": str(self.directory), "TMPDIR": str(self.directory)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory / self.recipe.name, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process = self.process
        eventually(lambda: self.says(": ready: ") or process.poll() is not None, "the app is ready")
        assert process.poll() is None, self.text()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str) -> int:
        return self.text().count(words)

    def do(self, command: str, *arguments: str) -> int:
        full = [program() or "", command, self.recipe.name, *arguments, "--runtime-directory", str(self.directory / "run")]
        return subprocess.run(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=2 * BOUND).returncode

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, BOUND)

    def client(self, keep_alive: bool) -> Iterator[str]:
        """The pids that answer, one request at a time; ``OSError`` for one that is lost."""
        if self.recipe.name == "php-fpm":
            while True:
                with self.connect() as connection:
                    yield fastcgi.get(connection, str(self.directory / "php-fpm" / "index.php"))
        with self.connect() as first:
            client = Client(first, self.connect)
            while True:
                client.send(head="" if keep_alive else "Connection: close\r\n")
                response = client.receive()
                assert response.status == 200
                yield response.text

    def grow(self) -> None:
        with contextlib.suppress(OSError), self.connect() as connection:
            if self.recipe.name == "php-fpm":
                fastcgi.get(connection, str(self.directory / "php-fpm" / "index.php"), "grow")
            else:
                Client(connection).get("/grow")

    def close(self) -> None:
        for _ in range(2):
            if self.process is not None and self.process.poll() is None:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)


def build(recipe: Recipe, here: Path) -> None:
    """What a compiled recipe needs before it can be started; skips where it is not there."""
    if recipe.name == "rust":
        built = [TARGET / profile / "examples" / "rust-listener" for profile in ("release", "debug")]
        newest = max((path for path in built if path.exists()), key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            pytest.skip("not built: cargo build --example rust-listener")
        shutil.copy(newest, here / "server")
        return
    found = shutil.which(recipe.program, path=PATH)
    if found is None and recipe.name == "php-fpm":
        # The name has the version in it.
        found = next(iter(sorted(glob.glob("/usr/sbin/php-fpm[0-9]*"))), None)
    if found is None:
        pytest.skip(f"{recipe.program} is not installed (Debian: {recipe.package})")
    if recipe.name == "php-fpm":
        path = here / "paddock.toml"
        path.write_text(path.read_text().replace('"php-fpm8.2"', f'"{found}"'))
    if recipe.name == "go":
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOCACHE": str(TARGET / "go-cache")}
        subprocess.run([found, "build", "-o", "server", "."], cwd=here, env=environment, check=True, timeout=300)


class Load:
    """Six clients, of whom half keep their connections; none of them tries again."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.served: Counter[str] = Counter()
        self.lost: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self, keep_alive: bool) -> None:
        while not self._stop.is_set():
            try:
                with contextlib.closing(self.app.client(keep_alive)) as client:
                    for pid in client:
                        self.served[pid] += 1
                        if self._stop.is_set():
                            return
                        time.sleep(0.01)
            except (OSError, AssertionError) as error:
                self.lost.append(error)

    def answered(self) -> int:
        return sum(self.served.values())

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    # Not pytest's own directory, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="pr-") as directory:
        app = App(request.param, Path(directory))
        yield app
        app.close()


@pytest.mark.parametrize("app", SERVERS, ids=lambda recipe: recipe.name, indirect=True)
def test_a_recipe_serves_rolls_and_gets_over_a_death(app: App) -> None:
    recipe = app.recipe
    app.start()
    load = Load(app)
    try:
        eventually(lambda: load.answered() >= 100, "answers")
        if recipe.counts:
            eventually(lambda: app.says("drain, quota") >= 2, "two recycles at the quota")
        before = set(load.served)
        assert app.do("reload") == 0, app.text()
        answered = load.answered()
        eventually(lambda: load.answered() >= answered + 100, "answers of the new generation")
    finally:
        load.stop()
    drains = app.says(": drain, ")
    assert drains >= 2 and set(load.served) - before, "new workers served"
    assert len(load.lost) <= drains * recipe.lost_for_each_drain, f"{load.lost} in {drains} drains\n{app.text()}"

    fenced = re.search(r"isolation (scope|cgroup)", app.text()) is not None
    if recipe.grows and fenced:
        app.grow()
        verdict = "oom-kill"
    else:
        pids = re.findall(r"slot \d+ pid (\d+): ready", app.text())
        os.kill(int(pids[-1]), signal.SIGKILL)
        verdict = "signal 9"
    eventually(lambda: app.says(verdict), f"the verdict {verdict}")
    eventually(lambda: app.do("status", "--ready") == 0, "it is whole again")
    with contextlib.closing(app.client(False)) as client:
        assert next(client).isdigit()
    assert app.process is not None
    app.process.terminate()
    assert app.process.wait(BOUND) == 0
    assert "drain-deadline" not in app.text()
