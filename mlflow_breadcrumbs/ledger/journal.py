"""Intent, act, outcome: how a job that changes the registry gets into the history.

MLflow and the ledger share no transaction. The intent is written before anything is done, so a
ledger that can't be reached stops a job before it begins; if the process dies, or the ledger is
gone when the job ends, the intent stays open and the next job settles it from what MLflow has.
"""

import contextlib
import dataclasses
import datetime
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlflow
import requests
import sqlalchemy as sql
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events, stores, whereabouts
from mlflow_breadcrumbs.registry import aliases, failures, versions
from mlflow_breadcrumbs.support import processes

TAG_HEAD = "breadcrumbs.ledger_head"
"""On versions and runs: the head of the ledger when their last event was written."""
TIMEOUT = datetime.timedelta(days=1)
"""An intent from another machine is settled after this time, or when its run has ended."""
ALIAS_TIMEOUT = datetime.timedelta(minutes=10)
"""The intent to move an alias, which takes one request without retries, is settled after this."""

_UNREACHABLE = (MlflowException, requests.RequestException)
_logger = logging.getLogger(__name__)


class Recording:
    """A job in progress; `done` says what came of it."""

    def __init__(self, subject: str | None, intent: int) -> None:
        self.subject = subject
        self.intent = intent
        """The sequence of its intent, which what it does can name as its `cause`."""
        self.details: dict[str, Any] = {}
        self.unsettled = False
        """A job that is stopped now writes no outcome: `settle` finds out what came of it."""

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """Hold the one step that counts, so that no outcome is made up.

        An interruption, or a server that does not answer, leaves open whether it was done; every
        other error says that it was not. Once it is done, what stops the job can't say otherwise.
        """
        self.unsettled = True
        try:
            yield
        except errors.UnreachableError:
            raise
        except errors.BreadcrumbsError:
            self.unsettled = False
            raise

    def done(self, version: versions.RegisteredVersion, **details: Any) -> None:
        """The version that the job made, and what else belongs into the history."""
        self.subject = version.uri
        self.details |= {"weights_digest": version.weights_digest, **details}

    def add(self, **details: Any) -> None:
        """What else belongs into the history."""
        self.details |= details


def check() -> None:
    """Make sure that the ledger can be written, before a long job begins.

    Raises:
        LedgerError: It can't.
    """
    with stores.opened() as ledger, ledger.writing():
        pass


@contextlib.contextmanager
def recording(
    kind: str,
    name: str,
    *,
    run_id: str | None = None,
    subject: str | None = None,
    details: Mapping[str, Any] | None = None,
    claim: Callable[[sql.Connection], Mapping[str, Any]] | None = None,
) -> Iterator[Recording]:
    """Write the intent, let the caller act, write the outcome; heads go to MLflow too.

    Args:
        kind: Of the event.
        name: The registered model.
        run_id: The MLflow run that does it.
        subject: The version that it is about, if it exists already.
        details: What is intended.
        claim: Called in the transaction that writes the intent, so by one process at a time; it
            gives more details, or raises, and then there is no intent.

    Raises:
        LedgerError: The intent can't be written; nothing was done.
    """
    settle()
    about = {**(details or {}), "host": socket.gethostname(), "pid": os.getpid()}
    if process := processes.own():
        about["process"] = process
    begun = events.Draft(
        actor=actor(),
        kind=kind,
        phase=events.INTENT,
        name=name,
        subject=subject,
        run_id=run_id,
        details=about,
    )
    with stores.opened() as ledger, ledger.writing() as connection:
        if claim is not None:
            begun = dataclasses.replace(begun, details={**about, **claim(connection)})
        intent = events.append(connection, begun)
    _anchor(intent, begun)
    job = Recording(subject, intent.sequence)
    try:
        yield job
    except BaseException as error:
        if job.unsettled:
            raise
        with contextlib.suppress(errors.RegistryError):
            job.subject = job.subject or _version_of(name, run_id)
        job.add(error=f"{type(error).__name__}: {error}")
        _finish(begun, intent, events.FAILED, job)
        raise
    _finish(begun, intent, events.DONE, job)


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
            _anchor(head, outcome)
            settled += 1
            _logger.warning(
                "the %s of %s that %s began as event %d ended without an outcome; settled as %s",
                *(intent.kind, intent.name, intent.actor, intent.sequence, outcome.phase),
            )
    return settled


def _finish(begun: events.Draft, intent: events.Head, phase: str, job: Recording) -> None:
    """Write the outcome. The act is done: a ledger that is gone now must not undo it."""
    outcome = dataclasses.replace(
        begun,
        phase=phase,
        subject=job.subject,
        intent=intent.sequence,
        details=_writable(job.details),
    )
    try:
        with stores.opened() as ledger, ledger.writing() as connection:
            head = events.append(connection, outcome)
    except errors.LedgerError as error:
        _logger.warning(
            "the outcome of event %d was not written; the next call settles it: %s",
            *(intent.sequence, error),
        )
        return
    _anchor(head, outcome)


