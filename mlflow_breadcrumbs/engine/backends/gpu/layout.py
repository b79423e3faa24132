"""How a merge is cut up for a GPU: rounds of pieces, and the tiles that programs work on.

A **piece** is what lies on the device at once: some elements of one or more tensors, of the base
and of all sources. A **round** is the pieces that share masking units: mostly one, but several for
a tensor that is larger than a piece, and all of them for the unit `model`. A **tile** is what one
program of a kernel works on.

Masking units of up to `SHORT` elements (short rows, biases) are masked while they are merged, whole
rows in a tile. Longer ones are cut into tiles, and their cuts are sought first, in several passes
over the pieces of the round; see `selection`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs.engine import masks
from mlflow_breadcrumbs.engine.backends import Job, arithmetic
from mlflow_breadcrumbs.engine.backends.cpu import reading

TILE = 1 << 11
"""Elements of a tile: eight for each of 256 threads, whose registers then suffice for three."""

SHORT = 1 << 13
"""Masking units of up to so many elements are masked in one tile, which may be larger for it."""

PIECE = 1 << 27
"""Bytes of all inputs that a piece should have."""

STATE = 1 << 17
"""Bytes of the device that the search needs per source and long unit."""

ALIGNMENT = 256
"""Bytes that an input's first byte in a piece is a multiple of."""

APART = 16
"""Elements that a segment's first position in a piece is a multiple of."""

MIXED = -1
"""Stands for the sources' kind of number where they differ."""

POSITION, LENGTH, ROWS, UNIT, LOW, UPPER = range(6)
"""Columns of a tile: its first element in the piece; the elements in it, or in a row of short
units; its rows; the long unit that it is a part of; the ranks of a short unit's cuts."""
TABLE_COLUMNS = 6

