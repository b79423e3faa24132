"""Products AᵀA and their leading eigenvectors, beside NumPy's whole decompositions."""

import threading

import numpy as np
import pytest
import threadpoolctl
import torch

from mlflow_breadcrumbs.engine.backends import symmetric


def matrix(rows, columns, dtype=torch.float64, seed=0):
    return torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (64, 65), (70, 200), (9000, 66)])
def test_squares_are_the_product(shape, turned):
    given = matrix(*shape, torch.float32)
    given = given.T.contiguous().T if turned else given
    expected = given.double().numpy().T @ given.double().numpy()
    np.testing.assert_allclose(symmetric.squares(given), expected, atol=1e-9 * max(shape))
    single = symmetric.squares(given, torch.float32)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, atol=1e-4 * max(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_by_blocks_of_rows_is_the_product(dtype):
    one, other = matrix(9000, 5, torch.float32), matrix(5, 7, dtype)
    found = symmetric.times(one, other)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, one.numpy() @ other.numpy(), atol=1e-5)


@pytest.mark.parametrize("spectrum", ["normal", "steep", "rank 1", "equal", "zero"])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (64, 3), (65, 1), (66, 33), (66, 34), (90, None)])
def test_the_leading_eigenvectors_are_those_of_a_whole_decomposition(n, count, spectrum):
    directions = np.linalg.qr(matrix(n, n).numpy())[0]
    values = {
        "normal": np.linspace(2, 1, n),
        "steep": 10.0 ** -np.arange(n),
        "rank 1": np.eye(n)[0],
        "equal": np.ones(n),
        "zero": np.zeros(n),
    }[spectrum]
    square = torch.from_numpy(directions * values @ directions.T)
    found, vectors = symmetric.eigenvectors(square, count)
    kept = count or n
    assert (found.shape, vectors.shape) == ((kept,), (n, kept))
    np.testing.assert_allclose(found, values[:kept], atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(kept), atol=1e-12)
    np.testing.assert_allclose(square @ vectors, vectors * found, atol=1e-13)


def test_float32_stays_float32():
    square = symmetric.squares(matrix(200, 100), torch.float32)
    values, vectors = symmetric.eigenvectors(square, 9)
    assert (values.dtype, vectors.dtype) == (torch.float32, torch.float32)
    np.testing.assert_allclose(square @ vectors, vectors * values, atol=1e-3)


def test_a_matrix_that_is_no_number_is_told():
    with pytest.raises(torch.linalg.LinAlgError):
        symmetric.eigenvectors(torch.full((80, 80), torch.nan, dtype=torch.float64), 3)


def test_the_bits_are_the_same_in_every_thread():
    square = symmetric.squares(matrix(300, 130))
    found = {}

    def find(number):
        found[number] = symmetric.eigenvectors(square, 20)[1].numpy().tobytes()

    with symmetric.one_thread():
        threads = [threading.Thread(target=find, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found.values())) == 1


def test_one_thread_is_for_a_while():
    def threads():
        libraries = threadpoolctl.threadpool_info()
        return [entry["num_threads"] for entry in libraries if entry["user_api"] == "blas"]

    before = torch.get_num_threads()
    with symmetric.one_thread():
        assert torch.get_num_threads() == 1
        assert set(threads()) == {1}
    assert torch.get_num_threads() == before
