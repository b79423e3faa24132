"""Which recipes a sweep tries: a grid over any fields, or random draws.

The values of a field are written as on the command line:

```
0.1,0.14,0.2        these
0.3:1.5:0.3         from 0.3 to 1.5 in steps of 0.3, both ends included; exact decimals
0.05..0.3           any number between, for random draws
none,mass           words, for fields that take them
```

In a YAML file each field of the recipe has such a text, one value, or a list of values (of lists,
for `weights`, `include`, `exclude` and `own`); `method` is a field too.
"""

import dataclasses
import fractions
import itertools
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe

NUMBERS = ("density", "gamma", "alpha", "depth")
WORDS = ("method", "unit", "consensus", "combine", "calibrate", "vectors", "packed", "dtype")
LISTS = ("weights", "include", "exclude", "own")

DEFAULT: Mapping[str, str] = {
    "density": "0.1,0.14,0.2,0.3",
    "gamma": "0,0.01,0.02",
    "alpha": "0.3,0.5,0.75,1,1.5",
}
"""What is tried when no field is given: 60 recipes around the published ones."""

LONGEST = 60
"""Characters of a number."""

MOST_POINTS = 100_000
"""More is taken for a slip of the pen."""

Point = Mapping[str, Any]
"""A value per field."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Any number from `low` to `high`."""

    low: float
    high: float

    def draw(self, generator: random.Random) -> float:
        """One of them, in four significant digits, so that the recipe can be read."""
        drawn = float(f"{generator.uniform(self.low, self.high):.4g}")
        return min(max(drawn, self.low), self.high)


