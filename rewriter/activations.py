"""Activations that a target computes faster in another form, by measurement."""

from __future__ import annotations

from rewriter import graph, latency
from rewriter.graph import Model
from rewriter.progress import Progress
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds

# A form must be so many times as fast: it is one node more.
_WORTHWHILE = 1.2
_SECONDS_PER_SHAPE = 0.4


def faster_maxima(model: Model, feeds: Feeds, target: Target, progress: Progress) -> tuple[str, ...]:
    """The PRelus, by what they give, that the target computes faster as a Mul and a Max.

    Args:
        model: The model.
        feeds: What it will be run with.
        target: How it is deployed.
        progress: Told after every distinct shape.
    """
    sloped = graph.find_sloped(model)
    if not sloped:
        return ()
    inputs = [each.input for each in sloped]
    seen = Session(graph.with_outputs(model, inputs), Target(spinning=False)).run(feeds, inputs)
    shapes = {each.output: (seen[each.input].shape, each.slope.shape) for each in sloped}
    faster: dict[object, bool] = {}
    for each in sloped:
        place = shapes[each.output]
        if place not in faster:
            x = {"x": seen[each.input]}
            models = graph.slope_probes(place[0], each.slope)
            plain, larger = latency.interleaved(models, [x, x], target, seconds=_SECONDS_PER_SHAPE)
            faster[place] = plain > larger * _WORTHWHILE
            progress("timing activations", len(faster), len(set(shapes.values())))
    return tuple(output for output, place in shapes.items() if faster[place])
