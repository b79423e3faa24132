"""What a merge left when it was stopped, taken up by the next call that asks for the same.

Everything is in the run before the model is logged, and in the model's tags and files before it is
READY. So a READY model that no finished run vouches for lacks nothing but its version: its bytes
are held against its tags, and it is registered. Whatever is less is discarded, and merged anew.
"""

import logging

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import tensor_files
from mlflow_breadcrumbs.ledger import finishing
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
from mlflow_breadcrumbs.support import canonical

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
            run = finishing.find_run(model.source_run_id)
            if model.status != LoggedModelStatus.READY or not finishing.is_stopped(run):
                continue
            if _is_whole(model):
                _logger.info("%s was logged by a job that was stopped", model.model_id)
                version = _register(name, model)
                finishing.finish(version, "merge")
                return version
            _logger.warning("%s is damaged; it is deleted", model.model_id)
            client.delete_logged_model(model.model_id)
    return None


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
