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


def iso_cts_by_formula(given):
    """The leading 0.8 of the sum, and what leads in what each source has besides; of one length."""
    taus = [matrix.astype(np.float64) for matrix in given]
    m, shape = min(taus[0].shape), taus[0].shape
    zero = max(shape) * 2.0**-23
    own = int(np.rint((m - (8 * m) // 10) / len(taus)))

    def leading(matrix, count, scale):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        kept = [i for i in range(min(count, m)) if values[i] > zero * max(scale, values[0])]
        return left[:, kept], values[kept], right[kept].T

    total = np.zeros(shape, np.float32)
    for matrix in given:
        total = total + matrix  # float32, in order
    common = leading(total.astype(np.float64), m - own * len(taus), 0)
    found = [common]
    for tau in taus:
        outside = tau - common[0] @ common[0].T @ tau
        found.append(leading(outside, own, 0))
        if np.linalg.norm(outside) <= zero * np.linalg.norm(tau):
            found.pop()
    left, values, right = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
    if not values.size:
        return np.zeros(shape)
    return values.mean() * nearest_orthonormal(left) @ nearest_orthonormal(right).T


def ace_by_formula(masked, whole, ridge=1e-5):
    """B·(S + c)⁻¹ of covariances without the means of their rows, refined where energies differ."""
    pairs = [
        (m.astype(np.float64), t.astype(np.float64))
        for m, t in zip(masked, whole, strict=True)
        if t.any()
    ]
    if not pairs:
        return np.zeros(whole[0].shape)
    t = np.array([np.trace(tau.T @ tau) for _, tau in pairs])
    spread = len(t) > 1 and np.var(np.log(t), ddof=1) / np.mean(np.log(t)) ** 2 > 0.3
    raw = [(m - m.mean(0)).T @ (m - m.mean(0)) for m, _ in pairs]
    sigma, eps = list(raw), [ridge] * len(raw)
    if spread:
        sigma = [c / np.trace(c) if np.trace(c) else c for c in raw]
        eps = [ridge / np.trace(c) if np.trace(c) else ridge for c in raw]
    eye = np.eye(len(raw[0]))
    b = sum(
        (tau - tau.mean(0)) @ (c + e * eye)
        for (_, tau), c, e in zip(pairs, sigma, eps, strict=True)
    )
    s = sum(c + e * eye for c, e in zip(sigma, eps, strict=True))
    c = sum(raw).mean(0) / (t.mean() if spread else 1)
    merged = b @ np.linalg.pinv(s + np.ones((len(s), 1)) * c, rcond=len(s) * 2.0**-52)
    if not spread:
        return merged
    more = (
        sum(tau @ (own - s / len(pairs)) for (_, tau), own in zip(pairs, sigma, strict=True))
        + merged
    )
    k = int(0.3 * min(more.shape))
    left, values, right = np.linalg.svd(more, full_matrices=False)
    k = min(k, int((values > max(more.shape) * 2.0**-23 * values[0]).sum()))
    return merged + (values[:k].mean() * left[:, :k] @ right[:k] if k else 0)


def covariance_by_formula(masked, whole, ridge=0.0, normalize=False, center=False):
    """(Σ τ C)·(Σ C)⁺ with C = MᵀM, each with the ridge on its diagonal."""
    if center:
        masked = [m.astype(np.float64) - m.astype(np.float64).mean(0) for m in masked]
    squares = [m.astype(np.float64).T @ m.astype(np.float64) for m in masked]
    if normalize:
        squares = [c / np.trace(c) if np.trace(c) else c for c in squares]
    added = ridge * np.mean([np.trace(c) for c in squares]) / len(squares[0])
    squares = [c + added * np.eye(len(c)) for c in squares]
    numerator = sum(t.astype(np.float64) @ c for t, c in zip(whole, squares, strict=True))
    return numerator @ np.linalg.pinv(sum(squares), rcond=len(squares[0]) * 2.0**-52)


def calibrated_by_formula(merged, whole, floor, flat=None):
    """Every singular value times T / Σ max(floor, s), over the sources that changed anything.

    Of a merge that made all singular values alike the directions are those of the sum, `flat`.
    """
    if flat is not None:
        left, values, _ = np.linalg.svd(np.asarray(flat, np.float64), full_matrices=False)
        left = left[:, values > max(flat.shape) * 2.0**-23 * values[0]]
        gains = np.ones(left.shape[1])
        taus = [t.astype(np.float64) for t in whole if t.any()]
        for r, u in enumerate(left.T):
            s = [u @ merged @ (u @ tau) / ((u @ tau) @ (u @ tau)) for tau in taus]
            gains[r] = len(taus) / sum(max(floor, each) for each in s)
        return merged + left @ np.diag(gains - 1) @ left.T @ merged
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
