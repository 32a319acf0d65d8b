"""Winograd's form of a convolution: where it applies and what it costs. `lowering` writes it as nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from rewriter import toomcook

if TYPE_CHECKING:
    from rewriter.conv import Conv, Ints
    from rewriter.rewrite import Rewrite

# The smallest block of channels that any target computes at once; the fast path takes whole blocks.
BLOCK = 8
# With fewer channels a group the transforms outweigh the products that they save (measured).
FEWEST = 16
# A size of which a tile's overhang at the end is no large part.
_LARGE = 64


@dataclass(frozen=True, slots=True)
class Winograd:
    """Tiles of outputs from fewer products, along the only spatial axis, one of two or both.

    Attributes:
        m: Outputs of a tile along each axis; 1 where the axis is not transformed.
        threaded: Whether it is written for operators that several threads share. The columns of a tile are
            then put in their places by the matrix product, not by a Transpose: threads that each move some of
            these columns write to the same cache lines, which makes it slower than one thread is (ONNX
            Runtime since microsoft/onnxruntime#24261).
    """

    m: Ints
    threaded: bool = False

    @property
    def axes(self) -> Ints:
        """The transformed axes."""
        return tuple(axis for axis, size in enumerate(self.m) if size > 1)

    def products(self, kernel_shape: Ints) -> Ints:
        """Products of a tile along each axis: a = m + r - 1, or 1 where it is not transformed."""
        return tuple(1 if m == 1 else m + r - 1 for m, r in zip(self.m, kernel_shape, strict=True))

    def own_taps(self, kernel_shape: Ints) -> Ints:
        """The kernel of each product: what it was where the axis is not transformed, else 1."""
        return tuple(r if m == 1 else 1 for m, r in zip(self.m, kernel_shape, strict=True))

    def refuse(self, conv: Conv) -> str | None:
        """Why a convolution cannot be written so, or None."""
        if len(conv.kernel_shape) > 2:
            return f"the kernel {conv.kernel_shape} has more than two axes"
        if len(self.m) != len(conv.kernel_shape):
            return f"tiles of {self.m} outputs have not the axes of the kernel {conv.kernel_shape}"
        if not self.axes or min(self.m) < 1:
            return f"tiles of {self.m} outputs transform nothing"
        if max(conv.strides) > 1:
            return f"its strides are {conv.strides}; a transform needs 1"
        if max(conv.input_dilations) > 1:
            return f"it is transposed with strides {conv.input_dilations}; a transform needs 1"
        if max(conv.dilations) > 1:
            return f"its dilations are {conv.dilations}; a transform needs 1"
        if any(conv.kernel_shape[axis] == 1 for axis in self.axes):
            return f"the kernel {conv.kernel_shape} has one tap along an axis: there is nothing to transform"
        if max(self.products(conv.kernel_shape)) > toomcook.LARGEST:
            return f"the kernel {conv.kernel_shape} is too large for tiles of {self.m} outputs"
        return None

    def rounding(self, kernel_shape: Ints) -> float:
        """The relative error of the output in float32."""
        axes = self.axes
        return toomcook.rounding(tuple(self.m[a] for a in axes), tuple(kernel_shape[a] for a in axes))

    def held(self, conv: Conv) -> int:
        """Weights and biases, transformed."""
        inputs = int(conv.weight.shape[1]) * prod(self.own_taps(conv.kernel_shape))
        outputs = prod(self.products(conv.kernel_shape)) * conv.out_channels
        return outputs * (inputs + (0 if conv.bias is None else 1))

    def macs_and_activations(self, conv: Conv, in_size: Ints) -> tuple[int, int]:
        """Multiply-adds of one sample, transforms included, and the elements that their nodes write."""
        size, channels = list(in_size), conv.in_channels
        macs = activations = 0
        for axis in self.axes:
            rows = toomcook.transforms(self.m[axis], conv.kernel_shape[axis]).input
            pads = conv.pads[axis], conv.pads[axis + len(self.m)] + self.m[axis] - 1
            size[axis] = -(-conv.out_size(in_size)[axis] // self.m[axis])
            taps = sum(len(toomcook.window(row, *pads).taps) for row in rows)
            macs += taps * channels * prod(size)
            channels *= len(rows)
            # what the convolutions write and what joins them
            activations += 2 * channels * prod(size)
        products = prod(self.products(conv.kernel_shape))
        outputs = conv.out_channels * prod(
            out if m == 1 else tiles
            for out, tiles, m in zip(conv.out_size(in_size), size, self.m, strict=True)
        )
        macs += products * outputs * conv.weight.shape[1] * prod(self.own_taps(conv.kernel_shape))
        macs += prod(self.m) * products * outputs
        moves = 2 + len(self.axes)
        return macs, activations + (products + moves * prod(self.m)) * outputs


def narrow(conv: Conv, block: int = BLOCK) -> str | None:
    """Why the channels of a convolution are too few, or fill no blocks, for tiles to be fast; else None."""
    inputs, outputs = conv.weight.shape[1], conv.out_channels // conv.group
    if inputs % block or outputs % block or min(inputs, outputs) < FEWEST:
        return (
            f"each group takes {inputs} channels and gives {outputs}; "
            f"tiles are fast for multiples of {block}, {FEWEST} or more"
        )
    return None


def in_tiles(conv: Conv, tiles: Winograd) -> Conv | None:
    """The convolution in tiles, of one output along axes of one tap; None where that saves no products."""
    m = tuple(1 if taps == 1 else size for size, taps in zip(tiles.m, conv.kernel_shape, strict=False))
    shape = replace(tiles, m=m)
    if shape.refuse(conv) is not None:
        return None
    tiled = conv.with_(lowering=shape)
    size = (_LARGE,) * len(conv.kernel_shape)
    return tiled if tiled.macs(size) < conv.macs(size) else None


def stages_in_tiles(rewrite: Rewrite, tiles: Winograd, block: int) -> Rewrite | None:
    """The rewrite with all stages that can gain by them in tiles, or None if there are none."""

    def lowered(stage: Conv) -> Conv:
        plain = stage.depthwise or stage.taps == 1 or narrow(stage, block) is not None
        return stage if plain else in_tiles(stage, tiles) or stage

    tiled = rewrite.with_stages(lowered)
    return None if tiled.direct else tiled


def for_threads(rewrite: Rewrite) -> Rewrite:
    """The rewrite with its tiles written for several threads."""

    def lowered(stage: Conv) -> Conv:
        tiles = stage.lowering
        return stage.with_(lowering=replace(tiles, threaded=True)) if isinstance(tiles, Winograd) else stage

    return rewrite.with_stages(lowered)
