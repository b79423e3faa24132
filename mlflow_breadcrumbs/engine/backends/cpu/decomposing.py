"""Recipes that decompose matrices, tensor by tensor in several threads, largest first.

The CPU backend and the GPU backend hand such recipes over to this module: reading and masking are
work for the CPU, with its kernels; the decompositions run on the device. Each tensor is one
thread's work, so the bits don't depend on the number of threads. A thread holds one tensor of the
base and of a source and, of the sources before, no more than their factors or their sum; with the
consensus `mass`, one tensor of every source.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping

import numpy as np
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, writing
from mlflow_breadcrumbs.engine.backends import (
    Job,
    MaskStatistics,
    MergedTensor,
    Outcome,
    arithmetic,
    giving_up,
    matrices,
    reference,
    symmetric,
)
from mlflow_breadcrumbs.engine.backends.cpu import blocks, grid, kernels, row_kernels
from mlflow_breadcrumbs.engine.backends.cpu.masking import Masks, Rows
from mlflow_breadcrumbs.support import devices, progress

ON_DEVICE = 4
"""Tensors at a time where the device is not the CPU: a decomposition leaves most of a GPU idle."""

Updates = MutableMapping[str, torch.Tensor]
"""By matrix, what its sources were combined to, before alpha: float32, of the matrix's shape."""


class Decomposing:
    """Merges by a recipe that is not bit-exact.

    Args:
        threads: at least 1; tensors at a time.
        device: where matrices are decomposed.
        known: masks that need not be found again; see `grid.thresholds`.
        updates: of a merge that differs in alpha and dtype only, or empty; what is there is not
            decomposed again, what is missing is added.
    """

    def __init__(
        self,
        threads: int,
        *,
        device: torch.device | str = "cpu",
        known: Masks | None = None,
        updates: Updates | None = None,
    ) -> None:
        self._threads = threads
        self._device = torch.device(device)
        self._known = known
        self._updates = updates

    def run(self, job: Job, writer: writing.Writer, advance: progress.Advance) -> Outcome:
        """See `backends.Backend.run`.

        Raises:
            DeviceError: a tensor does not fit into the device's memory.
        """
        if any(job.base.info(name).dtype == torch.float64 for name in job.merged):
            return reference.Reference().run(job, writer, advance)  # it alone masks float64
        point = (job.recipe.density, job.recipe.gamma)
        known = self._known or grid.thresholds(job, [point], threads=self._threads)[0]
        at_a_time = self._threads
        if self._device.type != "cpu":
            at_a_time = min(self._threads, ON_DEVICE)
            # The first use loads torch's library for the device, which threads can't do together.
            torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=self._device))
        with (
            arithmetic.first_fault(job),
            symmetric.one_thread(),  # what new threads begin with; restored at the end
            concurrent.futures.ThreadPoolExecutor(
                at_a_time, initializer=_begin, initargs=(self._device,)
            ) as pool,
            giving_up(pool),
        ):
            run = _Decomposition(job, writer, advance, known, self._updates, self._device)
            return run.outcome(pool)


def _begin(device: torch.device) -> None:
    """Prepare a thread: one processor, and a stream of its own on a GPU."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class _Decomposition:
    """One merge under way."""

    def __init__(
        self,
        job: Job,
        writer: writing.Writer,
        advance: progress.Advance,
        known: Masks,
        updates: Updates | None,
        device: torch.device,
    ) -> None:
        self._job = job
        self._writer = writer
        self._advance = advance
        self._known = known
        self._updates = updates
        self._device = device
        self._lock = threading.Lock()
        self._hexdigests: list[dict[str, str]] = [{} for _ in job.inputs]
        self._failures: dict[str, errors.MergeError] = {}

    def outcome(self, pool: concurrent.futures.Executor) -> Outcome:
        """Merge every tensor.

        Raises:
            MergeError: that of the first tensor, by name, that can't be merged.
        """
        job = self._job
        by_size = sorted(job.merged, key=lambda name: -job.base.info(name).numel)
        futures = {name: pool.submit(self._merge, name) for name in by_size}
        merged = [found for name in job.merged if (found := futures[name].result())]
        if self._failures:
            raise self._failures[min(self._failures)]
        return Outcome.of(merged, self._hexdigests)

    def _merge(self, name: str) -> MergedTensor | None:
        """Merge one tensor, or note why not; needless once a tensor before it has failed."""
        if self._failures and name > min(self._failures):
            return None
        try:
            tensor = _Tensor(self._job, name, self._known, self._done)
            self._writer.write(name, self._merged(tensor))
        except errors.MergeError as error:
            with self._lock:
                self._failures[name] = error
            return None
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
            raise errors.DeviceError(
                f"decomposing the tensor {name!r} ran out of memory on {str(self._device)!r}; "
                "free the device, or use --device cpu"
            ) from error
        return tensor.statistics, tensor.touched, tensor.base_energy

    def _merged(self, tensor: "_Tensor") -> torch.Tensor:
        """A tensor of the output, with the update that is known already, if it is."""
        name, updates = tensor.name, self._updates
        known = None if updates is None else updates.get(name)
        total = tensor.total(self._device, known)
        if updates is not None and self._job.recipe.decomposes(total.shape):
            updates[name] = total
        return tensor.merge(total)

    def _done(self, name: str, position: int) -> None:
        """An input's tensor has been used: its digest, while the bytes are at hand."""
        checkpoint = self._job.inputs[position]
        if self._job.verify:
            digest = checkpoints.tensor_digest(checkpoint.tensor(name))
            self._hexdigests[position][name] = digest
        checkpoint.release(name)
        with self._lock:
            self._advance(checkpoint.info(name).nbytes)


