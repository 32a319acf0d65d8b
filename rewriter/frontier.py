"""The whole trade-off of speed against drift: plans from hardly any to all that gains, made real."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from rewriter import graph, latency
from rewriter.graph import Model
from rewriter.latency import Latency
from rewriter.plan import Candidate, Plan, choose, choose_by_macs, least_macs, total_macs
from rewriter.report import Point
from rewriter.search import Rewrites, Trial
from rewriter.verdict import Ending, Job

_POINTS = 8
# The range begins where this share of all that drift could gain is.
_LEAST_GAIN = 0.05
# It goes no further down than this share of the squared drift of all that is fastest.
_LEAST_DRIFT = 1e-7
# Seconds to compare one plan with the original, and within which another plan is begun.
_COMPARED_S = 2.0
_BEGUN_S = 300.0


def trace(
    job: Job,
    sites: Sequence[Sequence[Candidate]],
    trials: Sequence[Trial],
    ending: Ending,
    build: Callable[[Plan], Rewrites],
    assemble: Callable[[Trial], Model],
    macs: int,
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """The points of the trade-off by growing predicted drift, and what to say where time ran out.

    Args:
        job: The budgets, their samples, and how the model is deployed.
        sites: Candidates with predicted drift, the site as it is first.
        trials: What the search found; these need not be made again.
        ending: What was made of them.
        build: Refits a plan.
        assemble: Puts a trial's model together.
        macs: The multiply-adds of the original's sites.
    """
    chosen = ending.accepted if ending.accepted is not None and ending.accepted.plan.rewritten else None
    # the search may have corrected latencies; here all plans are predicted alike
    made = {
        trial.plan.forms: replace(trial, plan=trial.plan.now(sites))
        for trial in (*trials, *([] if chosen is None else [chosen]))
    }
    plans = spread(sites, [trial.plan for trial in made.values()], by_macs=job.macs is not None)
    if chosen is not None and all(plan.forms != chosen.plan.forms for plan in plans):
        plans.append(made[chosen.plan.forms].plan)
    # what is there already first, then over the whole range before the gaps are filled
    order = sorted(range(len(plans)), key=lambda index: (plans[index].forms not in made, index % 2))
    points: list[tuple[Plan, Point]] = []
    end_s = time.monotonic() + _BEGUN_S
    for index in order:
        plan = plans[index]
        if points and time.monotonic() > end_s:
            break
        trial = made.get(plan.forms) or Trial(plan, build(plan), np.nan)
        model = assemble(trial)
        is_chosen = chosen is not None and plan.forms == chosen.plan.forms
        timing = ending.latency if is_chosen else None
        points.append((plan, _point(job, plan, model, timing, macs)))
        job.progress("tracing the trade-off", len(points), len(plans))
    found = tuple(point for plan, point in sorted(points, key=lambda each: (each[0].drift, -each[0].macs)))
    if len(found) == len(plans):
        return found, ()
    return found, (f"the trade-off has {len(found)} of {len(plans)} points: its {_BEGUN_S:g} s were over",)


def _point(job: Job, plan: Plan, model: Model, timing: Latency | None, macs: int) -> Point:
    """A plan as measured; `timing` is that of the chosen one, which was compared already."""
    found = timing or latency.compare(
        partial(graph.serialize, job.original),
        partial(graph.serialize, model),
        job.feeds,
        job.target,
        seconds=_COMPARED_S,
        seed=job.seed,
    )
    return Point(
        sites=len(plan.rewritten),
        macs_ratio=plan.macs / macs,
        predicted_drift=float(np.sqrt(plan.drift)),
        drift=job.judge.drifts(model),
        predicted_ms=plan.latency_ms if job.macs is None else None,
        speedup=found.speedup,
        speedup_low=found.speedup_low,
        speedup_high=found.speedup_high,
        chosen=timing is not None,
    )


def spread(sites: Sequence[Sequence[Candidate]], made: Sequence[Plan], *, by_macs: bool) -> list[Plan]:
    """Plans over the whole range, of growing predicted drift and falling latency or multiply-adds.

    Args:
        sites: Candidates with predicted drift, the site as it is first.
        made: A plan gives way to one of these that does hardly less.
        by_macs: Whether multiply-adds are what is traded for drift.
    """
    if all(len(candidates) == 1 for candidates in sites):
        return []
    if by_macs:
        shares = np.linspace(1.0, least_macs(sites) / total_macs(sites), _POINTS + 1)[1:]
        nearest = [choose_by_macs(sites, share * total_macs(sites)) for share in shares]
        return _distinct([plan for plan in nearest if plan is not None])
    plans = [choose(sites, 0.0)]
    plans += [choose(sites, limit) for limit in _limits(sites, plans[0].latency_ms)]
    found = plans[:1]
    for before, plan in pairwise(plans[:-1]):
        between = [
            each
            for each in made
            if before.drift < each.drift <= plan.drift and each.latency_ms < before.latency_ms
        ]
        found.append(min(between, key=lambda each: each.latency_ms, default=plan))
    return _distinct([*found, plans[-1]])


def _limits(sites: Sequence[Sequence[Candidate]], free_ms: float) -> list[float]:
    """Limits on the squared drift, from one that leaves hardly any gain to all that is fastest.

    Args:
        sites: Candidates with predicted drift.
        free_ms: What is reached without any drift.
    """
    fastest = [min(candidates, key=lambda each: (each.latency_ms, each.drift)) for candidates in sites]
    least_ms = sum(candidate.latency_ms for candidate in fastest)
    wanted_ms = free_ms - _LEAST_GAIN * (free_ms - least_ms)
    most = low = sum(candidate.drift for candidate in fastest)
    while low > most * _LEAST_DRIFT and choose(sites, low / 10).latency_ms <= wanted_ms:
        low /= 10
    return np.geomspace(low, most, _POINTS).tolist() if low > 0.0 else [0.0]


def _distinct(plans: Sequence[Plan]) -> list[Plan]:
    """Plans that rewrite something, each once."""
    return list({plan.chosen: plan for plan in plans if plan.rewritten}.values())
