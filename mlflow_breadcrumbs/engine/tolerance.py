"""When two results of one merge are the same: bit by bit, or within a stated tolerance.

The arithmetic of a merge is fixed to the bit. Decompositions of matrices are not: their last bits
depend on the device, the processor and the library. So the matrices that a recipe decomposes may
differ by a relative Frobenius norm, ‖one − other‖ / ‖other‖, of so much; every other tensor must
have the same bits.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch

from mlflow_breadcrumbs.engine import backends, checkpoints, recipe

TOLERANCE = 1e-6
"""Relative Frobenius norm for float32 and float64; decompositions in float64 leave about 1e-8,
and products in float32 up to 7e-7 of what is added to the base, mostly a few hundredths of it."""


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A tensor that is not the same in two sets of weights, of which the second is the measure."""

    tensor: str
    elements: int
    """How many elements differ."""
    total: int
    """How many there are."""
    max_abs: float | None
    """Largest |one − other|; `None` where the shapes differ."""
    relative: float | None
    """‖one − other‖ / ‖other‖; `None` where the shapes differ, or that is n / 0."""
    tolerance: float = 0.0
    """How much of `relative` is allowed; 0: the bits must be the same."""

    @property
    def within(self) -> bool:
        """Whether the tolerance allows it."""
        return self.tolerance > 0 and self.relative is not None and self.relative <= self.tolerance


def tolerances(job: backends.Job) -> dict[str, float]:
    """The tolerance of each output dtype of the matrices that a merge decomposes; empty if none.

    The dtypes have their safetensors names. Where their numbers are ε apart, differences of the
    size `TOLERANCE` change a share `TOLERANCE`/ε of the roundings, each by ε: √(`TOLERANCE`·ε).
    """
    dtypes = {
        job.dtypes[name] for name in job.merged if job.recipe.decomposes(job.base.info(name).shape)
    }
    return {
        checkpoints.DTYPE_NAMES[dtype]: max(
            TOLERANCE, float(f"{math.sqrt(TOLERANCE * torch.finfo(dtype).eps):.2g}")
        )
        for dtype in dtypes
    }


def differences(
    one: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
    settings: recipe.MergeRecipe,
    allowed: Mapping[str, float],
) -> tuple[Deviation, ...]:
    """Every tensor that differs, by name.

    Args:
        one: tensors by name.
        other: the same, merged again.
        settings: the recipe of both.
        allowed: what `tolerances` gave for the merge.
    """
    found = []
    for name in sorted({*one, *other}):
        pair = [tensors[name] for tensors in (one, other) if name in tensors]
        if len(pair) < 2 or pair[0].shape != pair[1].shape:
            total = max(tensor.numel() for tensor in pair)
            found.append(Deviation(name, total, total, None, None))
        elif pair[0].dtype != pair[1].dtype:
            found.append(_difference(name, pair[0], pair[1], 0.0))
        elif checkpoints.tensor_bytes(pair[0]) != checkpoints.tensor_bytes(pair[1]):
            dtype = checkpoints.DTYPE_NAMES[pair[1].dtype]
            decomposed = settings.merges(name) and settings.decomposes(pair[1].shape)
            tolerance = allowed.get(dtype, 0.0) if decomposed else 0.0
            found.append(_difference(name, pair[0], pair[1], tolerance))
    return tuple(found)


def _difference(name: str, one: torch.Tensor, other: torch.Tensor, tolerance: float) -> Deviation:
    one, other = one.double(), other.double()
    gap = (one - other).abs()
    norm = float(other.norm())
    return Deviation(
        tensor=name,
        elements=int((gap != 0).sum()),
        total=gap.numel(),
        max_abs=float(gap.max()) if gap.numel() else 0.0,
        relative=float(gap.norm()) / norm if norm else None,
        tolerance=tolerance,
    )
