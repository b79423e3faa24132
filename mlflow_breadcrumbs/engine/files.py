"""Files without MLflow: what `merge-files` does, and where commands write their results."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    adapters,
    backends,
    checkpoints,
    drafts,
    lowering,
    merging,
    recipe,
    settling,
)
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.support import defaults, executors, processes, progress, scratch

if TYPE_CHECKING:
    from mlflow_breadcrumbs.engine.shards import budgets, plans


def merge_files(
    base: str | Path,
    sources: Sequence[str | Path],
    settings: recipe.MergeRecipe | drafts.RecipeDraft,
    output: str | Path,
    *,
    backend: backends.Backend | None = None,
    verify: bool = False,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    max_shard_size: int | None = None,
    executor: executors.Executor | None = None,
    overwrite: bool = False,
    show: progress.Progress = progress.silent,
) -> merging.MergeResult:
    """Merge checkpoint files; see `merging.merge`. A draft is settled by the weights first.

    With `max_shard_size` or an `executor` the merge goes shard by shard, and a call after a killed
    one goes on where that stopped; see `shards.local`.

    Raises:
        MergeError: a file is given twice, the checkpoints don't fit together, or an executor is
            given and the merge can't be done shard by shard.
        CheckpointError: a file can't be read, or the output can't be written.
        ExecutorError: see `executors.Executor.run`.
    """
    with _opened(base, sources) as (first, others):
        labels = [str(source) for source in sources]
        draft = (
            settings if isinstance(settings, drafts.RecipeDraft) else drafts.RecipeDraft(settings)
        )
        backend = backend or choosing.choose()
        choice = settling.settle(first, others, draft, labels=labels, backend=backend, show=show)
        made = choice.recipe if choice else draft.recipe
        merge: Callable[..., merging.MergeResult] = merging.merge
        if executor is not None:
            merge = _by_workers(first, made, executor)
        elif max_shard_size is not None or stores.is_address(output):
            merge = _by_shards(first, made, backend, output)
        result = merge(
            first,
            others,
            made,
            output,
            labels=labels,
            backend=backend,
            verify=verify,
            max_norm_ratio=max_norm_ratio,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            show=show,
        )
        return dataclasses.replace(result, choice=choice)


def merge_as_adapter(
    base: str | Path,
    sources: Sequence[str | Path],
    settings: recipe.MergeRecipe | drafts.RecipeDraft,
    folder: str | Path,
    rank: int,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    show: progress.Progress = progress.silent,
    **given: Any,
) -> merging.MergeResult:
    """Merge checkpoint files and write the change as one LoRA adapter of the base; see `lowering`.

    The merged weights are there for that time only, among the temporary files.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order that the sum takes.
        settings: the recipe, or a draft of one.
        folder: of the adapter.
        rank: of the adapter.
        threads: matrices at a time; all processors when `None`.
        overwrite: replace an adapter that exists.
        show: is told the bytes read, then the tensors.
        given: other arguments of `merge_files`.

    Raises:
        MergeError: see `merge_files`; or no matrix changed.
        CheckpointError: see `merge_files`; or the folder can't be written.
    """
    lowering.check_rank(rank)
    if stores.is_address(folder):
        raise errors.CheckpointError(
            f"{folder} is an address, and an adapter is written to a disk; name a folder"
        )
    lowering.check_folder(Path(folder), overwrite=overwrite)
    _check_apart([base, *sources], Path(folder))
    with scratch.folder() as here:
        output = here / "merged.safetensors"
        result = merge_files(base, sources, settings, output, show=show, **given)
        with checkpoints.Checkpoint.open(base) as first, checkpoints.Checkpoint.open(output) as one:
            made = lowering.write(
                first,
                one,
                Path(folder),
                rank,
                named=str(base),
                threads=threads or processes.processors(),
                overwrite=overwrite,
                show=show,
            )
    return dataclasses.replace(
        result, output=Path(folder), weights_digest=made.weights_digest, adapter=made
    )


def budget(
    base: str | Path,
    sources: Sequence[str | Path],
    draft: drafts.RecipeDraft,
    backend: backends.Backend,
    max_shard_size: int | None = None,
    show: progress.Progress = progress.silent,
) -> "budgets.Budget":
    """What a merge of checkpoint files would take; see `shards.budgets`. Nothing is written."""
    from mlflow_breadcrumbs.engine.shards import budgets

    with _opened(base, sources) as (first, others):
        labels = [str(source) for source in sources]
        choice = settling.settle(first, others, draft, labels=labels, backend=backend, show=show)
        job = merging.plan(first, others, choice.recipe if choice else draft.recipe, labels)
        return budgets.of(job, backend, max_shard_size=max_shard_size)


def plan_files(
    base: str | Path,
    sources: Sequence[str | Path],
    draft: drafts.RecipeDraft,
    output: str | Path,
    *,
    max_shard_size: int | None,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    threads: int | None = None,
    show: progress.Progress = progress.silent,
) -> "tuple[plans.ShardPlan, drafts.Choice | None]":
    """Plan a merge of checkpoint files shard by shard; see `plans.make`.

    Returns:
        The plan, and how the recipe came about where it was left open.

    Raises:
        MergeError: a file is given twice, or the checkpoints don't fit together.
        CheckpointError: a file can't be read.
    """
    from mlflow_breadcrumbs.engine.shards import plans

    with _opened(base, sources) as (first, others):
        labels = [str(source) for source in sources]
        backend = choosing.choose(threads=threads)
        choice = settling.settle(first, others, draft, labels=labels, backend=backend, show=show)
        made = plans.make(
            first,
            others,
            choice.recipe if choice else draft.recipe,
            output,
            labels=labels,
            max_shard_size=max_shard_size,
            max_norm_ratio=max_norm_ratio,
            threads=threads,
        )
    return made, choice


def _by_shards(
    base: checkpoints.Checkpoint,
    settings: recipe.MergeRecipe,
    backend: backends.Backend,
    output: str | Path,
) -> Callable[..., merging.MergeResult]:
    """What merges shard by shard, where that can be."""
    from mlflow_breadcrumbs.engine.shards import local, plans

    if plans.divisible(base, settings, backend):
        return local.merge
    if stores.is_address(output):
        raise errors.MergeError(
            f"the unit 'model' of a float64 base, or on the backend {backend.name}, is merged in "
            f"one go, which can't be written to {output}; write to a disk, or use the unit tensor"
        )
    return merging.merge


def _by_workers(
    base: checkpoints.Checkpoint, settings: recipe.MergeRecipe, executor: executors.Executor
) -> Callable[..., merging.MergeResult]:
    """What has an executor's workers merge shard by shard."""
    from mlflow_breadcrumbs.engine.shards import local, plans

    if not plans.divisible(base, settings):
        raise errors.MergeError(
            "the unit 'model' of a float64 base can't be merged shard by shard, so not by several "
            "workers; leave --executor out, or use the unit tensor"
        )
    return functools.partial(local.merge, executor=executor)


