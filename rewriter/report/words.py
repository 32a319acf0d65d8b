"""How figures and names are written for people; figures carry three significant digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final


def figure(value: float | None) -> str:
    """A plain number: `0.0123`, `-41.2`, `12300`; `-` where nothing was measured."""
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    if digits > 6:
        return f"{value:.2e}"
    rounded = round(value, digits)
    return f"{rounded:.{max(2 - math.floor(math.log10(abs(rounded))), 0)}f}"


def percent(share: float | None) -> str:
    """A share of one in per cent: `1.23 %`; `-` where nothing was measured."""
    return "-" if share is None else f"{figure(100 * share)} %"


def count(value: float) -> str:
    """A large number with its prefix: `650`, `36.9 k`, `12.3 M`."""
    return _prefixed(value, ("", "k", "M", "G", "T", "P")).rstrip()


def size(value: float | None) -> str:
    """Bytes in decimal units: `3.21 MB`; `-` where the system does not tell."""
    return "-" if not value else _prefixed(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def milliseconds(value: float | None) -> str:
    """A time: `2.39 ms`; `-` where nothing was measured."""
    return "-" if value is None else f"{figure(value)} ms"


def turned(before: float | None, after: float | None) -> str:
    """Times before and after: `2.39 → 1.21 ms`; one where the other was not measured."""
    if before is None or after is None:
        return milliseconds(after if before is None else before)
    return f"{figure(before)} → {milliseconds(after)}"


CLOCKS: Final[Mapping[str, str]] = MappingProxyType(
    {"processor": "time of the processor", "wall": "time on the wall"}
)
"""What told the times of runs."""

EXPENSES: Final[Mapping[str, tuple[str, Callable[[float | None], str]]]] = MappingProxyType(
    {
        "file_size_bytes": ("file size", size),
        "load_ms": ("load time", milliseconds),
        "peak_bytes": ("peak memory", size),
    }
)
"""What the measures of expenses are called, and how their figures are written."""


def factor(value: float | None) -> str:
    """A speed-up: `1.98x`; `-` where nothing was measured."""
    return "-" if value is None else f"{value:.2f}x"


def change(before: float | None, after: float | None) -> str:
    """What became of a cost, in per cent of what it was: `-41.2 %`, from twice as much on `7.50 times`.

    `-` where it cannot be said.
    """
    if not before or after is None or not math.isfinite(after / before):
        return "-"
    if after >= 2 * before:
        return f"{figure(after / before)} times"
    share = 100 * (after / before - 1)
    return "0 %" if abs(share) < 0.05 else f"{share:+.1f} %"


def interval(low: float, high: float) -> str:
    """A confidence interval: `0.011 to 0.014`."""
    return f"{figure(low)} to {figure(high)}"


def rank(value: tuple[int, ...] | None) -> str:
    """A pass's rank: `8`, `16 x 8`; `-` where there is none."""
    return " x ".join(map(str, value)) if value else "-"


def plural(number: int, noun: str) -> str:
    """A counted noun: `1 convolution`, `3 passes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def printable(text: str) -> str:
    """Names come from files: control characters, which could steer a terminal, become question marks."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def folded(text: str, width: int) -> str:
    """The text with its middle left out where it is longer than `width`; both ends tell names apart."""
    if len(text) <= width:
        return text
    kept = max(width - 3, 2)
    return f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """The names folded to `width`, or whole where two of them would look the same."""
    short = {name: folded(name, width) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _prefixed(value: float, units: tuple[str, ...]) -> str:
    scale = 0
    while abs(value) >= 999.5 and scale < len(units) - 1:
        value /= 1000
        scale += 1
    return f"{figure(value) if scale else f'{value:.0f}'} {units[scale]}"
