"""A merged change as one LoRA adapter on the base: the files that `peft` loads.

For each changed matrix, Δ = merged − base in float64, and its best approximation of rank r, which
is the r leading components of its singular value decomposition (Eckart–Young):

    Δ ≈ U · diag(σ) · Vᵀ,   B = U · diag(√σ),   A = diag(√σ) · Vᵀ

in float32, with alpha = r, so that the scale of B · A is 1. What has no factors in `peft` goes in
whole where `peft` has a way: a norm as a module of its own (`modules_to_save`), a bias as a bias.
Modules are called as transformers 5 calls them in memory, see `renamed`.
The rest is left out, and what share of ‖Δ‖² that is, is said.
"""

import concurrent.futures
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import adapters, checkpoints, layer_groups, renamed, writing
from mlflow_breadcrumbs.engine.backends import singular, symmetric
from mlflow_breadcrumbs.support import json_documents, progress

TRANSPOSED = ("decision_transformer", "gpt2", "imagegpt", "openai-gpt")
"""The `model_type` of models of transformers with layers that keep the transpose (`Conv1D`)."""
LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
"""What these layers are called."""
EMBEDDINGS = ("wte", "wpe", "shared")
"""What embeddings are called that don't say so."""
HEADS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "LMHeadModel")
"""What models of transformers are called whose output layer may be their embedding."""


@dataclasses.dataclass(frozen=True)
class LoweredChange:
    """An adapter that was written."""

    folder: Path
    rank: int
    matrices: int
    """Tensors whose change is a product of two factors."""
    whole: tuple[str, ...]
    """Tensors that are in it whole."""
    left_out: Mapping[str, float]
    """By tensor, the share of ‖Δ‖² that is not in it, 0…1; the largest first."""
    groups: Mapping[str, tuple[float, float]]
    """By layer group with a change: its share of ‖Δ‖², and the share of that which is kept."""
    energy_kept: float
    """The share of ‖Δ‖² over all changed tensors that is in the adapter, 0…1."""
    weights_digest: str
    """Of the model that the base makes with it; see `adapters`."""
    file_digest: str
    """`sha256:…` of `adapter_model.safetensors`."""
    nbytes: int
    """Of that file."""
    tied: bool = False
    """Whether the embedding has a change, and the base's configuration ties the output to it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, sentences without their full stop."""
        said = [f"the adapter of rank {self.rank} keeps {self.energy_kept:.1%} of ‖merged − base‖²"]
        if self.left_out:
            names = list(self.left_out)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            share = sum(self.left_out.values())
            said.append(
                f"{', '.join(names[:3])}{more} changed too, {share:.2%} of it, and peft has no way "
                "to keep that in an adapter: it is left out"
            )
        if self.tied:
            said.append(
                "the output layer is tied to the embedding, and has its change only once the "
                "adapter is merged into the model (peft's merge_and_unload)"
            )
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """The adapter for `--json`."""
        return {
            "folder": str(self.folder),
            "rank": self.rank,
            "energy_kept": self.energy_kept,
            "groups": [
                {"group": name, "share": share, "energy_kept": kept}
                for name, (share, kept) in self.groups.items()
            ],
            "matrices": self.matrices,
            "whole": list(self.whole),
            "left_out": dict(self.left_out),
            "weights_digest": self.weights_digest,
            "bytes": self.nbytes,
        }


def check_rank(rank: int | None) -> None:
    """Raise `MergeError` for a rank that no adapter has."""
    if rank is not None and rank < 1:
        raise errors.MergeError(f"the rank of an adapter is {rank}; it must be at least 1")


def write(
    base: checkpoints.Checkpoint,
    merged: checkpoints.Checkpoint,
    folder: Path,
    rank: int,
    *,
    named: str,
    threads: int,
    overwrite: bool = False,
    show: progress.Progress = progress.silent,
) -> LoweredChange:
    """Write the change from a base to merged weights as an adapter.

    Args:
        base: the checkpoint that everything was fine-tuned from.
        merged: with the same tensors.
        folder: of the adapter; it is made, and what makes it one (its configuration) comes last.
        rank: of every pair of factors; a matrix with a shorter side has zeros in the rest.
        named: what the adapter calls its base (`base_model_name_or_path`).
        threads: at least 1; matrices at a time, which does not change the bits.
        overwrite: replace an adapter that is there.
        show: is told the tensors.

    Raises:
        MergeError: no matrix changed, or the rank is below 1.
        CheckpointError: the folder can't be written, or has an adapter.
    """
    check_rank(rank)
    check_folder(folder, overwrite=overwrite)
    changed = [name for name in base.names if base.info(name).dtype.is_floating_point]
    ways = _ways(base)
    with (
        show("adapter", total=len(changed), unit="tensors") as advance,
        symmetric.one_thread(),
        concurrent.futures.ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):

        def lowered(name: str) -> _Lowered:
            found = _lowered(base, merged, name, ways[name], rank)
            advance(1)
            return found

        found = {each.name: each for each in pool.map(lowered, changed) if each.energy}
    factored = {name: each for name, each in found.items() if each.factors}
    if not factored:
        raise errors.MergeError(
            "no matrix that an adapter can change differs from the base; write the merged weights "
            "whole (without --as-adapter)"
        )
    whole = _whole(base, merged, found.values(), factored)
    tensors = _named(base, factored, whole)
    _save(folder, tensors, _config(base, factored, whole, rank, named), overwrite=overwrite)
    with adapters.open_on(base, folder) as made:
        digest = checkpoints.weights_digest(made)
    tied = _is_tied(_config_of(base), {each.way for each in factored.values()})
    return dataclasses.replace(_told(folder, rank, found, factored, whole, digest), tied=tied)


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `CheckpointError` for a folder that an adapter can't be written to."""
    if folder.exists() and not folder.is_dir():
        raise errors.CheckpointError(
            f"{folder} is a file, and an adapter is a folder; name another (--output)"
        )
    there = [name for name in (adapters.CONFIG, adapters.WEIGHTS) if (folder / name).exists()]
    if there and not overwrite:
        raise errors.CheckpointError(
            f"{folder / there[0]} exists already; name another folder, or replace it (--overwrite)"
        )


