"""What a job that was stopped after it had registered its version has left to do, done later.

The same call again must not make a second version: it finds the run of the stopped one by the
digest of what was asked for, and the version by its run.
"""

from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs.ledger import audit, events, journal, queries, settling
from mlflow_breadcrumbs.registry import (
    database,
    failures,
    projects,
    records,
    registering,
    runs,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.support import scratch


def finished(name: str, kind: str, request_digest: str) -> records.RegisteredVersion | None:
    """The version that a stopped job with this request registered, finished; if there is one.

    A job that may still be running is left alone.

    Args:
        name: Of the registered model.
        kind: Of the job.
        request_digest: All that makes two calls the same; the job's run has it as a tag.

    Raises:
        RegistryError: The tracking server refused, or can't be reached.
    """
    database.prepare()
    asked = f"tags.`{tag_keys.REQUEST_DIGEST}` = '{request_digest}'"
    with failures.explained("cannot search for what a stopped job left"):
        found = mlflow.MlflowClient().search_runs(
            [runs.experiment_id()], f"{asked} and tags.`{tag_keys.KIND}` = '{kind}'"
        )
    for run in filter(is_stopped, found):
        if uri := settling.version_of(name, run.info.run_id):
            version = versions.resolve(uri).registered
            finish(version, kind)
            said = f"This {kind} was stopped after it had registered {version.uri}; now it is done."
            projects.point(f"{kind} {name}", said, version=version.uri, run_id=version.run_id)
            return version
    return None


def finish(version: records.RegisteredVersion, kind: str) -> bool:
    """Do what is left of the job that registered a version; whether it was stopped before that."""
    with failures.explained(f"cannot end the run of {version.uri}"):
        if not is_stopped(find_run(version.run_id)):
            return False
        if version.model_id:
            registering.link(version)
        _record(version, kind)
        mlflow.MlflowClient().set_terminated(version.run_id, "FINISHED")
        scratch.sweep()
        return True


def find_run(run_id: str | None) -> Run | None:
    """A run; `None` if it is not there any more."""
    try:
        return mlflow.MlflowClient().get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def is_stopped(run: Run | None) -> bool:
    """Whether a run's job has ended, but not by its last step."""
    if run is None:
        return False
    return run.info.status in ("FAILED", "KILLED") or runs.is_abandoned(run)


def _record(version: records.RegisteredVersion, kind: str) -> None:
    """See to it that the history says how a version came to be.

    An intent that the stopped job left open is settled now that there is the version. A job that
    ended by an error has said that it failed, and one that was settled before, that nothing came
    of it.
    """
    settling.settle()
    if not audit.is_made(version.uri):
        details: dict[str, Any] = {"weights_digest": version.weights_digest, "taken_up": True}
        details |= _begun_by(version, kind)
        journal.note(
            kind, version.name, subject=version.uri, run_id=version.run_id, details=details
        )


def _begun_by(version: records.RegisteredVersion, kind: str) -> dict[str, str]:
    """Who began the job that registered a version, as a detail; none where no intent says it."""
    for event in queries.history(version.name):
        if event.phase == events.INTENT and (event.kind, event.run_id) == (kind, version.run_id):
            return {events.BEGUN_BY: event.actor}
    return {}
