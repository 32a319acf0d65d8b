from dataclasses import replace

import graphs
import numpy as np
import pytest

from passes.winograd import TILES
from rewriter import graph, latency, lowering, runtime, table, winograd
from rewriter.cache import Cache
from rewriter.conv import Conv, Cost, Direct
from rewriter.fitting import skeleton
from rewriter.plan import Candidate
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target
from rewriter.transposed import SubPixel

TARGET = Target(threads=1)
TEXT = """
weights: w[8,8,3,3] v[8,8,3,3] u[8,8,3,3]
agraph (float[1,8,10,10] x) => (float[1,8,10,10] y) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w)
  [one_relu] ar = Relu(a)
  [two] b = Conv<pads=[1,1,1,1]>(ar, v)
  [two_relu] br = Relu(b)
  [three] c = Conv<pads=[1,1,1,1]>(br, u)
  [sum] y = Add(c, ar)
}
"""
SHAPES = dict.fromkeys(("one", "two", "three"), (1, 8, 10, 10))


@pytest.fixture(autouse=True)
def one_copy(monkeypatch):
    monkeypatch.setattr(table, "_MOST_COPIES", 1)


@pytest.fixture
def sites(rng):
    return graph.find_sites(graphs.filled(TEXT, rng))[0]


@pytest.fixture
def clock(monkeypatch):
    """Stands in for timing: remembers what it was asked and answers with `time`, by default always 1 ms."""

    class Clock:
        calls: list = []  # noqa: RUF012

        def time(self, channels, call):
            return 1.0

        def __call__(self, models, feeds, target=None, *, seconds=2.0, seed=0, hopeless=None):
            self.calls = [*self.calls, (models, feeds, seconds)]
            return [self.time(_inner(model), len(self.calls)) for model in models]

    clock = Clock()
    monkeypatch.setattr(latency, "interleaved", clock)
    return clock


def _inner(model):
    """Channels between the stages of a candidate, None for the site as it is."""
    inside = graph.load(model).proto.graph
    sizes = {tensor.name: tensor.dims for tensor in inside.initializer}
    stages = [node for node in inside.node if node.op_type == "Conv" and node.name.startswith("conv")]
    return None if len(stages) == len(inside.output) else int(sizes[stages[0].input[1]][0])


def offers(site, *ranks, error=0.01):
    """The site as it is and two-stage candidates with so many channels between."""
    conv = site.conv
    found = [Candidate(site.name, None, (), skeleton(graphs.only(conv)), Cost(8 * 8 * 9), 0.0)]
    for rank in ranks:
        first = conv.with_(weight=np.ones((rank, *conv.weight.shape[1:]), np.float32), bias=None)
        rewrite = Rewrite(((first, Conv(np.ones((conv.out_channels, rank, 1, 1), np.float32))),))
        made = Candidate(site.name, "p", (rank,), skeleton(rewrite), Cost(80 * rank), error / rank)
        found.append(made)
    return found


def measure(sites, *ranks, told=None):
    note = (lambda *_: None) if told is None else (lambda *args: told.append(args))
    return table.measure([(site, offers(site, *ranks)) for site in sites], SHAPES, TARGET, 8, note)


def times(candidates):
    return {candidate.rank: candidate.latency_ms for candidate in candidates}


def test_sites_of_one_shape_share_their_measurements(sites, clock):
    clock.time = lambda channels, call: 1.0 if channels is None else channels / 10
    told = []
    one, two, three = measure(sites, 2, 4, told=told)
    # one and two are alike; behind three there is an Add
    assert [len(models) for models, _, _ in clock.calls] == [3, 3]
    assert told == [("timing", 1, 2), ("timing", 2, 2)]
    assert times(one) == times(two) == times(three) == {(): 1.0, (2,): 0.2, (4,): 0.4}
    assert [candidate.site for candidate in two] == ["two"] * 3


def test_what_is_timed_runs_on_what_it_is_fed(sites, clock):
    measure(sites, 2, 4)
    fed = []
    for models, feeds, _ in clock.calls:
        for model, feed in zip(models, feeds, strict=True):
            (output,) = Session(model, TARGET).run(feed).values()
            assert output.shape == (1, 8, 1, 1)
            fed.append(set(feed))
    assert fed == [{"x"}] * 3 + [{"x", "shortcut"}] * 3


