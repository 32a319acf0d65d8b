"""Operators written in others, each up to rounding what ONNX says of it.

    PRelu(x; s) = max(x, s·x)                           bit for bit the same, for slopes s up to 1
    Elu(x; α) = max(x, 0) + α·(exp(min(x, 0)) - 1)
    Softplus(x) = max(x, 0) + log(1 + exp(-|x|))
    Mish(x) = x·tanh(log(1 + e)) = x·n / (n + 2)        where e = exp(x), n = e·(e + 2)
    Softmax(x) = e / Σ e                                where e = exp(x - max x)
    LogSoftmax(x) = x - max x - log Σ e
    LRN(x) = x / (k + α/n · Σ x²)^β                     the sum over n neighbouring channels, shifted
    DepthToSpace                                        two transpositions, each with long runs

ONNX Runtime's CPU provider computes the first four and LRN value by value with libm, the next two row by row
however short a row, and DepthToSpace as one transposition of six axes. All it is written in here runs in
vectors. On one thread, in ns a value (tests/bench/operators.py): PRelu 4.6 to 0.3, Elu 1.9 to 0.7, Softplus
11 to 2.4, Mish 11 to 1.0, Softmax over 21 channels 9.2 to 3.3, LRN 24 to 2.5, DepthToSpace 1.9 to 0.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from rewriter.graph.attributes import attribute
from rewriter.graph.emit import Emitted
from rewriter.graph.facts import Facts
from rewriter.graph.scope import Names

# exp(x)² of larger ones is beyond float32, and Mish(x) is x long before.
_MISH_IS_X: Final = 30.0
_LAST: Final = np.iinfo(np.int64).max

# What used to be an attribute is an input from these opsets on.
_SLICE_INPUTS: Final = 10
_PAD_INPUTS: Final = 11
_SUM_INPUTS: Final = 13
_MAX_INPUTS: Final = 18
# Before it Softmax took all axes from its own on together.
_SOFTMAX_OF_ONE_AXIS: Final = 13


class Writer:
    """Nodes and constants in the making, beside a tensor `x`.

    Attributes:
        x: The name of what the operator takes.
        opset: The version of ONNX's operators.
    """

    def __init__(self, x: str, prefix: str, names: Names, opset: int) -> None:
        self.x, self.opset = x, opset
        self._prefix, self._names = prefix, names
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, op_type: str, word: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node that the word tells from others, and returns the tensor that it gives."""
        output = self._names.new(f"{self._prefix}/{word}_output")
        name = self._names.new(f"{self._prefix}/{word}")
        self._nodes.append(onnx.helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def number(self, value: float) -> str:
        """A constant of float32."""
        exact = np.array(value, np.float32)
        return self._constant(str(exact), exact)

    def ints(self, word: str, *values: int) -> str:
        """A list of whole numbers."""
        return self._constant(word, np.array(values, np.int64))

    def _constant(self, word: str, value: npt.NDArray[Any]) -> str:
        if word not in self._constants:
            name = self._names.new(f"{self._prefix}/{word}")
            self._constants[word] = numpy_helper.from_array(value, name)
        return self._constants[word].name

    def done(self, output: str) -> Emitted:
        """What was written, its last tensor called as the operator's."""
        self._nodes[-1].output[0] = output
        return Emitted(tuple(self._nodes), tuple(self._constants.values()))


class Operator(NamedTuple):
    """How an operator is written in others.

    Attributes:
        since: The first opset that has all of them.
        applies: Whether a node is one that may be written so.
        write: Writes it; the last node that it adds gives the result.
    """

    since: int
    applies: Callable[[onnx.NodeProto, Facts], bool]
    write: Callable[[onnx.NodeProto, Facts, Writer], object]


def _always(node: onnx.NodeProto, facts: Facts) -> bool:
    return True


def _has_slopes(node: onnx.NodeProto, facts: Facts) -> bool:
    slopes = facts.constant(node.input[1])
    return slopes is not None and slopes.size > 0 and float(slopes.max()) <= 1.0


def _prelu(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    to.node("Max", "larger", to.x, to.node("Mul", "scaled", to.x, node.input[1]))


def _elu(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    exponential = to.node("Exp", "exp", to.node("Min", "negative", to.x, to.number(0.0)))
    below = to.node("Sub", "below", exponential, to.number(1.0))
    if (alpha := attribute(node, "alpha", 1.0)) != 1.0:
        below = to.node("Mul", "scaled", below, to.number(alpha))
    to.node("Add", "sum", to.node("Relu", "above", to.x), below)


def _softplus(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    exponential = to.node("Exp", "exp", to.node("Neg", "negative", to.node("Abs", "absolute", to.x)))
    rest = to.node("Log", "log", to.node("Add", "above_one", exponential, to.number(1.0)))
    to.node("Add", "sum", to.node("Relu", "above", to.x), rest)


def _mish(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    two = to.number(2.0)
    exponential = to.node("Exp", "exp", to.node("Min", "bounded", to.x, to.number(_MISH_IS_X)))
    above = to.node("Mul", "numerator", exponential, to.node("Add", "above_two", exponential, two))
    share = to.node("Div", "share", above, to.node("Add", "denominator", above, two))
    to.node("Mul", "product", to.x, share)


def _of_one_axis(node: onnx.NodeProto, facts: Facts) -> bool:
    sizes = facts.sizes(node.input[0])
    return sizes is not None and (facts.opset >= _SOFTMAX_OF_ONE_AXIS or _axis(node, facts) == len(sizes) - 1)


def _axis(node: onnx.NodeProto, facts: Facts) -> int:
    sizes = facts.sizes(node.input[0])
    assert sizes is not None
    default = -1 if facts.opset >= _SOFTMAX_OF_ONE_AXIS else 1
    return int(attribute(node, "axis", default)) % len(sizes)


def _softmax(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    _, exponential, total = _exponentials(node, facts, to)
    to.node("Div", "share", exponential, total)


def _log_softmax(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    below, _, total = _exponentials(node, facts, to)
    to.node("Sub", "logarithm", below, to.node("Log", "log", total))


def _exponentials(node: onnx.NodeProto, facts: Facts, to: Writer) -> tuple[str, str, str]:
    """What lies below the largest, its exponential, and the sum of that."""
    axis = _axis(node, facts)

    def reduced(op_type: str, word: str, tensor: str, inputs_since: int) -> str:
        if to.opset < inputs_since:
            return to.node(op_type, word, tensor, axes=[axis], keepdims=1)
        return to.node(op_type, word, tensor, to.ints("axis", axis), keepdims=1)

    largest = reduced("ReduceMax", "largest", to.x, _MAX_INPUTS)
    below = to.node("Sub", "below_largest", to.x, largest)
    exponential = to.node("Exp", "exp", below)
    return below, exponential, reduced("ReduceSum", "sum", exponential, _SUM_INPUTS)


def _is_positive(node: onnx.NodeProto, facts: Facts) -> bool:
    bias, alpha = attribute(node, "bias", 1.0), attribute(node, "alpha", 1e-4)
    return facts.sizes(node.input[0]) is not None and bias > 0.0 and alpha >= 0.0


def _lrn(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    size, alpha = int(attribute(node, "size")), attribute(node, "alpha", 1e-4)
    sizes = facts.sizes(node.input[0])
    assert sizes is not None
    pads = [0] * (2 * len(sizes))
    pads[1], pads[1 + len(sizes)] = (size - 1) // 2, size // 2
    square = to.node("Mul", "square", to.x, to.x)
    if to.opset < _PAD_INPUTS:
        padded = to.node("Pad", "padded", square, pads=pads)
    else:
        padded = to.node("Pad", "padded", square, to.ints("pads", *pads))
    total = to.node("Sum", "sum", *(_shifted(to, padded, start, size) for start in range(size)))
    scaled = to.node("Mul", "scaled", total, to.number(alpha / size))
    base = to.node("Add", "base", scaled, to.number(attribute(node, "bias", 1.0)))
    to.node("Div", "quotient", to.x, _power(to, base, attribute(node, "beta", 0.75)))


def _shifted(to: Writer, padded: str, start: int, size: int) -> str:
    """The channels from one on, as many as there were without pads."""
    end = start - size + 1 or _LAST
    if to.opset < _SLICE_INPUTS:
        return to.node("Slice", f"shifted{start}", padded, starts=[start], ends=[end], axes=[1])
    bounds = to.ints(f"start{start}", start), to.ints(f"end{start}", end), to.ints("channels", 1)
    return to.node("Slice", f"shifted{start}", padded, *bounds)


def _power(to: Writer, base: str, exponent: float) -> str:
    """A positive tensor to a power: by square roots where that is all, for Pow takes as long as LRN."""
    if exponent == 1.0:
        return base
    if exponent not in (0.5, 0.75):
        return to.node("Pow", "power", base, to.number(exponent))
    root = to.node("Sqrt", "root", base)
    return root if exponent == 0.5 else to.node("Mul", "power", root, to.node("Sqrt", "fourth_root", root))


def _has_channels(node: onnx.NodeProto, facts: Facts) -> bool:
    sizes = facts.sizes(node.input[0])
    return sizes is not None and isinstance(sizes[1], int)


def _depth_to_space(node: onnx.NodeProto, facts: Facts, to: Writer) -> None:
    sizes, step = facts.sizes(node.input[0]), int(attribute(node, "blocksize"))
    assert sizes is not None
    assert isinstance(sizes[1], int)
    channels = sizes[1] // step**2
    if attribute(node, "mode", "DCR") == "CRD":
        columns = (0, channels * step, step, -1)
        rows = [(0, -1), (0, step), (1, 0), (step, 0)]
        whole = [(0, -1), (0, channels), (step, 0), (step, 0)]
    else:
        columns = (0, step, step, -1)
        rows = [(0, 0), (0, step), (0, -1), (step, 0)]
        whole = [(0, 0), (0, channels), (0, -1), (step, 0)]
    # [.., step, H·W] -> [.., H·W, step], then [.., step, H, W·step] -> [.., H, step, W·step]
    flat = to.node("Reshape", "columns", to.x, to.ints("columns_shape", *columns))
    placed = to.node("Transpose", "columns_placed", flat, perm=[0, 1, 3, 2])
    high = to.node("Reshape", "rows", placed, _shape(to, "rows_shape", sizes, rows))
    placed = to.node("Transpose", "rows_placed", high, perm=[0, 2, 1, 3])
    to.node("Reshape", "whole", placed, _shape(to, "whole_shape", sizes, whole))


def _shape(to: Writer, word: str, sizes: tuple[int | str | None, ...], parts: list[tuple[int, int]]) -> str:
    """A shape of which each size is a factor times that of `x` along the same axis, and a term."""
    factors, terms = zip(*parts, strict=True)
    known = [
        term + factor * size if isinstance(size, int) else None if factor else term
        for size, factor, term in zip(sizes, factors, terms, strict=True)
    ]
    if None not in known:
        return to.ints(word, *(size for size in known if size is not None))
    given = to.node("Shape", f"{word}_given", to.x)
    scaled = to.node("Mul", f"{word}_scaled", given, to.ints(f"{word}_factors", *factors))
    return to.node("Add", word, scaled, to.ints(f"{word}_terms", *terms))


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "DepthToSpace": Operator(7, _has_channels, _depth_to_space),
        "Elu": Operator(8, _always, _elu),
        "LRN": Operator(7, _is_positive, _lrn),
        "LogSoftmax": Operator(7, _of_one_axis, _log_softmax),
        "Mish": Operator(8, _always, _mish),
        "PRelu": Operator(8, _has_slopes, _prelu),
        "Softmax": Operator(7, _of_one_axis, _softmax),
        "Softplus": Operator(7, _always, _softplus),
    }
)
"""By type; Min and Max broadcast from opset 8 on, most others from 7 on."""
