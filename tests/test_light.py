"""Well-known architectures, all the way through.

LIGHT=all goes through all of them; some take minutes.
"""

from __future__ import annotations

import os

import fake_latency
import light
import numpy as np
import pytest
from graphs import distance, halves, random_feeds, run

import rewriter
from rewriter import graph

ALL = os.environ.get("LIGHT") == "all"
CHOSEN = light.NAMES if ALL else ("shufflenet", "squeezenet")


@pytest.mark.parametrize("name", CHOSEN)
def test_sites_are_found_and_rewritten(name: str, rng: np.random.Generator) -> None:
    found = graph.load(light.network(name))
    sites, refusals = graph.find_sites(found)
    layers = [
        layer for layer in rewriter.inspect(found.proto, threads=1).layers if layer.layer.op_type == "Conv"
    ]
    assert {layer.layer.name for layer in layers} == {site.name for site in sites}
    assert not refusals
    some = sites[:: max(len(sites) // 4, 1)]
    rewritten = graph.splice(found, [(site, halves(site.conv)) for site in some])
    folded = graph.fold_around(found, sites)
    feeds = random_feeds(found, rng)
    before = run(found.bytes(), feeds)
    for other in (rewritten, folded):
        assert distance(before, run(other.bytes(), feeds)) < 1e-4  # float32 rounding through 121 layers


@pytest.mark.parametrize("name", CHOSEN if ALL else ("squeezenet",))
def test_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    done = rewriter.optimize(light.network(name), exact=True, threads=1)
    assert done.report.sites
    assert done.improved == (done.report.after.macs < done.report.before.macs)
