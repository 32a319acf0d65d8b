"""Channels that a network hardly needs, taken out before what is left is rewritten site by site.

Where a convolution alone reads what others make, it may read fewer channels, fitted to make up for the rest,
and the others need not make these: both get smaller, and as plain as they were. Some networks have channels
that are never active, or that others tell; these cost next to nothing. What costs more is left to the forms
of single sites, which do better there: errors of this kind add up from site to site.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rewriter import fitting, graph, latency, prepare
from rewriter.errors import PlanError, RewriterError, brief, listed
from rewriter.offers import CALM, Scene
from rewriter.plan import Candidate, Thinning
from rewriter.profile import inventory, profile
from rewriter.refit import Refit
from rewriter.rewrite import Lowerings
from rewriter.sensitivity import sensitivities

if TYPE_CHECKING:
    from passes.base import Pass
    from rewriter.conv import Ints
    from rewriter.graph import Model, Site
    from rewriter.parts import Parts
    from rewriter.progress import Progress
    from rewriter.runtime import Target
    from rewriter.samples import Feeds

_log = logging.getLogger(__name__)

# What a step may cost, as a share of the squared drift that is allowed, for all of the time; forms of single
# sites cost one and a half to three, and thinner channels up to ten times what is predicted of them.
_PRICE = 0.1
# With a larger relative error no channel of a site is cheap.
_SLIGHT = 0.05
# Together they may take so much of a budget on the choosing samples; where they take more, only the cheapest
# half of them is tried, so many times.
_MOST_USED = 0.25
_TRIES = 3
# Less than this is not worth it.
_FASTER = 1.02
_PROFILED_S = 1.0
_COMPARED_S = 1.0


def thinned(
    scene: Scene,
    step: Pass,
    samples: Parts,
    feeds: Feeds,
    batch: int,
    limit: float,
    usage: Callable[[Model], float],
) -> tuple[Model, Thinning] | None:
    """The model of a scene without channels that cost next to nothing; None where there are none to speak of.

    Args:
        scene: The model and how it is deployed.
        step: The pass that finds the channels.
        samples: To fit to, and others to measure sensitivities on.
        feeds: What to run it with as deployed.
        batch: Their batch size.
        limit: The squared relative drift of the outputs that is likely to be allowed.
        usage: Measures a model on the choosing samples: the largest share of a budget that it takes.
    """
    readers = graph.sole_readers(scene.model, scene.sites)
    sites = [site for site in scene.sites if site.name in readers]
    if not sites:
        return None
    fit = prepare.fitting_samples(
        samples.fit, scene.sites, scene.sizes, scene.live_bytes // batch, scene.seed
    )
    batches = prepare.fitting_batches(fit)
    # what costs next to nothing does so whatever the outputs care about
    surveys = fitting.survey(
        scene.model, sites, scene.sizes, (step,), scene.grid, batches, {}, scene.seed, CALM, scene.progress
    )
    surveys = [each for each in surveys if any(thin.error <= _SLIGHT**2 for thin in each.candidates[1:])]
    if not surveys:
        return None
    others = [each for each, _ in samples.choosing.batches()]
    cares = sensitivities(scene.model, surveys, others, CALM, scene.progress)
    shares = _shares(scene.model, scene.sites, feeds, scene.target)
    steps: list[_Step] = []
    for survey in surveys:
        site, care = survey.site, cares.get(survey.site.name, 0.0)
        share = sum(shares.get(name, 0.0) for name in (site.name, *readers[site.name]))
        thinner = [replace(each, drift=care * each.error) for each in survey.candidates[1:]]
        steps += _steps(thinner, site.conv.in_channels, share)
    refit = Refit(scene.model, sites, (step,), batches, {}, scene.seed, CALM, scene.progress)
    cheap = sorted((each for each in steps if each.price <= _PRICE * limit), key=lambda each: each.price)
    for _ in range(_TRIES):
        if not cheap:
            break
        ranks = {each.candidate.site: each.candidate.rank[0] for each in cheap}
        model = _without(scene.model, scene.sites, ranks, step, refit, scene.grid.block)
        used = usage(model)
        _log.info("%d convolutions read fewer channels: %.3g of the budget", len(ranks), used)
        if used <= _MOST_USED:
            faster = _faster(scene.model, model, feeds, scene.target)
            return (model, Thinning(ranks, len(fit))) if faster else None
        cheap = cheap[: len(cheap) // 2]
    return None


def again(
    model: Model,
    sites: Sequence[Site],
    done: Thinning,
    step: Pass,
    batches: Sequence[Feeds],
    block: int,
    seed: int,
    progress: Progress,
) -> Model:
    """A model thinned as one was before.

    Args:
        model: The model.
        sites: Its sites, in the order of the graph.
        done: How the other was.
        step: The pass that finds the channels.
        batches: Samples to fit to.
        block: Channels that the target computes at once.
        seed: Draws the patches.
        progress: Told what is being done.

    Raises:
        PlanError: A convolution is not there, or does not alone read what others make.
    """
    readers = graph.sole_readers(model, sites)
    found = {site.name: site for site in sites if site.name in readers}
    for name, rank in done.ranks.items():
        if name not in found:
            raise PlanError(
                f"the plan lets '{name}' read fewer channels; of {model.label} only {listed(sorted(found))} "
                "can do so; save a plan for this model"
            )
        if not 0 < rank < found[name].conv.in_channels:
            raise PlanError(
                f"the plan lets '{name}' read {rank} channels; in {model.label} it has "
                f"{found[name].conv.in_channels}; save a plan for this model"
            )
    alone = list(found.values())
    refit = Refit(model, alone, (step,), batches, {}, seed, CALM, progress)
    return _without(model, sites, done.ranks, step, refit, block)


@dataclass(frozen=True, slots=True)
class _Form:
    """A convolution with so many in-channels."""

    pass_name: str
    rank: Ints
    lowerings: Lowerings = ()


def _without(
    model: Model, sites: Sequence[Site], ranks: Mapping[str, int], step: Pass, refit: Refit, block: int
) -> Model:
    """The model with some of the sites fitted front to back to fewer channels, and without these channels."""
    chosen = [(site, _Form(step.name, (ranks[site.name],))) for site in sites if site.name in ranks]
    zeroed = graph.splice(model, refit(chosen))
    free = {site.name for site in sites}
    found = [site for site in graph.find_sites(zeroed)[0] if site.name in free]
    return graph.remove_dead(zeroed, found, block)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One way to go on from the step before it at a site: what that costs for what it saves.

    Attributes:
        candidate: What the site becomes.
        price: The squared relative drift of the outputs for all of the time.
    """

    candidate: Candidate
    price: float


