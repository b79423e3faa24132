"""A registered version as a model in memory, its bytes held against their digest."""

import dataclasses
from pathlib import Path

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.models import architecture, task_heads, tasks
from mlflow_breadcrumbs.registry import versions


def open_base(
    resolved: versions.ResolvedVersion, space: Path, device: str
) -> serving.OpenClipModel:
    """Load a resolved version, its bytes checked against the recorded digest.

    Raises:
        RegistryError: Another flavor logged it.
        IntegrityError: The bytes are not those that were registered.
    """
    opened = versions.open_version(resolved, space)
    digest = checkpoints.weights_digest(opened.weights)
    versions.check_digest(resolved, digest)
    loaded = flavor.load_folder(opened.folder, device, origin=resolved.uri)
    return dataclasses.replace(loaded, weights_digest=digest)


def choose_head(base: serving.OpenClipModel, task: tasks.Task) -> task_heads.Head:
    """Give the base's head for the task, or one from its text tower.

    Raises:
        TaskError: The base has neither.
    """
    if task.name in base.heads:
        return base.heads[task.name]
    if not base.config.has_text_tower:
        raise errors.TaskError(
            f"'{base.origin}' has no text tower and no head for task '{task.name}'. Import the "
            "base with `--tasks FILE --head probe`, or with `--head FILE`."
        )
    return task_heads.zero_shot_head(base.model, architecture.tokenizer(base.config), task)
