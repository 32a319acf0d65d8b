"""Single layers in tiles against one Conv, with Relu behind: times of ONNX Runtime, interleaved.

    python tests/bench/winograd_layers.py --threads 1 --kernel 3

One line a shape: the direct convolution's time, then how many times as fast each tile is, the best starred.
"""

import argparse

import numpy as np
import onnx

from rewriter import graph, latency
from rewriter.conv import Conv, Direct, Rewrite
from rewriter.graph.followers import Follower
from rewriter.graph.sites import Site
from rewriter.runtime import Target
from rewriter.winograd import Winograd

LAYERS = {
    3: {64: (56, 112, 224), 128: (28, 56, 112), 256: (14, 28, 56), 512: (7, 14, 28)},
    5: {64: (28, 56, 112), 128: (28, 56), 256: (14, 28)},
}
TILES = {
    3: [(2, 2), (3, 3), (4, 4), (6, 6), (4, 1), (6, 1), (1, 4)],
    5: [(2, 2), (3, 3), (4, 4), (4, 1), (1, 4)],
}
RELU = Follower("Relu", onnx.helper.make_node("Relu", ["x"], ["y"]), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernel", type=int, choices=sorted(LAYERS), default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each layer")
    arguments = parser.parse_args()
    size = arguments.kernel
    tiles = TILES[size]
    print(f"{size} x {size}, {arguments.threads} threads")
    print("   C  map  direct  ", "  ".join(f"{m}x{n}  " for m, n in tiles))
    for channels, side in [(channels, side) for channels, sides in LAYERS[size].items() for side in sides]:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((channels, channels, size, size)).astype(np.float32) / size**2
        conv = Conv(weight, np.zeros(channels, np.float32), pads=(size // 2,) * 4)
        site = Site("conv", "Conv", conv, "x", "y", (0,), (RELU,))
        forms = [conv.with_(lowering=lowering) for lowering in (Direct(), *map(Winograd, tiles))]
        shape = (1, channels, side, side)
        models = [graph.probe(site, Rewrite(((form,),)), shape) for form in forms]
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        target = Target(threads=arguments.threads)
        times = latency.interleaved(models, [feeds] * len(models), target, seconds=arguments.seconds)
        gains = [times[0] / time for time in times[1:]]
        told = "  ".join(f"{gain:4.2f}{'*' if gain == max(gains) else ' '}" for gain in gains)
        print(f"{channels:4d} {side:4d} {times[0]:7.2f}   {told}", flush=True)


if __name__ == "__main__":
    main()
