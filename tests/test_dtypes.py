"""Convolutions in float16 and float64: fitted in wider types, written in the model's own."""

from __future__ import annotations

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import halves, only, parse, random, run, site
from onnx.reference import ReferenceEvaluator

import passes
import rewriter
from passes.channel_svd import ChannelSVD
from rewriter import ModelError, graph, rounding
from rewriter.adjoint import output_metrics
from rewriter.calibration import apply
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.progress import silent
from rewriter.runtime import Target

NAMES = {np.float16: "float16", np.float32: "float", np.float64: "double"}
# of a value that is rounded once
HALF = 2.0**-11


def _net(rng: np.random.Generator, dtype: type = np.float16, near: float = 0.05) -> graph.Model:
    """Two layers, near low rank, with a normalisation behind the first and a shortcut around the second."""

    def drawn(outputs: int, inputs: int) -> np.ndarray:
        factors = rng.standard_normal((outputs, 4)), rng.standard_normal((4, inputs, 3, 3))
        low = np.einsum("mr,rcyx->mcyx", *factors) + near * rng.standard_normal((outputs, inputs, 3, 3))
        return low / np.sqrt(4 * inputs * 9)

    name = NAMES[dtype]
    proto = parse(
        f"""agraph ({name}[batch,16,12,12] x) => ({name}[batch,32,12,12] y) {{
            [a] a = Conv<pads=[1,1,1,1]>(x, w, b)
            norm = BatchNormalization(a, s, b, b, s)
            ra = Relu(norm)
            [b] c = Conv<pads=[1,1,1,1]>(ra, v)
            y = Add(c, ra)
        }}"""
    )
    scale = rng.uniform(0.5, 1.5, 32)
    weights = {"w": drawn(32, 16), "b": random(rng, 32), "v": drawn(32, 32), "s": scale}
    for key, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(dtype), key))
    return graph.load(proto)


def _types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer if tensor.data_type != 7}  # not int64


def _distance(before: np.ndarray, after: np.ndarray) -> float:
    wide = [each.astype(np.float64) for each in (before, after)]
    return float(np.linalg.norm(wide[1] - wide[0]) / np.linalg.norm(wide[0]))


def test_a_site_in_float16_is_wider_within(rng: np.random.Generator) -> None:
    found = _net(rng)
    each = site(found, "a")
    assert each.dtype == np.float16
    assert each.conv.weight.dtype == each.conv.bias.dtype == np.float32
    assert "float16" in each.obstacle
    plain = site(_net(rng, np.float32), "a")
    assert (plain.dtype, plain.obstacle) == (np.float32, None)


@pytest.mark.parametrize("rewrite", [only, halves])
def test_a_rewrite_is_written_in_float16(rng: np.random.Generator, rewrite) -> None:
    found = _net(rng)
    spliced = graph.splice(found, [(each, rewrite(each.conv)) for each in graph.find_sites(found)[0]])
    assert _types(spliced.proto) == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(spliced.proto, full_check=True)
    x = random(rng, 2, 16, 12, 12).astype(np.float16)
    before, after = (run(each.bytes(), {"x": x})["y"] for each in (found, spliced))
    assert before.dtype == after.dtype == np.float16
    # the normalisation's factors are in the weights now, rounded
    assert 0 < _distance(before, after) < 4 * HALF


def test_full_rank_is_the_original_up_to_the_types_rounding(rng: np.random.Generator) -> None:
    found = _net(rng, near=1.0)
    conv = site(found, "b").conv
    (rewrite,) = ChannelSVD().rewrites(conv, [(32,)], Metric.isotropic(conv))
    x = [random(rng, 2, 32, 12, 12).astype(dtype) for dtype in (np.float16, np.float32)]
    half, single = (apply(rewrite, [each], Target(threads=1))[0] for each in x)
    assert (half.dtype, single.dtype) == (np.float16, np.float32)
    for given, after, bound in zip(x, (half, single), (4 * HALF, 1e-5), strict=True):
        (before,) = apply(only(conv), [given], Target(threads=1))
        assert _distance(before, after) < bound


def test_a_net_in_float16_is_fitted_and_timed(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_latency.install(monkeypatch)
    found = _net(rng)
    samples = [{"x": random(rng, 1, 16, 12, 12).astype(np.float16)} for _ in range(20)]
    result = rewriter.optimize(found.bytes(), samples, max_drift={"rel_l2": 0.1})
    assert result.improved
    assert all(each.became for each in result.report.sites)
    assert any("11 bits" in each.reason for each in result.report.refusals if each.pass_name == "winograd")
    assert _types(result.model) == {onnx.TensorProto.FLOAT16}
    before, after = (run(data, samples[0])["y"] for data in (found.bytes(), result.model.SerializeToString()))
    assert _distance(before, after) < 0.2


def test_zeros_are_found_in_float16(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    proto = _net(rng).copy()
    (tensor,) = (each for each in proto.graph.initializer if each.name == "v")
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[:16, 16:] = weight[16:, :16] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "v"))
    result = rewriter.optimize(proto.SerializeToString(), exact=True)
    assert result.improved
    assert {each.node: each.became for each in result.report.sites} == {"a": None, "b": "split_groups"}
    (checked,) = (each for each in result.report.sites if each.became)
    assert checked.rounding_error < rounding.MOST_TIMES * HALF


