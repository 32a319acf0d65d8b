"""Depthwise, grouped and pointwise factors against closed forms and against the error that they minimise."""

import numpy as np
import pytest

from rewriter import linalg
from rewriter.factor import descent
from rewriter.factor.blocks import blocks_then_dense
from rewriter.factor.taps import dense_then_taps

C_IN, TAPS, M = 8, 6, 10
K = C_IN * TAPS


def _spd(rng, size, decay=0.8):
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return turn @ np.diag(decay ** np.arange(size)) @ turn.T


@pytest.fixture
def problem(rng):
    """W, C and A, all of them far from isotropic."""
    return rng.standard_normal((M, K)), _spd(rng, K, 0.85), _spd(rng, M)


def _blocks(D, P):
    return np.einsum("mgr,grb->mgb", P, D).reshape(len(P), -1)


def _taps(Q, D):
    return np.einsum("mrc,mrt->mct", Q, D).reshape(len(Q), -1)


def _loss(W, fitted, C, A):
    delta = W - fitted
    return float(np.sum((A @ delta) * (delta @ C)))


def _tails(kernels, rank):
    return float(np.sum(np.linalg.svd(kernels, compute_uv=False)[..., rank:] ** 2))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("blocks", [2, C_IN])
def test_white_inputs_give_the_svd_of_every_block(problem, blocks, rank):
    W = problem[0]
    ((D, P),) = blocks_then_dense(W, np.eye(K), np.eye(M), [(blocks, rank)])
    parts = W.reshape(M, blocks, -1).transpose(1, 0, 2)
    assert _loss(W, _blocks(D, P), np.eye(K), np.eye(M)) == pytest.approx(_tails(parts, rank))


@pytest.mark.parametrize("rank", [1, 3])
def test_white_inputs_give_the_svd_of_every_output(problem, rank):
    W = problem[0]
    ((Q, D),) = dense_then_taps(W, np.eye(K), np.eye(M), TAPS, [rank])
    tails = _tails(W.reshape(M, C_IN, TAPS), rank)
    assert _loss(W, _taps(Q, D), np.eye(K), np.eye(M)) == pytest.approx(tails)


def test_one_block_is_the_weighted_channel_svd(problem):
    W, C, A = problem
    ((D, P),) = blocks_then_dense(W, C, A, [(1, 4)])
    whitened = np.linalg.cholesky(A).T @ W @ np.linalg.cholesky(C)
    assert _loss(W, _blocks(D, P), C, A) == pytest.approx(_tails(whitened, 4), rel=1e-6)


def test_independent_blocks_are_whitened_ones(rng, problem):
    W, _, A = problem
    C = np.zeros((K, K))
    for g in range(C_IN):
        C[g * TAPS : (g + 1) * TAPS, g * TAPS : (g + 1) * TAPS] = _spd(rng, TAPS, 0.5)
    ((D, P),) = blocks_then_dense(W, C, A, [(C_IN, 2)])
    whitened = np.linalg.cholesky(A).T @ W @ np.linalg.cholesky(C)
    tails = _tails(whitened.reshape(M, C_IN, TAPS).transpose(1, 0, 2), 2)
    assert _loss(W, _blocks(D, P), C, A) == pytest.approx(tails, rel=1e-6)


