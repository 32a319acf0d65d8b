"""How much the model's outputs care about an error at a site, measured through the network."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import graph
from rewriter.calibration import Walk, apply
from rewriter.fitting import Survey
from rewriter.linalg import sum_of_squares
from rewriter.progress import Progress
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds, cut, samples_in

Outputs = Sequence[npt.NDArray[Any]]

# All probes together may take so much work, so that it does not grow with sites times samples; but a few
# samples are needed.
_WORK = 3e11
_FEWEST = 2


def sensitivities(
    model: graph.Model,
    surveys: Sequence[Survey],
    batches: Sequence[Feeds],
    target: Target,
    progress: Progress,
) -> dict[str, float]:
    """Squared relative drift of the outputs for each unit of squared relative error at a site, by site name.

    Every site with candidates is rewritten alone by its probe, and what lies behind it run on as many samples
    as the work allows. Where a model has several outputs, or pieces of them, that which drifts most counts.
    """
    probed = [each for each in surveys if each.probe is not None]
    pieces = graph.output_pieces(model)
    work = sum(as_it_is.cost.work for each in surveys for as_it_is in each.candidates[:1])
    cuts = all(spec.fixed_batch is None for spec in model.inputs)
    batches = list(_first(batches, round(_WORK / max(work * (len(probed) + 1), 1.0)), cuts))
    session = Session(partial(graph.loadable, model), target)
    reference = [_pieces(session.run(batch).values(), pieces) for batch in batches]
    del session  # it holds the weights of the whole model
    walk = Walk(model, [each.site for each in probed], batches, target)
    found = {}
    for index, each in enumerate(probed):
        assert each.probe is not None
        inputs = walk.inputs()
        outputs = [_pieces(ran, pieces) for ran in walk.outputs_if(apply(each.probe, inputs, target))]
        found[each.site.name] = squared_drift(reference, outputs) / max(each.probe_error, 1e-12)
        walk.provide(apply(Rewrite(((each.site.conv,),)), inputs, target))
        progress("probing", index + 1, len(probed))
    return found


def _first(batches: Sequence[Feeds], count: int, cuts: bool) -> Iterator[Feeds]:
    """The first of the samples, as many as asked for, but a few; whole batches where none may be cut."""
    left = max(count, _FEWEST)
    for batch in batches:
        if left <= 0:
            break
        yield cut(batch, 0, left) if cuts else batch
        left -= samples_in(batch)


def _pieces(outputs: Iterable[npt.NDArray[Any]], pieces: Iterable[Sequence[graph.Piece]]) -> Outputs:
    return [each.of(array) for array, those in zip(outputs, pieces, strict=True) for each in those]


def squared_drift(before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """The largest over the outputs of Σ|after - before|² / Σ|before|², one list of outputs a batch.

    What has come out in another shape, such as another number of steps of a decoder, is lost altogether.
    """
    worst = 0.0
    for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
        if not np.issubdtype(old[0].dtype, np.floating):
            continue
        energy = sum(map(sum_of_squares, old))
        error = sum(
            sum_of_squares(np.subtract(is_now, was, dtype=np.float64) if is_now.shape == was.shape else was)
            for was, is_now in zip(old, new, strict=True)
        )
        worst = max(worst, error / max(energy, np.finfo(np.float64).tiny))
    return worst
