"""Dead channels, planted where networks have them: the same outputs, fewer channels, or left alone."""

from __future__ import annotations

import json

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import distance, filled, model, random, random_feeds, run

import rewriter
from rewriter import cli, graph, prepare


def without_dead(found: graph.Model, block: int = 1) -> graph.Model:
    return graph.remove_dead(found, graph.find_sites(found)[0], block)


def widths(found: graph.Model) -> list[tuple[int, int]]:
    """The in-channels and out-channels of every convolution."""
    return [(each.conv.in_channels, each.conv.out_channels) for each in graph.find_sites(found)[0]]


def planted(text: str, rng: np.random.Generator, **zeros: str) -> graph.Model:
    """A filled model with slices of weights set to zero, such as `w="1:3"` or `v=":,0"`."""
    found = filled(text, rng)
    for tensor in found.proto.graph.initializer:
        if tensor.name in zeros:
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[eval(f"np.s_[{zeros[tensor.name]}]")] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return found


def check(found: graph.Model, rng: np.random.Generator, block: int = 1) -> graph.Model:
    """The model without its dead channels, which computes the same."""
    smaller = without_dead(found, block)
    assert smaller is not found
    onnx.checker.check_model(smaller.proto)
    feeds = random_feeds(found, rng)
    # float32 rounding of sums over some hundred products
    assert distance(run(found.bytes(), feeds), run(smaller.bytes(), feeds)) < 1e-5
    assert without_dead(smaller, block) is smaller
    return smaller


WEIGHTS = (
    "weights: w[8,4,3,3] b[8] v[6,8,3,3] c[6] p[8,1,1] s[8] t[8] m[8] d[8,1,3,3] e[6,8,1,1] u[8,4,3,3] "
    "k[6,16,1,1] h[5,6] i[5] g[8,4,3,3] q[8,8,2,2] l[5,54]\n"
)
HEAD = "agraph (float[N,4,9,9] x) => (float y) {"
SAME = "pads=[1,1,1,1]"
GEMM = "y = Gemm<transB=1>"
FLAT = f"f = Flatten(r) {GEMM}"
FLATTENED = f"f = Reshape(z, j) {GEMM}(f, l, i)"
SCALES = "o = Constant<value: tensor=float[4] {1,1,2,2}>()"
ROW = "j = Constant<value: tensor=int64[2] {0,-1}>()"
MEAN = "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>"
NORM = "one = Constant<value: tensor=float[8] {1,2,3,4,5,6,7,8}>() n = BatchNormalization"


