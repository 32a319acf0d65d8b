"""What reports show beside the verdict: times told to layers, drift told to samples, pictures of images."""

import base64
import io

import graphs
import numpy as np
import pytest
from PIL import Image

from rewriter import closeup, runtime
from rewriter.errors import ModelError
from rewriter.judge import Judge
from rewriter.runtime import Target
from rewriter.samples import Samples

TEXT = """
agraph (float[N,8,12,12] x) => (float[N,8,12,12] y) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w)
  [act] b = Relu(a)
  [two] c = Conv<pads=[1,1,1,1]>(b, u)
  [sum] d = Add(c, b)
  [last] y = Conv<pads=[1,1,1,1]>(d, z)
}
"""
SPLIT = """
  [two_vertical] t = Conv<kernel_shape=[3,1], pads=[1,0,1,0]>(b, v)
  [two_negated] n = Neg(t)
  [two_horizontal] c = Conv<kernel_shape=[1,3], pads=[0,1,0,1]>(n, h)
"""
FIRST = "  [one] a = Conv<pads=[1,1,1,1]>(x, w)\n"
FIRST_SPLIT = """
  [one_vertical] s = Conv<kernel_shape=[3,1], pads=[1,0,1,0]>(x, v)
  [one_horizontal] a = Conv<kernel_shape=[1,3], pads=[0,1,0,1]>(s, h)
"""
WHOLE = "  [two] c = Conv<pads=[1,1,1,1]>(b, u)\n"
IMAGE = (
    "agraph (float[N,3,40,40] x) => (float[N,3,40,40] y, float[N,1] s) { y = Conv(x, w)\n s = Flatten(m)\n"
)
IMAGE += " m = GlobalAveragePool(q)\n q = Conv(x, r) }"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    found = runtime.profiled
    monkeypatch.setattr(runtime, "profiled", lambda *given, **_: found(*given, seconds=0.01))


@pytest.fixture
def weights(rng):
    shapes = {"w": (8, 8, 3, 3), "u": (8, 8, 3, 3), "z": (8, 8, 3, 3), "v": (4, 8, 3, 1), "h": (8, 4, 1, 3)}
    return {name: graphs.random(rng, *shape) for name, shape in shapes.items()}


@pytest.fixture
def original(weights):
    return graphs.model(TEXT, **{name: weights[name] for name in "wuz"})


@pytest.fixture
def feeds(rng):
    return {"x": graphs.random(rng, 1, 8, 12, 12)}


def test_times_are_told_to_the_layers_of_the_original(original, weights, feeds):
    after = graphs.model(TEXT.replace(WHOLE, SPLIT), **{name: weights[name] for name in "wzvh"})
    found = closeup.times(original, after, feeds, Target(threads=1))
    assert [layer.name for layer in found.layers] == ["one", "two", "last"]
    assert all(layer.before_ms > 0 and layer.after_ms > 0 for layer in found.layers)
    # the negation belongs to the layer, too
    layers = sum(layer.after_ms for layer in found.layers)
    negated = next(each.after_ms for each in found.operators if each.op_type == "Neg")
    assert negated > 0
    convolutions = sum(each.after_ms for each in found.operators if "Conv" in each.op_type)
    assert layers >= (convolutions + negated) * (1 - 1e-9)
    assert found.before_ms == pytest.approx(sum(each.before_ms for each in found.operators))


def test_all_stages_of_a_layer_with_an_activation_are_told_to_it(original, weights, feeds):
    after = graphs.model(TEXT.replace(FIRST, FIRST_SPLIT), **{name: weights[name] for name in "uzvh"})
    found = closeup.times(original, after, feeds, Target(threads=1))
    convolutions = sum(each.after_ms for each in found.operators if "Conv" in each.op_type)
    assert sum(layer.after_ms for layer in found.layers) >= convolutions * (1 - 1e-9)


