"""Factorisations that see a few channels at a time: depthwise or grouped, then pointwise, and back to front.

Each minimises tr(A Δ C Δᵀ), Δ = W - Ŵ, for the kernel W `[M, K]` of one group, the covariance C `[K, K]` of
its input patches (K = channels * taps, in that order) and the weights A `[M, M]` of its outputs. Identity
matrices give the data-free optimum. Errors and gradients are in float64, Hessians in float32.

Letters: m out-channel, c in-channel, t tap, g block of input channels, b entries of a block, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter import linalg

Array = npt.NDArray[np.floating[Any]]

SWEEPS = 24
"""Gauss-Newton steps at most, a quarter of them where the site is large."""
STEPS = 16
"""Conjugate gradient steps inside one of them, likewise."""
GAIN = 5e-3
"""A step that lowers the squared error by less than this share is the last: ten times as many gain 3 %."""
PATIENCE = 2
"""Or rather so many such steps in a row, where every output has a step of its own."""
SHORT = 0.3
"""The share of a step that is tried where the whole one fails, before the next is damped more."""
LARGE = 5e8
"""Multiply-adds of one step above which only the start with the lowest error is followed, and less far."""
DEAD = 1e-100
"""Variance below which there is none."""
EXACT = 1e-20
"""Squared relative error at which there is nothing left to fit."""
DIRECT = 64
"""Blocks up to this size get an exact preconditioner."""


def blocks_then_dense(
    W: Array, C: Array, A: Array, ranks: Sequence[tuple[int, int]]
) -> Iterator[tuple[Array, Array]]:
    """One pair D `[G, r, K/G]`, P `[M, G, r]` for each (G, r) of `ranks`, in that order.

    W[m, g b] ≈ Σ_r P[m, g, r] D[g, r, b]: a convolution in G groups with r channels each, then a pointwise
    one. One group a channel is depthwise + pointwise (Guo et al. 2018, arXiv 1808.05517), few groups are Peng
    et al., ECCV 2018, both without data. He et al. 2019, arXiv 1910.09455, whiten each block by its own
    covariance (a generalised SVD), which is one start here.

    For fixed D the best P solves a least squares problem, the same for every A, so the error is a function of
    D alone, and damped Gauss-Newton steps on it minimise it (variable projection: Golub and Pereyra 1973,
    Kaufman 1975). With B `[G r, K]` the block diagonal of D, the normal matrix of D is the Hadamard product
    of S = Pᵀ A P, spread over the entries of the blocks, with the part of C that the features B x do not
    explain,

        C' = C - C Bᵀ (B C Bᵀ)⁻¹ B C,

    and is applied, never formed. C in the place of C' would be alternating least squares, at half the speed.

    The ranks are capped where they are exact. No error is above that of the data-free solution, nor above
    that of another of the ranks whose groups nest in these and that has no more channels in all.
    """
    M, K = W.shape
    unit = _Unit.of(W, C, A)
    product = unit.W @ unit.C
    fits: dict[tuple[int, int], tuple[float, Array, Array]] = {}
    problem: _Blocks | None = None
    capped = [(blocks, min(rank, K // blocks, M)) for blocks, rank in ranks]
    for blocks, rank in sorted(set(capped), key=lambda pair: (-pair[0], pair[1])):
        if problem is None or problem.blocks != blocks:
            problem = _Blocks.of(unit, product, blocks)
        warm = [fit for (g, r), fit in fits.items() if g % blocks == 0 and r * (g // blocks) <= rank]
        start = min(warm, key=lambda fit: fit[0])[1] if warm else None
        loss, D, P = _fit_blocks(problem, rank, start)
        fits[blocks, rank] = loss, D, P * unit.scale
    for pair in capped:
        _, D, P = fits[pair]
        yield _balanced(D, P)


@dataclass(frozen=True, slots=True)
class _Unit:
    """The problem in float64, W and A scaled to a size near one.

    A is None where it is the identity. Inputs that never vary, whose C is nothing but its ridge, count as
    white.
    """

    W: Array
    C: Array
    A: Array | None
    scale: float

    @classmethod
    def of(cls, W: Array, C: Array, A: Array) -> _Unit:
        """Scale; a matrix that is zero stays it."""
        scale = float(np.abs(W).max()) or 1.0
        A = np.asarray(A, np.float64)
        plain = np.array_equal(A, np.eye(len(A)))
        return cls(
            np.asarray(W, np.float64) / scale,
            np.eye(len(C)) if np.trace(C) < DEAD else np.asarray(C, np.float64),
            None if plain else A / (np.trace(A) / len(A)),
            scale,
        )


def _effort(most: int, work: float) -> int:
    """As many steps as a site of that many multiply-adds a step is worth."""
    return int(np.clip(most * LARGE / work, most // 4, most))


def _blocked(matrix: Array, blocks: int) -> Array:
    """`[n, G b]` as `[G, n, b]`, a view."""
    return matrix.reshape(len(matrix), blocks, -1).transpose(1, 0, 2)


def _joined(parts: Array) -> Array:
    """`[G, n, b]` as `[n, G b]`."""
    return np.ascontiguousarray(parts.transpose(1, 0, 2)).reshape(parts.shape[1], -1)


def _diagonal(matrix: Array, blocks: int) -> Array:
    """The diagonal blocks `[G, b, b]` of `[G b, G b]`."""
    size = len(matrix) // blocks
    index = np.arange(blocks)
    return matrix.reshape(blocks, size, blocks, size)[index, :, index, :]


def _orthonormal(D: Array) -> tuple[Array, Array]:
    """Q `[G, r, b]` with orthonormal rows and R `[G, r, r]`, D = R Q, also where D lacks rank."""
    Q, R = np.linalg.qr(D.transpose(0, 2, 1))
    return np.ascontiguousarray(Q.transpose(0, 2, 1)), R.transpose(0, 2, 1)


def _leading(targets: Array, rank: int) -> Array:
    """The `rank` leading right singular vectors `[G, r, b]` of `[G, m, b]`."""
    if targets.shape[1] >= targets.shape[2]:
        return np.linalg.eigh(targets.transpose(0, 2, 1) @ targets)[1][:, :, : -rank - 1 : -1].transpose(
            0, 2, 1
        )
    left = np.linalg.eigh(targets @ targets.transpose(0, 2, 1))[1][:, :, : -rank - 1 : -1]
    return _orthonormal(left.transpose(0, 2, 1) @ targets)[0]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The problem in the coordinates in which every diagonal block of C is the identity.

    Attributes:
        W: `[M, K]`.
        C: `[K, K]`.
        WC: their product.
        A: `[M, M]`, or None.
        raw: W in its own coordinates.
        roots: `[G, b, b]`, lower triangular, of the blocks of C in its own coordinates.
        inverses: of the roots.
        C32: C in float32.
        energy: tr(A W C Wᵀ).
    """

    W: Array
    C: Array
    WC: Array
    A: Array | None
    raw: Array
    roots: Array
    inverses: Array
    C32: Array
    energy: float

    @property
    def blocks(self) -> int:
        return len(self.roots)

    @classmethod
    def of(cls, unit: _Unit, product: Array, blocks: int) -> _Blocks:
        """Whiten every block; `product` is W C before."""
        K = len(unit.C)
        size = K // blocks
        roots = np.stack([linalg.cholesky(block) for block in _diagonal(unit.C, blocks)])
        eye = np.eye(size)
        inverses = np.stack([scipy.linalg.solve_triangular(root, eye, lower=True) for root in roots])
        C = np.matmul(inverses, unit.C.reshape(blocks, size, K)).reshape(K, K)
        C = np.ascontiguousarray(C.T)
        C = np.matmul(inverses, C.reshape(blocks, size, K)).reshape(K, K)
        W = _joined(np.matmul(_blocked(unit.W, blocks), roots))
        WC = _joined(np.matmul(_blocked(product, blocks), inverses.transpose(0, 2, 1)))
        energy = _product(unit.A, W, WC)
        return cls(W, C, WC, unit.A, unit.W, roots, inverses, C.astype(np.float32), energy)

    def weighted(self, rows: Array) -> Array:
        """Rows `[M, n]` from the left by the root of A: Rᵀ X, A = R Rᵀ."""
        return rows if self.A is None else linalg.cholesky(self.A).T @ rows


