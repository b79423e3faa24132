"""The tables of docs/study.md, made from what `summary` gives."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.support import intervals
from study import measuring, paired, plan
from study.summary import TOLD, Summary

NAMES = {
    "weight_average": "weight average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_row": "breadcrumbs, by row",
    "breadcrumbs_signed": "breadcrumbs, signed",
    "tsv_m": "TSV-M",
    "iso_c": "Iso-C",
    "tsv_m_masked": "TSV-M, masked",
    "iso_c_masked": "Iso-C, masked",
}
REFERENCE = "task_arithmetic"
FIELDS = ("density", "gamma", "alpha")

Table = list[list[str]]
"""The first row is the head."""


def tasks(found: Summary) -> Table:
    """Each task, with the base and the sources on the test images."""
    rows = [["task", "classes", "train", "test", "base", "own source, by seed"]]
    for name, about in found.tasks.items():
        base = found.results.single(found.seeds[0], "test", "base").get(name)
        sources = [found.results.single(seed, "test", "source").get(name) for seed in found.seeds]
        counts = [str(about[key]) for key in ("classes", "train", "test")]
        rows.append([name, *counts, _accuracy(base), ", ".join(map(_accuracy, sources))])
    return rows


def main(found: Summary) -> Table:
    """All tasks merged, each method with its best recipe."""
    head, *rows = _against(found, found.chosen.largest)
    seen, tested = found.base("validation"), found.base("test")
    base = ["base", "", "", "", _average(seen), _average(tested), ""]
    known = [
        found.measured(method, settings, found.names)
        for method, settings in found.chosen.largest.items()
    ]
    plain = [_plain(found, each) for each in (tested, *known)]
    whole = zip((base, *rows), plain, strict=True)
    return [[*head, "accuracy, test"], *([*row, cell] for row, cell in whole)]


def untuned(found: Summary) -> Table:
    """All tasks merged, each method as its authors use it."""
    return _against(found, plan.untuned())


def _against(found: Summary, recipes: Mapping[str, recipe.MergeRecipe]) -> Table:
    """Recipes by method, on all tasks; and by how much each is better than task arithmetic."""
    rows = [["", *FIELDS, "validation", "test", f"less {NAMES[REFERENCE]}"]]
    theirs = found.measured(REFERENCE, recipes[REFERENCE], found.names)
    for method, settings in recipes.items():
        ours = found.measured(method, settings, found.names)
        better = ""
        if method != REFERENCE and ours and theirs:
            better = paired.difference(ours, theirs).signed()
        rows.append(
            [
                *(NAMES[method], *_fields(method, settings)),
                _cell(found.figure(method, settings, [found.names], "validation")),
                _average(ours),
                better,
            ]
        )
    return rows


def per_task(found: Summary) -> Table:
    """Normalized accuracy on the test images by task, mean over seeds."""
    rows = [["", *found.names]]
    for method, settings in found.chosen.largest.items():
        known = found.measured(method, settings, found.names)
        if known is not None:
            means = [f"{_mean(known, name):.3f}" for name in found.names]
            rows.append([NAMES[method], *means])
    return rows


def task_counts(found: Summary) -> Table:
    """Against the number of tasks, with the recipe chosen at the smallest T, and at T = N."""
    sizes = found.sizes()
    rows = [["", *(f"T = {size}" for size, _ in sizes), f"T = {sizes[-1][0]}, chosen there"]]
    for method, settings in found.chosen.smallest.items():
        cells = [_cell(found.figure(method, settings, groups)) for _, groups in sizes]
        at_all = found.figure(method, found.chosen.largest[method], [found.names])
        rows.append([f"{NAMES[method]} ({_alpha(method, settings)})", *cells, _cell(at_all)])
    return rows


def defaults(found: Summary) -> Table:
    """What the rule takes, and what it gives, at the smallest T and at T = N."""
    thirds = plan.thirds(found.names)
    rows = [["", *FIELDS, f"T = {len(thirds[0])}", f"T = {len(found.names)}"]]
    for method, settings in found.chosen.defaults.items():
        cells = [_cell(found.figure(method, settings, own)) for own in (thirds, [found.names])]
        rows.append([NAMES[method], *_fields(method, settings), *cells])
    return rows


def sparsity(found: Summary) -> Table:
    """Breadcrumbs by density and gamma: the best scale of those tried."""
    best: dict[tuple[float, float], dict[str, float]] = {}
    for row in found.grid_rows("breadcrumbs"):
        key = row["density"], row["gamma"]
        if key not in best or row[studies.METRIC] > best[key][studies.METRIC]:
            best[key] = row
    rows = [["density", "gamma", "best alpha of those tried", "validation"]]
    for (density, gamma), row in sorted(best.items()):
        rows.append(
            [f"{density:g}", f"{gamma:g}", f"{row['alpha']:g}", f"{row[studies.METRIC]:.3f}"]
        )
    return rows


def robustness(found: Summary) -> Table:
    """How far the validation metric falls with one field half and one and a half."""
    rows = [["", "field", "half", "one and a half"]]
    for method in plan.OFF:
        settings = found.chosen.largest[method]
        best = found.figure(method, settings, [found.names], "validation")
        known = {
            (r["field"], r["factor"]): r[studies.METRIC] for r in found.robustness_rows(method)
        }
        for field in dict.fromkeys(field for field, _ in known):
            cells = [
                f"{known[field, factor] - best.mean:+.3f}"
                if best and (field, factor) in known
                else ""
                for factor in (0.5, 1.5)
            ]
            rows.append([NAMES[method], field, *cells])
    return rows


def misfit(found: Summary) -> Table:
    """All tasks merged, without and with the task that does not fit them."""
    odd = next((name for name in found.tasks if name not in found.names), None)
    rows = [["", "without it", "with it", "itself"]]
    if odd is None:
        return rows
    base, alone = found.base("test"), found.base("test", (odd,))
    if base and alone:
        rows.append(["base", _average(base), _average(base), f"{_mean(alone, odd):.3f}"])
    for method, settings in found.chosen.largest.items():
        without = found.measured(method, settings, found.names)
        mixed = found.measured(method, settings, (*found.names, odd))
        if without and mixed:
            others = [each.without(odd) for each in mixed]
            cells = [_average(without), _average(others), f"{_mean(mixed, odd):.3f}"]
            rows.append([NAMES[method], *cells])
    return rows


def sizes(found: Summary, other: Summary) -> Table:
    """All tasks merged, with two sizes of the model, each with its own best recipes.

    Beside each the share that a merge keeps of what fine-tuning gained, since a base that is near
    its sources has a high normalized accuracy before anything is merged.
    """
    rows = [["", "12 blocks", "of the gain", "6 blocks", "of the gain"]]
    bases = [own.base("test") for own in (found, other)]
    rows.append(["base", _average(bases[0]), "0", _average(bases[1]), "0"])
    for method in found.chosen.largest:
        cells = []
        for own, base in zip((found, other), bases, strict=True):
            settings = own.chosen.largest.get(method)
            known = settings and own.measured(method, settings, own.names)
            if not known or base is None:
                cells += ["", ""]
                continue
            merged, before = (paired.average([[e] for e in each]).mean for each in (known, base))
            cells += [_average(known), f"{(merged - before) / (1 - before):.2f}"]
        rows.append([NAMES[method], *cells])
    return rows


def geometry(found: Summary) -> Table:
    """What `compare` said of each source, and how its task fared in the merge of all."""
    rows = [["source", "‖τ‖ / ‖θ‖", "mean cosine", "sign conflict", "normalized accuracy"]]
    fared = found.fared()
    for name, row in found.told().items():
        cells = [f"{row[key]:.4f}" for key in TOLD]
        rows.append([name, *cells, f"{fared[name]:.3f}" if name in fared else ""])
    return rows


MAKERS: Mapping[str, Callable[[Summary], Table]] = {
    "tasks": tasks,
    "main": main,
    "untuned": untuned,
    "per task": per_task,
    "task counts": task_counts,
    "defaults": defaults,
    "sparsity": sparsity,
    "robustness": robustness,
    "misfit": misfit,
    "geometry": geometry,
}
"""By the names in the page's marks."""


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _fields(method: str, settings: recipe.MergeRecipe) -> list[str]:
    if settings.density == 1:
        return ["", "", _alpha(method, settings)]
    return [f"{settings.density:g}", f"{settings.gamma:g}", _alpha(method, settings)]


def _alpha(method: str, settings: recipe.MergeRecipe) -> str:
    return "1/T" if method == "weight_average" else f"{settings.alpha:g}"


def _cell(figure: paired.Figure | None) -> str:
    return "" if figure is None else str(figure)


def _average(measured: Sequence[measuring.Measured] | None) -> str:
    return "" if measured is None else str(paired.average([[each] for each in measured]))


def _mean(measured: Sequence[measuring.Measured], task: str) -> float:
    """Of a task's normalized accuracies."""
    return statistics.fmean(each.normalized(task) for each in measured)


def _plain(found: Summary, measured: Sequence[measuring.Measured] | None) -> str:
    """The plain average accuracy."""
    if measured is None:
        return ""
    means = [
        statistics.fmean(each.correct[name] / each.total[name] for name in found.names)
        for each in measured
    ]
    return f"{statistics.fmean(means):.3f}"


def _accuracy(counts: Sequence[int] | None) -> str:
    if counts is None:
        return ""
    low, high = intervals.wilson(counts[0], counts[1])
    return f"{counts[0] / counts[1]:.3f} ({low:.3f}–{high:.3f})"
