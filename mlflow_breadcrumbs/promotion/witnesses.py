"""The measurements of some weights, and whether the records of them agree.

An accuracy counts for the weights whose digest is recorded beside it. It comes from a run of
`evaluate`, found by its tag, or from the version's own `lineage.json`. It is set aside, with the
reason, where another record contradicts it: the run's metric, the ledger's event, the digest of the
file. Tags and files of a run are what anybody who may write to MLflow says, so that a policy can
demand that the ledger has the event of the very job, with the digest of the file that it wrote.
"""

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Run

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import accuracy_records
from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.promotion import facts
from mlflow_breadcrumbs.registry import failures, run_files, tag_keys, versions
from mlflow_breadcrumbs.support import canonical, scales

RUNS = 100
"""How many runs about the same weights are looked at, the newest first."""


@dataclasses.dataclass(frozen=True)
class Books:
    """What the ledger has about measurements."""

    history: Sequence[events.Event]
    """Of `ledger.proven`, with the digests of all weights whose measurements are asked for."""
    required: bool
    """Whether a measurement that the ledger has no event of is set aside."""

    def evaluation(self, run_id: str) -> events.Event | None:
        """The event of a run of `evaluate` that has ended."""
        return next((e for e in self._done("evaluate") if e.run_id == run_id), None)

    def merge(self, uri: str, lineage_digest: str) -> events.Event | None:
        """The event of the merge that made a version, rather the one with this lineage."""
        found = [e for e in self._done("merge") if e.subject == uri]
        same = [e for e in found if e.details.get(accuracy_records.LINEAGE) == lineage_digest]
        return next(iter(same or found), None)

    def _done(self, kind: str) -> Iterator[events.Event]:
        return (e for e in self.history if (e.kind, e.phase) == (kind, events.DONE))

    def fault(
        self, origin: str, file: str, event: events.Event | None, key: str, found: str
    ) -> str | None:
        """Why the ledger does not vouch for a file of measurements; `None` if it does.

        Args:
            origin: of the measurements, for the message.
            file: its name.
            event: of the job that wrote it.
            key: under which the event has the file's digest.
            found: the file's digest as it is now.
        """
        recorded = event.details.get(key) if event else None
        if event and recorded not in (None, found):
            return (
                f"the {file} of {origin} is {found}, and was {recorded} when event "
                f"{event.sequence} was written"
            )
        if not self.required or (event and recorded is not None):
            return None
        if event is None:
            return f"the ledger has no event of {origin}, so that its {file} may be anybody's"
        return f"event {event.sequence} of {origin} has no digest of its {file}; evaluate again"


@dataclasses.dataclass(frozen=True)
class Measured:
    """All measurements of some weights, and what was set aside."""

    found: tuple[facts.Measurement, ...] = ()
    set_aside: tuple[str, ...] = ()


def measurements(
    resolved: versions.ResolvedVersion,
    weights_digest: str,
    stated: statement.Statement | errors.BreadcrumbsError,
    books: Books,
) -> Measured:
    """Every measurement of a version's weights."""
    found: list[facts.Measurement] = []
    aside: list[str] = []
    if isinstance(stated, statement.Statement):
        if stated.weights_digest == weights_digest:
            digest = canonical.digest(stated.content)
            event = books.merge(resolved.uri, digest)
            key = accuracy_records.LINEAGE
            fault = books.fault(f"the merge of {resolved.uri}", statement.FILE, event, key, digest)
            if fault is None:
                _add(_rows_of_lineage(stated), {}, event, found, aside)
            else:
                aside.append(fault)
        else:
            aside.append(f"lineage.json is about the weights {stated.weights_digest}")
    elif resolved.tags.get(tag_keys.LINEAGE_DIGEST):
        aside.append(f"lineage.json can't be relied on: {stated}")
    by_runs = measured_by_runs(weights_digest, books)
    return Measured((*found, *by_runs.found), (*aside, *by_runs.set_aside))


def measured_by_runs(weights_digest: str, books: Books) -> Measured:
    """What the runs of `evaluate` measured of some weights, the newest first."""
    found: list[facts.Measurement] = []
    aside: list[str] = []
    for run in runs_about(weights_digest):
        if run.data.tags.get(tag_keys.KIND) == "evaluate":
            event = books.evaluation(run.info.run_id)
            _add(
                _rows_of_run(run, weights_digest, event, books),
                run.data.metrics,
                event,
                found,
                aside,
            )
    return Measured(tuple(found), tuple(aside))


@dataclasses.dataclass(frozen=True)
class Denominator:
    """What a source got right of its own task, which the accuracy of a merge is divided by."""

    accuracy: float
    """Fraction of the images, 0…1; of another metric, its value."""
    origin: str
    """Where it is recorded: `run …` or `lineage.json`."""


def denominators(
    measured: Measured, stated: statement.Statement, books: Books
) -> tuple[dict[tuple[str, facts.Basis], Denominator], tuple[str, ...]]:
    """The accuracies of the sources on their tasks, and what was set aside.

    They were measured by runs of `evaluate`, or by the merge beside its own result.

    Args:
        measured: of the merged weights.
        stated: the lineage, which names the sources.
        books: what the ledger has.

    Returns:
        By the task and the basis of its measurement; and the reasons.
    """
    theirs = {
        (row.task, row.basis): Denominator(row.finetuned_accuracy, row.origin)
        for row in measured.found
        if row.finetuned_accuracy is not None
    }
    aside: list[str] = []
    for source in stated.sources:
        own = measured_by_runs(source.weights_digest, books)
        aside += own.set_aside
        for row in reversed(own.found):  # the newest last, to win
            if row.task in tasks_of(stated, source):
                theirs[row.task, row.basis] = Denominator(row.accuracy, row.origin)
    return theirs, tuple(aside)


