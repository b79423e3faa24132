"""Files without MLflow: what `merge-files` does, and where commands write their results."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, drafts, merging, recipe, settling
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.support import defaults, progress


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
    overwrite: bool = False,
    show: progress.Progress = progress.silent,
) -> merging.MergeResult:
    """Merge checkpoint files; see `merging.merge`. A draft is settled by the weights first.

    Raises:
        MergeError: a file is given twice, or the checkpoints don't fit together.
        CheckpointError: a file can't be read, or the output can't be written.
    """
    _check_different([Path(base), *map(Path, sources)])
    with contextlib.ExitStack() as stack:
        first, *others = (
            stack.enter_context(checkpoints.Checkpoint.open(path)) for path in (base, *sources)
        )
        labels = [str(source) for source in sources]
        draft = (
            settings if isinstance(settings, drafts.RecipeDraft) else drafts.RecipeDraft(settings)
        )
        backend = backend or choosing.choose()
        choice = settling.settle(first, others, draft, labels=labels, backend=backend, show=show)
        result = merging.merge(
            first,
            others,
            choice.recipe if choice else draft.recipe,
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


def _check_different(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        real = path.resolve()
        if real in seen:
            raise errors.MergeError(
                f"{path} is given twice (first as {seen[real]}); name a source once, with a "
                f"weight: {path}=2, and the base not among the sources"
            )
        seen[real] = path
