"""How the task vectors of all sources lie to one another and to their masks.

What is measured are sums over elements, so tensors are read in blocks, in any order and by several
threads, and the sums of a layer or of the whole model are sums of those of its tensors.
"""

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_breadcrumbs.engine.backends import Job, arithmetic, reference
from mlflow_breadcrumbs.engine.backends.cpu import grid, kernels, masking, reading, row_kernels
from mlflow_breadcrumbs.support import progress

Matrix = npt.NDArray[np.float32]
"""[sources, elements] of a block: the task vectors, or what their masks keep of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Sums over the elements of a tensor or of several; `+` gives those of both."""

    elements: int
    base_energy: float
    """Σ θ² of the base."""
    products: kernels.Doubles
    """[sources, sources] Σ τ_s · τ_t; the diagonal is the energy of each task vector."""
    kept_energy: kernels.Doubles
    """[sources] Σ τ² of what each mask keeps."""
    both: kernels.Counts
    """[sources, sources] elements that both masks keep and both sources change; the diagonal counts
    those of one source."""
    opposed: kernels.Counts
    """[sources, sources] of these, the elements that the two change in opposite directions."""

    @property
    def norms(self) -> kernels.Doubles:
        """[sources] ‖τ‖, Euclidean."""
        return np.sqrt(np.diagonal(self.products))

    @property
    def base_norm(self) -> float:
        """‖θ‖, Euclidean."""
        return math.sqrt(self.base_energy)

    @property
    def ratios(self) -> kernels.Doubles:
        """[sources] ‖τ‖ / ‖θ‖; 0 where the base is zero."""
        return self.norms / self.base_norm if self.base_norm else np.zeros(len(self.norms))

    @property
    def cosines(self) -> kernels.Doubles:
        """[sources, sources] of the angles between task vectors, −1…1; 0 beside an empty one."""
        energies = np.diagonal(self.products)
        # √(x·x) is x to the last bit, √x·√x is not: each vector's cosine with itself is 1.
        return _divided(self.products, np.sqrt(np.outer(energies, energies))).clip(-1, 1)

    @property
    def energy_kept(self) -> kernels.Doubles:
        """[sources] the share of Σ τ² that each mask keeps, 0…1; 0 for an empty task vector."""
        return _divided(self.kept_energy, np.diagonal(self.products)).clip(0, 1)

    @property
    def overlaps(self) -> kernels.Doubles:
        """[sources, sources] the share of the smaller mask that the other keeps too, 0…1.

        Independent masks overlap by their density.
        """
        sizes = np.diagonal(self.both)
        return _divided(self.both, np.minimum.outer(sizes, sizes))

    @property
    def conflicts(self) -> kernels.Doubles:
        """[sources, sources] the share of what both keep that they change in opposite directions.

        Independent task vectors conflict in one half of it.
        """
        return _divided(self.opposed, self.both)

    def __add__(self, other: "Geometry") -> "Geometry":
        return Geometry(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(Geometry)
            )
        )