PLANTED = {
    "exact_channels": lambda w: np.repeat(w[:4], 8, axis=0) * np.linspace(1, 2, 32)[:, None, None, None],
    "exact_spatial": lambda w: np.einsum("mcy,mcx->mcyx", w[..., 0], w[:, :1, 0].repeat(32, axis=1)),
    "split_groups": lambda w: w * (np.arange(32)[:, None] // 8 == np.arange(32) // 8)[..., None, None],
    "crop_kernel": lambda w: w * (np.arange(3) == 1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_structure_is_found_after_rounding_to_float16(rng: np.random.Generator, name: str) -> None:
    step = next(each for each in passes.PASSES if each.name == name)
    drawn = rng.standard_normal((32, 32, 3, 3)) / 16
    found = _one(PLANTED[name](drawn))
    conv = site(found, "c").conv
    assert (conv.dtype, conv.weight.dtype) == (np.float16, np.float32)
    assert step.refuse(conv) is None
    ranks = step.ranks(conv, Grid())
    assert ranks == step.ranks(site(_one(PLANTED[name](drawn), np.float32), "c").conv, Grid())
    x = random(rng, 1, 32, 9, 9).astype(np.float16)
    before = run(found.bytes(), {"x": x})["y"]
    for rewrite in step.rewrites(conv, ranks, Metric.isotropic(conv)):
        after = run(graph.splice(found, [(site(found, "c"), rewrite)]).bytes(), {"x": x})["y"]
        # the factors are rounded, and what is between the stages
        assert _distance(before, after) < 2 * HALF
    assert step.refuse(site(_one(drawn), "c").conv)


def _one(weight: np.ndarray, dtype: type = np.float16) -> graph.Model:
    """A model of one convolution."""
    name = NAMES[dtype]
    text = f"agraph ({name}[1,32,9,9] x) => ({name}[1,32,9,9] y) {{ [c] y = Conv<pads=[1,1,1,1]>(x, w) }}"
    return graph.load(parse(text, w=weight.astype(dtype)))


def test_gradients_in_float16_do_not_overflow(rng: np.random.Generator) -> None:
    found = _net(rng)
    batches = [{"x": 100 * random(rng, 1, 16, 12, 12).astype(np.float16)}]
    sites = graph.find_sites(found)[0]
    metrics = output_metrics(found, sites, batches, 0, Target(threads=1), silent, draws=4)
    assert set(metrics.weights) == {"a", "b"}
    assert all(np.isfinite(each).all() for each in metrics.weights.values())


def test_float64_is_written_as_it_is(rng: np.random.Generator) -> None:
    found = _net(rng, np.float64)
    sites = graph.find_sites(found)[0]
    assert {each.conv.weight.dtype.name for each in sites} == {"float64"}
    spliced = graph.splice(found, [(each, halves(each.conv)) for each in sites if each.name == "b"])
    assert _types(spliced.proto) == {onnx.TensorProto.DOUBLE}
    x = rng.standard_normal((1, 16, 12, 12))
    before, after = (ReferenceEvaluator(each.proto).run(None, {"x": x})[0] for each in (found, spliced))
    assert _distance(before, after) < 1e-14


def test_what_no_provider_runs_is_said_in_one_line(rng: np.random.Generator) -> None:
    data, x = _net(rng, np.float64).bytes(), np.zeros((1, 16, 12, 12))
    try:
        run(data, {"x": x})
    except ModelError:
        with pytest.raises(ModelError, match=r"cannot load the model: .*Conv"):
            rewriter.optimize(data, [{"x": x}] * 10)
    else:
        pytest.skip("this build of ONNX Runtime has a Conv in float64")


def test_bfloat16_is_refused() -> None:
    proto = parse(
        """<ir_version: 10, opset_import: ["" : 22]>
        agraph (bfloat16[1,3,9,9] x) => (bfloat16[1,2,7,7] y) { [c] y = Conv(x, w) }"""
    )
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2, 3, 3, 3], np.ones(54))
    proto.graph.initializer.append(weight)
    sites, (refusal,) = graph.find_sites(graph.load(proto))
    assert sites == ()
    assert refusal.reason == "its weight 'w' is bfloat16; only float16, float32 and float64 are rewritten"