@pytest.mark.parametrize(
    ("macs", "params", "copies"), [(0, 1e9, 1), (3 * 57600, 1e9, 3), (1e12, 1e9, 8), (1e12, 4 * 576, 4)]
)
def test_the_time_of_a_small_site_is_that_of_several(sites, clock, monkeypatch, macs, params, copies):
    monkeypatch.setattr(table, "_MOST_COPIES", 8)
    monkeypatch.setattr(table, "_RUN_MACS", macs)
    monkeypatch.setattr(table, "_RUN_PARAMS", params)
    clock.time = lambda channels, call: 1.0
    one, _, three = sites
    (found,) = measure([one], 2)
    assert times(found) == {(): 1.0 / copies}
    measure([three], 2)
    for models, feeds, _ in clock.calls:
        outputs = Session(models[0], TARGET).run(feeds[0])
        assert [array.shape for array in outputs.values()] == [(1, 8, 1, 1)] * copies


def test_chunks_are_rescaled_by_the_original(sites, clock, monkeypatch):
    monkeypatch.setattr(table, "_ACTIVATION_BYTES", 0)  # two models at once
    # every time the machine is slower
    clock.time = lambda channels, call: call * (1.0 if channels is None else channels / 10)
    (found,) = measure(sites[:1], 2, 4, 6)
    assert [len(models) for models, _, _ in clock.calls] == [2, 2, 2]
    assert times(found) == pytest.approx({(): 1.0, (2,): 0.2, (4,): 0.4, (6,): 0.6})


def test_time_is_shared_among_the_chunks(sites, clock, monkeypatch):
    whole = measure(sites[:1], 2, 4, 6)
    assert [seconds for _, _, seconds in clock.calls] == [4 * table._SECONDS_PER_FORM]
    monkeypatch.setattr(table, "_SECONDS_PER_FORM", 1.0)
    clock.calls = []
    measure(sites[:1], 2, 4, 6)
    assert [seconds for _, _, seconds in clock.calls] == [table._SECONDS_PER_SHAPE]
    monkeypatch.setattr(table, "_ACTIVATION_BYTES", 0)
    clock.calls = []
    assert [times(each) for each in measure(sites[:1], 2, 4, 6)] == [times(each) for each in whole]
    # the original is in each of three chunks
    assert sum(seconds for _, _, seconds in clock.calls) == pytest.approx(table._SECONDS_PER_SHAPE * 6 / 4)


def test_candidates_that_are_hardly_faster_are_dropped(sites, clock):
    clock.time = lambda channels, call: {None: 1.0, 2: 0.5, 3: 0.94, 4: 0.96, 5: 1.5}[channels]
    (found,) = measure(sites[:1], 2, 3, 4, 5)
    assert times(found) == {(): 1.0, (2,): 0.5, (3,): 0.94}


def test_the_site_as_it_is_stays_first(sites, clock):
    (found,) = measure(sites[:1], 2, 4)  # all take as long
    assert [candidate.pass_name for candidate in found] == [None]


def test_beaten_candidates_are_never_timed(sites, clock):
    worse = Candidate("one", "q", (7,), offers(sites[0], 7)[1].skeleton, Cost(560), 1.0)
    table.measure([(sites[0], [*offers(sites[0], 2), worse])], SHAPES, TARGET, 8, lambda *_: None)
    assert [_inner(model) for models, _, _ in clock.calls for model in models] == [None, 2]


def test_a_site_without_candidates_is_not_timed(sites, clock):
    (found,) = measure(sites[:1])
    assert (clock.calls, times(found)) == ([], {(): 0.0})


def test_candidates_of_one_structure_share_their_measurement(sites, clock):
    clock.time = lambda channels, call: 1.0 if channels is None else channels / 10
    twin = Candidate("one", "q", (9,), offers(sites[0], 2)[1].skeleton, Cost(160), 0.001)
    (found,) = table.measure([(sites[0], [*offers(sites[0], 2), twin])], SHAPES, TARGET, 8, lambda *_: None)
    assert [len(models) for models, _, _ in clock.calls] == [2]
    assert times(found) == {(): 1.0, (2,): 0.2, (9,): 0.2}


WIDE = """
weights: w[16,16,3,3] v[16,16,3,3] u[16,16,3,3]
agraph (float[1,16,12,12] x) => (float[1,16,12,12] y) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w)
  [two] b = Conv<pads=[1,1,1,1]>(a, v)
  [three] y = Conv<pads=[1,1,1,1]>(b, u)
}
"""


def tiled(site, m, size=12):
    """The site in tiles, as the pass for them would offer it."""
    inside = skeleton(graphs.only(winograd.in_tiles(site.conv, winograd.Winograd(m))))
    return Candidate(site.name, "winograd", m, inside, inside.cost((size, size)), 1e-14)