@dataclasses.dataclass(frozen=True)
class _Lowered:
    """What becomes of one tensor."""

    name: str
    way: str
    energy: float
    """‖Δ‖²; 0 where nothing changed."""
    kept: float = 0.0
    """Σ σ² of what the factors have."""
    factors: tuple[torch.Tensor, ...] = ()
    """A and B, as `peft` has them."""


@dataclasses.dataclass(frozen=True)
class _Whole:
    """What is in an adapter whole."""

    tensors: Mapping[str, torch.Tensor]
    """By their names in the base."""
    modules: tuple[str, ...]
    """That are saved as modules of their own."""
    beside: tuple[str, ...]
    """The biases of layers that have factors."""
    biases: bool
    """Whether there are biases that are in no such module."""


def _ways(base: checkpoints.Checkpoint) -> dict[str, str]:
    """How each tensor's change can be in an adapter, read off its name and shape.

    `linear`, `transposed`, `embedding` and `convolution` have factors, `module` and `bias` are
    taken whole, `none` is left out.
    """
    kind = _config_of(base).get("model_type")
    found = {}
    for name in base.names:
        module, _, part = name.rpartition(".")
        shape = base.info(name).shape
        found[name] = "none"
        if part == "weight" and module:
            found[name] = _way(module.rpartition(".")[2], shape, kind)
        elif part == "bias" and module:
            weight = f"{module}.weight"
            norm = weight in base and len(base.info(weight).shape) == 1
            found[name] = "module" if norm else "bias"
    return found


def _way(layer: str, shape: tuple[int, ...], kind: Any) -> str:
    """How the weight of a layer can be in an adapter."""
    if len(shape) == 1:
        return "module"
    if len(shape) == 2:
        if "embed" in layer or layer in EMBEDDINGS:
            return "embedding"
        if kind in TRANSPOSED:  # the setting is the adapter's, and other layers don't have it
            return "transposed" if layer in LAYERS else "module"
        return "linear"
    # Of a convolution in groups the shape does not say how many there are; one per channel is one.
    return "convolution" if 3 <= len(shape) <= 5 and shape[1] > 1 else "none"


def _config_of(base: checkpoints.Checkpoint) -> Mapping[str, Any]:
    """The configuration beside a base; empty where there is none."""
    file = base.files[0].with_name("config.json") if base.files else Path()
    if not file.is_file():
        return {}
    content = json_documents.read(file, str(file), errors.CheckpointError)
    return content if isinstance(content, dict) else {}


def _is_tied(config: Mapping[str, Any], ways: Iterable[str]) -> bool:
    """Whether an embedding that has factors is the output layer, too."""
    names = config.get("architectures") or [""]
    head = isinstance(names, list) and str(names[0]).endswith(HEADS)
    return head and config.get("tie_word_embeddings") is not False and "embedding" in ways


def _lowered(
    base: checkpoints.Checkpoint,
    merged: checkpoints.Checkpoint,
    name: str,
    way: str,
    rank: int,
) -> _Lowered:
    """The factors of a tensor's change, where it has some."""
    before = base.tensor(name)
    change = merged.tensor(name).to(torch.float64, copy=True).reshape(-1)
    change -= before.reshape(-1)  # in place: an embedding is no small thing in float64
    energy = float(change @ change)
    if not energy or way in ("module", "bias", "none"):
        return _Lowered(name, way, energy)
    shape = tuple(before.shape)
    matrix = change.reshape(shape[0], math.prod(shape[1:]))
    if way in ("transposed", "embedding"):
        matrix = matrix.T
    left, values, right = singular.leading(matrix, min(rank, *matrix.shape))
    roots = values.sqrt()
    b, a = torch.zeros(len(left), rank), torch.zeros(rank, len(right))
    b[:, : len(roots)] = (left * roots).float()
    a[: len(roots)] = (right * roots).T.float()
    if way == "convolution":
        a, b = a.reshape(rank, *shape[1:]), b.reshape(*b.shape, *(1 for _ in shape[2:]))
    return _Lowered(name, way, energy, min(energy, float(values.square().sum())), (a, b))


