"""Images as small PNG files, read back by another library."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from rewriter import pictures


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.mark.parametrize("channels", [1, 3])
def test_png(rng, channels):
    image = rng.integers(0, 256, (37, 53, channels)).astype(np.uint8)
    assert np.array_equal(decoded(pictures.png(image)).reshape(image.shape), image)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((3, 64, 48), (64, 48, 3)),
        ((1, 64, 48), (64, 48, 1)),
        ((64, 48, 3), (64, 48, 3)),
        ((64, 48), (64, 48, 1)),
        ((20, 64, 48), None),
        ((3, 8, 8), None),
        ((4420, 2), None),
        ((7600, 32), None),
        ((10,), None),
    ],
)
def test_what_is_an_image(rng, shape, shown):
    found = pictures.as_image(rng.random(shape, np.float32))
    assert (None if found is None else found.shape) == shown


def test_what_is_not_finite_or_counts_is_no_image(rng):
    image = rng.random((3, 64, 64), np.float32)
    image[0, 0, 0] = np.nan
    assert pictures.as_image(image) is None
    assert pictures.as_image(np.zeros((3, 64, 64), np.int64)) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (3.0, 9.0)])
def test_ranges(low, high):
    ramp = np.linspace(low, high, 100).reshape(1, 100, 1).repeat(40, 0)
    before, after, difference = pictures.shown(ramp, ramp + 0.01 * (high - low))
    assert (before.min(), before.max()) == (0, 255)
    assert np.all(after >= before)
    # a hundredth of the range, ten times
    assert np.all(np.abs(difference.astype(int) - 25.5) <= 1)


def test_large_images_are_averaged():
    fine = np.indices((500, 300)).sum(0)[..., None] % 2 * 1.0
    before, _, _ = pictures.shown(fine, fine)
    assert before.shape == (166, 100, 1)
    assert np.all(np.abs(before.astype(int) - 127.5) < 20)
