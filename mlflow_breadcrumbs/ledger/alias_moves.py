"""Moving an alias, with the compare-and-set that MLflow lacks.

The ledger is the arbiter. In one writing transaction, so one process at a time, `move` makes sure
that nobody else is moving this alias, reads where it is, compares that with where it is expected,
and writes the intent. Then the alias is moved and read back, and the outcome is written. Who comes
meanwhile waits for that, and then finds the alias where it was not expected.

Where others have a ledger of their own, `turns` go before that, in MLflow.

What is done to the alias in MLflow itself, past this package, takes no turn. It is seen when the
alias is read, before and after; a change in the few milliseconds between that reading and the
moving is overwritten, and nothing in MLflow would tell.
"""

import random
import time
from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_history, events, journal, sharing, turns
from mlflow_breadcrumbs.registry import aliases, failures, uris

Because = Literal["merge", "promote", "rollback", "recheck", "override", "user"]

PATIENCE = 60.0
"""Seconds to wait for another process that is moving the same alias."""


class Anywhere:
    """Expects nothing of where the alias is."""


ANYWHERE = Anywhere()


def set_alias(name: str, alias: str, version: str, because: Because = "merge") -> None:
    """Point an alias at a version, wherever it was, and record that.

    Raises:
        RegistryError: The registry refused.
        PromotionError: Another process is moving the alias, and does not come to an end.
        LedgerError: The ledger can't be written; the alias was not set.
    """
    move(name, alias, version, because=because)


def move(
    name: str,
    alias: str,
    to: str | None,
    *,
    because: Because,
    expected: str | Anywhere | None = ANYWHERE,
    details: Mapping[str, Any] | None = None,
    run_id: str | None = None,
) -> str | None:
    """Move an alias, if it is where it is expected; the version where it was.

    Args:
        name: The registered model.
        alias: Of it.
        to: The version; `None` takes the alias away.
        because: Why, for the history.
        expected: The version where it must be now; `None`: it must not be set.
        details: What else belongs into the history, as `decision` and `policy_digest`.
        run_id: The MLflow run that does it.

    Raises:
        RaceError: The alias is elsewhere; the message says who moved it, if that is known.
        PromotionError: Another process is moving it, and does not come to an end.
        RegistryError: The registry refused, or can't be reached.
        LedgerError: The ledger can't be written; nothing was moved.
    """
    latest = time.monotonic() + PATIENCE
    while True:
        try:
            with turns.taken(name, alias):
                return _move(name, alias, to, because, expected, details or {}, run_id)
        except turns.BusyError as busy:
            if time.monotonic() > latest:
                raise errors.PromotionError(
                    f"{name}@{alias} is being moved {busy}, and there is no end to it; try again "
                    "when that process is done or gone"
                ) from busy
            time.sleep(random.uniform(0.05, 0.2))


def _move(
    name: str,
    alias: str,
    to: str | None,
    because: Because,
    expected: str | Anywhere | None,
    details: Mapping[str, Any],
    run_id: str | None,
) -> str | None:
    """Try once; `turns.BusyError` where another process is at it."""
    sharing.look(name)
    before = aliases.version_at(name, alias)  # a server that is gone must not hold the ledger

    def claim(connection: sql.Connection) -> dict[str, Any]:
        nonlocal before
        for intent in events.open_intents(connection):
            if (intent.kind, intent.name) == ("alias", name) and intent.details.get(
                "alias"
            ) == alias:
                raise turns.BusyError(f"{intent.actor} (event {intent.sequence})", intent.time)
        with failures.without_retries():
            before = aliases.version_at(name, alias)
        if not isinstance(expected, Anywhere) and before != expected:
            raise errors.RaceError(_elsewhere(connection, name, alias, before, expected))
        return {"before": before}

    said = {"alias": alias, "after": to, "because": because, **details}
    number = before if to is None else to
    with journal.recording(
        "alias",
        name,
        subject=uris.of_version(name, number) if number else None,
        run_id=run_id,
        details=said,
        claim=claim,
    ) as job:
        job.add(**said, before=before)
        found = _set(job, name, alias, to)
        if found != to:
            job.unsettled = False
            job.add(found=found)
            raise errors.RaceError(
                f"{name}@{alias} was moved to {_version(to)}, and is at {_version(found)} now: it "
                "was changed at the same time in MLflow itself, past the ledger"
            )
    return before


def _set(job: journal.Recording, name: str, alias: str, to: str | None) -> str | None:
    """Move the alias; where it is after that.

    An interruption, or a server that does not answer, leaves open whether it was moved.
    """
    with job.deciding():
        try:
            with failures.without_retries():
                if to is None:
                    aliases.remove(name, alias)
                else:
                    aliases.point(name, alias, to)
        except errors.UnreachableError:
            if aliases.version_at(name, alias) != to:
                raise
            # Only the answer was lost.
        return aliases.version_at(name, alias)


def _elsewhere(
    connection: sql.Connection,
    name: str,
    alias: str,
    found: str | None,
    expected: str | None,
) -> str:
    """Where an alias is instead, and who moved it there."""
    said = f"{name}@{alias} is at {_version(found)}, and was expected at {_version(expected)}: "
    past = alias_history.read(events.of_name(connection, name), alias)
    if past and past[-1].after == found and past[-1].actor is not None:
        last = past[-1]
        return f"{said}{last.actor} moved it at {last.latest} (event {last.event})"
    return f"{said}no event says who moved it, so it was changed in MLflow itself"


def _version(number: str | None) -> str:
    return "no version" if number is None else f"version {number}"
