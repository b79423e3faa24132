"""What MLflow, its server and the disk raise, as one message: what failed, why, the remedy."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import requests
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_TRACKING_TOKEN,
)
from mlflow.exceptions import MlflowException
from mlflow.utils import credentials
from sqlalchemy import exc

from mlflow_breadcrumbs import errors

AGAIN = "run the same command again"

_DELETED = re.compile(r"deleted experiment|experiment .{1,80} must be in (the )?.active. state")
"""What MLflow says where an experiment was deleted."""
FOREIGN = (MlflowException, requests.RequestException, exc.SQLAlchemyError)
"""What MLflow, its server and its database raise."""
_SQL = re.compile(
    r"(?:\(raised as[^)]*\) )?(?:\([\w.]+\) )?(.*?)\s*(?:\[SQL:|\(Background on this error).*"
)
"""An error of SQLAlchemy: the driver's words, then the statement with its values."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def explained(what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn what is raised inside into a `RegistryError`.

    Args:
        what: says what could not be done.
        remedy: for what MLflow refuses; a server or a disk has a remedy of its own.
    """
    try:
        yield
    except (*FOREIGN, OSError) as error:
        raise explain(error, what, remedy) from error


def explain(error: Exception, what: str, remedy: str = AGAIN) -> errors.RegistryError:
    """One error as the error of this package that a user sees; see `explained`."""
    text = " ".join(str(getattr(error, "message", error)).split()).rstrip(".")
    if is_servers(error):
        server = mlflow.get_tracking_uri()
        message = f"{what}: the tracking server {server} {_symptom(text)}"
        return (errors.RegistryError if _is_no(text) else errors.UnreachableError)(message)
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f" ({error.filename})" if error.filename else ""
        return errors.RegistryError(
            f"{what}: {error.strerror}{place}; {_room(error.filename)}, then {AGAIN}"
        )
    if said := _SQL.fullmatch(text):
        return errors.RegistryError(
            f"{what}: MLflow's database {mlflow.get_tracking_uri()} says: {said[1]}; "
            f"{_sql_remedy(said[1])}"
        )
    if _DELETED.search(text):
        remedy = (
            "restore it (`mlflow experiments restore --experiment-id ID`), or choose another one "
            "(MLFLOW_EXPERIMENT_NAME)"
        )
    return errors.RegistryError(f"{what}: {text}; {remedy}")


def _room(path: str | bytes | None) -> str:
    """Which disk is to be seen to: of temporary files, or where MLflow keeps what it has."""
    temporary = Path(tempfile.gettempdir())
    known = path is not None
    if known:
        inside = temporary in Path(os.fsdecode(path or "")).parents
    else:
        inside = shutil.disk_usage(temporary).free < 2**20
    if inside:
        return "make room there, or choose another place for temporary files (TMPDIR)"
    return "make room there" if known else "make room where MLflow keeps its artifacts"


def _sql_remedy(said: str) -> str:
    """What to do about what a database's driver said."""
    words = said.lower()
    if "full" in words or "no space" in words:
        return f"make room on its disk, then {AGAIN}"
    if "readonly" in words or "read-only" in words or "permission" in words:
        return f"let this user write to it, and to its folder, then {AGAIN}"
    return f"see that it runs and can be written, then {AGAIN}"


def is_http(uri: str) -> bool:
    """Whether a store's URI is that of a tracking server."""
    return uri.startswith(("http:", "https:"))


def is_forbidden(error: Exception) -> bool:
    """Whether the server has answered that the account may not do that, or that it has none."""
    return _status(str(error)) in (401, 403)


def is_servers(error: Exception) -> bool:
    """Whether it was the tracking server that failed, rather than it said no."""
    return isinstance(error, requests.RequestException) or "API request to" in str(error)


@contextlib.contextmanager
def without_retries() -> Iterator[None]:
    """MLflow's client asks once; for what is only tried, after the server has failed already."""
    given = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw()
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    try:
        yield
    finally:
        if given is None:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
        else:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(given)


def _status(text: str) -> int | None:
    """The HTTP status in the words of urllib3, requests or MLflow."""
    words = r"too many (\d{3}) error|error code (\d{3})|\b(\d{3}) (?:Server|Client) Error"
    match = re.search(words, text)
    return int(next(group for group in match.groups() if group)) if match else None


def _is_no(text: str) -> bool:
    """Whether the server has answered, and the answer is no: nothing was done."""
    status = _status(text)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _unknown_account() -> str:
    """Why a server does not know who asks, and what to do about it."""
    known = credentials.read_mlflow_creds()
    if MLFLOW_TRACKING_TOKEN.get():
        return "it does not take the token in MLFLOW_TRACKING_TOKEN; set one that is valid"
    if known.username is None or known.password is None:
        return (
            "it wants to know who asks; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return (
        f"it does not take the account {known.username!r} with this password; check "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


def _symptom(text: str) -> str:
    """What a server did, read from the words of urllib3, requests or MLflow, and the remedy."""
    status = _status(text)
    if status == 401:
        return f"answered 401: {_unknown_account()}, then {AGAIN}"
    if status == 403:
        return (
            "answered 403: the account in MLFLOW_TRACKING_USERNAME may not do that; let somebody "
            "who manages it give the permission, or use another account"
        )
    if status is not None:
        return f"answered {status}; see the server's log, then {AGAIN}"
    if "timed out" in text:
        seconds = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        return (
            f"did not answer within {seconds} s; set MLFLOW_HTTP_REQUEST_TIMEOUT to more, "
            f"then {AGAIN}"
        )
    return (
        "does not answer; check MLFLOW_TRACKING_URI and that the server runs and takes what is "
        f"sent, then {AGAIN}"
    )
