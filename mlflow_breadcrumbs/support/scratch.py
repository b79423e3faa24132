"""Temporary folders that don't pile up: what a killed process left is removed by the next one.

A folder is locked for as long as its process lives; the kernel drops the lock however it ends.
So a folder of ours that can be locked belongs to nobody any more.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "mlflow-breadcrumbs-"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder, removed at the end; those that killed processes left go first."""
    sweep()
    made, held = _make()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def sweep() -> None:
    """Remove the folders whose processes are gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # alive, just removed, or another user's
            held = _lock(left)
            try:
                _logger.info("%s was left by a process that was killed; it is removed", left)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)


def _make() -> tuple[Path, int]:
    """A new folder and the lock on it."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            held = _lock(made)
            if made.exists():
                return made, held
            os.close(held)
        # Another process took it for a dead one's before it was locked; make another.


def _lock(path: Path) -> int:
    """Lock a folder, at once or not at all; the lock is this descriptor's."""
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held
