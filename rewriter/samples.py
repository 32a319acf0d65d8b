"""Calibration and evaluation inputs: from what the user has to single samples that fit the model.

    .npz | script.py:function | iterable | callable  ->  feeds or (feeds, target)  ->  checked  ->  `Samples`

Whatever does not fit raises a `SampleError`: one line with the source, the input, what was found, what was
expected and how to mend it. Nothing is ever unpickled.
"""

import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.errors import OptionError, SampleError

Feeds = dict[str, npt.NDArray[Any]]
"""One batch of model inputs keyed by input name, batch first."""

Item = Mapping[str, Any] | tuple[Mapping[str, Any], Any]
"""What a script or an iterable yields: feeds, or feeds with their target."""

Source = str | Path | Iterable[Item] | Callable[[], Iterable[Item]]
"""Where samples come from; see `load`."""


# Activations take some ten to hundred times the memory of the inputs.
_BATCH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model takes at one input; a dimension that is a name or None is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The size of axis 0 where the model fixes it, else None (dynamic, or no axes at all)."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Single samples in order, each a batch of one (of b where the model's batch is fixed at b).

    Attributes:
        feeds: one read-only feeds dictionary a sample.
        targets: what is right for each sample (a label, an image, …), or None where nothing is known.
        joinable: whether samples may be joined along axis 0, i.e. every input's axis 0 is a dynamic batch.
    """

    feeds: tuple[Feeds, ...]
    targets: tuple[Any, ...] | None = None
    joinable: bool = True

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.feeds):
            raise ValueError(f"{len(self.feeds)} samples with {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.feeds)

    def subset(self, indices: Iterable[int]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        targets = None if self.targets is None else tuple(self.targets[i] for i in chosen)
        return Samples(tuple(self.feeds[i] for i in chosen), targets, self.joinable)

    def batches(self, size: int | None = None) -> Iterator[tuple[Feeds, list[Any] | None]]:
        """Batches of at most `size` neighbouring samples of equal shapes, in order, with their targets.

        Samples that may not be joined come one by one, as they are. Without a size it is what is quick to
        run: up to 16, fewer where they are large.
        """
        if size is None:
            largest = max(sum(array.nbytes for array in feeds.values()) for feeds in self.feeds)
            size = min(max(_BATCH_BYTES // max(largest, 1), 1), 16)
        if size < 1:
            raise ValueError(f"a batch holds at least one sample, not {size}")
        shapes_of = [{name: array.shape for name, array in feeds.items()} for feeds in self.feeds]
        start = 0
        while start < len(self):
            shapes = shapes_of[start]
            stop = start + 1
            if self.joinable and all(shape[:1] == (1,) for shape in shapes.values()):
                last = min(start + size, len(self))
                while stop < last and shapes_of[stop] == shapes:
                    stop += 1
            group = self.feeds[start:stop]
            feeds = {name: np.concatenate([f[name] for f in group]) for name in shapes}
            yield (
                feeds if len(group) > 1 else dict(group[0]),
                None if self.targets is None else list(self.targets[start:stop]),
            )
            start = stop


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


def split(
    samples: Samples, fractions: Sequence[float], seed: int, *, what: str = "calibration"
) -> tuple[Samples, ...]:
    """Disjoint random parts that together hold every sample, sized as `fractions`, none of them empty.

    The same seed gives the same parts; within a part the samples keep their order.

    Raises:
        SampleError: there are fewer samples than parts.
    """
    weights = np.asarray(fractions, dtype=np.float64)
    if weights.size == 0 or not np.all(np.isfinite(weights)) or np.any(weights <= 0):
        raise OptionError(f"samples cannot be split by {list(fractions)}; give positive fractions")
    n, parts = len(samples), len(weights)
    if n < parts:
        raise SampleError(
            f"{what} samples: found {n}, but {parts} disjoint parts need at least {parts}; give more samples"
        )
    exact = n * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    while counts.min() == 0:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    order = np.random.default_rng(seed).permutation(n)
    return tuple(samples.subset(np.sort(part)) for part in np.split(order, np.cumsum(counts)[:-1]))


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
        raise SampleError(f"{where}: the script raised {_brief(error)}{_line(error)}; mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if isinstance(value, FunctionType)]
        found = f"it has {_listed(own)}" if own else "define one that takes no arguments and yields feeds"
        raise SampleError(f"{where}: the script has no function '{name}'; {found}")
    return function  # type: ignore[no-any-return]


# From a source to single samples


def _read(
    source: Source, inputs: tuple[InputSpec, ...], where: str, what: str, labels_key: str
) -> Iterator[tuple[Feeds, Any]]:
    """The single samples of any source with their targets, cut and checked."""
    if isinstance(source, str | Path):
        if not str(source).rpartition(":")[0].endswith(".py"):
            arrays = _read_npz(Path(source), where)
            yield from _take(arrays, None, inputs, where, labels_key, stacked=True)
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
        yield from _take(feeds, target, inputs, place, labels_key, stacked=False)


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
            f"{where}: not an .npz of plain arrays ({_brief(error)}); write it with numpy.savez"
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
        raise SampleError(f"{where}: the function raised {_brief(error)}{_line(error)}; mend it") from error
    raise SampleError(f"{where}: found {_type_name(made)}, expected an iterable of feeds; yield them")


def _take(
    item: Mapping[str, Any],
    target: Any,
    inputs: tuple[InputSpec, ...],
    place: str,
    labels_key: str,
    *,
    stacked: bool,
) -> Iterator[tuple[Feeds, Any]]:
    """One item cut into single samples; `stacked` says that axis 0 must count samples."""
    names = [spec.name for spec in inputs]
    absent = [name for name in names if name not in item]
    if absent:
        raise SampleError(
            f"{place}: missing input {_listed(absent)}; found {_listed(item)}, the model takes"
            f" {_listed(names)}; name the arrays so"
        )
    extra = [name for name in item if name not in names]
    labels = [name for name in extra if name in (labels_key, "targets")]
    if target is None and len(labels) == 1:
        target = item[labels[0]]
        extra.remove(labels[0])
    if extra:
        raise SampleError(
            f"{place}: {_listed(extra)} is no input; the model takes {_listed(names)}, and targets go by"
            f" '{labels_key}' or 'targets', once; leave the rest out"
        )
    arrays = {spec.name: _convert(item[spec.name], spec, place, owned=stacked) for spec in inputs}
    rows = _rows(arrays, inputs)
    count = _count(arrays, rows)
    if count is None and stacked:
        raise SampleError(f"{place}: {_explain_count(arrays, inputs)}")
    if count is None:  # no batch axis in common: one sample as it stands
        _check_shapes(arrays, arrays, inputs, place)
        yield arrays, target
        return
    targets = _cut_target(target, count, max(1, *rows.values()), place)
    for i in range(count):
        feeds = {n: a[i * rows[n] : (i + 1) * rows[n]] if rows[n] else a[i] for n, a in arrays.items()}
        if i == 0:
            _check_shapes(feeds, arrays, inputs, place)
        yield feeds, targets[i]


def _rows(arrays: Feeds, inputs: tuple[InputSpec, ...]) -> dict[str, int]:
    """How many rows of axis 0 make one sample: the model's batch, or 0 where samples are stacked on top."""
    plain = [spec for spec in inputs if arrays[spec.name].ndim == len(spec.shape)]
    block = max((spec.fixed_batch or 1 for spec in plain), default=1)
    return {spec.name: (spec.fixed_batch or block) if spec in plain else 0 for spec in inputs}


