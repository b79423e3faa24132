"""Which elements of a long vector have a given rank, when only a part of it fits in memory.

Magnitudes of finite floats order like the bits that hold them, read as integers. So the element of
rank r is found digit by digit: count how many magnitudes start with each value of the top 16 bits,
walk to the value that holds rank r, look at the next 16 bits of those only, and so on.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch

DIGIT = 16
"""Bits counted in one pass."""


@dataclasses.dataclass
class RankCut:
    """Where the order (|τ|, index) is cut so that exactly `rank` elements lie before.

    An element lies behind the cut when its magnitude is above `magnitude`, or equal to it with at
    least `ties` equal ones before it.
    """

    magnitude: int
    """Bits of the magnitude, as an integer."""
    ties: int
    """How many elements of exactly this magnitude lie before the cut."""
    seen: int = 0
    """How many elements of exactly this magnitude `behind` has passed so far."""

    def behind(self, bits: torch.Tensor) -> torch.Tensor:
        """Which elements lie behind the cut, bool like `bits`; call it in the order of the vector.

        Args:
            bits: magnitudes' bits of the next part of the vector, int64, any shape.
        """
        equal = bits == self.magnitude
        number = torch.cumsum(equal.reshape(-1), 0).reshape(bits.shape) - 1 + self.seen
        self.seen += int(equal.sum())
        return (bits > self.magnitude) | (equal & (number >= self.ties))


def magnitude_bits(tau: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bits of |τ| as int64 of τ's shape, τ widened to `dtype` (float32 or float64) first."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    return tau.to(dtype).abs().view(integer).to(torch.int64)


def cut(parts: Callable[[], Iterable[torch.Tensor]], rank: int, dtype: torch.dtype) -> RankCut:
    """The cut before the element of `rank` (from 0) in the order (|τ|, index) of a long vector.

    Args:
        parts: called once per digit; gives the vector part by part as `magnitude_bits`.
        rank: 0 ≤ rank ≤ n. At n, everything lies before the cut.
        dtype: of the magnitudes, float32 or float64.
    """
    prefix, below = 0, 0
    for shift in range(63 if dtype == torch.float64 else 31, 0, -DIGIT):
        low = max(shift - DIGIT, 0)
        width = shift - low
        histogram = torch.zeros(2**width, dtype=torch.int64)
        for bits in parts():
            flat = bits.reshape(-1)
            candidates = flat[flat >> shift == prefix]
            histogram += torch.bincount((candidates >> low) & (2**width - 1), minlength=2**width)
        reached = below + torch.cumsum(histogram, 0)
        digit = int((reached <= rank).sum())
        if digit == 2**width:
            return RankCut(magnitude=2**63 - 1, ties=0)
        below = int(reached[digit] - histogram[digit])
        prefix = prefix << width | digit
    return RankCut(magnitude=prefix, ties=rank - below)
