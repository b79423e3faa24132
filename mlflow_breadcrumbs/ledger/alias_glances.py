"""Looks of the registry's own server at all of its aliases: cheap ones, by one worker at a time.

What the server moved itself it has told. A glance holds the aliases, which the server reads from
its own database, against what is known; only where they differ is there something to `look` at.
"""

import datetime

import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import alias_history, alias_state, alias_watch, schema, stores

CLAIMED = "//"
"""Stands for a worker's claim in the table of looks; no registered model can be named so."""

_LOOKS = schema.table(schema.LookRow)


def claim(seconds: float) -> bool:
    """Whether it is this worker's turn to glance: no other had one within so many seconds.

    Raises:
        LedgerError: The ledger can't be used.
    """
    now = datetime.datetime.now(datetime.UTC)
    latest = alias_history.utc(now - datetime.timedelta(seconds=seconds))
    last = sql.select(_LOOKS.c.time).where(_LOOKS.c.name == CLAIMED)
    with stores.opened() as ledger:
        with ledger.reading() as connection:
            if (connection.scalar(last) or "") > latest:
                return False
        with ledger.writing() as connection:
            if (connection.scalar(last) or "") > latest:
                return False  # another was faster
            alias_state.looked(connection, CLAIMED, alias_history.utc(now))
    return True


def differing(found: alias_watch.Found) -> set[str]:
    """The registered models whose aliases are not where they are known to be.

    Raises:
        LedgerError: The ledger can't be used.
    """
    with stores.opened() as ledger, ledger.reading() as connection:
        known = alias_state.known(connection)
    there = {(name, alias): at for name, aliases in found.items() for alias, at in aliases.items()}
    last = {key: state.version for key, state in known.items()}
    return {key[0] for key in {*there, *last} if there.get(key) != last.get(key)}


def confirm(begun: str) -> None:
    """Keep that all aliases were where they are known to be, at a time."""
    with stores.opened() as ledger, ledger.writing() as connection:
        alias_state.looked(connection, alias_state.EVERYTHING, begun)