def _product(A: Array | None, left: Array, right: Array) -> float:
    """tr(A L Rᵀ)."""
    return float(np.sum((left if A is None else A @ left) * right))


@dataclass(frozen=True, slots=True)
class _Settled:
    """A D with its best P.

    Attributes:
        D: `[G, r, b]`, orthonormal rows.
        P: `[M, G r]`.
        BC: B C `[G r, K]`.
        normal: B C Bᵀ.
        fitted: P B `[M, K]`.
        gradient: (P B - W) C `[M, K]`.
        loss: tr(A Δ C Δᵀ).
    """

    D: Array
    P: Array
    BC: Array
    normal: Array
    fitted: Array
    gradient: Array
    loss: float


def _settled(problem: _Blocks, D: Array, P: Array | None = None) -> _Settled:
    """The best P for D: a least squares solve whose tiny ridge pulls towards the given P."""
    blocks, rank, _ = D.shape
    n = blocks * rank
    BC = np.matmul(D, problem.C.reshape(blocks, -1, len(problem.C))).reshape(n, -1)
    across = D.transpose(0, 2, 1)
    normal = _joined(np.matmul(_blocked(BC, blocks), across))
    right = _joined(np.matmul(_blocked(problem.WC, blocks), across))
    start = np.zeros_like(right) if P is None else P
    root = scipy.linalg.cho_factor(normal + 1e-10 * np.eye(n), lower=True, check_finite=False)
    P = start + scipy.linalg.cho_solve(root, (right - start @ normal).T, check_finite=False).T
    fitted = _joined(np.matmul(_blocked(P, blocks), D))
    gradient = P @ BC - problem.WC
    loss = _product(problem.A, fitted - problem.W, gradient)
    return _Settled(D, P, BC, normal, fitted, gradient, loss)


