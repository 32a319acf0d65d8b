"""The vocabulary of the project: a convolution, its rewrites and their cost.

A rewrite is a sum of chains of convolutions,

    y = Σ_b stage_bn(... stage_b1(x)),        bias on the last stage of the first branch only,

so one place composes it back into a dense kernel and says what it costs; `metric` says how far it is from the
original. Axis letters: m out-channel, c in-channel, t kernel tap, g group, b block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.transposed import SubPixel, Transposed
from rewriter.winograd import Winograd

Array = npt.NDArray[np.floating[Any]]
Ints = tuple[int, ...]

_FLOAT32 = np.dtype(np.float32)


def _frozen(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True)
class Direct:
    """As one node: a ConvTranspose where its input is dilated, else a Conv."""


Lowering = Direct | Transposed | SubPixel | Winograd
Lowerings = tuple[tuple[Lowering, ...], ...]
"""Of the stages of each branch of a rewrite."""


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """One convolution with explicit pads, over any number of spatial axes.

    Attributes:
        weight: `[M, C/group, *kernel]`.
        bias: `[M]`, or None.
        strides: one a spatial axis.
        pads: all begins, then all ends, as ONNX writes them; never negative.
        dilations: one a spatial axis.
        group: how many groups the channels are cut into.
        input_dilations: one a spatial axis: the steps between the samples of the input once zeros are put
            between them, before the pads; where one is above 1 all strides are 1. It is what a ConvTranspose
            calls strides: see `transposed`.
        lowering: how it is written as nodes; what it computes is the same, up to rounding.
        dtype: the type that a model holds it in and rounds to, no wider than that of the weight.

    Raises:
        ValueError: shapes that do not belong together, or a lowering that it cannot take.
    """

    weight: Array
    bias: Array | None = None
    strides: Ints = ()
    pads: Ints = ()
    dilations: Ints = ()
    group: int = 1
    input_dilations: Ints = ()
    lowering: Lowering = Direct()
    dtype: np.dtype[Any] = _FLOAT32

    def __post_init__(self) -> None:
        axes = self.weight.ndim - 2
        ones = (1,) * axes
        defaults = {"strides": ones, "pads": (0,) * 2 * axes, "dilations": ones, "input_dilations": ones}
        for name, default in defaults.items():
            given = tuple(int(value) for value in getattr(self, name)) or default
            object.__setattr__(self, name, given)
        object.__setattr__(self, "weight", _frozen(self.weight))
        if self.bias is not None:
            object.__setattr__(self, "bias", _frozen(self.bias))
        lengths = tuple(len(getattr(self, name)) for name in defaults)
        if axes < 1 or lengths != (axes, 2 * axes, axes, axes):
            raise ValueError(f"weight {self.weight.shape} does not go with {lengths} {', '.join(defaults)}")
        steps = self.strides + self.dilations + self.input_dilations
        if min(self.pads) < 0 or min(steps) < 1 or self.group < 1:
            raise ValueError(
                f"pads {self.pads}, strides {self.strides}, dilations {self.dilations}, "
                f"input dilations {self.input_dilations}"
            )
        if self.weight.shape[0] % self.group:
            raise ValueError(f"{self.weight.shape[0]} output channels do not divide into {self.group} groups")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias {self.bias.shape} does not go with weight {self.weight.shape}")
        lowering = Transposed() if self.transposed else self.lowering
        if not isinstance(lowering, Direct) and (reason := lowering.refuse(self)):
            raise ValueError(reason)

    @property
    def out_channels(self) -> int:
        """M."""
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        """C."""
        return int(self.weight.shape[1]) * self.group

    @property
    def kernel_shape(self) -> Ints:
        """The taps along each spatial axis."""
        return tuple(int(size) for size in self.weight.shape[2:])

    @property
    def taps(self) -> int:
        """How many taps the kernel has in all."""
        return prod(self.kernel_shape)

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is convolved on its own."""
        return self.group > 1 and self.group == self.in_channels

    @property
    def transposed(self) -> bool:
        """Whether it is written as a ConvTranspose."""
        dilated = max(self.input_dilations) > 1
        return isinstance(self.lowering, Transposed) or (dilated and isinstance(self.lowering, Direct))

    @property
    def matrix(self) -> Array:
        """The weight as `[G, M/G, K]`, K = C/group * taps in (c, *kernel) order."""
        return self.weight.reshape(self.group, self.out_channels // self.group, -1)

    def out_size(self, in_size: Ints) -> Ints:
        """The spatial size of the output for an input of spatial size `in_size` (ONNX Conv, floor)."""
        axes = len(self.kernel_shape)
        return tuple(
            (
                (in_size[a] - 1) * self.input_dilations[a]
                + self.pads[a]
                + self.pads[a + axes]
                - self.dilations[a] * (self.kernel_shape[a] - 1)
            )
            // self.strides[a]
            + 1
            for a in range(axes)
        )

    def macs(self, in_size: Ints) -> int:
        """Multiply-adds of one sample, as it is lowered; the bias is not counted."""
        return self.cost(in_size).macs

    def cost(self, in_size: Ints) -> Cost:
        """The cost of one sample of spatial size `in_size`, as it is lowered.

        Directly it takes outputs times C/group times taps multiply-adds; as a ConvTranspose inputs times
        M/group times taps.
        """
        params = int(self.weight.size + (0 if self.bias is None else self.bias.size))
        if isinstance(self.lowering, Winograd | SubPixel):
            macs, activations = self.lowering.macs_and_activations(self, in_size)
            return Cost(macs, params, activations)
        places = prod(self.out_size(in_size))
        applied = prod(in_size) if self.transposed else places
        return Cost(applied * int(self.weight.size), params, self.out_channels * places)

    @property
    def held(self) -> int:
        """Weights and biases that a session holds: of what is transformed, what comes of it."""
        if isinstance(self.lowering, SubPixel):
            return self.lowering.held(self)
        if not isinstance(self.lowering, Winograd):
            return int(self.weight.size + (0 if self.bias is None else self.bias.size))
        inputs = int(self.weight.shape[1]) * prod(self.lowering.own_taps(self.kernel_shape))
        outputs = prod(self.lowering.products(self.kernel_shape)) * self.out_channels
        return outputs * (inputs + (0 if self.bias is None else 1))

    @property
    def rounding(self) -> float:
        """About the relative error that its lowering adds to float32's own."""
        return self.lowering.rounding(self.kernel_shape) if isinstance(self.lowering, Winograd) else 0.0

    def with_(self, **changes: Any) -> Conv:
        """A copy with some fields changed."""
        return replace(self, **changes)


# Multiply-adds in the time that one element takes to be written.
_WRITTEN = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sample costs; costs add.

    Attributes:
        macs: multiply-adds.
        params: weights and biases.
        activations: elements written, intermediate ones and sums included.
    """

    macs: int = 0
    params: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.activations + other.activations)

    @property
    def work(self) -> float:
        """About how long it takes, in multiply-adds: to write an element costs as much as many of them.

        For amounts of work that must not depend on how busy the machine is.
        """
        return self.macs + _WRITTEN * self.activations

    def weight_bytes(self, itemsize: int = 4) -> int:
        """The bytes of the parameters at `itemsize` bytes each."""
        return self.params * itemsize


Branch = tuple[Conv, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """A sum of chains of convolutions that stands for one convolution.

    Raises:
        ValueError: a chain that could not equal one convolution: channels that do not follow each other, a
            bias anywhere but on the last stage of the first branch (earlier, it breaks zero padding at the
            borders), pads or an input dilation after a stage that already saw several taps on that axis, or a
            stride before such a stage.
    """

    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        if not self.branches or not all(self.branches):
            raise ValueError("a rewrite needs at least one branch and one stage in each")
        for index, branch in enumerate(self.branches):
            for stage, after in pairwise(branch):
                if stage.out_channels != after.in_channels:
                    raise ValueError(f"{stage.out_channels} channels cannot feed {after.in_channels}")
            for stage in branch[:-1] if index == 0 else branch:
                if stage.bias is not None:
                    raise ValueError("only the last stage of the first branch may have a bias")
            for axis in range(len(branch[0].kernel_shape)):
                _check_axis(branch, axis)
        if len({(branch[0].in_channels, branch[-1].out_channels) for branch in self.branches}) > 1:
            raise ValueError("the branches differ in their channels")
        if len({_total_strides(branch) for branch in self.branches}) > 1:
            raise ValueError("the branches differ in their strides")
        if len({_total_input_dilations(branch) for branch in self.branches}) > 1:
            raise ValueError("the branches differ in their input dilations")

    @property
    def bias(self) -> Array | None:
        """The bias of the sum, `[M]`, or None."""
        return self.branches[0][-1].bias

    @property
    def direct(self) -> bool:
        """Whether every stage is one node."""
        return all(
            isinstance(stage.lowering, Direct | Transposed) for branch in self.branches for stage in branch
        )

    @property
    def held_bytes(self) -> int:
        """The bytes of the weights and biases that a session holds, in float32."""
        return 4 * sum(stage.held for branch in self.branches for stage in branch)

    @property
    def rounding(self) -> float:
        """About the relative error that the lowerings of its stages add to float32's own."""
        return float(np.hypot.reduce([stage.rounding for branch in self.branches for stage in branch]))

    def with_bias(self, bias: Array | None) -> Rewrite:
        """The same rewrite with another bias."""
        first = (*self.branches[0][:-1], self.branches[0][-1].with_(bias=bias))
        return Rewrite((first, *self.branches[1:]))

    @property
    def lowerings(self) -> Lowerings:
        """How the stages of each branch are written; empty where every stage is one node."""
        if self.direct:
            return ()
        return tuple(tuple(stage.lowering for stage in branch) for branch in self.branches)

    def lowered_as(self, lowerings: Lowerings) -> Rewrite:
        """The same rewrite with its stages written so; as it is where `lowerings` are empty.

        Raises:
            ValueError: It has other branches or stages, or one that cannot be written so.
        """
        if not lowerings:
            return self
        return Rewrite(
            tuple(
                tuple(stage.with_(lowering=_turned(each, stage)) for stage, each in zip(*pair, strict=True))
                for pair in zip(self.branches, lowerings, strict=True)
            )
        )

    def dense(self, conv: Conv) -> Array:
        """The kernel that this rewrite applies, on the taps of `conv`, `[M, C/group, *kernel]`.

        Raises:
            ValueError: it has a tap where `conv` has none, or another stride, or does not keep its groups.
        """
        if _total_strides(self.branches[0]) != conv.strides:
            raise ValueError(f"strides {_total_strides(self.branches[0])} instead of {conv.strides}")
        spread = _total_input_dilations(self.branches[0])
        if spread != conv.input_dilations:
            raise ValueError(f"input dilations {spread} instead of {conv.input_dilations}")
        total = np.zeros((conv.group, conv.out_channels // conv.group, conv.weight.shape[1], conv.taps))
        axes = len(conv.kernel_shape)
        place = {
            tuple(tap[a] * conv.dilations[a] - conv.pads[a] for a in range(axes)): index
            for index, tap in enumerate(product(*map(range, conv.kernel_shape)))
        }
        for branch in self.branches:
            for offset, block in _compose(branch, conv.group).items():
                if offset in place:
                    total[..., place[offset]] += block
                elif np.any(block):
                    raise ValueError(f"a tap at offset {offset} that the original does not have")
        return total.reshape(conv.weight.shape)

    def out_size(self, in_size: Ints) -> Ints:
        """The spatial size of the output.

        Raises:
            ValueError: the branches come to different sizes.
        """
        sizes = set()
        for branch in self.branches:
            size = in_size
            for stage in branch:
                size = stage.out_size(size)
            sizes.add(size)
        if len(sizes) > 1:
            raise ValueError(f"the branches come to different sizes {sorted(sizes)}")
        return sizes.pop()

    def cost(self, in_size: Ints) -> Cost:
        """The cost of one sample of spatial size `in_size`."""
        total = Cost()
        for branch in self.branches:
            size = in_size
            for stage in branch:
                total += stage.cost(size)
                size = stage.out_size(size)
        sums = (len(self.branches) - 1) * self.branches[0][-1].out_channels * prod(self.out_size(in_size))
        return total + Cost(activations=sums)


def _turned(lowering: Lowering, stage: Conv) -> Lowering:
    """A lowering for a stage; with its axes exchanged where only so it fits.

    Of two stages along one axis each a fit to other samples may put the other axis first.
    """
    if isinstance(lowering, Winograd) and lowering.refuse(stage) is not None:
        turned = Winograd(lowering.m[::-1])
        return lowering if turned.refuse(stage) is not None else turned
    return lowering


def _total_strides(branch: Branch) -> Ints:
    return tuple(prod(strides) for strides in zip(*(stage.strides for stage in branch), strict=True))


def _total_input_dilations(branch: Branch) -> Ints:
    return tuple(prod(steps) for steps in zip(*(stage.input_dilations for stage in branch), strict=True))


def _check_axis(branch: Branch, axis: int) -> None:
    """Pads and an input dilation belong to the first stage with several taps on an axis, strides behind it.

    What a stage of one tap without a bias makes of zeros is zeros: they may as well come after it.
    """
    axes = len(branch[0].kernel_shape)
    several = [index for index, stage in enumerate(branch) if stage.kernel_shape[axis] > 1]
    first = several[0] if several else 0
    for index, stage in enumerate(branch):
        if index > first and (stage.pads[axis] or stage.pads[axis + axes]):
            raise ValueError(
                f"pads on stage {index}, which is not the first with several taps on axis {axis}"
            )
        if index != first and stage.input_dilations[axis] > 1:
            raise ValueError(
                f"an input dilation on stage {index}, which is not the first with several taps on axis {axis}"
            )
        # A single tap with pads reads zeros at the border as the padded original does; with a later kernel
        # it would not.
        if index < first and (stage.strides[axis] > 1 or stage.pads[axis] or stage.pads[axis + axes]):
            raise ValueError(f"strides or pads on stage {index}, before the first kernel on axis {axis}")


def _compose(branch: Branch, group: int) -> dict[Ints, Array]:
    """The chain as one kernel: for each input offset a block `[G, M/G, C/G]`.

    With z[u] = Σ_o T[o] x[u·S + o] and out[y] = Σ_t W[t] z[y·s + t·d - p], the chain has stride S·s and its
    taps at o + (t·d - p)·S. Offsets are those in the dilated input.
    """
    axes = range(len(branch[0].kernel_shape))
    channels = branch[0].in_channels // group
    strides: Ints = (1,) * len(axes)
    taps: dict[Ints, Array] = {
        (0,) * len(axes): np.broadcast_to(np.eye(channels), (group, channels, channels))
    }
    for stage in branch:
        if stage.group % group:
            raise ValueError(
                f"a stage in {stage.group} groups does not keep the {group} groups of the original"
            )
        blocks = stage.group // group
        weight = stage.weight.astype(np.float64, copy=False)
        weight = weight.reshape(group, blocks, -1, weight.shape[1], stage.taps)
        after: dict[Ints, Array] = {}
        for index, tap in enumerate(product(*map(range, stage.kernel_shape))):
            shift = [(tap[a] * stage.dilations[a] - stage.pads[a]) * strides[a] for a in axes]
            for offset, block in taps.items():
                moved = tuple(offset[a] + shift[a] for a in axes)
                part = weight[..., index] @ block.reshape(group, blocks, -1, channels)
                part = part.reshape(group, -1, channels)
                after[moved] = after[moved] + part if moved in after else part
        taps = after
        strides = tuple(strides[a] * stage.strides[a] for a in axes)
    return taps


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node stays as it is: data, not an exception.

    Attributes:
        node: the node's name.
        pass_name: the pass that refuses, or None where no pass can take the node.
        reason: one clause, with the value that stands in the way.
    """

    node: str
    pass_name: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Grid:
    """What the target likes.

    Attributes:
        block: channels are computed in blocks of this many (ONNX Runtime's NCHWc kernels: 16 with AVX-512, 8
            with AVX2).
    """

    block: int = 8

    def ranks(self, limit: float, most: int = 8) -> Sequence[int]:
        """At most `most` multiples of the block below `limit`; half blocks where few of them fit."""
        step = self.block if limit > 2 * self.block else max(self.block // 2, 1)
        multiples = np.arange(step, ceil(limit), step)
        if len(multiples) > most:
            wanted = np.geomspace(multiples[0], multiples[-1], most)
            nearest = [int(np.abs(multiples - value).argmin()) for value in wanted]
            multiples = multiples[sorted(set(nearest))]
        return [int(value) for value in multiples]
