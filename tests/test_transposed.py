"""ConvTranspose as a site: every form of it against the node, on ONNX Runtime."""

from functools import cache

import fake_latency
import graphs
import numpy as np
import onnx
import pytest

import passes
import rewriter
from rewriter import calibration, graph, patches
from rewriter.conv import Conv, Direct
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.transposed import SubPixel, Transposed, turned

CHANNELS = 8
# strides, kernel, dilations, pads, output_padding, groups
GRID = {
    "upconv": ((2, 2), (4, 4), (1, 1), (1, 1, 1, 1), (0, 0), 1),
    "upconv_cut": ((2, 2), (4, 4), (1, 1), (3, 3, 3, 3), (0, 0), 1),
    "unet": ((2, 2), (2, 2), (1, 1), (0, 0, 0, 0), (0, 0), 1),
    "output_padding": ((2, 2), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "more_at_the_end": ((2, 2), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "asymmetric": ((2, 2), (5, 4), (1, 1), (2, 0, 1, 3), (1, 0), 1),
    "large_stride": ((3, 3), (7, 7), (1, 1), (2, 2, 2, 2), (0, 0), 1),
    "stride_above_kernel": ((3, 3), (2, 2), (1, 1), (0, 0, 0, 0), (1, 2), 1),
    "dilation": ((2, 2), (3, 3), (3, 2), (2, 1, 2, 1), (1, 0), 1),
    "strides_differ": ((2, 3), (4, 3), (1, 2), (1, 0, 1, 2), (0, 1), 1),
    "one_axis": ((1, 2), (3, 4), (1, 1), (1, 1, 1, 1), (0, 0), 1),
    "row": ((2, 2), (1, 4), (1, 1), (0, 1, 0, 1), (1, 0), 1),
    "pointwise": ((2, 2), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "plain": ((1, 1), (3, 3), (1, 1), (1, 1, 1, 1), (0, 0), 1),
    "groups": ((2, 2), (4, 4), (1, 1), (1, 1, 1, 1), (0, 0), 2),
    "depthwise": ((2, 2), (4, 4), (1, 1), (1, 1, 1, 1), (0, 0), 8),
    "signal": ((2,), (4,), (1,), (1, 1), (0,), 1),
    "volume": ((1, 2, 2), (1, 3, 2), (1, 1, 1), (0, 1, 0, 0, 0, 1), (0, 1, 0), 1),
}
keys = pytest.mark.parametrize("key", GRID)
STEPS = {step.name: step for step in passes.PASSES}


@cache
def _model(key):
    """A model of the node alone, its sizes dynamic."""
    names = ("strides", "kernel_shape", "dilations", "pads", "output_padding", "group")
    attributes = dict(zip(names, GRID[key], strict=True))
    rng = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS // attributes["group"], *attributes["kernel_shape"])
    constants = {"w": graphs.random(rng, *shape), "b": graphs.random(rng, CHANNELS)}
    node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", **attributes)
    ends = [
        onnx.helper.make_tensor_value_info(
            name,
            onnx.TensorProto.FLOAT,
            ["n", CHANNELS, *(f"{name}{axis}" for axis in range(len(GRID[key][0])))],
        )
        for name in "xy"
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "up", ends[:1], ends[1:], initializers),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
    )
    return graph.load(proto)


def _run(model, x):
    return graphs.run(model.bytes(), {"x": x})["y"]


def _off(before, after):
    assert before.shape == after.shape
    return np.linalg.norm(after - before) / np.linalg.norm(before)


def _forms(conv):
    """Every pass that takes a convolution, at a rank at which the form can be any kernel."""
    for step in passes.PASSES:
        if step.refuse(conv) is None:
            inputs, rank = conv.weight.shape[1], (1000,)
            if step.exact:
                rank = step.ranks(conv, Grid(1))[-1]
            elif step.name == "grouped_pointwise":
                rank = (inputs // 2, conv.in_channels // (inputs // 2) * 1000)
            elif step.name == "tucker2":
                rank = (1000, 1000)
            yield step.name, next(iter(step.rewrites(conv, [rank], Metric.isotropic(conv))))


@keys
def test_every_form_is_the_node_at_every_size(rng, key):
    model = _model(key)
    site = graphs.site(model, "up")
    assert site.conv.input_dilations == GRID[key][0]
    forms = {"as it is": graphs.only(site.conv), **dict(_forms(site.conv))}
    inputs = [graphs.random(rng, 2, CHANNELS, *size[: len(GRID[key][0])]) for size in ((7, 8, 5), (4, 3, 4))]
    expected = [_run(model, x) for x in inputs]
    for name, rewrite in forms.items():
        spliced = graph.splice(model, [(site, rewrite)])
        for x, y in zip(inputs, expected, strict=True):
            assert rewrite.out_size(x.shape[2:]) == y.shape[2:]
            # float32 rounding of up to three stages
            assert _off(y, _run(spliced, x)) < (0.0 if name == "as it is" else 1e-5) + 1e-30, name
    taken = set(forms) & {"sub_pixel"}
    phases = {
        "upconv",
        "upconv_cut",
        "unet",
        "output_padding",
        "more_at_the_end",
        "asymmetric",
        "row",
        "plain",
    }
    assert bool(taken) == (key in {*phases, "large_stride"})


@keys
def test_what_the_kernel_sees_is_the_input_between_zeros(rng, key):
    conv = graphs.site(_model(key), "up").conv
    size = (5, 6, 4)[: len(conv.kernel_shape)]
    x = graphs.random(rng, 2, CHANNELS, *size)
    wide = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], conv.input_dilations, strict=True)]
    spread = np.zeros((*x.shape[:2], *wide), np.float32)
    spread[(..., *(slice(None, None, step) for step in conv.input_dilations))] = x
    plain = conv.with_(input_dilations=(), lowering=Direct())
    assert plain.out_size(tuple(wide)) == conv.out_size(size)
    places = np.arange(2 * np.prod(conv.out_size(size)))
    assert np.array_equal(patches.seen(conv, x, places), patches.seen(plain, spread, places))


