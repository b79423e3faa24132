"""What layers measured on images or counted, beside what was trained: it is never summed.

BatchNorm keeps a mean, a variance and a counter. They describe the images that a model has seen;
a sum of their changes means nothing, and can make a variance negative, whose root is NaN. So they
are the base's, unless a recipe's `include` names them.
"""

import fnmatch
from collections.abc import Sequence

from mlflow_breadcrumbs.engine import checkpoints, recipe

STATISTICS = ("running_mean", "running_var")
COUNTERS = ("num_batches_tracked",)


def kept(base: checkpoints.Checkpoint, settings: recipe.MergeRecipe) -> tuple[str, ...]:
    """The running statistics and counters that stay the base's, sorted by name.

    A counter is a `num_batches_tracked`, or any integer tensor without dimensions.
    """
    return tuple(
        name for name in base.names if _is_running(base, name) and not _asked_for(settings, name)
    )


def note(names: Sequence[str]) -> str:
    """What a user should know of them, as a sentence without its full stop."""
    listed = ", ".join(names[:3]) + (f", … ({len(names)} tensors)" if len(names) > 3 else "")
    return (
        f"the running statistics and counters of normalization layers are the base's: {listed}. "
        "They were measured on images and don't add up. Where the merged model looks at other "
        "images than the base's, measure them anew on some of these"
    )


def can_break(names: Sequence[str], settings: recipe.MergeRecipe) -> bool:
    """Whether finite weights of a merge may give features that are not: only a root can do that.

    Args:
        names: what `kept` gave.
        settings: the recipe.
    """
    return bool(names) or any("running_" in pattern for pattern in settings.include)


def _is_running(base: checkpoints.Checkpoint, name: str) -> bool:
    last, info = name.rpartition(".")[2], base.info(name)
    if last in STATISTICS:
        return True
    is_integer = not (info.dtype.is_floating_point or info.dtype.is_complex)
    return is_integer and (last in COUNTERS or info.shape == ())


def _asked_for(settings: recipe.MergeRecipe, name: str) -> bool:
    """Whether a pattern that speaks of running statistics takes this one into the merge."""
    return (
        name.rpartition(".")[2] in STATISTICS
        and settings.merges(name)
        and any("running_" in p and fnmatch.fnmatchcase(name, p) for p in settings.include)
    )
