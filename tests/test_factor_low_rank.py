"""The low-rank factorisations against brute force on tiny kernels."""

import numpy as np
import pytest

from rewriter.factor import low_rank


def _covariance(rng, size, condition=1e3):
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return basis * np.geomspace(1.0, 1.0 / condition, size) @ basis.T


def _error(W, product, C, A):
    delta = (W - product).reshape(len(W), -1)
    return float(np.trace(A @ delta @ C @ delta.T))


def _tail(W, C, A, rank):
    """The squared error of the best approximation of rank r of the matrix W under both metrics."""
    spectrum = np.linalg.svd(np.linalg.cholesky(A).T @ W @ np.linalg.cholesky(C), compute_uv=False)
    return float(np.sum(spectrum[rank:] ** 2))


@pytest.mark.parametrize("shape", [(6, 18), (18, 6), (5, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_channel_is_the_optimum(rng, shape, weighted):
    W, C = rng.standard_normal(shape), _covariance(rng, shape[1])
    A = _covariance(rng, shape[0], 10.0) if weighted else np.eye(shape[0])
    ranks = [1, 3, 4]
    for rank, (V, H) in zip(ranks, low_rank.channel(W, C, A, ranks), strict=True):
        assert V.shape == (rank, shape[1])
        assert H.shape == (shape[0], rank)
        assert np.allclose(H.T @ H, np.eye(rank))
        assert _error(W, H @ V, C, A) == pytest.approx(_tail(W, C, A, rank), rel=1e-6)


def test_channel_caps_the_rank(rng):
    W = rng.standard_normal((4, 9))
    ((V, H),) = low_rank.channel(W, np.eye(9), np.eye(4), [50])
    assert V.shape == (4, 9)
    assert np.allclose(H @ V, W)


def _spatial(W, C, A, ranks, **options):
    shape = W.shape[1:]
    return low_rank.spatial(W, C.reshape(*shape, *shape), A, ranks, **options)


def test_spatial_without_data_is_the_svd_of_the_unfolding(rng):
    W = rng.standard_normal((5, 4, 3, 2))
    unfolded = W.transpose(0, 3, 1, 2).reshape(10, 12)
    for rank, (V, H, error) in zip([1, 4, 9], _spatial(W, np.eye(24), np.eye(5), [1, 4, 9]), strict=True):
        expected = float(np.sum(np.linalg.svd(unfolded, compute_uv=False)[rank:] ** 2))
        product = np.einsum("mrx,rcy->mcyx", H, V)
        assert error == pytest.approx(expected)
        assert _error(W, product, np.eye(24), np.eye(5)) == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_spatial_says_its_error_and_gains_by_sweeps(rng, weighted):
    W, C = rng.standard_normal((6, 4, 3, 3)), _covariance(rng, 36)
    A = _covariance(rng, 6, 10.0) if weighted else np.eye(6)
    ranks = [2, 3, 5]
    before = np.full(3, np.inf)
    for sweeps in (0, 1, 3):
        fits = _spatial(W, C, A, ranks, sweeps=sweeps)
        errors = [_error(W, np.einsum("mrx,rcy->mcyx", H, V), C, A) for V, H, _ in fits]
        assert errors == pytest.approx([fit[2] for fit in fits])
        assert np.all(np.array(errors) < before)
        before = np.array(errors)
        assert all(
            np.allclose(V.reshape(len(V), -1) @ V.reshape(len(V), -1).T, np.eye(len(V))) for V, _, _ in fits
        )


def test_second_factor_is_the_least_squares_one(rng):
    W, C = rng.standard_normal((5, 3, 3, 3)), _covariance(rng, 27)
    ((V, H, error),) = _spatial(W, C, np.eye(5), [2])
    # The map from a patch to b[r, x], and brute-force regression of the outputs on it.
    B = np.einsum("rcy,xz->rxcyz", V, np.eye(3)).reshape(6, 27)
    best = W.reshape(5, 27) @ C @ B.T @ np.linalg.inv(B @ C @ B.T)
    assert np.allclose(best.reshape(H.shape), H, rtol=1e-6)
    assert error > 0.0


def test_a_hopeless_order_is_not_refined(rng):
    W, C = rng.standard_normal((6, 4, 3, 3)), _covariance(rng, 36)
    closed, refined = (_spatial(W, C, np.eye(6), [3], sweeps=sweeps)[0][2] for sweeps in (0, 2))
    assert refined < closed
    assert _spatial(W, C, np.eye(6), [3], bounds=[closed / 100])[0][2] == closed


def test_an_exact_kernel_is_factored_without_the_data(rng):
    W = np.einsum("mrx,rcy->mcyx", rng.standard_normal((5, 2, 3)), rng.standard_normal((2, 4, 3)))
    ((V, H, error),) = _spatial(W, _covariance(rng, 36, 1e12), np.eye(5), [2])
    assert error == 0.0
    assert np.allclose(np.einsum("mrx,rcy->mcyx", H, V), W, atol=1e-12)


def _tucker(factors):
    P, G, U = factors
    return np.einsum("ms,srt,rc->mct", U, G, P)


def test_tucker_without_data_and_sweeps_is_the_sequential_higher_order_svd(rng):
    W = rng.standard_normal((6, 5, 4))
    ((P, G, U),) = low_rank.tucker2(W, np.eye(20), np.eye(6), [(3, 2)], sweeps=0)
    inputs = np.linalg.svd(W.transpose(0, 2, 1).reshape(24, 5))[2][:3]
    shrunk = np.einsum("mct,rc->mrt", W, inputs)
    outputs = np.linalg.svd(shrunk.reshape(6, -1))[0][:, :2]
    expected = np.einsum("ms,ns,nrt,rc->mct", outputs, outputs, shrunk, inputs)
    assert np.allclose(_tucker((P, G, U)), expected)
    assert np.allclose(P @ P.T, np.eye(3))
    assert np.allclose(U.T @ U, np.eye(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_tucker_gains_by_sweeps_and_by_rank(rng, weighted):
    W, C = rng.standard_normal((8, 6, 9)), _covariance(rng, 54)
    A = _covariance(rng, 8, 10.0) if weighted else np.eye(8)
    ranks = [(2, 2), (2, 3), (3, 3), (5, 6)]
    before = np.full(4, np.inf)
    for sweeps in (0, 1, 4):
        errors = [_error(W, _tucker(fit), C, A) for fit in low_rank.tucker2(W, C, A, ranks, sweeps)]
        assert errors == sorted(errors, reverse=True)
        assert np.all(np.array(errors) < before)
        before = np.array(errors)


def test_tucker_reaches_the_bound_of_its_output_side(rng):
    # With every input channel kept, a Tucker-2 fit is a channel SVD.
    W, C, A = rng.standard_normal((6, 4, 3)), _covariance(rng, 12), _covariance(rng, 6, 10.0)
    (fit,) = low_rank.tucker2(W, C, A, [(4, 2)])
    assert _error(W, _tucker(fit), C, A) == pytest.approx(_tail(W.reshape(6, 12), C, A, 2), rel=1e-6)


def test_neighbouring_ranks_never_cross(rng):
    W, C = rng.standard_normal((5, 4, 3, 3)), _covariance(rng, 36, 1e6)
    ranks = list(range(1, 12))
    errors = [fit[2] for fit in _spatial(W, C, np.eye(5), ranks)]
    assert errors == sorted(errors, reverse=True)


def test_dead_channels_and_scale_do_not_matter(rng):
    W = rng.standard_normal((5, 4, 3, 3))
    C = _covariance(rng, 36).reshape(4, 9, 4, 9)
    C[1] = C[:, :, 1] = 0.0
    C = C.reshape(36, 36) + 1e-9 * np.eye(36)
    fits = _spatial(W, C, np.eye(5), [3, 6])
    small = _spatial(W, C * 1e-140, np.eye(5), [3, 6])
    for (V, H, error), (_, _, other) in zip(fits, small, strict=True):
        assert np.all(np.isfinite(V))
        assert np.abs(H).max() < 1e3
        assert other == pytest.approx(error * 1e-140)
