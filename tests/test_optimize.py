"""The whole line from model and samples to a written model, with latency that follows the multiply-adds."""

import json
import os
import re
import tempfile
from pathlib import Path

import fake_latency
import graphs
import jsonschema
import numpy as np
import onnx
import pytest
import residual
from interrupts import interrupt_at
from PIL import Image
from report_schema import schema

import rewriter
from rewriter import cli, graph, prepare, search
from rewriter import latency as latencies
from rewriter.cache import FOLDER_VARIABLE
from rewriter.cli import status
from rewriter.errors import OptionError, OutputError
from rewriter.parts import Given, parts
from rewriter.report import read, rendered
from rewriter.sources import load

MODELS = Path(__file__).parent.parent / "models"
PASSES = ("channel_svd", "tucker2")
STAGES = ("fitting", "timing", "probing", "refitting", "searching", "comparing")
KEYS = [
    "schema_version",
    "model",
    "verdict",
    "improved",
    "sites",
    "refusals",
    "steps",
    "before",
    "after",
    "gates",
    "drift",
    "latency",
    "expenses",
    "rounds",
    "samples",
    "warnings",
    "environment",
    "settings",
    "comparison",
    "max_macs",
    "frontier",
    "notes",
    "times",
    "outputs",
    "command",
]


@pytest.fixture(autouse=True)
def latency(monkeypatch):
    fake_latency.install(monkeypatch)


@pytest.fixture
def network(rng):
    return residual.network(rng, rank=8, noise=0.1)


@pytest.fixture
def samples(rng):
    return residual.images(rng, 60)


@pytest.fixture
def files(network, samples, tmp_path):
    """A folder with the model and its samples."""
    onnx.save(network, tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=samples)
    return tmp_path


def optimize(model, samples, **options):
    return rewriter.optimize(
        model, [{"x": samples}], **{"passes": PASSES, "max_drift": {"rel_l2": 0.1}} | options
    )


def command(files, *more):
    args = [files / "net.onnx", "-o", files / "fast.onnx", "--calibration", files / "samples.npz"]
    args += ["--passes", ",".join(PASSES), "--max-drift", "rel_l2=0.1", *more]
    with pytest.raises(SystemExit) as ended:
        cli.main(["optimize", *map(str, args)])
    return ended.value.code


def outputs(model, batch):
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return next(iter(graphs.run(data, batch).values())).astype(np.float64)


def test_the_demonstration_becomes_faster_within_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_ROUNDS", 2)
    out, path = tmp_path / "fast.onnx", tmp_path / "report.json"
    data = np.load(MODELS / "digits_evaluation.npz")
    wide = [node.name for node in onnx.load(MODELS / "digits.onnx").graph.node if "stage3" in node.name]
    result = rewriter.optimize(
        MODELS / "digits.onnx",
        [{"image": np.load(MODELS / "digits_calibration.npz")["image"][:32]}],
        [({"image": data["image"][:160]}, data["labels"][:160])],
        output=out,
        max_drift={"rel_l2": 0.1, "top1_drop": 1.0},
        passes=["channel_svd"],
        exclude=[name for name in wide if "conv" in name and "relu" not in name],
        reports=[path],
    )
    assert result.improved, result.report.verdict
    assert result.report.latency.speedup > 1.2
    assert out.read_bytes() == result.model.SerializeToString()
    onnx.checker.check_model(onnx.load(out), full_check=True)
    before, after = (
        outputs(each.read_bytes(), {"image": data["image"]}) for each in (MODELS / "digits.onnx", out)
    )
    assert np.mean(after.argmax(1) == data["labels"]) >= 0.98
    # a part of these samples judged it
    assert np.linalg.norm(after - before) / np.linalg.norm(before) < 0.12
    written = json.loads(path.read_text())
    assert list(written) == KEYS
    assert written["samples"]["choose"] + written["samples"]["final"] == 160
    assert [gate["measure"] for gate in written["gates"]] == ["rel_l2", "top1_drop"]
    assert all(gate["passed"] and gate["samples"] == written["samples"]["final"] for gate in written["gates"])
    # which sites stay is a matter of digits that processors compute differently
    assert {"channel_svd"} <= {site["became"] for site in written["sites"]} <= {None, "channel_svd"}


