"""Covariance merges and calibration beside plain NumPy versions of the papers' formulas."""

import formulas
import numpy as np
import pytest
import torch

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends import ace, calibration, covariance, matrices, subspaces

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 64), (64, 5), (31, 31), (3, 40), (2, 2)]
PATTERNS = ["normal", "rank 1", "rank 2", "zeros", "one zero", "same", "short", "long"]


def changes(shape, pattern, sources, seed=0):
    """One float32 matrix per source."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(sources):
        matrix = generator.standard_normal(shape)
        if pattern.startswith("rank"):
            rank = int(pattern[-1])
            left, right = (
                generator.standard_normal(side) for side in ((shape[0], rank), (rank, shape[1]))
            )
            matrix = left @ right
        if pattern == "zeros" or (pattern == "one zero" and number == 0):
            matrix = np.zeros(shape)
        if pattern == "same" and number:
            matrix = found[0]
        found.append((matrix * {"short": 1e-12, "long": 1e12}.get(pattern, 1)).astype(np.float32))
    return found


def masked(given):
    """The larger half of each."""
    return [np.where(np.abs(m) >= np.median(np.abs(m)), m, 0).astype(np.float32) for m in given]


def tensors(given):
    return [torch.from_numpy(matrix.copy()) for matrix in given]


def weighted(parts, whole, ridge=0.0, normalize=False, center=False):
    pairs = zip(tensors(parts), tensors(whole), strict=True)
    found = covariance.weighted(pairs, ridge=ridge, normalize=normalize, center=center)
    assert found.dtype == torch.float64
    return found.numpy()


def calibrated(merged, whole, floor=None):
    found = calibration.calibrated(torch.as_tensor(merged), iter(tensors(whole)), floor)
    assert found.dtype == torch.float64
    return found.numpy()


def assert_near(found, expected, allowed):
    """By the relative Frobenius norm."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) <= allowed * np.linalg.norm(expected)


