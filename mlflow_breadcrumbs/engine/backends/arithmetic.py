"""The steps of the arithmetic that every backend shares: working dtype, task vector, checks."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine.backends import Job

PACKED = re.compile(r"(^|\.)(in_proj_weight|(qkv|Wqkv|in_proj)\.weight)$")
"""Names of matrices that hold queries, keys and values, one above the other."""


def working_dtype(base: torch.dtype) -> torch.dtype:
    """float64 for a float64 base, otherwise float32: no base tensor loses precision."""
    return torch.float64 if base == torch.float64 else torch.float32


def float32(value: float) -> float:
    """`value` rounded once to float32."""
    return float(torch.tensor(value, dtype=torch.float32))


def scale(job: Job, name: str) -> float:
    """What the combined task vectors of a tensor are multiplied by, rounded once to float32.

    It is alpha, and more in deep blocks where the recipe says so; and a T-th of that for tensors
    that are no matrices where the recipe averages these over the T sources.
    """
    factor = job.recipe.alpha + job.recipe.depth * job.depths.get(name, 0.0)
    return float32(factor / len(job.weights) if averaged(job, name) else factor)


def blocks(job: Job, name: str) -> int:
    """How many matrices a matrix holds, one above the other, that are decomposed apart."""
    rows, columns = job.base.info(name).shape
    packed = job.recipe.packed == "split" and PACKED.search(name) and rows == 3 * columns
    return 3 if packed else 1


def averaged(job: Job, name: str) -> bool:
    """Whether a tensor is averaged over all sources, whatever matrices are combined by."""
    return job.recipe.averages_vectors and len(job.base.info(name).shape) != 2


def combining(job: Job, name: str) -> str:
    """How a tensor's contributions are combined: an average is their sum, scaled by 1/T."""
    return "sum" if averaged(job, name) else job.recipe.combine


def working_base(job: Job, name: str) -> torch.Tensor:
    """θ of the tensor `name` in the working dtype; `MergeError` if it is not finite."""
    base = job.base.tensor(name)
    check_finite(base, "the base", name)
    return base.to(working_dtype(base.dtype))


def task_vector(job: Job, source: int, name: str, base: torch.Tensor) -> torch.Tensor:
    """τ = θ_t − θ of the source at a position; `MergeError` if an input is not finite."""
    tuned = job.sources[source].tensor(name)
    check_finite(tuned, job.labels[source], name)
    return tuned.to(base.dtype) - base


def combine(
    contributions: Sequence[torch.Tensor], weights: Sequence[float], how: str
) -> torch.Tensor:
    """The contributions of all sources to one tensor, as sum or mean.

    Args:
        contributions: per source w_t · (masked τ_t), all of one shape, in the working dtype.
        weights: per source w_t.
        how: `sum`, or `mean` over the contributions that are not zero; another one is for
            matrices, and the sum is taken here.
    """
    total = sum_in_order(contributions)
    if how == "mean":
        remains = [c != 0 for c in contributions]
        divisor = sum_in_order(
            torch.where(r, float32(w), torch.zeros_like(total))
            for r, w in zip(remains, weights, strict=True)
        )
        total = total / torch.where(torch.stack(remains).any(0), divisor, 1.0)
    return total


def sum_in_order(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum in the order given, rounded after each addition; taken one at a time."""
    order = iter(terms)
    total = next(order) + 0.0  # a copy, in which −0 is 0
    for term in order:
        total += term
    return total


def check_finite(tensor: torch.Tensor, owner: str, name: str) -> None:
    """Raise `MergeError` for the first NaN or infinity of an input."""
    index = first_nonfinite(tensor)
    if index is not None:
        raise nonfinite_input(owner, name, index, float(tensor.reshape(-1)[index]))


def check_inputs(job: Job) -> None:
    """Raise `MergeError` for the first NaN or infinity, read source by source as by definition."""
    for label, source in zip(job.labels, job.sources, strict=True):
        for name in job.merged:
            for owner, checkpoint in (("the base", job.base), (label, source)):
                check_finite(checkpoint.tensor(name), owner, name)
                checkpoint.release(name)


@contextlib.contextmanager
def first_fault(job: Job) -> Iterator[None]:
    """Let a merge that fails name the fault that the definition would meet first.

    With the unit `model` that is the first by source; otherwise the first by tensor, which a
    backend finds itself.
    """
    try:
        yield
    except errors.MergeError:
        if job.recipe.unit == "model":
            check_inputs(job)
        raise


def nonfinite_input(owner: str, name: str, index: int, value: float) -> errors.MergeError:
    """The error for a NaN or an infinity in an input, at a flat index."""
    return errors.MergeError(
        f"{owner} has {value} in the tensor {name!r} at flat index {index}; "
        "a merge needs finite weights: take another version"
    )


def check_decomposable(matrix: torch.Tensor, owner: str, name: str) -> None:
    """Raise `MergeError` for the first element of a matrix that is no number to decompose."""
    index = first_nonfinite(matrix)
    if index is not None:
        raise errors.MergeError(
            f"{owner} changes the tensor {name!r} at flat index {index} by more than float32 can "
            "hold, so it has no singular values; lower its weight, or leave it out"
        )


def check_result(merged: torch.Tensor, name: str) -> None:
    """Raise `MergeError` for the first element that overflowed the output dtype."""
    index = first_nonfinite(merged)
    if index is not None:
        raise overflow(name, index, merged.dtype)


def overflow(name: str, index: int, dtype: torch.dtype) -> errors.MergeError:
    """The error for a result that the output dtype can't hold, at a flat index."""
    return errors.MergeError(
        f"the merged tensor {name!r} overflows {str(dtype).removeprefix('torch.')} at flat index "
        f"{index}; lower alpha or the weights, or choose a wider dtype"
    )


def first_nonfinite(tensor: torch.Tensor) -> int | None:
    """The flat index of the first NaN or infinity, or `None`."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    bad = ~torch.isfinite(tensor.reshape(-1))
    return int(bad.to(torch.uint8).argmax()) if bool(bad.any()) else None
