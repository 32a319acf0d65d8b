"""What of a report is drawn, and how its points are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup

from rewriter.report import words
from rewriter.report.content import Point, Report
from rewriter.report.details import OutputDrift
from rewriter.report.plots import Axis, Mark, Series, bars, scatter

_BINS: Final = 40
# A few runs that something else held up would press all others into a corner.
_TAILS: Final = (0.005, 0.98)
_MOST_OPERATORS: Final = 8
_FEWEST_SAMPLES: Final = 8
# Rounds far over budget would press those near it into a corner.
_MOST_SHARE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing.

    Attributes:
        drawing: Itself, SVG.
        caption: What it shows, one sentence or two.
        legend: Classes of its series, and what these are.
    """

    drawing: Markup
    caption: str
    legend: tuple[tuple[str, str], ...]


def latency_chart(report: Report) -> Chart | None:
    """The distributions of the times of single runs; None where nothing was timed."""
    timed = report.latency
    if timed is None:
        return None
    sides = {"before": np.array(timed.before_times_ms), "after": np.array(timed.after_times_ms)}
    sides = {name: times[np.isfinite(times) & (times > 0.0)] for name, times in sides.items()}
    if min(times.size for times in sides.values()) < 2:
        return None
    ends = np.array([np.quantile(times, _TAILS) for times in sides.values()])
    edges = np.geomspace(ends.min() * 0.98, ends.max() * 1.02, _BINS + 1)
    series = []
    for name, times in sides.items():
        counts, _ = np.histogram(times, edges)
        filled = np.flatnonzero(counts)
        first, last = int(filled[0]), int(filled[-1])
        outline = [Mark(float(edges[first]), 0.0)]
        for index in range(first, last + 1):
            share = 100.0 * float(counts[index]) / times.size
            outline += [Mark(float(edge), share) for edge in edges[index : index + 2]]
        series.append(Series(name, [*outline, Mark(float(edges[last + 1]), 0.0)], line=True, filled=True))
    top = max(mark.y for each in series for mark in each.marks)
    medians = {"before": timed.before_ms, "after": timed.after_ms}
    for name, median in medians.items():
        tip = f"{name}: median {words.milliseconds(median)}"
        series.append(Series(f"{name} median", [Mark(median, 0.0), Mark(median, top)], line=True))
        series.append(Series(name, [Mark(median, top, tip)]))
    runs = sum(times.size for times in sides.values())
    caption = (
        f"{words.plural(runs, 'single run')}, {words.CLOCKS[timed.clock]}; dots mark the medians. "
        "Runs slower than 98 % of their kind are not drawn."
    )
    drawing = scatter(series, Axis("ms for one run"), Axis("% of runs", whole=True))
    legend = tuple((name, f"{name}: {words.milliseconds(median)}") for name, median in medians.items())
    return Chart(drawing, caption, legend)


def tradeoff_chart(report: Report) -> Chart | None:
    """Speed against drift: the measured frontier, else what the search tried; None where there is neither."""
    if report.frontier:
        return _frontier(report.frontier)
    return _rounds(report)


def _frontier(points: Sequence[Point]) -> Chart:
    measure = points[0].drift[0].measure if points[0].drift else "predicted drift"
    found = []
    for point in points:
        drift = point.drift[0].value if point.drift else point.predicted_drift
        tip = (
            f"{words.factor(point.speedup)} ({point.speedup_low:.2f} to {point.speedup_high:.2f}), {measure} "
            f"{words.figure(drift)}, {words.plural(point.sites, 'site')}, "
            f"{words.percent(point.macs_ratio)} of the MACs" + (", chosen" if point.chosen else "")
        )
        found.append((point, Mark(drift, point.speedup, tip)))
    intervals = [
        Series("interval", [Mark(mark.x, point.speedup_low), Mark(mark.x, point.speedup_high)], line=True)
        for point, mark in found
    ]
    drawing = scatter(
        [
            *intervals,
            Series("tried", [mark for point, mark in found if not point.chosen]),
            Series("chosen", [mark for point, mark in found if point.chosen]),
        ],
        Axis(f"drift, {measure}"),
        Axis("times as fast"),
    )
    caption = (
        "Every point is a model that was made and measured: drift on the samples that guided the choice, "
        "speed-up as deployed with its 95 % interval."
    )
    return Chart(drawing, caption, (("tried", "possible"), ("chosen", "chosen")))


