"""The zoo: the base with its heads, and a fine-tuned source per task and seed, all registered.

Everything that was made before is found in the registry by its name and not made again, so a
call that was stopped at any point goes on with the next one.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import mlflow

from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.sources import finetuning, importing, training

BASE = "study-base"

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Zoo:
    """What one seed of the study is measured with."""

    base: str
    """URI of the base."""
    sources: Mapping[str, str]
    """URIs of the sources by task."""
    task_file: str


def use_store(folder: Path) -> None:
    """Point MLflow at a SQLite store of the study's own, with its artifacts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder.resolve()}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if mlflow.get_experiment_by_name("study") is None:
        mlflow.create_experiment(
            "study", artifact_location=(folder / "artifacts").resolve().as_uri()
        )
    mlflow.set_experiment("study")


def base(
    checkpoint: str,
    architecture: str,
    heads: tuple[tasks.Task, ...],
    head: str,
    device: str = "auto",
) -> str:
    """Register the base with a head per task, unless it is there.

    Args:
        checkpoint: A file, or a tag of open_clip's weights.
        architecture: open_clip's name, or a JSON configuration.
        heads: The tasks with the images that heads are fitted on.
        head: `probe`, or `zero-shot` for a model with a text tower.
        device: See `mlflow_breadcrumbs.support.devices`.

    Returns:
        Its URI.
    """
    known = _first(BASE)
    if known is not None:
        return known
    return importing.import_checkpoint(
        checkpoint,
        architecture_name=architecture,
        registered_model=BASE,
        task_list=heads,
        head=head,
        device=device,
    ).uri


def source(
    base_uri: str,
    task: tasks.Task,
    seed: int,
    settings: training.TrainingSettings,
    states: Path,
    device: str = "auto",
    variant: str = "",
) -> str:
    """Fine-tune the base on a task, unless that was done with this seed.

    Args:
        base_uri: What `base` gave.
        task: With training and validation images.
        seed: Of the order of the images and of their crops.
        settings: All others.
        states: A folder for the state after each epoch.
        device: See `mlflow_breadcrumbs.support.devices`.
        variant: Tells sources apart that were trained otherwise.

    Returns:
        Its URI.
    """
    known = find(task.name, seed, variant)
    if known is not None:
        return known
    _logger.info("fine-tuning for %s, seed %d", task.name, seed)
    return finetuning.finetune(
        base_uri,
        task,
        registered_model=_name(task.name, seed, variant),
        settings=dataclasses.replace(settings, seed=seed),
        device=device,
        folder=states / f"{variant}{task.name}-{seed}",
    ).uri


def find(task: str, seed: int, variant: str = "") -> str | None:
    """The source of a task and seed, if it is registered."""
    return _first(_name(task, seed, variant))


def opened(task_file: Path, names: tuple[str, ...], seed: int) -> Zoo | None:
    """The zoo of a seed; none while a source is missing."""
    sources = {name: find(name, seed) for name in names}
    base_uri = _first(BASE)
    found = {name: uri for name, uri in sources.items() if uri is not None}
    if base_uri is None or len(found) < len(names):
        return None
    return Zoo(base_uri, found, str(task_file))


def train(
    base_uri: str,
    task_list: tuple[tasks.Task, ...],
    seeds: tuple[int, ...],
    settings: training.TrainingSettings,
    states: Path,
    on_time: Callable[[], bool],
    device: str = "auto",
) -> int:
    """Fine-tune for every task, seed after seed, while there is time.

    Returns:
        How many sources are missing still.
    """
    wanted = [(seed, task) for seed in seeds for task in task_list]
    for done, (seed, task) in enumerate(wanted):
        if find(task.name, seed) is None and not on_time():
            return len(wanted) - done
        source(base_uri, task, seed, settings, states, device)
    return 0


def _name(task: str, seed: int, variant: str) -> str:
    return f"study-{variant}{task}-{seed}"


def _first(name: str) -> str | None:
    """The first version of a registered model, if it has one."""
    found = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    return f"models:/{name}/{min(int(each.version) for each in found)}" if found else None
