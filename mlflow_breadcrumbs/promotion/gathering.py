"""The facts about a version, gathered from MLflow and the ledger.

An accuracy counts for the weights whose digest is recorded beside it. It comes from a run of
`evaluate`, found by its tag, or from the version's own `lineage.json`. It is set aside, with the
reason, where another record contradicts it: the run's metric, the ledger's event, the digest of
`lineage.json`.
"""

import dataclasses
import datetime
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Run

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.audit import verify
from mlflow_breadcrumbs.evaluation import accuracy_records
from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.promotion import approvals, facts, policies
from mlflow_breadcrumbs.registry import failures, tag_keys, uris, versions

RUNS = 100
"""How many runs about the same weights are looked at, the newest first."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """All measurements of one version's weights, and what was set aside."""

    found: tuple[facts.Measurement, ...]
    set_aside: tuple[str, ...]


def gather(
    resolved: versions.ResolvedVersion, rules: policies.Policy, champion: str | None
) -> facts.Facts:
    """What a policy asks about a version; what no rule asks for is left out.

    Args:
        resolved: the version.
        rules: the policy.
        champion: number of the version that has the alias.

    Raises:
        RegistryError: the version can't be read, or the tracking server does not answer.
        CheckpointError: its weights are no checkpoint any more.
        LedgerError: the ledger can't be read.
    """
    digest = contents.digest_of(resolved)
    stated = contents.lineage_of(resolved)
    measured = measurements(resolved, digest, stated) if rules.looks_at_accuracy else _NOTHING
    if rules.needs_normalized and isinstance(stated, statement.Statement):
        measured = _with_denominators(measured, stated)
    runs = _runs_about(digest) if rules.metrics else []
    return facts.Facts(
        uri=resolved.uri,
        weights_digest=digest,
        recorded_digest=resolved.recorded_digest,
        tasks=_tasks(resolved, stated),
        measurements=measured.found,
        set_aside=measured.set_aside,
        champion=_champion(resolved, rules, champion),
        verification=_verification(resolved.uri) if rules.verified else None,
        licences=tuple(_licences(resolved, stated)) if rules.licences else (),
        approvals=approvals.standing(resolved.name or "", digest) if rules.approvals else (),
        makers=approvals.makers(resolved, digest) if rules.approvals else (),
        metrics=_metrics(resolved, runs) if rules.metrics else {},
    )


def _tasks(
    resolved: versions.ResolvedVersion, stated: statement.Statement | errors.BreadcrumbsError
) -> tuple[str, ...]:
    """The tasks of a version: those of its tag, and of its lineage, which can't be edited away."""
    merged = stated.sources if isinstance(stated, statement.Statement) else ()
    listed = (*resolved.tasks, *(task for source in merged for task in source.tasks))
    return tuple(dict.fromkeys(listed))


def measurements(
    resolved: versions.ResolvedVersion,
    weights_digest: str,
    stated: statement.Statement | errors.BreadcrumbsError,
) -> Measured:
    """Every measurement of these weights."""
    known = list(_kept_events(resolved))
    found: list[facts.Measurement] = []
    aside: list[str] = []
    if isinstance(stated, statement.Statement):
        if stated.weights_digest == weights_digest:
            merged = next((event for event in known if event.kind == "merge"), None)
            _add(_rows_of_lineage(stated), {}, merged, found, aside)
        else:
            aside.append(f"lineage.json is about the weights {stated.weights_digest}")
    elif resolved.tags.get(tag_keys.LINEAGE_DIGEST):
        aside.append(f"lineage.json can't be relied on: {stated}")
    by_run = {event.run_id: event for event in known if event.kind == "evaluate"}
    for run in _runs_about(weights_digest):
        if run.data.tags.get(tag_keys.KIND) == "evaluate":
            rows = _rows_of_run(run, weights_digest)
            event = by_run.get(run.info.run_id)
            _add(rows, run.data.metrics, event, found, aside)
    return Measured(tuple(found), tuple(aside))


_NOTHING = Measured((), ())


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
        key = f"accuracy/{row.task}"
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
    for row in stated.evaluation:
        yield facts.Measurement(
            task=str(row["task"]),
            split=str(row.get("split", "test")),
            dataset_digest=str(row["dataset_digest"]),
            correct=round(row["accuracy"] * row["images"]),
            total=int(row["images"]),
            measured=datetime.datetime.fromisoformat(stated.finished),
            origin="lineage.json",
            finetuned_accuracy=row.get("finetuned_accuracy"),
        )


