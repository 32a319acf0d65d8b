"""The README's walk through, executed in order as it stands, on a model that is quicker to rewrite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTION = "A walk through"
# The environment is there already.
INSTALLING = ("python3 -m venv", "pip install")
STAND_IN = """
agraph (float[batch,1,32,32] image) => (float[batch,10] scores) {
    [stem] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(image, stem)
    [relu] b = Relu(a)
    [wide] c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(b, wide)
    [relu2] d = Relu(c)
    [pool] e = GlobalAveragePool(d)
    [flat] f = Flatten(e)
    [head] scores = Gemm(f, head)
}
"""


def blocks(text, section):
    """The fenced blocks of a section, each with its language."""
    body = re.search(rf"^## {section}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"^```(\w+)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)


def commands(block):
    """What is typed in a console block, and the lines that are shown to come out."""
    joined = block.replace("\\\n", " ").splitlines()
    typed = [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return typed, [line for line in joined if not line.startswith("$ ")]


def make_models(folder, rng):
    """A network whose wide convolution is nearly separable, and some of the demonstration's samples."""
    folder.mkdir()
    tall, flat = graphs.random(rng, 3, 48, 3), graphs.random(rng, 48, 3, 3)
    wide = np.einsum("rcy,mrx->mcyx", tall, flat) + 0.01 * graphs.random(rng, 48, 48, 3, 3)
    weights = {
        "stem": graphs.random(rng, 48, 1, 3, 3),
        "wide": np.float32(wide),
        "head": graphs.random(rng, 48, 10),
    }
    (folder / "digits.onnx").write_bytes(graphs.parse(STAND_IN, **weights).SerializeToString())
    for part in ("calibration", "evaluation"):
        with np.load(ROOT / "models" / f"digits_{part}.npz") as data:
            np.savez(folder / f"digits_{part}.npz", **{name: data[name][:24] for name in data.files})


@pytest.mark.slow
def test_the_walk_through(tmp_path, rng):
    make_models(tmp_path / "models", rng)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "OPENBLAS_NUM_THREADS": "1",
    }
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"), SECTION)
    assert {language for language, _ in found} == {"console", "python"}
    for language, block in found:
        expected = []
        args = [sys.executable, "-c", block]
        if language == "console":
            typed, expected = commands(block)
            lines = [line for line in typed if not line.startswith(INSTALLING)]
            script = 'rewriter() { "$PYTHON" -m rewriter "$@"; }\n' + "\n".join(lines)
            args = ["bash", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(
            args, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        for line in expected:
            assert line in done.stdout.splitlines(), f"{block}\n{done.stdout}"
    assert (tmp_path / "deployed.onnx").read_bytes() == (tmp_path / "digits.fast.onnx").read_bytes()
