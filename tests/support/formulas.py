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
