"""The chosen rewrites fitted to the network as already rewritten, and the sites that stay repaired to it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewriter import calibration, fitting, linalg, patches
from rewriter.calibration import Joint, Walk
from rewriter.conv import Array, Conv
from rewriter.graph import Model, Site
from rewriter.parallel import in_order
from rewriter.patches import Positions
from rewriter.plan import Form
from rewriter.progress import Progress
from rewriter.references import Reference, References
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds

if TYPE_CHECKING:
    from passes.base import Pass

# Ridges towards the original kernel, relative to the mean eigenvalue of the patch covariance.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
# Of the samples, what the strength of the ridge is judged on.
_HELD = 0.25
# Sites that stay are repaired where a patch has at most so many values: beyond, that takes longer than the
# fits of many a form.
_REPAIRED = 2500
# Of rewrites that may be needed again so much is kept.
_KEPT_BYTES = 1 << 27

Prefix = tuple[tuple[Hashable, ...], ...]
"""The sites up to one, by name, with what they become."""


class Fitted:
    """Rewrites by what was chosen up to their site, on which they depend alone; of many the latest are kept.

    Plans of a search are alike: what they begin with need not be fitted anew.
    """

    def __init__(self) -> None:
        self._kept: dict[Prefix, Rewrite] = {}
        self._bytes = 0

    def get(self, key: Prefix) -> Rewrite | None:
        """The rewrite of the last of these sites, if it was kept."""
        return self._kept.get(key)

    def add(self, key: Prefix, rewrite: Rewrite) -> None:
        """Keeps a rewrite as long as there is room."""
        self._kept[key] = rewrite
        self._bytes += rewrite.held_bytes
        while self._bytes > _KEPT_BYTES:
            oldest = next(iter(self._kept))
            self._bytes -= self._kept.pop(oldest).held_bytes


class Refit:
    """Fits chosen rewrites front to back: inputs from the rewritten network, targets from the original.

    Each site repairs what the sites before it left wrong as far as its form can (the asymmetric
    reconstruction of Zhang et al. 2015, section 3.3). In front of a residual Add the target is what makes the
    sum right (He et al. 2017, section 3.3). So do the sites that stay one Conv, where held samples confirm
    that a refitted kernel comes nearer: it takes no longer.

    What plans have in common is fitted once.

    Args:
        model: The original.
        sites: All that the plans choose for, in the order of the graph.
        passes: Where to look the forms' passes up by name.
        batches: Samples to fit to.
        weights: The output side of the sites' metrics, by site name; the identity for those left out.
        seed: Draws the patches.
        target: Where to run the model.
        progress: Told after every site.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[Site],
        passes: Sequence["Pass"],
        batches: Sequence[Feeds],
        weights: Mapping[str, Array],
        seed: int,
        target: Target,
        progress: Progress,
    ) -> None:
        self._model, self._sites, self._batches, self._weights = model, sites, batches, weights
        self._passes = {each.name: each for each in passes}
        self._target, self._progress = target, progress
        self._references = References(model, sites, batches, seed, target)
        self._fitted = Fitted()

    def __call__(self, chosen: Sequence[tuple[Site, Form]]) -> list[tuple[Site, Rewrite]]:
        """Fits the sites that a plan rewrites.

        Args:
            chosen: These sites with their forms.

        Returns:
            The chosen sites with their rewrites and, among them in the order of the graph, those that stay
            with the Conv that repairs them.
        """
        jobs = _jobs(chosen, self._sites)
        sites = [site for site, _ in jobs]
        rewritten = Walk(self._model, sites, self._batches, self._target)
        done: list[tuple[Site, Rewrite]] = []
        so_far: Prefix = ()
        with linalg.one_blas_thread():
            for index, ((site, form), reference) in enumerate(
                zip(jobs, self._references.of(sites), strict=True)
            ):
                what = () if form is None else (form.pass_name, form.rank, form.lowerings)
                so_far = (*so_far, (site.name, *what))
                inputs = rewritten.inputs()
                rewrite = self._fitted.get(so_far)
                if rewrite is None:
                    wanted = _with_shortcut(site, reference, rewritten)
                    if form is None:
                        rewrite = _repaired(site.conv, inputs, reference.positions, wanted, self._target)
                    else:
                        rewrite = self._in_form(site, form, inputs, reference.positions, wanted)
                    self._fitted.add(so_far, rewrite)
                if form is not None or rewrite.branches != ((site.conv,),):
                    done.append((site, rewrite))
                rewritten.provide(calibration.apply(rewrite, inputs, self._target))
                self._progress("refitting", index + 1, len(jobs))
        return done

    def _in_form(
        self,
        site: Site,
        form: Form,
        inputs: Sequence[Array],
        positions: Positions,
        wanted: Sequence[Array],
    ) -> Rewrite:
        """A site in its form, as what makes the wanted outputs best."""
        assert form.pass_name is not None
        each = self._passes[form.pass_name]
        # what is read off the zeros and ranks of a kernel is not there in another one
        ridges = () if each.exact and not each.lowers else _RIDGES
        found = _retarget(site.conv, inputs, positions, wanted, ridges)
        metric = fitting.site_metric(found.fit.input, self._weights.get(site.name))
        return fitting.in_form(site, form, self._passes, found.conv, metric)


