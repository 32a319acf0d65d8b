from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.conv import Conv, Cost
from rewriter.plan import Candidate, choose, choose_by_macs, least_macs, total_macs, undominated
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd


def skeleton(weights=1):
    return Rewrite(((Conv(np.broadcast_to(np.float32(0), (weights, 1, 1, 1))),),))


def candidate(site, name, drift, latency, macs=0, error=0.0, weights=1):
    return Candidate(site, name, (), skeleton(weights), Cost(macs), error, drift, latency)


figure = st.integers(0, 1000).map(lambda n: n / 1000)
weights = st.integers(1, 100)
networks = st.lists(st.lists(st.tuples(figure, figure), min_size=0, max_size=4), min_size=1, max_size=5)
weighed = st.lists(
    st.lists(st.tuples(figure, figure, weights), min_size=0, max_size=4), min_size=1, max_size=5
)


def build(network):
    return [
        [candidate(str(i), None, 0.0, 1.0)]
        + [candidate(str(i), f"p{j}", drift, latency) for j, (drift, latency) in enumerate(offers)]
        for i, offers in enumerate(network)
    ]


@settings(deadline=None)
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


@settings(deadline=None)
@given(weighed, figure, st.integers(0, 400))
def test_choice_keeps_to_the_bytes_of_weights(network, limit, most_bytes):
    sites = [
        [candidate(str(i), None, 0.0, 1.0, weights=20)]
        + [candidate(str(i), "p", drift, latency, weights=held) for drift, latency, held in offers]
        for i, offers in enumerate(network)
    ]

    def added(chosen):
        return sum(each.skeleton.held_bytes - 4 * 20 for each in chosen)

    plan = choose(sites, limit, most_bytes)
    fitting = [
        c for c in product(*sites) if sum(x.drift for x in c) <= limit + 1e-12 and added(c) <= most_bytes
    ]
    best = min(sum(x.latency_ms for x in c) for c in fitting)
    assert plan.added_bytes == added(plan.chosen) <= most_bytes
    # the solver stops at a gap of 1e-4; drift may be over by its tolerance
    assert plan.latency_ms <= best * (1 + 2e-4) + 1e-6


costed = st.lists(
    st.lists(st.tuples(st.floats(0, 12), st.integers(0, 120)), min_size=0, max_size=4), min_size=1, max_size=5
)


@settings(deadline=None)
@given(costed, st.integers(0, 400), st.sampled_from([1.0, 0.5]))
def test_the_least_drift_within_multiply_adds_is_the_brute_force_optimum(network, most, power):
    """Drifts spread over twelve decades: the solver's absolute gap must not swallow the small ones."""
    sites = [
        [candidate(str(i), None, 0.0, 0.0, macs=100)]
        + [candidate(str(i), "p", 10.0**-decades, 0.0, macs) for decades, macs in offers]
        for i, offers in enumerate(network)
    ]

    def macs(chosen):
        return sum(each.cost.macs for each in chosen)

    def total(chosen):
        return sum(each.drift**power for each in chosen)

    fitting = [total(c) for c in product(*sites) if macs(c) <= most]
    plan = choose_by_macs(sites, most, power)
    if plan is None:
        assert not fitting
        assert least_macs(sites) > most
        return
    assert plan.macs == macs(plan.chosen) <= most
    assert least_macs(sites) <= most < np.inf
    # the solver stops at a gap of 1e-4
    assert total(plan.chosen) == pytest.approx(min(fitting), rel=2e-4, abs=1e-30)


def test_large_numbers_of_multiply_adds_are_kept_to():
    rng = np.random.default_rng(5)
    sites = [
        [candidate(str(i), None, 0.0, 0.0, macs=10**9 + i)]
        + [candidate(str(i), "p", 1 / int(m), 0.0, macs=int(m)) for m in rng.integers(1, 10**9, 9)]
        for i in range(30)
    ]
    assert total_macs(sites) == 30 * 10**9 + 435
    for share in (0.1, 0.37, 0.5, 0.9):
        plan = choose_by_macs(sites, share * total_macs(sites))
        assert 0.99 * share <= plan.macs / total_macs(sites) <= share


def test_lighter_forms_are_there_where_weight_counts():
    sites = [
        [
            candidate("a", None, 0.0, 1.0),
            candidate("a", "heavy", 0.1, 0.2, weights=9),
            candidate("a", "light", 0.2, 0.5, weights=2),
        ]
    ]
    for most_bytes, taken in ((np.inf, "heavy"), (32, "heavy"), (31, "light"), (3, None), (0, None)):
        plan = choose(sites, 1.0, most_bytes)
        assert plan.chosen[0].pass_name == taken
    assert choose(sites, 1.0).added_bytes == 32


@pytest.mark.parametrize(("m", "shape"), [((4, 4), (36, 1)), ((2, 1), (4, 3)), ((1, 6), (8, 3))])
def test_a_session_holds_the_transformed_weight(m, shape):
    products, taps = shape
    conv = Conv(np.zeros((32, 16, 3, 3), np.float32), pads=(1, 1, 1, 1))
    tiled = conv.with_(bias=np.zeros(32, np.float32), lowering=Winograd(m))
    assert Rewrite(((conv,),)).held_bytes == 4 * prod(conv.weight.shape)
    assert Rewrite(((tiled,),)).held_bytes == 4 * products * 32 * (16 * taps + 1)


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
