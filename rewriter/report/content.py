"""What a run found out: the one `Report`, of which every other module here is a view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rewriter.conv import Cost, Ints
from rewriter.drift import Drift
from rewriter.latency import Latency
from rewriter.limits import Expense
from rewriter.parting import Parting
from rewriter.report.details import OutputDrift, Times
from rewriter.rewrite import Refusal
from rewriter.search import Round

SCHEMA_VERSION: Final = 2
"""Of the JSON that a report is written as; `read` takes all versions up to this one."""


@dataclass(frozen=True, slots=True)
class SiteReport:
    """What one convolution was and became.

    Attributes:
        node: its name in the model.
        was: kind and shape, such as `3x3 64->64 s2 g1`.
        in_shape: the shape of its input, batch first, as deployed.
        became: the pass that rewrote it, or None where it stays as it was.
        rank: the pass's rank, or None.
        before: its cost for one sample.
        after: the cost of what stands there now.
        predicted_error: relative L2 error of its output on the calibration samples, 0 where it stays.
        latency_before_ms: measured alone, with what fuses behind it; None where it was not measured.
        latency_after_ms: the same for what stands there now.
        reason: why it stays, or None where it was rewritten.
        rounding_error: relative L2 error of the form that stands there now against float64, with exact
            rewrites; None where it was not measured or stays.
        direct_rounding_error: the same of the Conv as it was.
    """

    node: str
    was: str
    in_shape: Ints
    became: str | None
    rank: Ints | None
    before: Cost
    after: Cost
    predicted_error: float
    latency_before_ms: float | None
    latency_after_ms: float | None
    reason: str | None = None
    rounding_error: float | None = None
    direct_rounding_error: float | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """One budget and what was measured against it on the final samples.

    Attributes:
        strict: whether `high` was asked to be within the budget, not `value`.
    """

    measure: str
    budget: float
    value: float
    low: float
    high: float
    samples: int
    passed: bool
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of the trade-off of speed against drift, measured on the samples that guided the choice.

    Attributes:
        sites: how many sites it rewrites.
        macs_ratio: the multiply-adds of all sites over what they were.
        predicted_drift: relative L2 drift of the outputs, from the candidates' errors and the sensitivities.
        drift: as measured: relative L2 first, then the measures that have a budget.
        predicted_ms: sum of the sites' latencies; None where nothing was timed.
        speedup: of the whole model as deployed, before over after.
        speedup_low: lower end of its 95 % interval.
        speedup_high: upper end of its 95 % interval.
        chosen: whether this is the model that was made.
    """

    sites: int
    macs_ratio: float
    predicted_drift: float
    drift: tuple[Drift, ...]
    predicted_ms: float | None
    speedup: float
    speedup_low: float
    speedup_high: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found out of another model, beside what every report tells.

    Attributes:
        other: The model that is called "after".
        passed: Whether every gate that was asked for passed.
        equal: Whether the outputs are equal up to rounding.
        min_speedup: What the lower bound of the speed-up had to reach; None where it had not to.
        located: Whether it was asked where the two models part.
        parting: Where they do; None where they do not, or nobody asked.
    """

    other: str
    passed: bool
    equal: bool
    min_speedup: float | None
    located: bool
    parting: Parting | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known of one run.

    Attributes:
        verdict: one sentence: what came out, with its confidence, or why nothing was written.
        improved: whether a model was made that is faster and within budget, or within `max_macs`; of a
            comparison, whether its gates passed.
        steps: exact changes of the whole graph that were made, such as unpinned weights.
        before: cost of all convolutions for one sample; None where two given models are compared.
        after: the same for the result.
        drift: every measure on the final samples; empty where no candidate reached them.
        latency: before against after as deployed; None where nothing was left to time.
        expenses: file size, load time and peak memory with their limits; empty where `latency` is None.
        samples: how many samples fitted, chose and judged: keys `fit`, `choose`, `final`.
        environment: versions, processor, cores.
        settings: the options in effect, by their command-line names.
        comparison: what is known of two given models alone; None where the second was made here.
        max_macs: what `after.macs` was allowed to be, as a share of `before.macs`; None where time was the
            aim.
        frontier: the trade-off of speed against drift, by growing predicted drift; empty where it was not
            asked for.
        notes: what is worth knowing of how the figures came about and no cause for concern.
        times: where the time of a run goes in both models; None where no report was asked for, or there is no
            second model.
        outputs: how each output drifts, sample by sample; empty likewise.
        command: the command line that does it again; empty where something was given that has no name there.
    """

    model: str
    verdict: str
    improved: bool
    sites: tuple[SiteReport, ...]
    refusals: tuple[Refusal, ...]
    steps: tuple[str, ...]
    before: Cost | None
    after: Cost | None
    gates: tuple[Gate, ...]
    drift: tuple[Drift, ...]
    latency: Latency | None
    expenses: tuple[Expense, ...]
    rounds: tuple[Round, ...]
    samples: Mapping[str, int]
    warnings: tuple[str, ...]
    environment: Mapping[str, str]
    settings: Mapping[str, object]
    comparison: Comparison | None = None
    max_macs: float | None = None
    frontier: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()
    times: Times | None = None
    outputs: tuple[OutputDrift, ...] = ()
    command: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
