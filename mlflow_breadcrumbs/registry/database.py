"""The first touch of MLflow's stores: is anybody there, and a database gets its tables.

MLflow makes the tables of a new database when it is first used. Two processes that do so at once
get in each other's way and leave tables of which some columns are missing. So on SQLite, where all
processes are on this machine, ours take turns: the lock is a file beside the database.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import mlflow
import sqlalchemy
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import failures, reaching

LOCK = ".mlflow-breadcrumbs.lock"
PATIENCE = 600.0
"""Seconds that a process waits for those before it; making MLflow's tables takes some."""


def prepare() -> None:
    """Open MLflow's databases, once per process; a tracking server sees to its own.

    Raises:
        UnreachableError: nobody listens where a server or a database should be.
        RegistryError: the tables are incomplete, or the database can't be opened.
    """
    uris = dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri()))
    for uri in uris:
        _reach(uri, os.getpid())
    databases = tuple(uri for uri in uris if not failures.is_http(uri))
    if databases:
        _open(databases, os.getpid())


@functools.cache
def _reach(uri: str, process: int) -> None:
    reaching.check_listening(uri)


@functools.cache
def _open(databases: tuple[str, ...], process: int) -> None:
    with contextlib.ExitStack() as stack:
        for folder in sorted(set(filter(None, map(_folder, databases)))):
            stack.enter_context(_turn(folder))
        try:
            client = mlflow.MlflowClient()  # opens the tracking database
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
        except (sqlalchemy.exc.SQLAlchemyError, MlflowException) as error:
            shown = " and ".join(databases)
            reason = str(getattr(error, "orig", error)).strip().rstrip(".")
            raise errors.RegistryError(
                f"MLflow can't open its database {shown}: {reason}. If it is new, several programs "
                "made its tables at once: remove it, and let one make it, "
                "`python -m mlflow db upgrade URI`"
            ) from error


def _folder(uri: str) -> Path | None:
    """The folder of a SQLite file; two ways to write one file lead to one folder."""
    path = uri.removeprefix("sqlite:///")
    folder = Path(path).resolve().parent
    return folder if path != uri and folder.is_dir() else None


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of ours opens a SQLite file in this folder."""
    lock = filelock.FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False)
    # A folder that can't be written to, a file system without locks, a lock that never comes free.
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
