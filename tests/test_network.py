import numpy as np
import pytest

from rewriter import latency, network
from rewriter.conv import Conv, Cost
from rewriter.plan import Candidate, choose
from rewriter.rewrite import Rewrite
from rewriter.search import Trial
from rewriter.winograd import Winograd

PLAIN = Conv(np.zeros((8, 8, 3, 3), np.float32))
SKELETONS = {
    "plain": Rewrite(((PLAIN,),)),
    "tiled": Rewrite(((PLAIN.with_(lowering=Winograd((4, 4))),),)),
}


class Site:
    def __init__(self, name):
        self.name = name


def offer(site, ms, drift=0.0, form=None):
    """A candidate; `form` names its skeleton, None is the site as it is."""
    return Candidate(
        site, form and "p", () if form is None else (ms,), SKELETONS[form or "plain"], Cost(), 0.0, drift, ms
    )


def trial(offers, limit):
    plan = choose(offers, limit)
    return Trial(plan, [(Site(each.site), each) for each in plan.rewritten], 0.5)


@pytest.fixture
def corrected(monkeypatch):
    """Corrects offers by a network in which forms take what `truth` says by site and rank."""
    monkeypatch.setattr(network.graph, "splice", lambda model, rewrites: Spliced(rewrites))

    def call(offers, start, truth, noise=0.0):
        def interleaved(models, feeds, target, seconds):
            found = []
            for model in models:
                now = {candidates[0].site: candidates[0].latency_ms for candidates in offers}
                now.update((s.name, truth.get((s.name, c.rank), c.latency_ms)) for s, c in model())
                found.append(100.0 + sum(now.values()))
            spread = noise * np.array([-0.5, 0.0, 0.5])
            return [*(np.array(found[:3]) * (1.0 + spread)), *found[3:]]

        monkeypatch.setattr(latency, "interleaved", interleaved)
        return network.clock(Weighty(1), SHAPES, {}, None, 1).corrected(offers, start)

    return call


class Spliced:
    """What is timed of a model with rewrites in it."""

    def __init__(self, rewrites):
        self.source = rewrites


class Weighty:
    """A model of some bytes of weights."""

    def __init__(self, size):
        self.size = size


@pytest.fixture(autouse=True)
def _weighed(monkeypatch):
    monkeypatch.setattr(network.graph, "weight_bytes", lambda model: model.size)


def milliseconds(offers):
    return [[round(each.latency_ms, 1) for each in candidates] for candidates in offers]


SHAPES = {"a": "large", "b": "large", "c": "small"}
OFFERS = [
    [offer("a", 40.0), offer("a", 10.0, 1.0, "plain"), offer("a", 20.0, 0.1, "tiled")],
    [offer("b", 40.0), offer("b", 10.0, 1.0, "plain")],
    [offer("c", 40.0), offer("c", 10.0, 1.0, "plain")],
]


def test_a_gain_holds_for_its_shape_and_kind(corrected):
    truth = {("a", (10.0,)): 25.0, ("b", (10.0,)): 25.0}
    found = corrected(OFFERS, trial(OFFERS, 10.0), truth)
    # half the gain of two sites, well measured: the network takes 160 ms and they gain 30 of it
    half = pytest.approx(24.8, abs=0.3)
    assert milliseconds(found) == [[40.0, half, 20.0], [40.0, half], [40.0, 10.0]]


def test_what_gains_nothing_in_the_network_gains_nothing(corrected):
    truth = {("a", (10.0,)): 45.0, ("b", (10.0,)): 45.0}
    found = corrected(OFFERS, trial(OFFERS, 10.0), truth)
    assert milliseconds(found) == [[40.0, 40.0, 20.0], [40.0, 40.0], [40.0, 10.0]]
    # nothing is chosen that gains nothing
    assert [each.rank for each in choose(found, 10.0).chosen] == [(20.0,), (), (10.0,)]