def _fit_blocks(problem: _Blocks, rank: int, warm: Array | None) -> tuple[float, Array, Array]:
    """Loss, D and P in the coordinates of C; `warm` is the D of another fit, of blocks that nest in these."""
    starts = [
        _orthonormal(_leading(_blocked(problem.weighted(problem.W), problem.blocks), rank))[0],
        _orthonormal(np.matmul(_leading(_blocked(problem.raw, problem.blocks), rank), problem.roots))[0],
    ]
    if warm is not None:
        starts.append(_extended(problem, warm, rank))
    work = problem.blocks * rank * problem.C.size
    probes = 1 if work <= LARGE else 0
    best = _settled(problem, starts[0])
    best = _swept(problem, best, probes)
    for D in starts[1:]:
        state = _swept(problem, _settled(problem, D), probes)
        best = min(best, state, key=lambda state: state.loss)
    best = _swept(problem, best, _effort(SWEEPS, work))
    P = np.ascontiguousarray(best.P.reshape(len(best.P), problem.blocks, rank))
    return best.loss, np.matmul(best.D, problem.inverses), P


def _extended(problem: _Blocks, D: Array, rank: int) -> Array:
    """Another fit's D merged into these blocks, with the leading directions of what it leaves in each."""
    blocks = problem.blocks
    parts, r, b = len(D) // blocks, D.shape[1], D.shape[2]
    merged = np.zeros((blocks, parts, r, parts, b))
    for part in range(parts):
        merged[:, part, :, part] = D.reshape(blocks, parts, r, b)[:, part]
    base = _orthonormal(np.matmul(merged.reshape(blocks, parts * r, parts * b), problem.roots))[0]
    more = rank - base.shape[1]
    if not more:
        return base
    left = problem.weighted(problem.W - _settled(problem, base).fitted)
    return _orthonormal(np.concatenate([base, _leading(_blocked(left, blocks), more)], axis=1))[0]


def _swept(problem: _Blocks, state: _Settled, sweeps: int) -> _Settled:
    """Damped Gauss-Newton steps; a step that does not lower the error is taken back and shortened."""
    damping = 1e-2
    for _ in range(sweeps):
        if state.loss <= EXACT * problem.energy:
            break
        D, R = _orthonormal(state.D + _step(problem, state, damping))
        P = _joined(np.matmul(_blocked(state.P, problem.blocks), R))
        trial = _settled(problem, D, P)
        if trial.loss < state.loss:
            done = trial.loss > (1.0 - GAIN) * state.loss
            state = trial
            damping = max(damping / 10, 1e-6)
            if done:
                break
        else:
            damping = min(damping * 10, 1e3)
    return state


