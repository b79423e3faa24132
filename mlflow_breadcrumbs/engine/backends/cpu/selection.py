"""Which elements a mask keeps, found without sorting.

The order (|τ|, flat index) is cut twice: before the element of rank n_low, and before the element
of rank n_low + n_keep. What lies between the cuts is kept. To find the cuts of a long vector:

1. The sorted magnitudes of a sample bracket each cut: a narrow range that very likely holds it.
2. One pass counts the magnitudes below each bracket and lists the few inside it.
3. The cut is the listed element whose rank remains when those below are taken off.

A bracket that misses, or holds too much to list (few distinct values), costs time and nothing else:
the cuts are then found digit by digit in constant memory, which is also the way for many ranks at
once and for a vector that is spread over many tensors; see `search`.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mlflow_breadcrumbs.engine.backends.cpu import kernels, reading

SAMPLE = 1 << 14
"""Elements in a sample; of a vector of more than 2²⁴ elements, one in 1024, up to `LARGEST`.

The longer the vector, the narrower a bracket must be for the list to stay small.
"""

LARGEST = 1 << 20
"""Elements in a sample at most."""

DOUBT = 6.0
"""Half the width of a bracket, in standard deviations of a rank in the sample."""

LISTED = 8
"""At most one element in so many is listed."""

MOST = 1 << 24
"""Elements that are listed at most, 12 bytes each."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """The first element behind a cut of the order (|τ|, flat index)."""

    magnitude: int
    """The bits of |τ| as float32."""
    index: int


START = Cut(0, 0)
"""Everything lies behind it."""
END = Cut(int(kernels.MAGNITUDE) + 1, 0)
"""Everything lies before it."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """The elements whose magnitude is in one of some ranges, in the order of their indices."""

    bits: kernels.Bits
    """uint32 [listed] magnitudes, those of all ranges."""
    index: kernels.Counts
    """int64 [listed] flat indices."""
    smaller: int
    """Listed elements of smaller ranges than the one looked into."""
    size: int
    """Listed elements of that range."""
    below: int
    """Elements of the vector, listed or not, that are below that range."""

    def cut(self, rank: int) -> Cut | None:
        """The cut before the element of this rank in the whole vector; `None` if not listed."""
        if not 0 <= rank - self.below < self.size:
            return None
        rank += self.smaller - self.below
        magnitude = np.partition(self.bits, rank)[rank]
        before = rank - int(np.count_nonzero(self.bits < magnitude))
        return Cut(int(magnitude), int(self.index[np.flatnonzero(self.bits == magnitude)[before]]))


def cuts(vector: reading.Vector, ranks: Sequence[int]) -> list[Cut]:
    """The cuts before the elements of these ranks in a task vector, 0 ≤ rank ≤ n each."""
    found: dict[int, Cut | None] = {0: START, len(vector): END}
    wanted = sorted(set(ranks) - set(found))
    if wanted:
        listed = _list_around(vector, wanted)
        found |= {
            rank: elements.cut(rank) if elements else None
            for rank, elements in zip(wanted, listed, strict=True)
        }
    missed = [rank for rank in wanted if found[rank] is None]

    def visit(work: Callable[[int, reading.Pair], None]) -> None:
        for number, pair in enumerate(vector.parts()):
            work(number, pair)

    for rank, place in zip(missed, search(missed, visit), strict=True):
        index = place.part * reading.PART + place.cut.index
        found[rank] = Cut(place.cut.magnitude, index)
    return [cut for rank in ranks if (cut := found[rank]) is not None]


def _list_around(vector: reading.Vector, ranks: Sequence[int]) -> Iterable[Listed | None]:
    """The elements around each of the sorted `ranks`, or `None` where they would be too many."""
    n = len(vector)
    if n <= min(4 * SAMPLE, reading.PART):
        bits = next(vector.parts()).magnitudes()
        return [Listed(bits, np.arange(n), 0, n, 0)] * len(ranks)
    if len(ranks) > 2:
        return [None] * len(ranks)
    brackets = _brackets(vector, ranks)
    firsts = np.zeros(2, np.uint32)
    widths = np.zeros(2, np.uint32)
    for i, (first, last) in enumerate(brackets):
        firsts[i], widths[i] = first, last - first + 1
    bits = np.empty(min(n // LISTED, MOST) + kernels.RUN, np.uint32)
    index = np.empty(bits.size, np.int64)
    below = np.zeros(2, np.int64)
    filled = passed = 0
    for pair in vector.parts():
        filled = kernels.collect(pair.arrays, passed, firsts, widths, below, bits, index, filled)
        if filled < 0:
            return [None] * len(ranks)
        passed += len(pair)
    bits, index = bits[:filled], index[:filled]
    in_first = int(np.count_nonzero(bits <= brackets[0][1]))
    listed = [
        Listed(bits, index, 0, in_first, int(below[0])),
        Listed(bits, index, in_first, filled - in_first, int(below[1])),
    ]
    return [listed[min(i, len(brackets) - 1)] for i in range(len(ranks))]


def _brackets(vector: reading.Vector, ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of magnitudes, first and last, that likely hold the ranks; one if they overlap."""
    sample = vector.sample(min(max(SAMPLE, len(vector) >> 10), LARGEST))
    brackets: list[tuple[int, int]] = []
    for rank in ranks:
        share = rank / len(vector)
        spread = DOUBT * math.sqrt(sample.size * share * (1 - share)) + 1
        first = math.floor(sample.size * share - spread)
        last = math.ceil(sample.size * share + spread)
        brackets.append(
            (
                int(sample[first]) if first >= 0 else 0,
                int(sample[last]) if last < sample.size else int(kernels.MAGNITUDE),
            )
        )
    if len(brackets) == 2 and brackets[1][0] <= brackets[0][1]:
        return [(brackets[0][0], brackets[1][1])]
    return brackets


