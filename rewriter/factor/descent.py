"""What the separable fits share: the scaled problem, how far they go, and how their factors are written down.

Both descend by damped Gauss-Newton steps from the best of a few closed forms. Every size below trades seconds
for error: the fits stop where a step no longer pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

SWEEPS = 16
"""Gauss-Newton steps at most, a few of them where the site is large."""
STEPS = 5
"""Conjugate gradient steps inside one of them."""
GAIN = 1e-2
"""A step that lowers the squared error by less than this share is the last."""
LARGE = 5e8
"""Multiply-adds of one step above which a site is large: fewer steps, in float32."""
DEAD = 1e-100
"""Variance below which there is none."""
EXACT = 1e-20
"""Squared relative error at which there is nothing left to fit."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The problem in float64 with W, C and A scaled to a size near one, which float32 can hold.

    A is None where it is the identity. Inputs that never vary, whose C is nothing but its ridge, count as
    white.
    """

    W: Array
    C: Array
    A: Array | None
    scale: float

    @classmethod
    def of(cls, W: Array, C: Array, A: Array) -> Unit:
        """Scale; a kernel that is zero stays it."""
        scale = float(np.abs(W).max()) or 1.0
        A = np.asarray(A, np.float64)
        plain = np.array_equal(A, np.eye(len(A)))
        variance = float(np.trace(C)) / len(C)
        return cls(
            np.asarray(W, np.float64) / scale,
            np.eye(len(C)) if variance < DEAD else np.asarray(C, np.float64) / variance,
            None if plain else A / (np.trace(A) / len(A)),
            scale,
        )


def effort(most: int, least: int, work: float) -> int:
    """As many steps as a site of that many multiply-adds a step is worth."""
    return int(np.clip(most * LARGE / work, least, most))


def product(A: Array | None, left: Array, right: Array) -> float:
    """tr(A L Rᵀ)."""
    return float(np.vdot(left if A is None else A @ left, right))


def orthonormal(D: Array) -> tuple[Array, Array]:
    """Q `[G, r, b]` with orthonormal rows and R `[G, r, r]`, D = R Q, also where D lacks rank."""
    Q, R = np.linalg.qr(D.transpose(0, 2, 1))
    return np.ascontiguousarray(Q.transpose(0, 2, 1)), R.transpose(0, 2, 1)


def balanced(D: Array, P: Array) -> tuple[Array, Array]:
    """The same product of D `[G, r, b]` and P `[M, G, r]`: largest first, equal norms, fixed signs."""
    left, sizes, turn = np.linalg.svd(P.transpose(1, 0, 2), full_matrices=False)
    D = turn @ D
    P = left * sizes[:, None, :]
    # Signs: the largest entry of every row of D is positive.
    peaks = np.take_along_axis(D, np.abs(D).argmax(axis=2)[:, :, None], axis=2)
    ones, twos = np.linalg.norm(D, axis=2), np.linalg.norm(P, axis=1)
    ratio = np.sqrt(np.divide(twos, ones, out=np.ones_like(ones), where=(ones > 0.0) & (twos > 0.0)))
    ratio = np.where(peaks[:, :, 0] < 0.0, -ratio, ratio)
    return D * ratio[:, :, None], (P / ratio[:, None, :]).transpose(1, 0, 2)
