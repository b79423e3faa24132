"""LoRA adapters as checkpoints: the base with their change, tensor by tensor, when it is asked for.

An adapter is a folder as `peft` writes it, on a disk or in an object store:
`adapter_config.json` and `adapter_model.safetensors`.
For each tensor that it changes, in this order of arithmetic, so that the bits are fixed:

    change[i, j] = ((B[i, 0] · A[0, j] + B[i, 1] · A[1, j]) + B[i, 2] · A[2, j]) + …
    W'[i, j] = W[i, j] + scale · change[i, j]

all in float32 (each product and each sum is rounded), scale = alpha / rank rounded once to float32,
or alpha / √rank with rank-stabilized LoRA. W' is float32 whatever the base is, so that no small
change is rounded away; a convolution's weight is taken as the matrix [out, in · kernel], an
embedding's and a transposed layer's (`fan_in_fan_out`) as its transpose. Tensors that an adapter
has whole (`modules_to_save`, biases) replace the base's. A module that it saved whole and that the
base has in another shape, or not at all, is a head of its own. Everything else is the base's own
bytes.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, headers, overlays, renamed, stored_bytes
from mlflow_breadcrumbs.engine.backends.cpu import kernels, reading
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.support import json_documents, wording

CONFIG, WEIGHTS = headers.ADAPTER_CONFIG, headers.ADAPTER_WEIGHTS
ROWS = 1 << 20
"""Elements that are computed at once."""

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
PREFIX = "base_model.model."
"""Before the name of each tensor of an adapter."""
INNER = "base_layer"
"""What `peft` calls a layer that it has put factors beside."""
_OTHERS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
)
"""Settings that make another thing of LoRA."""
_REBASED = ("pissa", "olora", "corda", "loftq")
"""Ways to begin that change the base, so that the adapter fits no other one."""


@dataclasses.dataclass(frozen=True)
class _Change:
    """The two factors of one tensor's change."""

    a: str
    b: str
    scale: float
    transposed: bool


class Adapted(checkpoints.Checkpoint):
    """The base with an adapter's changes; made by `open_on`."""

    further: str = ""
    """What the names that it was trained on have more than the base's: it is a model with a head,
    and the base has none."""
    config: Mapping[str, Any] = MappingProxyType({})
    """Its `adapter_config.json`."""

    def beside(self, name: str) -> bytes | None:
        """None: what lies beside an adapter's folder is not the model's."""
        return None


def is_adapter(location: object) -> bool:
    """Whether a location is the folder of an adapter, or its file in one; a store is asked."""
    place = stores.of(location) if stores.is_address(location) else location
    if isinstance(place, stores.Target):
        return place.file in (None, WEIGHTS) and _is_there(place.folder, CONFIG)
    return isinstance(place, str | Path) and (_folder(place) / CONFIG).is_file()


def open_source(
    base: checkpoints.Checkpoint, location: "str | Path | stores.Target"
) -> checkpoints.Checkpoint:
    """Open a source: a checkpoint, or the folder of an adapter on the base; raises as both do."""
    if is_adapter(location):
        return open_on(base, location)
    return checkpoints.Checkpoint.open(location)


def open_all(
    stack: contextlib.ExitStack, locations: "Iterable[str | Path | stores.Target]"
) -> list[checkpoints.Checkpoint]:
    """Open a base, and then its sources, until the stack ends; raises as `open_source` does."""
    found: list[checkpoints.Checkpoint] = []
    for location in locations:
        opened = open_source(found[0], location) if found else checkpoints.Checkpoint.open(location)
        found.append(stack.enter_context(opened))
    return found


def open_on(base: checkpoints.Checkpoint, location: "str | Path | stores.Target") -> Adapted:
    """Open an adapter as the checkpoint that it makes of its base.

    Args:
        base: the model that it was trained on; it must stay open.
        location: the adapter's folder, or its file in there; a path, an address, or what that
            means.

    Raises:
        CheckpointError: it is damaged, of another kind than LoRA, or changes what the base has not.
    """
    place = stores.of(location) if stores.is_address(location) else location
    if isinstance(place, stores.Target):
        folder, own = place.folder.address, stores.Target(place.folder, WEIGHTS)
        content = stores.small(place.folder, CONFIG)
        config = json_documents.parse(content, f"{folder}/{CONFIG}", errors.CheckpointError)
        return _open(base, folder, config, f"{folder}/{WEIGHTS}", own)
    path = _folder(place)
    config = json_documents.read(path / CONFIG, str(path / CONFIG), errors.CheckpointError)
    return _open(base, str(path), config, str(path), path / WEIGHTS)


