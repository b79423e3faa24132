"""How large a model may be that a configuration asks for, found before any memory is taken.

Each number has a bound of its own, see `config_rules`; and a model of a checkpoint may not have
many more parameters than the checkpoint has.
"""

import math
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs import errors

SLACK = 4
"""So many times the parameters of its checkpoint may a configuration ask for."""

_SMALL = 1 << 20
"""Parameters that any configuration may ask for, whatever its checkpoint has."""


def check_size(model_cfg: Mapping[str, Any], parameters: int, origin: str) -> None:
    """Hold the size of the model that a configuration asks for against its checkpoint's.

    Args:
        model_cfg: as `config_rules` allows it.
        parameters: elements of all the checkpoint's tensors.
        origin: how messages name the configuration.

    Raises:
        ArchitectureError: the model would be far larger.
    """
    check_count(at_least(model_cfg), parameters, origin)


def check_count(count: int, parameters: int, origin: str) -> None:
    """Hold what a model would have against what its checkpoint has; see `check_size`."""
    if count > SLACK * parameters + _SMALL:
        raise errors.ArchitectureError(
            f"{origin} asks for a model of at least {count:,} parameters, but its checkpoint has "
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
        width, layers = tower.get("width") or 0, tower.get("layers") or 0
        if isinstance(layers, list | tuple):  # a ResNet's stages, of bottlenecks
            total += sum(17 * (width * 2**n) ** 2 * count for n, count in enumerate(layers))
            continue
        total += layers * (4 + 2 * (tower.get("mlp_ratio") or 4.0)) * width**2
        total += ((tower.get("vocab_size") or 0) + (tower.get("context_length") or 0)) * width
        total += _patches(tower) * width
    return math.floor(total)


def _patches(tower: Mapping[str, Any]) -> float:
    """Of an image: a learned position each."""
    size, patch = tower.get("image_size") or 0, tower.get("patch_size")
    if not patch:
        return 0.0
    sides = [side if isinstance(side, list | tuple) else [side, side] for side in (size, patch)]
    return float(math.prod(whole // part for whole, part in zip(*sides, strict=False)))
