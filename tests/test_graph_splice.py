from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import distance, filled, halves, model, only, parse, random, random_feeds, run, site
from onnx import TensorProto, helper

from rewriter import graph
from rewriter.conv import Conv
from rewriter.rewrite import Rewrite

Golden = Callable[[str, str], None]


def chain(rng: np.random.Generator, conv: Conv, *, terms: int = 1) -> Rewrite:
    """A sum of depthwise and pointwise stages with the convolution's strides, pads and dilations."""
    channels, kernel = conv.in_channels, conv.kernel_shape
    branches = []
    for term in range(terms):
        first = conv.with_(weight=random(rng, channels, 1, *kernel), bias=None, group=channels)
        bias = conv.bias if term == 0 else None
        last = Conv(random(rng, conv.out_channels, channels, 1, 1), bias)
        branches.append((first, last))
    return Rewrite(tuple(branches))


RESIDUAL = """weights: w1[8,3,3,3] b1[8] w2[8,8,3,3] w3[8,8,3,3] b3[8] w4[6,8,5,5]
agraph (float[N,3,16,16] x) => (float[N,6,8,8] y) {
    [stem] h1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [relu1] a1 = Relu(h1)
    [conv2] h2 = Conv<pads=[1,1,1,1]>(a1, w2)
    [relu2] a2 = Relu(h2)
    [conv3] h3 = Conv<pads=[1,1,1,1]>(a2, w3, b3)
    [add] s = Add(h3, a1)
    [relu3] a3 = Relu(s)
    [down] y = Conv<pads=[2,2,2,2], strides=[2,2]>(a3, w4)
}"""


def test_residual_net(rng: np.random.Generator, golden: Golden) -> None:
    found = filled(RESIDUAL, rng)
    conv2, conv3, down = (site(found, name) for name in ("conv2", "conv3", "down"))
    tall, wide = (random(rng, 4, 8, 3, 1), random(rng, 8, 4, 1, 3))
    rewritten = graph.splice(
        found,
        [
            (conv2, chain(rng, conv2.conv)),
            (conv3, chain(rng, conv3.conv, terms=3)),
            (down, chain(rng, down.conv)),
        ],
        {"version": "0.1", "rewriter.note": "text"},
    )
    golden("residual", graph.describe(found) + "\n" + graph.describe(rewritten))
    onnx.checker.check_model(rewritten.proto, full_check=True)
    spatial = Rewrite(((Conv(tall, pads=(1, 0, 1, 0)), Conv(wide, conv3.conv.bias, pads=(0, 1, 0, 1))),))
    tucker = Rewrite(
        (
            (
                Conv(random(rng, 4, 8, 1, 1)),
                Conv(random(rng, 2, 4, 5, 5), None, (2, 2), (2, 2, 2, 2)),
                Conv(random(rng, 6, 2, 1, 1)),
            ),
        )
    )
    grouped = Rewrite(
        ((conv2.conv.with_(weight=random(rng, 8, 4, 3, 3), group=2), Conv(random(rng, 8, 8, 1, 1))),)
    )
    rewritten = graph.splice(found, [(down, tucker), (conv2, grouped), (conv3, spatial)])
    golden("residual_forms", graph.describe(rewritten))
    onnx.checker.check_model(rewritten.proto, full_check=True)
    run(rewritten.bytes(), random_feeds(rewritten, rng))


def test_zoo_keeps_its_outputs(zoo_model: Path, rng: np.random.Generator) -> None:
    found = graph.unpin(graph.load(zoo_model))
    sites, _ = graph.find_sites(found)
    rewritten = graph.splice(found, [(each, halves(each.conv)) for each in sites])
    small = found.proto.ByteSize() < 1_500_000 and "style" not in zoo_model.stem
    if small:  # the others take seconds to run; the segments run them
        feeds = random_feeds(found, rng)
        # float32 rounding through up to 55 layers
        assert distance(run(found.bytes(), feeds), run(rewritten.bytes(), feeds)) < 2e-5
    assert_untouched(found, rewritten, sites)


