"""Two small kernels in a row, against a composition by hand and against the error that they minimise."""

from itertools import product

import numpy as np
import pytest

from rewriter.factor.stack import small_then_small

C_IN, M = 5, 6
FIRST, SECOND = (3, 2), (3, 3)
SHAPE = (5, 4)
K = C_IN * 20


def _spd(rng, size, decay):
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return turn @ np.diag(decay ** np.arange(size)) @ turn.T


def _full(V, H):
    """One kernel `[M, K]` of both, tap by tap."""
    total = np.zeros((len(H), V.shape[1], *SHAPE))
    V, H = V.reshape(*V.shape[:2], *FIRST), H.reshape(*H.shape[:2], *SECOND)
    for u, v in product(np.ndindex(FIRST), np.ndindex(SECOND)):
        total[..., u[0] + v[0], u[1] + v[1]] += H[..., v[0], v[1]] @ V[..., u[0], u[1]]
    return total.reshape(len(H), -1)


def _loss(W, fitted, C, A):
    delta = W - fitted
    return float(np.sum((A @ delta) * (delta @ C)))


@pytest.fixture
def problem(rng):
    """W, C and A, all of them far from isotropic."""
    return rng.standard_normal((M, K)), _spd(rng, K, 0.93), _spd(rng, M, 0.7)


def _fits(W, C, A, ranks):
    return [_full(V, H) for V, H in small_then_small(W, C, A, FIRST, SECOND, ranks)]


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_planted_pair_is_found(rng, problem, rank, white):
    V, H = rng.standard_normal((rank, C_IN, 6)), rng.standard_normal((M, rank, 9))
    W = _full(V, H)
    C, A = (np.eye(K), np.eye(M)) if white else problem[1:]
    ((found_v, found_h),) = small_then_small(W, C, A, FIRST, SECOND, [rank])
    assert (found_v.shape, found_h.shape) == (V.shape, H.shape)
    assert np.linalg.norm(_full(found_v, found_h) - W) < 1e-6 * np.linalg.norm(W)


def test_no_step_of_either_factor_lowers_the_error(rng, problem):
    """Random directions, by the gradient: the fit ends near a stationary point."""
    W, C, A = problem
    ((V, H),) = small_then_small(W, C, A, FIRST, SECOND, [3])
    found = _loss(W, _full(V, H), C, A)
    for _ in range(20):
        for moved in (
            (V + 1e-3 * np.abs(V).max() * rng.standard_normal(V.shape), H),
            (V, H + 1e-3 * np.abs(H).max() * rng.standard_normal(H.shape)),
        ):
            assert _loss(W, _full(*moved), C, A) > found * (1 - 2e-3)


def test_both_sides_of_the_metric_help(problem):
    W, C, A = problem
    losses = {
        (inputs, outputs): _loss(
            W, _fits(W, C if inputs else np.eye(K), A if outputs else np.eye(M), [4])[0], C, A
        )
        for inputs, outputs in product((False, True), repeat=2)
    }
    assert losses[True, True] < 0.9 * min(losses[True, False], losses[False, True])
    assert max(losses[True, False], losses[False, True]) < 0.9 * losses[False, False]


def test_errors_fall_with_the_rank_and_full_rank_is_exact(problem):
    W, C, A = problem
    ranks = [2, 5, 9, 16, 1000]
    losses = [_loss(W, fitted, C, A) for fitted in _fits(W, C, A, ranks)]
    nothing = 1e-12 * _loss(W, 0 * W, C, A)
    assert np.diff(losses).max() < nothing
    assert losses[-1] < nothing


def test_a_kronecker_covariance_is_the_easy_problem(rng):
    """Where steps need no product with C, they minimise the same error."""
    W = rng.standard_normal((M, K))
    C = np.kron(_spd(rng, C_IN, 0.5), _spd(rng, 20, 0.8))
    near = C + 1e-3 * _spd(rng, K, 0.99) * np.trace(C) / K
    easy, hard = (_loss(W, _fits(W, each, np.eye(M), [4])[0], C, np.eye(M)) for each in (C, near))
    assert easy == pytest.approx(hard, rel=0.1)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_scale_does_not_matter(problem, size):
    W, C, A = problem
    (fitted,) = _fits(W, C, A, [3])
    (scaled,) = _fits(size * W, size * C, A / size, [3])
    assert np.allclose(scaled / size, fitted, rtol=1e-3, atol=1e-3 * np.abs(fitted).max())


def test_zero_kernels_and_dead_inputs_give_finite_factors(problem):
    W, C, _ = problem
    for kernel, covariance in ((0 * W, C), (W, 0 * C)):
        for V, H in small_then_small(kernel, covariance, np.eye(M), FIRST, SECOND, [2, 4]):
            assert np.isfinite(V).all()
            assert np.isfinite(H).all()