def test_a_kronecker_covariance_has_a_closed_form_for_every_output(rng, problem):
    W = problem[0]
    channels, taps = _spd(rng, C_IN, 0.5), _spd(rng, TAPS, 0.5)
    ((Q, D),) = dense_then_taps(W, np.kron(channels, taps), np.eye(M), TAPS, [2])
    whitened = np.linalg.cholesky(channels).T @ W.reshape(M, C_IN, TAPS) @ np.linalg.cholesky(taps)
    loss = _loss(W, _taps(Q, D), np.kron(channels, taps), np.eye(M))
    # The roots come from ridged means.
    assert loss == pytest.approx(_tails(whitened, 2), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_find_what_many_random_starts_find(rng, problem, weighted):
    W, C, A = problem
    A = A if weighted else np.eye(M)
    ((D, P),) = blocks_then_dense(W, C, A, [(C_IN, 1)])
    best = min(_alternate(rng.standard_normal((C_IN, 1, TAPS)), W, C, A) for _ in range(4))
    # Squared errors of the many local optima that random kernels have.
    assert _loss(W, _blocks(D, P), C, A) < 1.2 * best


def _alternate(D, W, C, A):
    """Alternating least squares by brute force, on dense normal equations."""
    for _ in range(60):
        B = np.zeros((C_IN, K))
        for c in range(C_IN):
            B[c, c * TAPS : (c + 1) * TAPS] = D[c, 0]
        P = np.linalg.solve(B @ C @ B.T, B @ C @ W.T).T
        maps = np.einsum("mc,ck->mck", P, np.repeat(np.eye(C_IN), TAPS, axis=1))
        normal = np.einsum("mck,mn,ndl,kl->kl", maps, A, maps, C, optimize=True)
        right = np.einsum("mck,mn,nl,lk->k", maps, A, W, C, optimize=True)
        D = np.linalg.solve(normal, right).reshape(C_IN, 1, TAPS)
    return _loss(W, np.einsum("mc,ct->mct", P, D[:, 0]).reshape(M, K), C, A)


@pytest.mark.parametrize("weighted", [False, True])
def test_more_steps_gain_little(monkeypatch, problem, weighted):
    W, C, A = problem
    A = A if weighted else np.eye(M)

    def losses():
        (first,) = blocks_then_dense(W, C, A, [(C_IN, 2)])
        (second,) = dense_then_taps(W, C, A, TAPS, [2])
        return np.array([_loss(W, _blocks(*first), C, A), _loss(W, _taps(*second), C, A)])

    default = losses()
    monkeypatch.setattr(descent, "SWEEPS", 240)
    monkeypatch.setattr(descent, "GAIN", 1e-6)
    # 5 % of the error is 10 % of its square.
    assert np.all(default < 1.1 * losses())


def test_a_scaled_identity_gives_the_fit_without_weights(problem):
    W, C, _ = problem
    for A in (np.eye(M), 3 * np.eye(M)):
        ((Q, D),) = dense_then_taps(W, C, A, TAPS, [2])
        loss = _loss(W, _taps(Q, D), C, np.eye(M))
        if A[0, 0] == 1:
            plain = loss
    # There the outputs take their steps together instead of one by one.
    assert loss == pytest.approx(plain, rel=0.05)


def test_ranks_come_in_the_order_asked_for_and_errors_fall_with_them(problem):
    W, C, A = problem
    ranks = [3, 1, 2, 1, 50]
    depthwise = list(blocks_then_dense(W, C, A, [(C_IN, rank) for rank in ranks]))
    assert [D.shape for D, _ in depthwise] == [(C_IN, min(rank, TAPS), TAPS) for rank in ranks]
    errors = [_loss(W, _blocks(D, P), C, A) for D, P in depthwise]
    assert errors[1] == errors[3] > errors[2] > errors[0] > 1e3 * errors[4]

    pointwise = list(dense_then_taps(W, C, A, TAPS, ranks))
    assert [Q.shape for Q, _ in pointwise] == [(M, min(rank, TAPS), C_IN) for rank in ranks]
    errors = [_loss(W, _taps(Q, D), C, A) for Q, D in pointwise]
    assert errors[1] == errors[3] > errors[2] > errors[0] > 1e3 * errors[4]


def test_merged_groups_are_no_worse(problem):
    W, C, A = problem
    pairs = [(8, 1), (4, 2), (2, 4), (1, 8)]
    errors = [_loss(W, _blocks(*fit), C, A) for fit in blocks_then_dense(W, C, A, pairs)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_planted_factors_are_found(rng, problem, weighted):
    _, C, A = problem
    A = A if weighted else np.eye(M)
    W = _blocks(rng.standard_normal((C_IN, 2, TAPS)), rng.standard_normal((M, C_IN, 2)))
    ((D, P),) = blocks_then_dense(W, C, A, [(C_IN, 2)])
    assert np.allclose(_blocks(D, P), W, atol=1e-6)
    W = _taps(rng.standard_normal((M, 2, C_IN)), rng.standard_normal((M, 2, TAPS)))
    ((Q, D),) = dense_then_taps(W, C, A, TAPS, [2])
    assert np.allclose(_taps(Q, D), W, atol=1e-6)


def test_stages_have_equal_norms_and_fixed_signs(problem):
    W, C, A = problem
    ((D, P),) = blocks_then_dense(W, C, A, [(C_IN, 2)])
    assert np.allclose(np.linalg.norm(D, axis=2), np.linalg.norm(P, axis=0))
    assert np.all(D.max(axis=2) == np.abs(D).max(axis=2))
    ((Q, D),) = dense_then_taps(W, C, A, TAPS, [2])
    assert np.allclose(np.linalg.norm(D, axis=2), np.linalg.norm(Q, axis=2))
    assert np.all(D.max(axis=2) == np.abs(D).max(axis=2))


@pytest.mark.parametrize("patches", [0, 1, 5])
def test_few_patches_and_dead_channels_leave_the_factors_bounded(rng, problem, patches):
    W, _, A = problem
    x = rng.standard_normal((patches, K))
    x[:, : 2 * TAPS] = 0.0
    C = linalg.ridged(x.T @ x)
    (first,) = blocks_then_dense(W, C, A, [(C_IN, 2)])
    (second,) = dense_then_taps(W, C, A, TAPS, [2])
    for one, other in (first, second):
        assert max(np.abs(one).max(), np.abs(other).max()) < 100


def test_a_kernel_of_zeros_stays_one(problem):
    _, C, A = problem
    (first,) = blocks_then_dense(np.zeros((M, K)), C, A, [(C_IN, 2)])
    (second,) = dense_then_taps(np.zeros((M, K)), C, A, TAPS, [2])
    assert not np.any(_blocks(*first))
    assert not np.any(_taps(*second))


def test_newton_step_solves_a_small_system_and_stays_at_a_minimum(rng):
    matrix, gradient = _spd(rng, 6), rng.standard_normal(6)
    step = linalg.newton_step(lambda x: matrix @ x, gradient, lambda x: x / np.diag(matrix), 6)
    assert matrix @ step + gradient == pytest.approx(np.zeros(6), abs=0.05)
    assert not np.any(linalg.newton_step(lambda x: matrix @ x, np.zeros(6), lambda x: x, 6))
