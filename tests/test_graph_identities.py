"""Identities between other nodes are left out, and nothing else changes."""

from __future__ import annotations

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import model, op_types, random, random_feeds, run

import rewriter
from rewriter import graph


def test_between_other_nodes_they_go(rng: np.random.Generator) -> None:
    text = """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) {
        a = Relu(x) b = Identity(a) c = Identity(b) d = Mul(c, b) e = Identity(d) y = Add(e, c)
    }"""
    found = model(text)
    after = graph.without_identities(found)
    assert op_types(after) == ["Relu", "Mul", "Add"]
    onnx.checker.check_model(after.proto, full_check=True)
    feeds = random_feeds(found, rng)
    np.testing.assert_array_equal(run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"])
    assert graph.without_identities(after) is after


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x) y = Identity(a)",
        "v = Identity(w) y = Conv<pads=[1,1,1,1]>(x, v)",
        "k = Constant<value: tensor=float {2}>() j = Identity(k) y = Mul(x, j)",
        "a = Identity(x) y = Relu(a)",
    ],
)
def test_of_outputs_inputs_and_weights_they_stay(body: str, rng: np.random.Generator) -> None:
    text = f"agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) {{ {body} }}"
    found = model(text, **({"w": random(rng, 4, 4, 3, 3)} if "w" in body else {}))
    assert graph.without_identities(found) is found


def test_what_a_body_takes_stays() -> None:
    value = onnx.helper.make_tensor_value_info
    element, flag = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    body = [
        onnx.helper.make_graph(
            [onnx.helper.make_node(kind, ["b"], ["z"])], "body", [], [value("z", element, [1, 4])]
        )
        for kind in ("Relu", "Sigmoid")
    ]
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"]),
        onnx.helper.make_node("Identity", ["a"], ["b"]),
        onnx.helper.make_node("If", ["q"], ["y"], then_branch=body[0], else_branch=body[1]),
    ]
    inputs, outputs = (
        [value("x", element, [1, 4]), value("q", flag, [])],
        [value("y", element, [1, 4])],
    )
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
    )
    found = graph.load(made)
    assert graph.without_identities(found) is found


def test_convolutions_see_what_is_behind_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As paddle2onnx writes it: every operator's output once more."""
    fake_latency.install(monkeypatch)
    text = """agraph (float[1,32,24,24] x) => (float[1,32,24,24] z) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Identity(a) c = Mul(s, b) d = Identity(c) e = Add(d, s)
        f = Identity(e) z = Relu(f)
    }"""
    found = model(text, w=random(rng, 32, 32, 3, 3), s=random(rng, 1))
    done = rewriter.optimize(found.proto, exact=True, passes=["winograd"])
    assert done.improved
    assert done.report.steps == ("2 nodes folded into those beside",)
    assert not {"Identity", "Mul"} & {node.op_type for node in done.model.graph.node if "/" not in node.name}


def test_alone_they_are_no_gain(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    text = """agraph (float[1,32,24,24] x) => (float[1,32,24,24] z) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Identity(a) z = Relu(b)
    }"""
    done = rewriter.optimize(
        model(text, w=random(rng, 32, 32, 3, 3)).proto, exact=True, passes=["crop_kernel"]
    )
    assert not done.improved
    assert done.report.drift == ()
