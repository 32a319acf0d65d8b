"""Identities between other nodes, left out: behind them nobody sees who takes what."""

from __future__ import annotations

from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.model import Model
from rewriter.graph.scope import bodies, consumed, trained
from rewriter.graph.splice import forget


def without_identities(model: Model) -> Model:
    """The model without Identities of computed tensors; the same where there are none.

    Those stay that give an output of the graph or what a body takes, and those of weights. ONNX Runtime drops
    all of them itself; only the names of the tensors between are lost.
    """
    nodes = model.proto.graph.node
    kept = {*model.outputs, *trained(model.proto)}
    for node in nodes:
        if any(bodies(node)):
            kept |= consumed(node)
    computed = {name for node in nodes if node.op_type != "Constant" for name in node.output}
    same: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Identity" and node.domain in ONNX_DOMAINS and node.input[0] in computed:
            given, name = node.input[0], node.output[0]
            if name not in kept:
                same[name] = same.get(given, given)
    if not same:
        return model
    proto = model.copy()
    left = [node for node in proto.graph.node if not same.keys() & set(node.output)]
    for node in left:
        for slot, name in enumerate(node.input):
            node.input[slot] = same.get(name, name)
    del proto.graph.node[:]
    proto.graph.node.extend(left)
    forget(proto, same)
    return model.edited(proto)
