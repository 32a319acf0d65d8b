"""Bounded multiply-adds: what competes, what is chosen, and the whole line with nothing timed to choose."""

import json

import fake_latency
import numpy as np
import onnx
import pytest
import residual
from graphs import only

import rewriter
from rewriter import cli, latency, macs
from rewriter.conv import Conv, Cost
from rewriter.errors import OptionError
from rewriter.fitting import Survey
from rewriter.plan import Candidate
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd, in_tiles

PASSES = ("channel_svd", "tucker2")
CONV = Conv(np.ones((16, 16, 3, 3), np.float32), pads=(1, 1, 1, 1))


def candidate(name, macs, error=0.0, drift=0.0, skeleton=None, site="s"):
    return Candidate(site, name, (macs,), skeleton or only(CONV), Cost(macs), error, drift)


def survey(*candidates):
    return Survey(None, candidates, (), None, 0.0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 50.0, float("nan"), float("inf")])
def test_a_share_is_between_nothing_and_all(ratio):
    with pytest.raises(
        OptionError, match=f"--max-macs {ratio:g} is no share .* between 0 and 1, such as 0.5"
    ):
        macs.check_options(ratio, exact=False, strict=False)


def test_nothing_that_is_beaten_competes_nor_what_is_in_tiles():
    as_it_is, good, near = candidate(None, 100), candidate("a", 40, 0.1), candidate("b", 41, 0.1)
    better = candidate("c", 60, 0.05)
    tiled = candidate("w", 20, 0.0, skeleton=Rewrite(((in_tiles(CONV, Winograd((4, 4))),),)))
    assert macs.offers([survey(as_it_is, good, near, better, tiled), survey(as_it_is)]) == [
        [as_it_is, good, better],
        [as_it_is],
    ]


def network():
    """Two sites: all predictions say that the first is to be made cheap, first a little, then a lot."""
    return [
        [candidate(None, 100, site="a"), candidate("p", 50, drift=0.01, site="a")],
        [
            candidate(None, 100, site="b"),
            candidate("p", 50, drift=0.02, site="b"),
            candidate("p", 10, drift=0.05, site="b"),
        ],
    ]


def search(usage, ratio, gated=False):
    return macs.search(network(), 200 * ratio, lambda plan: plan, usage, lambda *_: None, gated=gated)


def test_the_least_measured_drift_wins():
    (trial,), rounds = search(lambda plan: plan.drift, 0.75)
    assert [each.cost.macs for each in trial.plan.chosen] == [50, 100]
    assert trial.plan.macs == 150
    assert [(each.sites, each.predicted_ms, each.within_budget) for each in rounds] == [(1, None, True)]
    # where amplitudes add up, one large error beats two smaller ones; the network says which is right
    (trial,), rounds = search(lambda plan: -plan.drift, 0.55)
    assert [each.cost.macs for each in trial.plan.chosen] == [100, 10]
    assert {each.sites for each in rounds} == {1, 2}


def test_rounds_say_whether_a_budget_is_kept():
    for gated, within in ((False, True), (True, False)):
        trials, rounds = search(lambda plan: 1.5, 0.75, gated)
        assert len(trials) == 1
        assert {each.within_budget for each in rounds} == {within}


def test_a_share_out_of_reach():
    assert macs.shortfall(network(), 0.3, 200) is None
    assert macs.shortfall(network(), 0.55, 200) is None
    assert "0.3 of the multiply-adds are left" in macs.shortfall(network(), 0.29, 200)
    assert search(lambda plan: 0.0, 0.29) == ([], [])
    alone = [network()[0][:1]]
    assert "1 of the multiply-adds are left" in macs.shortfall(alone, 0.9, 100)
    assert macs.shortfall([], 0.9, 0) is not None


@pytest.fixture
def files(rng, tmp_path):
    onnx.save(residual.network(rng, rank=8, noise=0.1), tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=residual.images(rng, 60))
    return tmp_path


@pytest.fixture
def untimed(monkeypatch):
    """Both models are compared at the end, but no candidate is timed."""
    fake_latency.install(monkeypatch)

    def interleaved(*_, **__):
        raise AssertionError("a candidate is timed")

    monkeypatch.setattr(latency, "interleaved", interleaved)


def optimize(files, ratio, **options):
    return rewriter.optimize(
        files / "net.onnx", files / "samples.npz", max_macs=ratio, passes=PASSES, **options
    )


def test_less_is_left_the_more_it_drifts(files, untimed):
    drifts = []
    for ratio in (0.8, 0.6, 0.4):
        found = optimize(files, ratio)
        report = found.report
        assert found.improved
        assert 0.8 * ratio < report.after.macs / report.before.macs <= ratio
        feeds = {"x": np.zeros((1, 8, 12, 12), np.float32)}
        assert fake_latency.macs(found.model.SerializeToString(), feeds) == report.after.macs
        assert report.gates == ()
        assert {site.latency_before_ms for site in report.sites} == {None}
        assert report.verdict.startswith(f"{report.after.macs / report.before.macs:.3g} of the multiply-adds")
        drifts += [each.value for each in report.drift if (each.measure, each.output) == ("rel_l2", None)]
    assert drifts == sorted(drifts)
    assert 0.0 < drifts[0] < 0.2


def test_a_budget_gates_only_where_it_is_given(files, untimed):
    free = optimize(files, 0.5)
    (drift,) = (each.value for each in free.report.drift if each.measure == "rel_l2")
    found = optimize(files, 0.5, max_drift={"rel_l2": drift / 2})
    assert not found.improved
    assert "Nothing was written: on the final samples rel_l2" in found.report.verdict
    assert optimize(files, 0.5, max_drift={"rel_l2": drift * 2}).report.gates[0].passed
    slow = optimize(files, 0.5, min_speedup=100.0)
    assert not slow.improved
    assert "where 100 was asked" in slow.report.verdict


def test_out_of_reach_nothing_is_written(files, untimed, capsys):
    out, why = files / "small.onnx", files / "why.json"
    args = [files / "net.onnx", "-o", out, "--calibration", files / "samples.npz", "--passes", "tucker2"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["optimize", *map(str, args), "--max-macs", "0.001", "--report", str(why)])
    assert ended.value.code == 3
    assert not out.exists()
    report = json.loads(why.read_text())
    assert report["verdict"].startswith("Nothing was written: --max-macs 0.001 is out of reach: ")
    assert report["max_macs"] == report["settings"]["max-macs"] == 0.001
    assert report["latency"] is None
    assert "of the multiply-adds are left" in " ".join(capsys.readouterr().out.split())
