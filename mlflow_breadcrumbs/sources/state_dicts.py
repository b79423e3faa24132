"""The tensors in a checkpoint file, whatever tool wrote it, under the architecture's own names.

`read` opens the file and takes the tensors out of their container; `fit` finds the architecture's
names among theirs. Both take what can mean one thing only, and name what is in the way otherwise.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})

COMPUTED = frozenset(
    {
        "attn_mask",
        "context_length",
        "initted",
        "input_resolution",
        "n_averaged",
        "position_ids",
        "step",
        "vocab_size",
    }
)
"""Last parts of names that no weight has: what other tools and releases keep beside the weights."""

_WRAPPERS = re.compile(
    r"(?:(?<=^)|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
"""What torch.compile, FSDP and DeepSpeed put around a module, anywhere in a name."""

_PREFIXES = ("module.", "model.")
"""What DistributedDataParallel, and a class around the model, put before every name."""

_TEXT_TOWER = (
    "ln_final.",
    "logit_bias",
    "logit_scale",
    "positional_embedding",
    "text.",
    "text_projection",
    "token_embedding.",
    "transformer.",
)
"""How the names of a text tower begin; an architecture without one has no use for them."""

_NESTED = 3
"""Dictionaries around the tensors at most."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A checkpoint's tensors under the architecture's names."""

    tensors: dict[str, torch.Tensor]
    dropped: tuple[str, ...]
    """Names of the checkpoint that the architecture has no use for, sorted."""


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file, without running anything that is in it.

    A pickle is read with torch's `weights_only`, which knows tensors and plain containers and
    nothing else. A dictionary around the tensors (`state_dict`, `model_ema`, …), `module.` or
    `model.` before every name, and what torch.compile and FSDP put into names, are taken away.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, or several sets of them.
    """
    path = Path(path)
    if path.suffix not in PICKLE_SUFFIXES:
        with checkpoints.Checkpoint.open(path) as checkpoint:
            return _unwrapped(path, {name: checkpoint.tensor(name) for name in checkpoint.names})
    if not path.is_file():
        raise errors.CheckpointError(f"There is no checkpoint '{path}'.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes make it do
        raise errors.CheckpointError(_refusal(path, error)) from error
    return _unwrapped(path, _dense(path, _contained(path, content)))


def _dense(path: Path, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, if all of them have their numbers one after the other."""
    for name, tensor in found.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "has no numbers" if tensor.is_meta else "is sparse or quantized"
            raise errors.CheckpointError(
                f"'{path}' can't be imported: its tensor '{name}' {kind}. Save a dense "
                "floating-point tensor."
            )
    return found


def fit(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    *,
    path: Path,
    architecture: str,
    has_text_tower: bool,
) -> Fitted:
    """Give a checkpoint's tensors the architecture's names.

    Args:
        found: What `read` gave.
        expected: The architecture's tensors, of which names, shapes and dtypes are looked at.
        path: Of the checkpoint, for messages.
        architecture: Its name, for messages.
        has_text_tower: Whether the text tower is wanted too. Without it, a bare image tower is
            one, and the placeholder's tensors are zeros, the same in every version, so that a
            merge leaves them alone.

    Raises:
        CheckpointError: The tensors are not the architecture's; the message names the prefix or
            the keys that are in the way, or lists every difference.
    """
    inner = "" if has_text_tower else "visual."
    wanted = {name.removeprefix(inner) for name in expected if name.startswith(inner)}
    prefixes = _prefixes(found, wanted)
    whole = sorted(prefix for prefix, count in prefixes.items() if count == len(wanted))
    if len(whole) > 1:
        code = (
            f"{{n.removeprefix('{whole[-1]}'): t for n, t in torch.load('{path.name}', "
            f"weights_only=True).items() if n.startswith('{whole[-1]}')}}"
        )
        raise _several(path, [f"under '{prefix}'" for prefix in whole], code)
    start = whole[0] if whole else _closest(prefixes, inner)
    ours = {inner + name: found[start + name] for name in wanted if start + name in found}
    others = sorted(set(found) - {start + name for name in wanted})
    dropped = [name for name in others if _is_needless(name, start, has_text_tower)]
    placeholder = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in expected.items()
        if not name.startswith(inner)
    }
    tensors = placeholder | ours
    parts = {
        "missing": sorted(set(expected) - set(tensors)),
        "extra": sorted(set(others) - set(dropped)),
        "mismatching": [
            f"{name} ({_form(tensors[name])}, not {_form(expected[name])})"
            for name in sorted(set(tensors) & set(expected))
            if tensors[name].shape != expected[name].shape
            or tensors[name].is_floating_point() != expected[name].is_floating_point()
        ],
    }
    if any(parts.values()):
        listed = "; ".join(f"{what}: {_abridged(names)}" for what, names in parts.items() if names)
        raise errors.CheckpointError(
            f"'{path}' is not a checkpoint of the architecture '{architecture}'. {listed}. "
            + _advice(parts, expected, start, has_text_tower)
        )
    return Fitted(tensors, tuple(dropped))


