"""How sure a figure is: intervals of average normalized accuracies, and of rank correlations."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from study import measuring

Z = statistics.NormalDist().inv_cdf(0.975)


class Figure(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    half: float
    """Half the width of the interval."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"

    def signed(self) -> str:
        """As a difference."""
        return f"{self.mean:+.3f} ± {self.half:.3f}"


def variance(measured: measuring.Measured) -> float:
    """Of an average normalized accuracy, from the numbers of images alone.

    Merge and source are taken for independent (delta method, binomial counts). They look at the
    same images and mostly agree, so this is on the safe side.
    """
    total = 0.0
    for task, right in measured.correct.items():
        images = measured.total[task]
        own = right / images
        right_alone, images_alone = measured.source[task]
        alone = right_alone / images_alone
        total += own * (1 - own) / images / alone**2
        total += own**2 / alone**4 * alone * (1 - alone) / images_alone
    return total / len(measured.correct) ** 2


def average(groups: Sequence[Sequence[measuring.Measured]]) -> Figure:
    """The mean over groups of tasks and over seeds.

    With three seeds or more the interval is Student's, over the seeds' means, if that is wider
    than what the numbers of images alone give; with fewer it is the latter, and says nothing about
    other seeds.

    Args:
        groups: One sequence per seed, one measurement per group in it.
    """
    means = [statistics.fmean(each.average for each in own) for own in groups]
    count = sum(map(len, groups))
    error = math.sqrt(sum(variance(each) for own in groups for each in own)) / count
    half = Z * error
    if len(means) >= 3:
        half = max(half, _student(len(means)) * statistics.stdev(means) / math.sqrt(len(means)))
    return Figure(statistics.fmean(means), half)


def difference(ours: Sequence[measuring.Measured], theirs: Sequence[measuring.Measured]) -> Figure:
    """By how much a merge is better than another: Student's interval over tasks and seeds, paired.

    Both were measured on the same images, so this is surer than two intervals side by side.

    Args:
        ours: By seed.
        theirs: By seed, on the same tasks.
    """
    differences = [
        one.normalized(task) - other.normalized(task)
        for one, other in zip(ours, theirs, strict=True)
        for task in one.correct
    ]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Figure(statistics.fmean(differences), _student(len(differences)) * error)


def _student(count: int) -> float:
    """The 97.5 % quantile of Student's distribution for a mean of `count` values."""
    from scipy import stats

    return float(stats.t.ppf(0.975, count - 1))


def spearman(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p-value."""
    from scipy import stats

    found = stats.spearmanr(one, other)
    return float(found.statistic), float(found.pvalue)
