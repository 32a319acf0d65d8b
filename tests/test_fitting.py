import graphs
import numpy as np
import pytest
import residual
from residual import at_sites

import passes
from passes.channel_svd import ChannelSVD
from passes.winograd import WinogradTiles
from rewriter import calibration, fitting, graph
from rewriter.conv import Conv
from rewriter.errors import SampleError
from rewriter.grid import Grid
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target
from rewriter.winograd import Winograd

TARGET = Target(threads=1)
GRID = Grid(8)
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


def survey(model, sites, batches, catalogue=passes.PASSES, seed=0):
    sizes = {site.name: (12, 12) for site in sites}
    return fitting.survey(model, sites, sizes, catalogue, GRID, batches, {}, seed, TARGET, silent)


class Recorder:
    """A pass that remembers what it made."""

    exact = False
    lowers = False

    def __init__(self, inner):
        self.inner, self.name, self.made = inner, inner.name, {}
        self.refuse, self.ranks = inner.refuse, inner.ranks

    def rewrites(self, conv, ranks, metric):
        for rank, rewrite in zip(ranks, self.inner.rewrites(conv, ranks, metric), strict=True):
            self.made[conv.weight.tobytes(), rank] = rewrite
            yield rewrite


def test_predicted_errors_are_those_measured_on_the_samples(model, batches):
    sites = [site for site in graph.find_sites(model)[0] if site.name != "down"]
    recorders = {each.name: Recorder(each) for each in passes.PASSES}
    surveys = survey(model, sites, batches, list(recorders.values()))
    compared = 0
    for found, inputs in zip(surveys, at_sites(model, batches, sites), strict=True):
        right = np.concatenate(calibration.apply(graphs.only(found.site.conv), inputs, TARGET))
        power = np.var(right, axis=(0, 2, 3), dtype=np.float64).sum()

        def measured(rewrite, inputs=inputs, right=right, power=power):
            made = np.concatenate(calibration.apply(rewrite, inputs, TARGET))
            return np.square(made - right, dtype=np.float64).mean((0, 2, 3)).sum() / power

        for candidate in found.candidates[1:]:
            key = found.site.conv.weight.tobytes(), candidate.rank
            rewrite = recorders[candidate.pass_name].made[key]
            # float32 moments, and the small ridge of the metric
            assert candidate.error == pytest.approx(measured(rewrite), rel=1e-3, abs=1e-9)
            compared += 1
        assert found.probe_error == pytest.approx(measured(found.probe), rel=1e-3)
    assert compared > 20


def test_survey_says_what_each_pass_makes_of_a_site(model, batches):
    sites = graph.find_sites(model)[0]
    surveys = survey(model, sites, batches)
    for site, found in zip(sites, surveys, strict=True):
        first, *others = found.candidates
        assert (first.pass_name, first.error) == (None, 0.0)
        assert first.cost == graphs.only(site.conv).cost((12, 12))
        heard = {each.pass_name for each in (*others, *found.refusals)}
        assert heard <= {each.name for each in passes.PASSES}
        assert {refusal.node for refusal in found.refusals} <= {site.name}
        assert all(each.cost.macs < first.cost.macs for each in others if each.skeleton.direct)
    # 8 channels have no groups of 8 of their own
    assert "grouped_pointwise" in {each.pass_name for each in surveys[0].refusals}


def test_nothing_to_try_leaves_the_site_alone(model, batches):
    (found,) = survey(model, graph.find_sites(model)[0][:1], batches, catalogue=[])
    assert (len(found.candidates), found.refusals, found.probe) == (1, (), None)


def test_skeletons_keep_everything_but_the_weights(rng):
    first = Conv(graphs.random(rng, 6, 2, 3, 5), None, (2, 1), (1, 0, 2, 1), (1, 2), 2)
    last = Conv(graphs.random(rng, 4, 6, 1, 1), graphs.random(rng, 4))
    hollow = fitting.skeleton(Rewrite(((first, last),)))
    for stage, made in zip((first, last), hollow.branches[0], strict=True):
        assert made.weight.shape == stage.weight.shape
        assert made.weight.dtype == stage.weight.dtype
        assert (made.bias is None) == (stage.bias is None)
        assert set(made.weight.strides) == {0}
        empty = {"weight": None, "bias": None}
        assert {**_fields(made), **empty} == {**_fields(stage), **empty}
    assert set(hollow.bias.strides) == {0}


def _fields(conv):
    return {name: getattr(conv, name) for name in Conv.__slots__}


def test_same_seed_same_survey(model, rng):
    many = residual.batches(rng, count=4, size=10)  # more patches than are drawn
    sites = graph.find_sites(model)[0][:2]
    first, again = (survey(model, sites, many, seed=1) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert [(c.pass_name, c.rank, c.error) for c in one.candidates] == [
            (c.pass_name, c.rank, c.error) for c in other.candidates
        ]


def test_values_that_are_not_finite_name_the_site(model, batches):
    sites = graph.find_sites(model)[0]
    (name,) = batches[0]
    batches[0][name][0, 0, 0, 0] = np.inf
    with pytest.raises(
        SampleError, match=f"^'{sites[0].name}' is fed values that are not finite .*--exclude$"
    ):
        survey(model, sites, batches)


@pytest.mark.parametrize("threaded", [False, True])
def test_tiles_are_written_for_the_threads_of_the_target(threaded, rng):
    conv = Conv(rng.standard_normal((16, 16, 3, 3), dtype=np.float32), pads=(1, 1, 1, 1))
    site = graph.Site("conv", "Conv", conv, "x", "y", (0,))
    (found,) = fitting.exact_survey([site], {site.name: (12, 12)}, [WinogradTiles()], Grid(8, threaded))
    tiles = [candidate for candidate in found.candidates if candidate.pass_name is not None]
    assert tiles
    for candidate in tiles:
        ((_, rewrite),) = fitting.exact_rewrites([(site, candidate)], [WinogradTiles()])
        assert rewrite.lowerings == candidate.lowerings == ((Winograd(candidate.rank, threaded),),)
