"""Transposed convolutions: as one ConvTranspose node, or as a Conv that gives all phases of the output.

A ConvTranspose with strides u is a convolution of stride 1 over its input with u - 1 zeros between the
samples, its kernel turned: with pads d (k - 1) - b for each of its own b, and at the end output_padding more.
In each of the u phases of the output only every u-th tap meets a sample:

    y[u q + f - c] = Σ_o W_f[o] x[q + o],        o = (f - c - p + d t) / u where that is whole

for taps t, dilation d, begin pad p and any shift c: one kernel over o for each phase f, then DepthToSpace,
then the first c outputs go (Shi et al. 2016, arXiv 1609.07009). `lowering` writes both as nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rewriter.conv import Array, Conv, Ints
    from rewriter.rewrite import Rewrite

# So many times the multiply-adds have never paid (measured).
_WASTE = 2.0


def turned(weight: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    """A weight `[A, B/group, *kernel]` as `[B, A/group, *kernel]`, every tap mirrored."""
    cut = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    flat = cut.reshape(-1, *cut.shape[2:])
    return np.ascontiguousarray(np.flip(flat, tuple(range(2, flat.ndim))))


@dataclass(frozen=True, slots=True)
class Transposed:
    """As one ConvTranspose node."""

    def refuse(self, conv: Conv) -> str | None:
        """Why a convolution cannot be written so, or None."""
        if max(conv.strides) > 1:
            return f"its strides are {conv.strides}; a ConvTranspose has those of its input's samples only"
        for axis, (begin, end) in enumerate(zip(*_own_pads(conv), strict=True)):
            if begin < 0:
                return f"it pads {conv.pads[axis]} in front of axis {axis}, more than its kernel reaches"
            most = max(conv.input_dilations[axis], conv.dilations[axis]) - 1
            if -end > most:
                return f"it would need an output_padding of {-end} on axis {axis}; {most} is allowed"
        return None

    def attributes(self, conv: Conv) -> dict[str, Any]:
        """The attributes of the node."""
        begins, ends = _own_pads(conv)
        return {
            "kernel_shape": conv.kernel_shape,
            "strides": conv.input_dilations,
            "pads": (*begins, *(max(end, 0) for end in ends)),
            "output_padding": tuple(max(-end, 0) for end in ends),
            "dilations": conv.dilations,
            "group": conv.group,
        }


def _own_pads(conv: Conv) -> tuple[list[int], list[int]]:
    """The pads of a ConvTranspose, begins and ends; below 0 at an end is its output_padding."""
    axes = len(conv.kernel_shape)
    reach = [step * (taps - 1) for step, taps in zip(conv.dilations, conv.kernel_shape, strict=True)]
    begins, ends = conv.pads[:axes], conv.pads[axes:]
    return (
        [whole - pad for whole, pad in zip(reach, begins, strict=True)],
        [whole - pad for whole, pad in zip(reach, ends, strict=True)],
    )


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one axis.

    Attributes:
        taps: For each phase the pairs of a tap of the kernel and its place in that of the phase.
        size: Of the kernel of every phase.
        pads: Begin and end, of the convolution that gives the phases.
        more: Outputs of every phase beyond the size of the input.
        cut: Outputs that are too many, begin and end.
    """

    taps: tuple[tuple[tuple[int, int], ...], ...]
    size: int
    pads: tuple[int, int]
    more: int
    cut: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SubPixel:
    """As a Conv that gives all phases of the output as channels, and DepthToSpace."""

    def refuse(self, conv: Conv) -> str | None:
        """Why a convolution cannot be written so, or None."""
        steps = conv.input_dilations
        if len(steps) != 2:
            return f"the kernel {conv.kernel_shape} has not two axes"
        if max(steps) == 1:
            return "its input is not dilated: there is one phase"
        if steps[0] != steps[1]:
            return f"its phases {steps} differ along the axes; DepthToSpace takes one number for both"
        if max(conv.strides) > 1:
            return f"its strides are {conv.strides}"
        if conv.group > 1:
            return f"it has {conv.group} groups; DepthToSpace would mix them"
        wide = prod(steps) * prod(each.size for each in self.phases(conv)) / conv.taps
        if wide > _WASTE:
            return f"kernels that hold all phases have {wide:.3g} times the taps"
        return None

    def phases(self, conv: Conv) -> tuple[Phases, ...]:
        """Of each axis, with the shift that leaves the smallest kernels, and then the least to cut."""
        return tuple(
            min(
                (_phases(conv, axis, shift) for shift in range(step)),
                key=lambda each: (each.size, each.cut),
            )
            for axis, step in enumerate(conv.input_dilations)
        )

    def weight(self, conv: Conv) -> Array:
        """`[u·u·M, C, *size]`, the phases outermost as DepthToSpace takes them."""
        high, wide = self.phases(conv)
        whole = np.zeros(
            (*conv.input_dilations, *conv.weight.shape[:2], high.size, wide.size), conv.weight.dtype
        )
        for (row, downs), (column, acrosses) in product(enumerate(high.taps), enumerate(wide.taps)):
            for (y, down), (x, across) in product(downs, acrosses):
                whole[row, column, :, :, down, across] = conv.weight[:, :, y, x]
        return whole.reshape(-1, *whole.shape[3:])

    def bias(self, conv: Conv) -> Array | None:
        """`[u·u·M]`, or None."""
        return None if conv.bias is None else np.tile(conv.bias, prod(conv.input_dilations))

    def held(self, conv: Conv) -> int:
        """Weights and biases."""
        each = int(conv.weight.shape[1]) * prod(axis.size for axis in self.phases(conv))
        return prod(conv.input_dilations) * conv.out_channels * (each + (0 if conv.bias is None else 1))

    def macs_and_activations(self, conv: Conv, in_size: Ints) -> tuple[int, int]:
        """Multiply-adds of one sample, and the elements that the nodes write."""
        phases = self.phases(conv)
        places = prod(size + axis.more for size, axis in zip(in_size, phases, strict=True))
        outputs = prod(conv.input_dilations) * conv.out_channels * places
        cut = (
            conv.out_channels * prod(conv.out_size(in_size)) if any(map(any, (p.cut for p in phases))) else 0
        )
        return outputs * int(conv.weight.shape[1]) * prod(p.size for p in phases), 2 * outputs + cut


def _phases(conv: Conv, axis: int, shift: int) -> Phases:
    axes = len(conv.kernel_shape)
    step, dilation = conv.input_dilations[axis], conv.dilations[axis]
    begin, end, taps = conv.pads[axis], conv.pads[axis + axes], conv.kernel_shape[axis]
    found = [
        [
            (tap, place // step)
            for tap in range(taps)
            if (place := phase - shift - begin + dilation * tap) % step == 0
        ]
        for phase in range(step)
    ]
    offsets = [offset for each in found for _, offset in each]
    first, last = min(offsets), max(offsets)
    # outputs beyond step times the size of the input, the first `shift` included
    over = 1 - step + begin + end - dilation * (taps - 1) + shift
    more = -(-over // step)
    return Phases(
        tuple(tuple((tap, offset - first) for tap, offset in each) for each in found),
        last - first + 1,
        (-first, more + last),
        more,
        (shift, step * more - over),
    )


def stages_by_phases(rewrite: Rewrite) -> Rewrite | None:
    """The rewrite with all stages by their phases that can be written so, or None if there are none."""

    def lowered(stage: Conv) -> Conv:
        shape = SubPixel()
        return stage if shape.refuse(stage) is not None else stage.with_(lowering=shape)

    found = rewrite.with_stages(lowered)
    return None if found.direct else found
