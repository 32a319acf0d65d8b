"""A run over what an earlier run has written: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json

import fake_latency
import numpy as np
import onnx
import pytest
import residual
from graphs import distance, model, random, run

import rewriter
from rewriter import graph, outcome, search, version
from rewriter.conv import Cost
from rewriter.plan import Candidate, Plan
from rewriter.rewrite import Rewrite

TILED = """agraph (float[batch,32,24,24] x) => (float[batch,32,24,24] y) {
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [relu] a = Relu(h)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
}"""


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)


def told(proto: onnx.ModelProto) -> dict[str, str]:
    found = graph.load(proto).metadata
    if known := version.version():
        assert found["rewriter.version"] == known
    return json.loads(found["rewriter.sites"])


def test_exact_twice(rng: np.random.Generator) -> None:
    found = model(TILED, w=random(rng, 32, 32, 3, 3), v=random(rng, 32, 32, 3, 3))
    once = rewriter.optimize(found.proto, exact=True)
    assert once.improved
    assert {form.split()[0] for form in told(once.model).values()} == {"winograd"}
    assert all(node.name.split("/")[0] in ("stem", "head", "relu") for node in once.model.graph.node)
    twice = rewriter.optimize(once.model, exact=True)
    assert not twice.improved
    assert twice.model.SerializeToString() == once.model.SerializeToString()
    refused = [(each.node, each.reason) for each in twice.report.refusals]
    assert refused == [(name, "an earlier run has put it into tiles") for name in ("stem", "head")]


def test_fitted_twice(rng: np.random.Generator) -> None:
    network = residual.network(rng, rank=8, noise=0.03)
    samples = [{"x": each} for each in np.split(residual.images(rng, 60), 15)]
    once = rewriter.optimize(
        network, samples, max_drift={"rel_l2": 0.1}, passes=["channel_svd", "spatial_svd"]
    )
    assert once.improved
    first = told(once.model)
    twice = rewriter.optimize(
        once.model, samples, max_drift={"rel_l2": 0.1}, passes=["channel_svd", "spatial_svd"]
    )
    onnx.checker.check_model(twice.model, full_check=True)
    second = told(twice.model)
    assert all(second[name].startswith(form) for name, form in first.items())
    feeds = samples[0]
    before, after = (run(each.SerializeToString(), feeds) for each in (once.model, twice.model))
    # each run may spend its budget; on a few samples, by their largest value
    assert distance(before, after) < 0.3
    if not twice.improved:
        assert twice.model.SerializeToString() == once.model.SerializeToString()


def test_forms_of_a_site_that_is_rewritten_again_are_both_told(rng: np.random.Generator) -> None:
    padded = np.pad(random(rng, 32, 32, 3, 3), ((0, 0), (0, 0), (1, 1), (1, 1)))
    text = "agraph (float[1,32,24,24] x) => (float[1,32,24,24] y) { [c] y = Conv<pads=[2,2,2,2]>(x, w) }"
    once = rewriter.optimize(model(text, w=padded).proto, exact=True, passes=["crop_kernel"])
    assert told(once.model) == {"c": "crop_kernel 3x3"}
    twice = rewriter.optimize(once.model, exact=True, passes=["winograd"])
    assert told(twice.model)["c"].startswith("crop_kernel 3x3; winograd ")


def test_metadata_that_are_not_ours_do_no_harm(rng: np.random.Generator) -> None:
    found = model(TILED, w=random(rng, 32, 32, 3, 3), v=random(rng, 32, 32, 3, 3)).copy()
    for value in ("no JSON", "[1]", '{"a": 1}'):
        del found.metadata_props[:]
        found.metadata_props.add(key="rewriter.sites", value=value)
        kept = outcome.put_together(graph.load(found), (), search.Trial(Plan((), 0, 0, 0), (), 0))
        assert told(kept.proto) == {}


def test_what_was_only_refitted_is_told(rng: np.random.Generator) -> None:
    base = graph.load(residual.network(rng))
    sites, _ = graph.find_sites(base)
    rewrites = [(site, Rewrite(((site.conv.with_(weight=2 * site.conv.weight),),))) for site in sites[:2]]
    form = Candidate(sites[0].name, "channel_svd", (8,), rewrites[0][1], Cost(), 0.0)
    made = outcome.put_together(base, (), search.Trial(Plan((form,), 0.0, 0.0, 0.0), rewrites, 0.0))
    assert told(made.proto) == {"stem": "channel_svd 8", "one": "refitted"}
