"""The definition of a merge, slow and obvious: sort every masking unit, keep a range of ranks.

Every other backend must give the same bits; where a recipe decomposes matrices, those of one
machine: see `singular`. One tensor is held at a time: of the base, of one source, and the
contributions of all sources to it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, masks, recipe, writing
from mlflow_breadcrumbs.engine.backends import (
    Job,
    MaskStatistics,
    MergedTensor,
    Outcome,
    arithmetic,
    matrices,
    ranks,
    symmetric,
)
from mlflow_breadcrumbs.support import progress

Keep = Callable[[int, torch.Tensor], torch.Tensor]
"""Which elements of the next tensor's task vector are kept, given the source's position."""


class Reference:
    """The backend that defines the others."""

    name = "reference"

    def run(self, job: Job, writer: writing.Writer, advance: progress.Advance) -> Outcome:
        """See `backends.Backend.run`."""
        outcome = Outcome([], [0] * (len(job.sources) + 1), [], [{} for _ in job.inputs])
        keep = keep_of(job)
        with contextlib.nullcontext() if job.recipe.bit_exact else symmetric.one_thread():
            for name in job.merged:
                statistics, touched, squares = write_tensor(
                    job, name, keep, writer, outcome.hexdigests, advance
                )
                outcome.statistics += statistics
                outcome.base_energies.append(squares)
                outcome.touched = [a + b for a, b in zip(outcome.touched, touched, strict=True)]
        return outcome


def write_tensor(
    job: Job,
    name: str,
    keep: Keep,
    writer: writing.Writer,
    hexdigests: Sequence[dict[str, str]],
    advance: progress.Advance,
) -> MergedTensor:
    """Merge and write one tensor.

    Args:
        job: the merge.
        name: of the tensor.
        keep: the masks.
        writer: takes the merged tensor.
        hexdigests: [1 + sources] get the SHA-256 of the inputs, where the job verifies them.
        advance: is told the bytes read.

    Returns:
        The statistics of the masks, how many elements 0, 1, … sources changed, and Σ θ².
    """
    merged, statistics, touched = merge_tensor(job, name, keep)
    squares = energy(job.base.tensor(name))
    for checkpoint, found in zip(job.inputs, hexdigests, strict=True):
        if job.verify:
            found[name] = checkpoints.tensor_digest(checkpoint.tensor(name))
        checkpoint.release(name)
        advance(checkpoint.info(name).nbytes)
    writer.write(name, merged)
    return statistics, touched, squares


def merge_tensor(
    job: Job, name: str, keep: Keep
) -> tuple[torch.Tensor, list[MaskStatistics], list[int]]:
    """One merged tensor, the statistics of its masks, and how many sources changed its elements."""
    base = arithmetic.working_base(job, name)
    contributions, statistics = [], []
    for source, weight in enumerate(job.weights):
        tau = arithmetic.task_vector(job, source, name, base)
        kept = keep(source, tau)
        contributions.append(torch.where(kept, tau, 0.0) * arithmetic.float32(weight))
        statistics.append(mask_statistics(name, source, tau, kept))
    if job.recipe.aligns(base.shape):
        contributions = agreeing(contributions)
    if job.recipe.decomposes(base.shape):
        given = matrices.Matrices(
            len(job.sources), lambda: iter(contributions), lambda: changes(job, name, base)
        )
        total = decompose(job, name, given).to(base.dtype)
    else:
        total = arithmetic.combine(contributions, job.weights, arithmetic.combining(job, name))
    merged = (base + arithmetic.scale(job, name) * total).to(job.dtypes[name])
    arithmetic.check_result(merged, name)
    count = torch.stack([c != 0 for c in contributions]).sum(0).reshape(-1)
    touched = torch.bincount(count, minlength=len(job.sources) + 1)
    return merged, statistics, [int(number) for number in touched]


def changes(job: Job, name: str, base: torch.Tensor) -> Iterator[torch.Tensor]:
    """w_t · τ_t of every source, whole, in the working dtype."""
    for source, weight in enumerate(job.weights):
        tau = arithmetic.task_vector(job, source, name, base)
        yield tau.mul_(arithmetic.float32(weight))


def keep_mask(tau: torch.Tensor, unit: str, density: float, gamma: float) -> torch.Tensor:
    """Which elements of a task vector are kept, for the units `tensor` and `row`.

    Args:
        tau: the task vector of one tensor, any shape, float32 or float64.
        unit: `tensor`: all elements are one unit; `row`: each run of the last dimension is.
        density: fraction of a unit that is kept, 0 < density ≤ 1.
        gamma: fraction of a unit with the largest magnitudes that is dropped.

    Returns:
        A bool tensor of τ's shape. A 0-dimensional tensor is kept whole.
    """
    if tau.dim() == 0 or tau.numel() == 0:
        return torch.ones_like(tau, dtype=torch.bool)
    units = tau.abs().reshape(-1, tau.shape[-1]) if unit == "row" else tau.abs().reshape(1, -1)
    low, keep, _ = masks.counts(units.shape[1], density, gamma)
    order = torch.sort(units, dim=1, stable=True).indices  # stable: ties by index
    kept = torch.zeros_like(units, dtype=torch.bool)
    kept.scatter_(1, order[:, low : low + keep], True)
    return kept.reshape(tau.shape)


def agreeing(contributions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The contributions, zero where their sign is not that of their sum (which is + for 0)."""
    positive = arithmetic.sum_in_order(contributions) >= 0
    return [torch.where(positive == (c > 0), c, 0.0) for c in contributions]


