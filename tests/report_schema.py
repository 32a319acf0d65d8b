"""The JSON Schema of reports, made from the types and docstrings of their fields."""

import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Literal, Union, get_args, get_origin, get_type_hints

from rewriter.report import SCHEMA_VERSION, Report

PLAIN = {str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, object: {}}
# Numbers that JSON does not have are texts.
NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def schema():
    """The schema of the version that is written now."""
    found = {}
    refer(Report, found)
    report = found.pop("Report")
    report["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A report of rewriter optimize, apply or compare",
        **report,
        "$defs": dict(sorted(found.items())),
    }


def refer(kind, found):
    """The schema of a type; those of dataclasses are put into `found`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [refer(each, found) for each in inner]}
    if kind is type(None):
        return {"type": "null"}
    if origin is tuple:
        return {"type": "array", "items": refer(inner[0], found)}
    if origin is Literal:
        return {"enum": list(inner)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": refer(inner[1], found)}
    if is_dataclass(kind):
        if kind.__name__ not in found:
            found[kind.__name__] = {}
            found[kind.__name__].update(described(kind, found))
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return NUMBER if kind is float else PLAIN[kind]


def described(kind, found):
    """The schema of a dataclass with what its docstring says of it."""
    told = attributes(kind)
    hints = get_type_hints(kind)
    return {
        "description": kind.__doc__.split("\n\n")[0].replace("\n", " ").strip(),
        "type": "object",
        "properties": {
            field.name: {"description": told[field.name], **refer(hints[field.name], found)}
            if field.name in told
            else refer(hints[field.name], found)
            for field in fields(kind)
        },
        "required": [field.name for field in fields(kind)],
        "additionalProperties": False,
    }


def attributes(kind):
    """What the section of a docstring says of each attribute."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
