"""Which candidates to take: the fastest set within a predicted drift, or the nearest within multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rewriter import knapsack
from rewriter.conv import Cost, Ints
from rewriter.rewrite import Lowerings, Rewrite


class Form(Protocol):
    """What a site becomes, as far as making it again needs to know."""

    @property
    def pass_name(self) -> str | None:
        """The pass, or None for the site as it is."""
        ...

    @property
    def rank(self) -> Ints:
        """The pass's rank."""
        ...

    @property
    def lowerings(self) -> Lowerings:
        """How its stages are written; empty where every one is one node."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to write one site.

    Attributes:
        site: The site's name.
        pass_name: The pass, or None for the site as it is.
        rank: The pass's rank; empty for the site as it is.
        skeleton: The rewrite's stages with constant weights that take no memory: what latency depends on.
        cost: For one sample.
        error: Squared output error over the variance of the output, on the patches it was fitted to.
        drift: Predicted squared drift of the model's outputs from this site alone; 0 for the site as it is.
        latency_ms: Measured alone, with what fuses behind it; 0 where nothing was.
    """

    site: str
    pass_name: str | None
    rank: Ints
    skeleton: Rewrite
    cost: Cost
    error: float
    drift: float = 0.0
    latency_ms: float = 0.0

    @property
    def lowerings(self) -> Lowerings:
        """How its stages are written; empty where every one is one node."""
        return self.skeleton.lowerings

    @property
    def form(self) -> tuple[Hashable, ...]:
        """What the site becomes: pass, rank and how the stages are written."""
        return self.pass_name, self.rank, self.lowerings


@dataclass(frozen=True, slots=True)
class Thinning:
    """What was taken out of a network before its plan was made, as far as doing it again needs to know.

    Attributes:
        ranks: How many in-channels are left to the convolutions that read fewer, by name.
        samples: How many samples they were fitted to.
    """

    ranks: Mapping[str, int]
    samples: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen candidates, one a site in the order of the graph, and what is predicted of them.

    Attributes:
        chosen: The candidates; a site that stays has its candidate without a pass.
        drift: Sum of their predicted squared drifts.
        latency_ms: Sum of their latencies.
        bound_ms: No choice within the limit has a smaller sum.
        added_bytes: What a session holds in weights beyond those of the sites as they are.
    """

    chosen: tuple[Candidate, ...]
    drift: float
    latency_ms: float
    bound_ms: float
    added_bytes: int = 0

    @property
    def macs(self) -> int:
        """The multiply-adds of all sites, for one sample."""
        return sum(candidate.cost.macs for candidate in self.chosen)

    @property
    def rewritten(self) -> tuple[Candidate, ...]:
        """The candidates that change their site."""
        return tuple(candidate for candidate in self.chosen if candidate.pass_name is not None)

    @property
    def forms(self) -> tuple[Hashable, ...]:
        """What every site becomes, whatever is predicted of it."""
        return tuple(candidate.form for candidate in self.chosen)

    def now(self, sites: Sequence[Sequence[Candidate]]) -> Plan:
        """The same plan with the latencies that the candidates of the sites have now."""
        known = [{each.form: each.latency_ms for each in candidates} for candidates in sites]
        chosen = tuple(
            replace(each, latency_ms=found.get(each.form, each.latency_ms))
            for each, found in zip(self.chosen, known, strict=True)
        )
        return replace(self, chosen=chosen, latency_ms=sum(each.latency_ms for each in chosen))

    def with_(self, index: int, candidate: Candidate) -> Plan:
        """The same plan but for one site."""
        now = self.chosen[index]
        return Plan(
            (*self.chosen[:index], candidate, *self.chosen[index + 1 :]),
            self.drift - now.drift + candidate.drift,
            self.latency_ms - now.latency_ms + candidate.latency_ms,
            self.bound_ms,
            self.added_bytes - now.skeleton.held_bytes + candidate.skeleton.held_bytes,
        )

    def worth_over(self, other: Plan) -> float:
        """Milliseconds gained for each unit of squared drift more; infinite where there is none more."""
        gained, drifted = other.latency_ms - self.latency_ms, self.drift - other.drift
        return gained / drifted if drifted > 0.0 else np.inf


def undominated(candidates: Sequence[Candidate], slack: float = 1.0) -> list[Candidate]:
    """Drops every candidate that another beats: no more error and, times `slack`, no more multiply-adds.

    A slack above 1 keeps forms whose multiply-adds mislead about their time. Those of transformed
    convolutions say too little for these to beat anything or to be beaten.
    """
    plain = [candidate for candidate in candidates if candidate.skeleton.direct]

    def beaten(candidate: Candidate) -> bool:
        return any(
            other.error <= candidate.error and other.cost.macs * slack <= candidate.cost.macs
            for other in plain
            if other is not candidate
        )

    return [
        candidate
        for candidate in candidates
        if candidate.pass_name is None or not candidate.skeleton.direct or not beaten(candidate)
    ]


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that the sum of a figure, at least 0 for every candidate, may come to."""

    figure: Callable[[Candidate], float]
    most: float