def test_the_report_adds_up(network, samples):
    found = optimize(network, samples)
    assert found.improved
    report, feeds = found.report, {"x": samples[:1]}
    assert report.before.macs == fake_latency.macs(network.SerializeToString(), feeds)
    assert report.after.macs == fake_latency.macs(found.model.SerializeToString(), feeds)
    assert report.after.macs == sum(site.after.macs for site in report.sites)
    assert report.latency.speedup == pytest.approx(report.before.macs / report.after.macs)
    assert [site.node for site in report.sites] == ["stem", "one", "two", "down"]
    assert report.samples == {"fit": 36, "choose": 12, "final": 12}
    done = json.loads({each.key: each.value for each in found.model.metadata_props}["rewriter.sites"])
    assert {node: form for node, form in done.items() if form != "refitted"} == {
        site.node: f"{site.became} {'x'.join(map(str, site.rank))}" for site in report.sites if site.became
    }


def test_the_gates_hold_on_samples_that_had_no_part(network, samples):
    found = optimize(network, samples)
    final = parts(graph.load(network), Given([{"x": samples}]), {}, 0).final
    batch = {"x": np.concatenate([feeds["x"] for feeds in final.feeds])}
    before, after = outputs(network, batch), outputs(found.model, batch)
    (gate,) = found.report.gates
    # ONNX Runtime in another batch size rounds in another way
    assert gate.value == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-4)
    assert gate.passed
    assert gate.value <= 0.1


def test_random_samples_stand_in_and_the_report_says_so(network):
    options = {"passes": ("channel_svd",), "random_samples": 20, "max_drift": {"rel_l2": 0.9}}
    report = rewriter.optimize(network, **options).report
    assert report.samples == {"fit": 12, "choose": 4, "final": 4}
    assert "drift on noise says little" in report.warnings[0]
    assert report.settings["random-samples"] == 20


def test_notes_on_images_are_in_the_report(files, rng):
    for index in range(9):
        path = files / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 12), dtype=np.uint8)).save(path)
    text = """
    agraph (float[N,1,16,12] image) => (float[N,8,16,12] y) {
      [one] y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(image, w)
    }
    """
    net = graphs.parse(text, w=graphs.random(rng, 8, 1, 3, 3))
    report = rewriter.optimize(
        net, files / "photos", preprocess={"scale": "1/255"}, passes=["channel_svd"]
    ).report
    assert report.notes[0].endswith(
        "layout=NCHW, channels=gray, dtype=float32, as the model's input suggests"
    )
    assert report.settings["preprocess"] == {"scale": 1 / 255}


def test_sample_parts_are_disjoint_and_complete(network, samples):
    model = graph.load(network)

    def told(part):
        return {feeds["x"].tobytes() for feeds in part.feeds}

    def three(*given):
        found = parts(model, Given(*given), {}, 3)
        return found.fit, found.choosing, found.final

    split = three([{"x": samples}])
    assert [len(part) for part in split] == [36, 12, 12]
    assert set.union(*map(told, split)) == {sample[None].tobytes() for sample in samples}
    fit, choosing, final = three([{"x": samples[:20]}], [{"x": samples[20:]}])
    assert (len(fit), len(choosing), len(final)) == (20, 20, 20)
    assert not told(fit) & told(choosing) | told(choosing) & told(final) | told(fit) & told(final)
    for part, other in zip(split, three([{"x": samples}]), strict=True):
        assert told(part) == told(other)


