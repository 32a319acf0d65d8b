"""Ranks that a kernel has exactly, up to the rounding of its weights, and the factors at them.

A matrix of rank r, rounded to a type, is at most u of its norm off: 2⁻²⁴ in float32, 2⁻¹¹ in float16. Where
it was made as a sum of R products in float32, it is about √R·2⁻²⁴ off. Kernels that are trained, or drawn,
have singular values down to 1e-3 to 1e-5 of the largest: far above u in float32; and in float16 all that a
rewrite which pays leaves out is far above it.

Ranks do not change where rows and columns are multiplied by numbers; so that no output and no input is lost
for being small, kernels are taken with outputs and inputs of norm one.

Letters: m out-channel, c in-channel, t tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter import linalg

Array = npt.NDArray[np.floating[Any]]

# Of 64 products that were summed in float32.
_SUMMED = 2.0**-21


def tolerance(dtype: np.dtype[Any]) -> float:
    """Of the norm: what may be left beyond its rank of a matrix that was rounded to a type."""
    return max(_SUMMED, float(np.finfo(dtype).eps))


@dataclass(frozen=True, slots=True)
class Level:
    """A kernel of one group with outputs and inputs of norm one: W[m, c, t] = rows[m] W'[m, c, t] columns[c].

    Attributes:
        kernel: W' `[m, c, t]`.
        rows: `[m]`.
        columns: `[c]`.
    """

    kernel: Array
    rows: Array
    columns: Array

    @classmethod
    def of(cls, kernel: Array) -> Level:
        """Divide; what is zero stays it."""
        kernel = np.asarray(kernel, np.float64)
        rows = _sizes(kernel, (1, 2))
        kernel = kernel / rows[:, None, None]
        columns = _sizes(kernel, (0, 2))
        return cls(kernel / columns[:, None], rows, columns)


def _sizes(kernel: Array, axes: tuple[int, int]) -> Array:
    sizes: Array = np.sqrt(np.sum(kernel * kernel, axis=axes))
    return np.where(sizes > 0.0, sizes, 1.0)


def rank(matrix: Array, most: int, tolerance: float = _SUMMED) -> int | None:
    """The rank of a matrix `[n, k]` if it is at most `most`, or None; `tolerance` of its norm may be left.

    Before any spectrum a part S of it with one row more than that is looked at: if S Sᵀ - τ is positive
    definite, τ the square of what may be left, all singular values of S are above, and so are as many of the
    matrix (interlacing).
    """
    matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    left = tolerance**2 * float(np.vdot(matrix, matrix))
    if most < 1:
        return None
    if left == 0.0:
        return 1
    if most < len(matrix):
        rows = np.argsort(-np.einsum("nk,nk->n", matrix, matrix), kind="stable")[: most + 1]
        step = max(matrix.shape[1] // (2 * (most + 1)), 1)
        part = matrix[np.sort(rows), ::step]
        if _definite(part @ part.T - left * np.eye(len(part))):
            return None
    values = np.linalg.eigvalsh(matrix @ matrix.T)
    # ascending: so many of the smallest may be left out
    found = max(len(values) - int(np.searchsorted(np.cumsum(np.abs(values)), left, side="right")), 1)
    return found if found <= most else None


def _definite(matrix: Array) -> bool:
    try:
        scipy.linalg.cholesky(matrix, lower=True, check_finite=False, overwrite_a=True)
    except np.linalg.LinAlgError:
        return False
    return True


def factors(matrix: Array, count: int) -> tuple[Array, Array]:
    """The nearest L R, L `[n, r]`, R `[r, k]` with orthonormal rows, r = count; zeros above the full rank."""
    right = linalg.right_singular(matrix, min(count, *matrix.shape))
    right = np.pad(right, ((0, count - len(right)), (0, 0)))
    return matrix @ right.T, right
