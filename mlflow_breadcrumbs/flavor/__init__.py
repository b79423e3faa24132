"""The MLflow flavor `breadcrumbs`: an open_clip model with the heads of its tasks.

A version's artifacts follow open_clip's hub layout, so open_clip loads them without this package
(`open_clip.create_model_and_transforms("local-dir:FOLDER")`):

```
MLmodel  open_clip_config.json  open_clip_model.safetensors
tasks/<task>.json + tasks/<task>.safetensors
```

As a pyfunc it takes a DataFrame with a column `image` (the bytes of an image file, these in base64,
or, where a folder of images was named, a path in it) and, where the version has several tasks, a
column `task`; it gives one row per image with `task`, `label`, `probability` and `probabilities` (a
mapping of class to 0…1).
Weights are read from and written to safetensors only.

`serving` is a version in memory, and the pyfunc; `loading` opens a registered one, its bytes held
against their digest; `storing` logs one without writing its weights twice; `requirements` are what
it needs elsewhere; `foreign` gives new weights to a model that another flavor logged;
`own_heads` are what sources of such a flavor keep for their tasks, in the same folder, and
`adapted_heads` what an adapter leaves unsaid of its own;
`unregistered` lays merged weights out before they are a version; `pulling` makes the folder that a
version's own library loads, and `libraries` has that load it.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import safetensors.torch
import torch
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.models.utils import ModelInputExample, _save_example
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map
from mlflow.utils import environment
from mlflow.utils.model_utils import (
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, tensor_files
from mlflow_breadcrumbs.flavor import requirements, serving, storing
from mlflow_breadcrumbs.models import architecture, bounds, task_heads
from mlflow_breadcrumbs.registry import uris, versions
from mlflow_breadcrumbs.support import copies, defaults, devices, documents

FLAVOR_NAME = "breadcrumbs"
WEIGHTS_FILE = "open_clip_model.safetensors"


def save_model(
    path: str | Path,
    *,
    config: architecture.ModelConfig,
    model: torch.nn.Module | None = None,
    weights: str | Path | None = None,
    weights_digest: str | None = None,
    heads: Iterable[task_heads.Head] = (),
    extra_files: Mapping[str, bytes] | None = None,
    image_root: str | Path | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: ModelInputExample | None = None,
    pip_requirements: list[str] | str | None = None,
    code_paths: list[str] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Save a version to a new folder.

    Args:
        path: A folder that doesn't exist or is empty.
        config: What the model looks like.
        model: The model; or
        weights: its weights, a safetensors file, which is copied and never loaded.
        weights_digest: The digest of `weights`, where it is known, so that no byte is read again.
        heads: One per task.
        extra_files: Names and contents of more files, such as `lineage.json`.
        image_root: Absolute path of a folder, on the machine that serves the version, whose images
            a request may name by their path. Without it, and without `BREADCRUMBS_IMAGE_ROOT`
            there, which counts more, a request can name no file.
        mlflow_model: MLflow's record of the model, when called by MLflow.
        signature: Instead of the flavor's own.
        input_example: As elsewhere in MLflow.
        pip_requirements: Instead of `requirements.default_pip_requirements()`.
        code_paths: Instead of this package, which is added as one archive where pip could not
            install it.
        metadata: As elsewhere in MLflow.

    Raises:
        TaskError: A head takes features of another length, two are for one task, or `image_root`
            is not absolute.
        CheckpointError: `weights` is not a safetensors file.
    """
    if (model is None) == (weights is None):
        raise TypeError("Give exactly one of 'model' and 'weights'.")
    if image_root is not None and not Path(image_root).is_absolute():
        raise errors.TaskError(
            f"image_root is '{image_root}'; give an absolute path, since it is of the machine that "
            "serves the version."
        )
    heads = sorted(heads, key=lambda head: head.task)
    _check_heads(heads, config)

    folder = Path(path).absolute()
    _validate_and_prepare_target_save_path(str(folder))
    if code_paths is None and requirements.own_package()[1]:
        code: str | None = requirements.write_code(folder)
    else:
        code = _validate_and_copy_code_paths(code_paths or None, str(folder))
    (folder / architecture.CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    if model is not None:
        write_weights(model.state_dict(), folder / WEIGHTS_FILE)
    elif weights is not None:
        # MLflow's own folder is gone when its files are in the store; a link will do there.
        _put(Path(weights), folder / WEIGHTS_FILE, linked=mlflow_model is not None)
    task_heads.write(folder, heads)
    for name, content in (extra_files or {}).items():
        (folder / name).write_bytes(content)

    record = Model() if mlflow_model is None else mlflow_model
    _save_example(record, input_example, str(folder))
    record.signature = default_signature() if signature is None else signature
    if metadata is not None:
        record.metadata = metadata
    pyfunc.add_to_model(
        record,
        loader_module=__name__,
        code=code,
        conda_env=environment._CONDA_ENV_FILE_NAME,
        python_env=environment._PYTHON_ENV_FILE_NAME,
        model_config={
            "device": "auto",
            "batch_size": defaults.BATCH_SIZE,
            "image_root": None if image_root is None else str(image_root),
        },
    )
    record.add_flavor(
        FLAVOR_NAME,
        architecture=config.architecture,
        code=code,
        config=architecture.CONFIG_FILE,
        open_clip_version=importlib.metadata.version("open_clip_torch"),
        tasks=[head.task for head in heads],
        version=mlflow_breadcrumbs.__version__,
        weights=WEIGHTS_FILE,
        weights_digest=weights_digest or checkpoints.weights_digest(folder / WEIGHTS_FILE),
    )
    record.model_size_bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    record.save(str(folder / MLMODEL_FILE_NAME))
    requirements.write_files(folder, pip_requirements)


def log_model(
    name: str,
    *,
    config: architecture.ModelConfig,
    model: torch.nn.Module | None = None,
    weights: str | Path | None = None,
    weights_digest: str | None = None,
    keep_weights: bool = True,
    heads: Iterable[task_heads.Head] = (),
    extra_files: Mapping[str, bytes] | None = None,
    image_root: str | Path | None = None,
    registered_model_name: str | None = None,
    tags: dict[str, str] | None = None,
    signature: ModelSignature | None = None,
    input_example: ModelInputExample | None = None,
    pip_requirements: list[str] | str | None = None,
    code_paths: list[str] | None = None,
    metadata: dict[str, Any] | None = None,
    run_id: str | None = None,
) -> ModelInfo:
    """Log a model to the active run, and register it where a name is given.

    Args:
        name: Name of the logged model.
        config: See `save_model`, as for all that is not described here.
        model: See `save_model`.
        weights: See `save_model`.
        weights_digest: See `save_model`.
        keep_weights: `weights` stays the caller's, who may write to it later. A file that is given
            up can become the store's own, where that is on the same file system.
        heads: See `save_model`.
        extra_files: See `save_model`.
        image_root: See `save_model`.
        registered_model_name: Name to make a version under.
        tags: Of the logged model and of the version.
        signature: See `save_model`.
        input_example: See `save_model`.
        pip_requirements: See `save_model`.
        code_paths: See `save_model`.
        metadata: See `save_model`.
        run_id: Instead of the active run.

    Raises:
        RegistryError: The registered model can't have that name.
    """
    if registered_model_name is not None:
        versions.check_name(registered_model_name)
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=storing.Storing(
            save_model, (WEIGHTS_FILE,), ours=model is not None or not keep_weights
        ),
        flavor_name=FLAVOR_NAME,
        registered_model_name=registered_model_name,
        tags=tags,
        run_id=run_id,
        config=config,
        model=model,
        weights=weights,
        weights_digest=weights_digest,
        heads=heads,
        extra_files=extra_files,
        image_root=image_root,
        signature=signature,
        input_example=input_example,
        pip_requirements=pip_requirements,
        code_paths=code_paths,
        metadata=metadata,
    )


