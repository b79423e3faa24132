"""What `calibrate: svc` makes of a merged matrix: the length of each of its singular directions.

A pure function, in float64 on the device that the matrices are on. The formula is that of the
singular value calibration of arXiv 2602.05536; docs/methods.md says where a choice was ours.
"""

from collections.abc import Iterable

import torch

from mlflow_breadcrumbs.engine.backends import singular, symmetric

FLOORS = {"tsv": 1.0, "iso": 0.2, "iso_cts": 0.2}
"""α of the formula, by what was combined how; 1/T for what is not here, the sums of T sources."""


SHORT = 1e-4
"""Least ratio of squared lengths, to their mean, for which products in float32 are good enough."""


def calibrated(
    merged: torch.Tensor,
    changes: Iterable[torch.Tensor],
    floor: float | None,
    directions: torch.Tensor | None = None,
) -> torch.Tensor:
    """A merged matrix, each of its singular directions as long as the sources are there on average.

    Of merged = U S Vᵀ and a singular vector u of U, let a = uᵀ·merged and a_t = uᵀ·τ_t. The merged
    matrix overstates source t in this direction by the factor s_t = ⟨a, a_t⟩ / ‖a_t‖², and S is
    multiplied by T / Σ_t max(floor, s_t). Sources that left the matrix alone, τ_t = 0, are not
    counted among the T; directions in which merged has no extent stay as they are.

    Args:
        merged: [rows, columns].
        changes: τ_t of every source, [rows, columns], whole, with no mask; taken one at a time.
        floor: the least that a source counts; `None`: 1/T.
        directions: [rows, k] orthonormal columns to take in place of U, for a merged matrix whose
            singular values are all alike, so that it has no U of its own.

    Returns:
        float64 [rows, columns].
    """
    if not merged.any():
        return merged.double()
    low, high = symmetric.MODERATE
    moderate = low < float(torch.linalg.vector_norm(merged)) < high
    dtype = symmetric.enough(merged) if moderate else torch.float64
    if directions is None:
        left, values, right = singular.leading(merged, min(merged.shape), dtype)
        along = (values[:, None] * right.T).to(dtype).contiguous()
    else:
        left, along = directions, directions.T @ merged.double()
    factors = [_overstated(left, along, change) for change in changes if change.any()]
    if not factors:
        return merged.double()
    # A source without extent in a direction says nothing of it: 0/0 there.
    overstated = torch.stack(factors).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    least = 1 / len(factors) if floor is None else floor
    gains = len(factors) / overstated.clamp(min=least).sum(0)
    along *= (gains - 1)[:, None]
    return merged.double().add_(symmetric.times(left, along))


def _overstated(left: torch.Tensor, along: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """s_t of one source in every direction, [k], float64.

    In the dtype of `along`; but if in some direction the change is so much shorter than in others
    that the rounding of float32 shows, in float64.

    Args:
        left: u_r, [rows, k].
        along: u_rᵀ·merged, [k, columns].
        change: τ_t, [rows, columns].
    """
    own = left.T.to(along.dtype) @ change.to(along.dtype)
    lengths = (own * own).sum(1, dtype=torch.float64)
    shortest = max(SHORT * float(lengths.mean()), symmetric.MODERATE[0] ** 2)
    if along.dtype == torch.float32 and not shortest < float(lengths.min()) < torch.inf:
        return _overstated(left.double(), along.double(), change)
    return (along * own).sum(1, dtype=torch.float64) / lengths
