"""Bad input through the real command: one line that names it and says how to mend it, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
import residual

from rewriter import cli

ROOT = Path(__file__).parent.parent
PLAIN = "agraph (float[N,8,12,12] x) => (float[N,8,12,12] y) { y = Relu(x) }"


@pytest.fixture
def folder(rng, tmp_path, monkeypatch):
    """A working folder with a good model and good samples, and everything that may be wrong with them."""
    monkeypatch.chdir(tmp_path)
    network = residual.network(rng)
    data = network.SerializeToString()
    x = residual.images(rng, 9)
    spoilt = x.copy()
    spoilt[3, 0, 0, 0] = np.nan
    Path("net.onnx").write_bytes(data)
    Path("half.onnx").write_bytes(data[: len(data) // 2])
    Path("nearly.onnx").write_bytes(data[:-40])
    Path("empty.onnx").write_bytes(b"")
    Path("text.onnx").write_text("this is no model\n" * 20)
    Path("noconv.onnx").write_bytes(graphs.parse(PLAIN).SerializeToString())
    Path("text.npz").write_text("these are no samples\n")
    Path("folder").mkdir()
    Path("raises.py").write_text("def feeds():\n    raise KeyError('images')\n")
    np.savez("good.npz", x=x)
    np.savez("none.npz", x=x[:0])
    np.savez("name.npz", image=x)
    np.savez("channels.npz", x=x[:, :3])
    np.savez("rank.npz", x=x[0])
    np.savez("type.npz", x=x.astype(np.int64))
    np.savez("nan.npz", x=spoilt)
    np.savez("few.npz", x=x[:2])
    np.savez("one.npz", x=x[:1])
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Runs the command on what is good but for what is given; returns its status and standard error."""

    def call(*more, model="net.onnx", output="fast.onnx", calibration="good.npz"):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        args = ["optimize", model, "-o", output]
        args += [] if calibration is None else ["--calibration", calibration]
        with pytest.raises(SystemExit) as ended:
            cli.main([*args, *more])
        out, err = capsys.readouterr()
        assert out == ""
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        return ended.value.code, err

    return call


def check(found, status, *words):
    code, err = found
    assert code == status
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("missing.onnx", ["there is no model file 'missing.onnx'", "check its name"]),
        ("folder", ["'folder' is a folder", "name the .onnx file in it"]),
        ("text.onnx", ["'text.onnx' is not an ONNX model", "export or copy it anew"]),
        ("good.npz", ["'good.npz' is not an ONNX model", "export or copy it anew"]),
        ("empty.onnx", ["'empty.onnx' has no graph", "empty, cut short or not an ONNX model"]),
        ("half.onnx", ["'half.onnx'", "only a part of one", "export or copy it anew"]),
        ("nearly.onnx", ["'nearly.onnx'", "only a part of one", "export or copy it anew"]),
        ("noconv.onnx", ["'noconv.onnx' has no convolution to rewrite", "give a model with Conv nodes"]),
    ],
)
def test_models(run, model, words):
    check(run(model=model), 1, *words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.npz", ["missing.npz: there is no such file", "check the path"]),
        ("folder", ["folder: there are no images", "check the path"]),
        ("text.npz", ["text.npz: not an .npz file", "write it with numpy.savez"]),
        ("none.npz", ["none.npz: there are no samples in it", "give at least one"]),
        ("name.npz", ["missing input 'x'; found 'image', the model takes 'x'", "name the arrays so"]),
        ("channels.npz", ["'x' has shape [9, 3, 12, 12], expected [N, 8, 12, 12]", "resize or transpose"]),
        ("rank.npz", ["'x' has shape [8, 12, 12], expected [N, 8, 12, 12]", "reshape it"]),
        ("type.npz", ["'x' is int64, expected float32", "convert with .astype('float32')"]),
        ("nan.npz", ["'x' holds NaN (1 values, the first in sample 3)", "repair or drop those samples"]),
        ("few.npz", ["calibration samples: found 2", "need at least 3", "give more samples"]),
        ("raises.py", ["the function is missing", "name it as raises.py:function"]),
        ("raises.py:feeds", ["the function raised KeyError: 'images' (raises.py, line 2)", "mend it"]),
        ("raises.py:feed", ["the script has no function 'feed'", "it has 'feeds'"]),
        ("missing.py:feeds", ["there is no script missing.py", "check the path"]),
    ],
)
def test_calibration_samples(run, source, words):
    check(run(calibration=source), 1, "calibration samples", *words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.npz", ["missing.npz: there is no such file"]),
        ("type.npz", ["'x' is int64, expected float32"]),
        ("one.npz", ["found 1", "need at least 2", "give more samples"]),
    ],
)
def test_evaluation_samples(run, source, words):
    check(run("--evaluation", source), 1, "evaluation samples", *words)