def _divided(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> kernels.Doubles:
    """The quotients, 0 where there is nothing to divide by."""
    quotients = np.zeros(part.shape)
    np.divide(part, whole, out=quotients, where=whole > 0)
    return quotients


def nothing(sources: int) -> Geometry:
    """The geometry of no elements: where a sum starts."""
    square = (sources, sources)
    return Geometry(
        0, 0.0, np.zeros(square), np.zeros(sources), np.zeros(square, int), np.zeros(square, int)
    )


def total(parts: Iterable[Geometry], sources: int) -> Geometry:
    """The geometry of several tensors together."""
    return sum(parts, start=nothing(sources))


def measure(job: Job, *, threads: int, advance: progress.Advance) -> dict[str, Geometry]:
    """The geometry of every merged tensor of a job, by name, at the recipe's density and gamma.

    Each thread holds one block of every source. All sources are read twice: for the masks, then
    for the sums.

    Args:
        job: a planned merge, see `merging.plan`.
        threads: at least 1.
        advance: told the bytes of each tensor, of all inputs, when it is done.

    Raises:
        MergeError: an input is not finite; names it, the tensor and the flat index.
    """
    if any(job.base.info(name).dtype.itemsize == 8 for name in job.merged):
        return _measure_wide(job, advance)
    found = grid.thresholds(job, [(job.recipe.density, job.recipe.gamma)], threads=threads)[0]
    local, lock = threading.local(), threading.Lock()

    def one(name: str) -> Geometry:
        if not hasattr(local, "buffers"):
            local.buffers = reading.Buffers()
        chosen = [found[name, source] for source in range(len(job.sources))]
        made = total(_blocks(job, name, chosen, local.buffers), len(job.sources))
        with lock:
            advance(sum(checkpoint.info(name).nbytes for checkpoint in job.inputs))
        return made

    by_size = sorted(job.merged, key=lambda name: -job.base.info(name).numel)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        made = dict(zip(by_size, pool.map(one, by_size), strict=True))
    return {name: made[name] for name in job.merged}


def _blocks(
    job: Job, name: str, chosen: Sequence[masking.Mask], buffers: reading.Buffers
) -> Iterator[Geometry]:
    """The geometry of one tensor's blocks."""
    room = np.empty((2, len(job.sources), masking.BLOCK), np.float32)
    for start, stop in masking.blocks(chosen[0], job.base.info(name).numel):
        if stop - start > room.shape[2]:  # short rows, a little longer than a block
            room = np.empty((2, len(job.sources), stop - start), np.float32)
        theta = np.empty(stop - start, np.float32)
        tau, kept = room[:, :, : stop - start]
        for source, mask in enumerate(chosen):
            pair = buffers.pair(job.base, job.sources[source], name, start, stop)
            kernels.subtract(pair.arrays, 0, theta, tau[source])
            kept[source] = tau[source]
            seen = np.zeros(4, np.int64)
            if isinstance(mask, masking.Rows):
                row_kernels.mask_rows(kept[source], mask.length, mask.low, mask.keep, seen)
            else:
                kernels.mask_range(kept[source], start, mask.cuts_at(start), seen)
        yield _sums(job, theta, tau, kept)


def _measure_wide(job: Job, advance: progress.Advance) -> dict[str, Geometry]:
    """As `measure`, with the masks as by definition, which alone knows float64; it is rare."""
    keep, made = reference.keep_of(job), {}
    for name in job.merged:
        base = arithmetic.working_base(job, name)
        vectors = [
            arithmetic.task_vector(job, source, name, base) for source in range(len(job.sources))
        ]
        masks = [keep(source, tau) for source, tau in enumerate(vectors)]
        tau = np.stack([vector.reshape(-1).float().numpy() for vector in vectors])
        kept = tau * np.stack([mask.reshape(-1).numpy() for mask in masks])
        theta = base.reshape(-1).float().numpy()
        parts = [slice(at, at + masking.BLOCK) for at in range(0, theta.size, masking.BLOCK)]
        made[name] = total(
            [_sums(job, theta[part], tau[:, part], kept[:, part]) for part in parts],
            len(job.sources),
        )
        for checkpoint in job.inputs:
            advance(checkpoint.info(name).nbytes)
            checkpoint.release(name)
    return made


def _sums(job: Job, theta: kernels.Floats, tau: Matrix, kept: Matrix) -> Geometry:
    """The sums over one block.

    Counts are products of zeros and ones, which float32 adds up exactly below 2^24 elements.
    """
    base_energy = float(theta @ theta)
    if np.isfinite(base_energy) and not tau.any():  # a tower that no source was tuned in
        return dataclasses.replace(nothing(len(tau)), elements=theta.size, base_energy=base_energy)
    products = (tau @ tau.T).astype(np.float64)
    if not np.isfinite(products).all() or not np.isfinite(base_energy):
        arithmetic.check_inputs(job)
        wide, base = tau.astype(np.float64), theta.astype(np.float64)
        products, base_energy = wide @ wide.T, float(base @ base)
    kept_energy = np.einsum("se,se->s", kept, kept).astype(np.float64)
    signs = np.sign(kept)
    agreement = signs @ signs.T
    changed = np.abs(signs)
    both = changed @ changed.T
    return Geometry(
        elements=theta.size,
        base_energy=base_energy,
        products=products,
        kept_energy=kept_energy,
        both=np.rint(both).astype(np.int64),
        opposed=np.rint((both - agreement) / 2).astype(np.int64),
    )
