"""Budgets of drift, and the verdict on what was measured against them."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from rewriter.drift import MEASURES, Drift, means
from rewriter.errors import OptionError, SampleError

# An interval wider than its budget on either side says that the samples are too few; on a scale whose zero
# means nothing it is so many decibels instead.
_UNSURE_DB: Final = 3.0
# Below this many samples the bootstrap itself cannot tell how far their mean may be off.
_FEW: Final = 10
# Nobody gives so many.
_MANY: Final = 1_000_000
# Per cent of samples: one of few is much.
_SHARES: Final = ("top1_flips", "top1_drop", "top5_drop")


@dataclass(frozen=True, slots=True)
class Scale:
    """What sizes of noise on the outputs make of a measure: a scale for one that has no zero of its own.

    Attributes:
        values: Of the measure, rising.
        sizes: Of the noise.
    """

    values: tuple[float, ...]
    sizes: tuple[float, ...]

    @classmethod
    def of(cls, sizes: Sequence[float], values: Sequence[float], limit: float) -> Self | None:
        """The scale, or None where the limit is outside of it."""
        found = [(value, size) for value, size in zip(values, sizes, strict=True) if math.isfinite(value)]
        rising = [
            (value, size)
            for index, (value, size) in enumerate(found)
            if all(value > before for before, _ in found[:index])
        ]
        if len(rising) < 2 or not rising[0][0] < limit < rising[-1][0]:
            return None
        return cls(tuple(value for value, _ in rising), tuple(size for _, size in rising))

    def size(self, value: float) -> float:
        """The noise that makes so much of the measure, as far as the scale goes."""
        return float(np.exp(np.interp(value, self.values, np.log(self.sizes))))


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a measure may come to.

    Attributes:
        measure: The measure's name.
        limit: The most.
        scale: For a limit that is no multiple of anything, such as minus a PSNR.
    """

    measure: str
    limit: float
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget and what was measured against it.

    Attributes:
        budget: What was asked.
        drift: What was measured, for the model as a whole.
        warning: Why the samples are too few to be sure, or None.
        strict: Whether the upper end of the interval is asked to be within the budget, not the estimate.
    """

    budget: Budget
    drift: Drift
    warning: str | None
    strict: bool = False

    @property
    def judged(self) -> float:
        """The figure that is asked to be within the budget."""
        return self.drift.high if self.strict else self.drift.value

    @property
    def share(self) -> float:
        """How much of the budget that takes; infinite where the budget is nothing and the drift is not."""
        return self._share(self.judged)

    @property
    def likely_share(self) -> float:
        """The same by what more samples would most likely show, where that is known."""
        likely = None if self.strict else self.drift.likely
        return self.share if likely is None else self._share(likely)

    def _share(self, value: float) -> float:
        limit = self.budget.limit
        if self.budget.measure == "noise_db":
            return float(10 ** ((value - limit) / 20))
        if limit > 0.0:
            return max(value, 0.0) / limit
        if self.budget.scale is not None and value < math.inf:
            return self.budget.scale.size(value) / self.budget.scale.size(limit)
        return 0.0 if value <= limit else math.inf

    @property
    def passed(self) -> bool:
        """Whether it is."""
        return self.judged <= self.budget.limit


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


def within(drifts: Sequence[Drift], budgets: Sequence[Budget], strict: bool = False) -> tuple[Verdict, ...]:
    """Returns the verdict on every budget, by the estimates for the model as a whole.

    Args:
        drifts: What was measured.
        budgets: What was asked.
        strict: Ask it of the upper ends of the intervals.

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
        verdicts.append(Verdict(each, drift, _warning(drift, each), strict))
    return tuple(verdicts)


def check_reachable(verdicts: Sequence[Verdict], what: str) -> None:
    """Returns if budgets can be met on these samples at all; to be asked before a long run.

    Args:
        verdicts: On the original beside itself: what no rewrite does better than.
        what: What the samples are for.

    Raises:
        SampleError: A budget cannot be met even without any drift, as the interval alone is wider.
    """
    for each in verdicts:
        if each.strict and each.drift.value <= each.budget.limit < each.drift.high:
            name, count = each.drift.measure, each.drift.samples
            enough = _enough(each) if name in _SHARES else None
            more = "" if enough is None else f"{enough} or more of them, "
            raise SampleError(
                f"--strict: on {count} samples for {what} the interval of {name} reaches to "
                f"{each.drift.high:.3g} even where nothing changes, beyond the budget of "
                f"{each.budget.limit:g}; give {more}a larger budget, or leave --strict out"
            )


def _enough(verdict: Verdict) -> int | None:
    """How many samples would do for the budget of a share if nothing changed; None for far too many."""

    def reach(count: int) -> float:
        return means(verdict.drift.measure, {None: np.zeros(count)}, single=True, seed=0)[0].high

    most = verdict.drift.samples
    while reach(most) > verdict.budget.limit:
        if most > _MANY:
            return None
        most *= 2
    return bisect.bisect(range(most), -verdict.budget.limit, key=lambda count: -reach(max(count, 1)))


def _warning(drift: Drift, asked: Budget) -> str | None:
    half = (drift.high - drift.low) / 2 if math.isfinite(drift.value) else 0.0
    are = "sample is" if drift.samples == 1 else "samples are"
    few = f"{drift.samples} {are} too few for {asked.measure}"
    if asked.measure in _SHARES and 100.0 / drift.samples > asked.limit:
        return f"{few} = {asked.limit:g}: one sample is {100.0 / drift.samples:.3g} per cent"
    if drift.samples < _FEW:
        return f"{few} = {asked.limit:g}: fewer than {_FEW} say little about others"
    if half > (_UNSURE_DB if asked.measure == "noise_db" else asked.limit):
        return f"{few} = {asked.limit:g}: the interval is ±{half:.2g}"
    return None
