"""How sure a share is: Wilson's interval, and Newcombe's of a difference."""

import math
import statistics
from typing import NamedTuple


class Interval(NamedTuple):
    """What an accuracy may be on images like these, 0…1 each."""

    low: float
    high: float


def wilson(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of a fraction (Wilson 1927; Brown, Cai & DasGupta 2001, section 3.1.1).

    Unlike the mean ± 2 standard errors it stays inside 0…1, and has a width where all or none of
    the images are right.

    Args:
        correct: 0 … `total`.
        total: images, at least 1.
        confidence: 0 < confidence < 1.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Interval(low, high)


def newcombe(one: tuple[int, int], other: tuple[int, int], confidence: float = 0.95) -> Interval:
    """The interval of the difference of two fractions, `one` − `other`, -1…1.

    Method 10 of Newcombe (1998), "Interval estimation for the difference between independent
    proportions": Wilson's intervals, combined by the squares of their halves. Two models on the
    same images are usually right on the same ones, so that the true interval is narrower.

    Args:
        one: correct and total.
        other: the same of what it is held against.
        confidence: 0 < confidence < 1.
    """
    (one_low, one_high), (other_low, other_high) = (
        wilson(*counts, confidence) for counts in (one, other)
    )
    one_share, other_share = one[0] / one[1], other[0] / other[1]
    difference = one_share - other_share
    return Interval(
        difference - math.hypot(one_share - one_low, other_high - other_share),
        difference + math.hypot(one_high - one_share, other_share - other_low),
    )
