"""`compare`: gates, verdicts, interfaces, and the command around it."""

import json

import fake_latency
import graphs
import numpy as np
import onnx
import pytest
import residual

import rewriter
from rewriter import cli, compare, limits
from rewriter.errors import ModelError, OptionError, OutputError, SampleError

TEXT = """
agraph (float[N,3,size,size] x) => (float[N,4] y) {
  [one] a = Conv(x, w)
  [pool] p = GlobalAveragePool(a)
  [flat] y = Flatten(p)
}
"""
EVIL = "a`b[bold]<script>\x1b[2J|c"


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake_latency.install(monkeypatch)


@pytest.fixture
def weight(rng):
    return graphs.random(rng, 4, 3, 3, 3)


@pytest.fixture
def original(weight):
    return graphs.parse(TEXT, w=weight)


@pytest.fixture
def louder(weight):
    """The original with its outputs larger by a hundredth."""
    return graphs.parse(TEXT, w=np.float32(1.01) * weight)


@pytest.fixture
def samples(rng):
    return [{"x": graphs.random(rng, 2, 3, 6, 6)} for _ in range(6)]


def test_the_same_model(original, samples):
    report = compare(original, original, samples)
    assert report.comparison.passed
    assert report.comparison.equal
    assert report.gates == ()
    assert report.samples == {"final": 12}
    assert report.verdict == (
        "The outputs are the same (rel_l2 0 on 12 samples); 1.00 times as fast (95 % interval 1.00 to 1.00)."
    )


@pytest.mark.parametrize(("limit", "passed", "word"), [(0.02, True, "Passed"), (0.005, False, "Failed")])
def test_a_gate_on_drift(original, louder, samples, limit, passed, word):
    report = compare(original, louder, samples, max_drift={"rel_l2": limit})
    assert report.comparison.passed is report.improved is passed
    assert not report.comparison.equal
    assert report.verdict.startswith(
        f"{word}: the outputs are different (rel_l2 0.01 of {limit:g} on 12 samples); 1.00 times as fast"
    )


@pytest.mark.parametrize(("asked", "passed"), [(None, True), (1.0, True), (1.5, False)])
def test_a_gate_on_speed(original, samples, asked, passed):
    report = compare(original, original, samples, min_speedup=asked)
    assert report.comparison.passed is passed
    assert ("where 1.5 was asked" in report.verdict) == (asked == 1.5)


def test_a_strict_gate_is_on_the_upper_end(original, louder, weight, samples):
    assert compare(original, louder, samples, max_drift={"max_abs": 1.0}, strict=True).gates[0].strict
    noisy = graphs.parse(
        TEXT, w=weight + np.float32(0.01) * graphs.random(np.random.default_rng(1), 4, 3, 3, 3)
    )
    (drift,) = (d for d in compare(original, noisy, samples).drift if d.measure == "rel_l2" and not d.output)
    limit = {"rel_l2": (drift.value + drift.high) / 2}
    assert compare(original, noisy, samples, max_drift=limit).improved
    assert not compare(original, noisy, samples, max_drift=limit, strict=True).improved
    with pytest.raises(OptionError, match="--strict needs a budget"):
        compare(original, louder, samples, strict=True)


@pytest.mark.parametrize(("limit", "passed"), [(2.5, True), (1.5, False)])
def test_a_gate_on_memory(original, weight, samples, monkeypatch, limit, passed):
    monkeypatch.setattr(limits, "MEMORY_NOISE_BYTES", 0)
    twice = graphs.parse(
        TEXT.replace("a = Conv(x, w)", "h = Conv(x, u)\n  [rest] g = Conv(x, u2)\n  [sum] a = Add(h, g)"),
        u=weight / 2,
        u2=weight / 2,
    )
    report = compare(original, twice, samples, max_load=1.0, max_memory=limit)
    assert report.improved is passed
    assert report.verdict.startswith("Passed" if passed else "Failed")
    assert ("its peak memory is 2 times the original's" in report.verdict) is not passed
    with pytest.raises(OptionError, match=r"--max-memory 0\.5 is below 1"):
        compare(original, twice, samples, max_memory=0.5)


def test_rounding_is_equal(original, weight, samples):
    twice = graphs.parse(
        TEXT.replace("a = Conv(x, w)", "h = Conv(x, u)\n  [rest] g = Conv(x, v)\n  [sum] a = Add(h, g)"),
        u=weight * np.float32(0.3),
        v=weight * np.float32(0.7),
    )
    report = compare(original, twice, samples)
    assert report.comparison.equal
    assert "equal up to rounding" in report.verdict
    assert report.latency.speedup == pytest.approx(0.5)


def test_labels_are_used(original, samples):
    labels = [(feeds, graphs.run(original.SerializeToString(), feeds)["y"].argmax(1)) for feeds in samples]
    swapped = onnx.ModelProto()
    swapped.CopyFrom(original)
    weight = onnx.numpy_helper.to_array(original.graph.initializer[0])
    swapped.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(-weight, "w"))
    report = compare(original, swapped, labels, max_drift={"top1_drop": 50.0})
    assert not report.comparison.passed
    assert report.gates[0].value == 100.0