def _whole(
    base: checkpoints.Checkpoint,
    merged: checkpoints.Checkpoint,
    found: Iterable[_Lowered],
    factored: Mapping[str, _Lowered],
) -> _Whole:
    """The modules and the biases that go in as they are."""
    modules, biases = set(), []
    for each in found:
        if each.way == "module":
            modules.add(each.name.rpartition(".")[0])
        elif each.way == "bias":
            biases.append(each.name)
    tensors = {}
    for name in base.names:  # a module goes in with all that it has
        if name.rpartition(".")[0] in modules:
            tensors[name] = merged.tensor(name).clone()
    for name in biases:
        tensors.setdefault(name, merged.tensor(name).clone())
    beside = tuple(name for name in biases if f"{name.removesuffix('.bias')}.weight" in factored)
    return _Whole(tensors, tuple(sorted(modules)), beside, bool(biases))


def _named(
    base: checkpoints.Checkpoint, factored: Mapping[str, _Lowered], whole: _Whole
) -> dict[str, torch.Tensor]:
    """All tensors of an adapter by their keys in its file."""
    kind = _config_of(base).get("model_type")
    found = {}
    for name, each in factored.items():
        module = renamed.in_memory(name, kind).removesuffix(".weight")
        keys = ("lora_A.weight", "lora_B.weight")
        if each.way == "embedding":
            keys = ("lora_embedding_A", "lora_embedding_B")
        for key, factor in zip(keys, each.factors, strict=True):
            found[f"{adapters.PREFIX}{module}.{key}"] = factor
    for name, tensor in whole.tensors.items():
        module, _, part = renamed.in_memory(name, kind).rpartition(".")
        inner = f"{module}.{adapters.INNER}" if name in whole.beside else module
        found[f"{adapters.PREFIX}{inner}.{part}"] = tensor
    return found


def _config(
    base: checkpoints.Checkpoint,
    factored: Mapping[str, _Lowered],
    whole: _Whole,
    rank: int,
    named: str,
) -> dict[str, Any]:
    """The adapter's configuration."""
    kind = _config_of(base).get("model_type")
    return {
        "base_model_name_or_path": named,
        "bias": "all" if whole.biases else "none",
        "fan_in_fan_out": kind in TRANSPOSED,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": [renamed.in_memory(name, kind) for name in whole.modules] or None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(
            renamed.in_memory(name, kind).removesuffix(".weight") for name in factored
        ),
        "task_type": None,
        "use_rslora": False,
    }


def _save(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the two files, the configuration last."""
    infos = {
        key: checkpoints.TensorInfo(tensor.dtype, tuple(tensor.shape))
        for key, tensor in tensors.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / adapters.CONFIG).unlink(missing_ok=True)
        with writing.CheckpointWriter(folder / adapters.WEIGHTS, infos, overwrite=overwrite) as out:
            for key, tensor in tensors.items():
                out.write(key, tensor)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / adapters.CONFIG).write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.CheckpointError(
            f"cannot write the adapter {folder}: {error.strerror}; name another folder (--output)"
        ) from error


def _told(
    folder: Path,
    rank: int,
    found: Mapping[str, _Lowered],
    factored: Mapping[str, _Lowered],
    whole: _Whole,
    digest: str,
) -> LoweredChange:
    """What is said of an adapter: the shares of all energy."""
    total = math.fsum(each.energy for each in found.values())
    kept = {name: each.kept for name, each in found.items()}
    kept |= {name: found[name].energy for name in whole.tensors if name in found}
    groups: dict[str, list[str]] = {}
    for name, group in layer_groups.group(found).items():
        groups.setdefault(group, []).append(name)
    lost = {name: found[name].energy for name in found if not kept[name]}
    energies = {
        group: (
            math.fsum(found[name].energy for name in names),
            math.fsum(kept[name] for name in names),
        )
        for group, names in groups.items()
    }
    file = folder / adapters.WEIGHTS
    return LoweredChange(
        folder=folder,
        rank=rank,
        matrices=len(factored),
        whole=tuple(sorted(whole.tensors)),
        left_out={
            name: energy / total
            for name, energy in sorted(lost.items(), key=lambda each: (-each[1], each[0]))
        },
        groups={group: (own / total, held / own) for group, (own, held) in energies.items()},
        energy_kept=math.fsum(kept.values()) / total,
        weights_digest=digest,
        file_digest=checkpoints.file_digest(file),
        nbytes=file.stat().st_size,
    )