def _check_apart(paths: Sequence[str | Path], folder: Path) -> None:
    """Raise `CheckpointError` for an adapter that would lie among the files of an input."""
    for path in paths:
        if stores.is_address(path):
            continue
        own = Path(path) if Path(path).is_dir() else Path(path).parent
        if own.resolve() == folder.resolve():
            raise errors.CheckpointError(
                f"{folder} is the folder of {path}, which goes into the merge; an adapter needs a "
                "folder of its own. Name another (--output)"
            )


@contextlib.contextmanager
def _opened(
    base: str | Path, sources: Sequence[str | Path]
) -> Iterator[tuple[checkpoints.Checkpoint, list[checkpoints.Checkpoint]]]:
    """The base and the sources, which must be different files."""
    paths = [base, *sources]
    with contextlib.ExitStack() as stack:
        first, *others = adapters.open_all(stack, paths)
        _check_different(paths, [first, *others])
        yield first, others


def _check_different(paths: Sequence[str | Path], opened: Sequence[checkpoints.Checkpoint]) -> None:
    """Raise `MergeError` for a checkpoint that is there twice, however it was written."""
    seen: dict[object, str | Path] = {}
    for path, checkpoint in zip(paths, opened, strict=True):
        files = tuple(file.resolve() for file in checkpoint.files)
        location = checkpoint.location
        real = stores.normal(location) if stores.is_address(location) else files
        if real in seen:
            raise errors.MergeError(
                f"{path} is given twice (first as {seen[real]}); name a source once, with a "
                f"weight: {path}=2, and the base not among the sources"
            )
        seen[real] = path
