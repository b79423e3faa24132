"""The run that `mlflow run` made for this process, and the way from there to the result.

`mlflow run` makes a run before its command starts, and a job that opens one run works in that one.
The result may be in another: of a merge that existed already, of a decision, which belongs to the
experiment of decisions. Then the project's run is named after the job, and says where the result
is: in its description for people, in its tags for programs.
"""

import contextlib
import logging
from collections.abc import Iterator

import mlflow
import requests
from mlflow.entities import RunTag
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_RUN_NOTE

from mlflow_breadcrumbs.registry import failures, pages, tag_keys

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def resumed(name: str) -> Iterator[str | None]:
    """Make the project's run the active one, if there is one, under this name; its id.

    What opens several runs of its own needs that: the first would be the project's otherwise.

    Raises:
        RegistryError: the run can't be resumed.
    """
    if mlflow.active_run() is not None or not MLFLOW_RUN_ID.get():
        yield None
        return
    with failures.explained("cannot resume the run of `mlflow run`"):
        project = mlflow.start_run(run_name=name)
    with project:
        yield project.info.run_id


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Leave the project's run to what comes after: what is opened inside is a run of its own."""
    given = MLFLOW_RUN_ID.get()
    MLFLOW_RUN_ID.unset()
    try:
        yield
    finally:
        if given:
            MLFLOW_RUN_ID.set(given)


def point(
    name: str,
    said: str,
    *,
    version: str | None = None,
    run_id: str | None = None,
    origin: str | None = None,
) -> None:
    """Let the project's run say what came of the job; nothing without one.

    The job is done: that this fails is logged.

    Args:
        name: of the project's run from now on.
        said: what came of the job, one sentence.
        version: URI of the version that is the result.
        run_id: of the run that has more of it.
        origin: the run to write to, of a job that opened it itself.
    """
    own = origin or _own()
    if own is None or own == run_id:
        return
    client = mlflow.MlflowClient()
    try:
        places = [pages.version_link(version)] if version else []
        places += [pages.run_link(run_id)] if run_id else []
        note = "\n\n".join([said, *(f"- {place}" for place in places)])
        values = {
            MLFLOW_RUN_NOTE: note,
            tag_keys.RESULT: version,
            tag_keys.RESULT_RUN: run_id,
        }
        tags = [RunTag(key, value) for key, value in values.items() if value is not None]
        client.update_run(own, name=name)
        client.log_batch(own, tags=tags)
    except (MlflowException, requests.RequestException) as error:
        _logger.warning("the run %s does not say where the result is: %s", own, error)


def _own() -> str | None:
    """The id of the project's run, whether or not it is the active one."""
    if waiting := MLFLOW_RUN_ID.get():
        return str(waiting)
    active = mlflow.active_run()
    if active is not None and MLFLOW_PROJECT_ENTRY_POINT in active.data.tags:
        return str(active.info.run_id)
    return None
