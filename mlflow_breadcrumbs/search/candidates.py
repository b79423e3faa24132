"""`merge --choose`: the few recipes that are worth trying, tried on validation images.

A sweep over a list of recipes instead of a grid, by successive halving, so that it costs about as
many merges as there are candidates and as many images as a few of them. The test images are
left for the merge itself.
"""

import math

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.figures.studies import METRIC
from mlflow_breadcrumbs.registry import projects
from mlflow_breadcrumbs.search import sweep, workbench
from mlflow_breadcrumbs.support import progress

CANDIDATES = (
    *("tsv_lines", "actmat", "tsv_m", "breadcrumbs_calibrated"),
    *("lora", "weight_average"),
)
"""Presets, the best of docs/study.md first: of equally good ones the first is taken."""
FIRST = 32
"""Images per task of the first round; every round doubles them and halves the recipes."""


def recipes(sources: int, neutral: recipe.MergeRecipe) -> dict[str, recipe.MergeRecipe]:
    """The candidates by name.

    Args:
        sources: how many there are.
        neutral: the fields that go with every method are taken from it.
    """
    kept = {field: getattr(neutral, field) for field in drafts.NEUTRAL}
    return {
        name: recipe.MergeRecipe.from_method(name, sources=sources, **kept) for name in CANDIDATES
    }


def cost(sources: int, *, whole: bool = False) -> str:
    """What a choice costs, in words.

    Args:
        sources: how many there are.
        whole: every recipe is measured on all of the data, as by a user's evaluator.
    """
    count = len(recipes(sources, recipe.MergeRecipe(density=1.0)))
    if whole:
        return f"trying {count} recipes on the validation data: as many merges"
    rounds = math.ceil(math.log2(count)) + 1
    return (
        f"trying {count} recipes on validation images: at most {2 * count} merges in {rounds} "
        f"rounds, from {FIRST} images per task to all of them for the last"
    )


def choose(
    materials: workbench.Materials,
    draft: drafts.RecipeDraft,
    show: progress.Progress = progress.silent,
) -> drafts.Choice:
    """Try the candidates, and take the best one; goes on where an earlier call stopped.

    Args:
        materials: base, sources and tasks with validation images.
        draft: of the automatic method.
        show: is told about rounds and recipes.

    Raises:
        RecipeError: the draft names a method or fields of one.
        BreadcrumbsError: as for `sweep.sweep`.
    """
    if drafts.METHOD not in draft.open:
        raise errors.RecipeError(
            "--choose tries several methods, and a method or its fields are given; leave --choose "
            "out, or these"
        )
    tried = recipes(len(materials.sources), draft.recipe)
    first = FIRST if materials.evaluator is None else None  # which measures on all of its data
    request = sweep.SweepRequest(
        materials, tuple(tried.values()), halving=first, robustness=False, test=False
    )
    with projects.spared():  # the run of `mlflow run` is the merge's
        found = sweep.sweep(request, show)
    names = {settings.digest: name for name, settings in tried.items()}
    taken = names[found.recipe.digest]
    rows = [
        {"recipe": names[row["recipe_digest"]], "images": row["images"], METRIC: row[METRIC]}
        for row in found.best(len(tried))
    ]
    ends = [row for row in rows if row["images"] is None]
    others = ", ".join(f"{row['recipe']} {row[METRIC]:.3f}" for row in ends[1:])
    why = (
        f"{taken}, the best of {len(tried)} on validation images, with an "
        f"average normalized accuracy of {found.validation[METRIC]:.3f}"
        + (f" ({others})" if others else "")
    )
    return drafts.Choice(
        found.recipe, (drafts.METHOD,), why, {"tried": rows, "run": found.run_id}, taken
    )