@pytest.mark.parametrize("sources", [1, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_covariance_merge_is_that_of_the_formula(shape, pattern, sources):
    whole = changes(shape, pattern, sources)
    for parts in (whole, masked(whole)):
        for how in ((0, False, False), (0.1, False, True), (1e-3, True, False)):
            expected = formulas.covariance_by_formula(parts, whole, *how)
            assert_near(weighted(parts, whole, *how), expected, 1e-5)


@pytest.mark.parametrize("sources", [1, 2, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_iso_cts_is_that_of_the_formula(shape, pattern, sources):
    given = changes(shape, pattern, sources)
    found = subspaces.isotropic(tensors(given)).numpy()
    assert_near(found, formulas.iso_cts_by_formula(given), 1e-5)


@pytest.mark.parametrize(
    ("directions", "sources", "expected"),
    [(768, 8, (616, 19)), (10, 3, (7, 1)), (10, 4, (10, 0)), (2, 1, (1, 1)), (1, 1, (0, 1))],
)
def test_a_fifth_of_the_directions_is_shared_out(directions, sources, expected):
    assert subspaces.counts(directions, sources) == expected


@pytest.mark.parametrize("uneven", [1, 1e-2])
@pytest.mark.parametrize("sources", [1, 2, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ace_is_that_of_the_formula(shape, pattern, sources, uneven):
    """Small changes, as fine-tuning makes them; uneven ones take the other branch."""
    whole = [matrix / 30 for matrix in changes(shape, pattern, sources)]
    whole[-1] = whole[-1] * np.float32(uneven)
    for parts in (whole, masked(whole)):
        energies = [float(np.square(m, dtype=np.float64).sum()) for m in whole]
        pairs = zip(tensors(parts), tensors(whole), strict=True)
        found = ace.combined(pairs, energies, ridge=1e-5).numpy()
        assert_near(found, formulas.ace_by_formula(parts, whole), 1e-5)


def test_ace_tells_even_sources_from_uneven_ones():
    assert not ace.heterogeneous([3.0, 3.1, 2.9])
    assert not ace.heterogeneous([5.0])
    assert not ace.heterogeneous([5.0, 0.0])
    assert ace.heterogeneous([3.0, 3.1, 300.0])


def test_packed_queries_keys_and_values_are_merged_apart():
    given = changes((24, 8), "normal", 3)
    settings = recipe.MergeRecipe(density=1, combine="tsv", packed="split")
    made = matrices.Matrices(3, lambda: iter(tensors(given)), lambda: iter(tensors(given)))
    found = matrices.merge(made, (1.0, 1.0, 1.0), settings, blocks=3).numpy()
    for rows in (slice(8), slice(8, 16), slice(16, 24)):
        assert_near(found[rows], formulas.tsv_by_formula([m[rows] for m in given]), 1e-5)


@pytest.mark.parametrize("sources", [1, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_calibration_is_that_of_the_formula(shape, pattern, sources):
    whole = changes(shape, pattern, sources)
    merged = np.sum(masked(whole), axis=0, dtype=np.float64)
    for floor in (None, 1.0, 0.2):
        there = sum(bool(matrix.any()) for matrix in whole)
        expected = formulas.calibrated_by_formula(
            merged, whole, 1 / max(there, 1) if floor is None else floor
        )
        assert_near(calibrated(merged, whole, floor), expected, 1e-5)


@pytest.mark.parametrize("pattern", ["normal", "rank 1", "short", "long"])
@pytest.mark.parametrize("shape", [(1, 7), (20, 33), (33, 20), (16, 16)])
def test_one_source_alone_and_sources_that_agree_stay_what_they_are(shape, pattern):
    (given,) = changes(shape, pattern, 1)
    for many in ([given], [given] * 4):
        assert_near(weighted(many, many), given, 1e-5)
        assert_near(calibrated(np.sum(many, axis=0), many), given, 1e-5)


def test_a_source_that_left_the_matrix_alone_takes_nothing_away():
    one, nothing = changes((12, 20), "normal", 1)[0], np.zeros((12, 20), np.float32)
    both = [one, nothing, nothing]
    assert_near(weighted(both, both), one, 1e-5)
    assert_near(calibrated(one, both), one, 1e-5)


def test_sources_that_share_no_input_are_added():
    """Each layer's inputs are then those of one task, which gets its own change."""
    one, other = np.zeros((2, 6, 8), np.float32)
    one[:, :4], other[:, 4:] = changes((6, 4), "normal", 2)
    assert_near(weighted([one, other], [one, other]), one + other, 1e-5)


def test_a_large_ridge_gives_the_mean():
    given = changes((12, 20), "normal", 3)
    assert_near(weighted(given, given, ridge=1e9), np.mean(given, axis=0, dtype=float), 1e-5)


def test_normalized_covariances_do_not_depend_on_how_far_sources_went():
    given = changes((12, 20), "normal", 3)
    longer = [10 * given[0], *given[1:]]
    assert_near(
        weighted(longer, given, normalize=True), weighted(given, given, normalize=True), 1e-5
    )


def test_the_scale_of_what_is_calibrated_is_all_but_irrelevant():
    """Where no source is below the floor, it is irrelevant."""
    given = changes((40, 30), "rank 2", 3)
    total = np.sum(given, axis=0, dtype=np.float64)
    expected = calibrated(total, given, floor=0.0)
    for factor in (0.5, 1.5, 7):
        assert_near(calibrated(factor * total, given, floor=0.0), expected, 1e-5)


def test_empty_matrices_stay_empty():
    for shape in ((0, 3), (3, 0)):
        given = [np.zeros(shape, np.float32)] * 2
        assert weighted(given, given).shape == shape
        assert calibrated(given[0], given).shape == shape


@pytest.mark.parametrize(
    "fields",
    [{"combine": "covariance"}, {"calibrate": "svc"}, {"calibrate": "svc", "combine": "mean"}],
)
def test_the_sources_are_left_alone(fields):
    given = tensors(changes((6, 4), "normal", 3))
    before = [matrix.clone() for matrix in given]
    made = matrices.Matrices(3, lambda: iter(given), lambda: iter(given))
    matrices.merge(made, (1.0, 1.0, 1.0), recipe.MergeRecipe(density=1, **fields))
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


@pytest.mark.parametrize("pattern", [*PATTERNS, "parts"])
@pytest.mark.parametrize("shape", [(80, 72), (70, 150), (4500, 66)])
def test_large_matrices_are_merged_as_small_ones(shape, pattern):
    """At these sizes products are in float32 where that is enough, and taken by blocks of rows."""
    whole = changes(shape, "normal" if pattern == "parts" else pattern, 3)
    if pattern == "parts":  # a source without extent in the directions of another
        for number, matrix in enumerate(whole):
            matrix[np.arange(len(matrix)) % 3 != number] = 0
    merged = np.sum(whole, axis=0)
    expected = formulas.calibrated_by_formula(merged, whole, 1.0)
    assert_near(calibrated(merged, whole, 1.0), expected, 1e-5)
    parts = masked(whole)
    expected = formulas.covariance_by_formula(parts, whole, 1e-3, True)
    assert_near(weighted(parts, whole, 1e-3, True), expected, 1e-5)


def test_a_calibration_in_float32_is_repeated_in_float64_where_it_is_not_enough(monkeypatch):
    """The second source is next to nothing in one direction of the sum."""
    one = changes((90, 70), "normal", 1)[0]
    left = np.linalg.svd(one)[0][:, :1]
    other = one - (1 - 1e-6) * left @ (left.T @ one)
    taken, original = [], calibration._overstated

    def noted(*sides):
        taken.append(sides[0].dtype)
        return original(*sides)

    monkeypatch.setattr(calibration, "_overstated", noted)
    whole = [one, other.astype(np.float32)]
    assert_near(calibrated(one, whole, 0.5), formulas.calibrated_by_formula(one, whole, 0.5), 1e-6)
    assert len(taken) == 3
    assert taken.count(torch.float64) == 1


@pytest.mark.parametrize(("density", "times"), [(1, 1), (0.5, 2)])
def test_sources_that_nothing_masks_are_read_once(density, times):
    given = tensors(changes((6, 4), "normal", 3))
    read = []

    def sources():
        read.append(1)
        return iter(given)

    made = recipe.MergeRecipe(density=density, combine="covariance")
    matrices.merge(matrices.Matrices(3, sources, sources), (1.0, 1.0, 1.0), made)
    assert len(read) == times
