"""One matrix of all sources: as recipes that decompose see it, and what they make of it."""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends import (
    ace,
    arithmetic,
    calibration,
    covariance,
    singular,
    subspaces,
)

FLAT = ("iso", "iso_cts")
"""Makes all singular values alike, so the result is calibrated along the directions of the sum."""


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
    given: Matrices, weights: tuple[float, ...], settings: recipe.MergeRecipe, blocks: int = 1
) -> torch.Tensor:
    """Combine the sources' matrices, and calibrate the result where the recipe says so.

    Args:
        given: the matrix of every source.
        weights: w_t of every source.
        settings: the recipe.
        blocks: how many matrices of as many rows lie one above the other, to be merged apart.

    Returns:
        What is added to the base's matrix, before alpha; float64 [rows, columns].

    Raises:
        torch.linalg.LinAlgError: a decomposition does not converge.
    """
    if blocks > 1:
        return torch.cat([_merged(one, weights, settings) for one in _apart(given, blocks)])
    return _merged(given, weights, settings)


def _apart(given: Matrices, blocks: int) -> Iterator[Matrices]:
    """Each of the matrices that lie one above the other; masked ones are found once."""
    masked = [matrix.chunk(blocks) for matrix in given.masked()]

    def part(number: int) -> Matrices:
        return Matrices(
            given.count,
            masked=lambda: (parts[number] for parts in masked),
            whole=lambda: (matrix.chunk(blocks)[number] for matrix in given.whole()),
        )

    return map(part, range(blocks))


def _merged(
    given: Matrices, weights: tuple[float, ...], settings: recipe.MergeRecipe
) -> torch.Tensor:
    if settings.calibrate == "none":
        return _combined(given, weights, settings)
    directions = None
    if settings.combine in FLAT:
        masked = list(given.masked())
        given = dataclasses.replace(given, masked=lambda: iter(masked))
        total = arithmetic.sum_in_order(masked).double()
        if total.any():
            directions = singular.leading(total, min(total.shape)).left
    combined = _combined(given, weights, settings)
    floor = calibration.FLOORS.get(settings.combine)
    return calibration.calibrated(combined, given.whole(), floor, directions)


def _combined(
    given: Matrices, weights: tuple[float, ...], settings: recipe.MergeRecipe
) -> torch.Tensor:
    match settings.combine:
        case "covariance":
            return covariance.weighted(
                _pairs(given, settings),
                ridge=settings.ridge,
                normalize=settings.normalize,
                center=settings.center,
            )
        case "ace":
            energies = [float(whole.double().square().sum()) for whole in given.whole()]
            return ace.combined(_pairs(given, settings), energies, ridge=settings.ridge)
        case "iso_cts":
            return subspaces.isotropic(list(given.masked()))
        case "mean":
            return arithmetic.combine(list(given.masked()), weights, "mean")
        case "sum":
            return arithmetic.sum_in_order(given.masked())
        case how:
            return singular.combine(given.masked(), given.count, how)


def _pairs(
    given: Matrices, settings: recipe.MergeRecipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of every source the masked matrix and the whole; one and the same where nothing is masked."""
    if settings.density == 1 and settings.consensus == "none":
        return ((matrix, matrix) for matrix in given.masked())
    return zip(given.masked(), given.whole(), strict=True)
