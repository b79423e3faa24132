"""How many elements a mask keeps: the one rounding rule.

A worked example. A unit of n = 12 task-vector elements, density 0.5, gamma 0.17:

    n_high = ⌊0.17 · 12⌋ = ⌊2.04⌋ = 2      the two largest changes are dropped
    n_keep = ⌊0.5 · 12⌋  = 6               six are kept
    n_low  = 12 − 2 − 6  = 4               the four smallest are dropped

    index   0     1     2     3     4     5     6     7     8     9     10    11
    τ      +.5   −.1   +.3   −.9   +.2   −.3   +.8   −.4   +.1   +.6   −.2   +.7
    rank    7     0     4    11     2     5    10     6     1     8     3     9
    kept    ✓     ·     ✓     ·     ·     ✓     ·     ✓     ·     ✓     ·     ✓

Ranks order the elements by (|τ|, index): the two of magnitude .1 have ranks 0 and 1 by their index,
those of .2 ranks 2 and 3, those of .3 ranks 4 and 5. Ranks 4 … 9 are kept.
"""

import math
from typing import NamedTuple

from mlflow_breadcrumbs.engine import recipe


class Counts(NamedTuple):
    """How many of a unit's elements are dropped as smallest, kept, and dropped as largest."""

    low: int
    keep: int
    high: int


def counts(n: int, density: float, gamma: float) -> Counts:
    """The sizes of the three parts of a unit of `n` elements, which sum to `n`.

    The products are exact on the decimal numbers as written: ⌊0.29 · 100⌋ is 29, though the binary
    product 0.29 * 100 is 28.999….

    Args:
        n: elements in the unit, ≥ 0.
        density: fraction kept, 0 < density ≤ 1.
        gamma: fraction dropped as largest, 0 ≤ gamma ≤ 1 − density.
    """
    high = math.floor(recipe.exact(gamma) * n)
    keep = math.floor(recipe.exact(density) * n)
    return Counts(low=n - high - keep, keep=keep, high=high)
