"""What the history says of a registered model, for those pages that need it.

A ledger that can't be opened is no reason to show nothing: then its fault is shown.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_history, events, reading


@dataclasses.dataclass(frozen=True)
class KnownPast:
    """The history of a model, as far as it can be read."""

    history: reading.ModelHistory
    fault: str | None
    """Why it can't be read."""

    def of_kinds(self, *kinds: str) -> list[events.Event]:
        """What was done, of these kinds, in order."""
        done = (event for event in self.history.events if event.phase == events.DONE)
        return [event for event in done if event.kind in kinds]

    def about(self, uri: str, *kinds: str) -> list[events.Event]:
        """What was done to one version, of these kinds, in order."""
        return [event for event in self.of_kinds(*kinds) if event.subject == uri]

    def unnoticed(self, aliases: Mapping[str, str]) -> dict[str, alias_history.Change | None]:
        """The aliases that are not where the last known move put them, each with that move.

        Of a model that the history has nothing of, nothing is claimed.

        Args:
            aliases: Where they are now: the version's number by alias.
        """
        last = {move.alias: move for move in self.history.moves()}
        gone = {alias: move for alias, move in last.items() if move.after != aliases.get(alias)}
        seen = bool(self.history.events)
        new = {alias: None for alias in aliases if seen and alias not in last}
        return gone | new


def of_model(name: str, tags: Iterable[tuple[str, Mapping[str, str]]]) -> KnownPast:
    """The history of a registered model.

    Args:
        name: Of the model.
        tags: Of its versions, by URI.
    """
    try:
        return KnownPast(reading.of_model(name, tags), None)
    except errors.LedgerError as error:
        return KnownPast(reading.ModelHistory((), {}), str(error))


def of_versions(uris: Sequence[str], kinds: Sequence[str]) -> list[events.Event] | None:
    """What was done to some versions; `None` where the history can't be read."""
    try:
        return reading.of_versions(uris, kinds)
    except errors.LedgerError:
        return None
