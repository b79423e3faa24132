"""The history: events that are only ever added, each carrying the hash of the one before.

The hash of an event is the SHA-256 of its canonical JSON, which holds its sequence number and the
hash of its predecessor; the first event's predecessor is the digest of the ledger's id. So an event
that is changed, taken out or moved breaks the chain there. A tail that is cut off, or a chain that
is written anew from the start, is whole in itself: only a head kept elsewhere tells.
"""

import dataclasses
import datetime
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_state, schema
from mlflow_breadcrumbs.registry import accounts, uris
from mlflow_breadcrumbs.support import canonical, credentials, people, processes

INTENT, DONE, FAILED, ABANDONED = "intent", "done", "failed", "abandoned"
"""The phases. `abandoned`: the process ended without saying how it went, and nothing came of it."""
BEGUN_BY = "begun_by"
"""In the details of an outcome that somebody else settled: the actor of its intent."""
FOREIGN = "foreign"
"""The kind of an event that says: another ledger has this event, which the details hold whole."""
VOUCHED = "vouched"
"""In the details: true where a server wrote the event for an actor whom it had authenticated."""
FROM_LEDGER = "from_ledger"
"""In the details of another ledger's event, as `of_name` gives it: its place and hash there."""


@dataclasses.dataclass(frozen=True)
class ChainHead:
    """The last event at some moment; whoever keeps it can tell whether the chain was rewritten."""

    sequence: int
    """0 where there is no event yet."""
    hash: str
    ledger: str
    """The ledger's id."""

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"

    def tag(self) -> str:
        """With the ledger's id, since a version may have been touched by several ledgers."""
        return f"{self}@{self.ledger}"

    @classmethod
    def parse(cls, text: str) -> "ChainHead":
        """Read `SEQUENCE:HASH` or `SEQUENCE:HASH@LEDGER`.

        Raises:
            LedgerError: The text is neither.
        """
        match = re.fullmatch(r"(\d{1,18}):(sha256:[0-9a-f]{64})(?:@([0-9a-f-]{36}))?", text)
        if not match:
            raise errors.LedgerError(
                f"{text!r} is no head of a ledger; write SEQUENCE:sha256:… as `ledger head` does"
            )
        return cls(int(match[1]), match[2], match[3] or "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """What a writer says; the ledger adds the place in the chain."""

    actor: str
    """`user@host`."""
    kind: str
    """`import`, `finetune`, `merge`, `evaluate`, `alias`, `verify`, …"""
    phase: str
    name: str
    """The registered model."""
    subject: str | None = None
    """The version that it is about, once there is one."""
    run_id: str | None = None
    intent: int | None = None
    """Of an outcome: the sequence of its intent."""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event(Draft):
    """One event, in its place."""

    sequence: int
    previous: str
    time: str
    """UTC, by the writer's clock, which may be wrong: the sequence is the order."""

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, for canonical JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, body: str) -> "Event":
        """Read an event's canonical JSON."""
        return cls(**json.loads(body))


def head(connection: sql.Connection) -> ChainHead:
    """The last event's sequence and hash."""
    ledger = connection.scalars(sql.select(schema.LedgerRow.id)).one()
    last = connection.execute(
        sql.select(schema.EventRow.sequence, schema.EventRow.hash)
        .order_by(schema.EventRow.sequence.desc())
        .limit(1)
    ).one_or_none()
    return (
        ChainHead(0, genesis(ledger), ledger)
        if last is None
        else ChainHead(last[0], last[1], ledger)
    )


def genesis(ledger: str) -> str:
    """What the first event of a ledger follows."""
    return canonical.digest({"ledger": ledger})


