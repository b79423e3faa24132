"""From an open_clip checkpoint, or a pretrained tag, to a registered version."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import torch

from mlflow_breadcrumbs import errors, flavor, ledger
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.evaluation import recorded_tasks
from mlflow_breadcrumbs.ledger import finishing
from mlflow_breadcrumbs.models import architecture, bounds, task_heads, tasks
from mlflow_breadcrumbs.registry import (
    pages,
    permissions,
    records,
    registering,
    runs,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.sources import state_dicts
from mlflow_breadcrumbs.support import canonical, credentials, devices, escaping, progress

HEADS = ("auto", "zero-shot", "probe")

_logger = logging.getLogger(__name__)


def import_checkpoint(
    checkpoint: str,
    *,
    architecture_name: str,
    registered_model: str,
    task: str | None = None,
    task_list: Sequence[tasks.Task] = (),
    task_file: str | None = None,
    head: str = "auto",
    device: str = "auto",
    show: progress.Progress = progress.silent,
) -> records.RegisteredVersion:
    """Register a checkpoint as a new version.

    Args:
        checkpoint: A `.safetensors` file (or the index of shards), a `.pt`, `.pth`, `.bin` or
            `.ckpt` file of plain tensors, or a tag of open_clip's pretrained weights.
        architecture_name: open_clip's name, or the path of a JSON configuration.
        registered_model: Name to register it under.
        task: What it was fine-tuned for. With a task list, only that task's head is made.
        task_list: Tasks to make heads for.
        task_file: Where they are from; it is recorded, for merges that name none.
        head: `zero-shot` (from the text tower), `probe` (from the training images), `auto`
            (zero-shot where there is a text tower, else probe), or a safetensors file.
        device: Where a probe's features are computed.
        show: Told about each batch of a probe.

    Raises:
        CheckpointError: The file is unsafe or damaged, or its tensors aren't the architecture's.
        ArchitectureError: The architecture or the tag is unknown.
        TaskError: A head can't be made.
        RegistryError: The registry refuses the name.
    """
    versions.check_name(registered_model)
    ledger.check()
    permissions.check(registered_model)
    device = devices.choose_device(device)
    if task is not None:
        tasks.check_name(task)
        task_list = (tasks.find(task_list, task),) if task_list else ()
    path, tag = Path(checkpoint), tag_of(checkpoint)
    config = architecture.load_config(architecture_name, pretrained=tag)
    _check_head(head, config, task_list)
    asked = _request_digest(checkpoint, tag, config, registered_model, task, task_list, head)
    if left := finishing.finished(registered_model, "import", asked):
        return left

    mark = {tag_keys.REQUEST_DIGEST: asked}
    with (
        versions.workspace() as space,
        runs.run(f"import {registered_model}", "import", tags=mark) as run_id,
        ledger.recording("import", registered_model, run_id=run_id) as job,
    ):
        if tag is not None:
            model = architecture.build_pretrained(config, tag)
            weights = _write(model.state_dict(), space)
        else:
            found = state_dicts.read(path)
            size = sum(tensor.numel() for tensor in found.values())
            bounds.check_size(config.model_cfg, size, config.architecture)
            config = dataclasses.replace(config, parameters=size)
            computes = bool(task_list) and head in HEADS
            model = architecture.build(config) if computes else architecture.outline(config)
            weights = _weights_of(path, found, model, config, space)
            if computes:
                flavor.load_weights(model, weights)
        made = [_make_head(head, model, config, each, device, show) for each in task_list]
        mlflow.log_params(
            {
                "import.checkpoint": checkpoint,
                "import.architecture": config.architecture,
                "import.head": head,
            }
            | ({recorded_tasks.PARAMETER: recorded_tasks.located(task_file)} if task_file else {})
        )
        users = weights == path  # who may train on with it
        info = flavor.log_model(
            pages.logged_name(registered_model),
            config=config,
            weights=weights,
            keep_weights=users,
            heads=made,
        )
        names = [each.name for each in task_list] or ([task] if task else [])
        tags = {
            tag_keys.KIND: "import",
            tag_keys.WEIGHTS_DIGEST: info.flavors[flavor.FLAVOR_NAME]["weights_digest"],
        }
        if names:
            tags[tag_keys.TASK] = ",".join(names)
        version = registering.register(registered_model, model_id=info.model_id, tags=tags)
        page = _page(version, checkpoint, config, names)
        pages.tell(page, run_id=run_id, uri=version.uri, model=MODEL)
        job.done(version, checkpoint=checkpoint, architecture=config.architecture, tasks=names)
        return version


MODEL = "Checkpoints that `mlflow-breadcrumbs import` registered; each version says which."
"""The description of a registered model that has none."""


def _page(
    version: records.RegisteredVersion,
    checkpoint: str,
    config: architecture.ModelConfig,
    names: Sequence[str],
) -> pages.Page:
    """What MLflow's pages say of an import."""
    origin = escaping.markdown(credentials.hidden(Path(checkpoint).name))
    said = f"The checkpoint {origin}, imported as {escaping.markdown(config.architecture)}"
    said += f", for {pages.listed(names)}." if names else "."
    following = ["evaluate", version.uri, "--tasks", "tasks.yaml"]
    return pages.Page(said, following=["mlflow-breadcrumbs", *following])


