"""Budgets of drift, and the verdict on what was measured against them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rewriter.drift import MEASURES, Drift
from rewriter.errors import OptionError, SampleError

# An interval wider than its budget on either side says that the samples are too few; on a scale whose zero
# means nothing it is so many decibels instead.
_UNSURE_DB: Final = 3.0
# Below this many samples the bootstrap itself cannot tell how far their mean may be off.
_FEW: Final = 10


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a measure may come to."""

    measure: str
    limit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget and what was measured against it.

    Attributes:
        budget: What was asked.
        drift: What was measured, for the model as a whole.
        passed: Whether the estimate is within the budget.
        warning: Why the samples are too few to be sure, or None.
    """

    budget: Budget
    drift: Drift
    passed: bool
    warning: str | None


def parse(text: str) -> Budget:
    """Returns the budget of `NAME=VALUE`, a measure or `file.py:function` and the most it may come to.

    Raises:
        OptionError: The measure is unknown, or the value is no number or one that no model can meet.
    """
    name, equals, value = text.rpartition("=")
    if not equals:
        raise OptionError(f"budget {text!r} is not of the form NAME=VALUE, such as rel_l2=0.05")
    return checked(name.strip(), value)


def checked(measure: str, limit: object) -> Budget:
    """Returns a checked budget; see `parse`."""
    custom = ".py:" in measure
    if measure not in MEASURES and not custom:
        raise OptionError(
            f"unknown measure {measure!r}; known are {', '.join(MEASURES)}, and file.py:function"
        )
    try:
        number = float(limit)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"budget {measure}={limit} is not a number; give one, such as {measure}=0.05")
    if number < 0 and measure != "noise_db" and not custom:
        raise OptionError(f"budget {measure}={limit} is negative; drift is at least 0")
    return Budget(measure, number)


def within(drifts: Sequence[Drift], budgets: Sequence[Budget]) -> tuple[Verdict, ...]:
    """Returns the verdict on every budget, by the estimates for the model as a whole.

    Raises:
        SampleError: A budget is on a measure that these samples or outputs do not allow.
    """
    whole = {drift.measure: drift for drift in drifts if drift.output is None}
    verdicts = []
    for each in budgets:
        drift = whole.get(each.measure)
        if drift is None:
            known = MEASURES.get(each.measure)
            needs = known.needs if known is not None else "its function to be given to the meter"
            raise SampleError(f"measure {each.measure} needs {needs}; add that or budget rel_l2 instead")
        verdicts.append(Verdict(each, drift, drift.value <= each.limit, _warning(drift, each)))
    return tuple(verdicts)


def _warning(drift: Drift, asked: Budget) -> str | None:
    half = (drift.high - drift.low) / 2 if math.isfinite(drift.value) else 0.0
    are = "sample is" if drift.samples == 1 else "samples are"
    few = f"{drift.samples} {are} too few for {asked.measure}"
    if asked.measure in ("top1_flips", "top1_drop", "top5_drop") and 100.0 / drift.samples > asked.limit:
        return f"{few} = {asked.limit:g}: one sample is {100.0 / drift.samples:.3g} per cent"
    if drift.samples < _FEW:
        return f"{few} = {asked.limit:g}: fewer than {_FEW} say little about others"
    if half > (_UNSURE_DB if asked.measure == "noise_db" else asked.limit):
        return f"{few} = {asked.limit:g}: the interval is ±{half:.2g}"
    return None
