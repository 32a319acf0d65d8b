"""A convolution and what it costs.

Axis letters: m out-channel, c in-channel, t kernel tap, g group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.joined import Joined
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


Lowering = Direct | Transposed | SubPixel | Joined | Winograd


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
        if not isinstance(self.lowering, Direct | Transposed):
            macs, activations = self.lowering.macs_and_activations(self, in_size)
            return Cost(macs, params, activations)
        places = prod(self.out_size(in_size))
        applied = prod(in_size) if self.transposed else places
        return Cost(applied * int(self.weight.size), params, self.out_channels * places)

    @property
    def held(self) -> int:
        """Weights and biases that a session holds: of what is transformed, what comes of it."""
        if not isinstance(self.lowering, Direct | Transposed):
            return self.lowering.held(self)
        return int(self.weight.size + (0 if self.bias is None else self.bias.size))

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
