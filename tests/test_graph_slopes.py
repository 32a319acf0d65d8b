"""PRelu as Mul and Max: bit for bit the same, wherever it may be written so, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import filled, model, op_types, random, random_feeds, run

from rewriter import graph

HEAD = "agraph (float[N,4,5,6] x) => (float y) {"
NET = (
    "agraph (float[N,4,5,6] x) => (float y, float a) {\n"
    "a = PRelu(x, s) b = Conv<pads=[1,1,1,1]>(a, w) c = PRelu(b, s) y = Conv(c, w) }"
)


def rewritten(found: graph.Model) -> graph.Model:
    return graph.as_maxima(found, [each.output for each in graph.find_sloped(found)])


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (6,), (4, 5, 6)])
def test_is_the_same_bit_for_bit(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    slope = np.minimum(random(rng, *shape), 1.0).astype(np.float32)
    found = model(f"{HEAD} y = PRelu(x, s) }}", s=slope)
    after = rewritten(found)
    assert op_types(after) == ["Mul", "Max"]
    onnx.checker.check_model(after.proto)
    feeds = random_feeds(found, rng)
    np.testing.assert_array_equal(run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"])


def test_the_rest_stays_as_it_came(rng: np.random.Generator) -> None:
    found = filled(f"weights: w[4,4,3,3]\n{NET}", rng)
    found.proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.float32([0, 0.1, 1, -2])[:, None, None], "s")
    )
    after = graph.as_maxima(found, ["c"])
    assert op_types(after) == ["PRelu", "Conv", "Mul", "Max", "Conv"]
    before = {node.output[0]: node.SerializeToString() for node in found.proto.graph.node}
    kept = [node for node in after.proto.graph.node if node.op_type in ("PRelu", "Conv")]
    assert [node.SerializeToString() for node in kept] == [before[node.output[0]] for node in kept]
    assert after.proto.graph.initializer == found.proto.graph.initializer
    assert graph.as_maxima(found, []) is found


@pytest.mark.parametrize(
    "slope", [np.float32([[[0.1]], [[1.5]], [[0.1]], [[0.1]]]), np.float16([0.1]), np.float32([np.nan])]
)
def test_other_slopes_are_left_alone(slope: np.ndarray) -> None:
    kind = "float16" if slope.dtype == np.float16 else "float"
    found = model(f"agraph ({kind}[N,4,5,6] x) => ({kind} y) {{ y = PRelu(x, s) }}", s=slope)
    assert graph.find_sloped(found) == ()


def test_a_slope_that_may_change_and_an_old_opset_are_left_alone() -> None:
    changing = model("agraph (float[N,4,5,6] x, float[1] s) => (float y) { y = PRelu(x, s) }")
    assert graph.find_sloped(changing) == ()
    old = model(f'<ir_version: 8, opset_import: ["" : 7]> {HEAD} y = PRelu(x, s) }}', s=np.float32([0.1]))
    assert graph.find_sloped(old) == ()


def test_probes_compute_the_same(rng: np.random.Generator) -> None:
    plain, larger = graph.slope_probes((2, 4, 5, 6), np.float32([[[0.1]], [[0.5]], [[1.0]], [[-1.0]]]))
    feeds = {"x": random(rng, 2, 4, 5, 6)}
    np.testing.assert_array_equal(run(plain, feeds)["y"], run(larger, feeds)["y"])
