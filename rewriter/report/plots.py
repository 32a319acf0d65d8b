"""Charts as small SVG without colours: series have classes, which the style sheet of a page draws.

pygal lays the charts out; its styles and scripts are left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pygal
from markupsafe import Markup
from pygal.style import Style

# pygal installs an importer for its maps, in a protocol that Python 3.12 has dropped; on 3.11 every import
# that fails would warn of it.
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__name__ != "PluginImportFixer"]

_WIDTH: Final = 560
_HEIGHT: Final = 300
_STYLE: Final = Style(
    font_family="sans-serif", label_font_size=12, major_label_font_size=12, title_font_size=12
)
# An axis whose values spread over so many times is logarithmic.
_WIDE: Final = 4.0
_TICKS: Final = 6


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a chart; `tip` is shown where it is pointed at."""

    x: float
    y: float
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind.

    Attributes:
        name: Its class in the drawing.
        marks: The points.
        line: Whether they are joined, without dots.
        filled: Whether the area below the line is filled.
    """

    name: str
    marks: Sequence[Mark]
    line: bool = False
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis is told.

    Attributes:
        title: What its values are.
        whole: Whether it begins at nothing; otherwise it is logarithmic where the values spread far.
    """

    title: str
    whole: bool = False


def scatter(series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """A chart of points and lines over two axes; what is not finite is left out."""
    kept = [_finite(each) for each in series]
    x_scale, x_labels, x_range = _scale(x, [mark.x for each in kept for mark in each.marks])
    y_scale, y_labels, y_range = _scale(y, [mark.y for each in kept for mark in each.marks])
    chart = pygal.XY(**_common(x.title, y.title), xrange=x_range, range=y_range)
    chart.x_labels, chart.y_labels = x_labels, y_labels
    for each in kept:
        points = [{"value": (x_scale(mark.x), y_scale(mark.y)), "label": mark.tip} for mark in each.marks]
        chart.add(each.name, points, stroke=each.line, show_dots=not each.line, fill=each.filled, dots_size=5)
    return _drawn(chart, [each.name for each in kept])


def bars(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], write: Callable[[float], str]
) -> Markup:
    """Horizontal bars: for every name one of each series."""
    chart = pygal.HorizontalBar(**_common("ms", ""), spacing=12)
    chart.height = 75 + 22 * len(names) * max(len(series), 1)
    chart.x_labels = list(names)[::-1]  # they are drawn from below, series from above
    chart.show_y_guides = False
    most = max((value for _, values in series for value in values), default=0.0)
    chart.y_labels = [{"value": tick, "label": _tick(tick)} for tick in _linear(0.0, most)]
    for name, values in series:
        points = [
            {"value": value, "label": f"{of}, {name}: {write(value)}"}
            for of, value in zip(names, values, strict=True)
        ]
        chart.add(name, points[::-1])
    return _drawn(chart, [name for name, _ in series])


def _common(x_title: str, y_title: str) -> dict[str, Any]:
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "style": _STYLE,
        "css": [],
        "js": [],
        "disable_xml_declaration": True,
        "show_legend": False,
        "margin": 8,
        "margin_right": 20,
        "x_title": x_title or None,
        "y_title": y_title or None,
    }


def _finite(series: Series) -> Series:
    marks = [mark for mark in series.marks if math.isfinite(mark.x) and math.isfinite(mark.y)]
    return Series(series.name, marks, series.line, series.filled)


def _scale(
    axis: Axis, values: Sequence[float]
) -> tuple[Callable[[float], float], list[dict[str, Any]], tuple[float, float]]:
    """Where a value lies on an axis, the axis' labels, and its range."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if axis.whole or low <= 0.0 or high / low < _WIDE:
        low = min(low, 0.0) if axis.whole else low
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        start = low if axis.whole and low == 0.0 else low - room
        ticks = [tick for tick in _linear(start, high + room) if start <= tick <= high + room]
        labels = [{"value": tick, "label": _tick(tick)} for tick in ticks]
        return float, labels, (start, high + room)
    room = 0.06 * math.log10(high / low)
    start, end = math.log10(low) - room, math.log10(high) + room
    decades = range(math.floor(start), math.ceil(end) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if start <= math.log10(tick) <= end]
        if len(ticks) <= _TICKS:
            break
    return (
        math.log10,
        [{"value": math.log10(tick), "label": _tick(tick)} for tick in ticks],
        (start, end),
    )


def _linear(low: float, high: float) -> list[float]:
    """Round numbers from about the one to the other, a handful."""
    span = high - low
    if span <= 0.0:
        return [low]
    raw = span / (_TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(each * unit for each in (1, 2, 5, 10) if each * unit >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    return f"{value:g}" if abs(value) >= 1e-9 else "0"


def _drawn(chart: Any, names: Sequence[str]) -> Markup:
    chart.add_xml_filter(lambda root: _stripped(root, names))
    return Markup(chart.render(is_unicode=True))


def _stripped(root: Any, names: Sequence[str]) -> Any:
    """The drawing without what pygal adds for pages of its own; marks hold their tips."""
    root.attrib.pop("id", None)
    root.set("role", "group")
    for parent in list(root.iter()):
        for child in list(parent):
            if (
                child.tag in ("defs", "title")
                or callable(child.tag)
                or "tooltip" in child.get("class", "").split()
            ):
                parent.remove(child)
    for group in root.iter("g"):
        words = group.get("class", "").split()
        if "series" in words:
            index = next(int(word[6:]) for word in words if word.startswith("serie-"))
            group.set("class", f"series {names[index]}")
        described = [child for child in group if child.tag == "desc"]
        tip = next((each.text for each in described if each.get("class") == "label"), None)
        for each in described:
            group.remove(each)
        if tip:
            for mark in group:
                mark.set("data-tip", tip)
                mark.set("tabindex", "0")
                mark.set("aria-label", tip)
    return root
