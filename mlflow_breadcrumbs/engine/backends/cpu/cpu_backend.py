"""The CPU backend: threads over tensors, largest first.

A tensor is read twice: once per source to find its mask (and the input's digest), and once for all
sources together to add them up, block by block. Sources of a very large tensor are read by several
threads. Every thread has a few buffers of fixed size, so memory grows neither with the number of
sources nor with the size of the checkpoints.
"""

import concurrent.futures
import hashlib
import itertools
import threading
from collections.abc import Sequence

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, writing
from mlflow_breadcrumbs.engine.backends import (
    Job,
    MergedTensor,
    Outcome,
    arithmetic,
    giving_up,
    reference,
)
from mlflow_breadcrumbs.engine.backends.cpu import decomposing, reading
from mlflow_breadcrumbs.engine.backends.cpu.blocks import TensorMerge
from mlflow_breadcrumbs.engine.backends.cpu.masking import (
    Mask,
    Masks,
    model_cuts,
    model_masks,
    unit_masks,
)
from mlflow_breadcrumbs.support import progress

LARGE = 1 << 22
"""Elements of a tensor whose sources are read by several threads."""


class Cpu:
    """Merges with compiled loops in several threads.

    Args:
        threads: at least 1.
        known: masks that need not be found again; see `grid.thresholds`.
        updates: matrices that need not be decomposed again; see `decomposing.Decomposing`.
    """

    name = "cpu"

    def __init__(
        self,
        threads: int,
        *,
        known: Masks | None = None,
        updates: decomposing.Updates | None = None,
    ) -> None:
        self.threads = threads
        self._known = known
        self._updates = updates

    def run(self, job: Job, writer: writing.Writer, advance: progress.Advance) -> Outcome:
        """See `backends.Backend.run`."""
        if not job.recipe.bit_exact:
            return decomposing.Decomposing(
                self.threads, known=self._known, updates=self._updates
            ).run(job, writer, advance)
        if any(_wide(job, name) for name in job.merged) and job.recipe.unit == "model":
            # The order of all magnitudes is one of float64; the definition knows how.
            return reference.Reference().run(job, writer, advance)
        with (
            arithmetic.first_fault(job),
            concurrent.futures.ThreadPoolExecutor(self.threads) as pool,
            giving_up(pool),
        ):
            return _CpuRun(job, writer, advance, pool, self._known).outcome()


