"""What stands around a convolution, folded into it: the same outputs, fewer nodes, or left alone."""

from __future__ import annotations

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import distance, filled, model, op_types, random, random_feeds, run

import rewriter
from rewriter import graph, runtime
from rewriter.runtime import Target


def folded(found: graph.Model) -> graph.Model:
    return graph.fold_around(found, graph.find_sites(found)[0])


WEIGHTS = (
    "weights: w[6,4,3,3] d[4,1,3,3] g[6,2,3,3] b[6] s[4] t[4] m[4] c[1,4,1,1] e[4,1,1] f[1] h[] k[4,1,1,1] "
    "u[6,5,3,3]\n"
)
HEAD = "agraph (float[N,4,9,9] x) => (float y) {"
NORM = "one = Constant<value: tensor=float[4] {1,2,3,4}>() n = BatchNormalization(x, s, t, m, one)"
PADS = "p = Constant<value: tensor=int64[8] {0,0,1,2,0,0,0,1}>()"
PAIR = "p = Constant<value: tensor=int64[8] {0,1,1,2,0,0,0,1}>()"


@pytest.mark.parametrize(
    "body",
    [
        f"{NORM} y = Conv(n, w, b)",
        f"{NORM} y = Conv<group=4>(n, d)",
        f"{NORM} y = Conv<group=2, strides=[2,1], dilations=[1,2]>(n, g, b)",
        "n = Mul(x, c) y = Conv<pads=[1,1,1,1]>(n, w)",
        "n = Mul(e, x) y = Conv<pads=[1,1,1,1], group=2>(n, g, b)",
        'n = Mul(x, h) y = Conv<auto_pad="SAME_UPPER">(n, w)',
        "n = Div(x, c) y = Conv<pads=[1,1,1,1]>(n, w)",
        "n = Add(x, c) y = Conv(n, w)",
        "n = Add(f, x) y = Conv(n, w, b)",
        "n = Sub(x, c) y = Conv(n, w)",
        "n = Sub(c, x) y = Conv(n, w)",
        "n = Sub(x, c) o = Div(n, e) y = Conv(o, w)",
        f"{PADS} n = Pad(x, p) y = Conv<pads=[1,0,0,0]>(n, w)",
        f"{PADS} z = Constant<value: tensor=float {{0}}>() n = Pad(x, p, z) y = Conv(n, w)",
        # the term is folded while there are no pads yet, and they stay where they were
        f"{PADS} n = Pad(x, p) o = Add(n, c) y = Conv(o, w)",
        f"{PADS} o = Mul(x, c) n = Pad(o, p) y = Conv(n, w, b)",
    ],
)
def test_folds(body: str, rng: np.random.Generator) -> None:
    found = filled(f"{WEIGHTS}{HEAD} {body} }}", rng)
    once = folded(found)
    assert [each for each in op_types(once) if each != "Constant"] == ["Conv"]
    onnx.checker.check_model(once.proto)
    feeds = random_feeds(found, rng)
    # float32 rounding of sums over 36 products
    assert distance(run(found.bytes(), feeds), run(once.bytes(), feeds)) < 1e-5
    assert folded(once) is once


@pytest.mark.parametrize(
    "body",
    [
        # a term behind which zeros are padded
        "n = Add(x, c) y = Conv<pads=[1,1,1,1]>(n, w)",
        f"{NORM} y = Conv<pads=[0,0,0,1]>(n, w)",
        # somebody else takes the tensor in between
        "n = Mul(x, c) z = Conv(n, w) r = Relu(n) y = Sum(z, f)",
        # one value for each row, or the constant makes the tensor larger
        "n = Mul(x, k) y = Conv(n, w)",
        "o = ReduceMean<axes=[1]>(x) n = Mul(o, c) y = Conv(n, w)",
        "n = Div(c, x) y = Conv(n, w)",
        "n = Mul(x, x) y = Conv(n, w)",
        # other paddings
        f'{PADS} n = Pad<mode="reflect">(x, p) y = Conv(n, w)',
        f"{PADS} n = Pad(x, p, f) y = Conv(n, w)",
        f"{PAIR} n = Pad(x, p) y = Conv(n, u)",
    ],
)
def test_leaves(body: str, rng: np.random.Generator) -> None:
    found = filled(f"{WEIGHTS}{HEAD} {body} }}", rng)
    if "Relu" in body:
        proto = found.copy()
        proto.graph.output.add(name="r").type.CopyFrom(proto.graph.output[0].type)
        found = graph.load(proto)
    assert folded(found) is found


def test_a_term_before_padding_stays(rng: np.random.Generator) -> None:
    found = filled(f"{WEIGHTS}{HEAD} {PADS} o = Add(x, c) n = Pad(o, p) y = Conv(n, w) }}", rng)
    once = folded(found)
    assert op_types(once) == ["Add", "Conv"]
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(once.bytes(), feeds)) < 1e-5  # float32 rounding


def test_a_negative_pad_and_a_given_out_tensor_stay(rng: np.random.Generator) -> None:
    text = "agraph (float[1,4,9,9] x) => (float y, float n) { n = Mul(x, c) y = Conv(n, w) }"
    found = model(text, c=random(rng, 1, 4, 1, 1), w=random(rng, 2, 4, 3, 3))
    assert folded(found) is found
    cut = "p = Constant<value: tensor=int64[8] {0,0,-1,0,0,0,0,0}>() n = Pad(x, p) y = Conv(n, w)"
    found = model(f"agraph (float[1,4,9,9] x) => (float y) {{ {cut} }}", w=random(rng, 2, 4, 3, 3))
    assert folded(found) is found


