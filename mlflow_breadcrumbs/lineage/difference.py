"""Two versions side by side: sources, recipe, metrics, and how far their weights are apart."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from mlflow_breadcrumbs.engine import checkpoints, layer_groups
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.registry import catalog, versions
from mlflow_breadcrumbs.support import progress

AVERAGES = {
    "average_accuracy": "accuracy",
    "average_normalized_accuracy": "normalized_accuracy",
}
"""Metrics that are the mean over the tasks of another."""


@dataclasses.dataclass(frozen=True)
class GroupDistance:
    """How far two versions' weights are apart in one group of layers."""

    group: str
    tensors: int
    different: int
    """Tensors whose bytes differ."""
    distance: float
    """‖other - one‖ over all elements of the group, in float64."""
    relative: float | None
    """The same divided by ‖one‖; `None` where that is zero."""
    largest: float
    """The largest change of one element."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and tables."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Difference:
    """What `diff` prints."""

    uris: tuple[str, str]
    sources: tuple[dict[str, Any], ...]
    """Every parent of either: `uri`, `role`, and per version its weight, `None` if it lacks it."""
    recipe: tuple[dict[str, Any], ...]
    """The fields of the recipes that differ: `field`, `one`, `other`."""
    metrics: tuple[dict[str, Any], ...]
    """Every metric but timings: `metric`, `one`, `other`, `change`. Where the tasks differ, those
    of the tasks that both have, and the averages over these."""
    groups: tuple[GroupDistance, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Tensors that only one has, or that have another shape, per version."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def diff(uri: str, other: str, show: progress.Progress = progress.silent) -> Difference:
    """Compare two versions, usually merged ones.

    Raises:
        RegistryError: One of them can't be found or read.
        CheckpointError: The weights of one can't be read.
        StatementError: The `lineage.json` of one is damaged.
        IntegrityError: The `lineage.json` of one was changed after it was registered.
    """
    resolved = (versions.resolve(uri), versions.resolve(other))
    with versions.workspace() as folder:
        one, two = (versions.open_version(version, folder) for version in resolved)
        stated = (_stated(one), _stated(two))
        groups, only = distances(one, two, show)
    return Difference(
        uris=(resolved[0].uri, resolved[1].uri),
        sources=_sources(resolved, stated),
        recipe=_fields(*(each.settings.every_field() if each else {} for each in stated)),
        metrics=_metrics(*(_comparable(versions.metrics_of(v.run_id)) for v in resolved)),
        groups=groups,
        only=only,
    )


def distances(
    one: versions.OpenedVersion,
    other: versions.OpenedVersion,
    show: progress.Progress = progress.silent,
) -> tuple[tuple[GroupDistance, ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    """The distance per group of layers, in the order of the names; and what can't be compared."""
    with (
        checkpoints.Checkpoint.open(one.weights) as left,
        checkpoints.Checkpoint.open(other.weights) as right,
    ):
        common = [
            name
            for name in left.names
            if name in right.names and left.info(name).shape == right.info(name).shape
        ]
        group_of = layer_groups.group(common)
        sums = {group: _Sum() for group in group_of.values()}
        with show("compare weights", total=len(common), unit="tensors") as advance:
            for name in common:
                sums[group_of[name]].add(left.tensor(name), right.tensor(name))
                left.release(name)
                right.release(name)
                advance(1)
        only = (
            tuple(name for name in left.names if name not in common),
            tuple(name for name in right.names if name not in common),
        )
    return tuple(total.distance(group) for group, total in sums.items()), only


class _Sum:
    """Adds up one group."""

    def __init__(self) -> None:
        self.tensors = self.different = 0
        self.change = self.norm = self.largest = 0.0

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        self.tensors += 1
        left, right = one.double().flatten(), other.double().flatten()
        self.norm += float(left @ left)
        if one.dtype == other.dtype and torch.equal(one, other):
            return
        self.different += 1
        change = right - left
        self.change += float(change @ change)
        if change.numel():
            self.largest = max(self.largest, float(change.abs().max()))

    def distance(self, name: str) -> GroupDistance:
        apart = self.change**0.5
        relative = apart / self.norm**0.5 if self.norm else None
        return GroupDistance(name, self.tensors, self.different, apart, relative, self.largest)


def _stated(version: versions.OpenedVersion) -> statement.Statement | None:
    """What its `lineage.json` says; `None` for a version that is no merge."""
    if not (version.folder / statement.FILE).is_file():
        return None
    return contents.read_statement(version.resolved)[1]


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
