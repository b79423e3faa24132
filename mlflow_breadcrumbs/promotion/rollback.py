"""Back to the last version that had an alias, in one step and on nothing but its bytes.

No evaluation is looked at, and no run: a rollback must work when these are gone. The version must
exist, and its weights must be those that were registered and, where the ledger knows, promoted.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_moves, events, settling
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.promotion import approvals, guards, predecessors, recalls
from mlflow_breadcrumbs.registry import aliases, uris, versions


@dataclasses.dataclass(frozen=True)
class Rollback:
    """What came of it."""

    name: str
    alias: str
    before: str | None
    """The version that had the alias."""
    after: str | None
    """The version that has it now; `None` where the alias was not moved."""
    skipped: tuple[str, ...]
    """Versions that would have been next, and why each is not fit."""
    sentence: str

    @property
    def moved(self) -> bool:
        """Whether the alias was moved."""
        return self.after is not None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"moved": self.moved}


def rollback(
    name: str,
    alias: str,
    to: str | None = None,
    expected: str | alias_moves.Anywhere | None = alias_moves.ANYWHERE,
) -> Rollback:
    """Move an alias back; where the registry's server guards it, the server does.

    Asked for again with what was expected, it goes back no further: it is done already.

    Args:
        name: the registered model.
        alias: of it.
        to: a version that had the alias before; the last one that still verifies when left out.
        expected: the version that must have the alias now; wherever it is when left out.

    Raises:
        PromotionError: `to` never had the alias, or has it.
        RegistryError: the registry can't be read, or refused.
        LedgerError: the ledger can't be used, or its chain does not hold; nothing was moved.
    """
    aliases.check_alias(alias)
    offer = guards.offered(name, alias)
    if offer is not None:
        return _ask(offer, to, expected)
    ledger.proven(name)  # what a chain says that does not hold is no reason to move anything
    stopped = _stopped(name, alias)
    if stopped is not None and to in (None, stopped.after):
        return stopped
    current = aliases.version_at(name, alias)
    if not isinstance(expected, alias_moves.Anywhere) and current != expected:
        return _elsewhere(name, alias, current, expected, to)
    candidates = _candidates(name, alias, current, to)
    if not candidates:
        moves = predecessors.moves(name, alias)
        if moves and (moves[0].before, moves[0].after) == (None, current):
            sentence = (
                f"{name}@{alias} stays at version {current}: it is the first that was {alias}, so "
                "there is nothing earlier to go back to"
            )
            return Rollback(name, alias, current, None, (), sentence)
        sentence = (
            f"nothing says which version of {name!r} was {alias} before {_shown(current)}: the "
            "ledger has no earlier move, and no version is tagged as promoted. Check --ledger-uri, "
            "or use `mlflow-breadcrumbs promote`"
        )
        return Rollback(name, alias, current, None, (), sentence)
    skipped: list[str] = []
    for version in candidates:
        fault = _fault(name, version)
        if fault is None:
            return _move(name, alias, current, version, tuple(skipped))
        skipped.append(fault)
    return Rollback(
        name,
        alias,
        current,
        None,
        tuple(skipped),
        f"{name}@{alias} stays at {_shown(current)}: no earlier version is fit to go back to",
    )


def _ask(
    offer: guards.Offer, to: str | None, expected: str | alias_moves.Anywhere | None
) -> Rollback:
    """Have the server go back, from where the alias is now, so that it can be asked again."""
    name, alias = offer.about["name"], offer.about["alias"]
    fields: dict[str, Any] = {"to": to}
    if offer.knows("rollback", "expected"):
        if isinstance(expected, alias_moves.Anywhere):
            expected = aliases.version_at(name, alias)
        fields["expected"] = expected
    elif not isinstance(expected, alias_moves.Anywhere):
        raise guards.lacking("rollback with `expected`")
    try:
        return guards.record(Rollback, offer.take("rollback", fields))
    except errors.UnreachableError as error:
        if "expected" not in fields:
            raise
        raise errors.UnreachableError(
            f"{error}. It may have gone back: with `--expect-current {expected or 'none'}` it goes "
            "no further than that"
        ) from error


def _elsewhere(
    name: str, alias: str, current: str | None, expected: str | None, to: str | None
) -> Rollback:
    """What to say of an alias that is not where it is expected; it may have gone back already."""
    asked = current is not None and to in (None, current)
    if asked and predecessors.was_last(name, alias, expected, current, "rollback"):
        sentence = f"{name}@{alias} is back at {_shown(current)}, from {_shown(expected)}, already"
        return Rollback(name, alias, expected, current, (), sentence)
    sentence = (
        f"not rolled back: {name}@{alias} is at {_shown(current)}, and was expected at "
        f"{_shown(expected)}"
    )
    return Rollback(name, alias, current, None, (), sentence)


def _stopped(name: str, alias: str) -> Rollback | None:
    """A rollback that was stopped after it had moved the alias, so that none is due; if there is.

    It is the one whose outcome is found out now. Without that, the same call again would go back
    one version too far.
    """
    known = ledger.head().sequence
    settling.settle()
    for event in ledger.history(name):
        said = event.details
        if (
            event.sequence > known
            and events.FROM_LEDGER not in said
            and (event.kind, event.phase, said.get("alias")) == ("rollback", events.DONE, alias)
            and aliases.version_at(name, alias) == said.get("after")
        ):
            before, after = said.get("before"), str(said["after"])
            if before is not None:
                predecessors.unmark(name, alias, before)
            sentence = (
                f"{name}@{alias} is back at version {after}, from {_shown(before)}: a rollback "
                "that was stopped had moved it already"
            )
            return Rollback(name, alias, before, after, (), sentence)
    return None


def _candidates(name: str, alias: str, current: str | None, to: str | None) -> list[str]:
    """The versions to go back to, the one to try first at the front."""
    if to is not None and to == current:
        raise errors.PromotionError(f"{name}@{alias} is at version {to} already")
    found = predecessors.earlier(name, alias, current)
    if to is not None:
        had = {move.after for move in predecessors.moves(name, alias)} | set(found)
        if to not in had:
            listed = ", ".join(found) or "none that is known"
            raise errors.PromotionError(
                f"version {to} of {name!r} never was {alias}, so that there is no going back to "
                f"it (earlier ones: {listed}); use `mlflow-breadcrumbs promote`"
            )
        return [to]
    return found


def _fault(name: str, version: str) -> str | None:
    """Why a version is not fit to go back to; `None` if it is."""
    uri = uris.of_version(name, version)
    try:
        resolved = versions.resolve(uri)
        found = contents.digest_of(resolved)
    except errors.UnreachableError:
        raise
    except errors.BreadcrumbsError as error:
        return f"{uri} is skipped: {error}"
    recorded = [digest for digest in (resolved.recorded_digest, *_digests(name, uri)) if digest]
    if not recorded:
        return f"{uri} is skipped: nothing says which weights it was registered with"
    other = next((digest for digest in recorded if digest != found), None)
    if other is not None:
        return f"{uri} is skipped: its weights are {found}, and were {other} when it was registered"
    made_from = (found, *recalls.ancestry(uri))
    for entry in recalls.counting(ledger.proven(name, made_from), made_from):
        return f"{uri} is skipped: {entry.uri} was recalled by {entry.actor}: {entry.reason}"
    return None


def _digests(name: str, uri: str) -> Iterator[str | None]:
    """The weights that a version was made and promoted with, by the ledger's events."""
    for event in ledger.history(name):
        promoted = event.kind == "promotion" and event.details.get("verdict") == "promoted"
        if event.subject == uri and (promoted or event.kind in approvals.MADE):
            yield event.details.get("weights_digest")


def _move(
    name: str, alias: str, current: str | None, version: str, skipped: tuple[str, ...]
) -> Rollback:
    details = {"alias": alias, "before": current, "after": version}
    uri = uris.of_version(name, version)
    with ledger.recording("rollback", name, subject=uri, details=details) as job:
        job.add(**details, skipped=list(skipped), verdict="rolled_back")
        try:
            with job.deciding():
                ledger.move(
                    name,
                    alias,
                    version,
                    because="rollback",
                    expected=current,
                    details={"cause": job.intent},
                )
        except errors.RaceError as error:
            job.add(after=None, verdict="lost")
            return Rollback(name, alias, current, None, skipped, f"not rolled back: {error}")
    if current is not None:
        predecessors.unmark(name, alias, current)
    sentence = f"{name}@{alias} is back at version {version}, from {_shown(current)}"
    return Rollback(name, alias, current, version, skipped, sentence)


def _shown(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"
