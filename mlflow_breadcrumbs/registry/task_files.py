"""Task files wherever they lie: on this machine, or among the artifacts that MLflow keeps."""

from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import tasks


def load(path: str | Path) -> tuple[tasks.Task, ...]:
    """Read a task file.

    Args:
        path: A YAML file, or the MLflow artifact URI of one; paths in it are relative to it.

    Raises:
        TaskError: The file is missing or not a valid task file; every fault is listed.
    """
    return tasks.load_tasks(path, fetch)


def fetch(uri: str) -> Path:
    """Bring the file or folder behind an artifact URI here.

    Raises:
        TaskError: It can't be had.
    """
    from mlflow import artifacts, exceptions

    try:
        return Path(artifacts.download_artifacts(artifact_uri=uri))
    except (exceptions.MlflowException, OSError) as error:
        raise errors.TaskError(f"'{uri}' can't be fetched: {error}.") from error
