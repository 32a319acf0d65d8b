import graphs
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from rewriter import calibration, patches
from rewriter.calibration import Walk
from rewriter.conv import Conv
from rewriter.graph import find_sites
from rewriter.metric import Moments
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target


def reference(conv, x):
    axes = len(conv.kernel_shape)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=conv.strides,
        pads=conv.pads,
        dilations=conv.dilations,
        group=conv.group,
        kernel_shape=conv.kernel_shape,
    )
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * (axes + 2)) for n in "xwy"]
    graph = helper.make_graph([node], "g", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return ReferenceEvaluator(model).run(None, {"x": x, "w": np.float32(conv.weight)})[0]


CONVS = [
    ((6, 4, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((6, 4, 3, 2), {"pads": (0, 2, 1, 0), "strides": (2, 1), "dilations": (1, 2)}),
    ((6, 2, 3, 3), {"group": 2, "pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((6, 4, 5), {"pads": (2, 1), "strides": (2,)}),
    ((4, 4, 1, 1), {"strides": (2, 2)}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "attributes"), CONVS)
def test_patches_times_kernel_is_the_convolution(rng, shape, attributes):
    conv = Conv(rng.standard_normal(shape), **attributes)
    x = rng.standard_normal((3, conv.in_channels, *[9] * (len(shape) - 2)), dtype=np.float32)
    y = reference(conv, x)
    assert y.shape[2:] == conv.out_size(x.shape[2:])
    positions = np.arange(y[:, 0].size)
    product = np.einsum("gmk,gpk->pgm", conv.matrix, patches.seen(conv, x, positions))
    # float32 sums of up to 36 products
    np.testing.assert_allclose(product.reshape(len(positions), -1), patches.rows(y, positions), atol=1e-4)


def test_moments_are_those_of_numpy_over_all_positions(rng):
    conv = Conv(rng.standard_normal((6, 4, 3, 3)), pads=(1, 1, 1, 1))
    # a mean far from zero is where summing squares without a pivot loses everything
    batches = [rng.standard_normal((n, 4, 7, 6)).astype(np.float32) + 100 for n in (2, 3)]
    wanted = [rng.standard_normal((n, 6, 7, 6)).astype(np.float32) - 50 for n in (2, 3)]
    everywhere = [np.arange(n * 42) for n in (2, 3)]
    rows = [patches.rows(b, p) for b, p in zip(wanted, everywhere, strict=True)]
    found = calibration.joint(conv, batches, rows, everywhere)
    x = np.concatenate(
        [patches.seen(conv, b, p)[0] for b, p in zip(batches, everywhere, strict=True)]
    ).astype(np.float64)
    y = np.concatenate(rows)
    both = np.cov(np.hstack([x, y.astype(np.float64)]).T, bias=True)
    # float32 products of values of order 1000 apart from their pivot
    np.testing.assert_allclose(found.input.covariance[0], both[:36, :36], atol=0.5, rtol=1e-3)
    np.testing.assert_allclose(found.cross[0], both[36:, :36], atol=0.1, rtol=1e-3)
    np.testing.assert_allclose(found.input.mean[0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.mean, y.mean(0), rtol=1e-5)
    assert found.input.count == 210


def test_grouped_moments_are_per_group(rng):
    conv = Conv(rng.standard_normal((6, 2, 3, 3)), group=2)
    x = rng.standard_normal((4, 4, 8, 8), dtype=np.float32)
    everywhere = [np.arange(4 * 36)]
    found = calibration.moments(conv, [x], everywhere)
    for g in range(2):
        half = Conv(conv.weight[3 * g : 3 * g + 3])
        alone = calibration.moments(half, [x[:, 2 * g : 2 * g + 2]], everywhere)
        np.testing.assert_allclose(found.covariance[g], alone.covariance[0], atol=1e-5)
    assert isinstance(found, Moments)


@pytest.mark.parametrize("group", [1, 2])
def test_pooled_moments_are_those_of_all_patches(rng, group):
    conv = Conv(rng.standard_normal((6, 4 // group, 3, 3)), group=group)
    # parts of unlike means and sizes
    batches = [rng.standard_normal((n, 4, 8, 8)).astype(np.float32) + shift for n, shift in ((1, 0), (3, 2))]
    rows = [rng.standard_normal((36 * len(b), 6)).astype(np.float32) + len(b) for b in batches]
    positions = [np.arange(36 * len(b)) for b in batches]
    whole = calibration.joint(conv, batches, rows, positions)
    pooled = calibration.pooled(
        *(calibration.joint(conv, [b], [y], [at]) for b, y, at in zip(batches, rows, positions, strict=True))
    )
    assert pooled.input.count == whole.input.count
    for found, expected in (
        (pooled.input.covariance, whole.input.covariance),
        (pooled.input.mean, whole.input.mean),
        (pooled.cross, whole.cross),
        (pooled.mean, whole.mean),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_cover_the_map_and_repeat_by_seed():
    conv = Conv(np.zeros((2, 3, 3, 3)), pads=(1, 1, 1, 1))
    shapes = [(4, 3, 40, 40), (2, 3, 20, 60)]
    wanted = patches.wanted(conv)
    positions = patches.draw(conv, shapes, seed=3)
    again = patches.draw(conv, shapes, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(positions, again, strict=True))
    assert sum(map(len, positions)) == pytest.approx(wanted, abs=2)
    assert all(len(np.unique(p)) == len(p) for p in positions)
    assert positions[0].max() < 4 * 1600
    everything = patches.draw(conv, [(1, 3, 5, 5)], seed=0)
    assert np.array_equal(everything[0], np.arange(25))


def test_patches_are_many_where_their_products_take_little_work():
    def per_value(*shape, group=1):
        conv = Conv(np.broadcast_to(np.float32(0), shape), group=group)
        return patches.wanted(conv) / conv.matrix.shape[2]

    assert per_value(16, 16, 3, 3) == 60
    assert 20 < per_value(128, 128, 3, 3) < 60
    assert per_value(512, 512, 3, 3) == 20
    # groups take as many products each
    assert per_value(256, 64, 3, 3, group=64) < 60


def test_outputs_if_a_norm_lies_behind_another_convolution(rng):
    """A site that takes in a node behind the next site: the walk's own pieces do not hold it."""
    text = """
    agraph (float[n,4,6,6] x) => (float[n,4,6,6] y) {
        [first] a = Conv<kernel_shape=[1,1]>(x, u)
        [second] b = Conv<kernel_shape=[1,1]>(a, v)
        [third] c = Conv<kernel_shape=[1,1]>(a, w)
        [norm] d = BatchNormalization(b, s, s, s, s)
        e = Add(c, d)
        y = Relu(e)
    }
    """
    weights = {name: graphs.random(rng, 4, 4, 1, 1) for name in "uvw"}
    model = graphs.model(text, s=np.ones(4, np.float32), **weights)
    sites = find_sites(model)[0]
    batches = [{"x": graphs.random(rng, 2, 4, 6, 6)}]
    (wanted,) = (graphs.run(model.bytes(), feeds)["y"] for feeds in batches)
    walk = Walk(model, sites, batches, Target())
    for site in sites:
        outputs = calibration.apply(Rewrite(((site.conv,),)), walk.inputs(), Target())
        ((found,),) = walk.outputs_if(outputs)
        assert np.allclose(found, wanted, atol=1e-5)
        walk.provide(outputs)