def load_model(model_uri: str, device: str = "cpu") -> serving.OpenClipModel:
    """Load a version.

    Args:
        model_uri: `NAME/VERSION` or `NAME@ALIAS`, with or without `models:/`, `models:/m-…`,
            `runs:/…`, or a folder that `save_model` wrote. A folder `NAME/VERSION` that is here
            comes before a version without `models:/`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        RegistryError: There is no such version, or another flavor logged it.
        CheckpointError: The weights are damaged or don't fit the configuration.
        DeviceError: The device is absent.
    """
    device = devices.choose_device(device)
    location = str(model_uri)
    is_folder = not location.startswith(uris.SCHEME) and Path(location).is_dir()
    if uris.names_version(location) and not is_folder:
        location = versions.resolve(location).location
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=location))
    except (MlflowException, OSError) as error:
        raise errors.RegistryError(
            f"The model '{model_uri}' can't be fetched: {' '.join(str(error).split())}"
        ) from error
    return load_folder(folder, device, origin=str(model_uri))


def load_config(folder: str | Path) -> architecture.ModelConfig:
    """Read `open_clip_config.json` of a version's folder.

    Raises:
        ArchitectureError: There is none, it is damaged, it says what `config_rules` doesn't allow,
            or it asks for a far larger model than the weights beside it are.
        CheckpointError: The weights beside it are damaged.
    """
    path = Path(folder) / architecture.CONFIG_FILE
    config = architecture.read_config(path)
    if (weights := path.with_name(WEIGHTS_FILE)).exists():
        with tensor_files.TensorFiles.open(weights) as files:
            bounds.check_size(config.model_cfg, files.parameters, str(path))
            return dataclasses.replace(config, parameters=files.parameters)
    return config


