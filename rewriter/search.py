"""Plans tried on the network itself: predict, refit, measure, correct the prediction, plan again."""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rewriter.graph import Site
from rewriter.growth import Point
from rewriter.plan import Candidate, Plan, choose
from rewriter.progress import Progress
from rewriter.rewrite import Rewrite

Rewrites = Sequence[tuple[Site, Rewrite]]
Sites = Sequence[Sequence[Candidate]]

_log = logging.getLogger(__name__)

# The choosing samples are another draw than the final ones: aim inside the budget, not at its edge.
MARGIN = 0.9
_ROUNDS = 8
# Stop where the largest limit known to fit and the smallest known not to are this close.
_CLOSE = 1.25
# A little less than all that fits.
_AIM = 0.97
# So many times the network corrects the latencies; so many trials are timed at last.
_CORRECTIONS = 3
_TIMED = 4
# Then so many steps of one site, in at most this share of the time that the rounds took.
_STEPS = 8
_STEPS_SHARE = 0.75
# So many in a row that do not fit say that no other will.
_FAILURES = 3
# What should take so many times what fits is not tried.
_HOPELESS = 3.0
# A plan that is faster by less than this factor is not worth making: the network's noise is as much.
_FASTER = 0.99
# A form that takes at most this share of its site's time will gain in the network, too.
_SURE = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A plan made real.

    Attributes:
        plan: What was chosen.
        rewrites: Of the sites that it changes, fitted; the model is put together when it is needed.
        usage: The largest share of a budget that its drift takes on the choosing samples; at most 1 fits.
    """

    plan: Plan
    rewrites: Rewrites
    usage: float


@dataclass(frozen=True, slots=True)
class Round:
    """One trial of the search: a plan, its prediction and what was measured on the choosing samples.

    Attributes:
        sites: How many sites it rewrites.
        predicted_drift: Relative L2 drift of the outputs, from the candidates' errors and the sensitivities.
        budget_share: The largest share of a budget that its measured drift takes; at most 1 fits. Without
            budgets its relative L2 drift.
        predicted_ms: Sum of the sites' latencies; None where nothing was timed.
        within_budget: Whether it fits with a margin; without budgets everything does.
        chosen: Whether this is the model that was made.
    """

    sites: int
    predicted_drift: float
    budget_share: float
    predicted_ms: float | None
    within_budget: bool
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin.

    Attributes:
        limit: On the sum of squared drifts.
        power: Of the limit, by which the measured share of a budget is likely to grow.
    """

    limit: float
    power: float


_NOTHING = Point(0.0, 0.0)


class Clock(Protocol):
    """What times the network itself."""

    def corrected(self, sites: Sites, trial: Trial) -> Sites:
        """The candidates with latencies as the network of a trial has them."""
        ...

    def fastest_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials by the time that their networks take."""
        ...


class Attempts:
    """Plans made real and measured, each once, and their record.

    Args:
        build: Refits a plan.
        usage: Measures it in the network on the choosing samples: the largest share of a budget it takes.
        progress: Told after every plan.
        margin: The largest share of a budget that fits.

    Attributes:
        trials: What fits.
        rounds: The record of all.
        margin: The largest share of a budget that fits.
    """

    def __init__(
        self,
        build: Callable[[Plan], Rewrites],
        usage: Callable[[Rewrites], float],
        progress: Progress,
        margin: float = MARGIN,
    ) -> None:
        self._build, self._usage, self._progress = build, usage, progress
        self._known: dict[tuple[Hashable, ...], float] = {}
        self.margin = margin
        self.trials: list[Trial] = []
        self.rounds: list[Round] = []

    def usage(self, plan: Plan) -> float:
        """The largest share of a budget that a plan takes on the choosing samples."""
        if not plan.rewritten:
            return 0.0
        if plan.forms not in self._known:
            rewrites = self._build(plan)
            measured = self._known[plan.forms] = self._usage(rewrites)
            fits = measured <= self.margin
            drift = float(np.sqrt(plan.drift))
            self.rounds.append(Round(len(plan.rewritten), drift, measured, plan.latency_ms, fits))
            _log.info(
                "plan %d: %d rewrites, %.3g of the budget where at most %.3g fits",
                len(self.rounds),
                len(plan.rewritten),
                measured,
                self.margin,
            )
            if fits:
                self.trials.append(Trial(plan, rewrites, measured))
            self._progress("searching", len(self.rounds), _ROUNDS + _CORRECTIONS + _STEPS)
        return self._known[plan.forms]

    def fits(self, plan: Plan) -> bool:
        """Whether a plan is within budget there, with the margin."""
        return self.usage(plan) <= self.margin

    def by_latency(self, sites: Sites) -> list[Trial]:
        """What fits, fastest first by the latencies that the sites' candidates have now."""
        now = [replace(trial, plan=trial.plan.now(sites)) for trial in self.trials]
        return sorted(now, key=lambda trial: trial.plan.latency_ms)


def search(
    sites: Sites, start: Start, attempts: Attempts, clock: Clock | None = None
) -> tuple[list[Trial], Sites]:
    """Trials within budget, fastest first, and the candidates with latencies as the network has them.

    Prediction is right up to a factor and a power that the first rounds find, so each measurement gives the
    next limit, bracketed by those known to fit and not to. Then the network itself corrects the latencies,
    and single sites are made faster, as long as that fits.

    Args:
        sites: Candidates with predicted drift and latency, the site as it is first.
        start: Where to begin.
        attempts: Makes plans real; has the record of every round when this is done.
        clock: Times the network; without one the candidates' latencies stand.
    """
    start_s = time.monotonic()
    _bracket(sites, start, attempts)
    spent_s = time.monotonic() - start_s
    if clock is not None:
        sites = _settle(sites, attempts, clock)
    _climb(sites, start, attempts, time.monotonic() + _STEPS_SHARE * spent_s)
    trials = attempts.by_latency(sites)
    if clock is None or len(trials) < 2:
        return trials, sites
    return [*clock.fastest_first(trials[:_TIMED]), *trials[_TIMED:]], sites


