"""What reads each kind of input from outside. A target may raise the package's own errors alone."""

import datetime
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip  # noqa: F401 - which the first input would wait for
import safetensors.torch
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.models import agreement, architecture, decoding, task_heads, tasks
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.search import grids
from mlflow_breadcrumbs.sources import state_dicts
from mlflow_breadcrumbs.support import documents
from mlflow_breadcrumbs.webhooks import receiver

Target = Callable[[bytes, Path], object]
"""Is given a damaged input, and an empty folder."""

NOW = b"2026-11-26T00:00:00+00:00"
"""The moment in the examples of webhooks, which have to be of today."""

OWN = (errors.BreadcrumbsError, receiver.RefusalError)
"""What a target may raise; the receiver turns its own into an answer with a status."""


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _safetensors(content: bytes, folder: Path) -> object:
    with checkpoints.Checkpoint.open(_written(folder, "x.safetensors", content)) as opened:
        for name in opened.names:
            opened.tensor(name).float().sum()
        return checkpoints.weights_digest(opened)


def _index(content: bytes, folder: Path) -> object:
    for name, tensor in (("one", {"a": torch.ones(2)}), ("two", {"b": torch.ones(2)})):
        safetensors.torch.save_file(tensor, folder / f"{name}.safetensors")
    path = _written(folder, "x.safetensors.index.json", content)
    with checkpoints.Checkpoint.open(path) as opened:
        return checkpoints.weights_digest(opened)


def _checkpoint(content: bytes, folder: Path) -> object:
    return state_dicts.read(_written(folder, "x.pt", content))


def _recipe(content: bytes, folder: Path) -> object:
    return recipe.make(sources=3, file=_written(folder, "x.yaml", content)).digest


def _grid(content: bytes, folder: Path) -> object:
    return grids.load(_written(folder, "x.yaml", content))


def _task_file(content: bytes, folder: Path) -> object:
    return tasks.load_tasks(_written(folder, "x.yaml", content))


def _policy(content: bytes, folder: Path) -> object:
    return policies.load(_written(folder, "x.yaml", content)).digest


def _lineage(content: bytes, folder: Path) -> object:
    return statement.parse(content)


def _config(content: bytes, folder: Path) -> object:
    found = architecture.load_config(str(_written(folder, "x.json", content)))
    other = architecture.parse_config(found.to_json(), origin="again")
    return agreement.between(found, other), found.embed_dim


def _head(content: bytes, folder: Path) -> object:
    place = folder / task_heads.HEADS_FOLDER
    place.mkdir()
    safetensors.torch.save_file({"weight": torch.ones(3, 2)}, place / "colours.safetensors")
    _written(place, "colours.json", content)
    return [head.digest for head in task_heads.read(folder).values()]


def _image(content: bytes, folder: Path) -> object:
    return decoding.decode(content, "x")


def _webhook(content: bytes, folder: Path) -> object:
    now = datetime.datetime.now(datetime.UTC).isoformat().encode()
    return receiver.parse("an identifier", content.replace(NOW, now))


def _mlmodel(content: bytes, folder: Path) -> object:
    path = _written(folder, "MLmodel", content)
    return documents.read(path, "the MLmodel file", errors.IntegrityError).content


TARGETS: Mapping[str, Target] = {
    "safetensors": _safetensors,
    "index": _index,
    "checkpoint": _checkpoint,
    "recipe": _recipe,
    "grid": _grid,
    "task_file": _task_file,
    "policy": _policy,
    "lineage": _lineage,
    "config": _config,
    "head": _head,
    "image": _image,
    "webhook": _webhook,
    "mlmodel": _mlmodel,
}
"""By the name of its folder in `corpus/`."""


def run(target: str, content: bytes, folder: Path) -> bool:
    """Give an input to a target; whether it was taken, and not refused as it should be.

    Args:
        target: a key of `TARGETS`.
        content: the input.
        folder: is emptied first.

    Raises:
        Exception: whatever is not the package's own error; a fault was found.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        TARGETS[target](content, folder)
    except OWN:
        return False
    return True
