"""Depthwise or grouped, then pointwise: factors that see a block of input channels at a time.

They minimise tr(A Δ C Δᵀ), Δ = W - Ŵ, for the kernel W `[M, K]` of one group, the covariance C `[K, K]` of
its input patches (K = channels * taps, in that order) and the weights A `[M, M]` of its outputs. Identity
matrices give the data-free optimum. Errors and gradients are in float64, Hessians in float32.

Letters: m out-channel, g block of input channels, b entries of a block, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter import linalg
from rewriter.factor import descent
from rewriter.factor.descent import Unit, balanced, orthonormal, product

Array = npt.NDArray[np.floating[Any]]

DIRECT = 64
"""Blocks up to this size get an exact preconditioner."""
PROBED = 5e7
"""Multiply-adds of one step up to which every start is followed for a few steps before the best goes on."""
PROBES = 2
PATIENCE = 2
"""So many steps in a row that gain little end the fit of such a small site."""
CLOSE = 1e-6
"""Squared relative error below which the difference of two large sums is not exact enough for it."""


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
    unit = Unit.of(W, C, A)
    weighed = unit.W @ unit.C
    fits: dict[tuple[int, int], tuple[float, Array, Array]] = {}
    problem: _Blocks | None = None
    capped = [(blocks, min(rank, K // blocks, M)) for blocks, rank in ranks]
    for blocks, rank in sorted(set(capped), key=lambda pair: (-pair[0], pair[1])):
        if problem is None or problem.blocks != blocks:
            problem = _Blocks.of(unit, weighed, blocks)
        warm = [fit for (g, r), fit in fits.items() if g % blocks == 0 and r * (g // blocks) <= rank]
        start = min(warm, key=lambda fit: fit[0])[1] if warm else None
        loss, D, P = _fit(problem, rank, start)
        fits[blocks, rank] = loss, D, P * unit.scale
    for pair in capped:
        _, D, P = fits[pair]
        yield balanced(D, P)


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


def _leading(targets: Array, rank: int) -> Array:
    """The `rank` leading right singular vectors `[G, r, b]` of `[G, m, b]`."""
    if targets.shape[1] >= targets.shape[2]:
        vectors = np.linalg.eigh(targets.transpose(0, 2, 1) @ targets)[1]
        return vectors[:, :, : -rank - 1 : -1].transpose(0, 2, 1)
    left = np.linalg.eigh(targets @ targets.transpose(0, 2, 1))[1][:, :, : -rank - 1 : -1]
    return orthonormal(left.transpose(0, 2, 1) @ targets)[0]


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
    def of(cls, unit: Unit, weighed: Array, blocks: int) -> _Blocks:
        """Whiten every block; `weighed` is W C before."""
        K = len(unit.C)
        size = K // blocks
        roots = np.stack([linalg.cholesky(block) for block in _diagonal(unit.C, blocks)])
        eye = np.eye(size)
        inverses = np.stack([scipy.linalg.solve_triangular(root, eye, lower=True) for root in roots])
        C = np.matmul(inverses, unit.C.reshape(blocks, size, K)).reshape(K, K)
        C = np.ascontiguousarray(C.T)
        C = np.matmul(inverses, C.reshape(blocks, size, K)).reshape(K, K)
        W = _joined(np.matmul(_blocked(unit.W, blocks), roots))
        WC = _joined(np.matmul(_blocked(weighed, blocks), inverses.transpose(0, 2, 1)))
        energy = product(unit.A, W, WC)
        return cls(W, C, WC, unit.A, unit.W, roots, inverses, C.astype(np.float32), energy)

    def weighted(self, rows: Array) -> Array:
        """Rows `[M, n]` from the left by the root of A: Rᵀ X, A = R Rᵀ."""
        return rows if self.A is None else linalg.cholesky(self.A).T @ rows


@dataclass(frozen=True, slots=True)
class _Settled:
    """A D with its best P.

    Attributes:
        D: `[G, r, b]`, orthonormal rows.
        P: `[M, G r]`.
        AP: A P.
        BC: B C `[G r, K]`.
        normal: B C Bᵀ.
        loss: tr(A Δ C Δᵀ).
    """

    D: Array
    P: Array
    AP: Array
    BC: Array
    normal: Array
    loss: float

    def fitted(self) -> Array:
        """P B `[M, K]`."""
        return _joined(np.matmul(_blocked(self.P, len(self.D)), self.D))


def _settled(problem: _Blocks, D: Array, P: Array | None = None) -> _Settled:
    """The best P for D: a least squares solve whose tiny ridge pulls towards the given P.

    Its error is tr(A W C Wᵀ) - tr(A P B C Wᵀ).
    """
    blocks, rank, _ = D.shape
    n = blocks * rank
    BC = np.matmul(D, problem.C.reshape(blocks, -1, len(problem.C))).reshape(n, -1)
    across = D.transpose(0, 2, 1)
    normal = _joined(np.matmul(_blocked(BC, blocks), across))
    right = _joined(np.matmul(_blocked(problem.WC, blocks), across))
    left = right if P is None else right - P @ normal
    root = scipy.linalg.cho_factor(normal + 1e-10 * np.eye(n), lower=True, check_finite=False)
    solved: Array = scipy.linalg.cho_solve(root, left.T, check_finite=False).T
    P = solved if P is None else P + solved
    AP = P if problem.A is None else problem.A @ P
    loss = problem.energy - float(np.vdot(AP, right))
    state = _Settled(D, P, AP, BC, normal, loss)
    if loss > CLOSE * problem.energy:
        return state
    loss = product(problem.A, state.fitted() - problem.W, P @ BC - problem.WC)
    return _Settled(D, P, AP, BC, normal, loss)


def _fit(problem: _Blocks, rank: int, warm: Array | None) -> tuple[float, Array, Array]:
    """Loss, D and P in the coordinates of C; `warm` is the D of another fit, of blocks that nest in these."""
    starts = [
        _leading(_blocked(problem.weighted(problem.W), problem.blocks), rank),
        np.matmul(_leading(_blocked(problem.raw, problem.blocks), rank), problem.roots),
    ]
    if warm is not None:
        starts.append(_extended(problem, warm, rank))
    states = [_settled(problem, orthonormal(D)[0]) for D in starts]
    work = problem.blocks * rank * problem.C.size
    if work <= PROBED:
        states += [_swept(problem, state, PROBES) for state in states]
    sweeps = descent.effort(descent.SWEEPS, descent.SWEEPS // 5, work)
    best = _swept(problem, min(states, key=lambda state: state.loss), sweeps)
    P = np.ascontiguousarray(best.P.reshape(len(best.P), problem.blocks, rank))
    return best.loss, np.matmul(best.D, problem.inverses), P


def _extended(problem: _Blocks, D: Array, rank: int) -> Array:
    """Another fit's D merged into these blocks, with the leading directions of what it leaves in each."""
    blocks = problem.blocks
    parts, r, b = len(D) // blocks, D.shape[1], D.shape[2]
    merged = np.zeros((blocks, parts, r, parts, b))
    for part in range(parts):
        merged[:, part, :, part] = D.reshape(blocks, parts, r, b)[:, part]
    base = orthonormal(np.matmul(merged.reshape(blocks, parts * r, parts * b), problem.roots))[0]
    more = rank - base.shape[1]
    if not more:
        return base
    left = problem.weighted(problem.W - _settled(problem, base).fitted())
    return np.concatenate([base, _leading(_blocked(left, blocks), more)], axis=1)


