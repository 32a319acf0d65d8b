"""Operators in others where the target is faster at these: in what is written, and in plans."""

from __future__ import annotations

import json
from pathlib import Path

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import filled, random

import rewriter
from rewriter import expansions, graph
from rewriter.runtime import Target

NET = (
    "weights: w[8,4,3,3] s[8,1,1] v[4,8,1,1]\n"
    "agraph (float[N,4,6,6] x) => (float y) {\n"
    "[first] a = Conv<pads=[1,1,1,1]>(x, w) [slope] b = PRelu(a, s) [last] y = Conv(b, v) }"
)


@pytest.fixture
def found(rng: np.random.Generator) -> graph.Model:
    found = filled(NET, rng)
    slope = next(tensor for tensor in found.proto.graph.initializer if tensor.name == "s")
    slope.CopyFrom(onnx.numpy_helper.from_array(np.float32(rng.uniform(-0.2, 0.5, (8, 1, 1))), "s"))
    return found


@pytest.fixture(params=[4.0, 0.4])
def slowness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """What a PRelu takes, in the time that a Mul and a Max take."""
    fake_latency.install(monkeypatch)
    plain = fake_latency.milliseconds

    def milliseconds(data, feeds) -> float:
        nodes = onnx.load_model_from_string(data).graph.node
        kinds = [node.op_type for node in nodes]
        return plain(data, feeds) + request.param * kinds.count("PRelu") + kinds.count("Max")

    monkeypatch.setattr(fake_latency, "milliseconds", milliseconds)
    return float(request.param)


@pytest.mark.parametrize("text", ["a = Elu(x) y = Conv(a, v)", "a = Conv(x, v) y = Elu(a)"])
def test_at_the_ends_of_a_model(text: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(expansions.latency, "interleaved", lambda *given, **settings: [2.0, 1.0])
    net = f"weights: v[4,4,1,1]\nagraph (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ {text} }}"
    faster = expansions.faster_expansions(
        filled(net, rng), {"x": random(rng, 1, 4, 6, 6)}, Target(threads=1), lambda *told: None
    )
    assert [each.kind for each in faster] == ["Elu"]


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_where_it_is_faster(found: graph.Model, slowness: float, rng: np.random.Generator) -> None:
    told: list[tuple[int, int]] = []
    found_faster = expansions.faster_expansions(
        found, {"x": random(rng, 2, 4, 6, 6)}, Target(threads=1), lambda _, *counts: told.append(counts)
    )
    assert [each.output for each in found_faster] == (["b"] if slowness > 1.2 else [])
    assert told == [(1, 1)]


def test_exact(found: graph.Model, slowness: float) -> None:
    result = rewriter.optimize(found.proto, exact=True, passes=["winograd"], cache=False)
    assert result.improved == (slowness > 1.2)
    if result.improved:
        assert op_types(result.model) == ["Conv", "Mul", "Max", "Conv"]
        assert result.report.steps == ("1 x PRelu in faster operators",)
        assert result.report.drift[0].value == 0.0


@pytest.mark.parametrize("slowness", [4.0], indirect=True)
def test_a_plan_makes_it_again(
    found: graph.Model, slowness: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    samples = [{"x": random(rng, 1, 4, 6, 6)} for _ in range(40)]
    plan = tmp_path / "plan.json"
    made = rewriter.optimize(found.proto, samples, max_drift={"rel_l2": 0.9}, cache=False, save_plan=plan)
    assert made.improved
    assert json.loads(plan.read_text())["expanded"] == ["b"]
    again = rewriter.apply(found.proto, plan, samples)
    assert again.model.SerializeToString() == made.model.SerializeToString()
