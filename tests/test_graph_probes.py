from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import filled, halves, model, only, random, run, site

from rewriter import graph
from rewriter.conv import Conv
from rewriter.fitting import skeleton
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target, optimized
from rewriter.winograd import Winograd

FOLLOWED = """weights: w[8,8,3,3] slope[8,1,1]
agraph (float[1,8,9,9] x) => (float[1,8,9,9] y) {
    [a] a = Conv<pads=[1,1,1,1]>(x, w)
    low = Constant<value_float=-0.5>()
    high = Constant<value_float=0.5>()
    ra = Clip(a, low, high)
    [b] b = Conv<pads=[1,1,1,1]>(ra, w)
    sum = Add(x, b)
    rb = LeakyRelu<alpha=0.2>(sum)
    [c] c = Conv<pads=[1,1,1,1]>(rb, w)
    rc = PRelu(c, slope)
    [d] y = Conv<pads=[1,1,1,1]>(rc, w)
}"""


# Channels that fill the block of any processor.
WIDE = FOLLOWED.replace("[8,8,", "[16,16,").replace("[1,8,", "[1,16,").replace("slope[8", "slope[16")


def test_probes_do_what_the_model_does(rng: np.random.Generator) -> None:
    found = filled(FOLLOWED, rng)
    x = random(rng, 1, 8, 9, 9)
    taps = run(graph.with_outputs(found, ["ra", "rb", "rc", "y"]), {"x": x})
    for name, given, expected in (("a", "x", "ra"), ("b", "ra", "rb"), ("c", "rb", "rc"), ("d", "rc", "y")):
        each = site(found, name)
        feeds = {"x": {"x": x, **taps}[given]}
        if name == "b":
            feeds["shortcut"] = x
        for rewrite in (only(each.conv), halves(each.conv)):
            probe = graph.probe(each, rewrite, (1, 8, 9, 9))
            onnx.checker.check_model(probe)
            # float32 rounding
            assert np.abs(run(probe, feeds)["y"] - taps[expected]).max() < 1e-4


def test_probes_fix_every_size(rng: np.random.Generator) -> None:
    each = site(filled(FOLLOWED, rng), "b")
    strided = Rewrite(((each.conv.with_(strides=(2, 2)),),))
    inputs = graph.load(graph.probe(each, strided, (4, 8, 12, 10))).inputs
    assert [(spec.name, spec.shape) for spec in inputs] == [
        ("x", (4, 8, 12, 10)),
        ("shortcut", (4, 8, 6, 5)),
    ]


def test_zoo_probes_load(zoo_model: Path) -> None:
    sites, _ = graph.find_sites(graph.unpin(graph.load(zoo_model)))
    for each in sites[::3]:
        in_shape = (1, each.conv.in_channels, 16, 16)
        probe = graph.probe(each, only(each.conv), in_shape)
        feeds = {spec.name: np.ones(spec.shape, np.float32) for spec in graph.load(probe).inputs}
        assert run(probe, feeds)["y"].shape[:2] == (1, each.conv.out_channels)


def test_sums_and_activations_fuse_into_the_convolutions(rng: np.random.Generator) -> None:
    each = site(filled(WIDE.replace("Clip(a, low, high)", "Relu(a)"), rng), "a")
    depthwise = [Conv(random(rng, 16, 1, 3, 3), None, (1, 1), (1, 1, 1, 1), (1, 1), 16) for _ in range(3)]
    pointwise = [Conv(random(rng, 16, 16, 1, 1)) for _ in range(3)]
    rewrite = Rewrite(tuple(zip(depthwise, pointwise, strict=True)))
    data = optimized(graph.probe(each, rewrite, (1, 16, 16, 16)), Target(threads=1))
    nodes = onnx.load_model_from_string(data).graph.node
    if not any(node.domain == "com.microsoft.nchwc" for node in nodes):
        pytest.skip("this machine has no blocked kernels")
    assert sorted(node.op_type for node in nodes) == ["Conv"] * 6 + ["ReorderInput", "ReorderOutput"]


