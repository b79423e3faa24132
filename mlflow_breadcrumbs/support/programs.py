"""A program of the user's that prints its result: no shell, within limits of time and of output."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from mlflow_breadcrumbs import errors

BYTES = 1 << 20
"""That a program may print."""
SHOWN = 500
"""Characters of what it said last that a message has."""
PAUSE = 0.05
"""Seconds between two looks at it."""


def output(
    words: Sequence[str], origin: str, error: type[errors.BreadcrumbsError], *, seconds: float
) -> bytes:
    """What a program prints to its standard output.

    It runs in a session of its own, which is ended as a whole where it goes beyond a limit.

    Args:
        words: the program and its arguments; nothing in them is interpreted.
        origin: how messages name it.
        error: what is raised.
        seconds: that it may take.

    Raises:
        BreadcrumbsError: of the kind given: it can't be started, fails, takes too long, or prints
            too much.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True
            )
        except (OSError, ValueError) as cause:  # ValueError: a NUL in a word
            raise error(f"{origin} can't be started: {cause}") from cause
        try:
            _wait(process, (out, said), origin, error, seconds)
        finally:
            _end(process)
        if process.returncode != 0:
            told = _last(said) or _last(out)
            raise error(
                f"{origin} failed with exit code {process.returncode}"
                + (f": {told}" if told else " and said nothing")
            )
        out.seek(0)
        return out.read()


def _wait(
    process: "subprocess.Popen[bytes]",
    files: Sequence[IO[bytes]],
    origin: str,
    error: type[errors.BreadcrumbsError],
    seconds: float,
) -> None:
    """Until it has ended, unless it goes beyond a limit before."""
    end = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None
        if any(os.fstat(file.fileno()).st_size > BYTES for file in files):
            raise error(
                f"{origin} printed more than {BYTES:,} bytes; let it print its result alone, "
                "and write what is long to a file"
            )
        if ended:
            return
        if time.monotonic() > end:
            raise error(
                f"{origin} was ended after {seconds:g} seconds without a result; make it faster, "
                "or give it more `seconds`"
            )
        time.sleep(PAUSE)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it, and what it has started."""
    with contextlib.suppress(OSError):  # nothing of it is left
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _last(file: IO[bytes]) -> str:
    """The end of what was written, on one line."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 4 * SHOWN))
    text = " ".join(file.read().decode(errors="replace").split())
    return text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"


def shown(words: Sequence[str]) -> str:
    """A program and its arguments as a shell writes them."""
    return shlex.join(words)
