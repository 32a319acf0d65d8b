"""Weights behind nodes on constants, and constants that scale and shift what a convolution gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import distance, model, only, random, random_feeds, run, site

from rewriter import graph
from rewriter.conv import Conv

IN_OUT = "agraph (float[2,3,9,10] x) => (float[N,M,H,W] y)"


def _spliced(found: graph.Model) -> graph.Model:
    return graph.splice(found, [(each, only(each.conv)) for each in graph.find_sites(found)[0]])


@pytest.mark.parametrize(
    ("nodes", "shape", "opset"),
    [
        ("s = Constant<value_ints=[4,3,3,3]>() v = Reshape(w, s)", (4, 27), 13),
        ("v = Transpose<perm=[3,2,0,1]>(w)", (3, 3, 3, 4), 13),
        ("a = Constant<value_ints=[2]>() v = Squeeze(w, a)", (4, 3, 1, 3, 3), 13),
        ("v = Squeeze<axes=[2]>(w)", (4, 3, 1, 3, 3), 11),
        ("a = Constant<value_ints=[1]>() u = Unsqueeze(w, a) v = Expand(u, e)", (4, 3, 3), 13),
        ("u = Cast<to=11>(w) v = Cast<to=1>(u)", (4, 3, 3, 3), 13),
        ("u = Identity(w) v = Mul(u, g)", (4, 3, 3, 3), 13),
        ("v = Concat<axis=0>(w, w)", (2, 3, 3, 3), 13),
        ("n = ReduceL2<axes=[1,2,3]>(w) d = Div(w, n) v = Mul(d, g)", (4, 3, 3, 3), 17),
        ("m = ReduceMean(w) c = Sub(w, m) q = Mul(c, c) t = ReduceSum(q) v = Div(c, t)", (4, 3, 3, 3), 17),
    ],
)  # fmt: skip
def test_weights_behind_constant_nodes(
    rng: np.random.Generator, nodes: str, shape: tuple[int, ...], opset: int
) -> None:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    weights = {"w": random(rng, *shape), "g": random(rng, 4, 1, 1, 1), "e": np.array([4, 3, 3, 3])}
    found = model(f"{head} {IN_OUT} {{ {nodes} [c] y = Conv(x, v, b) }}", **weights, b=random(rng, 4))
    feeds = random_feeds(found, rng)
    spliced = _spliced(found)
    assert distance(run(found.bytes(), feeds), run(spliced.bytes(), feeds)) < 1e-6
    assert [node.op_type for node in spliced.proto.graph.node] == ["Conv"]
    assert "w" not in {each.name for each in spliced.proto.graph.initializer}


def test_pads_of_nodes_on_constants_are_folded(rng: np.random.Generator) -> None:
    """As PyTorch's older exporter writes them: last axis first, zeros for the axes that are not told."""
    found = model(
        f"""{IN_OUT} {{
            told = Constant<value_ints=[1,2,0,3]>()
            count = Constant<value_ints=[4]>()
            zeros = ConstantOfShape<value=int64[1] {{0}}>(count)
            joined = Concat<axis=0>(told, zeros)
            pairs = Constant<value_ints=[-1,2]>()
            rows = Reshape(joined, pairs)
            start = Constant<value_ints=[-1]>()
            end = Constant<value_ints=[-9223372036854775807]>()
            axis = Constant<value_ints=[0]>()
            turned = Slice(rows, start, end, axis, start)
            columns = Transpose<perm=[1,0]>(turned)
            flat = Reshape(columns, start)
            pads = Cast<to=7>(flat)
            p = Pad(x, pads)
            [c] y = Conv(p, w)
        }}""",
        w=random(rng, 4, 3, 3, 3),
    )
    folded = graph.fold_around(found, graph.find_sites(found)[0])
    (conv,) = folded.proto.graph.node
    assert conv.op_type == "Conv"
    assert site(folded, "c").conv.pads == (0, 1, 3, 2)
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(folded.bytes(), feeds)) < 3e-6