def _writable(value: Any) -> Any:
    """Details as JSON can have them: a number that is not finite, as text."""
    if isinstance(value, Mapping):
        return {str(key): _writable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _anchor(head: events.Head, about: events.Draft) -> None:
    """Keep the head in MLflow, on the version that the event is about, or on its run."""
    client = mlflow.MlflowClient()
    try:
        if about.subject is not None and not about.subject.startswith("models:/m-"):
            name, version = about.subject.removeprefix("models:/").rsplit("/", 1)
            client.set_model_version_tag(name, version, TAG_HEAD, head.tag())
        elif about.run_id is not None:
            client.set_tag(about.run_id, TAG_HEAD, head.tag())
    except _UNREACHABLE as error:
        _logger.warning("the ledger's head %s was not kept in MLflow: %s", head, error)


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
    elif intent.kind in ("promotion", "rollback"):
        done, details = _what_a_decision_did(intent)
    elif subject is not None:
        done = intent.run_id is not None and _run_status(intent.run_id) == "FINISHED"
    else:
        subject = _version_of(intent.name, intent.run_id)
        done = subject is not None
    return events.Draft(
        actor=actor(),
        kind=intent.kind,
        phase=events.DONE if done else events.ABANDONED,
        name=intent.name,
        subject=subject,
        run_id=intent.run_id,
        intent=intent.sequence,
        details=_digest_of(subject) | details | {"settled": True},
    )


def _what_an_alias_did(intent: events.Event) -> tuple[bool, dict[str, Any]]:
    """Whether an alias stands where it was to be; what was intended, and where it was found."""
    alias, wanted = whereabouts.target(intent.details, intent.subject) or ("", None)
    found = aliases.version_at(intent.name, alias)
    return found == wanted, _intended(intent) | ({} if found == wanted else {"found": found})


def _what_a_decision_did(intent: events.Event) -> tuple[bool, dict[str, Any]]:
    """Whether a promotion or a rollback has moved its alias, by the events of the alias."""
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
    verdict = {"promotion": "promoted", "rollback": "rolled_back"}[intent.kind]
    return moved, _intended(intent) | ({"verdict": verdict} if moved else {})


def _intended(intent: events.Event) -> dict[str, Any]:
    """The details of an intent, without those of its process."""
    own = ("host", "pid", "process")
    return {key: value for key, value in intent.details.items() if key not in own}


def _version_of(name: str, run_id: str | None) -> str | None:
    """The version of a name that a run has registered, if it has.

    Raises:
        UnreachableError: the server does not answer.
    """
    try:
        found = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    except _UNREACHABLE as error:
        if failures.is_servers(error):
            raise failures.explain(error, f"cannot search the versions of {name!r}") from error
        return None
    numbers = [int(version.version) for version in found if version.name == name]
    return f"models:/{name}/{max(numbers)}" if numbers else None


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
    except _UNREACHABLE as error:
        if failures.is_servers(error):
            raise failures.explain(error, f"cannot read the run {run_id}") from error
        return None


def actor() -> str:
    """Who does this: the user on this machine."""
    return f"{processes.user()}@{socket.gethostname()}"


def note(
    kind: str,
    name: str,
    *,
    subject: str | None = None,
    run_id: str | None = None,
    details: Mapping[str, Any] | None = None,
    anchored: bool = True,
) -> events.Head:
    """Write an event without an intent: of something that is done already, or changes nothing.

    Args:
        kind: Of the event.
        name: The registered model.
        subject: The version that it is about.
        run_id: The MLflow run that did it.
        details: What came of it.
        anchored: Keep the head in MLflow. Whoever only reads a version must not, since that
            replaces the head that was kept there.

    Raises:
        LedgerError: The ledger can't be written.
    """
    draft = events.Draft(
        actor=actor(),
        kind=kind,
        phase=events.DONE,
        name=name,
        subject=subject,
        run_id=run_id,
        details=_writable(details or {}),
    )
    with stores.opened() as ledger, ledger.writing() as connection:
        head = events.append(connection, draft)
    if anchored:
        _anchor(head, draft)
    return head


def anchor_last(written: Sequence[tuple[events.Head, events.Draft]]) -> None:
    """Keep the head in MLflow on the last of the versions that a batch of events is about.

    Every head holds for all events before it, so one does for the batch.
    """
    for head, draft in reversed(written):
        if draft.subject is not None:
            _anchor(head, draft)
            return
