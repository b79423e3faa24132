"""Promotions, rollbacks, approvals, overrides and recalls as requests, by the pinned policies.

What is known is what the server's registry and ledger have: it measures nothing. Reading, judging
and moving are one step for all of its processes. The alias is moved in the registry's store, past
the guard, and MLflow's webhooks are told as of any other move.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import flask
import pydantic
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.server import handlers
from mlflow.webhooks.delivery import deliver_webhook
from mlflow.webhooks.types import ModelVersionAliasCreatedPayload

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_moves, locks, stores
from mlflow_breadcrumbs.promotion import approvals, overriding, promote, recalls, rollback
from mlflow_breadcrumbs.registry import accounts, aliases, catalog, failures, uris
from mlflow_breadcrumbs.server import (
    asking,
    callers,
    in_force,
    noticing,
    pages,
    pinning,
    recalled,
)
from mlflow_breadcrumbs.support import credentials, json_documents, validation

LONGEST = 100_000
"""Bytes of a request."""

_logger = logging.getLogger(__name__)


def blueprint(known: in_force.InForce, caller: Callable[[], callers.Caller]) -> flask.Blueprint:
    """The requests, for MLflow's Flask app.

    Args:
        known: what is guarded.
        caller: says, inside a request, who asks.
    """
    pins = known.pins
    made = flask.Blueprint("breadcrumbs_requests", __name__)

    @made.get("/guard.json")
    def offer() -> flask.Response:
        who = caller()
        return _answer(lambda: _offer(pins, who) | known.to_dict(), who)

    @made.get("/recalls.json")
    def recalls_known() -> flask.Response:
        who = caller()
        found = {"complete": bool(pins.pins)}
        return _answer(lambda: found | {"recalls": recalled.listed(who.sight)}, who)

    def request(what: str, kind: type[Any], act: Callable[..., dict[str, Any]]) -> None:
        def answer() -> flask.Response:
            who = caller()
            return _answer(functools.partial(_taken, kind, act, pins, who), who)

        made.add_url_rule(f"/{what}", what, answer, methods=["POST"])

    for what, (kind, act) in _REQUESTS.items():
        request(what, kind, act)
    made.after_request(pages.guarded)
    return made


def _offer(pins: pinning.Pins, caller: callers.Caller) -> dict[str, Any]:
    """What the server decides itself, for clients to find out."""
    name, alias = flask.request.args.get("name", ""), flask.request.args.get("alias")
    here = _is_here(name, caller)
    pin = pins.of_alias(name, alias) if here and alias is not None else None
    return {
        "pinned": here and pins.concern(name) if alias is None else pin is not None,
        "policy": None if pin is None else pin.rules.to_yaml(),
        "policy_digest": None if pin is None else pin.rules.digest,
        "accounts": caller.account is not None,
        "recalls": bool(pins.pins),
        "may_edit": here and caller.may_edit(name),
        "notices": noticing.store() is not None,
        "requests": {what: list(kind.model_fields) for what, (kind, _) in _REQUESTS.items()},
    }


def _is_here(name: str, caller: callers.Caller) -> bool:
    """Whether there is such a model for the caller; without accounts nobody need be told."""
    if caller.account is None:
        return True
    return catalog.model(name) is not None and caller.sight.model(name)


def _taken(
    kind: type[Any],
    act: Callable[..., dict[str, Any]],
    pins: pinning.Pins,
    caller: callers.Caller,
) -> dict[str, Any]:
    """Read what is asked for, and do it in the name of who asks."""
    asked = _read(kind)
    if not _is_here(asked.name, caller):
        raise errors.AbsentError(f"{asked.name!r} is not here, or not visible to you")
    with accounts.working_for(caller.asking(asked.user)), stores.serving():
        return act(asked, pins, caller)


def _promote(
    asked: asking.PromotionAsked, pins: pinning.Pins, caller: callers.Caller
) -> dict[str, Any]:
    pin = _pin(asked, pins, caller)
    request = promote.PromotionRequest(
        uris.of_version(asked.name, asked.version),
        asked.alias,
        pin.rules,
        expected=_expected(asked),
        dry_run=asked.dry_run,
    )
    with locks.held(asked.name):
        done = promote.promote(request)
    if done.result == "promoted" and done.before != done.version and not asked.dry_run:
        _tell(asked.name, asked.alias, done.version)
    return done.to_dict()


def _rollback(
    asked: asking.RollbackAsked, pins: pinning.Pins, caller: callers.Caller
) -> dict[str, Any]:
    _pin(asked, pins, caller)
    expected = asked.expected if "expected" in asked.model_fields_set else alias_moves.ANYWHERE
    with locks.held(asked.name):
        before = aliases.version_at(asked.name, asked.alias)
        done = rollback.rollback(asked.name, asked.alias, asked.to, expected)
    if done.after not in (None, before):
        _tell(asked.name, asked.alias, done.after)
    return done.to_dict()


def _approve(
    asked: asking.ApprovalAsked, pins: pinning.Pins, caller: callers.Caller
) -> dict[str, Any]:
    if not pins.concern(asked.name):
        raise errors.AbsentError(f"this server guards no alias of {asked.name!r}")
    act = approvals.withdraw if asked.withdraw else approvals.approve
    with locks.held(asked.name):
        return act(uris.of_version(asked.name, asked.version), asked.comment).to_dict()


def _override(
    asked: asking.OverrideAsked, pins: pinning.Pins, caller: callers.Caller
) -> dict[str, Any]:
    _pin(asked, pins, caller)
    alias = f"{asked.name}@{asked.alias}"
    if caller.account is None:
        raise _ForbiddenError(
            403,
            f"the policy of {alias} can't be overridden: this server has no accounts, so that it "
            "knows nobody who may",
        )
    if caller.account not in pins.overrides:
        raise _ForbiddenError(
            403,
            f"the policy of {alias} can't be overridden by {caller.account}: the server's "
            "configuration doesn't name this account under overrides",
        )
    uri = uris.of_version(asked.name, asked.version)
    emergency = overriding.Emergency(uri, asked.alias, asked.reason, _expected(asked))
    with locks.held(asked.name):
        done = overriding.override(emergency)
    if done.before != done.after:
        _tell(done.name, done.alias, done.after)
    return done.to_dict()


def _recall(
    asked: asking.RecallAsked, pins: pinning.Pins, caller: callers.Caller
) -> dict[str, Any]:
    if not pins.pins:
        raise errors.AbsentError("this server guards no alias, and leaves recalls to the command")
    _editable(asked.name, f"to recall {asked.name!r}", caller)
    uri = uris.of_version(asked.name, asked.version)
    with locks.held(asked.name):
        if asked.withdraw:
            done = recalls.withdraw(uri, asked.reason, caller.may_edit)
        else:
            done = recalls.recall(uri, asked.reason)
    return _seen(done, caller).to_dict()


def _seen(done: recalls.Recalled, caller: callers.Caller) -> recalls.Recalled:
    """A recall without the versions that the caller may not read."""
    may = caller.sight.version
    seen = tuple(
        dataclasses.replace(entry, via=tuple(uri for uri in entry.via if may(uri)))
        for entry in done.affected
        if may(entry.uri)
    )
    return dataclasses.replace(done, affected=seen)


def _expected(asked: asking.PromotionAsked | asking.OverrideAsked) -> str | None:
    """Where the alias must be: as asked, else where it is now, before anybody is waited for."""
    if "expected" in asked.model_fields_set:
        return asked.expected
    return aliases.version_at(asked.name, asked.alias)


def _pin(
    asked: asking.PromotionAsked | asking.RollbackAsked | asking.OverrideAsked,
    pins: pinning.Pins,
    caller: callers.Caller,
) -> pinning.Pin:
    """What an alias is pinned by, for somebody who may move it."""
    pin = pins.of_alias(asked.name, asked.alias)
    if pin is None:
        raise errors.AbsentError(f"this server does not guard {asked.name}@{asked.alias}")
    _editable(asked.name, f"to move {asked.name}@{asked.alias}", caller)
    return pin


def _editable(name: str, what: str, caller: callers.Caller) -> None:
    """Have somebody who may edit the model, as MLflow asks for to set its aliases."""
    if not caller.may_edit(name):
        raise _ForbiddenError(403, f"{what} needs the permission EDIT of the model")


def _tell(name: str, alias: str, version: str) -> None:
    """Tell MLflow's webhooks of a move, as MLflow does of those by its own API."""
    deliver_webhook(
        event=WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED),
        payload=ModelVersionAliasCreatedPayload(name=name, alias=alias, version=version),
        store=handlers._get_model_registry_store(),
    )


