"""The same model with other outputs or other input sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from rewriter.errors import OptionError
from rewriter.graph.external import serialize
from rewriter.graph.model import Model
from rewriter.serialized import Parts, Serialized


def with_outputs(model: Model, names: Iterable[str]) -> Serialized:
    """The serialised model, with further tensors of its top graph as outputs behind its own.

    Raises:
        ValueError: Nothing in the top graph makes such a tensor.
    """
    graph = model.proto.graph
    there = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    there.update(name for node in graph.node for name in node.output)
    wanted = tuple(names)
    for name in wanted:
        if name not in there:
            raise ValueError(f"there is no tensor {name!r} in the model")
    return extended(model, wanted)


def extended(model: Model, names: Iterable[str], nodes: Iterable[onnx.NodeProto] = ()) -> Serialized:
    """The serialised model with further nodes, and tensors as outputs, each once, behind its own."""
    given = set(model.outputs)
    more = onnx.ModelProto()
    more.graph.node.extend(nodes)
    # ONNX Runtime infers the types itself
    more.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in given
    )
    # serialised messages behind one another are read as one, so that the weights need not be copied
    behind = bytes(more.SerializeToString())
    whole = serialize(model)
    return whole.extended(behind) if isinstance(whole, Parts) else whole + behind


def with_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """The model with the dynamic sizes of its inputs fixed.

    Raises:
        OptionError: There is no such input, or its shape cannot be that.
    """
    specs = {spec.name: spec for spec in model.inputs}
    for name, sizes in shapes.items():
        if name not in specs:
            raise OptionError(f"the model has no input {name!r}; its inputs are {', '.join(specs)}")
        declared = specs[name].shape
        fits = len(declared) == len(sizes) and all(
            not isinstance(want, int) or want == size for want, size in zip(declared, sizes, strict=True)
        )
        if not fits or min(sizes, default=1) < 1:
            wanted = ",".join(map(str, sizes))
            raise OptionError(f"input {name!r} has the shape {list(declared)}, which cannot be {wanted}")
    proto = model.copy()
    for value in proto.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    return model.edited(proto)
