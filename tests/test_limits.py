"""What loading and memory may come to: ratios, what counts as noise, and values that make no sense."""

from dataclasses import replace

import pytest
from example_report import REWRITTEN

from rewriter import OptionError
from rewriter.limits import Limits


def expenses(limits=None, **changes):
    found = (limits or Limits()).expenses(replace(REWRITTEN.latency, **changes))
    return {each.measure: each for each in found}


def test_file_size_has_no_limit():
    size = expenses(before_size_bytes=1, after_size_bytes=10**9)["file_size_bytes"]
    assert (size.ratio, size.limit, size.allowed, size.passed) == (1e9, None, None, True)


@pytest.mark.parametrize(("after", "passed"), [(2000.0, True), (2001.0, False)])
def test_load_time(after, passed):
    load = expenses(before_load_ms=200.0, after_load_ms=after)["load_ms"]
    assert (load.limit, load.allowed, load.passed) == (10.0, 2000.0, passed)
    assert load.ratio == after / 200


@pytest.mark.parametrize(("after", "passed"), [(2 * 10**8, True), (2 * 10**8 + 1, False)])
def test_peak_memory(after, passed):
    peak = expenses(Limits(memory=2.0), before_peak_bytes=10**8, after_peak_bytes=after)["peak_bytes"]
    assert (peak.limit, peak.allowed, peak.passed) == (2.0, 2 * 10**8, passed)


def test_little_more_is_noise():
    found = expenses(
        Limits(1.0, 1.0),
        before_load_ms=1.0,
        after_load_ms=51.0,
        before_peak_bytes=10**6,
        after_peak_bytes=33 * 10**6,
    )
    assert all(each.passed for each in found.values())
    assert found["load_ms"].ratio == 51.0
    assert not expenses(Limits(load=2.0), before_load_ms=1.0, after_load_ms=51.1)["load_ms"].passed


def test_a_system_that_does_not_tell():
    peak = expenses(before_peak_bytes=0, after_peak_bytes=0)["peak_bytes"]
    assert (peak.ratio, peak.allowed, peak.passed) == (None, None, True)


def test_how_much_of_the_growth_is_allowed():
    over = expenses(Limits(load=3.0), before_load_ms=100.0, after_load_ms=500.0)["load_ms"]
    assert over.allowed_growth == pytest.approx(0.5)
    assert expenses()["load_ms"].allowed_growth == 1.0


@pytest.mark.parametrize("limits", [{"load": 0.9}, {"memory": 0.0}, {"memory": float("nan")}])
def test_limits_that_make_no_sense(limits):
    (name,) = limits
    with pytest.raises(OptionError, match=f"--max-{name} .* is below 1"):
        Limits(**limits)
