"""Temporary folders that don't pile up: what a killed process left is removed by the next one.

A folder has a file that is locked for as long as its process lives; the kernel drops the lock
however it ends. So a folder of ours that can be locked belongs to nobody any more.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

PREFIX = "mlflow_breadcrumbs-"
"""Another than that of releases which locked the folder itself, and would sweep ours."""
LOCK = ".lock"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder, removed at the end; those that killed processes left go first.

    It has a hidden file, the lock.
    """
    sweep()
    made, lock = _make()
    try:
        yield made
    finally:
        _remove(made, lock)


def sweep() -> None:
    """Remove the folders whose processes are gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # alive, just removed, or another user's
            lock = _lock(left)
            _logger.info("%s was left by a process that was killed; it is removed", left)
            _remove(left, lock)


def _make() -> tuple[Path, filelock.BaseFileLock]:
    """A new folder and the lock on it."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError, filelock.Timeout):
            lock = _lock(made)
            if (made / LOCK).exists():
                return made, lock
            lock.release()
        # Another process took it for a dead one's before it was locked; make another.


def _lock(path: Path) -> filelock.BaseFileLock:
    """Lock a folder, at once or not at all."""
    if path.is_symlink():
        raise NotADirectoryError(path)
    lock = filelock.FileLock(path / LOCK, thread_local=False)
    lock.acquire(blocking=False)
    return lock


def _remove(path: Path, lock: filelock.BaseFileLock) -> None:
    """Remove a folder that is locked, and let go of it."""
    shutil.rmtree(path, ignore_errors=True)
    lock.release()
    # On Windows a file that is open stays. Elsewhere, what is there now is of the process that made
    # the folder and has just locked it, after the old lock was gone.
    if os.name == "nt" and path.exists():
        shutil.rmtree(path, ignore_errors=True)
