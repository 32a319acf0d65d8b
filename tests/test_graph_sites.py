from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import distance, filled, model, only, parse, random, random_feeds, run, site
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from rewriter import graph
from rewriter.errors import ModelError
from rewriter.rewrite import Refusal

IN_OUT = "agraph (float[1,3,9,10] x) => (float[N,M,H,W] y)"


def refusal(found: graph.Model) -> Refusal:
    sites, refusals = graph.find_sites(found)
    assert sites == ()
    (single,) = refusals
    assert single.pass_name is None
    assert "\n" not in single.reason
    return single


def test_every_convolution_of_the_zoo_is_a_site_or_refused(zoo_model: Path) -> None:
    found = graph.unpin(graph.load(zoo_model))
    sites, refusals = graph.find_sites(found)
    nodes = found.proto.graph.node
    convolutions = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    assert len(sites) + len(refusals) == len(convolutions)
    assert sum(each.op_type == "Conv" for each in sites) == sum(
        node.op_type == "Conv" for node in convolutions
    )
    assert all("dynamic" in each.reason for each in refusals)
    assert len({each.name for each in (*sites,)} | {each.node for each in refusals}) == len(sites + refusals)
    assert [each.nodes[0] for each in sites] == sorted(each.nodes[0] for each in sites)


def test_a_site_says_what_its_node_says(rng: np.random.Generator) -> None:
    weight = random(rng, 6, 1, 3, 2)
    found = model(
        f"{IN_OUT} {{ [c] y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2], group=3>(x, w, b) }}",
        w=weight,
        b=random(rng, 6),
    )
    (only_site,), refusals = graph.find_sites(found)
    assert refusals == ()
    conv = only_site.conv
    assert (conv.strides, conv.pads, conv.dilations, conv.group) == ((2, 1), (1, 0, 2, 1), (1, 2), 3)
    assert np.array_equal(conv.weight, weight)
    assert (only_site.name, only_site.op_type, only_site.input, only_site.output) == ("c", "Conv", "x", "y")
    assert only_site.nodes == (0,)


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1), (5, 2)])
def test_auto_pad_is_made_explicit(
    rng: np.random.Generator, auto_pad: str, strides: tuple[int, int], kernel: tuple[int, int]
) -> None:
    text = f'{IN_OUT} {{ [c] y = Conv<auto_pad="{auto_pad}", strides={list(strides)}>(x, w) }}'
    found = model(text, w=random(rng, 2, 3, *kernel))
    feeds = random_feeds(found, rng)
    before = run(found.bytes(), feeds)
    after = run(graph.splice(found, [(site(found, "c"), only(site(found, "c").conv))]).bytes(), feeds)
    assert distance(before, after) == 0.0


