"""What a node must have for anybody to make sense of it; a file that was damaged often has not."""

from __future__ import annotations

from collections import Counter
from functools import cache
from operator import itemgetter
from typing import Any, cast

import onnx

from rewriter.errors import ModelError
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.scope import consumed, graphs


def check_sound(proto: onnx.ModelProto, label: str) -> None:
    """Refuses what no runtime takes, or what nobody can tell apart, whatever it is to compute.

    That is a node of ONNX's own operators with too few inputs or outputs or an attribute of another type than
    the operator's, nodes that depend on each other in a circle, and inputs or outputs of one name. Much that
    ONNX's checker asks for besides is not needed to run.

    Raises:
        ModelError: There is such a thing.
    """
    opset = max((each.version for each in proto.opset_import if each.domain in ONNX_DOMAINS), default=1)
    if not 0 < opset < 1 << 31:
        raise ModelError(f"{label} has the operator set version {opset}: it is damaged, export it anew")
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        name, count = max(Counter(value.name for value in values).items(), key=itemgetter(1), default=("", 0))
        if count > 1:
            raise ModelError(f"{label} has {count} {kind}s called {name!r}; give each a name of its own")
    for graph in graphs(proto):
        for node in graph.node:
            if node.domain in ONNX_DOMAINS and (wrong := _wrong(node, opset)):
                raise ModelError(
                    f"node {node.name or ','.join(node.output)!r} of {label}, a {node.op_type}, has {wrong}: "
                    "the model is damaged, export or copy it anew"
                )
    if circle := _circle(proto.graph):
        raise ModelError(
            f"node {circle.name or ','.join(circle.output)!r} of {label} depends on itself: "
            "the model is damaged, export it anew"
        )


def _wrong(node: onnx.NodeProto, opset: int) -> str | None:
    if not node.output:
        return "no outputs"
    schema = _schema(node.op_type, opset)
    if schema is None:
        return None
    if len(node.input) < schema.min_input:
        return f"{len(node.input)} inputs where it takes {schema.min_input}"
    if len(node.output) < schema.min_output:
        return f"{len(node.output)} outputs where it gives {schema.min_output}"
    for entry in node.attribute:
        known = schema.attributes.get(entry.name)
        if known is not None and entry.type != known.type.value and not entry.ref_attr_name:
            return f"an attribute {entry.name!r} that is not of its type"
    if node.op_type == "Constant" and len(node.attribute) != 1:
        return f"{len(node.attribute)} values"
    return None


def _circle(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """A node that depends on what it makes, if there is one; the order of the nodes is no matter."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed = [{makers[name] for name in consumed(node) if name in makers} for node in graph.node]
    takers: list[list[int]] = [[] for _ in needed]
    for index, before in enumerate(needed):
        for each in before:
            takers[each].append(index)
    waiting = [len(before) for before in needed]
    ready = [index for index, count in enumerate(waiting) if not count]
    for index in ready:
        for taker in takers[index]:
            waiting[taker] -= 1
            if not waiting[taker]:
                ready.append(taker)
    if len(ready) == len(waiting):
        return None
    index = next(index for index, count in enumerate(waiting) if count)
    seen: set[int] = set()
    while index not in seen:  # what waits for another leads into the circle in the end
        seen.add(index)
        index = next(each for each in needed[index] if waiting[each])
    return cast(onnx.NodeProto, graph.node[index])


@cache
def _schema(op_type: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
