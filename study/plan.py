"""What is measured, and the rule that chooses: both written down before a test image is looked at.

A method is a recipe with values to choose from. The number of tasks that are merged
is T; the tasks are divided into thirds, and the merges of every third (T = N/3), of every two
thirds, and of all of them (T = N) are measured, so that every task counts alike at every T.

The rule (`choose`): over the seeds and the groups of tasks that are looked at, the mean of the
average normalized accuracy on validation images. Recipes within one standard error of the best are
level with it, and among these the one nearest to the method's published values is taken.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.engine import recipe
from study import measuring

VALIDATION_IMAGES = 150
"""Per task, for everything that is chosen."""
TEST_IMAGES = 500
"""Per task, for merges; the base and the sources are measured on all test images."""

OFF = ("task_arithmetic", "ties", "breadcrumbs", "tsv_m", "iso_c")
"""Methods whose robustness is measured."""

Group = tuple[str, ...]
"""Tasks that are merged."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of merging, with the values that are tried."""

    published: recipe.MergeRecipe
    """As its authors use it; what a choice is held near to."""
    scales: tuple[float, ...] = ()
    """Values of alpha; none for the average, whose alpha is 1/T."""

    def recipes(self, sources: int) -> tuple[recipe.MergeRecipe, ...]:
        """One recipe per scale."""
        return tuple(
            dataclasses.replace(self.published, alpha=scale)
            for scale in self.scales or (1 / sources,)
        )


def _recipe(density: float, gamma: float, alpha: float, **fields: Any) -> recipe.MergeRecipe:
    return recipe.MergeRecipe(density=density, gamma=gamma, alpha=alpha, **fields)


SUM_SCALES = (0.1, 0.2, 0.3, 0.5)
MASKED_SCALES = (0.2, 0.3, 0.5, 0.75, 1.0)
MATRIX_SCALES = (0.5, 0.75, 1.0, 1.5)
MASKED_MATRIX_SCALES = (0.75, 1.0, 1.5, 2.0, 3.0)
METHODS: Mapping[str, Method] = {
    "weight_average": Method(_recipe(1, 0, 1)),
    "task_arithmetic": Method(_recipe(1, 0, 0.3), SUM_SCALES),
    "ties": Method(
        _recipe(0.2, 0, 1, unit="model", consensus="mass", combine="mean"), (0.3, 0.5, 1.0, 1.5)
    ),
    "breadcrumbs": Method(_recipe(0.14, 0.01, 0.3), MASKED_SCALES),
    "breadcrumbs_row": Method(_recipe(0.14, 0.01, 0.3, unit="row"), MASKED_SCALES),
    "breadcrumbs_signed": Method(_recipe(0.14, 0.01, 0.3, consensus="mass"), MASKED_SCALES),
    "tsv_m": Method(_recipe(1, 0, 1, combine="tsv"), MATRIX_SCALES),
    "iso_c": Method(_recipe(1, 0, 1, combine="iso"), MATRIX_SCALES),
    "tsv_m_masked": Method(_recipe(0.14, 0.01, 1, combine="tsv"), MASKED_MATRIX_SCALES),
    "iso_c_masked": Method(_recipe(0.14, 0.01, 1, combine="iso"), MASKED_MATRIX_SCALES),
}
"""By the names of the tables; more methods join by a line here. The recipes stand here, not the
package's presets, since those are what the study is to choose."""

DENSITIES = (0.02, 0.05, 0.14, 0.3, 0.6, 0.9)
GAMMAS = (0.0, 0.01, 0.03, 0.1)


def thirds(names: Sequence[str]) -> tuple[Group, ...]:
    """Three groups of tasks of like size: every third task, so that neighbours are apart."""
    return tuple(tuple(names[start::3]) for start in range(3))


def pairs(names: Sequence[str]) -> tuple[Group, ...]:
    """The tasks without each third."""
    return tuple(
        tuple(name for name in names if name not in third) for third in reversed(thirds(names))
    )


def at(settings: recipe.MergeRecipe, method: str, size: int) -> recipe.MergeRecipe:
    """The recipe for T sources; a weight average divides by T."""
    if method != "weight_average":
        return settings
    return dataclasses.replace(settings, alpha=1 / size)


def coarse(group: Group) -> list[measuring.Point]:
    """Every method with every scale on a group of tasks."""
    return [
        validation(at(settings, method, len(group)), group)
        for method, how in METHODS.items()
        for settings in how.recipes(len(group))
    ]


def on(recipes: Mapping[str, recipe.MergeRecipe], group: Group) -> list[measuring.Point]:
    """Recipes by method on a group's validation images."""
    return [validation(at(own, method, len(group)), group) for method, own in recipes.items()]


