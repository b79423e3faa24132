"""Patterns of tensors' names that match nothing, which would otherwise do nothing without a word.

One that a user names for this merge must match; one of a recipe that many models share may be of a
part that these have not, and is only said.
"""

import difflib
import fnmatch
from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import alignment, checkpoints, library_configs, naming, recipe
from mlflow_breadcrumbs.support import wording

NEAREST = 3
"""Names that a message proposes."""


def check(
    base: checkpoints.Checkpoint, sources: Sequence[checkpoints.Checkpoint], named: Sequence[str]
) -> None:
    """Hold patterns that were named for a merge against the tensors that there are.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: those that were.
        named: the patterns.

    Raises:
        MergeError: one matches no tensor of any of them.
    """
    if not named:
        return
    names = _names(base, sources)
    for pattern in _idle(named, names):
        raise errors.MergeError(
            f"the pattern {pattern!r} matches none of the {wording.counted(len(names), 'tensors')} "
            f"of the base and the sources; the nearest are {', '.join(_nearest(pattern, names))}. "
            "Correct it, or leave it out"
        )


def notes(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
) -> tuple[str, ...]:
    """The patterns of a recipe that match nothing, sentences without their full stop."""
    fields = ("include", "exclude", "own")
    given = {field: getattr(settings, field) for field in fields}
    if not any(set(patterns) - {"*"} for patterns in given.values()):
        return ()
    names = _names(base, sources)
    return tuple(
        f"the recipe's {field} has the pattern {_short(pattern)}, which matches no tensor of the "
        f"base and the sources; the nearest are {', '.join(_nearest(pattern, names))}"
        for field, patterns in given.items()
        for pattern in _idle(patterns, names)
    )


def _names(
    base: checkpoints.Checkpoint, sources: Sequence[checkpoints.Checkpoint]
) -> tuple[str, ...]:
    """All tensors' names that a pattern may go by: the base's, and what only sources have."""
    found = dict.fromkeys(base.names)
    for source in sources:
        whole = source.source if isinstance(source, alignment.Aligned) else source
        if further := [name for name in whole.names if name not in found]:
            known = [library_configs.read(each) for each in (base, whole)]
            backbones = [
                config.backbone(each)
                for config, each in zip(known, (base, whole), strict=True)
                if config is not None
            ]
            met = naming.meet(base, whole, whole.location, filter(None, backbones))
            taken = frozenset(met.names.values())
            for name in further:
                if name not in taken:
                    found |= {met.in_base(name): None, name: None}
    return tuple(found)


def _idle(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The patterns that match no name."""
    return [
        pattern
        for pattern in dict.fromkeys(patterns)
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that are written most as a pattern."""
    plain = pattern[:200].replace("*", "")
    return difflib.get_close_matches(plain, names, NEAREST, cutoff=0.0)


def _short(pattern: str) -> str:
    """A pattern in quotes, however long."""
    return repr(pattern if len(pattern) <= 100 else f"{pattern[:99]}…")
