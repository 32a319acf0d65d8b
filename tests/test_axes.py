"""Convolutions over one and over three spatial axes, through everything that a run does."""

from __future__ import annotations

import fake_latency
import numpy as np
import pytest
from graphs import distance, model, only, random, random_feeds, run, site

import rewriter
from rewriter import graph
from rewriter.adjoint import output_metrics
from rewriter.progress import silent
from rewriter.runtime import Target

SIZES = {1: (60,), 3: (5, 9, 8)}
axes = pytest.mark.parametrize("size", SIZES.values(), ids=["signal", "volume"])


def _net(rng: np.random.Generator, size: tuple[int, ...]) -> graph.Model:
    """Two layers near low rank with a shortcut around the second, and what pools and joins behind them."""
    each = ["3"] * len(size)
    pads = ",".join(["1"] * 2 * len(size))
    sizes, kernel = ",".join(map(str, size)), tuple(map(int, each))

    def drawn(outputs: int, inputs: int) -> np.ndarray:
        factors = rng.standard_normal((outputs, 4)), rng.standard_normal((4, inputs, *kernel))
        low = np.einsum("mr,rc...->mc...", *factors) + 0.05 * rng.standard_normal((outputs, inputs, *kernel))
        return (low / np.sqrt(4 * inputs * np.prod(kernel))).astype(np.float32)

    text = f"""agraph (float[batch,16,{sizes}] x) => (float y) {{
        [a] a = Conv<pads=[{pads}]>(x, w, b)
        ra = Relu(a)
        [b] c = Conv<auto_pad="SAME_UPPER">(ra, v)
        sum = Add(c, ra)
        norm = BatchNormalization(sum, s, b, b, s)
        pooled = MaxPool<kernel_shape=[{",".join(["2"] * len(size))}]>(norm)
        y = GlobalAveragePool(pooled)
    }}"""
    scale = rng.uniform(0.5, 1.5, 32).astype(np.float32)
    return model(text, w=drawn(32, 16), b=random(rng, 32), v=drawn(32, 32), s=scale)


@axes
@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
def test_a_site_computes_what_its_node_does(
    rng: np.random.Generator, size: tuple[int, ...], auto_pad: str
) -> None:
    count = len(size)
    attributes = {
        "strides": [2, 1, 3][:count],
        "dilations": [1, 2, 1][:count],
        "pads": [*range(1, 1 + count), *range(count)],
    }
    if auto_pad != "NOTSET":
        del attributes["pads"], attributes["dilations"]
    told = ", ".join(f"{name}={value}" for name, value in attributes.items())
    sizes = ",".join(map(str, size))
    found = model(
        f"agraph (float[2,6,{sizes}] x) => (float y) "
        f'{{ [c] y = Conv<auto_pad="{auto_pad}", {told}, group=2>(x, w, b) }}',
        w=random(rng, 4, 3, *(3, 2, 4)[:count]),
        b=random(rng, 4),
    )
    feeds = random_feeds(found, rng)
    spliced = graph.splice(found, [(site(found, "c"), only(site(found, "c").conv))])
    assert distance(run(found.bytes(), feeds), run(spliced.bytes(), feeds)) == 0.0


@axes
def test_a_net_is_fitted_and_timed(
    rng: np.random.Generator, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_latency.install(monkeypatch)
    found = _net(rng, size)
    samples = [{"x": random(rng, 1, 16, *size)} for _ in range(20)]
    result = rewriter.optimize(found.bytes(), samples, max_drift={"rel_l2": 0.2})
    assert result.improved
    assert all(each.became for each in result.report.sites)
    before, after = (run(data, samples[0])["y"] for data in (found.bytes(), result.model.SerializeToString()))
    assert 0.0 < np.linalg.norm(after - before) < 0.4 * np.linalg.norm(before)
    lowered = {each.pass_name: each.reason for each in result.report.refusals}
    if len(size) == 1:
        assert "winograd" not in lowered
        assert "not several taps along two axes" in lowered["spatial_svd"]
    else:
        assert "more than two axes" in lowered["winograd"]
        assert "spatial_svd" not in lowered


@axes
def test_what_the_outputs_care_about_is_known(rng: np.random.Generator, size: tuple[int, ...]) -> None:
    found = _net(rng, size)
    sites, _ = graph.find_sites(found)
    batches = [{"x": random(rng, 1, 16, *size)} for _ in range(2)]
    metrics = output_metrics(found, sites, batches, 0, Target(threads=1), silent, draws=4)
    assert set(metrics.weights) == {"a", "b"}
    assert metrics.without_rule == ()


@axes
def test_layers_are_inspected(rng: np.random.Generator, size: tuple[int, ...]) -> None:
    found = rewriter.inspect(_net(rng, size).bytes(), shapes={"x": (1, 16, *size)})
    places, taps = int(np.prod(size)), 3 ** len(size)
    assert [each.layer.macs for each in found.layers] == [
        places * 32 * 16 * taps,
        places * 32 * 32 * taps,
    ]
    assert [each.layer.window.receptive_field for each in found.layers] == [
        (3,) * len(size),
        (5,) * len(size),
    ]


@axes
def test_probes_run_as_the_site_does(rng: np.random.Generator, size: tuple[int, ...]) -> None:
    found = site(_net(rng, size), "b")
    shape = (2, 32, *size)
    feeds = {"x": random(rng, *shape), "shortcut": random(rng, *shape)}
    plain, *copies = (run(graph.probe(found, only(found.conv), shape, count), feeds) for count in (0, 1, 3))
    first = (slice(None), slice(None), *(slice(1) for _ in size))
    assert plain["y"].shape == shape
    for count, each in zip((1, 3), copies, strict=True):
        assert list(each) == [f"y{index}" for index in range(count)]
        assert np.array_equal(each["y0"], plain["y"][first])


def test_a_signal_in_tiles(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    found = _net(rng, SIZES[1])
    result = rewriter.optimize(found.bytes(), exact=True)
    assert {each.node: each.became for each in result.report.sites} == {"a": "winograd", "b": "winograd"}
    feeds = random_feeds(found, rng)
    after = run(result.model.SerializeToString(), feeds)
    # float32 rounding of two layers, ten times that of products alone
    assert distance(run(found.bytes(), feeds), after) < 1e-5
