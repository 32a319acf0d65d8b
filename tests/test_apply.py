"""Plans saved and made again: the same bytes, on other weights too, and one line where that cannot be."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fake_latency
import graphs
import numpy as np
import onnx
import pytest
import residual
from interrupts import interrupt_at

import rewriter
from rewriter import cli
from rewriter.cli import status
from rewriter.errors import OptionError, OutputError, PlanError, SampleError

ROOT = Path(__file__).resolve().parent.parent
PASSES = ("channel_svd", "tucker2", "spatial_svd")
EXACT = """
agraph (float[batch,32,24,24] x) => (float[batch,32,24,24] y) {
    [stem] h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    [relu] a = Relu(h)
    [head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)
}
"""


@pytest.fixture(autouse=True)
def latency(monkeypatch):
    fake_latency.install(monkeypatch)


@pytest.fixture
def files(rng, tmp_path):
    """A folder with a model, samples, what `optimize` made of them, and the plan."""
    onnx.save(residual.network(rng, rank=8, noise=0.1), tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=residual.images(rng, 60))
    result = rewriter.optimize(
        tmp_path / "net.onnx",
        tmp_path / "samples.npz",
        passes=PASSES,
        exclude=["stem"],
        max_drift={"rel_l2": 0.1},
        seed=3,
        threads=1,
        output=tmp_path / "fast.onnx",
        save_plan=tmp_path / "plan.json",
    )
    assert result.improved
    return tmp_path


def apply(files, **options):
    model = options.pop("model", files / "net.onnx")
    plan = options.pop("plan", files / "plan.json")
    return rewriter.apply(model, plan, options.pop("calibration", files / "samples.npz"), **options)


def command(files, *more):
    args = [files / "net.onnx", "--plan", files / "plan.json", "-o", files / "again.onnx"]
    args += ["--calibration", files / "samples.npz", *more]
    with pytest.raises(SystemExit) as ended:
        cli.main(["apply", *map(str, args)])
    return ended.value.code


def changed(files, change):
    """The plan with a change made to its document, under another name."""
    document = json.loads((files / "plan.json").read_text())
    change(document)
    (files / "other.json").write_text(json.dumps(document))
    return files / "other.json"


def rewritten(document):
    """The first site that a plan rewrites."""
    return next(site for site in document["sites"] if site["form"])


def retrained(files):
    """The model with other weights."""
    network = onnx.load(files / "net.onnx")
    rng = np.random.default_rng(1)
    for tensor in network.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        value = value + 0.05 * value.std() * rng.standard_normal(value.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return network


def test_the_same_bytes_as_those_that_were_optimized(files):
    made = (files / "fast.onnx").read_bytes()
    for name in ("one.onnx", "two.onnx"):
        assert apply(files, output=files / name).improved
        assert (files / name).read_bytes() == made
    # another seed splits and draws anew
    assert apply(files, seed=4).model.SerializeToString() != made


@pytest.mark.parametrize("threads", ["1", "4"])
def test_the_same_bytes_in_another_process(files, threads):
    """Whatever the order of its sets, and its threads of linear algebra."""
    args = ["apply", "net.onnx", "--plan", "plan.json", "-o", "again.onnx", "--calibration", "samples.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "rewriter", *args, "--quiet"],
        cwd=files,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": threads,
            "OPENBLAS_NUM_THREADS": threads,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (files / "again.onnx").read_bytes() == (files / "fast.onnx").read_bytes()


def test_the_number_of_gradients_is_that_of_the_plan(files, monkeypatch):
    """However many would be taken now."""
    made = apply(files, plan=changed(files, lambda plan: plan.update(gradients=3))).model.SerializeToString()
    monkeypatch.setattr("rewriter.adjoint._WORK", 1.0)
    again = apply(files, plan=files / "other.json").model.SerializeToString()
    assert again == made != (files / "fast.onnx").read_bytes()


def test_the_report_says_what_was_made_and_measured(files):
    found = apply(files, reports=[files / "report.json", files / "report.md"])
    report = found.report
    plan = json.loads((files / "plan.json").read_text())
    wanted = {site["node"]: site["form"] and site["form"]["pass"] for site in plan["sites"]}
    assert {site.node: site.became for site in report.sites} == {"stem": None, **wanted}
    assert report.sites[0].reason == "the plan leaves it as it is"
    feeds = {"x": np.load(files / "samples.npz")["x"][:1]}
    assert report.before.macs == fake_latency.macs((files / "net.onnx").read_bytes(), feeds)
    assert report.after.macs == fake_latency.macs(found.model.SerializeToString(), feeds)
    assert report.samples == {"fit": plan["samples"], "choose": 0, "final": 12}
    assert report.latency.threads == 1
    assert report.gates == ()
    assert report.warnings == ()
    assert report.verdict.startswith(f"{report.latency.speedup:.2f} times as fast (95 % interval ")
    assert report.verdict.endswith("on 12 samples.")
    assert json.loads((files / "report.json").read_text())["settings"]["seed"] == 3
    assert report.verdict in (files / "report.md").read_text()


def test_options_go_before_the_plan(files):
    settings = apply(files, threads=2, batch=3, seed=7).report.settings
    assert (settings["threads"], settings["batch"], settings["seed"]) == (2, 3, 7)
    assert apply(files).report.settings["threads"] == 1


def test_other_weights_of_the_same_shapes(files):
    onnx.save(retrained(files), files / "new.onnx")
    found = apply(files, model=files / "new.onnx")
    assert found.improved
    plan = json.loads((files / "plan.json").read_text())
    became = {site.node: site.became for site in found.report.sites}
    assert all(became[site["node"]] == (site["form"] or {}).get("pass") for site in plan["sites"])
    (remark,) = found.report.warnings
    assert remark.startswith("3 of 3 convolutions have other weights than those that the plan was made for")
    # fitted to the new ones: within reach of what the old model drifted
    feeds = {"x": np.load(files / "samples.npz")["x"]}
    before, after = (
        graphs.run(data, feeds)["y"]
        for data in ((files / "new.onnx").read_bytes(), found.model.SerializeToString())
    )
    assert np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before)


def test_a_convolution_that_the_plan_does_not_know_stays(files):
    network = onnx.load(files / "net.onnx")
    rng = np.random.default_rng(0)
    extra = graphs.random(rng, 16, 16, 3, 3)
    network.graph.initializer.append(onnx.numpy_helper.from_array(extra, "extra_w"))
    at = [node.name for node in network.graph.node].index("pool")
    network.graph.node.insert(
        at, onnx.helper.make_node("Conv", ["dr", "extra_w"], ["er"], name="extra", pads=[1, 1, 1, 1])
    )
    network.graph.node[at + 1].input[0] = "er"
    found = apply(files, model=network)
    site = next(each for each in found.report.sites if each.node == "extra")
    assert (site.became, site.reason) == (None, "the plan leaves it as it is")


def test_a_plan_that_is_none_gives_one_line(files, capsys):
    (files / "plan.json").write_text('{"schema_version": 2}')
    before = sorted(files.iterdir())
    assert command(files) == status.FAILED == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"Error: plan '{files / 'plan.json'}' has schema_version 2, this version of rewriter reads 1; "
        "save it anew with rewriter optimize --save-plan\n"
    )
    assert sorted(files.iterdir()) == before


def test_gates_that_are_not_passed(files, capsys):
    before = sorted(files.iterdir())
    assert command(files, "--max-drift", "rel_l2=0.0001") == status.UNMET == 3
    assert "Nothing was written: on the final samples rel_l2" in " ".join(capsys.readouterr().out.split())
    assert command(files, "--min-speedup", 50, "--report", files / "why.json") == status.UNMET
    assert sorted(files.iterdir()) == sorted([*before, files / "why.json"])
    report = json.loads((files / "why.json").read_text())
    assert report["verdict"].startswith("Nothing was written: ")
    assert "where 50 was asked" in report["verdict"]
    assert "within budget" not in report["verdict"]
    assert report["after"] == report["before"]
    assert {site["became"] for site in report["sites"]} == {None}


def test_gates_that_are_passed(files, capsys):
    assert command(files, "--max-drift", "rel_l2=0.2", "--min-speedup", 1.01) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith(f"Wrote {files / 'again.onnx'}")
    assert (files / "again.onnx").read_bytes() == (files / "fast.onnx").read_bytes()


def test_a_slower_model_is_written_but_not_in_silence(files, monkeypatch):
    compare = fake_latency.compare
    monkeypatch.setattr(
        "rewriter.latency.compare", lambda before, after, *rest, **more: compare(after, before, *rest, **more)
    )
    found = apply(files)
    assert found.improved
    assert found.report.warnings[0].startswith("it need not be faster here: ")


def test_an_exact_plan_needs_no_samples(rng, tmp_path):
    weights = {name: graphs.random(rng, 32, 32, 3, 3) for name in ("w", "v")}
    (tmp_path / "net.onnx").write_bytes(graphs.model(EXACT, **weights).bytes())
    options = {"exact": True, "output": tmp_path / "fast.onnx", "save_plan": tmp_path / "plan.json"}
    assert rewriter.optimize(tmp_path / "net.onnx", **options).improved
    document = json.loads((tmp_path / "plan.json").read_text())
    assert (document["samples"], document["gradients"]) == (0, 0)
    found = apply(tmp_path, calibration=None)
    assert found.model.SerializeToString() == (tmp_path / "fast.onnx").read_bytes()
    assert found.report.samples["fit"] == 0
    assert "no samples were given; in their place random inputs" in found.report.warnings[0]
    samples = [{"x": graphs.random(rng, 1, 32, 24, 24)} for _ in range(6)]
    judged = apply(tmp_path, calibration=samples)
    assert judged.model.SerializeToString() == (tmp_path / "fast.onnx").read_bytes()
    assert judged.report.warnings == ()
    with pytest.raises(PlanError, match="which is not exact as the plan says"):
        apply(tmp_path, calibration=None, plan=changed(tmp_path, _inexact))


def _inexact(document):
    rewritten(document)["form"].update({"pass": "tucker2", "rank": [8, 8]})


@pytest.mark.parametrize(("form", "limit"), [("grouped_pointwise", 0.05), ("tucker2", 0.2)])
def test_stages_in_tiles(rng, tmp_path, form, limit):
    text = EXACT.replace("[head] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, v)", "y = Identity(a)")
    model = graphs.model(text.replace("32", "64"), w=graphs.random(rng, 64, 64, 3, 3))
    (tmp_path / "net.onnx").write_bytes(model.bytes())
    np.savez(tmp_path / "samples.npz", x=residual.images(rng, 24).repeat(8, 1).repeat(2, 2).repeat(2, 3))
    rewriter.optimize(
        tmp_path / "net.onnx",
        tmp_path / "samples.npz",
        passes=[form, "winograd"],
        max_drift={"rel_l2": limit},
        output=tmp_path / "fast.onnx",
        save_plan=tmp_path / "plan.json",
    )
    (site,) = json.loads((tmp_path / "plan.json").read_text())["sites"]
    assert site["form"]["pass"] == form
    assert "winograd" in [stage["as"] for stage in site["form"]["lowerings"][0]]
    assert apply(tmp_path).model.SerializeToString() == (tmp_path / "fast.onnx").read_bytes()


@pytest.mark.parametrize("kernel", [(3, 3), (5, 3)])
def test_stages_in_tiles_along_one_axis(rng, tmp_path, kernel):
    """They come out so, whichever axis the fit puts first."""
    text = """
    agraph (float[batch,32,24,24] x) => (float[batch,32,24,24] y) {
        [only] h = Conv<kernel_shape=KERNEL>(x, w)
        y = Relu(h)
    }
    """.replace("KERNEL", str(list(kernel)))
    model = graphs.model(text.replace("24,24] y", "h,w] y"), w=graphs.random(rng, 32, 32, *kernel))
    (tmp_path / "net.onnx").write_bytes(model.bytes())
    np.savez(tmp_path / "samples.npz", x=residual.images(rng, 24).repeat(4, 1).repeat(2, 2).repeat(2, 3))
    rewriter.optimize(
        tmp_path / "net.onnx",
        tmp_path / "samples.npz",
        passes=["spatial_svd"],
        max_drift={"rel_l2": 10.0},
        save_plan=tmp_path / "plan.json",
    )
    for first, second in (((4, 1), (1, 4)), ((1, 4), (4, 1))):
        lowerings = [[{"as": "winograd", "m": first}, {"as": "winograd", "m": second}]]
        form = {"rank": [16], "lowerings": lowerings}
        plan = changed(tmp_path, lambda document, form=form: rewritten(document)["form"].update(form))
        found = apply(tmp_path, plan=plan)
        made = [node.output[0] for node in found.model.graph.node]
        assert sum(name.endswith("winograd/products") for name in made) == 2
        assert found.report.drift[0].value < 1.0
    again = apply(tmp_path, plan=plan)
    assert again.model.SerializeToString() == found.model.SerializeToString()
    lowerings = [[{"as": "winograd", "m": [4, 4]}, {"as": "direct"}, {"as": "direct"}]]
    plan = changed(tmp_path, lambda document: rewritten(document)["form"].update(lowerings=lowerings))
    with pytest.raises(PlanError, match=r"'only' as spatial_svd of rank \d+ has other stages than those"):
        apply(tmp_path, plan=plan)


def test_nothing_written_no_plan(files):
    (files / "plan.json").unlink()
    found = rewriter.optimize(
        files / "net.onnx",
        files / "samples.npz",
        passes=PASSES,
        max_drift={"rel_l2": 0.0},
        save_plan=files / "plan.json",
    )
    assert not found.improved
    assert not (files / "plan.json").exists()
    assert "no plan was saved: there is no rewritten model to make again" in found.report.warnings


def test_a_plan_that_only_unpins(files):
    """A model that got faster by its exact steps alone has a plan, too."""
    network = onnx.load(files / "net.onnx")
    for tensor in network.graph.initializer:
        network.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    empty = changed(files, lambda document: [site.update(form=None) for site in document["sites"]])
    found = apply(files, model=network, plan=empty)
    assert [value.name for value in found.model.graph.input] == ["x"]
    assert found.report.steps == ("9 weights are no longer graph inputs",)
    # ONNX Runtime may fuse constants, which rounds in another way
    assert found.report.drift[0].value < 1e-6


def test_what_fits_neither_samples_nor_options(files):
    with pytest.raises(SampleError, match="no samples were given; --calibration takes"):
        apply(files, calibration=None)
    with pytest.raises(OptionError, match="threads must be at least 1"):
        apply(files, threads=0)
    for output in ("net.onnx", "samples.npz", "plan.json"):
        with pytest.raises(OutputError, match="is the input; choose another name"):
            apply(files, output=files / output)
    with pytest.raises(OutputError, match=r"the report .* is the input; choose another name"):
        apply(files, reports=[files / "plan.json"])
    for more in ({"output": files / "a.json"}, {"reports": [files / "a.json"]}):
        with pytest.raises(OutputError, match=r"is the .*; choose another name"):
            rewriter.optimize(
                files / "net.onnx",
                files / "samples.npz",
                **{"output": files / "a.onnx", "save_plan": files / "a.json"} | more,
            )


@pytest.mark.parametrize("stage", ["going back", "refitting", "comparing"])
def test_an_interrupt_leaves_nothing(files, stage, monkeypatch, capsys):
    scratch = files / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(files.rglob("*"))
    reached = interrupt_at(monkeypatch, "apply", stage)
    assert command(files, "--report", files / "report.md") == status.INTERRUPTED
    assert reached[-1] == stage
    assert sorted(files.rglob("*")) == before
    assert capsys.readouterr().err.strip() == "Interrupted; nothing was written."


@pytest.mark.parametrize("calls", [0, 1])
def test_an_interrupt_while_writing_leaves_neither_model_nor_report(files, monkeypatch, calls):
    fsync, done = os.fsync, []

    def interrupt(file):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(file)
        fsync(file)

    before = sorted(files.iterdir())
    monkeypatch.setattr(os, "fsync", interrupt)
    assert command(files, "--report", files / "report.md") == status.INTERRUPTED
    assert len(done) == calls
    assert sorted(files.iterdir()) == before
