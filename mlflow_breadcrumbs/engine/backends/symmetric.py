"""Products AᵀA and their eigenvectors, with no more work than what is asked for needs.

On the CPU a product is taken by the symmetric routine of NumPy's BLAS, at half the operations of a
product of two matrices, and the leading eigenvectors by LAPACK's `syevr`, which torch does not
offer: of a whole decomposition that leaves half. Elsewhere, and where matrices are small, torch
does both. Both libraries work in the calling thread alone within `one_thread`.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import numpy as np
import threadpoolctl
import torch
from numba.extending import get_cython_function_address

ROWS = 4096
"""Rows at a time that are made wide: of an embedding, a copy in float64 is no small thing."""
SMALL = 64
"""Sides up to which torch is as fast."""

MODERATE = 1e-15, 1e15
"""Magnitudes between which squares, and sums of them, stay in the range of float32."""


def blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Views of at most `ROWS` rows each."""
    return [matrix[start : start + ROWS] for start in range(0, len(matrix), ROWS)]


def squares(matrix: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """AᵀA [columns, columns] of a matrix [rows, columns], in a dtype; rows are taken in blocks.

    The blocks' products are added in float64 where there are several.
    """
    parts = [_product(part.to(dtype)) for part in blocks(matrix)]
    if len(parts) == 1:
        return parts[0]
    total = matrix.new_zeros((matrix.shape[1],) * 2, dtype=torch.float64)
    for part in parts:
        total += part
    return total.to(dtype)


def times(matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product of [rows, k] and [k, columns] in the dtype of the second; rows in blocks."""
    if len(matrix) <= ROWS:
        return matrix.to(other.dtype) @ other
    found = other.new_empty(len(matrix), other.shape[1])
    for part, result in zip(blocks(matrix), blocks(found), strict=True):
        torch.mm(part.to(other.dtype), other, out=result)
    return found


def enough(matrix: torch.Tensor) -> torch.dtype:
    """The dtype of products with a matrix whose own rounding is all that matters.

    float32 for float32; float64 for others, and for small ones, where it costs nothing.
    """
    small = min(matrix.shape) <= SMALL
    return torch.float64 if small or matrix.dtype == torch.float64 else torch.float32


def eigenvectors(
    square: torch.Tensor, count: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues [count] of a symmetric matrix, descending, and their vectors.

    Args:
        square: [n, n], float32 or float64.
        count: how many, 1…n; `None`: all.

    Returns:
        Values [count] and vectors [n, count], in the matrix's dtype.

    Raises:
        torch.linalg.LinAlgError: the iteration does not converge.
    """
    n = len(square)
    count = n if count is None else min(count, n)
    if square.device.type != "cpu" or n <= SMALL or count > n // 2:
        values, vectors = torch.linalg.eigh(square)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    return _leading(square, count)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone, so that the bits don't depend on how many there are."""
    before = torch.get_num_threads()
    _solver(True)  # a library that is loaded later would not be told
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _product(matrix: torch.Tensor) -> torch.Tensor:
    """AᵀA of one block."""
    if matrix.device.type != "cpu" or matrix.shape[1] <= SMALL:
        return matrix.T @ matrix
    array = matrix.numpy()
    found: torch.Tensor = torch.from_numpy(array.T @ array)  # NumPy sees that it is symmetric
    return found


def _leading(square: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The eigenvectors of the `count` largest eigenvalues by `syevr`, descending."""
    solve, dtype = _solver(square.dtype == torch.float64)
    n = len(square)
    matrix = square.contiguous().numpy().copy()  # symmetric, so the order of its axes is the same
    values, vectors = np.empty(n, dtype), np.empty((count, n), dtype)  # a vector is a column there
    support, found, info = np.empty(2 * count, np.intc), ctypes.c_int(), ctypes.c_int()
    work, whole = np.empty(1, dtype), np.empty(1, np.intc)
    real = np.zeros(1, dtype)

    def call(size: int, whole_size: int) -> None:
        numbers = [ctypes.c_int(number) for number in (n, n - count + 1, n, size, whole_size)]
        order, low, high, room, whole_room = (ctypes.addressof(number) for number in numbers)
        solve(
            *(b"V", b"I", b"L", order, matrix.ctypes.data, order),
            *(real.ctypes.data, real.ctypes.data, low, high, real.ctypes.data),
            *(ctypes.addressof(found), values.ctypes.data, vectors.ctypes.data, order),
            *(support.ctypes.data, work.ctypes.data, room, whole.ctypes.data, whole_room),
            ctypes.addressof(info),
        )

    call(-1, -1)  # asks how much room it wants
    work, whole = np.empty(int(work[0]), dtype), np.empty(int(whole[0]), np.intc)
    call(len(work), len(whole))
    if info.value or found.value != count:
        raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
            f"syevr found {found.value} of {count} eigenvectors and ended with {info.value}"
        )
    return (
        torch.from_numpy(values[:count]).flip(0),
        torch.from_numpy(vectors).flip(0).T,
    )


@functools.cache
def _solver(double: bool) -> tuple["ctypes._CFunctionType", type[np.floating]]:
    """LAPACK's `dsyevr` or `ssyevr`, which lets other threads run, and the dtype of its numbers."""
    name = "dsyevr" if double else "ssyevr"
    address = get_cython_function_address("scipy.linalg.cython_lapack", name)
    arguments = [ctypes.c_char_p] * 3 + [ctypes.c_void_p] * 18
    solve = ctypes.CFUNCTYPE(None, *arguments)(address)
    return solve, np.float64 if double else np.float32
