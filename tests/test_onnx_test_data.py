"""Folders of ONNX test data as samples."""

import numpy as np
import onnx
import pytest
from numbered import F32, IMAGE, indices, pictures

from rewriter.errors import SampleError
from rewriter.samples import InputSpec
from rewriter.sources import load

PAIR = [IMAGE, InputSpec("scale", F32, ("batch", 1))]


def write(folder, *, outputs=(), inputs=()):
    folder.mkdir(parents=True, exist_ok=True)
    for word, arrays in (("input", inputs), ("output", outputs)):
        for index, array in enumerate(arrays):
            tensor = onnx.numpy_helper.from_array(np.asarray(array))
            (folder / f"{word}_{index}.pb").write_bytes(tensor.SerializeToString())
    return folder


def refused(source, specs=(IMAGE,)):
    with pytest.raises(SampleError) as caught:
        load(source, specs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def sets(tmp_path):
    for index in (0, 2, 10):
        write(
            tmp_path / f"test_data_set_{index}", inputs=[pictures(1) + index], outputs=[np.float32([[index]])]
        )
    (tmp_path / "model.onnx").write_bytes(b"")
    return tmp_path


def test_sets_come_in_the_order_of_their_numbers(sets):
    found = load(str(sets), [IMAGE])
    assert indices(found) == [0, 2, 10]
    assert found.targets is None
    assert indices(load(sets / "test_data_set_2", [IMAGE])) == [2]


def test_inputs_are_in_the_order_of_the_models(tmp_path):
    write(tmp_path, inputs=[pictures(2), np.float32([[5], [6]])])
    found = load(tmp_path, PAIR)
    assert (indices(found), indices(found, "scale")) == ([0, 1], [5, 6])


def test_outputs_are_targets_where_they_are_asked_for(sets):
    assert [target.tolist() for target in load(f"{sets}:outputs", [IMAGE]).targets] == [[0], [2], [10]]
    assert load(f"{sets / 'test_data_set_2'}:outputs", [IMAGE]).targets[0].tolist() == [2]


def test_outputs_that_cannot_be_targets(sets):
    write(sets / "test_data_set_2", outputs=[np.zeros(1), np.zeros(1)])
    assert "test_data_set_2: a target is one output, output_0.pb; found 2" in refused(f"{sets}:outputs")


@pytest.mark.parametrize("content", [b"", b"no tensor"])
def test_broken_tensors_are_named(sets, content):
    (sets / "test_data_set_10" / "input_0.pb").write_bytes(content)
    assert "test_data_set_10: input_0.pb is no readable ONNX tensor" in refused(sets)


def test_missing_inputs(sets):
    assert "test_data_set_0: the model takes 2 inputs, and input_0.pb to input_1.pb should" in refused(
        sets, PAIR
    )


def test_shapes_are_checked(sets):
    write(sets / "test_data_set_2", inputs=[pictures(1, 1, 3, 3)])
    assert "test_data_set_2: input 'image' has shape [1, 1, 3, 3], expected" in refused(sets)
