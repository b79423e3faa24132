"""What the measurements come to: figures with their intervals, and the rows that charts draw."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from study import choices, descriptions, flow, measuring, paired, plan

TOLD = ("relative_norm", "cosine", "sign_conflict")
"""What `compare` says of a source, of what the page shows."""


class Summary:
    """What was measured with the seeds that are complete.

    Args:
        folder: Of a setting's results.
        seeds: The seeds that were asked for.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.results = measuring.Results(folder / measuring.FILE)
        self.tasks = descriptions.read(folder / descriptions.TASKS)
        self.geometry = descriptions.read(folder / descriptions.GEOMETRY)
        names = tuple(name for name, about in self.tasks.items() if about["fits"])
        # A seed that was begun and has not caught up would empty every table.
        for count in range(len(seeds), 0, -1):
            self.evidence = choices.Evidence(self.results, names, tuple(seeds[:count]))
            self.candidates, self.chosen = flow.chosen(self.evidence)
            if self.chosen.largest:
                break

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, without the misfit."""
        return self.evidence.names

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that count."""
        return self.evidence.seeds

    def sizes(self) -> list[tuple[int, list[plan.Group]]]:
        """The groups of tasks by T."""
        groups = (list(plan.thirds(self.names)), list(plan.pairs(self.names)), [self.names])
        return [(len(own[0]), own) for own in groups]

    def measured(
        self, method: str, settings: recipe.MergeRecipe, group: plan.Group, split: str = "test"
    ) -> list[measuring.Measured] | None:
        """A recipe's measurements on a group, by seed; none where one is missing."""
        settings = plan.at(settings, method, len(group))
        if split == "validation":
            point = plan.validation(settings, group)
        else:
            (point,) = plan.final({method: settings}, [group])
        found = [self.results.find(seed, point) for seed in self.seeds]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else None

    def figure(
        self,
        method: str,
        settings: recipe.MergeRecipe,
        groups: Sequence[plan.Group],
        split: str = "test",
    ) -> paired.Figure | None:
        """The average normalized accuracy over seeds and groups; none where one is missing."""
        found = [self.measured(method, settings, group, split) for group in groups]
        known = [each for each in found if each is not None]
        if len(known) < len(groups):
            return None
        return paired.average(list(zip(*known, strict=True)))

    def base(self, split: str, group: plan.Group = ()) -> list[measuring.Measured] | None:
        """The base as if it were a merge, by seed; none where it was not measured.

        Args:
            split: Of the images.
            group: Of tasks; all that fit when empty.
        """
        own = [self._base(seed, split, group or self.names) for seed in self.seeds]
        known = [each for each in own if each is not None]
        return known if len(known) == len(own) else None

    def _base(self, seed: int, split: str, group: plan.Group) -> measuring.Measured | None:
        base = self.results.single(seed, split, "base")
        source = self.results.single(seed, split, "source")
        if not set(group) <= set(base):
            return None
        own = {name: (base[name][0], base[name][1]) for name in group}
        return measuring.Measured(
            {name: right for name, (right, _) in own.items()},
            {name: images for name, (_, images) in own.items()},
            own,
            {name: (source[name][0], source[name][1]) for name in group},
        )

    def grid_rows(self, method: str) -> list[dict[str, Any]]:
        """Every recipe of a method on all tasks' validation images."""
        rows = []
        for settings in self.candidates.of(method):
            found = self.figure(method, settings, [self.names], "validation")
            if found is not None:
                fields = {name: getattr(settings, name) for name in ("density", "gamma", "alpha")}
                rows.append({**fields, "images": None, studies.METRIC: found.mean})
        return rows

    def robustness_rows(self, method: str) -> list[dict[str, Any]]:
        """The best recipe with one field half and one and a half."""
        rows = []
        for field, factor, other in plan.off(self.chosen.largest[method]):
            found = self.figure(method, other, [self.names], "validation")
            if found is not None:
                rows.append({"field": field, "factor": factor, studies.METRIC: found.mean})
        return rows

    def task_count_rows(self, labels: dict[str, str]) -> list[dict[str, Any]]:
        """The metric on the test images by T, with the recipe chosen at the smallest.

        Args:
            labels: The methods to show, with what they are called.
        """
        rows = []
        for method, label in labels.items():
            for size, groups in self.sizes() if method in self.chosen.smallest else ():
                settings = self.chosen.smallest[method]
                values = [self.figure(method, settings, [group]) for group in groups]
                known = [each.mean for each in values if each is not None]
                if len(known) == len(groups):
                    rows.append(
                        {
                            "method": label,
                            "protocol": "carried",
                            "sources": size,
                            studies.METRIC: statistics.fmean(known),
                            "lowest": min(known),
                            "highest": max(known),
                        }
                    )
        return rows

    def told(self) -> dict[str, dict[str, float]]:
        """What `compare` said of each task's source, the mean over the seeds."""
        known = [self.geometry[str(seed)] for seed in self.seeds if str(seed) in self.geometry]
        return {
            name: {key: statistics.fmean(own[name][key] for own in known) for key in TOLD}
            for name in (known[0] if known else ())
        }

    def fared(self) -> dict[str, float]:
        """How each task fared in the merge of all by breadcrumbs, the mean over the seeds."""
        if "breadcrumbs" not in self.chosen.largest:
            return {}
        group = tuple(self.told()) or self.names
        found = self.measured("breadcrumbs", self.chosen.largest["breadcrumbs"], group)
        return {
            name: statistics.fmean(each.normalized(name) for each in found or ())
            for name in (group if found else ())
        }

    def correlations(self) -> dict[str, tuple[float, float]]:
        """Rank correlation, with its p-value, of what `compare` said with how the tasks fared.

        The misfit is left out: one task far from all others would decide it alone.
        """
        told, fared = self.told(), self.fared()
        names = [name for name in told if name in fared and name in self.names]
        right = [fared[name] for name in names]
        columns = {key: [told[name][key] for name in names] for key in TOLD}
        return {
            key: paired.spearman(values, right)
            for key, values in columns.items()
            if len(set(values)) > 1 and len(set(right)) > 1
        }
