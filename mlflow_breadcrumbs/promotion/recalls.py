"""Versions that turned out to be bad: events of the ledger, bound to the digest of the weights.

What was made from recalled weights is under suspicion, however far it descends from them. So a
recall counts for every copy of the version and for all that descends from it: none of them is
promoted, or gone back to, until the recall is withdrawn.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import mlflow

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, journal, sharing, stores
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.promotion import facts, guards
from mlflow_breadcrumbs.registry import (
    accounts,
    catalog,
    failures,
    notices,
    tag_keys,
    uris,
    versions,
)
from mlflow_breadcrumbs.support import escaping

RECALLED, WITHDRAWN = "recall", "recall_withdrawn"
LONGEST = 1000
"""Characters of a reason."""
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recalled:
    """What `recall` did."""

    uri: str
    weights_digest: str
    reason: str
    withdrawn: bool
    event: int
    affected: tuple[relatives.Affected, ...]
    """All that descends from the version, the nearest first."""
    aliases: tuple[str, ...]
    """That point at the version itself now."""

    @property
    def live(self) -> list[str]:
        """`NAME@ALIAS` of every alias that points at the version or at what descends from it."""
        found = [(self.uri, alias) for alias in self.aliases]
        found += [(entry.uri, alias) for entry in self.affected for alias in entry.aliases]
        named = ((uris.registered(uri), alias) for uri, alias in found)
        return [f"{name[0]}@{alias}" for name, alias in named if name is not None]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        listed = {"affected": [entry.to_dict() for entry in self.affected]}
        return found | listed | {"aliases": list(self.aliases), "live": self.live}


def recall(uri: str, reason: str) -> Recalled:
    """Say that a version's weights are not to be used, and find all that descends from them.

    Saying so twice is saying it once. Where the registry's server guards aliases, the server writes
    it down.

    Args:
        uri: Of a registered version; its files may be gone.
        reason: Why, for the history; 1 to `LONGEST` characters.

    Raises:
        PromotionError: There is no reason, or the version is not registered, or nothing says which
            weights it has.
        RegistryError: The version can't be found.
        LedgerError: The ledger can't be written.
    """
    if not reason.strip() or len(reason) > LONGEST:
        raise errors.PromotionError(
            f"the reason of a recall has {len(reason)} characters; say in 1 to {LONGEST} why "
            "(--reason)"
        )
    if (told := _ask(uri, reason, withdraw=False)) is not None:
        return told
    resolved, digest = _version(uri)
    given = standing(ledger.proven(str(resolved.name), [digest])).get(digest)
    if given is not None and given.uri == resolved.uri:
        return _said(resolved, digest, given.reason, given.event, withdrawn=False)
    event = _note(RECALLED, resolved, digest, escaping.line(reason.strip()))
    _tag(resolved, reason.strip())
    return _said(resolved, digest, reason.strip(), event, withdrawn=False)


def withdraw(
    uri: str, reason: str = "", may_edit: Callable[[str], bool] = lambda name: True
) -> Recalled:
    """Take the recalls of a version's weights back, whoever said them.

    Args:
        uri: Of a registered version with these weights.
        reason: Why, for the history; at most `LONGEST` characters.
        may_edit: Whether a registered model of this name may be edited: those that the recalls were
            said of.

    Raises:
        PromotionError: These weights are not recalled, or not for this user to use again; or the
            reason is too long.
        RegistryError: The version can't be found.
        LedgerError: The ledger can't be written.
    """
    if len(reason) > LONGEST:
        raise errors.PromotionError(
            f"the reason has {len(reason)} characters; say in at most {LONGEST} why (--reason)"
        )
    if (told := _ask(uri, reason, withdraw=True)) is not None:
        return told
    resolved, digest = _version(uri)
    given = _standing(ledger.proven(str(resolved.name), [digest])).get(digest, [])
    if not given:
        raise errors.PromotionError(
            f"the weights of {resolved.uri} are not recalled, so there is nothing to withdraw"
        )
    for entry in given:
        _check_withdrawal(resolved, entry, may_edit)
    event = _note(WITHDRAWN, resolved, digest, escaping.line(reason.strip()))
    _tag(resolved, None)
    for at in {entry.uri for entry in given} - {resolved.uri}:
        try:
            _tag(versions.resolve(at), None)
        except errors.RegistryError as error:  # it may be deleted, or another's
            _logger.warning("%s keeps the tag %s: %s", at, tag_keys.RECALLED, error)
    return _said(resolved, digest, reason.strip(), event, withdrawn=True)


def standing(history: Sequence[events.Event]) -> Mapping[str, facts.Recall]:
    """The first recall of each weights that was not withdrawn, by their digest.

    What a server wrote for somebody whom it had authenticated is taken back only so.

    Args:
        history: Of `ledger.proven`, or of `reading` for pages.
    """
    return {digest: given[0] for digest, given in _standing(history).items() if given}


def _standing(history: Sequence[events.Event]) -> dict[str, list[facts.Recall]]:
    """All recalls that were not withdrawn, oldest first, by the digest of the weights."""
    found: dict[str, list[facts.Recall]] = {}
    for event in history:
        digest = event.details.get("weights_digest")
        if event.phase != events.DONE or not isinstance(digest, str):
            continue
        vouched = event.details.get(events.VOUCHED) is True
        if event.kind == RECALLED:
            reason = str(event.details.get("reason", ""))
            who = (event.actor, event.time, event.sequence, vouched)
            said = facts.Recall(str(event.subject), digest, reason, *who)
            found.setdefault(digest, []).append(said)
        elif event.kind == WITHDRAWN:
            given = found.get(digest, [])
            found[digest] = [entry for entry in given if entry.vouched and not vouched]
    return found


def among(history: Sequence[events.Event], digests: Collection[str]) -> tuple[facts.Recall, ...]:
    """The recalls that stand of some weights, in the order that these have."""
    known = standing(history)
    return tuple(known[digest] for digest in dict.fromkeys(digests) if digest in known)


def counting(history: Sequence[events.Event], digests: Collection[str]) -> tuple[facts.Recall, ...]:
    """The recalls that count against some weights: `among`, and what only the registry says.

    Where this ledger is one of several, the server's may know more; and where nobody else's can be
    seen, a tag counts, of weights that this ledger has heard nothing of.

    Args:
        history: Of `ledger.proven`, about these weights.
        digests: Of the weights.

    Raises:
        RegistryError: The registry can't be read.
    """
    own = among(history, digests)
    if stores.is_served() or not stores.is_private():
        return own
    said = (RECALLED, WITHDRAWN)
    heard = {event.details.get("weights_digest") for event in history if event.kind in said}
    known = {entry.weights_digest for entry in own}
    more = (
        facts.Recall(each.uri, each.weights_digest, each.reason, each.actor, each.time, event=0)
        for each in notices.standing()
        if each.weights_digest in digests
        and each.weights_digest not in known
        and not (each.is_tag and each.weights_digest in heard)
    )
    return (*own, *more)


def ancestry(uri: str) -> tuple[str, ...]:
    """The digests of a version's weights and of all that it was made from, by the registry's tags.

    Raises:
        RegistryError: The registry can't be read.
    """
    found = catalog.ancestry(uri).versions.values()
    return tuple(entry.weights_digest for entry in found if entry.weights_digest)


def _ask(uri: str, reason: str, *, withdraw: bool) -> Recalled | None:
    """What the registry's server did, where it guards aliases; else `None`."""
    found = guards.for_version(uri, guards.for_recalls)
    if found is None:
        return None
    said = found[1].take("recall", {"reason": reason, "withdraw": withdraw})
    affected = tuple(guards.record(relatives.Affected, entry) for entry in said["affected"])
    return guards.record(Recalled, said, affected=affected)