def _bracket(sites: Sites, start: Start, attempts: Attempts) -> None:
    """Looks for the largest limit on the predicted drift at which what is chosen fits."""
    limit, misses = start.limit, 0
    fits, fails = _NOTHING, Point(np.inf, np.inf)
    fits_ms = fails_ms = 0.0
    others: list[Point] = []
    for _ in range(_ROUNDS):
        plan = choose(sites, limit)
        measured = attempts.usage(plan) / attempts.margin
        if measured <= 1.0:
            if limit > fits.limit:
                others, fits = [fits, *others], Point(limit, measured)
                fits_ms = plan.latency_ms
        else:
            # every limit down to what it takes would choose this plan again
            limit, misses = plan.drift, misses + 1
            if limit < fails.limit:
                others, fails = [fails, *others], Point(limit, measured)
                fails_ms = plan.latency_ms
        if fails.limit <= fits.limit * _CLOSE or fails_ms > fits_ms * _FASTER > 0.0:
            break
        if fits.share >= _AIM or (fails.limit == np.inf and _everything(plan, sites)):
            break
        limit = _next(fits, fails, others, start.power)
        if fits is _NOTHING and misses > 1:
            # what is measured hangs on a site that the plans have in common: go down faster each time
            limit = min(limit, fails.limit / 2 ** (misses - 1))


def _settle(sites: Sites, attempts: Attempts, clock: Clock) -> Sites:
    """The candidates with latencies corrected by the network of the best plan, until that stays the best."""
    corrected: set[tuple[Hashable, ...]] = set()
    for _ in range(_CORRECTIONS):
        trials = attempts.by_latency(sites)
        if not trials or trials[0].plan.forms in corrected:
            break
        corrected.add(trials[0].plan.forms)
        sites = clock.corrected(sites, trials[0])
        # what fitted once is where to look, for prediction is right for plans that are alike
        attempts.usage(choose(sites, max(trial.plan.drift for trial in trials) * (1 + 1e-9)))
    return sites


def _climb(sites: Sites, start: Start, attempts: Attempts, end_s: float) -> None:
    """From the fastest plan that fits, one site faster at a time, the one that promises most for its drift.

    The budget's measure need not follow the predicted drift: where it does not, what the bracket left is
    found by trying, but not far beyond it. The number of steps is limited, and so is their time; none is too
    small to be seen.
    """
    if not attempts.trials:
        return
    best = attempts.by_latency(sites)[0].plan
    failed: set[Candidate] = set()
    in_a_row = 0
    for _ in range(_STEPS):
        here = Point(best.drift, attempts.usage(best) / attempts.margin)
        most = here.limit_of(_HOPELESS, start.power)
        steps = [each for each in _steps(sites, best, failed) if each[1].drift <= most]
        if not steps or in_a_row == _FAILURES or time.monotonic() > end_s:
            break
        step, plan = max(steps, key=lambda each: each[1].worth_over(best))
        if attempts.fits(plan):
            best, in_a_row = plan, 0
        else:
            failed.add(step)
            in_a_row += 1


def _steps(sites: Sites, plan: Plan, failed: set[Candidate]) -> Iterator[tuple[Candidate, Plan]]:
    """The plan with one site's next faster candidate for every site, without those that failed."""
    for index, (candidates, now) in enumerate(zip(sites, plan.chosen, strict=True)):
        most_ms = now.latency_ms - (1.0 - _FASTER) * plan.latency_ms
        faster = [each for each in candidates if each.latency_ms <= most_ms and each not in failed]
        if faster:
            step = min(faster, key=lambda each: (each.drift, each.latency_ms))
            yield step, plan.with_(index, step)


def _next(fits: Point, fails: Point, others: Sequence[Point], power: float) -> float:
    """The limit at which the measured share of what fits is likely to be one, kept inside the bracket.

    The share grows as a power of the limit: the one between the last two points that were measured, or the
    given one where there is only one of them.
    """
    near, *rest = [each for each in (fits, fails, *others) if 0.0 < each.limit < np.inf]
    if rest:
        power = near.power_to(rest[0])
    wanted = near.limit_of(_AIM, power)
    if fits.limit < wanted < fails.limit:
        return wanted
    if fits is _NOTHING:
        return fails.limit / 10
    return float(np.sqrt(fits.limit * fails.limit)) if fails.limit < np.inf else fits.limit * 10


def _everything(plan: Plan, sites: Sites) -> bool:
    """Whether the plan takes the fastest candidate of every site: no limit would give a faster one."""
    fastest = sum(min(candidate.latency_ms for candidate in candidates) for candidates in sites)
    return plan.latency_ms <= fastest * (1 + 1e-9)


def cautious(sites: Sites, trial: Trial) -> Plan | None:
    """A plan within the same predicted drift that takes only what gains much at its site, or None.

    What gains little where it is measured alone may lose in the network, where other layers use the caches.
    """
    sure = [
        [each for each in offers if each is offers[0] or each.latency_ms < offers[0].latency_ms * _SURE]
        for offers in sites
    ]
    plan = choose(sure, trial.plan.drift)
    return plan if plan.rewritten and plan.forms != trial.plan.forms else None


def unchanged(sites: Sites) -> Trial:
    """The trial in which every site stays as it is."""
    chosen = tuple(candidates[0] for candidates in sites)
    total = sum(candidate.latency_ms for candidate in chosen)
    return Trial(Plan(chosen, 0.0, total, total), (), 0.0)
