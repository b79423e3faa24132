"""Measures what a judgement lacks: version, champion and sources, on the same images.

What is on record of the same weights on the same images is not measured again.
"""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import caches, evaluating
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.promotion import facts, gates, gathering, policies
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
    task_file: str,
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    now: datetime.datetime | None,
) -> Plan:
    """What is to be evaluated, as the rules need it, and what is on record already.

    Args:
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
    listed = task_files.load(task_file)
    names = [task.name for task in listed]
    judged = tuple(gates.choose(rules, known) or known.tasks)
    asked = [name for name in names if not judged or name in judged]
    if not asked:
        raise errors.TaskError(
            f"{task_file} has none of the tasks that are judged ({', '.join(judged)}); it has "
            f"{', '.join(names)}"
        )
    kept = {} if now is None else _kept(resolved, rules, known, now)
    wanted, recorded = [], []
    for uri, theirs in _needed(resolved, rules, known, asked):
        lacking = []
        for name in theirs:
            origins = kept.get((uri, name), {})
            # Their digest takes reading the images, so it is asked for where it could help.
            images = tasks.find(listed, name).images(rules.evidence.split) if origins else None
            if images is not None and images.digest in origins:
                recorded.append(Recorded(uri, name, origins[images.digest]))
            else:
                lacking.append(name)
        if lacking:
            wanted.append(Wanted(uri, tuple(lacking)))
    return Plan(tuple(wanted), tuple(recorded))


def _needed(
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    asked: Sequence[str],
) -> Iterator[tuple[str, list[str]]]:
    """The version, then champion and sources where a rule needs them, each with its tasks."""
    yield resolved.uri, list(asked)
    live = known.champion
    if live is not None and rules.no_regression is not None:
        theirs = [name for name in asked if name in live.tasks or not live.tasks]
        if theirs and live.weights_digest not in (None, known.weights_digest):
            yield live.uri, theirs
    stated = contents.lineage_of(resolved)
    if rules.needs_normalized and isinstance(stated, statement.Statement):
        for source in stated.sources:
            if own := [name for name in asked if name in source.tasks]:
                yield source.uri, own


def _kept(
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    known: facts.Facts,
    now: datetime.datetime,
) -> dict[tuple[str, str], dict[str, str]]:
    """Where measurements are recorded that count: by version and task, by digest of the images.

    Of the version only the one counts that is judged, and only while it is recent.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    if rules.needs_normalized:
        stated = contents.lineage_of(resolved)
        sources = stated.sources if isinstance(stated, statement.Statement) else ()
        for (task, digest), entry in gathering.denominators(resolved, rules, known).items():
            for source in sources:
                if task in source.tasks:
                    found.setdefault((source.uri, task), {})[digest] = entry.origin
    if known.champion is not None:
        for row in known.champion.measurements:
            found.setdefault((known.champion.uri, row.task), {})[row.dataset_digest] = row.origin
    for task, counted in gates.choose(rules, known).items():
        found[resolved.uri, task] = {}
        if counted is not None and gates.is_recent(rules, counted, now):
            found[resolved.uri, task] = {counted.dataset_digest: counted.origin}
    return found


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
