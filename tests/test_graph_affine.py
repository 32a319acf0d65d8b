"""Factors and terms in a row as one BatchNormalization: the same outputs, fewer nodes, or left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import distance, filled, model, op_types, random, random_feeds, run

from rewriter import graph

WEIGHTS = "weights: w[4,4,3,3] s[4] t[4] m[4] c[1,4,1,1] e[4,1,1] f[1] h[] k[4,1,1,1] r[6]\n"
HEAD = "agraph (float[N,4,9,6] x) => (float[N,4,9,6] y) {"
NORM = "one = Constant<value: tensor=float[4] {1,2,3,4}>() n = BatchNormalization(a, s, t, m, one)"


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, f) y = Add(a, f)",
        "a = Mul(f, x) y = Add(c, a)",
        "a = Sub(c, x) b = Div(a, e) y = Sub(b, h)",
        "a = Add(x, c) b = Mul(a, c) d = Add(b, e) y = Mul(d, f)",
        f"a = Mul(x, c) {NORM} y = Add(n, c)",
    ],
)
def test_merges(body: str, rng: np.random.Generator) -> None:
    found = filled(f"{WEIGHTS}{HEAD} {body} }}", rng)
    after = graph.as_norms(found)
    assert op_types(after) == ["BatchNormalization"]
    onnx.checker.check_model(after.proto, full_check=True)
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-5  # float32 rounding
    assert graph.as_norms(after) is after


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(x, c)",
        f"a = Relu(x) {NORM} y = Relu(n)",
        "a = Mul(x, f) b = Relu(a) y = Add(b, f)",
        "a = Mul(x, f) b = Add(a, f) d = Relu(a) y = Add(b, d)",
        # by rows or columns, or of several tensors
        "a = Mul(x, k) y = Add(a, k)",
        "a = Mul(x, r) y = Add(a, r)",
        "a = Mul(x, x) y = Add(a, x)",
        "a = Div(f, x) b = Relu(a) y = Add(b, f)",
    ],
)
def test_leaves(body: str, rng: np.random.Generator) -> None:
    found = filled(f"{WEIGHTS}{HEAD} {body} }}", rng)
    assert graph.as_norms(found) is found


def test_only_images_of_float32_with_known_channels(rng: np.random.Generator) -> None:
    for kind, shape in (("float16", "N,4,9,6"), ("float", "N,C,9,6"), ("float", "N,4,9"), ("float", "4,6")):
        text = f"agraph ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ a = Mul(x, f) y = Add(a, f) }}"
        found = model(text, f=random(rng, 1).astype("float32" if kind == "float" else kind))
        assert graph.as_norms(found) is found


def test_what_would_overflow_stays() -> None:
    text = "agraph (float[1,4,9,6] x) => (float[1,4,U,V] y) { a = Mul(x, f) y = Mul(a, f) }"
    found = model(text, f=np.float32([1e30]))
    assert graph.as_norms(found) is found


def test_a_term_in_front_of_pads_stays_beside_its_convolution(rng: np.random.Generator) -> None:
    """What ONNX Runtime would compute in three passes is one, and none where the convolution takes it in."""
    text = """agraph (float[1,4,9,6] x) => (float[1,4,U,V] y) {
        a = Conv(x, w) b = Relu(a) c1 = Mul(f, b) d = Add(c1, f) y = Conv<pads=[1,1,1,1]>(d, w)
    }"""
    found = model(text, w=random(rng, 4, 4, 3, 3), f=random(rng, 1))
    after = graph.as_norms(graph.fold_around(found, graph.find_sites(found)[0]))
    assert op_types(after) == ["Conv", "Relu", "BatchNormalization", "Conv"]
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(after.bytes(), feeds)) < 1e-5  # float32 rounding