def _folder(location: str | Path) -> Path:
    """The folder of an adapter that is named by it or by its file."""
    path = Path(location)
    return path.parent if path.name == WEIGHTS else path


def _is_there(folder: stores.Folder, name: str) -> bool:
    """Whether a folder elsewhere has a file."""
    try:
        folder.state(name)
    except errors.CheckpointError:
        return False
    return True


def _open(
    base: checkpoints.Checkpoint,
    folder: str,
    config: Any,
    location: str,
    weights: Path | stores.Target,
) -> Adapted:
    """The adapter in a folder, by its configuration and its file."""
    if not isinstance(config, dict):
        raise errors.CheckpointError(f"{folder}/{CONFIG} is no adapter's configuration: no object")
    _check_kind(folder, config)
    own = checkpoints.Checkpoint.open(weights)
    changes, whole = _match(folder, config, own, base)
    taken = {name: overlays.Taken(0, name) for name in base.names}
    taken |= {name: overlays.Taken(1, replacing) for name, replacing in whole.items()}
    made = {name: headers.TensorEntry("F32", base.entry(name).shape) for name in changes}
    making = _Making(base, own, changes)
    found = Adapted(location, *overlays.lay([base, own], taken, made, making, closing=[own]))
    found.heads = frozenset(
        name
        for name in whole
        if name not in base or found.info(name).shape != base.info(name).shape
    )
    found.further = _further(changes)
    found.config = config
    return found


def _further(changes: Mapping[str, _Change]) -> str:
    """What the adapter's names have before the base's, where all have the same."""
    found = {
        _plain(change.a).rpartition(".lora_")[0].removesuffix(target.removesuffix(".weight"))
        for target, change in changes.items()
    }
    return found.pop() if len(found) == 1 and next(iter(found)).endswith(".") else ""


def _plain(key: str) -> str:
    """The name of an adapter's tensor without what `peft` writes before and between."""
    return key.removeprefix(PREFIX).replace(f".{INNER}.", ".")


