"""Small models: a rewrite on its own, one as it will be timed, and one that shows the channel block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from rewriter.conv import Conv, Ints
from rewriter.graph.emit import emit
from rewriter.graph.followers import Follower
from rewriter.graph.opset import LOWERED
from rewriter.graph.scope import Names
from rewriter.graph.sites import Site
from rewriter.rewrite import Rewrite

Shape: TypeAlias = Sequence[int | str]

_OPSET: Final = 13
_IR_VERSION: Final = 8  # read by every ONNX Runtime since 1.10

_BLOCK_BY_DEFAULT: Final = 8


def rewrite_model(rewrite: Rewrite, dtype: npt.DTypeLike = np.float32) -> bytes:
    """A model of a rewrite on its own: "x" `[N, C, ...]` to "y", of a type, batch and sizes dynamic."""
    first = rewrite.branches[0][0]
    axes = range(len(first.kernel_shape))
    shape: Shape = ["N", first.in_channels, *(f"in{axis}" for axis in axes)]
    out_shape: Shape = ["N", rewrite.branches[0][-1].out_channels, *(f"out{axis}" for axis in axes)]
    return _model(rewrite, {"x": shape}, out_shape, (), _OPSET, dtype)


def probe(site: Site, rewrite: Rewrite, in_shape: Ints, copies: int = 0) -> bytes:
    """A model to time a rewrite as it will run: the site's followers behind it, every size fixed.

    The input is "x" `[N, C, *sizes]`; where an Add follows there is a second one, "shortcut", of the output's
    shape. All candidates of a site carry the same costs of laying its input and output out for the kernels.

    With `copies` it is there so often, side by side, so that what a run costs whatever is in it is small
    beside them. Poolings of one tap then stand for neighbours that ONNX Runtime computes in its own layout: a
    rewrite whose nodes leave that layout pays for it, as it would in a network. Those behind keep one place
    of the output only, or laying that out would take longer than many a layer.
    """
    batch, _, *sizes = in_shape
    out_shape = (batch, site.conv.out_channels, *rewrite.out_size(tuple(sizes)))
    inputs: dict[str, Shape] = {"x": in_shape}
    if any(follower.op_type == "Add" for follower in site.followers):
        inputs["shortcut"] = out_shape
    opset = site.opset if rewrite.direct else max(site.opset, LOWERED)
    return _model(rewrite, inputs, out_shape, site.followers, opset, site.dtype, copies)


def block_probe() -> bytes:
    """A model whose optimised form shows, in `read_block`, the channel block of ONNX Runtime's kernels."""
    conv = Conv(np.full((1, 64, 3, 3), 1 / 576, np.float32), np.zeros(1, np.float32), pads=(1, 1, 1, 1))
    return _model(Rewrite(((conv,),)), {"x": (1, 64, 16, 16)}, (1, 1, 16, 16), (), _OPSET, np.float32)


def read_block(optimised: bytes) -> int:
    """The channel block in the optimised form of `block_probe`: its output channel is filled up to a block.

    8 where the target has no blocked kernels; multiples of 8 suit other targets' vector units, too.
    """
    graph = onnx.load_model_from_string(optimised).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.domain == "com.microsoft.nchwc" and node.input[1] in weights:
            return int(weights[node.input[1]].dims[0])
    return _BLOCK_BY_DEFAULT


def _scaled(last: Conv, factor: float) -> Rewrite:
    """A depthwise convolution that only scales, for as many channels as a site's last stage gives.

    In a network the shortcut mostly comes from another convolution, in the layout of the kernels, and the Add
    is computed with the site, in place. A plain input would keep it from that, and so would a tensor that
    others take, too: ONNX Runtime makes one of nodes that compute the same.
    """
    weight = np.full((last.out_channels, 1, *(1,) * len(last.kernel_shape)), factor, np.float32)
    return Rewrite(((Conv(weight, group=last.out_channels),),))


def _model(
    rewrite: Rewrite,
    inputs: Mapping[str, Shape],
    out_shape: Shape,
    followers: Sequence[Follower],
    opset: int,
    dtype: npt.DTypeLike,
    copies: int = 0,
) -> bytes:
    graph = onnx.GraphProto(name="probe")
    axes = len(out_shape) - 2
    sizes = [size for size in inputs["x"][2:] if isinstance(size, int)]
    in_size = tuple(sizes) if len(sizes) == axes else None
    outputs = [f"y{index}" for index in range(copies)] or ["y"]
    names = Names({"x", "shortcut", *outputs})
    given = names.new("before_output") if copies else "x"
    if copies:
        graph.node.append(_neighbour("x", given, names.new("before"), [1] * axes))
    for index, output in enumerate(outputs):
        wanted = names.new("conv_part") if copies else output
        shortcut = _scaled(rewrite.branches[0][-1], 1.0 + index)
        _append(graph, rewrite, given, wanted, followers, shortcut, names, opset, in_size, dtype)
        if copies:
            one_place = [size for size in out_shape[2:] if isinstance(size, int)]
            graph.node.append(_neighbour(wanted, output, names.new("behind"), one_place))
    declare = onnx.helper.make_tensor_value_info
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph.input.extend(declare(name, element, list(shape)) for name, shape in inputs.items())
    shape = [*out_shape[:2], *[1] * axes] if copies else list(out_shape)
    graph.output.extend(declare(output, element, shape) for output in outputs)
    model = onnx.helper.make_model(
        graph, ir_version=_IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", opset)]
    )
    return bytes(model.SerializeToString())


def _append(
    graph: onnx.GraphProto,
    rewrite: Rewrite,
    given: str,
    wanted: str,
    followers: Sequence[Follower],
    shortcut: Rewrite,
    names: Names,
    opset: int,
    in_size: Ints | None,
    dtype: npt.DTypeLike,
) -> None:
    """Adds a rewrite with its followers to a graph, from one tensor to another."""
    tensor = names.new("conv_output") if followers else wanted
    emitted = emit(rewrite, "conv", given, tensor, names, opset, in_size, dtype)
    graph.node.extend(emitted.nodes)
    graph.initializer.extend(emitted.initializers)
    for index, follower in enumerate(followers):
        node = onnx.NodeProto()
        node.CopyFrom(follower.node)
        node.name = names.new(f"follower_{follower.op_type}")
        constants = {constant.name: constant for constant in follower.constants}
        for slot, name in enumerate(follower.node.input):
            if slot == follower.slot:
                node.input[slot] = tensor
            elif name in constants:
                graph.initializer.append(constants[name])
                node.input[slot] = graph.initializer[-1].name = names.new(name)
            elif name:
                node.input[slot] = names.new("shortcut_output")
                copied = emit(shortcut, "shortcut", "shortcut", node.input[slot], names, opset, dtype=dtype)
                graph.node.extend(copied.nodes)
                graph.initializer.extend(copied.initializers)
        tensor = wanted if index == len(followers) - 1 else names.new(f"{node.name}_output")
        node.output[:] = [tensor]
        graph.node.append(node)


def _neighbour(given: str, output: str, name: str, strides: Sequence[int]) -> onnx.NodeProto:
    """A node that only thins out, in ONNX Runtime's own layout where it has one."""
    return onnx.helper.make_node(
        "MaxPool", [given], [output], name, kernel_shape=[1] * len(strides), strides=list(strides)
    )