def assert_untouched(before: graph.Model, after: graph.Model, sites: tuple[graph.Site, ...]) -> None:
    """Everything but the sites' nodes and what only they used is byte-equal and in its order."""
    old, new = before.proto, after.proto
    replaced = {index for each in sites for index in each.nodes}
    named = [node.SerializeToString() for node in new.graph.node]
    kept = [node.SerializeToString() for index, node in enumerate(old.graph.node) if index not in replaced]
    used = {name for node in new.graph.node for name in node.input}
    kept_needed = [
        data
        for data in kept
        if (node := onnx.NodeProto.FromString(data)).op_type != "Constant" or node.output[0] in used
    ]
    assert is_subsequence(kept_needed, named)
    assert is_subsequence(
        [tensor.SerializeToString() for tensor in old.graph.initializer if tensor.name in used],
        [tensor.SerializeToString() for tensor in new.graph.initializer],
    )
    used_before = {name for node in old.graph.node for name in node.input}
    assert {tensor.name for tensor in new.graph.initializer} & used_before <= used
    # What is neither nodes nor initializers nor words about tensors that are no more is one and the same.
    made = {name for node in new.graph.node for name in node.output}
    there = made | used
    for copy in (old_copy := before.copy(), new_copy := after.copy()):
        del copy.graph.node[:]
        for field in (copy.graph.value_info, copy.graph.input):
            rest = [value for value in field if value.name in there]
            del field[:]
            field.extend(rest)
        del copy.graph.initializer[:]
    new_names = {value.name for value in new.graph.input} - {value.name for value in old.graph.input}
    rest = [value for value in new_copy.graph.input if value.name not in new_names]
    del new_copy.graph.input[:]
    new_copy.graph.input.extend(rest)
    assert old_copy.SerializeToString() == new_copy.SerializeToString()


def is_subsequence(few: list[bytes], many: list[bytes]) -> bool:
    rest = iter(many)
    return all(any(each == other for other in rest) for each in few)


# A field that no version of ONNX has yet: number 999, the text "newer".
NEWER = bytes([0xBA, 0x3E, 5]) + b"newer"


def adorned(rng: np.random.Generator) -> onnx.ModelProto:
    """A model with something in every field that tools tend to lose."""
    proto = filled(RESIDUAL, rng).copy()
    proto.ir_version = 10
    proto.domain, proto.model_version, proto.doc_string = "com.example", 7, "a model"
    proto.producer_name, proto.producer_version = "someone", "1.2"
    proto.opset_import.append(helper.make_opsetid("com.example", 3))
    proto.metadata_props.add(key="author", value="me")
    graph_ = proto.graph
    graph_.doc_string = "a graph"
    graph_.metadata_props.add(key="level", value="graph")
    graph_.node.append(helper.make_node("f", ["y"], ["z"], "call", domain="local", overload="first"))
    for node in graph_.node:
        node.doc_string = f"does {node.op_type}"
        node.metadata_props.add(key="from", value=node.name)
    for tensor in graph_.initializer:
        tensor.doc_string = f"weight {tensor.name}"
    for name in ("h1", "a1", "h2", "h3", "s"):
        graph_.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 16, 16]))
    for name, scale in (("w2", "w2_scale"), ("w3", "w3_scale"), ("s", "s_scale")):
        note = graph_.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    proto.functions.append(
        helper.make_function(
            "local",
            "f",
            ["a"],
            ["b"],
            [helper.make_node("Relu", ["a"], ["b"])],
            [helper.make_opsetid("", 13)],
            overload="first",
        )
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("sparse_places", TensorProto.INT64, [1], [3])
    graph_.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))
    info = proto.training_info.add()
    step = helper.make_node("Identity", ["w1"], ["w1_new"])
    out = helper.make_tensor_value_info("w1_new", TensorProto.FLOAT, [8, 3, 3, 3])
    info.algorithm.CopyFrom(helper.make_graph([step], "step", [], [out]))
    info.update_binding.add(key="w1", value="w1_new")
    parts = [proto, graph_, *graph_.node, *graph_.initializer, *graph_.value_info, *graph_.output]
    for part in (*parts, *proto.functions, proto.functions[0].node[0], *proto.opset_import, info):
        part.MergeFromString(NEWER)
    return proto


def test_whatever_a_model_holds_goes_through_files(rng: np.random.Generator, tmp_path: Path) -> None:
    before = adorned(rng).SerializeToString()
    assert before.count(NEWER) > 20
    found = graph.load(before)
    assert found.source is None
    for storage in (graph.Storage(), graph.Storage(external=True, threshold=1)):
        graph.save(found, tmp_path / "m.onnx", storage)
        assert graph.load(tmp_path / "m.onnx").bytes() == before


