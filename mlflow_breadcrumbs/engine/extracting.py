"""The parts of sources: what their masks keep, read once more after the masks are known.

The CPU backend's own kernels subtract, mask and count, in its blocks, so that a part's numbers are
those that it would have added up, and the statistics those that it would have found.
"""

import concurrent.futures
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mlflow_breadcrumbs.engine import checkpoints, parts
from mlflow_breadcrumbs.engine.backends import (
    Job,
    MaskStatistics,
    arithmetic,
    giving_up,
    reference,
)
from mlflow_breadcrumbs.engine.backends.cpu import (
    blocks,
    grid,
    kernels,
    masking,
    reading,
    row_kernels,
)
from mlflow_breadcrumbs.support import progress

Extracted = tuple[list[MaskStatistics], tuple[parts.PartFile, ...], dict[str, str]]
"""A source's statistics, one per merged tensor; its files; the SHA-256 of each merged tensor."""


def extract(job: Job, folder: Path, *, threads: int, advance: progress.Advance) -> list[Extracted]:
    """Write the part of every source of a job; a source is one thread's work.

    Args:
        job: a planned merge of the sources whose parts are made.
        folder: the files go there.
        threads: at least 1.
        advance: told the bytes of each source's merged tensors, when they are done.

    Raises:
        MergeError: an input is not finite.
        CheckpointError: the disk is full.
    """
    if not job.sources:
        return []
    if any(job.base.info(name).dtype == torch.float64 for name in job.merged):
        keep = reference.keep_of(job)  # it alone masks float64, and in the order of the tensors
        return [_extract_wide(job, source, keep, folder, advance) for source in _positions(job)]
    with (
        arithmetic.first_fault(job),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        giving_up(pool),
    ):
        point = (job.recipe.density, job.recipe.gamma)
        known = grid.thresholds(job, [point], threads=threads)[0]
        futures = [
            pool.submit(_extract, job, source, known, folder, advance) for source in _positions(job)
        ]
        return [future.result() for future in futures]


def _positions(job: Job) -> range:
    return range(len(job.sources))


def _extract(
    job: Job,
    source: int,
    known: Mapping[tuple[str, int], masking.Mask],
    folder: Path,
    advance: progress.Advance,
) -> Extracted:
    writer = parts.PartWriter(folder)
    buffers = reading.Buffers()
    statistics, hexdigests = [], {}
    for number, name in enumerate(job.merged):
        runs = _Runs(writer, number, np.dtype(np.float32))
        found, hexdigests[name] = _blocks(job, source, name, known[name, source], buffers, runs)
        runs.finish()
        statistics.append(found)
        advance(job.sources[source].info(name).nbytes)
    return statistics, writer.finish(), hexdigests


def _blocks(
    job: Job,
    source: int,
    name: str,
    mask: masking.Mask,
    buffers: reading.Buffers,
    runs: "_Runs",
) -> tuple[MaskStatistics, str]:
    """Hand on a tensor's masked task vector block by block; what was seen, and the digest."""
    checkpoint = job.sources[source]
    elements = checkpoint.info(name).numel
    seen, energies, digest = blocks.nothing_seen(), np.zeros(2), hashlib.sha256()
    none, untouched = np.empty(0, np.float32), np.empty(0, np.uint16)
    for start, stop in masking.blocks(mask, elements):
        pair = buffers.pair(job.base, checkpoint, name, start, stop)
        digest.update(pair.tuned.raw.data)
        kept = np.zeros(stop - start, np.float32)
        # Added to zeros with the weight 1: the numbers themselves.
        sums = (np.float32(1), none, kept, none, untouched)
        if isinstance(mask, masking.Rows):
            rows = (mask.length, mask.low, mask.keep)
            row_kernels.add_source_by_rows(pair.arrays, rows, *sums, seen, energies)
        else:
            kernels.add_source(pair.arrays, start, mask.cuts_at(start), *sums, seen, energies)
        runs.add(kept)
    if seen[3] >= kernels.INFINITY:  # mostly of an input that is not finite
        for owner, given in (("the base", job.base), (job.labels[source], checkpoint)):
            arithmetic.check_finite(given.tensor(name), owner, name)
    return blocks.mask_statistics(name, source, elements, seen, energies), digest.hexdigest()


def _extract_wide(
    job: Job, source: int, keep: reference.Keep, folder: Path, advance: progress.Advance
) -> Extracted:
    """As by definition, tensor by tensor; such checkpoints are rare."""
    writer = parts.PartWriter(folder)
    checkpoint = job.sources[source]
    statistics, hexdigests = [], {}
    for number, name in enumerate(job.merged):
        base = arithmetic.working_base(job, name)
        tau = arithmetic.task_vector(job, source, name, base)
        kept = keep(source, tau)
        statistics.append(reference.mask_statistics(name, source, tau, kept))
        values = torch.where(kept, tau, 0.0).reshape(-1).numpy()
        runs = _Runs(writer, number, values.dtype)
        runs.add(values)
        runs.finish()
        hexdigests[name] = checkpoints.tensor_digest(checkpoint.tensor(name))
        advance(checkpoint.info(name).nbytes)
        checkpoint.release(name)
    return statistics, writer.finish(), hexdigests


class _Runs:
    """Cuts a tensor's elements, which come in pieces of any length, into runs.

    Args:
        writer: takes the runs.
        tensor: its position among the merged tensors.
        dtype: of the elements.
    """

    def __init__(self, writer: parts.PartWriter, tensor: int, dtype: np.dtype[np.floating]) -> None:
        self._writer = writer
        self._tensor = tensor
        self._room = np.empty(parts.RUN, dtype)
        self._filled = 0
        self._start = 0

    def add(self, piece: parts.Values) -> None:
        """Take the next elements, flat."""
        done = 0
        while done < piece.size:
            taken = piece[done : done + parts.RUN - self._filled]
            self._room[self._filled : self._filled + taken.size] = taken
            self._filled += taken.size
            done += taken.size
            if self._filled == parts.RUN:
                self.finish()

    def finish(self) -> None:
        """Hand over what has come since the last run."""
        self._writer.add(self._tensor, self._start, self._room[: self._filled])
        self._start += self._filled
        self._filled = 0
