"""The base, the sources and the merged weights, as a user's evaluator is given them."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow_breadcrumbs.engine import adapters, writing
from mlflow_breadcrumbs.evaluation import evaluator_files, examiners, grading, scorecard
from mlflow_breadcrumbs.flavor import own_heads, unregistered
from mlflow_breadcrumbs.pipeline import computing, inputs
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import progress


def measure(
    evaluator: evaluator_files.UserEvaluator,
    taken: inputs.Inputs,
    merged: Path,
    split: str,
    show: progress.Progress = progress.silent,
) -> scorecard.Scorecard:
    """The base, each task's own source, and the merged weights.

    Args:
        evaluator: what the user named.
        taken: the base and the sources.
        merged: the merged checkpoint.
        split: of the data.
        show: is told about the models.

    Raises:
        EvaluatorError: the evaluator fails, or what it says is no result.
        TaskError: no fraction of a source's value can be told.
    """
    grader = grading.Grader(evaluator, split, show)
    before = measure_before(grader, taken)
    with laid_out(taken, merged) as subject:
        return grading.card(before, grader.examine(subject, list(before)))


def measure_before(
    grader: grading.Grader, taken: inputs.Inputs, known: Mapping[str, int] | None = None
) -> dict[str, scorecard.TaskScore]:
    """The base and each task's own source: the one that has the task's name in its tag.

    Where none has it, or several, the best of them is the task's own. The base is measured with the
    head that the task's own source has, where that is not the base's.

    Args:
        grader: who measures.
        taken: the base and the sources.
        known: the positions of sources that were found to be a task's own before.
    """
    owners: dict[str, list[int]] = {}
    for number, source in enumerate(taken.sources):
        for task in source.resolved.tasks:
            owners.setdefault(task, []).append(number)
    alone = {task: numbers[0] for task, numbers in owners.items() if len(numbers) == 1}
    labels = [source.resolved.uri for source in taken.sources]
    alone |= {task: labels.index(head.source) for task, head in taken.own.items()}
    with versions.workspace() as space:
        base, *sources = (
            subject_of(version, digest)
            if not version.is_adapter
            else _adapted(taken, version, digest, space / f"adapted-{number}")
            for number, (version, digest) in enumerate(
                zip(taken.everything, taken.digests, strict=True)
            )
        )
        own = unregistered.by_task(taken.base, base.weights, taken.own, space / "examined")
        base = dataclasses.replace(base, own=own)
        sources = [
            _with_carried(version, source, space / f"carried-{number}")
            for number, (version, source) in enumerate(zip(taken.sources, sources, strict=True))
        ]
        return grading.measure_before(grader, base, sources, alone | dict(known or {}))


def subject_of(version: versions.OpenedVersion, digest: str | None) -> examiners.Examined:
    """A registered version as it is measured: in the folder where it lies."""
    return examiners.Examined(
        version.resolved.uri,
        version.weights,
        digest,
        folder=version.folder,
        uri=version.resolved.uri,
    )


def _with_carried(
    version: versions.OpenedVersion, source: examiners.Examined, folder: Path
) -> examiners.Examined:
    """A source with the heads that it carries, as a merge of sources with heads."""
    carried = {} if version.is_adapter else own_heads.read(version.folder)
    if not carried:
        return source
    own = unregistered.by_task(version, source.weights, carried, folder)
    return dataclasses.replace(source, own=own)


def _adapted(
    taken: inputs.Inputs, version: versions.OpenedVersion, digest: str, folder: Path
) -> examiners.Examined:
    """An adapter as the model that it makes of the base, whatever the base was called in training.

    The base that an adapter names may be elsewhere by now, or another; the merge's is the one that
    counts.
    """
    weights = folder.with_name(f"{folder.name}-weights") / computing.weights_name(taken)
    weights.parent.mkdir()
    with contextlib.ExitStack() as stack:
        _, made = adapters.open_all(stack, [taken.base.stored, version.stored])
        writing.write_all(weights, made)
    unregistered.lay_out(taken.base, weights, (), folder)
    heads = {t: head for t, head in taken.own.items() if head.source == version.resolved.uri}
    own = unregistered.by_task(taken.base, weights, heads, folder.with_name(f"{folder.name}-own"))
    return examiners.Examined(version.resolved.uri, weights, digest, folder=folder, own=own)


@contextlib.contextmanager
def laid_out(taken: inputs.Inputs, merged: Path) -> Iterator[examiners.Examined]:
    """Merged weights in a folder of their own, beside their checkpoint; removed at the end."""
    folder = merged.parent / "examined"
    try:
        unregistered.lay_out(taken.base, merged, taken.all_heads.values(), folder)
        own = unregistered.by_task(taken.base, merged, taken.own, folder.with_name("examined-own"))
        yield examiners.Examined("the merged model", merged, folder=folder, own=own)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