def test_what_training_needs_stays(rng: np.random.Generator) -> None:
    found = filled(RESIDUAL, rng).copy()
    info = found.training_info.add()
    step = helper.make_node("Identity", ["b1"], ["conv2/depthwise.weight"])
    info.algorithm.CopyFrom(helper.make_graph([step], "step", [], []))
    info.update_binding.add(key="w2", value="conv2/depthwise.weight")
    loaded = graph.load(found)
    sites = [site(loaded, name) for name in ("stem", "conv2")]
    after = graph.splice(loaded, [(each, chain(rng, each.conv)) for each in sites])
    kept = {tensor.name for tensor in after.proto.graph.initializer}
    assert {"w2", "b1", "conv2/depthwise.weight_1"} <= kept
    assert not {"w1", "conv2/depthwise.weight"} & kept
    assert after.proto.training_info == found.training_info


def test_all_that_is_not_rewritten_stays(rng: np.random.Generator) -> None:
    found = graph.load(adorned(rng))
    before = found.bytes()
    conv2 = site(found, "conv2")
    after = graph.splice(found, [(conv2, chain(rng, conv2.conv))], {"passes": "depthwise_pointwise"})
    assert found.bytes() == before
    # Undo by hand what the rewrite may change: then nothing must differ.
    undone = after.copy()
    original = onnx.ModelProto.FromString(before)
    assert [node.name for node in undone.graph.node[2:4]] == ["conv2/depthwise", "conv2/pointwise"]
    del undone.graph.node[2:4]
    undone.graph.node.insert(2, original.graph.node[2])
    assert [tensor.name for tensor in undone.graph.initializer[-2:]] == [
        "conv2/depthwise.weight",
        "conv2/pointwise.weight",
    ]
    del undone.graph.initializer[-2:]
    undone.graph.initializer.insert(2, original.graph.initializer[2])
    undone.graph.quantization_annotation.insert(0, original.graph.quantization_annotation[0])
    assert [(each.key, each.value) for each in undone.metadata_props] == [
        ("author", "me"),
        ("rewriter.passes", "depthwise_pointwise"),
    ]
    del undone.metadata_props[1:]
    assert undone.SerializeToString() == before


def test_provenance_is_replaced_by_a_second_run(rng: np.random.Generator) -> None:
    found = filled(RESIDUAL, rng)
    once = graph.splice(found, [], {"version": "1"})
    twice = graph.splice(once, [], {"version": "2"})
    assert [(each.key, each.value) for each in twice.proto.metadata_props] == [("rewriter.version", "2")]


def test_shared_weights_stay_while_someone_uses_them(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,3,3]
        agraph (float[1,3,9,9] x) => (float y) { [a] a = Conv(x, w) [b] b = Conv(a, w) y = Relu(b) }""",
        rng,
    )
    first, second = graph.find_sites(found)[0]
    one = graph.splice(found, [(first, halves(first.conv))])
    assert [tensor.name for tensor in one.proto.graph.initializer] == [
        "w",
        "a/conv.weight",
        "a/1/conv.weight",
    ]
    both = graph.splice(found, [(each, halves(each.conv)) for each in (second, first)])
    assert "w" not in {tensor.name for tensor in both.proto.graph.initializer}
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(both.bytes(), feeds)) < 1e-6  # float32 rounding


def test_weights_used_in_a_body_or_given_out_stay(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,3,3] v[3,3,1,1]
        agraph (float[1,3,9,9] x, bool q) => (float y, float[3,3,3,3] z, float[3,3,1,1] v) {
            [a] a = Conv(x, w)
            [b] y = Conv(a, v)
            z = If (q) <
                then_branch = thens () => (float[3,3,3,3] t) { t = Relu(w) },
                else_branch = elses () => (float[3,3,3,3] e) { e = Neg(w) }
            >
        }""",
        rng,
    )
    sites, _ = graph.find_sites(found)
    rewritten = graph.splice(found, [(each, only(each.conv)) for each in sites])
    assert {"w", "v"} < {tensor.name for tensor in rewritten.proto.graph.initializer}
    feeds = {"x": random(rng, 1, 3, 9, 9), "q": np.array(True)}
    assert distance(run(found.bytes(), feeds), run(rewritten.bytes(), feeds)) == 0.0


