"""Who approved which weights: events of the ledger, bound to the digest of the bytes."""

import dataclasses
from typing import Any

import sqlalchemy as sql
from mlflow.utils.mlflow_tags import MLFLOW_USER

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, journal, schema, stores
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.promotion import facts
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import processes

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

    Saying so twice is saying it once.

    Raises:
        PromotionError: this user made the weights.
        RegistryError: the version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        LedgerError: the ledger can't be written.
    """
    resolved, digest, name = _version(uri)
    person = processes.user()
    made_by = makers(resolved, digest)
    if person in made_by:
        raise errors.PromotionError(
            f"{person} made the weights of {resolved.uri}, and can't approve them: somebody else "
            "must"
        )
    given = [entry for entry in standing(name, digest) if entry.person == person]
    event = given[0].event if given else _note(APPROVED, resolved, digest, comment)
    return Approved(resolved.uri, digest, person, False, event, standing(name, digest))


def withdraw(uri: str, comment: str = "") -> Approved:
    """Take one's approval of a version's weights back.

    Raises:
        PromotionError: this user has no approval that stands.
        RegistryError: the version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        LedgerError: the ledger can't be written.
    """
    resolved, digest, name = _version(uri)
    person = processes.user()
    given = standing(name, digest)
    if person not in {entry.person for entry in given}:
        people = ", ".join(entry.person for entry in given) or "nobody"
        raise errors.PromotionError(
            f"{person} has not approved the weights of {resolved.uri}, so there is nothing to "
            f"withdraw; they are approved by {people}"
        )
    event = _note(WITHDRAWN, resolved, digest, comment)
    return Approved(resolved.uri, digest, person, True, event, standing(name, digest))


def standing(name: str, weights_digest: str) -> tuple[facts.Approval, ...]:
    """The approvals of these weights, under this name, that were not withdrawn, oldest first."""
    found: dict[str, facts.Approval] = {}
    for event in ledger.history(name):
        if event.details.get("weights_digest") != weights_digest or event.phase != events.DONE:
            continue
        person = facts.person_of(event.actor)
        if event.kind == APPROVED:
            said = str(event.details.get("comment", ""))
            found.setdefault(person, facts.Approval(person, event.time, said, event.sequence))
        elif event.kind == WITHDRAWN:
            found.pop(person, None)
    return tuple(found.values())


def makers(resolved: versions.ResolvedVersion, weights_digest: str) -> tuple[str, ...]:
    """Who made these weights: by the ledger's events, under any name, else by the version's run."""
    # The digest is searched in the text, since the same weights may have another name.
    holds = schema.EventRow.body.contains(weights_digest)
    with stores.opened() as opened, opened.reading() as connection:
        bodies = connection.scalars(sql.select(schema.EventRow.body).where(holds)).all()
    found = {
        facts.person_of(event.actor)
        for event in map(events.Event.parse, bodies)
        if event.kind in MADE and event.details.get("weights_digest") == weights_digest
    }
    if not found and (run := contents.run_of(resolved)) is not None:
        found = {user for user in (run.data.tags.get(MLFLOW_USER), run.info.user_id) if user}
    return tuple(sorted(found))


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
