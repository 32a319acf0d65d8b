"""Folders of ONNX test data: `test_data_set_N/input_K.pb` in the order of the model's inputs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy.typing as npt

from rewriter import graph
from rewriter.errors import SampleError
from rewriter.samples import Feeds, InputSpec

_OUTPUTS = ":outputs"


def is_folder(source: object) -> TypeGuard[str | Path]:
    """Whether this is a folder of `test_data_set_N`, or one of them, `:outputs` behind it or not."""
    return isinstance(source, str | Path) and bool(_sets(_split(source)[0]))


def read(
    source: str | Path, inputs: Sequence[InputSpec], where: str
) -> Iterator[tuple[str, Feeds, npt.NDArray[Any] | None]]:
    """The place, the feeds and the target of every data set, in the order of their numbers.

    The target is the output where `folder:outputs` asks for it, else None.

    Raises:
        SampleError: a file is missing or cannot be read; `where` begins the message.
    """
    folder, outputs = _split(source)
    for data_set in _sets(folder):
        place = f"{where}, {data_set.name}" if data_set != folder else where
        found = _numbered(data_set, "input")
        if len(found) != len(inputs):
            raise SampleError(
                f"{place}: the model takes {len(inputs)} inputs, and input_0.pb to input_{len(inputs) - 1}.pb"
                f" should hold them; found {len(found)} in unbroken order"
            )
        feeds = {spec.name: _tensor(path, place) for spec, path in zip(inputs, found, strict=True)}
        target = None
        if outputs:
            if len(given := _numbered(data_set, "output")) != 1:
                raise SampleError(
                    f"{place}: a target is one output, output_0.pb; found {len(given)}; leave {_OUTPUTS} out,"
                    " or give script.py:function"
                )
            target = _tensor(given[0], place)
        yield place, feeds, target


def _split(source: str | Path) -> tuple[Path, bool]:
    """The folder, and whether its outputs are asked for."""
    text = str(source)
    asked = text.endswith(_OUTPUTS) and not Path(text).exists()
    return Path(text.removesuffix(_OUTPUTS) if asked else text), asked


def _sets(folder: Path) -> list[Path]:
    """The data sets of a folder, which may be one itself."""
    if not folder.is_dir():
        return []
    numbers = {path: re.fullmatch(r"test_data_set_(\d+)", path.name) for path in folder.iterdir()}
    found = {path: int(match[1]) for path, match in numbers.items() if match and path.is_dir()}
    if found:
        return sorted(found, key=found.__getitem__)
    return [folder] if (folder / "input_0.pb").is_file() else []


def _numbered(folder: Path, word: str) -> list[Path]:
    """The files `word_0.pb`, `word_1.pb` and so on, as far as they are there."""
    found: list[Path] = []
    while (path := folder / f"{word}_{len(found)}.pb").is_file():
        found.append(path)
    return found


def _tensor(path: Path, place: str) -> npt.NDArray[Any]:
    try:
        return graph.read_tensor(path)
    except (OSError, ValueError) as error:
        raise SampleError(
            f"{place}: {path.name} is no readable ONNX tensor ({error}); copy or export it anew"
        ) from error