def test_models_without_common_names_have_layers_of_their_own(original, weights, feeds):
    renamed = TEXT
    for name in "abcd":
        renamed = renamed.replace(f" {name} = ", f" r{name} = ").replace(f"({name},", f"(r{name},")
        renamed = renamed.replace(f", {name})", f", r{name})").replace(f"({name})", f"(r{name})")
    renamed = renamed.replace("[one]", "[first]").replace("[two]", "[second]").replace("[last]", "[third]")
    after = graphs.model(renamed, **{name: weights[name] for name in "wuz"})
    found = closeup.times(original, after, feeds, Target(threads=1))
    assert [layer.name for layer in found.layers] == ["one", "two", "last", "first", "second", "third"]
    assert [layer.after_ms is None for layer in found.layers] == [True] * 3 + [False] * 3


def test_without_another_model(original, feeds):
    found = closeup.times(original, None, feeds, Target(threads=1))
    assert found.after_ms is None
    assert {each.after_ms for each in (*found.layers, *found.operators)} == {None}


def judge_of(original, samples):
    return Judge(original, {}, samples.subset([0]), samples, 0)


def test_the_worst_samples_are_those_of_the_drift(original, weights, rng):
    louder = graphs.model(TEXT, w=weights["w"], u=weights["u"], z=weights["z"] + np.float32(0.01))
    samples = Samples(tuple({"x": graphs.random(rng, 1, 8, 12, 12)} for _ in range(40)))
    judge = judge_of(original, samples)
    drift, _ = judge.verdicts(louder)
    (found,) = closeup.output_drifts(judge, louder)
    assert (found.output, found.shape, len(found.rel_l2)) == ("y", (8, 12, 12), 40)
    assert found.worst[0].index == next(each.worst for each in drift if each.measure == "rel_l2")
    order = np.argsort(found.rel_l2)[::-1]
    assert [each.index for each in found.worst] == order[:3].tolist()
    assert [each.rel_l2 for each in found.worst] == [found.rel_l2[index] for index in order[:3]]
    for each in samples.subset([5]).batches():
        before, after = (graphs.run(model.bytes(), each[0])["y"] for model in (original, louder))
        # float32 sums in another order
        assert found.rel_l2[5] == pytest.approx(
            np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-4
        )


def test_images_are_pictured(rng):
    kernels = {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "r": np.ones((1, 3, 1, 1), np.float32)}
    original = graphs.model(IMAGE, **kernels)
    darker = graphs.model(IMAGE, w=kernels["w"] * np.float32(0.95), r=kernels["r"])
    samples = Samples(tuple({"x": rng.random((1, 3, 40, 40), np.float32)} for _ in range(4)))
    image, scores = closeup.output_drifts(judge_of(original, samples), darker)
    assert [each.picture is None for each in scores.worst] == [True] * 3
    worst = image.worst[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(worst.picture.before_png))))
    sample = samples.feeds[worst.index]["x"][0].transpose(1, 2, 0)
    assert np.abs(shown / 255 - sample).max() < 0.01
    after = np.asarray(Image.open(io.BytesIO(base64.b64decode(worst.picture.after_png))))
    assert np.abs(after / 255 - 0.95 * sample).max() < 0.01


def test_pictures_stay_few(rng, monkeypatch):
    monkeypatch.setattr(closeup, "_MOST_PICTURED", 20_000)
    kernels = {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "r": np.ones((1, 3, 1, 1), np.float32)}
    model = graphs.model(IMAGE, **kernels)
    samples = Samples(tuple({"x": rng.random((1, 3, 40, 40), np.float32)} for _ in range(4)))
    image, _ = closeup.output_drifts(judge_of(model, samples), model)
    assert [each.picture is None for each in image.worst] == [False, True, True]


def test_a_run_does_not_fail_for_its_times(original, feeds, monkeypatch):
    def fails(*_, **__):
        raise ModelError("no profile")

    monkeypatch.setattr(closeup, "profile", fails)
    samples = Samples(({"x": feeds["x"]},))
    found = closeup.look(judge_of(original, samples), original, original, True, feeds, Target())
    assert found.times is None
    assert found.outputs[0].rel_l2 == (0.0,)
    assert "could not be measured: ModelError: no profile" in found.warnings[0]
