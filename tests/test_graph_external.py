"""Weights beside the model: read only from its folder, written so that nobody ever sees half of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fake_latency
import numpy as np
import onnx
import pytest
from graphs import distance, parse, random, run

import rewriter
from rewriter import cli, graph
from rewriter.errors import ModelError
from rewriter.graph import Storage, external
from rewriter.runtime import Session, Target
from rewriter.serialized import Parts

TEXT = """agraph (float[1,4,8,8] x) => (float[1,8,8,8] y) {
    [one] a = Conv<pads=[1,1,1,1]>(x, w, b) [two] y = Conv<pads=[1,1,1,1]>(a, v)
}"""
ROOT = Path(__file__).parent.parent


@pytest.fixture
def proto(rng: np.random.Generator) -> onnx.ModelProto:
    return parse(TEXT, w=random(rng, 8, 4, 3, 3), b=random(rng, 8), v=random(rng, 8, 8, 3, 3))


def stored(proto: onnx.ModelProto, path: Path, location: str = "m.data", **changes: str) -> Path:
    """The model in a file whose weight `v` lies beside it, its entries changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    weight = copy.graph.initializer[2]
    entries = {"location": location, "offset": "0", "length": str(len(weight.raw_data)), **changes}
    (path.parent / "m.data").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(copy.SerializeToString())
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_read_by_offset_and_length(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = stored(proto, tmp_path / "m.onnx", offset="16")
    data = proto.graph.initializer[2].raw_data
    (tmp_path / "m.data").write_bytes(bytes(16) + data + b"more")
    found = graph.load(path)
    assert found.bytes() == proto.SerializeToString()
    assert found.data == {tmp_path / "m.data"}
    # what is not told is the rest that the shape asks for
    found = graph.load(stored(proto, path, offset="", length=""))
    assert found.bytes() == proto.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": "1"}, ["is too short", "it has 2304 bytes", "2304 are needed from byte 1 on"]),
        ({"offset": "99999999999999999999"}, ["is too short"]),
        ({"offset": "-4"}, ["make no sense", "offset -4"]),
        ({"offset": "many"}, ["make no sense", "'many'"]),
        ({"length": "4"}, ["make no sense", "length 4, but its shape takes 2304 bytes"]),
        ({"location": "none.data"}, ["none.data", "is missing; put it beside the model"]),
        ({"location": ""}, ["is missing"]),
        ({"location": "."}, ["is missing"]),
        ({"location": "a\0b"}, ["is missing"]),
        ({"location": "x" * 5000}, ["is missing"]),
        ({"location": "../secret"}, ["is outside the model's folder and is not read"]),
        ({"location": "sub/../../secret"}, ["is outside"]),
        ({"location": "..\\secret"}, ["is outside"]),
        ({"location": "C:\\secret"}, ["is outside"]),
        ({"location": "{secret}"}, ["is outside"]),
        ({"location": "link"}, ["is outside"]),
        ({"location": "linked/secret"}, ["is outside"]),
        ({"location": "circle"}, ["is missing"]),
        ({"location": "pipe"}, ["is missing"]),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, ["is missing"]),
    ],
)
def test_what_is_not_read(
    proto: onnx.ModelProto,
    tmp_path: Path,
    changes: dict[str, str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(proto.graph.initializer[2].raw_data)
    (folder / "link").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    changes = {key: value.format(secret=secret) for key, value in changes.items()}
    path = stored(proto, folder / "m.onnx", **changes)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(path)])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in ("Error: ", "tensor 'v'", *words):
        assert word in message


def test_a_link_within_the_folder_is_followed(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = stored(proto, tmp_path / "m.onnx", "link")
    (tmp_path / "link").symlink_to("m.data")
    assert graph.load(path).bytes() == proto.SerializeToString()
    # and the folder may itself be one
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert graph.load(tmp_path / "elsewhere" / "m.onnx").bytes() == proto.SerializeToString()


def test_data_everywhere_in_a_model_are_guarded(proto: onnx.ModelProto, tmp_path: Path) -> None:
    outside = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "folder").mkdir()

    def spoil(number: int, model: onnx.ModelProto) -> None:
        node = model.graph.node[0]
        info = model.training_info.add()
        body = onnx.GraphProto(name="body", initializer=[outside])
        function = model.functions.add(name="f", domain="d")
        sparse = onnx.SparseTensorProto(values=outside, dims=[1])
        (
            lambda: node.attribute.append(onnx.helper.make_attribute("t", outside)),
            lambda: node.attribute.add(name="ts", type=9).tensors.append(outside),
            lambda: node.attribute.add(name="s", type=11).sparse_tensor.CopyFrom(sparse),
            lambda: node.attribute.append(onnx.helper.make_attribute("g", body)),
            lambda: model.graph.sparse_initializer.append(sparse),
            lambda: info.algorithm.CopyFrom(body),
            lambda: function.node.add(op_type="F").attribute.append(onnx.helper.make_attribute("g", body)),
        )[number]()

    for number in range(7):
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        spoil(number, model)
        path = tmp_path / "folder" / "m.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"tensor 't' of .* is outside"):
            graph.load(path)
        for source in (model, path.read_bytes()):
            with pytest.raises(ModelError, match="give its path"):
                graph.load(source)


