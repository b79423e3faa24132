"""Who does something: the account that the registry's server knows, else the user of this machine.

In containers everybody is `root`, and a name of a machine says nothing to others. A server with
accounts knows who asks, so that its answer counts; one that can't be asked gets the name that is
sent to it with the password.
"""

import contextlib
import contextvars
import dataclasses
import functools
import urllib.parse
from collections.abc import Iterator

import mlflow
import requests
from mlflow.environment_variables import MLFLOW_TRACKING_AUTH, MLFLOW_TRACKING_TOKEN
from mlflow.exceptions import MlflowException
from mlflow.utils import credentials, rest_utils

from mlflow_breadcrumbs.registry import failures
from mlflow_breadcrumbs.support import processes

_asking: contextvars.ContextVar["Asking | None"] = contextvars.ContextVar("asking", default=None)

CURRENT = "/api/2.0/mlflow/users/current"
"""Where MLflow's own server with accounts says who asks."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """Who a server works for at the moment."""

    name: str
    vouched: bool
    """Whether the server has authenticated them; else it is what they say."""


@contextlib.contextmanager
def working_for(asking: Asking) -> Iterator[None]:
    """Do what is done in this context, in a server, in the name of who asked for it."""
    token = _asking.set(asking)
    try:
        yield
    finally:
        _asking.reset(token)


def is_vouched() -> bool:
    """Whether this is done in a server, for somebody whom it has authenticated."""
    found = _asking.get()
    return found is not None and found.vouched


def user() -> str:
    """The name of the account, or of the user on this machine where there is none."""
    return account() or processes.user()


def account() -> str | None:
    """The account by which the registry's server knows this user; `None` without one.

    A database knows no accounts of MLflow, nor does a server to which no name is sent. Inside a
    server it is who asks.
    """
    if (asking := _asking.get()) is not None:
        return asking.name
    uri = mlflow.get_registry_uri()
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    inside = urllib.parse.unquote(parts.username) if parts.username else None
    name = credentials.read_mlflow_creds().username or inside
    token, plugin = MLFLOW_TRACKING_TOKEN.get(), MLFLOW_TRACKING_AUTH.get()
    if not (name or token or plugin):
        return None
    try:
        return _asked(uri, name, token, plugin) or name
    except (MlflowException, requests.RequestException):
        return name  # not kept: the server may answer the next time


@functools.lru_cache(maxsize=32)
def _asked(uri: str, *_given: str | None) -> str | None:
    """What a server says who asks; `None` where it says nothing."""
    with failures.without_retries():
        answer = rest_utils.http_request(
            credentials.get_default_host_creds(uri), CURRENT, "GET", timeout=10
        )
    try:
        found = answer.json() if answer.status_code == requests.codes.ok else {}
    except ValueError:
        return None
    shown = found.get("user") if isinstance(found, dict) else None
    name = shown.get("username") if isinstance(shown, dict) else None
    return name if isinstance(name, str) and name else None
