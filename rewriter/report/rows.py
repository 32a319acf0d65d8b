"""The tables that the views for people share, as plain texts: one place decides what is said and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rewriter.drift import MEASURES, Drift
from rewriter.limits import Expense
from rewriter.parting import Place
from rewriter.report import words
from rewriter.report.content import Gate, Report, SiteReport
from rewriter.rewrite import Refusal


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A figure of the whole model; `limit` is empty where it has none."""

    name: str
    before: str
    after: str
    change: str
    limit: str = ""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A measure of drift with what it was allowed; `passed` is None where it had no budget."""

    name: str
    value: str
    interval: str
    samples: str
    budget: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A rewritten convolution; figures as (before, after)."""

    node: str
    was: str
    became: str
    rank: str
    macs: tuple[str, str]
    params: tuple[str, str]
    latency: tuple[str, str] | None
    error: str
    rounding: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """A reason and the convolutions that it keeps as they are."""

    reason: str
    pass_name: str | None
    nodes: tuple[str, ...]


def model_rows(report: Report) -> list[ModelRow]:
    """Latency, MACs, parameters, file size, load time and peak memory, as far as they were measured.

    Where a model was timed but not written, these are its own, and `after` is the original's: left out.
    """
    latency, before, after = report.latency, report.before, report.after
    rows = []
    if before is not None and after is not None and (report.improved or latency is None):
        most = None if report.max_macs is None else report.max_macs * before.macs
        rows += [
            _model_row("MACs of convolutions", words.count, before.macs, after.macs, most),
            _model_row("Parameters of convolutions", words.count, before.params, after.params),
        ]
    if latency is None:
        return rows
    first = ModelRow(
        "Latency",
        words.milliseconds(latency.before_ms),
        words.milliseconds(latency.after_ms),
        words.factor(latency.speedup),
    )
    return [first, *rows, *map(_expense_row, report.expenses)]


def latency_sentence(report: Report) -> str:
    """How the latency was measured and how sure it is; empty where it was not."""
    latency = report.latency
    if latency is None:
        return ""
    threads = words.plural(latency.threads, "thread") if latency.threads else "ONNX Runtime's default threads"
    return (
        f"{words.factor(latency.speedup)} as fast ({words.factor(latency.speedup_low)} to "
        f"{words.factor(latency.speedup_high)} with 95 % confidence, at least "
        f"{words.factor(latency.speedup_lower)} with 99.9 %): {words.plural(latency.pairs, 'pair')} of "
        f"bursts in alternation, batch {latency.batch}, {threads}, provider {latency.provider}, "
        f"{words.CLOCKS[latency.clock]}."
    )


def drift_rows(report: Report) -> list[DriftRow]:
    """The budgets first, then every measure that repeats none of the rows before it."""
    rows = []
    said = set()
    for gate in report.gates:
        said.add((gate.measure, gate.value))
        budget = _with_unit(f"{gate.budget:g}", gate.measure) + (", upper end" if gate.strict else "")
        rows.append(_drift_row(gate.measure, gate, budget, gate.passed))
    for drift in report.drift:
        if (drift.measure, drift.value) not in said:
            said.add((drift.measure, drift.value))
            name = f"{drift.measure} of {drift.output}" if drift.output else drift.measure
            rows.append(_drift_row(name, drift, "-", None))
    return rows


def site_rows(report: Report) -> list[SiteRow]:
    """The rewritten convolutions in the order of the graph."""
    return [site_row(site) for site in report.sites if site.became is not None]


def kept_sentence(report: Report) -> str:
    """How many convolutions were rewritten, and how many stay; of a comparison, what was compared."""
    if report.comparison is not None:
        return f"Before: '{report.model}'. After: '{report.comparison.other}'."
    rewritten = sum(site.became is not None for site in report.sites)
    others = len(report.sites) - rewritten
    barred = len({refusal.node for refusal in report.refusals if refusal.pass_name is None})
    total = words.plural(len(report.sites) + barred, "convolution")
    return f"{rewritten} of {total} rewritten, {others} kept as they were, {barred} not rewritable."


