"""What a draft leaves open, found from the weights: the method, alpha, the sources' weights.

Read `settle` first. Nothing here looks at an image; what is found is a recipe as anybody could have
given it, with the measurements that it was found by.
"""

import dataclasses
import math
import statistics
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, drafts, merging, patterns, recipe
from mlflow_breadcrumbs.engine.backends import arithmetic, reference
from mlflow_breadcrumbs.support import progress

SAMPLED = 6
"""Matrices whose spectra are looked at, evenly spread over the model."""
ENERGY = 0.99
"""The share of a change's energy that its effective rank holds."""
LOW_RANK = 0.1
"""Effective rank, as a share of the full one, up to which changes are of low rank."""
LARGEST = 2048
"""Rows and columns of a matrix that are looked at, at most."""
UNEVEN = 1.5
"""A source more than so many times as long as the median is shortened."""
WHOLE, HALF = 1.0, 0.5
"""How far: to the median, which helps sums; or half the way in factors, which `auto` does, since
methods of matrices do no better with less, and the long source itself does worse."""
STRETCH = 2.0
"""How much longer than their mean the best sums of sources were in the study."""


def settle(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    draft: drafts.RecipeDraft,
    *,
    labels: Sequence[str] | None = None,
    backend: backends.Backend,
    show: progress.Progress = progress.silent,
) -> drafts.Choice | None:
    """Fill in what a draft leaves open; `None` where it leaves nothing.

    The patterns that were named for the merge are held against the tensors first.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order of the sum.
        draft: what is given, and what is open.
        labels: how messages name each source.
        backend: computes the merges that alpha is found by.
        show: is told the sources that were read.

    Raises:
        RecipeError: the recipe has another number of weights than there are sources.
        MergeError: the checkpoints don't fit together, a value is not finite, or a pattern matches
            no tensor.
    """
    patterns.check(base, sources, draft.patterns)
    if not draft.open:
        return None
    settings, job = draft.recipe, merging.plan(base, sources, draft.recipe, labels)
    if drafts.ALPHA in draft.open and not settings.bit_exact:
        raise errors.RecipeError(
            f"alpha is 'auto' and combine is {settings.combine!r}: only what is summed element by "
            "element needs a scale that fits; leave alpha out"
        )
    said: list[str] = []
    measured: dict[str, Any] = {}
    method = None
    if drafts.METHOD in draft.open:
        rank = _rank(job)
        measured["rank"] = float(f"{rank:.3g}")
        method, why = rule(rank, len(sources))
        settings = recipe.MergeRecipe.from_method(
            method,
            sources=len(sources),
            **{field: getattr(settings, field) for field in drafts.NEUTRAL},
        )
        said.append(f"{method}, since {why}")
    if draft.open & {drafts.METHOD, drafts.BALANCE}:
        lengths = _lengths(job, show)
        measured["lengths"] = [float(f"{length:.4g}") for length in lengths]
        far = HALF if drafts.METHOD in draft.open else WHOLE
        settings, note = _balanced(settings, lengths, job.labels, far)
        said.append(note or "the sources' changes are of like length")
    if drafts.ALPHA in draft.open:
        settings, note = _scaled(job, settings, backend)
        said.append(note)
    return drafts.Choice(settings, tuple(sorted(draft.open)), "; ".join(said), measured, method)


def rule(rank: float, sources: int) -> tuple[str, str]:
    """The method for sources whose changes have an effective rank, and why; see docs/study.md.

    Args:
        rank: mean over the sources, as a share of the full rank, 0…1.
        sources: how many there are.
    """
    if sources == 1:
        return "weight_average", "there is one source, which is its own mean"
    if rank <= LOW_RANK:
        return "lora", f"the changes are of low rank ({rank:.0%} of the full one)"
    return "tsv_lines", f"the changes are not of low rank ({rank:.0%} of the full one)"


def _lengths(job: backends.Job, show: progress.Progress) -> list[float]:
    """‖w·τ‖ of every source over all merged tensors."""
    energies = [0.0] * len(job.sources)
    with show("measure the changes", total=len(job.merged), unit="tensors") as advance:
        for name in job.merged:
            base = arithmetic.working_base(job, name)
            for source in range(len(job.sources)):
                energies[source] += reference.energy(
                    arithmetic.task_vector(job, source, name, base)
                )
                job.sources[source].release(name)
            job.base.release(name)
            advance(1)
    return [
        abs(weight) * math.sqrt(energy)
        for weight, energy in zip(job.weights, energies, strict=True)
    ]


