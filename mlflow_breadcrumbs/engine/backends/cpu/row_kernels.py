"""Compiled loops for the unit `row`: every run of the last dimension has its own mask."""

import numpy as np

from mlflow_breadcrumbs.engine.backends.cpu.kernels import (
    MAGNITUDE,
    RUN,
    Bits,
    Counts,
    Doubles,
    Floats,
    Pair,
    Touched,
    accumulate,
    compiled,
    energy,
    mask_range,
    subtract,
)

SHORT = 48
"""Rows up to this long are ranked by comparing all pairs, which is quicker than counting."""

BINS = 256


@compiled
def _mask_short(row: Floats, low: int, keep: int, ranks: Counts, seen: Counts) -> None:
    bits = row.view(np.uint32)
    ranks[:] = 0
    for j in range(row.size):
        other = bits[j] & MAGNITUDE
        for i in range(j):
            ranks[i] += other < bits[i] & MAGNITUDE
        for i in range(j + 1, row.size):
            ranks[i] += other <= bits[i] & MAGNITUDE
    for i in range(row.size):
        magnitude = bits[i] & MAGNITUDE
        seen[3] = max(seen[3], magnitude)
        if low <= ranks[i] < low + keep:
            seen[0] += 1
            seen[1] = min(seen[1], magnitude)
            seen[2] = max(seen[2], magnitude)
        else:
            row[i] = 0


@compiled
def _cut(bits: Bits, rank: int, values: Bits, histogram: Counts) -> tuple[int, int]:
    """The magnitude and the index of the row's element of a rank, 0 ≤ rank < its length.

    Counts the magnitudes in 256 equal intervals, goes on with those in the interval that holds the
    rank, and so on until an interval is one magnitude wide.
    """
    n = bits.size
    first, last = MAGNITUDE, np.uint32(0)
    for i in range(n):
        values[i] = bits[i] & MAGNITUDE
        first = min(first, values[i])
        last = max(last, values[i])
    width = int(last) - int(first) + 1
    shift = 0
    while width >> shift > BINS - 1:
        shift += 1
    while True:
        histogram[:] = 0
        for i in range(n):
            histogram[np.uint32(values[i] - first) >> np.uint32(shift)] += 1
        digit = 0
        while rank >= histogram[digit]:
            rank -= histogram[digit]
            digit += 1
        if shift == 0:
            break
        kept = 0
        for i in range(n):
            value = values[i]
            values[kept] = value
            kept += np.uint32(value - first) >> np.uint32(shift) == digit
        n = kept
        first = np.uint32(first + (np.uint32(digit) << np.uint32(shift)))
        shift = max(shift - 8, 0)
    magnitude = np.uint32(first + np.uint32(digit))
    for i in range(bits.size):
        if bits[i] & MAGNITUDE == magnitude:
            if rank == 0:
                return int(magnitude), i
            rank -= 1
    return int(magnitude), bits.size


@compiled
def mask_rows(tau: Floats, length: int, low: int, keep: int, seen: Counts) -> None:
    """Set to zero what the mask of each row drops; `tau` holds whole rows."""
    if length <= SHORT:
        ranks = np.empty(length, np.int64)
        for start in range(0, tau.size, length):
            _mask_short(tau[start : start + length], low, keep, ranks, seen)
        return
    values = np.empty(length, np.uint32)
    histogram = np.empty(BINS, np.int64)
    for start in range(0, tau.size, length):
        row = tau[start : start + length]
        bits = row.view(np.uint32)
        lower, lower_index, upper, upper_index = 0, 0, int(MAGNITUDE) + 1, 0
        if low > 0:
            lower, lower_index = _cut(bits, low, values, histogram)
        if low + keep < length:
            upper, upper_index = _cut(bits, low + keep, values, histogram)
        mask_range(row, 0, (lower, lower_index, upper, upper_index), seen)


@compiled
def add_source_by_rows(
    pair: Pair,
    rows: tuple[int, int, int],
    weight: np.float32,
    direction: Floats,
    total: Floats,
    divisor: Floats,
    touched: Touched,
    seen: Counts,
    energies: Doubles,
) -> None:
    """As `kernels.add_source`, with a mask on every row; the block holds whole rows.

    Args:
        pair: the block in the base and in the source.
        rows: elements in a row, how many of the smallest are dropped, and how many are kept.
        weight: see `kernels.add_source`; so are all that follow.
        direction: [elements] or empty.
        total: [elements].
        divisor: [elements] or empty.
        touched: [elements] or empty.
        seen: [4].
        energies: [2].
    """
    length, low, keep = rows
    span = max(RUN // length, 1) * length
    theta = np.empty(RUN, np.float32)
    room = np.empty(span, np.float32)
    for first in range(0, total.size, span):
        last = min(first + span, total.size)
        tau = room[: last - first]
        for here in range(0, tau.size, RUN):
            run = tau[here : here + RUN]
            subtract(pair, first + here, theta[: run.size], run)
        energies[0] += energy(tau)
        mask_rows(tau, length, low, keep, seen)
        energies[1] += energy(tau)
        accumulate(
            tau,
            weight,
            direction[first:last],
            total[first:last],
            divisor[first:last],
            touched[first:last],
        )
