"""Small dense linear algebra that numpy does not have: ridges, roots, ridge solves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import threadpoolctl

Array = npt.NDArray[np.floating[Any]]

# Relative to the mean eigenvalue: far below every figure that a fit is judged by, far above float64's
# rounding.
RIDGE = 1e-8
# What a triangular matrix is cut into.
PANELS = 8


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Within it numpy and scipy use one thread of linear algebra.

    Most factors are too small for several: these cost several times what they save where each other's and
    ONNX Runtime's threads want the cores too. And one thread sums in one order, whatever the machine.
    """
    limits: contextlib.AbstractContextManager[Any] = threadpoolctl.threadpool_limits(1, "blas")
    return limits


def ridged(matrix: Array) -> Array:
    """A symmetric matrix `[n, n]` in float64 with a ridge that makes it safely positive definite."""
    return rooted(matrix)[0]


def rooted(matrix: Array) -> tuple[Array, Array]:
    """The ridged matrix `[n, n]` and a lower triangular L with L Lᵀ the same but for some of the ridge.

    The ridge is RIDGE times the mean eigenvalue, raised tenfold until a Cholesky factor exists: moments
    summed from float32 products have eigenvalues a little below zero where patches are fewer than values. It
    is relative to the whole matrix: channels that are zero on every sample leave whole blocks zero, whose own
    trace would give no ridge at all. An all-zero matrix becomes a tiny identity.
    """
    out = np.array(matrix, np.float64)
    out += out.T
    out /= 2
    diagonal = np.diag_indices_from(out)
    ridge = _first_ridge(out)
    while True:
        out[diagonal] += ridge
        try:
            lower = np.linalg.cholesky(out)
        except np.linalg.LinAlgError:
            ridge *= 10
        else:
            # as much again, so that what is made from it stays positive definite too
            out[diagonal] += ridge
            return out, lower


def _first_ridge(matrix: Array) -> float:
    """The ridge to begin with; tiny for a matrix of zeros.

    Raises:
        FloatingPointError: The matrix has values that are not finite; no ridge would do.
    """
    mean = float(np.trace(matrix)) / len(matrix)
    if not np.isfinite(mean):
        raise FloatingPointError("a matrix of moments is not finite")
    return RIDGE * mean if mean > 0.0 else float(np.finfo(np.float64).tiny ** 0.5)


def cholesky(matrix: Array) -> Array:
    """The lower triangular L `[n, n]` with L Lᵀ = matrix, the ridge raised tenfold until it exists."""
    ridge = _first_ridge(matrix)
    while True:
        try:
            return np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            matrix = matrix + ridge * np.eye(len(matrix))
            ridge *= 10


def sum_of_squares(array: Array) -> float:
    """Σ x² of an array of any type, in float64."""
    return float(np.sum(np.square(array, dtype=np.float64)))


