"""Compiled loops of the CPU backend; without Python's lock, without fused multiply-adds.

Every loop works through a tensor in runs of `RUN` elements that stay in the first-level cache: the
base's and the source's bytes become float32 there, whatever they were in the file. One compiled
version serves all dtypes: tensors arrive as bytes (uint8) with the kind of number they hold.

Magnitudes of float32 order like the bits that hold them, read as integers; so masks compare
integers. The order (|τ|, index) is cut at a pair (magnitude, index): an element lies behind the
cut when its own pair is not smaller. Away from the cut's index that is one integer comparison.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Touched = npt.NDArray[np.uint16]
Cuts = tuple[int, int, int, int]
Pair = tuple[Bytes, int, Bytes, int]
"""A tensor in the base and in a source: the bytes and the kind of number of each."""

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = range(4)
"""Kinds of numbers in a file."""

RUN = 2048
"""Elements converted at a time: three runs of float32 fill half of a 48 KiB cache."""

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = 0x7F800000
"""The bits of infinity; magnitudes from here on are not finite."""


def compiled(function: Compiled) -> Compiled:
    """Compile a loop when it is first called, and remember the result on disk."""
    options = {"nogil": True, "cache": True, "error_model": "numpy"}
    return cast(Compiled, numba.njit(**options)(function))


def compiled_sum(function: Compiled) -> Compiled:
    """As `compiled`, for sums whose last bits may vary: the statistics, never the weights."""
    options = {"nogil": True, "cache": True, "fastmath": {"reassoc"}}
    return cast(Compiled, numba.njit(**options)(function))


@compiled
def load(raw: Bytes, kind: int, start: int, out: Floats) -> None:
    """Convert the elements `start` … of a tensor's bytes to float32 until `out` is full."""
    stop = start + out.size
    bits = out.view(np.uint32)
    if kind == FLOAT32:
        floats = raw.view(np.float32)[start:stop]
        for i in range(out.size):
            out[i] = floats[i]
    elif kind == BFLOAT16:
        brains = raw.view(np.uint16)[start:stop]
        for i in range(out.size):
            bits[i] = np.uint32(brains[i]) << np.uint32(16)
    elif kind == FLOAT16:
        halves = raw.view(np.uint16)[start:stop]
        for i in range(out.size):
            bits[i] = np.uint32(halves[i] & np.uint16(0x7FFF)) << np.uint32(13)
        for i in range(out.size):
            out[i] *= np.float32(2.0**112)  # the exponents' offsets differ by 112
        for i in range(out.size):
            half = np.uint32(halves[i])
            if half & np.uint32(0x7C00) == np.uint32(0x7C00):
                bits[i] = np.uint32(INFINITY) | (half & np.uint32(0x3FF)) << np.uint32(13)
            bits[i] |= (half & np.uint32(0x8000)) << np.uint32(16)
    else:
        doubles = raw.view(np.float64)[start:stop]
        for i in range(out.size):
            out[i] = np.float32(doubles[i])


@compiled
def elements(pair: Pair) -> int:
    """How many elements a part of a tensor has."""
    base, base_kind, _, _ = pair
    if base_kind == FLOAT64:
        return base.size // 8
    return base.size // 4 if base_kind == FLOAT32 else base.size // 2


@compiled
def subtract(pair: Pair, start: int, theta: Floats, tau: Floats) -> None:
    """One run of a task vector, τ = θ_t − θ; `theta` is room for the base's run."""
    base, base_kind, tuned, kind = pair
    load(base, base_kind, start, theta)
    load(tuned, kind, start, tau)
    for i in range(tau.size):
        tau[i] -= theta[i]


@compiled
def magnitudes(pair: Pair, out: Bits) -> None:
    """The bits of every |τ|."""
    theta = np.empty(RUN, np.float32)
    tau = np.empty(RUN, np.float32)
    bits = tau.view(np.uint32)
    for first in range(0, out.size, RUN):
        n = min(RUN, out.size - first)
        subtract(pair, first, theta[:n], tau[:n])
        part = out[first : first + n]
        for i in range(n):
            part[i] = bits[i] & MAGNITUDE


