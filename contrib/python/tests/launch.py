"""Stands where the manager's gate stands: puts descriptors in place, writes its own pid into the environment, and execs.

Usage: launch.py FD[,FD…] COMMAND…
"""

import os
import sys

given = [int(fd) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(given):
    # The test passes descriptors far above the ones they are moved to.
    os.dup2(fd, 3 + number, inheritable=True)
    os.close(fd)
pid = str(os.getpid())
if given:
    os.environ["LISTEN_PID"] = pid
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = pid
os.execvp(sys.argv[2], sys.argv[2:])
