"""What `combine: tsv` and `combine: iso` make of the matrices of all sources to one tensor.

Pure functions, matrices in, matrix out, in float64 on the device that the matrices are on. The
formulas are those of TSV-M (Gargiulo et al., CVPR 2025, arXiv 2412.00081) and Iso-C (Marczak et
al., ICML 2025, arXiv 2502.04959); docs/methods.md says where a choice was ours.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from mlflow_breadcrumbs.engine.backends import arithmetic

SINGLE, DOUBLE = 2.0**-23, 2.0**-52
"""The spacing of float32 and of float64 numbers at 1."""


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
    for matrix in matrices:
        zeros = torch.zeros_like(matrix, dtype=torch.float64)
        if matrix.any():
            found.append(leading(matrix.double(), max(1, min(matrix.shape) // sources)))
    if not found:
        return zeros
    left, values, right = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    core = inverse_root(left) * values @ inverse_root(right)
    combined: torch.Tensor = left @ core @ right.T
    return combined


def isotropic(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """Iso-C: the sum of the matrices, every singular value replaced by their mean.

    Singular values that are zero, up to the rounding of float64, stay zero and are not counted:
    the sum has no direction there.
    """
    total = arithmetic.sum_in_order(matrices).double()
    largest = _largest(total)
    if not largest:
        return total
    left, values, right = torch.linalg.svd(total / largest, full_matrices=False)
    kept = values > max(total.shape) * DOUBLE * values[0]
    mean: torch.Tensor = kept * values[kept].mean() * largest
    flat: torch.Tensor = left * mean @ right
    return flat


def leading(matrix: torch.Tensor, count: int) -> Factors:
    """The `count` leading components of a matrix, or all that have a singular value above zero.

    From the eigenvectors of the smaller of AᵀA and AAᵀ in float64: for float32 inputs that is as
    accurate as they are, and several times as fast as a whole decomposition. Zero is what float32
    inputs of this size can't tell from it: max(rows, columns)·2⁻²³ of the largest.

    Args:
        matrix: [rows, columns], float64, not zero.
        count: at least 1.
    """
    largest = _largest(matrix)
    tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T) / largest
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    values = squares.flip(0)[:count].clamp(min=0).sqrt()
    values = values[values > len(tall) * SINGLE * values[0]]
    near = vectors.flip(1)[:, : len(values)]
    far = tall @ near / values
    left, right = (far, near) if tall.shape == matrix.shape else (near, far)
    return Factors(left, values * largest, right)


def inverse_root(vectors: torch.Tensor) -> torch.Tensor:
    """(XᵀX)^(−1/2) of unit columns X [elements, K]; zero where X has no extent."""
    squares, directions = torch.linalg.eigh(vectors.T @ vectors)
    zero = (max(vectors.shape) * SINGLE) ** 2 * squares[-1]
    scales = torch.where(squares > zero, squares.clamp(min=zero).rsqrt(), 0.0)
    root: torch.Tensor = directions * scales @ directions.T
    return root


def _largest(matrix: torch.Tensor) -> float:
    """The largest magnitude; 0 where there are no elements."""
    return float(matrix.abs().max()) if matrix.numel() else 0.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone, so that the bits don't depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
