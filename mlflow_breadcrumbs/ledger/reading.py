"""The history as it stands, read without writing into it: for pages that many look at.

What others have written into the tags of a model's versions counts as well, taken up or not; not
where the ledger is a database of all, which takes nothing from tags. The chain is not walked: what
something is decided by, `proving` gives.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import alias_history, alias_state, events, schema, sharing, stores


@dataclasses.dataclass(frozen=True)
class ModelHistory:
    """What was done to one registered model."""

    events: tuple[events.Event, ...]
    """In order, each by who began the job."""
    looked: Mapping[str, str | None]
    """When each alias that is known was last seen where it is known to be, UTC."""

    def moves(self, alias: str | None = None) -> list[alias_history.Change]:
        """The moves of the aliases, or of one, in order."""
        return alias_history.read(self.events, alias)


def of_model(name: str, page: sharing.Page) -> ModelHistory:
    """The history of a registered model.

    Args:
        name: Of the model.
        page: Its versions by URI, with their tags, which may hold the events of others.

    Raises:
        LedgerError: The ledger can't be opened.
    """
    mail = sharing.Mail()
    if stores.is_file():
        mail.add(page)
    with stores.opened() as ledger, ledger.reading() as connection:
        own = events.of_name(connection, name)
        found = events.in_order([*own, *sharing.untaken(connection, mail)])
        known = alias_state.known(connection, name)
        looked = {
            alias: alias_state.last_seen(connection, name, state)
            for (_, alias), state in known.items()
        }
    return ModelHistory(tuple(events.credited(found)), looked)


def of_kinds(kinds: Sequence[str], page: sharing.Page) -> list[events.Event]:
    """The events of some kinds about whatever version, in order, each by who began the job.

    Args:
        kinds: That change nothing in the registry, and so have no intent.
        page: Versions by URI, with their tags, which may hold the events of others.

    Raises:
        LedgerError: The ledger can't be opened.
    """
    mail = sharing.Mail()
    if stores.is_file():
        mail.add(page)
    table = schema.table(schema.EventRow)
    # What others wrote is whole in the event that took it up, so that this finds it there too.
    named = sql.or_(*(table.c.body.like(f'%"kind":"{kind}"%') for kind in kinds))
    wanted = sql.select(table.c.body).where(named).order_by(table.c.sequence)
    with stores.opened() as ledger, ledger.reading() as connection:
        own = [events.Event.parse(body) for body in connection.scalars(wanted)]
        found = events.in_order([*own, *sharing.untaken(connection, mail)])
    return [event for event in found if event.kind in kinds]


def of_versions(uris: Sequence[str], kinds: Sequence[str]) -> list[events.Event]:
    """The events of some kinds about some versions, which this ledger has, in order; one query.

    Raises:
        LedgerError: The ledger can't be opened.
    """
    table = schema.table(schema.EventRow)
    wanted = sql.select(table.c.body).where(table.c.subject.in_(uris)).order_by(table.c.sequence)
    with stores.opened() as ledger, ledger.reading() as connection:
        found = events.in_order(events.Event.parse(body) for body in connection.scalars(wanted))
    return [event for event in found if event.kind in kinds]
