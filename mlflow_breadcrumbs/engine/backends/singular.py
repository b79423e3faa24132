"""What `combine: tsv` and `combine: iso` make of the matrices of all sources to one tensor.

Pure functions, matrices in, matrix out, in float64 on the device that the matrices are on. The
formulas are those of TSV-M (Gargiulo et al., CVPR 2025, arXiv 2412.00081) and Iso-C (Marczak et
al., ICML 2025, arXiv 2502.04959); docs/methods.md says where a choice was ours.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from mlflow_breadcrumbs.engine.backends import arithmetic, symmetric

SINGLE, DOUBLE = 2.0**-23, 2.0**-52
"""The spacing of float32 and of float64 numbers at 1."""
STEEP = 1e-9
"""Least ratio of the squares' eigenvalues for which an isotropic sum is made from them: float64
leaves these to 1e-7 of themselves."""
ALIKE = 1e-2
"""Least ratio of the squares' eigenvalues for which a last product in float32 is good to 1e-6."""


class Factors(NamedTuple):
    """The leading part of a singular value decomposition, left · diag(values) · rightᵀ."""

    left: torch.Tensor
    """[rows, k] orthonormal columns."""
    values: torch.Tensor
    """[k] singular values, descending, all above zero."""
    right: torch.Tensor
    """[columns, k] orthonormal columns."""


def combine(matrices: Iterable[torch.Tensor], sources: int, how: str) -> torch.Tensor:
    """One matrix from those of all sources, float64.

    Args:
        matrices: [rows, columns] each, one per source, in order; taken one at a time.
        sources: how many there are.
        how: `tsv` or `iso`.

    Raises:
        torch.linalg.LinAlgError: a decomposition does not converge.
    """
    return decorrelated(matrices, sources) if how == "tsv" else isotropic(matrices)


def decorrelated(matrices: Iterable[torch.Tensor], sources: int) -> torch.Tensor:
    """TSV-M: the leading singular vectors of every source, made orthogonal to the other sources'.

    Of each matrix the k = max(1, ⌊r/T⌋) leading components are kept, r the smaller of its sides.
    U [rows, K], Σ and V [columns, K] are those of all sources side by side. Each of U and V is
    replaced by the nearest matrix with orthonormal columns (orthogonal Procrustes), which is
    U·(UᵀU)^(−1/2); the result is U·(UᵀU)^(−1/2) · Σ · (VᵀV)^(−1/2)·Vᵀ. Directions in which U or V
    has no extent, as where two sources agree, stay zero.

    Args:
        matrices: [rows, columns] each; taken one at a time, and only their factors are kept.
        sources: T, how many there are; at least 1.
    """
    found, zeros = [], torch.empty(0)
    enough = torch.float32
    for matrix in matrices:
        zeros = torch.zeros_like(matrix, dtype=torch.float64)
        enough = torch.promote_types(enough, symmetric.enough(matrix))
        if matrix.any():
            found.append(leading(matrix, max(1, min(matrix.shape) // sources)))
    if not found:
        return zeros
    left, values, right = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    if len(left) < len(right):
        return _procrustes(right, values, left, enough).T
    return _procrustes(left, values, right, enough)


def isotropic(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """Iso-C: the sum of the matrices, every singular value replaced by their mean.

    Singular values that are zero, up to the rounding of float64, stay zero and are not counted:
    the sum has no direction there.
    """
    total = arithmetic.sum_in_order(matrices)
    largest = _largest(total)
    if not largest:
        return total.double()
    tall = total if total.shape[0] >= total.shape[1] else total.T
    squared, directions = symmetric.eigenvectors(_squares(tall, largest))
    if float(squared[-1]) > STEEP * float(squared[0]):
        values = squared.sqrt()
        root = directions / values @ directions.T * values.mean()
        flat = symmetric.times(tall, root.to(_enough(squared, symmetric.enough(tall)))).double()
        return flat if tall.shape == total.shape else flat.T
    left, values, right = torch.linalg.svd(total.double() / largest, full_matrices=False)
    kept = values > max(total.shape) * DOUBLE * values[0]
    mean: torch.Tensor = kept * values[kept].mean() * largest
    exact: torch.Tensor = left * mean @ right
    return exact


def leading(matrix: torch.Tensor, count: int, dtype: torch.dtype = torch.float64) -> Factors:
    """The `count` leading components of a matrix, or all that have a singular value above zero.

    From the eigenvectors of the smaller of AᵀA and AAᵀ in float64: for float32 inputs that is as
    accurate as they are, and several times as fast as a whole decomposition. Zero is what float32
    inputs of this size can't tell from it: max(rows, columns)·2⁻²³ of the largest.

    Args:
        matrix: [rows, columns], not zero.
        count: at least 1.
        dtype: of the vectors of the longer side, float32 or float64; the others' is float64.
    """
    largest = _largest(matrix)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squared, near = symmetric.eigenvectors(_squares(tall, largest), count)
    values = squared.clamp(min=0).sqrt()
    values = values[values > len(tall) * SINGLE * values[0]]
    near = near[:, : len(values)]
    values = values * largest
    far = symmetric.times(tall, (near / values).to(dtype))
    left, right = (far, near) if tall.shape == matrix.shape else (near, far)
    return Factors(left, values, right)


def _procrustes(
    far: torch.Tensor, values: torch.Tensor, near: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """F·(FᵀF)^(−1/2) · diag(values) · (NᵀN)^(−1/2)·Nᵀ, float64.

    Args:
        far: F [elements, K], unit columns.
        values: [K].
        near: N [fewer elements, K], unit columns.
        dtype: of the last product, if that loses nothing.
    """
    extents, turns = symmetric.eigenvectors(symmetric.squares(far))
    others, directions = symmetric.eigenvectors(symmetric.squares(near))
    core = (turns.T * values) @ directions * inverse_root(others, near)
    core = (turns * inverse_root(extents, far)) @ (core @ (near @ directions).T)
    if not symmetric.MODERATE[0] < float(values.max()) < symmetric.MODERATE[1]:
        dtype = torch.float64  # or the product leaves the range of float32
    return symmetric.times(far, core.to(_enough(extents, dtype))).double()


def inverse_root(squared: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """λ^(−1/2) of the eigenvalues λ of XᵀX, descending; zero where X has no extent.

    Args:
        squared: [K] λ.
        vectors: X [elements, K].
    """
    zero = (max(vectors.shape) * SINGLE) ** 2 * squared[0]
    return torch.where(squared > zero, squared.clamp(min=zero).rsqrt(), 0.0)


def _squares(tall: torch.Tensor, largest: float) -> torch.Tensor:
    """AᵀA of A / largest, so that no square is too large or too small; float64."""
    if symmetric.MODERATE[0] < largest < symmetric.MODERATE[1]:
        return symmetric.squares(tall) / largest / largest
    return symmetric.squares(tall.double() / largest)


def _enough(squared: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype itself for a product with a matrix whose directions differ little in length.

    What a product in float32 loses is relative to the longest direction; where others are much
    shorter and all are made equally long, it would show.

    Args:
        squared: the squares of the lengths, descending.
        dtype: which is enough for the matrix as it is.
    """
    return dtype if bool(squared[-1] > ALIKE * squared[0]) else torch.float64


def _largest(matrix: torch.Tensor) -> float:
    """The largest magnitude; 0 where there are no elements."""
    if not matrix.numel():
        return 0.0
    least, most = torch.aminmax(matrix)
    return max(-float(least), float(most))