def test_outputs_go_by_name(weight, samples):
    text = "agraph (float[N,3,6,6] x) => ({}) {{ a = Conv(x, w)\n b = Neg(x) }}"
    one, other = "float[N,4,4,4] a", "float[N,3,6,6] b"
    before, after = (
        graphs.parse(text.format(f"{p}, {q}"), w=weight) for p, q in ((one, other), (other, one))
    )
    report = compare(before, after, samples, locate=True)
    assert report.drift[0].value == 0.0
    assert report.comparison.parting is None


def test_random_inputs_are_said_to_tell_little(original, louder):
    report = compare(original, louder, shapes={"x": (1, 3, 6, 6)})
    assert "drift on noise says little" in report.warnings[0]
    assert report.samples["final"] == 4
    with pytest.raises(OptionError, match="input 'x' has dynamic sizes; give them, as in --shape x:1,3,"):
        compare(original, louder)


def test_sizes_that_one_model_fixes_hold_for_both(original, weight):
    fixed = graphs.parse(TEXT.replace("N,3,size,size", "1,3,7,7"), w=weight)
    for before, after in ((original, fixed), (fixed, original)):
        report = compare(before, after)
        assert report.comparison.equal
        with pytest.raises(OptionError, match=r"has the shape \[1, 3, 7, 7\], which cannot be 1,3,6,6"):
            compare(before, after, shapes={"x": (1, 3, 6, 6)})


def test_where_they_part(original, louder, samples):
    report = compare(original, louder, samples, locate=True)
    assert (report.comparison.parting.agreed.tensor, report.comparison.parting.before.node) == ("x", "one")
    assert compare(original, original, samples, locate=True).comparison.parting is None


def test_the_sample_that_drifts_most_is_traced(rng, original, weight):
    """Only where an input is negative does the second model clip it."""
    after = graphs.parse(
        TEXT.replace("Conv(x, w)", "Conv(c, w)").replace("[one]", "[clip] c = Relu(x)\n  [one]"), w=weight
    )
    feeds = [{"x": np.abs(graphs.random(rng, 1, 3, 6, 6))} for _ in range(7)]
    feeds[4] = {"x": -feeds[4]["x"]}
    report = compare(original, after, feeds, locate=True)
    assert report.drift[0].worst == 4
    assert report.comparison.parting.before.node == "one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("x", "image"), "input 'x' of the first model is missing in the second model, which has 'image'"),
        (("y", "out"), "output 'y' of the first model is missing in the second model, which has 'out'"),
        (
            ("N,3,size,size", "N,3,size"),
            r"input 'x' has the shape \[N, 3, size, size\] in the first model and ",
        ),
        (
            ("N,3,size,size", "N,1,size,size"),
            r"input 'x' has the shape .* and \[N, 1, size, size\] in the sec",
        ),
        (
            ("float[N,4] y", "float[N,5] y"),
            r"output 'y' has the shape \[N, 4\] in the first model and \[N, 5\]",
        ),
        (
            ("float[N,3", "float16[N,3"),
            "input 'x' is float in the first model and float16 in the second model",
        ),
        (
            ("float[N,4] y", "double[N,4] y"),
            "output 'y' is float in the first model and double in the second",
        ),
        (("size] x)", "size] x, float[N] more)"), "input 'more' of the second model is missing in the first"),
        (("[N,4] y)", "[N,4] y, float p)"), "output 'p' of the second model is missing in the first"),
    ],
)
def test_interfaces_that_differ(original, weight, samples, change, message):
    text = TEXT.replace(*change) if len(change[0]) > 1 else TEXT.replace(f" {change[0]})", f" {change[1]})")
    text = text.replace("Conv(x,", f"Conv({change[1]},") if change[0] == "x" else text
    text = text.replace(" y = ", f" {change[1]} = ") if change[0] == "y" else text
    with pytest.raises(ModelError, match=message):
        compare(original, graphs.parse(text, w=weight), samples)


def test_a_broken_model_is_named(original, weight, samples, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(
        graphs.parse(TEXT.replace("Conv(x, w)", "Convolve(x, w)"), w=weight).SerializeToString()
    )
    with pytest.raises(ModelError, match=r"cannot load '.*bad.onnx': .*Convolve"):
        compare(original, tmp_path / "bad.onnx", samples)


def test_weights_that_are_inputs_need_not_be_fed(original, weight, samples):
    pinned = onnx.ModelProto()
    pinned.CopyFrom(original)
    pinned.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, weight.shape))
    assert compare(original, pinned, samples).comparison.equal


# the command


