"""Passes and metrics -> rewrites: the survey of every candidate, fitted to the original network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewriter import calibration, linalg, patches
from rewriter.balance import balanced
from rewriter.calibration import Walk
from rewriter.conv import Array, Conv, Ints
from rewriter.errors import PlanError, SampleError
from rewriter.graph import Model, Site
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments, relative_error
from rewriter.parallel import in_order
from rewriter.plan import Candidate, Form
from rewriter.progress import Progress
from rewriter.rewrite import Refusal, Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.winograd import for_threads

if TYPE_CHECKING:
    from passes.base import Pass

# The survey's probe: the candidate of a site whose relative error comes nearest to this stands for small
# drifts.
_PROBE_ERROR = 0.1
# A candidate worse than this loses half of the output's variance; no budget will ever take it.
_WORST_ERROR = 0.7
# Values in a patch above which the fits of a site run one after the other: each holds several matrices of
# their square.
_LARGE = 2500


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What the passes make of one site.

    Attributes:
        site: The site.
        candidates: With skeletons in place of weights; the site as it is comes first.
        refusals: Of the passes that cannot take it.
        probe: One fitted rewrite, for trying how much the outputs care about this site, if there is any.
        probe_error: Its relative squared error.
    """

    site: Site
    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    probe: Rewrite | None
    probe_error: float


def survey(
    model: Model,
    sites: Sequence[Site],
    sizes: Mapping[str, tuple[int, ...]],
    passes: Sequence["Pass"],
    grid: Grid,
    batches: Sequence[Feeds],
    weights: Mapping[str, Array],
    seed: int,
    target: Target,
    progress: Progress,
) -> list[Survey]:
    """Every rewrite of every site, fitted to the activations of the original model.

    Args:
        model: The original.
        sites: Its sites, in the order of the graph.
        sizes: The spatial size of each site's input as deployed, by site name.
        passes: What to try.
        grid: The target's grid of ranks.
        batches: Samples to fit to.
        weights: The output side of the sites' metrics, by site name; the identity for those left out.
        seed: Draws the patches.
        target: Where to run the model.
        progress: Told after every site.

    Raises:
        SampleError: A site is fed values that are not finite.
    """
    walk = Walk(model, sites, batches, target)
    found = []
    with linalg.one_blas_thread():
        for index, site in enumerate(sites):
            inputs = walk.inputs()
            if not all(np.isfinite(each).all() for each in inputs):
                raise SampleError(
                    f"'{site.name}' is fed values that are not finite for some of the samples; leave these "
                    "out, or the node with --exclude"
                )
            found.append(_site(site, inputs, sizes[site.name], passes, grid, weights.get(site.name), seed))
            walk.provide(calibration.apply(Rewrite(((site.conv,),)), inputs, target))
            progress("fitting", index + 1, len(sites))
    return found


def _site(
    site: Site,
    inputs: Sequence[Array],
    size: Ints,
    passes: Sequence["Pass"],
    grid: Grid,
    weights: Array | None,
    seed: int,
) -> Survey:
    """Every rewrite of one site, fitted to its inputs, one array a batch."""
    before, willing, refusals = _offers(site, size, passes, grid)
    candidates = [before]
    if not willing:
        return Survey(site, tuple(candidates), tuple(refusals), None, 0.0)
    positions = patches.draw(site.conv, [batch.shape for batch in inputs], seed)
    metric = site_metric(calibration.moments(site.conv, inputs, positions), weights)
    metric.root  # noqa: B018 - made here once, not in every thread

    def fit(job: tuple["Pass", Sequence[Ints]]) -> tuple[list[Candidate], Rewrite | None, float]:
        """The candidates of a pass, and of their rewrites only the one that is nearest to a probe."""
        each, ranks = job
        made: list[Candidate] = []
        nearest: Rewrite | None = None
        nearest_error = 0.0
        for rank, rewrite in zip(ranks, each.rewrites(site.conv, ranks, metric), strict=True):
            error = relative_error(site.conv, rewrite, metric) ** 2
            if error > _WORST_ERROR**2:
                continue
            made.append(
                Candidate(site.name, each.name, rank, _written(rewrite, grid), rewrite.cost(size), error)
            )
            if nearest is None or _off(error) < _off(nearest_error):
                nearest, nearest_error = rewrite, error
        return made, nearest, nearest_error

    large = site.conv.matrix.shape[2] > _LARGE
    probe: Rewrite | None = None
    probe_error = 0.0
    for made, nearest, error in map(fit, willing) if large else in_order(fit, willing, most=len(willing)):
        candidates += made
        if nearest is not None and (probe is None or _off(error) < _off(probe_error)):
            probe, probe_error = nearest, error
    return Survey(site, tuple(candidates), tuple(refusals), probe, probe_error)


