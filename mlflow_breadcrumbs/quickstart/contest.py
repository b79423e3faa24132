"""Ways to merge side by side, each with the scale that is best on the validation images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import scorecard
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import progress

METHODS = ("weight_average", "task_arithmetic", "breadcrumbs")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One set of weights and its accuracy per task, 0…1."""

    name: str
    alpha: float | None
    """The scale that was best in validation; `None` where there is nothing to choose."""
    accuracies: Mapping[str, float]
    """On the test images."""

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
        }


def contest(
    bench: workbench.Study, alphas: Sequence[float], show: progress.Progress = progress.silent
) -> list[Contender]:
    """The base, the sources (each on its own task), then every method of merging.

    The methods get the same choice of alphas and the same validation images. A weight average is
    task arithmetic with alpha = 1/sources, so there is nothing to choose.

    Args:
        bench: merges and measures.
        alphas: to choose from.
        show: told about each method.
    """
    entries: list[Contender] = []
    cards: list[scorecard.Scorecard] = []
    with show("ways to merge", total=len(METHODS), unit="methods") as advance:
        for method in METHODS:
            settings = recipe.MergeRecipe.from_method(method, sources=len(bench.labels))
            bench.prepare([settings])
            alpha = None
            if method != "weight_average":
                tried = [dataclasses.replace(settings, alpha=alpha) for alpha in alphas]
                settings = max(tried, key=lambda one: bench.measure(one).average_accuracy)
                alpha = settings.alpha
            cards.append(bench.measure(settings, split="test"))
            merged = {score.task: score.merged.value for score in cards[-1].scores}
            entries.append(Contender(method, alpha, merged))
            advance(1)
    scores = cards[0].scores
    return [
        Contender("base", None, {score.task: score.zero_shot.value for score in scores}),
        Contender(
            "sources, each its own", None, {score.task: score.finetuned.value for score in scores}
        ),
        *entries,
    ]