def cored(site, error=0.01):
    """The site as a core of 16 channels between two pointwise convolutions."""
    point = Conv(np.ones((16, 16, 1, 1), np.float32))
    inside = skeleton(Rewrite(((point, site.conv.with_(bias=None), point),)))
    return Candidate(site.name, "tucker2", (16, 16), inside, Cost(1), error)


def lowerings(candidate):
    return [getattr(stage.lowering, "m", None) for branch in candidate.skeleton.branches for stage in branch]


def in_tiles_or_not(rng, monkeypatch, tiles_ms):
    """What is left of a site as it is, in tiles and as a core, where every form with tiles takes so long."""
    site = graph.find_sites(graphs.filled(WIDE, rng))[0][1]

    def interleaved(models, feeds, target=None, *, seconds=2.0, seed=0, hopeless=None):
        operators = [[node.op_type for node in graph.load(model).proto.graph.node] for model in models]
        return [tiles_ms if "MatMul" in each else 1.0 - 0.06 * each.count("Conv") for each in operators]

    monkeypatch.setattr(latency, "interleaved", interleaved)
    offered = [
        Candidate("two", None, (), skeleton(graphs.only(site.conv)), Cost(9), 0.0),
        tiled(site, (2, 2)),
        cored(site),
    ]
    (found,) = table.measure([(site, offered)], {"two": (1, 16, 12, 12)}, TARGET, 8, lambda *_: None)
    return found


def test_stages_are_tried_in_the_tiles_in_which_the_site_gains(rng, monkeypatch):
    found = in_tiles_or_not(rng, monkeypatch, 0.5)
    assert [(each.pass_name, lowerings(each)) for each in found] == [
        (None, [None]),
        ("winograd", [(2, 2)]),
        ("tucker2", [None, None, None]),
        ("tucker2", [None, (2, 2), None]),
    ]
    # the same error and the rounding; the cost is that of what runs
    assert found[3].error == pytest.approx(found[2].error + found[3].skeleton.rounding ** 2)
    assert found[3].cost == found[3].skeleton.cost((12, 12))


@pytest.mark.parametrize(
    ("target", "size", "likely", "unlikely"),
    [
        # tiles of 5 cover a map of 14 with less waste than those of 4 or 6
        (TARGET, 14, {(5, 5), (5, 2)}, {(4, 4), (6, 6), (1, 2)}),
        # where there are few tiles large ones have more weights than they save products
        (TARGET, 7, {(2, 4), (4, 2)}, {(5, 5), (6, 6), (6, 1)}),
        (Target(threads=2), 56, {(4, 4), (6, 4)}, {(2, 2), (1, 2)}),
    ],
)
def test_of_many_tiles_the_likeliest_are_timed(monkeypatch, target, size, likely, unlikely):
    weight = np.ones((256, 256, 3, 3), np.float32)
    conv = Conv(weight, weight[:, 0, 0, 0], pads=(1,) * 4)
    site = graph.Site("wide", "Conv", conv, "x", "y", (0,))
    before = Candidate("wide", None, (), skeleton(graphs.only(conv)), Cost(9), 0.0)
    offered = [before, *(tiled(site, m, size) for m in TILES)]
    monkeypatch.setattr(latency, "interleaved", lambda models, *_, **__: [2.0, *[1.0] * (len(models) - 1)])
    monkeypatch.setattr(table, "_lightest", list)
    shapes = {"wide": (1, 256, size, size)}
    (found,) = table.measure([(site, offered)], shapes, target, 16, lambda *_: None)
    timed = {each.rank for each in found[1:]}
    assert len(timed) == 8
    assert likely <= timed
    assert not unlikely & timed


@pytest.mark.parametrize(
    ("ms", "kept"),
    [
        # 64, 36 and 16 products, of which the most must be faster by more than timing can tell
        ({(6, 6): 0.98, (4, 4): 1.0, (2, 2): 1.5}, [(4, 4), (2, 2)]),
        ({(6, 6): 0.90, (4, 4): 1.0, (2, 2): 1.5}, [(6, 6), (4, 4), (2, 2)]),
        ({(6, 6): 0.98, (4, 4): 0.99, (2, 2): 1.0}, [(2, 2)]),
    ],
)
def test_tiles_that_are_hardly_faster_for_their_weights_are_dropped(rng, monkeypatch, ms, kept):
    site = graph.find_sites(graphs.filled(WIDE, rng))[0][1]
    before = Candidate("two", None, (), skeleton(graphs.only(site.conv)), Cost(9), 0.0)
    offered = [before, *(tiled(site, m) for m in ms)]
    monkeypatch.setattr(table, "_ways", lambda *_: [])
    monkeypatch.setattr(latency, "interleaved", lambda *_, **__: [2.0, *ms.values()])
    (found,) = table.measure([(site, offered)], {"two": (1, 16, 12, 12)}, TARGET, 8, lambda *_: None)
    assert [each.rank for each in found] == [(), *kept]


