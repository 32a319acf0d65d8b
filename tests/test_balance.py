"""Balanced chains: the same kernel bit for bit, channels of one size, and int8 that loses no more for it."""

from types import SimpleNamespace

import graphs
import numpy as np
import onnx
import pytest
import residual
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import passes
from rewriter import calibration, fitting, graph, patches
from rewriter.balance import balanced
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target

TARGET = Target(threads=1)
PASSES = {each.name: each for each in passes.PASSES}
CHAINS = ("channel_svd", "spatial_svd", "tucker2", "grouped_pointwise", "depthwise_pointwise", "stacked")


def unequal(rng, *shape):
    """Weights of singular values that fall over four magnitudes."""
    left, values, right = np.linalg.svd(rng.standard_normal((shape[0], np.prod(shape[1:]))), False)
    return ((left * values * np.geomspace(1, 1e-4, len(values))) @ right).reshape(shape).astype(np.float32)


def convolution(rng, dtype=np.float32):
    weight = unequal(rng, 32, 16, 5, 3).astype(dtype)
    return Conv(weight, graphs.random(rng, 32).astype(dtype), strides=(1, 2), pads=(2, 1, 2, 1))


def seen(rng, conv):
    """Inputs of a convolution, of unlike channels with means, and its metric."""
    sizes = np.geomspace(1, 100, conv.in_channels)[:, None, None]
    inputs = [(graphs.random(rng, 4, conv.in_channels, 12, 12) + 1) * sizes.astype(np.float32)]
    positions = patches.draw(conv, [batch.shape for batch in inputs], 0)
    return inputs, Metric(calibration.moments(conv, inputs, positions))


def best(name, conv, metric):
    """The rewrite of a pass of the highest rank."""
    rank = PASSES[name].ranks(conv, Grid(8))[-1]
    (rewrite,) = PASSES[name].rewrites(conv, [rank], metric)
    return rewrite


def norms(stage):
    """Of what reads each channel of the input of a stage."""
    split = stage.weight.reshape(stage.group, -1, stage.weight.shape[1], stage.taps).astype(np.float64)
    return np.sqrt((split**2).sum((1, 3))).reshape(-1)


@pytest.mark.parametrize("name", CHAINS)
def test_channels_are_as_large_as_what_reads_them(rng, name):
    conv = convolution(rng)
    inputs, metric = seen(rng, conv)
    rewrite = best(name, conv, metric)
    after = balanced(rewrite, conv, metric.input)
    assert np.array_equal(after.dense(conv), rewrite.dense(conv))
    assert np.array_equal(after.bias, rewrite.bias)
    for branch in after.branches:
        (z,) = calibration.apply(Rewrite((branch[:-1],)), inputs, TARGET)
        ratio = np.sqrt(np.mean(np.float64(z) ** 2, (0, 2, 3))) / norms(branch[-1])
        # within the root of two of one, as scales are powers of two; borders count otherwise here
        assert np.all((ratio > 0.4) & (ratio < 2.5))


def test_a_grouped_convolution(rng):
    weight = np.concatenate([unequal(rng, 16, 12, 3, 3), 50 * unequal(rng, 16, 12, 3, 3)])
    conv = Conv(weight, graphs.random(rng, 32), group=2, pads=(1, 1, 1, 1))
    _, metric = seen(rng, conv)
    rewrite = best("channel_svd", conv, metric)
    after = balanced(rewrite, conv, metric.input)
    assert np.array_equal(after.dense(conv), rewrite.dense(conv))
    assert not np.array_equal(after.branches[0][0].weight, rewrite.branches[0][0].weight)


def test_channels_without_a_size_stay(rng):
    conv = convolution(rng)
    _, metric = seen(rng, conv)
    rewrite = best("channel_svd", conv, metric)
    first, last = rewrite.branches[0]
    silent, unread = first.weight.copy(), last.weight.copy()
    silent[0], unread[:, 1] = 0, 0
    rewrite = Rewrite(((first.with_(weight=silent), last.with_(weight=unread)),))
    first, last = balanced(rewrite, conv, metric.input).branches[0]
    assert np.array_equal(first.weight[1], silent[1])
    assert np.array_equal(last.weight[:, 0], unread[:, 0])


def test_no_weight_of_float16_is_rounded(rng):
    conv = convolution(rng, np.float16)
    _, metric = seen(rng, conv)
    rewrite = best("channel_svd", conv, metric)
    first, last = rewrite.branches[0]
    weight = first.weight.copy()
    weight[0] = np.float16(6e-8)  # the least there is: half of it is zero
    rewrite = Rewrite(((first.with_(weight=weight), last),))
    after = balanced(rewrite, conv, metric.input)
    assert after.branches[0][0].weight.dtype == np.float16
    assert np.array_equal(after.dense(conv), rewrite.dense(conv))


def test_without_patches_all_stays(rng):
    conv = convolution(rng)
    metric = Metric.isotropic(conv)
    rewrite = best("channel_svd", conv, metric)
    assert balanced(rewrite, conv, metric.input) is rewrite


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.left = iter(batches)

    def get_next(self):
        return next(self.left, None)


def lost_in_int8(model, batches, folder):
    """The relative drift that static quantization adds."""
    path = folder / "int8.onnx"
    quantize_static(
        onnx.load_from_string(model.bytes()),
        path,
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return residual.drift(model, graph.load(path), batches)


@pytest.mark.parametrize(
    ("name", "rank"), [("channel_svd", (8,)), ("spatial_svd", (24,)), ("tucker2", (8, 12))]
)
def test_int8_of_a_rewrite_loses_little_more_than_of_the_original(rng, tmp_path, name, rank):
    text = """
        agraph (float[N,8,12,12] x) => (float[N,32,12,12] y) {
          [only] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
          y = Relu(a)
        }
    """
    weight = unequal(rng, 32, 8, 3, 3)
    model = graph.load(graphs.parse(text, w=weight, b=graphs.random(rng, 32) / 10))
    batches = residual.batches(rng)
    [site] = graph.find_sites(model)[0]
    [inputs] = residual.at_sites(model, batches, [site])
    positions = patches.draw(site.conv, [batch.shape for batch in inputs], 0)
    metric = Metric(calibration.moments(site.conv, inputs, positions))
    (plain,) = PASSES[name].rewrites(site.conv, [rank], metric)
    form = SimpleNamespace(pass_name=name, rank=rank, lowerings=())
    even = fitting.in_form(site, form, PASSES, site.conv, metric)
    models = (model, graph.splice(model, [(site, plain)]), graph.splice(model, [(site, even)]))
    original, uneven, after = (lost_in_int8(each, batches, tmp_path) for each in models)
    assert after < 0.9 * uneven
    # two or three stages round two or three times: the root of three
    assert after < 1.75 * original
