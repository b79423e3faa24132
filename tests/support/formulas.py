"""The papers' formulas for matrices in plain NumPy, to hold the package's own against."""

import numpy as np


def nearest_orthonormal(vectors):
    """Orthogonal Procrustes: P·Qᵀ of X = P·S·Qᵀ, without the directions that X has not."""
    left, values, right = np.linalg.svd(vectors, full_matrices=False)
    kept = values > max(vectors.shape) * 2.0**-23 * values[0]
    return left[:, kept] @ right[kept]


def tsv_by_formula(given):
    rank = max(1, min(given[0].shape) // len(given))
    lefts, values, rights = [], [], []
    for matrix in given:
        left, value, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        kept = [i for i in range(rank) if value[i] > max(matrix.shape) * 2.0**-23 * value[0]]
        lefts.append(left[:, kept])
        values.append(value[kept])
        rights.append(right[kept].T)
    left, value, right = np.hstack(lefts), np.concatenate(values), np.hstack(rights)
    if not value.size:
        return np.zeros(given[0].shape)
    return nearest_orthonormal(left) @ np.diag(value) @ nearest_orthonormal(right).T


def iso_by_formula(given):
    total = given[0]
    for matrix in given[1:]:
        total = total + matrix  # float32, in order
    left, values, right = np.linalg.svd(total.astype(np.float64), full_matrices=False)
    kept = values > max(total.shape) * 2.0**-52 * values[0]
    if not kept.any():
        return np.zeros(total.shape)
    return left[:, kept] @ (values[kept].mean() * right[kept])


def covariance_by_formula(masked, whole, ridge=0.0, normalize=False):
    """(Σ τ C)·(Σ C)⁺ with C = MᵀM, each with the ridge on its diagonal."""
    squares = [m.astype(np.float64).T @ m.astype(np.float64) for m in masked]
    if normalize:
        squares = [c / np.trace(c) if np.trace(c) else c for c in squares]
    added = ridge * np.mean([np.trace(c) for c in squares]) / len(squares[0])
    squares = [c + added * np.eye(len(c)) for c in squares]
    numerator = sum(t.astype(np.float64) @ c for t, c in zip(whole, squares, strict=True))
    return numerator @ np.linalg.pinv(sum(squares), rcond=len(squares[0]) * 2.0**-52)


def calibrated_by_formula(merged, whole, floor):
    """Every singular value times T / Σ max(floor, s), over the sources that changed anything."""
    left, values, right = np.linalg.svd(np.asarray(merged, np.float64), full_matrices=False)
    taus = [t.astype(np.float64) for t in whole if t.any()]
    for r, value in enumerate(values):
        if value <= max(merged.shape) * 2.0**-23 * values[0]:
            continue
        along = value * right[r]
        own = [left[:, r] @ tau for tau in taus]
        overstated = [along @ a / (a @ a) if a @ a else 0.0 for a in own]
        values[r] *= len(taus) / sum(max(floor, s) for s in overstated)
    return left * values @ right
