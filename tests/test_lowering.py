"""Winograd's lowerings: the transforms, and every form against the direct convolution on ONNX Runtime."""

import numpy as np
import onnx
import pytest
from graphs import model, run, site
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.winograd import TILES, WinogradTiles
from rewriter import graph
from rewriter.conv import Conv, Direct
from rewriter.grid import Grid
from rewriter.lowering import BIAS, INPUT, OUTPUT, WEIGHT, lower
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target, optimized
from rewriter.toomcook import LARGEST, UNIT, rounding, transforms, window
from rewriter.winograd import Winograd

FORMS = [(m, r) for r in range(1, LARGEST + 1) for m in range(1, LARGEST + 2 - r)]
# what `--exact` promises; float32 transforms of eight products come to 5e-6
EXACT = 1e-5


@pytest.mark.parametrize(("m", "r"), FORMS)
def test_transforms_convolve(m, r, rng):
    form = transforms(m, r)
    a = m + r - 1
    assert form.input.shape == (a, a)
    assert form.kernel.shape == (a, r)
    assert form.output.shape == (m, a)
    data, kernel = rng.standard_normal((5, a)), rng.standard_normal(r)
    wanted = np.stack([data[:, i : i + r] @ kernel for i in range(m)], axis=1)
    found = ((data @ form.input.T) * (form.kernel @ kernel)) @ form.output.T
    assert np.abs(found - wanted).max() < 1e-12
    if a > UNIT + 1:
        assert np.array_equal(form.output[:, UNIT], np.ones(m))


@pytest.mark.parametrize(("m", "r"), [(0, 3), (3, 0), (7, 3)])
def test_forms_that_are_not_offered(m, r):
    with pytest.raises(ValueError, match="not offered"):
        transforms(m, r)


def test_window_crops_no_further_than_the_pads():
    row = np.array([0, 1, 0, 2, 0, 0])
    assert list(window(row, 3, 3).taps) == [1, 3]
    assert list(window(row, 0, 3).taps) == [0, 1, 2, 3]
    assert list(window(row, 1, 1).taps) == [1, 2, 3, 4]
    assert list(window(row, 1, 0).taps) == [1, 3, 5]
    assert list(window(np.array([0, 0, 3]), 5, 0).taps) == [2]


def _random(rng, outputs, inputs, kernel, group=1, pads=(1, 1, 1, 1), bias=True):
    weight = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32)
    values = rng.standard_normal(outputs).astype(np.float32) if bias else None
    return Conv(weight, values, pads=pads, group=group)


def _outputs(conv, tile, x):
    """Of the direct convolution and of tiles: for one thread and several, any size of the input and this."""
    models = [graph.rewrite_model(Rewrite(((conv,),)))]
    for threaded in (False, True):
        tiled = Rewrite(((conv.with_(lowering=Winograd(tile, threaded)),),))
        models.append(graph.rewrite_model(tiled))
        models.append(graph.probe(graph.Site("conv", "Conv", conv, "x", "y", (0,)), tiled, x.shape))
    return [run(each, {"x": x})["y"] for each in models]


def _check(conv, tile, x, least=0.0):
    direct, *tiled = _outputs(conv, tile, x)
    for found in tiled:
        assert direct.shape == found.shape
        assert np.linalg.norm(found - direct) <= EXACT * max(np.linalg.norm(direct), least)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (5, 3), (2, 4), (1, 3), (7, 1)])
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_computes_the_convolution(kernel, tile, rng):
    tile = tuple(1 if taps == 1 else m for m, taps in zip(tile, kernel, strict=True))
    conv = _random(rng, 16, 16, kernel, pads=tuple(taps // 2 for taps in kernel) * 2)
    if Winograd(tile).refuse(conv):
        with pytest.raises(ValueError, match=r"kernel|tiles"):
            conv.with_(lowering=Winograd(tile))
        return
    for shape in ((1, 16, 14, 14), (2, 16, 9, 11)):
        _check(conv, tile, rng.standard_normal(shape).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape(data):
    draw = data.draw
    kernel = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=2)))
    tile = tuple(draw(st.integers(1, LARGEST + 1 - taps)) if taps > 1 else 1 for taps in kernel)
    pads = tuple(draw(st.integers(0, taps)) for taps in kernel * 2)
    group = draw(st.sampled_from([1, 2]))
    inputs, outputs = draw(st.sampled_from([8, 16])) * group, draw(st.sampled_from([8, 24])) * group
    size = tuple(draw(st.integers(taps, 12)) for taps in kernel)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    conv = _random(rng, outputs, inputs, kernel, group, pads, draw(st.booleans()))
    if max(tile) > 1:
        x = rng.standard_normal((draw(st.integers(1, 3)), inputs, *size)).astype(np.float32)
        # with a bias of hundreds of times an output near nothing there is no relative error
        _check(conv, tile, x, least=1.0)


