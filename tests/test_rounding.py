"""What rounding makes of exact forms: measured against float64, refused where it is too much."""

import json
from dataclasses import replace

import fake_latency
import numpy as np
import pytest
from graphs import model, only
from onnx.reference import ReferenceEvaluator

import passes
import rewriter
from rewriter import calibration, fitting, graph, rounding
from rewriter.grid import Grid
from rewriter.progress import silent
from rewriter.report import to_json, to_markdown
from rewriter.runtime import Target

EXACT = tuple(each for each in passes.PASSES if each.exact)
CALM = Target(spinning=False)
MODEL = """
agraph (float[1,32,{size}] x) => (float[1,32,{size}] y) {{
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [relu] a = Relu(h)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v, b)
}}
"""
DOUBLE = """
agraph (double[n,32,h,w] x, double[32,32,3,3] k, double[32] b) => (double[n,32,i,j] y) {
    y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, k, b)
}
"""


def _network(rng, size="24,24", scale=0.06):
    w, v = (np.float32(scale) * rng.standard_normal((32, 32, 3, 3), dtype=np.float32) for _ in range(2))
    return model(MODEL.format(size=size), w=w, v=v, b=rng.standard_normal(32).astype(np.float32))


def _offers(found):
    """Every exact candidate of every site, with latencies by which none beats another."""
    sites, _ = graph.find_sites(found)
    surveys = fitting.exact_survey(sites, {site.name: (24, 24) for site in sites}, EXACT, Grid(8))
    offers = []
    for each in surveys:
        # the least error is the slowest
        ordered = sorted(each.candidates[1:], key=lambda candidate: -candidate.error)
        timed = [_at(candidate, float(index)) for index, candidate in enumerate(ordered)]
        offers.append((each.site, [each.candidates[0], *timed]))
    return offers


def _at(candidate, latency_ms):
    return replace(candidate, latency_ms=latency_ms)


def _check(found, offers, *samples):
    return rounding.check(found, offers, EXACT, [{"x": x} for x in samples], 0, CALM, silent)


def _normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def test_errors_are_those_against_a_double_convolution(rng):
    # more output positions than are drawn
    found = _network(rng, "80,80")
    offers = _offers(found)[:1]
    x = _normal(rng, 1, 32, 80, 80)
    (checked,) = _check(found, offers, x)
    site = offers[0][0]
    oracle = ReferenceEvaluator(model(DOUBLE).proto)
    feeds = {"x": x, "k": site.conv.weight, "b": np.zeros(32)}
    (true,) = oracle.run(None, {name: np.float64(value) for name, value in feeds.items()})

    def error(rewrite):
        (output,) = calibration.apply(rewrite, [x], CALM)
        return np.linalg.norm(output - true) / np.linalg.norm(true)

    # thousands of values of each are drawn
    assert checked.direct == pytest.approx(error(only(site.conv)), rel=0.1)
    assert {candidate.rank for candidate in checked.candidates[1:]} >= {(2, 2), (4, 4), (6, 6)}
    for candidate in checked.candidates[1:]:
        ((_, rewrite),) = fitting.exact_rewrites([(site, candidate)], EXACT)
        assert candidate.error**0.5 == pytest.approx(error(rewrite), rel=0.1)
    assert checked.refusals == ()


def test_two_samples_and_groups(rng):
    text = MODEL.replace("kernel_shape", "group=2, kernel_shape").format(size="24,24")
    w, v = (_normal(rng, 32, 16, 3, 3) for _ in range(2))
    found = model(text, w=w, v=v, b=_normal(rng, 32))
    for checked in _check(found, _offers(found), *(_normal(rng, 1, 32, 24, 24) for _ in range(2))):
        assert 1e-8 < checked.direct < 1e-6
        assert len(checked.candidates) > 4
        assert not checked.refusals


def test_a_tile_that_overflows_is_refused_the_others_are_not(rng):
    found = _network(rng)
    # the transform of 6 x 6 tiles multiplies values by up to 156, the kernel keeps their size
    stem, _ = _check(found, _offers(found), np.float32(1e37) * _normal(rng, 1, 32, 24, 24))
    assert {candidate.rank for candidate in stem.candidates} >= {(), (2, 2)}
    assert (6, 6) not in {candidate.rank for candidate in stem.candidates}
    reasons = [refusal.reason for refusal in stem.refusals]
    assert any(reason.startswith("tile 6x6 overflows float32, which the Conv does not") for reason in reasons)
    assert {(refusal.node, refusal.pass_name) for refusal in stem.refusals} == {("stem", "winograd")}