def test_split_and_read_again(proto: onnx.ModelProto, tmp_path: Path) -> None:
    found = graph.load(proto)
    out = tmp_path / "out.onnx"
    graph.save(found, out, Storage(external=True))
    model, name = sorted(files(tmp_path), key=len)
    assert (model, re.sub(r"\.[0-9a-f]{16}\.", ".#.", name)) == ("out.onnx", "out.onnx.#.data")
    # `b` is below the threshold
    lean = onnx.load(out, load_external_data=False)
    assert [external.is_external(tensor) for tensor in lean.graph.initializer] == [True, False, True]
    assert graph.load(out).bytes() == proto.SerializeToString()
    assert onnx.load(out).graph.initializer[2].raw_data == proto.graph.initializer[2].raw_data
    onnx.checker.check_model(out)
    x = {"x": np.ones((1, 4, 8, 8), np.float32)}
    assert distance(run(found.bytes(), x), Session(out, Target(threads=1)).run(x)) == 0
    # the same again has the same names and bytes
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    graph.save(found, out, Storage(external=True))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # other weights have another name, and what nobody needs any more is gone
    graph.save(found, out, Storage(external=True, threshold=0))
    assert len(set(files(tmp_path)) - {"out.onnx", name}) == 1
    assert len(files(tmp_path)) == 2
    graph.save(found, out)
    assert files(tmp_path) == ["out.onnx"]
    assert out.read_bytes() == proto.SerializeToString()


def test_large_weights_begin_where_they_can_be_mapped(rng: np.random.Generator, tmp_path: Path) -> None:
    text = "agraph (float[N,512] x) => (float[N,1024] y) { a = MatMul(x, u) y = MatMul(a, w) }"
    proto = parse(text, u=random(rng, 512, 512), w=random(rng, 512, 1024), s=random(rng, 300))
    graph.save(graph.load(proto), tmp_path / "m.onnx", Storage(external=True))
    lean = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in lean.initializer]
    assert [int(place["offset"]) % 65536 for place in places[:2]] == [0, 0]
    assert graph.load(tmp_path / "m.onnx").bytes() == proto.SerializeToString()


def test_data_that_the_model_was_read_from_stay(proto: onnx.ModelProto, tmp_path: Path) -> None:
    graph.save(graph.load(proto), tmp_path / "out.onnx", Storage(external=True))
    (tmp_path / "out.onnx").rename(tmp_path / "in.onnx")
    found = graph.load(tmp_path / "in.onnx")
    (tmp_path / "out.onnx.notes.data").write_text("not ours")
    graph.save(found, tmp_path / "out.onnx")
    assert graph.load(tmp_path / "in.onnx").bytes() == proto.SerializeToString()
    assert (tmp_path / "out.onnx.notes.data").exists()


