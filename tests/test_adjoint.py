"""Gradients backwards through a network against differences of the network itself."""

import graphs
import numpy as np
import onnx
import onnx.parser
import pytest

from rewriter import adjoint, graph
from rewriter.runtime import Session, Target

CALM = Target(threads=1)
# What stands between the input and the output; constants are drawn by the shapes given.
CASES = {
    "abs": ("y = Abs(x)", {}),
    "add": ("y = Add(x, w)", {"w": (5, 1, 1)}),
    "add_both": ("z = Relu(x) y = Add(x, z)", {}),
    "add_repeated": ("m = GlobalAveragePool(x) y = Add(x, m)", {}),
    "average_pool": ("y = AveragePool<kernel_shape=[3, 2], strides=[2, 1]>(x)", {}),
    "average_pool_padded": (
        "y = AveragePool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1>(x)",
        {},
    ),
    "batch_normalization": (
        "y = BatchNormalization(x, w, b, mu, v)",
        {"w": (5,), "b": (5,), "mu": (5,), "v": (5,)},
    ),
    "clip": ("y = Clip(x, low, high)", {"low": -0.5, "high": 0.7}),
    "concat": ("a = Sigmoid(x) b = Tanh(x) y = Concat<axis=2>(a, x, b)", {}),
    "concat_of_unlike": ("a = Conv(x, w) b = Mul(a, k) c = Tanh(x) y = Concat<axis=1>(b, c)", {
        "w": (2, 5, 1, 1), "k": 1000.0,
    }),
    "conv": ("y = Conv<pads=[1, 1, 1, 1]>(x, w)", {"w": (4, 5, 3, 3)}),
    "conv_same_strides": ('y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)', {"w": (4, 5, 3, 2)}),
    "conv_same_lower": ('y = Conv<auto_pad="SAME_LOWER", strides=[2, 2]>(x, w)', {"w": (4, 5, 2, 3)}),
    "conv_strides": ("y = Conv<pads=[2, 0, 1, 1], strides=[3, 2]>(x, w)", {"w": (4, 5, 3, 3)}),
    "conv_dilations": ("y = Conv<pads=[1, 2, 0, 2], dilations=[2, 2]>(x, w)", {"w": (4, 5, 3, 3)}),
    "conv_wide_pads": ("y = Conv<pads=[3, 2, 3, 2]>(x, w)", {"w": (4, 5, 2, 2)}),
    "conv_groups": ("y = Conv<group=5, pads=[1, 1, 1, 1]>(x, w)", {"w": (10, 1, 3, 3)}),
    "conv_transpose": (
        "y = ConvTranspose<strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0]>(x, w)",
        {"w": (5, 3, 4, 3)},
    ),
    "conv_transpose_shape": (
        "y = ConvTranspose<strides=[2, 2], output_shape=[16, 13]>(x, w)",
        {"w": (5, 3, 3, 3)},
    ),
    "conv_transpose_groups": ("y = ConvTranspose<group=5, dilations=[2, 1]>(x, w)", {"w": (5, 2, 2, 2)}),
    "depth_to_space": ("z = Concat<axis=1>(x, x, x, x) y = DepthToSpace<blocksize=2>(z)", {}),
    "depth_to_space_crd": (
        'z = Concat<axis=1>(x, x, x, x) y = DepthToSpace<blocksize=2, mode="CRD">(z)',
        {},
    ),
    "div": ("a = Exp(x) b = Sigmoid(x) y = Div(a, b)", {}),
    "elu": ("y = Elu<alpha=0.7>(x)", {}),
    "expand": ("m = GlobalAveragePool(x) y = Expand(m, s)", {"s": np.array([1, 1, 3, 4])}),
    "gemm": ("z = Flatten(x) y = Gemm<transB=1, alpha=0.5>(z, w, b)", {"w": (6, 280), "b": (6,)}),
    "gemm_plain": ("z = Flatten(x) y = Gemm(z, w)", {"w": (280, 6)}),
    "global_max": ("y = GlobalMaxPool(x)", {}),
    "hard_sigmoid": ("y = HardSigmoid<alpha=0.3>(x)", {}),
    "hard_swish": ("y = HardSwish(x)", {}),
    "instance_normalization": ("y = InstanceNormalization(x, w, b)", {"w": (5,), "b": (5,)}),
    "leaky": ("y = LeakyRelu<alpha=0.2>(x)", {}),
    "log": ("z = Exp(x) y = Log(z)", {}),
    "log_softmax": ("z = GlobalAveragePool(x) f = Flatten(z) y = LogSoftmax<axis=1>(f)", {}),
    "matmul": ("y = MatMul(x, w)", {"w": (7, 6)}),
    "matmul_both": ("t = Transpose<perm=[0, 1, 3, 2]>(x) y = MatMul(x, t)", {}),
    "max": ("z = Neg(x) y = Max(x, z, w)", {"w": (1, 5, 1, 1)}),
    "max_pool": ("y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(x)", {}),
    "max_pool_ceil": ("y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)", {}),
    "mul": ("a = Sigmoid(x) y = Mul(x, a)", {}),
    "pad": ("y = Pad(x, p)", {"p": np.array([0, 0, 1, 2, 0, 0, 0, 3])}),
    "pow": ("z = Exp(x) y = Pow(z, e)", {"e": 1.5}),
    "prelu": ("y = PRelu(x, w)", {"w": (5, 1, 1)}),
    "reciprocal": ("z = Exp(x) y = Reciprocal(z)", {}),
    "reduce_mean": ("y = ReduceMean<keepdims=0>(x, a)", {"a": np.array([2, 3])}),
    "reduce_sum": ("y = ReduceSum(x, a)", {"a": np.array([-1])}),
    "resize": ('y = Resize<mode="nearest">(x, , s)', {"s": np.array([1, 1, 2, 3], np.float32)}),
    "reshape": ("y = Reshape(x, s)", {"s": np.array([1, -1])}),
    "slice": ("y = Slice(x, s, e, a, t)", {
        "s": np.array([1, -4]), "e": np.array([4, 1000]), "a": np.array([1, 3]), "t": np.array([2, 1]),
    }),
    "softplus": ("y = Softplus(x)", {}),
    "space_to_depth": ("z = Slice(x, s, e, a) y = SpaceToDepth<blocksize=2>(z)", {
        "s": np.array([0]), "e": np.array([6]), "a": np.array([3]),
    }),
    "split": ("a, b = Split<axis=3, num_outputs=2>(x) c = Tanh(a) d = Sigmoid(b) y = Concat<axis=1>(c, b, d)"
              .replace("c, b, d", "c, c"), {}),
    "sqrt": ("z = Exp(x) y = Sqrt(z)", {}),
    "squeeze": ("z = Unsqueeze(x, a) y = Squeeze(z, a)", {"a": np.array([0])}),
    "sub": ("a = Tanh(x) y = Sub(w, a)", {"w": (1, 5, 8, 7)}),
}  # fmt: skip