class _Tensor:
    """One tensor of a merge, and what was seen on the way.

    Args:
        job: the merge.
        name: of the tensor.
        known: the masks.
        done: is told the name and the position of each input whose tensor has been used.
    """

    def __init__(self, job: Job, name: str, known: Masks, done: Callable[[str, int], None]) -> None:
        self._job = job
        self.name = name
        self._known = known
        self._done = done
        self._base = arithmetic.working_base(job, name)
        self._changes = torch.zeros(self._base.shape, dtype=torch.int16)
        self.base_energy = float(kernels.energy(self._base.reshape(-1).numpy()))
        self.statistics: list[MaskStatistics] = []

    @property
    def touched(self) -> list[int]:
        """[sources + 1] elements that 0, 1, … sources changed."""
        counts = torch.bincount(self._changes.reshape(-1), minlength=len(self._job.sources) + 1)
        return [int(count) for count in counts]

    def total(self, device: torch.device, known: torch.Tensor | None = None) -> torch.Tensor:
        """The sources combined, float32; what is known is not computed, only looked at.

        Raises:
            MergeError: an input is not finite, or a decomposition fails.
        """
        if self._job.recipe.decomposes(self._base.shape) and known is None:
            found = reference.decompose(self._job, self.name, self._matrices(device))
            return found.cpu().to(self._base.dtype)
        total = torch.zeros_like(self._base)
        for contribution in self._contributions():
            total += contribution
        return total if known is None else known

    def merge(self, total: torch.Tensor) -> torch.Tensor:
        """The merged tensor, in the output's dtype.

        Raises:
            MergeError: the result is not finite.
        """
        scale = arithmetic.scale(self._job, self.name)
        merged = (self._base + scale * total).to(self._job.dtypes[self.name])
        arithmetic.check_result(merged, self.name)
        self._done(self.name, 0)
        return merged

    def _matrices(self, device: torch.device) -> matrices.Matrices:
        """The tensor as recipes that decompose see it, on the device."""
        return matrices.Matrices(
            count=len(self._job.sources),
            masked=lambda: (found.to(device) for found in self._contributions()),
            whole=lambda: (
                found.to(device) for found in reference.changes(self._job, self.name, self._base)
            ),
        )

    def _contributions(self) -> Iterator[torch.Tensor]:
        """w_t · (masked τ_t) of every source, after the consensus, in source order."""
        found: Iterable[torch.Tensor] = self._masked()
        if self._job.recipe.aligns(self._base.shape):
            found = reference.agreeing(list(found))
        for contribution in found:
            self._changes += contribution != 0
            yield contribution

    def _masked(self) -> Iterator[torch.Tensor]:
        job, name = self._job, self.name
        for source, weight in enumerate(job.weights):
            tau = arithmetic.task_vector(job, source, name, self._base)
            self._mask(source, tau.reshape(-1).numpy())
            yield tau.mul_(arithmetic.float32(weight))
            self._done(name, source + 1)

    def _mask(self, source: int, tau: kernels.Floats) -> None:
        """Set to zero what the source's mask drops, and note what it did."""
        mask = self._known[self.name, source]
        seen, energies = blocks.nothing_seen(), np.zeros(2)
        energies[0] = kernels.energy(tau)
        if isinstance(mask, Rows):
            row_kernels.mask_rows(tau, mask.length, mask.low, mask.keep, seen)
        else:
            for start in range(0, tau.size, mask.length):
                unit = tau[start : start + mask.length]
                kernels.mask_range(unit, start, mask.cuts_at(start), seen)
        energies[1] = kernels.energy(tau)
        self.statistics.append(blocks.mask_statistics(self.name, source, tau.size, seen, energies))