def tasks_of(stated: statement.Statement, source: statement.Input) -> tuple[str, ...]:
    """The tasks that a source is for: by its tag, or because it was the best of all at them."""
    best = [str(row["task"]) for row in stated.evaluation if row.get("source") == source.uri]
    return tuple(dict.fromkeys((*source.tasks, *best)))


def with_denominators(measured: Measured, stated: statement.Statement, books: Books) -> Measured:
    """The measurements with the accuracies of the sources on the same images, where known."""
    if all(entry.finetuned_accuracy is not None for entry in measured.found):
        return measured
    theirs, aside = denominators(measured, stated, books)
    found = []
    for entry in measured.found:
        known = theirs.get((entry.task, entry.basis))
        if entry.finetuned_accuracy is None and known is not None:
            entry = dataclasses.replace(entry, finetuned_accuracy=known.accuracy)
        found.append(entry)
    return Measured(tuple(found), (*measured.set_aside, *aside))


def runs_about(weights_digest: str) -> list[Run]:
    """The finished runs, in all experiments, that say by a tag which weights they are about."""
    with failures.explained("cannot search for evaluations"):
        found: list[Run] = mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.`{tag_keys.WEIGHTS_DIGEST}` = '{weights_digest}' "
            "and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=RUNS,
            output_format="list",
        )
    return found


def _add(
    rows: Iterable[facts.Measurement | str],
    metrics: Mapping[str, float],
    event: events.Event | None,
    found: list[facts.Measurement],
    aside: list[str],
) -> None:
    """Take measurements that no other record contradicts.

    Args:
        rows: what the record says, or why it says nothing.
        metrics: of the run that holds the record.
        event: of the ledger, about the same measurement.
        found: is added to.
        aside: is added to.
    """
    said = event.details.get("metrics", {}) if event else {}
    for row in rows:
        if isinstance(row, str):
            aside.append(row)
            continue
        key = f"{row.scale.metric}/{row.task}"
        number = f"event {event.sequence}" if event else ""
        others = [(f"{row.origin}'s metric", metrics, bool(metrics)), (number, said, bool(said))]
        for what, values, there in others:
            if there and not _same(values.get(key), row.accuracy):
                aside.append(
                    f"{row.origin} says that {key} is {row.accuracy:.4f}, but {what} says "
                    f"{values.get(key, 'nothing')}"
                )
                break
        else:
            found.append(row)


def _same(value: Any, accuracy: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, accuracy, abs_tol=1e-9)


def _rows_of_lineage(stated: statement.Statement) -> Iterator[facts.Measurement | str]:
    """What the merge measured of its own result."""
    try:
        for row in stated.evaluation:
            yield _measurement(
                row,
                split=str(row.get("split", "test")),
                measured=datetime.datetime.fromisoformat(stated.finished),
                origin="lineage.json",
            )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        yield f"lineage.json: its measurements can't be read: {error!r}"


def _rows_of_run(
    run: Run, weights_digest: str, event: events.Event | None, books: Books
) -> Iterator[facts.Measurement | str]:
    """What a run of `evaluate` measured."""
    origin, file = f"run {run.info.run_id}", accuracy_records.EVALUATION
    try:
        content = run_files.read_bytes(run.info.run_id, file)
        if content is None:
            return
        kept = json.loads(content)
        if kept["weights_digest"] != weights_digest:
            yield f"{origin} measured other weights, {kept['weights_digest']}"
            return
        rows = [
            _measurement(
                row,
                split=str(kept["split"]),
                measured=_moment(run.info.start_time),
                origin=origin,
            )
            for row in kept["tasks"]
        ]
        digest = canonical.sha256(content)
        fault = books.fault(origin, file, event, accuracy_records.FILE_DIGEST, digest)
        yield from rows if fault is None else [fault]
    except errors.UnreachableError:
        raise
    except (errors.RegistryError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        yield f"{origin}: its {file} can't be read: {error}"
    except RecursionError:
        yield f"{origin}: its {file} can't be read: it is nested too deep"


def _measurement(
    row: Mapping[str, Any], *, split: str, measured: datetime.datetime, origin: str
) -> facts.Measurement:
    """What one row of a record says; `LookupError`, `TypeError` or `ValueError` where it can't be.

    A merge's row has `images` or `examples`, a run's has `total` and `correct`.
    """
    scale = scales.of_row(row)
    key, source = ("accuracy", "finetuned_accuracy")
    if not scale.is_accuracy:
        key, source = scales.VALUES[key], scales.VALUES[source]
    value, total = row[key], row.get("total", row.get("images", row.get("examples")))
    correct = row.get("correct")
    if correct is None and total is not None and (f"{key}_low" in row or "evaluator" not in row):
        correct = round(value * total)
    if correct is None and "evaluator" not in row:
        raise LookupError(f"{row['task']} has no count of images")
    return facts.Measurement(
        task=str(row["task"]),
        split=split,
        dataset_digest=str(row["dataset_digest"]),
        correct=None if correct is None else int(correct),
        total=None if total is None else int(total),
        measured=measured,
        origin=origin,
        finetuned_accuracy=row.get(source),
        value=float(value) if correct is None else None,
        scale=scale,
        evaluator=str(row.get("evaluator_digest", "")),
    )


def _moment(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