def _model(body, constants, rng):
    lines = []
    drawn = []
    for name, value in constants.items():
        if isinstance(value, tuple):
            # positive, so that they can be variances
            value = rng.uniform(0.5, 1.5, value) * (1 if name == "v" else rng.choice([-1, 1], value))
            value = value.astype(np.float32)
        array = np.asarray(value, None if isinstance(value, np.ndarray) else np.float32)
        drawn.append(onnx.numpy_helper.from_array(array, name))
    for line in body.replace(") ", ")\n").split("\n"):
        lines.append(line)
    text = f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[1, 5, 8, 7] x) => (float y) {{ {chr(10).join(lines)} }}
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.Clear()
    proto.graph.initializer.extend(drawn)
    return graph.load(proto)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gradient_is_what_a_small_step_makes_of_the_outputs(case, rng):
    model = _model(*CASES[case], rng)
    session = Session(model.bytes(), CALM)
    x = rng.standard_normal((1, 5, 8, 7)).astype(np.float32)
    step = (1e-3 * rng.standard_normal(x.shape)).astype(np.float32)
    # a value at a kink has no gradient
    x[np.abs(x) < 0.02] = 0.05
    signs = {}

    def draw(shape):
        signs["y"] = rng.choice([-1.0, 1.0], shape).astype(np.float32)
        return signs["y"]

    back = adjoint.Backwards(model, ["x"], CALM)
    found = back.gradients({"x": x}, draw, back.norms([{"x": x}]))["x"]
    assert back.reached == {"x"}
    (y,) = session.run({"x": x}).values()
    ahead, behind = (session.run({"x": x + way * step})["y"].astype(np.float64) for way in (1, -1))
    ((*pieces,),) = graph.output_pieces(model)
    changes = signs["y"] * (ahead - behind) / 2
    wanted = sum(np.sum(each.of(changes)) / np.linalg.norm(each.of(y)) for each in pieces)
    size = np.linalg.norm(found) * np.linalg.norm(step) / np.sqrt(found.size)
    # float32 forward passes and a second-order remainder
    assert np.sum(found * step) == pytest.approx(wanted, abs=2e-2 * size)


