"""Exact ranks against planted ones, at the precision of float32."""

import numpy as np
import pytest

from rewriter.factor import exact


def _low(rng, rows, columns, rank, dtype=np.float32):
    """A product of two factors, as float32 arithmetic makes it."""
    left = rng.standard_normal((rows, rank)).astype(dtype)
    return left @ rng.standard_normal((rank, columns)).astype(dtype)


@pytest.mark.parametrize(("rows", "columns"), [(40, 300), (300, 40), (60, 60)])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_the_rank_of_a_float32_product(rng, rows, columns, rank):
    matrix = np.float64(_low(rng, rows, columns, rank))
    assert exact.rank(matrix, rank) == rank
    assert exact.rank(matrix, 35) == rank
    assert exact.rank(matrix, rank - 1) is None
    left, right = exact.factors(matrix, rank)
    assert np.linalg.norm(left @ right - matrix) < 1e-6 * np.linalg.norm(matrix)


def test_singular_values_a_thousand_times_above_rounding_count(rng):
    values = np.geomspace(1, 1e-3, 20)
    turn = [np.linalg.qr(rng.standard_normal((size, 20)))[0] for size in (50, 80)]
    matrix = np.float64(np.float32(turn[0] * values @ turn[1].T))
    assert exact.rank(matrix, 30) == 20
    assert exact.rank(matrix, 19) is None


@pytest.mark.parametrize("shape", [(64, 64), (30, 500)])
def test_random_matrices_have_full_rank(rng, shape):
    matrix = rng.standard_normal(shape)
    for most in (0, 1, 10, min(shape) - 1):
        assert exact.rank(matrix, most) is None
    assert exact.rank(matrix, min(shape)) == min(shape)


def test_rows_of_zeros_do_not_hide_full_rank(rng):
    matrix = np.zeros((60, 90))
    matrix[::3] = rng.standard_normal((20, 90))
    assert exact.rank(matrix, 19) is None
    assert exact.rank(matrix, 40) == 20
    assert exact.rank(np.zeros((5, 5)), 3) == 1


def test_more_factors_than_the_rank_are_zeros(rng):
    left, right = exact.factors(rng.standard_normal((3, 8)), 5)
    assert (left.shape, right.shape) == ((3, 5), (5, 8))
    assert not left[:, 3:].any()
    assert not right[3:].any()


def test_levelled_kernels_have_norm_one_and_come_back(rng):
    kernel = rng.standard_normal((6, 5, 9)) * np.geomspace(1, 1e-8, 6)[:, None, None]
    kernel[2] = 0.0
    level = exact.Level.of(kernel)
    assert np.allclose(np.linalg.norm(level.kernel, axis=(0, 2)), 1.0)
    assert not level.kernel[2].any()
    again = level.rows[:, None, None] * level.kernel * level.columns[:, None]
    assert np.allclose(again, kernel, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 576, 8), (48, 48, 20), (256, 64, 29)])
def test_a_rank_rounded_to_float16_is_found_there_alone(rng, rows, columns, rank):
    half = exact.tolerance(np.dtype(np.float16))
    matrix = _low(rng, rows, columns, rank).astype(np.float16).astype(np.float64)
    assert exact.rank(matrix, min(rows, columns) - 1, half) == rank
    assert exact.rank(matrix, rank) is None
    # an eightfold rounding error is none
    near = matrix * (1 + 2.0**-8 * rng.standard_normal(matrix.shape))
    assert exact.rank(near, rank, half) is None


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (30, 500)])
def test_random_float16_matrices_have_no_rank_that_pays(rng, shape):
    matrix = rng.standard_normal(shape).astype(np.float16).astype(np.float64)
    assert exact.rank(matrix, int(0.9 * min(shape)), exact.tolerance(np.dtype(np.float16))) is None
