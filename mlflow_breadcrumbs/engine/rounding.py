"""How much of a task vector is rounding: sources stored in fewer bits than their base.

A bfloat16 copy of float32 weights differs from them by its rounding, in every element. Where
fine-tuning changed less than that, a mask by magnitude picks the largest rounding errors.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch

from mlflow_breadcrumbs.engine import backends

RELATIVE_ERROR = math.sqrt(3 / (8 * math.log(2)) / 12)
"""Root mean square of a rounding's relative error, in units of ε: 0.2123.

An error is uniform within ± half a unit in the last place, so its mean square is ulp² / 12; and
ulp = ε·x / m for a mantissa m that is distributed as 1 / m between 1 and 2, so that the mean of
1 / m² is 3 / (8 ln 2). Numbers that are subnormal in float16 (below 6e-5) are off by more.
"""

NOTED = 0.25
"""The share of a task vector's norm from which it is said."""

MOSTLY = 0.7
"""The share from which a base that is rounded likewise finds more of the true changes."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """What rounding alone does to a source."""

    label: str
    """How messages name the source."""
    dtypes: tuple[str, str]
    """Of the source's narrowest tensor, and of the base's there."""
    expected: float
    """Norm of the rounding errors, from the dtypes and the base's numbers."""
    norm: float
    """‖τ‖ of the source, rounding errors and all."""

    @property
    def share(self) -> float:
        """Of the task vector's norm, 0…1."""
        return min(1.0, self.expected / self.norm) if self.norm else 0.0

    def note(self) -> str | None:
        """What a user should know of it, without its full stop; `None` where it is little."""
        if self.share < NOTED:
            return None
        source, base = self.dtypes
        said = (
            f"{self.label} is stored in {source}, the base in {base}: rounding alone makes a task "
            f"vector of norm {self.expected:.3g}, {self.share:.0%} of the one found "
            f"({self.norm:.3g}), and masks keep rounding errors for changes. Give the source in "
            f"{base}, as it was before it was stored"
        )
        if self.share >= MOSTLY:
            said += (
                f"; where that is lost, a base rounded to {source} too is better: what fine-tuning "
                "left alone cancels out"
            )
        return said


def of_sources(
    job: backends.Job,
    base_energies: Mapping[str, float],
    energies: Iterable[tuple[int, float]],
) -> tuple[Noise, ...]:
    """The noise of every source of a merge that has a tensor in fewer bits than the base.

    Args:
        job: the merge.
        base_energies: Σ θ² of each merged tensor.
        energies: Σ τ², by the source's position, of each merged tensor.
    """
    squares = [0.0] * len(job.sources)
    for number, energy in energies:
        squares[number] += energy
    found = []
    for number, (label, source) in enumerate(zip(job.labels, job.sources, strict=True)):
        pairs = {name: (source.info(name).dtype, job.base.info(name).dtype) for name in job.merged}
        narrowed = {name: pair for name, pair in pairs.items() if _eps(pair[0]) > _eps(pair[1])}
        if not narrowed:
            continue
        expected = sum(
            base_energies[name] * (RELATIVE_ERROR * _eps(dtype)) ** 2
            for name, (dtype, _) in narrowed.items()
        )
        widest = max(narrowed.values(), key=lambda pair: _eps(pair[0]))
        found.append(
            Noise(
                label=label,
                dtypes=(_name(widest[0]), _name(widest[1])),
                expected=math.sqrt(expected),
                norm=math.sqrt(squares[number]),
            )
        )
    return tuple(found)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
