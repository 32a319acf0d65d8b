"""Stands in for timing: a model takes as long as its multiply-adds, so choices are quick and repeatable.

Its memory is that of its convolutions' kernels, loading takes no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
import pytest

from rewriter import graph, latency
from rewriter.latency import Latency
from rewriter.runtime import Session, Target
from rewriter.samples import samples_in
from rewriter.serialized import Parts, Serialized

MACS_PER_MS = 1e6


def _own(data: Serialized) -> bytes:
    """The model's own file."""
    return data.model if isinstance(data, Parts) else data


def macs(data: Serialized, feeds: Mapping[str, np.ndarray]) -> int:
    """Multiply-adds of all convolutions for these inputs: taps times channels for each value.

    Of the output; of the input where it is transposed.
    """
    return sum(prod(kernel[1:]) * prod(values) for kernel, values in _convolutions(data, feeds))


def _convolutions(
    data: Serialized, feeds: Mapping[str, np.ndarray]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """The shapes of each convolution's kernel, and of what each of its taps meets."""
    shapes = {name: array.shape for name, array in feeds.items()}
    fixed = graph.with_shapes(graph.Model(onnx.load_model_from_string(_own(data))), shapes).proto
    del fixed.graph.value_info[:]  # of other sizes, maybe
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    sizes.update((tensor.name, list(tensor.dims)) for tensor in inferred.initializer)
    found = [
        (node.input[1], node.output[0] if node.op_type == "Conv" else node.input[0])
        for node in inferred.node
        if node.op_type in ("Conv", "ConvTranspose")
    ]
    # behind sizes that are computed there is no way but to run the model
    if unknown := [name for pair in found for name in pair if not all(sizes.get(name) or [0])]:
        data = graph.with_outputs(graph.Model(onnx.load_model_from_string(_own(data))), unknown)
        values = Session(data, Target(threads=1)).run(feeds)
        sizes.update((name, values[name].shape) for name in unknown)
    return [(sizes[kernel], sizes[values]) for kernel, values in found]


def held_bytes(data: Serialized, feeds: Mapping[str, np.ndarray]) -> int:
    """Bytes of the kernels of all convolutions, as they reach them."""
    return 4 * sum(prod(kernel) for kernel, _ in _convolutions(data, feeds))


def milliseconds(data: Serialized, feeds: Mapping[str, np.ndarray]) -> float:
    return macs(data, feeds) / MACS_PER_MS


def interleaved(
    models: Sequence, feeds: Sequence[Mapping], target=None, *, seconds=2.0, seed=0, hopeless=None
):
    data = [model() if callable(model) else model for model in models]
    return [milliseconds(each, feed) for each, feed in zip(data, feeds, strict=True)]


def compare(before, after, feeds: Mapping, target=None, *, seed=0, progress=None, **_):
    before, after = before(), after()
    if progress is not None:
        progress(1, 1)
    old, new = milliseconds(before, feeds), milliseconds(after, feeds)
    return Latency(
        before_ms=old,
        before_p10_ms=old,
        before_p90_ms=old,
        after_ms=new,
        after_p10_ms=new,
        after_p90_ms=new,
        speedup=old / new,
        speedup_low=old / new,
        speedup_high=old / new,
        speedup_lower=old / new,
        pairs=1,
        batch=samples_in(feeds),
        provider="cpu",
        threads=1,
        before_load_ms=1.0,
        after_load_ms=1.0,
        before_peak_bytes=held_bytes(before, feeds),
        after_peak_bytes=held_bytes(after, feeds),
        baseline_bytes=0,
        before_size_bytes=len(_own(before)),
        after_size_bytes=len(_own(after)),
        before_times_ms=(old,),
        after_times_ms=(new,),
    )


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target computes eight channels at once, whatever this machine does."""
    monkeypatch.setattr(graph, "read_block", lambda optimised: 8)
    monkeypatch.setattr(latency, "interleaved", interleaved)
    monkeypatch.setattr(latency, "compare", compare)
