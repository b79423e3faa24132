"""The ledger's answers, each opened, asked and closed in one call."""

import dataclasses
import datetime

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import (
    alias_history,
    alias_state,
    alias_watch,
    events,
    index,
    settling,
    sharing,
    stores,
)
from mlflow_breadcrumbs.registry import graph
from mlflow_breadcrumbs.support import progress, wording


def sync(*, full: bool = False, show: progress.Progress = progress.silent) -> index.Synced:
    """Bring the index up to date with the registry, and notice what was done to its aliases.

    See `index.sync` and `alias_watch.look`; open intents are settled, too, and what others wrote is
    taken up, and what they lack is given to them.
    """
    settling.settle()
    sharing.mend()
    with stores.opened() as ledger:
        done = index.sync(ledger, full=full, show=show)
    return dataclasses.replace(done, noticed=tuple(alias_watch.look()))


def ancestry(uri: str) -> graph.Graph:
    """A version and everything that it was made from, out of the index."""
    with stores.opened() as ledger, ledger.reading() as connection:
        return index.ancestors(connection, index.canonical_uri(connection, uri))


def descendants(uri: str) -> graph.Graph:
    """A version and everything that was made from it, out of the index."""
    with stores.opened() as ledger, ledger.reading() as connection:
        return index.descendants(connection, index.canonical_uri(connection, uri))


def head() -> events.ChainHead:
    """The last event."""
    with stores.opened() as ledger, ledger.reading() as connection:
        return events.head(connection)


def history(name: str) -> list[events.Event]:
    """The events of a registered model, in order; those of others too, where they are shared."""
    sharing.look(name)
    with stores.opened() as ledger, ledger.reading() as connection:
        return events.of_name(connection, name)


def alias_changes(
    name: str, alias: str | None = None, *, own: bool = False
) -> list[alias_history.Change]:
    """The moves of a registered model's aliases, or of one, in order.

    Args:
        name: The registered model.
        alias: Only this one's.
        own: Only what this ledger itself wrote, and nothing that came in tags of versions.
    """
    found = history(name)
    if own:
        found = [event for event in found if events.FROM_LEDGER not in event.details]
    return alias_history.read(found, alias)


def standings(
    name: str, at: datetime.datetime, alias: str | None = None
) -> list[alias_history.Standing]:
    """Where the aliases of a registered model, or one, were at a time.

    Args:
        name: The registered model.
        at: Without a zone: UTC.
        alias: Only this one.

    Raises:
        LedgerError: The time has not come yet.
    """
    time = alias_history.utc(at)
    if time > events.now():
        raise errors.LedgerError(f"{wording.moment(time)} has not come yet; choose a time past")
    sharing.look(name)
    with stores.opened() as ledger, ledger.reading() as connection:
        found = alias_history.read(events.of_name(connection, name), alias)
        known = alias_state.known(connection, name)
        wanted = [alias] if alias else sorted({move.alias for move in found})
        return [
            alias_history.standing(
                found, each, time, alias_state.last_seen(connection, name, known.get((name, each)))
            )
            for each in wanted
        ]