@pytest.mark.parametrize(
    ("body", "zeros", "expected"),
    [
        # a zero filter: its bias moves on where nothing is padded
        (f"a = Conv<{SAME}>(x, w, b) y = Conv(a, v, c)", {"w": "1:4"}, [(4, 5), (5, 6)]),
        (f"a = Conv<{SAME}>(x, w, b) y = Conv(a, v)", {"w": "1:4"}, [(4, 5), (5, 6)]),
        # and where it is zero
        (f"a = Conv(x, w) y = Conv<{SAME}>(a, v, c)", {"w": "1:4"}, [(4, 5), (5, 6)]),
        (f"a = Conv(x, w, b) y = Conv<{SAME}>(a, v, c)", {"w": "1:4", "b": "1:3"}, [(4, 6), (6, 6)]),
        # what a normalisation makes of a constant, or multiplies by zero, is what it adds
        (
            "a = Conv(x, w) z = InstanceNormalization(a, s, t) y = Conv(z, v, c)",
            {"w": "1:4"},
            [(4, 5), (5, 6)],
        ),
        ("a = Conv(x, w) z = InstanceNormalization(a, s, t) y = Conv(z, v)", {"s": "1:3"}, [(4, 6), (6, 6)]),
        ("a = Conv(x, w) z = InstanceNormalization(a, s, t) y = Conv(z, v)", {"v": ":,3"}, [(4, 7), (7, 6)]),
        # an input that the kernel ignores, whatever is in it
        (f"a = Conv(x, w, b) y = Conv<{SAME}>(a, v, c)", {"v": ":,2:4"}, [(4, 6), (6, 6)]),
        (f"a = Conv(x, w) z = Relu(a) y = Conv<{SAME}>(z, v)", {"v": ":,0:7"}, [(4, 1), (1, 6)]),
        # what is in between, with and without a value for each channel
        ("a = Conv(x, w, b) z = LeakyRelu<alpha=0.3>(a) y = Conv(z, v)", {"w": "0"}, [(4, 7), (7, 6)]),
        ("a = Conv(x, w, b) z = PRelu(a, p) y = Conv(z, v)", {"w": "0:2"}, [(4, 6), (6, 6)]),
        ("a = Conv(x, w, b) r = Sigmoid(a) z = Mul(p, r) y = Conv(z, v)", {"w": "6:"}, [(4, 6), (6, 6)]),
        ("a = Conv(x, w, b) r = HardSigmoid(a) z = Mul(a, r) y = Conv(z, v)", {"w": "3"}, [(4, 7), (7, 6)]),
        ("a = Conv(x, w, b) z = MaxPool<kernel_shape=[2,2]>(a) y = Conv(z, v)", {"w": "3"}, [(4, 7), (7, 6)]),
        (
            f"a = Conv(x, w, b) z = AveragePool<kernel_shape=[3,3], {SAME}>(a) y = Conv(z, v)",
            {"w": "3"},
            [(4, 7), (7, 6)],
        ),
        (f"{SCALES} a = Conv(x, w, b) z = Resize(a, , o) y = Conv(z, v)", {"w": "3"}, [(4, 7), (7, 6)]),
        # normalisation behind the activation, and one that multiplies by zero
        (f"a = Conv(x, w) r = Relu(a) {NORM}(r, s, t, m, one) y = Conv(n, v)", {"w": "3"}, [(4, 7), (7, 6)]),
        (
            f"a = Conv(x, w) r = Relu(a) {NORM}(r, s, t, m, one) y = Conv(n, v)",
            {"s": "3:5"},
            [(4, 6), (6, 6)],
        ),
        (
            f"a = Conv(x, w) {NORM}(a, s, t, m, one) r = Relu(n) y = Conv(r, v)",
            {"s": "3:5"},
            [(4, 6), (6, 6)],
        ),
        # depthwise, grouped and transposed ones between and behind
        (
            f"a = Conv<{SAME}>(x, w) z = Conv<group=8, {SAME}>(a, d) y = Conv(z, e)",
            {"w": "4"},
            [(4, 7), (7, 7), (7, 6)],
        ),
        (
            "a = Conv(x, w, b) z = Conv<group=8>(a, d, t) y = Conv(z, e)",
            {"w": "4"},
            [(4, 7), (7, 7), (7, 6)],
        ),
        (
            f"a = Conv(x, w, b) z = Conv<group=8, {SAME}>(a, d, t) y = Conv(z, e)",
            {"d": "2:4"},
            [(4, 6), (6, 6), (6, 6)],
        ),
        (
            "a = Conv(x, w, b) z = Conv<group=2>(a, g, t) y = Conv(z, e)",
            {"w": "4:"},
            [(4, 4), (4, 4), (4, 6)],
        ),
        ("a = Conv(x, w) y = ConvTranspose<strides=[2,2]>(a, q)", {"w": "5"}, [(4, 7), (7, 8)]),
        ("a = Conv(x, w, b) y = ConvTranspose<strides=[2,2]>(a, q)", {"q": "1:3"}, [(4, 6), (6, 8)]),
        # dead in both branches and where they meet
        (
            "a = Conv(x, w, b) r = Conv(x, u) z = Add(a, r) y = Conv(z, v, c)",
            {"w": "2:5", "u": "4:6"},
            [(4, 7), (4, 7), (7, 6)],
        ),
        (
            "a = Conv(x, w, b) r = Conv(x, u) z = Add(a, r) y = Conv(z, v, c)",
            {"v": ":,3"},
            [(4, 7), (4, 7), (7, 6)],
        ),
        (
            "a = Conv(x, w, b) r = GlobalAveragePool(a) z = Mul(a, r) y = Conv(z, v)",
            {"v": ":,3"},
            [(4, 7), (7, 6)],
        ),
        # beside each other
        (
            "a = Conv(x, w, b) r = Conv(x, u) z = Concat<axis=1>(a, r) y = Conv(z, k)",
            {"w": "2:5", "u": "7"},
            [(4, 5), (4, 7), (12, 6)],
        ),
        (
            "a = Conv(x, w, b) r = Relu(a) z = Concat<axis=1>(a, r) y = Conv(z, k)",
            {"w": "2:5"},
            [(4, 5), (10, 6)],
        ),
        # a classifier at the end
        (
            f"a = Conv(x, w) z = Conv(a, v, c) r = GlobalAveragePool(z) {FLAT}(f, h, i)",
            {"v": "2"},
            [(4, 8), (8, 5)],
        ),
        (
            f"a = Conv(x, w) z = Conv(a, v, c) r = GlobalAveragePool(z) {FLAT}(f, h)",
            {"h": ":,0:2"},
            [(4, 8), (8, 4)],
        ),
        (
            f"a = Conv(x, w) z = Conv(a, v) f = ReduceMean<axes=[2,-1], keepdims=0>(z) {GEMM}(f, h)",
            {"h": ":,0:2"},
            [(4, 8), (8, 4)],
        ),
        (
            f"{ROW} a = Conv<strides=[2,2]>(x, w) z = Conv<pads=[1,1,0,0]>(a, v, c) {FLATTENED}",
            {"v": "2"},
            [(4, 8), (8, 5)],
        ),
    ],
)
def test_removed(body: str, zeros: dict[str, str], expected: list, rng: np.random.Generator) -> None:
    found = planted(f"{WEIGHTS}{HEAD} {body} }}", rng, **zeros)
    assert widths(check(found, rng)) == expected


