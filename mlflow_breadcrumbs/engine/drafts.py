"""Recipes with something left open, to be found from the weights before the merge.

`draft` reads what a user gives, `settling.settle` looks at the weights and fills in the rest; what
it comes to is an ordinary recipe, which is what is recorded.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe

AUTO = "auto"
"""The method that is chosen from the weights, and an alpha that is."""
RULE = 2
"""The number of the rules by which `settling` finds what is open; another rule has another one."""
METHOD, ALPHA, BALANCE = "method", "alpha", "balance"
"""What can be left open."""
NEUTRAL = frozenset({"weights", "include", "exclude", "own", "dtype"})
"""Fields that go with every method, the automatic one too."""


@dataclasses.dataclass(frozen=True)
class RecipeDraft:
    """A recipe, and what of it is still open."""

    recipe: recipe.MergeRecipe
    """Fields that are open have any value."""
    open: frozenset[str] = frozenset()
    """Of `METHOD`, `ALPHA` and `BALANCE`."""
    patterns: tuple[str, ...] = ()
    """Patterns that were named for this merge, each of which must match a tensor."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was found, and why."""

    recipe: recipe.MergeRecipe
    opened: tuple[str, ...]
    """What had been left open, sorted."""
    why: str
    """One sentence without its full stop."""
    measured: Mapping[str, Any]
    """What the sentence speaks of."""
    method: str | None = None
    """The preset that was chosen, where the method was open."""

    def to_dict(self) -> dict[str, Any]:
        """For `lineage.json` and `--json`."""
        return {"open": list(self.opened), "why": self.why, "measured": dict(self.measured)}


def draft(
    *,
    sources: int,
    method: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    default: str = "breadcrumbs",
) -> RecipeDraft:
    """The recipe of a command, as `recipe.make` has it, or one with something left open.

    Args:
        sources: how many there are.
        method: a preset, or `auto`.
        file: a recipe file, which may leave the same things open.
        overrides: fields of the recipe; `alpha` may be `auto`, `balance` true.
        default: the method where none is named and no field says how to merge.

    Raises:
        RecipeError: a field is out of its range, or goes together with no automatic method.
    """
    given: dict[str, Any] = {k: v for k, v in (overrides or {}).items() if v is not None}
    fields = recipe.load_fields(file) if file is not None else {}
    named = fields.pop("method", None)
    bare = "density" in fields
    fields |= given
    named = method if method is not None else named
    if named is None and set(fields) <= NEUTRAL:
        named = default
    left = set()
    if fields.pop(BALANCE, False):
        left.add(BALANCE)
    if fields.get(ALPHA) == AUTO:
        left.add(ALPHA)
        fields[ALPHA] = 1.0
    if named == AUTO:
        if said := sorted((set(fields) - NEUTRAL) | left):
            raise errors.RecipeError(
                f"--method auto chooses {', '.join(said)} itself; leave that out, or name a method"
            )
        left.add(METHOD)
        fields, bare, named = {"density": 1.0} | fields, True, None
    settings = recipe.of_fields(fields, sources=sources, method=named, bare=bare)
    return RecipeDraft(settings, frozenset(left))
