"""Activations in pieces as one operator: the same outputs, fewer nodes, or left alone."""

from __future__ import annotations

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import distance, model, op_types, random, random_feeds, run

import rewriter
from rewriter import graph

CONSTANTS = {
    "zero": np.float32(0),
    "half": np.float32([0.5]),
    "fifth": np.float32(0.2),
    "sixth": np.float32(1 / 6),
    "coarse": np.float32(0.1667),
    "one": np.float32(1),
    "three": np.float32([3]),
    "six": np.float32(6),
    "less": np.float32(-3),
    "wide": np.ones((1, 1, 1, 1, 1), np.float32),
    "many": np.full((1, 4, 1, 1), 3, np.float32),
}
SWISH = "a = Add(x, three) c = Clip(a, zero, six)"


def taken(body: str, opset: int = 13) -> graph.Model:
    """A model of that body, with the constants that it takes."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> agraph (float[2,4,5,6] x) => (float[2,4,5,6] y) '
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    found = {name: value for name, value in CONSTANTS.items() if name in words}
    return model(f"{head}{{ {body} }}", **found)


def wide(found: graph.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs on both sides of every bound."""
    return {name: 4 * array for name, array in random_feeds(found, rng).items()}


@pytest.mark.parametrize(
    "body",
    [
        f"{SWISH} m = Mul(x, c) y = Div(m, six)",
        f"{SWISH} m = Mul(c, x) y = Mul(sixth, m)",
        f"{SWISH} d = Div(c, six) y = Mul(x, d)",
        f"{SWISH} d = Mul(x, sixth) e = Identity(d) n = Mul(x, c) y = Mul(n, sixth)",
        "a = Add(three, x) r = Relu(a) c = Min(r, six) m = Mul(x, c) y = Div(m, six)",
        "a = Sub(x, less) t = Max(zero, a) c = Min(six, t) d = Div(c, six) y = Mul(d, x)",
        "b = Mul(x, sixth) a = Add(b, half) c = Clip(a, zero, one) y = Mul(x, c)",
    ],
)
@pytest.mark.parametrize("opset", [13, 14])
def test_hard_swishes(body: str, opset: int, rng: np.random.Generator) -> None:
    found = taken(body, opset)
    after = graph.as_fusible(found)
    expected = ["HardSwish"] if opset == 14 else ["HardSigmoid", "Mul"]
    assert [each for each in op_types(after) if each != "Identity"][-len(expected) :] == expected
    assert "Clip" not in op_types(after)
    onnx.checker.check_model(after.proto, full_check=True)
    feeds = wide(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-6
    assert graph.as_fusible(after) is after


@pytest.mark.parametrize(
    ("body", "alpha", "beta"),
    [
        (f"{SWISH} y = Div(c, six)", 1 / 6, 0.5),
        ("m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)", 0.2, 0.5),
        ("a = Add(x, half) t = Max(a, zero) y = Min(t, one)", 1.0, 0.5),
        # of the input of the line, not of the one in its middle, which only it needs
        ("m = Div(x, six) a = Sub(m, less) c = Clip(a, zero, six) y = Mul(c, sixth)", 1 / 36, 0.5),
    ],
)
def test_hard_sigmoids(body: str, alpha: float, beta: float, rng: np.random.Generator) -> None:
    found = taken(body)
    after = graph.as_fusible(found)
    (node,) = after.proto.graph.node
    assert node.op_type == "HardSigmoid"
    assert [each.f for each in node.attribute] == pytest.approx([alpha, beta])
    feeds = wide(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-6


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("r = Relu(x) m = Min(r, six) y = Relu(m)", ["Clip", "Relu"]),
        (
            f"{SWISH} d = Div(c, six) e = Sub(d, half) f = Clip(e, zero, one) y = Relu(f)",
            ["HardSigmoid", "Sub", "Clip", "Relu"],
        ),
    ],
)
def test_what_could_go_two_ways_goes_the_first(
    body: str, expected: list[str], rng: np.random.Generator
) -> None:
    found = taken(body)
    after = graph.as_fusible(found)
    assert op_types(after) == expected
    feeds = wide(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-6


def test_the_product_with_another_tensor_stays(rng: np.random.Generator) -> None:
    found = taken(f"r = Relu(x) {SWISH} d = Div(c, six) y = Mul(r, d)")
    after = graph.as_fusible(found)
    assert op_types(after) == ["Relu", "HardSigmoid", "Mul"]
    feeds = wide(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-6


def test_old_clips_have_attributes(rng: np.random.Generator) -> None:
    found = taken("a = Add(x, three) c = Clip<min=0.0, max=6.0>(a) m = Mul(x, c) y = Div(m, six)", 10)
    after = graph.as_fusible(found)
    assert op_types(after) == ["HardSigmoid", "Mul"]
    feeds = wide(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-6


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize(
    "body", ["r = Relu(x) y = Min(r, six)", "r = Min(six, x) y = Relu(r)", "r = Max(less, x) y = Min(r, one)"]
)
def test_clips_are_the_same_bit_for_bit(body: str, opset: int, rng: np.random.Generator) -> None:
    found = taken(body, opset)
    after = graph.as_fusible(found)
    assert op_types(after) == ["Clip"]
    onnx.checker.check_model(after.proto, full_check=True)
    feeds = wide(found, rng)
    np.testing.assert_array_equal(run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"])


@pytest.mark.parametrize("slope", [np.float32(0.25), np.full((4, 1, 1), 1.5, np.float32), np.float32([-0.5])])
def test_one_slope_is_leaky_bit_for_bit(slope: np.ndarray, rng: np.random.Generator) -> None:
    found = model("agraph (float[2,4,5,6] x) => (float[2,4,5,6] y) { y = PRelu(x, s) }", s=slope)
    after = graph.as_fusible(found)
    assert op_types(after) == ["LeakyRelu"]
    feeds = wide(found, rng)
    np.testing.assert_array_equal(run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"])


@pytest.mark.parametrize(
    "body",
    [
        "y = Clip(x, zero, six)",
        f"{SWISH} y = Mul(x, c)",
        f"{SWISH} m = Mul(x, c) y = Mul(m, coarse)",
        f"{SWISH} m = Mul(x, c) d = Div(m, six) y = Add(d, a)",
        f"{SWISH} d = Div(six, c) y = Mul(x, d)",
        "a = Add(x, many) c = Clip(a, zero, six) y = Div(c, six)",
        "a = Add(x, wide) c = Clip(a, zero, one) y = Relu(c)",
        "a = Add(x, three) c = Clip(a, one, six) y = Div(c, six)",
        "a = Add(x, three) c = Clip(a, zero) y = Div(c, six)",
        "a = Sub(three, x) c = Clip(a, zero, six) y = Div(c, six)",
        "r = Min(x, less) y = Relu(r)",
        "r = Max(x, zero) y = Max(r, six)",
        "r = Max(x, zero, less) y = Min(r, six)",
        "r = Max(x, many) y = Min(r, six)",
        "r = Relu(x) m = Min(r, six) y = Add(m, r)",
    ],
)
def test_leaves(body: str) -> None:
    found = taken(body)
    assert graph.as_fusible(found) is found


def test_other_types_and_slopes_are_left_alone() -> None:
    found = model("agraph (float16[2,4] x) => (float16 y) { y = PRelu(x, s) }", s=np.float16([0.1]))
    assert graph.as_fusible(found) is found
    slopes = np.float32([0.1, 0.2, 0.1, 0.1]).reshape(4, 1, 1)
    found = model("agraph (float[2,4,5,6] x) => (float[2,4,5,6] y) { y = PRelu(x, s) }", s=slopes)
    assert graph.as_fusible(found) is found


def test_what_is_given_out_stays() -> None:
    text = f"agraph (float[2,4,5,6] x) => (float y, float c) {{ {SWISH} m = Mul(x, c) y = Div(m, six) }}"
    found = model(text, **{name: CONSTANTS[name] for name in ("zero", "three", "six")})
    assert graph.as_fusible(found) is found


def test_the_command_tells_and_a_plan_does_it_again(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    fake_latency.install(monkeypatch)
    text = f"""agraph (float[1,32,24,24] x0) => (float[1,32,24,24] z) {{
        [one] x = Conv<pads=[1,1,1,1]>(x0, w) {SWISH} m = Mul(x, c) y = Div(m, six)
        [two] b = Conv<pads=[1,1,1,1]>(y, w) z = PRelu(b, half)
    }}"""
    names = ("zero", "three", "six", "half")
    found = model(text, w=random(rng, 32, 32, 3, 3) / 17, **{name: CONSTANTS[name] for name in names})
    plan = tmp_path / "plan.json"
    done = rewriter.optimize(found.proto, exact=True, passes=["winograd"], save_plan=plan)
    assert done.improved
    assert done.report.steps == ("2 nodes folded into those beside", "1 PRelu as LeakyRelu")
    assert {"HardSigmoid", "LeakyRelu"} < {node.op_type for node in done.model.graph.node}
    again = rewriter.apply(found.proto, plan)
    assert again.model.SerializeToString() == done.model.SerializeToString()
