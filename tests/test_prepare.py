"""Random inputs where there are no samples: in the range that the model's own layers expect."""

import fake_latency
import numpy as np
import pytest
from graphs import model, random, run

import rewriter
from rewriter import graph, prepare
from rewriter.errors import OptionError
from rewriter.parts import Given, parts
from rewriter.sources import Preprocess

NORMED = """
agraph (float[batch,3,32,32] x) => (float[batch,8,32,32] y) {
    [conv] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [norm] n = BatchNormalization(h, s, t, mean, var)
    [relu] a = Relu(n)
    [next] g = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
    [last] y = BatchNormalization(g, s, t, mean2, var2)
}
"""
BARE = """
agraph (float[batch,32,24,24] x) => (float[batch,32,24,24] y) {
    [conv] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
}
"""


def _weights(rng):
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    norms = {"s": ones, "t": zeros, "mean": zeros, "var": ones, "mean2": zeros, "var2": ones}
    return {"w": random(rng, 8, 3, 3, 3), "v": random(rng, 8, 8, 3, 3), **norms}


def _trained(rng, images):
    """A network whose running statistics are those of some images, layer by layer."""
    weights = _weights(rng)
    for tensor, mean, variance in (("h", "mean", "var"), ("g", "mean2", "var2")):
        data = graph.with_outputs(model(NORMED, **weights), [tensor])
        seen = run(data, {"x": images})[tensor].astype(np.float64)
        weights[mean] = np.float32(seen.mean((0, 2, 3)))
        weights[variance] = np.float32(seen.var((0, 2, 3)))
    return model(NORMED, **weights)


def _pictures(rng):
    """Sixteen smooth images between 0 and 1."""
    coarse = rng.uniform(0, 1, (16, 3, 8, 8))
    return coarse.repeat(4, 2).repeat(4, 3)


RANGES = [
    (lambda image: image, "0 to 1", 0.0, 1.0),
    (lambda image: 2 * image - 1, "-1 to 1", -1.0, 1.0),
    (lambda image: 255 * image, "0 to 255", 0.0, 255.0),
    (lambda image: 255 * image - 128, "-128 to 127", -128.0, 127.0),
]


@pytest.mark.parametrize(("scaled", "name", "low", "high"), RANGES)
def test_the_range_is_that_of_the_training(rng, scaled, name, low, high):
    found = _trained(rng, np.float32(scaled(_pictures(rng))))
    drawn, told = prepare.random_samples(found, {}, 0)
    assert told == f"uniform values of {name}, as its BatchNormalizations expect"
    values = np.concatenate([feeds["x"] for feeds in drawn.feeds])
    assert values.dtype == np.float32
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high
    assert values.shape[1:] == (3, 32, 32)


def test_normalised_inputs_are_told_from_others(rng):
    pictures = _pictures(rng)
    found = _trained(rng, np.float32((pictures - 0.5) * 12**0.5))
    *_, told = prepare.random_samples(found, {}, 0)
    assert told.startswith("normal values")


def test_a_range_that_is_none_of_the_usual_is_said_to_be(rng):
    found = _trained(rng, np.float32(1e-6 * _pictures(rng)))
    *_, told = prepare.random_samples(found, {}, 0)
    assert told.endswith("although not what its BatchNormalizations expect")


def test_what_only_scales_and_shifts_tells_no_range(rng):
    text = """agraph (float[batch,3,32,32] x) => (float[batch,3,32,32] y) {
        a = Mul(x, s) b = Add(a, s) y = Conv<pads=[1,1,1,1]>(b, w)
    }"""
    found = model(text, w=random(rng, 3, 3, 3, 3), s=random(rng, 1))
    merged = graph.as_norms(found)
    assert [node.op_type for node in merged.proto.graph.node] == ["BatchNormalization", "Conv"]
    assert graph.find_norms(merged, 3) == ()


def test_without_batch_normalization_values_are_normal(rng):
    found = parts(model(BARE, w=random(rng, 32, 32, 3, 3)), Given(None), {}, 0)
    fit, choosing, final = found.fit, found.choosing, found.final
    assert found.remarks[0].endswith("random inputs, normal values of mean 0 and variance 1")
    values = np.concatenate([feeds["x"] for part in (choosing, final) for feeds in part.feeds])
    # the error of the variance of some 100,000 values is below a hundredth
    assert abs(values.mean()) < 0.02
    assert abs(values.var() - 1) < 0.02
    assert (len(fit), len(choosing), len(final)) == (1, 4, 4)


