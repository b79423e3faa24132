"""What a merge left when it was stopped, taken up by the next call that asks for the same.

Everything is in the run before the model is logged, and in the model's tags and files before it is
READY. So a READY model that no finished run vouches for lacks nothing but its version: its bytes
are held against its tags, and it is registered. Whatever is less is discarded, and merged anew.
"""

import logging

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.engine import tensor_files
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import (
    failures,
    records,
    registering,
    runs,
    tag_keys,
    uris,
    versions,
)
from mlflow_breadcrumbs.support import canonical, scratch

_logger = logging.getLogger(__name__)


def take_up(name: str, request_digest: str) -> records.RegisteredVersion | None:
    """Register the model that a stopped job with this request logged, if it is there and whole.

    A job that may still be running is left alone.

    Args:
        name: of the registered model.
        request_digest: all that makes two calls the same; logged models have it as a tag.

    Raises:
        RegistryError: the tracking server refused, or can't be reached.
    """
    client = mlflow.MlflowClient()
    with failures.explained("cannot search for what a stopped job left"):
        models = client.search_logged_models(
            [runs.experiment_id()],
            filter_string=f"tags.`{tag_keys.REQUEST_DIGEST}` = '{request_digest}'",
        )
        for model in models:
            run = _find_run(model.source_run_id)
            if model.status != LoggedModelStatus.READY or not _is_stopped(run):
                continue
            if _is_whole(model):
                _logger.info("%s was logged by a job that was stopped", model.model_id)
                version = _register(name, model)
                finish(version)
                return version
            _logger.warning("%s is damaged; it is deleted", model.model_id)
            client.delete_logged_model(model.model_id)
    return None


def finish(version: records.RegisteredVersion) -> None:
    """Do what is left of the job that registered a version, if it was stopped before its end."""
    with failures.explained(f"cannot end the run of {version.uri}"):
        if _is_stopped(_find_run(version.run_id)):
            if version.model_id:
                registering.link(version)
            _record(version)
            mlflow.MlflowClient().set_terminated(version.run_id, "FINISHED")
            scratch.sweep()


def _record(version: records.RegisteredVersion) -> None:
    """See to it that the history says how a version came to be.

    An intent that the stopped job left open is settled now that there is the version. A job that
    ended by an error has said that it failed, and one that was settled before, that nothing came
    of it.
    """
    ledger.settle()
    if not ledger.is_made(version.uri):
        details = {"weights_digest": version.weights_digest, "taken_up": True}
        ledger.note(
            "merge", version.name, subject=version.uri, run_id=version.run_id, details=details
        )


def _find_run(run_id: str | None) -> Run | None:
    """A run; `None` if it is not there any more."""
    try:
        return mlflow.MlflowClient().get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _is_stopped(run: Run | None) -> bool:
    """Whether a run's job has ended, but not by its last step."""
    if run is None:
        return False
    return run.info.status in ("FAILED", "KILLED") or runs.is_abandoned(run)


def _register(name: str, model: LoggedModel) -> records.RegisteredVersion:
    """The version of a model: the one that was made before the job was stopped, or a new one."""
    source = uris.of_model(model.model_id)
    if made := registering.versions_of(name, source):
        return versions.resolve(uris.of_version(name, made[0].version)).registered
    own = {key: value for key, value in model.tags.items() if key.startswith("breadcrumbs.")}
    return registering.register(name, model_id=model.model_id, tags=own)


def _is_whole(model: LoggedModel) -> bool:
    """Whether the bytes of a logged model are those that its tags name."""
    try:
        with versions.workspace() as folder:
            opened = versions.open_version(versions.resolve(uris.of_model(model.model_id)), folder)
            weights = tensor_files.weights_digest(opened.weights)
            lineage = canonical.sha256((opened.folder / statement.FILE).read_bytes())
    except (errors.BreadcrumbsError, OSError):
        return False
    return (weights, lineage) == (
        model.tags.get(tag_keys.WEIGHTS_DIGEST),
        model.tags.get(tag_keys.LINEAGE_DIGEST),
    )
