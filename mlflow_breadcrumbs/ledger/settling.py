"""Intents without an outcome: what came of the jobs that were killed.

The next job that opens the ledger asks MLflow, and writes the outcome that is missing.
"""

import datetime
import logging
import os
import socket
from typing import Any

import mlflow

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_state, anchors, events, sharing, stores
from mlflow_breadcrumbs.registry import aliases, failures, uris, versions
from mlflow_breadcrumbs.support import processes

TIMEOUT = datetime.timedelta(days=1)
"""An intent from another machine is settled after this time, or when its run has ended."""
ALIAS_TIMEOUT = datetime.timedelta(minutes=10)
"""The intent to move an alias, which takes one request without retries, is settled after this."""
_DECIDED = {"promotion": "promoted", "rollback": "rolled_back", "override": "overridden"}
"""What an event says that moved an alias by a decision, by its kind."""

_logger = logging.getLogger(__name__)


def settle() -> int:
    """Write the outcome of every intent whose job ended without one; how many there were.

    Raises:
        LedgerError: The ledger can't be used.
    """
    settled = 0
    with stores.opened() as ledger:
        with ledger.reading() as connection:
            waiting = [intent for intent in events.open_intents(connection) if _is_over(intent)]
        # Aliases first, since the outcome of a promotion is what its alias did.
        for intent in sorted(waiting, key=lambda intent: intent.kind != "alias"):
            try:
                outcome = _what_became(intent)
            except errors.RegistryError as error:
                _logger.warning("event %d can't be settled now: %s", intent.sequence, error)
                continue
            with ledger.writing() as connection:
                if not events.is_open(connection, intent.sequence):
                    continue  # another process was faster
                head = events.append(connection, outcome)
            sharing.publish(head, outcome)
            settled += 1
            _logger.warning(
                "the %s of %s that %s began as event %d ended without an outcome; settled as %s",
                *(intent.kind, intent.name, intent.actor, intent.sequence, outcome.phase),
            )
    return settled


def _is_over(intent: events.Event) -> bool:
    """Whether the job behind an intent runs no more.

    A process that certainly lives is believed for a day without asking MLflow, unless it is this
    one: then a run that has ended says that only the outcome could not be written. Moving an alias
    takes seconds, so that one which takes longer than `ALIAS_TIMEOUT` is stuck, or was given up.
    """
    alive = _lives(intent)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(intent.time)
    if alive is False or (intent.kind == "alias" and age > ALIAS_TIMEOUT):
        return True
    if alive and age < TIMEOUT and intent.details.get("process") != processes.own():
        return False
    if intent.run_id is not None and _has_ended(intent.run_id):
        return True
    return not alive and age > TIMEOUT


def _lives(intent: events.Event) -> bool | None:
    """Whether the process behind an intent runs; `None` of another machine's."""
    process = intent.details.get("process")
    if process is not None:
        return not processes.is_gone(process) if processes.is_here(process) else None
    if intent.details.get("host") != socket.gethostname():
        return None
    if os.name == "nt":  # where 0 is a signal that ends the process
        return None
    try:
        os.kill(int(intent.details.get("pid", 0)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _what_became(intent: events.Event) -> events.Draft:
    """The outcome of a job that left none, read off MLflow.

    Raises:
        UnreachableError: MLflow can't be asked.
    """
    subject = intent.subject
    details: dict[str, Any] = {}
    if intent.kind == "alias":
        done, details = _what_an_alias_did(intent)
    elif intent.kind in _DECIDED:
        done, details = _what_a_decision_did(intent)
    elif subject is not None:
        done = intent.run_id is not None and _run_status(intent.run_id) == "FINISHED"
    else:
        subject = version_of(intent.name, intent.run_id)
        done = subject is not None
    actor = events.actor()
    begun = {events.BEGUN_BY: intent.actor} if intent.actor != actor else {}
    return events.Draft(
        actor=actor,
        kind=intent.kind,
        phase=events.DONE if done else events.ABANDONED,
        name=intent.name,
        subject=subject,
        run_id=intent.run_id,
        intent=intent.sequence,
        details=_digest_of(subject) | details | {"settled": True} | begun,
    )


def _what_an_alias_did(intent: events.Event) -> tuple[bool, dict[str, Any]]:
    """Whether an alias stands where it was to be; what was intended, and where it was found."""
    alias, wanted = alias_state.target(intent.details, intent.subject) or ("", None)
    found = aliases.version_at(intent.name, alias)
    return found == wanted, _intended(intent) | ({} if found == wanted else {"found": found})


def _what_a_decision_did(intent: events.Event) -> tuple[bool, dict[str, Any]]:
    """Whether what decides about an alias has moved it, by the events of the alias."""
    with stores.opened() as ledger, ledger.reading() as connection:
        caused = [
            event
            for event in events.of_name(connection, intent.name)
            if event.kind == "alias" and event.details.get("cause") == intent.sequence
        ]
        begun = [event for event in caused if event.phase == events.INTENT]
        if any(events.is_open(connection, event.sequence) for event in begun):
            raise errors.UnreachableError("what became of its alias is not known yet")
    moved = any(event.phase == events.DONE for event in caused)
    verdict = {"verdict": _DECIDED[intent.kind]}
    return moved, _intended(intent) | (verdict if moved else {})


def _intended(intent: events.Event) -> dict[str, Any]:
    """The details of an intent, without those of its process."""
    own = ("host", "pid", "process")
    return {key: value for key, value in intent.details.items() if key not in own}


def version_of(name: str, run_id: str | None) -> str | None:
    """The version of a name that a run has registered, if it has.

    Raises:
        UnreachableError: the server does not answer.
    """
    try:
        found = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    except anchors.UNREACHABLE as error:
        if failures.is_servers(error):
            raise failures.explain(error, f"cannot search the versions of {name!r}") from error
        return None
    numbers = [int(version.version) for version in found if version.name == name]
    return uris.of_version(name, max(numbers)) if numbers else None


def _digest_of(subject: str | None) -> dict[str, Any]:
    if subject is None:
        return {}
    try:
        return {"weights_digest": versions.resolve(subject).recorded_digest}
    except errors.RegistryError:
        return {}


def _has_ended(run_id: str) -> bool:
    """Whether a run is over or gone; not where the server doesn't tell."""
    try:
        return _run_status(run_id) not in ("RUNNING", "SCHEDULED")
    except errors.RegistryError:
        return False


def _run_status(run_id: str) -> str | None:
    """The status of a run; `None` where there is none.

    Raises:
        UnreachableError: the server does not answer.
    """
    try:
        return str(mlflow.MlflowClient().get_run(run_id).info.status)
    except anchors.UNREACHABLE as error:
        if failures.is_servers(error):
            raise failures.explain(error, f"cannot read the run {run_id}") from error
        return None
