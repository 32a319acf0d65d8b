from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import only, parse, random

from rewriter import graph
from rewriter.errors import ModelError, OptionError, OutputError, RewriterError

TEXT = "agraph (float[N,1,8,8] x) => (float[N,2,8,8] y) { [conv1] y = Conv<pads=[1,1,1,1]>(x, w) }"


@pytest.fixture
def proto(rng: np.random.Generator) -> onnx.ModelProto:
    return parse(TEXT, w=random(rng, 2, 1, 3, 3))


def test_load_then_save_is_the_identity(zoo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    graph.save(graph.load(zoo_model), out)
    assert out.read_bytes() == zoo_model.read_bytes()
    # and so it is from the proto alone
    assert graph.load(onnx.load(zoo_model)).bytes() == zoo_model.read_bytes()


def test_loads_paths_bytes_and_protos(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for source in (path, str(path), path.read_bytes(), proto):
        found = graph.load(source)
        assert found.bytes() == path.read_bytes()
        assert [(spec.name, spec.dtype, spec.shape) for spec in found.inputs] == [
            ("x", np.float32, ("N", 1, 8, 8))
        ]
        assert found.outputs == ("y",)
    assert graph.load(path).path == path


def test_a_model_is_its_own_copy(proto: onnx.ModelProto) -> None:
    found = graph.load(proto)
    proto.graph.node[0].name = "changed"
    assert found.proto.graph.node[0].name == "conv1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no graph"),
        (b"hello, this is no model\n", "not an ONNX model"),
        (b"\x08\x08", "has no graph"),
        (onnx.ModelProto(graph=onnx.GraphProto(name="empty")).SerializeToString(), "has no nodes"),
    ],
)
def test_refuses_what_is_no_model(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        graph.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        graph.load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        graph.load(tmp_path)


def test_a_file_cut_short_is_refused_at_every_place(proto: onnx.ModelProto) -> None:
    data = proto.SerializeToString()
    for stop in range(len(data)):
        with pytest.raises(ModelError, match=r"cut short|part of one"):
            graph.load(data[:stop])


def test_a_damaged_file_gives_one_line_or_a_model(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    data = proto.SerializeToString()
    messages = []
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            damaged[place] = rng.integers(256)
        try:
            found = graph.load(bytes(damaged))
            sites, _ = graph.find_sites(found)
            graph.segments(found, sites)
            graph.splice(found, [(each, only(each.conv)) for each in sites]).bytes()
        except RewriterError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_external_data_is_read_and_missed(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    found = graph.load(path)
    assert graph.find_sites(found)[0][0].conv.weight.shape == (2, 1, 3, 3)
    graph.save(found, tmp_path / "whole.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "whole.onnx", load_external_data=False))
    with pytest.raises(ModelError, match="give its path"):
        graph.load(path.read_bytes())
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"m\.data") as caught:
        graph.load(path)
    assert "\n" not in str(caught.value)


def test_save_leaves_nothing_behind(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = graph.load(proto)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        graph.save(found, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert target.read_bytes() == b"old"


def test_save_writes_through_a_link(proto: onnx.ModelProto, tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    graph.save(graph.load(proto), link)
    assert link.is_symlink()
    assert real.read_bytes() == proto.SerializeToString()


def test_check_output(proto: onnx.ModelProto, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"model")
    (tmp_path / "link.onnx").symlink_to(source)
    graph.check_output(tmp_path / "out.onnx", source)
    graph.check_output(tmp_path / "out.onnx")
    for path, message in (
        (tmp_path / "none" / "out.onnx", "does not exist"),
        (tmp_path, "is a folder"),
        (source, "is the input"),
        (tmp_path / "link.onnx", "is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            graph.check_output(path, source)
    with pytest.raises(OutputError, match="does not exist"):
        graph.save(graph.load(proto), tmp_path / "none" / "out.onnx")


def test_inputs_leave_defaults_out(rng: np.random.Generator) -> None:
    text = "agraph (float[1,1,8,8] x, float[2,1,3,3] w) => (float[1,2,6,6] y) { y = Conv(x, w) }"
    found = graph.load(parse(text, w=random(rng, 2, 1, 3, 3)))
    assert [spec.name for spec in found.inputs] == ["x"]
    assert found.pinned == {"w"}


def test_what_names_every_size_names_none(proto: onnx.ModelProto) -> None:
    for dim, told in zip(
        proto.graph.input[0].type.tensor_type.shape.dim, ["?", "-1", "?", "d0"], strict=True
    ):
        dim.dim_param = told
    assert graph.load(proto).inputs[0].shape == (None, None, None, "d0")


def test_inputs_of_unknown_rank_are_an_error() -> None:
    proto = parse("agraph (float x) => (float y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x'"):
        _ = graph.load(proto).inputs


def test_with_shapes_fixes_dynamic_sizes(proto: onnx.ModelProto) -> None:
    found = graph.with_shapes(graph.load(proto), {"x": (4, 1, 8, 8)})
    assert found.inputs[0].shape == (4, 1, 8, 8)
    for shapes, message in (
        ({"z": (1,)}, "no input 'z'"),
        ({"x": (1, 1, 8)}, "cannot be 1,1,8"),
        ({"x": (1, 3, 8, 8)}, "cannot be 1,3,8,8"),
        ({"x": (0, 1, 8, 8)}, "cannot be 0,1,8,8"),
    ):
        with pytest.raises(OptionError, match=message):
            graph.with_shapes(graph.load(proto), shapes)
