"""Layers that mix channels, convolutions and Gemms: what they read, and what constants come through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import attribute
from rewriter.graph.sites import Site

Bools = npt.NDArray[np.bool_]

NEGLIGIBLE: Final = 2.0**-48
"""A weight is zero that is smaller than the largest of its kernel by the square of float32's rounding.

Weight decay takes what is never active down to some 1e-29 and seldom to zero. A layer behind would have to
weigh it 2²⁴ times as much as all else for it to come out of the rounding of a sum.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution, or a Gemm as one of one tap.

    Attributes:
        index: Of its (first) node.
        input: Name of the tensor that it takes.
        output: Name of the tensor that it gives.
        conv: What it computes.
        alive: Whether out-channel m reads in-channel c of its group, `[M, C/group]`.
        site: The convolution in the model; None for a Gemm.
    """

    index: int
    input: str
    output: str
    conv: Conv
    alive: Bools
    site: Site | None

    @classmethod
    def of(cls, index: int, given: str, output: str, conv: Conv, site: Site | None = None) -> Layer:
        """A layer of the model."""
        flat = conv.weight.reshape(*conv.weight.shape[:2], -1)
        largest = np.maximum(flat.max(2), -flat.min(2))
        return cls(index, given, output, conv, largest > NEGLIGIBLE * largest.max(), site)

    @property
    def bordered(self) -> bool:
        """Whether an output near the border sees less of a constant input than one inside."""
        return any(self.conv.pads) or self.conv.transposed

    def sums(self, inputs: Bools | slice) -> Array:
        """What it multiplies constants of some in-channels with, `[M, inputs]`, at a place inside its map."""
        flat = self.conv.weight.reshape(*self.conv.weight.shape[:2], -1)[:, inputs]
        return np.where(self.alive[:, inputs], flat.sum(2, dtype=np.float64), 0.0)

    def constants(self, values: Array) -> Array:
        """Its channels that are constant, `[M]`, where in-channels are, `[C]`; NaN for those that are not."""
        conv = self.conv
        varies = np.isnan(values) | (self.bordered & (values != 0))
        per_output = [
            np.repeat(each.reshape(conv.group, -1), conv.out_channels // conv.group, axis=0)
            for each in (varies, np.nan_to_num(values))
        ]
        constant: Array = (self.sums(slice(None)) * per_output[1]).sum(1)
        constant += 0.0 if conv.bias is None else conv.bias
        return np.where((self.alive & per_output[0]).any(1), np.nan, constant)

    def needs(self, values: Array) -> Bools:
        """The in-channels without which it cannot do, `[C]`: neither ignored nor constants for the bias."""
        replaced = ~np.isnan(values) & ((values == 0) | (not self.bordered))
        return np.asarray(self.alive.any(0) & ~replaced)


def gemm(node: onnx.NodeProto, analysis: Analysis) -> Conv | None:
    """A Gemm of constants, x Wᵀ + b, as a convolution of one tap; None where it is something else."""
    plain = (
        not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1
    )
    weight = analysis.constant(node.input[1])
    bias = analysis.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if not plain or weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return None
    weight = weight if attribute(node, "transB", 0) else weight.T
    if any(node.input[2:]) and (bias is None or bias.shape not in ((len(weight),), (1, len(weight)))):
        return None
    return Conv(weight[:, :, None], None if bias is None else bias.reshape(-1))
