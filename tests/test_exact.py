"""`optimize(..., exact=True)`: no samples, no fitting, the same final word."""

import fake_latency
import numpy as np
import pytest
from graphs import model, run

import rewriter
from rewriter import OptionError, SampleError

MODEL = """
agraph (float[batch,32,{size}] x) => (float[batch,{channels},{size}] y) {{
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [relu] a = Relu(h)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
}}
"""


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake_latency.install(monkeypatch)


def _model(rng, channels=32, size="24,24"):
    w = rng.standard_normal((channels, 32, 3, 3)).astype(np.float32)
    v = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    return model(MODEL.format(channels=channels, size=size), w=w, v=v)


def test_a_faster_model_that_computes_the_same(rng, tmp_path):
    found = _model(rng)
    result = rewriter.optimize(found.bytes(), exact=True, output=tmp_path / "fast.onnx")
    assert result.improved
    assert {site.became for site in result.report.sites} == {"winograd"}
    x = rng.standard_normal((3, 32, 24, 24)).astype(np.float32)
    before, after = (
        run(data, {"x": x})["y"] for data in (found.bytes(), (tmp_path / "fast.onnx").read_bytes())
    )
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)


def test_samples_judge_where_they_are_given(rng):
    samples = [{"x": rng.standard_normal((1, 32, 24, 24)).astype(np.float32)} for _ in range(6)]
    result = rewriter.optimize(_model(rng).bytes(), samples, exact=True)
    assert result.improved
    assert result.report.samples["final"] == 1


def test_nothing_is_written_where_nothing_pays(rng, tmp_path):
    result = rewriter.optimize(_model(rng, channels=12).bytes(), exact=True, output=tmp_path / "fast.onnx")
    assert not result.improved
    assert not (tmp_path / "fast.onnx").exists()
    assert "multiples of 8" in result.report.refusals[0].reason


def test_what_is_asked_for_where_it_is_missing(rng):
    with pytest.raises(OptionError, match=r"--shape x:1,32,h,w"):
        rewriter.optimize(_model(rng, size="h,w").bytes(), exact=True)
    with pytest.raises(SampleError, match="--exact"):
        rewriter.optimize(_model(rng).bytes())
    with pytest.raises(OptionError, match="not exact"):
        rewriter.optimize(_model(rng).bytes(), exact=True, passes=["tucker2"])
