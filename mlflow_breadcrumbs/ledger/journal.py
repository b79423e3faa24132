"""Intent, act, outcome: how a job that changes the registry gets into the history.

MLflow and the ledger share no transaction. The intent is written before anything is done, so a
ledger that can't be reached stops a job before it begins; if the process dies, or the ledger is
gone when the job ends, the intent stays open and the next job settles it from what MLflow has.
"""

import contextlib
import dataclasses
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events, settling, sharing, stores
from mlflow_breadcrumbs.registry import records
from mlflow_breadcrumbs.support import processes

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

    def done(self, version: records.RegisteredVersion, **details: Any) -> None:
        """The version that the job made, and what else belongs into the history."""
        self.subject = version.uri
        self.details |= {"weights_digest": version.weights_digest, **details}

    def add(self, **details: Any) -> None:
        """What else belongs into the history."""
        self.details |= details


def check() -> None:
    """Make sure that the ledger can be written, before a long job begins.

    Raises:
        LedgerError: It can't, or the user has no name that it takes.
    """
    events.actor()
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
    settling.settle()
    about = {**(details or {}), "host": socket.gethostname(), "pid": os.getpid()}
    if process := processes.own():
        about["process"] = process
    begun = events.Draft(
        actor=events.actor(),
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
    sharing.publish(intent, begun)
    job = Recording(subject, intent.sequence)
    try:
        yield job
    except BaseException as error:
        if job.unsettled:
            raise
        with contextlib.suppress(errors.RegistryError):
            job.subject = job.subject or settling.version_of(name, run_id)
        job.add(error=f"{type(error).__name__}: {error}")
        _finish(begun, intent, events.FAILED, job)
        raise
    _finish(begun, intent, events.DONE, job)


def _finish(begun: events.Draft, intent: events.ChainHead, phase: str, job: Recording) -> None:
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
    sharing.publish(head, outcome)


def _writable(value: Any) -> Any:
    """Details as JSON can have them: a number that is not finite, as text."""
    if isinstance(value, Mapping):
        return {str(key): _writable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def note(
    kind: str,
    name: str,
    *,
    subject: str | None = None,
    run_id: str | None = None,
    details: Mapping[str, Any] | None = None,
    anchored: bool = True,
) -> events.ChainHead:
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
        actor=events.actor(),
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
        sharing.publish(head, draft)
    return head
