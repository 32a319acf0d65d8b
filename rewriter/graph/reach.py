"""How far back the values of a tensor see: the receptive field of each, axis by axis.

    field' = field + (effective kernel - 1) · jump,    jump' = jump · stride

after a convolution or pooling, where the jump is the distance of neighbouring values in the input; one that
is transposed divides the jump by its stride and sees ceil(effective kernel / stride) values (Araujo, Norris,
Sim 2019, "Computing receptive fields of convolutional neural networks"). The larger of branches counts.
Statistics over the whole map, as InstanceNormalization takes them, are left aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf
from typing import Final

import onnx

from rewriter.conv import Ints
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.model import Model
from rewriter.graph.tape import Constants
from rewriter.layers import effective_kernel

Sizes = Mapping[str, Ints]

_WINDOWS: Final = frozenset({"Conv", "AveragePool", "MaxPool", "LpPool"})
_WHOLE: Final = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
# Values see what the values at their own place see, in whatever they take.
IN_PLACE: Final = frozenset(
    {"Abs", "Add", "Affine", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Crop", "Div"}
    | {"Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {"ImageScaler", "InstanceNormalization", "LRN", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish"}
    | {"Mul", "Neg", "Pad", "ParametricSoftplus", "Pow", "PRelu", "Relu", "Round", "ScaledTanh"}
    | {"Selu", "Sigmoid", "Slice", "Softplus", "Softsign", "Split", "Sqrt", "Sub", "Sum", "Tanh"}
    | {"ThresholdedRelu", "Where"}
)
RESHAPES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Values that a value between two others is made from, beside its neighbour.
_INTERPOLATED: Final = {"nearest": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True, slots=True)
class Reach:
    """What the values of a tensor see along one axis.

    Attributes:
        field: So many values of the model's input; infinite for all of them.
        jump: The distance in the input between what two neighbours see.
    """

    field: Fraction | float
    jump: Fraction


Reaches = tuple[Reach | None, ...]
"""Of each axis of a tensor; None where it is not known, or the axis is not that of a place."""


def receptive_fields(model: Model, sizes: Sizes) -> dict[str, tuple[float | None, ...]]:
    """The receptive field of the tensors for which it can be told, in values of the input along each axis.

    None where it is not known along an axis, infinite where it is everything there is.

    Args:
        model: The model.
        sizes: The shapes of its tensors, as far as they are known.
    """
    one = Reach(Fraction(1), Fraction(1))
    found: dict[str, Reaches] = {spec.name: (one,) * len(spec.shape) for spec in model.inputs}
    constants = Constants(model)
    for node in model.proto.graph.node:
        taken = [(name, found[name]) for name in node.input if name in found]
        after = _after(node, taken, sizes, constants) if taken and node.domain in ONNX_DOMAINS else None
        if after is not None:
            found.update((name, after) for name in node.output if name)
    return {name: tuple(map(_whole, axes)) for name, axes in found.items()}


def _whole(axis: Reach | None) -> float | None:
    if axis is None or axis.field == inf:
        return None if axis is None else inf
    return ceil(axis.field)


def _after(
    node: onnx.NodeProto, taken: Sequence[tuple[str, Reaches]], sizes: Sizes, constants: Constants
) -> Reaches | None:
    """The reaches of a node's outputs; None where nothing is known of them."""
    name, first = taken[0]
    before, after = sizes.get(name, ()), sizes.get(node.output[0], ())
    kind = node.op_type
    if kind in IN_PLACE:
        joined = _joined([axes for _, axes in taken])
        return _stepped(node, joined, constants) if kind == "Slice" and len(node.input) > 4 else joined
    if kind in _WINDOWS or kind == "ConvTranspose":
        return _window(node, first, sizes)
    if kind in _WHOLE:
        return (*first[:2], *(axis and Reach(inf, axis.jump) for axis in first[2:]))
    if kind == "Transpose":
        order = attribute(node, "perm", range(len(first))[::-1])
        return tuple(first[axis] for axis in order)
    if kind in ("DepthToSpace", "SpaceToDepth"):
        block = attribute(node, "blocksize", 1)
        step = Fraction(1, block) if kind == "DepthToSpace" else Fraction(block)
        return (*first[:2], *(axis and _moved(axis, max(step, Fraction(1)), step) for axis in first[2:]))
    if len(before) != len(first) or not after:
        return None
    if kind in ("Resize", "Upsample"):
        more = _INTERPOLATED.get(attribute(node, "mode", "nearest"), 0)
        return tuple(
            axis if axis is None or old == new else _moved(axis, 1 + more, Fraction(old, new))
            for axis, old, new in zip(first, before, after, strict=True)
        )
    if kind.startswith("Reduce") and len(before) == len(after):
        return tuple(
            axis if axis is None or old == new else Reach(inf, axis.jump)
            for axis, old, new in zip(first, before, after, strict=True)
        )
    return _reshaped(first, before, after) if kind in RESHAPES else None


