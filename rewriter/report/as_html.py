"""The report as one page: no network, light and dark, for screens, telephones and paper."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from rewriter.report import charts, rows, strip, words
from rewriter.report.as_json import plain
from rewriter.report.charts import Chart
from rewriter.report.content import Report
from rewriter.report.details import OutputDrift

_MOST_TILES = 5


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is read first: what it is, the figure, and what is to be known of it."""

    name: str
    figure: str
    note: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class OutputView:
    """How an output drifts: its name, its chart, the worst samples, and what these look like."""

    output: OutputDrift
    name: str
    chart: Chart | None
    lines: tuple[tuple[str, str], ...]


def to_html(report: Report) -> str:
    """The report as a page that stands alone; names are text, never markup."""
    frontier = rows.frontier_rows(report)
    return _template().render(
        report=report,
        rows=rows,
        words=words,
        model=words.printable(report.model),
        status=_status(report),
        tiles=_tiles(report)[:_MOST_TILES],
        costs=_costs(report),
        latency=charts.latency_chart(report),
        tradeoff=charts.tradeoff_chart(report),
        frontier=frontier,
        layers=strip.layers(report),
        operators=charts.operator_chart(report),
        outputs=[_output(each) for each in report.outputs],
        facts=_facts(report),
        command=words.printable(shlex.join(report.command)),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("rewriter.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["printable"] = words.printable
    return environment.get_template("page.html.jinja")


def _status(report: Report) -> tuple[str, str]:
    """How it ended: a class, and a word where the verdict does not begin with one."""
    found = report.comparison
    if found is None:
        return ("good", "Accepted") if report.improved else ("kept", "")
    if report.gates or found.min_speedup is not None:
        return ("good", "") if found.passed else ("bad", "")
    return "plain", "Compared"


def _costs(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The model before and after as a header and lines; without limits where there are none."""
    found = rows.model_rows(report)
    header = ("", "before", "after", "change", "limit")
    lines = [(row.name, row.before, row.after, row.change, row.limit) for row in found]
    width = 5 if any(row.limit for row in found) else 4
    return header[:width], [line[:width] for line in lines]


def _tiles(report: Report) -> list[Tile]:
    tiles = []
    timed = report.latency
    if timed is not None:
        low, high = words.factor(timed.speedup_low), words.factor(timed.speedup_high)
        tiles.append(Tile("Speed-up", words.factor(timed.speedup), f"95 % interval {low} to {high}"))
        tiles.append(
            Tile(
                "Latency",
                words.turned(timed.before_ms, timed.after_ms),
                f"median of one run, batch {timed.batch}",
            )
        )
    for row in rows.drift_rows(report)[: max(len(report.gates), 1)]:
        kept = "" if row.passed is None else f" of {row.budget},"
        state = {None: "", True: "good", False: "bad"}[row.passed]
        tiles.append(Tile(row.name, row.value, f"{kept} {row.samples} samples".strip(), state))
    tiles += [
        Tile(row.name, row.change, f"{row.before} → {row.after}")
        for row in rows.model_rows(report)
        if row.name in ("MACs of convolutions", "File size") and row.change not in ("-", "0 %")
    ]
    return tiles


def _output(found: OutputDrift) -> OutputView:
    lines = tuple((f"sample {each.index + 1}", words.figure(each.rel_l2)) for each in found.worst)
    return OutputView(found, words.printable(found.output), charts.sample_chart(found), lines)


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the figures depend on: headings with names and values."""
    samples = [(name, str(count)) for name, count in sorted(report.samples.items())]
    environment = sorted(report.environment.items())
    settings = [(name, _setting(plain(value))) for name, value in sorted(report.settings.items())]
    groups: Sequence[tuple[str, list[tuple[str, str]]]] = (
        ("Samples", samples),
        ("Options", [(name, text) for name, text in settings if text]),
        ("Machine", environment),
    )
    return [
        (heading, [(words.printable(name), words.printable(text)) for name, text in pairs])
        for heading, pairs in groups
        if pairs
    ]


def _setting(value: object) -> str:
    """An option as it is typed; empty where it is not set."""
    if value is None or value is False or value in ("", [], {}):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={_setting(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