def _count(arrays: Feeds, rows: dict[str, int]) -> int | None:
    """The number of samples where all inputs agree on it, else None."""
    if any(array.ndim == 0 or len(array) % (rows[name] or 1) for name, array in arrays.items()):
        return None
    counts = {len(array) // (rows[name] or 1) for name, array in arrays.items()}
    return counts.pop() if len(counts) == 1 else None


def _convert(value: Any, spec: InputSpec, place: str, *, owned: bool) -> npt.NDArray[Any]:
    """The value, read-only, in the model's type; copied unless owned: a generator may reuse its buffer."""
    here = f"{place}: input '{spec.name}'"
    try:
        found = np.asarray(value)
    except Exception as error:
        raise SampleError(f"{here} is not an array ({_brief(error)}); give a numpy array") from error
    kinds = found.dtype.kind + spec.dtype.kind
    if found.dtype != spec.dtype and kinds not in ("ff", "ii", "iu", "ui", "uu", "UO"):
        raise SampleError(
            f"{here} is {found.dtype}, expected {spec.dtype}; convert with .astype('{spec.dtype}')"
        )
    may_stack = spec.fixed_batch is not None or not spec.shape
    if found.ndim != len(spec.shape) and not (may_stack and found.ndim == len(spec.shape) + 1):
        raise SampleError(
            f"{here} has shape {_show(found.shape)}, expected {_show(spec.shape)};"
            " reshape it, samples along axis 0"
        )
    with np.errstate(over="ignore"):
        array = np.array(found, dtype=spec.dtype, order="C", copy=None if owned else True)
    array.flags.writeable = False
    if spec.dtype.kind in "iu" and not np.array_equal(array, found):
        raise SampleError(f"{here} holds {found.dtype} values that do not fit into {spec.dtype}; clip them")
    if spec.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        kind = "NaN" if np.isnan(array).any() else f"infinity (as {spec.dtype})"
        first = f", the first in sample {bad[0][0]}" if array.ndim else ""
        raise SampleError(f"{here} holds {kind} ({len(bad)} values{first}); repair or drop those samples")
    return array


def _check_shapes(feeds: Feeds, arrays: Feeds, inputs: tuple[InputSpec, ...], place: str) -> None:
    """Raises where a sample has another shape than the model takes, or one dimension name has two sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        for size, expected in zip(feeds[spec.name].shape, spec.shape, strict=True):
            if isinstance(expected, int) and size != expected:
                found = _show(arrays[spec.name].shape)
                raise SampleError(
                    f"{place}: input '{spec.name}' has shape {found}, expected {_show(spec.shape)};"
                    " resize or transpose the samples"
                )
            if isinstance(expected, str):
                known, owner = sizes.setdefault(expected, (size, spec.name))
                if known != size:
                    raise SampleError(
                        f"{place}: dimension '{expected}' is {known} in input '{owner}' and {size} in input"
                        f" '{spec.name}'; give both the same"
                    )


def _cut_target(target: Any, count: int, block: int, place: str) -> list[Any]:
    """One target a sample: cut along the leading axis where it has the batch's length, else as it is."""
    if target is None:
        return [None] * count
    if isinstance(target, np.ndarray):
        target = target.copy()  # a generator may reuse its buffer
    try:
        length = None if isinstance(target, str | bytes | Mapping) else len(target)
    except TypeError:
        length = None
    if length == count:
        return [target[i] for i in range(count)]
    if length == count * block:
        return [target[i * block : (i + 1) * block] for i in range(count)]
    if count == 1:
        return [target]
    found = "no leading axis" if length is None else f"{length} entries"
    raise SampleError(
        f"{place}: {count * block} samples, but the target has {found}; give one target a sample"
    )


def _is_pair(source: Any) -> bool:
    """Whether this source is one pair of feeds and target, rather than a tuple of two feeds."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    return isinstance(source[0], Mapping) and not isinstance(source[1], Mapping | tuple)


# Words for messages


def _explain_count(arrays: Feeds, inputs: tuple[InputSpec, ...]) -> str:
    """Why the arrays of an .npz do not line up as samples."""
    for spec in inputs:
        array, batch = arrays[spec.name], spec.fixed_batch
        if array.ndim == 0:
            return f"input '{spec.name}' is a single value; give one a sample, along axis 0"
        if batch and array.ndim == len(spec.shape) and len(array) % batch:
            rest = len(array) % batch
            return (
                f"input '{spec.name}' has {len(array)} rows, the model's batch is {batch}; leave out {rest}"
            )
    lengths = ", ".join(f"'{name}' {len(array)}" for name, array in arrays.items())
    return f"the inputs differ in their number of samples ({lengths}); give every input the same number"


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"from {getattr(source, '__name__', None) or _type_name(source)}"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _show(shape: Sequence[int | str | None]) -> str:
    """A shape as it is read: [batch, 3, ?, ?]."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _brief(error: BaseException) -> str:
    """An exception as one line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException) -> str:
    """Where in the user's code the exception arose, as far as it can be told."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    lines = [f.lineno for f in frames if f.filename == frames[0].filename]
    return f" ({Path(frames[0].filename).name}, line {lines[-1]})" if lines else ""
