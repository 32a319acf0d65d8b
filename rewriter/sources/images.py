"""Folders of images, decoded one by one; whatever is in subfolders of subfolders counts, too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from rewriter.errors import OptionError, SampleError, brief, listed
from rewriter.samples import Feeds, InputSpec
from rewriter.sources import cutting, test_data
from rewriter.sources.labels import Label, read_labels
from rewriter.sources.preprocess import Preprocess, Settled, settle

SUFFIXES: Final = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)

# Samples stay in memory; of more than this only some are taken.
_MOST_BYTES = 2 << 30
# Modes of more than 8 bits a value; how these map to 0 to 255 nothing tells.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images that were found, and how they become samples.

    Attributes:
        files: Their paths, in order.
        labels: The label of each, or None where nothing tells.
        folder: Where they are.
        spec: The input that they are for.
        how: From pixels to the input.
        said: Whether it was said what channels they become, so that colours may be lost.
        notes: What was taken for granted.
    """

    files: tuple[Path, ...]
    labels: tuple[Label, ...] | None
    folder: Path
    spec: InputSpec
    how: Settled
    said: bool
    notes: tuple[str, ...]

    def read(self, where: str) -> Iterator[tuple[Feeds, Any]]:
        """Single samples with their labels, one image after the other.

        Raises:
            SampleError: An image cannot be decoded or does not fit; `where` begins the message.
        """
        together = self.spec.fixed_batch or 1
        for start in range(0, len(self.files) - together + 1, together):
            paths = self.files[start : start + together]
            arrays = [self._tensor(path, f"{where}, {self._name(path)}") for path in paths]
            if len({array.shape for array in arrays}) > 1:
                raise SampleError(
                    f"{where}, {self._name(paths[0])}: the model takes {together} images at once, of one "
                    "size; say --preprocess resize=HEIGHTxWIDTH"
                )
            feeds = {self.spec.name: np.concatenate(arrays)}
            target = None if self.labels is None else np.array(self.labels[start : start + together])
            yield from cutting.cut(
                feeds, target, (self.spec,), f"{where}, {self._name(paths[0])}", "", stacked=False
            )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _tensor(self, path: Path, place: str) -> npt.NDArray[Any]:
        return self.how.tensor(_pixels(path, self.how, place, self.said))


def is_folder(source: object) -> TypeGuard[str | Path]:
    """Whether this is a folder, other than one of ONNX test data."""
    return isinstance(source, str | Path) and Path(source).is_dir() and not test_data.is_folder(source)


def find(folder: Path, inputs: Sequence[InputSpec], said: Preprocess, where: str) -> Images:
    """The images of a folder, in the order of their names, with their labels as far as they have any.

    Raises:
        OptionError: The preprocessing does not fit the model, or says too little.
        SampleError: There are no images, they do not fit, or the labels are not those of the images.
    """
    shown = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files = [path for path in shown if path.suffix.lower() in SUFFIXES]
    if not files:
        raise SampleError(
            f"{where}: there are no images (.png, .jpg, …) in the folder, nor ONNX test data "
            "(test_data_set_0); check the path"
        )
    if len(inputs) != 1:
        raise SampleError(
            f"{where}: a folder of images feeds one input, the model takes "
            f"{listed(spec.name for spec in inputs)}; give script.py:function or an .npz"
        )
    spec = inputs[0]
    try:
        how, guessed = settle(said, spec)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error
    labels, told = read_labels(folder, files, where)
    notes = [note for note in (guessed, told) if note]
    first = how.tensor(_pixels(files[0], how, f"{where}, {files[0].name}", said.channels is not None))
    chosen = _spread(len(files), first.nbytes)
    if len(chosen) < len(files):
        size = len(files) * first.nbytes / 1e9
        notes.append(f"{len(chosen)} of {len(files)} images, evenly spread, for all would take {size:.3g} GB")
    if rest := len(chosen) % (spec.fixed_batch or 1):
        notes.append(f"the last {rest} images were left out, for the model takes {spec.fixed_batch} at once")
    return Images(
        tuple(files[index] for index in chosen),
        None if labels is None else tuple(labels[index] for index in chosen),
        folder,
        spec,
        how,
        said.channels is not None,
        tuple(notes),
    )


def _spread(count: int, each_bytes: int) -> range:
    """As many of so many images as fit, at even distances."""
    return range(0, count, max(1, -(-count * each_bytes // _MOST_BYTES)))


def _pixels(path: Path, how: Settled, place: str, said: bool) -> npt.NDArray[np.uint8]:
    """An image as it is put in: `[H, W, C]`, 0 to 255, of the size that the model takes."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened.copy()
    except (Exception, Image.DecompressionBombError) as error:  # decoders fail in many ways
        reason = brief(error).replace(str(path), path.name)
        raise SampleError(f"{place}: no image that can be decoded ({reason}); repair or remove it") from error
    if image.mode in _DEEP:
        raise SampleError(f"{place}: has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
    coloured = image.convert("RGB")
    if how.channels == "gray" and not said and _has_colours(coloured):
        raise SampleError(
            f"{place}: has colours, the model takes 1 channel; say --preprocess channels=gray to drop them"
        )
    image = image.convert("L") if how.channels == "gray" else coloured
    image = _cropped(_resized(image, how), how, place)
    found = (image.height, image.width)
    if any(wanted is not None and wanted != size for wanted, size in zip(how.size, found, strict=True)):
        wanted = "x".join("?" if size is None else str(size) for size in how.size)
        raise SampleError(
            f"{place}: comes as {found[0]}x{found[1]} (height x width), the model takes {wanted}; say "
            f"how it gets there: --preprocess resize={wanted}, or resize and crop"
        )
    pixels = np.asarray(image)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    return pixels[..., ::-1] if how.channels == "bgr" else pixels


def _has_colours(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(channel) for channel in image.split())
    return not (np.array_equal(red, green) and np.array_equal(red, blue))


def _resized(image: Image.Image, how: Settled) -> Image.Image:
    if how.resize is None:
        return image
    if isinstance(how.resize, int):
        shorter = min(image.size)
        width, height = (max(how.resize * side // shorter, 1) for side in image.size)
    else:
        height, width = how.resize
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, how: Settled, place: str) -> Image.Image:
    if how.crop is None:
        return image
    height, width = (how.crop, how.crop) if isinstance(how.crop, int) else how.crop
    if height > image.height or width > image.width:
        raise SampleError(
            f"{place}: {image.height}x{image.width} is too small to crop {height}x{width} from; "
            "say a larger --preprocess resize, or a smaller crop"
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
