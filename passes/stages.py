"""How the stages of a chain share the strides, pads and dilations of the convolution they stand for."""

from __future__ import annotations

from math import prod

from rewriter.conv import Array, Conv, Ints
from rewriter.rewrite import Branch


def pointwise(conv: Conv, weight: Array) -> Conv:
    """A last stage `[M, C']` in the groups of the original."""
    return Conv(weight.reshape(*weight.shape, *(1,) * len(conv.kernel_shape)), group=conv.group)


def pointwise_first(conv: Conv, weight: Array, kernel: Array, group: int) -> Branch:
    """A pointwise stage `[N, C/g]` in the original's groups, then a kernel `[M', N/group, T]` in `group`.

    The kernel has the spatial attributes, but a stride and pads along an axis with one tap are cheaper, or
    only possible, on the first stage.
    """
    single = [taps == 1 for taps in conv.kernel_shape]
    first = Conv(
        weight.reshape(*weight.shape, *(1,) * len(single)),
        strides=tuple(stride if one else 1 for stride, one in zip(conv.strides, single, strict=True)),
        pads=tuple(pad if one else 0 for pad, one in zip(conv.pads, single * 2, strict=True)),
        group=conv.group,
        input_dilations=tuple(
            step if one else 1 for step, one in zip(conv.input_dilations, single, strict=True)
        ),
    )
    second = Conv(
        kernel.reshape(*kernel.shape[:2], *conv.kernel_shape),
        strides=tuple(1 if one else stride for stride, one in zip(conv.strides, single, strict=True)),
        pads=tuple(0 if one else pad for pad, one in zip(conv.pads, single * 2, strict=True)),
        dilations=conv.dilations,
        group=group,
        input_dilations=tuple(
            1 if one else step for step, one in zip(conv.input_dilations, single, strict=True)
        ),
    )
    return first, second


def earlier(conv: Conv) -> int:
    """Positions that a pointwise first stage computes for each at which the kernel is applied.

    A kernel is applied at every output, a transposed one at every input.
    """
    return prod(stride for stride, taps in zip(conv.strides, conv.kernel_shape, strict=True) if taps > 1)


def later(conv: Conv) -> int:
    """Positions that a last stage computes for each at which the kernel is applied."""
    return prod(conv.input_dilations)


def along(conv: Conv, axes: Ints, weight: Array, group: int) -> Conv:
    """A stage `[M', C'/group, taps]` along some of the axes, in ascending order, with their attributes."""
    own = [axis in axes for axis in range(len(conv.kernel_shape))]

    def mine(values: Ints, other: int) -> Ints:
        masks = own * (len(values) // len(own))
        return tuple(value if one else other for value, one in zip(values, masks, strict=True))

    kernel = weight.reshape(*weight.shape[:2], *mine(conv.kernel_shape, 1))
    return Conv(
        kernel,
        strides=mine(conv.strides, 1),
        pads=mine(conv.pads, 0),
        dilations=mine(conv.dilations, 1),
        group=group,
        input_dilations=mine(conv.input_dilations, 1),
    )


def several(conv: Conv) -> Ints:
    """The axes of several taps."""
    return tuple(axis for axis, taps in enumerate(conv.kernel_shape) if taps > 1)


def rest(conv: Conv, axes: Ints) -> Ints:
    """All other axes."""
    return tuple(axis for axis in range(len(conv.kernel_shape)) if axis not in axes)