class _CpuRun:
    """One merge under way."""

    def __init__(
        self,
        job: Job,
        writer: writing.Writer,
        advance: progress.Advance,
        pool: concurrent.futures.ThreadPoolExecutor,
        known: Masks | None,
    ) -> None:
        self._job = job
        self._writer = writer
        self._pool = pool
        self._lock = threading.Lock()
        self._buffers = reading.by_thread()
        self._advance = advance
        self._known: Masks = known or {}
        self._hexdigests: list[dict[str, str]] = [{} for _ in job.inputs]
        self._failures: dict[str, errors.MergeError] = {}

    def outcome(self) -> Outcome:
        """Merge every tensor.

        Raises:
            MergeError: that of the first tensor, by name, that can't be merged.
        """
        job = self._job
        if job.recipe.unit == "model" and not self._known:
            point = (job.recipe.density, job.recipe.gamma)
            (cuts,) = model_cuts(job, [point], self._pool, self._buffers)
            self._known = model_masks(job, cuts)
        by_size = sorted(job.merged, key=lambda name: -job.base.info(name).numel)
        futures = self._queue(by_size)
        merged = [futures[name].result() for name in job.merged]
        if self._failures:
            raise self._failures[min(self._failures)]
        return Outcome.of(merged, self._hexdigests)

    def _queue(self, names: Sequence[str]) -> "dict[str, concurrent.futures.Future[MergedTensor]]":
        """Queue the merges of all tensors, and before each the readings that it waits for.

        So no wait can be for ever. The readings of the next tensor are ahead too, so that hardly
        any merge waits; no more than these, or pages would have left the cache when a tensor is
        read for the second time.
        """
        readings = {name: self._readings(names[0]) for name in names[:1]}
        futures = {}
        for name, following in itertools.zip_longest(names, names[1:]):
            if following is not None:
                readings[following] = self._readings(following)
            futures[name] = self._pool.submit(self._merge, name, readings.pop(name))
        return futures

    def _readings(self, name: str) -> "list[concurrent.futures.Future[Mask | None]]":
        """Queue the readings of a large tensor's inputs; a small one's merge reads them itself."""
        if self._job.base.info(name).numel < LARGE or _wide(self._job, name):
            return []
        return [self._pool.submit(self._read, name, i) for i in range(len(self._job.inputs))]

    def _merge(
        self, name: str, readings: Sequence["concurrent.futures.Future[Mask | None]"]
    ) -> MergedTensor:
        """Merge one tensor, or note why not; needless once a tensor before it has failed."""
        try:
            if not self._failures or name < min(self._failures):
                if _wide(self._job, name):
                    return self._merge_wide(name)
                if readings:
                    return self._merge_blocks(name, [future.result() for future in readings])
                found = [self._read(name, i) for i in range(len(self._job.inputs))]
                return self._merge_blocks(name, found)
        except errors.MergeError as error:
            with self._lock:
                self._failures[name] = error
        return [], [], 0.0

    def _read(self, name: str, position: int) -> Mask | None:
        """An input's mask (`None` for the base), and its digest while the bytes are at hand."""
        job, checkpoint = self._job, self._job.inputs[position]
        mask = None
        if position > 0:
            mask = self._known.get((name, position - 1)) or self._find(name, checkpoint)
        if job.verify:
            self._hexdigests[position][name] = self._digest(name, position)
        self._report(checkpoint.info(name).nbytes)
        return mask

    def _find(self, name: str, source: checkpoints.Checkpoint) -> Mask:
        settings, info = self._job.recipe, source.info(name)
        vector = reading.Vector(
            self._buffers(), self._job.base, source, name, start=0, stop=info.numel
        )
        points = [(settings.density, settings.gamma)]
        return unit_masks(vector, info.shape, settings, points)[0]

    def _digest(self, name: str, position: int) -> str:
        """The SHA-256 of an input's tensor; what the buffers hold is not read again."""
        checkpoint = self._job.inputs[position]
        read = self._buffers().tuned if position else self._buffers().base
        numel, digest = checkpoint.info(name).numel, hashlib.sha256()
        for start in range(0, numel, reading.PART):
            part = read(checkpoint, name, start, min(start + reading.PART, numel))
            digest.update(part.raw.data)
        return digest.hexdigest()

    def _merge_blocks(self, name: str, found: Sequence[Mask | None]) -> MergedTensor:
        """Write one tensor block by block; its digest grows with it."""
        job = self._job
        masks = [mask for mask in found if mask is not None]
        work = TensorMerge(job, name, masks, self._buffers())
        digest = hashlib.sha256()
        for start, stop in work.blocks():
            content = checkpoints.tensor_bytes(work.merge(start, stop))
            self._writer.write_part(name, start * job.dtypes[name].itemsize, content)
            digest.update(content)
        self._writer.announce(name, digest.hexdigest())
        return work.statistics(), work.touched, work.base_energy

    def _merge_wide(self, name: str) -> MergedTensor:
        """Write a float64 tensor, as by definition; such checkpoints are rare."""
        keep = reference.keep_unit(self._job.recipe)
        return reference.write_tensor(
            self._job, name, keep, self._writer, self._hexdigests, self._report
        )

    def _report(self, nbytes: float) -> None:
        with self._lock:
            self._advance(nbytes)


def _wide(job: Job, name: str) -> bool:
    return job.base.info(name).dtype == torch.float64
