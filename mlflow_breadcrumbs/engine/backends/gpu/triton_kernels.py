"""Triton kernels of the GPU backend: they count magnitudes, place the cuts, and merge.

A program works on one tile: a run of a long masking unit, or whole rows of short units. Tiles are
rows of a table (int64 [tiles, 6], the columns below). The inputs of a piece lie in one buffer of
bytes, each from its own offset on; numbers become float32 as they are loaded.

The bits are those of `reference.py`: sums go by source in the order given, divisions are IEEE's,
denormals are kept, and `launch` forbids the compiler to fuse a product with a sum. Only integers
are added atomically.
"""

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mlflow_breadcrumbs.engine.backends.cpu import kernels
from mlflow_breadcrumbs.engine.backends.gpu import layout

FLOAT32 = tl.constexpr(kernels.FLOAT32)
BFLOAT16 = tl.constexpr(kernels.BFLOAT16)
FLOAT16 = tl.constexpr(kernels.FLOAT16)
FLOAT64 = tl.constexpr(kernels.FLOAT64)
MIXED = tl.constexpr(layout.MIXED)
INFINITY = tl.constexpr(kernels.INFINITY)
MAGNITUDE = tl.constexpr(int(kernels.MAGNITUDE))
# Only a product tells the compiler that a number which it loads is a multiple: what allows it to
# load four elements at once.
ALIGNMENT = tl.constexpr(layout.ALIGNMENT)
APART = tl.constexpr(layout.APART)
COLUMNS = tl.constexpr(layout.TABLE_COLUMNS)
POSITION = tl.constexpr(layout.POSITION)
LENGTH = tl.constexpr(layout.LENGTH)
ROWS = tl.constexpr(layout.ROWS)
UNIT = tl.constexpr(layout.UNIT)
LOW = tl.constexpr(layout.LOW)
UPPER = tl.constexpr(layout.UPPER)
FEW = tl.constexpr(layout.TILE // 8)
"""Elements of a tile that are faster counted one by one than by a histogram of the tile."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel without fused multiply-adds; an empty grid is nothing to do."""
    if all(grid):
        kernel[grid](*arguments, **constants, **options(constants))


def options(constants: Mapping[str, Any]) -> dict[str, Any]:
    """How a kernel is compiled: more threads for the wide tiles of rows of thousands."""
    warps = max(8, constants.get("TILE_COLUMNS", 0) // 256)
    return {"enable_fp_fusion": False, "num_warps": warps}


@triton.jit
def _load(raw, offset, index, valid, KIND: tl.constexpr):
    """The elements `index` of the input that starts at byte `offset`, as float32; else 0."""
    here = raw + offset // ALIGNMENT * ALIGNMENT
    if KIND == FLOAT32:
        return tl.load(here.to(tl.pointer_type(tl.float32)) + index, mask=valid, other=0.0)
    elif KIND == BFLOAT16:
        bits = tl.load(here.to(tl.pointer_type(tl.uint16)) + index, mask=valid, other=0)
        return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        halves = tl.load(here.to(tl.pointer_type(tl.float16)) + index, mask=valid, other=0.0)
        return halves.to(tl.float32)
    else:
        doubles = tl.load(here.to(tl.pointer_type(tl.float64)) + index, mask=valid, other=0.0)
        return doubles.to(tl.float32)


@triton.jit
def _load_source(raw, offsets, kinds, source, index, valid, KIND: tl.constexpr):
    """As `_load`, of a source; its kind is looked up where the sources' kinds are mixed."""
    offset = tl.load(offsets + 1 + source)
    if KIND != MIXED:
        return _load(raw, offset, index, valid, KIND)
    else:
        # A masked load touches no memory, so three of these four cost next to nothing.
        kind = tl.load(kinds + 1 + source) + tl.zeros_like(index)
        single = _load(raw, offset, index, valid & (kind == FLOAT32), FLOAT32)
        brain = _load(raw, offset, index, valid & (kind == BFLOAT16), BFLOAT16)
        half = _load(raw, offset, index, valid & (kind == FLOAT16), FLOAT16)
        double = _load(raw, offset, index, valid & (kind == FLOAT64), FLOAT64)
        halves = tl.where(kind == BFLOAT16, brain, half)
        return tl.where(kind == FLOAT32, single, tl.where(kind == FLOAT64, double, halves))


@triton.jit
def _magnitude(tau):
    """The bits of |τ| as int32; they order as the magnitudes do."""
    return tau.to(tl.int32, bitcast=True) & MAGNITUDE


@triton.jit
def _magnitudes(
    raw,
    offsets,
    kinds,
    entry,
    source,
    BLOCK: tl.constexpr,
    BASE_KIND,
    KIND,
    ALIGNED,
):
    """The bits of |τ| of a tile of a long unit, int32 [BLOCK], and which of them are elements."""
    position, length = tl.load(entry + POSITION), tl.load(entry + LENGTH)
    if ALIGNED:
        position, length = position // APART * APART, length // APART * APART
    index = tl.arange(0, BLOCK)
    valid = index < length
    theta = _load(raw, tl.load(offsets), position + index, valid, BASE_KIND)
    tuned = _load_source(raw, offsets, kinds, source, position + index, valid, KIND)
    return _magnitude(tuned - theta), valid


@triton.jit
def count_digits(
    raw,  # uint8 [bytes] a piece
    offsets,  # int64 [1 + sources] first byte of each input
    kinds,  # int32 [1 + sources]
    table,  # int64 [tiles, COLUMNS]
    prefixes,  # int32 [sources, units, 2] the upper bits found so far
    histogram,  # int64 [sources, units, 2, BINS] increased
    units,
    CUTS: tl.constexpr,  # 2, or 1 while both begin with the same bits
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BASE_KIND: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Count a tile's magnitudes by their next digit, for each of the cuts of its unit.

    Only those count that begin with what is known of the cut's magnitude.
    """
    source = tl.program_id(1)
    entry = table + tl.program_id(0).to(tl.int64) * COLUMNS
    bits, valid = _magnitudes(raw, offsets, kinds, entry, source, BLOCK, BASE_KIND, KIND, ALIGNED)
    unit = source.to(tl.int64) * units + tl.load(entry + UNIT)
    bins = tl.arange(0, 1 << WIDTH)
    for cut in tl.static_range(CUTS):
        prefix = tl.load(prefixes + unit * 2 + cut)
        inside = valid & (bits >> (SHIFT + WIDTH) == prefix)
        digit = tl.where(inside, (bits >> SHIFT) & ((1 << WIDTH) - 1), 0)
        others = BLOCK - tl.sum(inside.to(tl.int32))
        target = histogram + (unit * 2 + cut) * BINS
        if others < BLOCK - FEW:
            # The others are counted as zeros, and taken off again.
            counts = tl.histogram(digit, 1 << WIDTH) - tl.where(bins == 0, others, 0)
            tl.atomic_add(target + bins, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
        else:
            ones = tl.full([BLOCK], 1, tl.int64)
            tl.atomic_add(target + digit, ones, mask=inside, sem="relaxed")


@triton.jit
def read_digits(
    histogram,  # int64 [sources, units, 2, BINS] set to zero again
    ranks,  # int64 [sources, units, 2] what is left of each rank; updated
    magnitudes,  # int32 [sources, units, 2] the upper bits found so far; updated
    CUTS: tl.constexpr,  # 2, or 1 where only the first cut's counts are there, for both
    WIDTH: tl.constexpr,
    BINS: tl.constexpr,
):
    """Go on to the digit that holds each rank, and to the rank among those that share it."""
    first = tl.program_id(0).to(tl.int64) * 2
    bins = tl.arange(0, 1 << WIDTH)
    for cut in tl.static_range(2):
        place = first + cut
        counts = tl.load(histogram + (first + cut * (CUTS - 1)) * BINS + bins)
        rank = tl.load(ranks + place)
        smaller = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32))
        # The rank n, behind all elements, has the largest magnitude that there can be.
        digit = tl.minimum(smaller, (1 << WIDTH) - 1)
        tl.store(ranks + place, rank - tl.sum(tl.where(bins < digit, counts, 0)))
        tl.store(magnitudes + place, tl.load(magnitudes + place) << WIDTH | digit)
    for cut in tl.static_range(2):
        tl.store(histogram + (first + cut) * BINS + bins, tl.zeros([1 << WIDTH], tl.int64))


@triton.jit
def count_equal(
    raw,  # uint8 [bytes]
    offsets,  # int64 [1 + sources]
    kinds,  # int32 [1 + sources]
    table,  # int64 [tiles, COLUMNS]
    magnitudes,  # int32 [sources, units, 2] of each cut
    equal,  # int32 [tiles, sources, 2] filled
    units,
    BLOCK: tl.constexpr,
    BASE_KIND: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Count a tile's elements that have exactly a cut's magnitude."""
    tile, source = tl.program_id(0).to(tl.int64), tl.program_id(1)
    entry = table + tile * COLUMNS
    bits, valid = _magnitudes(raw, offsets, kinds, entry, source, BLOCK, BASE_KIND, KIND, ALIGNED)
    unit = source.to(tl.int64) * units + tl.load(entry + UNIT)
    target = equal + (tile * tl.num_programs(1) + source) * 2
    for cut in tl.static_range(2):
        same = valid & (bits == tl.load(magnitudes + unit * 2 + cut))
        tl.store(target + cut, tl.sum(same.to(tl.int32)))


@triton.jit
def place_cuts(
    raw,  # uint8 [bytes]
    offsets,  # int64 [1 + sources]
    kinds,  # int32 [1 + sources]
    table,  # int64 [tiles, COLUMNS]
    magnitudes,  # int32 [sources, units, 2] of each cut
    equal,  # int32 [tiles, sources, 2] elements of that magnitude
    ties,  # int32 [tiles, sources, 2] how many of them, from the tile on, lie before the cut
    cuts,  # int32 [tiles, sources, 4] filled: magnitude and index in the tile, of both cuts
    units,
    BLOCK: tl.constexpr,
    BASE_KIND: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Find where in a tile each cut falls among the elements of its magnitude."""
    tile, source = tl.program_id(0).to(tl.int64), tl.program_id(1)
    entry = table + tile * COLUMNS
    unit = source.to(tl.int64) * units + tl.load(entry + UNIT)
    place = tile * tl.num_programs(1) + source
    for cut in tl.static_range(2):
        magnitude = tl.load(magnitudes + unit * 2 + cut)
        before = tl.load(ties + place * 2 + cut)
        index = tl.where(before > 0, BLOCK, 0)
        if (before > 0) & (before < tl.load(equal + place * 2 + cut)):
            bits, valid = _magnitudes(
                raw, offsets, kinds, entry, source, BLOCK, BASE_KIND, KIND, ALIGNED
            )
            same = valid & (bits == magnitude)
            number = tl.cumsum(same.to(tl.int32), 0)
            first_behind = same & (number == before + 1)
            index = tl.min(tl.where(first_behind, tl.arange(0, BLOCK), BLOCK))
        tl.store(cuts + place * 4 + cut * 2, magnitude)
        tl.store(cuts + place * 4 + cut * 2 + 1, index)


@triton.jit
def _behind_rank(bits, valid, rank):
    """Which elements of each row lie behind its cut before a rank, [rows, columns].

    The magnitude of the rank is found bit by bit: it has a bit if at most `rank` elements of the
    row are smaller than with it.
    """
    magnitude = tl.zeros([bits.shape[0], 1], tl.int32)
    for step in range(31):
        candidate = magnitude | (1 << (30 - step))
        smaller = tl.sum((valid & (bits < candidate)).to(tl.int32), axis=1, keep_dims=True)
        magnitude = tl.where(smaller <= rank, candidate, magnitude)
    smaller = tl.sum((valid & (bits < magnitude)).to(tl.int32), axis=1, keep_dims=True)
    same = valid & (bits == magnitude)
    number = tl.cumsum(same.to(tl.int32), 1) - 1
    return (bits > magnitude) | (same & (number >= rank - smaller))


@triton.jit
def _masked(bits, valid, cut, low, upper, column, TILE: tl.constexpr, ROWWISE: tl.constexpr):
    """Which elements the mask keeps, [rows, columns]."""
    if ROWWISE:
        return valid & _behind_rank(bits, valid, low) & ~_behind_rank(bits, valid, upper)
    else:
        lower, lower_index = tl.load(cut), tl.load(cut + 1)
        upper, upper_index = tl.load(cut + 2), tl.load(cut + 3)
        if ((lower_index > 0) & (lower_index < TILE)) | ((upper_index > 0) & (upper_index < TILE)):
            behind = (bits > lower) | ((bits == lower) & (column >= lower_index))
            beyond = (bits > upper) | ((bits == upper) & (column >= upper_index))
            kept = behind & ~beyond
        else:
            # Mostly a tile's elements of a cut's magnitude lie all on one side of it.
            first = lower.to(tl.int64) + (lower_index > 0).to(tl.int64)
            last = upper.to(tl.int64) + (upper_index > 0).to(tl.int64)
            above = (bits - first.to(tl.int32)).to(tl.uint32, bitcast=True)
            kept = above < (last - first).to(tl.uint32)
        return valid & kept


@triton.jit
def merge_tiles(
    raw,  # uint8 [bytes]
    offsets,  # int64 [1 + sources]
    kinds,  # int32 [1 + sources]
    table,  # int64 [tiles, COLUMNS]
    cuts,  # int32 [tiles, sources, 4]; not read where ROWWISE
    scales,  # float32 [1 + sources] the scale, then the weights
    merged,  # [elements] of the output's dtype, filled
    seen,  # int32 [tiles, sources, 4] kept, smallest and largest kept, largest of all; filled
    energies,  # float64 [tiles, sources, 2] Σ τ² of all and of the kept elements; filled
    base_energy,  # float64 [tiles] Σ θ²; filled
    bad,  # int32 [tiles] the first element that is not finite, or MAGNITUDE; filled
    touches,  # int64 [TOUCH_BINS] increased: elements that so many sources touched
    sources,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TOUCH_BINS: tl.constexpr,
    ROWWISE: tl.constexpr,
    CONSENSUS: tl.constexpr,
    MEAN: tl.constexpr,
    BASE_KIND: tl.constexpr,
    KIND: tl.constexpr,
    OUT_KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Merge one tile: mask every source, hold it against the consensus, add up, scale, round."""
    tile = tl.program_id(0).to(tl.int64)
    entry = table + tile * COLUMNS
    position, length = tl.load(entry + POSITION), tl.load(entry + LENGTH)
    if ALIGNED:
        position, length = position // APART * APART, length // APART * APART
    low, upper = tl.load(entry + LOW), tl.load(entry + UPPER)
    row = tl.arange(0, TILE_ROWS)[:, None]
    column = tl.arange(0, TILE_COLUMNS)[None, :]
    valid = (row < tl.load(entry + ROWS)) & (column < length)
    index = position + row * length + column
    theta = _load(raw, tl.load(offsets), index, valid, BASE_KIND)
    direction = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    if CONSENSUS:
        for source in range(sources):
            tau = _load_source(raw, offsets, kinds, source, index, valid, KIND) - theta
            bits = _magnitude(tau)
            cut = cuts + (tile * sources + source) * 4
            kept = _masked(bits, valid, cut, low, upper, column, TILE_COLUMNS, ROWWISE)
            direction += tl.where(kept, tau, 0.0) * tl.load(scales + 1 + source)
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    divisor = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    touched = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.int32)
    ahead = _load_source(raw, offsets, kinds, 0, index, valid, KIND)
    for source in range(sources):
        tau = ahead - theta
        # The next source is on its way while this one is summed up; the last comes twice, cached.
        following = tl.minimum(source + 1, sources - 1)
        ahead = _load_source(raw, offsets, kinds, following, index, valid, KIND)
        bits = _magnitude(tau)
        cut = cuts + (tile * sources + source) * 4
        kept = _masked(bits, valid, cut, low, upper, column, TILE_COLUMNS, ROWWISE)
        place = tile * sources + source
        tl.store(seen + place * 4, tl.sum(kept.to(tl.int32)))
        tl.store(seen + place * 4 + 1, tl.min(tl.where(kept, bits, MAGNITUDE)))
        tl.store(seen + place * 4 + 2, tl.max(tl.where(kept, bits, 0)))
        tl.store(seen + place * 4 + 3, tl.max(tl.where(valid, bits, 0)))
        square = tau.to(tl.float64) * tau.to(tl.float64)
        tl.store(energies + place * 2, tl.sum(tl.where(valid, square, 0.0)))
        tl.store(energies + place * 2 + 1, tl.sum(tl.where(kept, square, 0.0)))
        weight = tl.load(scales + 1 + source)
        value = tl.where(kept, tau, 0.0) * weight
        if CONSENSUS:
            value = tl.where((direction >= 0.0) == (value > 0.0), value, 0.0)
        total += value
        changes = value != 0.0
        if MEAN:
            divisor += tl.where(changes, weight, 0.0)
        touched += changes.to(tl.int32)
    if MEAN:
        total = tl.div_rn(total, tl.where(touched > 0, divisor, 1.0))
    result = theta + tl.load(scales) * total
    finite = _magnitude(result) < INFINITY
    if OUT_KIND == BFLOAT16:
        bits = result.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)  # ties to even
        finite &= (rounded & 0x7FFF) < 0x7F80
        tl.store(merged + index, rounded, mask=valid)
    elif OUT_KIND == FLOAT16:
        half = result.to(tl.float16)
        finite &= (half.to(tl.uint16, bitcast=True) & 0x7FFF) < 0x7C00
        tl.store(merged + index, half, mask=valid)
    elif OUT_KIND == FLOAT64:
        tl.store(merged + index, result.to(tl.float64), mask=valid)
    else:
        tl.store(merged + index, result, mask=valid)
    # Elements count along the rows, which are `length` long in the tensor.
    number = (row * length + column).to(tl.int32)
    tl.store(bad + tile, tl.min(tl.where(valid & ~finite, number, MAGNITUDE)))
    energy = theta.to(tl.float64) * theta.to(tl.float64)
    tl.store(base_energy + tile, tl.sum(energy))
    counts = tl.histogram(tl.reshape(touched, [TILE_ROWS * TILE_COLUMNS]), TOUCH_BINS)
    target = touches + tl.arange(0, TOUCH_BINS)
    tl.atomic_add(target, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
