"""Single operators, as they came and written in others.

    python tests/bench/operators.py [--threads 1 --threads 2]

`rewriter optimize` writes an operator in others only where the target is at least 1.2 times as fast at these
on the model's own shapes.
"""

import click
import numpy as np
import onnx

from rewriter import graph, latency
from rewriter.runtime import Target

ROWS = (
    ("PRelu", (1, 64, 56, 56), {}),
    ("Elu", (1, 64, 56, 56), {}),
    ("Softplus", (1, 64, 56, 56), {}),
    ("Mish", (1, 64, 56, 56), {}),
    ("LRN", (1, 64, 56, 56), {"size": 5}),
    ("LRN", (1, 192, 56, 56), {"size": 5}),
    ("Softmax", (1, 21, 128, 128), {"axis": 1}),
    ("Softmax", (1, 16, 4, 2100), {"axis": 1}),
    ("LogSoftmax", (1, 19, 256, 256), {"axis": 1}),
    ("DepthToSpace", (1, 27, 224, 224), {"blocksize": 3, "mode": "CRD"}),
    ("DepthToSpace", (1, 64, 56, 56), {"blocksize": 2}),
)
OPSET = 18


def model(op_type, shape, attributes):
    """A model of one operator."""
    slopes = [onnx.numpy_helper.from_array(np.full((shape[1], 1, 1), 0.25, np.float32), "slopes")]
    weights = slopes if op_type == "PRelu" else []
    node = onnx.helper.make_node(op_type, ["x", *(each.name for each in weights)], ["y"], **attributes)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    made = onnx.helper.make_graph([node], op_type, [x], [y], weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8)


@click.command()
@click.option("--threads", type=int, multiple=True, default=(1, 2))
def main(threads):
    """Print the table."""
    print("| operator | shape | " + " | ".join(f"ms, {each} threads | in others" for each in threads) + " |")
    print("|---" * (2 + 2 * len(threads)) + "|")
    rng = np.random.default_rng(0)
    for op_type, shape, attributes in ROWS:
        found = graph.load(model(op_type, shape, attributes))
        (expansion,) = graph.find_expansions(found)
        probes = graph.expansion_probes(found, expansion, shape)
        feeds = {"x": rng.standard_normal(shape, dtype=np.float32)}
        cells = []
        for count in threads:
            plain, others = latency.interleaved(probes, [feeds, feeds], Target(threads=count), seconds=3.0)
            cells += [f"{plain:.2f}", f"{others:.2f} ({plain / others:.1f}x)"]
        print(f"| {op_type} | {' x '.join(map(str, shape))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
