"""Weights in a file beside their model: read, and split off where one file cannot hold them.

A model's file may name other files and places in them. None is read that is not in the model's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import onnx
from google.protobuf.unknown_fields import UnknownFieldSet

from rewriter.errors import ModelError
from rewriter.graph.model import Model
from rewriter.graph.scope import graphs, tensors
from rewriter.serialized import Parts, Serialized

MOST_BYTES: Final = (1 << 31) - 1
"""What protobuf, and with it one file, can hold."""

SIZE_THRESHOLD: Final = 1024
"""Smaller tensors stay in the model's own file: shapes and axes are looked at while it is read."""

# Tensors of this size on begin where any system can map them into memory.
_MAPPED: Final = 1 << 20
_PAGE: Final = 1 << 16
# From so many bytes of weights on a copy of them is worth avoiding.
_MUCH: Final = 1 << 27
_BITS: Final = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's data lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def read_data(proto: onnx.ModelProto, folder: Path, label: str) -> frozenset[Path]:
    """Puts the data of all external tensors into the model, in place, and returns the files they were in.

    Args:
        proto: The model.
        folder: Where its file lies.
        label: What messages call the model.

    Raises:
        ModelError: A data file is missing, too short or outside the folder, or an entry makes no sense.
    """
    found = set()
    for tensor in tensors(proto):
        if is_external(tensor):
            what = f"tensor {tensor.name!r} of {label}"
            place = _place(tensor, what)
            path = _inside(folder, place.location, what)
            tensor.raw_data = _read(path, place, what)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            found.add(path.resolve())
    return frozenset(found)


def split(proto: onnx.ModelProto, location: str | None = None, at_least: int = SIZE_THRESHOLD) -> Parts:
    """A model and its weights of at least so many bytes as two files.

    Args:
        proto: The model, which stays as it is.
        location: What the name of the data file begins with; a digest of the data comes behind it, so that
            other data have another name. The plain name `weights` where None.
        at_least: Smaller tensors stay with the model.

    Raises:
        ModelError: What stays with the model is more than one file can hold.
    """
    at_least = max(at_least, 1)  # what has no raw data is stored in another way
    large = [tensor for tensor in _initializers(proto) if len(tensor.raw_data) >= at_least]
    places, end = [], 0
    for tensor in large:
        size = len(tensor.raw_data)
        start = -(-end // _PAGE) * _PAGE if size >= _MAPPED else end
        places.append((start, size))
        end = start + size

    def data() -> Iterator[bytes]:
        position = 0
        for tensor, (start, size) in zip(large, places, strict=True):
            yield bytes(start - position)
            yield bytes(tensor.raw_data)
            position = start + size

    if location is None:
        name = "weights"
    else:
        digest = hashlib.sha256()
        for chunk in data():
            digest.update(chunk)
        name = f"{location}.{digest.hexdigest()[:16]}.data"
    copy, lean = _lean(proto, at_least)
    for tensor, (start, size) in zip(lean, places, strict=True):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", start), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    model = in_one(copy)
    if model is None:
        raise ModelError("what the model holds besides its weights is too large for one file (2 GB)")
    return Parts(model, {name: data} if large else {})


def serialize(model: Model) -> Serialized:
    """The model as it is deployed: in one piece, or in parts where one file cannot hold it."""
    data = whole(model)
    return split(model.proto) if data is None else data


def loadable(model: Model) -> Serialized:
    """The model for a session in this process: in parts where the weights in one piece would take much more.

    ONNX Runtime maps the weights of a file of their own into memory, of others it makes copies.
    """
    return serialize(model) if weight_bytes(model) < _MUCH else split(model.proto)


def whole(model: Model) -> bytes | None:
    """The serialised model in one piece, the file's own bytes where nothing was edited; None if too large."""
    return in_one(model.proto) if model.source is None else model.source


def weight_bytes(model: Model) -> int:
    """About what the weights of a model take in a session, with four bytes for each value."""
    return sum(4 * int(prod(tensor.dims)) for tensor in model.proto.graph.initializer)


def in_one(proto: onnx.ModelProto) -> bytes | None:
    """The serialised model in one piece, or None where one file cannot hold it."""
    try:
        data = bytes(proto.SerializeToString())
    except Exception:  # protobuf's own exception differs between its implementations
        return None
    return data if len(data) <= MOST_BYTES else None


def byte_size(tensor: onnx.TensorProto) -> int:
    """The bytes that a tensor's type and shape ask for.

    Raises:
        ValueError: It has no type of numbers, or a negative size.
    """
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if min(tensor.dims, default=1) < 0 or name in ("UNDEFINED", "STRING"):
        raise ValueError(f"a {name.lower()} tensor of the shape {list(tensor.dims)} has no data")
    bits = _BITS.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(-(-prod(tensor.dims) * bits // 8))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's data lie: in a file, so many bytes from an offset on."""

    location: str
    offset: int
    length: int


def _place(tensor: onnx.TensorProto, what: str) -> _Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        wanted = byte_size(tensor)
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
        if offset < 0 or length != wanted:
            raise ValueError(f"offset {offset} and length {length}, but its shape takes {wanted} bytes")  # noqa: TRY301
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the data of {what} in the file '{location}' make no sense: {reason}") from error
    return _Place(location, offset, length)


def _inside(folder: Path, location: str, what: str) -> Path:
    """The file that a location names, which must be in the folder, links followed.

    Raises:
        ModelError: It is not, or no file is there.
    """
    pure = (PurePosixPath(location), PureWindowsPath(location))
    leaves = any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in pure)
    path = folder / location
    try:
        leaves = leaves or not path.resolve().is_relative_to(folder.resolve())
        missing = not leaves and not path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        missing = True
    if leaves:
        raise ModelError(
            f"the data file '{location}' of {what} is outside the model's folder and is not read; "
            "put it beside the model"
        )
    if missing:
        raise ModelError(f"the data file '{path}' of {what} is missing; put it beside the model")
    return path


def _read(path: Path, place: _Place, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if place.offset + place.length > size:
                raise ModelError(
                    f"the data file '{path}' of {what} is too short: it has {size} bytes, and {place.length} "
                    f"are needed from byte {place.offset} on; export or copy it anew"
                )
            file.seek(place.offset)
            return file.read(place.length)
    except OSError as error:
        raise ModelError(
            f"cannot read the data file '{path}' of {what}: {error.strerror or error}"
        ) from error


def _lean(proto: onnx.ModelProto, at_least: int) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of a model without the raw data of initializers of so many bytes, and these initializers.

    Field by field, so that the data, which are most of a model, are never copied; as a whole where a message
    has fields of a later version of ONNX, which only so are kept.
    """
    copy = onnx.ModelProto()
    graph = proto.graph
    if any(len(UnknownFieldSet(message)) for message in (proto, graph, *graph.initializer)):
        copy.CopyFrom(proto)
    else:
        _copy_fields(proto, copy, without="graph")
        _copy_fields(graph, copy.graph, without="initializer")
        for tensor in graph.initializer:
            large = len(tensor.raw_data) >= at_least
            _copy_fields(tensor, copy.graph.initializer.add(), without="raw_data" if large else "")
    lean = []
    for tensor, original in zip(_initializers(copy), _initializers(proto), strict=True):
        if len(original.raw_data) >= at_least:
            tensor.ClearField("raw_data")
            lean.append(tensor)
    return copy, lean


def _copy_fields(message: Any, copy: Any, without: str) -> None:
    for field, value in message.ListFields():
        if field.name == without:
            continue
        if hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)


def _initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors that a runtime reads from other files."""
    for graph in graphs(proto):
        yield from graph.initializer