def test_constant_nodes_go_with_their_convolution(golden: Golden, rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[1,3,1,1]
        agraph (float[1,3,9,9] x) => (float y) {
            c = Constant<value: tensor=float[1,3,1,1] {1,2,3}>()
            i = Identity(c)
            k = Constant<value: tensor=float[1,3,1,1] {1,2,3}>()
            kept = Constant<value: tensor=float[1] {5}>()
            u = Identity(w)
            d = Identity(x)
            [a] a = Conv(d, i, kept)
            [b] b = Conv(x, k)
            [e] e = Conv(x, u)
            y = Sum(a, b, kept, e)
        }""",
        rng,
    )
    sites, _ = graph.find_sites(found)
    rewritten = graph.splice(found, [(each, halves(each.conv)) for each in sites])
    golden("constants", graph.describe(rewritten))
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(rewritten.bytes(), feeds)) < 1e-6  # float32 rounding


def test_new_names_avoid_all_others(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,3,3]
        agraph (float[1,3,9,9] x, bool q) => (float y, float z) {
            [other] b = Relu(x)
            [a] y = Conv(b, w)
            z = If (q) <
                then_branch = thens () => (float t) { t = Relu(x) },
                else_branch = elses () => (float e) { e = Neg(x) }
            >
        }""",
        rng,
    ).copy()
    found.graph.node[0].name = "a/conv"
    found.graph.node[2].attribute[0].g.node[0].output[0] = "a/1/conv"
    found.graph.node[2].attribute[0].g.output[0].name = "a/1/conv"
    loaded = graph.load(found)
    (single,), _ = graph.find_sites(loaded)
    rewritten = graph.splice(loaded, [(single, halves(single.conv))])
    names = [node.name for node in rewritten.proto.graph.node[:4]]
    assert names == ["a/conv", "a/conv_1", "a/1/conv_1", "a/add"]
    onnx.checker.check_model(rewritten.proto)


def test_a_second_run_over_the_result(rng: np.random.Generator) -> None:
    found = filled(RESIDUAL, rng)
    conv2 = site(found, "conv2")
    once = graph.splice(found, [(conv2, halves(conv2.conv))])
    again = site(once, "conv2/conv")
    twice = graph.splice(once, [(again, halves(again.conv))])
    onnx.checker.check_model(twice.proto, full_check=True)
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(twice.bytes(), feeds)) < 1e-5  # float32 rounding


def test_before_ir_version_4_weights_are_inputs(rng: np.random.Generator) -> None:
    proto = parse(
        """<ir_version: 3, opset_import: ["" : 8]>
        agraph (float[1,3,9,9] x, float[3,3,3,3] w) => (float[1,3,7,7] y) { [a] y = Conv(x, w) }""",
        w=random(rng, 3, 3, 3, 3),
    )
    found = graph.load(proto)
    (single,), _ = graph.find_sites(found)
    rewritten = graph.splice(found, [(single, halves(single.conv))])
    assert [value.name for value in rewritten.proto.graph.input] == ["x", "a/conv.weight", "a/1/conv.weight"]
    onnx.checker.check_model(rewritten.proto, full_check=True)
    assert [spec.name for spec in rewritten.inputs] == ["x"]


def test_opset_6_sums_without_add(rng: np.random.Generator) -> None:
    proto = parse(
        """<ir_version: 3, opset_import: ["" : 6]>
        agraph (float[1,3,9,9] x, float[3,3,3,3] w) => (float[1,3,7,7] y) { [a] y = Conv(x, w) }""",
        w=random(rng, 3, 3, 3, 3),
    )
    found = graph.load(proto)
    (single,), _ = graph.find_sites(found)
    rewritten = graph.splice(found, [(single, halves(single.conv))])
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(rewritten.bytes(), feeds)) < 1e-6  # float32 rounding


def test_a_norm_far_from_its_convolution(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,3,3] s[3] t[3] m[3]
        agraph (float[1,3,9,9] x) => (float y, float z) {
            h = Conv<pads=[1,1,1,1]>(x, w)
            z = Relu(x)
            one = Constant<value: tensor=float[3] {1,1,1}>()
            y = BatchNormalization(h, s, t, m, one)
        }""",
        rng,
    )
    folded = graph.fold(found)
    assert [node.op_type for node in folded.proto.graph.node] == ["Relu", "Conv"]
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(folded.bytes(), feeds)) < 1e-5  # float32 rounding


def test_foreign_sites_are_an_error(rng: np.random.Generator) -> None:
    found = filled(RESIDUAL, rng)
    other = model("agraph (float[1,3,9,9] x) => (float q) { q = Conv(x, w) }", w=random(rng, 3, 3, 3, 3))
    (foreign,), _ = graph.find_sites(other)
    with pytest.raises(ValueError, match="'q' was not found"):
        graph.splice(found, [(foreign, only(foreign.conv))])
    stem = site(found, "stem")
    with pytest.raises(ValueError, match="twice"):
        graph.splice(found, [(stem, only(stem.conv))] * 2)