def test_few_channels_need_no_blocks(rng):
    _check(_random(rng, 5, 3, (3, 3)), (4, 4), rng.standard_normal((2, 3, 10, 7)).astype(np.float32))


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("tile", [(4, 4), (4,)])
def test_sizes_may_change_from_run_to_run(tile, threaded, rng):
    axes = len(tile)
    conv = _random(rng, 16, 16, (3,) * axes, pads=(1, 1) * axes).with_(lowering=Winograd(tile, threaded))
    data = graph.rewrite_model(Rewrite(((conv,),)))
    for batch, *size in ((1, 9, 30), (3, 12, 12), (2, 1, 1)):
        shape = (batch, 16, *size[:axes])
        x = rng.standard_normal(shape).astype(np.float32)
        direct = run(graph.rewrite_model(Rewrite(((conv.with_(lowering=Direct()),),))), {"x": x})["y"]
        assert np.linalg.norm(run(data, {"x": x})["y"] - direct) <= EXACT * np.linalg.norm(direct)


@pytest.mark.parametrize(("tile", "places"), [((4, 4), 2), ((1, 4), 1), ((4, 1), 1)])
def test_threads_do_not_place_the_columns_of_a_tile(tile, places, rng):
    """A Transpose of a few columns is slower for several threads than for one: the product does it."""
    conv = _random(rng, 16, 16, (3, 3))

    def transposes(threaded):
        tiled = Rewrite(((conv.with_(lowering=Winograd(tile, threaded)),),))
        site = graph.Site("conv", "Conv", conv, "x", "y", (0,))
        found = optimized(graph.probe(site, tiled, (1, 16, 12, 12)), Target())
        return sum(node.op_type == "Transpose" for node in onnx.load_model_from_string(found).graph.node)

    assert transposes(threaded=False) == places
    assert transposes(threaded=True) == (tile[0] > 1)


CONV = Conv(np.ones((16, 16, 3, 3), np.float32), np.ones(16, np.float32), pads=(1, 1, 1, 1))


@pytest.mark.parametrize("tile", TILES)
def test_rounding_is_predicted(tile, rng):
    conv = _random(rng, 64, 64, (3, 3), bias=False)
    direct, tiled, *_ = _outputs(conv, tile, rng.standard_normal((1, 64, 24, 24), np.float32))
    measured = np.linalg.norm(tiled - direct) / np.linalg.norm(direct)
    predicted = conv.with_(lowering=Winograd(tile)).rounding
    assert 0.3 * measured < predicted < 3 * measured
    assert predicted < EXACT / 2


def test_rounding_grows_with_the_tile():
    errors = [rounding((m, m), (3, 3)) for m in (2, 4, 6)]
    assert errors == sorted(errors)


def test_a_direct_convolution_is_one_node():
    lowered = lower(CONV)
    (node,) = lowered.nodes
    assert (node.op_type, node.inputs, node.output) == ("Conv", (INPUT, WEIGHT, BIAS), OUTPUT)
    assert not lowered.constants