def test_same_pads_with_a_dynamic_size(rng: np.random.Generator) -> None:
    text = (
        'agraph (float[1,3,H,W] x) => (float y) {{ [c] y = Conv<auto_pad="SAME_UPPER", strides={}>(x, w) }}'
    )
    weight = random(rng, 2, 3, 3, 2)
    unstrided = model(text.format("[1,1]"), w=weight)
    assert site(unstrided, "c").conv.pads == (1, 0, 1, 1)
    reason = refusal(model(text.format("[2,1]"), w=weight)).reason
    assert "SAME_UPPER" in reason
    assert "'x'" in reason
    pointwise = model(text.format("[2,2]"), w=random(rng, 2, 3, 1, 1))
    assert site(pointwise, "c").conv.pads == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = Conv(x, w)", {"w": np.ones((2, 3, 3, 3), np.int32)}, "'w' is int32; only float16"),
        (
            "y = Conv(x, w, b)",
            {"w": np.ones((2, 3, 3, 3), np.float16), "b": np.ones(2, np.float32)},
            "float16 and its bias float32",
        ),
        ("y = Conv(x, w)", {"w": np.ones((2, 3), np.float32)}, r"\[2, 3\] has no spatial axis"),
        ("y = Conv(x, w)", {"w": np.full((2, 3, 3, 3), np.nan, np.float32)}, "not finite"),
        ("y = Conv(x, w)", {"w": np.ones((0, 3, 3, 3), np.float32)}, "empty"),
        ("y = Conv<kernel_shape=[5,5]>(x, w)", {"w": np.ones((2, 3, 3, 3), np.float32)}, r"\[5, 5\]"),
        ("y = Conv<pads=[-1,0,0,0]>(x, w)", {"w": np.ones((2, 3, 3, 3), np.float32)}, "malformed: pads"),
        ("y = Conv<strides=[2]>(x, w)", {"w": np.ones((2, 3, 3, 3), np.float32)}, "its 2 spatial axes"),
        ('y = Conv<auto_pad="SAME">(x, w)', {"w": np.ones((2, 3, 3, 3), np.float32)}, "'SAME' is unknown"),
        ("y = Conv(x, v)  v = Abs(w)", {"w": np.ones((2, 3, 3, 3), np.float32)}, "computed by Abs"),
        ("y = Conv(x, x)", {}, "'x' is a graph input"),
        ("y = Conv(x, w)", {}, "'w' is not defined anywhere"),
        ("y = Conv(x, w, c)  c = Neg(b)", {"w": np.ones((2, 3, 3, 3), np.float32)}, "its bias 'c'"),
        ("y = ConvTranspose<pads=[3,0,0,0]>(x, w)", {"w": np.ones((3, 2, 3, 3), np.float32)}, "larger than"),
        (
            "y = ConvTranspose<output_padding=[1,0]>(x, w)",
            {"w": np.ones((3, 2, 3, 3), np.float32)},
            "malformed",
        ),
        ("y = ConvTranspose<strides=[2]>(x, w)", {"w": np.ones((3, 2, 3, 3), np.float32)}, "2 axes"),
        ("y = ConvTranspose<group=2>(x, w)", {"w": np.ones((3, 2, 3, 3), np.float32)}, "2 groups"),
        ("y = com.microsoft.FusedConv(x, w)", {"w": np.ones((2, 3, 3, 3), np.float32)}, "fused"),
        ("y = QLinearConv(x, s, z, w, s, z, s, z)", {}, "quantised"),
        ("y = ConvInteger(x, w)", {}, "quantised"),
        ("y = com.example.Conv(x, w)", {}, "'com.example'"),
        (
            "v = DequantizeLinear(w, s)  y = Conv(x, v)",
            {"w": np.ones((2, 3, 3, 3), np.int8), "s": np.float32(1)},
            "dequantised",
        ),
    ],
)
def test_refusals_say_why(body: str, weights: dict[str, np.ndarray], reason: str) -> None:
    single = refusal(model(f"{IN_OUT} {{ {body} }}", **weights))
    assert single.node == "y"
    assert re.search(reason, single.reason), single.reason


def test_pinned_weights_are_refused_until_unpinned(rng: np.random.Generator) -> None:
    text = "agraph (float[1,3,9,9] x, float[2,3,3,3] w) => (float y) { [c] y = Conv(x, w) }"
    found = model(text, w=random(rng, 2, 3, 3, 3))
    assert "unpin" in refusal(found).reason
    unpinned = graph.unpin(found)
    assert [value.name for value in unpinned.proto.graph.input] == ["x"]
    assert site(unpinned, "c").conv.weight.shape == (2, 3, 3, 3)
    assert graph.unpin(unpinned) is unpinned
    old = parse(text, w=random(rng, 2, 3, 3, 3))
    old.ir_version = 3
    assert graph.unpin(graph.load(old)).proto.graph.input[1].name == "w"
    assert site(graph.load(old), "c")


def test_sparse_weights_are_refused() -> None:
    proto = parse(f"{IN_OUT} {{ [c] y = Conv(x, w) }}")
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [1], [4])
    sparse = helper.make_sparse_tensor(values, indices, [2, 3, 3, 3])
    proto.graph.sparse_initializer.append(sparse)
    assert "sparse" in refusal(graph.load(proto)).reason


@pytest.mark.parametrize(
    "wrapped", ["v = Constant<value: tensor=float[1,3,1,1] {1,2,3}>()", "u = Identity(w) v = Identity(u)"]
)
def test_constants_behind_nodes_are_understood(wrapped: str) -> None:
    weight = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    weights = {"w": weight} if "Identity" in wrapped else {}
    found = model(f"{IN_OUT} {{ {wrapped} [c] y = Conv(x, v) }}", **weights)
    assert np.array_equal(site(found, "c").conv.weight, weight)


