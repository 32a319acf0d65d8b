"""Models from files and to files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from rewriter.errors import ModelError
from rewriter.files import Content, PathLike, check_output, write
from rewriter.graph.external import SIZE_THRESHOLD, is_external, read_data, split, whole
from rewriter.graph.model import Model
from rewriter.graph.scope import names, tensors
from rewriter.graph.soundness import check_sound
from rewriter.serialized import Parts

Source = str | os.PathLike[str] | bytes | onnx.ModelProto
"""Where a model comes from: a path, the bytes of a file, or a model in memory."""

_DIGEST: Final = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a model's weights are written to.

    Attributes:
        external: Whether they go into a file beside the model even where one file can hold all.
        threshold: Tensors of fewer bytes stay in the model's own file in any case.
    """

    external: bool = False
    threshold: int = SIZE_THRESHOLD


def load(source: Source) -> Model:
    """The model, with the weights that lie in files beside it.

    It need not pass ONNX's checker: some models that it rejects run all the same.

    Raises:
        ModelError: There is no such file, it is no ONNX model or part of one, or a data file is missing.
    """
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return _with_data(_checked(Model(copy)))
    path = None if isinstance(source, bytes) else Path(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    label = "the model" if path is None else f"'{path}'"
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own exception
        raise ModelError(
            f"{label} is not an ONNX model, or only a part of one: export or copy it anew"
        ) from error
    # Most files are what protobuf would write itself: then there is no need to keep them twice. They are
    # compared by their digests, for a large file is not to be there three times.
    digest = hashlib.sha256(data).digest()
    del data
    if hashlib.sha256(proto.SerializeToString()).digest() == digest:
        kept = None
    else:
        kept = source if isinstance(source, bytes) else _read(Path(source))
    return _with_data(_checked(Model(proto, path, kept)))


def save(
    model: Model,
    path: PathLike,
    storage: Storage | None = None,
    others: Mapping[PathLike, Content] | None = None,
) -> None:
    """Writes a model and files that belong to it: all of them or none, each whole or not at all.

    Data beside the model have a name that no other data have, and the model takes its name last: whoever
    looks, at any time, finds the old model with its data or the new one with its own. The old data are
    removed afterwards, unless the model was read from them.

    Args:
        model: The model.
        path: Where it is to go.
        storage: Whether its weights go into a file beside it; only where one file cannot hold it if None.
        others: Further files by their paths.

    Raises:
        ModelError: What is not in the data file is too large for one file.
        OutputError: The folder does not exist or cannot be written to.
    """
    check_output(os.path.realpath(path))
    target = Path(os.path.realpath(path))
    storage = storage or Storage()
    data_in_one = None if storage.external else whole(model)
    if data_in_one is None:
        parts = split(model.proto, target.name, storage.threshold)
    else:
        parts = Parts(data_in_one, {})
    data: dict[PathLike, Content] = {target.parent / name: pieces() for name, pieces in parts.data.items()}
    write({**data, **(others or {}), path: parts.model})
    for old in target.parent.glob(f"{glob.escape(target.name)}.*.data"):
        ours = _DIGEST.fullmatch(old.name.removeprefix(f"{target.name}.").removesuffix(".data"))
        if ours and old not in data and old.resolve() not in model.data:
            with contextlib.suppress(OSError):
                old.unlink()


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder; name the .onnx file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"there is no model file '{path}'; check its name") from error
    except OSError as error:
        raise ModelError(f"cannot read the model file '{path}': {error.strerror or error}") from error


def _checked(model: Model) -> Model:
    """Protobuf reads many a file that is no model, or the front of one, without complaint."""
    proto = model.proto
    lacking = next(
        (
            what
            for what, there in (
                ("graph", proto.HasField("graph")),
                ("nodes", len(proto.graph.node)),
                ("outputs", len(proto.graph.output)),
                ("operator set version", len(proto.opset_import)),
            )
            if not there
        ),
        None,
    )
    if lacking is not None:
        raise ModelError(f"{model.label} has no {lacking}: it is empty, cut short or not an ONNX model")
    # Names that are not UTF-8 come as bytes.
    if not all(isinstance(name, str) for name in names(proto)):
        raise ModelError(f"{model.label} has names that are not text: it is damaged, export or copy it anew")
    check_sound(proto, model.label)
    return model


def _with_data(model: Model) -> Model:
    if not any(map(is_external, tensors(model.proto))):
        return model
    if model.path is None:
        raise ModelError("the model keeps weights in other files; give its path instead")
    data = read_data(model.proto, model.path.parent, model.label)
    return Model(model.proto, model.path, data=data)
