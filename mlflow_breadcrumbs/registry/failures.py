"""What MLflow, its server and the disk raise, as one message: what failed, why, the remedy."""

import contextlib
import errno
import re
from collections.abc import Iterator

import mlflow
import requests
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors

AGAIN = "run the same command again"

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
    except (MlflowException, requests.RequestException, OSError) as error:
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
            f"{what}: {error.strerror}{place}; make room, or choose another place (TMPDIR is for "
            f"temporary files), then {AGAIN}"
        )
    return errors.RegistryError(f"{what}: {text}; {remedy}")


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


def _symptom(text: str) -> str:
    """What a server did, read from the words of urllib3, requests or MLflow, and the remedy."""
    status = _status(text)
    if status in (401, 403):
        return f"answered {status}: the account in MLFLOW_TRACKING_USERNAME may not do that"
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
