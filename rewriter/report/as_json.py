"""The report as JSON, for pipelines: every field, raw timings included, units in the key names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from rewriter.report.content import Report
from rewriter.report.inspection import Inspection


def to_json(report: Report | Inspection) -> str:
    """A report as JSON text, `schema_version` first.

    The same report gives the same text. Numbers that JSON does not have are the strings `"NaN"`, `"Infinity"`
    and `"-Infinity"`, which Python's `float` and JavaScript's `Number` read back; null is "not measured".
    """
    values = plain(report)
    ordered = {"schema_version": values.pop("schema_version"), **values}
    return _lines(ordered, "") + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's own types; fields keep their order, mappings are sorted."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    # A setting may be an object, such as a function that yields samples; its address changes with every run.
    name = getattr(value, "__qualname__", None)
    return name if name else str(value) if hasattr(value, "__fspath__") else type(value).__qualname__


def _lines(value: Any, indent: str) -> str:
    """Objects and lists of objects are indented; a list of plain values, such as timings, takes one line."""
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_lines(item, indent + '  ')}" for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [_lines(item, indent + "  ") for item in value]
    else:
        return json.dumps(value, allow_nan=False)
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{indent}  " + f",\n{indent}  ".join(items) + f"\n{indent}{end}"
