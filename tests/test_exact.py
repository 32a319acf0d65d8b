"""`optimize(..., exact=True)`: no samples, no fitting, the same final word."""

import json

import fake_latency
import numpy as np
import pytest
from graphs import model, run

import rewriter
from rewriter import OptionError, SampleError, cli, limits
from rewriter.cli import status

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


def _planted(rng):
    """Convolutions whose kernels were written densely, by name."""

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    grouped = np.zeros((32, 32, 3, 3), np.float32)
    for block in (slice(start, start + 8) for start in range(0, 32, 8)):
        grouped[block, block] = drawn(8, 8, 3, 3)
    dilated = np.zeros((32, 32, 5, 5), np.float32)
    dilated[:, :, ::2, ::2] = drawn(32, 32, 3, 3)
    separable = np.einsum("mrx,rcy->mcyx", drawn(32, 4, 3), drawn(4, 32, 3))
    return {
        "grouped": grouped,
        "padded": np.pad(drawn(32, 32, 3, 3), ((0, 0), (0, 0), (1, 1), (1, 1))),
        "dilated": dilated,
        "doubled": np.repeat(drawn(8, 32, 3, 3), 4, axis=0),
        "separable": separable.astype(np.float32),
        "random": drawn(32, 32, 3, 3),
    }


def _chain(kernels):
    """A model of convolutions that keep the size, a Relu between them, in that order."""
    lines, x = [], "x"
    for name, kernel in kernels.items():
        size = kernel.shape[2]
        attributes = f"kernel_shape={[size] * 2}, pads={[size // 2] * 4}"
        lines.append(f"[{name}] h_{name} = Conv<{attributes}>({x}, w_{name})")
        lines.append(f"a_{name} = Relu(h_{name})")
        x = f"a_{name}"
    text = f"agraph (float[batch,32,24,24] x) => (float[batch,32,24,24] {x}) {{ {' '.join(lines)} }}"
    return model(text, **{f"w_{name}": kernel for name, kernel in kernels.items()})


def test_structure_that_was_written_densely_is_undone(rng, tmp_path):
    kernels = _planted(rng)
    result = rewriter.optimize(
        _chain(kernels).bytes(),
        exact=True,
        passes=["split_groups", "crop_kernel", "exact_channels", "exact_spatial"],
        output=tmp_path / "fast.onnx",
    )
    assert result.improved
    sites = {site.node: site for site in result.report.sites}
    assert {name: (site.became, site.rank) for name, site in sites.items()} == {
        "grouped": ("split_groups", (4,)),
        "padded": ("crop_kernel", (3, 3)),
        "dilated": ("crop_kernel", (3, 3)),
        "doubled": ("exact_channels", (0, 1, 8)),
        "separable": ("exact_spatial", (4, 0, 1)),
        "random": (None, None),
    }
    for site in (site for site in sites.values() if site.became):
        assert site.rounding_error < 100 * max(site.direct_rounding_error, 2.0**-24)
    x = rng.standard_normal((2, 32, 24, 24)).astype(np.float32)
    before, after = (
        run(data, {"x": x}) for data in (_chain(kernels).bytes(), (tmp_path / "fast.onnx").read_bytes())
    )
    for name in before:
        assert np.linalg.norm(after[name] - before[name]) <= 1e-5 * np.linalg.norm(before[name])


def test_fitted_runs_find_it_too(rng):
    kernels = {name: each for name, each in _planted(rng).items() if name in ("grouped", "separable")}
    samples = [{"x": rng.standard_normal((1, 32, 24, 24)).astype(np.float32)} for _ in range(20)]
    report = rewriter.optimize(_chain(kernels).bytes(), samples, max_drift={"rel_l2": 1e-5}).report
    assert report.improved
    assert {site.node: site.became for site in report.sites} == {
        "grouped": "split_groups",
        "separable": "exact_spatial",
    }


def test_samples_judge_where_they_are_given(rng):
    samples = [{"x": rng.standard_normal((1, 32, 24, 24)).astype(np.float32)} for _ in range(6)]
    result = rewriter.optimize(_model(rng).bytes(), samples, exact=True)
    assert result.improved
    assert result.report.samples["final"] == 1


def test_nothing_is_written_where_nothing_pays(rng, tmp_path):
    result = rewriter.optimize(_model(rng, channels=12).bytes(), exact=True, output=tmp_path / "fast.onnx")
    assert not result.improved
    assert not (tmp_path / "fast.onnx").exists()
    assert any("multiples of 8" in refusal.reason for refusal in result.report.refusals)


def test_the_command_says_that_nothing_pays(rng, tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(_model(rng, channels=12).bytes())
    args = [tmp_path / "net.onnx", "-o", tmp_path / "fast.onnx", "--exact", "--report", tmp_path / "why.json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["optimize", *map(str, args)])
    assert ended.value.code == status.UNMET == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "why.json"]
    verdict = json.loads((tmp_path / "why.json").read_text())["verdict"]
    assert verdict.startswith("Nothing was written: no exact rewrite is ")
    printed = " ".join(capsys.readouterr().out.split())
    assert verdict in printed
    assert "Wrote" not in printed.replace(f"Wrote {tmp_path / 'why.json'}", "")


def test_memory_over_its_limit_gives_a_lighter_model(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MEMORY_NOISE_BYTES", 0)
    data = _model(rng).bytes()
    free = rewriter.optimize(data, exact=True, max_memory=10).report
    held = rewriter.optimize(data, exact=True, max_memory=2.5, output=tmp_path / "fast.onnx")
    memory = {"free": free.expenses[2], "held": held.report.expenses[2]}
    assert memory["free"].measure == "peak_bytes"
    assert memory["free"].ratio > 2.5 >= memory["held"].ratio > 1
    assert held.improved
    assert (tmp_path / "fast.onnx").exists()
    assert 1 < held.report.latency.speedup < free.latency.speedup
    assert any("over --max-memory 2.5" in warning for warning in held.report.warnings)
    assert held.report.settings["max-memory"] == 2.5


def test_no_lighter_model_that_pays(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MEMORY_NOISE_BYTES", 1)
    found = rewriter.optimize(_model(rng).bytes(), exact=True, max_memory=1, output=tmp_path / "fast.onnx")
    assert not found.improved
    assert not (tmp_path / "fast.onnx").exists()
    assert "over --max-memory 1." in found.report.verdict
    assert not found.report.expenses[2].passed


def test_what_is_asked_for_where_it_is_missing(rng):
    with pytest.raises(OptionError, match=r"--shape x:1,32,h,w"):
        rewriter.optimize(_model(rng, size="h,w").bytes(), exact=True)
    with pytest.raises(SampleError, match="--exact"):
        rewriter.optimize(_model(rng).bytes())
    with pytest.raises(OptionError, match="not exact"):
        rewriter.optimize(_model(rng).bytes(), exact=True, passes=["tucker2"])
