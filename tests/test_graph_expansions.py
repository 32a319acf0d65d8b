"""Operators written in others: the same as what ONNX says of them, wherever they may be, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
from graphs import filled, model, op_types, random, random_feeds, run

from rewriter import graph

HEAD = "agraph (float[N,4,5,6] x) => (float y) {"
# At the ends of what float32 and the approximations of exp bear.
EXTREMES = np.float32([0.0, -0.0, 1e-30, -1e-30, 20, -20, 44, -44, 87, -87, 88.5, -88.5, 103, -103, 1e4])


def opset(version: int) -> str:
    return f'<ir_version: 8, opset_import: ["" : {version}]> '


def written(found: graph.Model) -> graph.Model:
    """The model with all in others that can be."""
    after = graph.expanded(found, [each.output for each in graph.find_expansions(found)])
    onnx.checker.check_model(after.proto)
    return after


def kinds(found: graph.Model) -> list[str]:
    return [each.kind for each in graph.find_expansions(found)]


def same(found: graph.Model, x: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> graph.Model:
    """Checks that the model written in others gives what is expected, and returns it."""
    after = written(found)
    got = run(after.bytes(), {"x": x})["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * 1e-1)
    return after


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, np.float64(x))


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(softplus(x))


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(np.float64(x), 0)))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shares = np.exp(np.float64(x) - x.max(axis, keepdims=True))
    return shares / shares.sum(axis, keepdims=True)


def lrn(x: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> np.ndarray:
    total = np.zeros(x.shape)
    for channel in range(x.shape[1]):
        first, last = max(0, channel - (size - 1) // 2), min(x.shape[1] - 1, channel + size // 2)
        total[:, channel] = (np.float64(x[:, first : last + 1]) ** 2).sum(1)
    return x / (bias + alpha / size * total) ** beta


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (6,), (4, 5, 6)])
def test_prelu_is_the_same_bit_for_bit(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    slope = np.minimum(random(rng, *shape), 1.0).astype(np.float32)
    found = model(f"{HEAD} y = PRelu(x, s) }}", s=slope)
    after = written(found)
    assert op_types(after) == ["Mul", "Max"]
    feeds = random_feeds(found, rng)
    np.testing.assert_array_equal(run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"])


@pytest.mark.parametrize(
    ("text", "op", "expected"),
    [
        ("y = Elu(x)", "Elu", elu),
        ("y = Elu<alpha=0.3>(x)", "Elu", partial(elu, alpha=0.3)),
        ("y = Softplus(x)", "Softplus", softplus),
        ("a = Softplus(x) b = Tanh(a) y = Mul(x, b)", "Mish", mish),
        ("a = Softplus(x) b = Tanh(a) y = Mul(b, x)", "Mish", mish),
    ],
)
@pytest.mark.parametrize("version", [8, 13, 21])
def test_activations(
    text: str, op: str, expected: Callable[[np.ndarray], np.ndarray], version: int, rng: np.random.Generator
) -> None:
    found = model(f"{opset(version)}{HEAD} {text} }}")
    assert kinds(found) == [op]
    x = random(rng, 3, 4, 5, 6) * 4
    x.flat[: len(EXTREMES)] = EXTREMES
    same(found, x, expected(x))


def test_a_mish_before_minima_broadcast(rng: np.random.Generator) -> None:
    found = model(f"{opset(7)}{HEAD} a = Softplus(x) b = Tanh(a) y = Mul(x, b) }}")
    assert kinds(found) == ["Softplus"]
    x = random(rng, 3, 4, 5, 6) * 4
    same(found, x, mish(x), 1e-5)


def test_a_mish_of_one_node(rng: np.random.Generator) -> None:
    found = model(f"{opset(18)}{HEAD} y = Mish(x) }}")
    assert kinds(found) == ["Mish"]
    x = random(rng, 2, 4, 5, 6) * 5
    after = same(found, x, mish(x))
    assert "Tanh" not in op_types(after)


def test_a_softplus_that_others_take_is_no_mish(rng: np.random.Generator) -> None:
    text = "a = Softplus(x) b = Tanh(a) c = Mul(x, b) y = Add(c, a)"
    assert kinds(model(f"{HEAD} {text} }}")) == ["Softplus"]
    assert kinds(model(f"{HEAD} a = Softplus(x) b = Tanh(a) y = Mul(a, b) }}")) == ["Softplus"]


@pytest.mark.parametrize("version", [7, 11, 13, 17, 18, 21])
@pytest.mark.parametrize("axis", [-1, 3])
def test_softmax_of_the_last_axis(version: int, axis: int, rng: np.random.Generator) -> None:
    if version < 11 and axis < 0:
        pytest.skip("counted from the front only")
    found = model(f"{opset(version)}{HEAD} y = Softmax<axis={axis}>(x) }}")
    assert kinds(found) == ["Softmax"]
    x = random(rng, 3, 4, 5, 6) * 30
    same(found, x, softmax(x, axis))


@pytest.mark.parametrize("version", [11, 13, 18])
def test_log_softmax(version: int, rng: np.random.Generator) -> None:
    axis = 3 if version < 13 else 1
    found = model(f"{opset(version)}{HEAD} y = LogSoftmax<axis={axis}>(x) }}")
    assert kinds(found) == ["LogSoftmax"]
    x = random(rng, 3, 4, 5, 6) * 30
    with np.errstate(divide="ignore"):
        expected = x - x.max(axis, keepdims=True)
        expected = expected - np.log(np.exp(np.float64(expected)).sum(axis, keepdims=True))
    same(found, x, expected)


@pytest.mark.parametrize("version", [13, 18])
@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_softmax_of_any_axis(version: int, axis: int, rng: np.random.Generator) -> None:
    found = model(f"{opset(version)}{HEAD} y = Softmax<axis={axis}>(x) }}")
    x = random(rng, 3, 4, 5, 6) * 30
    same(found, x, softmax(x, axis))


def test_softmax_of_several_axes_stays() -> None:
    assert kinds(model(f"{opset(12)}{HEAD} y = Softmax<axis=1>(x) }}")) == []
    assert kinds(model(f"{opset(12)}agraph (float[N,4] x) => (float y) {{ y = Softmax(x) }}")) == ["Softmax"]


@pytest.mark.parametrize("version", [7, 9, 10, 11, 13, 21])
@pytest.mark.parametrize(
    "attributes",
    [
        {"size": 5, "alpha": 0.01, "beta": 0.75, "bias": 2.0},
        {"size": 3, "alpha": 0.1, "beta": 0.5},
        {"size": 4, "alpha": 0.1, "beta": 1.0},
        {"size": 2, "alpha": 0.1, "beta": 0.3},
        {"size": 9},
        {"size": 1, "alpha": 0.2},
    ],
)
def test_lrn(version: int, attributes: dict[str, float], rng: np.random.Generator) -> None:
    shown = ", ".join(f"{name}={value}" for name, value in attributes.items())
    found = model(f"{opset(version)}{HEAD} y = LRN<{shown}>(x) }}")
    assert kinds(found) == ["LRN"]
    x = random(rng, 3, 4, 5, 6) * 3
    same(found, x, lrn(x, **attributes))


@pytest.mark.parametrize("sizes", ["N,18,5,6", "N,18,H,W", "3,18,H,6"])
@pytest.mark.parametrize(
    ("version", "attributes"), [(8, ""), (11, ', mode="CRD"'), (13, ', mode="DCR"'), (13, ', mode="CRD"')]
)
def test_depth_to_space(sizes: str, version: int, attributes: str, rng: np.random.Generator) -> None:
    head = f"agraph (float[{sizes}] x) => (float y) {{"
    found = model(f"{opset(version)}{head} y = DepthToSpace<blocksize=3{attributes}>(x) }}")
    assert kinds(found) == ["DepthToSpace"]
    x = random(rng, 3, 18, 5, 6)
    after = written(found)
    feeds = {"x": x}
    np.testing.assert_array_equal(run(after.bytes(), feeds)["y"], run(found.bytes(), feeds)["y"])
    # sizes are computed where they are not fixed, which of those in the default order only the width must be
    assert ("Shape" in op_types(after)) == ("W" in sizes or ("H" in sizes and "CRD" in attributes))


def test_the_rest_stays_as_it_came(rng: np.random.Generator) -> None:
    net = (
        "agraph (float[N,4,5,6] x) => (float y, float a) {\n"
        "a = PRelu(x, s) b = Conv<pads=[1,1,1,1]>(a, w) c = PRelu(b, s) y = Conv(c, w) }"
    )
    found = filled(f"weights: w[4,4,3,3]\n{net}", rng)
    found.proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.float32([0, 0.1, 1, -2])[:, None, None], "s")
    )
    after = graph.expanded(found, ["c"])
    assert op_types(after) == ["PRelu", "Conv", "Mul", "Max", "Conv"]
    before = {node.output[0]: node.SerializeToString() for node in found.proto.graph.node}
    kept = [node for node in after.proto.graph.node if node.op_type in ("PRelu", "Conv")]
    assert [node.SerializeToString() for node in kept] == [before[node.output[0]] for node in kept]
    assert after.proto.graph.initializer == found.proto.graph.initializer
    assert graph.expanded(found, []) is found


@pytest.mark.parametrize(
    "slope", [np.float32([[[0.1]], [[1.5]], [[0.1]], [[0.1]]]), np.float16([0.1]), np.float32([np.nan])]
)
def test_other_slopes_are_left_alone(slope: np.ndarray) -> None:
    kind = "float16" if slope.dtype == np.float16 else "float"
    found = model(f"agraph ({kind}[N,4,5,6] x) => ({kind} y) {{ y = PRelu(x, s) }}", s=slope)
    assert graph.find_expansions(found) == ()


@pytest.mark.parametrize(
    "text",
    [
        "agraph (float[N,4,5,6] x, float[1] s) => (float y) { y = PRelu(x, s) }",
        f"{opset(7)}{HEAD} y = Elu(x) }}",
        f"{opset(7)}{HEAD} a = Softmax<axis=1>(x) b = Tanh(a) y = Mul(x, b) }}",
        "agraph (double[N,4,5,6] x) => (double y) { y = Elu(x) }",
        f"{HEAD} y = LRN<size=3, bias=0.0>(x) }}",
        "agraph (float[N,K,5,6] x) => (float y) { y = DepthToSpace<blocksize=2>(x) }",
        "agraph (uint8[N,4,5,6] x, float s) => (float y) { a = DequantizeLinear(x, s) y = Softmax(a) }",
    ],
)
def test_what_may_change_and_what_cannot_be_told_are_left_alone(text: str) -> None:
    assert graph.find_expansions(model(text)) == ()


def test_probes_compute_the_same(rng: np.random.Generator) -> None:
    slopes = np.float32([[[0.1]], [[0.5]], [[1.0]], [[-1.0]]])
    text = "a = PRelu(x, s) b = Softplus(a) c = Tanh(b) d = Mul(a, c) y = LRN<size=3>(d)"
    found = model(f"{HEAD} {text} }}", s=slopes)
    assert kinds(found) == ["Mish", "PRelu", "LRN"]
    for each in graph.find_expansions(found):
        plain, others = graph.expansion_probes(found, each, (2, 4, 5, 6))
        feeds = {each.input: random(rng, 2, 4, 5, 6)}
        expected = run(plain, feeds)[each.output]
        np.testing.assert_allclose(run(others, feeds)[each.output], expected, rtol=1e-5, atol=1e-6)
        assert len(onnx.load_model_from_string(others).graph.node) > 1
