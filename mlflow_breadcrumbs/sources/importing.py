"""From an open_clip checkpoint, or a pretrained tag, to a registered version."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import torch

from mlflow_breadcrumbs import errors, flavor, ledger
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.models import architecture, task_heads, tasks
from mlflow_breadcrumbs.registry import records, registering, runs, tag_keys, versions
from mlflow_breadcrumbs.support import devices, progress

HEADS = ("auto", "zero-shot", "probe")

_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
_PREFIXES = ("module.", "model.")
"""What DistributedDataParallel, and a class around the model, put before every name."""


def import_checkpoint(
    checkpoint: str,
    *,
    architecture_name: str,
    registered_model: str,
    task: str | None = None,
    task_list: Sequence[tasks.Task] = (),
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
    device = devices.choose_device(device)
    if task is not None:
        tasks.check_name(task)
        task_list = (tasks.find(task_list, task),) if task_list else ()
    path, tag = Path(checkpoint), tag_of(checkpoint)
    config = architecture.load_config(architecture_name, pretrained=tag)
    _check_head(head, config, task_list)

    with (
        versions.workspace() as space,
        runs.run(f"import {registered_model}", "import") as run_id,
        ledger.recording("import", registered_model, run_id=run_id) as job,
    ):
        if tag is not None:
            model = architecture.build_pretrained(config, tag)
            weights = _write(model.state_dict(), space)
        elif task_list and head in HEADS:
            model = architecture.build(config)
            weights = _fitting(path, model, config, space)
            flavor.load_weights(model, weights)
        else:  # nothing is computed with it
            model = architecture.outline(config)
            weights = _fitting(path, model, config, space)
        made = [_make_head(head, model, config, each, device, show) for each in task_list]
        mlflow.log_params(
            {
                "import.checkpoint": checkpoint,
                "import.architecture": config.architecture,
                "import.head": head,
            }
        )
        users = weights == path  # who may train on with it
        info = flavor.log_model(
            "model", config=config, weights=weights, keep_weights=users, heads=made
        )
        names = [each.name for each in task_list] or ([task] if task else [])
        tags = {
            tag_keys.KIND: "import",
            tag_keys.WEIGHTS_DIGEST: info.flavors[flavor.FLAVOR_NAME]["weights_digest"],
        }
        if names:
            tags[tag_keys.TASK] = ",".join(names)
        version = registering.register(registered_model, model_id=info.model_id, tags=tags)
        job.done(version, checkpoint=checkpoint, architecture=config.architecture, tasks=names)
        return version


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file, without running anything that is in it.

    A pickle is read with torch's `weights_only`, which knows tensors and plain containers and
    nothing else. `state_dict` around the tensors, and `module.` or `model.` before every name, are
    taken away.

    Raises:
        CheckpointError: The file is damaged, or holds more than tensors.
    """
    path = Path(path)
    if path.suffix not in _PICKLE_SUFFIXES:
        with checkpoints.Checkpoint.open(path) as checkpoint:
            return _without_prefix({name: checkpoint.tensor(name) for name in checkpoint.names})
    if not path.is_file():
        raise errors.CheckpointError(f"There is no checkpoint '{path}'.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes make it do
        raise errors.CheckpointError(_refusal(path, error)) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise errors.CheckpointError(
            f"'{path}' holds {type(content).__name__}, not a mapping of names to tensors. "
            f"{_how_to_convert(path)}"
        )
    others = sorted(str(name) for name, v in content.items() if not isinstance(v, torch.Tensor))
    if others:
        raise errors.CheckpointError(
            f"'{path}' holds more than tensors: {_abridged(others)}. Save only the model's "
            "state_dict()."
        )
    return _without_prefix(content)


@dataclasses.dataclass(frozen=True)
class _Difference:
    """How a checkpoint's tensors differ from an architecture's, each list sorted."""

    missing: list[str]
    extra: list[str]
    mismatching: list[str]

    @classmethod
    def between(
        cls, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
    ) -> "_Difference":
        return cls(
            missing=sorted(set(expected) - set(found)),
            extra=sorted(set(found) - set(expected)),
            mismatching=[
                f"{name} ({_form(found[name])}, not {_form(expected[name])})"
                for name in sorted(set(found) & set(expected))
                if found[name].shape != expected[name].shape
                or found[name].is_floating_point() != expected[name].is_floating_point()
            ],
        )

    def check(self, path: Path, config: architecture.ModelConfig) -> None:
        """Raise `CheckpointError` unless there is no difference."""
        parts = [
            f"{what}: {_abridged(names)}"
            for what, names in dataclasses.asdict(self).items()
            if names
        ]
        if parts:
            raise errors.CheckpointError(
                f"'{path}' is not a checkpoint of the architecture '{config.architecture}'. "
                f"{'; '.join(parts)}. Give the architecture that it was trained with."
            )


def _fitting(
    path: Path, model: torch.nn.Module, config: architecture.ModelConfig, space: Path
) -> Path:
    """Give a safetensors file with exactly the architecture's tensors.

    It is the checkpoint itself where that is such a file, else a new one in the workspace.
    """
    found = read_state_dict(path)
    expected = model.state_dict()
    if not config.has_text_tower:
        found = _with_placeholder(found, expected)
    _Difference.between(found, expected).check(path, config)
    if path.suffix == ".safetensors":
        with checkpoints.Checkpoint.open(path) as checkpoint:
            if set(checkpoint.names) == set(expected):
                return path
    return _write(found, space)


def _with_placeholder(
    found: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add the placeholder of the text tower, and its prefix to a bare image tower.

    It is zeros, the same in every version, so that a merge leaves it alone.
    """
    if not any(name.startswith("visual.") for name in found):
        found = {f"visual.{name}": tensor for name, tensor in found.items()}
    placeholder = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in expected.items()
        if not name.startswith("visual.")
    }
    return {**placeholder, **found}


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
    suffixes = _PICKLE_SUFFIXES | {".safetensors", ".json"}
    return str(path) not in known and (path.suffix in suffixes or len(path.parts) > 1)


def _write(tensors: Mapping[str, torch.Tensor], space: Path) -> Path:
    path = space / flavor.WEIGHTS_FILE
    flavor.write_weights(tensors, path)
    return path


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if match := re.search(r"GLOBAL (\S+)", text):
        return (
            f"'{path}' is refused: it is a pickle that would run code when loaded ({match[1]}). "
            f"{_how_to_convert(path)}"
        )
    if "TorchScript" in text:
        return f"'{path}' is refused: it is a TorchScript archive. {_how_to_convert(path)}"
    return (
        f"'{path}' can't be read as a checkpoint: it is damaged, or was not made by torch.save "
        f"({type(error).__name__}). Save the model's state_dict() with torch.save or safetensors."
    )


def _how_to_convert(path: Path) -> str:
    return (
        "If you trust it, convert it where it was made: "
        f"`torch.save(torch.load('{path.name}', weights_only=False).state_dict(), 'weights.pt')`, "
        "and import weights.pt."
    )


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _abridged(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