def now() -> str:
    """The time as events have it: UTC, to the millisecond, so that texts compare as times do."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def append(connection: sql.Connection, draft: Draft) -> ChainHead:
    """Add an event, in a transaction of `Store.writing`; the new head.

    Before a move of an alias comes a change that the move brought to light, if there is one.
    """
    if draft.kind == alias_state.MOVED and draft.phase == DONE and draft.intent is not None:
        details = alias_state.missed(connection, draft.name, draft.details, draft.intent)
        if details is not None:
            _append(connection, observed(draft.actor, draft.name, details))
    return _append(connection, draft)


def observed(actor: str, name: str, details: Mapping[str, Any]) -> Draft:
    """An alias that was moved past this package, for `append`.

    Args:
        actor: Who noticed it; MLflow does not say who did it.
        name: The registered model.
        details: `alias`, `before`, `after`, `since` (when it was last known to be as before), `how`
            (`sync`, `watch`, `webhook` or `move`: what noticed it), and perhaps more.
    """
    after = details["after"]
    return Draft(
        actor=actor,
        kind=alias_state.OBSERVED,
        phase=DONE,
        name=name,
        subject=None if after is None else uris.of_version(name, after),
        details={**details, "noticed": now()},
    )


def _append(connection: sql.Connection, draft: Draft) -> ChainHead:
    last = head(connection)
    if accounts.is_vouched():
        draft = dataclasses.replace(draft, details={**draft.details, VOUCHED: True})
    event = Event(
        **{
            field.name: credentials.cleaned(getattr(draft, field.name))
            for field in dataclasses.fields(Draft)
        },
        sequence=last.sequence + 1,
        previous=last.hash,
        time=now(),
    )
    body = canonical.dumps(event.to_dict())
    new = ChainHead(event.sequence, canonical.sha256(body), last.ledger)
    connection.execute(
        sql.insert(schema.EventRow).values(
            sequence=new.sequence,
            previous=event.previous,
            hash=new.hash,
            name=event.name,
            subject=event.subject,
            body=body.decode(),
        )
    )
    if event.phase == INTENT:
        connection.execute(sql.insert(schema.OpenIntentRow).values(sequence=new.sequence))
    if event.intent is not None:
        connection.execute(
            sql.delete(schema.OpenIntentRow).where(schema.OpenIntentRow.sequence == event.intent)
        )
    foreign = event.kind == FOREIGN
    alias_state.take(connection, counted(event).to_dict(), late=foreign)
    return new


def of_name(connection: sql.Connection, name: str) -> list[Event]:
    """The events of a registered model, in order."""
    return _parsed(connection, schema.EventRow.name == name)


def of_version(connection: sql.Connection, uri: str) -> list[Event]:
    """The events about one version, in order."""
    return _parsed(connection, schema.EventRow.subject == uri)


def open_intents(connection: sql.Connection) -> list[Event]:
    """The intents without an outcome, in order."""
    return _parsed(
        connection, schema.EventRow.sequence.in_(sql.select(schema.OpenIntentRow.sequence))
    )


def is_open(connection: sql.Connection, intent: int) -> bool:
    """Whether an intent has no outcome yet."""
    where = schema.OpenIntentRow.sequence == intent
    return connection.scalar(sql.select(schema.OpenIntentRow.sequence).where(where)) is not None


def rows(connection: sql.Connection) -> Iterator[sql.Row[Any]]:
    """Every event as it is stored, in order, without holding all of them in memory."""
    table = schema.table(schema.EventRow)
    statement = sql.select(table).order_by(table.c.sequence)
    yield from connection.execution_options(yield_per=1000).execute(statement)


def _parsed(connection: sql.Connection, where: sql.ColumnElement[bool]) -> list[Event]:
    statement = sql.select(schema.EventRow.body).where(where).order_by(schema.EventRow.sequence)
    return in_order(Event.parse(body) for body in connection.scalars(statement))


def counted(event: Event) -> Event:
    """An event as it counts: one that another ledger wrote, in place of its having been taken up.

    It has the sequence by which this ledger knows it; it begins and ends no job of this ledger.
    """
    if event.kind != FOREIGN:
        return event
    known = {field.name for field in dataclasses.fields(Event)}
    inner = Event(**{key: event.details["event"][key] for key in known})
    # The first two are sequences there; and only who wrote an event can say whom they knew.
    unsaid = ("cause", "of", VOUCHED)
    told = {key: value for key, value in inner.details.items() if key not in unsaid}
    return dataclasses.replace(
        inner,
        sequence=event.sequence,
        previous=event.previous,
        intent=None,
        time=min(inner.time, event.time),
        details=told | {FROM_LEDGER: event.details[FROM_LEDGER]},
    )


def in_order(history: Iterable[Event]) -> list[Event]:
    """Events as they count, in the order in which they happened, as far as clocks tell.

    The events of one ledger keep their order, whatever its clock did; what another ledger wrote
    comes before what happened later here, although it was taken up after that.
    """
    latest: dict[str, str] = {}
    placed = []
    for event in map(counted, history):
        ledger = str(event.details.get(FROM_LEDGER, "")).rpartition("@")[2]
        latest[ledger] = max(latest.get(ledger, ""), event.time)
        placed.append((latest[ledger], event))
    return [event for _, event in sorted(placed, key=lambda pair: pair[0])]


def credited(history: Iterable[Event]) -> Iterator[Event]:
    """The same events, each with the actor who began the job.

    The outcome of a job that was killed is written by whoever settles it, and a version that a
    stopped job left is recorded by whoever takes it up; neither did the job.

    Args:
        history: In order; an outcome is credited if its intent is there too, or is named.
    """
    began: dict[int | tuple[str, str, str], str] = {}
    for event in history:
        job = (event.kind, event.name, event.run_id or "")
        if event.phase == INTENT:
            began[event.sequence] = event.actor
            if event.run_id:
                began.setdefault(job, event.actor)
        actor = began.get(event.intent) if event.intent else None
        if actor is None and event.details.get("taken_up"):
            actor = began.get(job)
        if actor is None:
            actor = event.details.get(BEGUN_BY)
        yield event if actor is None else dataclasses.replace(event, actor=actor)


def actor() -> str:
    """Who does this: the account on the registry's server, else the user, on this machine.

    Raises:
        LedgerError: The user's name is none that a history can have.
    """
    account = accounts.account()
    user = processes.user() if account is None else account
    if fault := people.fault(user):
        raise errors.LedgerError(
            f"the user's name {user!r} can't be written into the history: {fault}; "
            f"{'set LOGNAME to a name' if account is None else 'use an account'} without it"
        )
    return f"{user}@{socket.gethostname()}"


def actor_of(account: str) -> str:
    """An account that this server has authenticated, as events have it.

    Raises:
        LedgerError: No history can have such a name.
    """
    with accounts.working_for(accounts.Asking(account, vouched=True)):
        return actor()
