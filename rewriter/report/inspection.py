"""What a model consists of: its layers with their costs, as `inspect` found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rewriter.conv import Ints
from rewriter.graph import Layer
from rewriter.rewrite import Refusal

SCHEMA_VERSION: Final = 1

CONVENTIONS: Final = (
    "A multiply-add is one MAC; FLOPs are twice the MACs, less the first addition of each sum where there is "
    "no bias. Zeros of borders count; activations and normalisations do not."
)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """A layer, its time, and what could become of it.

    Attributes:
        layer: What it is and costs.
        ms: Measured time of one run, with what the runtime fuses into it; None where it was not measured.
        share: Of the measured time of all kernels.
        passes: Names of the passes that have a form for it.
        refusals: Why the others have not; with `pass_name` None, why none has.
        dead_inputs: In-channels that the model can do without.
        dead_outputs: Out-channels that the model can do without.
    """

    layer: Layer
    ms: float | None
    share: float | None
    passes: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    dead_inputs: int = 0
    dead_outputs: int = 0


@dataclass(frozen=True, slots=True)
class Inspection:
    """The layers of a model, and what they come to.

    Attributes:
        layers: In the graph's order.
        macs: Multiply-adds of all layers in one run.
        flops: Their floating-point operations.
        params: Their parameters, what several share counted once.
        uncounted: Nodes with products that are not among the layers, by what they are.
        passes: The passes there are.
        inputs: The shapes that all this is for, by input name.
        total_ms: Measured time of all kernels in one run; None where it was not measured.
        others_ms: Of those that belong to no layer, by operator.
        conventions: What the figures count.
        environment: Versions, processor, cores.
        settings: The options in effect, by their command-line names.
    """

    model: str
    layers: tuple[LayerReport, ...]
    macs: int
    flops: int
    params: int
    uncounted: Mapping[str, int]
    passes: tuple[str, ...]
    inputs: Mapping[str, Ints]
    total_ms: float | None
    others_ms: Mapping[str, float]
    environment: dict[str, str]
    settings: dict[str, object]
    conventions: str = CONVENTIONS
    schema_version: int = SCHEMA_VERSION