def test_small_gains_are_believed_as_far_as_they_can_be_measured(corrected):
    offers = [[offer("a", 0.4), offer("a", 0.2, 1.0, "plain")]]
    # 0.2 ms of 100 are less than the noise: the table's word stands, but for a little
    ((_, found),) = corrected(offers, trial(offers, 10.0), {("a", (0.2,)): 0.4})
    assert found.latency_ms == pytest.approx(0.2, abs=0.01)


def timed(monkeypatch, network_ms, most=10, live_bytes=1):
    """Trials of a predicted and a true time, fastest first; `network_ms` makes times of what is asked."""
    monkeypatch.setattr(network, "_WEIGHT_BYTES", most)
    monkeypatch.setattr(network.graph, "splice", lambda model, rewrites: Spliced(rewrites))
    asked = []

    def interleaved(models, feeds, target, seconds):
        asked.append([model() for model in models])
        return network_ms(asked)

    def first_of(*times):
        plans = [choose([[offer("a", predicted)]], 1.0) for predicted, _ in times]
        trials = [Trial(plan, true, 0.5) for plan, (_, true) in zip(plans, times, strict=True)]
        found = network.clock(Weighty(1), {}, {}, None, live_bytes).fastest_first(trials)
        return [each.rewrites for each in found], asked

    monkeypatch.setattr(latency, "interleaved", interleaved)
    return first_of


def test_portions_share_the_first_network(monkeypatch):
    # a machine that becomes slower
    first_of = timed(monkeypatch, lambda asked: [ms * len(asked) for ms in asked[-1]], most=3)
    found, asked = first_of(*((5.0, ms) for ms in (5.0, 4.0, 3.0, 2.0, 1.0, 6.0)))
    assert found == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert asked == [[5.0, 5.0, 5.0], [5.0, 4.0, 3.0], [5.0, 2.0, 1.0], [5.0, 6.0]]


@pytest.mark.parametrize(("live_bytes", "most"), [(10, 4), (20, 2), (1000, 2)])
def test_large_activations_leave_room_for_few_networks(monkeypatch, live_bytes, most):
    monkeypatch.setattr(network, "_ACTIVATION_BYTES", 160)
    first_of = timed(monkeypatch, lambda asked: list(asked[-1]), live_bytes=live_bytes)
    found, asked = first_of(*((5.0, ms) for ms in (5.0, 4.0, 3.0)))
    assert found == [3.0, 4.0, 5.0]
    assert max(map(len, asked)) == most


@pytest.mark.parametrize(("noise", "best"), [(0.0, 98.0), (0.1, 100.0)])
def test_times_count_as_far_as_they_repeat(monkeypatch, noise, best):
    """The first of two plans should be faster by 3 ms and is slower by 2."""
    spread = np.array([-noise / 2, 0.0, noise / 2])
    first_of = timed(monkeypatch, lambda asked: [*(asked[-1][:3] * (1 + spread)), *asked[-1][3:]])
    assert first_of((97.0, 100.0), (100.0, 98.0))[0][0] == best


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, -1.0, 2.0), (0.2, 16.0, 20.0)])
def test_gains_are_corrected_as_far_as_times_repeat(corrected, noise, least, most):
    """A form gains nothing in the network: by times that differ by themselves that is hardly to be told."""
    offers = [[offer("a", 40.0), offer("a", 20.0, 1.0, "plain")]]
    ((_, found),) = corrected(offers, trial(offers, 10.0), {("a", (20.0,)): 40.0}, noise)
    assert least < 40.0 - found.latency_ms < most


def test_models_too_large_to_lie_side_by_side_are_not_timed(monkeypatch):
    monkeypatch.setattr(network, "_WEIGHT_BYTES", 300)
    assert network.clock(Weighty(151), {}, {}, None, 1) is None
    assert network.clock(Weighty(150), {}, {}, None, 1) is not None
