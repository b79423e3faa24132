"""Versions that turned out to be bad: events of the ledger, bound to the digest of the weights.

What was made from recalled weights is under suspicion, however far it descends from them. So a
recall counts for every copy of the version and for all that descends from it: none of them is
promoted, or gone back to, until the recall is withdrawn.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import mlflow

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, journal, sharing
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.promotion import facts
from mlflow_breadcrumbs.registry import catalog, failures, tag_keys, uris, versions
from mlflow_breadcrumbs.support import escaping

RECALLED, WITHDRAWN = "recall", "recall_withdrawn"
LONGEST = 1000
"""Characters of a reason."""


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

    Saying so twice is saying it once.

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
    resolved, digest = _version(uri)
    given = standing(ledger.proven(str(resolved.name), [digest])).get(digest)
    if given is not None and given.uri == resolved.uri:
        return _said(resolved, digest, given.reason, given.event, withdrawn=False)
    event = _note(RECALLED, resolved, digest, escaping.line(reason.strip()))
    _tag(resolved, reason.strip())
    return _said(resolved, digest, reason.strip(), event, withdrawn=False)


def withdraw(uri: str, reason: str = "") -> Recalled:
    """Take the recall of a version's weights back, whoever said it.

    Raises:
        PromotionError: These weights are not recalled.
        RegistryError: The version can't be found.
        LedgerError: The ledger can't be written.
    """
    resolved, digest = _version(uri)
    given = standing(ledger.proven(str(resolved.name), [digest])).get(digest)
    if given is None:
        raise errors.PromotionError(
            f"the weights of {resolved.uri} are not recalled, so there is nothing to withdraw"
        )
    event = _note(WITHDRAWN, resolved, digest, escaping.line(reason.strip()))
    for at in dict.fromkeys((resolved.uri, given.uri)):
        _tag(versions.resolve(at) if at != resolved.uri else resolved, None)
    return _said(resolved, digest, reason.strip(), event, withdrawn=True)


def standing(history: Sequence[events.Event]) -> Mapping[str, facts.Recall]:
    """The recalls that were not withdrawn, by the digest of the weights.

    Args:
        history: Of `ledger.proven`, or of `reading` for pages.
    """
    found: dict[str, facts.Recall] = {}
    for event in history:
        digest = event.details.get("weights_digest")
        if event.phase != events.DONE or not isinstance(digest, str):
            continue
        if event.kind == RECALLED:
            reason = str(event.details.get("reason", ""))
            said = facts.Recall(
                str(event.subject), digest, reason, event.actor, event.time, event.sequence
            )
            found.setdefault(digest, said)
        elif event.kind == WITHDRAWN:
            found.pop(digest, None)
    return found


def among(history: Sequence[events.Event], digests: Collection[str]) -> tuple[facts.Recall, ...]:
    """The recalls that stand of some weights, in the order that these have."""
    known = standing(history)
    return tuple(known[digest] for digest in dict.fromkeys(digests) if digest in known)


def ancestry(uri: str) -> tuple[str, ...]:
    """The digests of a version's weights and of all that it was made from, by the registry's tags.

    Raises:
        RegistryError: The registry can't be read.
    """
    found = catalog.ancestry(uri).versions.values()
    return tuple(entry.weights_digest for entry in found if entry.weights_digest)


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
