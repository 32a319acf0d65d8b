"""Writes a rewrite as ONNX nodes: a chain of convolutions for each branch, and Adds between the branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from rewriter.conv import Conv, Ints
from rewriter.graph.scope import Names
from rewriter.lowering import BIAS, INPUT, OUTPUT, WEIGHT, lower
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd


@dataclass(frozen=True, slots=True, eq=False)
class Emitted:
    """Nodes in the order of computation, and the weights that they take."""

    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]


def emit(
    rewrite: Rewrite,
    name: str,
    given: str,
    output: str,
    names: Names,
    opset: int,
    in_size: Ints | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Emitted:
    """The nodes of a rewrite, from the tensor `given` to the tensor `output`.

    The branches are summed from the left, each Add taking the sum so far first: ONNX Runtime computes such an
    Add within the convolution before it.

    Args:
        rewrite: What is to be written.
        name: The name of the site; those of the nodes begin with it and say what each does.
        given: Name of the input tensor.
        output: Name of the output tensor.
        names: Where new names come from.
        opset: The version of ONNX's operators.
        in_size: The spatial size of the input; None where it may change from run to run.
        dtype: The type of the tensors, in which the weights are written.
    """
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    several = len(rewrite.branches) > 1
    # ONNX Runtime has no Add older than opset 7, and fuses a Sum of two just as well.
    add = "Add" if opset >= 7 else "Sum"
    total = ""
    for index, branch in enumerate(rewrite.branches):
        prefix = f"{name}/{index}" if index else name
        tensor, size = given, in_size
        for stage, word in zip(branch, _words(branch), strict=True):
            alone = len(branch) == 1 and not several
            wanted = name if alone else f"{prefix}/{word}"
            # what has no name is called after its output, and is found by that again
            node_name = wanted if wanted == output else names.new(wanted)
            last = stage is branch[-1] and not several
            target = output if last else names.new(f"{node_name}_output")
            lowered = _lowered(stage, size, node_name, tensor, target, names, dtype)
            nodes += lowered.nodes
            initializers += lowered.initializers
            tensor = target
            size = None if size is None else stage.out_size(size)
        if index:
            node_name = names.new(f"{name}/add")
            last = index == len(rewrite.branches) - 1
            target = output if last else names.new(f"{node_name}_output")
            nodes.append(onnx.helper.make_node(add, [total, tensor], [target], name=node_name))
            tensor = target
        total = tensor
    return Emitted(tuple(nodes), tuple(initializers))


def whole_of(node: str) -> str | None:
    """The name of the convolution in tiles that a node of this name is a part of, or None."""
    whole, found, _ = node.partition(f"/{_word_of(Winograd)}/")
    return whole if found else None


def _word_of(lowering: type) -> str:
    """What the names of the nodes of a lowering have in them."""
    return lowering.__name__.lower()


def _words(branch: Sequence[Conv]) -> list[str]:
    """What each stage of a chain is called, by its shape."""
    return [_word(stage, inner=0 < index < len(branch) - 1) for index, stage in enumerate(branch)]


def _word(stage: Conv, inner: bool) -> str:
    wide = [size > 1 for size in stage.kernel_shape]
    if stage.depthwise:
        return "depthwise"
    if stage.group > 1:
        return "grouped"
    if not any(wide):
        return "pointwise"
    if len(wide) == 2 and not all(wide):
        return "vertical" if wide[0] else "horizontal"
    return "core" if inner else "conv"


def _tensor(array: npt.NDArray[Any], name: str, dtype: npt.DTypeLike) -> onnx.TensorProto:
    with np.errstate(over="ignore"):  # what overflows shows in the outputs
        return onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype), name)


def _lowered(
    stage: Conv,
    in_size: Ints | None,
    name: str,
    given: str,
    output: str,
    names: Names,
    dtype: npt.DTypeLike,
) -> Emitted:
    """The nodes of one stage; several of them are called after it and after what each does."""
    lowered = lower(stage, in_size)
    weights = [_tensor(lowered.weight, names.new(f"{name}.weight"), dtype)]
    if lowered.bias is not None:
        weights.append(_tensor(lowered.bias, names.new(f"{name}.bias"), dtype))
    known = {INPUT: given, WEIGHT: weights[0].name, OUTPUT: output, BIAS: weights[-1].name}
    word = _word_of(type(stage.lowering))
    for local in [*lowered.constants, *(node.output for node in lowered.nodes)]:
        if local not in known:
            known[local] = names.new(f"{name}/{word}/{local}")
    nodes = tuple(
        onnx.helper.make_node(
            node.op_type,
            [known[local] for local in node.inputs],
            [known[node.output]],
            name=name if len(lowered.nodes) == 1 else f"{name}/{word}/{node.output}",
            **node.attributes,
        )
        for node in lowered.nodes
    )
    constants = [
        _tensor(array, known[local], dtype if array.dtype.kind == "f" else array.dtype)
        for local, array in lowered.constants.items()
    ]
    return Emitted(nodes, (*weights, *constants))
