"""Does the gain grow with the number of merged tasks? Accuracy against T = 2 … N sources.

Two protocols. `tuned`: at every T, alpha is chosen on validation images. `carried`: alpha is chosen
once, at the smallest T, and kept for all, so that validation images of later tasks aren't needed
(Davari & Belilovsky 2024 call this validation-free). What is reported is measured on test images.
"""

import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.figures.studies import METRIC
from mlflow_breadcrumbs.registry import permissions, run_files, runs
from mlflow_breadcrumbs.search import study_records, workbench
from mlflow_breadcrumbs.support import defaults, progress, tables, wording

PROTOCOLS = ("tuned", "carried")
METHODS = ("weight_average", "task_arithmetic", "ties", "breadcrumbs")
ALPHAS = (0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
FOLDER = "scaling"


@dataclasses.dataclass(frozen=True)
class ScalingRequest:
    """What a user asks for."""

    materials: workbench.Materials
    methods: tuple[str, ...] = METHODS
    """Presets of `recipe.PRESETS`; a weight average has no alpha to choose."""
    alphas: tuple[float, ...] = ALPHAS
    """To choose from."""
    subsets: int = defaults.SUBSETS
    """Of the sources, at every T: all where there are no more, else so many drawn at random."""
    smallest: int = defaults.SMALLEST
    """The T at which `carried` chooses its alpha, and the first that is shown; at least 1."""
    images: int | None = None
    """Per task and split at most; all when `None`."""
    seed: int = defaults.SEED
    """Of the drawn subsets."""


@dataclasses.dataclass(frozen=True)
class ScalingResult:
    """The metric by method, protocol and number of sources."""

    run_id: str
    rows: tuple[Mapping[str, Any], ...]
    """`method`, `protocol`, `sources` (T), `subsets`, `alpha` (`None` where there was nothing to
    choose), and over the subsets the mean, the lowest and the highest of the metric."""
    images: int | None

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "run_id": self.run_id,
            "images": self.images,
            "rows": [dict(row) for row in self.rows],
        }


Subset = tuple[int, ...]


def scaling(request: ScalingRequest, show: progress.Progress = progress.silent) -> ScalingResult:
    """Measure every method at every number of sources, and log the table and the picture to a run.

    Raises:
        BreadcrumbsError: one of its kinds.
    """
    chosen = subsets(len(request.materials.sources), request)
    recipes = _recipes(request)
    name = f"scaling to {wording.counted(len(request.materials.sources), 'sources')}"
    permissions.check()
    with (
        workbench.opened(request.materials, show) as bench,
        runs.run(name, "scaling", nested=True) as run_id,
    ):
        settings = {
            f"scaling.{field.name}": getattr(request, field.name)
            for field in dataclasses.fields(request)
            if field.name != "materials"
        }
        study_records.log_materials(run_id, bench.taken, settings)
        rows = _measure(bench, request, recipes, chosen, show)
        _log(run_id, rows)
        study_records.tell_of_study(
            run_id,
            "How much of the sources' accuracy one model keeps, by the number of its sources.",
            bench.taken,
            titles=("method", "protocol", "sources", "kept", "lowest", "highest"),
            rows=[_cells(row) for row in rows],
        )
    return ScalingResult(run_id, rows, request.images)


def subsets(sources: int, request: ScalingRequest) -> dict[int, list[Subset]]:
    """The subsets of the sources that are merged, by their size T, each ascending.

    Raises:
        MergeError: there are fewer sources than the smallest T, or nothing to compare.
    """
    if not 1 <= request.smallest < sources:
        raise errors.MergeError(
            f"there are {sources} sources and the smallest number to merge is {request.smallest}; "
            "give more sources (--source), or a smaller number (--smallest)"
        )
    generator = random.Random(request.seed)
    found: dict[int, list[Subset]] = {}
    for size in range(request.smallest, sources + 1):
        if math.comb(sources, size) <= request.subsets:
            found[size] = list(itertools.combinations(range(sources), size))
            continue
        drawn: set[Subset] = set()
        while len(drawn) < request.subsets:
            drawn.add(tuple(sorted(generator.sample(range(sources), size))))
        found[size] = sorted(drawn)
    return found


def _recipes(request: ScalingRequest) -> dict[str, list[recipe.MergeRecipe]]:
    """The recipes that each method chooses from; one for a weight average, see `_at`."""
    return {
        method: [
            recipe.MergeRecipe.from_method(method, sources=request.smallest, alpha=alpha)
            for alpha in (request.alphas if method != "weight_average" else (None,))
        ]
        for method in request.methods
    }


def _at(size: int, method: str, settings: recipe.MergeRecipe) -> recipe.MergeRecipe:
    """The recipe for T sources; a weight average divides by T."""
    if method == "weight_average":
        return dataclasses.replace(settings, alpha=1 / size)
    return settings


def _measure(
    bench: workbench.Study,
    request: ScalingRequest,
    recipes: Mapping[str, Sequence[recipe.MergeRecipe]],
    chosen: Mapping[int, Sequence[Subset]],
    show: progress.Progress,
) -> tuple[Mapping[str, Any], ...]:
    """All rows, by method, protocol and T."""
    bench.prepare([settings for choice in recipes.values() for settings in choice])
    count = sum(map(len, chosen.values()))
    total = sum(count * (len(c) + 2 if len(c) > 1 else 2) for c in recipes.values())
    rows: list[Mapping[str, Any]] = []
    with show("subsets of sources", total=total, unit="merges") as advance:

        def measure(settings: recipe.MergeRecipe, members: Subset, split: Any) -> float:
            card = bench.measure(settings, members, split=split, limit=request.images)
            advance(1)
            return card.average_normalized_accuracy

        for method, choice in recipes.items():
            best: dict[int, recipe.MergeRecipe] = {}
            for size, members in chosen.items():
                tried = [_at(size, method, settings) for settings in choice]
                means = [
                    statistics.fmean(measure(s, one, "validation") for one in members)
                    if len(tried) > 1
                    else 0.0
                    for s in tried
                ]
                best[size] = tried[means.index(max(means))]
            for protocol in PROTOCOLS:
                for size, members in chosen.items():
                    settings = best[size if protocol == "tuned" else request.smallest]
                    values = [measure(_at(size, method, settings), m, "test") for m in members]
                    alpha = settings.alpha if len(choice) > 1 else None
                    rows.append(_row(method, protocol, size, alpha, values))
    return tuple(rows)


def _row(
    method: str, protocol: str, size: int, alpha: float | None, values: Sequence[float]
) -> dict[str, Any]:
    return {
        "method": method,
        "protocol": protocol,
        "sources": size,
        "subsets": len(values),
        "alpha": alpha,
        METRIC: statistics.fmean(values),
        "lowest": min(values),
        "highest": max(values),
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row for Markdown."""
    kept = (f"{row[key]:.3f}" for key in (METRIC, "lowest", "highest"))
    return [str(row["method"]), str(row["protocol"]), str(row["sources"]), *kept]


def _log(run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, the picture, and the metric at each T as a metric with steps."""
    for row in rows:
        name = f"{row['protocol']}/{row['method']}"
        run_files.log_metrics(run_id, {name: row[METRIC]}, step=row["sources"])
    files = {"scaling.png": studies.scaling(rows), "scaling.csv": tables.to_csv(rows).encode()}
    run_files.log_files(run_id, files, FOLDER)
