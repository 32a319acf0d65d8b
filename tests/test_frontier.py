"""The trade-off of speed against drift: which plans span it, what is measured of them, what is marked."""

import io
import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import fake_latency
import numpy as np
import pytest
import residual
from example_report import REWRITTEN
from rich.console import Console

import rewriter
from rewriter import frontier, latency
from rewriter.conv import Conv, Cost
from rewriter.drift import Drift
from rewriter.limits import Limits
from rewriter.plan import Candidate, choose, total_macs
from rewriter.report import Point, to_json, to_markdown, to_terminal
from rewriter.rewrite import Rewrite
from rewriter.search import Trial
from rewriter.verdict import Ending, Job

SKELETON = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))


def network(rng, sites=6, ranks=8):
    """Sites whose candidates trade drift for time and multiply-adds, over three decades of sensitivity."""
    found = []
    for index in range(sites):
        scale = 10 ** rng.uniform(-3, 0)
        shares = [rank / ranks for rank in range(1, ranks)]
        found.append(
            [Candidate(str(index), None, (), SKELETON, Cost(1000), 0.0, 0.0, 1.0)]
            + [
                Candidate(str(index), "p", (i,), SKELETON, Cost(int(1000 * s)), 0.0, scale * (1 - s) ** 2, s)
                for i, s in enumerate(shares)
            ]
        )
    return found


@pytest.mark.parametrize("by_macs", [False, True])
def test_the_range_goes_from_hardly_anything_to_everything(rng, by_macs):
    sites = network(rng)
    plans = frontier.spread(sites, [], by_macs=by_macs)
    assert 6 <= len(plans) <= 9
    assert len({plan.chosen for plan in plans}) == len(plans)
    for before, after in pairwise(plans):
        assert after.drift > before.drift
        # a gap of the solver, twice
        assert after.latency_ms <= before.latency_ms * (1 + 2e-4)
        assert after.macs <= before.macs * (1 + 2e-4)
    # the fastest of every site takes an eighth
    assert plans[-1].latency_ms == pytest.approx(6 / 8)
    # of all that can be gained
    gained = (6 - plans[0].latency_ms) / (6 - 6 / 8)
    assert 0.05 <= gained < 0.4


def test_nothing_to_trade():
    alone = [[Candidate("s", None, (), SKELETON, Cost(1), 0.0)]]
    for by_macs in (False, True):
        assert frontier.spread(alone, [], by_macs=by_macs) == []
        assert frontier.spread([], [], by_macs=by_macs) == []


def test_free_gains_are_one_point():
    keep = Candidate("s", None, (), SKELETON, Cost(2), 0.0, 0.0, 1.0)
    free = Candidate("s", "p", (), SKELETON, Cost(1), 0.0, 0.0, 0.5)
    (plan,) = frontier.spread([[keep, free]], [], by_macs=False)
    assert plan.chosen == (free,)


def test_free_gains_leave_the_range_to_the_others(rng):
    sites = network(rng)
    free = replace(sites[0][3], drift=0.0, latency_ms=0.2)
    plans = frontier.spread([[sites[0][0], free], *sites[1:]], [], by_macs=False)
    assert [each for each in plans[0].chosen if each.pass_name] == [free]
    rest = [plan.latency_ms for plan in plans[1:]]
    assert rest[-1] == pytest.approx(0.2 + 5 / 8)
    assert len(rest) >= 5
    assert rest[0] < 4.8 + 0.4


def test_what_was_tried_already_is_not_made_again(rng):
    sites = network(rng)
    plans = frontier.spread(sites, [], by_macs=False)
    between = choose(sites, plans[3].drift * 0.97)
    assert plans[2].drift < between.drift < plans[3].drift
    # slower than what is there for less drift, so nothing that anybody would want
    useless = replace(between, latency_ms=plans[2].latency_ms * 1.01)
    found = frontier.spread(sites, [between, useless], by_macs=False)
    assert found[:3] + found[4:] == plans[:3] + plans[4:]
    assert found[3] is between
    # both ends of the range stay
    near = choose(sites, plans[-1].drift * 0.97)
    assert frontier.spread(sites, [near], by_macs=False) == plans


@pytest.fixture
def trace(monkeypatch):
    """Traces the trade-off of a network with stand-ins; returns points, warnings and the plans refitted."""

    def compare(before, after, *_, **__):
        gain = before() / after()
        return replace(REWRITTEN.latency, speedup=gain, speedup_low=0.8 * gain, speedup_high=1.2 * gain)

    monkeypatch.setattr(latency, "compare", compare)

    def call(chosen=None, corrected=1.0, **options):
        sites, built, told = network(np.random.default_rng(1)), [], []

        def build(plan):
            built.append(plan)
            return plan

        def drifts(model):
            return (Drift("rel_l2", None, 0.9 / model.source, 0.0, 1.0, 20, 0),)

        job = Job(
            SimpleNamespace(source=6.0), SimpleNamespace(drifts=drifts), {}, None, 1.02, Limits(), 0,
            lambda *each: told.append(each),
        )  # fmt: skip
        # the same plan by other candidates
        slower = [[replace(each, latency_ms=each.latency_ms * corrected) for each in site] for site in sites]
        trials = [] if chosen is None else [Trial(choose(slower, chosen), choose(sites, chosen), 0.5)]
        accepted = trials[0] if trials else None
        ending = Ending(accepted, "", latency=None if accepted is None else REWRITTEN.latency)
        points, warnings = frontier.trace(
            replace(job, **options),
            sites,
            trials,
            ending,
            build,
            lambda trial: SimpleNamespace(source=trial.rewrites.latency_ms),
            total_macs(sites),
        )
        return points, warnings, built, told

    return call