Table = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Units:
    """How a tensor's elements are masked: units of `length`, of which a range of ranks is kept."""

    length: int
    low: int
    """Rank of the first element that is kept."""
    upper: int
    """Rank of the first element after it that is not."""

    @property
    def short(self) -> bool:
        """Whether a tile holds a whole unit."""
        return self.length <= SHORT


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A run of one tensor's elements: whole masking units, or a part of a long one."""

    name: str
    start: int
    stop: int
    units: Units

    @property
    def elements(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def whole_units(self) -> int:
        """How many long units it holds; 0 for a part of one."""
        return 0 if self.units.short else self.elements // self.units.length


@dataclasses.dataclass(frozen=True)
class Segment(Stretch):
    """A run in a piece."""

    position: int
    """Of its first element in the piece."""
    first_unit: int
    """The number in the round of the first long unit."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles that one launch works on: `first` to `last` of the piece's table."""

    first: int
    last: int
    rows: int
    columns: int
    rowwise: bool
    """Whether tiles hold whole rows of short units, or a run of a long one each."""
    aligned: bool
    """Whether all positions and lengths are multiples of `APART`."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Elements that lie on the device at once, of all inputs."""

    segments: tuple[Segment, ...]
    elements: int
    """Room of each input, in elements; some lie unused between segments."""
    kinds: tuple[int, ...]
    """The kind of number of each input, base first; see `kernels`."""
    offsets: tuple[int, ...]
    """The first byte of each input, then the end."""
    dtype: torch.dtype
    """Of the output."""
    scale: float
    """What the combined sources are multiplied by; see `arithmetic.scale`."""
    averaged: bool
    """Whether the tensors are averaged over the sources, whatever others are combined by."""
    table: Table
    """[tiles, TABLE_COLUMNS] those of long units first."""
    owner: npt.NDArray[np.int64]
    """[tiles] the number of the segment that each is a part of."""
    launches: tuple[Tiles, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return self.offsets[-1]

    @property
    def long(self) -> Tiles | None:
        """The tiles of long units."""
        return None if not self.launches or self.launches[0].rowwise else self.launches[0]

    @property
    def source_kind(self) -> int:
        """The kind of number of all sources, or `MIXED`."""
        return self.kinds[1] if len(set(self.kinds[1:])) == 1 else MIXED


@dataclasses.dataclass(frozen=True)
class Round:
    """Pieces that are selected from together."""

    pieces: tuple[Piece, ...]
    ranks: npt.NDArray[np.int64]
    """[units, 2] the ranks of the two cuts of each long unit."""
    searched: bool
    """Whether any of these cuts leaves something out and has to be sought."""


def by_definition(job: Job, name: str) -> bool:
    """Whether the reference merges a tensor: float64, empty, and what is kept whole."""
    info = job.base.info(name)
    return info.dtype == torch.float64 or not info.numel or not job.recipe.masks(info.shape)


def rounds(job: Job, nbytes: int) -> list[Round]:
    """Cut a merge into rounds of pieces of at most so many bytes, or of a few tiles.

    Tensors that the reference merges are left out.
    """
    names = [name for name in job.merged if not by_definition(job, name)]
    if job.recipe.unit == "model":
        return _one_round(job, names, nbytes)
    found = []
    runs = [
        run
        for name in sorted(names, key=lambda name: (_signature(job, name), name))
        for run in _whole_runs(job, name, nbytes)
    ]
    for group in _packed(job, runs, nbytes):
        parts = [group] if len(group) > 1 else [[part] for part in _parts(job, group[0], nbytes)]
        found.append(_round(job, parts, [(run.units, run.whole_units) for run in group]))
    return found


def _one_round(job: Job, names: Sequence[str], nbytes: int) -> list[Round]:
    """The round of the unit `model`: all tensors by name, cut anywhere."""
    n = sum(job.base.info(name).numel for name in names)
    count = masks.counts(n, job.recipe.density, job.recipe.gamma)
    # Even a model of a few elements is sought in passes: its tensors may lie in several pieces.
    units = Units(max(n, SHORT + 1), count.low, count.low + count.keep)
    runs = [
        part
        for name in names
        for part in _parts(job, Stretch(name, 0, job.base.info(name).numel, units), nbytes)
    ]
    parts = list(_packed(job, runs, nbytes))
    return [_round(job, parts, [(units, 1)])] if parts else []


def _round(
    job: Job, parts: Sequence[Sequence[Stretch]], units: Sequence[tuple[Units, int]]
) -> Round:
    """A round of a piece per part, with so many units of each kind."""
    long = [(own, number) for own, number in units if number]
    ranks = [np.tile([[own.low, own.upper]], (number, 1)) for own, number in long]
    return Round(
        pieces=tuple(_piece(job, part) for part in parts),
        ranks=np.concatenate([*ranks, np.empty((0, 2), np.int64)]),
        searched=any(own.low > 0 or own.upper < own.length for own, _ in long),
    )


def _whole_runs(job: Job, name: str, nbytes: int) -> Iterator[Stretch]:
    """A tensor cut into runs of whole units that fit a piece; a unit that does not is a run."""
    info, settings = job.base.info(name), job.recipe
    length = info.shape[-1] if settings.unit == "row" else info.numel
    count = masks.counts(length, settings.density, settings.gamma)
    units = Units(length, count.low, count.low + count.keep)
    step = max(nbytes // _cost(job, Stretch(name, 0, length, units)), 1) * length
    for start in range(0, info.numel, step):
        yield Stretch(name, start, min(start + step, info.numel), units)


def _parts(job: Job, run: Stretch, nbytes: int) -> Iterator[Stretch]:
    """A run that is too large for a piece and holds one long unit, or less, in parts that fit."""
    step = max(nbytes // _element_bytes(job, run.name) // TILE, 1) * TILE
    if run.units.short or run.whole_units > 1:
        step = run.elements
    for start in range(run.start, run.stop, step):
        stop = min(start + step, run.stop)
        yield dataclasses.replace(run, start=start, stop=stop)


def _packed(job: Job, runs: Iterable[Stretch], nbytes: int) -> Iterator[list[Stretch]]:
    """Runs together as long as they fit a piece and are of the same kinds of number."""
    group: list[Stretch] = []
    filled = 0
    for run in runs:
        cost = _cost(job, run)
        if group and (
            filled + cost > nbytes or _signature(job, run.name) != _signature(job, group[0].name)
        ):
            yield group
            group, filled = [], 0
        group.append(run)
        filled += cost
    if group:
        yield group


def _cost(job: Job, run: Stretch) -> int:
    """Bytes that a run takes on the device, with the search for its cuts."""
    search = run.whole_units * STATE * len(job.sources)
    return run.elements * _element_bytes(job, run.name) + search


def _element_bytes(job: Job, name: str) -> int:
    """Bytes of one element in all inputs."""
    return sum(checkpoint.info(name).dtype.itemsize for checkpoint in job.inputs)


def _signature(job: Job, name: str) -> tuple[tuple[int, ...], float, bool]:
    """The kinds of number of a tensor in all inputs and in the output; its scale; if averaged."""
    dtypes = [checkpoint.info(name).dtype for checkpoint in job.inputs]
    kinds = tuple(reading.KINDS[dtype] for dtype in (*dtypes, job.dtypes[name]))
    return kinds, arithmetic.scale(job, name), arithmetic.averaged(job, name)


def _piece(job: Job, runs: Sequence[Stretch]) -> Piece:
    """Lay out runs of the same kinds of number one after the other."""
    segments = []
    position = unit = 0
    for run in runs:
        segments.append(Segment(run.name, run.start, run.stop, run.units, position, unit))
        position += _aligned(run.elements, APART)
        unit += run.whole_units
    (*kinds, _), scale, averaged = _signature(job, runs[0].name)
    offsets = [0]
    for checkpoint in job.inputs:
        size = position * checkpoint.info(runs[0].name).dtype.itemsize
        offsets.append(offsets[-1] + _aligned(size, ALIGNMENT))
    table, owner, launches = _tiles(segments)
    return Piece(
        segments=tuple(segments),
        elements=position,
        kinds=tuple(kinds),
        offsets=tuple(offsets),
        dtype=job.dtypes[runs[0].name],
        scale=scale,
        averaged=averaged,
        table=table,
        owner=owner,
        launches=launches,
    )


def _aligned(number: int, step: int) -> int:
    return -(-number // step) * step


def _tiles(segments: Sequence[Segment]) -> tuple[Table, npt.NDArray[np.int64], tuple[Tiles, ...]]:
    """The tiles of a piece, those of the same shape together, long units first."""
    groups: dict[int, list[tuple[int, Table]]] = {}
    for number, segment in enumerate(segments):
        columns = power_of_two(segment.units.length) if segment.units.short else 0
        made = _short_tiles(segment, columns) if columns else _long_tiles(segment)
        groups.setdefault(columns, []).append((number, made))
    tables, owners, launches = [], [], []
    first = 0
    for columns, members in sorted(groups.items()):
        table = np.concatenate([made for _, made in members])
        tables.append(table)
        owners += [np.full(len(made), number) for number, made in members]
        rows = max(TILE // columns, 1) if columns else 1
        aligned = not (table[:, [POSITION, LENGTH]] % APART).any()
        last = first + len(table)
        launches.append(Tiles(first, last, rows, columns or TILE, bool(columns), aligned))
        first = last
    return np.concatenate(tables), np.concatenate(owners), tuple(launches)


def _short_tiles(segment: Segment, columns: int) -> Table:
    """Tiles of whole rows, as many as fit."""
    units, rows = segment.units, max(TILE // columns, 1)
    starts = np.arange(0, segment.elements // units.length, rows)
    table = np.zeros((len(starts), TABLE_COLUMNS), np.int64)
    table[:, POSITION] = segment.position + starts * units.length
    table[:, LENGTH] = units.length
    table[:, ROWS] = np.minimum(segment.elements // units.length - starts, rows)
    table[:, LOW], table[:, UPPER] = units.low, units.upper
    return table


def _long_tiles(segment: Segment) -> Table:
    """Tiles of the long units, or the part of one, in a segment; none spans two units."""
    size = min(segment.units.length, segment.elements)
    within = np.arange(0, size, TILE)
    number = np.arange(segment.elements // size)
    table = np.zeros((len(number), len(within), TABLE_COLUMNS), np.int64)
    table[..., POSITION] = segment.position + number[:, None] * size + within
    table[..., LENGTH] = np.minimum(size - within, TILE)
    table[..., ROWS] = 1
    table[..., UNIT] = segment.first_unit + number[:, None]
    return table.reshape(-1, TABLE_COLUMNS)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
