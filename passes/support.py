"""What the zeros of a kernel are: blocks of channels, taps that nobody reads.

Axis letters: g group, m out-channel and c in-channel of a group, t tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse.csgraph

from rewriter.conv import Conv, Direct, Ints

Mask = npt.NDArray[np.bool_]


def support(conv: Conv) -> Mask:
    """Which weights count, `[G, M/G, C/G, T]`.

    A weight of less than u / K of the largest of its output, K weights in all, is none, u being half a unit
    in the last place of the model's type: all of them together are lost where a sum of K products is rounded
    once.
    """
    sizes = np.abs(conv.matrix)
    least = sizes.max(axis=2, keepdims=True) * (np.finfo(conv.dtype).eps / 2 / conv.matrix.shape[2])
    found: Mask = sizes > least
    return found.reshape(*conv.matrix.shape[:2], -1, conv.taps)


def tight(conv: Conv) -> Conv:
    """The same convolution cropped and in as many groups as its zeros allow."""
    cropped = crop(conv)
    most = max(blocks(cropped), default=1)
    return in_blocks(cropped, most) if most > 1 else cropped


# Blocks of channels


def blocks(conv: Conv) -> list[int]:
    """Into how many equal blocks of neighbouring channels, two or more, each group falls without a loss."""
    groups, outputs, inputs = *conv.matrix.shape[:2], conv.weight.shape[1]
    most = gcd(outputs, inputs)
    if most == 1:
        return []
    linked = _any(support(conv), 3)
    if linked.all():
        return []
    found = []
    for count in (count for count in range(2, most + 1) if most % count == 0):
        cut = linked.reshape(groups, count, outputs // count, count, inputs // count)
        across = _any(cut, 0, 2, 4)
        if not across[~np.eye(count, dtype=bool)].any():
            found.append(count)
    return found


def in_blocks(conv: Conv, count: int) -> Conv:
    """The convolution in so many times its groups; weights across them are left out."""
    groups, outputs, _ = conv.matrix.shape
    cut = conv.weight.reshape(groups, count, outputs // count, count, -1, *conv.kernel_shape)
    index = np.arange(count)
    own = cut[:, index, :, index].swapaxes(0, 1)
    weight = own.reshape(conv.out_channels, -1, *conv.kernel_shape)
    return conv.with_(weight=np.ascontiguousarray(weight), group=groups * count)


def unblocked(conv: Conv) -> str:
    """Why a convolution does not fall into blocks."""
    for links in _any(support(conv), 3):
        inputs, outputs = _components(links)
        names = list(dict.fromkeys(inputs))
        if len(names) < 2:
            return "its channels hang together: no block of outputs reads inputs of its own alone"
        order = {name: place for place, name in enumerate(names)}
        places = [[order[name] for name in side if name in order] for side in (inputs, outputs)]
        if any(side != sorted(side) for side in places):
            return (
                f"its {len(names)} blocks of channels are not of neighbours: to put them side by side, the "
                "channels would have to be permuted in the layers before and behind"
            )
    return "its blocks of channels are not of one size, which groups must be"


def _components(links: Mask) -> tuple[list[int], list[int]]:
    """The component of every input and every output `[M, C]` that has any link."""
    outputs, inputs = links.shape
    rows, columns = np.nonzero(links)
    graph = scipy.sparse.csr_array(
        (np.ones(len(rows)), (rows, columns + outputs)), shape=(outputs + inputs,) * 2
    )
    labels = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    return (
        [int(label) for label in labels[outputs:][links.any(axis=0)]],
        [int(label) for label in labels[:outputs][links.any(axis=1)]],
    )


# Taps


def crop(conv: Conv) -> Conv:
    """The convolution without the taps that are zero throughout, as far as its pads allow.

    What is left of the taps at first, first + step, ... of an axis with dilation d and pads p, q is a kernel
    of dilation step·d and pads p - first·d, q - (taps - 1 - last)·d. These must not be negative. A transposed
    one stays as it is: which taps of it could go depends on its phases.
    """
    if max(conv.input_dilations) > 1:
        return conv
    axes = len(conv.kernel_shape)
    live = _live(conv)
    slices: list[slice] = []
    dilations, pads = list(conv.dilations), list(conv.pads)
    for axis, taps in enumerate(conv.kernel_shape):
        dilation = conv.dilations[axis]
        room = conv.pads[axis] // dilation, conv.pads[axis + axes] // dilation
        first, count, step = _window(taps, _lines(live, axis), room)
        last = first + (count - 1) * step
        slices.append(slice(first, last + 1, step))
        dilations[axis] = dilation * step if count > 1 else 1
        pads[axis] -= first * dilation
        pads[axis + axes] -= (taps - 1 - last) * dilation
    weight = np.ascontiguousarray(conv.weight[(slice(None), slice(None), *slices)])
    if weight.shape == conv.weight.shape:
        return conv
    # a ConvTranspose node could not have all pads of the smaller kernel
    return conv.with_(weight=weight, dilations=tuple(dilations), pads=tuple(pads), lowering=Direct())


def uncropped(conv: Conv) -> str:
    """Why a convolution keeps its kernel."""
    if max(conv.input_dilations) > 1:
        return f"it is transposed with strides {conv.input_dilations}; only a kernel of stride 1 is cropped"
    live = _live(conv)
    if live.all():
        return f"all {conv.taps} taps of its kernel count: none is zero throughout"
    for axis, taps in enumerate(conv.kernel_shape):
        if _window(taps, _lines(live, axis), (taps, taps))[1] < taps:
            return (
                f"taps along axis {axis} are zero throughout, but its pads {conv.pads} would have to become "
                "negative to leave them out"
            )
    return "its taps that are zero throughout are neither at the border nor those between a lattice"


def _live(conv: Conv) -> Mask:
    """Which taps count, by the axes of the kernel."""
    return _any(support(conv), 0, 1, 2).reshape(conv.kernel_shape)


def _any(mask: Mask, *axes: int) -> Mask:
    found: Mask = np.any(mask, axis=axes)
    return found


def _lines(live: Mask, axis: int) -> npt.NDArray[np.intp]:
    """The places along an axis at which any tap counts."""
    return np.flatnonzero(_any(live, *(other for other in range(live.ndim) if other != axis)))


def _window(taps: int, wanted: npt.NDArray[Any], room: Ints) -> Ints:
    """First, count and step of the fewest taps that hold all that are wanted, the smallest step of them.

    At most `room` taps go at either end.
    """
    return min(
        (
            (first, (last - first) // step + 1, step)
            for first, last, step in _windows(taps, room)
            if all(first <= tap <= last and (tap - first) % step == 0 for tap in wanted)
        ),
        key=lambda window: (window[1], window[2], window[0]),
    )


def _windows(taps: int, room: Ints) -> Iterator[Ints]:
    """First, last and step of every window that leaves out at most `room` taps at either end."""
    for first in range(min(room[0], taps - 1) + 1):
        for last in range(max(first, taps - 1 - room[1]), taps):
            length = last - first
            yield from ((first, last, step) for step in range(1, length + 1) if length % step == 0)
            if not length:
                yield first, last, 1
