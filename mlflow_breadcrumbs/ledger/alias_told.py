"""What the registry's own server tells of aliases: from where, to where, when, and who did it.

A server with our app stands in MLflow's store, and so knows the whole of a move at once. Each one
becomes one event, whoever else notices it: a look, a receiver of webhooks, another worker. Moves of
our own are told apart by their events, as everywhere; those of clients with ledgers of their own by
the turn that they have, and then by the letter that they write.
"""

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from typing import Any

import mlflow
import sqlalchemy as sql
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import (
    alias_history,
    alias_state,
    alias_watch,
    anchors,
    events,
    schema,
    sharing,
    stores,
    turns,
)
from mlflow_breadcrumbs.registry import uris

PATIENCE = datetime.timedelta(seconds=2)
"""How long a move waits for the one before it, which another worker has yet to tell."""
TURN = datetime.timedelta(seconds=60)
"""How long it waits for a client that has the turn to move the alias to say what it did."""

_RECEIPTS = schema.table(schema.ReceiptRow)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Told:
    """A move of an alias by MLflow's own calls."""

    identifier: str
    """Of this move alone; begins with `alias_watch.SERVERS`."""
    name: str
    """The registered model."""
    alias: str
    before: str | None
    """The version's number, as the registry had it before; `None`: the alias was not set."""
    after: str | None
    """`None`: it was removed."""
    changed: str
    """When, UTC, as `events.now` writes it."""
    account: str | None
    """Who did it, where the server has authenticated them."""
    turn: bool = False
    """Whether a client with a ledger of its own had the turn to move it."""

    @property
    def age(self) -> datetime.timedelta:
        """How long ago it was, by this process's clock."""
        return datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(self.changed)


def tell(batch: Sequence[Told]) -> list[Told]:
    """Keep moves as events, in this order, unless they are known already.

    Returns:
        Those that must be told again, in a moment: what comes before them is not written yet.

    Raises:
        LedgerError: The ledger can't be used; none of them was kept.
    """
    if not batch:
        return []
    by_tags = stores.is_private()
    waiting = {told.identifier for told in batch if by_tags and told.turn and not _is_over(told)}
    written: list[tuple[events.ChainHead, events.Draft]] = []
    with stores.opened() as ledger, ledger.writing() as connection:
        held: set[tuple[str, str]] = set()
        early = []
        for told in batch:
            alias = (told.name, told.alias)
            if told.identifier in waiting or alias in held or _is_early(connection, told):
                held.add(alias)
                early.append(told)
                continue
            drafts, known = _news(connection, told)
            added = [(events.append(connection, draft), draft) for draft in drafts]
            own = (head.sequence for head, draft in added if "changed" in draft.details)
            alias_watch.keep_receipt(connection, told.identifier, next(own, known))
            written += added
    anchors.anchor_last(written, ours=True)
    return early


def _is_over(told: Told) -> bool:
    """Whether a client that had the turn is done; then what it wrote is taken up."""
    try:
        model = mlflow.MlflowClient().get_registered_model(told.name)
    except MlflowException:
        return True  # it was deleted, and what the client wrote with it
    if turns.is_held(told.alias, model.tags) and told.age < TURN:
        return False
    mail = sharing.Mail()
    for number in filter(None, (told.before, told.after)):
        try:
            tags = mlflow.MlflowClient().get_model_version(told.name, number).tags
        except MlflowException:
            continue
        mail.add([(uris.of_version(told.name, number), tags)])
    sharing.take_up(mail)
    return True


def _is_early(connection: sql.Connection, told: Told) -> bool:
    """Whether the alias was elsewhere before than it is known to be, and that may yet be told."""
    state = alias_state.known(connection, told.name).get((told.name, told.alias))
    elsewhere = told.before != (state.version if state else None)
    return elsewhere and told.age < PATIENCE and _teller(connection, told, state) is None


def _news(connection: sql.Connection, told: Told) -> tuple[list[events.Draft], int | None]:
    """The events that tell a move, of which its own says when; or none, and what tells already."""
    state = alias_state.known(connection, told.name).get((told.name, told.alias))
    if told.after in alias_state.intended(connection, told.name, told.alias):
        return [], None  # the outcome of our own move will tell
    if teller := _teller(connection, told, state):
        return [], teller
    own = _own(connection, told, state)
    if own is None or state is None or state.version == told.before:
        return [own] if own else [], None
    if state.version == told.after:
        return [], state.sequence
    unseen = {"alias": told.alias, "how": alias_watch.SERVER}
    if state.since < told.changed:  # from there to where it was before nobody has told
        since = alias_state.last_seen(connection, told.name, state)
        details = {"before": state.version, "after": told.before, "since": since}
        return [events.observed(events.actor(), told.name, unseen | details), own], None
    back = {"before": told.after, "after": state.version, "since": told.changed}
    return [own, events.observed(events.actor(), told.name, unseen | back)], None


def _own(
    connection: sql.Connection, told: Told, state: alias_state.Known | None
) -> events.Draft | None:
    """The move's own event; none for an account whose name no history can have."""
    details: dict[str, Any] = {
        "alias": told.alias,
        "before": told.before,
        "after": told.after,
        "since": alias_state.last_seen(connection, told.name, state),
        "changed": told.changed,
        "how": alias_watch.SERVER,
    }
    if told.account is None:
        return events.observed(events.actor(), told.name, details)
    try:
        actor = events.actor_of(told.account)
    except errors.LedgerError as error:
        _logger.warning("the move of %s@%s is left to a look: %s", told.name, told.alias, error)
        return None
    return events.observed(actor, told.name, details | {events.VOUCHED: True})


def _teller(connection: sql.Connection, told: Told, state: alias_state.Known | None) -> int | None:
    """The event that tells of this very move already, written by somebody else.

    It comes after what was told of earlier moves of the alias.
    """
    moment = datetime.datetime.fromisoformat(told.changed)
    skew = datetime.timedelta(seconds=alias_watch.SKEW)
    start, end = alias_history.utc(moment - skew), alias_history.utc(moment + skew)
    if state is None or state.since < start:
        return None
    own = sql.select(_RECEIPTS.c.event).where(_RECEIPTS.c.id.startswith(alias_watch.SERVERS))
    taken = set(connection.scalars(own))
    found = alias_history.read(events.of_name(connection, told.name), told.alias)
    earlier = [move for move in found if move.event in taken and move.latest <= told.changed]
    last = max((move.event for move in earlier), default=0)
    for move in found:
        near = (move.earliest or "") <= end and move.latest >= start
        same = (move.before, move.after) == (told.before, told.after)
        if near and same and move.event > last and move.event not in taken:
            return move.event
    return None
