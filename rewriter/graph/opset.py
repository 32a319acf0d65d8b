"""Raises a model's opset to the one that transformed convolutions need, where that changes nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import onnx

from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.model import Model
from rewriter.graph.scope import graphs

BROADCASTING: Final = 7
"""Here much changed that older models mean otherwise: before it, broadcasting was asked for by attributes."""

LOWERED: Final = 10
"""The opset of a model with transformed convolutions: Slice takes its ends as an input from there on."""

# From there to LOWERED these only take more types, more inputs of a kind, or attributes that may be left out.
_GREW: Final = frozenset(
    {"AveragePool", "BatchNormalization", "Cast", "Constant", "Dropout", "Flatten", "Gemm", "Greater", "Less"}
    | {"MatMul", "Max", "MaxPool", "Mean", "Min", "PRelu", "Sum"}
)


def obstacle(model: Model) -> str | None:
    """Why the model cannot hold transformed convolutions, or None."""
    if model.opset >= LOWERED:
        return None
    too_old = f"the model's opset is {model.opset}; transformed convolutions need {LOWERED}"
    if model.proto.functions:
        return f"{too_old}; convert the model first"
    nodes = [node for graph in graphs(model.proto) for node in graph.node]
    changed = next(_changed(nodes, model.opset), None)
    if changed is None:
        return None
    return f"{too_old}, where {changed} is written otherwise; convert the model first"


def raise_opset(proto: onnx.ModelProto) -> None:
    """Raises the opset of a model without an `obstacle`, in place."""
    for entry in proto.opset_import:
        if entry.domain in ONNX_DOMAINS:
            entry.version = max(entry.version, LOWERED)


def _changed(nodes: Iterable[onnx.NodeProto], opset: int) -> Iterator[str]:
    """Operators that mean something else in `LOWERED`, or are unknown in one of the two."""
    for node in nodes:
        if node.domain not in ONNX_DOMAINS:
            continue
        try:
            old, middle, new = (
                onnx.defs.get_schema(node.op_type, at).since_version
                for at in (opset, max(opset, BROADCASTING), LOWERED)
            )
        except onnx.defs.SchemaError:
            yield node.op_type
            continue
        special = node.op_type == "BatchNormalization" and attribute(node, "spatial", 1) != 1
        more = node.op_type in ("BatchNormalization", "Dropout") and any(node.output[1:])
        grew = node.op_type in _GREW and not special and not more
        if old != middle or (middle != new and not grew):
            yield node.op_type
