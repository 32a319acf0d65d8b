from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import distance, filled, only, random, random_feeds, run

from rewriter import graph
from rewriter.errors import ModelError


def run_in_pieces(
    found: graph.Model, sites: tuple[graph.Site, ...], feeds: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of a model run segment by segment, with only what each calls live kept."""
    values = dict(feeds)
    pieces = graph.segments(found, sites)
    assert len(pieces) == len(sites) + 1
    for index, piece in enumerate(pieces):
        if piece.model is not None:
            given = run(piece.model(), {name: values[name] for name in piece.inputs})
            assert tuple(given) == piece.outputs
            values |= given
        values = {name: value for name, value in values.items() if name in piece.live}
        assert values.keys() == piece.live
        if index < len(sites):
            each = sites[index]
            values[each.output] = run(graph.rewrite_model(only(each.conv)), {"x": values[each.input]})["y"]
    assert set(found.outputs) == values.keys()
    return {name: values[name] for name in found.outputs}


def test_zoo_runs_in_pieces(zoo_model: Path, rng: np.random.Generator) -> None:
    found = graph.unpin(graph.load(zoo_model))
    feeds = random_feeds(found, rng)
    sites, _ = graph.find_sites(found)
    # float32 rounding through up to 55 layers
    assert distance(run(found.bytes(), feeds), run_in_pieces(found, sites, feeds)) < 2e-5


AWKWARD = """weights: w[3,3,1,1] bias[3] scale[1]
agraph (float[N,3,8,8] x, bool q)
=> (float[N,3,8,8] y, float[N,3,8,8] x, float[1] scale, int64[4] size, float[2] k) {
    k = Constant<value: tensor=float[2] {1,2}>()
    two = Constant<value: tensor=float[1] {2}>()
    early = Mul(x, two)
    [a] a = Conv(early, w, bias)
    size = Shape(a)
    [b] b = Conv(a, w)
    captured = Mul(b, two)
    [c] c = Conv(b, w)
    picked = If (q) <
        then_branch = thens () => (float[N,3,8,8] t) { t = Add(captured, two) },
        else_branch = elses () => (float[N,3,8,8] e) { e = Mul(early, scale) }
    >
    shaped = Reshape(picked, size)
    unused = Relu(shaped)
    y = Add(shaped, c)
}"""


@pytest.mark.parametrize("chosen", ["", "a", "b", "c", "ab", "bc", "ac", "abc"])
def test_an_awkward_graph_runs_in_pieces(rng: np.random.Generator, chosen: str) -> None:
    found = filled(AWKWARD, rng)
    sites = tuple(each for each in graph.find_sites(found)[0] if each.name in chosen)
    for pick in (True, False):
        feeds = {"x": random(rng, 2, 3, 8, 8), "q": np.array(pick)}
        # float32 rounding
        assert distance(run(found.bytes(), feeds), run_in_pieces(found, sites, feeds)) < 1e-5


def test_pieces_keep_only_what_is_needed(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,1,1] used[1,3,1,1] s[3] t[3] m[3]
        agraph (float[N,3,8,8] x) => (float[N,3,8,8] y) {
            [a] a = Conv(x, w)
            one = Constant<value: tensor=float[3] {1,1,1}>()
            n = BatchNormalization(a, s, t, m, one)
            r = Relu(n)
            [b] b = Conv(r, w)
            p = Max(b, used)
            y = Add(p, r)
        }""",
        rng,
    )
    sites, _ = graph.find_sites(found)
    first, second, third = graph.segments(found, sites)
    assert (first.model, first.inputs, first.outputs, first.live) == (None, (), (), {"x"})
    assert (second.inputs, second.outputs, second.live) == (("n",), ("r",), {"r"})
    assert (third.inputs, third.outputs, third.live) == (("b", "r"), ("y",), {"y"})
    assert third.model is not None
    kept = onnx.load_model_from_string(third.model()).graph.initializer
    assert [tensor.name for tensor in kept] == ["used"]
    feeds = random_feeds(found, rng)
    # float32 rounding
    assert distance(run(found.bytes(), feeds), run_in_pieces(found, sites, feeds)) < 1e-5


def test_unordered_sites_are_an_error(rng: np.random.Generator) -> None:
    found = filled(AWKWARD, rng)
    sites, _ = graph.find_sites(found)
    with pytest.raises(ValueError, match="order"):
        graph.segments(found, sites[::-1])


def test_a_tensor_that_nothing_makes_is_an_error(rng: np.random.Generator) -> None:
    proto = filled(AWKWARD, rng).copy()
    proto.graph.node[-1].input[0] = "nowhere"
    found = graph.load(proto)
    with pytest.raises(ModelError, match="'nowhere'"):
        graph.segments(found, graph.find_sites(found)[0])


def test_wrong_shapes_in_the_model_do_not_matter(rng: np.random.Generator) -> None:
    proto = filled(
        """weights: w[3,3,1,1]
        agraph (float[N,3,8,8] x) => (float[N,3,8,8] y) {
            [a] a = Conv(x, w)
            size = Shape(a)
            [b] b = Conv(a, w)
            y = Reshape(b, size)
        }""",
        rng,
    ).copy()
    declare = onnx.helper.make_tensor_value_info
    proto.graph.value_info.append(declare("a", onnx.TensorProto.FLOAT, [7, 7]))
    proto.graph.value_info.append(declare("b", onnx.TensorProto.FLOAT, [1, 2, 3, 4]))
    found = graph.load(proto)
    feeds = random_feeds(found, rng)
    assert run_in_pieces(found, graph.find_sites(found)[0], feeds)["y"].shape == (1, 3, 8, 8)


def test_types_behind_unknown_operators_are_guessed(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[3,3,1,1]
        agraph (float[N,3,8,8] x, int64[N,3] i) => (float[N,3,8,8] y) {
            s = com.example.Scale(x)
            [a] a = Conv(s, w)
            n = com.example.Count(i)
            e = com.example.Empty()
            size = Shape(s)
            [b] b = Conv(a, w)
            y = com.example.Merge(b, n, e, size)
        }""",
        rng,
    )
    last = graph.segments(found, graph.find_sites(found)[0])[-1]
    assert last.model is not None
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.load_model_from_string(last.model()).graph.input
    }
    float_, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert types == {"b": float_, "n": int64, "e": float_, "size": int64}
