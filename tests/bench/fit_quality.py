"""How well every pass fits the first convolutions of a model, on patches that it was not fitted to.

    python tests/bench/fit_quality.py MODEL SAMPLES.npz [--sites 3] [--skip 1]

SAMPLES holds one array a model input, keyed by its name; the first two thirds fit, the rest measure. Error
is the root of the squared output error over the output's variance, 1 keeping its mean alone; share is the
squared output error over the energy of W x, mean included. Both for the kernel's own best factors (plain) and
for those fitted, each with the free bias.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import passes
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments


def sites(model, skip, count):
    """The first standard convolutions after `skip`, with the names of their inputs."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in constants:
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        conv = Conv(
            constants[node.input[1]],
            constants[node.input[2]] if len(node.input) > 2 else None,
            tuple(attributes.get("strides", ())),
            tuple(attributes.get("pads", ())),
            tuple(attributes.get("dilations", ())),
            attributes.get("group", 1),
        )
        found.append((node.name, node.input[0], conv))
    return found[skip : skip + count]


def tapped(model, names, samples):
    """The tensors of these names for all samples."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), samples), strict=True))


def patches(conv, x):
    """All patches `[G, n, K]` that a two-dimensional convolution sees in `x`, padding included."""
    top, left, bottom, right = conv.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    high, wide = ((k - 1) * d + 1 for k, d in zip(conv.kernel_shape, conv.dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, (high, wide), axis=(2, 3))
    windows = windows[
        :, :, :: conv.strides[0], :: conv.strides[1], :: conv.dilations[0], :: conv.dilations[1]
    ]
    n, channels, height, width = windows.shape[:4]
    windows = windows.reshape(n, conv.group, channels // conv.group, height, width, conv.taps)
    return windows.transpose(1, 0, 3, 4, 2, 5).reshape(conv.group, n * height * width, -1)


def moments(rows):
    """The moments of patches `[G, n, K]`, summed in float64."""
    count = rows.shape[1]
    mean = rows.mean(axis=1, dtype=np.float64)
    total = np.zeros((len(rows), rows.shape[2], rows.shape[2]))
    for start in range(0, count, 8192):
        part = rows[:, start : start + 8192] - mean[:, None]
        total += part.transpose(0, 2, 1) @ part
    return Moments(total / count, mean, count)


def errors(conv, rewrite, held):
    """On held-out moments: the relative output error, and the share of the energy of W x."""
    delta = conv.matrix - rewrite.dense(conv).reshape(conv.matrix.shape)
    bias = rewrite.bias if conv.bias is None else rewrite.bias - conv.bias
    offset = np.einsum("gmk,gk->gm", delta, held.mean).reshape(-1) - bias
    wrong = np.sum((delta @ held.covariance) * delta) + np.sum(offset**2)
    variance = np.sum((conv.matrix @ held.covariance) * conv.matrix)
    mean = np.sum(np.einsum("gmk,gk->gm", conv.matrix, held.mean) ** 2)
    return np.sqrt(wrong / variance), wrong / (variance + mean)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--skip", type=int, default=1)
    parser.add_argument("--block", type=int, default=8)
    options = parser.parse_args()
    model = onnx.load(options.model)
    samples = dict(np.load(options.samples))
    chosen = sites(model, options.skip, options.sites)
    inputs = tapped(model, sorted({name for _, name, _ in chosen}), samples)
    print("| site | pass | rank | MACs | error plain | error fitted | share plain | share fitted |")
    print("|---|---|---|---|---|---|---|---|")
    for name, source, conv in chosen:
        x = inputs[source]
        cut = len(x) * 2 // 3
        fitting, held = moments(patches(conv, x[:cut])), moments(patches(conv, x[cut:]))
        metric, free = Metric(fitting), Metric(Moments(Moments.isotropic(conv).covariance, fitting.mean, 0))
        for step in passes.PASSES:
            if reason := step.refuse(conv):
                print(f"| {name} | {step.name} | {reason} ||||||")
                continue
            ranks = step.ranks(conv, Grid(options.block))
            pairs = zip(step.rewrites(conv, ranks, metric), step.rewrites(conv, ranks, free), strict=True)
            for rank, (fitted, plain) in zip(ranks, pairs, strict=True):
                size = x.shape[2:]
                share = conv.macs(size) / fitted.cost(size).macs
                figures = zip(errors(conv, plain, held), errors(conv, fitted, held), strict=True)
                columns = " | ".join(f"{before:.4f} | {after:.4f}" for before, after in figures)
                print(f"| {name} | {step.name} | {'/'.join(map(str, rank))} | /{share:.1f} | {columns} |")


if __name__ == "__main__":
    main()
