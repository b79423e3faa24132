"""The tables and pictures of docs/study.md, from the measurements alone.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything else on the page is
written by hand and left alone.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import charts, evaluate, recipe
from study import choices, descriptions, flow, intervals, measuring, plan

NAMES = {
    "base": "base",
    "weight_average": "weight average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_row": "breadcrumbs, by row",
    "breadcrumbs_signed": "breadcrumbs, signed",
}

Table = list[list[str]]
"""The first row is the head."""


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
        names = tuple(self.tasks)
        # A seed that was begun and has not caught up would empty every table.
        for count in range(len(seeds), 0, -1):
            self.evidence = choices.Evidence(self.results, names, tuple(seeds[:count]))
            self.candidates, self.chosen = flow.chosen(self.evidence)
            if self.chosen.largest:
                break

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return self.evidence.names

    def figure(
        self,
        method: str,
        settings: recipe.MergeRecipe,
        groups: Sequence[plan.Group],
        split: str = "test",
    ) -> intervals.Figure | None:
        """The average normalized accuracy over seeds and groups; none where one is missing."""
        found = [
            [
                self.results.find(seed, self._point(method, settings, group, split))
                for group in groups
            ]
            for seed in self.evidence.seeds
        ]
        complete = [[each for each in own if each is not None] for own in found]
        if any(len(own) < len(groups) for own in complete):
            return None
        return intervals.average(complete)

    def _point(
        self, method: str, settings: recipe.MergeRecipe, group: plan.Group, split: str
    ) -> measuring.Point:
        settings = plan.at(settings, method, len(group))
        if split == "validation":
            return plan.validation(settings, group)
        return plan.final({method: settings}, [group])[0]

    def task_table(self) -> Table:
        """Each task, with the base and the sources on the test images."""
        rows = [["task", "classes", "train", "test", "base", "own source, by seed"]]
        for name, about in self.tasks.items():
            base = self.results.single(self.evidence.seeds[0], "test", "base").get(name)
            sources = [
                self.results.single(seed, "test", "source").get(name)
                for seed in self.evidence.seeds
            ]
            counts = [str(about[key]) for key in ("classes", "train", "test")]
            rows.append([name, *counts, _accuracy(base), ", ".join(map(_accuracy, sources))])
        return rows

    def main_table(self) -> Table:
        """All tasks merged, each method with its best recipe."""
        everything = [self.names]
        rows = [["", "density", "gamma", "alpha", "validation", "test", "accuracy, test"]]
        rows.append(["base", "", "", "", *self._base_cells()])
        for method, settings in self.chosen.largest.items():
            seen = self.figure(method, settings, everything, "validation")
            tested = self.figure(method, settings, everything)
            rows.append(
                [
                    *(NAMES[method], *_fields(method, settings), _cell(seen), _cell(tested)),
                    self._accuracy_of(method, settings),
                ]
            )
        return rows

    def _base_cells(self) -> list[str]:
        cells = []
        for split in ("validation", "test"):
            own = [self._base_as_merge(seed, split) for seed in self.evidence.seeds]
            known = [[each] for each in own if each is not None]
            cells.append(_cell(intervals.average(known) if len(known) == len(own) else None))
        right = self.results.single(self.evidence.seeds[0], "test", "base")
        plain = [right[name][0] / right[name][1] for name in self.names if name in right]
        return [*cells, f"{statistics.fmean(plain):.3f}" if len(plain) == len(self.names) else ""]

    def _base_as_merge(self, seed: int, split: str) -> measuring.Measured | None:
        base = self.results.single(seed, split, "base")
        source = self.results.single(seed, split, "source")
        if not set(self.names) <= set(base):
            return None
        own = {name: (base[name][0], base[name][1]) for name in self.names}
        return measuring.Measured(
            {name: right for name, (right, _) in own.items()},
            {name: images for name, (_, images) in own.items()},
            own,
            {name: (source[name][0], source[name][1]) for name in self.names},
        )

    def _accuracy_of(self, method: str, settings: recipe.MergeRecipe) -> str:
        point = self._point(method, settings, self.names, "test")
        found = [self.results.find(seed, point) for seed in self.evidence.seeds]
        means = [
            statistics.fmean(each.correct[name] / each.total[name] for name in self.names)
            for each in found
            if each is not None
        ]
        return f"{statistics.fmean(means):.3f}" if len(means) == len(found) else ""

    def per_task_table(self) -> Table:
        """Normalized accuracy on the test images by task, mean over seeds."""
        rows = [["", *self.names]]
        for method, settings in self.chosen.largest.items():
            point = self._point(method, settings, self.names, "test")
            found = [self.results.find(seed, point) for seed in self.evidence.seeds]
            known = [each for each in found if each is not None]
            if len(known) == len(found):
                means = [statistics.fmean(e.normalized(name) for e in known) for name in self.names]
                rows.append([NAMES[method], *(f"{mean:.3f}" for mean in means)])
        return rows

    def _sizes(self) -> list[tuple[int, list[plan.Group]]]:
        thirds = list(plan.thirds(self.names))
        pairs = list(plan.pairs(self.names))
        return [(len(own[0]), own) for own in (thirds, pairs, [self.names])]

    def task_count_table(self) -> Table:
        """Against the number of tasks, with the recipe chosen at the smallest T, and at T = N."""
        sizes = self._sizes()
        rows = [["", *(f"T = {size}" for size, _ in sizes), f"T = {sizes[-1][0]}, chosen there"]]
        for method, settings in self.chosen.smallest.items():
            cells = [_cell(self.figure(method, settings, groups)) for _, groups in sizes]
            at_all = self.figure(method, self.chosen.largest[method], [self.names])
            rows.append([f"{NAMES[method]} ({_alpha(method, settings)})", *cells, _cell(at_all)])
        return rows

    def defaults_table(self) -> Table:
        """What the rule takes, and what it gives, at the smallest T and at T = N."""
        thirds, everything = plan.thirds(self.names), [self.names]
        rows = [
            ["", "density", "gamma", "alpha", f"T = {len(thirds[0])}", f"T = {len(self.names)}"]
        ]
        for method, settings in self.chosen.defaults.items():
            cells = [_cell(self.figure(method, settings, where)) for where in (thirds, everything)]
            rows.append([NAMES[method], *_fields(method, settings), *cells])
        return rows

    def grid_rows(self, method: str) -> list[dict[str, Any]]:
        """What charts draw: every recipe of a method on all tasks' validation images."""
        rows = []
        for settings in self.candidates.of(method):
            found = self.figure(method, settings, [self.names], "validation")
            if found is not None:
                fields = {name: getattr(settings, name) for name in ("density", "gamma", "alpha")}
                rows.append({**fields, "images": None, charts.METRIC: found.mean})
        return rows

    def sparsity_table(self) -> Table:
        """Breadcrumbs by density and gamma: the best scale of those tried."""
        best: dict[tuple[float, float], dict[str, Any]] = {}
        for row in self.grid_rows("breadcrumbs"):
            key = row["density"], row["gamma"]
            if key not in best or row[charts.METRIC] > best[key][charts.METRIC]:
                best[key] = row
        rows = [["density", "gamma", "best alpha of those tried", "validation"]]
        for (density, gamma), row in sorted(best.items()):
            rows.append(
                [f"{density:g}", f"{gamma:g}", f"{row['alpha']:g}", f"{row[charts.METRIC]:.3f}"]
            )
        return rows

    def robustness_rows(self, method: str) -> list[dict[str, Any]]:
        """What charts draw: the best recipe with one field half and one and a half."""
        settings = self.chosen.largest[method]
        rows = []
        for field, factor, other in plan.off(settings):
            found = self.figure(method, other, [self.names], "validation")
            if found is not None:
                rows.append({"field": field, "factor": factor, charts.METRIC: found.mean})
        return rows

    def robustness_table(self) -> Table:
        """How far the validation metric falls with one field half and one and a half."""
        rows = [["", "field", "half", "one and a half"]]
        for method in plan.OFF:
            best = self.figure(method, self.chosen.largest[method], [self.names], "validation")
            found = {(r["field"], r["factor"]): r for r in self.robustness_rows(method)}
            for field in dict.fromkeys(field for field, _ in found):
                cells = [
                    f"{found[field, factor][charts.METRIC] - best.mean:+.3f}"
                    if best is not None and (field, factor) in found
                    else ""
                    for factor in (0.5, 1.5)
                ]
                rows.append([NAMES[method], field, *cells])
        return rows

    def geometry_table(self) -> Table:
        """What `compare` said of each source, and how its task fared in the merge of all."""
        rows = [["source", "‖τ‖ / ‖θ‖", "mean cosine", "sign conflict", "normalized accuracy"]]
        told, fared = self._told_and_fared()
        for name, row in told.items():
            cells = [f"{row[key]:.4f}" for key in ("relative_norm", "cosine", "sign_conflict")]
            rows.append([name, *cells, f"{fared[name]:.3f}" if name in fared else ""])
        return rows

    def _told_and_fared(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        seed = self.evidence.seeds[0]
        told = self.geometry.get(str(seed), {})
        if "breadcrumbs" not in self.chosen.largest:
            return told, {}
        settings = self.chosen.largest["breadcrumbs"]
        found = self.results.find(seed, self._point("breadcrumbs", settings, self.names, "test"))
        fared = {name: found.normalized(name) for name in self.names} if found else {}
        return told, fared

    def correlations(self) -> dict[str, tuple[float, float]]:
        """Rank correlation, with its p-value, of what `compare` said with how the tasks fared."""
        told, fared = self._told_and_fared()
        if not told or not fared:
            return {}
        names = [name for name in told if name in fared]
        right = [fared[name] for name in names]
        columns = {
            key: [told[name][key] for name in names]
            for key in ("relative_norm", "cosine", "sign_conflict")
        }
        return {
            key: intervals.spearman(values, right)
            for key, values in columns.items()
            if len(set(values)) > 1 and len(set(right)) > 1
        }

    def task_count_rows(self) -> list[dict[str, Any]]:
        """What charts draw: the metric on the test images by T, its recipe chosen at the first."""
        rows = []
        for method, settings in self.chosen.smallest.items():
            for size, groups in self._sizes():
                values = [self.figure(method, settings, [group]) for group in groups]
                known = [each.mean for each in values if each is not None]
                if len(known) == len(groups):
                    rows.append(
                        {
                            "method": NAMES[method],
                            "protocol": "carried",
                            "sources": size,
                            charts.METRIC: statistics.fmean(known),
                            "lowest": min(known),
                            "highest": max(known),
                        }
                    )
        return rows


def write(folder: Path, page: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Write the pictures and the page's tables; gives a few numbers for people who wait."""
    if not (folder / measuring.FILE).exists():
        return {"measurements": 0}
    summary = Summary(folder, seeds)
    if not summary.chosen.largest:
        return {"measurements": len(summary.results)}
    makers: Mapping[str, Callable[[], Table]] = {
        "tasks": summary.task_table,
        "main": summary.main_table,
        "per task": summary.per_task_table,
        "task counts": summary.task_count_table,
        "defaults": summary.defaults_table,
        "sparsity": summary.sparsity_table,
        "robustness": summary.robustness_table,
        "geometry": summary.geometry_table,
    }
    tables = {name: make() for name, make in makers.items()}
    text = page.read_text(encoding="utf-8") if page.exists() else _blank(tables)
    page.write_text(fill(text, tables), encoding="utf-8")
    pictures = _pictures(summary)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return {
        "measurements": len(summary.results),
        "seeds": list(summary.evidence.seeds),
        "pictures": list(pictures),
        "correlations": summary.correlations(),
    }


def _pictures(summary: Summary) -> dict[str, bytes]:
    best = summary.chosen.largest["breadcrumbs"].to_dict()
    rows = summary.grid_rows("breadcrumbs")
    middle = summary.figure(
        "breadcrumbs", summary.chosen.largest["breadcrumbs"], [summary.names], "validation"
    )
    counts = summary.task_count_rows()
    drawn = {
        "heat_map.png": charts.heat_map(rows, best),
        # One density, since a line through several would be none.
        "lines.png": charts.lines([r for r in rows if r["density"] == best["density"]], best),
        "robustness.png": charts.robustness(
            summary.robustness_rows("breadcrumbs"), middle.mean if middle else 0.0
        ),
        "task_counts.png": charts.scaling(counts) if counts else None,
    }
    return {name: content for name, content in drawn.items() if content is not None}


def fill(text: str, tables: Mapping[str, Table]) -> str:
    """Put tables into a page, between their marks; a page without a mark has no such table."""
    for name, table in tables.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        if found:
            text = f"{before}{found}{markdown(table)}{end}{rest.partition(end)[2]}"
    return text


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _blank(tables: Mapping[str, Table]) -> str:
    parts = [f"## {name}\n\n<!-- table: {name} -->\n<!-- end -->\n" for name in tables]
    return "\n".join(["# The study, another setting\n", *parts])


def _fields(method: str, settings: recipe.MergeRecipe) -> list[str]:
    if method in ("weight_average", "task_arithmetic"):
        return ["", "", _alpha(method, settings)]
    return [f"{settings.density:g}", f"{settings.gamma:g}", _alpha(method, settings)]


def _alpha(method: str, settings: recipe.MergeRecipe) -> str:
    return "1/T" if method == "weight_average" else f"{settings.alpha:g}"


def _cell(figure: intervals.Figure | None) -> str:
    return "" if figure is None else str(figure)


def _accuracy(counts: Sequence[int] | None) -> str:
    if counts is None:
        return ""
    low, high = evaluate.wilson(counts[0], counts[1])
    return f"{counts[0] / counts[1]:.3f} ({low:.3f}–{high:.3f})"
