"""What was read from a source, cut into single samples and checked against what the model takes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.errors import SampleError, brief, listed
from rewriter.samples import Feeds, InputSpec


def cut(
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
            f"{place}: missing input {listed(absent)}; found {listed(item)}, the model takes"
            f" {listed(names)}; name the arrays so"
        )
    extra = [name for name in item if name not in names]
    labels = [name for name in extra if name in (labels_key, "targets")]
    if target is None and len(labels) == 1:
        target = item[labels[0]]
        extra.remove(labels[0])
    if extra:
        raise SampleError(
            f"{place}: {listed(extra)} is no input; the model takes {listed(names)}, and targets go by"
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
        raise SampleError(f"{here} is not an array ({brief(error)}); give a numpy array") from error
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


def _show(shape: Sequence[int | str | None]) -> str:
    """A shape as it is read: [batch, 3, ?, ?]."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