def test_no_samples_given(run):
    check(run(calibration=None), 1, "no samples were given", "--calibration takes")


def test_a_provider_that_is_not_installed(run):
    check(
        run("--provider", "cuda"), 1, "provider 'cuda'", "not in the installed", "pip install onnxruntime-gpu"
    )


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "missing/fast.onnx",
            ["'missing/fast.onnx'", "the folder 'missing' does not exist", "make it first"],
        ),
        ("folder", ["'folder': it is a folder", "name a file in it"]),
        ("net.onnx", ["'net.onnx' is the input", "choose another name"]),
        ("folder/../net.onnx", ["is the input", "choose another name"]),
        ("good.npz", ["'good.npz' is the input", "choose another name"]),
    ],
)
def test_outputs(run, output, words):
    check(run(output=output), 1, *words)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--report", "missing/report.md"], 1, ["no folder 'missing'", "create it first"]),
        (["--report", "report.txt"], 2, ["report 'report.txt' has the suffix .txt", ".html, .json, .md"]),
        (["--max-drift", "top1_drop=1"], 1, ["top1_drop needs integer labels", "budget rel_l2 instead"]),
        (
            ["--max-drift", "my.py:f=1"],
            1,
            ["--max-drift my.py:f: there is no script my.py", "check the path"],
        ),
        (
            ["--max-drift", "accuracy=1"],
            2,
            ["unknown measure 'accuracy'", "known are rel_l2", "file.py:function"],
        ),
        (["--max-drift", "rel_l2=much"], 2, ["'--max-drift'", "'much' is not a number", "such as 0.05"]),
        (["--max-drift", "0.05"], 2, ["'--max-drift'", "NAME=NUMBER, such as rel_l2=0.05"]),
        (["--max-drift", "rel_l2=-1"], 2, ["budget rel_l2=-1.0 is negative", "at least 0"]),
        (["--passes", "svd"], 2, ["unknown pass 'svd'", "known are depthwise_pointwise"]),
        (["--provider", "gpu"], 2, ["unknown provider 'gpu'", "known are acl"]),
        (["--exclude", "foo"], 2, ["--exclude 'foo'", "there are 'down', 'one', 'stem', 'two'"]),
        (["--shape", "z:1"], 2, ["--shape z: no such input", "there are 'x'"]),
        (["--shape", "x:1,8,6,6"], 2, ["--shape x:1,8,6,6", "the model takes [N, 8, 12, 12]"]),
        (["--threads", "0"], 2, ["'--threads'", "not in the range"]),
        (["--min-speedup", "fast"], 2, ["'--min-speedup'", "'fast' is not a number"]),
        (["--fast"], 2, ["No such option", "--fast", "rewriter optimize --help"]),
    ],
)
def test_options(run, args, status, words):
    check(run(*args), status, *words)


def test_a_process_of_its_own_says_no_more(folder):
    """What libraries write to standard error themselves is not seen from within the process."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rewriter",
            "optimize",
            "half.onnx",
            "-o",
            "fast.onnx",
            "--calibration",
            "good.npz",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    check((done.returncode, done.stderr), 1, "'half.onnx'")
    assert done.stdout == ""


def test_a_model_that_the_runtime_refuses(run, folder):
    network = onnx.load("net.onnx")
    network.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(network, "strange.onnx")
    check(run(model="strange.onnx"), 1, "ONNX Runtime cannot load", "NoSuchOperator")
