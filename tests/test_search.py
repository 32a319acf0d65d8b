from dataclasses import replace

import numpy as np
import pytest

from rewriter.conv import Conv, Cost
from rewriter.plan import Candidate, choose
from rewriter.rewrite import Rewrite
from rewriter.search import Attempts, Start, Trial, cautious, search

SKELETON = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))


def network(rng, sites=12, ranks=8):
    """Sites whose candidates trade drift for time, over four decades of sensitivity."""
    found = []
    for index in range(sites):
        scale = 10 ** rng.uniform(-4, 0)
        offers = [Candidate(str(index), None, (), SKELETON, Cost(), 0.0, 0.0, 1.0)]
        for rank in range(1, ranks):
            share = rank / ranks
            offers.append(
                Candidate(str(index), "p", (rank,), SKELETON, Cost(), 0.0, scale * (1 - share) ** 2, share)
            )
        found.append(offers)
    return found


def run(sites, usage, start=0.01, clock=None, power=0.5):
    attempts = Attempts(lambda plan: plan, usage, lambda *_: None)
    trials, _ = search(sites, Start(start, power), attempts, clock)
    return trials, attempts.rounds


@pytest.mark.parametrize("truth", [0.05, 0.3, 1.0, 4.0, 30.0])
def test_finds_the_budget_however_wrong_the_prediction(rng, truth):
    sites = network(rng)
    trials, rounds = run(sites, lambda plan: truth * np.sqrt(plan.drift) / 0.1)
    assert trials[0].usage <= 0.9
    # most of the budget is used, unless nothing faster is left to take
    assert trials[0].usage > 0.5 or trials[0].plan.latency_ms == pytest.approx(12 / 8)
    assert [t.plan.latency_ms for t in trials] == sorted(t.plan.latency_ms for t in trials)
    assert sum(r.within_budget for r in rounds) == len(trials)


def test_one_site_that_all_plans_have_does_not_hide_what_fits():
    """It is far worse than predicted, and so cheap by prediction that limits give it up late."""
    sites = network(np.random.default_rng(0))
    sites[3] = [sites[3][0], replace(sites[3][-1], drift=1e-4)]

    def usage(plan):
        return max(0.906 * (plan.chosen[3].pass_name is not None), np.sqrt(plan.drift) / 0.1)

    trials, rounds = run(sites, usage)
    assert [each.within_budget for each in rounds[:4]] == [False] * 4
    # from there on it is found in steps of one site
    assert 0.4 < trials[0].usage <= 0.9
    assert trials[0].plan.chosen[3].pass_name is None


def test_nothing_fits():
    trials, rounds = run(network(np.random.default_rng(1)), lambda plan: 10.0)
    assert trials == []
    assert rounds
    assert not any(r.within_budget for r in rounds)


def test_a_plan_of_no_predicted_drift_may_fail():
    sites = [[each[0], replace(each[-1], drift=0.0)] for each in network(np.random.default_rng(1))]
    trials, rounds = run(sites, lambda plan: 10.0)
    assert trials == []
    assert len(rounds) == 1


def test_everything_fits_ends_early():
    trials, rounds = run(network(np.random.default_rng(1)), lambda plan: 0.0)
    assert trials[0].plan.latency_ms == pytest.approx(12 / 8)
    assert len(rounds) < 8


def test_single_steps_find_what_the_prediction_hides(rng):
    """One site is far better than predicted: no limit takes it, a step does."""
    sites = network(rng, sites=3, ranks=4)
    worst = max(range(3), key=lambda index: sites[index][1].drift)

    def usage(plan):
        return np.sqrt(sum(c.drift for c in plan.chosen if int(c.site) != worst)) / 0.1

    trials, rounds = run(sites, usage)
    assert trials[0].plan.chosen[worst].latency_ms == min(c.latency_ms for c in sites[worst])
    assert trials[0].usage <= 0.9
    assert len(rounds) <= 16


def test_a_step_that_failed_is_not_tried_again(rng):
    sites = network(rng, sites=3)
    seen = []

    def usage(plan):
        seen.append(plan.chosen)
        return np.sqrt(plan.drift) / 0.1

    run(sites, usage)
    assert len(seen) == len(set(seen))


def test_infinite_drift_never_passes():
    trials, _ = run(network(np.random.default_rng(1)), lambda plan: np.inf)
    assert trials == []


class Clock:
    """A network in which some forms take another time than alone: by site and rank."""

    def __init__(self, truth):
        self.truth = truth
        self.corrections = 0

    def corrected(self, sites, trial):
        self.corrections += 1
        seen = {each.site for each in trial.plan.rewritten}
        return [
            [replace(each, latency_ms=self._ms(each)) if each.site in seen else each for each in candidates]
            for candidates in sites
        ]

    def fastest_first(self, trials):
        return sorted(trials, key=lambda trial: sum(map(self._ms, trial.plan.chosen)))

    def _ms(self, candidate):
        return self.truth.get((candidate.site, candidate.rank), candidate.latency_ms)


def test_the_network_corrects_the_table():
    """What gains nothing in the network is given up, and its drift spent elsewhere."""
    sites = network(np.random.default_rng(3), sites=4)

    def usage(plan):
        return np.sqrt(plan.drift) / 0.3

    first, _ = run(sites, usage)
    loser = next(each for each in first[0].plan.rewritten if each.latency_ms < 0.5)
    clock = Clock({(loser.site, each.rank): 1.1 for each in sites[int(loser.site)] if each.pass_name})
    trials, rounds = run(sites, usage, clock=clock)
    assert trials[0].plan.chosen[int(loser.site)].pass_name is None
    assert trials[0].usage <= 0.9
    others = [each for each in trials[0].plan.chosen if each.site != loser.site]
    before = [each for each in first[0].plan.chosen if each.site != loser.site]
    assert sum(each.latency_ms for each in others) <= sum(each.latency_ms for each in before)
    assert len(rounds) <= 8 + 3 + 8


def test_a_right_table_is_corrected_once():
    clock = Clock({})
    with_clock, _ = run(
        network(np.random.default_rng(3)), lambda plan: np.sqrt(plan.drift) / 0.1, clock=clock
    )
    without, _ = run(network(np.random.default_rng(3)), lambda plan: np.sqrt(plan.drift) / 0.1)
    assert with_clock[0].plan.latency_ms <= without[0].plan.latency_ms
    assert clock.corrections <= 3


def test_a_cautious_plan_takes_only_what_gains_much():
    def offers(site, latency):
        keep = Candidate(site, None, (), SKELETON, Cost(), 0.0, 0.0, 1.0)
        return [keep, Candidate(site, "p", (1,), SKELETON, Cost(), 0.0, 0.1, latency)]

    sites = [offers("a", 0.9), offers("b", 0.5)]
    plan = choose(sites, 1.0)
    trial = Trial(plan, None, 0.5)
    assert [each.pass_name for each in cautious(sites, trial).chosen] == [None, "p"]
    assert cautious(sites[1:], Trial(choose(sites[1:], 1.0), None, 0.5)) is None


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_power_of_the_budget_is_found(power):
    """Of accuracy and PSNR as much is lost as the square of the drift, and little seen of small losses."""
    sites = network(np.random.default_rng(3), sites=40)

    def usage(plan):
        share = (np.sqrt(plan.drift) / 0.2) ** power
        return share if share > 0.1 else 0.0

    _, rounds = run(sites, usage, start=0.05**2, power=0.75)
    assert any(0.6 < each.budget_share <= 0.9 for each in rounds[:5])