def _steps(candidates: Sequence[Candidate], channels: int, share: float) -> Iterator[_Step]:
    """The steps of a site from many channels to few, each dearer than the one before.

    Args:
        candidates: Those with fewer channels, the most first.
        channels: How many there are.
        share: The share of the time that goes as the channels do.
    """
    drift, left = 0.0, channels
    ahead = list(candidates)
    while ahead and share > 0.0:
        steps = [
            _Step(each, (each.drift - drift) / (share * (left - each.rank[0]) / channels)) for each in ahead
        ]
        index = min(range(len(steps)), key=lambda at: steps[at].price)
        yield steps[index]
        drift, left = ahead[index].drift, ahead[index].rank[0]
        ahead = ahead[index + 1 :]


def _shares(model: Model, sites: Sequence[Site], feeds: Feeds, target: Target) -> dict[str, float]:
    """The share of the time of a run that each site takes, by name; nothing where that cannot be told."""
    try:
        fixed, found = inventory(model, feeds)
        measured = profile(fixed, found.layers, feeds, target, seconds=_PROFILED_S)
    except (RewriterError, ValueError) as error:
        _log.info("no channels are taken out: %s", brief(error))
        return {}
    return {site.name: measured.layers.get(site.output, 0.0) / measured.total_ms for site in sites}


def _faster(before: Model, after: Model, feeds: Feeds, target: Target) -> bool:
    models = [graph.serialize(before), graph.serialize(after)]
    first, second = latency.interleaved(models, [feeds] * 2, target, seconds=_COMPARED_S)
    _log.info("thinned it is %.3g times as fast", first / second)
    return first > second * _FASTER