def _rows_of_run(run: Run, weights_digest: str) -> Iterator[facts.Measurement | str]:
    """What a run of `evaluate` measured."""
    origin = f"run {run.info.run_id}"
    try:
        kept = accuracy_records.read_evaluation(run.info.run_id)
        if kept is None:
            return
        if kept["weights_digest"] != weights_digest:
            yield f"{origin} measured other weights, {kept['weights_digest']}"
            return
        for row in kept["tasks"]:
            yield facts.Measurement(
                task=str(row["task"]),
                split=str(kept["split"]),
                dataset_digest=str(row["dataset_digest"]),
                correct=int(row["correct"]),
                total=int(row["total"]),
                measured=_moment(run.info.start_time),
                origin=origin,
            )
    except errors.UnreachableError:
        raise
    except (errors.RegistryError, KeyError, TypeError, ValueError) as error:
        yield f"{origin}: its {accuracy_records.EVALUATION} can't be read: {error}"


def _with_denominators(measured: Measured, stated: statement.Statement) -> Measured:
    """The measurements with the accuracies of the sources on the same images, where known."""
    if all(entry.finetuned_accuracy is not None for entry in measured.found):
        return measured
    theirs: dict[tuple[str, str], facts.Measurement] = {}
    for source in stated.sources:
        for run in reversed(_runs_about(source.weights_digest)):  # the newest last, to win
            for row in _rows_of_run(run, source.weights_digest):
                if isinstance(row, facts.Measurement) and row.task in source.tasks:
                    theirs[row.task, row.dataset_digest] = row
    found = []
    for entry in measured.found:
        known = theirs.get((entry.task, entry.dataset_digest))
        if entry.finetuned_accuracy is None and known is not None:
            entry = dataclasses.replace(entry, finetuned_accuracy=known.accuracy)
        found.append(entry)
    return dataclasses.replace(measured, found=tuple(found))


def _champion(
    resolved: versions.ResolvedVersion, rules: policies.Policy, number: str | None
) -> facts.Champion | None:
    """The version that has the alias, as far as the rules compare with it."""
    if number is None:
        return None
    uri = uris.of_version(str(resolved.name), number)
    try:
        live = versions.resolve(uri)
    except errors.UnreachableError:
        raise
    except errors.RegistryError as error:
        _logger.warning("%s has the alias, and can't be read: %s", uri, error)
        return facts.Champion(uri, None, ())
    digest = live.recorded_digest
    measured = _NOTHING
    if digest is not None and rules.no_regression is not None:
        measured = measurements(live, digest, contents.lineage_of(live))
    metrics: Mapping[str, facts.Metric] = {}
    if digest is not None and any(asked.compares for asked in rules.metrics.values()):
        metrics = _metrics(live, _runs_about(digest))
    return facts.Champion(uri, digest, live.tasks, measured.found, metrics)


def _verification(uri: str) -> facts.Verification:
    report = verify.verify(uri)
    return facts.Verification(
        failures=tuple(f"{entry.name}: {entry.detail}" for entry in report.failures),
        right=report.counts["ok"],
        unknown=report.counts["unknown"],
    )


def _licences(
    resolved: versions.ResolvedVersion, stated: statement.Statement | errors.BreadcrumbsError
) -> Iterator[facts.Licence]:
    """The licences of the base and of each source; of the version itself where none is known.

    A source that is a merge and has no licence of its own counts by what it was made from. Where a
    tag changed since the merge, both licences are given.
    """
    if not isinstance(stated, statement.Statement):
        yield facts.Licence(resolved.uri, "version", versions.licence_of(resolved))
        return
    for entry in stated.inputs:
        now: str | None = None
        inner: statement.Statement | errors.BreadcrumbsError | None = None
        try:
            source = versions.resolve(entry.uri)
            now = versions.licence_of(source)
            if now is None and entry.licence is None:
                inner = contents.lineage_of(source)
        except errors.UnreachableError:
            raise
        except errors.RegistryError:
            pass  # deleted since: what the lineage recorded stands
        if isinstance(inner, statement.Statement):
            yield from _licences(source, inner)
            continue
        names = {name: None for name in (entry.licence, now) if name is not None}
        for name in names or (None,):
            yield facts.Licence(entry.uri, entry.role, name)


def _metrics(resolved: versions.ResolvedVersion, runs: Iterable[Run]) -> dict[str, facts.Metric]:
    """The metrics of the run that made a version and of the runs about its weights, newest last."""
    made = contents.run_of(resolved)
    everything = [*([made] if made else []), *reversed(list(runs))]
    return {
        name: facts.Metric(value, run.info.run_id)
        for run in everything
        for name, value in run.data.metrics.items()
    }


def _runs_about(weights_digest: str) -> list[Run]:
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


def _kept_events(resolved: versions.ResolvedVersion) -> Iterator[events.Event]:
    """The ledger's events about a version that carry metrics."""
    for event in ledger.history(resolved.name or ""):
        if event.subject == resolved.uri and event.phase == events.DONE:
            yield event


def _moment(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