def _rank(job: backends.Job) -> float:
    """The mean effective rank of the changes to a few matrices, as a share of the full one, 0…1.

    Of singular values σ it is how many of the largest hold `ENERGY` of Σ σ². 1 where no source
    changes a matrix.
    """
    matrices = [name for name in job.merged if len(job.base.info(name).shape) == 2]
    step = max(1, len(matrices) // SAMPLED)
    found = []
    for name in matrices[step // 2 :: step]:
        base = arithmetic.working_base(job, name)
        for source in range(len(job.sources)):
            change = arithmetic.task_vector(job, source, name, base)
            change = change[:LARGEST, :LARGEST].double()
            if change.any():
                found.append(_effective_rank(change))
    return statistics.fmean(found) if found else 1.0


def _effective_rank(matrix: torch.Tensor) -> float:
    matrix = matrix / matrix.abs().max()
    square = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    energies = torch.linalg.eigvalsh(square).flip(0).clamp(min=0).cumsum(0)
    needed = int((energies < ENERGY * energies[-1]).sum()) + 1
    return needed / len(square)


def _balanced(
    settings: recipe.MergeRecipe, lengths: Sequence[float], labels: Sequence[str], far: float
) -> tuple[recipe.MergeRecipe, str]:
    """The recipe with long sources shortened by their weights, and a note of it.

    Args:
        settings: the recipe.
        lengths: of the sources' changes.
        labels: how the note names each source.
        far: 1 to the median, 0.5 by the root of what they are longer, 0 not at all.
    """
    median = statistics.median(length for length in lengths)
    long = {
        number: length / median
        for number, length in enumerate(lengths)
        if median and length > UNEVEN * median
    }
    if not long:
        return settings, ""
    weights = list(settings.weight_of(len(lengths)))
    for number, factor in long.items():
        weights[number] = float(f"{weights[number] / factor**far:.4g}")
    said = ", ".join(f"{labels[number]} ({factor:.1f} times)" for number, factor in long.items())
    return (
        dataclasses.replace(settings, weights=tuple(weights)),
        f"{'shortened' if far == WHOLE else 'shortened half the way'} to the median length of the "
        f"changes: {said}",
    )


def _scaled(
    job: backends.Job, settings: recipe.MergeRecipe, backend: backends.Backend
) -> tuple[recipe.MergeRecipe, str]:
    """The recipe with the alpha by which what is added is `STRETCH` times as long as the mean τ."""
    mean = recipe.MergeRecipe(
        density=1.0,
        alpha=1 / len(job.sources),
        weights=settings.weights,
        include=settings.include,
        exclude=settings.exclude,
        own=settings.own,
    )
    whole = _length(job, mean, backend)
    own = _length(job, dataclasses.replace(settings, alpha=1.0), backend)
    alpha = float(f"{STRETCH * whole / own:.2g}") if own else 1.0
    return (
        dataclasses.replace(settings, alpha=alpha),
        f"alpha {alpha:g}, which adds {STRETCH:g} times the length of the sources' mean",
    )


def _length(job: backends.Job, settings: recipe.MergeRecipe, backend: backends.Backend) -> float:
    """‖merged − θ‖ of a merge that is not written."""
    settings = dataclasses.replace(settings, dtype="float32")
    own = merging.plan(job.base, job.sources, settings, job.labels)
    found = _Lengths(job.base, own.dtypes)
    backend.run(own, found, lambda amount: None)
    return found.length


class _Lengths:
    """A `Writer` that keeps nothing but how far each part is from the base."""

    def __init__(self, base: checkpoints.Checkpoint, dtypes: Mapping[str, torch.dtype]) -> None:
        self._base, self._dtypes = base, dtypes
        self._energies: dict[tuple[str, int], float] = {}
        self._lock = threading.Lock()

    @property
    def length(self) -> float:
        """Of all that was written."""
        return math.sqrt(math.fsum(self._energies.values()))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """See `writing.Writer.write`."""
        self.write_part(name, 0, checkpoints.tensor_bytes(tensor))

    def write_part(self, name: str, start: int, content: memoryview) -> None:
        """See `writing.Writer.write_part`."""
        if not len(content):
            return
        dtype = self._dtypes[name]
        merged = torch.frombuffer(bytearray(content), dtype=dtype).double()
        first = start // dtype.itemsize
        base = self._base.tensor(name).reshape(-1)[first : first + len(merged)].double()
        with self._lock:
            self._energies[name, start] = float((merged - base).square().sum())

    def announce(self, name: str, hexdigest: str) -> None:
        """See `writing.Writer.announce`."""
