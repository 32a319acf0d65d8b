"""Single layers whose kernels were written densely, before and after the pass that undoes it, interleaved.

    python tests/bench/structure.py [--threads 1]

64 channels in and out on a map of 56 x 56, with Relu behind; the fastest rewrite of each pass. The last line
is not exact: a random 5 x 5 kernel by two of 3 x 3, about half the multiply-adds; random kernels fit badly.
"""

import argparse

import numpy as np
import onnx

import passes
from rewriter import graph, latency, prepare
from rewriter.conv import Conv
from rewriter.graph.followers import Follower
from rewriter.graph.sites import Site
from rewriter.metric import Metric, relative_error
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target

CHANNELS, SIDE = 64, 56
RELU = Follower("Relu", onnx.helper.make_node("Relu", ["x"], ["y"]), 0)
STEPS = {step.name: step for step in passes.PASSES}


def drawn(*shape):
    """Normal values."""
    return np.random.default_rng(0).standard_normal(shape)


def block_diagonal(groups):
    """A 3 x 3 kernel in so many groups, written without them."""
    size = CHANNELS // groups
    weight = np.zeros((CHANNELS, CHANNELS, 3, 3))
    for start in range(0, CHANNELS, size):
        weight[start : start + size, start : start + size] = drawn(size, size, 3, 3)
    return weight


def every_other(weight):
    """A 3 x 3 kernel with zeros between its taps."""
    wide = np.zeros((*weight.shape[:2], 5, 5))
    wide[:, :, ::2, ::2] = weight
    return wide


def centred(weight):
    """A pointwise kernel as 3 x 3."""
    return np.pad(weight, ((0, 0), (0, 0), (1, 1), (1, 1)))


def layers():
    """What each layer is, its pass and its kernel."""
    dense = drawn(CHANNELS, CHANNELS, 3, 3)
    gaussian = np.exp(-np.add.outer(np.arange(-3, 4) ** 2, np.arange(-3, 4) ** 2) / 2)
    yield "4 groups", "split_groups", block_diagonal(4), 1
    yield "depthwise", "split_groups", block_diagonal(CHANNELS), 1
    yield "8 groups of 8", "join_groups", drawn(CHANNELS, 8, 3, 3), 8
    yield "16 groups of 4", "join_groups", drawn(CHANNELS, 4, 3, 3), 16
    yield "3 x 3 in a 5 x 5", "crop_kernel", centred(dense), 1
    yield "3 x 3 of dilation 2", "crop_kernel", every_other(dense), 1
    yield "centre alone", "crop_kernel", centred(dense[..., :1, :1]), 1
    yield "every filter twice", "exact_channels", np.repeat(dense[: CHANNELS // 2], 2, axis=0), 1
    separable = drawn(CHANNELS, CHANNELS, 1, 1) * drawn(1, CHANNELS, 3, 3)
    yield "depthwise separable", "exact_channels", separable, 1
    core = np.einsum("ms,srt,rc->mct", drawn(CHANNELS, 16), drawn(16, 16, 9), drawn(16, CHANNELS))
    yield "Tucker-2, 16 and 16", "exact_channels", core.reshape(dense.shape), 1
    lines = np.einsum("mrx,rcy->mcyx", drawn(CHANNELS, 16, 3), drawn(16, CHANNELS, 3))
    yield "3 x 1 and 1 x 3, 16", "exact_spatial", lines, 1
    yield "7 x 7 Gaussian, depthwise", "exact_spatial", gaussian[None, None].repeat(CHANNELS, 0), CHANNELS
    yield "5 x 5", "stacked", drawn(CHANNELS, CHANNELS, 5, 5), 1


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each layer")
    arguments = parser.parse_args()
    target = Target(threads=arguments.threads)
    grid = prepare.grid_of(target)
    print("| kernel | pass | rank | MACs | before ms | after ms | speed-up | kernel's error |")
    print("|---|---|---|---|---|---|---|---|")
    for told, name, weight, group in layers():
        half = weight.shape[2] // 2
        weight = (weight / np.linalg.norm(weight)).astype(np.float32)
        conv = Conv(weight, np.zeros(CHANNELS, np.float32), pads=(half,) * 4, group=group)
        site = Site("conv", "Conv", conv, "x", "y", (0,), (RELU,))
        metric = Metric.isotropic(conv)
        step = STEPS[name]
        ranks = step.ranks(conv, grid)
        if not ranks:  # groups that fill the blocks of this processor
            continue
        if not step.exact:
            ranks = ranks[-2:-1]
        rewrites = list(step.rewrites(conv, ranks, metric))
        shape = (1, CHANNELS, SIDE, SIDE)
        models = [graph.probe(site, each, shape) for each in (Rewrite(((conv,),)), *rewrites)]
        feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        before, *after = latency.interleaved(models, [feeds] * len(models), target, seconds=arguments.seconds)
        best = int(np.argmin(after))
        share = rewrites[best].cost((SIDE, SIDE)).macs / conv.macs((SIDE, SIDE))
        print(
            f"| {told} | {name} | {' x '.join(map(str, ranks[best]))} | {share:.2f} | {before:.2f} "
            f"| {after[best]:.2f} | {before / after[best]:.1f} "
            f"| {relative_error(conv, rewrites[best], metric):.1g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
