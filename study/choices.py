"""What the validation images say: each method's best recipe at a T, and each preset's default."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from mlflow_breadcrumbs.engine import recipe
from study import measuring, plan


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The measurements that choices are made from."""

    results: measuring.Results
    names: tuple[str, ...]
    """The tasks."""
    seeds: tuple[int, ...]
    """Seeds that count; a recipe counts where it was measured with all of them."""

    def scores(
        self, settings: recipe.MergeRecipe, method: str, groups: Sequence[plan.Group]
    ) -> list[float] | None:
        """Normalized accuracies by seed, group and task; none where one is missing."""
        values = []
        for seed in self.seeds:
            for group in groups:
                own = plan.at(settings, method, len(group))
                found = self.results.find(seed, plan.validation(own, group))
                if found is None:
                    return None
                values += [found.normalized(task) for task in group]
        return values

    def best(
        self,
        method: str,
        candidates: Sequence[recipe.MergeRecipe],
        groups: Sequence[plan.Group],
    ) -> recipe.MergeRecipe:
        """The recipe with the highest mean; of equally good ones the first."""
        known = list(self._known(method, candidates, groups))
        return max(known, key=lambda pair: statistics.fmean(pair[1]))[0]

    def default(
        self,
        method: str,
        candidates: Sequence[recipe.MergeRecipe],
        groups: Sequence[plan.Group],
    ) -> recipe.MergeRecipe:
        """The recipe that the rule takes."""
        scores = {settings.digest: own for settings, own in self._known(method, candidates, groups)}
        known = [settings for settings in candidates if settings.digest in scores]
        return plan.choose(
            plan.METHODS[method].published, known, lambda settings: scores[settings.digest]
        )

    def _known(
        self,
        method: str,
        candidates: Sequence[recipe.MergeRecipe],
        groups: Sequence[plan.Group],
    ) -> Iterator[tuple[recipe.MergeRecipe, list[float]]]:
        for settings in candidates:
            scores = self.scores(settings, method, groups)
            if scores is not None:
                yield settings, scores


@dataclasses.dataclass
class Candidates:
    """The recipes of each method that were planned so far, without repetitions."""

    by_method: dict[str, dict[str, recipe.MergeRecipe]] = dataclasses.field(default_factory=dict)

    def add(self, method: str, recipes: Sequence[recipe.MergeRecipe]) -> None:
        """Take more recipes of a method."""
        known = self.by_method.setdefault(method, {})
        for settings in recipes:
            known.setdefault(settings.digest, settings)

    def of(self, method: str) -> list[recipe.MergeRecipe]:
        """The recipes of a method, in the order in which they came."""
        return list(self.by_method.get(method, {}).values())

    def on(self, group: plan.Group) -> list[measuring.Point]:
        """All of them, on the validation images of a group."""
        return [
            plan.validation(plan.at(settings, method, len(group)), group)
            for method, own in self.by_method.items()
            for settings in own.values()
        ]


def begin(candidates: Candidates, sources: int) -> None:
    """Take the recipes that everything starts from."""
    for method, how in plan.METHODS.items():
        candidates.add(method, how.recipes(sources))


def bests(
    evidence: Evidence, candidates: Candidates, groups: Sequence[plan.Group]
) -> Mapping[str, recipe.MergeRecipe]:
    """Each method's best recipe on some groups."""
    return {method: evidence.best(method, candidates.of(method), groups) for method in plan.METHODS}
