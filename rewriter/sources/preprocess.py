"""How the pixels of an image become a model's input: what a user says of it, and what follows from the model.

    resize -> crop -> channels -> x · scale -> - mean -> / std -> layout

Pixels are 0 to 255 before `scale`; mean and std are one value, or one for each channel in the model's order.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rewriter.errors import OptionError, brief, listed
from rewriter.samples import InputSpec

CHANNELS: Final = {"gray": 1, "rgb": 3, "bgr": 3}
LAYOUTS: Final = ("NCHW", "NHWC")
DTYPES: Final = ("float32", "float16", "float64", "uint8", "int8", "int32")

Size = int | tuple[int, int]
"""Height and width; a single number is the shorter side for `resize`, a square for `crop`."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What is said of the way from pixels to inputs; None is left to the model, see `settle`.

    Attributes:
        resize: Bilinear, to this size.
        crop: This size from the middle.
        channels: "rgb", "bgr" or "gray".
        scale: What pixels are multiplied by: 1/255 for networks that take 0 to 1.
        mean: Subtracted after that.
        std: Divided by after that.
        layout: "NCHW" or "NHWC".
        dtype: What the result is rounded to.
    """

    resize: Size | None = None
    crop: Size | None = None
    channels: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | str | os.PathLike[str]) -> Preprocess:
        """From a mapping, whose values may be texts as on a command line, or from a TOML file of one.

        Raises:
            OptionError: A key or value makes no sense, or the file cannot be read.
        """
        if not isinstance(given, Mapping):
            return _of_file(Path(given))
        for key in given:
            if key not in _READ:
                raise OptionError(f"--preprocess {key}: there is no such step; there are {listed(_READ)}")
        return cls(**{key: _READ[key](key, value) for key, value in given.items()})


@dataclass(frozen=True, slots=True)
class Settled:
    """The whole way from pixels to an input; `size` is what the model fixes of height and width."""

    resize: Size | None
    crop: Size | None
    channels: str
    scale: float
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    layout: str
    dtype: np.dtype[Any]
    size: tuple[int | None, int | None]

    def tensor(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The input `[1, C, H, W]` or `[1, H, W, C]` of pixels `[H, W, C]`, in the order of `channels`."""
        values = (pixels * self.scale - self.mean) / self.std
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        ordered = values if self.layout == "NHWC" else np.moveaxis(values, -1, 0)
        return np.ascontiguousarray(ordered[np.newaxis], self.dtype)


def settle(said: Preprocess, spec: InputSpec) -> tuple[Settled, str]:
    """The way from pixels to an input, and in words what of it was not said but follows from the model.

    Layout and number of channels follow where one axis alone can be that of the channels, three of which are
    taken for RGB. How pixels are scaled does not follow from anything for networks that take real numbers.

    Raises:
        OptionError: Something must be said, or what was said does not fit the model.
    """
    shape = tuple(spec.shape)
    shown = f"input '{spec.name}' {[size if isinstance(size, int) else '?' for size in shape]}".replace(
        "'?'", "?"
    )
    if len(shape) != 4:
        raise OptionError(f"{shown} takes no images, which have 4 axes; give samples in another way")
    layout = said.layout or _layout(shape, said.channels, shown)
    count, height, width = shape[1:] if layout == "NCHW" else (shape[3], shape[1], shape[2])
    channels = said.channels or {1: "gray", 3: "rgb"}.get(count if isinstance(count, int) else 0)
    if channels is None:
        raise OptionError(f"{shown}: its channels are not known; say --preprocess channels=rgb, bgr or gray")
    number = CHANNELS[channels]
    if isinstance(count, int) and count != number:
        raise OptionError(
            f"--preprocess channels={channels} makes {number} channels, {shown} as {layout} takes {count}; "
            "say other channels or another layout"
        )
    dtype = np.dtype(said.dtype or spec.dtype)
    if said.scale is None and dtype.kind == "f":
        raise OptionError(
            f"{shown} may take any range of values; say --preprocess scale=1/255 if it takes 0 to 1, scale=1 "
            "if 0 to 255, with mean=… and std=… if it takes these subtracted and divided by"
        )
    told = {"layout": layout, "channels": channels, "dtype": str(dtype)}
    guessed = [f"{key}={value}" for key, value in told.items() if getattr(said, key) is None]
    return Settled(
        said.resize,
        said.crop,
        channels,
        1.0 if said.scale is None else said.scale,
        _each("mean", said.mean or (0.0,), number, channels),
        _each("std", said.std or (1.0,), number, channels),
        layout,
        dtype,
        tuple(size if isinstance(size, int) else None for size in (height, width)),  # type: ignore[arg-type]
    ), f"{', '.join(guessed)}, as the model's input suggests" if guessed else ""


def _layout(shape: tuple[int | str | None, ...], channels: str | None, shown: str) -> str:
    """Where the channels are, as far as the sizes of the axes tell."""
    numbers = {1, 3} if channels is None else {CHANNELS[channels]}
    first, last = (shape[axis] in numbers for axis in (1, 3))
    if first == last:
        raise OptionError(f"{shown}: its axis of channels is not known; say --preprocess layout=NCHW or NHWC")
    return "NCHW" if first else "NHWC"


def _each(key: str, values: tuple[float, ...], number: int, channels: str) -> npt.NDArray[np.float64]:
    if len(values) not in (1, number):
        raise OptionError(
            f"--preprocess {key}: {len(values)} values for {number} channels ({channels}); give one, or "
            f"one for each channel"
        )
    return np.broadcast_to(np.array(values, np.float64), (number,))


def _of_file(path: Path) -> Preprocess:
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"--preprocess '{path}': cannot be read: {error.strerror}; check the path"
        ) from error
    except ValueError as error:  # TOML's own exception, and text that is not UTF-8
        raise OptionError(f"--preprocess '{path}': is no TOML ({brief(error)}); mend it") from error
    try:
        return Preprocess.of(given)
    except OptionError as error:
        raise OptionError(f"{error} (in '{path}')") from error


def _number(key: str, value: Any) -> float:
    """A number, or a text of one or of a fraction such as 1/255."""
    try:
        above, _, below = str(value).partition("/")
        number = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise OptionError(f"--preprocess {key}: '{value}' is no number; give one, such as 0.5 or 1/255")
    return number


def _factor(key: str, value: Any) -> float:
    if (number := _number(key, value)) <= 0:
        raise OptionError(f"--preprocess {key}: {value} is not above 0; give a number that is")
    return number


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    return tuple(_number(key, each) for each in _entries(value, ","))


def _factors(key: str, value: Any) -> tuple[float, ...]:
    return tuple(_factor(key, each) for each in _entries(value, ","))


def _size(key: str, value: Any) -> Size:
    try:
        entries = _entries(value.replace("x", ",") if isinstance(value, str) else value, ",")
        sizes = [int(str(each)) for each in entries]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise OptionError(f"--preprocess {key}: '{value}' is no size; give 256, or height x width as 224x224")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def _entries(value: Any, separator: str) -> list[Any]:
    if isinstance(value, str):
        return value.split(separator)
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        found = [each for each in known if each.lower() == str(value).lower()]
        if not found:
            raise OptionError(f"--preprocess {key}: '{value}' is unknown; known are {', '.join(known)}")
        return found[0]

    return read


_READ: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "resize": _size,
    "crop": _size,
    "channels": _one_of(*CHANNELS),
    "scale": _factor,
    "mean": _numbers,
    "std": _factors,
    "layout": _one_of(*LAYOUTS),
    "dtype": _one_of(*DTYPES),
}