def _check_withdrawal(
    resolved: versions.ResolvedVersion, given: facts.Recall, may_edit: Callable[[str], bool]
) -> None:
    """Raise `PromotionError` where a recall is not for this user to take back."""
    named = uris.registered(given.uri)
    if given.vouched and not accounts.is_vouched():
        raise errors.PromotionError(
            f"the weights of {resolved.uri} were recalled by the account {given.actor}, as "
            f"{given.uri}: withdraw it at the server that knows the accounts"
        )
    if named is None or not may_edit(named[0]):
        raise errors.PromotionError(
            f"the weights of {resolved.uri} were recalled by {given.actor} as a version of another "
            "registered model, which you may not edit: ask who may, or the server's admin"
        )


def _version(uri: str) -> tuple[versions.ResolvedVersion, str]:
    """A version and the digest that its weights were registered with; they may be gone."""
    ledger.check()
    resolved = versions.resolve(uri)
    if resolved.name is None:
        raise errors.PromotionError(
            f"{resolved.uri} is not registered; recall a version, as models:/NAME/1"
        )
    if resolved.recorded_digest is None:
        raise errors.PromotionError(
            f"nothing says which weights {resolved.uri} was registered with (the tag "
            f"{tag_keys.WEIGHTS_DIGEST}), so that no recall can hold for them; register it with "
            "this package"
        )
    sharing.check(resolved.uri, "the recall")
    return resolved, resolved.recorded_digest


def _note(kind: str, resolved: versions.ResolvedVersion, digest: str, reason: str) -> int:
    details = {"weights_digest": digest, "reason": reason}
    name = str(resolved.name)
    return journal.note(kind, name, subject=resolved.uri, details=details).sequence


def _tag(resolved: versions.ResolvedVersion, reason: str | None) -> None:
    """Have MLflow's own pages say it; the history is what counts."""
    client = mlflow.MlflowClient()
    named = (resolved.name, resolved.version)
    with failures.explained(f"{resolved.uri} is recalled, and can't be tagged so"):
        if reason is not None:
            client.set_model_version_tag(*named, tag_keys.RECALLED, reason)
        elif tag_keys.RECALLED in resolved.tags:
            client.delete_model_version_tag(*named, tag_keys.RECALLED)


def _said(
    resolved: versions.ResolvedVersion, digest: str, reason: str, event: int, *, withdrawn: bool
) -> Recalled:
    model = mlflow.MlflowClient().get_registered_model(resolved.name)
    aliases = sorted(alias for alias, at in model.aliases.items() if str(at) == resolved.version)
    affected = relatives.impact(resolved.uri)
    return Recalled(resolved.uri, digest, reason, withdrawn, event, affected, tuple(aliases))
