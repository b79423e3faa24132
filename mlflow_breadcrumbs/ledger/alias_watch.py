"""What was done to aliases past this package, found by looking at the registry, or told by webhook.

Each change becomes one event of the kind `alias_observed`, whoever notices it first: all of them
hold what they see against the one table of what is known, and take turns in writing. Moves of our
own are told apart by their events, also while they are under way.
"""

import dataclasses
import datetime
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlflow
import requests
import sqlalchemy as sql
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import (
    alias_history,
    alias_state,
    anchors,
    events,
    schema,
    settling,
    sharing,
    stores,
)
from mlflow_breadcrumbs.registry import database, failures

SKEW = 60
"""Seconds by which the server's clock may differ from ours."""
KEPT = datetime.timedelta(days=2)
"""How long the ids of deliveries are kept; a receiver's tolerance must be shorter."""
PAGE = 1000
"""Registered models per request."""
SERVER = "server"
"""What noticed a change that the registry's own server told, or found by its looks."""
SERVERS = f"{SERVER}/"
"""How the ids begin of what the server told; those of webhooks are MLflow's."""

_logger = logging.getLogger(__name__)
_RECEIPTS = schema.table(schema.ReceiptRow)

Found = Mapping[str, Mapping[str, str]]
"""The aliases of registered models: the version's number by name and alias."""


def look(names: Sequence[str] = (), how: str = "sync") -> list[alias_history.Change]:
    """Hold the aliases in the registry against what is known, and keep what differs as events.

    Args:
        names: Of registered models; none: the whole registry.
        how: `sync`, `watch` or `SERVER`, for the events.

    Returns:
        What was noticed: direct changes, and aliases that were seen for the first time.

    Raises:
        RegistryError: The registry can't be read, or has never had one of the models.
        LedgerError: The ledger can't be used.
    """
    with stores.opened() as ledger:
        sharing.look(*names)
        # The head comes first: what is written from here on may be newer than what is read.
        with ledger.reading() as connection:
            head = events.head(connection).sequence
            begun = events.now()
        found = _read(names)
        settling.settle()  # only now, since it needs a registry that answers
        with ledger.writing() as connection:
            written = [
                (events.append(connection, draft), draft)
                for draft in _differences(connection, names, found, head, how)
            ]
            for name in names or (alias_state.EVERYTHING,):
                alias_state.looked(connection, name, begun)
            noticed = [_move(connection, event) for event, _ in written]
    anchors.anchor_last(written, ours=how == SERVER)
    return noticed


def watch(names: Sequence[str] = (), *, interval: float) -> Iterator[list[alias_history.Change]]:
    """Look again and again, for ever; what was noticed each time.

    A registry or a ledger that is gone or refuses is logged, once, and asked again.

    Args:
        names: As for `look`.
        interval: Seconds between two looks.

    Raises:
        RegistryError: At the first look: the registry has never had one of the models, or refuses.
    """
    started = down = False
    while True:
        try:
            with failures.without_retries():
                noticed = look(names, "watch")
        except (errors.RegistryError, errors.LedgerError) as error:
            gone = isinstance(error, errors.UnreachableError | errors.LedgerError)
            if not (started or gone):
                raise
            if not down:
                _logger.warning("%s. Trying every %g s", error, interval)
            down = True
        else:
            if down:
                _logger.warning("the registry and the ledger answer again")
            started, down = True, False
            yield noticed
        time.sleep(interval)


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What a webhook told: an alias was set to a version, or removed."""

    identifier: str
    """The same when the server delivers it again."""
    name: str
    """The registered model."""
    alias: str
    version: str | None
    """`None`: it was removed."""
    changed: str
    """When, UTC, by the tracking server's clock, as `events.now` writes it."""


def take(delivery: Delivery) -> list[tuple[events.ChainHead, events.Draft]]:
    """Keep what a webhook told, unless it is known already: our own move, or noticed before.

    Deliveries come late and out of order, so the registry is asked where the alias is now: one that
    tells of something past is kept as a change there and back.

    Returns:
        The events that were written, for `anchors.anchor_last`.

    Raises:
        ReplayError: The delivery was taken before.
        LedgerError: The ledger can't be used; the delivery was not taken.
    """
    with stores.opened() as ledger:
        while True:
            with ledger.reading() as connection:
                head = events.head(connection).sequence
                begun = events.now()
            there = _there_now(delivery)
            with ledger.writing() as connection:
                state = alias_state.known(connection, delivery.name).get(
                    (delivery.name, delivery.alias)
                )
                if state is not None and state.sequence > head:
                    continue  # written while the registry was asked: ask again
                _check_new(connection, delivery.identifier)
                drafts, known = _news(connection, delivery, state, there, begun)
                written = [(events.append(connection, draft), draft) for draft in drafts]
                teller = written[0][0].sequence if written else known
                keep_receipt(connection, delivery.identifier, teller)
            return written


def _there_now(delivery: Delivery) -> str | None:
    """Where the alias is now; without an answer, where the delivery says."""
    client = mlflow.MlflowClient()
    try:
        found = client.get_registered_model(delivery.name).aliases.get(delivery.alias)
    except (MlflowException, requests.RequestException):
        return delivery.version
    return None if found is None else str(found)


