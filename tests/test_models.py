import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from rewriter.samples import InputSpec
from rewriter.sources import load

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "digits.onnx"
IMAGE = InputSpec("image", np.dtype("float32"), ("batch", 1, 32, 32))


@pytest.fixture(scope="module")
def model():
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def evaluation():
    return load(MODELS / "digits_evaluation.npz", [IMAGE], what="evaluation")


@pytest.fixture(scope="module")
def calibration():
    return load(MODELS / "digits_calibration.npz", [IMAGE])


def test_files_are_the_ones_that_were_made():
    lines = (MODELS / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sorted(sums) == sorted(p.name for p in MODELS.iterdir() if p.suffix in (".onnx", ".npz"))
    for name, digest in sums.items():
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == digest, name


def test_model_is_one_small_standard_file(model):
    assert MODEL.stat().st_size < 4_000_000
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(mark in MODEL.read_bytes() for mark in (b"/work", b"/root", b"/opt", b"/home", b".py"))


def test_model_has_standard_convolutions_to_rewrite(model):
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convs = {node.name: weights[node.input[1]].shape for node in model.graph.node if node.op_type == "Conv"}
    square = {name: shape for name, shape in convs.items() if shape[2:] == (3, 3)}
    assert len(convs) == 10
    assert len(square) == 7
    assert {shape[0] for shape in square.values()} == {64, 128}
    assert square["stage3.0.conv2"] == (128, 128, 3, 3)
    assert all(name in weights for name in ("stem.weight", "stem.bias", "head.weight"))


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_is_dynamic(session, batch):
    (scores,) = session.run(["scores"], {"image": np.zeros((batch, 1, 32, 32), np.float32)})
    assert scores.shape == (batch, 10)


def test_accuracy_on_digits_never_seen(session, evaluation):
    right = 0
    for feeds, labels in evaluation.batches(100):
        (scores,) = session.run(["scores"], feeds)
        right += int(np.sum(scores.argmax(axis=1) == labels))
    assert len(evaluation) == 497
    assert right / len(evaluation) >= 0.98


def test_every_digit_is_in_the_evaluation_part(evaluation):
    counts = np.bincount(evaluation.targets, minlength=10)
    assert len(counts) == 10
    assert counts.min() >= 45  # stratified: a tenth of 497 each, within what the data has of it


def test_parts_are_disjoint(calibration, evaluation):
    first, second = ({f["image"].tobytes() for f in part.feeds} for part in (calibration, evaluation))
    assert len(first) == len(calibration) == 300
    assert len(second) == len(evaluation)
    assert not first & second


def test_images_fill_their_range(calibration, evaluation):
    for part in (calibration, evaluation):
        images = np.concatenate([feeds["image"] for feeds in part.feeds])
        assert images.min() == 0
        assert images.max() == 1