def triangular_square(matrix: Array, lower: Array) -> float:
    """‖X L‖² of a matrix X `[m, n]` and a lower triangular one `[n, n]`, in the type of the latter.

    Panel by panel, which skips most of the zeros and lets other threads run, as BLAS for triangles does not.
    """
    matrix = np.asarray(matrix, lower.dtype)
    total = 0.0
    size = max(-(-len(lower) // PANELS), 1)
    for start in range(0, len(lower), size):
        panel = matrix[:, start:] @ lower[start:, start : start + size]
        total += float(np.sum(np.square(panel), dtype=np.float64))
    return total


def ridge_solve(matrix: Array, right: Array, ridge: float) -> Array:
    """(matrix + ridge·I)⁻¹ right for a symmetric positive semidefinite matrix `[n, n]` and right `[n, m]`."""
    lower = cholesky(matrix + ridge * np.eye(len(matrix)))
    return scipy.linalg.cho_solve((lower, True), right, check_finite=False)


def ridge_solve_apart(
    matrix: Array, mean: Array, right: Array, ridge: float, parts: Sequence[npt.NDArray[np.intp]]
) -> Array:
    """The same where matrix + mean·meanᵀ, mean `[n]`, is zero between some parts of its rows, part by part.

    Parts may be empty. What the mean takes away is made up for after Sherman and Morrison (1950).
    """
    apart, along = np.empty_like(right), np.empty_like(mean)
    for rows in filter(len, parts):
        block = matrix[np.ix_(rows, rows)] + np.outer(mean[rows], mean[rows])
        solved = ridge_solve(block, np.column_stack([right[rows], mean[rows]]), ridge)
        apart[rows], along[rows] = solved[:, :-1], solved[:, -1]
    return apart + np.outer(along, mean @ apart) / (1.0 - mean @ along)


def orthonormal(matrix: Array) -> tuple[Array, Array]:
    """Q `[n, r]` with orthonormal columns and upper triangular T `[r, r]` of diagonal >= 0, Q T = matrix."""
    Q, T = np.linalg.qr(matrix)
    signs = np.where(np.diag(T) < 0.0, -1.0, 1.0)
    return Q * signs, T * signs[:, None]


def right_singular(matrix: Array, most: int) -> Array:
    """The `most` first right singular vectors of a matrix `[k, n]` as orthonormal rows `[most, n]`.

    From the smaller Gram matrix, which is exact enough for singular values down to 1e-8 of the largest.
    """
    rows, columns = matrix.shape
    if rows < columns:
        left = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :most]
        return orthonormal((left.T @ matrix).T)[0].T
    return np.ascontiguousarray(np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :most].T)


def conjugate_gradients(
    apply: Callable[[Array], Array],
    right: Array,
    start: Array,
    precondition: Callable[[Array], Array],
    steps: int,
) -> Array:
    """An approximate solution X of apply(X) = right for a symmetric positive definite operator on arrays.

    At most `steps` steps of the preconditioned method from `start` (Hestenes and Stiefel 1952); each lowers
    ½⟨X, apply(X)⟩ - ⟨X, right⟩. It stops early where rounding leaves no direction of descent.
    """
    found = start
    residual = right - apply(found)
    direction = steepest = precondition(residual)
    slope = float(np.vdot(residual, steepest))
    for _ in range(steps):
        applied = apply(direction)
        curvature = float(np.vdot(direction, applied))
        if not (curvature > 0.0 and slope > 0.0):
            break
        found = found + slope / curvature * direction
        residual = residual - slope / curvature * applied
        steepest = precondition(residual)
        previous, slope = slope, float(np.vdot(residual, steepest))
        direction = steepest + slope / previous * direction
    return found


def newton_step(
    apply: Callable[[Array], Array],
    gradient: Array,
    precondition: Callable[[Array], Array],
    steps: int,
    apart: bool = False,
) -> Array:
    """A step X that lowers ½⟨X, apply(X)⟩ + ⟨X, gradient⟩, by `steps` of conjugate gradients at most.

    It ends where the preconditioned residual has fallen a hundredfold, or where the operator is not positive:
    more accuracy would outrun the quadratic model (a truncated Newton method: Nash 2000). With `apart` the
    entries along the first axis are systems of their own, each with its own end.
    """
    axes = tuple(range(1, gradient.ndim)) if apart else None

    def inner(one: Array, other: Array) -> Array:
        found: Array = np.sum(one * other, axis=axes, keepdims=True)
        return found

    found = np.zeros_like(gradient)
    residual = -gradient
    direction = precondition(residual)
    first = slope = inner(residual, direction)
    for _ in range(steps):
        applied = apply(direction)
        curvature = inner(direction, applied)
        going = (curvature > 0.0) & (slope > 1e-4 * first)
        if not np.any(going):
            break
        length = np.divide(slope, curvature, out=np.zeros_like(slope), where=going)
        found = found + length * direction
        residual = residual - length * applied
        steepest = precondition(residual)
        previous, slope = slope, inner(residual, steepest)
        turn = np.divide(slope, previous, out=np.zeros_like(slope), where=going)
        direction = steepest + turn * direction
    return found
