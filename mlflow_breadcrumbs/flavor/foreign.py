"""A merged version of a model that another MLflow flavor logged: its base with new weights.

The base's artifact is kept file by file (configuration, tokenizer, input example, MLmodel flavors),
and only its safetensors checkpoints are replaced, by files of those names and sizes. So the merged
version loads as its base does. What was registered without MLmodel gets one, of the flavor
`safetensors`.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    checkpoints,
    headers,
    library_configs,
    tensor_files,
    writing,
)
from mlflow_breadcrumbs.flavor import own_heads, storing
from mlflow_breadcrumbs.registry import layouts, versions
from mlflow_breadcrumbs.support import copies, json_documents

OF_VERSION = (MLMODEL_FILE_NAME, "registered_model_meta", "lineage.json", "model.sig")
"""What is true of one version only."""
APART = "apart"
"""Beside merged weights, the folder where they are laid out as several checkpoints."""


@dataclasses.dataclass(frozen=True)
class MergedFiles:
    """Merged weights as the files of a version."""

    main: str
    """The file, or the index of shards, that the lineage names; a path in the version."""
    files: Mapping[str, Path]
    """All files of weights, by their paths in the version."""


def arrange(
    base: versions.OpenedVersion, weights: Path, max_shard_size: int | None = None
) -> MergedFiles:
    """Merged weights as the base has its own: the same checkpoints, with the same names in them.

    One checkpoint is as it should be already. What several had together is written apart again,
    beside the merged checkpoint; that is read and written once more.

    Args:
        base: opened.
        weights: the merged checkpoint, a file or an index.
        max_shard_size: bytes of tensors in a file of the main checkpoint; as the base's if not
            given.

    Raises:
        CheckpointError: the disk is full.
    """
    if len(base.checkpoints) == 1:
        place, several = Path(weights_file(base)), files_of(weights)
        if len(several) == 1:
            return MergedFiles(place.as_posix(), {place.as_posix(): weights})
        files = {place.with_name(file.name).as_posix(): file for file in several}
        return MergedFiles(place.with_name(weights.name).as_posix(), files)
    apart = weights.parent / APART
    shutil.rmtree(apart, ignore_errors=True)
    with (
        checkpoints.Checkpoint.open(weights) as merged,
        tensor_files.TensorFiles.open(base.stored) as own,
    ):
        outputs = [
            writing.write_all(
                apart / _file(name),
                merged,
                {tensor.removeprefix(prefix): tensor for tensor in tensors},
                max_shard_size=size,
            )
            for (prefix, tensors, size), name in zip(
                _members(own, merged, base, max_shard_size), base.checkpoints, strict=True
            )
        ]
    files = {
        file.relative_to(apart).as_posix(): file for output in outputs for file in files_of(output)
    }
    return MergedFiles(outputs[0].relative_to(apart).as_posix(), files)


def _members(
    own: tensor_files.TensorFiles,
    merged: checkpoints.Checkpoint,
    base: versions.OpenedVersion,
    max_shard_size: int | None,
) -> list[tuple[str, list[str], int | None]]:
    """Per checkpoint of the base its prefix, the tensors with it, and the bytes of a shard."""
    sizes = shard_sizes(own, base)
    if max_shard_size is not None:
        sizes[""] = max_shard_size
    tensors: dict[str, list[str]] = {prefix: [] for prefix in sizes}
    for name in merged.names:
        tensors[own.prefix(name)].append(name)
    return [(prefix, tensors[prefix], size) for prefix, size in sizes.items()]


def lay_out(base: versions.OpenedVersion, weights: Path, folder: Path) -> None:
    """Put all files of the base into a folder but its weights and what is only true of it.

    Where weights have another dtype than the base's, `config.json` says so.

    Args:
        base: opened with all of its files.
        weights: the merged checkpoint; another one of the version if there are several.
        folder: gets the files.
    """
    names = sorted(path.relative_to(base.folder) for path in base.folder.rglob("*"))
    unwanted = layouts.candidates([name.as_posix() for name in names])
    for name in names:
        file, target = base.folder / name, folder / name
        if name.as_posix() in unwanted or name.as_posix() in OF_VERSION or file.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    _say_dtype(base, weights, (folder / weights_file(base)).with_name(library_configs.FILE))


def _say_dtype(base: versions.OpenedVersion, weights: Path, config: Path) -> None:
    """Have a copy of the base's configuration name the dtype of merged weights.

    Args:
        base: opened.
        weights: the merged checkpoint.
        config: the copy, if the base has one.
    """
    if not config.is_file():
        return
    with (
        checkpoints.Checkpoint.open(base.stored) as before,
        checkpoints.Checkpoint.open(weights) as merged,
    ):
        dtypes = [library_configs.main_dtype(checkpoint) for checkpoint in (before, merged)]
    if dtypes[1] is None or dtypes[0] == dtypes[1]:
        return
    content = json_documents.read(config, str(config), errors.ArchitectureError)
    if isinstance(content, dict):
        said = library_configs.with_dtype(content, dtypes[1])
        if said != content:
            config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def record_of(base: versions.OpenedVersion) -> Model:
    """What MLmodel says of the base; of a folder without one, what it is."""
    file = base.folder / MLMODEL_FILE_NAME
    if file.is_file():
        return Model.load(str(file))
    record = Model()
    record.add_flavor(layouts.PLAIN, version=mlflow_breadcrumbs.__version__)
    return record


@dataclasses.dataclass(frozen=True)
class _Carrier:
    """Saves what the base's flavor would."""

    base: versions.OpenedVersion

    def save_model(
        self,
        path: str,
        *,
        weights: MergedFiles,
        heads: Sequence[own_heads.OwnHead],
        extra_files: dict[str, bytes],
        mlflow_model: Model,
    ) -> None:
        """Write the base's artifact with other weights."""
        folder = Path(path)
        lay_out(self.base, weights.files[weights.main], folder)
        for name, file in weights.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, folder / name)
            except OSError:
                copies.copy(file, folder / name)
        own_heads.carry(heads, folder)
        for name, content in extra_files.items():
            (folder / name).write_bytes(content)
        original = record_of(self.base)
        mlflow_model.flavors.update(original.flavors)
        mlflow_model.signature = original.signature
        mlflow_model.metadata = original.metadata
        mlflow_model.saved_input_example_info = original.saved_input_example_info
        files = (file for file in folder.rglob("*") if file.is_file())
        mlflow_model.model_size_bytes = sum(file.stat().st_size for file in files)
        mlflow_model.save(str(folder / MLMODEL_FILE_NAME))


