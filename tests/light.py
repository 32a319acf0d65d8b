"""The networks without weights that the onnx package ships, with seeded weights of a realistic scale."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = tuple(sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx")))


def network(name: str) -> onnx.ModelProto:
    """The network: what it fills with constants has drawn values, which are no graph inputs."""
    proto = onnx.load(FOLDER / f"light_{name}.onnx")
    proto.ir_version = 8
    graph = proto.graph
    rng = np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roles = {
        given: (node.op_type, slot)
        for node in graph.node
        for slot, given in enumerate(node.input)
        if node.op_type in ("Conv", "Gemm", "MatMul", "BatchNormalization")
    }
    nodes, filled = [], set()
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(int(size) for size in shapes[node.input[0]])
            values = _drawn(rng, shape, *roles.get(node.output[0], ("", 0)))
            graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            filled.add(node.input[0])
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [tensor for tensor in graph.initializer if tensor.name not in filled]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    listed = {tensor.name for tensor in kept} | filled
    inputs = [value for value in graph.input if value.name not in listed]
    del graph.input[:]
    graph.input.extend(inputs)
    return proto


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], op_type: str, slot: int) -> np.ndarray:
    """Weights that keep the variance through a Relu; statistics as training leaves them."""
    values = rng.standard_normal(shape).astype(np.float32)
    if op_type == "BatchNormalization":
        return 1 + np.abs(values) / 5 if slot in (1, 4) else values / 10
    taken = shape[1:] if op_type != "MatMul" else shape[:1]
    return values * np.float32(np.sqrt(2 / prod(taken))) if slot == 1 and taken else values / 10
