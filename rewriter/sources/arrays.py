"""Files of arrays: `.npz` keyed by input name, and `.npy` for models of one input."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewriter.errors import SampleError, brief, listed
from rewriter.samples import Feeds, InputSpec


def read(path: Path, inputs: Sequence[InputSpec], where: str) -> Feeds:
    """Every array of the file, samples along axis 0, by name.

    Raises:
        SampleError: it cannot be read, or is something else; `where` begins the message.
    """
    suffix = path.suffix.lower()
    if suffix == ".py":
        raise SampleError(f"{where}: the function is missing; name it as {path}:function")
    if not path.exists():
        raise SampleError(f"{where}: there is no such file; check the path")
    if path.is_file() and suffix == ".npz":
        return _read_npz(path, where)
    if path.is_file() and suffix == ".npy":
        return _read_npy(path, inputs, where)
    kind = f"a {suffix} file" if suffix else "a file without suffix"
    raise SampleError(
        f"{where}: cannot read {kind}; give a folder of images, script.py:function, an .npy or an .npz,"
        " numpy.savez(path, input=array)"
    )


def _read_npz(path: Path, where: str) -> Feeds:
    if not zipfile.is_zipfile(path):
        raise SampleError(f"{where}: not an .npz file, or cut short; write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a broken archive fails in many ways
        raise SampleError(
            f"{where}: not an .npz of plain arrays ({brief(error)}); write it with numpy.savez"
        ) from error


def _read_npy(path: Path, inputs: Sequence[InputSpec], where: str) -> Feeds:
    names = [spec.name for spec in inputs]
    if len(names) != 1:
        raise SampleError(
            f"{where}: an .npy holds one input, the model takes {listed(names)}; give an .npz of all"
        )
    try:
        with path.open("rb") as file:  # numpy.load would try pickles and archives, too
            return {names[0]: np.lib.format.read_array(file, allow_pickle=False)}
    except Exception as error:  # likewise
        raise SampleError(
            f"{where}: not an .npy of a plain array, or cut short; write it with numpy.save"
        ) from error