def test_old_pads_are_attributes(rng: np.random.Generator) -> None:
    text = """<ir_version: 3, opset_import: ["" : 8]>
    agraph (float[1,4,9,9] x, float[2,4,3,3] w) => (float[1,2,9,9] y) {
        n = Pad<pads=[0,0,1,1,0,0,1,1]>(x) y = Conv(n, w)
    }"""
    found = model(text, w=random(rng, 2, 4, 3, 3))
    once = folded(found)
    assert op_types(once) == ["Conv"]
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(once.bytes(), feeds)) < 1e-5  # float32 rounding


def test_the_command_folds_but_for_what_is_excluded(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    fake_latency.install(monkeypatch)
    text = """agraph (float[1,32,24,24] x) => (float[1,32,22,22] z) {
        a = Mul(x, c) [one] y = Conv<pads=[1,1,1,1]>(a, w)
        b = Add(y, c) [two] z = Conv(b, w)
    }"""
    found = model(text, c=random(rng, 1, 32, 1, 1), w=random(rng, 32, 32, 3, 3))
    plan = tmp_path / "plan.json"
    done = rewriter.optimize(found.proto, exact=True, exclude=["one"], passes=["winograd"], save_plan=plan)
    assert done.improved
    assert done.report.steps == ("1 node folded into those beside",)
    kinds = [node.op_type for node in done.model.graph.node if "/" not in node.name]
    assert kinds == ["Mul", "Conv"]
    again = rewriter.apply(found.proto, plan)
    assert again.model.SerializeToString() == done.model.SerializeToString()


def test_what_is_between_two_convolutions_is_folded_once(rng: np.random.Generator) -> None:
    found = filled(
        """weights: w[4,4,3,3] v[4,4,3,3] m[1,4,1,1]
        agraph (float[1,4,9,9] x) => (float[1,4,5,5] y) {
            x2 = Mul(x, m) [one] h = Conv(x2, w) h2 = Mul(h, m) [two] y = Conv(h2, v)
        }""",
        rng,
    )
    once = graph.fold_around(found, graph.find_sites(found)[0])
    onnx.checker.check_model(once.proto, full_check=True)
    assert [node.op_type for node in once.proto.graph.node] == ["Conv", "Conv"]
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(once.bytes(), feeds)) < 1e-5  # float32 rounding


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w) y = Mul(a, f)",
        "a = Conv(x, w) y = Mul(h, a)",
        "a = Conv(x, w, b) y = Add(a, h)",
        "a = Conv(x, w, b) y = Add(o, a)",
        "a = Conv(x, w) y = Sub(a, o)",
        "a = Conv(x, w) y = Div(a, o)",
        "a = Conv(x, w) d = Mul(a, o) y = Add(d, f)",
        "a = ConvTranspose(x, q) y = Mul(a, o)",
    ],
)
def test_folds_behind_what_onnx_runtime_would_not(body: str, rng: np.random.Generator) -> None:
    weights = "weights: w[6,4,3,3] q[4,6,3,3] b[6] o[6,1,1] f[1] h[]\n"
    found = filled(f"{weights}{HEAD} {body} }}", rng)
    once = folded(found)
    assert len(op_types(once)) == 1
    feeds = random_feeds(found, rng)
    # float32 rounding of sums over 36 products
    assert distance(run(found.bytes(), feeds), run(once.bytes(), feeds)) < 1e-5


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w) y = Mul(a, o)",
        "a = Conv(x, w, b) y = Add(a, o)",
        "a = Conv(x, w) y = Mul(a, h)",
        "a = Conv(x, w) d = Mul(a, o) y = Add(d, o)",
    ],
)
def test_what_onnx_runtime_folds_behind_stays_as_it_came(body: str, rng: np.random.Generator) -> None:
    found = filled(f"weights: w[6,4,3,3] b[6] o[6,1,1] h[]\n{HEAD} {body} }}", rng)
    assert folded(found) is found
    fused = onnx.ModelProto.FromString(runtime.optimized(found.bytes(), Target()))
    assert not {"Add", "Mul"} & {node.op_type for node in fused.graph.node}


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(x, r) e = Erf(d) p = Add(e, one) q = Mul(x, p) z = Mul(q, h)",
        "d = Div(x, r) e = Erf(d) p = Add(e, one) q = Mul(x, h) z = Mul(q, p)",
        "d = Mul(x, i) e = Erf(d) p = Add(one, e) q = Mul(p, x) z = Mul(h, q)",
    ],
)
def test_gelus_in_pieces_stay_whole(body: str, rng: np.random.Generator) -> None:
    """ONNX Runtime makes them one operator, which it would not without their last factor."""
    text = f"{HEAD} {body} o = Mul(z, f) y = Conv(o, w) }}"
    numbers = {"r": 2**0.5, "one": 1.0, "h": 0.5, "i": 0.5**0.5, "f": 3.0}
    given = {name: np.float32(value) for name, value in numbers.items() if name in body or name == "f"}
    found = model(text, w=random(rng, 6, 4, 3, 3), **given)
    after = graph.as_norms(folded(found))
    assert op_types(after) == [*op_types(found)[:-2], "Conv"]
    assert fused_gelus(after) == fused_gelus(found)
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-5  # float32 rounding


def fused_gelus(found: graph.Model) -> int:
    fused = onnx.ModelProto.FromString(runtime.optimized(found.bytes(), Target()))
    return [node.op_type for node in fused.graph.node].count("Gelu")
