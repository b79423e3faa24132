"""What is behind a version: its bytes as they are now, its lineage, the run that made it."""

import mlflow
import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors, lineage, statement
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.registry import failures, versions


def digest_of(resolved: versions.ResolvedVersion) -> str:
    """The weights digest of a version's bytes as they are now.

    Raises:
        RegistryError: they are gone, or can't be read.
        CheckpointError: they are no checkpoint any more.
    """
    with versions.workspace() as folder:
        return checkpoints.weights_digest(versions.open_version(resolved, folder).weights)


def lineage_of(
    resolved: versions.ResolvedVersion,
) -> statement.Statement | errors.BreadcrumbsError:
    """A version's `lineage.json`, if it is the one that was registered; else why not.

    Raises:
        UnreachableError: the tracking server does not answer.
    """
    try:
        return lineage.read_statement(resolved)[1]
    except errors.UnreachableError:
        raise
    except (errors.RegistryError, errors.StatementError, errors.IntegrityError) as error:
        return error


def run_of(resolved: versions.ResolvedVersion) -> Run | None:
    """The MLflow run that made a version; `None` where it is gone.

    Raises:
        UnreachableError: the tracking server does not answer.
    """
    if resolved.run_id is None:
        return None
    try:
        return mlflow.MlflowClient().get_run(resolved.run_id)
    except (MlflowException, requests.RequestException) as error:
        if failures.is_servers(error):
            raise failures.explain(error, f"cannot read the run of {resolved.uri}") from error
        return None