@keys
def test_moments_are_those_of_all_that_the_kernel_sees(rng, key):
    """Phase by phase, without the products of zeros, they come to the same."""
    conv = graphs.site(_model(key), "up").conv
    size = (5, 6, 4)[: len(conv.kernel_shape)]
    inputs = [graphs.random(rng, 2, CHANNELS, *size) + 1 for _ in range(2)]
    wanted = [graphs.random(rng, 2, conv.out_channels, *conv.out_size(size)) for _ in range(2)]
    positions = patches.draw(conv, [each.shape for each in inputs], 0)
    rows = [patches.rows(each, at) for each, at in zip(wanted, positions, strict=True)]
    found = calibration.joint(conv, inputs, rows, positions)
    x = np.concatenate(
        [patches.seen(conv, each, at) for each, at in zip(inputs, positions, strict=True)], axis=1
    ).astype(np.float64)
    y = np.concatenate(rows)
    y = y.reshape(len(y), conv.group, -1).swapaxes(0, 1).astype(np.float64)
    assert found.input.count == x.shape[1]
    np.testing.assert_allclose(found.input.mean, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(found.mean, y.mean(1).reshape(-1), atol=1e-6)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    np.testing.assert_allclose(found.input.covariance, x.swapaxes(1, 2) @ x / x.shape[1], atol=1e-5)
    np.testing.assert_allclose(found.cross, y.swapaxes(1, 2) @ x / x.shape[1], atol=1e-5)


def test_cost_is_that_of_the_products():
    weight = np.ones((6, 4, 4, 4), np.float32)
    conv = Conv(weight, pads=(2,) * 4, input_dilations=(2, 2))
    assert conv.transposed
    assert conv.out_size((5, 7)) == (10, 14)
    assert conv.macs((5, 7)) == 5 * 7 * 4 * 6 * 16
    # one place more along each axis, of four phases with 2 x 2 taps each
    phases = conv.with_(lowering=SubPixel())
    assert phases.macs((5, 7)) == 6 * 8 * 24 * 4 * 4
    assert phases.held == 24 * 4 * 4
    alone = Conv(weight, pads=(2,) * 4, lowering=Transposed())
    assert alone.macs((5, 7)) == conv.macs((5, 7))
    assert alone.with_(lowering=Direct()).macs((5, 7)) == 6 * 8 * 24 * 16


def test_turning_twice_changes_nothing(rng):
    weight = graphs.random(rng, 6, 2, 3, 4)
    assert turned(weight, 2).shape == (4, 3, 3, 4)
    assert np.array_equal(turned(turned(weight, 2), 2), weight)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strides": (2, 1)}, "strides"),
        ({"pads": (4, 0, 0, 0)}, "more than its kernel reaches"),
        ({"pads": (0, 0, 0, 5)}, "output_padding of 2"),
    ],
)
def test_what_no_node_can_be_is_no_convolution(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Conv(np.ones((2, 2, 4, 4), np.float32), input_dilations=(2, 2), **changes)


def test_an_input_dilation_belongs_to_the_stage_with_the_taps():
    kernel = Conv(np.ones((4, 4, 2, 2), np.float32), input_dilations=(2, 2))
    pointwise = Conv(np.ones((4, 4, 1, 1), np.float32))
    spread = pointwise.with_(input_dilations=(2, 2))
    assert Rewrite(((pointwise, kernel, pointwise),)).dense(kernel).shape == kernel.weight.shape
    for chain in ((spread, kernel), (kernel, spread)):
        with pytest.raises(ValueError, match="input dilation"):
            Rewrite((chain,))
    with pytest.raises(ValueError, match=r"\(1, 1\) instead of \(2, 2\)"):
        Rewrite(((kernel.with_(input_dilations=(1, 1)),),)).dense(kernel)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("auto_pad='SAME_UPPER', strides=[2,2]", 14),
        ("auto_pad='SAME_LOWER', strides=[2,2]", 14),
        ("auto_pad='SAME_UPPER', strides=[4,4]", 27),
        ("auto_pad='VALID', strides=[2,2], output_shape=[16,16]", 16),
        ("strides=[2,2], output_shape=[14,14]", 14),
        ("strides=[2,2], output_padding=[1,1], output_shape=[13,13]", 13),
        ("auto_pad='SAME_UPPER', strides=[2,2], output_shape=[12,12]", 12),
    ],
)
def test_pads_however_they_are_given(rng, attributes, size):
    text = f"agraph (float[1,8,7,7] x) => (float[1,8,s,t] y) {{ [up] y = ConvTranspose<{attributes}>(x, w) }}"
    model = graphs.model(text.replace("'", '"'), w=graphs.random(rng, 8, 8, 3, 3))
    site = graphs.site(model, "up")
    x = graphs.random(rng, 1, 8, 7, 7)
    expected = _run(model, x)
    assert expected.shape[2:] == (size, size)
    for name, rewrite in [("as it is", graphs.only(site.conv)), *_forms(site.conv)]:
        assert _off(expected, _run(graph.splice(model, [(site, rewrite)]), x)) < 1e-5, name


