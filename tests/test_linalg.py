"""The small linear algebra against numpy's."""

import numpy as np
import pytest

from rewriter import linalg


def _positive(rng, size, condition=1e3):
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return basis * np.geomspace(1.0, 1.0 / condition, size) @ basis.T


def test_ridge_is_relative_to_the_whole_matrix(rng):
    matrix = np.zeros((6, 6))
    matrix[:3, :3] = _positive(rng, 3)
    found = linalg.ridged(matrix)
    added = np.diag(found - matrix)
    # once to have a Cholesky factor, once for safety
    assert np.allclose(added, 2 * linalg.RIDGE * np.trace(matrix) / 6, atol=1e-15)
    assert np.linalg.eigvalsh(found)[0] > 0.0


def test_ridged_is_symmetric_and_leaves_its_argument(rng):
    matrix = rng.standard_normal((5, 5)).astype(np.float32)
    before = matrix.copy()
    found = linalg.ridged(matrix)
    assert found.dtype == np.float64
    assert np.array_equal(found, found.T)
    assert np.array_equal(matrix, before)


def test_ridged_zero_is_positive_definite():
    assert np.linalg.eigvalsh(linalg.ridged(np.zeros((3, 3))))[0] > 0.0
    assert np.all(np.isfinite(linalg.cholesky(linalg.ridged(np.zeros((3, 3))))))


@pytest.mark.parametrize("shift", [0.0, -1e-6])
def test_rooted_is_a_ridged_matrix_with_its_root(rng, shift):
    rows = rng.standard_normal((8, 3))
    matrix = rows @ rows.T + shift * np.eye(8)
    found, lower = linalg.rooted(matrix)
    assert np.array_equal(found, linalg.ridged(matrix))
    assert np.array_equal(lower, np.tril(lower))
    # the last of the ridges, which only the matrix has
    rest = np.diag(found - lower @ lower.T)
    assert np.allclose(rest, rest[0], rtol=1e-3)
    assert 0.0 < rest[0] <= 1e-4


def test_cholesky_is_lower_and_squares_to_the_matrix(rng):
    matrix = _positive(rng, 7)
    lower = linalg.cholesky(matrix)
    assert np.array_equal(lower, np.tril(lower))
    assert np.allclose(lower @ lower.T, matrix, atol=1e-14)


def test_cholesky_of_an_indefinite_matrix_raises_the_ridge(rng):
    rows = rng.standard_normal((8, 3))
    matrix = rows @ rows.T - 1e-6 * np.eye(8)
    lower = linalg.cholesky(matrix)
    assert np.abs(lower @ lower.T - matrix).max() < 1e-4


def test_ridge_solve_is_the_regularised_solution(rng):
    matrix, right = _positive(rng, 6), rng.standard_normal((6, 2))
    expected = np.linalg.solve(matrix + 0.1 * np.eye(6), right)
    assert np.allclose(linalg.ridge_solve(matrix, right, 0.1), expected, rtol=1e-12)


def test_ridge_solve_of_nothing_is_nothing():
    assert not linalg.ridge_solve(np.zeros((3, 3)), np.zeros((3, 2)), 0.0).any()


@pytest.mark.parametrize("solve", [linalg.cholesky, linalg.ridged])
def test_no_ridge_is_looked_for_where_values_are_not_finite(solve):
    with pytest.raises(FloatingPointError):
        solve(np.full((3, 3), np.nan))


def test_ridge_solve_apart_is_the_same_for_a_covariance_of_parts_that_never_meet(rng):
    parts = [np.array([0, 3, 5]), np.array([1, 2]), np.array([4]), np.array([], int)]
    samples = np.zeros((60, 6))
    for start, columns in enumerate(parts[:3]):
        samples[start::3, columns] = 1.0 + rng.standard_normal((20, len(columns)))
    mean = samples.mean(0)
    matrix = samples.T @ samples / len(samples) - np.outer(mean, mean)
    right = rng.standard_normal((6, 2))
    expected = linalg.ridge_solve(matrix, right, 1e-3)
    assert np.allclose(linalg.ridge_solve_apart(matrix, mean, right, 1e-3, parts), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(7, 3), (4, 4)])
def test_orthonormal_factors(rng, shape):
    matrix = rng.standard_normal(shape)
    basis, triangle = linalg.orthonormal(matrix)
    assert np.allclose(basis @ triangle, matrix)
    assert np.allclose(basis.T @ basis, np.eye(shape[1]))
    assert np.all(np.diag(triangle) >= 0.0)


def test_orthonormal_completes_a_zero_column(rng):
    matrix = rng.standard_normal((6, 3))
    matrix[:, 1] = 0.0
    basis, triangle = linalg.orthonormal(matrix)
    assert np.allclose(basis @ triangle, matrix)
    assert np.allclose(basis.T @ basis, np.eye(3))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_right_singular_rows_span_the_leading_space(rng, shape):
    matrix = rng.standard_normal(shape)
    rows = linalg.right_singular(matrix, 3)
    expected = np.linalg.svd(matrix)[2][:3]
    assert np.allclose(rows @ rows.T, np.eye(3))
    # One by one, up to sign: largest first.
    assert np.allclose(np.abs(np.sum(rows * expected, axis=1)), 1.0)


def test_right_singular_rows_of_a_deficient_matrix_stay_orthonormal(rng):
    matrix = rng.standard_normal((4, 1)) @ rng.standard_normal((1, 9))
    rows = linalg.right_singular(matrix, 4)
    assert np.allclose(rows @ rows.T, np.eye(4))


def test_conjugate_gradients_solve_within_the_dimension(rng):
    matrix, right = _positive(rng, 6, 10.0), rng.standard_normal((6, 1))
    found = linalg.conjugate_gradients(lambda X: matrix @ X, right, np.zeros_like(right), lambda X: X, 12)
    assert np.allclose(found, np.linalg.solve(matrix, right), rtol=1e-8)


def test_conjugate_gradients_descend_at_every_step(rng):
    matrix, right = _positive(rng, 20, 1e4), rng.standard_normal((20, 3))
    start = rng.standard_normal((20, 3))
    inverse = np.diag(1.0 / np.diag(matrix))

    def value(steps):
        X = linalg.conjugate_gradients(lambda X: matrix @ X, right, start, lambda X: inverse @ X, steps)
        return 0.5 * np.vdot(X, matrix @ X) - np.vdot(X, right)

    values = [value(steps) for steps in range(8)]
    assert values == sorted(values, reverse=True)


def test_conjugate_gradients_stay_at_a_solution():
    right = np.zeros((3, 2))
    assert np.array_equal(linalg.conjugate_gradients(lambda X: X, right, right, lambda X: X, 5), right)
