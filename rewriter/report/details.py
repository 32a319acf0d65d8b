"""What a run measured beside its verdict: where the time goes, and which samples drift the most."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.conv import Ints


@dataclass(frozen=True, slots=True)
class LayerTime:
    """The time of a layer in the network, with what is fused into it.

    Attributes:
        name: Of its node in the original, or in the second model where the original has no such layer.
        op_type: Its operator.
        before_ms: In the original; None where no kernel was found for it.
        after_ms: Of all that stands there now; None likewise.
    """

    name: str
    op_type: str
    before_ms: float | None
    after_ms: float | None


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """The time of all kernels of one operator, as the runtime names it.

    Attributes:
        op_type: The operator.
        before_ms: In the original.
        after_ms: In the other model; None where there is none.
    """

    op_type: str
    before_ms: float
    after_ms: float | None


@dataclass(frozen=True, slots=True)
class Times:
    """Where the time of one run goes, by the runtime's own profiler, which takes some time itself.

    Attributes:
        before_ms: Of all kernels of the original.
        after_ms: Of all kernels of the other model; None where there is none, as nothing was gained.
        layers: In the graph's order.
        operators: The most time first.
    """

    before_ms: float
    after_ms: float | None
    layers: tuple[LayerTime, ...]
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """An output that is an image, before and after, each a PNG file in base64.

    Attributes:
        width: In pixels, scaled down from that of the output.
        height: In pixels.
        before_png: Of the original.
        after_png: Of the other model.
        difference_png: The absolute difference, amplified.
        gain: How many times.
    """

    width: int
    height: int
    before_png: str
    after_png: str
    difference_png: str
    gain: int


@dataclass(frozen=True, slots=True)
class WorstSample:
    """A sample that drifts much.

    Attributes:
        index: Its place among the final samples, from 0.
        rel_l2: Its relative L2 drift.
        picture: What it looks like where the output is an image; of the first few only.
    """

    index: int
    rel_l2: float
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class OutputDrift:
    """How one output drifts, sample by sample.

    Attributes:
        output: Its name.
        shape: Of one sample, the first.
        rel_l2: Relative L2 drift of the final samples in their order, at most the first 2000.
        worst: The samples that drift the most, the worst first.
    """

    output: str
    shape: Ints
    rel_l2: tuple[float, ...]
    worst: tuple[WorstSample, ...]
