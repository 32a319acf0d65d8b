"""Domains and attributes of a node, with the defaults that ONNX gives them."""

from __future__ import annotations

from typing import Any, Final

import onnx

ONNX_DOMAINS: Final = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, text as `str`, or the default where the node does not have it."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default