def test_the_kernel_and_its_error_do_not_depend_on_the_lowering(rng):
    conv = _random(rng, 16, 32, (3, 3))
    tiled = Rewrite(((conv.with_(lowering=Winograd((4, 4))),),))
    assert not tiled.direct
    assert np.array_equal(tiled.dense(conv), conv.weight)
    assert tiled.out_size((9, 9)) == (9, 9)


def test_multiply_adds_are_counted_with_the_transforms():
    conv = Conv(np.ones((64, 64, 3, 3), np.float32), pads=(1, 1, 1, 1), lowering=Winograd((2, 2)))
    # Bᵀ of F(2, 3) has two taps in each of its four rows
    rows = 4 * 2 * 64 * (4 * 8)
    columns = 4 * rows // 2
    products, tiles = 16 * 64 * 64 * 16, 4 * 16 * 64 * 16
    assert conv.macs((8, 8)) == rows + columns + products + tiles
    assert conv.cost((8, 8)).params == 64 * 64 * 9


MODEL = """
agraph (float[N,16,H,W] x) => (float[N,16,H,W] y) {
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    [relu] a = Relu(h)
    [out] s = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
    y = Add(s, x)
}
"""


def test_spliced_nodes_keep_what_follows_and_the_weight(rng):
    w, v = (rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for _ in range(2))
    found = model(MODEL, w=w, b=rng.standard_normal(16).astype(np.float32), v=v)
    stem, out = site(found, "stem"), site(found, "out")
    tiled = [(each, Rewrite(((each.conv.with_(lowering=Winograd((4, 4))),),))) for each in (stem, out)]
    after = graph.splice(found, tiled)
    onnx.checker.check_model(after.proto, full_check=True)
    names = [node.name for node in after.proto.graph.node]
    assert names.index("relu") == names.index("stem/winograd/output") + 1
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.proto.graph.initializer}
    assert np.array_equal(kept["stem.weight"], w)
    x = rng.standard_normal((2, 16, 13, 10)).astype(np.float32)
    before, now = (run(each.bytes(), {"x": x})["y"] for each in (found, after))
    assert np.linalg.norm(now - before) < EXACT * np.linalg.norm(before)


RESIDUAL = """
agraph (float[N,16,{size}] x) => (float[N,16,{size}] y) {{
    [stem] s = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [inner] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, v)
    [last] b = Conv(a, u)
    [sum] y = Add(b, s)
}}
"""


def _residual(rng, size):
    """A residual block whose first convolution is in tiles, the batch dynamic."""
    w, v = (rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for _ in range(2))
    u = rng.standard_normal((16, 16, 1, 1)).astype(np.float32)
    found = model(RESIDUAL.format(size=size), w=w, v=v, u=u)
    inner = site(found, "inner")
    tiled = Rewrite(((inner.conv.with_(lowering=Winograd((4, 4))),),))
    return found, graph.splice(found, [(inner, tiled)])


@pytest.mark.parametrize(("size", "cuts"), [("12,16", 0), ("13,16", 1)])
def test_nodes_do_not_ask_for_a_size_that_the_model_fixes(size, cuts, rng):
    found, after = _residual(rng, size)
    operators = [node.op_type for node in after.proto.graph.node]
    assert not {"Shape", "Gather", "Where"} & set(operators)
    assert operators.count("Slice") == cuts
    x = rng.standard_normal((3, 16, *map(int, size.split(",")))).astype(np.float32)
    before, now = (run(each.bytes(), {"x": x})["y"] for each in (found, after))
    assert np.linalg.norm(now - before) < EXACT * np.linalg.norm(before)


def test_what_the_runtime_fuses_behind_stays_fused_where_the_batch_is_dynamic(rng):
    _, after = _residual(rng, "12,16")
    fused = onnx.load_model_from_string(optimized(after.bytes(), Target(threads=1)))
    assert "Add" not in {node.op_type for node in fused.graph.node}


@pytest.mark.parametrize("size", ["H,W", "12,W"])
def test_nodes_ask_for_a_size_that_is_dynamic(size, rng):
    found, after = _residual(rng, size)
    assert "Shape" in {node.op_type for node in after.proto.graph.node}
    for shape in ((1, 16, 12, 9), (2, 16, 12, 16)):
        x = rng.standard_normal(shape).astype(np.float32)
        before, now = (run(each.bytes(), {"x": x})["y"] for each in (found, after))
        assert np.linalg.norm(now - before) < EXACT * np.linalg.norm(before)


