"""Ways to merge side by side: each as its preset has it, and two of them with a chosen scale."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.evaluation import scorecard
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import progress

METHODS = (
    "weight_average",
    "task_arithmetic",
    "tsv_m",
    "breadcrumbs_calibrated",
    drafts.AUTO,
    "breadcrumbs",
)
"""The rows of the table, in this order, nothing tuned; the last is also merged through `mlflow run`
and registered."""

TUNED = ("task_arithmetic", "breadcrumbs")
"""What depends on its scale: another row has the alpha that is best on the validation images."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One set of weights and its accuracy per task, 0…1."""

    name: str
    alpha: float | None
    """The merge's scale; `None` where nothing was merged."""
    accuracies: Mapping[str, float]
    """On the test images."""
    kept: float
    """Accuracy as a fraction of that of the task's own source, the mean over the tasks."""

    @property
    def average(self) -> float:
        """The mean over the tasks."""
        return sum(self.accuracies.values()) / len(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """One row of the table."""
        return {
            "model": self.name,
            "alpha": self.alpha,
            **self.accuracies,
            "average": self.average,
            "kept": self.kept,
        }


def contest(
    bench: workbench.Study,
    alphas: Sequence[float],
    show: progress.Progress = progress.silent,
    methods: Sequence[str] = METHODS,
) -> list[Contender]:
    """The base, the sources (each on its own task), then every method of merging.

    The methods in `TUNED` come twice, tuned first, and get the same choice of alphas and the same
    validation images.

    Args:
        bench: merges and measures.
        alphas: to choose from; where there are none, nothing is tuned.
        show: told about each method.
        methods: in the order of the rows.
    """
    merged: list[Contender] = []
    cards: list[scorecard.Scorecard] = []
    with show("ways to merge", total=len(methods), unit="methods") as advance:
        for method in methods:
            preset = bench.settled(drafts.draft(sources=len(bench.labels), method=method))
            bench.prepare([preset])
            rows = {method: preset}
            if alphas and method in TUNED:
                rows = {f"{method}, tuned": _tuned(bench, preset, alphas)} | rows
            for name, settings in rows.items():
                card = bench.measure(settings, split="test")
                own = {score.task: score.merged.value for score in card.scores}
                kept = card.average_normalized_accuracy
                merged.append(Contender(name, settings.alpha, own, kept))
                cards.append(card)
            advance(1)
    return [*_unmerged(cards[0]), *merged]


def _tuned(
    bench: workbench.Study, settings: recipe.MergeRecipe, alphas: Sequence[float]
) -> recipe.MergeRecipe:
    """The recipe with the alpha that is best on the validation images."""
    tried = [dataclasses.replace(settings, alpha=alpha) for alpha in alphas]
    return max(tried, key=lambda one: bench.measure(one).average_accuracy)


def _unmerged(card: scorecard.Scorecard) -> tuple[Contender, Contender]:
    """What every merge is held against."""
    base = {score.task: score.zero_shot.value for score in card.scores}
    sources = {score.task: score.finetuned.value for score in card.scores}
    kept = sum(base[task] / sources[task] for task in base) / len(base)
    return (
        Contender("base", None, base, kept),
        Contender("sources, each its own", None, sources, 1.0),
    )
