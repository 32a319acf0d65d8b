"""How one convolution becomes nodes: as one, by the phases of its output, or by Winograd's transforms.

`transposed` says what the first two are. The last has

    rows          a depthwise convolutions, one a row of Bᵀ, stride m, along each transformed axis
    products      one grouped convolution: for each of the a·a products a pointwise one (along an axis that
                  is not transformed, with the kernel's own taps), weights G W Gᵀ
    outputs       Aᵀ from the left, one axis after the other, and the m·m outputs of a tile in their places

The depthwise and the grouped convolutions run in ONNX Runtime's blocked layout. The weight stays as it was:
its transform is written as nodes on a constant, which ONNX Runtime computes once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rewriter.conv import Conv, Ints
from rewriter.joined import Joined
from rewriter.toomcook import UNIT, transforms, window
from rewriter.transposed import SubPixel, Transposed, turned
from rewriter.winograd import Winograd

INPUT, WEIGHT, BIAS, OUTPUT = "input", "weight", "bias", "output"
"""Names in a `Lowered` of what its surroundings provide, and of what it gives."""

_WORDS: Final = ("row", "column")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator of ONNX.

    Attributes:
        op_type: The operator.
        inputs: Names of other nodes' outputs, of constants, or of what the surroundings provide.
        output: Name of its output.
        attributes: By their names.
    """

    op_type: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """Nodes in the order of computation; constants of floats are to be written in the type of the weight.

    Attributes:
        nodes: The nodes.
        weight: What they take as `WEIGHT`.
        bias: What they take as `BIAS`, if anything.
        constants: Their other constants, by name.
    """

    nodes: tuple[Node, ...]
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    constants: Mapping[str, npt.NDArray[Any]]


def lower(conv: Conv, in_size: Ints | None = None) -> Lowered:
    """The nodes of a convolution, from `INPUT`, `WEIGHT` and maybe `BIAS` to `OUTPUT`.

    Args:
        conv: The convolution.
        in_size: The spatial size of every input it will see; None where that may change from run to run.
    """
    if isinstance(conv.lowering, Winograd):
        if len(conv.kernel_shape) == 1:
            return _as_a_row(conv, conv.lowering, in_size)
        return _winograd(conv, conv.lowering, None if in_size is None else conv.out_size(in_size))
    if isinstance(conv.lowering, SubPixel):
        return _sub_pixel(conv, conv.lowering)
    inputs = _inputs_of(conv)
    if isinstance(conv.lowering, Joined):
        wider = Node("Conv", inputs, OUTPUT, {**attributes(conv), "group": conv.lowering.group})
        return Lowered((wider,), conv.lowering.weight(conv), conv.bias, {})
    if conv.transposed:
        node = Node("ConvTranspose", inputs, OUTPUT, Transposed().attributes(conv))
        return Lowered((node,), turned(conv.weight, conv.group), conv.bias, {})
    return Lowered((Node("Conv", inputs, OUTPUT, attributes(conv)),), conv.weight, conv.bias, {})


def _inputs_of(conv: Conv) -> tuple[str, ...]:
    return (INPUT, WEIGHT) if conv.bias is None else (INPUT, WEIGHT, BIAS)


def attributes(conv: Conv) -> dict[str, Any]:
    """The attributes of a Conv node."""
    names = ("kernel_shape", "strides", "pads", "dilations", "group")
    return {name: getattr(conv, name) for name in names}


