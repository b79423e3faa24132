"""What `combine: iso_cts` makes of the matrices of all sources to one tensor.

A pure function, matrices in, matrix out, in float64 on the device that the matrices are on. The
formula is that of Iso-CTS (Marczak et al., ICML 2025, arXiv 2502.04959); docs/methods.md says where
a choice was ours.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch

from mlflow_breadcrumbs.engine.backends import arithmetic, singular, symmetric

COMMON = Fraction(8, 10)
"""The share of a matrix's directions that is common to all sources."""


def isotropic(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Common directions of all sources beside those of each, all of one length.

    Of m directions, m the smaller side, about a fifth is shared out among the T sources, as many to
    each; the others are the leading ones of the sum. A source's own are the leading ones of what
    of it lies outside the span of the common left vectors. All side by side, the left vectors and
    the right ones are each replaced by the nearest matrix with orthonormal columns, and the
    singular values by their mean.

    Args:
        matrices: [rows, columns] each, one per source, in order.

    Returns:
        float64 [rows, columns].

    Raises:
        torch.linalg.LinAlgError: a decomposition does not converge.
    """
    total = arithmetic.sum_in_order(matrices).double()
    common, own = counts(min(total.shape), len(matrices))
    found = []
    if total.any() and common:
        found.append(singular.leading(total, common))
    for matrix in matrices if own else ():
        outside = matrix.double()
        if found and total.any():
            left = found[0].left
            outside = outside - left @ (left.T @ outside)
        # What is left of a source that the common directions hold whole is rounding.
        if outside.norm() > max(total.shape) * singular.SINGLE * matrix.double().norm():
            found.append(singular.leading(outside, own))
    if not found:
        return torch.zeros_like(total)
    left, values, right = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    core = _inverse_root(left) @ _inverse_root(right)
    flat: torch.Tensor = values.mean() * (left @ core @ right.T)
    return flat


def counts(directions: int, sources: int) -> tuple[int, int]:
    """How many directions are common, and how many each source has for its own."""
    own = round(Fraction(directions - int(COMMON * directions), sources))
    return directions - own * sources, own


def _inverse_root(vectors: torch.Tensor) -> torch.Tensor:
    """(XᵀX)^(−1/2) of unit columns X [elements, K]; zero where X has no extent."""
    squared, directions = symmetric.eigenvectors(symmetric.squares(vectors))
    root: torch.Tensor = directions * singular.inverse_root(squared, vectors) @ directions.T
    return root
