"""Which process does a job, written down so that a later one can tell whether it still lives.

A process number alone is soon another process's. With the start of the machine, the container's
process namespace and the process's own start time it is one process's for ever. All of it is read
from Linux's /proc; elsewhere, and for a process of another machine, nothing is claimed.
"""

import getpass
import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str | None:
    """This machine since it was started, and this container in it; `None` without /proc."""
    try:
        return f"{_BOOT.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def own() -> str | None:
    """This process, `MACHINE/NUMBER/START`; `None` without /proc."""
    here, started = machine(), _started(os.getpid())
    return f"{here}/{os.getpid()}/{started}" if here and started else None


def is_here(process: str) -> bool:
    """Whether the process that `own` named is, or was, one of this machine."""
    return process.startswith(f"{machine()}/")


def is_gone(process: str) -> bool:
    """Whether the process that `own` named has certainly ended; of another machine's: `False`."""
    place, _, started = process.rpartition("/")
    place, _, number = place.rpartition("/")
    if place != machine() or not number.isdecimal():
        return False
    found = _started(int(number))
    return found != started if found else not _is_hidden(int(number))


def _started(number: int) -> str | None:
    """When a process began, in clock ticks since the machine's start; `None` if none is seen."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return None
    # proc(5): "number (name) state …", where the name may hold anything; the start is field 22.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _is_hidden(number: int) -> bool:
    """Whether there is such a process, though /proc does not show it (mounted with `hidepid`)."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return False


def user() -> str:
    """The user's name on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # of `pwd`, which Windows lacks
        return "unknown"


def processors() -> int:
    """How many processors this process may use."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return here if _allowed is None else min(here, _allowed)


def allow(count: int) -> None:
    """Have `processors` say no more than so many from now on: others work on this machine too."""
    global _allowed
    _allowed = count


_allowed: int | None = None
