"""A model as it came, and what it says of itself."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from pathlib import Path

import onnx

from rewriter.errors import ModelError
from rewriter.samples import InputSpec


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model and where it came from; nothing changes it, every edit makes another one.

    Attributes:
        proto: The model; treat it as read-only and edit `copy()`.
        path: The file that it was read from, if any.
        source: The file's bytes where protobuf would write the unedited model in another way, else None.
        data: The files beside it that its weights were read from.
    """

    proto: onnx.ModelProto
    path: Path | None = None
    source: builtins.bytes | None = None
    data: frozenset[Path] = frozenset()

    def bytes(self) -> builtins.bytes:
        """The serialised model: the file's own bytes where nothing was edited.

        Raises:
            ModelError: It is larger than one file can hold.
        """
        if self.source is not None:
            return self.source
        try:
            return builtins.bytes(self.proto.SerializeToString())
        except Exception as error:  # protobuf's own exception differs between its implementations
            raise ModelError(
                f"{self.label} is too large for one file (2 GB): its weights need external data"
            ) from error

    def copy(self) -> onnx.ModelProto:
        """A copy of the proto to edit."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        return copy

    def edited(self, proto: onnx.ModelProto) -> Model:
        """A model with the same origin and another content."""
        return Model(proto, self.path, data=self.data)

    @property
    def label(self) -> str:
        """What messages call the model."""
        return "the model" if self.path is None else f"'{self.path}'"

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        versions = [entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")]
        return int(max(versions, default=1))

    @property
    def metadata(self) -> dict[str, str]:
        """What the model says of itself, by key."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What must be fed, in the graph's order; inputs with a default (initializers) are not among them.

        Raises:
            ModelError: An input is no tensor or does not say its type and shape.
        """
        defaults = initializer_names(self.proto.graph)
        return tuple(self._spec(value) for value in self.proto.graph.input if value.name not in defaults)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the graph's order."""
        return tuple(value.name for value in self.proto.graph.output)

    @property
    def pinned(self) -> frozenset[str]:
        """Initializers that a caller may replace because they are graph inputs too.

        Before IR version 4 every initializer had to be listed so, and none could be replaced.
        """
        if self.proto.ir_version < 4:
            return frozenset()
        listed = {value.name for value in self.proto.graph.input}
        return frozenset(listed & initializer_names(self.proto.graph))

    def _spec(self, value: onnx.ValueInfoProto) -> InputSpec:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelError(
                f"input {value.name!r} of {self.label} is no tensor of known rank; give it a type and a shape"
            )
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except KeyError as error:
            raise ModelError(
                f"input {value.name!r} of {self.label} has the unknown element type {tensor.elem_type}"
            ) from error
        return InputSpec(value.name, dtype, dims(tensor.shape))


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Names of all initializers of a graph, sparse ones included."""
    dense = {tensor.name for tensor in graph.initializer}
    return dense | {tensor.values.name for tensor in graph.sparse_initializer}


def dims(shape: onnx.TensorShapeProto) -> tuple[int | str | None, ...]:
    """The sizes of a shape: numbers, the names of dynamic ones, None where nothing is said.

    Some exporters write a negative number for a dynamic size, and ONNX Runtime takes it so. Others name all
    of them alike, with a question mark, which says no more of them than no name does.
    """
    return tuple(
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else _name(dim.dim_param)
        for dim in shape.dim
    )


def _name(dim_param: str) -> str | None:
    """What names a size: something with a letter in it."""
    return dim_param if any(map(str.isalpha, dim_param)) else None
