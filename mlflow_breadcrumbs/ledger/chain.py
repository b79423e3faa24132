"""Does the chain of events still hold, and does it hold what was kept of it elsewhere?"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events, schema
from mlflow_breadcrumbs.support import canonical


@dataclasses.dataclass(frozen=True)
class ChainVerdict:
    """What `ledger verify` found."""

    head: events.ChainHead
    """The last event that is stored."""
    problem: str | None
    """The first thing that is wrong, naming the event; `None` while the chain holds."""
    clock: tuple[int, ...]
    """Events whose time is before their predecessor's: a clock was set back. The order stands."""
    heads: int = 0
    """How many heads kept elsewhere were held against the chain."""
    foreign: int = 0
    """How many were of other ledgers, so that nothing can be said about them here."""

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "holds": self.holds,
            "events": self.head.sequence,
            "head": str(self.head),
            "ledger": self.head.ledger,
            "problem": self.problem,
            "clock_set_back_at": list(self.clock),
            "heads_checked": self.heads,
            "heads_of_other_ledgers": self.foreign,
        }


def verify(
    connection: sql.Connection,
    kept: Mapping[str, str] | None = None,
    visit: Callable[[events.Event], None] | None = None,
) -> ChainVerdict:
    """Walk the whole chain.

    Args:
        connection: A transaction of `Store.reading`.
        kept: Heads that were kept elsewhere, by where: each must be in the chain.
        visit: Is given each event that follows the last, in order.
    """
    ledger = connection.scalars(sql.select(schema.LedgerRow.id)).one()
    last = events.ChainHead(0, events.genesis(ledger), ledger)
    ours, foreign, damaged = _sorted_out(kept or {}, ledger)
    wanted = {head.sequence for _, head in ours}
    hashes = {0: last.hash}
    clock: list[int] = []
    before = ""
    problem: str | None = None
    for row in events.rows(connection):
        event, problem = _read(row, last)
        if event is None:
            break
        if visit is not None:
            visit(event)
        if event.time < before:
            clock.append(row.sequence)
        before = event.time
        last = events.ChainHead(row.sequence, row.hash, ledger)
        if last.sequence in wanted:
            hashes[last.sequence] = last.hash
    return ChainVerdict(
        head=events.head(connection),
        problem=problem or _held_against(ours, hashes, last) or damaged,
        clock=tuple(clock),
        heads=len(ours),
        foreign=foreign,
    )


def held(connection: sql.Connection, kept: Mapping[str, str]) -> ChainVerdict:
    """Hold kept heads against the stored hashes alone, without walking the chain."""
    last = events.head(connection)
    ours, foreign, damaged = _sorted_out(kept, last.ledger)
    wanted = [head.sequence for _, head in ours]
    found = connection.execute(
        sql.select(schema.EventRow.sequence, schema.EventRow.hash).where(
            schema.EventRow.sequence.in_(wanted)
        )
    )
    hashes = {0: events.genesis(last.ledger)} | {row.sequence: row.hash for row in found}
    problem = _held_against(ours, hashes, last) or damaged
    return ChainVerdict(last, problem, (), len(ours), foreign)


def _sorted_out(
    kept: Mapping[str, str], ledger: str
) -> tuple[list[tuple[str, events.ChainHead]], int, str | None]:
    """The heads of this ledger by sequence, how many are another's, and what can't be read."""
    ours: list[tuple[str, events.ChainHead]] = []
    foreign, damaged = 0, None
    for where, text in kept.items():
        try:
            head = events.ChainHead.parse(text)
        except errors.LedgerError:
            damaged = f"{where} carries {text!r}, which is no head of a ledger"
            continue
        if head.ledger in ("", ledger):
            ours.append((where, head))
        else:
            foreign += 1
    return sorted(ours, key=lambda pair: pair[1].sequence), foreign, damaged


def _read(row: Any, last: events.ChainHead) -> tuple[events.Event | None, str | None]:
    """A stored event that follows the last; or what is wrong with it."""
    expected = last.sequence + 1
    if row.sequence != expected:
        return None, (
            f"event {expected} is missing: event {row.sequence} comes after event {last.sequence}"
        )
    try:
        content = json.loads(row.body)
        event = events.Event(**content)
        found = canonical.sha256(row.body.encode())
        whole = isinstance(event.details, dict) and isinstance(event.time, str)
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        return None, f"event {expected} was changed: its content can't be read"
    problem = _problem(row, event, found, last)
    return (event, None) if problem is None else (None, problem)


def _problem(row: Any, event: events.Event, found: str, last: events.ChainHead) -> str | None:
    """What is wrong with a stored event, given the event before it and the hash of its content."""
    expected = last.sequence + 1
    if event.sequence != expected:
        return (
            f"event {expected} was moved: what is stored there says that it is event "
            f"{event.sequence}"
        )
    if found != row.hash:
        return f"event {expected} was changed: its hash is {row.hash}, its content's is {found}"
    if (row.previous, row.name, row.subject) != (event.previous, event.name, event.subject):
        return f"event {expected} was changed: its columns differ from its content"
    if event.kind == events.FOREIGN and not _is_whole(event):
        return f"event {expected} was changed: the event of another ledger in it has another hash"
    if event.previous != last.hash:
        return (
            f"event {last.sequence} was changed, with a new hash: event {expected} follows an "
            f"event {last.sequence} with the hash {event.previous}"
        )
    return None


def _is_whole(event: events.Event) -> bool:
    """Whether what was taken up from another ledger is what that ledger wrote."""
    try:
        place = events.ChainHead.parse(event.details[events.FROM_LEDGER])
        events.counted(event)
        return canonical.digest(event.details["event"]) == place.hash
    except (errors.LedgerError, LookupError, TypeError, ValueError):
        return False


def _held_against(
    kept: Iterable[tuple[str, events.ChainHead]], hashes: Mapping[int, str], last: events.ChainHead
) -> str | None:
    """The first kept head that isn't in a chain that holds in itself."""
    for where, head in kept:
        if head.sequence > last.sequence:
            return (
                f"event {last.sequence + 1} is missing: the tail was cut off. {where} has the head "
                f"{head}, and the last event is {last.sequence}"
            )
        stored = hashes.get(head.sequence)
        if stored != head.hash:
            return (
                f"event {head.sequence} is not the one that it was: the chain was rewritten, or "
                f"forked, at or before it. {where} has the head {head}, here its hash is {stored}"
            )
    return None
