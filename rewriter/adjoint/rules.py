"""How a gradient passes each operator backwards: vector-Jacobian products of one node.

Where a rule is not exact it says so: what it serves, a metric shrunk towards the identity, does not need it
to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from rewriter.adjoint import layers, moves, pointwise
from rewriter.adjoint.node import Rule, known

CONSTANT: Final = frozenset({"ConstantOfShape", "Shape", "Size"})
"""Operators whose outputs do not change with the values of their inputs."""

# The operator's rule, and which values it needs beside shapes: of the first input (x), of all others (c, as
# weights, axes and pads), of the first output (y).
RULES: Final[Mapping[str, tuple[Rule, str]]] = {
    "Abs": (pointwise.elementwise(lambda node: np.sign(known(node.x[0]))), "x"),
    "Add": (pointwise.add, ""),
    "AveragePool": (layers.average_pool, ""),
    "BatchNormalization": (layers.scale, "c"),
    "Cast": (moves.same, ""),
    "Clip": (pointwise.clip, "cy"),
    "Concat": (moves.concat, ""),
    "Conv": (layers.conv, "c"),
    "ConvTranspose": (layers.conv_transpose, "c"),
    "DepthToSpace": (moves.depth_to_space, ""),
    "Div": (pointwise.div, "xc"),
    "Dropout": (moves.same, ""),
    "Elu": (pointwise.elementwise(pointwise.elu), "y"),
    "Exp": (pointwise.elementwise(lambda node: known(node.y[0])), "y"),
    "Expand": (moves.expand, ""),
    "Flatten": (moves.reshape, ""),
    "Gemm": (layers.gemm, "xc"),
    "GlobalAveragePool": (layers.global_average, ""),
    "GlobalMaxPool": (layers.global_max, "xy"),
    "HardSigmoid": (pointwise.elementwise(pointwise.hard_sigmoid), "y"),
    "HardSwish": (pointwise.elementwise(pointwise.hard_swish), "x"),
    "Identity": (moves.same, ""),
    "InstanceNormalization": (layers.instance_norm, "xc"),
    "LeakyRelu": (pointwise.elementwise(pointwise.leaky), "y"),
    "Log": (pointwise.elementwise(lambda node: 1 / known(node.x[0])), "x"),
    "LogSoftmax": (pointwise.log_softmax, "y"),
    "MatMul": (layers.matmul, "xc"),
    "Max": (pointwise.extremum, "xcy"),
    "MaxPool": (layers.max_pool, "xy"),
    "Min": (pointwise.extremum, "xcy"),
    "Mul": (pointwise.mul, "xc"),
    "Neg": (pointwise.elementwise(lambda node: np.array(-1, np.float32)), ""),
    "PRelu": (pointwise.prelu, "xc"),
    "Pad": (moves.pad, "c"),
    "Pow": (pointwise.elementwise(pointwise.power), "xc"),
    "Reciprocal": (pointwise.elementwise(lambda node: -(known(node.y[0]) ** 2)), "y"),
    "ReduceMean": (layers.reduce_mean, "c"),
    "ReduceSum": (layers.reduce_sum, "c"),
    "Relu": (pointwise.elementwise(pointwise.relu), "y"),
    "Reshape": (moves.reshape, ""),
    "Resize": (moves.upsample, ""),
    "Sigmoid": (pointwise.elementwise(pointwise.sigmoid), "y"),
    "Slice": (moves.cut, "c"),
    "Softmax": (pointwise.softmax, "y"),
    "Softplus": (pointwise.elementwise(pointwise.softplus), "y"),
    "SpaceToDepth": (moves.space_to_depth, ""),
    "Split": (moves.split, ""),
    "Sqrt": (pointwise.elementwise(lambda node: 0.5 / known(node.y[0])), "y"),
    "Squeeze": (moves.reshape, ""),
    "Sub": (pointwise.sub, ""),
    "Sum": (pointwise.add, ""),
    "Tanh": (pointwise.elementwise(pointwise.tanh), "y"),
    "Transpose": (moves.transpose, ""),
    "Unsqueeze": (moves.reshape, ""),
    "Upsample": (moves.upsample, ""),
}
