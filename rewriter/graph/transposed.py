"""What a ConvTranspose node computes, as a convolution over its input with zeros between the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from rewriter.conv import Array, Conv, Ints
from rewriter.graph.attributes import attribute
from rewriter.transposed import Transposed, turned

Size = Callable[[], Sequence[int | str | None] | None]


def transposed_conv(node: onnx.NodeProto, weight: Array, bias: Array | None, in_size: Size) -> Conv | str:
    """The convolution of a ConvTranspose node, or why it has none.

    Args:
        node: The node.
        weight: `[C, M/group, *kernel]`.
        bias: `[M]`, or None.
        in_size: Gives the spatial sizes of the input, or None; asked only where they matter.
    """
    axes = weight.ndim - 2
    kernel_shape = weight.shape[2:]
    ones = (1,) * axes
    strides = tuple(attribute(node, "strides", ones))
    dilations = tuple(attribute(node, "dilations", ones))
    extra = tuple(attribute(node, "output_padding", (0,) * axes))
    given_pads = tuple(attribute(node, "pads", ()))
    group = attribute(node, "group", 1)
    if tuple(attribute(node, "kernel_shape", kernel_shape)) != kernel_shape:
        return f"its kernel_shape is not that of its weight {list(weight.shape)}"
    if {len(strides), len(dilations), len(extra)} != {axes} or len(given_pads) not in (0, 2 * axes):
        return (
            f"its strides {strides}, pads {given_pads}, dilations {dilations} or output_padding {extra} "
            f"are not those of {axes} axes"
        )
    if group < 1 or weight.shape[0] % group:
        return f"its {weight.shape[0]} input channels do not divide into {group} groups"
    reach = tuple(step * (taps - 1) for step, taps in zip(dilations, kernel_shape, strict=True))
    # what it gives beyond the strides times the last place of the input, before any pads
    whole = tuple(far + 1 + more for far, more in zip(reach, extra, strict=True))
    own = _own_pads(node, given_pads, strides, whole, in_size)
    if isinstance(own, str):
        return own
    begins, ends = own
    pads = (
        *(far - pad for far, pad in zip(reach, begins, strict=True)),
        *(far - pad + more for far, pad, more in zip(reach, ends, extra, strict=True)),
    )
    if min(pads) < 0:
        return f"its pads {(*begins, *ends)} are larger than its kernel {list(kernel_shape)} reaches"
    return Conv(turned(weight, group), bias, (), pads, dilations, group, strides, lowering=Transposed())


def _own_pads(
    node: onnx.NodeProto, pads: Ints, strides: Ints, whole: Ints, in_size: Size
) -> tuple[Ints, Ints] | str:
    """Its pads at the begins and ends, whichever of ONNX's four ways they are given in, or why not.

    A negative end stands for outputs beyond the last product.
    """
    axes = len(strides)
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return f"its auto_pad '{auto_pad}' is unknown"
    out_size = tuple(attribute(node, "output_shape", ()))[-axes:]
    if out_size:
        size = in_size()
        known = [each for each in size or () if isinstance(each, int)]
        if len(known) != axes or len(out_size) != axes:
            return (
                f"its output_shape {list(out_size)} leaves its pads to the size of {node.input[0]!r}, which "
                "is dynamic; fix the model's input shape"
            )
        totals = [
            (each - 1) * stride + reach - out
            for each, stride, reach, out in zip(known, strides, whole, out_size, strict=True)
        ]
    elif auto_pad in ("NOTSET", "VALID"):
        pads = pads if pads and auto_pad == "NOTSET" else (0,) * 2 * axes
        return pads[:axes], pads[axes:]
    else:
        totals = [max(reach - stride, 0) for reach, stride in zip(whole, strides, strict=True)]
    if auto_pad == "SAME_UPPER":
        begins = tuple(max(total, 0) // 2 for total in totals)
    else:
        begins = tuple(max(total, 0) - max(total, 0) // 2 for total in totals)
    return begins, tuple(total - begin for total, begin in zip(totals, begins, strict=True))
