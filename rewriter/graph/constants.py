"""Values that nodes make of constants: what exporters leave to be folded when a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

FOLDED: Final = frozenset(
    {"Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape"}
    | {"Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
    | {"Add", "Div", "Mul", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "Sqrt", "Sub"}
)
"""Operators of one output whose value is told where their inputs are constant.

Layouts and sizes, as exporters write those of weights and pads; and what normalises weights.
"""


def evaluated(
    node: onnx.NodeProto, inputs: Mapping[str, npt.NDArray[Any]], opset: int
) -> npt.NDArray[Any] | None:
    """What a node of `FOLDED` gives; None where that cannot be told, as in opsets that are too old."""
    # only few models need it, and to load it takes a while
    from onnx.reference import ReferenceEvaluator

    def declared(name: str) -> onnx.ValueInfoProto:
        element = onnx.helper.np_dtype_to_tensor_dtype(inputs[name].dtype)
        return onnx.helper.make_tensor_value_info(name, element, inputs[name].shape)

    graph = onnx.helper.make_graph(
        [node], "constant", [declared(name) for name in inputs], [onnx.ValueInfoProto(name=node.output[0])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            (value,) = ReferenceEvaluator(model).run(None, dict(inputs))
    except Exception:  # its operators raise whatever they run into
        return None
    return np.asarray(value)
