"""Pointwise, then depthwise: factors that see one output channel at a time.

They minimise tr(A Δ C Δᵀ), Δ = W - Ŵ, for the kernel W `[M, K]` of one group, the covariance C `[K, K]` of
its input patches (K = channels * taps, in that order) and the weights A `[M, M]` of its outputs. Identity
matrices give the data-free optimum.

Letters: m out-channel, c in-channel, t tap, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter import linalg
from rewriter.factor import descent
from rewriter.factor.descent import Unit, balanced, orthonormal, product

Array = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.intp]

SHORT = 0.3
"""The share of a step that is tried where the whole one fails, before the next is damped more."""
FAILURES = 2
"""Steps in a row that fail, whole and short, before an output goes no further; as many more where all move
together."""
PATIENT = 0.5
"""Outputs go on to this share of GAIN: the few that do cost little."""
PROBES = 1
"""Steps from every start, before each output goes on from where its error is lowest."""


def dense_then_taps(
    W: Array, C: Array, A: Array, taps: int, ranks: Sequence[int]
) -> Iterator[tuple[Array, Array]]:
    """One pair Q `[M, r, c]`, D `[M, r, T]` for each r of `ranks`, in that order.

    W[m, c t] ≈ Σ_r Q[m, r, c] D[m, r, t]: pointwise, then depthwise over the output channels (the other order
    of Guo et al. 2018, arXiv 1808.05517, which is data-free: an SVD of each W[m]).

    All rows m share C. Where A is the identity they are problems of their own, each with its own steps, its
    own start and its own end; otherwise they move together. Damped Gauss-Newton steps on Q and D at once, by
    conjugate gradients in the coordinates of a Kronecker product C ≈ C_ch ⊗ C_sp, where the normal matrix of
    Q for orthonormal D is near the identity, and that of D near Q Qᵀ for each tap. One product with C serves
    all rows.

    The ranks are capped where they are exact. No error is above that of the data-free solution, nor above
    that of a smaller one of the ranks.
    """
    unit = Unit.of(W, C, A)
    problem = _Taps.of(unit, taps)
    fits: dict[int, _Pairs] = {}
    capped = [min(rank, taps, len(unit.C) // taps) for rank in ranks]
    for rank in sorted(set(capped)):
        warm = fits[max(fits)] if fits else None
        fits[rank] = _fit(problem, rank, warm)
    for rank in capped:
        found = fits[rank]
        columns = found.Q.reshape(-1, problem.channels).T, found.D.reshape(-1, taps).T
        Q = scipy.linalg.solve_triangular(problem.channel_root.T, columns[0]).T.reshape(found.Q.shape)
        D = scipy.linalg.solve_triangular(problem.tap_root.T, columns[1]).T.reshape(found.D.shape)
        last, first = balanced(D, Q.transpose(2, 0, 1) * unit.scale)
        yield np.ascontiguousarray(first.transpose(1, 2, 0)), last


@dataclass(frozen=True, slots=True)
class _Taps:
    """The problem in the coordinates of a Kronecker product near C.

    Attributes:
        W: `[M, K]`.
        C: `[K, K]`, in float32 where the site is large.
        C32: in float32.
        A: `[M, M]`, or None.
        raw: W in its own coordinates.
        channel_root: `[c, c]`, lower triangular.
        tap_root: `[T, T]`, lower triangular.
        energy: tr(A W C Wᵀ).
    """

    W: Array
    C: Array
    C32: Array
    A: Array | None
    raw: Array
    channel_root: Array
    tap_root: Array
    energy: float

    @property
    def channels(self) -> int:
        return len(self.channel_root)

    @property
    def taps(self) -> int:
        return len(self.tap_root)

    @classmethod
    def of(cls, unit: Unit, taps: int) -> _Taps:
        """Whiten the mean over the taps and the mean over the channels."""
        K = len(unit.C)
        channels = K // taps
        parts = unit.C.reshape(channels, taps, channels, taps)
        across = linalg.ridged(np.trace(parts, axis1=1, axis2=3) / taps)
        within = np.trace(parts, axis1=0, axis2=2)
        within = linalg.ridged(within / (np.trace(within) / taps))
        channel_root, tap_root = linalg.cholesky(across), linalg.cholesky(within)
        one = scipy.linalg.solve_triangular(channel_root, np.eye(channels), lower=True)
        two = scipy.linalg.solve_triangular(tap_root, np.eye(taps), lower=True)
        C = two @ (one @ unit.C.reshape(channels, -1)).reshape(channels, taps, K)
        C = np.ascontiguousarray(C.reshape(K, K).T)
        C = (two @ (one @ C.reshape(channels, -1)).reshape(channels, taps, K)).reshape(K, K)
        W = channel_root.T @ (unit.W.reshape(-1, channels, taps) @ tap_root)
        W = W.reshape(-1, K)
        C32 = C.astype(np.float32)
        exact: Array = C if W.size * K <= descent.LARGE else C32
        energy = product(unit.A, W, W.astype(exact.dtype, copy=False) @ exact)
        return cls(W, exact, C32, unit.A, unit.W, channel_root, tap_root, energy)

    def cut(self, rows: Array) -> Array:
        """`[M, K]` as `[M, c, T]`."""
        return rows.reshape(len(rows), self.channels, self.taps)

    def of_rows(self, rows: Rows) -> _Taps:
        """The problem of some outputs only, which are problems of their own where A is None."""
        return self if self.A is not None or len(rows) == len(self.W) else replace(self, W=self.W[rows])


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Q `[M, r, c]` and D `[M, r, T]` with orthonormal rows.

    Attributes:
        Q: `[M, r, c]`.
        D: `[M, r, T]`.
        gradient: A (Ŵ - W) C `[M, K]`.
        loss: tr(A Δ C Δᵀ), of each row `[M]` where A is None, else `[1]`.
    """

    Q: Array
    D: Array
    gradient: Array
    loss: Array

    @classmethod
    def of(cls, problem: _Taps, Q: Array, D: Array) -> _Pairs:
        """Measure one pair."""
        D, R = orthonormal(D)
        Q = R.transpose(0, 2, 1) @ Q
        delta = (Q.transpose(0, 2, 1) @ D).reshape(problem.W.shape) - problem.W
        gradient = delta.astype(problem.C.dtype, copy=False) @ problem.C
        if problem.A is None:
            return cls(Q, D, gradient, np.einsum("mk,mk->m", delta, gradient))
        gradient = problem.A @ gradient
        return cls(Q, D, gradient, np.array([np.vdot(delta, gradient)]))

    def at(self, rows: Rows) -> _Pairs:
        """Some rows; all of them where they have one loss."""
        if len(rows) == len(self.loss):
            return self
        return _Pairs(self.Q[rows], self.D[rows], self.gradient[rows], self.loss[rows])

    def better(self, other: _Pairs, rows: Rows | None = None) -> _Pairs:
        """Every row from where the loss is lower, itself where they are level; `other` may have some rows."""
        rows = np.arange(len(self.loss)) if rows is None else rows
        take = np.flatnonzero(other.loss < self.loss[rows])
        if len(take) == len(self.loss):
            return other
        if len(take) == 0:
            return self
        merged = [np.array(part) for part in (self.Q, self.D, self.gradient, self.loss)]
        for part, new in zip(merged, (other.Q, other.D, other.gradient, other.loss), strict=True):
            part[rows[take]] = new[take]
        return _Pairs(*merged)

    def total(self) -> float:
        """The loss of all rows."""
        return float(np.sum(self.loss))


