"""Low-rank factorisations of a kernel, fitted to the covariance of its input patches.

Every function takes one group: a kernel W, the covariance C of its patches and the weight A of its outputs,
and minimises tr(A Δ C Δᵀ), Δ = W - Ŵ. With A = R Rᵀ that is the fit of RᵀW, whose last factor H becomes R⁻ᵀH.
Ranks are capped where they are exact.
Identities for C and A give the best fit in the Frobenius norm of the kernel.

All factors but one come out orthonormal and that one has the scale, so that float32 holds them.
Axis letters: m out-channel, c in-channel, y x t taps, r rank; n and q are the two halves of a patch's axes
that the first and the second factor sum over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rewriter import linalg

Array = npt.NDArray[np.floating[Any]]

# A kernel this close to a factorisation, relative to its norm, is that factorisation: no data can improve it.
EXACT = 1e-6
# A start with more than this many times the squared error of a rival is not refined.
RIVAL = 2.0
# Relative to the mean eigenvalue; it only has to keep float32 positive definite.
PRECONDITIONER_RIDGE = 1e-4
# Steps towards the best first factor in each sweep; each costs about as much as the regression of the second.
STEPS = 3
# Patches longer than this are multiplied in float32 within a sweep; every regression stays in float64.
LONG = 1000
# Patches longer than this get one sweep at most, as the second gains about one per cent, and a start that
# is behind its rival none.
VAST = 3000


def channel(W: Array, C: Array, A: Array, ranks: Sequence[int]) -> list[tuple[Array, Array]]:
    """Factors V `[r, k]` and H `[m, r]` of W `[m, k]` ≈ H V, one pair a rank, the optimum under the metric.

    The best outputs are spanned by the top eigenvectors U_r of the output covariance RᵀW C WᵀR:
    Ŵ = R⁻ᵀ U_r U_rᵀ RᵀW. One eigendecomposition serves all ranks. Zhang et al. 2015, section 3.1.
    """
    root = linalg.cholesky(A)
    W = root.T @ W
    if W.shape[1] < W.shape[0]:
        U = np.linalg.svd(W @ linalg.cholesky(C), full_matrices=False)[0]
    else:
        U = np.linalg.eigh(W @ C @ W.T)[1][:, ::-1]
    factors: list[tuple[Array, Array]] = []
    for rank in ranks:
        H, T = linalg.orthonormal(_unweighted(U[:, :rank], root))
        factors.append((T @ (U[:, :rank].T @ W), H))
    return factors


def spatial(
    W: Array,
    C: Array,
    A: Array,
    ranks: Sequence[int],
    sweeps: int = 2,
    bounds: Sequence[float] | None = None,
) -> list[tuple[Array, Array, float]]:
    """W `[m, c, y, x]` ≈ Σ_r H[m, r, x] V[r, c, y], one factorisation a rank.

    Jaderberg et al. 2014 (scheme 2); the fit to data is that of `_chains`.

    Args:
        W: the kernel; exchange its last axes, and those of C, to put the horizontal convolution first.
        C: the covariance of its patches, `[c, y, x, c, y, x]`.
        A: the weight of its outputs, `[m, m]`.
        ranks: r of each factorisation wanted.
        sweeps: of alternating least squares.
        bounds: the squared error of a rival for each rank; one that starts far behind it is not refined.

    Returns:
        For each rank V `[r, c, y]`, H `[m, r, x]` and the squared error.
    """
    root = linalg.cholesky(A)
    M, channels, height, _ = W.shape
    chain = _Chain.of(W, C, root)
    bounds = [np.inf] * len(ranks) if bounds is None else [bound / chain.scale for bound in bounds]
    factors: list[tuple[Array, Array, float]] = []
    for fit in _chains(chain, [(rank, M) for rank in ranks], sweeps, bounds):
        rank = len(fit.V)
        V, T = linalg.orthonormal(fit.V.T)
        H = _unweighted(fit.U @ fit.H.reshape(M, -1), root).reshape(M, rank, -1)
        factors.append((V.T.reshape(rank, channels, height), T @ H, fit.error * chain.scale))
    return factors


def tucker2(
    W: Array, C: Array, A: Array, ranks: Sequence[tuple[int, int]], sweeps: int = 2
) -> list[tuple[Array, Array, Array]]:
    """W `[m, c, t]` ≈ Σ_rs U[m, s] G[s, r, t] P[r, c], one triple a rank (r, s).

    Kim et al. 2016, with the fit to data of `_chains`; Kalle et al. 2025 alternate likewise.

    Args:
        W: the kernel.
        C: the covariance of its patches, `[c·t, c·t]`.
        A: the weight of its outputs, `[m, m]`.
        ranks: (r, s) of each factorisation wanted.
        sweeps: of alternating least squares.

    Returns:
        For each rank P `[r, c]`, G `[s, r, t]` and U `[m, s]`.
    """
    root = linalg.cholesky(A)
    channels, taps = W.shape[1:]
    chain = _Chain.of(W[:, :, None], C.reshape((channels, 1, taps) * 2), root)
    factors: list[tuple[Array, Array, Array]] = []
    for fit in _chains(chain, ranks, sweeps, [np.inf] * len(ranks)):
        P, T = linalg.orthonormal(fit.V.T)
        U, S = linalg.orthonormal(_unweighted(fit.U, root))
        factors.append((P.T, np.einsum("us,srq,vr->uvq", S, fit.H, T, optimize=True), U))
    return factors


@dataclass(frozen=True, slots=True)
class _Fit:
    """Ŵ[m, q, n] = Σ_sr U[m, s] H[s, r, q] V[r, n], U with orthonormal columns, and its squared error."""

    error: float
    U: Array
    H: Array
    V: Array


@dataclass(frozen=True, slots=True)
class _Chain:
    """The fit of Ŵ[m, q, n] = Σ_r H[m, r, q] V[r, n]: V sees b[r, q] = Σ_n V[r, n] x[q, n], and H all of b.

    Attributes:
        kernel: `[m, q, n]`, as it is.
        W: `[m, q, n]`, RᵀW.
        C: `[q, n, q·n]`, the covariance scaled to a mean variance of 1.
        WC: `[m, q, n]`.
        energy: tr(W C Wᵀ).
        scale: the mean variance that C was divided by.
        marginal: C_u `[n, n]`, the mean of the diagonal blocks of C.
        likeness: ρ `[q, q]`, how far the block q, q' of C is C_u: tr(C_qq' C_u) / tr(C_u²).
        quick: C as the steps between two regressions multiply it.
        inverse: (C_u + a ridge)⁻¹, a preconditioner.
    """

    kernel: Array
    W: Array
    C: Array
    WC: Array
    energy: float
    scale: float
    marginal: Array
    likeness: Array
    quick: Array
    inverse: Array

    @classmethod
    def of(cls, kernel: Array, C: Array, root: Array) -> _Chain:
        """From a kernel `[m, c, p, q]`, C `[c, p, q, c, p, q]` and R, with n = (c, p)."""
        M, N, Q = len(kernel), kernel.shape[1] * kernel.shape[2], kernel.shape[3]
        kernel = np.asarray(kernel.transpose(0, 3, 1, 2), np.float64).reshape(M, Q, N)
        W = (root.T @ kernel.reshape(M, Q * N)).reshape(kernel.shape)
        C = np.array(C.transpose(2, 0, 1, 5, 3, 4), np.float64, order="C").reshape(Q, N, Q * N)
        scale = float(np.trace(C.reshape(Q * N, Q * N))) / (Q * N)
        C /= scale
        WC = (W.reshape(M, Q * N) @ C.reshape(Q * N, Q * N)).reshape(W.shape)
        blocks = C.reshape(Q, N, Q, N)
        marginal = np.einsum("qnqk->nk", blocks) / Q
        likeness: Array = np.einsum("qnpk,nk->qp", blocks, marginal) / np.vdot(marginal, marginal)
        quick: Array = C if Q * N <= LONG else C.astype(np.float32)
        inverse = np.linalg.inv(marginal + PRECONDITIONER_RIDGE * np.trace(marginal) / N * np.eye(N)).astype(
            quick.dtype
        )
        return cls(kernel, W, C, WC, float(np.vdot(W, WC)), scale, marginal, likeness, quick, inverse)

    def starts(self, most: int) -> tuple[Array, Array]:
        """Two first factors `[most, n]`, their rows in order of importance: data-free, and for white b.

        The rows of the unfolding `[m·q, n]` are best spanned by its right singular vectors; if the blocks of
        C were C_u on the diagonal and zero elsewhere, by those of the unfolding times chol(C_u).
        """
        M, Q, N = self.W.shape
        rows = self.W.reshape(M * Q, N)
        L = linalg.cholesky(self.marginal)
        white = linalg.right_singular(rows @ L, most)
        white = scipy.linalg.solve_triangular(L, white.T, trans="T", lower=True, check_finite=False).T
        return linalg.right_singular(self.kernel.reshape(M * Q, N), most), white

    def regress(self, V: Array) -> tuple[Array, Array]:
        """X `[m, r·q]` and lower triangular L with the best H = X L⁻¹, for V `[r, n]`.

        B C Bᵀ = L Lᵀ is the covariance of b and X = W C Bᵀ L⁻ᵀ, so ‖X‖² is the energy that V explains;
        leading columns and blocks are those of the leading rows of V alone.
        """
        Q, N, _ = self.C.shape
        R = len(V)
        gram = np.empty((R, Q, R, Q))
        for q in range(Q):
            block = ((V @ self.C[q, :, q * N :]).reshape(-1, N) @ V.T).reshape(R, Q - q, R)
            gram[:, q, :, q:] = block.transpose(0, 2, 1)
            gram[:, q:, :, q] = block.transpose(2, 1, 0)
        L = linalg.cholesky(gram.reshape(R * Q, R * Q))
        right = (self.WC.reshape(-1, N) @ V.T).reshape(-1, Q, R).transpose(2, 1, 0).reshape(R * Q, -1)
        return scipy.linalg.solve_triangular(L, right, lower=True, check_finite=False).T, L

    def fit(self, starts: Sequence[tuple[Array, Array, Array]], rank: tuple[int, int]) -> _Fit:
        """The best fit of rank (r, s) of several V, X, L: a reduced-rank regression on their first rows."""
        r, s = rank
        size = r * len(self.C)
        found = []
        for V, X, L in starts:
            part = X[:, :size]
            U = np.eye(len(X)) if s == len(X) else np.linalg.eigh(part @ part.T)[1][:, : -s - 1 : -1]
            part = part if s == len(X) else U.T @ part
            found.append(
                (max(self.energy - float(np.vdot(part, part)), 0.0), U, part, L[:size, :size], V[:r])
            )
        error, U, part, L, V = min(found, key=lambda fit: fit[0])
        H = scipy.linalg.solve_triangular(L, part.T, trans="T", lower=True, check_finite=False).T
        return _Fit(error, U, H.reshape(s, r, -1), V)

    def exact(self, V: Array, rank: tuple[int, int]) -> _Fit | None:
        """The fit of rank (r, s) with the data-free V if the kernel is that to rounding, or None."""
        V = V[: rank[0]]
        H = (self.W.reshape(-1, V.shape[1]) @ V.T).reshape(*self.W.shape[:2], -1).swapaxes(1, 2)
        norm = float(np.vdot(self.W, self.W))
        if norm - float(np.vdot(H, H)) > EXACT**2 * norm:
            return None
        U, S, rows = np.linalg.svd(H.reshape(len(H), -1), full_matrices=False)
        s = rank[1]
        if float(np.sum(S[s:] ** 2)) > EXACT**2 * norm:
            return None
        return _padded(_Fit(0.0, U[:, :s], (S[:s, None] * rows[:s]).reshape(-1, *H.shape[1:]), V), rank)

    def step(self, fit: _Fit) -> Array:
        """A better V for the U and H of a fit, by conjugate gradients from its own.

        Σ_qq' G_qq' V C_q'q = Σ_q H_qᵀ (UᵀWC)_q with G_qq' = H_qᵀH_q', preconditioned by
        (Σ ρ_qq' G_qq') ⊗ C_u.
        """
        Q, N, _ = self.C.shape
        R = len(fit.V)
        H = fit.H.reshape(len(fit.H), R * Q)
        G = (H.T @ H).reshape(R, Q, R, Q)
        left = np.linalg.inv(linalg.ridged(np.einsum("rqsp,qp->rs", G, self.likeness))).astype(
            self.quick.dtype
        )
        # By the second factor's tap q': [r, q·s].
        mixing = np.ascontiguousarray(G.transpose(3, 0, 1, 2), self.quick.dtype).reshape(Q, R, Q * R)
        target = (fit.U.T @ self.WC.reshape(len(self.WC), -1)).reshape(-1, N)
        right = fit.H.transpose(1, 0, 2).reshape(R, -1) @ target

        def apply(V: Array) -> Array:
            total = np.zeros_like(V)
            for q in range(Q):
                seen = (V @ self.quick[q]).reshape(R, Q, N).swapaxes(0, 1).reshape(Q * R, N)
                total += mixing[q] @ seen
            return total

        start = fit.V.astype(self.quick.dtype)
        return linalg.conjugate_gradients(
            apply, right.astype(start.dtype), start, lambda V: left @ V @ self.inverse, STEPS
        ).astype(np.float64)


def _chains(
    chain: _Chain, ranks: Sequence[tuple[int, int]], sweeps: int, bounds: Sequence[float]
) -> list[_Fit]:
    """The best fit found for each rank (r of V, s of U), never worse than the data-free first factor's.

    1. V from the data-free start and from the one for white b, the second factor by regression, all ranks at
       once;
    2. from the best of them, `sweeps` times a step of V, then the regression again, the best kept. Ranks that
       start far above their bound, the error of a rival, are left at 1.

    The error does not rise with the rank: where it would, the smaller fit is padded.
    """
    if not ranks:
        return []
    M, Q, N = chain.W.shape
    ranks = [(min(r, N, M * Q), min(s, M)) for r, s in ranks]
    free, *others = chain.starts(max(r for r, _ in ranks))
    starts = [(V, *chain.regress(V)) for V in (free, *others)]
    allowed = dict(zip(ranks, bounds, strict=True))
    rival, sweeps = (RIVAL, sweeps) if Q * N <= VAST else (1.0, min(sweeps, 1))
    fits: dict[tuple[int, int], _Fit] = {}
    neighbour: list[tuple[Array, Array, Array]] = []
    for rank in sorted(allowed):
        best = chain.exact(free, rank)
        if best is None:
            # Between ranks that differ in s alone, the V of one is a start for the next.
            best = chain.fit(starts + [start for start in neighbour if len(start[0]) == rank[0]], rank)
            for _ in range(sweeps if best.error <= rival * allowed[rank] else 0):
                V = chain.step(best)
                neighbour = [(V, *chain.regress(V))]
                best = min(best, chain.fit(neighbour, rank), key=lambda fit: fit.error)
        fits[rank] = best
    for rank in sorted(fits):
        for less, fit in fits.items():
            if less[0] <= rank[0] and less[1] <= rank[1] and fit.error < fits[rank].error:
                fits[rank] = _padded(fit, rank)
    return [fits[rank] for rank in ranks]


def _padded(fit: _Fit, rank: tuple[int, int]) -> _Fit:
    """The same fit in the shapes of a higher rank."""
    s, r, _ = fit.H.shape
    more = ((0, rank[1] - s), (0, rank[0] - r))
    return _Fit(
        fit.error,
        np.pad(fit.U, ((0, 0), more[0])),
        np.pad(fit.H, (*more, (0, 0))),
        np.pad(fit.V, (more[1], (0, 0))),
    )


def _unweighted(H: Array, root: Array) -> Array:
    """R⁻ᵀH."""
    return scipy.linalg.solve_triangular(root, H, trans="T", lower=True, check_finite=False)
