"""The final word on trials whose drift, speed, load time and memory are given."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from example_report import REWRITTEN

from rewriter import latency
from rewriter.budget import Budget, Verdict
from rewriter.conv import Conv, Cost
from rewriter.drift import Drift
from rewriter.limits import Limits
from rewriter.plan import Candidate, Plan
from rewriter.rewrite import Rewrite
from rewriter.search import Trial
from rewriter.verdict import Job, final_word, own_rounding

MB = 10**6
SKELETON = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))


def trial(added_mb, speedup=2.0, drift=0.01, load_ms=None, sites=4, sure=None):
    """A trial with so many sites rewritten; the rest is what will be measured of it.

    `sure` gives the lower bound of the speed-up after so many seconds; it is as sure as can be without.
    """
    chosen = tuple(Candidate(str(i), "p", (), SKELETON, Cost(), 0.0) for i in range(sites))
    measured = {"speedup": speedup, "drift": drift, "added": added_mb * MB, "load": load_ms or 100.0}
    measured["sure"] = sure or (lambda seconds: speedup)
    return Trial(Plan(chosen, drift**2, 1 / speedup, 0.0, added_mb * MB), measured, 0.5)


@pytest.fixture
def judged(monkeypatch):
    """Runs the final word on trials and ways to retreat; returns the ending, looks and asked retreats."""

    def compare(before, after, *_, seconds, **__):
        after = after()
        return replace(
            REWRITTEN.latency,
            speedup=after["speedup"],
            speedup_lower=after["sure"](seconds),
            before_load_ms=100.0,
            after_load_ms=after["load"],
            before_peak_bytes=100 * MB,
            after_peak_bytes=100 * MB + 2 * after["added"],
        )

    def call(
        trials, retreats=(), fallback=None, limits=None, *, strict=False, gated=True, likely=None, **options
    ):
        def verdicts(model):
            value = model.measured["drift"]
            drift = Drift("rel_l2", None, value, 0.0, 1.5 * value, 50, 0, likely=likely)
            asked = [Verdict(Budget("rel_l2", 0.05), drift, None, strict)] if gated else []
            return (drift,), tuple(asked)

        looked, asked, left = [], [], list(retreats)

        def assemble(each):
            looked.append(each)
            return SimpleNamespace(measured=each.rewrites, source=each.rewrites)

        def retreat(drift, most_bytes, under_ms):
            asked.append((drift, most_bytes))
            return left.pop(0) if left else None

        original = SimpleNamespace(source="")
        judge = SimpleNamespace(verdicts=verdicts)
        job = Job(original, judge, {}, None, 1.02, limits or Limits(), 0, lambda *_: None)
        otherwise = options.pop("otherwise", None)
        job = replace(job, **options)
        return final_word(job, trials, retreat, fallback, assemble, otherwise), looked, asked

    monkeypatch.setattr(latency, "compare", compare)
    return call


def test_within_the_limits_the_fastest_is_taken(judged):
    first, second = trial(200), trial(10)
    ending, looked, _ = judged([first, second])
    assert ending.accepted is first
    assert looked == [first]


def test_memory_over_its_limit(judged):
    ending, _, asked = judged([trial(300)])
    assert ending.accepted is None
    assert ending.model is None
    assert ending.latency is not None
    assert ending.verdict == (
        "Nothing was written: within budget (rel_l2 0.01 of 0.05 on 50 samples) and 2.00 times as fast, but "
        "its peak memory is 7 times the original's (700 MB instead of 100 MB), over --max-memory 5."
    )
    # 400 of 600 MB more are allowed, and a margin is left
    assert asked == [(pytest.approx(1e-4), pytest.approx(300 * MB * 400 / 600 * 0.8))]


def test_load_time_over_its_limit(judged):
    ending, _, asked = judged([trial(10, load_ms=500.0)], limits=Limits(load=3.0))
    assert "its load time is 5 times the original's (500 ms instead of 100 ms), over --max-load 3." in (
        ending.verdict
    )
    assert asked == [(pytest.approx(1e-4), pytest.approx(10 * MB * 200 / 400 * 0.8))]


def test_both_over_their_limits(judged):
    ending, _, asked = judged([trial(300, load_ms=5000.0)])
    assert "--max-load 10 and its peak memory is" in ending.verdict
    assert asked[0][1] == pytest.approx(300 * MB * 900 / 4900 * 0.8)


def test_the_next_needs_less(judged):
    heavy, less, light = trial(300, 3.0), trial(250, 2.5), trial(100, 2.0)
    ending, looked, asked = judged([heavy, less, light])
    assert ending.accepted is light
    assert looked == [heavy, light]
    assert asked == []
    assert any(
        "a model was passed over: 3.00 times as fast, but its peak memory" in w for w in ending.warnings
    )


def test_a_lighter_one_is_made_where_none_is_left(judged):
    heavy, light = trial(300, 3.0), trial(150, 2.0)
    ending, looked, _ = judged([heavy, trial(250)], [light])
    assert ending.accepted is light
    assert looked == [heavy, light]
    assert ending.latency.after_peak_bytes == 400 * MB


def test_a_retreat_from_drift_keeps_the_limit_on_memory(judged):
    heavy, drifting = trial(300), trial(100, drift=0.09)
    _, _, asked = judged([heavy], [drifting])
    assert asked[1] == (pytest.approx(0.09**2 * 0.3), asked[0][1])


@pytest.mark.parametrize(("drift", "share"), [(0.0501, 0.85), (0.052, (0.95 / 1.04) ** 2), (0.5, 0.3)])
def test_a_retreat_is_as_far_as_the_drift_was_over(judged, drift, share):
    _, _, asked = judged([trial(10, drift=drift)], [trial(10)])
    assert asked[0][0] == pytest.approx(drift**2 * share)


@pytest.mark.parametrize(("likely", "share"), [(0.03, 0.85), (0.0525, (0.95 / 1.05) ** 2), (0.3, 0.3)])
def test_a_retreat_is_as_far_as_the_drift_most_likely_was_over(judged, likely, share):
    _, _, asked = judged([trial(10, drift=0.5)], [trial(10)], likely=likely)
    assert asked[0][0] == pytest.approx(0.5**2 * share)


@pytest.mark.parametrize(("likely", "shares"), [(None, (0.85, 0.85, 0.3)), (0.05, (0.85, 0.55, 0.5))])
def test_retreats_go_further_where_counted_samples_are_hard_on_all(judged, likely, shares):
    drifts = 0.0504, 0.0503, 0.0502, 0.0501
    first, *others = (trial(10, drift=each) for each in drifts)
    _, looked, asked = judged([first], others, likely=likely)
    assert len(looked) == 4
    assert [limit for limit, _ in asked] == pytest.approx(
        [each**2 * share for each, share in zip(drifts, shares, strict=False)]
    )


def test_looks_are_limited(judged):
    ending, looked, asked = judged([trial(300)], [trial(299 - i) for i in range(9)])
    assert len(looked) == 4
    assert len(asked) == 3
    assert ending.accepted is None
    assert sum("passed over" in warning for warning in ending.warnings) == 3


def test_what_adds_no_weights_is_followed_by_less_rewritten(judged):
    slow_to_load, same, fewer = trial(0, load_ms=2000.0), trial(0), trial(0, sites=2)
    ending, looked, asked = judged([slow_to_load, same, fewer])
    assert ending.accepted is fewer
    assert looked == [slow_to_load, fewer]
    assert asked == []


def test_the_fallback_comes_last(judged):
    heavy, fallback = trial(300), trial(0, 1.1, sites=0)
    ending, looked, asked = judged([heavy], fallback=fallback)
    assert ending.accepted is fallback
    assert looked == [heavy, fallback]
    assert len(asked) == 1


def test_too_slow_is_no_matter_of_memory(judged):
    ending, _, asked = judged([trial(300, 1.01)])
    assert "at least 1.01 at 99.9 % confidence where 1.02 was asked" in ending.verdict
    assert asked == []


def test_strict_asks_it_of_the_upper_end(judged):
    over, within = trial(0, 3.0, drift=0.04), trial(0, 2.0, drift=0.03)
    assert judged([over, within])[0].accepted is over
    ending, looked, _ = judged([over, within], strict=True)
    assert ending.accepted is within
    assert looked == [over, within]
    assert ending.gates[0].strict
    assert ending.gates[0].passed
    assert ending.verdict.endswith("rel_l2 0.03, upper end 0.045 of 0.05 on 50 samples.")
    ending, _, _ = judged([over], strict=True)
    assert ending.verdict == (
        "Nothing was written: on the final samples rel_l2 0.04, upper end 0.06 of 0.05 on 50 samples."
    )


def test_bounded_multiply_adds_need_no_budget_and_no_speed(judged):
    drifting = trial(0, 0.8, drift=0.5)
    ending, _, _ = judged([drifting], gated=False, min_speedup=0.0, macs=10)
    assert ending.accepted is drifting
    assert ending.gates == ()
    assert ending.verdict.startswith("0 of the multiply-adds, 0.80 times as fast (95 % interval ")
    assert ending.verdict.endswith("), rel_l2 0.5 on 50 samples.")


def test_bounded_multiply_adds_keep_to_what_is_asked_beside_them(judged):
    ending, _, _ = judged([trial(0, 0.8, drift=0.5)], gated=False, macs=10)
    assert ending.verdict == (
        "Nothing was written: 0 of the multiply-adds, rel_l2 0.5 on 50 samples, but 0.80 times as fast, at "
        "least 0.80 at 99.9 % confidence where 1.02 was asked."
    )
    ending, _, _ = judged([trial(0, 2.0, drift=0.5)], min_speedup=0.0, macs=10)
    assert ending.verdict == "Nothing was written: on the final samples rel_l2 0.5 of 0.05 on 50 samples."
    assert ending.accepted is None


def test_why_there_is_nothing_to_try(judged):
    assert judged([], otherwise="it is raining")[0].verdict == "Nothing was written: it is raining."
    assert "a larger --max-drift may leave room" in judged([])[0].verdict


def test_a_faster_retreat_comes_before_what_the_search_found(judged):
    over, slow, between = trial(1, 3.0, drift=0.06), trial(2, 1.5, drift=0.02), trial(3, 2.5, drift=0.045)
    ending, looked, _ = judged([over, slow], [between])
    assert ending.accepted is between
    assert looked == [over, between]
    ending, looked, _ = judged([over, slow])
    assert ending.accepted is slow


def test_a_longer_look_decides_where_the_first_leaves_it_open(judged):
    slow_to_tell = trial(0, speedup=1.1, sure=lambda seconds: 1.05 if seconds > latency.SECONDS else 0.9)
    assert judged([slow_to_tell])[0].accepted is slow_to_tell
    never_sure = judged([trial(0, speedup=1.1, sure=lambda seconds: 1.0)])[0]
    assert never_sure.accepted is None
    assert "1.10 times as fast, at least 1.00" in never_sure.verdict


def test_what_is_not_faster_gets_no_second_look(judged):
    looks = []
    judged([trial(0, speedup=1.01, sure=lambda seconds: looks.append(seconds) or 0.9)])
    assert looks == [latency.SECONDS]


def test_the_last_look_is_at_what_should_be_safe(judged):
    """Samples that were hard on three models a little over budget will be on a fourth like them."""
    over = [trial(0, drift=0.051) for _ in range(4)]
    _, looked, asked = judged(over[:1], over[1:])
    assert looked == over
    shares = [most_drift / each.plan.drift for (most_drift, _), each in zip(asked, looked, strict=False)]
    assert shares == pytest.approx([0.85, 0.85, 0.3])


def test_rounding_of_the_original_is_told_where_it_takes_much_of_a_budget(judged):
    def judge(own):
        drift = Drift("rel_l2", None, own, own, own, 50, 0)
        return SimpleNamespace(rounding=lambda: (Verdict(Budget("rel_l2", 0.05), drift, None),))

    over = judged([trial(0, drift=0.06)])[0]
    (told,) = own_rounding(judge(0.04), over)
    assert "moves the original's outputs by rel_l2 0.04" in told
    assert own_rounding(judge(0.01), over) == ()
    slow = judged([trial(0, speedup=1.0)])[0]
    assert own_rounding(judge(0.04), slow) == ()