def _news(
    connection: sql.Connection,
    delivery: Delivery,
    state: alias_state.Known | None,
    there: str | None,
    begun: str,
) -> tuple[list[events.Draft], int | None]:
    """The events that tell what a delivery told; or none, and the event that does already.

    Args:
        connection: A transaction of `Store.writing`.
        delivery: What was told.
        state: What is known of the alias.
        there: The version that it points at now.
        begun: When the registry was asked for `there`.
    """
    name, alias, version = delivery.name, delivery.alias, delivery.version
    if version in alias_state.intended(connection, name, alias):
        return [], None  # the outcome of our own move will tell
    known = state.version if state else None
    if known == version:
        return [], state.sequence if state else None
    found = alias_history.read(events.of_name(connection, name), alias)
    if teller := _teller(connection, found, delivery):
        return [], teller
    past = state is not None and there == known
    details = {"alias": alias, "after": version, "changed": delivery.changed, "how": "webhook"}
    if not past:
        details |= {"before": known, "since": alias_state.last_seen(connection, name, state)}
        return [events.observed(events.actor(), name, details)], None
    details |= {"before": _before(found, delivery.changed), "since": None}
    back = {"alias": alias, "before": version, "after": known, "how": "webhook"}
    back |= {"since": delivery.changed, "until": begun}
    return [events.observed(events.actor(), name, part) for part in (details, back)], None


def _read(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The aliases in the registry; a model that is not there has no entry."""
    database.prepare()
    client = mlflow.MlflowClient()
    found: dict[str, dict[str, str]] = {}
    with failures.explained(f"cannot read the aliases in {mlflow.get_registry_uri()}"):
        for name in names:
            try:
                models = [client.get_registered_model(name)]
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                models = []
            found |= {model.name: _aliases(model) for model in models}
        token = None
        while not names:
            page = client.search_registered_models(max_results=PAGE, page_token=token)
            found |= {model.name: _aliases(model) for model in page}
            token = page.token
            if not token:
                break
    return found


def _aliases(model: Any) -> dict[str, str]:
    return {alias: str(version) for alias, version in model.aliases.items()}


def _differences(
    connection: sql.Connection, names: Sequence[str], found: Found, head: int, how: str
) -> list[events.Draft]:
    """What the registry says otherwise than the table, without what our own jobs account for."""
    known = alias_state.known(connection)
    for name in names:
        if name not in found and not any(key[0] == name for key in known):
            raise errors.RegistryError(
                f"the registry has no model {name!r}, and the ledger never knew one; check the name"
            )
    there = {(name, alias): v for name, own in found.items() for alias, v in own.items()}
    gone = {key: None for key in known if key not in there and (not names or key[0] in names)}
    drafts = []
    for (name, alias), version in sorted({**there, **gone}.items()):
        state = known.get((name, alias))
        if state is not None and (state.version == version or state.sequence > head):
            continue
        if version in alias_state.intended(connection, name, alias):
            continue
        since = alias_state.last_seen(connection, name, state)
        details: dict[str, Any] = {
            "alias": alias,
            "before": state.version if state else None,
            "after": version,
            "since": since,
            "how": how,
        }
        if since is None:
            details["first"] = True
        elif state and (other := _overlapping(connection, name, alias, version, state)):
            details["of"] = other
        drafts.append(events.observed(events.actor(), name, details))
    return drafts


def _overlapping(
    connection: sql.Connection,
    name: str,
    alias: str,
    version: str | None,
    state: alias_state.Known,
) -> int | None:
    """The move of ours that ran beside the last one, was written before it, and took effect last.

    Returns:
        The sequence of its event.
    """
    history = {event.sequence: event for event in events.of_name(connection, name)}
    last = history.get(state.sequence)
    if last is None or last.intent is None:
        return None
    for move in alias_history.read(history.values(), alias):
        beside = last.intent < move.event < state.sequence
        if beside and move.how is None and move.after == version:
            return move.event
    return None


def _check_new(connection: sql.Connection, identifier: str) -> None:
    """Raise `ReplayError` for a delivery whose id is kept already."""
    if connection.scalar(sql.select(_RECEIPTS.c.id).where(_RECEIPTS.c.id == identifier)):
        raise errors.ReplayError(f"the delivery {identifier} was taken before")


def keep_receipt(connection: sql.Connection, identifier: str, event: int | None) -> None:
    """Keep the id of what was told, with the event that tells it, and forget the old ones."""
    now = datetime.datetime.now(datetime.UTC)
    connection.execute(
        sql.delete(_RECEIPTS).where(_RECEIPTS.c.received < alias_history.utc(now - KEPT))
    )
    row = {"id": identifier, "received": alias_history.utc(now), "event": event}
    connection.execute(sql.insert(_RECEIPTS).values(row))


def _teller(
    connection: sql.Connection, found: Sequence[alias_history.Change], delivery: Delivery
) -> int | None:
    """The event that tells of this change already, and that no other delivery told of."""
    deliveries = sql.not_(_RECEIPTS.c.id.startswith(SERVERS))
    told = set(connection.scalars(sql.select(_RECEIPTS.c.event).where(deliveries)))
    skew = datetime.timedelta(seconds=SKEW)
    changed = datetime.datetime.fromisoformat(delivery.changed)
    start, end = alias_history.utc(changed - skew), alias_history.utc(changed + skew)
    for move in reversed(found):
        near = (move.earliest or "") <= end and move.latest >= start
        if near and move.after == delivery.version and move.event not in told:
            return move.event
    return None


def _before(found: Sequence[alias_history.Change], changed: str) -> str | None:
    """Where an alias was before a time that is already past."""
    past = [move for move in found if move.latest <= changed]
    return past[-1].after if past else None


def _move(connection: sql.Connection, head: events.ChainHead) -> alias_history.Change:
    """An event that was just written, as a move."""
    body = sql.select(schema.EventRow.body).where(schema.EventRow.sequence == head.sequence)
    (move,) = alias_history.read([events.Event.parse(connection.scalars(body).one())])
    return move
