"""Our app in the registry's server, as its clients ask it; most servers are without it."""

from typing import Any

import mlflow
import requests
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.utils import credentials, rest_utils

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import database, failures

PREFIX = "/breadcrumbs"
"""Of the app's addresses, after the server's own prefix."""
SECONDS = 600
"""For a judgement: the server reads the weights of a version to tell their digest."""


def request(method: str, path: str, **more: Any) -> requests.Response:
    """One request, which is not repeated: what it asks for is to be done once.

    Args:
        method: `GET` or `POST`.
        path: after `PREFIX`, with its slash.
        more: for requests.

    Raises:
        UnreachableError: the server does not answer.
    """
    answer: requests.Response
    with failures.explained("cannot ask the server for its guard"):
        answer = rest_utils.http_request(
            credentials.get_default_host_creds(mlflow.get_registry_uri()),
            f"{PREFIX}{path}",
            method,
            max_retries=0,
            raise_on_status=False,
            timeout=max(SECONDS, MLFLOW_HTTP_REQUEST_TIMEOUT.get()) if method == "POST" else 10,
            **more,
        )
    return answer


def content(answer: requests.Response) -> dict[str, Any]:
    """The JSON of an answer; nothing where it is none, as that of another program."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def said(path: str, **asked: str) -> dict[str, Any]:
    """What the registry's server says at an address; nothing where there is none with our app.

    Raises:
        UnreachableError: the server does not answer, or is out of order.
        RegistryError: our app can't say it.
    """
    if not failures.is_http(mlflow.get_registry_uri()):
        return {}
    database.prepare()  # which tells at once whether nobody listens
    answer = request("GET", path, params=asked)
    if answer.status_code == requests.codes.ok:
        return content(answer)
    if answer.status_code >= requests.codes.server_error:
        raise errors.UnreachableError(
            f"cannot ask the server for {PREFIX}{path}: it answered {answer.status_code}; see its "
            f"log, then {failures.AGAIN}"
        )
    if "kind" in (fault := content(answer)):
        raise errors.RegistryError(str(fault.get("error")))
    return {}