def _is_saved(config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor is of a module that was saved whole."""
    saved = config.get("modules_to_save")
    modules = saved if isinstance(saved, list) else []
    return any(f".{module}." in f".{name}" for module in modules)


def _check_kind(folder: str, config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for what is no plain LoRA."""
    kind = config.get("peft_type")
    begun = str(config.get("init_lora_weights", True)).lower()
    other = [field for field in _OTHERS if config.get(field)]
    if kind != "LORA":
        said = f"of the kind {kind}"
    elif other:
        said = f"LoRA with {', '.join(other)}"
    elif not _are_names(config.get("alpha_pattern")):
        said = f"LoRA with the alpha_pattern {str(config['alpha_pattern'])[:80]}, more than names"
    elif begun.startswith(_REBASED):
        said = f"LoRA that began as {begun}, which changes the base too"
    else:
        return
    raise errors.CheckpointError(
        f"the adapter {folder} is {said}; plain LoRA can be merged. Merge it into its base with "
        "peft (merge_and_unload), save that, and name the result as the source"
    )


def _are_names(patterns: Any) -> bool:
    """Whether patterns name modules, or the ends of their names, and do no more."""
    if patterns is None:
        return True
    return isinstance(patterns, dict) and all(
        re.fullmatch(r"\^?[\w.-]{1,255}", pattern) for pattern in patterns
    )


def _match(
    folder: str,
    config: Mapping[str, Any],
    own: checkpoints.Checkpoint,
    base: checkpoints.Checkpoint,
) -> tuple[dict[str, _Change], dict[str, str]]:
    """Which tensors of the base are changed by which factors, and which are replaced by which."""
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    unknown, embeddings = [], set()
    for key in own.names:
        name = _plain(key)
        if found := _FACTOR.fullmatch(name):
            target = _in_base(f"{found[1]}.weight", base)
            if target is not None:
                factors.setdefault(target, {})[found[3]] = key
                if found[2]:
                    embeddings.add(target)
        else:
            target = _in_base(name, base)
            if target is None and _is_saved(config, name):
                target = name
            if target is not None:
                whole[target] = key
        if target is None:
            unknown.append(name)
    if unknown:
        raise errors.CheckpointError(
            f"the adapter {folder} changes what the base {base.location} has not: "
            f"{wording.listed(unknown)}. Name the base that it was trained on"
        )
    changes = {
        target: _change(folder, config, own, base, target, pair, target in embeddings)
        for target, pair in factors.items()
    }
    for target, key in whole.items():
        if target not in base or _is_saved(config, _plain(key)):
            continue
        if own.info(key).shape != base.info(target).shape:
            raise errors.CheckpointError(
                f"the adapter {folder} replaces {target!r} by a tensor of the shape "
                f"{list(own.info(key).shape)}, and the base has {list(base.info(target).shape)}; "
                "name the base that it was trained on"
            )
    return changes, whole


def _change(
    folder: str,
    config: Mapping[str, Any],
    own: checkpoints.Checkpoint,
    base: checkpoints.Checkpoint,
    target: str,
    pair: Mapping[str, str],
    is_embedding: bool,
) -> _Change:
    """What the two factors of a tensor mean, held against its shape."""
    if set(pair) != {"A", "B"}:
        raise errors.CheckpointError(
            f"the adapter {folder} has one of the two factors of {target!r}; complete the download"
        )
    a, b = own.info(pair["A"]).shape, own.info(pair["B"]).shape
    rank = a[0] if a else 0
    rows, columns = _matrix(base.info(target).shape)
    transposed = is_embedding or bool(config.get("fan_in_fan_out"))
    wanted = (columns, rows) if transposed else (rows, columns)
    shape = (b[0] if b else 0, math.prod(a[1:]))
    if shape != wanted or len(b) < 2 or math.prod(b[1:]) != rank or not rank:
        raise errors.CheckpointError(
            f"the adapter {folder} has factors of the shapes {list(b)} and {list(a)} for "
            f"{target!r}, which has {list(base.info(target).shape)} in the base {base.location}; "
            "name the base that it was trained on"
        )
    module = pair["A"].removeprefix(PREFIX).rpartition(".lora_")[0]  # as `peft` calls it
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise errors.CheckpointError(f"{folder}/{CONFIG} has the lora_alpha {alpha!r}: no number")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Change(pair["A"], pair["B"], scale, transposed)


def _pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    """The value for a module, as `peft` finds it: by what its name ends with.

    `peft` takes regular expressions; from outside none is run here, and `_check_kind` refuses what
    is more than a name.
    """
    for pattern, value in (patterns or {}).items():
        name = pattern.removeprefix("^")
        if module == name or (name == pattern and module.endswith(f".{name}")):
            return value
    return otherwise


def _in_base(name: str, base: checkpoints.Checkpoint) -> str | None:
    """The base's tensor of that name; one of both may have a prefix, as `bert.`, more.

    The adapter may call it as transformers 5 does in memory, see `renamed`.
    """
    if name in base:
        return name
    found = [n for n in base.names if n.endswith(f".{name}") or name.endswith(f".{n}")]
    return found[0] if len(found) == 1 else renamed.in_file(name, base.names)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A weight as a matrix: its first dimension, and all others."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)


class _Making:
    """Makes the tensors that an adapter changes."""

    def __init__(
        self,
        base: checkpoints.Checkpoint,
        own: checkpoints.Checkpoint,
        changes: Mapping[str, _Change],
    ) -> None:
        self._base, self._own, self._changes = base, own, changes

    def __call__(self, name: str) -> stored_bytes.NamelessFile:
        """W + scale · B · A, some rows at a time, into a file."""
        change, info = self._changes[name], self._base.entry(name)
        nbytes = headers.TensorEntry("F32", info.shape).nbytes
        try:
            held = stored_bytes.NamelessFile(nbytes)
        except OSError as error:
            raise stored_bytes.no_room(error, f"the tensor {name!r}", nbytes) from error
        a, b = (self._factor(key) for key in (change.a, change.b))
        rows, columns = _matrix(info.shape)
        buffers = reading.Buffers()
        scale = np.float32(change.scale)
        step = max(1, ROWS // max(columns, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            base = buffers.base(self._base, name, first * columns, last * columns)
            out = np.empty((last - first, columns), np.float32)
            kernels.load(base.raw, base.kind, 0, out.reshape(-1))
            if change.transposed:
                left, right = np.ascontiguousarray(a[:, first:last].T), np.ascontiguousarray(b.T)
            else:
                left, right = b[first:last], a
            kernels.add_low_rank(left, right, scale, out)
            try:
                held.write(out.reshape(-1).view(np.uint8).data, first * columns * 4)
            except OSError as error:
                raise stored_bytes.no_room(error, f"the tensor {name!r}", nbytes) from error
        return held

    def _factor(self, key: str) -> kernels.Floats:
        """A factor as a float32 matrix."""
        tensor = self._own.tensor(key).to(torch.float32)
        return np.ascontiguousarray(tensor.reshape(tensor.shape[0], -1).numpy())
