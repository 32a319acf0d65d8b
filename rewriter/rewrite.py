"""What stands for a convolution.

A rewrite is a sum of chains of convolutions,

    y = Σ_b stage_bn(... stage_b1(x)),        bias on the last stage of the first branch only,

so one place composes it back into a dense kernel and says what it costs; `metric` says how far it is from the
original. Axis letters: m out-channel, c in-channel, t kernel tap, g group, b block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod

import numpy as np

from rewriter.conv import Array, Conv, Cost, Direct, Ints, Lowering
from rewriter.transposed import Transposed
from rewriter.winograd import Winograd

Branch = tuple[Conv, ...]

Lowerings = tuple[tuple[Lowering, ...], ...]
"""Of the stages of each branch of a rewrite."""


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
        """Whether every stage is the one node that it would be, with its weights as they are."""
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

    def with_stages(self, change: Callable[[Conv], Conv]) -> Rewrite:
        """The same rewrite with every stage changed."""
        return Rewrite(tuple(tuple(map(change, branch)) for branch in self.branches))

    @property
    def lowerings(self) -> Lowerings:
        """How the stages of each branch are written; empty where all are direct."""
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
        turned = replace(lowering, m=lowering.m[::-1])
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
