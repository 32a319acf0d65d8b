import graphs
import numpy as np
import pytest
import residual
from graphs import run
from residual import at_sites, drift

from passes.channel_svd import ChannelSVD
from passes.split_groups import SplitGroups
from rewriter import calibration, graph, patches, references, refit
from rewriter.conv import Conv, Cost
from rewriter.metric import Metric
from rewriter.plan import Candidate
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target

TARGET = Target(threads=1)
SVD = ChannelSVD()


def silent(*_):
    pass


@pytest.fixture
def model(rng):
    return graph.load(residual.network(rng))


@pytest.fixture
def batches(rng):
    # 1440 patches of a full-size site: all are taken, at most 20 a value, and enough not to be shrunk
    return residual.batches(rng, count=5, size=2)


def refitter(model, sites, batches, seed=0, passes=(SVD,)):
    ordered = sorted(sites, key=lambda site: site.nodes[0])
    return refit.Refit(model, ordered, passes, batches, {}, seed, TARGET, silent)


def refitted(model, chosen, batches, seed=0, staying=()):
    return refitter(model, [*(site for site, _ in chosen), *staying], batches, seed)(chosen)


def chosen(model, **ranks):
    """Sites by name with candidates of the channel SVD at a rank; refitting needs no more of them."""
    skeleton = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))
    return [
        (site, Candidate(site.name, SVD.name, (ranks[site.name],), skeleton, Cost(), 0.0))
        for site in graph.find_sites(model)[0]
        if site.name in ranks
    ]


def test_what_plans_begin_with_is_fitted_once(model, batches, monkeypatch):
    """What was kept is what would have been fitted; a change in front makes all behind it anew."""
    calls = []
    real = refit._retarget

    def counted(conv, *args):
        calls.append(conv)
        return real(conv, *args)

    monkeypatch.setattr(refit, "_retarget", counted)
    names = [site.name for site in graph.find_sites(model)[0]][:3]
    fit = refitter(model, [site for site, _ in chosen(model, **dict.fromkeys(names, 4))], batches)
    for ranks, anew in (((4, 4, 4), 3), ((4, 4, 8), 1), ((4, 4, 4), 0), ((8, 4, 4), 3)):
        plan = chosen(model, **dict(zip(names, ranks, strict=True)))
        calls.clear()
        found = fit(plan)
        assert len(calls) == anew
        for (site, rewrite), (other, fresh) in zip(found, refitted(model, plan, batches), strict=True):
            assert site is other
            for stage, twin in zip(rewrite.branches[0], fresh.branches[0], strict=True):
                assert np.array_equal(stage.weight, twin.weight)


def test_only_the_latest_rewrites_are_kept(monkeypatch):
    one = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))
    monkeypatch.setattr(refit, "_KEPT_BYTES", 2 * one.held_bytes)
    kept = refit.Fitted()
    for name in "abc":
        kept.add(((name,),), one)
    assert [kept.get(((name,),)) is one for name in "abc"] == [False, True, True]


def test_structure_is_refitted_as_it_is(rng):
    """Another kernel would not have it; the bias makes up for inputs of another mean."""
    text = """
    agraph (float[n,16,12,12] x) => (float[n,16,12,12] y) {
        [low] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, v)
        [grouped] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(h, w)
    }
    """
    kernel = np.zeros((16, 16, 3, 3), np.float32)
    for half in (slice(0, 8), slice(8, 16)):
        kernel[half, half] = rng.standard_normal((8, 8, 3, 3))
    found = graphs.model(text, v=rng.standard_normal((16, 16, 3, 3)).astype(np.float32), w=kernel)
    samples = [{"x": np.float32(rng.standard_normal((4, 16, 12, 12)) + 1.0)} for _ in range(3)]
    skeleton = Rewrite(((Conv(np.zeros((1, 1, 1, 1), np.float32)),),))
    plan = [
        (site, Candidate(site.name, step.name, rank, skeleton, Cost(), 0.0))
        for site, step, rank in zip(
            graph.find_sites(found)[0], (SVD, SplitGroups()), ((4,), (2,)), strict=True
        )
    ]
    rewrites = refitter(found, [site for site, _ in plan], samples, passes=[SVD, SplitGroups()])(plan)
    ((stage,),) = rewrites[1][1].branches
    assert stage.group == 2
    assert np.array_equal(stage.weight[:8], kernel[:8, :8])
    wanted, got = (
        np.concatenate([run(data, feeds)["y"] for feeds in samples])
        for data in (found.bytes(), graph.splice(found, rewrites).bytes())
    )
    assert np.allclose(wanted.mean((0, 2, 3)), got.mean((0, 2, 3)), atol=1e-3 * np.abs(wanted).max())


def test_full_rank_gives_the_original_back(model, batches):
    sites = chosen(model, stem=16, one=16, two=16, down=16)
    made = graph.splice(model, refitted(model, sites, batches))
    # each of four sites solves for its kernel in float64 and rounds it to float32
    assert drift(model, made, batches) < 1e-5


@pytest.mark.parametrize("rank", [6, 8, 10])
def test_refitting_behind_rewritten_sites_drifts_less(model, batches, rank):
    sites = chosen(model, stem=rank, one=rank, two=rank, down=rank)
    repaired = graph.splice(model, refitted(model, sites, batches))
    alone = []
    for (site, candidate), inputs in zip(
        sites, at_sites(model, batches, [site for site, _ in sites]), strict=True
    ):
        positions = patches.draw(site.conv, [batch.shape for batch in inputs], 0)
        metric = Metric(calibration.moments(site.conv, inputs, positions))
        alone += [(site, rewrite) for rewrite in SVD.rewrites(site.conv, [candidate.rank], metric)]
    plain = graph.splice(model, alone)
    assert drift(model, repaired, batches) < 0.95 * drift(model, plain, batches)


