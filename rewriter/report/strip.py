"""The network as a row of layers: what each was and became, and its time before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rewriter.report import rows, words
from rewriter.report.content import Report, SiteReport
from rewriter.rewrite import Refusal

Kind = Literal["rewritten", "kept", "other", "compared"]


@dataclass(frozen=True, slots=True)
class LayerView:
    """A layer as the row shows it.

    Attributes:
        name: Its whole name.
        short: The name with its middle left out where it is long.
        kind: Whether it was rewritten, is a convolution that stays, is another layer, or one of two given
            models.
        became: What it became, or that it stays, in a few words.
        before: Its time before, as a share of the longest, in per cent; None where it is not known.
        after: The same for what stands there now.
        facts: What is known of it: names and values.
        refusals: Which forms it has not, and why: names of passes and reasons.
    """

    name: str
    short: str
    kind: Kind
    became: str
    before: float | None
    after: float | None
    facts: tuple[tuple[str, str], ...]
    refusals: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Layer:
    """What several parts of a report say of one layer."""

    name: str
    op_type: str = "Conv"
    before_ms: float | None = None
    after_ms: float | None = None
    site: SiteReport | None = None
    refusals: list[Refusal] = field(default_factory=list)


def layers(report: Report) -> list[LayerView]:
    """The layers in the graph's order; convolutions alone where the times of layers were not measured."""
    found: dict[str, _Layer] = {}
    if report.times is not None:
        for time in report.times.layers:
            layer = found.setdefault(time.name, _Layer(time.name, time.op_type))
            # of a comparison both models may have a layer of that name
            layer.before_ms = layer.before_ms if time.before_ms is None else time.before_ms
            layer.after_ms = layer.after_ms if time.after_ms is None else time.after_ms
    for site in report.sites:
        layer = found.setdefault(site.node, _Layer(site.node))
        layer.site = site
        if report.times is None:
            layer.before_ms, layer.after_ms = site.latency_before_ms, site.latency_after_ms
    for refusal in report.refusals:
        found.setdefault(refusal.node, _Layer(refusal.node)).refusals.append(refusal)
    known = [ms for each in found.values() for ms in (each.before_ms, each.after_ms) if ms is not None]
    longest = max(known, default=0.0) or 1.0
    short = words.short_names(map(words.printable, found), 40)
    plain: Kind = "other" if report.comparison is None else "compared"
    return [_view(layer, short[words.printable(layer.name)], longest, plain) for layer in found.values()]


def _view(layer: _Layer, short: str, longest: float, plain: Kind) -> LayerView:
    site = layer.site
    barred = [refusal for refusal in layer.refusals if refusal.pass_name is None]
    kind = plain
    became = layer.op_type
    if site is not None:
        kind = "kept" if site.became is None else "rewritten"
        became = "stays as it was" if site.became is None else site.became
    elif barred:
        kind, became = "kept", "cannot be rewritten"
    return LayerView(
        words.printable(layer.name),
        short,
        kind,
        words.printable(became),
        _share(layer.before_ms, longest),
        _share(layer.after_ms, longest),
        tuple(_facts(layer, barred)),
        tuple(
            (refusal.pass_name, words.printable(refusal.reason))
            for refusal in layer.refusals
            if refusal.pass_name is not None
        ),
    )


def _share(ms: float | None, longest: float) -> float | None:
    return None if ms is None else round(100.0 * max(ms, 0.0) / longest, 2)


def _facts(layer: _Layer, barred: Sequence[Refusal]) -> list[tuple[str, str]]:
    facts = [("Operator", words.printable(layer.op_type))]
    if layer.site is not None:
        facts += _site_facts(layer.site)
    if barred:
        facts.append(("Why it stays", words.printable("; ".join(each.reason for each in barred))))
    if layer.before_ms is not None or layer.after_ms is not None:
        facts.append(("Time in the network", words.turned(layer.before_ms, layer.after_ms)))
    return facts


def _site_facts(site: SiteReport) -> list[tuple[str, str]]:
    row = rows.site_row(site)
    facts = [("Kernel", row.was), ("Input", "x".join(map(str, site.in_shape)))]
    if site.became is None:
        facts.append(("Why it stays", words.printable(site.reason or "")))
    else:
        facts += [("Became", row.became), ("Rank", row.rank)]
        facts += [("MACs", " → ".join(row.macs)), ("Parameters", " → ".join(row.params))]
        if row.rounding is None:
            facts.append(("Predicted error", row.error))
        else:
            facts.append(("Rounding error", " → ".join(row.rounding)))
    if row.latency is not None:
        predicted = " → ".join(row.latency) if site.became is not None else row.latency[0]
        facts.append(("Predicted alone", f"{predicted} ms"))
    return [(name, text) for name, text in facts if text]
