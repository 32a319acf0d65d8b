"""Single tensors in files, such as those of ONNX test data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper


def read_tensor(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array of a file that holds one serialised `TensorProto`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    data = Path(path).read_bytes()
    try:
        # what has no type, as protobuf reads many a file that holds something else, is refused here
        return numpy_helper.to_array(onnx.TensorProto.FromString(data))
    except Exception as error:  # protobuf's own exception, and what numpy_helper raises
        raise ValueError("no tensor, or cut short") from error
