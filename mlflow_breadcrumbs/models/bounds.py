"""How large a model may be that a configuration asks for, found before any memory is taken.

A line of JSON can ask for three million layers. Each number has a bound, well beyond any published
model; and a model of a checkpoint may not have many more parameters than the checkpoint has.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_breadcrumbs import errors

LARGEST: Mapping[str, float] = {
    "attn_pooler_heads": 1 << 10,
    "attn_pooler_queries": 1 << 16,
    "context_length": 1 << 17,
    "embed_dim": 1 << 16,
    "head_width": 1 << 14,
    "heads": 1 << 10,
    "image_size": 1 << 13,
    "layers": 1 << 10,
    "mlp_ratio": 1 << 6,
    "patch_size": 1 << 12,
    "vocab_size": 1 << 22,
    "width": 1 << 15,
}
"""By the last part of a field's name."""

STAGES = 8
"""Numbers of a list: a ResNet's layers by stage, or the two sides of an image."""

SLACK = 4
"""So many times the parameters of its checkpoint may a configuration ask for."""

_SMALL = 1 << 20
"""Parameters that any configuration may ask for, whatever its checkpoint has."""


def check(model_cfg: Mapping[str, Any], origin: str) -> None:
    """Hold every number of a configuration against its bound.

    Raises:
        ArchitectureError: one is beyond it, is not positive, or is no number.
    """
    for name, value in _fields(model_cfg):
        most = LARGEST.get(name.rpartition(".")[2])
        if most is None or value is None:
            continue
        if isinstance(value, list | tuple) and len(value) > STAGES:
            raise errors.ArchitectureError(
                f"{origin}: {name} is a list of {len(value):,} numbers, {STAGES} is the most."
            )
        for number in value if isinstance(value, list | tuple) else [value]:
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not 0 < number <= most:
                raise errors.ArchitectureError(
                    f"{origin}: {name} is {_short(value)}; it must be above 0 and at most {most:,}."
                )


def check_size(model_cfg: Mapping[str, Any], parameters: int, origin: str) -> None:
    """Hold the size of the model that a configuration asks for against its checkpoint's.

    Args:
        model_cfg: checked by `check`.
        parameters: elements of all the checkpoint's tensors.
        origin: how messages name the configuration.

    Raises:
        ArchitectureError: the model would be far larger.
    """
    least = at_least(model_cfg)
    if least > SLACK * parameters + _SMALL:
        raise errors.ArchitectureError(
            f"{origin} asks for a model of at least {least:,} parameters, but its checkpoint has "
            f"{parameters:,}. They don't belong together; restore the configuration, or give the "
            "one that the checkpoint was trained with."
        )


def at_least(model_cfg: Mapping[str, Any]) -> int:
    """Parameters that the model has in any case: its blocks, its vocabulary, its positions."""
    total = 0.0
    for part in ("vision_cfg", "text_cfg"):
        tower = model_cfg.get(part)
        if not isinstance(tower, Mapping) or "timm_model_name" in tower or "hf_model_name" in tower:
            continue
        width, layers = tower.get("width", 0), tower.get("layers", 0)
        if isinstance(layers, list | tuple):  # a ResNet's stages, of bottlenecks
            total += sum(17 * (width * 2**n) ** 2 * count for n, count in enumerate(layers))
            continue
        total += layers * (4 + 2 * tower.get("mlp_ratio", 4.0)) * width**2
        total += (tower.get("vocab_size", 0) + tower.get("context_length", 0)) * width
        total += _patches(tower) * width
    return math.floor(total)


def _patches(tower: Mapping[str, Any]) -> float:
    """Of an image: a learned position each."""
    size, patch = tower.get("image_size", 0), tower.get("patch_size")
    if not patch or tower.get("pos_embed_type", "learnable") != "learnable":
        return 0.0
    sides = [side if isinstance(side, list | tuple) else [side, side] for side in (size, patch)]
    return float(math.prod(whole // part for whole, part in zip(*sides, strict=False)))


def _fields(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