def _moved(axis: Reach, taps: int | Fraction, step: Fraction) -> Reach:
    """Behind a window of so many neighbouring values that moves by a step."""
    return Reach(axis.field + (taps - 1) * axis.jump, axis.jump * step)


def _joined(taken: Sequence[Reaches]) -> Reaches:
    """Of tensors that are broadcast to each other; of their jumps the first known one counts."""
    longest = max(map(len, taken))
    joined: list[Reach | None] = []
    for axis in range(-longest, 0):
        there = [axes[axis] for axes in taken if len(axes) >= -axis]
        known = [each for each in there if each is not None]
        whole = len(known) == len(there)
        joined.append(Reach(max(each.field for each in known), known[0].jump) if whole else None)
    return tuple(joined)


def _window(node: onnx.NodeProto, taken: Reaches, sizes: Sizes) -> Reaches | None:
    """Behind a convolution or pooling; what happens to channels is no matter of places."""
    weight = sizes.get(node.input[1], ()) if "Conv" in node.op_type else ()
    kernel_shape = tuple(attribute(node, "kernel_shape", weight[2:]))
    axes = len(kernel_shape)
    if not axes or len(taken) != axes + 2:
        return None
    strides = attribute(node, "strides", (1,) * axes)
    reaches = effective_kernel(kernel_shape, attribute(node, "dilations", (1,) * axes))
    moved: list[Reach | None] = []
    for axis, taps, stride in zip(taken[2:], reaches, strides, strict=True):
        if axis is None:
            moved.append(None)
        elif node.op_type == "ConvTranspose":
            moved.append(_moved(axis, ceil(taps / stride), Fraction(1, stride)))
        else:
            moved.append(_moved(axis, taps, Fraction(stride)))
    return (taken[0], None, *moved)


def _stepped(node: onnx.NodeProto, taken: Reaches, constants: Constants) -> Reaches | None:
    """Behind a Slice that may leave values out."""
    named, stepped = node.input[3:5]
    if stepped not in constants or (named and named not in constants):
        return None
    steps = constants.value(stepped).tolist()
    axes = constants.value(named).tolist() if named else range(len(steps))
    jumps = dict(zip((axis % len(taken) for axis in axes), map(abs, steps), strict=True))
    return tuple(
        each and Reach(each.field, each.jump * jumps.get(axis, 1)) for axis, each in enumerate(taken)
    )


def _reshaped(taken: Reaches, before: Ints, after: Ints) -> Reaches:
    """The axes in front and behind that keep their sizes keep their reach."""
    kept: list[Reach | None] = [None] * len(after)
    front = 0
    while front < min(len(before), len(after)) and before[front] == after[front]:
        kept[front] = taken[front]
        front += 1
    back = 1
    while back <= min(len(before), len(after)) - front and before[-back] == after[-back]:
        kept[-back] = taken[-back]
        back += 1
    return tuple(kept)
