"""The rounding rule, and the worked example of the module's docstring."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_breadcrumbs.engine import masks
from mlflow_breadcrumbs.engine.backends import reference


def test_the_worked_example():
    tau = torch.tensor([0.5, -0.1, 0.3, -0.9, 0.2, -0.3, 0.8, -0.4, 0.1, 0.6, -0.2, 0.7])
    assert masks.counts(12, 0.5, 0.17) == (4, 6, 2)
    kept = reference.keep_mask(tau, "tensor", density=0.5, gamma=0.17)
    assert kept.nonzero().flatten().tolist() == [0, 2, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("n", "density", "gamma", "expected"),
    [
        (100, 0.29, 0.0, (71, 29, 0)),  # the binary product is 28.999…
        (100, 0.14, 0.01, (85, 14, 1)),
        (99, 0.14, 0.01, (86, 13, 0)),  # smaller than 1/gamma: nothing is dropped as largest
        (1, 0.14, 0.01, (1, 0, 0)),
        (0, 0.14, 0.01, (0, 0, 0)),
        (10, 1.0, 0.0, (0, 10, 0)),
        (10, 0.7, 0.3, (0, 7, 3)),
        (10**12, 0.1, 1e-12, (899_999_999_999, 10**11, 1)),
    ],
)
def test_counts_by_hand(n, density, gamma, expected):
    assert masks.counts(n, density, gamma) == expected


@given(
    n=st.integers(0, 10**13),
    density=st.integers(1, 10**6),
    gamma=st.integers(0, 10**6),
)
def test_counts_are_exact_on_decimals(n, density, gamma):
    gamma = min(gamma, 10**6 - density)
    low, keep, high = masks.counts(n, density / 10**6, gamma / 10**6)
    assert (keep, high) == (density * n // 10**6, gamma * n // 10**6)
    assert low + keep + high == n
    assert low >= 0


def test_equal_magnitudes_keep_exactly_n_keep_by_index():
    kept = reference.keep_mask(torch.tensor([1.0, -1, 1, -1, 1]), "tensor", 0.4, 0.2)
    assert kept.tolist() == [False, False, True, True, False]


def test_rows_are_masked_one_by_one_and_scalars_kept_whole():
    tau = torch.tensor([[1.0, 2, 3, 4], [40, 30, 20, 10]])
    kept = reference.keep_mask(tau, "row", density=0.5, gamma=0.25)
    assert kept.tolist() == [[False, True, True, False], [False, True, True, False]]
    assert reference.keep_mask(torch.tensor(5.0), "tensor", 0.1, 0.0).item()
    assert reference.keep_mask(torch.empty(3, 0), "row", 0.1, 0.0).shape == (3, 0)
