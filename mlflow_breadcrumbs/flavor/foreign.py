"""A merged version of a model that another MLflow flavor logged: its base with new weights.

The base's artifact is kept file by file (configuration, tokenizer, MLmodel flavors), and only its
one safetensors checkpoint is replaced, by files of that name and size. So the merged version loads
as its base does.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo

from mlflow_breadcrumbs.engine import headers, tensor_files
from mlflow_breadcrumbs.flavor import own_heads, storing
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import copies


@dataclasses.dataclass(frozen=True)
class _Carrier:
    """Saves what the base's flavor would."""

    base: versions.OpenedVersion

    def save_model(
        self,
        path: str,
        *,
        weights: Path,
        heads: Sequence[own_heads.OwnHead],
        extra_files: dict[str, bytes],
        mlflow_model: Model,
    ) -> None:
        """Write the base's artifact with other weights."""
        folder = Path(path)
        shutil.copytree(
            self.base.folder,
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"),
        )
        for file in files_of(weights):
            target = (folder / weights_file(self.base)).with_name(file.name)
            try:
                os.link(file, target)
            except OSError:
                copies.copy(file, target)
        own_heads.carry(heads, folder)
        for name, content in extra_files.items():
            (folder / name).write_bytes(content)
        original = Model.load(str(self.base.folder / MLMODEL_FILE_NAME))
        mlflow_model.flavors.update(original.flavors)
        mlflow_model.signature = original.signature
        mlflow_model.metadata = original.metadata
        mlflow_model.save(str(folder / MLMODEL_FILE_NAME))


def weights_file(base: versions.OpenedVersion) -> str:
    """Where the merged weights lie in the version; several files are numbered, with an index."""
    path = base.path.relative_to(base.folder)
    return str(path.with_name(path.name.removesuffix(".index.json")))


def shard_size(base: versions.OpenedVersion) -> int | None:
    """Bytes of tensors in the largest of the base's files; `None` where it has one."""
    if not base.path.name.endswith(headers.INDEX_SUFFIX):
        return None
    with tensor_files.TensorFiles.open(base.stored) as files:
        return max(files.file_bytes)


def files_of(weights: Path) -> list[Path]:
    """The files of a checkpoint: itself, or its index and the shards."""
    if not weights.name.endswith(headers.INDEX_SUFFIX):
        return [weights]
    return [weights, *headers.read(weights).files]


def log_model(
    name: str,
    *,
    base: versions.OpenedVersion,
    weights: Path,
    heads: Iterable[own_heads.OwnHead] = (),
    extra_files: dict[str, bytes],
    tags: dict[str, str],
) -> ModelInfo:
    """Log the base's artifact with the weights of a `.safetensors` file to the active run.

    Args:
        name: of the logged model.
        base: opened with all of its files.
        weights: the merged checkpoint, a file or an index; its files may become the store's own.
        heads: that its sources keep for their tasks.
        extra_files: written beside MLmodel, by name.
        tags: of the logged model.
    """
    place = Path(weights_file(base))
    stored = tuple(str(place.with_name(file.name)) for file in files_of(weights))
    arguments: dict[str, Any] = {
        "weights": weights,
        "heads": list(heads),
        "extra_files": extra_files,
    }
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=storing.Storing(_Carrier(base).save_model, stored, ours=True),
        flavor_name=base.flavor,
        tags=tags,
        **arguments,
    )