def _rounds(report: Report) -> Chart | None:
    rounds = [each for each in report.rounds if each.predicted_ms is not None]
    if not rounds:
        return None
    budgets = bool(report.gates)
    marks: dict[str, list[Mark]] = {"tried": [], "over": [], "chosen": []}
    for each in rounds:
        share = 100.0 * each.budget_share if budgets else each.budget_share
        told = f"{words.figure(share)} % of the budget" if budgets else f"drift {words.figure(share)}"
        kind = "chosen" if each.chosen else "tried" if each.within_budget else "over"
        tip = f"{told}, {words.milliseconds(each.predicted_ms)}, {words.plural(each.sites, 'site')}"
        tip += {"chosen": ", chosen", "tried": "", "over": ", too near the budget or over it"}[kind]
        if not budgets or each.budget_share <= _MOST_SHARE:
            marks[kind].append(Mark(share, each.predicted_ms or 0.0, tip))
    left_out = len(rounds) - sum(map(len, marks.values()))
    series = [Series(kind, found) for kind, found in marks.items() if found]
    if not series:
        return None
    if budgets:
        heights = [mark.y for each in series for mark in each.marks]
        limit = [Mark(100.0, min(heights)), Mark(100.0, max(heights) * (1 + 1e-9))]
        series.insert(0, Series("limit", limit, line=True))
    title = "% of the budget that the measured drift takes" if budgets else "drift"
    drawing = scatter(series, Axis(title, whole=True), Axis("ms, convolutions alone"))
    caption = (
        "Every point is a plan that the search made real and measured on the samples that guide the choice. "
        "The time is the sum of the forms' own; only the final models were timed as deployed."
    )
    if left_out:
        caption += f" {words.plural(left_out, 'plan')} far over the budget: not drawn."
    if report.improved and not marks["chosen"]:
        caption += " The final samples asked for less drift than these have: the chosen plan is another."
    names = {"tried": "fits", "over": "too near the budget or over it", "chosen": "chosen"}
    legend = tuple((each.name, names[each.name]) for each in series if each.name in names)
    return Chart(drawing, caption, legend)


def operator_chart(report: Report) -> Chart | None:
    """The time of kernels by operator; None where it was not measured."""
    times = report.times
    if times is None or not times.operators:
        return None
    shown = list(times.operators[:_MOST_OPERATORS])
    others = times.operators[_MOST_OPERATORS:]
    names = [words.folded(words.printable(each.op_type), 22) for each in shown]
    series = [("before", [each.before_ms for each in shown])]
    if times.after_ms is not None:
        series.append(("after", [each.after_ms or 0.0 for each in shown]))
    if others:
        names.append(words.plural(len(others), "other"))
        series = [
            (name, [*values, sum(getattr(each, f"{name}_ms") for each in others)]) for name, values in series
        ]
    total = words.milliseconds(times.before_ms)
    if times.after_ms is not None:
        total += f" before, {words.milliseconds(times.after_ms)} after"
    caption = (
        f"Kernels of one run by ONNX Runtime's profiler, {total} in all. The profiler takes some time "
        "itself and counts on the wall, so its sums are not the latency above."
    )
    legend = tuple((name, name) for name, _ in series)
    return Chart(bars(names, series, words.milliseconds), caption, legend)


def sample_chart(output: OutputDrift) -> Chart | None:
    """How the drift of an output is spread over the samples; None where these are too few to tell."""
    values = np.array(output.rel_l2)
    values = values[np.isfinite(values) & (values > 0.0)]
    if values.size < _FEWEST_SAMPLES or np.ptp(values) == 0.0:
        return None
    ordered = np.sort(values)
    ranks = np.linspace(0, ordered.size - 1, min(ordered.size, 100)).round().astype(int)
    line = [Mark(float(ordered[rank]), 100.0 * (rank + 1) / ordered.size) for rank in ranks]
    worst = [
        Mark(
            each.rel_l2,
            100.0 * (1.0 - index / ordered.size),
            f"sample {each.index + 1}: {words.figure(each.rel_l2)}",
        )
        for index, each in enumerate(output.worst)
        if np.isfinite(each.rel_l2) and each.rel_l2 > 0.0
    ]
    drawing = scatter(
        [Series("after", line, line=True), Series("over", worst)],
        Axis("rel_l2 of a sample"),
        Axis("% of samples at most", whole=True),
    )
    caption = f"Drift of '{words.printable(output.output)}', sample by sample; dots are the worst."
    return Chart(drawing, caption, ())
