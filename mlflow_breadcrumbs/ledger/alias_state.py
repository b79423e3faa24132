"""The last known state of each alias: what our own events say, and when the registry was looked at.

MLflow keeps where an alias points and nothing more: not since when, not who moved it, not what was
there before. So a change that was made past this package shows only as a difference between the
registry and what was known of it; `alias_watch` looks for those. Every event that says where an
alias points is taken into the table here, in its own transaction.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import schema

MOVED, OBSERVED = "alias", "alias_observed"
"""The kinds of events that say where an alias points: our own moves, and what others did."""
EVERYTHING = "/"
"""Stands for the whole registry in the table of looks; no registered model can be named so."""

_ALIASES, _LOOKS, _EVENTS = map(schema.table, (schema.AliasRow, schema.LookRow, schema.EventRow))


@dataclasses.dataclass(frozen=True)
class Known:
    """Where an alias pointed when that was last said."""

    version: str | None
    """`None`: it was removed."""
    since: str
    """UTC."""
    sequence: int
    """Of the event that said so."""


def target(details: Mapping[str, Any], subject: str | None) -> tuple[str, str | None] | None:
    """The alias that an event is about, and the version that it points at then.

    Args:
        details: Of the event; of an outcome, joined to those of its intent.
        subject: The version that the event is about: older events name the target so alone.
    """
    alias = details.get("alias")
    if not isinstance(alias, str):
        return None
    after = details["after"] if "after" in details else (subject or "").rpartition("/")[2] or None
    return alias, None if after is None else str(after)


def take(connection: sql.Connection, event: Mapping[str, Any], *, late: bool = False) -> None:
    """Keep what a stored event says, if it says where an alias points now.

    Args:
        connection: A transaction of `Store.writing`.
        event: As it is hashed.
        late: It is another ledger's, and says nothing new where something later is known.
    """
    if event["kind"] not in (MOVED, OBSERVED) or event["phase"] != "done":
        return
    intended = _body(connection, event["intent"])["details"] if event["intent"] else {}
    said = target({**intended, **event["details"]}, event["subject"])
    if said is None:
        return
    alias, version = said
    where = (_ALIASES.c.name == event["name"], _ALIASES.c.alias == alias)
    since = event["details"].get("changed") or event["time"]
    newer = sql.select(_ALIASES.c.since).where(*where, _ALIASES.c.since >= since)
    if late and connection.scalar(newer) is not None:
        return
    connection.execute(sql.delete(_ALIASES).where(*where))
    row = {"version": version, "since": since, "sequence": event["sequence"]}
    connection.execute(sql.insert(_ALIASES).values(name=event["name"], alias=alias, **row))


def fill(connection: sql.Connection) -> None:
    """Take the events of a ledger that was made before there was this table."""
    like = [_EVENTS.c.body.like(f'%"kind":"{kind}"%') for kind in (MOVED, OBSERVED)]
    bodies = sql.select(_EVENTS.c.body).where(sql.or_(*like)).order_by(_EVENTS.c.sequence)
    for body in connection.scalars(bodies).all():
        take(connection, json.loads(body))


def known(connection: sql.Connection, name: str | None = None) -> dict[tuple[str, str], Known]:
    """What is known of the aliases of a registered model, or of all; by name and alias."""
    statement = sql.select(_ALIASES)
    if name is not None:
        statement = statement.where(_ALIASES.c.name == name)
    return {
        (row.name, row.alias): Known(row.version, row.since, row.sequence)
        for row in connection.execute(statement)
    }


def intended(
    connection: sql.Connection, name: str, alias: str, *, but: int | None = None
) -> Iterator[str | None]:
    """Where open intents are about to point an alias; the work of jobs that may still run."""
    open_ones = sql.select(schema.OpenIntentRow.sequence)
    bodies = sql.select(_EVENTS.c.body).where(
        _EVENTS.c.name == name, _EVENTS.c.sequence.in_(open_ones), _EVENTS.c.sequence != (but or 0)
    )
    for body in connection.scalars(bodies):
        event = json.loads(body)
        said = target(event["details"], event["subject"]) if event["kind"] == MOVED else None
        if said is not None and said[0] == alias:
            yield said[1]


def missed(
    connection: sql.Connection, name: str, details: Mapping[str, Any], intent: int
) -> dict[str, Any] | None:
    """A change that came before a move of ours and that nobody noticed, as an event's details.

    The move found the alias elsewhere than it was known to be. Where our own moves overlapped, the
    order of their outcomes is not that of their acts, and nothing is claimed.
    """
    said = {**_body(connection, intent)["details"], **details}
    alias, before = said.get("alias"), said.get("before")
    if not isinstance(alias, str) or "before" not in said:
        return None
    state = known(connection, name).get((name, alias))
    before = None if before is None else str(before)
    if state is None or state.version == before or state.sequence > intent:
        return None
    if before in intended(connection, name, alias, but=intent):
        return None
    since = last_seen(connection, name, state)
    return {"alias": alias, "before": state.version, "after": before, "since": since, "how": "move"}


def last_seen(connection: sql.Connection, name: str, state: Known | None) -> str | None:
    """When an alias was last known to be as it is known; `None` if nobody ever looked."""
    looks = sql.select(_LOOKS.c.time).where(_LOOKS.c.name.in_([name, EVERYTHING]))
    times = [*connection.scalars(looks), *([state.since] if state else [])]
    return max(times, default=None)


def looked(connection: sql.Connection, name: str, time: str) -> None:
    """Keep that the registry was looked at: at one registered model, or at `EVERYTHING`."""
    connection.execute(sql.delete(_LOOKS).where(_LOOKS.c.name == name))
    connection.execute(sql.insert(_LOOKS).values(name=name, time=time))


def _body(connection: sql.Connection, sequence: int) -> dict[str, Any]:
    body = connection.scalar(sql.select(_EVENTS.c.body).where(_EVENTS.c.sequence == sequence))
    found: dict[str, Any] = json.loads(body) if body else {"details": {}}
    return found
