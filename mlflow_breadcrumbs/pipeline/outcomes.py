"""What a merge came to, as commands print it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs.engine import drafts
from mlflow_breadcrumbs.evaluation import shortfalls
from mlflow_breadcrumbs.registry import records
from mlflow_breadcrumbs.support import scales


@dataclasses.dataclass(frozen=True)
class MergedVersion:
    """The registered result of a merge."""

    version: records.RegisteredVersion
    recipe_digest: str
    reused: bool
    """The version existed already; nothing was merged."""
    metrics: Mapping[str, float]
    choice: drafts.Choice | None = None
    """How the recipe came about, where it was not given."""
    notes: tuple[str, ...] = ()
    """What the sources or the merge have that a user should know; of a reused version, what became
    of the parts and the alias that were asked for."""
    alias: str | None = None
    """That points at it now, of the one that was asked for."""
    adapter: Mapping[str, Any] | None = None
    """What was kept of the change as an adapter, see `LoweredChange.to_dict`."""
    alignment: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """By source, what became of its tensors, where they are not quite the base's."""

    def rows(self) -> list[dict[str, Any]]:
        """The metrics as a table: one row per task, then the averages; empty without tasks.

        A task of another metric than the accuracy has the keys of `scales.VALUES` for it.
        """
        rows = [self._row(task, metric) for task, metric in self._measured()]
        if rows:
            kinds = (*scales.VALUES, "normalized_accuracy")
            averages = {
                kind: sum(row[kind] for row in rows) / len(rows)
                for kind in kinds
                if all(row.get(kind) is not None for row in rows)
            }
            rows.append({"task": "average"} | averages)
        return rows

    def _measured(self) -> list[tuple[str, str]]:
        """The tasks, each with its metric."""
        split = [(kind, task) for kind, _, task in (name.partition("/") for name in self.metrics)]
        return [
            (task, kind)
            for kind, task in split
            if kind == scales.ACCURACY.metric or f"zero_shot_{kind}/{task}" in self.metrics
        ]

    def _row(self, task: str, metric: str) -> dict[str, Any]:
        known = self.metrics
        row: dict[str, Any] = {"task": task}
        if metric != scales.ACCURACY.metric:
            row["metric"] = metric
            for kind, other in scales.VALUES.items():
                row[other] = known.get(f"{kind.replace('accuracy', metric)}/{task}")
        else:
            beside = ("accuracy_low", "accuracy_high", "chance_accuracy")
            row |= {kind: known.get(f"{kind}/{task}") for kind in (*scales.VALUES, *beside)}
        row["normalized_accuracy"] = known.get(f"normalized_accuracy/{task}")
        return row

    @property
    def warnings(self) -> tuple[str, ...]:
        """The tasks that it is of no use for, a sentence each, without the full stop."""
        return shortfalls.warnings(self.rows()[:-1])

    def to_dict(self) -> dict[str, Any]:
        """The contract of `merge --json`."""
        return {
            "name": self.version.name,
            "version": self.version.version,
            "uri": self.version.uri,
            "run_id": self.version.run_id,
            "recipe_digest": self.recipe_digest,
            "weights_digest": self.version.weights_digest,
            "reused": self.reused,
            "metrics": dict(self.metrics),
            **({"choice": self.choice.to_dict()} if self.choice else {}),
            **({"adapter": dict(self.adapter)} if self.adapter else {}),
            **({"alignment": dict(self.alignment)} if self.alignment else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }
