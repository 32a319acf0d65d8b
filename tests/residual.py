"""A small residual network of standard convolutions, with inputs, for tests of what takes whole networks."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import only, parse, random, run

from rewriter import calibration, graph
from rewriter.calibration import Walk
from rewriter.runtime import Target

TEXT = """
agraph (float[N,8,12,12] x) => (float[N,5] y) {
  [stem] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, stem_w, stem_b)
  [stem_relu] ar = Relu(a)
  [one] b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(ar, one_w, one_b)
  [one_relu] br = Relu(b)
  [two] c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(br, two_w)
  [sum] s = Add(c, ar)
  [sum_relu] sr = Relu(s)
  [down] d = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(sr, down_w, down_b)
  [down_relu] dr = Relu(d)
  [pool] p = GlobalAveragePool(dr)
  [flat] f = Flatten(p)
  [head] y = Gemm<transB=1>(f, head_w, head_b)
}
"""

KERNELS = {"stem": (16, 8, 3, 3), "one": (16, 16, 3, 3), "two": (16, 16, 3, 3), "down": (16, 16, 3, 3)}


def network(rng: np.random.Generator, rank: int = 16, noise: float = 0.0) -> onnx.ModelProto:
    """The network; the output channels of its kernels are mixed from `rank` ones, but for some noise."""
    weights = {}
    for name, (outputs, inputs, *kernel) in KERNELS.items():
        mixed = np.tensordot(random(rng, outputs, rank), random(rng, rank, inputs, *kernel), 1)
        mixed += noise * np.sqrt(rank) * random(rng, outputs, inputs, *kernel)
        weights[f"{name}_w"] = (mixed / mixed.std() * np.sqrt(2 / (9 * inputs))).astype(np.float32)
        if name != "two":
            weights[f"{name}_b"] = random(rng, outputs) / 10
    return parse(TEXT, **weights, head_w=random(rng, 5, 16), head_b=random(rng, 5))


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Inputs whose neighbouring pixels and channels resemble each other."""
    drawn = random(rng, count, 8, 14, 14)
    smooth = sum(drawn[:, :, y : y + 12, x : x + 12] for y in range(3) for x in range(3)) / 3
    return smooth + np.roll(smooth, 1, axis=1)


def batches(rng: np.random.Generator, count: int = 4, size: int = 4) -> list[dict[str, np.ndarray]]:
    return [{"x": images(rng, size)} for _ in range(count)]


def at_sites(model, batches, sites):
    """The inputs of each site in the model as it is, one array a batch."""
    walk = Walk(model, sites, batches, Target(threads=1))
    found = []
    for site in sites:
        found.append(walk.inputs())
        walk.provide(calibration.apply(only(site.conv), found[-1], Target(threads=1)))
    return found


def drift(before, after, batches, tensor=None):
    """Relative L2 drift of the outputs, or of another tensor, over all batches."""
    data = [graph.with_outputs(each, [tensor]) if tensor else each.bytes() for each in (before, after)]
    old, new = (np.concatenate([run(each, batch)[tensor or "y"] for batch in batches]) for each in data)
    return np.linalg.norm(new - old) / np.linalg.norm(old)
