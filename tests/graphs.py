"""Models for the tests of the graph package, written as ONNX text and filled with seeded weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx

from rewriter import graph
from rewriter.conv import Conv
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target


def parse(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """The model of an ONNX text `agraph (...) => (...) {...}`, with weights by name as initializers."""
    head = "" if text.lstrip().startswith("<") else '<ir_version: 8, opset_import: ["" : 13]> '
    proto = onnx.parser.parse_model(head + text)
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def model(text: str, **weights: np.ndarray) -> graph.Model:
    return graph.load(parse(text, **weights))


def filled(text: str, rng: np.random.Generator) -> graph.Model:
    """A model whose weights are declared in a line `weights: w[4,3,3,3] b[4] ...` before the text."""
    line, text = text.lstrip().split("\n", 1)
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", line.removeprefix("weights:"))
    arrays = {name: random(rng, *(int(size) for size in sizes.split(",") if size)) for name, sizes in shapes}
    return model(text, **arrays)


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def op_types(found: graph.Model) -> list[str]:
    return [node.op_type for node in found.proto.graph.node]


def site(found: graph.Model, name: str) -> graph.Site:
    return next(each for each in graph.find_sites(found)[0] if each.name == name)


def only(conv: Conv) -> Rewrite:
    return Rewrite(((conv,),))


def halves(conv: Conv) -> Rewrite:
    """An exact rewrite with two branches: half the kernel in each."""
    half = conv.weight / 2
    return Rewrite(((conv.with_(weight=half),), (conv.with_(weight=half, bias=None),)))


def run(data: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return Session(data, Target(threads=1)).run(feeds)


def random_feeds(found: graph.Model, rng: np.random.Generator, size: int = 32) -> dict[str, np.ndarray]:
    """One sample, dynamic sizes filled in."""
    return {
        spec.name: random(
            rng, *(n if isinstance(n, int) else size if axis else 1 for axis, n in enumerate(spec.shape))
        ).astype(spec.dtype)
        for spec in found.inputs
    }


def distance(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """The largest difference over the outputs, each relative to its largest value."""
    return max(
        float(np.abs(before[name] - after[name]).max() / max(np.abs(before[name]).max(), 1e-30))
        for name in before
    )
