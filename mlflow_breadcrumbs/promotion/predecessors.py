"""Which versions had an alias before, so that there is somewhere to go back to.

The ledger's history says it. Where there is none, because the ledger was lost or made anew, tags
say it: every version that is promoted gets one, with the time and the run of the decision. A server
that guards aliases goes by what its own ledger wrote: who may tag a version could tell it of moves
that never were.
"""

import dataclasses
import datetime
import logging

import mlflow
import requests
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import alias_moves, stores
from mlflow_breadcrumbs.registry import failures, versions

PREFIX = "breadcrumbs.promoted/"
"""Of the tag on versions that were promoted, before the alias."""
LONGEST = 250
"""Characters of a tag's key in MLflow."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Promoted:
    """What the tag of a promoted version says."""

    time: datetime.datetime
    """When it was promoted; with its time zone."""
    decision: str
    """The run of the decision."""


def promoted(resolved: versions.ResolvedVersion, alias: str) -> Promoted | None:
    """When and by which decision a version got an alias; `None` where its tag does not say."""
    time, _, decision = resolved.tags.get(tag(alias), "").partition(" ")
    try:
        return Promoted(datetime.datetime.fromisoformat(time), decision)
    except ValueError:
        return None


def tag(alias: str) -> str:
    """The key of the tag on versions that were promoted to an alias."""
    return f"{PREFIX}{alias}"


def mark(name: str, alias: str, version: str, decision: str) -> None:
    """Tag a version that was promoted. The alias is moved already: that this fails is logged."""
    if len(tag(alias)) > LONGEST:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    try:
        mlflow.MlflowClient().set_model_version_tag(name, version, tag(alias), f"{now} {decision}")
    except (MlflowException, requests.RequestException) as error:
        _logger.warning("models:/%s/%s was not tagged as promoted: %s", name, version, error)


def unmark(name: str, alias: str, version: str) -> None:
    """Take the tag from a version that was rolled back from; the ledger's history keeps it."""
    try:
        mlflow.MlflowClient().delete_model_version_tag(name, version, tag(alias))
    except (MlflowException, requests.RequestException) as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            _logger.warning("models:/%s/%s keeps %s: %s", name, version, tag(alias), error)


def moves(name: str, alias: str) -> list[ledger.Change]:
    """The moves of an alias that count for going back, in order.

    Raises:
        LedgerError: the ledger can't be read.
    """
    return ledger.alias_changes(name, alias, own=stores.is_served())


def earlier(name: str, alias: str, current: str | None) -> list[str]:
    """The versions that had the alias before, the last one first; without the current one.

    What was rolled back from is not among them, until it is promoted again. A version that was put
    there past the gates, in MLflow itself, is: it had the alias.

    Raises:
        LedgerError: the ledger can't be read.
        RegistryError: the registry can't be read.
    """
    past = moves(name, alias)
    if not past:
        marked = [] if stores.is_served() else _tagged(name, alias)
        return [version for version in marked if version != current]
    stack = [past[0].before] if past[0].before is not None else []
    for move in past:
        if move.cause == "rollback" and move.after in stack:
            del stack[stack.index(move.after) + 1 :]
        elif move.after is not None:
            stack = [version for version in stack if version != move.after] + [move.after]
    if current in stack:
        del stack[stack.index(current) :]
    return stack[::-1]


def was_last(
    name: str, alias: str, before: str | alias_moves.Anywhere | None, after: str | None, cause: str
) -> bool:
    """Whether the last move of an alias was this one: then who asks for it asks again.

    Args:
        name: of the registered model.
        alias: of it.
        before: the version that had it.
        after: the version that has it.
        cause: why it was moved, as `rollback`.

    Raises:
        LedgerError: the ledger can't be read.
    """
    past = moves(name, alias)
    return bool(past) and (past[-1].before, past[-1].after, past[-1].cause) == (
        before,
        after,
        cause,
    )


def _tagged(name: str, alias: str) -> list[str]:
    """The versions with the tag, the last promoted first."""
    with failures.explained(f"cannot search the versions of {name!r}"):
        found = mlflow.MlflowClient().search_model_versions(f"name = {versions.quoted(name)}")
    marked = [entry for entry in found if tag(alias) in entry.tags]
    return [
        str(entry.version)
        for entry in sorted(marked, key=lambda entry: entry.tags[tag(alias)], reverse=True)
    ]