def test_the_report_tells_what_judged(rng, monkeypatch):
    fake_latency.install(monkeypatch)
    report = rewriter.optimize(model(BARE, w=random(rng, 32, 32, 3, 3)).bytes(), exact=True).report
    assert report.warnings[0] == (
        "no samples were given; in their place random inputs, normal values of mean 0 and variance 1"
    )


def test_norms_are_the_first_with_constant_statistics(rng):
    found = model(NORMED, **_weights(rng))
    assert [norm.input for norm in graph.find_norms(found, 3)] == ["h", "g"]
    (norm,) = graph.find_norms(found, 1)
    # epsilon is that of the operator's default
    np.testing.assert_allclose(norm.variance, np.full(8, 1 + 1e-5))
    text = NORMED.replace("w)\n", "w)\n    mean = Identity(other)\n", 1).replace("y) {", "y) {", 1)
    fed = text.replace("(float[batch,3,32,32] x)", "(float[batch,3,32,32] x, float[8] other)")
    weights = {name: value for name, value in _weights(rng).items() if name != "mean"}
    assert [norm.input for norm in graph.find_norms(model(fed, **weights), 3)] == ["g"]


def test_passes_are_those_named_or_all_but_those() -> None:
    def names(*given: str, **more: bool) -> set[str]:
        return {each.name for each in prepare.named_passes(given or None, **more)}

    everything = names()
    assert names("tucker2", "winograd") == {"tucker2", "winograd"}
    assert names("-tucker2", "-winograd") == everything - {"tucker2", "winograd"}
    assert names("-winograd", exact=True) == names(exact=True) - {"winograd"}
    assert "winograd" not in names("-tucker2", plain=True)
    for given, says in ((("-tucker2", "winograd"), "not both"), (("-tucker",), "unknown pass 'tucker'")):
        with pytest.raises(OptionError, match=says):
            names(*given)


def test_random_samples_on_request(rng):
    found = parts(model(BARE, w=random(rng, 32, 32, 3, 3)), Given(None, random=10), {}, 0)
    assert [len(part) for part in (found.fit, found.choosing, found.final)] == [6, 2, 2]
    assert "drift on noise says little of drift on real inputs, give some with --calib" in found.remarks[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"calibration": "a.npz", "random": 10}, "--random-samples stands in for samples"),
        ({"calibration": None, "evaluation": "a.npz", "random": 10}, "stands in for samples"),
        ({"calibration": None, "random": 2}, "--random-samples 2: .* need at least 3"),
        (
            {"calibration": "a.npz", "preprocess": Preprocess(scale=1)},
            "--preprocess is for folders of images",
        ),
    ],
)
def test_samples_that_exclude_each_other(given, words):
    with pytest.raises(OptionError, match=words):
        Given(**given)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_scalars_are_fed_as_they_are(rng, monkeypatch, given, batch):
    """A rate or a threshold beside the tensors, the same for all samples of a batch."""
    fake_latency.install(monkeypatch)
    text = """agraph (float[N,32,12,12] x, float t) => (float[N,32,12,12] y) {
        h = Conv<pads=[1,1,1,1]>(x, w) y = Add(h, t)
    }"""
    found = model(text, w=random(rng, 32, 32, 3, 3))
    samples = [{"x": random(rng, 1, 32, 12, 12), "t": np.float32(0.5)} for _ in range(12)]
    source = {"calibration": samples} if given else {}
    report = rewriter.optimize(found.proto, exact=True, batch=batch, **source).report
    assert report.improved
    assert report.drift[0].value < 1e-5


@pytest.mark.parametrize("scalar_first", [False, True])
def test_fits_take_scalars_beside_the_samples(rng, monkeypatch, scalar_first):
    fake_latency.install(monkeypatch)
    inputs = "float t, float[N,32,12,12] x" if scalar_first else "float[N,32,12,12] x, float t"
    text = f"""agraph ({inputs}) => (float[N,32,12,12] y) {{
        h = Conv<pads=[1,1,1,1]>(x, w) y = Add(h, t)
    }}"""
    found = model(text, w=random(rng, 32, 32, 3, 3))
    samples = [{"x": random(rng, 1, 32, 12, 12), "t": np.float32(0.5)} for _ in range(12)]
    report = rewriter.optimize(
        found.proto, samples, max_drift={"rel_l2": 0.9}, passes=["channel_svd"], threads=1
    ).report
    assert report.improved
    assert report.sites[0].became == "channel_svd"