def _jobs(chosen: Sequence[tuple[Site, Form]], sites: Sequence[Site]) -> list[tuple[Site, Form | None]]:
    """Every site that is fitted, in the order of the graph; nothing in front of the first form is wrong."""
    rewritten = {site.name for site, _ in chosen}
    first = min((site.nodes[0] for site, _ in chosen), default=0)
    others = [
        (site, None)
        for site in sites
        if chosen
        and site.name not in rewritten
        and site.nodes[0] > first
        and site.conv.matrix.shape[2] <= _REPAIRED
    ]
    return sorted([*chosen, *others], key=lambda job: job[0].nodes[0])


def _repaired(
    conv: Conv, inputs: Sequence[Array], positions: Positions, wanted: Sequence[Array], target: Target
) -> Rewrite:
    """A site that stays one Conv, with the kernel that makes the wanted outputs best, or its own."""
    as_it_is = Rewrite(((conv,),))
    outputs = calibration.apply(as_it_is, inputs, target)
    if all(
        np.array_equal(patches.rows(output, at), rows)
        for output, at, rows in zip(outputs, positions, wanted, strict=True)
    ):
        return as_it_is
    found = _retarget(conv, inputs, positions, wanted, _RIDGES)
    if found.hold is None or found.error >= _untouched_error(conv, found.hold):
        return as_it_is
    return Rewrite(((found.conv,),))


def _with_shortcut(site: Site, reference: Reference, rewritten: Walk) -> Sequence[Array]:
    """The outputs wanted of a site: its own, and in front of an Add what its rewritten shortcut lacks."""
    if site.shortcut is None or reference.shortcut is None:
        return reference.rows
    wrong = rewritten.tensor(site.shortcut)
    assert wrong is not None, "what is there on the way of all sites is there on that of some"
    parts = zip(reference.rows, reference.shortcut, wrong, reference.positions, strict=True)
    return [y + (s - patches.rows(t, at)) for y, s, t, at in parts]


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """A convolution to be fitted to.

    Attributes:
        conv: The convolution.
        fit: What it was found on.
        hold: The part of that on which its shrinkage was chosen; None where there was nothing to choose.
        error: Its error there, fitted to the rest.
    """

    conv: Conv
    fit: Joint
    hold: Joint | None = None
    error: float = 0.0


def _retarget(
    conv: Conv,
    inputs: Sequence[Array],
    positions: Positions,
    wanted: Sequence[Array],
    ridges: Sequence[float],
) -> _Target:
    """The convolution that best makes the wanted outputs at some positions from the given inputs.

    How far it is shrunk towards the kernel as it is, or that it is this one, is chosen on held samples; then
    it is fitted to all. Where there are none to choose on it is the kernel as it is.
    """
    held = max(1, round(_HELD * len(inputs))) if len(inputs) > 1 and ridges else 0
    fit = calibration.joint(conv, inputs[held:], wanted[held:], positions[held:])
    if held == 0:
        return _Target(_with_mean(conv, conv.matrix, fit), fit)
    hold = calibration.joint(conv, inputs[:held], wanted[:held], positions[:held])
    best, least = None, _held_error(conv.matrix, fit, hold)
    errors = in_order(lambda ridge: _held_error(_towards(conv, fit, ridge), fit, hold), ridges)
    for ridge, error in zip(ridges, errors, strict=True):
        if error < least:
            best, least = ridge, error
    fit = calibration.pooled(fit, hold)
    kernel = conv.matrix if best is None else _towards(conv, fit, best)
    return _Target(_with_mean(conv, kernel, fit), fit, hold, least)


def _towards(conv: Conv, fit: Joint, ridge: float) -> Array:
    """The kernel `[G, M/G, K]` that makes what is wanted, shrunk towards that of a convolution by a ridge.

    (C_yx + λ W)(C + λI)⁻¹
    """
    parts = patches.phase_columns(conv)

    def solved(kernel: Array, covariance: Array, cross: Array, mean: Array) -> Array:
        strength = ridge * np.trace(covariance) / len(covariance)
        right = (cross + strength * kernel).T
        if len(parts) > 1:
            return linalg.ridge_solve_apart(covariance, mean, right, strength, parts).T
        return linalg.ridge_solve(covariance, right, strength).T

    groups = zip(conv.matrix, fit.input.covariance, fit.cross, fit.input.mean, strict=True)
    return np.stack([solved(*group) for group in groups])


def _with_mean(conv: Conv, matrix: Array, fit: Joint) -> Conv:
    """A convolution with another kernel whose mean output is the wanted one."""
    return conv.with_(weight=matrix.reshape(conv.weight.shape), bias=_lacking_mean(matrix, fit))


def _lacking_mean(matrix: Array, joint: Joint) -> Array:
    """What the mean output of a kernel lacks of the wanted one, `[M]`."""
    mean: Array = joint.mean - np.einsum("gmk,gk->gm", matrix, joint.input.mean).reshape(-1)
    return mean


def _held_error(matrix: Array, fit: Joint, hold: Joint) -> float:
    """Mean squared error on held samples, less the variance of the wanted output: no kernel changes that.

    The bias is the one that `_with_mean` gives.
    """
    return _error(matrix, _lacking_mean(matrix, fit), hold)


def _untouched_error(conv: Conv, hold: Joint) -> float:
    """The same of a convolution as it is."""
    return _error(conv.matrix, np.zeros(conv.out_channels) if conv.bias is None else conv.bias, hold)


def _error(matrix: Array, bias: Array, hold: Joint) -> float:
    spread = np.sum((matrix @ hold.input.covariance) * matrix) - 2 * np.sum(matrix * hold.cross)
    return float(spread + np.sum((_lacking_mean(matrix, hold) - bias) ** 2))
