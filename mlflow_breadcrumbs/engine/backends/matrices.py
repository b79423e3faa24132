"""One matrix of all sources: as recipes that decompose see it, and what they make of it."""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends import arithmetic, calibration, covariance, singular


@dataclasses.dataclass(frozen=True)
class Matrices:
    """One tensor of two dimensions, of all sources; each call gives them anew, one at a time."""

    count: int
    """How many sources there are."""
    masked: Callable[[], Iterator[torch.Tensor]]
    """w_t · (masked τ_t), [rows, columns], after the consensus, in source order."""
    whole: Callable[[], Iterator[torch.Tensor]]
    """w_t · τ_t, [rows, columns], in source order."""


def merge(
    given: Matrices, weights: tuple[float, ...], settings: recipe.MergeRecipe
) -> torch.Tensor:
    """Combine the sources' matrices, and calibrate the result where the recipe says so.

    Returns:
        What is added to the base's matrix, before alpha; float64 [rows, columns].

    Raises:
        torch.linalg.LinAlgError: a decomposition does not converge.
    """
    how = settings.combine
    if how == "covariance":
        pairs = zip(given.masked(), given.whole(), strict=True)
        combined = covariance.weighted(pairs, ridge=settings.ridge, normalize=settings.normalize)
    elif how == "mean":
        combined = arithmetic.combine(list(given.masked()), weights, how).double()
    elif how == "sum":
        combined = arithmetic.sum_in_order(given.masked()).double()
    else:
        combined = singular.combine(given.masked(), given.count, how)
    if settings.calibrate == "none":
        return combined
    return calibration.calibrated(combined, given.whole(), calibration.FLOORS.get(how))