def _step(problem: _Blocks, state: _Settled, damping: float) -> Array:
    """The Gauss-Newton step `[G, r, b]` of D, by preconditioned conjugate gradients."""
    blocks, rank, size = state.D.shape
    n, K = blocks * rank, len(problem.C)
    AP = state.P if problem.A is None else problem.A @ state.P
    slope = np.matmul(_blocked(AP, blocks).transpose(0, 2, 1), _blocked(state.gradient, blocks))
    S = state.P.T @ AP
    # The ridge keeps the unexplained part of C positive in float32.
    normal = (state.normal + 1e-4 * np.eye(n)).astype(np.float32)
    root = scipy.linalg.cholesky(normal, lower=True, check_finite=False)
    features: Array = state.BC.astype(np.float32)
    features = scipy.linalg.solve_triangular(root, features, lower=True, check_finite=False)
    unexplained: Array = features.T @ features
    np.subtract(problem.C32, unexplained, out=unexplained)
    columns = unexplained.reshape(blocks, size, K).transpose(0, 2, 1)

    inner = _diagonal(S, blocks)
    mean = np.trace(inner, axis1=1, axis2=2)[:, None, None] / rank
    inner = inner + (1e-6 * mean + 1e-12 * mean.max()) * np.eye(rank)
    left = np.linalg.inv(inner)
    right: Array | None = None
    if size <= DIRECT:
        right = np.linalg.inv(_diagonal(unexplained, blocks) + (damping + 1e-2) * np.eye(size))

    spread = np.ascontiguousarray(_blocked(S, blocks), np.float32)
    mixed = np.empty((n, blocks, size), np.float32)

    def apply(D: Array) -> Array:
        np.matmul(spread, D.astype(np.float32), out=mixed.transpose(1, 0, 2))
        applied: Array = np.matmul(mixed.reshape(blocks, rank, K), columns)
        total: Array = applied + damping * (inner @ D)
        return total

    def precondition(D: Array) -> Array:
        half: Array = left @ D
        if right is not None:
            half = half @ right
        return half

    return linalg.newton_step(apply, slope, precondition, _effort(STEPS, n * problem.C.size))


def _balanced(D: Array, P: Array) -> tuple[Array, Array]:
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