def decompose(job: Job, name: str, given: matrices.Matrices) -> torch.Tensor:
    """The contributions of all sources to one matrix, by decompositions; float64.

    Args:
        job: the merge.
        name: of the matrix.
        given: the matrix of every source.

    Raises:
        MergeError: a contribution is not finite, or a decomposition fails.
    """

    def checked(found: Callable[[], Iterable[torch.Tensor]]) -> Iterator[torch.Tensor]:
        for label, contribution in zip(job.labels, found(), strict=True):
            arithmetic.check_decomposable(contribution, label, name)
            yield contribution

    both = matrices.Matrices(
        given.count, lambda: checked(given.masked), lambda: checked(given.whole)
    )
    try:
        return matrices.merge(both, tuple(job.weights), job.recipe, arithmetic.blocks(job, name))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise errors.MergeError(
            f"the decomposition of the tensor {name!r} failed ({error}); leave it out "
            "(--exclude), or merge by another method"
        ) from error


def keep_of(job: Job) -> Keep:
    """The masks of a job, for tensors asked for in its order, source by source."""
    return _keep_model(job) if job.recipe.unit == "model" else keep_unit(job.recipe)


def keep_unit(settings: recipe.MergeRecipe) -> Keep:
    """The masks of the units `tensor` and `row`."""

    def keep(source: int, tau: torch.Tensor) -> torch.Tensor:
        if not settings.masks(tau.shape):
            return torch.ones_like(tau, dtype=torch.bool)
        return keep_mask(tau, settings.unit, settings.density, settings.gamma)

    return keep


def _keep_model(job: Job) -> Keep:
    """The mask of the unit `model`: all merged tensors, by name, are one long vector.

    What is kept whole, such as 0-dimensional tensors, is no part of the vector.
    """
    settings = job.recipe
    infos = [job.base.info(name) for name in job.merged]
    n = sum(info.numel for info in infos if settings.masks(info.shape))
    dtype = torch.float64 if any(info.dtype == torch.float64 for info in infos) else torch.float32
    low, keep, _ = masks.counts(n, settings.density, settings.gamma)

    def parts(source: int) -> Iterator[torch.Tensor]:
        for name in job.merged:
            if settings.masks(job.base.info(name).shape):
                base = arithmetic.working_base(job, name)
                tau = arithmetic.task_vector(job, source, name, base)
                yield ranks.magnitude_bits(tau, dtype)
                job.base.release(name)
                job.sources[source].release(name)

    cuts = [
        [ranks.cut(functools.partial(parts, source), rank, dtype) for rank in (low, low + keep)]
        for source in range(len(job.sources))
    ]

    def kept(source: int, tau: torch.Tensor) -> torch.Tensor:
        if not settings.masks(tau.shape):
            return torch.ones_like(tau, dtype=torch.bool)
        bits = ranks.magnitude_bits(tau, dtype)
        lower, upper = cuts[source]
        return lower.behind(bits) & ~upper.behind(bits)

    return kept


def energy(tensor: torch.Tensor) -> float:
    """The sum of the squares, in float64."""
    return float(tensor.double().square().sum())


def mask_statistics(
    name: str, source: int, tau: torch.Tensor, kept: torch.Tensor
) -> MaskStatistics:
    """What a mask did to a source's task vector τ in the tensor `name`."""
    magnitudes = tau[kept].abs()
    return MaskStatistics(
        tensor=name,
        source=source,
        elements=tau.numel(),
        kept=magnitudes.numel(),
        smallest_kept=float(magnitudes.min()) if magnitudes.numel() else 0.0,
        largest_kept=float(magnitudes.max()) if magnitudes.numel() else 0.0,
        energy=energy(tau),
        energy_kept=energy(magnitudes),
    )
