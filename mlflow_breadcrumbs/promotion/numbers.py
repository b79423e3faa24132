"""The numbers that a policy's `metrics` may name, out of the measurements that count.

A number that somebody logged to a run is none of them: whoever may write to MLflow may have typed
it. What an evaluator said was recorded by this package, with the digests of weights and data.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from mlflow_breadcrumbs.promotion import facts
from mlflow_breadcrumbs.support import intervals


@dataclasses.dataclass(frozen=True)
class Number:
    """One number with where it comes from."""

    value: float
    origin: str
    """`run …` or `lineage.json`; of a mean, of each of its tasks."""
    bases: tuple[facts.Basis, ...]
    """What the same number of another version must rest on, to be compared with it."""
    greater_is_better: bool


def of(measurements: Sequence[facts.Measurement]) -> Mapping[str, Number]:
    """Every number by its name.

    `METRIC/TASK`; `METRIC_low/TASK` and `METRIC_high/TASK`, the ends of its 95% interval, where it
    has one; `normalized_accuracy/TASK`, where the source is known, and
    `average_normalized_accuracy`, where all are; `average_METRIC`; and `METRIC` alone, where one
    task has it.

    Args:
        measurements: that count: of each task and metric the newest.
    """
    found: dict[str, Number] = {}
    by_metric: dict[str, list[facts.Measurement]] = {}
    for entry in measurements:
        metric, task = entry.scale.metric, entry.task
        by_metric.setdefault(metric, []).append(entry)
        found[f"{metric}/{task}"] = _number(entry, entry.accuracy)
        if entry.counts is not None:
            low, high = intervals.wilson(*entry.counts)
            found[f"{metric}_low/{task}"] = _number(entry, low)
            found[f"{metric}_high/{task}"] = _number(entry, high)
        if entry.normalized is not None:
            kept = dataclasses.replace(_number(entry, entry.normalized), greater_is_better=True)
            found[f"normalized_accuracy/{task}"] = kept
    shares = [entry.normalized for entry in measurements if entry.normalized is not None]
    if shares and len(shares) == len(measurements):
        found["average_normalized_accuracy"] = dataclasses.replace(
            _mean(measurements), value=sum(shares) / len(shares), greater_is_better=True
        )
    for metric, entries in by_metric.items():
        if len({entry.scale for entry in entries}) > 1:
            continue  # of two meanings there is no mean
        found[f"average_{metric}"] = _mean(entries)
        if len(entries) == 1:
            found[metric] = found[f"average_{metric}"]
    return found


def _number(entry: facts.Measurement, value: float) -> Number:
    return Number(value, entry.origin, (entry.basis,), entry.scale.greater_is_better)


def _mean(entries: Sequence[facts.Measurement]) -> Number:
    return Number(
        sum(entry.accuracy for entry in entries) / len(entries),
        ", ".join(dict.fromkeys(entry.origin for entry in entries)),
        tuple(entry.basis for entry in sorted(entries, key=lambda entry: entry.task)),
        all(entry.scale.greater_is_better for entry in entries),
    )