def test_a_weight_that_others_take_stays(rng: np.random.Generator) -> None:
    found = model(
        "agraph (float[2,3,9,10] x) => (float y, float z) "
        "{ v = Transpose<perm=[1,0,2,3]>(w) [c] y = Conv(x, v) z = Exp(v) }",
        w=random(rng, 3, 4, 3, 3),
    )
    feeds = random_feeds(found, rng)
    assert distance(run(found.bytes(), feeds), run(_spliced(found).bytes(), feeds)) == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("float[2,3,9,10] x) => (float y) { v = Transpose(x) y = Conv(x, v) }", "'x' is a graph input"),
        (
            "float[2,3,9,10] x, float[4,3,3,3] w) => (float y) { v = Identity(w) y = Conv(x, v) }",
            "'w' is also a graph input, which a caller may replace; unpin it first",
        ),
        (
            "float[2,3,9,10] x) => (float y) { r = RandomNormal<shape=[4,3,3,3]>() y = Conv(x, r) }",
            "computed by RandomNormal at run time",
        ),
    ],
)
def test_what_is_not_constant_is_refused(rng: np.random.Generator, text: str, reason: str) -> None:
    found = model(f"agraph ({text}", w=random(rng, 4, 3, 3, 3))
    sites, (refusal,) = graph.find_sites(found)
    assert sites == ()
    assert reason in refusal.reason


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (), (1,), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "node", ["Add(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)", "Mul(c, k)", "Mul(k, c)", "Div(c, k)"]
)
def test_constants_of_channels_are_folded(
    rng: np.random.Generator, node: str, shape: tuple[int, ...], bias: str
) -> None:
    found = model(
        f"{IN_OUT} {{ [c] c = Conv<pads=[1,1,1,1]>(x, w{bias}) [fold] d = {node} y = Relu(d) }}",
        w=random(rng, 4, 3, 3, 3),
        b=random(rng, 4),
        k=random(rng, *shape),
    )
    each = site(found, "c")
    assert (each.nodes, each.output) == ((0, 1), "d")
    assert [follower.op_type for follower in each.followers] == ["Relu"]
    feeds = random_feeds(found, rng)
    folded = graph.fold(found)
    assert [node.op_type for node in folded.proto.graph.node] == ["Conv", "Relu"]
    onnx.checker.check_model(folded.proto, full_check=True)
    # float32 rounding of sums of 27 products
    assert distance(run(found.bytes(), feeds), run(folded.bytes(), feeds)) < 3e-6


def test_a_chain_of_them_is_folded(rng: np.random.Generator) -> None:
    found = model(
        f"""{IN_OUT} {{
            [c] c = Conv<pads=[1,1,1,1]>(x, w)
            u = Constant<value_ints=[1,2]>()
            k = Unsqueeze(b, u)
            d = Add(c, k)
            e = BatchNormalization(d, b, b, b, v)
            f = Mul(e, k)
            y = Add(f, x1)
        }}""",
        w=random(rng, 4, 3, 3, 3),
        b=random(rng, 4),
        v=rng.uniform(0.5, 2.0, 4).astype(np.float32),
        x1=random(rng, 1, 4, 9, 10),
    )
    each = site(found, "c")
    assert each.output == "f"
    assert len(each.nodes) == 4
    feeds = random_feeds(found, rng)
    folded = graph.fold(found)
    assert [node.op_type for node in folded.proto.graph.node] == ["Conv", "Add"]
    assert distance(run(found.bytes(), feeds), run(folded.bytes(), feeds)) < 3e-6
    # the walk from site to site passes over all of them
    (first, last) = graph.segments(found, [each])
    assert first.model is None
    assert last.inputs == ("f",)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("Add(c, k)", (1, 4, 7, 8)),
        ("Add(c, k)", (2, 4, 1, 1)),
        ("Add(c, k)", (8,)),
        ("Add(c, k)", (1, 1, 4, 1, 1)),
        ("Div(k, c)", (4, 1, 1)),
        ("Max(c, k)", (4, 1, 1)),
        ("Add(c, c)", (1,)),
    ],
)
def test_what_is_not_by_channel_stays(rng: np.random.Generator, node: str, shape: tuple[int, ...]) -> None:
    found = model(
        f"{IN_OUT} {{ [c] c = Conv(x, w) y = {node} }}", w=random(rng, 4, 3, 3, 3), k=random(rng, *shape)
    )
    assert site(found, "c").nodes == (0,)


def test_no_division_by_zero_and_no_overflow() -> None:
    weight = np.full((4, 3, 3, 3), 1e30, np.float32)
    for node, value in (("Div(c, k)", 0.0), ("Mul(c, k)", 1e30)):
        found = model(f"{IN_OUT} {{ [c] c = Conv(x, w) y = {node} }}", w=weight, k=np.float32(value))
        assert site(found, "c").nodes == (0,)


def test_one_channel_out_is_no_scalar_trap(rng: np.random.Generator) -> None:
    found = model(
        f"{IN_OUT} {{ [c] c = Conv(x, w) y = Add(c, k) }}", w=random(rng, 1, 3, 3, 3), k=random(rng, 4, 1, 1)
    )
    assert isinstance(site(found, "c").conv, Conv)
    assert site(found, "c").nodes == (0,)
