"""Channels that others make up for: found, fitted, taken out with what makes them, and again by a plan."""

from __future__ import annotations

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import distance, model, random, run
from hypothesis import given, settings
from hypothesis import strategies as st

import rewriter
from passes import THINNING
from rewriter import graph, thinning
from rewriter.conv import Conv
from rewriter.errors import OptionError, PlanError
from rewriter.factor import fewer_channels
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments, relative_error

# What half of the stem's channels see is so far below zero that they are never active, whatever they weigh.
CHAIN = """
agraph (float[batch,16,20,20] x) => (float[batch,16,20,20] y) {
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    a = Relu(h)
    [body] i = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v, c)
    r = Relu(i)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r, u)
}
"""


def covariance(rng, size):
    root = rng.standard_normal((size, 2 * size))
    return root @ root.T / (2 * size)


def cost(delta, C, R):
    return float(np.sum((R.T @ delta @ C) * (R.T @ delta)))


def refitted(W, C, kept, taps):
    """The least-squares kernel on some channels, zero elsewhere."""
    columns = (np.array(kept)[:, None] * taps + np.arange(taps)).reshape(-1)
    found = np.zeros_like(W)
    found[:, columns] = np.linalg.solve(C[np.ix_(columns, columns)], (W @ C)[:, columns].T).T
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(2, 7), st.sampled_from([1, 3]), st.integers(1, 5))
def test_each_step_loses_the_least_and_the_rest_is_fitted(seed, channels, taps, outputs):
    rng = np.random.default_rng(seed)
    W, C = rng.standard_normal((outputs, channels * taps)), covariance(rng, channels * taps)
    R = np.linalg.cholesky(covariance(rng, outputs))
    alive = list(range(channels))
    counts = range(channels - 1, 0, -1)
    for count, found in zip(counts, fewer_channels(W, C, R, taps, counts), strict=True):
        trials = [[each for each in alive if each != gone] for gone in alive]
        costs = [cost(W - refitted(W, C, kept, taps), C, R) for kept in trials]
        kept = np.flatnonzero(np.abs(found.reshape(outputs, channels, taps)).max((0, 2))).tolist()
        assert len(kept) == count
        assert cost(W - found, C, R) == pytest.approx(min(costs), rel=1e-6)
        np.testing.assert_allclose(found, refitted(W, C, kept, taps), rtol=1e-6, atol=1e-8)
        alive = kept


def test_what_others_tell_costs_nothing(rng):
    """Of 8 channels that are mixtures of 5 any others make up for 3."""
    mixing = np.kron(rng.standard_normal((8, 5)), np.eye(3))
    C = mixing @ covariance(rng, 15) @ mixing.T + 1e-12 * np.eye(24)
    W = rng.standard_normal((4, 24))
    five, four = fewer_channels(W, C, np.eye(4), 3, (5, 4))
    energy = cost(W, C, np.eye(4))
    assert cost(W - five, C, np.eye(4)) < 1e-9 * energy
    assert cost(W - four, C, np.eye(4)) > 1e-3 * energy


def test_the_pass_gives_whole_blocks_and_their_means(rng):
    conv = Conv(random(rng, 8, 64, 3, 3), random(rng, 8), pads=(1,) * 4)
    ranks = THINNING.ranks(conv, Grid(16))
    assert list(ranks) == [(48,), (32,), (16,)]
    metric = Metric(Moments(covariance(rng, 576)[None], rng.standard_normal((1, 576)), 9999))
    errors = []
    for (rank,), rewrite in zip(ranks, THINNING.rewrites(conv, ranks, metric), strict=True):
        ((stage,),) = rewrite.branches
        gone = ~stage.weight.any((0, 2, 3))
        assert gone.sum() == 64 - rank
        missing = (conv.weight - stage.weight).reshape(8, -1) @ metric.input.mean[0]
        np.testing.assert_allclose(stage.bias, conv.bias + missing, rtol=1e-4, atol=1e-4)
        zeroed = conv.with_(weight=np.where(gone[:, None, None], np.float32(0), conv.weight))
        errors.append(relative_error(conv, rewrite, metric))
        assert errors[-1] < relative_error(conv, type(rewrite)(((zeroed,),)), metric)
    assert errors == sorted(errors)
    assert THINNING.refuse(conv) is None
    assert "groups" in THINNING.refuse(Conv(random(rng, 8, 4, 3, 3), group=2))
    assert THINNING.ranks(Conv(random(rng, 8, 16, 3, 3)), Grid(16)) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[a] h = Conv(x, w) [b] y = Conv(h, v)", {"b": ["a"]}),
        (
            "[a] h = Conv(x, w) r = Relu(h) p = MaxPool<kernel_shape=[2,2]>(r) [b] y = Conv(p, v)",
            {"b": ["a"]},
        ),
        ("[a] h = Conv(x, w) [d] g = Conv<group=8>(h, d) [b] y = Conv(g, v)", {"b": ["a", "d"]}),
        ("[a] h = Conv(x, w) n = InstanceNormalization(h, s, t) [b] y = Conv(n, v)", {"b": ["a"]}),
        ("[a] h = Conv(x, w) [e] g = Conv(x, w) z = Add(h, g) [b] y = Conv(z, v)", {"b": ["a", "e"]}),
        # read twice, given out, or mixed by what is not known
        ("[a] h = Conv(x, w) [b] f = Conv(h, v) [c] g = Conv(h, v) y = Add(f, g)", {}),
        ("[a] h = Conv(x, w) [b] f = Conv(h, m) z = Add(h, f) [c] y = Conv(z, v)", {}),
        ("[a] h = Conv(x, w) n = LpNormalization<axis=1>(h) [b] y = Conv(n, v)", {}),
        ("r = Relu(x) [b] y = Conv(r, w)", {}),
    ],
)
def test_sole_readers(body, expected, rng):
    shapes = {
        "w": (8, 4, 1, 1),
        "v": (6, 8, 1, 1),
        "m": (8, 8, 1, 1),
        "d": (8, 1, 1, 1),
        "s": (8,),
        "t": (8,),
    }
    weights = {name: random(rng, *shape) for name, shape in shapes.items()}
    found = model(f"agraph (float[N,4,6,6] x) => (float y) {{ {body} }}", **weights)
    assert graph.sole_readers(found, graph.find_sites(found)[0]) == expected


