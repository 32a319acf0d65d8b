"""Exact candidates -> what rounding makes of them, against a float64 oracle; those that lose too much go.

    error = |y - y64| / |y64|,        y64 = W x + b in float64, over drawn output positions

The oracle takes the same input, weight and bias, so the error of the Conv node itself is that of its
own sums, and the ratio of the two is what the transforms, or the rounded factors, cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from rewriter import calibration, patches
from rewriter.calibration import Walk
from rewriter.conv import Array, Conv
from rewriter.fitting import exact_rewrites
from rewriter.graph import Model, Site
from rewriter.plan import Candidate
from rewriter.progress import Progress
from rewriter.rewrite import Refusal, Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.winograd import Winograd

if TYPE_CHECKING:
    from passes.base import Pass

# A form may lose so many times what the Conv itself does. In 130 layers of 12 trained models on real inputs
# tiles of 6 x 6 lose 28 times as much at most and 11 times in the median, smaller ones about half of that.
MOST_TIMES: Final = 100.0
# Output positions of a site: enough for every place in a tile many times over, fewer where the kernel is so
# large that the oracle would take longer than a moment.
_POSITIONS: Final = 4096
_FEWEST_POSITIONS: Final = 64
_MACS: Final = 1 << 29


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """A site's candidates after the look at their rounding.

    Attributes:
        candidates: Those that may be taken, the site as it is first; the squared error of the
            others is the measured one. What a faster one with less error beats is not among them.
        direct: The error of the Conv as it is; None where nothing was measured or it has no finite one.
        refusals: Of the others.
    """

    candidates: tuple[Candidate, ...]
    direct: float | None = None
    refusals: tuple[Refusal, ...] = ()


def check(
    model: Model,
    offers: Sequence[tuple[Site, Sequence[Candidate]]],
    passes: Sequence["Pass"],
    batches: Sequence[Feeds],
    seed: int,
    target: Target,
    progress: Progress,
) -> list[Checked]:
    """The candidates of every site without those that overflow or lose too much to rounding.

    Overflow is looked for in every value of an output, the error is measured at drawn positions.

    Args:
        model: The original.
        offers: Its sites in the order of the graph, each with its candidates, the site as it is first.
        passes: Where to look the candidates' passes up by name.
        batches: Samples, one or two are enough.
        seed: Draws the positions.
        target: Where to run the model.
        progress: Told after every site that has something to check.
    """
    wanted = [site for site, candidates in offers if any(map(_rewritten, candidates))]
    walk = Walk(model, wanted, batches, target)
    found = []
    for site, candidates in offers:
        if site not in wanted:
            found.append(Checked(tuple(candidates)))
            continue
        inputs = walk.inputs()
        outputs = calibration.apply(Rewrite(((site.conv,),)), inputs, target)
        oracle = _Oracle(site.conv, inputs, seed)
        found.append(_checked(site, candidates, passes, inputs, oracle.error(outputs), oracle, target))
        walk.provide(outputs)
        progress("rounding", wanted.index(site) + 1, len(wanted))
    return found


class _Oracle:
    """What a convolution gives in float64 at drawn output positions of its inputs, one array a batch."""

    def __init__(self, conv: Conv, inputs: Sequence[Array], seed: int) -> None:
        count = int(np.clip(_MACS // conv.weight.size, _FEWEST_POSITIONS, _POSITIONS)) // len(inputs)
        rng = np.random.default_rng(seed)
        self._positions: list[npt.NDArray[np.intp]] = []
        exact = []
        for batch in inputs:
            size = len(batch) * int(np.prod(conv.out_size(batch.shape[2:])))
            chosen = np.sort(rng.choice(size, min(size, max(count, 1)), replace=False))
            self._positions.append(chosen)
            exact.append(_float64(conv, patches.seen(conv, batch, chosen)))
        self._exact = np.concatenate(exact)

    def error(self, outputs: Sequence[Array]) -> float:
        """The relative L2 error of outputs; infinite where any value of theirs is not finite."""
        if not all(np.isfinite(output).all() for output in outputs) or not np.isfinite(self._exact).all():
            return np.inf
        pairs = zip(outputs, self._positions, strict=True)
        rows = np.concatenate([patches.rows(output, chosen) for output, chosen in pairs])
        off = float(np.linalg.norm(rows - self._exact))
        scale = float(np.linalg.norm(self._exact))
        if scale == 0.0:
            return 0.0 if off == 0.0 else np.inf
        return off / scale


def _float64(conv: Conv, patches: Array) -> Array:
    """The outputs `[P, M]` for patches `[G, P, K]`."""
    if not np.isfinite(patches).all():  # no product of it is worth the warnings
        return np.full((patches.shape[1], conv.out_channels), np.inf)
    products = np.asarray(patches, np.float64) @ np.asarray(conv.matrix, np.float64).swapaxes(1, 2)
    flat = products.swapaxes(0, 1).reshape(patches.shape[1], conv.out_channels)
    return flat if conv.bias is None else flat + np.asarray(conv.bias, np.float64)


def _checked(
    site: Site,
    candidates: Sequence[Candidate],
    passes: Sequence["Pass"],
    inputs: Sequence[Array],
    direct: float,
    oracle: _Oracle,
    target: Target,
) -> Checked:
    # where the Conv's own error is below half a unit in the last place, as for small integers, it is that
    limit = MOST_TIMES * max(direct, np.finfo(site.dtype).eps / 2)
    kept = [candidate for candidate in candidates if not _rewritten(candidate)]
    tried: list[Candidate] = []
    refusals: list[Refusal] = []
    for candidate in sorted(filter(_rewritten, candidates), key=lambda each: each.latency_ms):
        if any(_beats(other, candidate) for other in tried):
            continue
        if not np.isfinite(direct):
            reason = f"its values overflow {site.dtype} as it is"
        else:
            ((_, rewrite),) = exact_rewrites([(site, candidate)], passes)
            error = oracle.error(calibration.apply(rewrite, inputs, target))
            if error <= limit:
                kept.append(replace(candidate, error=error**2))
                tried.append(candidate)
                continue
            reason = f"{_form(candidate)} {_lost(error, direct, limit, site.dtype)}"
        refusal = Refusal(site.name, candidate.pass_name, reason)
        if all(other.reason != reason for other in refusals):
            refusals.append(refusal)
    return Checked(tuple(kept), direct if np.isfinite(direct) else None, tuple(refusals))


def _beats(one: Candidate, other: Candidate) -> bool:
    """Whether one that is no slower is no worse in all else: nothing would choose the other then."""
    return one.error <= other.error and one.skeleton.held_bytes <= other.skeleton.held_bytes


def _lost(error: float, direct: float, limit: float, dtype: np.dtype[Any]) -> str:
    if not np.isfinite(error):
        return f"overflows {dtype}, which the Conv does not; an error of at most {limit:.2g} is allowed"
    return (
        f"loses {error:.2g} of its output to rounding, the Conv {direct:.2g}; "
        f"at most {limit:.2g} is allowed, {MOST_TIMES:g} times as much"
    )


def _form(candidate: Candidate) -> str:
    """Which of a pass's candidates it is: by its tile, or by its rank where it is in none."""
    tiles = [
        stage.lowering.m
        for branch in candidate.skeleton.branches
        for stage in branch
        if isinstance(stage.lowering, Winograd)
    ]
    sizes = "x".join(map(str, tiles[0] if tiles else candidate.rank))
    return f"tile {sizes}" if tiles else f"rank {sizes}"


def _rewritten(candidate: Candidate) -> bool:
    return candidate.pass_name is not None
