"""The MLflow run of a job: opened, ended however the job ends, and closed for one that was killed.

A killed job leaves a run that is RUNNING for ever, and perhaps a logged model that is PENDING. So
each run names the process that works on it; the next job on this machine closes the runs whose
processes are gone. Runs of other machines are left alone: from here, they can't be told from live
ones.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping

import mlflow
import requests
from mlflow.entities import LifecycleStage, LoggedModelStatus, Run
from mlflow.environment_variables import (
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
    MLFLOW_RUN_ID,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_USER

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import accounts, database, failures, tag_keys
from mlflow_breadcrumbs.support import processes

TAG_PROCESS = "breadcrumbs.process"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run(
    name: str,
    kind: str,
    *,
    tags: Mapping[str, str] | None = None,
    nested: bool = False,
    experiment: str | None = None,
) -> Iterator[str]:
    """The run of a job, which `mlflow run` may have made already; its id.

    It ends as FINISHED, as FAILED by an error, or as KILLED by an interruption; the logged models
    that were not finished are deleted then.

    Args:
        name: of a new run.
        kind: of the job; a tag, since a run that only evaluates a model has model inputs too.
        tags: more tags.
        nested: open a run under the active one, if there is one, instead of using that.
        experiment: the id of the one that a new run belongs to, if not the active one.

    Raises:
        RegistryError: MLflow refused something inside, or can't be reached, or the disk is full.
    """
    database.prepare()
    active = mlflow.active_run()
    marks = {tag_keys.KIND: kind, **(tags or {})}
    if account := accounts.account():
        marks[MLFLOW_USER] = account
    if active is not None and not nested:
        with failures.explained(f"{name} stopped"):
            mlflow.set_tags(marks)
            yield active.info.run_id
        return
    if process := processes.own():
        marks[TAG_PROCESS] = process
    with failures.explained("cannot start a run"):
        close_abandoned(experiment)
        started = mlflow.start_run(
            run_name=name, nested=active is not None, tags=marks, experiment_id=experiment
        )
    try:
        with failures.explained(f"{name} stopped"):
            yield started.info.run_id
    except BaseException as error:
        _fail(started, error)
        raise
    with failures.explained("cannot end the run"):
        mlflow.end_run()


def experiment_named(name: str) -> str:
    """The id of an experiment, which is made if there is none of that name.

    Raises:
        RegistryError: it was deleted, or can't be made.
    """
    client = mlflow.MlflowClient()
    with failures.explained(f"cannot use the experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found is None or found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise errors.RegistryError(
            f"the experiment {name!r} was deleted; restore it (`mlflow experiments restore`), or "
            "name another one"
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def in_experiment(name: str) -> Iterator[None]:
    """Let new runs belong to an experiment, which is made when the first of them begins.

    The run that `mlflow run` made stays where it is.

    Args:
        name: of the experiment.

    Raises:
        RegistryError: this is the process of `mlflow run`, whose run belongs to another one.
    """
    _check_project(name)
    variables = {each: each.get_raw() for each in (MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID)}
    active, fluent._active_experiment_id = fluent._active_experiment_id, None
    MLFLOW_EXPERIMENT_NAME.set(name)
    MLFLOW_EXPERIMENT_ID.unset()
    try:
        yield
    finally:
        fluent._active_experiment_id = active
        for variable, value in variables.items():
            if value is None:
                variable.unset()
            else:
                variable.set(value)


def _check_project(name: str) -> None:
    """Raise `RegistryError` where `mlflow run` has put the job's run into another experiment."""
    run_id = MLFLOW_RUN_ID.get()
    if not run_id:
        return
    client = mlflow.MlflowClient()
    with failures.explained("cannot read the run of `mlflow run`"):
        found = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    if found != name:
        raise errors.RegistryError(
            f"the run of `mlflow run` belongs to the experiment {found!r}, not to {name!r}; leave "
            "--experiment out, and give `mlflow run` --experiment-name"
        )


def close_abandoned(experiment: str | None = None) -> None:
    """End the runs of an experiment, the active one, whose processes were killed on this machine.

    Args:
        experiment: the id of another one.
    """
    here = processes.machine()
    if here is None:
        return
    client = mlflow.MlflowClient()
    running = f"attributes.status = 'RUNNING' and tags.`{TAG_PROCESS}` LIKE '{here}/%'"
    for found in client.search_runs([experiment or experiment_id()], running):
        if is_abandoned(found):
            _logger.info("the run %s was left by a killed process; it ends", found.info.run_id)
            _discard_unfinished(found)
            client.set_terminated(found.info.run_id, "KILLED")


def is_abandoned(found: Run) -> bool:
    """Whether a run is RUNNING and its process is gone."""
    process = found.data.tags.get(TAG_PROCESS, "")
    return found.info.status == "RUNNING" and processes.is_gone(process)


def experiment_id() -> str:
    """The experiment that jobs log to, which is made if it is only named."""
    name = MLFLOW_EXPERIMENT_NAME.get()
    named = name if fluent._active_experiment_id is None else None
    if named and mlflow.MlflowClient().get_experiment_by_name(named) is None:
        experiment_named(named)  # MLflow stops where another process makes it at the same time
    return str(fluent._get_experiment_id())


def _fail(started: Run, error: BaseException) -> None:
    """End a run whose job stopped; that this fails too must not hide why the job did."""
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
    try:
        with failures.without_retries():
            mlflow.end_run("KILLED" if interrupted else "FAILED")
            _discard_unfinished(started)
    except (MlflowException, requests.RequestException) as failure:
        _logger.warning(
            "the run %s could not be ended (%s); the next job on this machine ends it",
            started.info.run_id,
            type(failure).__name__,
        )


def _discard_unfinished(found: Run) -> None:
    """Delete the logged models of a run whose files are not all there."""
    client = mlflow.MlflowClient()
    own = f"source_run_id = '{found.info.run_id}'"
    for model in client.search_logged_models([found.info.experiment_id], filter_string=own):
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
