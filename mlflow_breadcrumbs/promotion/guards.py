"""A server that guards aliases, as its clients see it: there it is judged, not here.

`promote`, `rollback`, `approve` and `recall` ask for its offer first, one request. A registry that
is no server, a server without our app and an alias that it does not guard have none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import mlflow
import requests
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.utils import credentials, rest_utils

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.registry import database, failures, versions
from mlflow_breadcrumbs.support import processes

PREFIX = "/breadcrumbs"
"""Of the app's addresses, after the server's own prefix."""
SECONDS = 600
"""For a judgement: the server reads the weights of a version to tell their digest."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the registry's server says of an alias, or of the aliases of a model, that it guards."""

    rules: policies.Policy | None
    """By which the alias moves; `None` where no alias was asked for."""
    accounts: bool
    """Whether the server knows who asks; else it takes the name that it is told."""

    def take(self, what: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Have the server do something; what came of it, as the command's `--json`.

        Args:
            what: `promote`, `rollback`, `approve`, `recall`.
            fields: of the request, see `/breadcrumbs/openapi.json`.

        Raises:
            BreadcrumbsError: of the kind that the server names, with its message.
            UnreachableError: the server does not answer, so it is not known what came of it.
        """
        said = dict(fields) if self.accounts else {**fields, "user": processes.user()}
        answer = _request("POST", f"{PREFIX}/{what}", json=said)
        found = _content(answer)
        if answer.status_code == requests.codes.ok:
            return found
        named = getattr(errors, str(found.get("kind")), None)
        kind: type[errors.BreadcrumbsError] = errors.RegistryError
        if isinstance(named, type) and issubclass(named, errors.BreadcrumbsError):
            kind = named
        text = found.get("error") or (
            f"cannot {what}: the tracking server answered {answer.status_code}; see its log, then "
            f"{failures.AGAIN}"
        )
        raise kind(text)


def offered(name: str, alias: str | None = None) -> Offer | None:
    """The offer of the registry's server; `None` where it guards no such alias.

    Args:
        name: Of the registered model.
        alias: Of it; left out, any.

    Raises:
        UnreachableError: the server does not answer.
        PolicyError: its policy is of a later release.
    """
    said = _said({"name": name} if alias is None else {"name": name, "alias": alias})
    if said.get("pinned") is not True:
        return None
    text = said.get("policy")
    rules = None
    if text is not None:
        rules = policies.parse(str(text), f"the server's policy of {name}@{alias}")
    return Offer(rules, said.get("accounts") is True)


def for_recalls(name: str) -> Offer | None:
    """The offer of the registry's server to recall any version; `None` where it guards nothing.

    What descends from a version may have a guarded alias, whatever the version's own model is.

    Args:
        name: Of the registered model.

    Raises:
        UnreachableError: the server does not answer.
    """
    said = _said({"name": name})
    return Offer(None, said.get("accounts") is True) if said.get("recalls") is True else None


def writes_moves() -> bool:
    """Whether the registry's server writes all moves of aliases into its ledger by itself.

    Raises:
        UnreachableError: the server does not answer.
    """
    return _said({}).get("notices") is True


def _said(asked: Mapping[str, str]) -> dict[str, Any]:
    """What the registry's server says that it decides itself; nothing where none does."""
    if not failures.is_http(mlflow.get_registry_uri()):
        return {}
    database.prepare()  # which tells at once whether nobody listens
    answer = _request("GET", f"{PREFIX}/guard.json", params=asked)
    return _content(answer) if answer.status_code == requests.codes.ok else {}


def _request(method: str, path: str, **more: Any) -> requests.Response:
    """One request, which is not repeated: what it asks for is to be done once."""
    answer: requests.Response
    with failures.explained("cannot ask the server for its guard"):
        answer = rest_utils.http_request(
            credentials.get_default_host_creds(mlflow.get_registry_uri()),
            path,
            method,
            max_retries=0,
            raise_on_status=False,
            timeout=max(SECONDS, MLFLOW_HTTP_REQUEST_TIMEOUT.get()) if method == "POST" else 10,
            **more,
        )
    return answer


def _content(answer: requests.Response) -> dict[str, Any]:
    """The JSON of an answer; nothing where it is none, as that of another program."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def policy_of(uri: str, alias: str) -> policies.Policy | None:
    """The policy by which the registry's server would give a version an alias; `None` without one.

    Raises:
        RegistryError: the version can't be found, or the server does not answer.
        PolicyError: its policy is of a later release.
    """
    if not failures.is_http(mlflow.get_registry_uri()):
        return None
    name = versions.resolve(uri).name
    offer = None if name is None else offered(name, alias)
    return None if offer is None else offer.rules