def test_every_point_is_measured_and_the_chosen_one_marked(trace):
    points, warnings, built, told = trace(0.05)
    assert warnings == ()
    assert [point.chosen for point in points].count(True) == 1
    (chosen,) = (point for point in points if point.chosen)
    # as it was compared for the final word, and never made again
    assert chosen.speedup == REWRITTEN.latency.speedup
    assert chosen.predicted_drift <= 0.05**0.5
    assert len(built) == len(points) - 1
    for point in points:
        assert point.drift[0].value == pytest.approx(0.9 / point.predicted_ms)
        assert point.macs_ratio == pytest.approx(point.predicted_ms / 6, abs=0.01)
        if not point.chosen:
            assert point.speedup_low < point.speedup == pytest.approx(6 / point.predicted_ms)
    drifts = [point.predicted_drift for point in points]
    assert drifts == sorted(drifts)
    assert told[-1][1:] == (len(points), len(points))
    assert [done for _, done, _ in told] == list(range(1, len(points) + 1))


def test_latencies_that_the_search_corrected_are_not_mixed_with_others(trace):
    points, _, built, _ = trace(0.05, corrected=2.0)
    plain = trace(0.05)[0]
    assert [point.predicted_ms for point in points] == [point.predicted_ms for point in plain]
    assert len(built) == len(points) - 1
    assert sum(point.chosen for point in points) == 1


def test_nothing_chosen_nothing_marked(trace):
    points, _, built, _ = trace()
    assert len(points) == len(built) >= 6
    assert not any(point.chosen for point in points)


def test_multiply_adds_are_traded_where_nothing_is_timed(trace):
    points, _, _, _ = trace(macs=6000)
    assert {point.predicted_ms for point in points} == {None}
    ratios = [point.macs_ratio for point in points]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(0.125)


def test_when_time_is_over_what_is_there_is_said(trace, monkeypatch):
    monkeypatch.setattr(frontier, "_BEGUN_S", 0.0)
    points, warnings, _, _ = trace(0.05)
    # the one that needs no work comes first
    assert [point.chosen for point in points] == [True]
    (warning,) = warnings
    assert warning.startswith("the trade-off has 1 of ")


@pytest.mark.parametrize("options", [{"max_drift": {"rel_l2": 0.1, "max_abs": 9.0}}, {"max_macs": 0.5}])
def test_the_whole_line(rng, monkeypatch, options):
    fake_latency.install(monkeypatch)
    model, samples = residual.network(rng, rank=8, noise=0.1), residual.images(rng, 60)
    passes = ("channel_svd", "tucker2")
    report = rewriter.optimize(model, [{"x": samples}], passes=passes, frontier=True, **options).report
    assert report.improved
    (chosen,) = (point for point in report.frontier if point.chosen)
    assert chosen.macs_ratio == report.after.macs / report.before.macs
    assert chosen.speedup == report.latency.speedup
    assert chosen.sites == sum(site.became is not None for site in report.sites)
    for point in report.frontier:
        assert [each.measure for each in point.drift] == list(options.get("max_drift", {"rel_l2": 0}))
        assert point.drift[0].samples == report.samples["choose"]
        assert point.speedup == pytest.approx(1 / point.macs_ratio)
    speeds = [point.speedup for point in report.frontier if not point.chosen]
    assert speeds == sorted(speeds)
    # the network's own drift follows the predicted one over the whole range
    measured = [point.drift[0].value for point in report.frontier]
    assert measured[0] < measured[-1] / 5
    plain = rewriter.optimize(model, [{"x": samples}], passes=passes, **options).report
    assert plain.frontier == ()
    assert plain.sites == report.sites


POINTS = (
    Point(2, 0.8, 0.01, (Drift("rel_l2", None, 0.0123, 0.01, 0.02, 20, 0),), 2.0, 1.25, 1.2, 1.31, False),
    Point(3, 0.4, 0.05, (Drift("rel_l2", None, 0.0456, 0.04, 0.05, 20, 0),), 1.0, 1.98, 1.9, 2.05, True),
)


def test_the_views_have_the_points():
    report = replace(REWRITTEN, frontier=POINTS)
    points = json.loads(to_json(report))["frontier"]
    assert [point["chosen"] for point in points] == [False, True]
    assert points[0]["predicted_ms"] == 2.0
    assert points[1]["drift"][0]["value"] == 0.0456
    lines = to_markdown(report).splitlines()
    assert "| Trade-off | MACs | pred. drift | pred. ms | rel_l2 | speed-up | interval |  |" in lines
    assert "| 3 sites | 40.0 % | 0.0500 | 1.00 | 0.0456 | 1.98x | 1.90 to 2.05 | chosen |" in lines
    console = Console(width=80, record=True, file=io.StringIO())
    to_terminal(report, console)
    shown = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "2 sites 80.0 % 0.0100 2.00 0.0123 1.25x 1.20 to 1.31" in shown
    untimed = to_markdown(
        replace(report, frontier=tuple(replace(each, predicted_ms=None) for each in POINTS))
    )
    assert "| 3 sites | 40.0 % | 0.0500 | 0.0456 | 1.98x | 1.90 to 2.05 | chosen |" in untimed.splitlines()
    assert "Trade-off" not in to_markdown(REWRITTEN)