def choose(sites: Sequence[Sequence[Candidate]], limit: float, most_bytes: float = np.inf) -> Plan:
    """The choice of one candidate a site with the smallest total latency and total drift at most `limit`.

    Args:
        sites: The candidates of every site, the site as it is first; that has no drift.
        limit: On the sum of squared drifts, at least 0.
        most_bytes: On the sum of what weights take beyond those of the sites as they are, at least 0.
    """
    limits = [Limit(_drift, limit)]
    if np.isfinite(most_bytes):
        limits.append(Limit(_held_bytes, _as_they_are(sites, _held_bytes) + most_bytes))
    # the sites as they are always fit
    return _plan(sites, *_least(sites, _latency_ms, limits, [0] * len(sites)))


def choose_by_macs(sites: Sequence[Sequence[Candidate]], most_macs: float, power: float = 1.0) -> Plan | None:
    """The choice of one candidate a site with the smallest total drift and at most so many multiply-adds.

    Args:
        sites: The candidates of every site, the site as it is first.
        most_macs: For one sample, all sites together.
        power: Of the squared drifts before they are added up: 1 where those of the sites have nothing to do
            with each other, 1/2 where they all push the outputs the same way.

    Returns:
        The plan, or None where even the forms of fewest multiply-adds come to more.
    """
    if least_macs(sites) > most_macs:
        return None
    lightest = [int(np.argmin([_macs(each) for each in candidates])) for candidates in sites]
    limits = [Limit(_macs, most_macs)]
    return _plan(sites, _least(sites, lambda each: each.drift**power, limits, lightest)[0], 0.0)


def total_macs(sites: Sequence[Sequence[Candidate]]) -> int:
    """The multiply-adds of all sites as they are, for one sample."""
    return _as_they_are(sites, _macs)


def least_macs(sites: Sequence[Sequence[Candidate]]) -> int:
    """The multiply-adds where every site takes its form of fewest, for one sample."""
    return sum(min(map(_macs, candidates)) for candidates in sites)


def _drift(candidate: Candidate) -> float:
    return candidate.drift


def _latency_ms(candidate: Candidate) -> float:
    return candidate.latency_ms


def _macs(candidate: Candidate) -> int:
    return candidate.cost.macs


def _held_bytes(candidate: Candidate) -> int:
    return candidate.skeleton.held_bytes


def _as_they_are(sites: Sequence[Sequence[Candidate]], figure: Callable[[Candidate], int]) -> int:
    return sum(figure(candidates[0]) for candidates in sites)


def _plan(sites: Sequence[Sequence[Candidate]], chosen: tuple[Candidate, ...], bound_ms: float) -> Plan:
    return Plan(
        chosen,
        sum(map(_drift, chosen)),
        sum(map(_latency_ms, chosen)),
        bound_ms,
        sum(map(_held_bytes, chosen)) - _as_they_are(sites, _held_bytes),
    )


def _least(
    sites: Sequence[Sequence[Candidate]],
    objective: Callable[[Candidate], float],
    limits: Sequence[Limit],
    known: Sequence[int],
) -> tuple[tuple[Candidate, ...], float]:
    """The choice of one candidate a site with the least total of an objective that keeps to the limits.

    Args:
        sites: The candidates of every site.
        objective: At least 0 for every candidate.
        limits: What else is counted.
        known: The index of a candidate of each, together within the limits.

    Returns:
        The choice, and a bound: no choice within the limits has a smaller total.
    """
    if not sites:
        return (), 0.0
    taken, bound = knapsack.least(
        [np.array([objective(each) for each in candidates], np.float64) for candidates in sites],
        [
            np.array([[limit.figure(each) for limit in limits] for each in candidates], np.float64)
            for candidates in sites
        ],
        np.array([limit.most for limit in limits], np.float64),
        known,
    )
    return tuple(candidates[index] for candidates, index in zip(sites, taken, strict=True)), bound