def weights_file(base: versions.OpenedVersion) -> str:
    """Where the merged weights lie in the version; several files are numbered, with an index."""
    return _file(base.checkpoints[0])


def _file(checkpoint: str) -> str:
    """What a checkpoint is called that is written as one file."""
    return checkpoint.removesuffix(".index.json")


def shard_size(base: versions.OpenedVersion) -> int | None:
    """Bytes of tensors in the largest file of the base's main checkpoint; `None` for one file."""
    if not base.path.name.endswith(headers.INDEX_SUFFIX):
        return None
    with tensor_files.TensorFiles.open(base.stored) as files:
        return shard_sizes(files, base)[""]


def shard_sizes(
    files: tensor_files.TensorFiles, base: versions.OpenedVersion
) -> dict[str, int | None]:
    """The same of each checkpoint, by what stands before its tensors' names.

    Args:
        files: the base's, open.
        base: opened.
    """
    largest: dict[str, int] = {}
    for prefix, size in zip(files.prefixes, files.file_bytes, strict=True):
        largest[prefix] = max(size, largest.get(prefix, 0))
    return {
        prefix: size if name.endswith(headers.INDEX_SUFFIX) else None
        for (prefix, size), name in zip(largest.items(), base.checkpoints, strict=True)
    }


def files_of(weights: Path) -> list[Path]:
    """The files of a checkpoint: itself, or its index and the shards."""
    if not weights.name.endswith(headers.INDEX_SUFFIX):
        return [weights]
    return [weights, *headers.read(weights).files]


def log_model(
    name: str,
    *,
    base: versions.OpenedVersion,
    weights: MergedFiles,
    heads: Iterable[own_heads.OwnHead] = (),
    extra_files: dict[str, bytes],
    tags: dict[str, str],
) -> ModelInfo:
    """Log the base's artifact with the weights of a `.safetensors` file to the active run.

    Args:
        name: of the logged model.
        base: opened with all of its files.
        weights: what `arrange` gave; the files may become the store's own.
        heads: that its sources keep for their tasks.
        extra_files: written beside MLmodel, by name.
        tags: of the logged model.
    """
    arguments: dict[str, Any] = {
        "weights": weights,
        "heads": list(heads),
        "extra_files": extra_files,
        "validate_serving_input": False,  # the example is the base's, which was served with it
    }
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=storing.Storing(_Carrier(base).save_model, tuple(weights.files), ours=True),
        flavor_name=base.flavor,
        tags=tags,
        **arguments,
    )
