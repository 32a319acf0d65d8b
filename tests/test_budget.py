import re

import numpy as np
import pytest

from rewriter import budget
from rewriter.budget import Budget, Scale
from rewriter.drift import Drift, means
from rewriter.errors import OptionError, SampleError
from rewriter.meter import Meter


def test_budgets_are_read() -> None:
    assert budget.parse("rel_l2=0.05") == Budget("rel_l2", 0.05)
    assert budget.parse("noise_db=-40") == Budget("noise_db", -40.0)
    assert budget.parse("a=b/m.py:f=1e-3") == Budget("a=b/m.py:f", 0.001)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rel_l2", "NAME=VALUE"),
        ("l2=0.1", r"unknown measure 'l2'; known are rel_l2, max_abs.*file\.py:function"),
        ("rel_l2=much", "not a number"),
        ("rel_l2=nan", "not a number"),
        ("rel_l2=inf", "not a number"),
        ("rel_l2=-1", "negative"),
    ],
)
def test_senseless_budgets(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        budget.parse(text)


def test_verdicts_go_by_the_estimate_of_the_whole() -> None:
    drifts = [Drift("rel_l2", None, 0.05, 0.04, 0.07, 50, 0), Drift("rel_l2", "b", 0.01, 0.0, 0.1, 50, 0)]
    passed, failed = budget.within(drifts, [Budget("rel_l2", 0.05), Budget("rel_l2", 0.04)])
    assert passed.passed
    assert passed.warning is None
    assert passed.drift is drifts[0]
    assert not failed.passed


def test_a_scale_by_noise() -> None:
    found = Scale.of([0.01, 0.1, 1.0], [-40.0, -20.0, 0.0], -30.0)
    assert found is not None
    sizes = [found.size(value) for value in (-40.0, -30.0, -10.0)]
    assert sizes == pytest.approx([0.01, 0.1**1.5, 0.1**0.5])
    # it goes no further
    assert [found.size(value) for value in (-90.0, 5.0)] == pytest.approx([0.01, 1.0])
    drifts = [Drift("own.py:f", None, -20.0, -21.0, -19.0, 50, 0)]
    (verdict,) = budget.within(drifts, [Budget("own.py:f", -40.0, found)])
    assert verdict.share == pytest.approx(10.0)
    assert not verdict.passed


def test_scales_leave_out_what_does_not_rise() -> None:
    found = Scale.of([0.01, 0.1, 1.0, 2.0], [-3.0, np.nan, -3.0, -1.0], -2.0)
    assert found == Scale((-3.0, -1.0), (0.01, 2.0))
    for limit in (-5.0, -1.0, 0.0):
        assert Scale.of([0.01, 0.1], [-3.0, -1.0], limit) is None


def test_strict_verdicts_go_by_the_upper_end() -> None:
    drifts = [Drift("rel_l2", None, 0.05, 0.04, 0.07, 50, 0)]
    for limit, passed, strictly in ((0.04, False, False), (0.05, True, False), (0.07, True, True)):
        (easy,), (strict,) = (
            budget.within(drifts, [Budget("rel_l2", limit)], asked) for asked in (False, True)
        )
        assert (easy.passed, strict.passed) == (passed, strictly)
        assert (easy.judged, strict.judged) == (0.05, 0.07)


def unchanged(measure: str, count: int) -> Drift:
    """What a model drifts from itself."""
    return means(measure, {None: np.zeros(count)}, single=True, seed=0)[0]


@pytest.mark.parametrize(("measure", "limit"), [("top1_drop", 0.5), ("top5_drop", 1.9), ("top1_flips", 1.0)])
def test_budgets_that_nothing_meets_strictly_say_how_many_samples_would_do(
    measure: str, limit: float
) -> None:
    asked = [Budget(measure, limit)]
    with pytest.raises(SampleError, match=f"100 samples for choosing .* {measure} reaches to") as refused:
        budget.check_reachable(budget.within([unchanged(measure, 100)], asked, strict=True), "choosing")
    found = re.search(r"budget of (\S+); give (\d+) or more of them", str(refused.value))
    assert found is not None
    assert float(found[1]) == limit
    enough = int(found[2])
    assert unchanged(measure, enough).high <= limit < unchanged(measure, enough - 1).high
    budget.check_reachable(budget.within([unchanged(measure, enough)], asked, strict=True), "choosing")
    budget.check_reachable(budget.within([unchanged(measure, 100)], asked), "choosing")


@pytest.mark.parametrize("limit", [0.0, 1e-9])
def test_no_number_of_samples_is_asked_for_that_nobody_has(limit: float) -> None:
    verdicts = budget.within([unchanged("top1_flips", 10)], [Budget("top1_flips", limit)], strict=True)
    with pytest.raises(SampleError, match="; give a larger budget, or leave --strict out"):
        budget.check_reachable(verdicts, "choosing")


@pytest.mark.parametrize(
    ("measure", "low", "high", "samples", "limit", "says"),
    [
        ("rel_l2", 0.0, 0.3, 14, 0.1, "14 samples are too few for rel_l2 = 0.1: the interval is ±0.15"),
        ("top1_flips", 0.0, 1.0, 50, 1.0, "one sample is 2 per cent"),
        ("noise_db", -50.0, -40.0, 1, -30.0, "1 sample is too few"),
        ("noise_db", -46.0, -41.0, 9, -30.0, "fewer than 10"),
        ("noise_db", -46.0, -41.0, 10, -30.0, None),
        ("top1_drop", 0.0, 1.0, 100, 1.0, None),
    ],
)
def test_too_few_samples_are_said(
    measure: str, low: float, high: float, samples: int, limit: float, says: str | None
) -> None:
    drifts = [Drift(measure, None, low, low, high, samples, 0)]
    warning = budget.within(drifts, [Budget(measure, limit)])[0].warning
    assert warning is None if says is None else says in str(warning)


@pytest.mark.parametrize(
    ("measure", "says"),
    [("top1_drop", "needs integer labels"), ("kl", "class scores"), ("psnr_drop_db", "target images")],
)
def test_a_budget_that_cannot_be_measured_says_what_is_missing(measure: str, says: str) -> None:
    meter = Meter(["y"])
    meter.update([np.ones((2, 3, 4, 4))], [np.ones((2, 3, 4, 4))])
    with pytest.raises(SampleError, match=says):
        budget.within(meter.result(), [Budget(measure, 1.0)])
