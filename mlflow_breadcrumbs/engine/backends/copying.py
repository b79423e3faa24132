"""The tensors that a recipe leaves alone: the base's, checked against the sources' copies."""

import concurrent.futures

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, writing
from mlflow_breadcrumbs.engine.backends import Job, arithmetic
from mlflow_breadcrumbs.support import progress


def copy_unmerged(
    job: Job, writer: writing.Writer, advance: progress.Advance, threads: int
) -> list[dict[str, str]]:
    """Write the base's tensors that are not merged.

    Returns:
        Per input, base first: the SHA-256 of each of these tensors; empty if not verified.

    Raises:
        MergeError: a value is not finite, or a source's integer or bool tensor differs, which is
            neither a counter nor excluded by the recipe.
    """
    hexdigests: list[dict[str, str]] = [{} for _ in job.inputs]
    running = frozenset(job.running)

    def may_differ(name: str) -> bool:
        return name in running or not job.recipe.merges(name)

    def copy(name: str) -> int:
        tensor = job.base.tensor(name)
        arithmetic.check_finite(tensor, "the base", name)
        for label, source in zip(job.labels, job.sources, strict=True):
            _check_copy(tensor, source.tensor(name), label, name, may_differ=may_differ(name))
        for checkpoint, found in zip(job.inputs, hexdigests, strict=True):
            if job.verify:
                found[name] = checkpoints.tensor_digest(checkpoint.tensor(name))
            checkpoint.release(name)
        writer.write(name, tensor)
        return sum(checkpoint.info(name).nbytes for checkpoint in job.inputs)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for nbytes in pool.map(copy, job.copied):
                advance(nbytes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return hexdigests


def _check_copy(
    tensor: torch.Tensor, copy: torch.Tensor, label: str, name: str, *, may_differ: bool
) -> None:
    arithmetic.check_finite(copy, label, name)
    if may_differ or tensor.dtype.is_floating_point or torch.equal(copy, tensor):
        return
    index = int((copy != tensor).reshape(-1).to(torch.uint8).argmax())
    raise errors.MergeError(
        f"{label} has {copy.reshape(-1)[index].item()} in the "
        f"{str(tensor.dtype).removeprefix('torch.')} tensor {name!r} at flat index {index}, "
        f"the base has {tensor.reshape(-1)[index].item()}; integer and bool tensors can't be "
        "merged: the source is not fine-tuned from this base, or --exclude the tensor, and the "
        "base's is kept"
    )