def test_an_output_shape_needs_the_size_of_the_input():
    text = "agraph (float[1,3,h,w] x) => (float y) { y = ConvTranspose<output_shape=[9,9]>(x, k) }"
    _, (refusal,) = graph.find_sites(graphs.model(text, k=np.ones((3, 2, 3, 3), np.float32)))
    assert "dynamic" in refusal.reason


def test_a_batch_normalization_is_folded_in(rng):
    text = """
    agraph (float[1,8,5,5] x) => (float[1,4,10,10] y) {
        [up] t = ConvTranspose<strides=[2,2]>(x, w)  y = BatchNormalization(t, s, b, m, v)
    }
    """
    values = {name: np.abs(graphs.random(rng, 4)) + 0.5 for name in "sbmv"}
    model = graphs.model(text, w=graphs.random(rng, 8, 4, 2, 2), **values)
    site = graphs.site(model, "up")
    x = graphs.random(rng, 1, 8, 5, 5)
    spliced = graph.splice(model, [(site, graphs.only(site.conv))])
    assert [node.op_type for node in spliced.proto.graph.node] == ["ConvTranspose"]
    assert _off(_run(model, x), _run(spliced, x)) < 1e-6


NETWORK = """
agraph (float[n,16,10,10] x) => (float[n,16,20,20] y) {
    [same] a = ConvTranspose<pads=[1,1,1,1]>(x, w_same)
    b = Relu(a)
    [up] y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(b, w_up)
}
"""


