"""Operators that a target computes faster in others, by measurement."""

from __future__ import annotations

from collections.abc import Hashable

from rewriter import graph, latency
from rewriter.graph import Expansion, Model
from rewriter.progress import Progress
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds

# What is written in others must be so many times as fast: it is several nodes more.
_WORTHWHILE = 1.2
_SECONDS_PER_SHAPE = 0.4


def faster_expansions(
    model: Model, feeds: Feeds, target: Target, progress: Progress
) -> tuple[Expansion, ...]:
    """The operators that the target computes faster in others.

    Args:
        model: The model.
        feeds: What it will be run with.
        target: How it is deployed.
        progress: Told after every distinct shape.
    """
    found = graph.find_expansions(model)
    if not found:
        return ()
    inputs = list(dict.fromkeys(each.input for each in found))
    seen = Session(graph.with_outputs(model, inputs), Target(spinning=False)).run(feeds, inputs)
    places: list[Hashable] = [(each.alike, seen[each.input].shape) for each in found]
    faster: dict[Hashable, bool] = {}
    for each, place in zip(found, places, strict=True):
        if place not in faster:
            x = {each.input: seen[each.input]}
            models = graph.expansion_probes(model, each, x[each.input].shape)
            plain, others = latency.interleaved(models, [x, x], target, seconds=_SECONDS_PER_SHAPE)
            faster[place] = plain > others * _WORTHWHILE
            progress("timing operators", len(faster), len(set(places)))
    return tuple(each for each, place in zip(found, places, strict=True) if faster[place])
