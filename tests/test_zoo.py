"""Trained models of other people, rewritten with latency that follows the multiply-adds."""

import importlib.util
import itertools
import sys

import fake_latency
import graphs
import numpy as np
import onnx
import pytest
from example_report import REWRITTEN

import rewriter
from rewriter import graph, latency


@pytest.fixture
def cases(zoo, monkeypatch):
    spec = importlib.util.spec_from_file_location("zoo_cases", zoo / "cases.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "zoo_cases", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module.CASES


def feeds(items, count):
    """The first samples of a case, one a feed, without targets."""
    plain = (item[0] if isinstance(item, tuple) else item for item in items)
    single = ({name: array[[i]] for name, array in each.items()} for each in plain for i in range(_len(each)))
    return list(itertools.islice(single, count))


def _len(batch):
    return len(next(iter(batch.values())))


@pytest.mark.parametrize(
    ("name", "passes", "samples", "tried", "budget"),
    [
        ("mnist_ort", ["spatial_svd", "channel_svd"], 60, None, 0.1),
        ("cifar10_mlperftiny_resnet8", ["spatial_svd", "channel_svd"], 100, None, 0.25),
        ("ultraface_version-RFB-320", ["channel_svd"], 4, 5, 0.1),
    ],
)
def test_trained_models(cases, monkeypatch, tmp_path, name, passes, samples, tried, budget):
    fake_latency.install(monkeypatch)
    case, out = cases[name], tmp_path / "fast.onnx"
    evaluation = feeds(case.evaluation(), max(samples, 2))
    sites = graph.find_sites(graph.unpin(graph.load(case.model)))[0]
    result = rewriter.optimize(
        case.model,
        feeds(case.calibration(), samples),
        evaluation,
        output=out,
        max_drift={"rel_l2": budget},
        passes=passes,
        exclude=[] if tried is None else [site.name for site in sites[tried:]],
    )
    assert result.improved, result.report.verdict
    before, after = graph.load(case.model), graph.load(out)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert not after.pinned
    assert any("graph inputs" in step for step in result.report.steps) == bool(before.pinned)
    assert [value.SerializeToString() for value in after.proto.graph.output] == [
        value.SerializeToString() for value in before.proto.graph.output
    ]
    onnx.checker.check_model(after.proto)
    error = energy = 0.0
    for batch in evaluation:
        old, new = (graphs.run(each.bytes(), batch) for each in (before, after))
        assert {key: value.shape for key, value in old.items()} == {
            key: value.shape for key, value in new.items()
        }
        error += np.array([np.sum((new[key] - old[key]).astype(np.float64) ** 2) for key in old])
        energy += np.array([np.sum(old[key].astype(np.float64) ** 2) for key in old])
    assert result.report.gates[0].passed
    # half of these samples judged it, the others guided the choice
    assert np.sqrt(error / energy).max() < 1.2 * budget


@pytest.mark.parametrize(
    ("before", "after", "node"),
    [
        ("waifu2x_upconv7_scale2.0x", "waifu2x_upconv7_scale2.0x_std", None),
        ("style_mosaic_std", "style_candy", "convolution"),
    ],
)
def test_comparing(zoo, monkeypatch, rng, before, after, node):
    """The same weights in operators of two times; then two styles of one architecture."""
    monkeypatch.setattr(latency, "compare", lambda *_, **__: REWRITTEN.latency)
    model, other = (zoo / "models" / f"{name}.onnx" for name in (before, after))
    (spec,) = graph.load(model).inputs
    sample = {spec.name: graphs.random(rng, 1, *spec.shape[1:])}
    report = rewriter.compare(model, other, [sample], max_drift={"rel_l2": 1e-5}, locate=True)
    parting = report.comparison.parting
    assert report.comparison.passed == report.comparison.equal == (node is None)
    assert (parting.before.node if parting else None) == node