def _request_digest(
    checkpoint: str,
    tag: str | None,
    config: architecture.ModelConfig,
    registered_model: str,
    task: str | None,
    task_list: Sequence[tasks.Task],
    head: str,
) -> str:
    """What makes two calls the same: the bytes, what they are taken for, and where they go."""
    path = Path(checkpoint)
    return canonical.digest(
        {
            "checkpoint": checkpoint,
            "file": checkpoints.file_digest(path) if tag is None and path.is_file() else None,
            "architecture": repr(config),
            "registeredModel": registered_model,
            "task": task,
            "tasks": [[each.name, list(each.classes), list(each.templates)] for each in task_list],
            "head": head,
        }
    )


def _weights_of(
    path: Path,
    found: Mapping[str, torch.Tensor],
    model: torch.nn.Module,
    config: architecture.ModelConfig,
    space: Path,
) -> Path:
    """Give a safetensors file with exactly the architecture's tensors.

    It is the checkpoint itself where that is such a file, else a new one in the workspace.
    """
    expected = model.state_dict()
    fitted = state_dicts.fit(
        found,
        expected,
        path=path,
        architecture=config.architecture,
        has_text_tower=config.has_text_tower,
    )
    if fitted.dropped:
        listed = ", ".join(fitted.dropped[:5]) + (", …" if len(fitted.dropped) > 5 else "")
        _logger.warning(
            "%s: left out %s, which the architecture '%s' has no use for",
            path,
            listed,
            config.architecture,
        )
    if path.suffix == ".safetensors":
        with checkpoints.Checkpoint.open(path) as checkpoint:
            if set(checkpoint.names) == set(expected):
                return path
    return _write(fitted.tensors, space)


def _make_head(
    head: str,
    model: torch.nn.Module,
    config: architecture.ModelConfig,
    task: tasks.Task,
    device: str,
    show: progress.Progress,
) -> task_heads.Head:
    if head not in HEADS:
        return task_heads.read_head_file(head, task, embed_dim=config.embed_dim)
    if head == "zero-shot" or (head == "auto" and config.has_text_tower):
        return task_heads.zero_shot_head(model, architecture.tokenizer(config), task)
    preprocess = architecture.preprocess(config)
    return task_heads.probe_head(model, preprocess, task, device=device, show=show)


def _check_head(
    head: str, config: architecture.ModelConfig, task_list: Sequence[tasks.Task]
) -> None:
    """Refuse, before any work, a head that can't be made."""
    if head == "zero-shot" and not config.has_text_tower:
        raise errors.TaskError(
            f"The architecture '{config.architecture}' has no text tower, so no zero-shot head can "
            "be made. Use `--head probe` (needs training images), or `--head FILE`."
        )
    if head != "auto" and not task_list:
        raise errors.TaskError(
            f"`--head {head}` needs `--tasks FILE`, which says what the classes are."
        )
    if head not in HEADS:
        if len(task_list) != 1:
            raise errors.TaskError(
                f"The head file '{head}' is for one task, but there are {len(task_list)}: "
                f"{', '.join(task.name for task in task_list)}. Choose one with `--task`."
            )
        if not Path(head).is_file():
            raise errors.TaskError(
                f"'{head}' is no head: give {', '.join(HEADS)} or an existing safetensors file."
            )


def tag_of(checkpoint: str) -> str | None:
    """The tag of open_clip's weights that `checkpoint` is; `None` where it is meant as a file."""
    path = Path(checkpoint)
    return None if path.exists() or _names_a_file(path) else checkpoint


def _names_a_file(path: Path) -> bool:
    """Whether what doesn't exist was meant as a file and not as a tag."""
    import open_clip

    known = {tag for _, tag in open_clip.list_pretrained()}
    suffixes = state_dicts.PICKLE_SUFFIXES | {".safetensors", ".json"}
    return str(path) not in known and (path.suffix in suffixes or len(path.parts) > 1)


def _write(tensors: Mapping[str, torch.Tensor], space: Path) -> Path:
    path = space / flavor.WEIGHTS_FILE
    flavor.write_weights(tensors, path)
    return path
