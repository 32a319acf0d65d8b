"""What every site may become: its candidates, with the drift that each is likely to cost and its latency."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rewriter import fitting, macs, prepare, rounding, table
from rewriter.adjoint import output_metrics
from rewriter.cache import Cache
from rewriter.conv import Ints
from rewriter.fitting import Survey
from rewriter.graph import Model, Site
from rewriter.grid import Grid
from rewriter.parts import Parts
from rewriter.plan import Candidate, Plan
from rewriter.progress import Progress
from rewriter.refit import Refit
from rewriter.rewrite import Refusal
from rewriter.rounding import Checked
from rewriter.runtime import Target
from rewriter.search import Rewrites, Sites
from rewriter.sensitivity import sensitivities

if TYPE_CHECKING:
    from passes.base import Pass

CALM: Final = Target(spinning=False)
"""Where fits run, whatever the target is; threads that spin between runs would slow the fits."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Where candidates are made and timed.

    Attributes:
        model: The original with its exact steps done.
        sites: Its sites, in the order of the graph.
        in_shapes: The shape of each site's input as deployed, by site name.
        live_bytes: The most that is alive at once of that batch.
        passes: What to try.
        grid: The target's grid of ranks.
        target: How the model is deployed.
        seed: Draws samples and patches.
        progress: Told what is being done.
        cache: Latencies that are known from before; None where every form is timed.
    """

    model: Model
    sites: Sequence[Site]
    in_shapes: Mapping[str, Ints]
    live_bytes: int
    passes: Sequence[Pass]
    grid: Grid
    target: Target
    seed: int
    progress: Progress
    cache: Cache | None

    @property
    def sizes(self) -> dict[str, Ints]:
        """The spatial size of each site's input as deployed, by site name."""
        return {name: shape[2:] for name, shape in self.in_shapes.items()}

    @property
    def places(self) -> dict[str, table.Key]:
        """What sites must share for a form to take the same time at them, by site name."""
        return {site.name: table.place(site, self.in_shapes[site.name]) for site in self.sites}

    def timed(self, surveys: Sequence[Survey]) -> list[list[Candidate]]:
        """The candidates that are worth having, with their latencies."""
        offered = [(each.site, each.candidates) for each in surveys]
        return table.measure(offered, self.in_shapes, self.target, self.grid.block, self.progress, self.cache)

    def chosen(self, plan: Plan) -> list[tuple[Site, Candidate]]:
        """The sites that a plan rewrites, with what they become."""
        by_name = {site.name: site for site in self.sites}
        return [(by_name[candidate.site], candidate) for candidate in plan.rewritten]


@dataclass(frozen=True, slots=True, eq=False)
class Offers:
    """What there is to choose from.

    Attributes:
        scene: Where they were made and timed.
        surveys: What the passes made of every site.
        timed: The candidates of every site with their latencies, the site as it is first.
        candidates: Those that may be chosen, with their predicted drift.
        checked: What was found of their rounding, where they are exact.
        refit: Fits what is chosen to the network as rewritten; None where all are exact.
        fitted: How many samples the fits have seen.
        draws: How many gradients went backwards through the network.
        remarks: What is worth a warning.
    """

    scene: Scene
    surveys: Sequence[Survey]
    timed: Sequence[Sequence[Candidate]]
    candidates: Sites
    checked: Sequence[Checked] | None = None
    refit: Refit | None = None
    fitted: int = 0
    draws: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why passes cannot take sites, and why forms of theirs are not offered."""
        found = [*(each.refusals for each in self.surveys), *(each.refusals for each in self.checked or ())]
        return tuple(itertools.chain.from_iterable(found))

    def build(self, plan: Plan) -> Rewrites:
        """A plan made real: refitted front to back, or the kernels as they were where all are exact."""
        chosen = self.scene.chosen(plan)
        if self.refit is None:
            return fitting.exact_rewrites(chosen, self.scene.passes)
        return self.refit(chosen)


def exact(scene: Scene, samples: Parts) -> Offers:
    """Exact rewrites; their drift is what rounding makes of them on a sample."""
    surveys = fitting.exact_survey(scene.sites, scene.sizes, scene.passes, scene.grid)
    timed = scene.timed(surveys)
    offered = [(each.site, found) for each, found in zip(surveys, timed, strict=True)]
    checked = rounding.check(
        scene.model, offered, scene.passes, [samples.fit.feeds[0]], scene.seed, CALM, scene.progress
    )
    # rounding at a site is taken to come out as it is
    candidates = _predicted([each.candidates for each in checked], dict.fromkeys(scene.sizes, 1.0))
    return Offers(scene, surveys, timed, candidates, checked)


def fitted(scene: Scene, samples: Parts, batch: int, *, by_macs: bool) -> Offers:
    """Rewrites fitted to samples; their drift is what the network makes of their error.

    Args:
        scene: Where they are made.
        samples: To fit to, and others to measure sensitivities on.
        batch: The batch size of the scene.
        by_macs: Whether multiply-adds count, not latencies: nothing is timed.
    """
    fit = prepare.fitting_samples(
        samples.fit, scene.sites, scene.sizes, scene.live_bytes // batch, scene.seed
    )
    batches = prepare.fitting_batches(fit)
    draws = prepare.gradients(scene.sites, scene.sizes)
    metrics = output_metrics(scene.model, scene.sites, batches, scene.seed, CALM, scene.progress, draws)
    surveys = fitting.survey(
        scene.model,
        scene.sites,
        scene.sizes,
        scene.passes,
        scene.grid,
        batches,
        metrics.weights,
        scene.seed,
        CALM,
        scene.progress,
    )
    timed = macs.offers(surveys) if by_macs else scene.timed(surveys)
    # on other samples than the fits have seen, for which all of them are better than for the rest
    others = [each for each, _ in samples.choosing.batches()]
    cares = sensitivities(scene.model, surveys, others, CALM, scene.progress)
    refit = Refit(
        scene.model, scene.sites, scene.passes, batches, metrics.weights, scene.seed, CALM, scene.progress
    )
    return Offers(
        scene,
        # of a large model the probes hold much, and have served
        [replace(each, probe=None) for each in surveys],
        timed,
        _predicted(timed, cares),
        refit=refit,
        fitted=len(fit),
        draws=metrics.draws,
        remarks=metrics.remarks,
    )


def _predicted(sites: Sequence[Sequence[Candidate]], cares: Mapping[str, float]) -> Sites:
    """The candidates with the squared drift of the outputs for their error, by the sites' sensitivities."""
    return [
        [replace(each, drift=cares.get(each.site, 0.0) * each.error) for each in candidates]
        for candidates in sites
    ]
