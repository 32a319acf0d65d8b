"""Random graphs: nothing crashes, what is exact is equal, and what is not rewritten stays byte for byte.

`RANDOM_GRAPHS=10000 python -m pytest tests/test_random_graphs.py` tries so many, others in every run.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx.printer
from forms import forms
from graphs import only, run
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from random_graphs import Drawn, nets

from rewriter import graph
from rewriter.calibration import Walk, apply
from rewriter.graph.constants import FOLDED
from rewriter.runtime import Target

COUNT = int(os.environ.get("RANDOM_GRAPHS", "0"))
TARGET = Target(threads=1)
# Relative to the largest value: a few roundings of every layer.
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-2}

_many = settings(
    max_examples=COUNT or 100,
    deadline=None,
    derandomize=not COUNT,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@_many
@given(nets(), st.data())
def test_random_graphs(net: Drawn, data: st.DataObject) -> None:
    model = net.model
    note(onnx.printer.to_text(model.proto))
    onnx.checker.check_model(model.proto, full_check=True)
    before = _outputs(model, net)
    sites, refusals = graph.find_sites(model)
    assert len(sites) + len(refusals) == net.convolutions
    assert len(refusals) >= net.inner
    assert all(each.reason for each in refusals)
    chosen = []
    for site in sites:
        if data.draw(st.integers(0, 3)):
            plain, halved, *others = forms(site)
            name, made = data.draw(st.sampled_from([plain, halved, *others, *others, *others]))
            event(name)
            chosen.append((site, made))
    spliced = graph.splice(model, chosen)
    onnx.checker.check_model(spliced.proto, full_check=True)
    _same_but_for(model.proto, spliced.proto, {index for site, _ in chosen for index in site.nodes})
    bound = BOUNDS[net.dtype.name]
    _close(before, _outputs(spliced, net), bound)
    fused = graph.as_fusible(model)
    plain = graph.in_blocks(fused)
    folded = graph.fold_around(plain, graph.find_sites(plain)[0])
    normed = graph.as_norms(folded)
    for step, (first, second) in {
        "expanded": (model, graph.expanded(model, [each.output for each in graph.find_expansions(model)])),
        "fused": (model, fused),
        "resized": (fused, plain),
        "folded": (plain, folded),
        "normed": (folded, normed),
    }.items():
        if second is not first:
            event(step)
            onnx.checker.check_model(second.proto, full_check=True)
            _close(before, _outputs(second, net), bound)
    if net.dtype != np.float64 and data.draw(st.booleans()):
        walk = Walk(model, sites, [net.feeds], TARGET)
        for site in sites:
            walk.provide(apply(only(site.conv), walk.inputs(), TARGET))
        (outputs,) = walk.outputs()
        _close(before, dict(zip(model.outputs, outputs, strict=True)), bound)


@_many
@given(nets(), st.sampled_from([1, 2, 8]), st.data())
def test_dead_channels(net: Drawn, block: int, data: st.DataObject) -> None:
    model = net.model
    note(onnx.printer.to_text(model.proto))
    sites = [site for site in graph.find_sites(model)[0] if data.draw(st.integers(0, 9))]
    smaller = graph.remove_dead(model, sites, block)
    event("removed" if smaller is not model else "none")
    onnx.checker.check_model(smaller.proto, full_check=True)
    bound = BOUNDS[net.dtype.name]
    _close(_outputs(model, net), _outputs(smaller, net), bound)
    found = {site.name: site.conv for site in graph.find_sites(smaller)[0]}
    for site in sites:
        outputs = found[site.name].out_channels
        assert outputs == site.conv.out_channels or outputs % block == 0


def _outputs(model: graph.Model, net: Drawn) -> dict[str, np.ndarray]:
    if net.dtype != np.float64:
        return run(model.bytes(), net.feeds)
    # ONNX Runtime has no Conv in float64 on the CPU
    return dict(zip(model.outputs, ReferenceEvaluator(model.proto).run(None, net.feeds), strict=True))


def _close(before: dict[str, np.ndarray], after: dict[str, np.ndarray], bound: float) -> None:
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert after[name].shape == expected.shape
        wide = expected.astype(np.float64)
        # nothing but zeros may come of sums that cancel: their terms are rounded
        assert np.abs(after[name] - wide).max() <= bound * max(np.abs(wide).max(), 1e-3), name


def _same_but_for(before: onnx.ModelProto, after: onnx.ModelProto, replaced: set[int]) -> None:
    """What is not replaced is there in its order, byte for byte, but for constants that nobody takes."""
    nodes = iter([node.SerializeToString() for node in after.graph.node])
    taken = {name for node in after.graph.node for name in node.input}
    for index, node in enumerate(before.graph.node):
        idle = node.op_type in {"Constant", *FOLDED} and not taken & set(node.output)
        if index not in replaced and not idle:
            assert node.SerializeToString() in nodes, node.name
    kept = {tensor.name: tensor.SerializeToString() for tensor in after.graph.initializer}
    for tensor in before.graph.initializer:
        assert kept.get(tensor.name, tensor.SerializeToString()) == tensor.SerializeToString()
        assert tensor.name in kept or tensor.name not in taken
    for side in ("input", "output"):
        assert list(getattr(after.graph, side)) == list(getattr(before.graph, side))