@pytest.mark.parametrize(
    ("body", "zeros"),
    [
        # nothing is zero
        (f"a = Conv<{SAME}>(x, w, b) y = Conv(a, v, c)", {}),
        # a constant that does not reach the border, where zeros are padded
        (f"a = Conv(x, w, b) y = Conv<{SAME}>(a, v, c)", {"w": "1:4"}),
        ("a = Conv(x, w, b) y = ConvTranspose<strides=[2,2]>(a, q)", {"w": "5"}),
        (f"a = Conv(x, w, b) z = Conv<group=8, {SAME}>(a, d) y = Conv(z, e)", {"w": "5"}),
        ("a = Conv(x, w) r = Sigmoid(a) z = Conv<pads=[0,0,0,1]>(r, v) y = Relu(z)", {"w": "5"}),
        (
            f"a = Conv(x, w, b) z = {MEAN}(a) y = Conv(z, v)",
            {"w": "3"},
        ),
        # somebody else reads the channel: another layer, the caller, or what may mix channels
        ("a = Conv(x, w, b) r = Conv(a, v) z = Conv(a, d2) y = Sum(r, z)", {"v": ":,3"}),
        ("a = Conv(x, w, b) r = Conv(x, u) z = Add(a, r) y = Conv(z, v, c)", {"w": "2:5"}),
        ("y = Conv(x, w, b)", {"w": "2:5"}),
        ("y = Conv(x, w, b)", {"w": ":,2"}),
        ("a = Conv(x, w, b) r = ReduceMean<axes=[1]>(a) z = Div(a, r) y = Conv(z, v)", {"v": ":,3"}),
        ("a = Conv(x, w, b) z = Softmax<axis=1>(a) y = Conv(z, v)", {"v": ":,3"}),
        ("a = Conv(x, w, b) z = Transpose<perm=[0,1,3,2]>(a) y = Conv(z, v)", {"v": ":,3"}),
        ("a = Conv(x, w, b) r = Conv(x, u) z = Concat<axis=2>(a, r) y = Conv(z, v)", {"v": ":,3", "w": "3"}),
        ("a = Conv(x, w, b) z = LpNormalization<axis=1>(a) y = Conv(z, v)", {"v": ":,3"}),
        # a group goes as a whole or not at all
        ("a = Conv(x, w, b) z = Conv<group=2>(a, g, t) y = Conv(z, e)", {"w": "4:7"}),
        # a constant of one value for each place
        ("a = Conv(x, w) z = Add(a, f2) y = Conv(z, v)", {"w": "3"}),
    ],
)
def test_left(body: str, zeros: dict[str, str], rng: np.random.Generator) -> None:
    more = "d2[6,8,3,3] f2[8,7,7]\n"
    found = planted(f"{WEIGHTS.rstrip()} {more}{HEAD} {body} }}", rng, **zeros)
    assert without_dead(found) is found


def test_what_is_given_out_or_captured_stays(rng: np.random.Generator) -> None:
    w = random(rng, 8, 4, 3, 3)
    w[2:4] = 0
    weights = {"w": w, "v": random(rng, 6, 8, 3, 3)}
    plain = model("agraph (float[N,4,9,9] x) => (float y) { a = Conv(x, w) y = Conv(a, v) }", **weights)
    assert widths(without_dead(plain)) == [(4, 6), (6, 6)]
    given_out = model("agraph (float[N,4,9,9] x) => (y, a) { a = Conv(x, w) y = Conv(a, v) }", **weights)
    assert without_dead(given_out) is given_out
    body = "then_branch = one () => (r) { r = Relu(a) }, else_branch = two () => (t) { t = Abs(a) }"
    text = (
        f"agraph (float[N,4,9,9] x, bool q) => (y, z) {{ a = Conv(x, w) y = Conv(a, v) z = If<{body}>(q) }}"
    )
    captured = model(text, **weights)
    assert without_dead(captured) is captured
    # without the consumer among the sites, and without the producer
    for name in ("a", "y"):
        sites = [each for each in graph.find_sites(plain)[0] if each.name != name]
        assert graph.remove_dead(plain, sites, 1) is plain


