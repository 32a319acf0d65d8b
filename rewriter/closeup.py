"""What reports show beside the verdict: where the time goes, and the samples that drift the most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewriter import _measures, graph, pictures
from rewriter.conv import Ints
from rewriter.errors import RewriterError, brief
from rewriter.graph import Model
from rewriter.judge import Judge
from rewriter.meter import by_sample
from rewriter.profile import inventory, profile
from rewriter.report import LayerTime, OperatorTime, OutputDrift, Picture, Times, WorstSample
from rewriter.runtime import Target
from rewriter.samples import Feeds

Array = NDArray[Any]

_WORST: Final = 3
_MOST_VALUES: Final = 2000
# Characters of base64 that the pictures of a report may come to, so that pages stay small.
_MOST_PICTURED: Final = 500_000
_PROFILED_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Closeup:
    """What was found, empty where nobody looked, and what to say where something could not be measured."""

    times: Times | None = None
    outputs: tuple[OutputDrift, ...] = ()
    warnings: tuple[str, ...] = ()


def times(before: Model, after: Model | None, feeds: Feeds, target: Target) -> Times:
    """Where the time of one run goes, in two models if there is another.

    What the second has of its own is told to the layers of the first that it came in place of, as far as the
    two have names of tensors in common; otherwise each has layers of its own.

    Raises:
        ModelError: One cannot be run.
    """
    fixed, found = inventory(before, feeds)
    first = profile(fixed, found.layers, feeds, target, seconds=_PROFILED_S)
    ours = [(layer, first.layers.get(layer.output)) for layer in found.layers]
    if after is None:
        layers = [LayerTime(layer.name, layer.op_type, ms, None) for layer, ms in ours]
        operators = [OperatorTime(name, ms, None) for name, ms in first.operators.items()]
        return Times(first.total_ms, None, tuple(layers), tuple(operators))
    other, others = inventory(after, feeds)
    if _akin(fixed, other):
        second = profile(other, found.layers, feeds, target, original=fixed, seconds=_PROFILED_S)
        layers = [
            LayerTime(layer.name, layer.op_type, ms, second.layers.get(layer.output)) for layer, ms in ours
        ]
    else:
        second = profile(other, others.layers, feeds, target, seconds=_PROFILED_S)
        theirs = [(layer, second.layers.get(layer.output)) for layer in others.layers]
        layers = [LayerTime(layer.name, layer.op_type, ms, None) for layer, ms in ours]
        layers += [LayerTime(layer.name, layer.op_type, None, ms) for layer, ms in theirs]
    operators = [
        OperatorTime(name, first.operators.get(name, 0.0), second.operators.get(name, 0.0))
        for name in {*first.operators, *second.operators}
    ]
    operators.sort(key=lambda each: (-max(each.before_ms, each.after_ms or 0.0), each.op_type))
    return Times(first.total_ms, second.total_ms, tuple(layers), tuple(operators))


def output_drifts(judge: Judge, model: Model) -> tuple[OutputDrift, ...]:
    """How each output of a model drifts on the final samples, with pictures where it is an image."""
    seen = [_Seen(name) for name in judge.outputs]
    for batch in judge.final_outputs(model):
        before, after, size = by_sample(*batch)
        for each, first, second in zip(seen, before, after, strict=True):
            each.take(first, second, size)
    room = _MOST_PICTURED
    found = []
    for each in seen:
        samples = []
        for value, index, first, second in each.worst:
            picture = _picture(first, second) if room > 0 else None
            if picture is not None:
                room -= sum(map(len, (picture.before_png, picture.after_png, picture.difference_png)))
            samples.append(WorstSample(index, value, picture if room > 0 else None))
        found.append(OutputDrift(each.name, each.shape, tuple(each.values[:_MOST_VALUES]), tuple(samples)))
    return tuple(found)


def look(
    judge: Judge, before: Model, after: Model | None, made: bool, feeds: Feeds, target: Target
) -> Closeup:
    """All of that; the run need not fail where something cannot be measured.

    Args:
        judge: Has the final samples.
        before: The original.
        after: The model whose drift was measured on them, if any.
        made: Whether that is the result; otherwise only the original's time is told.
        feeds: What to run them on to time them.
        target: How they are deployed.
    """
    outputs = () if after is None else output_drifts(judge, after)
    try:
        return Closeup(times(before, after if made else None, feeds, target), outputs)
    except (RewriterError, ValueError) as error:
        doubt = f"the times of single layers could not be measured: {brief(error)}"
        return Closeup(None, outputs, (doubt,))


class _Seen:
    """The drift of one output, sample by sample, and what its worst samples give."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shape: Ints = ()
        self.values: list[float] = []
        self.worst: list[tuple[float, int, Array, Array]] = []

    def take(self, before: Array, after: Array, size: int) -> None:
        self.shape = self.shape or before.shape[1:]
        values = self._relative(before, after, size)
        start = len(self.values)
        self.values += values
        for place in sorted(range(size), key=lambda place: -values[place])[:_WORST]:
            kept = (values[place], start + place, before[place].copy(), after[place].copy())
            self.worst.append(kept)
        self.worst = sorted(self.worst, key=lambda each: -each[0])[:_WORST]

    def _relative(self, before: Array, after: Array, size: int) -> list[float]:
        if before.shape != after.shape or before.dtype.kind not in "fiub":
            return [0.0 if np.array_equal(before, after) else np.inf] * size
        found = _measures.distances(before, after)
        values: list[float] = _measures.relative(found.error, found.energy).tolist()
        return values


def _akin(first: Model, second: Model) -> bool:
    """Whether two models have tensors of the same name between their inputs and outputs."""
    ours, theirs = (
        {name for node in graph.flow(model) for name in node.outputs} for model in (first, second)
    )
    return bool((ours & theirs).difference(first.outputs)) or ours == theirs


def _picture(before: Array, after: Array) -> Picture | None:
    first, second = pictures.as_image(before), pictures.as_image(after)
    if first is None or second is None or first.shape != second.shape:
        return None
    images = pictures.shown(first, second)
    height, width = images[0].shape[:2]
    encoded = [pictures.png(image) for image in images]
    return Picture(width, height, encoded[0], encoded[1], encoded[2], pictures.GAIN)
