"""What a kernel sees: its patches at some positions of its output, and what it makes of them there.

Of the stretched input of a transposed convolution most values are zeros at places that are known: there the
patches come phase by phase, without them.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.conv import Array, Conv, Ints

Positions = list[npt.NDArray[np.intp]]

# Patches for each value of a patch, within the work that their products may take. Those of one map resemble
# each other: with 60 of them instead of 20 the outputs of ResNet-20 in the same forms drift 5 % less, with
# 200 as much (measured).
_FEWEST, _MOST = 20, 60
_WORK = 6e10


def wanted(conv: Conv) -> int:
    """How many patches the fit of a site wants."""
    groups, _, size = conv.matrix.shape
    for_each: float = min(max(_WORK / (groups * size**3), _FEWEST), _MOST)
    return int(size * for_each)


def draw(conv: Conv, shapes: Sequence[Ints], seed: int) -> Positions:
    """Output positions of a site, flat over n and the map, as many as its fit wants, one array a batch."""
    sizes = [shape[0] * prod(conv.out_size(shape[2:])) for shape in shapes]
    share = min(1.0, wanted(conv) / max(sum(sizes), 1))
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(size, max(1, round(share * size)), replace=False)) for size in sizes]


def seen(conv: Conv, batch: Array, positions: npt.NDArray[np.intp]) -> Array:
    """What the kernel sees at some output positions of a batch `[N, C, ...]`: `[G, P, K]`, never float16."""
    axes = len(conv.kernel_shape)
    out_size = conv.out_size(batch.shape[2:])
    sample, *place = np.unravel_index(positions, (len(batch), *out_size))
    if _dilated(conv):
        return _by_group(conv, _between_zeros(conv, batch, sample, place, _all_taps(conv)))
    pads = [(0, 0), (0, 0), *zip(conv.pads[:axes], conv.pads[axes:], strict=True)]
    padded = np.pad(batch, pads) if any(conv.pads) else batch
    steps = padded.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (*padded.shape[:2], *out_size, *conv.kernel_shape),
        (
            *padded.strides[:2],
            *(step * stride for step, stride in zip(steps, conv.strides, strict=True)),
            *(step * dilation for step, dilation in zip(steps, conv.dilations, strict=True)),
        ),
        writeable=False,
    )
    where: tuple[Any, ...] = (sample, slice(None), *place)
    return _by_group(conv, windows[where])


def _by_group(conv: Conv, seen: Array) -> Array:
    """What is seen `[P, C, *kernel]` as `[G, P, K]`, never float16."""
    seen = seen.reshape(len(seen), conv.group, seen[0].size // conv.group).swapaxes(0, 1)
    return np.ascontiguousarray(seen, np.result_type(seen, np.float32))


def _all_taps(conv: Conv) -> list[npt.NDArray[np.intp]]:
    return [np.arange(taps) for taps in conv.kernel_shape]


def _between_zeros(
    conv: Conv,
    batch: Array,
    sample: npt.NDArray[np.intp],
    place: Sequence[npt.NDArray[np.intp]],
    taps: Sequence[npt.NDArray[np.intp]],
) -> Array:
    """What some taps of the kernel see at P places of a dilated input, `[P, C, *taps]`."""
    axes = len(taps)
    inside: Any = True
    indices = []
    for axis, own in enumerate(taps):
        shape = (len(sample), *(len(own) if axis == other else 1 for other in range(axes)))
        at = place[axis][:, None] + own * conv.dilations[axis] - conv.pads[axis]
        index, off = np.divmod(at.reshape(shape), conv.input_dilations[axis])
        inside = inside & (off == 0) & (index >= 0) & (index < batch.shape[2 + axis])
        indices.append(index.clip(0, batch.shape[2 + axis] - 1))
    where: tuple[Any, ...] = (sample.reshape(-1, *(1,) * axes), slice(None), *indices)
    # the channels come last
    return np.moveaxis(batch[where] * inside[..., None], -1, 1)


def _phases(
    conv: Conv, batch: Array, positions: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.intp], Array, int]]:
    """Positions of a dilated input by phases of the output: which, what is seen there, and the phase.

    At each phase the same taps meet samples and all others zeros, which are left out.
    """
    sample, *place = np.unravel_index(positions, (len(batch), *conv.out_size(batch.shape[2:])))
    steps = conv.input_dilations
    phases = np.ravel_multi_index([at % step for at, step in zip(place, steps, strict=True)], steps)
    for phase in np.unique(phases):
        (which,) = np.nonzero(phases == phase)
        seen = _between_zeros(
            conv, batch, sample[which], [at[which] for at in place], _taps_met(conv, int(phase))
        )
        yield which, _by_group(conv, seen), int(phase)


def phase_columns(conv: Conv) -> list[npt.NDArray[np.intp]]:
    """Which values of a patch meet samples of a dilated input, not the zeros between, at each phase.

    Together they are all values, none of them twice.
    """
    numbered = np.arange(conv.matrix.shape[2]).reshape(conv.weight.shape[1:])
    channels = np.arange(len(numbered))
    return [
        numbered[np.ix_(channels, *_taps_met(conv, phase))].reshape(-1)
        for phase in range(prod(conv.input_dilations))
    ]


def _taps_met(conv: Conv, phase: int) -> list[npt.NDArray[np.intp]]:
    """The taps along each axis that meet samples of a dilated input at a phase of the output."""
    steps = conv.input_dilations
    residues = np.unravel_index(phase, steps)
    return [
        own[(first + own * dilation - pad) % step == 0]
        for own, first, dilation, pad, step in zip(
            _all_taps(conv), residues, conv.dilations, conv.pads[: len(steps)], steps, strict=True
        )
    ]


def rows(output: Array, positions: npt.NDArray[np.intp]) -> Array:
    """A site's output `[N, M, ...]` at the same positions: `[P, M]`, never float16."""
    flat = output.reshape(*output.shape[:2], -1)
    sample, place = np.divmod(positions, flat.shape[2])
    return flat[sample, :, place].astype(np.result_type(flat, np.float32), copy=False)


def pairs(
    conv: Conv, batch: Array, positions: npt.NDArray[np.intp], wanted: Array
) -> Iterator[tuple[Array, Array, int]]:
    """Patches `[G, P, k]` at some positions, the outputs wanted there `[P, M]` as `[G, P, M/G]`, their phase.

    The patches have all values but where a dilated input leaves most of them at zero.
    """
    y = wanted.reshape(len(positions), conv.group, wanted.shape[1] // conv.group).swapaxes(0, 1)
    if _dilated(conv):
        for which, x, phase in _phases(conv, batch, positions):
            yield x, y[:, which], phase
    else:
        yield seen(conv, batch, positions), y, 0


def _dilated(conv: Conv) -> bool:
    return max(conv.input_dilations) > 1
