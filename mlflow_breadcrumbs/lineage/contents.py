"""What is behind a version: its lineage, its bytes as they are now, its run."""

import mlflow
import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import tensor_files
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import failures, tag_keys, versions
from mlflow_breadcrumbs.support import canonical


def read_statement(resolved: versions.ResolvedVersion) -> tuple[bytes, statement.Statement]:
    """The `lineage.json` of a version and what it says, held against the version's digest tag.

    Raises:
        RegistryError: the version has none.
        StatementError: it is not a statement of ours.
        IntegrityError: it was changed after the version was registered.
    """
    try:
        content = versions.read_file(resolved, statement.FILE)
    except errors.UnreachableError:
        raise
    except errors.RegistryError as error:
        raise errors.RegistryError(
            f"{error}; only a version that `mlflow-breadcrumbs merge` made has one"
        ) from error
    recorded = resolved.tags.get(tag_keys.LINEAGE_DIGEST)
    if recorded not in (None, canonical.sha256(content)):
        raise errors.IntegrityError(
            f"the {statement.FILE} of {resolved.uri} was changed after it was registered: recorded "
            f"{recorded}, found {canonical.sha256(content)}. See `mlflow-breadcrumbs verify "
            f"{resolved.uri}`, and restore it"
        )
    return content, statement.parse(content)


def digest_of(resolved: versions.ResolvedVersion) -> str:
    """The weights digest of a version's bytes as they are now.

    Raises:
        RegistryError: they are gone, or can't be read.
        CheckpointError: they are no checkpoint any more.
    """
    with versions.workspace() as folder:
        return tensor_files.weights_digest(versions.open_version(resolved, folder).weights)


def lineage_of(
    resolved: versions.ResolvedVersion,
) -> statement.Statement | errors.BreadcrumbsError:
    """A version's `lineage.json`, if it is the one that was registered; else why not.

    Raises:
        UnreachableError: the tracking server does not answer.
    """
    try:
        return read_statement(resolved)[1]
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