def test_norms_are_over_all_samples(rng):
    """What is little in one sample is no more than that beside what is much in another."""
    model = graphs.model(
        """
        agraph (float[N,2,3,3] x) => (float[N,3,3,3] y, float[N,2,3,3] z) {
          b = Conv(x, w)
          s = Sigmoid(x)
          y = Concat<axis=1>(b, s)
          c = Div(x, x)
          z = Exp(c)
        }
        """,
        w=graphs.random(rng, 1, 2, 1, 1),
    )
    x = [
        graphs.random(rng, 1, 2, 3, 3),
        1e-3 * graphs.random(rng, 1, 2, 3, 3),
        np.zeros((1, 2, 3, 3), np.float32),
    ]
    samples = [{"x": each} for each in x]
    found = adjoint.Backwards(model, ["x"], CALM).norms(samples)
    ran = [graphs.run(model.bytes(), each) for each in samples]
    whole = [[each["y"][:, :1], each["y"][:, 1:]] for each in ran]
    wanted = [np.sqrt(np.mean([np.sum(each[piece] ** 2) for each in whole])) for piece in range(2)]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    # 0 / 0 in the last sample
    np.testing.assert_allclose(found[1], [np.sqrt(18) * np.e], rtol=1e-5)


def _sites(text, rng, **shapes):
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    model = graph.load(proto)
    return model, graph.find_sites(model)[0]


def test_the_metric_of_a_site_before_a_linear_map_is_that_of_the_map(rng):
    model, sites = _sites(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 3, 16, 16] x) => (float[n, 2, 16, 16] y) {
            [first] h = Conv(x, w)
            [second] y = Conv(h, v)
        }
        """,
        rng,
        w=(6, 3, 1, 1),
        v=(2, 6, 1, 1),
    )
    batches = [{"x": rng.standard_normal((8, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    found = adjoint.output_metrics(model, sites, batches, 0, CALM, lambda *_: None)
    assert found.without_rule == ()
    v = next(site for site in sites if site.name == "second").conv.weight[:, :, 0, 0].astype(np.float64)
    wanted = v.T @ v * 6 / np.trace(v.T @ v)
    mixed = (found.weights["first"] - 0.03 * np.eye(6)) / 0.97
    # 8,192 places with random signs each
    np.testing.assert_allclose(mixed, wanted, atol=0.05 * np.abs(wanted).max())
    assert np.trace(found.weights["first"]) == pytest.approx(6)
    assert np.linalg.eigvalsh(found.weights["second"])[0] > 0


def test_an_operator_without_a_rule_hides_what_is_before_it_only(rng):
    model, sites = _sites(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 3, 16, 16] x) => (float[n, 4, 16, 16] y, float[n, 2, 16, 16] z) {
            [hidden] h = Conv(x, w)
            s = Erf(h)
            t = Relu(h)
            [seen] y = Conv(s, v)
            [other] z = Conv(t, u)
        }
        """,
        rng,
        w=(6, 3, 1, 1),
        v=(4, 6, 1, 1),
        u=(2, 6, 1, 1),
    )
    batches = [{"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}]
    found = adjoint.output_metrics(model, sites, batches, 0, CALM, lambda *_: None)
    assert found.weights.keys() == {"seen", "other"}
    assert found.without_rule == ("Erf",)


def test_sizes_taken_from_a_tensor_hide_nothing(rng):
    model, sites = _sites(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 3, 16, 16] x) => (float[n, k] y) {
            [only] h = Conv(x, w)
            s = Shape(h)
            i = Constant<value = int64[1] {0}>()
            b = Gather(s, i)
            m = Constant<value = int64[1] {-1}>()
            shape = Concat<axis=0>(b, m)
            y = Reshape(h, shape)
        }
        """,
        rng,
        w=(6, 3, 1, 1),
    )
    batches = [{"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}]
    found = adjoint.output_metrics(model, sites, batches, 0, CALM, lambda *_: None)
    assert found.weights.keys() == {"only"}
    assert found.without_rule == ()


def test_a_fixed_batch_stays_whole(rng):
    model, sites = _sites(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[4, 3, 8, 8] x) => (float[4, 6, 8, 8] y) { [only] y = Conv(x, w) }
        """,
        rng,
        w=(6, 3, 1, 1),
    )
    batches = [{"x": rng.standard_normal((4, 3, 8, 8)).astype(np.float32)}]
    found = adjoint.output_metrics(model, sites, batches, 0, CALM, lambda *_: None)
    assert np.isfinite(found.weights["only"]).all()


def test_a_sample_without_a_slope_says_nothing(rng):
    """A root at 0 has no finite slope: only the second sample counts."""
    model, sites = _sites(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 3, 8, 8] x) => (float[n, 6, 8, 8] y) {
            [only] h = Conv(x, w)
            a = Abs(h)
            y = Sqrt(a)
        }
        """,
        rng,
        w=(6, 3, 1, 1),
    )
    good = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    batches = [{"x": np.zeros_like(good)}, {"x": good}]
    found = adjoint.output_metrics(model, sites, batches, 0, CALM, lambda *_: None)
    assert np.isfinite(found.weights["only"]).all()
