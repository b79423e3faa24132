"""Measures what a judgement lacks: version, champion and sources, on the same images.

What is on record of the same weights on the same images is not measured again.
"""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterator, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import (
    caches,
    evaluating,
    evaluator_files,
    graded_versions,
    grading,
)
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.promotion import choosing, facts, gathering, policies, witnesses
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
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means, in place of images."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One evaluation that a judgement lacks."""

    uri: str
    """The version, its champion, or a source."""
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.uri} on {', '.join(self.tasks) or 'all that the evaluator knows'}"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One measurement that need not be made: the same weights on the same images are on record."""

    uri: str
    """The version, its champion, or a source."""
    task: str
    origin: str
    """Where it is recorded: `run …` or `lineage.json`."""

    def __str__(self) -> str:
        return f"{self.uri} on {self.task}: {self.origin}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a judgement rests on, besides what it has."""

    wanted: tuple[Wanted, ...] = ()
    """To be evaluated: the version first, then champion and sources."""
    recorded: tuple[Recorded, ...] = ()
    """What is on record already, in the same order."""


def plan(
    how: MeasuringSettings,
    task_file: str | None,
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    now: datetime.datetime | None,
) -> Plan:
    """What is to be evaluated, as the rules need it, and what is on record already.

    Args:
        how: has the evaluator, in place of a task file; all of its tasks are measured.
        task_file: its path, or an artifact URI; of its tasks those that are judged.
        resolved: the version.
        rules: say whether the champion and the sources count, and how old evidence may be.
        known: what is known by now.
        now: with its time zone; `None` evaluates everything anew.

    Raises:
        TaskError: the file can't be read, or has none of the tasks that are judged.
        RegistryError: the tracking server does not answer.
        LedgerError: the ledger can't be read, or its chain does not hold.
    """
    if how.evaluator is not None:
        grader = grading.Grader(how.evaluator, rules.evidence.split)
        asked: list[str] | None = list(how.evaluator.tasks) or None
        basis: Callable[[str], facts.Basis | None] = functools.partial(_basis_of_data, grader)
    else:
        listed = task_files.load(str(task_file))
        asked = _judged(str(task_file), [task.name for task in listed], rules, known)
        basis = functools.partial(_basis_of_images, listed, rules)
    kept = {} if now is None else _kept(resolved, rules, known, now)
    wanted, recorded = [], []
    for uri, theirs in _needed(resolved, rules, known, asked):
        lacking = []
        for name in theirs:
            origins = kept.get((uri, name), {})
            # Its digest takes reading the images, so it is asked for where it could help.
            found = basis(name) if origins else None
            if found is not None and found in origins:
                recorded.append(Recorded(uri, name, origins[found]))
            else:
                lacking.append(name)
        if lacking or asked is None:
            wanted.append(Wanted(uri, tuple(lacking)))
    return Plan(tuple(wanted), tuple(recorded))


def _judged(
    task_file: str, names: Sequence[str], rules: policies.Policy, known: facts.Facts
) -> list[str]:
    """The tasks of a file that are judged."""
    judged = tuple(choosing.choose(rules, known) or known.tasks)
    asked = [name for name in names if not judged or name in judged]
    if not asked:
        raise errors.TaskError(
            f"{task_file} has none of the tasks that are judged ({', '.join(judged)}); it has "
            f"{', '.join(names)}"
        )
    return asked


def _basis_of_images(
    listed: Sequence[tasks.Task], rules: policies.Policy, name: str
) -> facts.Basis | None:
    """What a measurement on a task's images rests on."""
    return facts.Basis(tasks.find(listed, name).images(rules.evidence.split).digest)


def _basis_of_data(grader: grading.Grader, name: str) -> facts.Basis | None:
    """What a measurement by an evaluator rests on; `None` where it names its metrics itself."""
    digests, scale = grader.basis(name), grader.scale(name)
    return None if digests is None or scale is None else facts.Basis(*digests, scale)


def _needed(
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    asked: Sequence[str] | None,
) -> Iterator[tuple[str, list[str]]]:
    """The version, then champion and sources where a rule needs them, each with its tasks.

    None are named where the evaluator names them itself: then it measures all that it knows.
    """
    yield resolved.uri, list(asked or ())
    live = known.champion
    if live is not None and rules.needs_champion:
        theirs = [name for name in asked or () if name in live.tasks or not live.tasks]
        if rules.metrics and asked is not None:
            theirs = list(asked)
        there = bool(theirs) or asked is None
        if there and live.weights_digest not in (None, known.weights_digest):
            yield live.uri, theirs
    stated = contents.lineage_of(resolved)
    if rules.needs_normalized and isinstance(stated, statement.Statement):
        for source in stated.sources:
            tasks_of = witnesses.tasks_of(stated, source)
            own = [name for name in asked or () if name in tasks_of]
            if own or (asked is None and tasks_of):
                yield source.uri, own


def _kept(
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    now: datetime.datetime,
) -> dict[tuple[str, str], dict[facts.Basis, str]]:
    """Where measurements are recorded that count: by version and task, by what they rest on.

    Of the version only the one counts that is judged, and only while it is recent.
    """
    found: dict[tuple[str, str], dict[facts.Basis, str]] = {}
    if rules.needs_normalized:
        stated = contents.lineage_of(resolved)
        sources = stated.sources if isinstance(stated, statement.Statement) else ()
        for (task, basis), entry in gathering.denominators(resolved, rules, known).items():
            for source in sources:
                if isinstance(stated, statement.Statement) and (
                    task in witnesses.tasks_of(stated, source)
                ):
                    found.setdefault((source.uri, task), {})[basis] = entry.origin
    if known.champion is not None:
        for row in known.champion.measurements:
            found.setdefault((known.champion.uri, row.task), {})[row.basis] = row.origin
    for task, counted in choosing.choose(rules, known).items():
        found[resolved.uri, task] = {}
        if counted is not None and choosing.is_recent(rules, counted, now):
            found[resolved.uri, task] = {counted.basis: counted.origin}
    return found


def measure(
    how: MeasuringSettings,
    task_file: str | None,
    wanted: Sequence[Wanted],
    rules: policies.Policy,
    show: progress.Progress,
) -> tuple[str, ...]:
    """Evaluate what `plan` names.

    Args:
        how: device and batches, or the evaluator.
        task_file: its path, or an artifact URI; of no matter where there is an evaluator.
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
    if how.evaluator is not None:
        split = rules.evidence.split
        return tuple(
            graded_versions.grade_version(
                each.uri, how.evaluator, only=each.tasks, split=split, nested=True, show=show
            ).run_id
            for each in wanted
        )
    return tuple(
        evaluating.evaluate_version(
            each.uri,
            str(task_file),
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
