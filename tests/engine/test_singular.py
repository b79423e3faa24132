"""TSV-M and Iso-C beside a plain NumPy version written from the papers' formulas."""

import formulas
import numpy as np
import pytest
import torch

from mlflow_breadcrumbs.engine.backends import singular, symmetric

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 64), (64, 5), (31, 31), (3, 40), (2, 2)]
PATTERNS = ["normal", "low rank", "zeros", "one zero", "same", "tiny", "huge"]


def matrices(shape, pattern, sources, seed=0):
    """One float32 matrix per source."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(sources):
        matrix = generator.standard_normal(shape)
        if pattern == "low rank":
            matrix = generator.standard_normal((shape[0], 2)) @ generator.standard_normal(
                (2, shape[1])
            )
        if pattern == "zeros" or (pattern == "one zero" and number == 0):
            matrix = np.zeros(shape)
        if pattern == "same" and number:
            matrix = found[0]
        if pattern == "coarse":
            matrix = np.round(matrix)
        found.append((matrix * {"tiny": 1e-38, "huge": 1e37}.get(pattern, 1)).astype(np.float32))
    return found


def combined(given, how):
    tensors = (torch.from_numpy(matrix.copy()) for matrix in given)
    found = singular.combine(tensors, len(given), how)
    assert found.dtype == torch.float64
    return found.numpy()


def assert_near(found, expected, allowed):
    """By the relative Frobenius norm."""
    norm = np.linalg.norm(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= allowed * norm


@pytest.mark.parametrize("sources", [1, 3, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_task_singular_vectors_are_those_of_the_formula(shape, pattern, sources):
    given = matrices(shape, pattern, sources)
    # The squares' eigenvectors lose (σ₁/σₖ)² of float64's 1e-16; few of these are above 1e5.
    assert_near(combined(given, "tsv"), formulas.tsv_by_formula(given), 1e-6)


@pytest.mark.parametrize("sources", [1, 3])
@pytest.mark.parametrize("pattern", [*PATTERNS, "coarse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_isotropic_sum_is_that_of_the_formula(shape, pattern, sources):
    given = matrices(shape, pattern, sources)
    # Of low rank, the rest is the rounding to float32, which only float64's last digits order.
    assert_near(combined(given, "iso"), formulas.iso_by_formula(given), 1e-6)


@pytest.mark.parametrize("pattern", ["normal", "low rank"])
@pytest.mark.parametrize("shape", [(1, 7), (20, 33), (33, 20), (16, 16)])
def test_one_source_alone_stays_what_it_is(shape, pattern):
    (given,) = matrices(shape, pattern, 1)
    assert_near(combined([given], "tsv"), given, 1e-5)


def test_sources_that_agree_count_once():
    given = matrices((12, 20), "normal", 1)
    single = formulas.tsv_by_formula([given[0], np.zeros_like(given[0])])
    assert_near(combined([given[0], given[0]], "tsv"), single, 1e-6)


def test_sources_that_share_no_direction_are_added():
    one, other = np.zeros((2, 6, 8), np.float32)
    one[:3, :4] = matrices((3, 4), "normal", 1, seed=1)[0]
    other[3:, 4:] = matrices((3, 4), "normal", 1, seed=2)[0]
    assert_near(combined([one, other], "tsv"), one + other, 1e-6)


def test_the_kept_singular_vectors_are_orthonormal():
    """All singular values of the result are those of the sources: nothing interferes."""
    given = matrices((40, 24), "normal", 3)
    kept = np.concatenate([np.linalg.svd(matrix)[1][:8] for matrix in given])
    found = np.linalg.svd(combined(given, "tsv"))[1]
    np.testing.assert_allclose(found, np.sort(kept)[::-1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (16, 16), (1, 5)])
def test_the_isotropic_spectrum_is_flat_and_its_sum_is_kept(shape):
    given = matrices(shape, "normal", 3)
    before = np.linalg.svd(sum(given))[1]
    values = np.linalg.svd(combined(given, "iso"))[1]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    np.testing.assert_allclose(values.sum(), before.sum(), rtol=1e-6)


def test_directions_that_the_sum_has_not_stay_empty():
    given = matrices((20, 30), "low rank", 1)
    values = np.linalg.svd(combined([given[0].astype(np.float64).round(3)], "iso"))[1]
    assert values[0] > 0
    exact = np.outer(np.arange(20), np.arange(30)).astype(np.float32)
    values = np.linalg.svd(combined([exact], "iso"))[1]
    assert values[0] == pytest.approx(np.linalg.norm(exact))
    assert values[1:].max() < 1e-9 * values[0]


@pytest.mark.parametrize("how", ["tsv", "iso"])
def test_it_scales_with_its_sources_and_turns_with_them(how):
    given = matrices((9, 14), "normal", 3)
    expected = combined(given, how)
    assert_near(combined([4 * matrix for matrix in given], how), 4 * expected, 1e-9)
    assert_near(combined([-matrix for matrix in given], how), -expected, 1e-9)
    assert_near(combined([matrix.T for matrix in given], how), expected.T, 1e-6)


@pytest.mark.parametrize("how", ["tsv", "iso"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrices_stay_empty(how, shape):
    assert combined([np.zeros(shape, np.float32)] * 2, how).shape == shape


def test_float64_of_any_size():
    given = [1e300 * matrix.astype(np.float64) for matrix in matrices((6, 4), "normal", 2)]
    for how, formula in (("tsv", formulas.tsv_by_formula), ("iso", formulas.iso_by_formula)):
        expected = formula([matrix / 1e300 for matrix in given])
        assert_near(combined(given, how) / 1e300, expected, 1e-6)


@pytest.mark.parametrize("how", ["tsv", "iso"])
def test_the_sources_are_taken_one_at_a_time_and_left_alone(how):
    given = [torch.from_numpy(matrix) for matrix in matrices((6, 4), "normal", 3)]
    before = [matrix.clone() for matrix in given]
    singular.combine(iter(given), 3, how)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


LARGE = [(80, 72), (150, 70), (70, 150), (4500, 66)]
"""Sizes at which LAPACK's leading eigenvectors, float32 products and blocks of rows are used."""


