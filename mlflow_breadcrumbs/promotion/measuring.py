"""Measures what a judgement lacks: version, champion and sources, on the same images."""

import dataclasses
from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import caches, evaluating
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.promotion import facts, gates, policies
from mlflow_breadcrumbs.registry import task_files, versions
from mlflow_breadcrumbs.support import defaults, progress


@dataclasses.dataclass(frozen=True)
class MeasuringSettings:
    """How to measure."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    batch_size: int = defaults.BATCH_SIZE
    """Images at a time."""
    cache: bool = True
    """Take accuracies that were measured before on the same images."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One evaluation that a judgement lacks."""

    uri: str
    """The version, its champion, or a source."""
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.uri} on {', '.join(self.tasks)}"


def plan(
    task_file: str, resolved: versions.ResolvedVersion, rules: policies.Policy, known: facts.Facts
) -> tuple[Wanted, ...]:
    """What is to be evaluated: the version first, then champion and sources, as the rules need it.

    Args:
        task_file: its path, or an artifact URI; of its tasks those that are judged.
        resolved: the version.
        rules: say whether the champion and the sources count.
        known: what is known by now.

    Raises:
        TaskError: the file can't be read, or has none of the tasks that are judged.
    """
    listed = [task.name for task in task_files.load(task_file)]
    judged = tuple(gates.choose(rules, known) or known.tasks)
    wanted = [name for name in listed if not judged or name in judged]
    if not wanted:
        raise errors.TaskError(
            f"{task_file} has none of the tasks that are judged ({', '.join(judged)}); it has "
            f"{', '.join(listed)}"
        )
    found = [Wanted(resolved.uri, tuple(wanted))]
    live = known.champion
    if live is not None and rules.no_regression is not None:
        theirs = [name for name in wanted if name in live.tasks or not live.tasks]
        if theirs and live.weights_digest not in (None, known.weights_digest):
            found.append(Wanted(live.uri, tuple(theirs)))
    stated = contents.lineage_of(resolved)
    if rules.needs_normalized and isinstance(stated, statement.Statement):
        for source in stated.sources:
            if own := [name for name in wanted if name in source.tasks]:
                found.append(Wanted(source.uri, tuple(own)))
    return tuple(found)


def measure(
    how: MeasuringSettings,
    task_file: str,
    wanted: Sequence[Wanted],
    rules: policies.Policy,
    show: progress.Progress,
) -> tuple[str, ...]:
    """Evaluate what `plan` names.

    Args:
        how: device and batches.
        task_file: its path, or an artifact URI.
        wanted: which versions, on which of its tasks.
        rules: say which split.
        show: is told about the images.

    Returns:
        The runs that hold the measurements, in that order.

    Raises:
        TaskError: the images are unusable.
        RegistryError: a version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        DeviceError: the device is absent, or not even one image fits into its memory.
    """
    return tuple(
        evaluating.evaluate_version(
            each.uri,
            task_file,
            only=each.tasks,
            split=rules.evidence.split,
            device=how.device,
            batch_size=how.batch_size,
            cache=caches.default() if how.cache else None,
            nested=True,
            show=show,
        ).run_id
        for each in wanted
    )