class _Builder:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.made: set[str] = set()

    def node(self, op_type: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(Node(op_type, inputs, output, attributes))
        self.made.add(output)
        return output

    def floats(self, name: str, values: npt.NDArray[Any]) -> str:
        return self._constant(name, np.asarray(values, np.float64))

    def ints(self, name: str, *values: int) -> str:
        return self._constant(name, np.array(values, np.int64))

    def sizes(self, name: str, *values: int | str) -> str:
        """A shape; its last size may be what a node gives."""
        *head, last = values
        if isinstance(last, int):
            return self.ints(name, *map(int, values))
        return self.node("Concat", name.replace(".", "_"), self.ints(name, *map(int, head)), last, axis=0)

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.constants[name] = values
        return name


def _as_a_row(conv: Conv, lowering: Winograd, in_size: Ints | None) -> Lowered:
    """Over one axis: the same over two, on a map of one row."""
    begin, end = conv.pads
    row = Conv(
        conv.weight[:, :, None],
        conv.bias,
        pads=(0, begin, 0, end),
        group=conv.group,
        lowering=replace(lowering, m=(1, *lowering.m)),
    )
    lowered = lower(row, None if in_size is None else (1, *in_size))
    build = _Builder()
    build.node("Reshape", "row", INPUT, build.ints("row.shape", 0, 0, 1, -1))
    for node in lowered.nodes:
        inputs = tuple("row" if each == INPUT else each for each in node.inputs)
        build.nodes.append(
            replace(node, inputs=inputs, output="row_output" if node.output == OUTPUT else node.output)
        )
    build.node("Reshape", OUTPUT, "row_output", build.ints("signal.shape", 0, 0, -1))
    return replace(lowered, nodes=tuple(build.nodes), constants={**lowered.constants, **build.constants})


def _winograd(conv: Conv, lowering: Winograd, out_size: Ints | None) -> Lowered:
    build = _Builder()
    products = _inputs(build, conv, lowering)
    weights = [_weight(build, conv, lowering)]
    if conv.bias is not None:
        weights.append(_bias(build, lowering.products(conv.kernel_shape)))
    build.node(
        "Conv",
        "products",
        products,
        *weights,
        kernel_shape=lowering.own_taps(conv.kernel_shape),
        strides=conv.strides,
        pads=tuple(p if m == 1 else 0 for p, m in zip(conv.pads, lowering.m * 2, strict=True)),
        dilations=conv.dilations,
        group=prod(lowering.products(conv.kernel_shape)) * conv.group,
    )
    _outputs(build, conv, lowering, out_size)
    return Lowered(tuple(build.nodes), conv.weight, conv.bias, build.constants)


def _sub_pixel(conv: Conv, lowering: SubPixel) -> Lowered:
    build = _Builder()
    phases = lowering.phases(conv)
    cuts = [axis.cut for axis in phases]
    build.node(
        "Conv",
        "phases",
        *_inputs_of(conv),
        kernel_shape=tuple(axis.size for axis in phases),
        strides=conv.strides,
        pads=tuple(axis.pads[end] for end in (0, 1) for axis in phases),
        dilations=(1,) * len(phases),
        group=1,
    )
    whole = "whole" if any(map(any, cuts)) else OUTPUT
    build.node("DepthToSpace", whole, "phases", blocksize=conv.input_dilations[0])
    if whole != OUTPUT:
        starts = build.ints("cut.starts", *(begin for begin, _ in cuts))
        ends = build.ints("cut.ends", *(-end if end else np.iinfo(np.int64).max for _, end in cuts))
        build.node("Slice", OUTPUT, whole, starts, ends, build.ints("cut.axes", 2, 3))
    return Lowered(tuple(build.nodes), lowering.weight(conv), lowering.bias(conv), build.constants)


def _inputs(build: _Builder, conv: Conv, lowering: Winograd) -> str:
    """Bᵀ along each transformed axis: `[N, a·a·C, th, tw]`, the products of the first axis outermost.

    ONNX Runtime computes what is joined in the order in which it is joined: here the columns of one row after
    those of another, while that row is still in the caches.
    """
    tensors = [INPUT]
    for axis in lowering.axes:
        count = len(transforms(lowering.m[axis], conv.kernel_shape[axis]).input)
        tensors = [
            _row(build, conv, lowering, axis, index, tensor) for tensor in tensors for index in range(count)
        ]
    return build.node("Concat", "transformed", *tensors, axis=1)


def _row(build: _Builder, conv: Conv, lowering: Winograd, axis: int, index: int, tensor: str) -> str:
    """One row of Bᵀ along an axis: a depthwise convolution."""
    m, name = lowering.m[axis], f"{_WORDS[axis]}{index}"
    row = transforms(m, conv.kernel_shape[axis]).input[index]
    # the last tile may reach over the end; with this pad there is one whatever the size
    begin, end = conv.pads[axis], conv.pads[axis + 2] + m - 1
    seen = window(row, begin, end)
    taps = row[seen.taps].reshape((1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1))
    pads, strides, dilations = [0] * 4, [1, 1], [1, 1]
    pads[axis], pads[axis + 2] = begin - seen.first, end - (len(row) - 1 - seen.last)
    strides[axis], dilations[axis] = m, seen.dilation
    kernel = f"{name}.weight"
    if kernel not in build.made:
        build.node(
            "Expand",
            kernel,
            build.floats(f"{name}.taps", taps),
            build.ints(f"{name}.shape", conv.in_channels, 1, 1, 1),
        )
    return build.node(
        "Conv",
        name if tensor == INPUT else f"{tensor}_{name}",
        tensor,
        kernel,
        kernel_shape=taps.shape[2:],
        strides=tuple(strides),
        pads=tuple(pads),
        dilations=tuple(dilations),
        group=conv.in_channels,
    )


def _weight(build: _Builder, conv: Conv, lowering: Winograd) -> str:
    """G W Gᵀ as `[a·a·M, C/g, *taps of the axes that are not transformed]`."""
    axes, taps = lowering.axes, conv.kernel_shape
    whole = _kron([transforms(lowering.m[axis], taps[axis]).kernel for axis in axes])
    # [y, x, m, c] or [y, m, c, x] or [x, m, c, y]: the transformed axes in front
    order = [2 + axis for axis in axes] + [0, 1] + [2 + axis for axis in (0, 1) if axis not in axes]
    moved = build.node("Transpose", "weight_moved", WEIGHT, perm=order)
    flat = build.node("Reshape", "weight_flat", moved, build.ints("weight_flat.shape", whole.shape[1], -1))
    product = build.node("MatMul", "weight_product", build.floats("weight_transform", whole), flat)
    shape = (len(whole) * conv.out_channels, conv.weight.shape[1], *lowering.own_taps(taps))
    return build.node("Reshape", "kernels", product, build.ints("kernels.shape", *shape))


def _bias(build: _Builder, sizes: tuple[int, ...]) -> str:
    """The bias at the product of the points 1, whose coefficients in Aᵀ are ones: `[a·a·M]`."""
    units = [np.arange(size) == (UNIT if size > 1 else 0) for size in sizes]
    unit = build.floats("bias_transform", _kron([each[:, None] for each in units]))
    row = build.node("Reshape", "bias_row", BIAS, build.ints("bias_row.shape", 1, -1))
    product = build.node("MatMul", "bias_product", unit, row)
    return build.node("Reshape", "constants", product, build.ints("constants.shape", -1))


def _outputs(build: _Builder, conv: Conv, lowering: Winograd, out_size: Ints | None) -> None:
    """Aᵀ along each transformed axis, and the outputs of every tile put in their places.

    As long as the place within a tile is the slowest index and the tiles are the fastest the matrix products
    have long rows; then two transposes with long runs bring the columns of a tile, and its rows, to their
    places. For several threads the columns' product comes after their transposition, and ONNX Runtime makes
    one operator of the two.
    """
    axes, m, (rows, columns) = lowering.axes, lowering.m, lowering.products(conv.kernel_shape)
    matrices = {axis: transforms(m[axis], conv.kernel_shape[axis]).output for axis in axes}
    tensor = "products"
    if 0 in axes:
        split = build.ints("rows.shape", 0, rows, -1)
        tensor = build.node("Reshape", "products_of_rows", tensor, split)
        tensor = build.node("MatMul", "rows", build.floats("rows.transform", matrices[0]), tensor)
    if 1 in axes:
        split = build.ints("columns.shape", 0, m[0], columns, -1)
        tensor = build.node("Reshape", "products_of_columns", tensor, split)
        if lowering.threaded:
            tensor = build.node("Transpose", "products_turned", tensor, perm=(0, 1, 3, 2))
            tensor = build.node("MatMul", "columns", tensor, build.floats("columns.transform", matrices[1].T))
        else:
            tensor = build.node("MatMul", "columns", build.floats("columns.transform", matrices[1]), tensor)
            tensor = build.node("Transpose", "columns_placed", tensor, perm=(0, 1, 3, 2))
    # all tiles together, or what stands for their size until it runs
    high, wide = (-1, _width(build, m[1])) if out_size is None else _whole(out_size, m)
    if 0 in axes:
        tensor = build.node("Reshape", "tiles", tensor, build.sizes("tiles.shape", 0, m[0], -1, wide))
        tensor = build.node("Transpose", "rows_placed", tensor, perm=(0, 2, 1, 3))
    whole = OUTPUT if (high, wide) == out_size else "whole"
    build.node("Reshape", whole, tensor, build.sizes("whole.shape", 0, conv.out_channels, high, wide))
    if whole != OUTPUT:
        _cut(build, conv, axes, whole, out_size)


def _whole(out_size: Ints, m: Ints) -> tuple[int, int]:
    """Height and width of all tiles together."""
    high, wide = (-(-size // step) * step for size, step in zip(out_size, m, strict=True))
    return high, wide


def _width(build: _Builder, step: int) -> str:
    """The width of all tiles together, where that is only known when it runs."""
    shape = build.node("Shape", "products_shape", "products")
    across = build.node("Gather", "tiles_across", shape, build.ints("last", 3), axis=0)
    return build.node("Mul", "width", across, build.ints("columns_of_a_tile", step))


def _cut(build: _Builder, conv: Conv, axes: Ints, whole: str, out_size: Ints | None) -> None:
    """What the last tiles have beyond the output's size goes.

    Where they have nothing the end is the largest integer, at which ONNX Runtime drops the Slice if it comes
    to know the size.
    """
    starts = build.ints("cut.starts", *(0 for _ in axes))
    places = build.ints("cut.axes", *(axis + 2 for axis in axes))
    if out_size is None:
        shape = build.node("Shape", "input_shape", INPUT)
        sizes = build.node("Gather", "input_size", shape, places, axis=0)
        growth = (conv.pads[axis] + conv.pads[axis + 2] - conv.kernel_shape[axis] + 1 for axis in axes)
        ends = build.node("Add", "size", sizes, build.ints("growth", *growth))
        shape = build.node("Shape", "whole_size", whole)
        tiles = build.node("Gather", "tiles_size", shape, places, axis=0)
        same = build.node("Equal", "fits", ends, tiles)
        ends = build.node("Where", "cut", same, build.ints("end", np.iinfo(np.int64).max), ends)
    else:
        ends = build.ints("cut.ends", *(out_size[axis] for axis in axes))
    build.node("Slice", OUTPUT, whole, starts, ends, places)


def _kron(matrices: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return reduce(np.kron, matrices)
