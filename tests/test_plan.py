from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.conv import Conv, Cost, Rewrite
from rewriter.plan import Candidate, choose, undominated

SKELETON = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))


def candidate(site, name, drift, latency, macs=0, error=0.0):
    return Candidate(site, name, (), SKELETON, Cost(macs), error, drift, latency)


figure = st.integers(0, 1000).map(lambda n: n / 1000)
networks = st.lists(st.lists(st.tuples(figure, figure), min_size=0, max_size=4), min_size=1, max_size=5)


def build(network):
    return [
        [candidate(str(i), None, 0.0, 1.0)]
        + [candidate(str(i), f"p{j}", drift, latency) for j, (drift, latency) in enumerate(offers)]
        for i, offers in enumerate(network)
    ]


@given(networks, figure)
def test_choice_is_the_brute_force_optimum(network, limit):
    sites = build(network)
    plan = choose(sites, limit)
    fitting = [c for c in product(*sites) if sum(x.drift for x in c) <= limit * (1 + 1e-6) + 1e-12]
    best = min(sum(x.latency_ms for x in c) for c in fitting)
    assert plan.drift <= limit * (1 + 1e-6) + 1e-12
    # the solver stops at a gap of 1e-4
    assert plan.latency_ms == pytest.approx(best, rel=2e-4, abs=1e-6)
    assert plan.bound_ms <= best + 1e-6


def test_one_candidate_a_site_in_order():
    sites = build([[(0.1, 0.5)], [], [(0.2, 0.1)]])
    plan = choose(sites, 1.0)
    assert [c.site for c in plan.chosen] == ["0", "1", "2"]
    assert [c.pass_name for c in plan.chosen] == ["p0", None, "p0"]
    assert [c.site for c in plan.rewritten] == ["0", "2"]


def test_no_budget_keeps_everything():
    assert not choose(build([[(0.1, 0.5)], [(0.2, 0.1)]]), 0.0).rewritten


def test_tiny_budgets_are_kept_to():
    plan = choose(build([[(1e-9, 0.5)], [(3e-9, 0.1)]]), 2e-9)
    assert [c.pass_name for c in plan.chosen] == ["p0", None]


def test_undominated_keeps_the_site_as_it_is_and_drops_what_is_beaten():
    keep = candidate("s", None, 0, 0, macs=100)
    good = candidate("s", "a", 0, 0, macs=10, error=0.1)
    near = candidate("s", "b", 0, 0, macs=12, error=0.2)
    beaten = candidate("s", "c", 0, 0, macs=40, error=0.2)
    assert undominated([keep, good, near, beaten]) == [keep, good]
    assert undominated([keep, good, near, beaten], slack=2.0) == [keep, good, near]