def test_copies_stay_apart(rng: np.random.Generator) -> None:
    each = site(filled(WIDE.replace("LeakyRelu<alpha=0.2>", "Relu"), rng), "b")
    data = optimized(graph.probe(each, skeleton(only(each.conv)), (1, 16, 16, 16), 4), Target(threads=1))
    nodes = onnx.load_model_from_string(data).graph.node
    if not any(node.domain == "com.microsoft.nchwc" for node in nodes):
        pytest.skip("this machine has no blocked kernels")
    sums = [node for node in nodes if node.op_type == "Conv" and len(node.input) > 3]
    assert len(sums) == 4
    assert not any(node.op_type in ("Add", "Relu") for node in nodes)
    # each sum may be made in place: nothing else takes its shortcut
    assert len({node.input[3] for node in sums}) == 4


def test_the_block_is_read_from_the_machine(rng: np.random.Generator) -> None:
    assert graph.read_block(optimized(graph.block_probe(), Target(threads=1))) in (4, 8, 16)
    assert graph.read_block(graph.block_probe()) == 8


def test_a_rewrite_on_its_own(rng: np.random.Generator) -> None:
    for axes in (1, 2, 3):
        conv = Conv(random(rng, 4, 3, *(3,) * axes), random(rng, 4))
        data = graph.rewrite_model(halves(conv))
        onnx.checker.check_model(data, full_check=True)
        x = random(rng, 2, 3, *(6,) * axes)
        assert run(data, {"x": x})["y"].shape == (2, 4, *conv.out_size((6,) * axes))


def test_with_outputs_adds_each_once(rng: np.random.Generator) -> None:
    found = filled(FOLLOWED, rng)
    data = graph.with_outputs(found, ["a", "y", "x", "w", "a"])
    assert graph.load(data).outputs == ("y", "a", "x", "w")
    assert found.outputs == ("y",)
    with pytest.raises(ValueError, match="no tensor 'none'"):
        graph.with_outputs(found, ["none"])


def _named(a: str, c: str, slope: str, alpha: str = "alpha=0.2") -> str:
    return f"""weights: w[8,8,3,3] {slope}[8,1,1]
agraph (float[1,8,9,9] x) => (float[1,8,9,9] y) {{
    [{a}] {a} = Conv<pads=[1,1,1,1]>(x, w)
    r{a} = LeakyRelu<{alpha}>({a})
    [{c}] {c} = Conv<pads=[1,1,1,1]>(r{a}, w)
    r{c} = PRelu({c}, {slope})
    [d] y = Conv<pads=[1,1,1,1]>(r{c}, w)
}}"""


def test_names_and_weights_do_not_tell_probes_apart(rng: np.random.Generator) -> None:
    def prints(text: str) -> list[str]:
        found = filled(text, rng)
        sites = graph.find_sites(found)[0]
        assert len(sites) == 3
        return [graph.fingerprint(graph.probe(each, only(each.conv), (1, 8, 9, 9))) for each in sites]

    first = prints(_named("a", "c", "slope"))
    assert len(set(first)) == 3
    assert prints(_named("b", "other", "steep")) == first
    assert prints(_named("a", "c", "slope", "alpha=0.3"))[0] != first[0]


def test_whatever_takes_time_tells_probes_apart(rng: np.random.Generator) -> None:
    each = site(filled(FOLLOWED, rng), "c")
    conv = each.conv
    tiles = conv.with_(lowering=Winograd((2, 2)))
    probes = [
        graph.probe(each, only(conv), (1, 8, 9, 9)),
        graph.probe(each, only(conv), (1, 8, 9, 9), 1),
        graph.probe(each, only(conv), (1, 8, 9, 9), 2),
        graph.probe(each, only(conv), (1, 8, 9, 8)),
        graph.probe(each, only(conv), (2, 8, 9, 9)),
        graph.probe(each, only(conv.with_(bias=np.zeros(8, np.float32))), (1, 8, 9, 9)),
        graph.probe(each, only(conv.with_(dilations=(2, 2), pads=(2, 2, 2, 2))), (1, 8, 9, 9)),
        graph.probe(each, halves(conv), (1, 8, 9, 9)),
        graph.probe(each, only(tiles), (1, 8, 9, 9)),
        graph.probe(each, only(tiles.with_(lowering=Winograd((4, 4)))), (1, 8, 9, 9)),
    ]
    assert len({graph.fingerprint(probe) for probe in probes}) == len(probes)


def test_constants_of_integers_count() -> None:
    text = "agraph (float[4,6] x) => (float[a,b] y) { y = Reshape(x, shape) }"

    def reshaped(*sizes: int) -> str:
        return graph.fingerprint(model(text, shape=np.array(sizes, np.int64)).bytes())

    assert reshaped(2, 12) == reshaped(2, 12) != reshaped(12, 2)
