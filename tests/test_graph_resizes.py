"""Resizes in other coordinates: only where that is the same function."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from graphs import model, random, run

from rewriter import graph
from rewriter.graph.attributes import attribute

COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "asymmetric",
    "align_corners",
    "half_pixel_symmetric",
)
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def resize(
    mode: str,
    coordinates: str,
    rounding: str,
    factors: tuple[float, float],
) -> graph.Model:
    text = (
        '<ir_version: 8, opset_import: ["" : 19]> agraph (float[N,3,5,4] x) => (float y) { '
        f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}", '
        f'nearest_mode="{rounding}">(x, , s) }}'
    )
    return model(text, s=np.float32([1, 1, *factors]))


def coordinates_of(found: graph.Model) -> str:
    (node,) = (node for node in found.proto.graph.node if node.op_type == "Resize")
    return str(attribute(node, "coordinate_transformation_mode"))


@pytest.mark.parametrize("factors", [(2, 2), (3, 2), (1, 4), (5, 5), (1.5, 2), (0.5, 2)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_what_changes_is_the_same(mode: str, factors: tuple[float, float], rng: np.random.Generator) -> None:
    changed = set()
    for coordinates, rounding in product(COORDINATES, ROUNDINGS):
        found = resize(mode, coordinates, rounding, factors)
        after = graph.in_blocks(found)
        if after is found:
            continue
        changed.add((coordinates, rounding))
        onnx.checker.check_model(after.proto)
        feeds = {"x": random(rng, 2, 3, 5, 4)}
        expected, got = run(found.bytes(), feeds)["y"], run(after.bytes(), feeds)["y"]
        tolerance = 0.0 if mode == "nearest" else 1e-6
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
        assert graph.in_blocks(after) is after
        assert graph.moved_resizes(found, after) == 1
    if min(factors) < 1 or 1.5 in factors:
        assert not changed
    elif mode == "linear":
        assert {coordinates for coordinates, _ in changed} == {"pytorch_half_pixel"}
    else:
        assert {("half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_ceil")} <= changed
        assert ("half_pixel", "floor") not in changed
        # of asymmetric coordinates only halves are rounded down to where the floor is
        assert (("asymmetric", "round_prefer_floor") in changed) == (max(factors) == 2)


def test_of_tensorflow(rng: np.random.Generator) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 11]> agraph (float[N,3,5,4] x) => (float y) { y = Resize<'
        'coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor">(x, r, s) }'
    )
    found = model(text, r=np.float32([]), s=np.float32([1, 1, 2, 3]))
    after = graph.in_blocks(found)
    assert coordinates_of(after) == "asymmetric"
    x = random(rng, 2, 3, 5, 4)
    np.testing.assert_array_equal(run(after.bytes(), {"x": x})["y"], x.repeat(2, 2).repeat(3, 3))


@pytest.mark.parametrize(
    ("shape", "enlarged", "moves"),
    [
        ("2,3,5,4", "[2,3,10,12]", True),
        ("N,3,5,4", "[N,3,10,12]", True),
        ("2,3,H,4", "[2,3,10,12]", False),
        ("2,3,5,4", "[2,3,10,13]", False),
    ],
)
def test_factors_from_sizes(shape: str, enlarged: str, moves: bool) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 13]> agraph (float[{shape}] x, int64[4] s) => '
        f"(float{enlarged} y) {{ y = Resize(x, , , s) }}"
    )
    found = model(text)
    assert (graph.in_blocks(found) is not found) == moves


def test_other_resizes_stay() -> None:
    assert graph.in_blocks(stays := resize("cubic", "pytorch_half_pixel", "floor", (2, 2))) is stays
    signal = model("agraph (float[N,3,5] x) => (float y) { y = Resize(x, , s) }", s=np.float32([1, 1, 2]))
    assert graph.in_blocks(signal) is signal
    channels = model(
        "agraph (float[N,3,5,4] x) => (float y) { y = Resize(x, , s) }", s=np.float32([1, 2, 2, 2])
    )
    assert graph.in_blocks(channels) is channels