def test_what_the_shortcut_lost_is_made_good_before_the_add(model, batches, monkeypatch):
    sites = chosen(model, stem=6, two=16)
    with_target = graph.splice(model, refitted(model, sites, batches))
    monkeypatch.setattr(refit, "_with_shortcut", lambda site, reference, *_: reference.rows)
    without = graph.splice(model, refitted(model, sites, batches))
    # only what the other branch still knows of the lost directions, and their mean, can be made good
    assert drift(model, with_target, batches, "s") < 0.98 * drift(model, without, batches, "s")


def test_a_shortcut_that_comes_later_is_no_target(rng, batches):
    """Of two convolutions in front of one Add the second repairs the first, which cannot wait for it."""
    text = residual.TEXT.replace("s = Add(c, ar)", "e = Conv(ar, side_w) [add] s = Add(c, e)")
    shapes = {f"{name}_w": shape for name, shape in residual.KERNELS.items()} | {"side_w": (16, 16, 1, 1)}
    shapes |= {"stem_b": (16,), "one_b": (16,), "down_b": (16,), "head_w": (5, 16), "head_b": (5,)}
    text = text.replace("[sum] e", "[side] e")
    model = graphs.model(text, **{name: graphs.random(rng, *shape) for name, shape in shapes.items()})
    made = refitted(model, chosen(model, two=8, side=16), batches)
    assert [site.name for site, _ in made] == ["two", "side"]
    alone = refitted(model, chosen(model, two=8), batches)
    np.testing.assert_array_equal(made[0][1].branches[0][0].weight, alone[0][1].branches[0][0].weight)
    repaired, plain = graph.splice(model, made), graph.splice(model, alone)
    assert drift(model, repaired, batches, "s") < drift(model, plain, batches, "s")


def test_one_batch_is_enough_to_refit(model, batches):
    """Without a second one there is nothing to judge a correction by, and the kernel is only approximated."""
    sites = chosen(model, stem=16, one=16, two=16)
    made = graph.splice(model, refitted(model, sites, batches[:1]))
    # full rank; the solution is rounded to float32
    assert drift(model, made, batches) < 1e-5


def test_same_seed_same_bits(model, rng):
    many = residual.batches(rng, count=16, size=10)  # more patches than are drawn
    sites = chosen(model, stem=8, one=8)

    def bits(seed):
        found = refitted(model, sites, many, seed)
        return [stage.weight.tobytes() for _, rewrite in found for stage in rewrite.branches[0]]

    assert bits(1) == bits(1)
    assert bits(1) != bits(2)


def test_what_stays_is_repaired(model, rng):
    """Kernels between and behind rewritten ones take up what these lost, on unseen samples, too."""
    many, unseen = (residual.batches(rng, count=6, size=8) for _ in range(2))
    plan = chosen(model, stem=8, two=8)
    named = {site.name: site for site in graph.find_sites(model)[0]}
    staying = [named["one"], named["down"]]
    alone, repaired = (refitted(model, plan, many, staying=each) for each in ((), staying))
    assert [site.name for site, _ in repaired] == ["stem", "one", "two", "down"]
    for site, rewrite in repaired:
        if site in staying:
            ((stage,),) = rewrite.branches
            assert stage.weight.shape == site.conv.weight.shape
    before, after = (drift(model, graph.splice(model, each), unseen) for each in (alone, repaired))
    assert after < 0.95 * before


def test_what_nothing_changed_for_stays_as_it_is(model, rng):
    many = residual.batches(rng, count=4, size=8)
    named = {site.name: site for site in graph.find_sites(model)[0]}
    # in front of all that is rewritten
    assert [
        site.name for site, _ in refitted(model, chosen(model, down=8), many, staying=[named["stem"]])
    ] == ["down"]
    assert refitted(model, [], many, staying=list(named.values())) == []


def test_a_repair_that_held_samples_reject_is_left(model, rng, monkeypatch):
    many = residual.batches(rng, count=4, size=8)
    named = {site.name: site for site in graph.find_sites(model)[0]}
    monkeypatch.setattr(refit, "_untouched_error", lambda *_: -np.inf)
    found = refitted(model, chosen(model, stem=8), many, staying=[named["one"], named["down"]])
    assert [site.name for site, _ in found] == ["stem"]


def test_what_the_original_gives_is_kept_while_there_is_room(model, batches, monkeypatch):
    """A model too large for that is run again for every plan, and comes out the same."""
    runs = []
    real = references.Walk

    def counted(*args):
        runs.append(args)
        return real(*args)

    monkeypatch.setattr(references, "Walk", counted)
    plan = chosen(model, stem=8, two=8, down=8)
    sites = [site for site, _ in plan]
    bits = []
    for room, walks in ((1 << 28, 1), (0, 2)):
        monkeypatch.setattr(references, "_KEPT_BYTES", room)
        runs.clear()
        fit = refitter(model, sites, batches)
        found = [*fit(plan), *fit(chosen(model, stem=4, two=8))]
        assert len(runs) == walks
        bits.append([stage.weight.tobytes() for _, rewrite in found for stage in rewrite.branches[0]])
    assert bits[0] == bits[1]