@pytest.fixture
def folder(rng, original, louder, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(original, "old.onnx")
    onnx.save(louder, "new.onnx")
    onnx.save(residual.network(rng), "net.onnx")
    np.savez("samples.npz", x=np.concatenate([feeds["x"] for feeds in samples]))
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Runs the command; returns its status, standard output and standard error, both without line breaks."""

    def call(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main(["compare", *map(str, args)])
        return ended.value.code, *(" ".join(text.split()) for text in capsys.readouterr())

    return call


GOOD = ("old.onnx", "new.onnx", "--evaluation", "samples.npz")


def test_statuses(run):
    assert run(*GOOD)[0] == 0
    assert run(*GOOD, "--max-drift", "rel_l2=0.02")[0] == 0
    assert run(*GOOD, "--max-drift", "rel_l2=0.001")[0] == 3
    assert run(*GOOD, "--max-drift", "rel_l2=0.02", "--min-speedup", "1.2")[0] == 3
    assert run(*GOOD, "--min-speedup", "fast")[0] == 2
    assert run("old.onnx")[0] == 2
    assert run("old.onnx", "none.onnx")[0] == 1


def test_what_is_said(run):
    status, out, err = run(*GOOD, "--locate")
    assert (status, err) == (0, "")
    assert out.startswith("Before: 'old.onnx'. After: 'new.onnx'. Model before after change limit Latency")
    assert "convolutions" not in out
    assert (
        "They agree up to the input 'x' with a difference of 0, and part at 'a' (Conv 'one'): 0.0100." in out
    )
    assert out.endswith("(95 % interval 1.00 to 1.00).")


def test_quiet_says_where_too(run):
    status, out, _ = run(*GOOD, "--locate", "-q", "--max-drift", "max_abs=0")
    assert status == 3
    assert out.startswith("They agree up to the input 'x'")
    assert "Failed: the outputs are different (max_abs " in out
    assert "Latency" not in out


def test_reports(run, folder):
    out = run(*GOOD, "--locate", "--report", "r.json", "--report", "r.md")[1]
    assert out.endswith("Wrote r.json Wrote r.md")
    values = json.loads((folder / "r.json").read_text())
    assert (values["model"], values["comparison"]["other"]) == ("old.onnx", "new.onnx")
    assert values["comparison"]["parting"]["before"] == {"tensor": "a", "node": "one", "op_type": "Conv"}
    assert values["settings"]["locate"] is True
    markdown = (folder / "r.md").read_text()
    assert markdown.startswith("**The outputs are different (rel_l2 0.01 on 12 samples)")
    assert "part at 'a' (Conv 'one')" in markdown
    assert "rewritten" not in markdown


def test_hostile_names(run, folder, weight, samples):
    for name, factor in (("old", 1), ("new", 2)):
        proto = graphs.parse(TEXT, w=np.float32(factor) * weight)
        for node in proto.graph.node:
            node.name += EVIL
            node.output[:] = [EVIL if each == "a" else each for each in node.output]
            node.input[:] = [EVIL if each == "a" else each for each in node.input]
        onnx.save(proto, f"{name}.onnx")
    status, out, err = run(*GOOD, "--locate", "--report", "r.md")
    assert (status, err) == (0, "")
    assert "part at 'a`b[bold]<script>?[2J|c' (Conv 'onea`b[bold]<script>?[2J|c')" in out
    assert "<script>" not in (folder / "r.md").read_text()
    assert "\x1b" not in run(*GOOD, "--locate", "-q")[1]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("old.onnx", "none.onnx"), 1, ["there is no model file 'none.onnx'", "check its name"]),
        (("none.onnx", "old.onnx"), 1, ["there is no model file 'none.onnx'"]),
        (("old.onnx", "samples.npz"), 1, ["'samples.npz' is not an ONNX model"]),
        (("old.onnx", "net.onnx"), 1, ["input 'x'", "in 'old.onnx'", "in 'net.onnx'", "same sizes"]),
        ((*GOOD, "--max-drift", "top1_drop=1"), 1, ["top1_drop needs integer labels", "add that"]),
        ((*GOOD, "--max-drift", "drop=1"), 2, ["unknown measure 'drop'"]),
        ((*GOOD, "--max-drift", "rel_l2=-1"), 2, ["is negative"]),
        (("old.onnx", "new.onnx"), 2, ["input 'x' has dynamic sizes", "--shape x:1,3,size,size"]),
        ((*GOOD, "--shape", "z:1"), 2, ["--shape z: no such input"]),
        ((*GOOD, "--report", "r.txt"), 2, ["suffix .txt"]),
        ((*GOOD, "--report", "no/r.md"), 1, ["there is no folder 'no'"]),
        ((*GOOD, "--provider", "gpu9"), 2, ["unknown provider 'gpu9'"]),
        (("old.onnx", "new.onnx", "--evaluation", "none.npz"), 1, ["evaluation samples none.npz"]),
        (("old.onnx", "new.onnx", "more.onnx"), 2, ["extra argument"]),
    ],
)
def test_bad_input_is_one_line(run, args, status, words):
    code, out, err = run(*args)
    assert (code, out) == (status, "")
    assert err.startswith("Error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_compare_is_the_function():
    assert rewriter.compare is compare
    assert callable(compare)


def test_errors_of_the_function(original, samples):
    with pytest.raises(OutputError, match="there is no folder"):
        compare(original, original, samples, reports=["none/r.md"])
    with pytest.raises(SampleError, match="missing input 'x'"):
        compare(original, original, [{"z": np.zeros(1)}])
