"""Small dense linear algebra that numpy does not have: ridges, roots, ridge solves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

Array = npt.NDArray[np.floating[Any]]

# Relative to the mean eigenvalue: far below every figure that a fit is judged by, far above float64's
# rounding.
RIDGE = 1e-8


def ridged(matrix: Array) -> Array:
    """A symmetric matrix `[n, n]` in float64 with RIDGE times its mean eigenvalue added to the diagonal.

    The ridge is relative to the whole matrix: channels that are zero on every sample leave whole blocks zero,
    whose own trace would give no ridge at all. An all-zero matrix becomes a tiny identity.
    """
    out = np.array(matrix, np.float64)
    out = (out + out.T) / 2
    mean = float(np.trace(out)) / len(out)
    out[np.diag_indices_from(out)] += RIDGE * mean if mean > 0.0 else np.finfo(np.float64).tiny ** 0.5
    return out


def cholesky(matrix: Array) -> Array:
    """The lower triangular L `[n, n]` with L Lᵀ = matrix, the ridge raised tenfold until it exists."""
    ridge = RIDGE * float(np.trace(matrix)) / len(matrix)
    while True:
        try:
            return scipy.linalg.cholesky(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            matrix = matrix + ridge * np.eye(len(matrix))
            ridge *= 10
