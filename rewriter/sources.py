"""Calibration and evaluation inputs: from what the user has to single samples that fit the model.

    .npz | script.py:function | iterable | callable  ->  feeds or (feeds, target)  ->  checked  ->  `Samples`

Whatever does not fit raises a `SampleError`: one line with the source, the input, what was found, what was
expected and how to mend it. Nothing is ever unpickled. Here sources are read; `cutting` cuts and checks.
"""

import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from rewriter import cutting
from rewriter.errors import OptionError, SampleError, brief, listed
from rewriter.samples import Feeds, InputSpec, Samples

Item = Mapping[str, Any] | tuple[Mapping[str, Any], Any]
"""What a script or an iterable yields: feeds, or feeds with their target."""

Source = str | Path | Iterable[Item] | Callable[[], Iterable[Item]]
"""Where samples come from; see `load`."""


def load(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    what: str = "calibration",
    limit: int | None = None,
    labels_key: str = "labels",
) -> Samples:
    """Single samples from `source`, checked against what the model takes.

    Args:
        source: one of
            a path to an `.npz` keyed by input name with the samples along the leading axis, and optionally
            `labels` or `targets` of the same length;
            `path/script.py:function`, a function without arguments that yields feeds (a dict of arrays, any
            batch size) or pairs of feeds and target;
            in Python also such an iterable, one feeds dictionary, or a callable that returns one of these.
        inputs: the model's inputs.
        what: the word for these samples in messages.
        limit: take the first so many and read no further.
        labels_key: the name of the array that holds the targets, besides `targets`.

    Batches are cut into single samples along axis 0 where every input has it in common; a fixed batch of b is
    cut into samples of b. An array with one axis more than the model fixes is taken as stacked samples. A
    target with the batch's leading axis is cut along. float64 becomes float32 where the model takes float32,
    integers change width where their values fit; no other type is converted.

    Raises:
        SampleError: the samples are missing or do not fit; the message says how to mend it.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"a limit of {limit} {what} samples leaves none; give at least 1")
    inputs = tuple(inputs)
    where = f"{what} samples {_name(source)}"
    pairs = list(islice(_read(source, inputs, where, what, labels_key), limit))
    if not pairs:
        raise SampleError(f"{where}: there are no samples in it; give at least one")
    feeds, targets = zip(*pairs, strict=True)
    missing = [i for i, target in enumerate(targets) if target is None]
    if missing and len(missing) < len(targets):
        raise SampleError(
            f"{where}: sample {missing[0]} has no target but others have; give every sample one, or none"
        )
    batch_names = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    joinable = len(batch_names) == 1 and all(s.shape and s.fixed_batch is None for s in inputs)
    return Samples(feeds, None if missing else targets, joinable)


def load_function(reference: str, *, what: str = "samples") -> Callable[..., Any]:
    """The function that `path/script.py:function` names; the script's folder joins the import path, last.

    Raises:
        SampleError: there is no such script or function, or the script cannot be run.
    """
    where = f"{what} {reference}"
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SampleError(f"{where}: there is no script {file}; check the path")
    module = ModuleType(f"rewriter_script_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise SampleError(f"{where}: the script raised {brief(error)}{_line(error)}; mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if isinstance(value, FunctionType)]
        found = f"it has {listed(own)}" if own else "define one that takes no arguments and yields feeds"
        raise SampleError(f"{where}: the script has no function '{name}'; {found}")
    return function  # type: ignore[no-any-return]


def _read(
    source: Source, inputs: tuple[InputSpec, ...], where: str, what: str, labels_key: str
) -> Iterator[tuple[Feeds, Any]]:
    """The single samples of any source with their targets, cut and checked."""
    if isinstance(source, str | Path):
        if not str(source).rpartition(":")[0].endswith(".py"):
            arrays = _read_npz(Path(source), where)
            yield from cutting.cut(arrays, None, inputs, where, labels_key, stacked=True)
            return
        source = load_function(str(source), what=f"{what} samples")
    for i, item in enumerate(_iterate(source, where)):
        place = f"{where}, item {i}"
        feeds, target = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feeds, Mapping):
            example = inputs[0].name if inputs else "name"
            raise SampleError(
                f"{place}: found {_type_name(item)}, expected a dict of arrays or a pair of one and its"
                f" target; yield {{'{example}': array}}"
            )
        yield from cutting.cut(feeds, target, inputs, place, labels_key, stacked=False)


def _read_npz(path: Path, where: str) -> Feeds:
    """Every array of the file; a file that is something else is told apart."""
    suffix = path.suffix.lower()
    if suffix == ".py":
        raise SampleError(f"{where}: the function is missing; name it as {path}:function")
    if not path.exists():
        raise SampleError(f"{where}: there is no such file; check the path")
    if suffix != ".npz" or not path.is_file():
        kind = "a folder" if path.is_dir() else f"a {suffix} file" if suffix else "a file without suffix"
        raise SampleError(
            f"{where}: cannot read {kind}; give script.py:function or an .npz, numpy.savez(path, input=array)"
        )
    if not zipfile.is_zipfile(path):
        raise SampleError(f"{where}: not an .npz file, or cut short; write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a broken archive fails in many ways
        raise SampleError(
            f"{where}: not an .npz of plain arrays ({brief(error)}); write it with numpy.savez"
        ) from error


def _iterate(source: Any, where: str) -> Iterator[Any]:
    """The items of an iterable or of what a callable returns; whatever they raise becomes one line."""
    try:
        made = source() if callable(source) else source
        if isinstance(made, Mapping) or _is_pair(made):
            made = [made]
        if isinstance(made, Iterable) and not isinstance(made, str | bytes):
            yield from made
            return
    except (Exception, SystemExit) as error:
        raise SampleError(f"{where}: the function raised {brief(error)}{_line(error)}; mend it") from error
    raise SampleError(f"{where}: found {_type_name(made)}, expected an iterable of feeds; yield them")


def _is_pair(source: Any) -> bool:
    """Whether this source is one pair of feeds and target, rather than a tuple of two feeds."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    return isinstance(source[0], Mapping) and not isinstance(source[1], Mapping | tuple)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"from {getattr(source, '__name__', None) or _type_name(source)}"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _line(error: BaseException) -> str:
    """Where in the user's code the exception arose, as far as it can be told."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    lines = [f.lineno for f in frames if f.filename == frames[0].filename]
    return f" ({Path(frames[0].filename).name}, line {lines[-1]})" if lines else ""