def _network(rng, noise=0.0):
    """A ConvTranspose without strides, and one whose filters mix four."""
    mixing = graphs.random(rng, 16, 4)
    up = np.einsum("mr,crt->cmt", mixing, graphs.random(rng, 16, 4, 16)) / 32
    up = up.reshape(16, 16, 4, 4) + noise * graphs.random(rng, 16, 16, 4, 4)
    same = graphs.random(rng, 16, 16, 3, 3) / 12
    return graphs.model(NETWORK, w_same=same.astype(np.float32), w_up=up.astype(np.float32))


def test_exact_forms_in_a_network(rng, monkeypatch):
    fake_latency.install(monkeypatch)
    model = _network(rng)
    result = rewriter.optimize(model.bytes(), exact=True)
    assert {each.node: each.became for each in result.report.sites} == {
        "same": "winograd",
        "up": "exact_channels",
    }
    assert sum(node.op_type == "ConvTranspose" for node in result.model.graph.node) == 1
    x = graphs.random(rng, 2, 16, 10, 10)
    assert _off(_run(model, x), _run(graph.load(result.model), x)) < 1e-5


def test_fitted_forms_in_a_network(rng, monkeypatch):
    fake_latency.install(monkeypatch)
    model = _network(rng, noise=1e-3)
    samples = [{"x": graphs.random(rng, 8, 16, 10, 10)} for _ in range(4)]
    result = rewriter.optimize(model.bytes(), samples, passes=["channel_svd", "tucker2"])
    assert result.improved
    (up,) = (each for each in result.report.sites if each.node == "up")
    assert up.became in ("channel_svd", "tucker2")
    x = graphs.random(rng, 2, 16, 10, 10)
    assert 1e-4 < _off(_run(model, x), _run(graph.load(result.model), x)) < 0.05


@pytest.mark.parametrize(
    ("key", "operators"),
    [
        ("upconv", ["Conv", "DepthToSpace", "Slice"]),
        ("output_padding", ["Conv", "DepthToSpace"]),
        ("unet", ["Conv", "DepthToSpace"]),
        ("plain", ["Conv"]),
    ],
)
def test_phases_as_nodes(key, operators):
    model = _model(key)
    site = graphs.site(model, "up")
    form = dict(_forms(site.conv))["sub_pixel"]
    spliced = graph.splice(model, [(site, form)])
    assert [node.op_type for node in spliced.proto.graph.node] == operators
    # no tap more than the longest phase has
    (weight, *_) = (each for each in spliced.proto.graph.initializer if "weight" in each.name)
    steps, kernel = GRID[key][:2]
    assert list(weight.dims)[2:] == [-(-taps // step) for taps, step in zip(kernel, steps, strict=True)]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("groups", "2 groups"),
        ("strides_differ", "differ along the axes"),
        ("stride_above_kernel", "times the taps"),
        ("dilation", "times the taps"),
    ],
)
def test_phases_that_do_not_fit_side_by_side_are_refused(key, words):
    assert words in STEPS["sub_pixel"].refuse(graphs.site(_model(key), "up").conv)


def test_a_plain_convolution_has_no_phases():
    conv = Conv(np.ones((8, 8, 3, 3), np.float32))
    assert STEPS["sub_pixel"].refuse(conv) == "it is not transposed"
    assert STEPS["winograd"].refuse(graphs.site(_model("upconv"), "up").conv)
    assert STEPS["stacked"].refuse(graphs.site(_model("large_stride"), "up").conv)
    assert STEPS["crop_kernel"].refuse(graphs.site(_model("large_stride"), "up").conv)
