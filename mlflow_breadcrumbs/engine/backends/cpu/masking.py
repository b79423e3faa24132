"""The masks of a merge on the CPU: what each source keeps of each tensor."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from mlflow_breadcrumbs.engine import checkpoints, masks, recipe
from mlflow_breadcrumbs.engine.backends import Job
from mlflow_breadcrumbs.engine.backends.cpu import kernels, reading, selection

BLOCK = 1 << 17
"""Elements in a block: its sums stay in the second-level cache while all sources are added."""

LONG = 1 << 16
"""Rows longer than this are searched as tensors are, one by one."""


@dataclasses.dataclass(frozen=True)
class Ranges:
    """A mask that keeps what lies between two cuts, in each unit of `length` elements."""

    length: int
    cuts: Sequence[tuple[selection.Cut, selection.Cut]]

    def cuts_at(self, start: int) -> kernels.Cuts:
        """The cuts of the unit that the element at a flat index is in, as the kernels take them."""
        unit = start // self.length
        offset = unit * self.length
        lower, upper = self.cuts[unit]
        return lower.magnitude, lower.index + offset, upper.magnitude, upper.index + offset


@dataclasses.dataclass(frozen=True)
class Rows:
    """A mask on each of many short rows, found when the row is used."""

    length: int
    low: int
    keep: int


Mask = Ranges | Rows

WHOLE = Ranges(2**63 - 1, [(selection.START, selection.END)])
"""Keeps everything."""


def blocks(mask: Mask, elements: int) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor, start and stop, in order: whole short rows, never across a long one.

    Args:
        mask: of any source; all are of one kind.
        elements: of the tensor.
    """
    length = span = mask.length
    if isinstance(mask, Rows):
        span, length = elements, max(BLOCK // length, 1) * length
    else:
        length = min(BLOCK, length)
    for unit in range(0, elements, span):
        for start in range(unit, min(unit + span, elements), length):
            yield start, min(start + length, unit + span, elements)


def unit_masks(
    vector: reading.Vector,
    shape: Sequence[int],
    settings: recipe.MergeRecipe,
    points: Sequence[tuple[float, float]],
) -> list[Mask]:
    """One source's masks of one tensor, for the units `tensor` and `row`.

    Args:
        vector: the whole tensor's task vector.
        shape: of the tensor.
        settings: whose unit is `tensor` or `row`; says what is kept whole.
        points: (density, gamma) of each mask; all come from the same passes over the tensor.
    """
    n = len(vector)
    if not n or not settings.masks(shape):
        return [WHOLE] * len(points)
    length = shape[-1] if settings.unit == "row" else n
    counts = [masks.counts(length, density, gamma) for density, gamma in points]
    if length < n and length <= LONG:
        return [Rows(length, count.low, count.keep) for count in counts]
    ranks = [rank for count in counts for rank in (count.low, count.low + count.keep)]
    units = [
        selection.cuts(dataclasses.replace(vector, start=start, stop=start + length), ranks)
        for start in range(0, n, length)
    ]
    return [
        Ranges(length, [(cuts[2 * i], cuts[2 * i + 1]) for cuts in units])
        for i in range(len(points))
    ]


Masks = Mapping[tuple[str, int], Mask]
"""The mask of a tensor in a source."""


@dataclasses.dataclass(frozen=True)
class ModelCut:
    """A cut of all masked tensors of a source, by name, as one long vector."""

    tensor: str
    """Which the first element behind the cut is in; empty where all or nothing lies behind it."""
    magnitude: int
    """As in `selection.Cut`."""
    index: int
    """Of that element, in its tensor."""

    def within(self, name: str) -> selection.Cut:
        """The cut as it falls on one of the tensors."""
        if name == self.tensor:
            return selection.Cut(self.magnitude, self.index)
        # In earlier tensors even equal magnitudes lie before the cut, in later ones behind it.
        return selection.Cut(self.magnitude + (1 if name < self.tensor else 0), 0)


ModelCuts = Sequence[tuple[ModelCut, ModelCut]]
"""Per source, the lower and the upper cut of a mask of the unit `model`."""


def model_cuts(
    job: Job,
    points: Sequence[tuple[float, float]],
    pool: concurrent.futures.Executor,
    buffers: Callable[[], reading.Buffers],
) -> list[ModelCuts]:
    """The cuts of the unit `model`, source by source; the passes are parallel over tensors.

    All merged tensors, by name, are one long vector, but for those that are kept whole.

    Args:
        job: the merge.
        points: (density, gamma) of each set of cuts; all come from the same passes.
        pool: its workers read the tensors.
        buffers: gives those of the calling thread.
    """
    names = [name for name in job.merged if job.recipe.masks(job.base.info(name).shape)]
    n = sum(job.base.info(name).numel for name in names)
    counts = [masks.counts(n, density, gamma) for density, gamma in points]
    ranks = [rank for count in counts for rank in (count.low, count.low + count.keep)]
    inner = sorted({rank for rank in ranks if 0 < rank < n})
    parts = [
        (name, start, min(start + reading.PART, job.base.info(name).numel))
        for name in names
        for start in range(0, job.base.info(name).numel, reading.PART)
    ]
    found: list[list[tuple[ModelCut, ModelCut]]] = [[] for _ in points]
    for checkpoint in job.sources:
        visit = _visitor(job.base, checkpoint, parts, pool, buffers)
        cuts = {0: _outer(selection.START), n: _outer(selection.END)}
        for rank, place in zip(inner, selection.search(inner, visit), strict=True):
            name, start, _ = parts[place.part]
            cuts[rank] = ModelCut(name, place.cut.magnitude, start + place.cut.index)
        for own, count in zip(found, counts, strict=True):
            own.append((cuts[count.low], cuts[count.low + count.keep]))
    return list(found)


def model_masks(job: Job, cuts: ModelCuts) -> Masks:
    """The masks of the unit `model` that some cuts mean for the tensors of a job."""
    return {
        (name, source): Ranges(2**63 - 1, [(lower.within(name), upper.within(name))])
        if job.recipe.masks(job.base.info(name).shape)
        else WHOLE
        for name in job.merged
        for source, (lower, upper) in enumerate(cuts)
    }


def _outer(cut: selection.Cut) -> ModelCut:
    return ModelCut("", cut.magnitude, cut.index)


def _visitor(
    base: checkpoints.Checkpoint,
    source: checkpoints.Checkpoint,
    parts: Sequence[tuple[str, int, int]],
    pool: concurrent.futures.Executor,
    buffers: Callable[[], reading.Buffers],
) -> selection.Visit:
    largest_first = sorted(range(len(parts)), key=lambda i: parts[i][1] - parts[i][2])

    def visit(work: Callable[[int, reading.Pair], None]) -> None:
        def one(number: int) -> None:
            work(number, buffers().pair(base, source, *parts[number]))

        list(pool.map(one, largest_first))

    return visit
