"""Operators that ONNX has withdrawn and ONNX Runtime still runs, around convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import distance, filled, halves, random_feeds, run, site

import rewriter
from rewriter import graph

TEXT = """weights: w[8,3,3,3] v[8,4,3,3]
<ir_version: 3, opset_import: ["" : 7]>
agraph (float[1,3,12,13] x) => (float[1,4,H,W] y) {
    scaled = ImageScaler<scale=2.0, bias=[0.5,-0.5,1.0]>(x)
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(scaled, w)
    narrow = Crop<border=[1,2,3,4]>(h)
    [up] u = ConvTranspose<kernel_shape=[3,3], strides=[2,2], output_shape=[12,19]>(narrow, v)
    y = Affine<alpha=2.0, beta=1.0>(u)
}"""


def test_sizes_are_known_behind_them(rng: np.random.Generator) -> None:
    found = filled(TEXT, rng)
    sites, refusals = graph.find_sites(found)
    assert (len(sites), refusals) == (2, ())
    feeds = random_feeds(found, rng)
    before = run(found.bytes(), feeds)
    assert before["y"].shape == (1, 4, 12, 19)
    after = run(graph.splice(found, [(each, halves(each.conv)) for each in sites]).bytes(), feeds)
    assert distance(before, after) < 1e-5  # float32 rounding
    shapes = [layer.layer.out_shape for layer in rewriter.inspect(found.proto).layers]
    assert shapes == [(1, 8, 12, 13), (1, 4, 12, 19)]


@pytest.mark.parametrize("crop", ["border=[1,2,3]", "border=2", "border=[1,2,3,4], scale=[6,9]"])
def test_what_is_not_known_of_them_is_refused(rng: np.random.Generator, crop: str) -> None:
    found = filled(TEXT.replace("border=[1,2,3,4]", crop), rng)
    sites, (refusal,) = graph.find_sites(found)
    assert [each.name for each in sites] == ["stem"]
    assert (refusal.node, "output_shape" in refusal.reason) == ("up", True)
    assert site(found, "stem").conv.pads == (1, 1, 1, 1)