def exact_survey(
    sites: Sequence[Site], sizes: Mapping[str, Ints], passes: Sequence["Pass"], grid: Grid
) -> list[Survey]:
    """Every exact rewrite of every site; nothing is run, and the error is that of rounding.

    Args:
        sites: In the order of the graph.
        sizes: The spatial size of each site's input as deployed, by site name.
        passes: Exact ones.
        grid: The target's grid of ranks.
    """
    with linalg.one_blas_thread():
        return [_exact_site(site, sizes[site.name], passes, grid) for site in sites]


def _exact_site(site: Site, size: Ints, passes: Sequence["Pass"], grid: Grid) -> Survey:
    before, willing, refusals = _offers(site, size, passes, grid)
    candidates = [before]
    for each, ranks in willing:
        for rank, rewrite in zip(ranks, each.rewrites(site.conv, ranks, _unseen(site.conv)), strict=True):
            error = rewrite.rounding**2
            candidates.append(
                Candidate(site.name, each.name, rank, _written(rewrite, grid), rewrite.cost(size), error)
            )
    return Survey(site, tuple(candidates), tuple(refusals), None, 0.0)


def exact_rewrites(
    chosen: Sequence[tuple[Site, Form]], passes: Sequence["Pass"]
) -> list[tuple[Site, Rewrite]]:
    """The chosen rewrites of exact passes, the kernels as they were, in tiles where the candidate is."""
    by_name = {each.name: each for each in passes}
    with linalg.one_blas_thread():
        return [(site, in_form(site, form, by_name, site.conv, _unseen(site.conv))) for site, form in chosen]


def in_form(site: Site, form: Form, passes: Mapping[str, "Pass"], conv: Conv, metric: Metric) -> Rewrite:
    """A convolution in the form that was chosen for a site.

    Raises:
        PlanError: It cannot be written as the form says.
    """
    assert form.pass_name is not None
    (rewrite,) = passes[form.pass_name].rewrites(conv, [form.rank], metric)
    rewrite = balanced(rewrite, conv, metric.input)
    try:
        return rewrite.lowered_as(form.lowerings)
    except ValueError as error:
        rank = "x".join(map(str, form.rank))
        raise PlanError(
            f"'{site.name}' as {form.pass_name} of rank {rank} has other stages than those that the plan "
            f"lowers ({error}); save the plan anew"
        ) from error


def _offers(
    site: Site, size: Ints, passes: Sequence["Pass"], grid: Grid
) -> tuple[Candidate, list[tuple["Pass", Sequence[Ints]]], list[Refusal]]:
    """A site as it is, the passes that can take it with their ranks, and the refusals of the others."""
    return as_it_is(site, size), *willing(site, passes, grid)


def willing(
    site: Site, passes: Sequence["Pass"], grid: Grid
) -> tuple[list[tuple["Pass", Sequence[Ints]]], list[Refusal]]:
    """The passes that can take a site, with the ranks worth trying, and the refusals of the others."""
    refusals = []
    found = []
    for each in passes:
        reason = each.refuse(site.conv) or (site.obstacle if each.lowers else None)
        if reason:
            refusals.append(Refusal(site.name, each.name, reason))
        elif ranks := each.ranks(site.conv, grid):
            found.append((each, ranks))
        else:
            reason = "no rank on the target's grid is cheaper than the original"
            refusals.append(Refusal(site.name, each.name, reason))
    return found, refusals


def as_it_is(site: Site, size: Ints) -> Candidate:
    """The candidate that leaves a site alone, for an input of a spatial size."""
    identity = Rewrite(((site.conv,),))
    return Candidate(site.name, None, (), skeleton(identity), identity.cost(size), 0.0)


def _unseen(conv: Conv) -> Metric:
    """A metric of no patches, for passes that need none; it takes no memory."""
    group, _, size = conv.matrix.shape
    return Metric(Moments(np.broadcast_to(0.0, (group, size, size)), np.zeros((group, size)), 0))


def _off(error: float) -> float:
    return abs(float(np.log(max(error, 1e-12) / _PROBE_ERROR**2)))


def _written(rewrite: Rewrite, grid: Grid) -> Rewrite:
    """The skeleton of a rewrite as it is written for a target."""
    return skeleton(for_threads(rewrite) if grid.threaded else rewrite)


def skeleton(rewrite: Rewrite) -> Rewrite:
    """The same stages with constant weights that take no memory."""

    def hollow(array: Array | None) -> Array | None:
        return None if array is None else np.broadcast_to(np.float32(0.01), array.shape)

    return rewrite.with_stages(
        lambda stage: stage.with_(weight=hollow(stage.weight), bias=hollow(stage.bias))
    )


def site_metric(moments: Moments, weights: Array | None) -> Metric:
    """The metric of a site's fits, its input side shrunk as far as the number of patches asks for."""
    return Metric(calibration.shrunk(moments), weights)