def test_nothing_is_lowered_where_the_convolution_itself_overflows(rng):
    found = _network(rng, scale=10.0)
    for checked in _check(found, _offers(found), np.float32(1e37) * _normal(rng, 1, 32, 24, 24)):
        assert [candidate.pass_name for candidate in checked.candidates] == [None]
        assert checked.direct is None
        assert [refusal.reason for refusal in checked.refusals] == ["its values overflow float32 as it is"]


def test_a_tile_that_loses_too_much_is_refused_with_figures(rng, monkeypatch):
    monkeypatch.setattr(rounding, "MOST_TIMES", 4.0)
    found = _network(rng)
    stem, _ = _check(found, _offers(found), _normal(rng, 1, 32, 24, 24))
    assert (2, 2) in {candidate.rank for candidate in stem.candidates}
    (reason,) = [refusal.reason for refusal in stem.refusals if "6x6" in refusal.reason]
    assert reason.startswith("tile 6x6 loses ")
    assert f"the Conv {stem.direct:.2g}; at most {4 * stem.direct:.2g} is allowed, 4 times as much" in reason


def test_factors_are_measured_and_refused_as_tiles_are(rng, monkeypatch):
    found = _network(rng)
    low = np.einsum("mr,rcyx->mcyx", _normal(rng, 32, 4), _normal(rng, 4, 32, 3, 3))
    found = model(MODEL.format(size="24,24"), w=low, v=_normal(rng, 32, 32, 3, 3), b=_normal(rng, 32))
    offers = _offers(found)[:1]
    x = _normal(rng, 1, 32, 24, 24)
    (checked,) = _check(found, offers, x)
    (factors,) = [each for each in checked.candidates if each.rank == (0, 1, 4)]
    assert 1e-8 < factors.error**0.5 < 20 * checked.direct
    monkeypatch.setattr(rounding, "MOST_TIMES", 0.1)
    (checked,) = _check(found, offers, x)
    assert [each.pass_name for each in checked.candidates] == [None]
    assert any(refusal.reason.startswith("rank 0x1x4 loses ") for refusal in checked.refusals)


def test_convolutions_of_zeros_lose_nothing(rng):
    found = _network(rng)
    stem, _ = _check(found, _offers(found), np.zeros((1, 32, 24, 24), np.float32))
    assert stem.direct == 0.0
    assert all(candidate.error == 0.0 for candidate in stem.candidates)
    assert not stem.refusals


def test_what_a_faster_one_beats_is_not_measured(rng):
    found = _network(rng)
    (site, candidates), _ = _offers(found)
    least = min(candidates[1:], key=lambda candidate: (candidate.error, candidate.skeleton.held_bytes))
    offer = (site, [_at(each, -1.0) if each is least else each for each in candidates])
    (checked,) = _check(found, [offer], _normal(rng, 1, 32, 24, 24))
    for other in candidates[1:]:
        beaten = other is not least and other.skeleton.held_bytes >= least.skeleton.held_bytes
        assert (other.rank in {each.rank for each in checked.candidates}) is not beaten


def test_the_report_has_both_errors(rng, monkeypatch):
    fake_latency.install(monkeypatch)
    report = rewriter.optimize(_network(rng).bytes(), exact=True).report
    assert report.improved
    for site in json.loads(to_json(report))["sites"]:
        assert 1e-8 < site["direct_rounding_error"] < site["rounding_error"] < 1e-5
        assert site["rounding_error"] == site["predicted_error"]
    assert "| rounding error |" in to_markdown(report)


def test_the_model_is_left_alone_where_all_lose_too_much(rng, monkeypatch):
    fake_latency.install(monkeypatch)
    monkeypatch.setattr(rounding, "MOST_TIMES", 0.1)
    report = rewriter.optimize(_network(rng).bytes(), exact=True).report
    assert not report.improved
    for site in report.sites:
        assert site.reason == "every faster form of it loses too much to rounding"
        assert site.rounding_error is None
        assert site.direct_rounding_error is not None
    assert any("to rounding, the Conv" in refusal.reason for refusal in report.refusals)