Values = Range | tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values for some fields of a recipe, in the order that they vary; the last one fastest."""

    axes: Mapping[str, Values]

    def points(self) -> tuple[Point, ...]:
        """Every combination.

        Raises:
            RecipeError: a field has an interval, or there are too many combinations.
        """
        for field, values in self.axes.items():
            if isinstance(values, Range):
                raise errors.RecipeError(
                    f"{field} is {values.low:g}..{values.high:g}, which has no end of values; "
                    f"draw some of them (--random N), or write {values.low:g}:{values.high:g}:STEP"
                )
        lists = [values for values in self.axes.values() if isinstance(values, tuple)]
        if (count := math.prod(map(len, lists))) > MOST_POINTS:
            raise errors.RecipeError(
                f"the grid has {count} points, more than {MOST_POINTS}; draw some of them "
                "(--random N), or give fewer values"
            )
        return tuple(
            dict(zip(self.axes, combination, strict=True))
            for combination in itertools.product(*lists)
        )

    def draw(self, generator: random.Random) -> Point:
        """One point, each field by itself, every value or number alike."""
        return {
            field: values.draw(generator) if isinstance(values, Range) else generator.choice(values)
            for field, values in self.axes.items()
        }


def parse(field: str, value: Any) -> Values:
    """The values of a field, as they are written on the command line or in YAML.

    Raises:
        RecipeError: they can't be read, or the field is none of a recipe's.
    """
    if field not in (*NUMBERS, *WORDS, *LISTS):
        raise errors.RecipeError(
            f"a grid has no field {field!r}; its fields are {', '.join((*NUMBERS, *WORDS, *LISTS))}"
        )
    if field in LISTS:
        return _lists(field, value)
    if not isinstance(value, str):
        value = list(value) if isinstance(value, list | tuple) else [value]
        return _checked(field, value)
    if field in NUMBERS and (match := re.fullmatch(r"(.+?)\.\.(.+)", value.strip())):
        low, high = (float(_number(field, part)) for part in match.groups())
        if low >= high:
            raise errors.RecipeError(f"{field} is {value!r}; the first number must be smaller")
        return Range(low, high)
    parts = [part.strip() for part in value.split(",")]
    if field in WORDS:
        return _checked(field, parts)
    return _checked(field, [number for part in parts for number in _numbers(field, part)])


def load(path: str | Path) -> dict[str, Values]:
    """The fields of a YAML file with their values.

    Raises:
        RecipeError: the file can't be read, or a field's values can't.
    """
    return {field: parse(field, value) for field, value in recipe.load_fields(path).items()}


def recipes(
    points: Sequence[Point], make: Callable[[Point], recipe.MergeRecipe]
) -> tuple[recipe.MergeRecipe, ...]:
    """The recipe of each point; two points with one recipe count once.

    Args:
        points: what a grid gave.
        make: gives the recipe of a point.

    Raises:
        RecipeError: a point is impossible; the message names every one, and why.
    """
    found: dict[str, recipe.MergeRecipe] = {}
    problems = []
    for point in points:
        try:
            settings = make(point)
        except errors.RecipeError as error:
            problems.append(f"{_written(point)}: {error}")
        else:
            found.setdefault(settings.digest, settings)
    if problems:
        shown = problems[:20] + ([f"… and {len(problems) - 20} more"] if problems[20:] else [])
        raise errors.RecipeError(
            f"{len(problems)} of the grid's {len(points)} points are no recipes; nothing was "
            "run:\n  " + "\n  ".join(shown)
        )
    return tuple(found.values())


def draws(
    grid: Grid, count: int, seed: int, make: Callable[[Point], recipe.MergeRecipe]
) -> tuple[recipe.MergeRecipe, ...]:
    """`count` different recipes, drawn at random; what is no recipe is drawn anew.

    Args:
        grid: what to draw from.
        count: at least 1.
        seed: the same one gives the same recipes.
        make: gives the recipe of a point.

    Raises:
        RecipeError: there are not so many recipes to draw.
    """
    generator = random.Random(seed)
    found: dict[str, recipe.MergeRecipe] = {}
    last = ""
    for _ in range(100 * count + 1000):
        if len(found) == count:
            return tuple(found.values())
        point = grid.draw(generator)
        try:
            settings = make(point)
        except errors.RecipeError as error:
            last = f"; {_written(point)}: {error}"
        else:
            found.setdefault(settings.digest, settings)
    raise errors.RecipeError(
        f"only {len(found)} different recipes could be drawn, {count} were asked for (--random)"
        f"{last}. Give more values, or draw fewer"
    )


def _numbers(field: str, text: str) -> list[float]:
    """One number, or a range `start:stop:step`, its numbers exact as decimals."""
    parts = text.split(":")
    if len(parts) == 1:
        return [float(_number(field, text))]
    if len(parts) != 3:
        raise errors.RecipeError(f"{field} has {text!r}; write START:STOP:STEP, as 0.3:1.5:0.3")
    start, stop, step = (_number(field, part) for part in parts)
    if step <= 0 or stop < start:
        raise errors.RecipeError(
            f"{field} has {text!r}; the step must be above 0, and the stop not below the start"
        )
    if (count := math.floor((stop - start) / step) + 1) > MOST_POINTS:
        raise errors.RecipeError(f"{field} has {text!r}: {count} values; give a larger step")
    return [float(start + number * step) for number in range(count)]


def _number(field: str, text: str) -> fractions.Fraction:
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    # The exponent is short, since the number is exact: 1e999999999 would fill the memory.
    if len(text) > LONGEST or not re.fullmatch(
        r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?\s*", text, re.ASCII
    ):
        raise errors.RecipeError(
            f"{field} has {shown!r}, which is no number; write 0.1,0.2 or 0.1:0.5:0.1"
        )
    number = fractions.Fraction(text)
    if abs(number) > recipe.FLOAT32_MAX:
        raise errors.RecipeError(f"{field} has {shown!r}; it must be finite in float32")
    return number


def _checked(field: str, values: Sequence[Any]) -> tuple[Any, ...]:
    kind: Any = str if field in WORDS else int | float
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) or value == "":
            wanted = "a word" if kind is str else "a number"
            raise errors.RecipeError(f"{field} has the value {value!r}; it must be {wanted}")
    if not values:
        raise errors.RecipeError(f"{field} has no values; give at least one, or leave it out")
    return tuple(dict.fromkeys(values))


def _lists(field: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise errors.RecipeError(
            f"{field} is {value!r}; in a grid it must be a list, or a list of such lists"
        )
    nested = value if all(isinstance(one, list) for one in value) else [value]
    return tuple(tuple(one) for one in nested)


def _written(point: Point) -> str:
    return ", ".join(f"{field} {value}" for field, value in point.items())