def test_convolutions_in_bodies_and_functions_are_refused(rng: np.random.Generator) -> None:
    found = model(
        """<ir_version: 8, opset_import: ["" : 13, "local" : 1]>
        agraph (float[1,3,9,9] x, bool c) => (float[1,3,7,7] y) {
            [pick] y = If (c) <
                then_branch = thens () => (float[1,3,7,7] t) { [inner] t = Conv(x, w) },
                else_branch = elses () => (float[1,3,7,7] e) { [twice] e = local.f(x, w) }
            >
        }
        <domain: "local", opset_import: ["" : 13]>
        f (a, b) => (r) { [deep] r = Conv(a, b) }
        """,
        w=random(rng, 3, 3, 3, 3),
    )
    sites, refusals = graph.find_sites(found)
    assert sites == ()
    assert [(each.node, each.reason) for each in refusals] == [
        ("inner", "it is in a body of If 'pick'; only the top graph is rewritten"),
        ("deep", "it is in the function 'f'; inline functions first"),
    ]


@pytest.mark.parametrize(("op_type", "attributes"), [("Loop", {}), ("Scan", {"num_scan_inputs": 1})])
def test_convolutions_in_loops_are_refused(
    rng: np.random.Generator, op_type: str, attributes: dict[str, int]
) -> None:
    within = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["t"], "deep")], "within", [], [_any("t")]
    )
    picks = helper.make_node("If", ["c"], ["u"], "pick", then_branch=within, else_branch=within)
    body = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["s"], "inner"), picks], "body", [], [])
    found = model(f"{IN_OUT} {{ [c] y = Conv(x, w) }}", w=random(rng, 3, 3, 3, 3))
    proto = found.copy()
    proto.graph.node.append(
        helper.make_node(op_type, ["", "c", "x"], ["z"], "around", body=body, **attributes)
    )
    sites, refusals = graph.find_sites(found.edited(proto))
    assert [each.name for each in sites] == ["c"]
    assert sorted(each.reason for each in refusals) == [
        "it is in a body of If 'pick'; only the top graph is rewritten",
        "it is in a body of If 'pick'; only the top graph is rewritten",
        f"it is in a body of {op_type} 'around'; only the top graph is rewritten",
    ]


def test_names_are_unique(rng: np.random.Generator) -> None:
    weight = random(rng, 3, 3, 1, 1)
    found = model(
        f"{IN_OUT} {{ [c] a = Conv(x, w) [c] b = Conv(a, w) d = Conv(b, w) [d] y = Conv(d, w) }}", w=weight
    )
    assert [each.name for each in graph.find_sites(found)[0]] == ["a", "b", "d_1", "d"]


NORM = """
    h = Conv<pads=[1,1,1,1]>(x, w{bias})
    y = BatchNormalization<epsilon=0.001>(h, s, t, m, v)
"""


def normed(rng: np.random.Generator, bias: bool = True, opset: int = 13) -> graph.Model:
    weights = {
        "w": random(rng, 4, 3, 3, 3),
        "b": random(rng, 4),
        "s": random(rng, 4),
        "t": random(rng, 4),
        "m": random(rng, 4),
        "v": rng.uniform(0.1, 2.0, 4).astype(np.float32),
    }
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return model(f"{head} {IN_OUT} {{ {NORM.format(bias=', b' if bias else '')} }}", **weights)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_agrees_with_the_reference(rng: np.random.Generator, bias: bool) -> None:
    # Before opset 14 the reference takes every normalisation for a training one.
    found = normed(rng, bias, opset=15)
    folded = graph.fold(found)
    assert [node.op_type for node in folded.proto.graph.node] == ["Conv"]
    x = random(rng, 2, 3, 9, 10)
    (expected,) = ReferenceEvaluator(found.proto).run(None, {"x": x})
    (given,) = ReferenceEvaluator(folded.proto).run(None, {"x": x})
    # float32 rounding of sums of 27 products
    assert np.abs(given - expected).max() <= 1e-6 * np.abs(expected).max() * 27
    assert graph.fold(folded) is folded
    onnx.checker.check_model(folded.proto, full_check=True)


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
def test_folding_agrees_with_the_runtime(rng: np.random.Generator, opset: int) -> None:
    found = normed(rng, opset=opset)
    feeds = random_feeds(found, rng)
    # float32 rounding of sums of 27 products
    assert distance(run(found.bytes(), feeds), run(graph.fold(found).bytes(), feeds)) < 3e-6