def _swept(problem: _Blocks, state: _Settled, sweeps: int) -> _Settled:
    """Damped Gauss-Newton steps; a step that does not lower the error is taken back, the next damped more."""
    damping, idle = 1e-2, 0
    patience = PATIENCE if state.BC.size * len(problem.C) <= PROBED else 1
    for _ in range(sweeps):
        if state.loss <= descent.EXACT * problem.energy:
            break
        D, R = orthonormal(state.D + _step(problem, state, damping))
        P = _joined(np.matmul(_blocked(state.P, problem.blocks), R))
        trial = _settled(problem, D, P)
        if trial.loss < state.loss:
            idle = idle + 1 if trial.loss > (1.0 - descent.GAIN) * state.loss else 0
            state = trial
            damping = max(damping / 10, 1e-6)
            if idle == patience:
                break
        else:
            damping = min(damping * 10, 1e3)
    return state


def _step(problem: _Blocks, state: _Settled, damping: float) -> Array:
    """The Gauss-Newton step `[G, r, b]` of D, by preconditioned conjugate gradients in float32."""
    blocks, rank, size = state.D.shape
    n, K = blocks * rank, len(problem.C)
    S = state.P.T @ state.AP
    slope = np.matmul(_blocked(S, blocks).transpose(0, 2, 1), _blocked(state.BC, blocks))
    slope -= np.matmul(_blocked(state.AP, blocks).transpose(0, 2, 1), _blocked(problem.WC, blocks))
    scale = float(np.abs(slope).max()) or 1.0
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
    left = np.linalg.inv(inner).astype(np.float32)
    damped = (damping * inner).astype(np.float32)
    right: Array | None = None
    if size <= DIRECT:
        own = _diagonal(unexplained, blocks) + np.float32(damping + 1e-2) * np.eye(size, dtype=np.float32)
        right = np.linalg.inv(own)

    spread = np.ascontiguousarray(_blocked(S, blocks), np.float32)
    mixed = np.empty((n, blocks, size), np.float32)

    def apply(D: Array) -> Array:
        np.matmul(spread, D, out=mixed.transpose(1, 0, 2))
        applied: Array = np.matmul(mixed.reshape(blocks, rank, K), columns)
        applied += damped @ D
        return applied

    def precondition(D: Array) -> Array:
        half: Array = left @ D
        return half if right is None else half @ right

    steps = descent.effort(descent.STEPS, descent.STEPS - 1, n * problem.C.size)
    return scale * linalg.newton_step(apply, (slope / scale).astype(np.float32), precondition, steps)
