"""Two versions side by side: sources, recipe, metrics, and how far their weights are apart."""

import dataclasses
from typing import Any

import torch

from mlflow_breadcrumbs.engine import checkpoints, layer_groups
from mlflow_breadcrumbs.lineage import contents, described, statement
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import progress


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
    metrics = (versions.metrics_of(resolved[0].run_id), versions.metrics_of(resolved[1].run_id))
    records = described.compare(resolved, stated, metrics)
    return Difference(
        uris=(resolved[0].uri, resolved[1].uri),
        sources=records.sources,
        recipe=records.recipe,
        metrics=records.metrics,
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
