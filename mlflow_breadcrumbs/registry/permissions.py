"""Whether this account may write what a job will write: asked before the job downloads anything.

A server with accounts says what one may not do when it is asked to do it, which a job does last.
"""

from collections.abc import Callable

import mlflow
import requests
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs.registry import database, failures, runs


def check(registered_model: str | None = None) -> None:
    """Make sure that this account may start runs, and make versions of a registered model.

    A server is asked to set a tag without a name. That changes nothing: who may not write is told
    so, and everybody else that a tag has a name.

    Raises:
        RegistryError: the account may not, or the server does not know it.
    """
    if not failures.is_http(mlflow.get_tracking_uri()):
        return
    database.prepare()
    client = mlflow.MlflowClient()
    experiment = runs.experiment_id()
    _ask(
        f"cannot start a run in {_named(client, experiment)}, which needs the permission EDIT",
        lambda: client.set_experiment_tag(experiment, "", ""),
    )
    if registered_model is not None:
        _ask(
            f"cannot make a version of {registered_model!r}, which needs the permission EDIT",
            lambda: client.set_registered_model_tag(registered_model, "", ""),
        )


def _named(client: mlflow.MlflowClient, experiment: str) -> str:
    """An experiment for people: by its name, where that may be known."""
    try:
        return f"the experiment {client.get_experiment(experiment).name!r}"
    except (MlflowException, requests.RequestException):
        return f"the experiment {experiment}"


def _ask(what: str, call: Callable[[], None]) -> None:
    """Let an answer count that says no; any other says nothing of permissions."""
    try:
        call()
    except (MlflowException, requests.RequestException) as error:
        if failures.is_forbidden(error):
            raise failures.explain(error, what) from error
