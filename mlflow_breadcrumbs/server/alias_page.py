"""The page of a model's aliases over time: who moved what, on what evidence, what was live when."""

import dataclasses
import datetime
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_history, events
from mlflow_breadcrumbs.registry import catalog
from mlflow_breadcrumbs.server import model_page, past, visibility
from mlflow_breadcrumbs.support import wording


@dataclasses.dataclass(frozen=True)
class ShownMove:
    """A move of an alias."""

    alias: str
    before: str | None
    after: str | None
    """The version's number; `None`: the alias was removed."""
    when: str
    """In words, UTC: a moment, or between which two it was."""
    cause: str
    actor: str | None
    direct: bool
    """Whether it went past the gates."""
    decision: str | None
    """The MLflow run that holds the evidence."""
    policy_digest: str | None
    reason: str | None
    """Why it went past its policy, by somebody who may."""


@dataclasses.dataclass(frozen=True)
class AliasPage:
    """What the page says."""

    name: str
    aliases: dict[str, str]
    """The version's number by alias, now."""
    unnoticed: tuple[str, ...]
    """Aliases that were moved, and no event says so yet."""
    moves: tuple[ShownMove, ...]
    """The newest first."""
    at: str | None
    """The time that was asked about, UTC."""
    standings: tuple[dict[str, Any], ...]
    """As in `alias_history.Standing`: where each alias was then."""
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def gather(name: str, at: str | None, sight: visibility.Sight) -> AliasPage:
    """Gather the page.

    Args:
        name: Of the registered model.
        at: A time, ISO 8601, UTC where it has no zone; `None`: none is asked about.
        sight: Of the one who asks.

    Raises:
        AbsentError: There is no such model, or it may not be seen.
        LedgerError: The time can't be read, or has not come yet.
    """
    time = None if at is None else _time(at)
    model = model_page.find(name, sight)
    tags = ((entry.version.uri, tags) for entry, tags in catalog.of_model(name))
    known = past.of_model(name, tags)
    moves = known.history.moves()
    unnoticed = known.unnoticed(model.aliases) if known.fault is None else {}
    aliases = sorted({move.alias for move in moves})
    return AliasPage(
        name=name,
        aliases=dict(model.aliases),
        unnoticed=tuple(sorted(unnoticed)),
        moves=tuple(map(_shown, reversed(moves))),
        at=None if time is None else wording.moment(time),
        standings=()
        if time is None
        else tuple(
            alias_history.standing(
                moves,
                alias,
                time,
                # What the registry says at this moment was seen at this moment.
                known.history.looked.get(alias) if alias in unnoticed else events.now(),
            ).to_dict()
            for alias in aliases
        ),
        faults=() if known.fault is None else (known.fault,),
    )


def _time(text: str) -> str:
    try:
        time = alias_history.utc(datetime.datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError) as error:
        raise errors.LedgerError(
            f"{text!r} is not a time; write 2026-03-03, or 2026-03-03T14:00 (UTC)"
        ) from error
    if time > events.now():
        raise errors.LedgerError(f"{wording.moment(time)} has not come yet; choose a time past")
    return time


def _shown(move: alias_history.Change) -> ShownMove:
    return ShownMove(
        alias=move.alias,
        before=move.before,
        after=move.after,
        when=alias_history.when(move),
        cause=move.cause,
        actor=move.actor,
        direct=move.is_direct,
        decision=move.decision,
        policy_digest=move.policy_digest,
        reason=move.reason,
    )
