"""What `combine: covariance` makes of the matrices of all sources to one tensor.

A pure function, matrices in, matrix out, in float64 on the device that the matrices are on. The
formula is that of ACTMat and TACT (arXiv 2604.01329), the ridge that of ACE (arXiv 2603.02945),
relative to the covariances; docs/methods.md says where a choice was ours.
"""

from collections.abc import Iterable

import torch

from mlflow_breadcrumbs.engine.backends import singular, symmetric

STEEP = 1e-6
"""Least ratio of the pivots of a covariance's root for which it is inverted by that root."""


def weighted(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    ridge: float,
    normalize: bool,
    center: bool = False,
) -> torch.Tensor:
    """The sources' changes, each weighted by the covariance of its rows: (Σ τ_t C_t)·(Σ C_t)⁺.

    C_t = M_tᵀM_t [columns, columns], of the masked change M_t, stands for the inputs that source
    t's task feeds the layer. With a ridge ρ, C_t + ε·1 takes its place, ε = ρ · mean_t tr(C_t) /
    columns.

    Args:
        pairs: per source M_t, the masked change, and τ_t, the whole one, [rows, columns] each;
            taken one at a time.
        ridge: ρ, at least 0.
        normalize: whether C_t is divided by its trace first.
        center: whether the mean of M_t's rows is taken from them before.

    Returns:
        float64 [rows, columns].
    """
    numerator = covariances = total = torch.zeros((), dtype=torch.float64)
    trace, sources = 0.0, 0
    for masked, whole in pairs:
        if not sources:
            numerator = torch.zeros_like(whole, dtype=torch.float64)
            covariances = numerator.new_zeros((whole.shape[1],) * 2)
            total = torch.zeros_like(numerator) if ridge else total
        if center:
            masked = masked.double()
            masked = masked - masked.mean(0)
        energy = float(torch.linalg.vector_norm(masked, dtype=torch.float64)) ** 2
        weight = 1 / energy if normalize and energy else 1.0
        _add(numerator, covariances, masked, whole, weight)
        trace += weight * energy
        if ridge:
            total += whole
        sources += 1
    if ridge and trace:
        added = ridge * trace / sources / len(covariances)
        numerator += added * total
        covariances.diagonal().add_(sources * added)
    return _divided(numerator, covariances)


def _add(
    numerator: torch.Tensor,
    covariances: torch.Tensor,
    masked: torch.Tensor,
    whole: torch.Tensor,
    weight: float,
) -> None:
    """Add one source's τ_t C_t and C_t; of (τ_t M_tᵀ) M_t and τ_t (M_tᵀ M_t) what is less work."""
    own = symmetric.squares(masked).mul_(weight)
    covariances += own
    rows, columns = whole.shape
    if rows < columns:
        masked = masked.double()
        numerator.addmm_(whole.double() @ masked.T, masked, alpha=weight)
        return
    for part, sums in zip(symmetric.blocks(whole), symmetric.blocks(numerator), strict=True):
        sums.addmm_(part.double(), own)


def _divided(numerator: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Numerator · squares⁺, of a symmetric matrix without negative eigenvalues; in place."""
    largest = squares.abs().max() if squares.numel() else squares.new_zeros(())
    if not largest:
        return torch.zeros_like(numerator)
    squares = squares / largest
    root, failed = torch.linalg.cholesky_ex(squares)
    pivots = root.diagonal()
    if not failed and float(pivots.min()) > STEEP * float(pivots.max()):
        for part in symmetric.blocks(numerator):
            part.copy_(torch.cholesky_solve(part.T, root).T / largest)
        return numerator
    values, vectors = torch.linalg.eigh(squares)
    there = values > len(values) * singular.DOUBLE * values[-1]
    inverse = torch.where(there, 1 / torch.where(there, values, 1.0), 0.0)
    quotient: torch.Tensor = (numerator @ vectors * inverse) @ vectors.T
    return quotient / largest
