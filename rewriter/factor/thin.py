"""Fewer in-channels for a kernel, the others' weights fitted to make up for them.

What a channel adds to an output is to a large part known from its neighbours: the best kernel on the channels
that stay makes as little error as a factorisation of the same rank often does. Which stay is found by taking
away, again and again, those whose loss costs least when all others make up for it (Hassibi and Stork 1993,
optimal brain surgeon, for groups of weights and a quadratic loss, where it is exact for each step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter.conv import Array

# So many steps from all channels to none: of many channels several go at once.
_STEPS = 32


def fewer_channels(W: Array, C: Array, R: Array, taps: int, counts: Sequence[int]) -> Iterator[Array]:
    """The best kernels found with so many in-channels, those of all others zero.

    With P = C⁻¹ the channels d cost tr(Rᵀ W_d (P_dd)⁻¹ W_dᵀ R) under A = R Rᵀ, and taking them away leaves

        W <- W - W_d (P_dd)⁻¹ P_d,    P <- P - P_d' (P_dd)⁻¹ P_d

    Args:
        W: `[M, c·taps]`, in (c, tap) order.
        C: Covariance of the patches `[c·taps, c·taps]`, positive definite.
        R: `[M, M]`, A = R Rᵀ.
        taps: Of the kernel.
        counts: How many channels stay, each less than the one before.

    Yields:
        `[M, c·taps]` for each of the counts.
    """
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(C, lower=True), np.eye(len(C)))
    kernel = np.array(W, np.float64)
    weighted = R.T @ kernel
    alive = np.arange(W.shape[1] // taps)
    most = max(len(alive) // _STEPS, 1)
    for count in counts:
        while len(alive) > count:
            gone = _least(weighted, inverse, taps)[: min(most, len(alive) - count)]
            columns = (gone[:, None] * taps + np.arange(taps)).reshape(-1)
            rows = inverse[columns]
            made_up = np.linalg.solve(rows[:, columns], rows)
            stay = np.delete(np.arange(inverse.shape[1]), columns)
            kernel = (kernel - kernel[:, columns] @ made_up)[:, stay]
            weighted = (weighted - weighted[:, columns] @ made_up)[:, stay]
            inverse = inverse[np.ix_(stay, stay)]
            inverse -= rows[:, stay].T @ made_up[:, stay]
            alive = np.delete(alive, gone)
        found = np.zeros((len(W), W.shape[1] // taps, taps))
        found[:, alive] = kernel.reshape(len(W), len(alive), taps)
        yield found.reshape(W.shape)


def _least(weighted: Array, inverse: Array, taps: int) -> npt.NDArray[np.intp]:
    """The channels by what it costs to lose them alone, the cheapest first."""
    count = len(inverse) // taps
    own = inverse.reshape(count, taps, count, taps)[np.arange(count), :, np.arange(count)]
    parts = weighted.reshape(len(weighted), count, taps)
    squares = np.einsum("mct,mcu->ctu", parts, parts, optimize=True)
    costs = np.trace(np.linalg.solve(own, squares), axis1=1, axis2=2)
    return np.argsort(costs, kind="stable")
