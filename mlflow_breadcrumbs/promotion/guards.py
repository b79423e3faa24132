"""A server that guards aliases, as its clients see it: there it is judged, not here.

`promote`, `rollback`, `approve` and `recall` ask for its offer first, one request. A registry that
is no server, a server without our app and an alias that it does not guard have none.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlflow
import requests

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.registry import failures, server_app, versions
from mlflow_breadcrumbs.support import processes

Kept = TypeVar("Kept")

_NOWHERE = (requests.codes.not_found, requests.codes.method_not_allowed)
"""What a server answers that has no such address."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the registry's server says of an alias, or of the aliases of a model, that it guards."""

    rules: policies.Policy | None
    """By which the alias moves; `None` where no alias was asked for."""
    accounts: bool
    """Whether the server knows who asks; else it takes the name that it is told."""
    about: Mapping[str, str]
    """Which model, version and alias it is for: what every request says of them."""
    takes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The fields of each request; none of a server that does not say."""

    def knows(self, what: str, field: str) -> bool:
        """Whether a request of the server has a field; earlier releases refuse what they lack."""
        return field in self.takes.get(what, ())

    def take(self, what: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Have the server do something; what came of it, as the command's `--json`.

        Args:
            what: `promote`, `rollback`, `approve`, `override`, `recall`.
            fields: of the request, beside `about`; see `/breadcrumbs/openapi.json`.

        Raises:
            BreadcrumbsError: of the kind that the server names, with its message.
            RegistryError: the server has no such request.
            UnreachableError: the server does not answer, so it is not known what came of it.
        """
        said = {**self.about, **fields}
        if not self.accounts:
            said["user"] = processes.user()
        answer = server_app.request("POST", f"/{what}", json=said)
        found = server_app.content(answer)
        if answer.status_code == requests.codes.ok:
            return found
        if answer.status_code in _NOWHERE and "kind" not in found:
            raise lacking(what)
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
    about = {"name": name} if alias is None else {"name": name, "alias": alias}
    said = server_app.said("/guard.json", **about)
    if said.get("pinned") is not True:
        return None
    text = said.get("policy")
    rules = None
    if text is not None:
        rules = policies.parse(str(text), f"the server's policy of {name}@{alias}")
    return _offer(said, about, rules)


def for_recalls(name: str) -> Offer | None:
    """The offer of the registry's server to recall any version; `None` where it guards nothing.

    What descends from a version may have a guarded alias, whatever the version's own model is.

    Args:
        name: Of the registered model.

    Raises:
        UnreachableError: the server does not answer.
        RegistryError: it guards aliases of the model, and is of a release that took no recalls.
    """
    said = server_app.said("/guard.json", name=name)
    if said.get("pinned") is True and "recalls" not in said:
        raise lacking("recall")
    return _offer(said, {"name": name}) if said.get("recalls") is True else None


def writes_moves() -> bool:
    """Whether the registry's server writes all moves of aliases into its ledger by itself.

    Raises:
        UnreachableError: the server does not answer.
    """
    return server_app.said("/guard.json").get("notices") is True


def for_version(
    uri: str, ask: Callable[[str], Offer | None]
) -> tuple[versions.ResolvedVersion, Offer] | None:
    """A version, and what the registry's server offers for it; `None` where it offers nothing.

    Args:
        uri: of the version.
        ask: `offered` or `for_recalls`, asked about its model.

    Raises:
        RegistryError: the version can't be found, or the server does not answer.
        PolicyError: its policy is of a later release.
    """
    if not failures.is_http(mlflow.get_registry_uri()):
        return None
    resolved = versions.resolve(uri)
    offer = None if resolved.name is None else ask(resolved.name)
    if offer is None:
        return None
    about = {**offer.about, "version": str(resolved.version)}
    return resolved, dataclasses.replace(offer, about=about)


def lacking(what: str) -> errors.RegistryError:
    """What to say where the registry's server is of a release that lacks a request."""
    return errors.RegistryError(
        f"the server {mlflow.get_registry_uri()} has no {server_app.PREFIX}/{what}: its release of "
        f"mlflow-breadcrumbs is older than this one ({mlflow_breadcrumbs.__version__}). Upgrade it "
        "there, or use that release here"
    )


def record(kind: type[Kept], said: Mapping[str, Any], **read: Any) -> Kept:
    """A record out of the JSON of an answer; what a later release adds to it is left out.

    Args:
        kind: a dataclass.
        said: the JSON; lists become tuples.
        read: fields that were read already.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    taken = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in said.items()
        if key in known
    }
    return kind(**taken | read)


def _offer(
    said: Mapping[str, Any], about: Mapping[str, str], rules: policies.Policy | None = None
) -> Offer:
    takes = said.get("requests")
    return Offer(
        rules, said.get("accounts") is True, about, takes if isinstance(takes, dict) else {}
    )


def policy_of(uri: str, alias: str) -> policies.Policy | None:
    """The policy by which the registry's server would give a version an alias; `None` without one.

    Raises:
        RegistryError: the version can't be found, or the server does not answer.
        PolicyError: its policy is of a later release.
    """
    found = for_version(uri, functools.partial(offered, alias=alias))
    return None if found is None else found[1].rules
