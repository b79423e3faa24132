"""Does the gain grow with the number of merged tasks? Accuracy against T = 2 … N sources.

Two protocols. `tuned`: at every T, alpha is chosen on validation images. `carried`: alpha is chosen
once, at the smallest T, and kept for all, so that validation images of later tasks aren't needed
(Davari & Belilovsky 2024 call this validation-free). What is reported is measured on test images.
"""

import dataclasses
import functools
import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.figures.studies import METRIC
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.registry import permissions, run_files, runs
from mlflow_breadcrumbs.search import pieces, study_records, workbench
from mlflow_breadcrumbs.support import defaults, executors, progress, tables, wording

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


def scaling(
    request: ScalingRequest,
    show: progress.Progress = progress.silent,
    executor: executors.Executor = executors.LOCAL,
) -> ScalingResult:
    """Measure every method at every number of sources, and log the table and the picture to a run.

    Args:
        request: what is asked for.
        show: is told about the merges.
        executor: merges and measures, see `pieces`; MLflow is spoken to by this process alone.

    Raises:
        BreadcrumbsError: one of its kinds.
    """
    chosen = subsets(len(request.materials.sources), request)
    recipes = _recipes(request)
    if request.materials.evaluator is not None and request.images is not None:
        raise errors.EvaluatorError(
            "a number of images is given, and an evaluator measures on all of its data; leave the "
            "number out"
        )
    name = f"scaling to {wording.counted(len(request.materials.sources), 'sources')}"
    permissions.check()
    with (
        workbench.opened(request.materials, show) as bench,
        runs.run(name, "scaling", nested=True) as run_id,
    ):
        if bench.grades is not None:
            bench.grades.check_splits()
        settings = {
            f"scaling.{field.name}": getattr(request, field.name)
            for field in dataclasses.fields(request)
            if field.name != "materials"
        }
        study_records.log_materials(run_id, bench.taken, settings)
        hands = pieces.Hands(bench, executor)
        rows = _measure(bench, hands, request, recipes, chosen, show)
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
    hands: pieces.Hands,
    request: ScalingRequest,
    recipes: Mapping[str, Sequence[recipe.MergeRecipe]],
    chosen: Mapping[int, Sequence[Subset]],
    show: progress.Progress,
) -> tuple[Mapping[str, Any], ...]:
    """All rows, by method, protocol and T."""
    bench.prepare([settings for choice in recipes.values() for settings in choice])
    count = sum(map(len, chosen.values()))
    total = sum(count * (len(c) + 2 if len(c) > 1 else 2) for c in recipes.values())
    with show("subsets of sources", total=total, unit="merges") as advance:
        ask = functools.partial(_values, hands, request.images, advance)
        tried = {
            (method, size): [_at(size, method, settings) for settings in choice]
            for method, choice in recipes.items()
            for size in chosen
        }
        return _rows(recipes, chosen, request.smallest, _best(tried, chosen, ask), ask)


_Merge = tuple[recipe.MergeRecipe, Subset]
_Ask = Callable[[Sequence[_Merge], tasks.Split], list[float]]


def _values(
    hands: pieces.Hands,
    images: int | None,
    advance: progress.Advance,
    merges: Sequence[_Merge],
    split: tasks.Split,
) -> list[float]:
    """The metric of some merges, in their order, whoever measures which of them first."""
    questions = [pieces.Question(*one, split, images) for one in merges]
    found = dict(hands.answers(questions, advance))
    return [found[number].metrics[METRIC] for number in range(len(merges))]


def _best(
    tried: Mapping[tuple[str, int], Sequence[recipe.MergeRecipe]],
    chosen: Mapping[int, Sequence[Subset]],
    ask: _Ask,
) -> dict[tuple[str, int], recipe.MergeRecipe]:
    """The recipe of each method and T that is best on average over the subsets, the first of them.

    What is one of a kind needs no measurement.
    """
    merges = {
        key: [(settings, members) for settings in some for members in chosen[key[1]]]
        for key, some in tried.items()
        if len(some) > 1
    }
    values = iter(ask([one for some in merges.values() for one in some], "validation"))
    best = {key: some[0] for key, some in tried.items()}
    for key in merges:
        means = [statistics.fmean(next(values) for _ in chosen[key[1]]) for _ in tried[key]]
        best[key] = tried[key][means.index(max(means))]
    return best


def _rows(
    recipes: Mapping[str, Sequence[recipe.MergeRecipe]],
    chosen: Mapping[int, Sequence[Subset]],
    smallest: int,
    best: Mapping[tuple[str, int], recipe.MergeRecipe],
    ask: _Ask,
) -> tuple[Mapping[str, Any], ...]:
    """What the chosen recipes come to on the test images."""
    taken = {
        (method, protocol, size): best[method, size if protocol == "tuned" else smallest]
        for method in recipes
        for protocol in PROTOCOLS
        for size in chosen
    }
    merges = [
        (_at(size, method, settings), members)
        for (method, _, size), settings in taken.items()
        for members in chosen[size]
    ]
    values = iter(ask(merges, "test"))
    return tuple(
        _row(
            *(method, protocol, size),
            settings.alpha if len(recipes[method]) > 1 else None,
            [next(values) for _ in chosen[size]],
        )
        for (method, protocol, size), settings in taken.items()
    )


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