def large(shape, pattern, sources):
    """Matrices of a size that all ways to decompose are for, and spectra that tell them apart."""
    found = matrices(shape, "normal" if pattern in ("steep", "double") else pattern, sources)
    if pattern == "steep":
        for number, matrix in enumerate(found):
            left, _, right = np.linalg.svd(matrix, full_matrices=False)
            values = 10.0 ** -np.linspace(0, 9, len(right))
            found[number] = (left * values @ right).astype(np.float32)
    if pattern == "double":
        found = [matrix.astype(np.float64) for matrix in found]
    return found


@pytest.mark.parametrize("pattern", ["normal", "steep", "low rank", "one zero", "same", "double"])
@pytest.mark.parametrize("shape", LARGE)
def test_large_matrices_are_decomposed_as_small_ones(shape, pattern):
    given = large(shape, pattern, 3)
    # What is left of a float32 matrix below 1e-7 of its longest direction is rounding.
    assert_near(combined(given, "tsv"), formulas.tsv_by_formula(given), 1e-6)
    if pattern != "low rank":  # the rest is the rounding of the sum, see above
        assert_near(combined(given, "iso"), formulas.iso_by_formula(given), 1e-6)


@pytest.mark.parametrize("pattern", ["normal", "tiny", "huge"])
def test_large_matrices_of_any_size_of_numbers(pattern):
    given = matrices((90, 70), pattern, 2)
    assert_near(combined(given, "tsv"), formulas.tsv_by_formula(given), 1e-6)
    assert_near(combined(given, "iso"), formulas.iso_by_formula(given), 1e-6)


@pytest.mark.parametrize(("shape", "whole"), [((200, 70), 0), ((70, 70), 1)])
def test_an_isotropic_sum_is_decomposed_only_where_its_squares_are_steep(monkeypatch, shape, whole):
    taken, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: taken.append(a) or svd(*a, **k))
    combined(large(shape, "steep" if whole else "normal", 1), "iso")
    assert len(taken) == whole


def test_only_the_leading_eigenvectors_of_a_source_are_computed(monkeypatch):
    counts, found = [], symmetric.eigenvectors
    monkeypatch.setattr(
        symmetric,
        "eigenvectors",
        lambda square, count=None: counts.append((len(square), count)) or found(square, count),
    )
    combined(large((150, 70), "normal", 7), "tsv")
    assert counts == [(70, 10)] * 7 + [(70, None)] * 2
