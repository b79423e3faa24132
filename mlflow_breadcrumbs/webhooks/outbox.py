"""Events delivered to a receiver outside: signed, in order, at least once, and never in the way.

The ledger keeps how far each receiver has come. An event that can't be delivered waits there, and
all after it with it, until the receiver takes it; nothing that writes events waits for that.
"""

import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_history, events, schema, stores, witnessed
from mlflow_breadcrumbs.support import canonical, wording
from mlflow_breadcrumbs.webhooks import signatures

QUIET = (
    "import",
    "finetune",
    "merge",
    "evaluate",
    "verify",
    "export",
    "sign",
    witnessed.KIND,
    events.FOREIGN,
)
"""Kinds of events that are only delivered on request: they promote nothing, or another ledger
delivers them."""
OUTCOMES = (events.DONE, events.FAILED, events.ABANDONED)
SECONDS = 10.0
"""How long a receiver may take for one event."""
BRIEFLY = 2.0
"""How long a job waits at its end for what it wrote to be delivered."""
FIRST_WAIT, LONGEST_WAIT = 5, 3600
"""Seconds until a delivery is tried again: doubled each time, up to the longest."""

_OUTBOX, _EVENTS = schema.table(schema.OutboxRow), schema.table(schema.EventRow)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Receiver:
    """Where events go."""

    url: str
    secret: str
    """Of the form `whsec_BASE64`, or any text."""
    kinds: tuple[str, ...] = ()
    """Of events; empty: all but `QUIET`."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise errors.HookError(f"events can't be sent to {self.url!r}; write https://…")

    @property
    def digest(self) -> str:
        """What the ledger knows it by."""
        return canonical.sha256(self.url.encode())

    def wants(self, event: events.Event) -> bool:
        """Whether it is told of an event: an outcome of one of its kinds."""
        chosen = event.kind in self.kinds if self.kinds else event.kind not in QUIET
        return chosen and event.phase in OUTCOMES


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What came of an attempt to deliver."""

    sent: int
    """Events that the receiver took."""
    waiting: int
    """Events that it has yet to take."""
    problem: str | None
    """Why it did not take the first of these."""
    due: str | None
    """When it is tried again, UTC."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def deliver(
    receiver: Receiver,
    *,
    since: int | None = None,
    skip: bool = False,
    patient: bool = False,
    seconds: float = float("inf"),
    begun: str | None = None,
    ended: threading.Event | None = None,
) -> Delivered:
    """Send what waits, in order, until all is taken or an event is not.

    Args:
        receiver: Where to; one that is new gets what comes from now on.
        since: Start after this event instead; 0: send the whole history.
        skip: Give up the first event that waits.
        patient: Not before an attempt is due after one in vain.
        seconds: Begin no further event after this time.
        begun: A receiver that is new gets what was written since this time, too.
        ended: Once it is set, no further event is begun.

    Raises:
        LedgerError: The ledger can't be used.
    """
    end = time.monotonic() + seconds
    with stores.opened() as ledger:
        at = _claim(ledger, receiver, since, begun, patient=patient)
        if at is None:
            return _state(ledger, receiver, 0)
        sent, problem = 0, None
        waiting, last = _waiting(ledger, receiver, at)
        for event in waiting:
            left = end - time.monotonic()
            if left <= 0 or (ended is not None and ended.is_set()):
                last = event.sequence - 1
                break
            problem = None if skip else _post(receiver, event, min(SECONDS, left))
            if problem:
                last = event.sequence - 1
                break
            sent, skip = sent + (not skip), False
            _keep(ledger, receiver, event.sequence)
        _release(ledger, receiver, last, problem)
        return _state(ledger, receiver, sent)


def deliver_briefly(receiver: Receiver, begun: str, uri: str | None = None) -> None:
    """Try to deliver what a job wrote, within `BRIEFLY` seconds whatever happens; never raises.

    Args:
        receiver: Where to.
        begun: When the job began, as `events.now` writes it.
        uri: Of the ledger.
    """
    location = uri or stores.location()

    def attempt() -> None:
        try:
            with stores.using(location):
                done = deliver(receiver, patient=True, seconds=BRIEFLY, begun=begun)
            if done.waiting:
                number = wording.counted(done.waiting, "events")
                _logger.warning("not delivered yet: %s: %s", number, done.problem)
        except errors.BreadcrumbsError as error:
            _logger.warning("events were not delivered: %s", error)

    # A thread that may be left behind: an answer can be drawn out beyond any timeout.
    thread = threading.Thread(target=attempt, name="deliver", daemon=True)
    thread.start()
    thread.join(BRIEFLY)


def follow(
    receiver: Receiver, *, interval: float = 2.0, ended: threading.Event | None = None
) -> Iterator[Delivered]:
    """Deliver what comes, for ever; what came of each attempt.

    Nothing is written into the ledger while there is nothing to deliver.

    Args:
        receiver: Where to.
        interval: Seconds between two looks into the ledger.
        ended: Ends it; the event that is under way is delivered before.
    """
    ended = ended or threading.Event()
    last = Delivered(0, 0, None, None)
    while not ended.is_set():
        try:
            if _is_time(receiver):
                last = deliver(receiver, patient=True, ended=ended)
            else:
                last = dataclasses.replace(last, sent=0)
            yield last
        except errors.LedgerError as error:
            _logger.warning("events can't be delivered now: %s", error)
        ended.wait(interval)


def message(event: events.Event) -> dict[str, Any]:
    """What is sent of an event, in the form of the Standard Webhooks specification."""
    return {
        "type": f"{event.kind}.{event.phase}",
        "timestamp": event.time,
        "data": event.to_dict(),
    }


def _row(connection: sql.Connection, receiver: Receiver) -> sql.Row[Any] | None:
    where = _OUTBOX.c.receiver == receiver.digest
    return connection.execute(sql.select(_OUTBOX).where(where)).one_or_none()


def _is_time(receiver: Receiver) -> bool:
    """Whether there may be something to deliver now, which no other process has to itself."""
    with stores.opened() as ledger, ledger.reading() as connection:
        row, time_now = _row(connection, receiver), events.now()
        if row is None:
            return True
        behind: bool = row.sequence < events.head(connection).sequence
        return behind and row.due <= time_now and row.claimed <= time_now


def _claim(
    ledger: stores.Store,
    receiver: Receiver,
    since: int | None,
    begun: str | None,
    *,
    patient: bool,
) -> int | None:
    """Take a receiver for this process, up to which event it has come; `None`: not now."""
    with ledger.writing() as connection:
        row, time_now = _row(connection, receiver), events.now()
        if row is None:
            start = _start(connection, begun) if since is None else since
            new = {"sequence": start, "attempts": 0, "due": "", "claimed": _soon(), "error": None}
            connection.execute(sql.insert(_OUTBOX).values(receiver=receiver.digest, **new))
            return start
        if row.claimed > time_now or (patient and row.due > time_now):
            return None
        at = int(row.sequence if since is None else since)
        _set(connection, receiver, sequence=at, claimed=_soon())
        return at


def _start(connection: sql.Connection, begun: str | None) -> int:
    """The last event before a time; the last of all without one."""
    if begun is None:
        return events.head(connection).sequence
    newest = sql.select(_EVENTS.c.body).order_by(_EVENTS.c.sequence.desc())
    for body in connection.scalars(newest.execution_options(yield_per=100)):
        event = events.Event.parse(body)
        if event.time < begun:
            return event.sequence
    return 0


def _keep(ledger: stores.Store, receiver: Receiver, sequence: int) -> None:
    """Note that an event was taken."""
    with ledger.writing() as connection:
        _set(connection, receiver, sequence=sequence, attempts=0, error=None, claimed=_soon())


def _release(ledger: stores.Store, receiver: Receiver, last: int, problem: str | None) -> None:
    """Leave a receiver to others, and say when it may be tried again."""
    with ledger.writing() as connection:
        row = _row(connection, receiver)
        attempts = (row.attempts if row else 0) + 1 if problem else 0
        wait = min(FIRST_WAIT * 2 ** min(attempts - 1, 20), LONGEST_WAIT)
        due = _in(wait) if problem else ""
        state = {"sequence": last, "attempts": attempts, "error": problem, "due": due}
        _set(connection, receiver, **state, claimed="")


def _set(connection: sql.Connection, receiver: Receiver, **values: Any) -> None:
    where = _OUTBOX.c.receiver == receiver.digest
    connection.execute(sql.update(_OUTBOX).where(where).values(**values))


def _state(ledger: stores.Store, receiver: Receiver, sent: int) -> Delivered:
    """What is left to do."""
    with ledger.reading() as connection:
        row = _row(connection, receiver)
    assert row is not None  # the caller has made it
    waiting = len(_waiting(ledger, receiver, row.sequence)[0])
    if waiting and row.claimed > events.now():
        return Delivered(sent, waiting, "another process is delivering them", row.claimed)
    return Delivered(sent, waiting, row.error if waiting else None, row.due or None)


def _waiting(
    ledger: stores.Store, receiver: Receiver, after: int
) -> tuple[list[events.Event], int]:
    """The events beyond one that a receiver wants, and the last event that there is."""
    beyond = sql.select(_EVENTS.c.body).where(_EVENTS.c.sequence > after)
    found: list[events.Event] = []
    with ledger.reading() as connection:
        for body in connection.scalars(beyond.order_by(_EVENTS.c.sequence)):
            event = events.Event.parse(body)
            after = event.sequence
            if receiver.wants(event):
                found.append(event)
    return found, after


def _post(receiver: Receiver, event: events.Event, seconds: float) -> str | None:
    """Send one event; what went wrong, if it did."""
    body = canonical.dumps(message(event))
    # The hash before is this ledger's alone, and the same whenever the event is tried again.
    identifier = f"{event.sequence}.{event.previous.removeprefix('sha256:')[:32]}"
    timestamp = str(int(time.time()))
    signature = signatures.sign(signatures.key(receiver.secret), identifier, timestamp, body)
    names = signatures.STANDARD
    headers = {
        "Content-Type": "application/json",
        names.id: identifier,
        names.timestamp: timestamp,
        names.signature: signature,
    }
    try:
        answer = requests.post(
            receiver.url, body, headers=headers, timeout=seconds, allow_redirects=False
        )
    except requests.RequestException as error:
        reason = (
            "does not answer in time" if isinstance(error, requests.Timeout) else "is not there"
        )
        return f"event {event.sequence}: the receiver {reason}"
    if answer.ok and not answer.is_redirect:
        return None
    return f"event {event.sequence}: the receiver answered {answer.status_code} {answer.reason}"


def _soon() -> str:
    """Until when a process has a receiver to itself; it may have been killed by then."""
    return _in(2 * SECONDS)


def _in(seconds: float) -> str:
    """A time from now, as events have it."""
    return alias_history.utc(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    )