@compiled
def collect(
    pair: Pair,
    offset: int,
    firsts: Bits,
    widths: Bits,
    below: Counts,
    bits_out: Bits,
    index_out: Counts,
    filled: int,
) -> int:
    """Count the magnitudes below two brackets, and list those inside with their indices.

    Args:
        pair: the tensor in the base and in a source.
        offset: the flat index of its first element.
        firsts: [2] first magnitude of each bracket; the brackets don't overlap.
        widths: [2] how many magnitudes each bracket holds; 0 for an unused one.
        below: [2] is increased by the elements below each bracket.
        bits_out: magnitudes inside a bracket.
        index_out: their flat indices.
        filled: how many were listed before.

    Returns:
        How many are listed now, or −1 when the lists are full.
    """
    theta = np.empty(RUN, np.float32)
    tau = np.empty(RUN, np.float32)
    bits = tau.view(np.uint32)
    inside = np.empty(RUN, np.uint8)
    groups = inside.view(np.uint64)
    first, second = firsts[0], firsts[1]
    width, width2 = widths[0], widths[1]
    size = elements(pair)
    for here in range(0, size, RUN):
        n = min(RUN, size - here)
        if filled + n > bits_out.size:
            return -1
        subtract(pair, here, theta[:n], tau[:n])
        count, count2 = np.uint32(0), np.uint32(0)
        for i in range(n):
            magnitude = bits[i] & MAGNITUDE
            bits[i] = magnitude
            count = np.uint32(count + np.uint32(magnitude < first))
            count2 = np.uint32(count2 + np.uint32(magnitude < second))
            inside[i] = (np.uint32(magnitude - first) < width) | (
                np.uint32(magnitude - second) < width2
            )
        below[0] += count
        below[1] += count2
        inside[n:] = 0
        for group in range((n + 7) // 8):
            if groups[group]:  # most groups of eight hold none
                for i in range(8 * group, 8 * group + 8):
                    bits_out[filled] = bits[i]
                    index_out[filled] = offset + here + i
                    filled += inside[i]
    return filled


@compiled
def count_digits(
    pair: Pair,
    shift: int,
    slots: npt.NDArray[np.int16],
    tables: Counts,
) -> None:
    """Count the magnitudes by 16 of their bits.

    Args:
        pair: the tensor in the base and in a source.
        shift: 16 counts the upper bits of every magnitude into `tables[0]`; 0 counts the lower 16
            of those whose upper bits have a slot.
        slots: [32768] the row of `tables` for each value of the upper bits, or −1.
        tables: [rows, 65536] counts, increased.
    """
    theta = np.empty(RUN, np.float32)
    tau = np.empty(RUN, np.float32)
    bits = tau.view(np.uint32)
    size = elements(pair)
    for here in range(0, size, RUN):
        n = min(RUN, size - here)
        subtract(pair, here, theta[:n], tau[:n])
        if shift:
            for i in range(n):
                tables[0, (bits[i] & MAGNITUDE) >> np.uint32(16)] += 1
        else:
            for i in range(n):
                slot = slots[(bits[i] & MAGNITUDE) >> np.uint32(16)]
                if slot >= 0:
                    tables[slot, bits[i] & np.uint32(0xFFFF)] += 1


@compiled
def find_equal(pair: Pair, magnitude: int, number: int) -> tuple[int, int]:
    """The index of the element of this magnitude that has `number` equal ones before it.

    Returns:
        The index, or −1 when there are not so many; and how many equal ones were passed.
    """
    theta = np.empty(RUN, np.float32)
    tau = np.empty(RUN, np.float32)
    bits = tau.view(np.uint32)
    wanted = np.uint32(magnitude)
    passed = 0
    size = elements(pair)
    for here in range(0, size, RUN):
        n = min(RUN, size - here)
        subtract(pair, here, theta[:n], tau[:n])
        equal = np.uint32(0)
        for i in range(n):
            equal += np.uint32((bits[i] & MAGNITUDE) == wanted)
        if passed + equal > number:
            for i in range(n):
                if bits[i] & MAGNITUDE == wanted:
                    if passed == number:
                        return here + i, passed
                    passed += 1
        passed += int(equal)
    return -1, passed


@compiled_sum
def energy(tau: Floats) -> float:
    """Σ τ², in float64."""
    total = 0.0
    for i in range(tau.size):
        total += np.float64(tau[i]) * np.float64(tau[i])
    return total


@compiled
def mask_range(tau: Floats, start: int, cuts: Cuts, seen: Counts) -> None:
    """Set to zero what lies before the lower cut or behind the upper one.

    Args:
        tau: part of a task vector, changed in place.
        start: the flat index of its first element.
        cuts: magnitude and flat index of the lower cut, then of the upper one.
        seen: [4] see `add_source`.
    """
    lower, lower_index, upper, upper_index = cuts
    bits = tau.view(np.uint32)
    here = 0
    while here < tau.size:
        end = tau.size
        if here < lower_index - start < end:
            end = lower_index - start
        if here < upper_index - start < end:
            end = upper_index - start
        # From its index on, a cut's own magnitude lies behind it; before, only larger ones do.
        first = lower + (1 if here + start < lower_index else 0)
        last = upper + (1 if here + start < upper_index else 0)
        offset, width = np.uint32(first), np.uint32(max(last - first, 0))
        part = bits[here:end]
        count, smallest, largest, top = np.uint32(0), MAGNITUDE, np.uint32(0), np.uint32(0)
        for i in range(part.size):
            magnitude = part[i] & MAGNITUDE
            kept = np.uint32(magnitude - offset) < width
            count = np.uint32(count + np.uint32(kept))
            smallest = min(smallest, magnitude if kept else MAGNITUDE)
            largest = max(largest, magnitude if kept else np.uint32(0))
            top = max(top, magnitude)
            part[i] = part[i] if kept else np.uint32(0)
        seen[0] += count
        seen[1] = min(seen[1], smallest)
        seen[2] = max(seen[2], largest)
        seen[3] = max(seen[3], top)
        here = end


@compiled
def accumulate(
    values: Floats,
    weight: np.float32,
    direction: Floats,
    total: Floats,
    divisor: Floats,
    touched: Touched,
) -> None:
    """Weigh one source's masked task vector, hold it against the consensus, and add it.

    Args:
        values: the masked task vector; becomes what is added.
        weight: of the source.
        direction: the weighted sum whose sign a contribution must have; empty for no consensus.
        total: the sum so far.
        divisor: the sum of the weights that remain; empty when it isn't needed.
        touched: how many sources' contributions remain and are not zero; empty when not needed.
    """
    for i in range(values.size):
        values[i] *= weight
    if direction.size:
        for i in range(values.size):
            agrees = (direction[i] >= np.float32(0)) == (values[i] > np.float32(0))
            values[i] = values[i] if agrees else np.float32(0)
    for i in range(total.size):
        total[i] += values[i]
    for i in range(divisor.size):
        divisor[i] += weight if values[i] != np.float32(0) else np.float32(0)
    for i in range(touched.size):
        touched[i] += np.uint16(values[i] != np.float32(0))


@compiled
def add_source(
    pair: Pair,
    offset: int,
    cuts: Cuts,
    weight: np.float32,
    direction: Floats,
    total: Floats,
    divisor: Floats,
    touched: Touched,
    seen: Counts,
    energies: Doubles,
) -> None:
    """Add one source's masked task vector to a block of elements.

    Args:
        pair: the block in the base and in the source.
        offset: the flat index of its first element.
        cuts: see `mask_range`.
        weight: see `accumulate`; so are the four that follow.
        direction: [elements] or empty.
        total: [elements].
        divisor: [elements] or empty.
        touched: [elements] or empty.
        seen: [4] how many were kept so far, the bits of the smallest and of the largest magnitude
            that was kept, and of the largest of all; updated.
        energies: [2] Σ τ² of all elements and of the kept ones; updated.
    """
    theta = np.empty(RUN, np.float32)
    room = np.empty(RUN, np.float32)
    for first in range(0, total.size, RUN):
        last = min(first + RUN, total.size)
        tau = room[: last - first]
        subtract(pair, first, theta[: tau.size], tau)
        energies[0] += energy(tau)
        mask_range(tau, offset + first, cuts, seen)
        energies[1] += energy(tau)
        accumulate(
            tau,
            weight,
            direction[first:last],
            total[first:last],
            divisor[first:last],
            touched[first:last],
        )


@compiled
def finish(
    base: Bytes,
    base_kind: int,
    alpha: np.float32,
    divisor: Floats,
    touched: Touched,
    total: Floats,
    touches: Counts,
    base_energy: Doubles,
) -> int:
    """Turn the sum into the merged elements, θ + alpha·total, in place.

    Args:
        base: the block's bytes in the base.
        base_kind: of its numbers.
        alpha: the scaling.
        divisor: of the mean; empty for a sum.
        touched: sources that changed each element.
        total: the sum, becomes the merged elements.
        touches: [sources + 1] is increased by the elements that so many sources touched.
        base_energy: [1] is increased by Σ θ².

    Returns:
        The index in the block of the first element that is not finite, or −1.
    """
    theta = np.empty(RUN, np.float32)
    bad = -1
    for here in range(0, total.size, RUN):
        part = total[here : here + RUN]
        n = part.size
        if divisor.size:
            for i in range(n):
                by = divisor[here + i] if touched[here + i] else np.float32(1)
                part[i] = part[i] / by
        load(base, base_kind, here, theta[:n])
        base_energy[0] += energy(theta[:n])
        wrong = np.uint32(0)
        for i in range(n):
            part[i] = theta[i] + alpha * part[i]
            wrong += np.uint32(not np.isfinite(part[i]))
        if wrong and bad < 0:
            for i in range(n):
                if bad < 0 and not np.isfinite(part[i]):
                    bad = here + i
    for i in range(touched.size):
        touches[touched[i]] += 1
    return bad


@compiled
def add_low_rank(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], scale: np.float32, out: Floats
) -> None:
    """Add scale · (left · right) to a matrix; the products of an element in order, each rounded.

    Args:
        left: float32 [rows, rank].
        right: float32 [rank, columns].
        scale: what the sum of the products is multiplied by.
        out: float32 [rows, columns]
    """
    rows, columns = out.shape
    total = np.empty(columns, np.float32)
    for row in range(rows):
        total[:] = 0
        for k in range(left.shape[1]):
            factor = left[row, k]
            for column in range(columns):
                total[column] += factor * right[k, column]
        for column in range(columns):
            out[row, column] += scale * total[column]