def dense_then_taps(
    W: Array, C: Array, A: Array, taps: int, ranks: Sequence[int]
) -> Iterator[tuple[Array, Array]]:
    """One pair Q `[M, r, c]`, D `[M, r, T]` for each r of `ranks`, in that order.

    W[m, c t] ≈ Σ_r Q[m, r, c] D[m, r, t]: pointwise, then depthwise over the output channels (the other order
    of Guo et al. 2018, arXiv 1808.05517, which is data-free: an SVD of each W[m]).

    All rows m share C. Where A is the identity they are problems of their own, each of which takes a step or
    not, and the start that suits it; otherwise they move together. Damped Gauss-Newton steps on Q and D at
    once, by conjugate gradients in the coordinates of a Kronecker product C ≈ C_ch ⊗ C_sp, where the normal
    matrix of Q for orthonormal D is near the identity; that of D is inverted exactly. One product with C
    serves all rows.

    The ranks are capped where they are exact. No error is above that of the data-free solution, nor above
    that of a smaller one of the ranks.
    """
    unit = _Unit.of(W, C, A)
    problem = _Taps.of(unit, taps)
    fits: dict[int, _Pairs] = {}
    capped = [min(rank, taps, len(unit.C) // taps) for rank in ranks]
    for rank in sorted(set(capped)):
        warm = fits[max(fits)] if fits else None
        fits[rank] = _fit_taps(problem, rank, warm)
    for rank in capped:
        found = fits[rank]
        columns = found.Q.reshape(-1, problem.channels).T, found.D.reshape(-1, taps).T
        Q = scipy.linalg.solve_triangular(problem.channel_root.T, columns[0]).T.reshape(found.Q.shape)
        D = scipy.linalg.solve_triangular(problem.tap_root.T, columns[1]).T.reshape(found.D.shape)
        last, first = _balanced(D, Q.transpose(2, 0, 1) * unit.scale)
        yield np.ascontiguousarray(first.transpose(1, 2, 0)), last


@dataclass(frozen=True, slots=True)
class _Taps:
    """The problem in the coordinates of a Kronecker product near C.

    Attributes:
        W: `[M, K]`.
        C: `[K, K]`.
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
    def of(cls, unit: _Unit, taps: int) -> _Taps:
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
        energy = _product(unit.A, W, W @ C)
        return cls(W, C, C.astype(np.float32), unit.A, unit.W, channel_root, tap_root, energy)

    def cut(self, rows: Array) -> Array:
        """`[M, K]` as `[M, c, T]`."""
        return rows.reshape(len(rows), self.channels, self.taps)


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
        D, R = _orthonormal(D)
        Q = R.transpose(0, 2, 1) @ Q
        delta = (Q.transpose(0, 2, 1) @ D).reshape(problem.W.shape) - problem.W
        gradient = delta @ problem.C
        if problem.A is None:
            return cls(Q, D, gradient, np.sum(delta * gradient, axis=1))
        gradient = problem.A @ gradient
        return cls(Q, D, gradient, np.sum(delta * gradient, keepdims=True).reshape(1))

    def better(self, other: _Pairs) -> _Pairs:
        """Every row from where the loss is lower, itself where they are level."""
        take = other.loss < self.loss
        rows = take[:, None]
        return _Pairs(
            np.where(rows[:, :, None], other.Q, self.Q),
            np.where(rows[:, :, None], other.D, self.D),
            np.where(rows, other.gradient, self.gradient),
            np.where(take, other.loss, self.loss),
        )

    def total(self) -> float:
        """The loss of all rows."""
        return float(np.sum(self.loss))


def _fit_taps(problem: _Taps, rank: int, warm: _Pairs | None) -> _Pairs:
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
    if work <= LARGE:
        best = reduce(_Pairs.better, [_paired(problem, start, 2) for start in starts], best)
    return _paired(problem, best, _effort(SWEEPS, work))


def _truncated(kernels: Array, rank: int) -> tuple[Array, Array]:
    """The best Q `[M, r, c]`, D `[M, r, T]` of `[M, c, T]` in the Frobenius norm."""
    left, sizes, right = np.linalg.svd(kernels, full_matrices=False)
    return (left * sizes[:, None, :])[:, :, :rank].transpose(0, 2, 1), right[:, :rank]


def _paired(problem: _Taps, state: _Pairs, sweeps: int) -> _Pairs:
    """Damped Gauss-Newton steps; where a step does not lower the error it is taken back and shortened."""
    damping = np.full(len(state.loss), 1e-2)
    idle = 0
    for _ in range(sweeps):
        if state.total() <= EXACT * problem.energy:
            break
        Q, D = _paired_step(problem, state, damping)
        before = state
        state = state.better(_Pairs.of(problem, state.Q + Q, state.D + D))
        if np.any(state.loss == before.loss):
            state = state.better(_Pairs.of(problem, before.Q + SHORT * Q, before.D + SHORT * D))
        lower = state.loss < before.loss
        damping = np.where(lower, np.maximum(damping / 10, 1e-6), np.minimum(damping * 10, 1e3))
        # Outputs that have to shorten their step gain nothing in this sweep, but may in the next ones.
        if np.any(lower):
            idle = idle + 1 if state.total() > (1.0 - GAIN) * before.total() else 0
        if idle == PATIENCE:
            break
    return state


def _paired_step(problem: _Taps, state: _Pairs, damping: Array) -> tuple[Array, Array]:
    """The Gauss-Newton step of Q and D."""
    Q, D = state.Q, state.D
    M, rank, channels = Q.shape
    taps = problem.taps
    sizes = np.ones(M) if problem.A is None else np.diag(problem.A)
    damped = (damping * sizes)[:, None, None]

    # The normal matrix of D, `[M, r T, r T]`: Q C Qᵀ for every pair of taps.
    Q32 = Q.astype(np.float32)
    columns = problem.C32.reshape(channels, taps, -1)
    inner = np.empty((M, rank, taps, rank, taps), np.float32)
    for r in range(rank):
        for t in range(taps):
            inner[:, r, t] = Q32 @ problem.cut(Q32[:, r] @ columns[:, t])
    curves = inner.reshape(M, rank * taps, -1).astype(np.float64) * sizes[:, None, None]
    mean = np.trace(curves, axis1=1, axis2=2)[:, None, None] / (rank * taps)
    mean = mean + 1e-12 * mean.max() + np.finfo(np.float64).tiny
    curves = (curves + curves.transpose(0, 2, 1)) / 2
    inverse = np.linalg.inv(curves + (damping[:, None, None] + 1e-3) * mean * np.eye(rank * taps))

    def split(both: Array) -> tuple[Array, Array]:
        return both[:, :, :channels], both[:, :, channels:]

    def contracted(rows: Array) -> Array:
        cut = problem.cut(rows)
        return np.concatenate([D @ cut.transpose(0, 2, 1), Q @ cut], axis=2)

    def apply(both: Array) -> Array:
        q, d = split(both)
        moved = q.transpose(0, 2, 1) @ D + Q.transpose(0, 2, 1) @ d
        moved = (moved.reshape(M, -1).astype(np.float32) @ problem.C32).astype(np.float64)
        ridge: Array = damped * np.concatenate([q, mean / sizes[:, None, None] * d], axis=2)
        return contracted(moved if problem.A is None else problem.A @ moved) + ridge

    def precondition(both: Array) -> Array:
        q, d = split(both)
        d = (inverse @ d.reshape(M, -1, 1)).reshape(d.shape)
        return np.concatenate([q / sizes[:, None, None], d], axis=2)

    steps = _effort(STEPS, problem.W.size * len(problem.C))
    return split(linalg.newton_step(apply, contracted(state.gradient), precondition, steps))
