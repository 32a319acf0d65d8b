"""Moments, metric and error."""

import numpy as np
import pytest

from rewriter.conv import Conv
from rewriter.metric import Metric, Moments, free_bias, relative_error, squared_error
from rewriter.rewrite import Rewrite


def _chain(*stages):
    return Rewrite((stages,))


def _moments(rng, conv):
    group, _, size = conv.matrix.shape
    rows = rng.standard_normal((group, 4 * size, size)) @ rng.standard_normal((group, size, size)) + 1.0
    mean = rows.mean(axis=1)
    centred = rows - mean[:, None]
    return Moments(centred.transpose(0, 2, 1) @ centred / rows.shape[1], mean, rows.shape[1]), rows


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_squared_error_is_that_of_the_outputs(rng, group, weighted):
    conv = Conv(rng.standard_normal((6, 4 // group, 3)), rng.standard_normal(6), group=group)
    moments, rows = _moments(rng, conv)
    square = rng.standard_normal((6, 6))
    metric = Metric(moments, square @ square.T if weighted else None)
    other = conv.with_(weight=rng.standard_normal(conv.weight.shape), bias=rng.standard_normal(6))
    wrong = rows @ (conv.matrix - other.matrix).transpose(0, 2, 1)
    wrong += (conv.bias - other.bias).reshape(group, 1, -1)
    weights = metric.weights(group, 6 // group)
    measured = np.einsum("gnm,gmk,gnk->", wrong, weights, wrong) / rows.shape[1]
    assert squared_error(conv, _chain(other), metric) == pytest.approx(measured, rel=1e-6)


def test_relative_error_of_nothing_is_zero_and_of_the_mean_is_one(rng):
    conv = Conv(rng.standard_normal((6, 4, 3)), rng.standard_normal(6))
    moments, _ = _moments(rng, conv)
    metric = Metric(moments)
    assert relative_error(conv, _chain(conv), metric) == 0.0
    nothing = _chain(conv.with_(weight=np.zeros_like(conv.weight)))
    mean = nothing.with_bias(free_bias(conv, nothing.dense(conv), moments))
    assert relative_error(conv, mean, metric) == pytest.approx(1.0)
    assert np.allclose(mean.bias, conv.bias + conv.matrix[0] @ moments.mean[0])
    silent = conv.with_(weight=np.zeros_like(conv.weight))
    assert relative_error(silent, _chain(silent), metric) == 0.0


def test_free_bias_keeps_the_mean_and_is_the_best_bias(rng):
    conv = Conv(rng.standard_normal((6, 2, 3)), None, group=2)
    moments, _ = _moments(rng, conv)
    dense = rng.standard_normal(conv.weight.shape)
    other = _chain(conv.with_(weight=dense))
    best = free_bias(conv, dense, moments)
    error = squared_error(conv, other.with_bias(best), Metric(moments))
    for step in np.eye(6) * 0.1:
        assert squared_error(conv, other.with_bias(best + step), Metric(moments)) > error
    assert squared_error(conv, other, Metric(moments)) > error


def test_isotropic_error_is_the_frobenius_norm(rng):
    conv = Conv(rng.standard_normal((6, 4, 3, 3)))
    other = rng.standard_normal(conv.weight.shape)
    expected = np.sum((conv.weight - other) ** 2)
    metric = Metric.isotropic(conv)
    assert squared_error(conv, _chain(conv.with_(weight=other)), metric) == pytest.approx(expected, rel=1e-6)
    assert metric.input.count == 0


def test_metric_root_squares_to_the_covariance(rng):
    conv = Conv(rng.standard_normal((6, 2, 3)), group=2)
    metric = Metric(_moments(rng, conv)[0])
    assert np.allclose(metric.root @ metric.root.transpose(0, 2, 1), metric.covariance)
    assert metric.root is metric.root
    assert np.allclose(metric.covariance, metric.input.covariance, rtol=1e-5, atol=1e-5)


def test_output_weights_are_the_diagonal_blocks(rng):
    square = rng.standard_normal((6, 6))
    whole = square @ square.T
    moments = Moments(np.eye(3)[None], np.zeros((1, 3)), 1)
    blocks = Metric(moments, whole).weights(2, 3)
    assert np.allclose(blocks[0], whole[:3, :3], rtol=1e-6)
    assert np.allclose(blocks[1], whole[3:, 3:], rtol=1e-6)
    assert np.array_equal(Metric(moments).weights(2, 3)[1], np.eye(3))


def test_the_covariance_is_factorised_once(rng, monkeypatch):
    calls = []
    factorise = np.linalg.cholesky

    def counted(*args, **options):
        calls.append(args)
        return factorise(*args, **options)

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    conv = Conv(rng.standard_normal((6, 2, 3)), group=2)
    metric = Metric(_moments(rng, conv)[0])
    assert metric.covariance.shape == metric.root.shape == (2, 6, 6)
    metric.energy(conv)
    assert len(calls) == 2  # one a group


def test_a_wide_root_is_kept_in_float32_alone(rng, monkeypatch):
    monkeypatch.setattr("rewriter.metric._WIDE", 6)
    conv = Conv(rng.standard_normal((4, 2, 3)))
    metric = Metric(_moments(rng, conv)[0])
    assert metric.covariance.dtype == np.float64
    assert metric.root.dtype == np.float32
    # float32 sums
    delta = conv.matrix
    expected = np.einsum("gmk,gkl,gml->", delta, metric.covariance, delta)
    assert metric.squared(delta) == pytest.approx(expected, rel=1e-5)