def test_shared_weights_stay_for_others(rng: np.random.Generator) -> None:
    w, s = random(rng, 8, 8, 3, 3), random(rng, 8, 1, 1)
    w[2:4] = 0
    text = """agraph (float[1,8,9,9] x) => (float y, float z, float[8,8,3,3] w) {
        a = Conv(x, w) l = PRelu(a, s) b = Conv(l, w) y = PRelu(b, s) z = Conv(x, w)
    }"""
    found = model(text, w=w, s=s)
    smaller = check(found, rng)
    assert sorted(widths(smaller)) == [(6, 8), (8, 6), (8, 8)]
    held = {tensor.name: tuple(tensor.dims) for tensor in smaller.proto.graph.initializer}
    assert (held["w"], held["s"]) == ((8, 8, 3, 3), (8, 1, 1))


@pytest.mark.parametrize("size", ["9", "9,9", "9,9,9"])
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_types_and_axes(size: str, kind: str, rng: np.random.Generator) -> None:
    dtype = np.float16 if kind == "float16" else np.float32
    axes = size.count(",") + 1
    w, v = random(rng, 6, 4, *(3,) * axes).astype(dtype), random(rng, 5, 6, *(3,) * axes).astype(dtype)
    w[1] = 0
    text = f"agraph ({kind}[N,4,{size}] x) => (y) {{ a = Conv(x, w, b) z = Abs(a) y = Conv(z, v) }}"
    found = model(text, w=w, v=v, b=random(rng, 6).astype(dtype))
    smaller = without_dead(found)
    assert widths(smaller) == [(4, 5), (5, 5)]
    feeds = random_feeds(found, rng)
    # rounding of sums over some hundred products
    bound = 5e-3 if kind == "float16" else 1e-5
    assert distance(run(found.bytes(), feeds), run(smaller.bytes(), feeds)) < bound


def test_old_models_list_their_weights(rng: np.random.Generator) -> None:
    text = """<ir_version: 3, opset_import: ["" : 8]>
    agraph (float[1,4,9,9] x, float[6,4,3,3] w, float[6,1,1] p, float[5,6,3,3] v) => (float[1,5,5,5] y) {
        a = Conv(x, w) z = PRelu(a, p) y = Conv(z, v)
    }"""
    w = random(rng, 6, 4, 3, 3)
    w[1] = 0
    smaller = check(model(text, w=w, p=random(rng, 6, 1, 1), v=random(rng, 5, 6, 3, 3)), rng)
    assert widths(smaller) == [(4, 5), (5, 5)]


def test_what_decayed_is_dead_and_what_is_small_is_not(rng: np.random.Generator) -> None:
    text = "agraph (float[N,4,9,9] x) => (float y) { a = Conv(x, w, b) z = Relu(a) y = Conv(z, v) }"
    for scale, expected in ((1e-25, 7), (1e-10, 8)):
        w = random(rng, 8, 4, 3, 3)
        w[3] *= np.float32(scale)
        found = model(text, w=w, b=random(rng, 8), v=random(rng, 6, 8, 3, 3))
        assert widths(without_dead(found))[0] == (4, expected)


@pytest.mark.parametrize(
    ("channels", "dead", "block", "kept"),
    [
        (32, 9, 8, 24),
        (32, 8, 8, 24),
        (32, 7, 8, 32),
        (32, 32, 8, 8),
        (20, 4, 8, 16),
        (20, 3, 8, 20),
        (9, 9, 1, 1),
    ],
)
def test_blocks(channels: int, dead: int, block: int, kept: int, rng: np.random.Generator) -> None:
    w = random(rng, channels, 4, 3, 3)
    w[channels - dead :] = 0
    text = "agraph (float[N,4,9,9] x) => (float y) { a = Conv(x, w, b) z = Relu(a) y = Conv(z, v) }"
    found = model(text, w=w, b=random(rng, channels), v=random(rng, 6, channels, 3, 3))
    assert widths(without_dead(found, block))[0] == (4, kept)
    if kept < channels:
        check(found, rng, block)


RESIDUAL = """
agraph (float[batch,16,24,24] x) => (float[batch,16,24,24] y) {
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    a = Relu(h)
    [inner] i = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
    r = Relu(i)
    s = Add(r, a)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, u)
}
"""


