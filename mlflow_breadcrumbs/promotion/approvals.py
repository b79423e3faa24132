"""Who approved which weights: events of the ledger, bound to the digest of the bytes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_USER

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, journal, sharing, witnessed
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.promotion import facts, guards
from mlflow_breadcrumbs.registry import accounts, versions
from mlflow_breadcrumbs.support import people

APPROVED, WITHDRAWN = "approval", "approval_withdrawn"
MADE = ("import", "finetune", "merge")
"""The kinds of events whose actor made a version."""


@dataclasses.dataclass(frozen=True)
class Approved:
    """What `approve` did."""

    uri: str
    weights_digest: str
    person: str
    withdrawn: bool
    event: int
    """Of the ledger."""
    standing: tuple[facts.Approval, ...]
    """Every approval of these weights that stands now."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def approve(uri: str, comment: str = "") -> Approved:
    """Say that a version may be promoted, for as long as its weights are these.

    Saying so twice is saying it once. Where the registry's server guards an alias of the model, the
    server writes it down.

    Raises:
        PromotionError: this user made the weights.
        RegistryError: the version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        LedgerError: the ledger can't be written.
    """
    if (told := _ask(uri, comment, withdraw=False)) is not None:
        return told
    ledger.check()
    resolved, digest, name = _version(uri)
    sharing.check(resolved.uri, "the approval")
    person = people.normal(accounts.user())
    history = ledger.proven(name, [digest])
    if person in makers(resolved, digest, history):
        raise errors.PromotionError(
            f"{person} made the weights of {resolved.uri}, and can't approve them: somebody else "
            "must"
        )
    vouched = accounts.is_vouched()
    before = standing(name, digest, history, vouched=vouched)
    given = [entry for entry in before if entry.person == person]
    event = given[0].event if given else _note(APPROVED, resolved, digest, comment)
    now = standing(name, digest, ledger.proven(name), vouched=vouched)
    return Approved(resolved.uri, digest, person, False, event, now)


def withdraw(uri: str, comment: str = "") -> Approved:
    """Take one's approval of a version's weights back.

    Raises:
        PromotionError: this user has no approval that stands.
        RegistryError: the version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        LedgerError: the ledger can't be written.
    """
    if (told := _ask(uri, comment, withdraw=True)) is not None:
        return told
    ledger.check()
    resolved, digest, name = _version(uri)
    sharing.check(resolved.uri, "the approval")
    person = people.normal(accounts.user())
    vouched = accounts.is_vouched()
    given = standing(name, digest, ledger.proven(name), vouched=vouched)
    if person not in {entry.person for entry in given}:
        others = ", ".join(entry.person for entry in given) or "nobody"
        raise errors.PromotionError(
            f"{person} has not approved the weights of {resolved.uri}, so there is nothing to "
            f"withdraw; they are approved by {others}"
        )
    event = _note(WITHDRAWN, resolved, digest, comment)
    now = standing(name, digest, ledger.proven(name), vouched=vouched)
    return Approved(resolved.uri, digest, person, True, event, now)


def standing(
    name: str, weights_digest: str, history: Sequence[events.Event], *, vouched: bool = False
) -> tuple[facts.Approval, ...]:
    """The approvals of these weights that were not withdrawn, oldest first.

    Args:
        name: of the registered model; an approval under another does not count.
        weights_digest: of the weights.
        history: of `ledger.proven`.
        vouched: only what a server has written for people whom it had authenticated.
    """
    found: dict[str, facts.Approval] = {}
    for event in history:
        about = (event.name, event.details.get("weights_digest"), event.phase)
        if about != (name, weights_digest, events.DONE):
            continue
        known = event.details.get(events.VOUCHED) is True
        if vouched and not known:
            continue
        person = facts.person_of(event.actor)
        if event.kind == APPROVED:
            said = str(event.details.get("comment", ""))
            approval = facts.Approval(person, event.time, said, event.sequence, known)
            found.setdefault(person, approval)
        elif event.kind == WITHDRAWN:
            found.pop(person, None)
    return tuple(found.values())


def makers(
    resolved: versions.ResolvedVersion, weights_digest: str, history: Sequence[events.Event]
) -> tuple[str, ...]:
    """Who made these weights: by the ledger's events, under any name, else by the version's run.

    Who registered them counts as well, where a server with accounts saw it, whatever name the
    merge recorded.

    Args:
        resolved: the version.
        weights_digest: of its weights.
        history: of `ledger.proven` with this digest; who began a job made what came of it.
    """
    found = {
        facts.person_of(event.actor)
        for event in history
        if event.kind in MADE and event.details.get("weights_digest") == weights_digest
    }
    if not found and (run := contents.run_of(resolved)) is not None:
        users = (run.data.tags.get(MLFLOW_USER), run.info.user_id)
        found = {people.normal(user) for user in users if user}
    found |= set(map(facts.person_of, witnessed.registrants(history, resolved.uri, weights_digest)))
    return tuple(sorted(found))


def _ask(uri: str, comment: str, *, withdraw: bool) -> Approved | None:
    """What the registry's server did, where it guards an alias of the model; else `None`."""
    found = guards.for_version(uri, guards.offered)
    if found is None:
        return None
    said = found[1].take("approve", {"comment": comment, "withdraw": withdraw})
    given = tuple(guards.record(facts.Approval, each) for each in said["standing"])
    return guards.record(Approved, said, standing=given)


def _version(uri: str) -> tuple[versions.ResolvedVersion, str, str]:
    """A version, the digest of its bytes as they are, and its name."""
    resolved = versions.resolve(uri)
    if resolved.name is None:
        raise errors.PromotionError(
            f"{resolved.uri} is not registered; approve a version, as models:/NAME/1"
        )
    digest = contents.digest_of(resolved)
    versions.check_digest(resolved, digest)
    return resolved, digest, resolved.name


def _note(kind: str, resolved: versions.ResolvedVersion, digest: str, comment: str) -> int:
    details = {"weights_digest": digest, "comment": comment}
    name = resolved.name or ""
    return journal.note(kind, name, subject=resolved.uri, details=details).sequence