def test_real_kernels_and_activations_of_the_zoo(zoo):
    path = zoo / "models" / "waifu2x_upconv7_scale2.0x_std.onnx"
    found = graph.load(path)
    step = WinogradTiles()
    x = np.random.default_rng(0).random((1, 3, 156, 156), np.float32)
    sites = [each for each in graph.find_sites(found)[0] if step.refuse(each.conv) is None]
    assert len(sites) == 5
    inputs = run(graph.with_outputs(found, [each.input for each in sites]), {found.inputs[0].name: x})
    for each in sites:
        for tile in step.ranks(each.conv, Grid()):
            _check(each.conv, tile, inputs[each.input][:, :, :40, :40])


@pytest.mark.parametrize(
    ("reason", "conv"),
    [
        ("strides", Conv(CONV.weight, strides=(2, 2))),
        ("dilations", Conv(CONV.weight, dilations=(2, 2))),
        ("pointwise", Conv(np.ones((16, 16, 1, 1), np.float32))),
        ("multiples of 8", Conv(np.ones((16, 20, 3, 3), np.float32))),
        ("multiples of 8", Conv(np.ones((16, 8, 3, 3), np.float32))),
        ("too large", Conv(np.ones((16, 16, 9, 9), np.float32))),
        ("two axes", Conv(np.ones((16, 16, 3, 3, 3), np.float32))),
        ("depthwise", Conv(np.ones((16, 1, 3, 3), np.float32), group=16)),
    ],
)
def test_refusals_say_why(reason, conv):
    assert reason in WinogradTiles().refuse(conv)


def test_channels_that_do_not_fill_the_targets_blocks_have_no_rank():
    conv = Conv(np.ones((24, 24, 3, 3), np.float32))
    assert WinogradTiles().ranks(conv, Grid(8))
    assert not WinogradTiles().ranks(conv, Grid(16))


@pytest.mark.parametrize("opset", [6, 7])
def test_an_old_model_is_raised_to_the_opset_that_the_nodes_need(rng, opset):
    weights = {name: rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for name in ("w", "v")}
    old = MODEL.replace("float[N,16,H,W] x", "float[1,16,8,8] x").replace("Add", "Sum")
    found = model(f'<ir_version: 3, opset_import: ["" : {opset}]>' + old.replace(", b)", ")"), **weights)
    stem = site(found, "stem")
    assert stem.obstacle is None
    after = graph.splice(found, [(stem, Rewrite(((stem.conv.with_(lowering=Winograd((2, 2))),),)))])
    assert (found.opset, after.opset) == (opset, 10)
    x = rng.standard_normal((1, 16, 8, 8)).astype(np.float32)
    before, now = (run(each.bytes(), {"x": x})["y"] for each in (found, after))
    assert np.linalg.norm(now - before) < EXACT * np.linalg.norm(before)


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (9, "Slice<axes=[2], starts=[0], ends=[4]>(h)"),
        (6, "Add<broadcast=1>(h, b)"),
        (7, "Crop<border=[0,2,0,2]>(h)"),
    ],
)
def test_a_model_that_cannot_be_raised_says_why(rng, opset, node):
    text = f"""
    <ir_version: 4, opset_import: ["" : {opset}]>
    agraph (float[1,16,8,8] x) => (float[1,16,H,W] y) {{
        [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
        y = {node}
    }}
    """
    found = model(
        text.strip(), w=rng.standard_normal((16, 16, 3, 3)).astype(np.float32), b=np.ones(8, np.float32)
    )
    stem = site(found, "stem")
    changed = node.partition("<")[0]
    assert changed in stem.obstacle
    with pytest.raises(ValueError, match=changed):
        graph.splice(found, [(stem, Rewrite(((stem.conv.with_(lowering=Winograd((2, 2))),),)))])