def default_signature() -> ModelSignature:
    """Give the signature of the pyfunc; `image` is of any type: bytes and strings both go."""
    return ModelSignature(
        inputs=Schema(
            [ColSpec(AnyType(), "image"), ColSpec(DataType.string, "task", required=False)]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "task"),
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
    )


def load_folder(folder: Path, device: str, *, origin: str) -> serving.OpenClipModel:
    """Load a version from its files here.

    Args:
        folder: What `save_model` wrote.
        device: What `devices.choose_device` gave.
        origin: What to call it in messages.
    """
    place = f"the MLmodel file of '{origin}'"
    if (file := folder / MLMODEL_FILE_NAME).exists():  # MLflow's reader has no limits
        documents.read(file, place, errors.RegistryError)
    try:
        flavors = Model.load(str(folder)).flavors
    except (MlflowException, OSError) as error:
        raise errors.RegistryError(
            f"'{origin}' is not an MLflow model: {' '.join(str(error).split())}"
        ) from error
    if FLAVOR_NAME not in flavors:
        raise errors.RegistryError(
            f"'{origin}' was logged by another flavor ({', '.join(sorted(flavors))}), not by "
            f"'{FLAVOR_NAME}'. Load it by that one; the checkpoint of an open_clip model is made a "
            "version of ours by `mlflow-breadcrumbs import`."
        )
    config = load_config(folder)
    with torch.random.fork_rng(devices=[]):  # the random weights are about to be replaced
        model = architecture.build(config)
    load_weights(model, folder / WEIGHTS_FILE)
    return serving.OpenClipModel(
        config=config,
        model=model.to(device).eval(),
        heads=task_heads.read(folder),
        device=device,
        origin=origin,
    )


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy the weights of a safetensors file into a model, all of them or none.

    Raises:
        CheckpointError: The file is damaged, or its tensors aren't the model's.
    """
    with checkpoints.Checkpoint.open(path) as checkpoint:
        try:
            model.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names})
        except RuntimeError as error:
            raise errors.CheckpointError(
                f"'{path}' doesn't fit its open_clip_config.json: {' '.join(str(error).split())}"
            ) from error


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; tied tensors, which share memory, are written once per name."""
    own: dict[str, torch.Tensor] = {}
    seen: set[tuple[torch.device, int]] = set()
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        own[name] = tensor.contiguous().clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    safetensors.torch.save_file(own, path, metadata={"format": "pt"})


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> serving.Pyfunc:
    """Load the pyfunc; `model_config` may set `device`, `batch_size` and `image_root`."""
    settings = {"device": "auto", "batch_size": defaults.BATCH_SIZE, **(model_config or {})}
    model = load_folder(Path(path), devices.choose_device(settings["device"]), origin="the model")
    root = serving.image_root(settings.get("image_root"))
    serving.without_traces()
    return serving.Pyfunc(model, int(settings["batch_size"]), root)


def _check_heads(heads: Sequence[task_heads.Head], config: architecture.ModelConfig) -> None:
    for head in heads:
        if head.embed_dim != config.embed_dim:
            raise errors.TaskError(
                f"The head of task '{head.task}' takes features of length {head.embed_dim}, but "
                f"the model gives {config.embed_dim}."
            )
    names = [head.task for head in heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.TaskError(f"There are two heads for {', '.join(twice)}; give one per task.")


def _put(source: Path, target: Path, *, linked: bool) -> None:
    """Put a checkpoint into the folder without reading it, as a link or as a file of its own."""
    if source.suffix != ".safetensors":
        raise errors.CheckpointError(
            f"'{source}' is not a .safetensors file; versions carry their weights in no other form."
        )
    try:
        if linked:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(source.resolve(), target)
                return
        copies.copy(source, target)
    except FileNotFoundError as error:
        raise errors.CheckpointError(f"There is no checkpoint '{source}'.") from error
