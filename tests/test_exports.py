"""Models as exporters write them (`exports/make.py` made them), all the way through."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import fake_latency
import numpy as np
import onnx
import pytest
from forms import forms
from graphs import distance, random, run

import rewriter
from rewriter import graph
from rewriter.runtime import Session, Target

FOLDER = Path(__file__).parent / "exports"
# How many convolutions there are in the top graph, and in bodies of Loop or Scan.
COUNTS = {
    "channels_last": (4, 0),
    "recurrent_dynamo": (2, 2),
    "recurrent_torchscript": (1, 3),
    "residual_dynamo": (6, 0),
    "residual_torchscript": (6, 0),
    "temporal_dynamo": (4, 0),
    "temporal_torchscript": (4, 0),
    "unet_dynamo": (6, 0),
    "unet_torchscript": (6, 0),
    "volume_dynamo": (4, 0),
    "volume_torchscript": (4, 0),
}
# Each architecture once, and both exporters.
FITTED = ("channels_last", "recurrent_torchscript", "residual_dynamo", "temporal_torchscript", "unet_dynamo")
SIZES = {"batch": 1, "unk__1": 1, "frames": 4, "height": 16, "width": 24, "time": 40}
LARGER = {"batch": 3, "unk__1": 2, "frames": 5, "height": 24, "width": 16, "time": 56}
ROUNDING = 1e-4  # of float32 through a few layers, relative to the largest value


@pytest.fixture(params=sorted(COUNTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> graph.Model:
    return graph.load(FOLDER / f"{name}.onnx")


def drawn(model: graph.Model, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs whose neighbouring values are alike, as those of pictures and sounds are."""
    (spec,) = model.inputs
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    values = random(rng, *shape)
    for axis in range(1, len(shape)):
        values = values + np.roll(values, 1, axis)
    return {spec.name: values / np.float32(values.std())}


def check(before: graph.Model, after: onnx.ModelProto) -> None:
    """It is a sound model with the interface that it came with."""
    onnx.checker.check_model(after, full_check=True)
    for side in ("input", "output"):
        assert list(getattr(after.graph, side)) == list(getattr(before.proto.graph, side))


def test_every_model_is_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(COUNTS)


def test_every_convolution_is_found_or_refused(name: str, model: graph.Model) -> None:
    sites, refusals = graph.find_sites(model)
    assert (len(sites), len(refusals)) == COUNTS[name]
    assert all("in a body of" in each.reason for each in refusals)


def test_inspect(
    name: str, model: graph.Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_latency.install(monkeypatch)  # for the ranks that are worth trying
    shapes = {key: value.shape for key, value in drawn(model, SIZES, rng).items()}
    found = rewriter.inspect(model.proto, shapes=shapes, threads=1)
    layers = [each for each in found.layers if "Conv" in each.layer.op_type]
    there, inner = COUNTS[name]
    assert [each.layer.name for each in layers] == [site.name for site in graph.find_sites(model)[0]]
    assert len(layers) == there
    assert found.uncounted == ({"Conv in bodies": inner} if inner else {})
    assert all("channel_svd" in each.passes or each.layer.params < 500 for each in layers)


def test_every_form_at_every_convolution(name: str, model: graph.Model, rng: np.random.Generator) -> None:
    sites, _ = graph.find_sites(model)
    inputs = [drawn(model, sizes, rng) for sizes in (SIZES, LARGER)]
    before = [run(model.bytes(), each) for each in inputs]
    for chosen in zip_longest(*([(site, made) for _, made in forms(site)] for site in sites)):
        after = graph.splice(model, [each for each in chosen if each is not None])
        check(model, after.proto)
        session = Session(after.bytes(), Target(threads=1))
        for feeds, expected in zip(inputs, before, strict=True):
            assert distance(expected, session.run(feeds)) < ROUNDING


def test_exact(model: graph.Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    feeds = drawn(model, SIZES, rng)
    shapes = {key: value.shape for key, value in feeds.items()}
    done = rewriter.optimize(model.proto, exact=True, shapes=shapes, threads=1)
    assert done.improved == (done.report.after.macs < done.report.before.macs)
    refused = {each.node for each in done.report.refusals if each.pass_name is None}
    assert refused == {each.node for each in graph.find_sites(model)[1]}
    if done.improved:
        check(model, done.model)
        assert distance(run(model.bytes(), feeds), run(done.model.SerializeToString(), feeds)) < ROUNDING


@pytest.mark.parametrize("name", FITTED, indirect=True)
def test_fitted(model: graph.Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    samples = [drawn(model, SIZES, rng) for _ in range(12)]
    done = rewriter.optimize(
        model.proto, samples, max_drift={"rel_l2": 0.1}, passes=["channel_svd"], threads=1
    )
    assert done.improved, done.report.verdict
    check(model, done.model)
    feeds = drawn(model, LARGER, rng)
    before, after = (run(data, feeds) for data in (model.bytes(), done.model.SerializeToString()))
    # twice the budget: a sample of other sizes than those that were fitted to
    assert all(np.linalg.norm(after[key] - before[key]) < 0.2 * np.linalg.norm(before[key]) for key in before)
