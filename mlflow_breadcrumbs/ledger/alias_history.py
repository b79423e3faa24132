"""The events of a registered model read as the moves of its aliases, and where one was at a time.

Pure: events in, moves out. A move of our own happened between its intent and its outcome. Of a
change that was made past this package only an interval is known, from when the alias was last seen
as before until it was seen changed; a webhook tells the moment.
"""

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from mlflow_breadcrumbs.ledger import alias_state, events
from mlflow_breadcrumbs.support import wording

DIRECT, FIRST_SEEN, ORDER = "direct", "first seen", "order"
"""Causes beside those that a move of ours names (`merge`, `promote`, `rollback`, …)."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One alias went from one version to another, or came, or went."""

    name: str
    alias: str
    before: str | None
    """The version's number; `None`: the alias was not set, or nothing is known of it."""
    after: str | None
    """`None`: the alias was removed."""
    cause: str
    """`merge`, `promote`, `rollback`, `recheck`, `override`, `user`: a move of ours. `set`: one of
    ours that names no cause. `direct`: a change made past this package. `first seen`: no change;
    how the alias stood when it was first looked at. `order`: of two moves of ours at once, the one
    that was written first took effect last."""
    earliest: str | None
    """UTC: it did not happen before; `None` where that isn't known."""
    latest: str
    """UTC: it had happened by then."""
    actor: str | None
    """Who did it; `None` for a direct change of which MLflow does not say: only a server with our
    app and accounts knows."""
    noticed_by: str | None
    """Of a direct change: who noticed it."""
    how: str | None
    """Of a direct change: what noticed it, `sync`, `watch`, `webhook`, `server` or `move`."""
    decision: str | None
    """The MLflow run that holds the evidence."""
    policy_digest: str | None
    event: int
    """The sequence of the event that says so."""
    reason: str | None = None
    """Of an override: why."""

    @property
    def is_direct(self) -> bool:
        """Whether it went past the gates."""
        return self.cause == DIRECT

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; without a reason where there is none."""
        found = dataclasses.asdict(self)
        if self.reason is None:
            del found["reason"]
        return found


@dataclasses.dataclass(frozen=True)
class Standing:
    """Which version an alias pointed at, at a time."""

    alias: str
    at: str
    """UTC."""
    version: str | None
    """`None`: none, as far as is known."""
    certain: bool
    """Whether what is known allows no other answer."""
    possible: tuple[str | None, ...]
    """All that it may have been, `version` first; empty where nothing is known of that time."""
    because: str
    """The event that the answer rests on, or why it is uncertain, in words."""
    event: int | None
    """The sequence of the event that the answer rests on."""
    decision: str | None
    policy_digest: str | None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def read(history: Iterable[events.Event], alias: str | None = None) -> list[Change]:
    """The moves of a registered model's aliases, or of one, in the order of the events.

    A move of ours to the version that was there already is none.

    Args:
        history: Of one registered model, in order.
        alias: Only this one's.
    """
    intents: dict[int, events.Event] = {}
    last: dict[str, Change] = {}
    found = []
    for event in history:
        if event.kind not in (alias_state.MOVED, alias_state.OBSERVED):
            continue
        if event.phase == events.INTENT:
            intents[event.sequence] = event
        if event.phase != events.DONE:
            continue
        intent = intents.get(event.intent) if event.intent is not None else None
        move = _move(event, intent, last)
        if move is None or (alias is not None and move.alias != alias):
            continue
        seen = last.get(move.alias)
        if move.how is not None and seen is not None and seen.after == move.after:
            continue  # it was seen before another ledger's event of the move was taken up
        if move.before != move.after or seen is None:
            found.append(move)
            last[move.alias] = move
    return found


def standing(moves: Sequence[Change], alias: str, at: str, seen: str | None) -> Standing:
    """Where an alias was at a time.

    Args:
        moves: In order; those of other aliases are passed over.
        alias: Without `@`.
        at: UTC, as `events.now` writes it.
        seen: When the alias was last known to be where the last move put it.
    """
    own = [move for move in moves if move.alias == alias]
    under_way = [move for move in own if (move.earliest or "") <= at < move.latest]
    past = [move for move in own if move.latest <= at]
    if under_way and under_way[0].cause != FIRST_SEEN:
        return _under_way(alias, at, under_way)
    if not past:
        return _before_all(alias, at, own[0] if own else None)
    move = past[-1]
    if move is own[-1] and (seen is None or at > seen):
        confirmed = wording.moment(max(seen or "", move.latest))
        words = f"{described(move)}; last seen so at {confirmed}, `ledger sync` looks again"
        return _answer(alias, at, (move.after,), words, move, certain=False)
    return _answer(alias, at, (move.after,), described(move), move, certain=True)


def described(move: Change) -> str:
    """A move in words: what, when, by whom."""
    if move.cause == FIRST_SEEN:
        return f"first seen at {wording.moment(move.latest)}, event {move.event}"
    way = f"set to {move.after}" if move.after is not None else "removed"
    if move.is_direct:
        who = f"noticed by {move.how}" if move.actor is None else f"by {move.actor}"
        how = f"directly in MLflow, {who}"
    else:
        why = "" if move.reason is None else f": {move.reason}"
        how = f"by {move.actor} ({move.cause}{why})"
    return f"{way} {how}, {when(move)}, event {move.event}"


def when(move: Change) -> str:
    """The time of a move in words, UTC: a moment, or an interval where no more is known."""
    earliest, latest = wording.moment(move.earliest), wording.moment(move.latest)
    if move.cause == FIRST_SEEN:
        return f"before {latest}"
    if earliest == latest or not move.is_direct:
        return latest
    return f"between {earliest} and {latest}" if move.earliest else f"before {latest}"


def utc(time: datetime.datetime) -> str:
    """A time as events have it; without a zone it counts as UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return aware.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def _move(
    event: events.Event, intent: events.Event | None, last: dict[str, Change]
) -> Change | None:
    """The move that an event tells of; what it does not say comes from its intent."""
    details = {**(intent.details if intent else {}), **event.details}
    said = alias_state.target(details, event.subject)
    if said is None:
        return None
    alias, after = said
    seen = event.kind == alias_state.OBSERVED
    previous = last.get(alias)
    if "before" in details:
        before = None if details["before"] is None else str(details["before"])
    else:
        before = previous.after if previous else None
    changed = details.get("changed")
    return Change(
        name=event.name,
        alias=alias,
        before=before,
        after=after,
        cause=_seen_cause(details) if seen else str(details.get("because") or "set"),
        earliest=changed or details.get("since") if seen else (intent or event).time,
        latest=changed or details.get("until") or details["noticed"] if seen else event.time,
        actor=_seen_actor(event, details) if seen else (intent or event).actor,
        noticed_by=event.actor if seen else None,
        how=details.get("how") if seen else None,
        decision=details.get("decision"),
        policy_digest=details.get("policy_digest"),
        event=event.sequence,
        reason=details.get("reason"),
    )