def test_fitting_takes_what_the_smallest_map_wants_and_memory_holds(network, samples):
    sites, sizes = graph.find_sites(graph.load(network))[0], dict.fromkeys(residual.KERNELS, (12, 12))
    many = load([{"x": np.tile(samples, (10, 1, 1, 1))}], graph.load(network).inputs)
    # the stride of the last site leaves 6 x 6 places for 60 patches for each of 144 values: 240 and a quarter
    assert len(prepare.fitting_samples(many, sites, sizes, 1, 0)) == 300
    sizes["down"] = (4, 4)
    assert len(prepare.fitting_samples(many, sites, sizes, 1, 0)) == 384
    # up to twice the memory for as many as are needed, but for no others
    held = prepare._LIVE_BYTES // (4 * 30)
    wide = dict.fromkeys(residual.KERNELS, (34, 34))
    assert len(prepare.fitting_samples(many, sites, wide, held, 0)) == 37
    wide = dict.fromkeys(residual.KERNELS, (400, 400))
    assert len(prepare.fitting_samples(many, sites, wide, held, 0)) == 30
    given = load([{"x": samples}], graph.load(network).inputs)
    everything = prepare.fitting_batches(prepare.fitting_samples(given, sites, sizes, 1, 0))
    assert [len(feeds["x"]) for feeds in everything] == [16, 16, 16, 12]
    some = prepare.fitting_samples(given, sites, wide, prepare._LIVE_BYTES // 40, 0)
    few = prepare.fitting_batches(some)
    assert sum(len(feeds["x"]) for feeds in few) == 10
    assert len(few) >= 4
    assert len(prepare.fitting_samples(given, sites, sizes, 1 << 40, 0)) == 2


def test_what_is_not_rewritten_stays_byte_for_byte(network, samples):
    network.doc_string = "kept"
    network.metadata_props.add(key="author", value="me")
    network.graph.node[4].doc_string = "also kept"
    found = optimize(network, samples, exclude=["one"])
    became = {site.node: site.became for site in found.report.sites}
    assert found.improved
    assert "one" not in became
    gone = {name for name, form in became.items() if form}
    old = [node.SerializeToString() for node in network.graph.node if node.name not in gone]
    new = [node.SerializeToString() for node in found.model.graph.node]
    assert [node for node in new if node in set(old)] == old
    weights = {tensor.name: tensor.SerializeToString() for tensor in found.model.graph.initializer}
    for tensor in network.graph.initializer:
        if tensor.name.split("_")[0] not in gone:
            assert weights[tensor.name] == tensor.SerializeToString()
    assert found.model.graph.input == network.graph.input
    assert found.model.graph.output == network.graph.output
    assert found.model.doc_string == "kept"
    assert found.model.metadata_props[0].value == "me"


def test_the_given_model_is_not_touched(network, samples):
    before = network.SerializeToString()
    assert optimize(network, samples).improved
    assert network.SerializeToString() == before


def test_same_inputs_and_seed_same_bytes(network, samples):
    first, again = (optimize(network, samples, seed=5) for _ in range(2))
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert first.report.sites == again.report.sites
    assert first.model.SerializeToString() != optimize(network, samples, seed=6).model.SerializeToString()


def test_path_bytes_and_model_give_the_same(files, network, samples):
    given = [network, network.SerializeToString(), files / "net.onnx", str(files / "net.onnx")]
    made = {optimize(each, samples).model.SerializeToString() for each in given}
    assert len(made) == 1


def test_nothing_pays(files, capsys):
    before = sorted(files.iterdir())
    assert command(files, "--min-speedup", 100, "--report", files / "why.json") == status.UNMET
    assert sorted(files.iterdir()) == sorted([*before, files / "why.json"])
    report = json.loads((files / "why.json").read_text())
    assert list(report) == KEYS
    assert report["improved"] is False
    assert report["verdict"].startswith("Nothing was written: within budget")
    assert "where 100 was asked" in report["verdict"]
    assert report["after"] == report["before"]
    assert "Nothing was written" in capsys.readouterr().out
    # the original's time is told, and the drift of what was refused
    assert report["times"]["after_ms"] is None
    assert len(report["outputs"][0]["rel_l2"]) == report["samples"]["final"]


def test_a_report_on_file_is_in_full_detail_and_can_be_drawn_again(files):
    paths = [files / f"report{suffix}" for suffix in (".json", ".html", ".md")]
    assert command(files, *(word for path in paths for word in ("--report", path))) == 0
    report = read(paths[0])
    jsonschema.validate(json.loads(paths[0].read_text()), schema())
    for path in paths:
        assert path.read_bytes() == rendered(report, path)
    assert sum(each.chosen for each in report.rounds) == 1
    assert [layer.name for layer in report.times.layers] == ["stem", "one", "two", "down", "head"]
    assert report.times.after_ms is not None
    found = cli.cli.commands["optimize"].make_context("optimize", list(report.command[2:])).params
    assert (found["passes"], found["max_drift"]) == (PASSES, {"rel_l2": 0.1})
    assert (found["output"], found["calibration"]) == (files / "fast.onnx", str(files / "samples.npz"))


def test_no_budget_no_rewrite(network, samples):
    found = optimize(network, samples, max_drift={"rel_l2": 0.0})
    assert not found.improved
    assert found.report.verdict.startswith("Nothing was written: ")
    assert found.model.SerializeToString() == network.SerializeToString()


@pytest.mark.parametrize("exact", [False, True])
def test_a_model_of_which_nothing_may_be_rewritten_is_told_so(network, samples, exact):
    options = {"exact": True, "max_drift": {"rel_l2": 1e-5}, "passes": None} if exact else {}
    found = optimize(network, samples, exclude=list(residual.KERNELS), **options)
    assert "no convolution that can be rewritten" in found.report.verdict


def test_a_deployed_batch_is_what_is_timed(network, samples):
    found = optimize(network, samples, batch=3)
    assert found.report.latency.batch == 3
    assert {site.in_shape[0] for site in found.report.sites} == {3}
    # costs stay those of one sample
    assert found.report.before.macs == fake_latency.macs(network.SerializeToString(), {"x": samples[:1]})


def test_every_convolution_excluded_or_refused(network, samples):
    names = ["stem", "one", "two", "down"]
    found = optimize(network, samples, exclude=names)
    assert not found.improved
    assert [(each.node, each.reason) for each in found.report.refusals] == [
        (name, "excluded by --exclude") for name in names
    ]
    assert found.report.sites == ()
    text = "agraph (float[N,8,12,12] x) => (float[N,4,11,11] y) { [up] y = ConvTranspose(x, v)  v = Abs(w) }"
    alone = optimize(graphs.parse(text, w=np.ones((8, 4, 2, 2), np.float32)), samples)
    assert not alone.improved
    assert [each.node for each in alone.report.refusals] == ["up"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_leaves_nothing(files, stage, monkeypatch, capsys):
    scratch = files / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(files.rglob("*"))
    reached = interrupt_at(monkeypatch, "optimize", stage)
    assert command(files, "--report", files / "report.md") == status.INTERRUPTED
    assert reached[-1] == stage
    assert sorted(files.rglob("*")) == before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip() == "Interrupted; nothing was written."


def test_an_interrupt_while_writing_leaves_nothing(files, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    before = sorted(files.iterdir())
    monkeypatch.setattr(os, "fsync", interrupt)
    assert command(files) == status.INTERRUPTED
    assert sorted(files.iterdir()) == before


def test_the_output_is_no_other_file_of_the_run(files, network):
    for source in ("net.onnx", "samples.npz"):
        before = (files / source).read_bytes()
        with pytest.raises(OutputError, match="is the input; choose another name"):
            rewriter.optimize(files / "net.onnx", files / "samples.npz", output=files / source)
        assert (files / source).read_bytes() == before
    (files / "sub").mkdir()
    with pytest.raises(OutputError, match="is the output; choose another name"):
        rewriter.optimize(
            network,
            files / "samples.npz",
            output=files / "fast.json",
            reports=[files / "sub" / ".." / "fast.json"],
        )


def test_deployed_feeds(network, samples):
    model = graph.load(network)
    given = load([{"x": samples}], model.inputs)
    assert prepare.deployed_feeds(model, given, 1, {})["x"].tobytes() == samples[:1].tobytes()
    assert prepare.deployed_feeds(model, given, 4, {})["x"].shape == (4, 8, 12, 12)
    assert prepare.deployed_feeds(model, given, 1, {"x": (2, 8, 12, 12)})["x"].shape == (2, 8, 12, 12)
    for shapes, message in [
        ({"x": (1, 8, 6, 6)}, r"--shape x:1,8,6,6: the model takes \[N, 8, 12, 12\]"),
        ({"x": (1, 8)}, r"--shape x:1,8: the model takes \[N, 8, 12, 12\]"),
        ({"z": (1, 8, 12, 12)}, "--shape z: no such input; there are 'x'"),
    ]:
        with pytest.raises(OptionError, match=message):
            prepare.deployed_feeds(model, given, 1, shapes)
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed = graph.load(network)
    with pytest.raises(OptionError, match="--batch 4: the model fixes the batch of 'x' at 1"):
        prepare.deployed_feeds(fixed, given, 4, {})


def test_a_second_run_takes_over_the_latencies_of_the_first(network, samples, monkeypatch):
    first = optimize(network, samples)
    assert (first.report.notes, first.report.settings["no-cache"]) == ((), False)

    def whole(models, *args, **options):
        # networks are timed in every run, single forms are not
        data = [each() if callable(each) else each for each in models]
        assert not any(graph.load(each).proto.graph.name == "probe" for each in data)
        return fake_latency.interleaved(models, *args, **options)

    monkeypatch.setattr(latencies, "interleaved", whole)
    second = optimize(network, samples)
    assert second.report.sites == first.report.sites
    assert second.model.SerializeToString() == first.model.SerializeToString()
    assert re.match(r"latencies of (\d+) of \1 shapes were measured in earlier runs", second.report.notes[0])


def test_without_the_cache_none_are_taken_over_or_kept(network, samples, cache_folder, monkeypatch):
    timed = []

    def counted(models, *args, **options):
        timed.append(len(models))
        return fake_latency.interleaved(models, *args, **options)

    monkeypatch.setattr(latencies, "interleaved", counted)
    first = optimize(network, samples, cache=False)
    assert not cache_folder.exists()
    optimize(network, samples)
    again = optimize(network, samples, cache=False)
    assert timed == timed[: len(timed) // 3] * 3
    assert again.report.sites == first.report.sites
    assert (again.report.notes, again.report.settings["no-cache"]) == ((), True)


def test_a_cache_that_cannot_be_written_is_a_warning(network, samples, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(file))
    result = optimize(network, samples)
    assert result.improved
    assert (
        f"not kept for later runs: cannot make the folder '{file}': File exists" in result.report.warnings[0]
    )
