"""How the records of two versions differ: sources, recipe, metrics; no weights are read."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import catalog, versions

AVERAGES = {
    "average_accuracy": "accuracy",
    "average_normalized_accuracy": "normalized_accuracy",
}
"""Metrics that are the mean over the tasks of another."""


@dataclasses.dataclass(frozen=True)
class Described:
    """Two versions side by side, as `difference.Difference` has them."""

    sources: tuple[dict[str, Any], ...]
    recipe: tuple[dict[str, Any], ...]
    metrics: tuple[dict[str, Any], ...]


def compare(
    resolved: Sequence[versions.ResolvedVersion],
    stated: Sequence[statement.Statement | None],
    metrics: Sequence[Mapping[str, float]],
) -> Described:
    """Hold the records of two versions side by side.

    Args:
        resolved: Both.
        stated: The `lineage.json` of each; `None` for one that is no merge.
        metrics: Of the run of each.
    """
    one, other = (each.settings.every_field() if each else {} for each in stated)
    return Described(
        sources=_sources(resolved, stated),
        recipe=_fields(one, other),
        metrics=_metrics(*map(_comparable, metrics)),
    )


def _sources(
    resolved: Sequence[versions.ResolvedVersion], stated: Sequence[statement.Statement | None]
) -> tuple[dict[str, Any], ...]:
    """The parents of either, each with its weight in both."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for side, version, each in zip(("one", "other"), resolved, stated, strict=True):
        for role, uri, weight in _parents(version, each):
            row = found.setdefault(
                (role, uri), {"uri": uri, "role": role, "one": None, "other": None}
            )
            row[side] = weight
    return tuple(found.values())


def _parents(
    version: versions.ResolvedVersion, stated: statement.Statement | None
) -> list[tuple[str, str, float]]:
    if stated is not None:
        return [
            (entry.role, entry.uri, 1.0 if entry.weight is None else entry.weight)
            for entry in stated.inputs
        ]
    entry = catalog.fetch(version.uri)
    return [(edge.role, edge.parent, 1.0) for edge in (entry.edges if entry else ())]


def _fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"field": field, "one": one.get(field), "other": other.get(field)}
        for field in sorted({*one, *other})
        if one.get(field) != other.get(field)
    )


def _comparable(metrics: Mapping[str, float]) -> dict[str, float]:
    """What tells versions apart: how long something took is of the machine and of the day."""
    timings = ("seconds", "_per_second")
    return {
        name: value
        for name, value in metrics.items()
        if not name.partition("/")[0].endswith(timings)
    }


def _of_tasks(metrics: Mapping[str, float], tasks: Collection[str]) -> dict[str, float]:
    """The metrics without those of other tasks; the averages over these tasks alone."""
    kept = {
        name: value
        for name, value in metrics.items()
        if _task_of(name) is None or _task_of(name) in tasks
    }
    for name in AVERAGES.keys() & kept.keys():
        found = [metrics.get(f"{AVERAGES[name]}/{task}") for task in tasks]
        known = [value for value in found if value is not None]
        del kept[name]
        if known and len(known) == len(found):
            kept[name] = math.fsum(known) / len(known)
    return kept


def _task_of(name: str) -> str | None:
    """The task that a metric is an accuracy of; `None` for every other metric."""
    kind, slash, task = name.partition("/")
    return task if slash and kind.endswith(("accuracy", "accuracy_low", "accuracy_high")) else None


def _tasks(metrics: Mapping[str, float]) -> set[str]:
    return {name.removeprefix("accuracy/") for name in metrics if name.startswith("accuracy/")}


def _metrics(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Metric by metric; where the tasks differ, of those that both versions have."""
    if _tasks(one) != _tasks(other):
        both = sorted(_tasks(one) & _tasks(other))
        one, other = _of_tasks(one, both), _of_tasks(other, both)
    return tuple(
        {
            "metric": name,
            "one": one.get(name),
            "other": other.get(name),
            "change": other[name] - one[name] if name in one and name in other else None,
        }
        for name in sorted({*one, *other})
    )