def test_a_model_over_the_limit_is_run_and_rewritten(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_latency.install(monkeypatch)
    monkeypatch.setattr(external, "MOST_BYTES", 2500)
    graph.save(graph.load(proto), tmp_path / "in.onnx")
    assert len(files(tmp_path)) == 2
    x = [{"x": np.random.default_rng(seed).standard_normal((1, 4, 8, 8), np.float32)} for seed in range(8)]
    done = rewriter.optimize(
        tmp_path / "in.onnx", x, max_macs=0.7, output=tmp_path / "out.onnx", save_plan=tmp_path / "p.json"
    )
    assert done.improved
    assert sum(name.startswith("out.onnx") for name in files(tmp_path)) == 2
    found = graph.load(tmp_path / "out.onnx")
    assert found.bytes() == done.model.SerializeToString()
    report = rewriter.inspect(tmp_path / "out.onnx")
    assert len(report.layers) > 2
    rewriter.apply(tmp_path / "in.onnx", tmp_path / "p.json", x, output=tmp_path / "same.onnx")
    same, out = (next(tmp_path.glob(f"{name}.onnx.*.data")) for name in ("same", "out"))
    assert same.read_bytes() == out.read_bytes()
    report = rewriter.compare(tmp_path / "out.onnx", tmp_path / "same.onnx", locate=True)
    assert report.drift[0].value == 0


def test_the_options(proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_latency.install(monkeypatch)
    source = stored(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((8, 4, 8, 8), np.float32))
    out = tmp_path / "out.onnx"
    args = ["optimize", str(source), "-o", str(out), "--calibration", str(tmp_path / "x.npz"), "-q"]
    for more, data in (
        ([], 0),
        (["--save-as-external-data"], 1),
        (["--save-as-external-data", "--size-threshold", "999999"], 0),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*args, "--max-macs", "0.7", *more])
        assert ended.value.code == 0
        assert len(list(tmp_path.glob("out.onnx.*.data"))) == data
        assert graph.load(out).bytes()
    with pytest.raises(SystemExit) as ended:
        cli.main([*args[:3], str(tmp_path / "m.data"), "--exact"])
    assert ended.value.code == 1


# a field that no version of ONNX has, with the value 7
LATER = bytes([0xF8, 0xF9, 0x01, 7])


@pytest.mark.parametrize("where", ["nowhere", "model", "graph", "weight"])
def test_all_but_the_data_of_a_split_model_stays_with_it(proto: onnx.ModelProto, where: str) -> None:
    proto.metadata_props.add(key="k", value="v")
    proto.training_info.add().initialization.name = "start"
    proto.graph.doc_string = "of the graph"
    proto.graph.quantization_annotation.add(tensor_name="w")
    message = {"model": proto, "graph": proto.graph, "weight": proto.graph.initializer[2]}.get(where)
    if message is not None:
        message.MergeFromString(LATER)
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    parts = external.split(proto, at_least=2000)
    found = onnx.load_model_from_string(parts.model)
    for tensor in found.graph.initializer:
        if external.is_external(tensor):
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    for tensor in expected.graph.initializer:
        if len(tensor.raw_data) >= 2000:
            tensor.ClearField("raw_data")
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    (pieces,) = parts.data.values()
    assert b"".join(pieces()).strip(b"\0") == proto.graph.initializer[2].raw_data.strip(b"\0")


def test_what_is_loaded_in_parts_computes_the_same(
    proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    found, x = graph.load(proto), {"x": random(rng, 1, 4, 8, 8)}
    monkeypatch.setattr(external, "_MUCH", 1000)
    assert isinstance(graph.loadable(found), Parts)
    np.testing.assert_array_equal(
        Session(lambda: graph.loadable(found)).run(x)["y"], run(found.bytes(), x)["y"]
    )


WRITER = """
import itertools, os, signal, sys, time
from pathlib import Path
import numpy as np, onnx
from rewriter import graph

proto = onnx.load_model(sys.argv[1])
out = Path(sys.argv[2])

def overwrite(numbers):
    for number in numbers:
        weight = onnx.numpy_helper.from_array(np.full((8, 8, 3, 3), number, np.float32), "v")
        proto.graph.initializer[2].CopyFrom(weight)
        proto.doc_string = str(number)
        graph.save(graph.load(proto), out, graph.Storage(external=number % 4 != 3))

began = time.monotonic()
overwrite(range(8))
seconds = 2 * (time.monotonic() - began)
for share in map(float, sys.stdin):
    writer = os.fork()
    if not writer:
        overwrite(itertools.count())
    time.sleep(share * seconds)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    print("killed", flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_model(proto: onnx.ModelProto, tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out" / "m.onnx"
    out.parent.mkdir()
    source.write_bytes(proto.SerializeToString())
    rng = np.random.default_rng(1)
    seen = set()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, source, out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(50):
            child.stdin.write(f"{rng.uniform()}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "killed\n"
            if out.exists():
                found = graph.load(out)
                seen.add(float(found.proto.doc_string))
                assert set(onnx.numpy_helper.to_array(found.proto.graph.initializer[2]).flat) <= seen
        child.stdin.close()
    assert len(seen) > 5
    graph.save(graph.load(out), out, Storage(external=True))
    assert sum(not name.endswith(".tmp") for name in files(out.parent)) <= 3
