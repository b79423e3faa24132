"""What is in a run: metrics and small files, read and written."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import mlflow
from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from mlflow_breadcrumbs.registry import artifacts, failures, versions

TOGETHER = 100
"""Runs that are asked for in one request."""


def has_run(run_id: str) -> bool:
    """Whether a run is there and not deleted."""
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException:
        return False


def read_metrics(run_id: str) -> dict[str, float]:
    """The latest values of a run's metrics."""
    return dict(mlflow.get_run(run_id).data.metrics)


def read_metric(run_ids: Iterable[str], key: str) -> dict[str, float]:
    """One metric of many runs, by the run; without those that are gone or don't have it.

    Raises:
        RegistryError: the runs can't be read.
    """
    found = read_runs(run_ids)
    return {run: each.data.metrics[key] for run, each in found.items() if key in each.data.metrics}


def read_runs(run_ids: Iterable[str]) -> dict[str, Run]:
    """Many runs by their ids, a few requests for all; without those that are gone.

    Raises:
        RegistryError: the runs can't be read.
    """
    asked = sorted(set(run_ids))
    found: dict[str, Run] = {}
    for start in range(0, len(asked), TOGETHER):
        listed = ", ".join(f"'{run_id}'" for run_id in asked[start : start + TOGETHER])
        with failures.explained("cannot read the runs"):
            runs = mlflow.search_runs(
                search_all_experiments=True,
                filter_string=f"attributes.run_id IN ({listed})",
                output_format="list",
            )
        found |= {str(run.info.run_id): run for run in runs}
    return found


def read_text(run_id: str, path: str) -> str | None:
    """A small file of a run; `None` where it, or the run, is not there."""
    if not has_run(run_id):
        return None
    content = read_bytes(run_id, path)
    return None if content is None else content.decode()


def read_bytes(run_id: str, path: str) -> bytes | None:
    """A small file of a run; `None` where it is not there."""
    with versions.workspace() as folder:
        kept = files_of(run_id, folder)
        return kept.file(path).read_bytes() if path in kept.list() else None


def read_pictures(run_id: str, place: str) -> dict[str, bytes]:
    """The PNG files in a folder of a run, by their names without suffix, sorted."""
    with versions.workspace() as folder:
        kept = files_of(run_id, folder)
        paths = [path for path in kept.list() if Path(path).match(f"{place}/*.png")]
        return {Path(path).stem: kept.file(path).read_bytes() for path in paths}


def files_of(run_id: str, folder: Path) -> artifacts.Artifacts:
    """A run's files; downloads go into the folder."""
    location = mlflow.get_run(run_id).info.artifact_uri
    return artifacts.Artifacts(f"the run {run_id}", location, folder)


def log_bytes(run_id: str, content: bytes, path: str) -> None:
    """A file of a run, from memory."""
    with versions.workspace() as folder:
        file = folder / Path(path).name
        file.write_bytes(content)
        inside = Path(path).parent.as_posix()
        mlflow.MlflowClient().log_artifact(run_id, str(file), None if inside == "." else inside)


def log_files(run_id: str, contents: Mapping[str, bytes], folder: str) -> None:
    """Files in a folder of a run's artifacts, by their names."""
    for name, content in contents.items():
        log_bytes(run_id, content, f"{folder}/{name}")


def log_metrics(
    run_id: str, values: Mapping[str, float], step: int = 0, *, model_id: str | None = None
) -> None:
    """All in one request, instead of one each."""
    mlflow.MlflowClient().log_batch(run_id, metrics=as_metrics(values, step, model_id))


def as_metrics(
    values: Mapping[str, float], step: int = 0, model_id: str | None = None
) -> list[Metric]:
    """Metrics by name as MLflow takes them in one request."""
    now = get_current_time_millis()
    return [Metric(key, value, now, step, model_id=model_id) for key, value in values.items()]