def _fit(problem: _Taps, rank: int, warm: _Pairs | None) -> _Pairs:
    """The best pair found for one rank; `warm` is that of a smaller one."""
    Q, D = _truncated(problem.cut(problem.raw), rank)
    starts = [
        _Pairs.of(problem, *_truncated(problem.cut(problem.W), rank)),
        _Pairs.of(problem, Q @ problem.channel_root, D @ problem.tap_root),
    ]
    if warm is not None:
        left = problem.W - (warm.Q.transpose(0, 2, 1) @ warm.D).reshape(problem.W.shape)
        Q, D = _truncated(problem.cut(left), rank - warm.Q.shape[1])
        Q, D = np.concatenate([warm.Q, Q], axis=1), np.concatenate([warm.D, D], axis=1)
        starts.append(_Pairs.of(problem, Q, D))
    best = reduce(_Pairs.better, starts)
    work = problem.W.size * len(problem.C)
    if work <= descent.LARGE and PROBES:
        best = reduce(_Pairs.better, [_swept(problem, start, PROBES) for start in starts], best)
    return _swept(problem, best, descent.effort(descent.SWEEPS, descent.SWEEPS // 4, work))


def _truncated(kernels: Array, rank: int) -> tuple[Array, Array]:
    """The best Q `[M, r, c]`, D `[M, r, T]` of `[M, c, T]` in the Frobenius norm."""
    right = np.linalg.eigh(kernels.transpose(0, 2, 1) @ kernels)[1][:, :, : -rank - 1 : -1].transpose(0, 2, 1)
    return right @ kernels.transpose(0, 2, 1), right


def _swept(problem: _Taps, state: _Pairs, sweeps: int) -> _Pairs:
    """Damped Gauss-Newton steps; where a step does not lower the error it is taken back and shortened.

    An output whose step gains less than its share of GAIN goes no further, nor does one that fails twice.
    """
    damping = np.full(len(state.loss), 1e-2)
    tired = np.zeros(len(state.loss), np.intp)
    patience = FAILURES if problem.A is None else 4 * FAILURES
    for _ in range(sweeps):
        rows = np.flatnonzero(tired < patience)
        if state.total() <= descent.EXACT * problem.energy or not len(rows):
            break
        part, before = problem.of_rows(rows), state.at(rows)
        Q, D = _step(part, before, damping[rows])
        after = before.better(_Pairs.of(part, before.Q + Q, before.D + D))
        failed = np.flatnonzero(after.loss == before.loss)
        if len(failed):
            few = problem.of_rows(rows[failed])
            where = failed if problem.A is None else np.arange(len(Q))
            short = before.Q[where] + SHORT * Q[where], before.D[where] + SHORT * D[where]
            after = after.better(_Pairs.of(few, *short), failed)
        lower = after.loss < before.loss
        little = before.loss - after.loss < PATIENT * descent.GAIN * state.total() / len(state.loss)
        tired[rows] = np.where(lower, patience * little, tired[rows] + 1)
        damping[rows] = np.where(
            lower, np.maximum(damping[rows] / 10, 1e-6), np.minimum(damping[rows] * 10, 1e3)
        )
        state = state.better(after, rows)
    return state


def _step(problem: _Taps, state: _Pairs, damping: Array) -> tuple[Array, Array]:
    """The Gauss-Newton step of Q and D, in float32."""
    M, rank, channels = state.Q.shape
    Q, D = state.Q.astype(np.float32), state.D.astype(np.float32)
    sizes = np.ones(M) if problem.A is None else np.diag(problem.A)
    A = None if problem.A is None else problem.A.astype(np.float32)

    # What a channel of Q and a tap of D are damped with: the size of their normal matrices.
    curve = (state.Q @ state.Q.transpose(0, 2, 1)) * sizes[:, None, None]
    mean = np.trace(curve, axis1=1, axis2=2)[:, None, None] / rank
    mean = mean + 1e-12 * mean.max() + np.finfo(np.float32).tiny
    damping = np.broadcast_to(damping, (M,))[:, None, None]
    inverse = np.linalg.inv(curve + (damping + 1e-3) * mean * np.eye(rank)).astype(np.float32)
    of_q, of_d = (damping * sizes[:, None, None]).astype(np.float32), (damping * mean).astype(np.float32)
    weight = (1.0 / sizes[:, None, None]).astype(np.float32)
    # [q, Q] and [D, d], one above the other: q D + Q d is one product.
    left, right = np.concatenate([Q, Q], axis=1), np.concatenate([D, D], axis=1)

    def contracted(rows: Array) -> Array:
        cut = problem.cut(rows)
        return np.concatenate([D @ cut.transpose(0, 2, 1), Q @ cut], axis=2)

    def apply(both: Array) -> Array:
        left[:, :rank], right[:, rank:] = both[:, :, :channels], both[:, :, channels:]
        moved = (left.transpose(0, 2, 1) @ right).reshape(M, -1) @ problem.C32
        applied = contracted(moved if A is None else A @ moved)
        applied[:, :, :channels] += of_q * both[:, :, :channels]
        applied[:, :, channels:] += of_d * both[:, :, channels:]
        return applied

    def precondition(both: Array) -> Array:
        return np.concatenate([weight * both[:, :, :channels], inverse @ both[:, :, channels:]], axis=2)

    slope = contracted(state.gradient.astype(np.float32))
    work = problem.W.size * len(problem.C)
    steps = descent.effort(descent.STEPS, descent.STEPS - 1, work)
    both = linalg.newton_step(apply, slope, precondition, steps, apart=A is None)
    return both[:, :, :channels], both[:, :, channels:]
