"""Outputs that are images -> small PNG files to look at."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

GAIN: Final = 10
"""How many times differences are amplified."""

# Smaller outputs are maps of features or of classes.
_LEAST_SIDE: Final = 32
_MOST_SIDE: Final = 200
# Outputs that are so much longer than wide are tables, such as boxes.
_MOST_ASPECT: Final = 8
# Images that models make overshoot their range a little.
_OVERSHOOT: Final = 0.25


def as_image(output: Array) -> Array | None:
    """One sample's output as an image `[h, w, 1 or 3]`, or None where it does not look like one.

    Args:
        output: `[c, h, w]` or `[h, w, c]` with one or three channels, or `[h, w]`.
    """
    if not np.issubdtype(output.dtype, np.floating) and output.dtype != np.uint8:
        return None
    if output.ndim == 2:
        output = output[None]
    if output.ndim != 3:
        return None
    if output.shape[0] in (1, 3):
        output = np.moveaxis(output, 0, -1)
    elif output.shape[2] not in (1, 3):
        return None
    short, long = sorted(output.shape[:2])
    pictured = short >= _LEAST_SIDE and long <= _MOST_ASPECT * short
    return output if pictured and bool(np.isfinite(output).all()) else None


def shown(before: Array, after: Array) -> tuple[Bytes, Bytes, Bytes]:
    """Two images and their amplified difference in 0 to 255, no side longer than 200.

    Both are scaled alike: from the usual range of images, 0 to 1, -1 to 1 or 0 to 255, that the first is in,
    else from its own.
    """
    low, high = _range(before)
    first, second = ((each.astype(np.float64) - low) / (high - low) for each in (before, after))
    return _bytes(first), _bytes(second), _bytes(GAIN * np.abs(second - first))


def png(image: Bytes) -> str:
    """An image `[h, w, 1 or 3]` as a PNG file in base64."""
    from PIL import Image  # few runs need it

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _range(image: Array) -> tuple[float, float]:
    least, most = float(image.min()), float(image.max())
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        slack = _OVERSHOOT * (high - low)
        if low - slack <= least and high - slack <= most <= high + slack:
            return low, high
    return least, most if most > least else least + 1.0


def _bytes(image: Array) -> Bytes:
    """The image in 0 to 255, averaged over blocks of pixels to the size that is shown."""
    block = -(-max(image.shape[:2]) // _MOST_SIDE)
    height, width = (size // block * block for size in image.shape[:2])
    blocks = image[:height, :width].reshape(height // block, block, width // block, block, -1)
    scaled: Bytes = np.rint(255 * np.clip(blocks.mean(axis=(1, 3)), 0.0, 1.0)).astype(np.uint8)
    return scaled