def parting_sentence(report: Report) -> str:
    """Where the two models of a comparison part; empty where nobody asked."""
    found = report.comparison
    if found is None or not found.located:
        return ""
    parting = found.parting
    if parting is None:
        return "They part nowhere: on the sample that drifts most their outputs are equal up to rounding."
    start = "They part"
    if parting.agreed is not None:
        difference = words.figure(parting.agreed_difference)
        start = f"They agree up to {_place(parting.agreed)} with a difference of {difference}, and part"
    apart = "which the second has not" if parting.difference is None else words.figure(parting.difference)
    sentence = f"{start} at {_place(parting.before)}: {apart}"
    if parting.after is not None and parting.after != parting.before:
        sentence += f"; in the second at {_place(parting.after)}"
    return f"{sentence}."


def frontier_rows(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The trade-off of speed against drift: the header of its table, and a line for every point."""
    if not report.frontier:
        return (), []
    timed = report.frontier[0].predicted_ms is not None
    measures = [words.printable(drift.measure) for drift in report.frontier[0].drift]
    predicted = ("pred. drift", "pred. ms") if timed else ("pred. drift",)
    header = ("Trade-off", "MACs", *predicted, *measures, "speed-up", "interval", "")
    lines = [
        (
            words.plural(point.sites, "site"),
            words.percent(point.macs_ratio),
            words.figure(point.predicted_drift),
            *((words.figure(point.predicted_ms),) if timed else ()),
            *(words.figure(drift.value) for drift in point.drift),
            words.factor(point.speedup),
            f"{point.speedup_low:.2f} to {point.speedup_high:.2f}",
            "chosen" if point.chosen else "",
        )
        for point in report.frontier
    ]
    return header, lines


def refusal_rows(refusals: Iterable[Refusal]) -> list[RefusalRow]:
    """The reasons with their nodes: those that bar a node altogether first, then the most frequent."""
    nodes: dict[tuple[str, str | None], list[str]] = {}
    for refusal in refusals:
        nodes.setdefault((refusal.reason, refusal.pass_name), []).append(refusal.node)
    rows = [RefusalRow(reason, pass_name, tuple(found)) for (reason, pass_name), found in nodes.items()]
    return sorted(rows, key=lambda row: (row.pass_name is not None, -len(row.nodes)))


def _place(place: Place) -> str:
    if place.node is None:
        return f"the input '{place.tensor}'"
    node = f"'{place.node}'" if place.node else "without a name"
    return f"'{place.tensor}' ({place.op_type} {node})"


def _model_row(
    name: str, write: Callable[[float], str], before: float, after: float, most: float | None = None
) -> ModelRow:
    limit = "" if most is None else write(most)
    return ModelRow(name, write(before), write(after), words.change(before, after), limit)


def _expense_row(expense: Expense) -> ModelRow:
    name, write = words.EXPENSES[expense.measure]
    return ModelRow(
        name.capitalize(),
        write(expense.before),
        write(expense.after),
        words.change(expense.before, expense.after),
        "" if expense.allowed is None else write(expense.allowed),
    )


def _drift_row(name: str, measured: Gate | Drift, budget: str, passed: bool | None) -> DriftRow:
    value = _with_unit(words.figure(measured.value), measured.measure)
    interval = words.interval(measured.low, measured.high)
    return DriftRow(words.printable(name), value, interval, str(measured.samples), budget, passed)


def _with_unit(text: str, measure: str) -> str:
    unit = MEASURES[measure].unit if measure in MEASURES else ""
    return f"{text} {unit}".rstrip()


def site_row(site: SiteReport) -> SiteRow:
    """A convolution; what the network gains beyond its whole time counts as all of it."""
    latency = None
    if site.latency_before_ms is not None and site.latency_after_ms is not None:
        times = (site.latency_before_ms, site.latency_after_ms)
        latency = (words.figure(max(times[0], 0.0)), words.figure(max(times[1], 0.0)))
    rounding = None
    if site.rounding_error is not None and site.direct_rounding_error is not None:
        rounding = (words.figure(site.direct_rounding_error), words.figure(site.rounding_error))
    return SiteRow(
        node=words.printable(site.node),
        was=words.printable(site.was),
        became=site.became or "",
        rank=words.rank(site.rank),
        macs=(words.count(site.before.macs), words.count(site.after.macs)),
        params=(words.count(site.before.params), words.count(site.after.params)),
        latency=latency,
        error=words.percent(site.predicted_error),
        rounding=rounding,
    )