@pytest.fixture
def chain(rng):
    """A network of which half of the stem's channels are never active on its samples, and these."""
    wide = {"w": (64, 16, 3, 3), "v": (32, 64, 3, 3), "u": (16, 32, 3, 3)}
    weights = {
        name: random(rng, *shape) / np.float32(np.prod(shape[1:]) ** 0.5) for name, shape in wide.items()
    }
    bias = np.where(np.arange(64) % 2, 0.1, -50).astype(np.float32)
    found = model(CHAIN, **weights, b=bias, c=random(rng, 32))
    return found, rng.standard_normal((48, 16, 20, 20), dtype=np.float32)


@pytest.fixture(autouse=True)
def latency(monkeypatch):
    fake_latency.install(monkeypatch)
    monkeypatch.setattr(
        thinning, "_shares", lambda model, sites, *_: dict.fromkeys((s.name for s in sites), 0.3)
    )


def optimize(chain, **options):
    found, samples = chain
    given = {"passes": ["thin_channels", "crop_kernel"], "threads": 1, **options}
    return rewriter.optimize(found.proto, [{"x": samples}], **given)


def widths(proto):
    return [site.conv.weight.shape[:2] for site in graph.find_sites(graph.load(proto))[0]]


def test_what_is_never_active_goes_with_what_makes_it(chain, tmp_path):
    plan = tmp_path / "plan.json"
    done = optimize(chain, save_plan=plan)
    assert done.improved
    assert widths(done.model) == [(32, 16), (32, 32), (16, 32)]
    assert "32 channels removed that others make up for" in done.report.steps
    assert done.report.after.macs < 0.6 * done.report.before.macs
    found, samples = chain
    outputs = [run(each.SerializeToString(), {"x": samples}) for each in (found.proto, done.model)]
    assert distance(*outputs) < 1e-4
    told = {each.key: each.value for each in done.model.metadata_props}
    assert '"body":"fitted to 32 in-channels"' in told["rewriter.sites"]

    again = rewriter.apply(found.proto, plan, [{"x": samples}])
    assert again.model.SerializeToString() == done.model.SerializeToString()
    assert again.report.steps == done.report.steps


def test_it_is_a_pass_to_be_left_out(chain):
    for left_out in ({"passes": ["crop_kernel"]}, {"exclude": ["body", "stem", "head"]}):
        done = optimize(chain, **left_out)
        assert not any("make up for" in step for step in done.report.steps)
        assert widths(done.model)[0] == (64, 16)


def test_what_is_excluded_stays(chain):
    assert widths(optimize(chain, exclude=["stem"]).model)[0] == (64, 16)


def test_what_takes_much_of_a_budget_is_not_done(chain, monkeypatch):
    """The prediction is that channels cost nothing; the network says that they do."""
    monkeypatch.setattr(thinning, "_MOST_USED", -1.0)
    assert widths(optimize(chain).model)[0] == (64, 16)


def test_what_is_no_faster_is_not_done(chain, monkeypatch):
    monkeypatch.setattr(thinning, "_FASTER", 100.0)
    assert widths(optimize(chain).model)[0] == (64, 16)


def test_channels_that_matter_stay(chain, rng):
    """All channels active, and the kernel behind reads them alike: each costs a share of the output."""
    found, samples = chain
    for tensor in found.proto.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(64, 0.1, np.float32), "b"))
    assert widths(optimize((found, samples)).model)[0] == (64, 16)


def test_multiply_adds_alone_choose_no_channels(chain):
    found, samples = chain
    with pytest.raises(OptionError, match="thin_channels: it is chosen by time"):
        optimize(chain, max_macs=0.5)
    done = rewriter.optimize(found.proto, [{"x": samples}], max_macs=0.5, passes=["channel_svd"], threads=1)
    assert not any("make up for" in step for step in done.report.steps)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [('"body": 32', '"head": 40', "'head' read 40 channels"), ('"body"', '"nobody"', "'nobody'")],
)
def test_a_plan_for_another_model_is_refused(chain, tmp_path, old, new, message):
    plan = tmp_path / "plan.json"
    optimize(chain, save_plan=plan)
    text = plan.read_text()
    assert f'"ranks": {{{old}' in text
    plan.write_text(text.replace(old, new, 1))
    found, samples = chain
    with pytest.raises(PlanError, match=message):
        rewriter.apply(found.proto, plan, [{"x": samples}])