def final(
    recipes: Mapping[str, recipe.MergeRecipe], where: Sequence[Group]
) -> list[measuring.Point]:
    """Recipes by method on the test images of some groups."""
    return [
        measuring.Point(at(settings, method, len(group)), group, "test", TEST_IMAGES)
        for group in where
        for method, settings in recipes.items()
    ]


def untuned() -> dict[str, recipe.MergeRecipe]:
    """Each method as its authors use it."""
    return {method: how.published for method, how in METHODS.items()}


def refined(best: recipe.MergeRecipe) -> list[recipe.MergeRecipe]:
    """A recipe with scales between those that were tried."""
    return [scaled(best, best.alpha * factor) for factor in (0.75, 1.33)]


def fine(best: recipe.MergeRecipe) -> list[recipe.MergeRecipe]:
    """Densities and gammas around a recipe, with two scales each.

    What is kept of a task vector grows with the density, so small densities get larger scales:
    those for which alpha · √density, the order of the length of what is added, is that of `best`
    and 1.5 times of it.
    """
    found: dict[str, recipe.MergeRecipe] = {}
    for density, gamma in (
        *((density, best.gamma) for density in DENSITIES),
        *((best.density, gamma) for gamma in GAMMAS),
        (0.3, 0.03),
        (0.6, 0.03),
    ):
        own = dataclasses.replace(best, density=density, gamma=gamma)
        for factor in (1.0, 1.5):
            settings = scaled(own, factor * best.alpha * math.sqrt(best.density / density))
            found.setdefault(settings.digest, settings)
    return list(found.values())


def variants(best: recipe.MergeRecipe) -> dict[str, list[recipe.MergeRecipe]]:
    """The row and the signed variant with the density and gamma of the best breadcrumbs."""
    return {
        method: [
            changed(scaled(best, best.alpha * factor), **changes) for factor in (0.75, 1.0, 1.5)
        ]
        for method, changes in (
            ("breadcrumbs_row", {"unit": "row"}),
            ("breadcrumbs_signed", {"consensus": "mass"}),
        )
    }


def off(settings: recipe.MergeRecipe) -> list[tuple[str, float, recipe.MergeRecipe]]:
    """A recipe with one field at half and at one and a half: field, factor, recipe."""
    found = []
    for field in ("density", "gamma", "alpha"):
        for factor in (0.5, 1.5):
            value = float(f"{factor * getattr(settings, field):.6g}")
            fits = field != "density" or (settings.density < 1 and value + settings.gamma <= 1)
            if value and fits:
                other = changed(settings, **{field: value})
                found.append((field, factor, other))
    return found


def changed(settings: recipe.MergeRecipe, **fields: object) -> recipe.MergeRecipe:
    """The recipe with other values of some fields."""
    return recipe.MergeRecipe.from_dict({**settings.to_dict(), **fields})


def scaled(settings: recipe.MergeRecipe, alpha: float) -> recipe.MergeRecipe:
    """The recipe with another scale, in two digits, so that it can be read."""
    return dataclasses.replace(settings, alpha=float(f"{alpha:.2g}"))


def choose(
    published: recipe.MergeRecipe,
    candidates: Sequence[recipe.MergeRecipe],
    score: Callable[[recipe.MergeRecipe], Sequence[float]],
) -> recipe.MergeRecipe:
    """The rule of the module's first words.

    Args:
        published: The method's own recipe.
        candidates: The recipes of the method.
        score: Normalized accuracies of a recipe, one per seed, group and task, always in the same
            order, so that recipes can be compared in pairs.
    """
    scores = {settings.digest: score(settings) for settings in candidates}
    best = max(candidates, key=lambda settings: statistics.fmean(scores[settings.digest]))

    def level(settings: recipe.MergeRecipe) -> bool:
        pairs = zip(scores[best.digest], scores[settings.digest], strict=True)
        falls = [better - worse for better, worse in pairs]
        if len(falls) < 2:
            return settings == best
        error = statistics.stdev(falls) / math.sqrt(len(falls))
        return statistics.fmean(falls) <= error

    return min(filter(level, candidates), key=lambda settings: _distance(settings, published))


def _distance(one: recipe.MergeRecipe, other: recipe.MergeRecipe) -> float:
    """How far two recipes are apart, in factors of e, summed over the fields."""
    factors = (
        one.alpha / other.alpha,
        one.density / other.density,
        (one.gamma + 0.01) / (other.gamma + 0.01),  # shifted, since 0 has no logarithm
    )
    return sum(abs(math.log(factor)) for factor in factors)


def validation(settings: recipe.MergeRecipe, group: Group) -> measuring.Point:
    """A recipe on a group's validation images."""
    return measuring.Point(settings, group, "validation", VALIDATION_IMAGES)
