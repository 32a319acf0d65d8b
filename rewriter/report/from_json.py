"""A report read back from JSON: every field checked against its type, later versions refused."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rewriter.errors import ReportError
from rewriter.report.content import SCHEMA_VERSION, Report

# Numbers that JSON does not have, as `to_json` writes them.
_NUMBERS = {"NaN", "Infinity", "-Infinity"}
_SAYS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def read(path: str | os.PathLike[str]) -> Report:
    """The report of a JSON file that `--report` wrote, of this version of the schema or an earlier one.

    Raises:
        ReportError: The file cannot be read, or holds no such report.
    """
    label = f"report '{os.fspath(path)}'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ReportError(f"{label} cannot be read: {why}; give a .json that --report wrote") from error
    return parse(text, label)


def parse(text: str, label: str = "the report") -> Report:
    """The report of a JSON text; `label` is what messages call it.

    Raises:
        ReportError: It holds no such report.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"{label} is not JSON: {_brief(error)}; give a .json that --report wrote"
        ) from error
    if not isinstance(values, dict) or "schema_version" not in values or "verdict" not in values:
        raise ReportError(
            f"{label} is no report of optimize, apply or compare; give a .json that --report wrote"
        )
    version = values["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ReportError(f"{label} has {version!r} as schema_version, which is a whole number from 1 on")
    if version > SCHEMA_VERSION:
        raise ReportError(
            f"{label} has schema_version {version}, this program knows up to {SCHEMA_VERSION}; "
            "draw it with the version of rewriter that wrote it, or update"
        )
    # an older report lacks only fields that have defaults; drawn again it is of this version
    found: Report = _Reader(label).take({**values, "schema_version": SCHEMA_VERSION}, Report, "")
    return found


class _Reader:
    """Turns JSON's types into those of fields.

    Args:
        label: What messages call the document.
    """

    def __init__(self, label: str) -> None:
        self._label = label

    def take(self, value: Any, kind: Any, where: str) -> Any:
        """The value as one of that type; `where` is its place in the document."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind is object:
            return value
        if origin in (Union, types.UnionType):
            if value is None and type(None) in inner:
                return None
            (kind,) = (each for each in inner if each is not type(None))
            return self.take(value, kind, where)
        if origin is tuple:
            self._check(isinstance(value, list), where, "a list")
            return tuple(self.take(each, inner[0], f"{where}[{i}]") for i, each in enumerate(value))
        if origin is Literal:
            self._check(value in inner, where, f"one of {', '.join(inner)}")
            return value
        if isinstance(origin, type) and issubclass(origin, Mapping):
            self._check(isinstance(value, dict), where, "an object")
            return {key: self.take(each, inner[1], f"{where}.{key}") for key, each in value.items()}
        if is_dataclass(kind):
            return self._object(value, kind, where)
        return self._plain(value, kind, where)

    def _object(self, value: Any, kind: Any, where: str) -> Any:
        self._check(isinstance(value, dict), where, "an object")
        kinds = get_type_hints(kind)
        known = {field.name: field for field in fields(kind)}
        for name in value:
            self._check(name in known, _join(where, name), "no field that is known")
        given = {}
        for name, field in known.items():
            if name in value:
                given[name] = self.take(value[name], kinds[name], _join(where, name))
            else:
                self._check(field.default is not MISSING, _join(where, name), "missing")
        return kind(**given)

    def _plain(self, value: Any, kind: Any, where: str) -> Any:
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            self._check(fits or value in _NUMBERS, where, _SAYS[float])
            return float(value) if isinstance(value, str) else value
        self._check(isinstance(value, kind) and isinstance(value, bool) == (kind is bool), where, _SAYS[kind])
        return value

    def _check(self, fits: bool, where: str, kind: str) -> None:
        if not fits:
            says = "is" if kind in ("missing", "no field that is known") else "is not"
            raise ReportError(f"{self._label}: {where or 'it'} {says} {kind}; write the report anew")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _brief(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
