"""ONNX's own tests of convolutions, through every pass at full rank and every tile: equal, or refused.

`python tests/test_backend_nodes.py` prints how many of each, and why forms were refused.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx.backend.test.loader as loader
import pytest
from forms import TILES
from graphs import only, run

import passes
from rewriter import graph
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd

# By operator: the cases, those of them that are sites, and of these the forms that computed what is expected
# and those that were refused.
COUNTS = {
    "Conv": (33, 33, 243, 502),
    "ConvTranspose": (14, 14, 88, 238),
    "ConvInteger": (2, 0, 0, 0),
    "QLinearConv": (1, 0, 0, 0),
    "DeformConv": (4, 0, 0, 0),
}


@dataclass(frozen=True)
class Case:
    """A model of one node with its weights bound, what it is fed and what comes of it."""

    name: str
    model: graph.Model
    feeds: dict[str, np.ndarray]
    expected: np.ndarray


@cache
def cases(op_type: str) -> tuple[Case, ...]:
    return tuple(
        _bound(name, model, values, expected)
        for name, model, values, expected in (*_written(op_type), *_converted())
        if [node.op_type for node in model.graph.node] == [op_type]
    )


Loaded = Iterator[tuple[str, onnx.ModelProto, list[np.ndarray], np.ndarray]]


def _written(op_type: str) -> Loaded:
    """Those that ONNX writes for its operators; the modules of others take long to load."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(f"{node_cases.__name__}.{op_type.lower()}")
    for case in list(node_cases._NodeTestCases):
        ((values, outputs),) = case.data_sets
        yield case.name, case.model, [np.asarray(value) for value in values], np.asarray(outputs[0])


def _converted() -> Loaded:
    """Those that PyTorch exported."""
    for kind in ("pytorch-converted", "pytorch-operator"):
        for case in loader.load_model_tests(kind=kind):
            if "conv" in case.name.lower():
                data = Path(case.model_dir) / "test_data_set_0"
                inputs = [_tensor(path) for path in sorted(data.glob("input_*.pb"))]
                yield (
                    case.name,
                    onnx.load(Path(case.model_dir) / "model.onnx"),
                    inputs,
                    _tensor(data / "output_0.pb"),
                )


def _tensor(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def _bound(name: str, model: onnx.ModelProto, values: list[np.ndarray], expected: np.ndarray) -> Case:
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    # what this ONNX writes may be newer than what ONNX Runtime reads
    proto.ir_version = min(proto.ir_version, 10)
    # and what PyTorch exported is older than what holds tiles; a convolution has meant the same since opset 1
    proto.opset_import[0].version = max(proto.opset_import[0].version, 11)
    held = {tensor.name for tensor in proto.graph.initializer}
    given = dict(zip([value.name for value in proto.graph.input], values, strict=False))
    first = proto.graph.node[0].input[0]
    for key, value in given.items():
        if key != first and key not in held:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, key))
    for index in reversed(range(len(proto.graph.input))):
        # before IR version 4 weights are listed as inputs
        if proto.graph.input[index].name != first and proto.ir_version >= 4:
            del proto.graph.input[index]
    return Case(name, graph.load(proto), {first: given[first]}, expected)


def _forms(conv: Conv) -> Iterator[tuple[str, Rewrite | str]]:
    """As it is, every pass at full rank and every tile: what it makes of a convolution, or why nothing."""
    yield "as it is", only(conv)
    for each in passes.PASSES:
        if reason := each.refuse(conv):
            yield each.name, reason
            continue
        ranks = list(each.ranks(conv, Grid(1))) if each.exact else [_full(each.name, conv)]
        for rank, rewrite in zip(ranks, each.rewrites(conv, ranks, Metric.isotropic(conv)), strict=True):
            yield f"{each.name} {rank}", rewrite
    cut = (zip(tile, conv.kernel_shape, strict=False) for tile in TILES)
    for m in dict.fromkeys(tuple(1 if taps == 1 else size for size, taps in each) for each in cut):
        reason = Winograd(m).refuse(conv)
        yield f"tiles {m}", reason or Rewrite(((conv.with_(lowering=Winograd(m)),),))


def _full(name: str, conv: Conv) -> tuple[int, ...]:
    """A rank at which the form can be any kernel."""
    if name == "grouped_pointwise":
        size = max(conv.weight.shape[1] // 2, 1)
        return (size, conv.in_channels // size * 1000)
    return (1000, 1000) if name == "tucker2" else (1000,)


NO_SITE = "no-site"


class Outcome(NamedTuple):
    """What became of a form of a case, or of a case that is no site: why it was refused, or None."""

    form: str
    refused: str | None


def outcomes(case: Case) -> Iterator[Outcome]:
    """Of every form; the test of that it computes what is expected."""
    sites, refusals = graph.find_sites(case.model)
    assert len(sites) + len(refusals) == 1, case.name
    yield from (Outcome(NO_SITE, each.reason) for each in refusals)
    for site in sites:
        for form, made in _forms(site.conv):
            if isinstance(made, str):
                yield Outcome(form, made)
                continue
            spliced = graph.splice(case.model, [(site, made)])
            (given,) = run(spliced.bytes(), case.feeds).values()
            assert given.shape == case.expected.shape, (case.name, form)
            scale = np.abs(case.expected).max()
            assert np.abs(given - case.expected).max() <= 1e-5 * scale, (case.name, form)
            yield Outcome(form, None)


def counted(op_type: str) -> tuple[tuple[int, int, int, int], Counter[str]]:
    """The four numbers of an operator as in COUNTS, and how often forms were refused for each reason."""
    found = [list(outcomes(case)) for case in cases(op_type)]
    forms = [each for those in found for each in those if each.form != NO_SITE]
    refused = [each for those in found for each in those if each.refused is not None]
    assert all(each.refused and "\n" not in each.refused for each in refused)
    sites = sum(those[0].form != NO_SITE for those in found)
    equal = sum(each.refused is None for each in forms)
    reasons = Counter(f"{each.form.split()[0]}: {_general(each.refused or '')}" for each in refused)
    return (len(found), sites, equal, len(forms) - equal), reasons


def _general(reason: str) -> str:
    """A reason without the numbers of the case."""
    return re.sub(r"\([\d, ]+\)|\d+", "*", reason)


@pytest.mark.parametrize("op_type", COUNTS)
def test_equal_or_refused(op_type: str) -> None:
    assert counted(op_type)[0] == COUNTS[op_type]


def main() -> None:
    """Prints the numbers of every operator and the reasons of the refusals."""
    for op_type in COUNTS:
        (those, sites, equal, refused), reasons = counted(op_type)
        print(f"{op_type}: {those} cases, {sites} sites; forms: {equal} equal, {refused} refused")
        for reason, count in reasons.most_common():
            print(f"{count:6} {reason}")


if __name__ == "__main__":
    main()
