"""Where an alias goes after a merge that existed already: never back by accident.

A job that runs every night asks for the same merge and the same alias again. Meanwhile a sweep may
have found a better merge, or a promotion or a rollback may have decided where the alias stands; the
job must not undo that. A merge that is new always gets the alias.
"""

import dataclasses

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.registry import aliases, records, uris

DECIDED = ("promote", "rollback", "recheck")
"""Causes of moves that somebody decided on; see `ledger.Change`."""


@dataclasses.dataclass(frozen=True)
class Pointed:
    """What became of the alias."""

    moved: bool
    """It points at the version now."""
    note: str | None
    """From where to where, or why it stays; `None` where it was there already, or was not set."""


def point(version: records.RegisteredVersion, alias: str, *, force: bool) -> Pointed:
    """Point an alias at a version that existed already, unless that takes it back.

    Args:
        version: That was found again.
        alias: Of its model.
        force: Point it there wherever it is.

    Raises:
        RegistryError: The registry refused, or can't be reached.
        PromotionError: Another process is moving the alias, and does not come to an end.
        LedgerError: The ledger can't be written; the alias was not moved.
    """
    name, number = version.name, version.version
    found = aliases.version_at(name, alias)
    if found == number:
        return Pointed(True, None)
    why = None if force or found is None else _why_not(name, alias, found, number)
    if why is None:
        try:
            ledger.move(name, alias, number, because="merge", expected=found)
        except errors.RaceError as error:
            why = str(error)
        else:
            return Pointed(True, _moved(name, alias, found, number))
    return Pointed(
        False,
        f"{name}@{alias} stays at {_of(name, found)}, and does not go to {version.uri}, which "
        f"existed already: {why}. With --force-alias it goes there",
    )


def _why_not(name: str, alias: str, found: str, number: str) -> str | None:
    """Why an alias must not leave the version where it is; `None` if it may."""
    if int(number) < int(found):
        return "that would take it back to an older version"
    moves = ledger.alias_changes(name, alias)
    if moves and moves[-1].after == found and moves[-1].cause in DECIDED:
        return f"it was put there by {moves[-1].actor} ({moves[-1].cause})"
    return None


def _moved(name: str, alias: str, before: str | None, after: str) -> str | None:
    if before is None:
        return None
    return f"{name}@{alias} went from version {before} to version {after}, which existed already"


def _of(name: str, number: str | None) -> str:
    return "no version" if number is None else uris.of_version(name, number)