@pytest.mark.parametrize(("phases_ms", "lowered"), [(0.5, True), (1.5, False)])
def test_stages_are_tried_by_their_phases_where_the_site_gains(rng, monkeypatch, phases_ms, lowered):
    text = """weights: w[16,16,4,4]
    agraph (float[1,16,12,12] x) => (float[1,16,24,24] y) {
        [up] y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)
    }
    """
    site = graphs.site(graphs.filled(text, rng), "up")

    def interleaved(models, feeds, target=None, *, seconds=2.0, seed=0, hopeless=None):
        operators = [[node.op_type for node in graph.load(model).proto.graph.node] for model in models]
        return [phases_ms if "DepthToSpace" in each else 1.0 - 0.06 * len(each) for each in operators]

    monkeypatch.setattr(latency, "interleaved", interleaved)
    inside = skeleton(graphs.only(site.conv.with_(lowering=SubPixel())))
    offered = [
        Candidate("up", None, (), skeleton(graphs.only(site.conv)), Cost(9), 0.0),
        Candidate("up", "sub_pixel", (2, 2), inside, inside.cost((12, 12)), 1e-14),
        cored(site),
    ]
    (found,) = table.measure([(site, offered)], {"up": (1, 16, 12, 12)}, TARGET, 8, lambda *_: None)
    assert [each.pass_name for each in found] == (
        [None, "sub_pixel", "tucker2", "tucker2"] if lowered else [None, "tucker2"]
    )
    if lowered:
        kinds = [type(stage.lowering) for stage in found[3].skeleton.branches[0]]
        assert kinds == [Direct, SubPixel, Direct]


def test_stages_stay_as_they_are_where_the_site_gains_nothing_in_tiles(rng, monkeypatch):
    found = in_tiles_or_not(rng, monkeypatch, 1.5)
    assert [each.pass_name for each in found] == [None, "tucker2"]


def test_what_has_clearly_lost_is_given_up(sites, monkeypatch):
    asked = {}

    def interleaved(models, feeds, target=None, *, seconds=2.0, seed=0, hopeless=None):
        channels = [_inner(model) for model in models]
        first = [1.0 if each is None else {2: 0.3, 4: 0.6, 6: 1.6}[each] for each in channels]
        asked[0] = dict(zip(channels, hopeless(first, 0), strict=True))
        return first

    monkeypatch.setattr(latency, "interleaved", interleaved)
    # the error falls with the rank: 4 is slower but better, 6 slower than the original
    measure(sites[:1], 2, 4, 6)
    assert asked[0] == {None: False, 2: False, 4: False, 6: True}
    twin = Candidate("one", "q", (8,), offers(sites[0], 4)[1].skeleton, Cost(160), 0.01)
    table.measure([(sites[0], [*offers(sites[0], 2), twin])], SHAPES, TARGET, 8, lambda *_: None)
    assert asked[0] == {None: False, 2: False, 4: True}


def conditions(**changed):
    return runtime.conditions(TARGET) | changed


def cached(clock, sites, *ranks, **changed):
    """What a run with the cache finds for the first site, and the channels that it timed in each call."""
    clock.calls = []
    cache = Cache(conditions(**changed))
    offered = [(sites[0], offers(sites[0], *ranks))]
    (found,) = table.measure(offered, SHAPES, TARGET, 8, lambda *_: None, cache)
    timed = [[_inner(model) for model in models] for models, _, _ in clock.calls]
    return times(found), timed, cache


def test_what_an_earlier_run_measured_is_not_measured_again(sites, clock):
    clock.time = lambda channels, call: 1.0 / 3 if channels is None else channels / 30
    first = cached(clock, sites, 2, 4)
    assert first[1] == [[None, 2, 4]]
    clock.time = lambda channels, call: 9.0
    again = cached(clock, sites, 2, 4)
    assert (again[0], again[1]) == (first[0], [])
    assert again[2].notes[0].startswith("latencies of 1 of 1 shapes were measured in earlier runs")


def test_what_is_new_is_measured_with_the_original_and_scaled(sites, clock):
    clock.time = lambda channels, call: 1.0 if channels is None else channels / 10
    cached(clock, sites, 2)
    # now the machine is three times as slow
    clock.time = lambda channels, call: 3.0 if channels is None else 3 * channels / 10
    found, timed, cache = cached(clock, sites, 2, 4)
    assert timed == [[None, 4]]
    assert found == pytest.approx({(): 1.0, (2,): 0.2, (4,): 0.4})
    assert "in part of 1 more" in cache.notes[0]
    # a narrower search forgets nothing
    assert cached(clock, sites, 4)[1] == []
    assert cached(clock, sites, 2, 4)[:2] == (found, [])