def change(found: graph.Model, kind: str) -> graph.Model:
    """The model with one thing that forbids folding."""
    proto = found.copy()
    norm = proto.graph.node[1]
    if kind == "another consumer":
        proto.graph.node.append(helper.make_node("Relu", ["h"], ["r"]))
    elif kind == "graph output":
        proto.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    elif kind == "training outputs":
        norm.output.extend(["mean_out", "var_out"])
    elif kind == "training mode":
        proto.opset_import[0].version = 15
        norm.attribute.append(helper.make_attribute("training_mode", 1))
    elif kind == "not by channel":
        norm.attribute.append(helper.make_attribute("spatial", 0))
    elif kind == "old test flag":
        proto.opset_import[0].version = 6
    elif kind == "computed statistics":
        proto.graph.node.insert(0, helper.make_node("Abs", ["m"], ["m_abs"]))
        norm.input[3] = "m_abs"
    elif kind == "pinned statistics":
        proto.graph.input.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [4]))
    elif kind == "negative variance":
        (variance,) = (tensor for tensor in proto.graph.initializer if tensor.name == "v")
        variance.CopyFrom(onnx.numpy_helper.from_array(np.full(4, -1, np.float32), "v"))
    elif kind == "captured":
        body = helper.make_graph([helper.make_node("Identity", ["h"], ["z"])], "body", [], [_any("z")])
        node = helper.make_node("If", ["q"], ["p"], then_branch=body, else_branch=body)
        proto.graph.node.append(node)
    elif kind == "normalises another input":
        norm.input[0], norm.input[1] = "s4", "h"
    return found.edited(proto)


def _any(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


@pytest.mark.parametrize(
    "kind",
    [
        "another consumer",
        "graph output",
        "training outputs",
        "training mode",
        "not by channel",
        "old test flag",
        "computed statistics",
        "pinned statistics",
        "negative variance",
        "captured",
        "normalises another input",
    ],
)
def test_what_is_not_folded(rng: np.random.Generator, kind: str) -> None:
    found = change(normed(rng), kind)
    (single,), _ = graph.find_sites(found)
    assert single.output == "h"
    assert len(single.nodes) == 1
    assert graph.fold(found) is found


def test_followers(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,1,1] slope[3,1,1]
        agraph (float[1,3,9,9] x) => (float y, float z) {
            [a] a = Conv(x, w)
            low = Constant<value_float=0.0>()
            ra = Clip(a, low)
            [b] b = Conv(ra, w)
            sum = Add(x, b)
            rb = LeakyRelu<alpha=0.2>(sum)
            [c] c = Conv(rb, w)
            rc = PRelu(c, slope)
            [d] d = Conv(rc, w)
            y = Add(d, d)
            [e] e = Conv(rc, w)
            z = Add(e, slope)
        }""",
        rng,
    )
    sites, _ = graph.find_sites(found)
    assert [[follower.op_type for follower in each.followers] for each in sites] == [
        ["Clip"],
        ["Add", "LeakyRelu"],
        ["PRelu"],
        [],
        [],
    ]
    assert [each.shortcut for each in sites] == [None, "x", None, None, None]


def test_exotic_attributes_and_types_do_not_matter(rng: np.random.Generator) -> None:
    found = model(f"{IN_OUT} {{ [c] y = Conv(x, w) }}", w=random(rng, 2, 3, 3, 3))
    proto = found.copy()
    proto.graph.node.append(helper.make_node("Custom", ["x"], ["z"], domain="com.example", blob=b"\xff\xfe"))
    proto.graph.initializer.append(helper.make_tensor("odd", TensorProto.INT4, [2], [1, 2]))
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.value_info.append(helper.make_value_info("z", optional))
    assert site(graph.load(proto), "c").conv.weight.shape == (2, 3, 3, 3)


def test_data_that_do_not_fit_are_an_error(rng: np.random.Generator) -> None:
    proto = model(f"{IN_OUT} {{ [c] y = Conv(x, w) }}", w=random(rng, 2, 3, 3, 3)).copy()
    proto.graph.initializer[0].dims[0] = 5
    with pytest.raises(ModelError, match="the data of tensor 'w'"):
        graph.find_sites(graph.load(proto))


def test_a_conv_that_does_not_fit_together_is_refused(rng: np.random.Generator) -> None:
    found = model(f"{IN_OUT} {{ y = Conv<group=2>(x, w) }}", w=random(rng, 3, 3, 3, 3))
    assert "malformed" in refusal(found).reason