def residual(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    shapes = {"w": (channels, 16), "v": (channels, channels), "u": (16, channels)}
    return {name: random(rng, *sizes, 3, 3) / np.float32(12) for name, sizes in shapes.items()}


def with_planted(weights: dict[str, np.ndarray], channels: int) -> dict[str, np.ndarray]:
    """The weights with more channels, which are zero where they are made and random where they are read."""
    w, v, u = (weights[name] for name in "wvu")
    more = channels - len(w)
    rng = np.random.default_rng(1)
    wide = np.concatenate([w, np.zeros((more, *w.shape[1:]), np.float32)])
    read = np.concatenate([v, random(rng, len(v), more, 3, 3)], axis=1)
    return {
        "w": wide,
        "v": np.concatenate([read, np.zeros((more, channels, 3, 3), np.float32)]),
        "u": np.concatenate([u, random(rng, len(u), more, 3, 3)], axis=1),
    }


def test_planted_channels_cost_nothing(rng: np.random.Generator, monkeypatch, tmp_path) -> None:
    """The cost is that before they were planted, in the file and in the report; the plan does it again."""
    fake_latency.install(monkeypatch)
    weights = residual(rng, 16)
    before, found = (model(RESIDUAL, **each) for each in (weights, with_planted(weights, 40)))
    plan = tmp_path / "plan.json"
    done = rewriter.optimize(found.proto, exact=True, passes=["split_groups"], save_plan=plan)
    assert done.improved
    assert done.report.steps == ("48 dead channels removed from convolutions",)
    feeds = {"x": random(rng, 1, 16, 24, 24)}
    macs = [fake_latency.macs(each, feeds) for each in (before.bytes(), found.bytes())]
    assert fake_latency.macs(done.model.SerializeToString(), feeds) == done.report.after.macs == macs[0]
    assert done.report.before.macs == macs[1]
    outputs = [run(each, feeds) for each in (before.bytes(), done.model.SerializeToString())]
    assert distance(*outputs) < 1e-5  # float32 rounding
    again = rewriter.apply(found.proto, plan)
    assert again.model.SerializeToString() == done.model.SerializeToString()
    assert again.report.before.macs == macs[1]


def test_a_plan_says_whether_channels_go(rng: np.random.Generator) -> None:
    """A model trained anew may have dead channels where that of the plan had none."""
    found = model(RESIDUAL, **with_planted(residual(rng, 16), 40))
    whole = {site.name: site.conv.weight.shape for site in graph.find_sites(found)[0]}
    assert prepare.exact_steps(found, (), 8, whole).model is found
    removed = prepare.exact_steps(found, (), 8)
    assert [site.conv.out_channels for site in removed.whole] == [40, 40, 16]
    planned = {site.name: site.conv.weight.shape for site in removed.sites}
    again = prepare.exact_steps(found, (), 8, planned)
    assert again.model.bytes() == removed.model.bytes()
    assert {site.name: site.conv.weight.shape for site in again.sites} == planned


def test_what_is_excluded_keeps_its_channels(rng: np.random.Generator, monkeypatch) -> None:
    fake_latency.install(monkeypatch)
    found = model(RESIDUAL, **with_planted(residual(rng, 16), 40))
    done = rewriter.optimize(found.proto, exact=True, passes=["split_groups"], exclude=["inner"])
    assert not done.improved
    assert done.report.after == done.report.before


def test_channels_count_for_a_share_of_the_multiply_adds(rng: np.random.Generator, monkeypatch) -> None:
    """Where the rest is within it without them, nothing else is done."""
    fake_latency.install(monkeypatch)
    found = model(RESIDUAL, **with_planted(residual(rng, 16), 40))
    samples = [{"x": random(rng, 3, 16, 24, 24)} for _ in range(2)]
    report = rewriter.optimize(found.proto, samples, max_macs=0.5, passes=["channel_svd"]).report
    assert report.improved
    assert report.after.macs < 0.5 * report.before.macs
    assert report.drift[0].value < 1e-5
    assert all(site.became is None for site in report.sites)


def test_inspect_says_how_many(rng: np.random.Generator, tmp_path, capsys) -> None:
    found = model(RESIDUAL, **with_planted(residual(rng, 16), 40))
    path = tmp_path / "net.onnx"
    path.write_bytes(found.bytes())
    told = [(each.dead_inputs, each.dead_outputs) for each in rewriter.inspect(path).layers]
    assert told == [(0, 24), (24, 24), (24, 0)]
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit):
            cli.main(["inspect", str(path), *more])
    out = capsys.readouterr().out
    assert "standard Conv, 24 dead" in out
    assert "48 dead channels of 2 convolutions" in out
    assert [each["dead_outputs"] for each in json.loads(out[out.index("\n{") :])["layers"]] == [24, 24, 0]
