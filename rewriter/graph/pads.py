"""The pads of a Conv, whichever of ONNX's four ways they are given in."""

from __future__ import annotations

from collections.abc import Sequence

Ints = tuple[int, ...]


def explicit_pads(
    auto_pad: str,
    pads: Ints,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    in_size: Sequence[int | str | None] | None,
) -> Ints | None:
    """All begins, then all ends; None where they depend on a size that is not known.

    SAME_* makes the output ceil(size / stride): it pads (out - 1)·stride + (k - 1)·dilation + 1 - size on an
    axis. With stride 1 the size cancels out, and a single tap never needs any.
    """
    axes = len(kernel_shape)
    if auto_pad == "NOTSET":
        return pads or (0,) * 2 * axes
    if auto_pad == "VALID":
        return (0,) * 2 * axes
    totals = []
    for axis in range(axes):
        reach = (kernel_shape[axis] - 1) * dilations[axis]
        stride = strides[axis]
        size = None if in_size is None else in_size[axis]
        if stride == 1 or reach == 0:
            totals.append(reach)
        elif isinstance(size, int):
            totals.append(max((-(-size // stride) - 1) * stride + reach + 1 - size, 0))
        else:
            return None
    smaller = tuple(total // 2 for total in totals)
    larger = tuple(total - total // 2 for total in totals)
    return smaller + larger if auto_pad == "SAME_UPPER" else larger + smaller