class Place(NamedTuple):
    """A cut of a vector that is spread over several parts."""

    part: int
    """The part that the first element behind the cut is in."""
    cut: Cut
    """Its magnitude, and its index in that part."""


Visit = Callable[[Callable[[int, reading.Pair], None]], None]
"""Calls a function with the number and the task vector of every part, in any order or threads."""


def search(ranks: Sequence[int], visit: Visit) -> list[Place]:
    """The cuts of a long vector given in parts, digit by digit, in memory that does not grow.

    Passes over the vector count the upper 16 bits of the magnitudes, the lower 16 of those that
    share a rank's upper bits, and in every part the elements of a rank's magnitude; the last one
    finds the element.

    Args:
        ranks: 0 ≤ rank < n each.
        visit: see `Visit`.
    """
    if not ranks:
        return []
    upper = _count(visit, 16, np.empty(0, np.int64))
    digits = [_locate(upper[0], rank) for rank in ranks]
    bins = np.unique([digit for digit, _ in digits])
    lower = _count(visit, 0, bins)
    magnitudes, befores = [], []
    for digit, rest in digits:
        low, before = _locate(lower[np.searchsorted(bins, digit)], rest)
        magnitudes.append(digit << 16 | low)
        befores.append(before)
    equal: dict[int, list[int]] = {}

    def count_equal(number: int, pair: reading.Pair) -> None:
        equal[number] = [
            kernels.find_equal(pair.arrays, magnitude, len(pair))[1] for magnitude in magnitudes
        ]

    visit(count_equal)
    table = np.array([equal[number] for number in range(len(equal))], np.int64)
    targets = [_locate(table[:, i], before) for i, before in enumerate(befores)]
    indices = [0] * len(ranks)

    def find(number: int, pair: reading.Pair) -> None:
        for i, (part, before) in enumerate(targets):
            if part == number:
                indices[i] = int(kernels.find_equal(pair.arrays, magnitudes[i], before)[0])

    visit(find)
    return [
        Place(part, Cut(magnitude, index))
        for (part, _), magnitude, index in zip(targets, magnitudes, indices, strict=True)
    ]


def _count(visit: Visit, shift: int, bins: kernels.Counts) -> kernels.Counts:
    """Counts by upper bits, [1, 65536], or by the lower bits of each of `bins`, [bins, 65536]."""
    slots = np.full(1 << 15, -1, np.int16)
    slots[bins] = np.arange(bins.size)
    total = np.zeros((max(bins.size, 1), 1 << 16), np.int64)
    lock = threading.Lock()

    def count(number: int, pair: reading.Pair) -> None:
        table = np.zeros_like(total)
        kernels.count_digits(pair.arrays, shift, slots, table)
        with lock:
            np.add(total, table, out=total)

    visit(count)
    return total


def _locate(counts: kernels.Counts, rank: int) -> tuple[int, int]:
    """The group that holds the element of a rank, and its rank within the group."""
    reached = np.cumsum(counts)
    group = int(np.searchsorted(reached, rank, side="right"))
    return group, rank - int(reached[group] - counts[group])