def _seen_actor(event: events.Event, details: dict[str, Any]) -> str | None:
    """Who made a direct change: the account that a server names which saw it being done."""
    known = details.get(events.VOUCHED) is True and details.get("changed") is not None
    return event.actor if known else None


def _seen_cause(details: dict[str, Any]) -> str:
    if details.get("first"):
        return FIRST_SEEN
    return ORDER if details.get("of") else DIRECT


def _under_way(alias: str, at: str, own: Sequence[Change]) -> Standing:
    """The answer for a time at which one or more moves may have happened already, or not yet."""
    possible = tuple(dict.fromkeys([own[0].before, *(move.after for move in own)]))
    words = "; ".join(described(move) for move in own)
    return _answer(alias, at, possible, words, own[-1], certain=len(possible) == 1)


def _before_all(alias: str, at: str, first: Change | None) -> Standing:
    """The answer for a time before the first thing that is known."""
    if first is None:
        return _answer(alias, at, (), f"the ledger knows of no @{alias}", None, certain=False)
    if first.cause == FIRST_SEEN:
        words = f"nothing is known before @{alias} was first seen at {wording.moment(first.latest)}"
        return _answer(alias, at, (), words, None, certain=False)
    words = f"nothing is known before it was {described(first)}"
    return _answer(alias, at, (first.before,), words, None, certain=False)


def _answer(
    alias: str,
    at: str,
    possible: tuple[str | None, ...],
    because: str,
    move: Change | None,
    *,
    certain: bool,
) -> Standing:
    return Standing(
        alias=alias,
        at=at,
        version=possible[0] if possible else None,
        certain=certain,
        possible=possible,
        because=because,
        event=move.event if move else None,
        decision=move.decision if move else None,
        policy_digest=move.policy_digest if move else None,
    )