class _ForbiddenError(Exception):
    """A request is refused before anything is judged; its status, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _read(kind: type[Any]) -> Any:
    """The body of the request."""
    if forged := callers.forgery():
        raise _ForbiddenError(*forged)
    if (flask.request.content_length or 0) > LONGEST:
        raise _ForbiddenError(413, f"a request has at most {LONGEST:,} bytes")
    content = json_documents.parse(flask.request.get_data(), "the request", errors.GuardError)
    try:
        return kind.model_validate(content)
    except pydantic.ValidationError as error:
        faults = "; ".join(_fault(fault, kind) for fault in error.errors(include_url=False))
        raise errors.GuardError(f"the request is refused: {faults}") from error


def _fault(fault: Any, kind: type[Any]) -> str:
    """What is wrong with a field of a request."""
    field = ".".join(map(str, fault["loc"])) or "it"
    if fault["type"] == "missing":
        return f"{field} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{field} is no field that this release knows, of {', '.join(kind.model_fields)}"
    return f"{field} must be {validation.expected(fault)}"


def _answer(act: Callable[[], dict[str, Any]], caller: callers.Caller) -> flask.Response:
    """What came of it, or why nothing did, with the kind of the error.

    Neither names what the caller may not read.
    """
    try:
        with failures.explained("the server can't do this"):
            return pages.as_json(caller.sight.told(act()))
    except _ForbiddenError as error:
        status, kind, text = error.status, errors.RegistryError.__name__, str(error)
    except errors.BreadcrumbsError as error:
        status = next(
            (status for known, status in pages.STATUS.items() if isinstance(error, known)), 400
        )
        kind, text = type(error).__name__, str(error)
        if status == 503:
            _logger.warning("%s: %s", flask.request.path, credentials.hidden(text))
    response = pages.as_json({"error": caller.sight.told(text), "kind": kind})
    response.status_code = status
    return response


_REQUESTS: dict[str, tuple[type[Any], Callable[..., dict[str, Any]]]] = {
    "promote": (asking.PromotionAsked, _promote),
    "rollback": (asking.RollbackAsked, _rollback),
    "approve": (asking.ApprovalAsked, _approve),
    "override": (asking.OverrideAsked, _override),
    "recall": (asking.RecallAsked, _recall),
}
"""By the last part of the address: what it takes, and what does it."""