def _contained(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The one mapping of names to tensors in what a pickle held."""
    if not isinstance(content, dict) or not content:
        raise errors.CheckpointError(
            f"'{path}' holds {type(content).__name__}, not a mapping of names to tensors. Save the "
            "model's state_dict() with torch.save or safetensors."
        )
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    sets = dict(_sets_of_tensors(content))
    if len(sets) > 1:
        chosen = "".join(f"[{key!r}]" for key in next(iter(sets)))
        code = f"torch.load('{path.name}', weights_only=True){chosen}"
        raise _several(path, [f"in '{'.'.join(keys)}'" for keys in sets], code)
    if not sets:
        others = sorted(str(name) for name, v in content.items() if not isinstance(v, torch.Tensor))
        raise errors.CheckpointError(
            f"'{path}' holds more than tensors: {_abridged(others)}. Save only the model's "
            "state_dict()."
        )
    return next(iter(sets.values()))


def _sets_of_tensors(
    content: Mapping[Any, Any], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """Every dictionary in it that has tensors and nothing else, with the way to it."""
    for key, value in content.items():
        if not isinstance(value, dict) or not value or len(keys) >= _NESTED:
            continue
        way = (*keys, str(key))
        if all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
            yield way, {str(name): tensor for name, tensor in value.items()}
        else:
            yield from _sets_of_tensors(value, way)


def _unwrapped(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without what wrappers put into their names."""
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    while prefix := next(
        (p for p in _PREFIXES if all(n.startswith(p) for n in names.values())), ""
    ):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    counts = collections.Counter(names.values())
    if twice := sorted(name for name, short in names.items() if counts[short] > 1):
        raise errors.CheckpointError(
            f"'{path}' has the same tensor under several names: {_abridged(twice)}. Save the "
            "state_dict() of the module inside the wrapper."
        )
    return {short: tensors[name] for name, short in names.items()}


def _prefixes(found: Mapping[str, Any], wanted: set[str]) -> collections.Counter[str]:
    """Before how many of the wanted names each prefix stands."""
    counts: collections.Counter[str] = collections.Counter()
    for name in found:
        parts = name.split(".")
        for number in range(len(parts)):
            if ".".join(parts[number:]) in wanted:
                counts[name.removesuffix(".".join(parts[number:]))] += 1
    return counts


def _closest(prefixes: collections.Counter[str], inner: str) -> str:
    """The prefix of most names; none, rather than one of as many."""
    best = prefixes.most_common(1)
    if not best or prefixes[inner] == best[0][1]:
        return inner if best else ""
    return best[0][0]


def _is_needless(name: str, start: str, has_text_tower: bool) -> bool:
    if name.rpartition(".")[2] in COMPUTED:
        return True
    outer = start.removesuffix("visual.")
    return (
        not has_text_tower
        and start.endswith("visual.")
        and name.startswith(outer)
        and name.removeprefix(outer).startswith(_TEXT_TOWER)
    )


def _advice(
    parts: Mapping[str, Sequence[str]],
    expected: Mapping[str, Any],
    start: str,
    has_text_tower: bool,
) -> str:
    """What to do about a difference."""
    visual = {name for name in expected if name.startswith("visual.")}
    missing = set(parts["missing"])
    text_is_gone = 2 * len(missing) > len(expected) - len(visual) > 0
    if has_text_tower and text_is_gone and visual and visual.isdisjoint(missing):
        return (
            f"It is an image tower alone, under '{start}visual.': give `--architecture FILE`, a "
            "JSON configuration without `text_cfg`, for it and for its base."
        )
    if parts["extra"] and not missing and not parts["mismatching"]:
        under = f" under '{start}'" if start else ""
        return (
            f"All of the architecture's tensors are there{under}; leave out the extra ones where "
            "it was made, or give the architecture that has them."
        )
    if start not in ("", "visual."):
        return (
            f"Its names begin with '{start}'; most of the architecture's are there without it. "
            "Give the architecture that it was trained with."
        )
    return "Give the architecture that it was trained with."


def _several(path: Path, places: Sequence[str], code: str) -> errors.CheckpointError:
    """The error for a file of which any part could be meant, with code that takes the first."""
    return errors.CheckpointError(
        f"'{path}' holds {len(places)} sets of weights: {_abridged(places)}. Choose one: "
        f"`torch.save({code}, 'weights.pt')`, and import weights.pt."
    )


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if match := re.search(r"GLOBAL (\S+)", text):
        return (
            f"'{path}' is refused: it is a pickle that would run code when loaded ({match[1]}). "
            f"{_how_to_convert(path)}"
        )
    if "TorchScript" in text:
        code = f"torch.save(torch.jit.load('{path.name}', 'cpu').state_dict(), 'weights.pt')"
        return (
            f"'{path}' is refused: it is a TorchScript archive. If you trust it, convert it where "
            f"it was made: `{code}`, and import weights.pt."
        )
    return (
        f"'{path}' can't be read as a checkpoint: it is damaged, or was not made by torch.save "
        f"({type(error).__name__}). Save the model's state_dict() with torch.save or safetensors."
    )


def _how_to_convert(path: Path) -> str:
    """Code that makes plain tensors of a module, or of a dictionary around one or its tensors."""
    return (
        "If you trust it, convert it where it was made: "
        f"`x = torch.load('{path.name}', 'cpu', weights_only=False); "
        "x = next((x[k] for k in ('state_dict', 'model', 'module') if k in x), x) "
        "if isinstance(x, dict) else x; "
        "x = x if isinstance(x, dict) else x.state_dict(); "
        "torch.save({k: v for k, v in x.items() if isinstance(v, torch.Tensor)}, 'weights.pt')`, "
        "and import weights.pt."
    )


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _abridged(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
