"""Single layers, Conv and Relu, in the exact form that the program chooses: speed-up and rounding error.

    python tests/bench/winograd_layers.py --threads 1 [--threads 2] [--kernel 3] [--only 64x56]

The form comes from the latency table and the look at rounding that `--exact` uses; the speed-up is that of
the whole layer, in processes of their own, with its 95 % interval. The errors are relative, against float64,
of the form and of the Conv. Where no form is faster it says so. The whole table takes four to eight minutes
for each number of threads, as busy as the machine is.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from passes.winograd import WinogradTiles
from rewriter import fitting, graph, latency, prepare, rounding, table
from rewriter.latency import Latency
from rewriter.progress import silent
from rewriter.runtime import Target

LAYERS = {
    3: {64: (56, 112, 224), 128: (28, 56, 112), 256: (14, 28, 56), 512: (7, 14, 28)},
    5: {64: (28, 56), 128: (28, 56), 256: (28, 56)},
}
PASSES = (WinogradTiles(),)
SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a layer; `form` and `latency` are None where none is faster."""

    direct_ms: float
    direct_error: float | None
    form: str | None = None
    error: float | None = None
    latency: Latency | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, action="append", help="of one operator, repeatable; 1 if left out"
    )
    parser.add_argument("--kernel", type=int, choices=sorted(LAYERS), action="append", help="all if left out")
    parser.add_argument("--only", metavar="CxS", action="append", help="a layer, as 64x56; all if left out")
    arguments = parser.parse_args()
    print("| kernel | channels | map | threads | direct ms | form | speed-up | error | of the Conv |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in arguments.kernel or sorted(LAYERS):
        for channels, side in (
            (channels, side) for channels, sides in LAYERS[size].items() for side in sides
        ):
            if arguments.only and f"{channels}x{side}" not in arguments.only:
                continue
            for threads in arguments.threads or [1]:
                row = measure(layer(channels, side, size), Target(threads=threads))
                print(f"| {size} | {channels} | {side} | {threads} | {written(row)} |", flush=True)


def layer(channels: int, side: int, size: int) -> onnx.ModelProto:
    """Conv, Relu: as many channels out as in, weights of He's scale."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels, channels, size, size), np.float32) * np.sqrt(2 / channels) / size
    bias = rng.standard_normal(channels, np.float32) / 10
    shape = [1, channels, side, side]
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[size // 2] * 4),
                helper.make_node("Relu", ["h"], ["y"], "relu"),
            ],
            "layer",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(weight.astype(np.float32), "w"), numpy_helper.from_array(bias, "b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def measure(proto: onnx.ModelProto, target: Target) -> Row:
    """The layer as it is against the fastest form that loses little to rounding."""
    model = graph.load(proto)
    ((site,), _) = graph.find_sites(model)
    shape = tuple(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    feeds = {"x": np.random.default_rng(1).standard_normal(shape, np.float32)}
    grid = prepare.grid_of(target)
    (survey,) = fitting.exact_survey([site], {site.name: shape[2:]}, PASSES, grid)
    timed = table.measure([(site, survey.candidates)], {site.name: shape}, target, grid.block, silent)
    calm = Target(spinning=False)
    (checked,) = rounding.check(model, [(site, timed[0])], PASSES, [feeds], 0, calm, silent)
    best = min(checked.candidates, key=lambda each: each.latency_ms)
    if best.pass_name is None:
        return Row(best.latency_ms, checked.direct)
    faster = graph.splice(model, fitting.exact_rewrites([(site, best)], PASSES))
    found = latency.compare(model.bytes(), faster.bytes(), feeds, target, seconds=SECONDS)
    return Row(
        found.before_ms, checked.direct, "x".join(map(str, best.rank)), float(np.sqrt(best.error)), found
    )


def written(row: Row) -> str:
    """The row's figures, in the columns of the head."""
    if row.latency is None:
        return f"{row.direct_ms:.2f} | direct | - | - | -"
    found = row.latency
    gain = f"{found.speedup:.2f}x ({found.speedup_low:.2f} to {found.speedup_high:.2f})"
    return f"{row.direct_ms:.2f} | {row.form} | {gain} | {row.error:.1e} | {row.direct_error:.1e}"


if __name__ == "__main__":
    main()
