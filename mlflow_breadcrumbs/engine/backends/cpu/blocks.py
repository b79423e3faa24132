"""One tensor of a merge on the CPU, block by block, once the masks of all sources are known."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mlflow_breadcrumbs.engine.backends import Job, MaskStatistics, arithmetic
from mlflow_breadcrumbs.engine.backends.cpu import kernels, masking, reading, row_kernels
from mlflow_breadcrumbs.engine.backends.cpu.masking import Mask, Rows

SERIAL = 1 << 14
"""Elements that torch converts in the calling thread; for more it starts threads of its own."""

_Sums = tuple[np.float32, kernels.Floats, kernels.Floats, kernels.Floats, kernels.Touched]
"""A weight, the direction, the total, the divisor, the touched: see `kernels.accumulate`."""

_NONE = np.empty(0, np.float32)


class TensorMerge:
    """Merges one tensor once its masks are known.

    Args:
        job: the merge.
        name: of the tensor.
        chosen: the mask of each source.
        buffers: of the calling thread.
    """

    def __init__(
        self, job: Job, name: str, chosen: Sequence[Mask], buffers: reading.Buffers
    ) -> None:
        self._job = job
        self._name = name
        self._masks = chosen
        self._buffers = buffers
        self._weights = [np.float32(weight) for weight in job.weights]
        self.elements = job.base.info(name).numel
        room = min(
            self.elements,
            max(masking.BLOCK, chosen[0].length if isinstance(chosen[0], Rows) else 1),
        )
        self._total = np.empty(room, np.float32)
        aligns = job.recipe.aligns(job.base.info(name).shape)
        self._direction = np.empty(room if aligns else 0, np.float32)
        self._divisor = np.empty(
            room if arithmetic.combining(job, name) == "mean" else 0, np.float32
        )
        self._touched = np.empty(room, np.uint16)
        self._touches = np.zeros(len(job.sources) + 1, np.int64)
        self._seen = [nothing_seen() for _ in job.sources]
        self._energies = [np.zeros(2) for _ in job.sources]
        self._base_energy = np.zeros(1)
        self._inputs_checked = False

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The blocks, start and stop, in order."""
        return masking.blocks(self._masks[0], self.elements)

    def merge(self, start: int, stop: int) -> torch.Tensor:
        """The merged elements of a block, flat, in the output's dtype.

        Raises:
            MergeError: an input or a result is not finite.
        """
        total = self._total[: stop - start]
        direction, divisor = self._direction[: stop - start], self._divisor[: stop - start]
        touched = self._touched[: stop - start]
        if direction.size:
            direction[:] = 0
            for source, weight in enumerate(self._weights):
                sums = (weight, _NONE, direction, _NONE, touched[:0])
                self._add(source, start, stop, sums, nothing_seen(), np.zeros(2))
        total[:], divisor[:], touched[:] = 0, 0, 0
        for source, weight in enumerate(self._weights):
            sums = (weight, direction, total, divisor, touched)
            self._add(source, start, stop, sums, self._seen[source], self._energies[source])
        self._check_inputs()
        base = self._buffers.base(self._job.base, self._name, start, stop)
        alpha = np.float32(arithmetic.scale(self._job, self._name))
        bad = kernels.finish(
            base.raw,
            base.kind,
            alpha,
            divisor,
            touched,
            total,
            self._touches,
            self._base_energy,
        )
        dtype = self._job.dtypes[self._name]
        merged = _convert(total, dtype)
        if dtype in (torch.float16, torch.bfloat16):
            first = arithmetic.first_nonfinite(merged)
            bad = -1 if first is None else first
        if bad >= 0:
            raise arithmetic.overflow(self._name, start + bad, dtype)
        return merged

    def statistics(self) -> list[MaskStatistics]:
        """What the masks did, per source; complete when all blocks are merged."""
        return [
            mask_statistics(self._name, source, self.elements, seen, energies)
            for source, (seen, energies) in enumerate(zip(self._seen, self._energies, strict=True))
        ]

    @property
    def base_energy(self) -> float:
        """Σ θ² so far."""
        return float(self._base_energy[0])

    @property
    def touched(self) -> list[int]:
        """[sources + 1] elements that 0, 1, … sources changed so far."""
        return [int(count) for count in self._touches]

    def _add(
        self,
        source: int,
        start: int,
        stop: int,
        sums: _Sums,
        seen: kernels.Counts,
        energies: kernels.Doubles,
    ) -> None:
        job, mask = self._job, self._masks[source]
        pair = self._buffers.pair(job.base, job.sources[source], self._name, start, stop)
        if isinstance(mask, Rows):
            rows = (mask.length, mask.low, mask.keep)
            row_kernels.add_source_by_rows(pair.arrays, rows, *sums, seen, energies)
            return
        kernels.add_source(pair.arrays, start, mask.cuts_at(start), *sums, seen, energies)

    def _check_inputs(self) -> None:
        """Find out whether an infinite task vector comes from an infinite input; mostly it does."""
        if self._inputs_checked or max(seen[3] for seen in self._seen) < kernels.INFINITY:
            return
        for label, checkpoint in zip(
            ("the base", *self._job.labels), self._job.inputs, strict=True
        ):
            arithmetic.check_finite(checkpoint.tensor(self._name), label, self._name)
        self._inputs_checked = True


def mask_statistics(
    tensor: str, source: int, elements: int, seen: kernels.Counts, energies: kernels.Doubles
) -> MaskStatistics:
    """What the kernels saw of a mask, see `kernels.add_source`, as a record."""
    return MaskStatistics(
        tensor=tensor,
        source=source,
        elements=elements,
        kept=int(seen[0]),
        smallest_kept=_magnitude(seen[1]) if seen[0] else 0.0,
        largest_kept=_magnitude(seen[2]),
        energy=float(energies[0]),
        energy_kept=float(energies[1]),
    )


def nothing_seen() -> kernels.Counts:
    """What the kernels have seen of a mask before they begin."""
    return np.array([0, int(kernels.MAGNITUDE), 0, 0], np.int64)


def _magnitude(bits: np.int64) -> float:
    return float(np.array(bits, np.uint32).view(np.float32))


def _convert(values: kernels.Floats, dtype: torch.dtype) -> torch.Tensor:
    """The elements in another dtype, rounded to nearest, ties to even."""
    tensor = torch.from_numpy(values)
    if dtype == torch.float32:
        return tensor
    converted = torch.empty(tensor.shape, dtype=dtype)
    for start in range(0, len(tensor), SERIAL):
        converted[start : start + SERIAL] = tensor[start : start + SERIAL]
    return converted
