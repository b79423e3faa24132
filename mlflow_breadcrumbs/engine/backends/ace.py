"""What `combine: ace` makes of the matrices of all sources to one tensor.

A pure function, matrices in, matrix out, in float64 on the device that the matrices are on. The
formula is that of ACE-Merging (Xu et al., CVPR 2026, arXiv 2603.02945), adaptive covariance
estimation; docs/methods.md says where a choice was ours.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

import torch

from mlflow_breadcrumbs.engine.backends import singular, symmetric

HETEROGENEOUS = 0.3
"""The spread of the logarithms of the sources' energies, var/mean², above which each covariance is
divided by its trace."""
STEEP = 1e-12
"""Least ratio of the pivots of a matrix by which it is divided by elimination."""
REFINED = 0.3
"""The share of the leading directions that get a common length where energies are spread."""


def combined(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], energies: Sequence[float], *, ridge: float
) -> torch.Tensor:
    """The sources' changes, weighted by the covariances of their rows, adapted to their spread.

    W_t is τ_t without the mean of its rows, Σ_t the covariance M_tᵀM_t of the masked change without
    the mean of its. With ε = ridge, B = Σ W_t(Σ_t + ε_t·1), S = Σ(Σ_t + ε_t·1) and c the column
    means of ΣΣ_t, the result is B·(S + 1cᵀ)⁻¹, ε_t = ε. Where energies are spread, Σ_t is divided
    by its trace, ε_t = ε/tr(Σ_t) with the trace of before, c is divided by the mean energy, and the
    leading directions of Δ' = Στ_t(Σ_t − S/T) + Δ are added, all as long as they are on average.

    Args:
        pairs: per source M_t, the masked change, and τ_t, the whole one, [rows, columns] each;
            taken one at a time.
        energies: per source Σ τ_t², of the same matrices.
        ridge: ε, at least 0, in the unit of τ².

    Returns:
        float64 [rows, columns].

    Raises:
        torch.linalg.LinAlgError: a decomposition does not converge.
    """
    spread = heterogeneous(energies)
    numerator = covariances = mean = projected = total = torch.zeros((), dtype=torch.float64)
    zeros, changed = numerator, 0
    for masked, whole in pairs:
        masked, whole = masked.double(), whole.double()
        zeros = torch.zeros_like(whole)
        if not whole.any():
            continue
        changed += 1
        rows = masked - masked.mean(0)
        own = symmetric.squares(rows)
        mean = mean + own.mean(0)
        trace = float(own.trace())
        added = ridge
        if spread and trace:
            own /= trace
            added = ridge / trace
        projected = projected + whole @ own
        total = total + whole
        centred = whole - whole.mean(0)
        numerator = numerator + centred @ own + added * centred
        own.diagonal().add_(added)
        covariances = covariances + own
    if not changed:
        return zeros
    if spread:
        mean = mean / statistics.fmean(energy for energy in energies if energy)
    merged = _divided(numerator, covariances + mean)
    if not spread:
        return merged
    return merged + _refinement(projected - total @ covariances / changed + merged)


def heterogeneous(energies: Sequence[float]) -> bool:
    """Whether the sources' energies are so far apart that their covariances must be made alike."""
    logarithms = [math.log(energy) for energy in energies if energy]
    if len(logarithms) < 2:
        return False
    spread = statistics.variance(logarithms)
    return spread > HETEROGENEOUS * statistics.fmean(logarithms) ** 2


def _divided(numerator: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Numerator · matrix⁻¹; by its pseudoinverse where it has none."""
    largest = matrix.abs().max() if matrix.numel() else matrix.new_zeros(())
    if not largest:
        return torch.zeros_like(numerator)
    matrix = matrix / largest
    factors, pivots, failed = torch.linalg.lu_factor_ex(matrix)
    sizes = factors.diagonal().abs()
    if not failed and float(sizes.min()) > STEEP * float(sizes.max()):
        solved: torch.Tensor = torch.linalg.lu_solve(factors, pivots, numerator, left=False)
        return solved / largest
    inverse = torch.linalg.pinv(matrix, rtol=len(matrix) * singular.DOUBLE)
    quotient: torch.Tensor = numerator @ inverse
    return quotient / largest


def _refinement(matrix: torch.Tensor) -> torch.Tensor:
    """The leading directions of a matrix, all of the length that they have on average."""
    count = int(REFINED * min(matrix.shape))
    if not count or not matrix.any():
        return torch.zeros_like(matrix)
    left, values, right = singular.leading(matrix, count)
    flat: torch.Tensor = values.mean() * (left @ right.T)
    return flat
