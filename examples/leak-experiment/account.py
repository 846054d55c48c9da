"""Whose memory is whose: the kernel's account of a process tree, or samples where it keeps none for us."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import time

ROOT = pathlib.Path("/sys/fs/cgroup")
MARK = "LEAK_EXPERIMENT"


def status(pid: int, field: str) -> int:
    """A size in /proc/PID/status (proc_pid_status(5)), in bytes; 0: there is none any more."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _number(path: pathlib.Path) -> int:
    return int(path.read_text())


class Group:
    """A memory control group around one row: usage and peak of everything in it, and in the groups below it."""

    source = "kernel"

    def __init__(self, path: pathlib.Path, version: int) -> None:
        self.path = path
        self._usage, self._peak = {
            1: ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
            2: ("memory.current", "memory.peak"),
        }[version]
        path.mkdir()

    def wrap(self, command: list[str]) -> list[str]:
        """The command, which enters the group before it becomes itself."""
        return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self.path), *command]

    def usage(self) -> int:
        return _number(self.path / self._usage)

    def peak(self) -> int:
        return _number(self.path / self._peak)

    def pids(self) -> list[int]:
        found = []
        for directory, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError):
                found += [int(line) for line in (pathlib.Path(directory) / "cgroup.procs").read_text().split()]
        return found

    def close(self) -> None:
        end_all(self)
        below = sorted((directory for directory, _, _ in os.walk(self.path)), key=len, reverse=True)
        for directory in below:
            for _ in range(100):
                try:
                    os.rmdir(directory)
                    break
                except OSError:
                    time.sleep(0.05)


class Samples:
    """Without a group: the sum of PSS (proc_pid_smaps(5)) of all processes that carry a mark in their environment."""

    source = "samples"

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._peak = 0

    def wrap(self, command: list[str]) -> list[str]:
        return ["env", self._mark.decode(), *command]

    def pids(self) -> list[int]:
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def usage(self) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        self._peak = max(self._peak, total)
        return total

    def peak(self) -> int:
        return self._peak

    def close(self) -> None:
        end_all(self)


def end_all(account: Group | Samples) -> None:
    """Whatever the row has left behind."""
    end = time.monotonic() + 20
    while (left := account.pids()) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


class Accounts:
    """A group with a limit for the whole experiment, and one for each row below it."""

    def __init__(self, limit: int) -> None:
        self._number = 0
        self._top: pathlib.Path | None = None
        self.why_not = ""
        try:
            self._version = self._make(limit)
        except OSError as error:
            self.why_not = str(error)
            self._remove()

    def _make(self, limit: int) -> int:
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                top = ROOT / "memory" / path.lstrip("/") / f"leak-experiment-{os.getpid()}"
                top.mkdir()
                self._top = top
                (top / "memory.limit_in_bytes").write_text(str(limit))
                return 1
        # Below the root, because a group that holds processes (ours does) can have no groups with controllers below it.
        (ROOT / "cgroup.subtree_control").write_text("+memory")
        top = ROOT / f"leak-experiment-{os.getpid()}"
        top.mkdir()
        self._top = top
        (top / "cgroup.subtree_control").write_text("+memory +pids")
        (top / "memory.max").write_text(str(limit))
        (top / "memory.swap.max").write_text("0")
        return 2

    def open(self, name: str) -> Group | Samples:
        self._number += 1
        if self._top is None:
            return Samples(f"{os.getpid()}-{self._number}")
        return Group(self._top / f"{self._number}-{name}", self._version)

    def _remove(self) -> None:
        if self._top is not None:
            with contextlib.suppress(OSError):
                self._top.rmdir()
            self._top = None

    close = _remove