@pytest.mark.parametrize("name", ["threads", "provider", "onnxruntime", "processor", "features", "spinning"])
def test_another_target_or_machine_measures_anew(sites, clock, name):
    cached(clock, sites, 2)
    assert cached(clock, sites, 2, **{name: "other"})[1] == [[None, 2]]
    assert cached(clock, sites, 2)[1] == []


def test_another_shape_or_follower_measures_anew(sites, clock):
    one, _, three = sites

    def timed(site, shape):
        clock.calls = []
        cache = Cache(conditions())
        table.measure([(site, offers(site, 2))], {site.name: shape}, TARGET, 8, lambda *_: None, cache)
        return len(clock.calls)

    assert timed(one, (1, 8, 10, 10)) == 1
    assert timed(one, (1, 8, 12, 10)) == 1
    assert timed(one, (2, 8, 10, 10)) == 1
    assert timed(three, (1, 8, 10, 10)) == 1
    assert [timed(each, (1, 8, 10, 10)) for each in sites] == [0, 0, 0]


def test_another_way_to_write_a_form_measures_it_anew(sites, clock, monkeypatch):
    cached(clock, sites, 2, 4)
    plain = lowering.attributes

    def other(conv):
        return plain(conv) | ({"auto_pad": "NOTSET"} if conv.in_channels == 4 else {})

    monkeypatch.setattr(lowering, "attributes", other)
    assert cached(clock, sites, 2, 4)[1] == [[None, 4]]


def test_a_site_without_candidates_neither_asks_nor_keeps(sites, clock, cache_folder):
    found, timed, cache = cached(clock, sites)
    assert (found, timed, cache.notes) == ({(): 0.0}, [], ())
    assert not cache_folder.exists()


def test_without_a_cache_nothing_is_kept(sites, clock, cache_folder):
    measure(sites, 2, 4)
    assert not cache_folder.exists()


def test_shapes_measured_before_an_interruption_are_kept(sites, clock):
    def interrupted(channels, call):
        if call == 2:
            raise KeyboardInterrupt
        return 1.0

    def run():
        offered = [(site, offers(site, 2)) for site in sites]
        table.measure(offered, SHAPES, TARGET, 8, lambda *_: None, Cache(conditions()))

    clock.time = interrupted
    with pytest.raises(KeyboardInterrupt):
        run()
    clock.time = lambda channels, call: 1.0
    clock.calls = []
    run()
    assert len(clock.calls) == 1


class Quitter:
    """Stands in for timing, giving up what has lost after the first try, which is 0.1 ms too slow."""

    def __init__(self, milliseconds):
        self.milliseconds, self.timed = milliseconds, []

    def __call__(self, models, feeds, target=None, *, seconds=2.0, seed=0, hopeless=None):
        channels = [_inner(model) for model in models]
        exact = [self.milliseconds[each] for each in channels]
        lost = hopeless([ms + 0.1 for ms in exact], 0)
        self.timed.append(channels)
        return [ms + 0.1 if gone else ms for ms, gone in zip(exact, lost, strict=True)]


def test_what_was_given_up_is_measured_again_only_where_it_may_win(sites, monkeypatch):
    clock = Quitter({None: 1.0, 2: 0.3, 4: 0.6})
    monkeypatch.setattr(latency, "interleaved", clock)
    better = replace(offers(sites[0], 2)[1], error=0.001)
    worse = replace(better, error=0.5)
    wide = replace(offers(sites[0], 4)[1], cost=Cost(200))  # too few multiply-adds to be dropped unmeasured

    def run(narrow):
        clock.timed = []
        original = offers(sites[0])
        offered = [(sites[0], [*original, narrow, wide])]
        (found,) = table.measure(offered, SHAPES, TARGET, 8, lambda *_: None, Cache(conditions()))
        return times(found), clock.timed

    # as narrow is both faster and better, wide is given up: its time is a rough one
    given_up = {(): 1.0, (2,): 0.3, (4,): 0.7}
    assert run(better) == (given_up, [[None, 2, 4]])
    assert run(better) == (given_up, [])
    # in a network where narrow is worse, wide may be wanted
    full = {(): 1.0, (2,): 0.3, (4,): 0.6}
    assert run(worse) == (full, [[None, 4]])
    assert run(worse) == (full, [])
    assert run(better) == (full, [])
