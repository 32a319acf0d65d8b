"""Damaged and malicious files: one clear line or a result, never a traceback, a hang or a crash.

HOSTILE_CASES=1000 tries so many files with flipped bytes instead of a few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import parse, random
from hostile import Case, Server

FLIPS = int(os.environ.get("HOSTILE_CASES", "200"))
CUTS = 200

Check = Callable[[list[Case], list[str]], list[str]]

TEXT = """agraph (float[1,2,10,10] x) => (float[1,3] y) {
    [pad] z = Pad(x, borders)
    [scale] e = Mul(z, k)
    [conv1] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(e, w, b)
    [norm] n = BatchNormalization(a, s, t, m, v)
    [relu] r = Relu(n)
    [conv2] c = Conv<pads=[1,1,1,1], dilations=[1,1], group=2>(r, u)
    [add] d = Add(c, r)
    [pool] p = GlobalAveragePool(d)
    [shape] shape = Constant<value: tensor=int64[2] {1,-1}>()
    [flat] f = Reshape(p, shape)
    [head] y = Gemm<transB=1>(f, g, h)
}"""


@pytest.fixture
def proto(rng: np.random.Generator) -> onnx.ModelProto:
    weights = {"w": (2, 2, 3, 3), "b": (2,), "s": (2,), "t": (2,), "m": (2,), "u": (2, 1, 3, 3)}
    drawn = {name: random(rng, *shape) for name, shape in weights.items()}
    borders = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    drawn["k"] = random(rng, 1, 2, 1, 1)
    return parse(
        TEXT, **drawn, borders=borders, v=np.ones(2, np.float32), g=random(rng, 3, 2), h=random(rng, 3)
    )


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """The outcomes of cases with their labels, of which none is one that should never be."""
    server = Server()

    def call(cases: list[Case], labels: list[str]) -> list[str]:
        found = server.outcomes(cases)
        wrong = [
            f"{label}: {outcome}"
            for label, outcome in zip(labels, found, strict=True)
            if outcome != "done" and not outcome.startswith("refused: ")
        ]
        assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)
        return found

    yield call
    server.close()


def test_files_cut_short(proto: onnx.ModelProto, check: Check) -> None:
    data = proto.SerializeToString()
    places = np.linspace(0, len(data) - 1, CUTS).astype(int)
    found = check([("inspect", data[:place]) for place in places], [f"cut at {place}" for place in places])
    assert all("cut short" in outcome or "a part of one" in outcome for outcome in found)


def test_flipped_bytes(proto: onnx.ModelProto, check: Check) -> None:
    data = proto.SerializeToString()
    rng = np.random.default_rng(7)
    cases: list[Case] = []
    for index in range(FLIPS):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 1 + index % 3):
            damaged[place] ^= rng.integers(1, 256)
        cases.append(("exact" if index % 100 == 99 else "inspect", bytes(damaged)))
    found = check(cases, [f"flip {index}" for index in range(FLIPS)])
    assert len(set(found)) > 5


def spoilt(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Models of which each says something that cannot be."""

    def spoil(name: str, change: Callable[[onnx.GraphProto], object]) -> tuple[str, onnx.ModelProto]:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        change(copy.graph)
        return name, copy

    def initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
        return next(tensor for tensor in graph.initializer if tensor.name == name)

    def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
        return next(node for node in graph.node if node.name == name)

    def attribute(graph: onnx.GraphProto, of: str, name: str) -> onnx.AttributeProto:
        return next(each for each in node(graph, of).attribute if each.name == name)

    for weight in ("w", "b", "g", "s", "k", "borders"):
        for dims in ([2**40], [2**62, 2**62], [-1, 2, 3, 3], [-(2**63)] * 4, [], [0, 2, 3, 3], [2] * 200):

            def reshape(graph: onnx.GraphProto, weight: str = weight, dims: list[int] = dims) -> None:
                initializer(graph, weight).dims[:] = dims

            yield spoil(f"{weight} of {len(dims)} dims {dims[:4]}", reshape)
        yield spoil(f"no {weight}", lambda graph, weight=weight: initializer(graph, weight).Clear())
        yield spoil(
            f"{weight} cut",
            lambda graph, weight=weight: setattr(initializer(graph, weight), "raw_data", b"abc"),
        )
        yield spoil(
            f"{weight} long",
            lambda graph, weight=weight: setattr(initializer(graph, weight), "raw_data", bytes(4097)),
        )
        for kind in (0, 1000, onnx.TensorProto.STRING, onnx.TensorProto.INT4, onnx.TensorProto.DOUBLE):
            yield spoil(
                f"{weight} of type {kind}",
                lambda graph, weight=weight, kind=kind: setattr(
                    initializer(graph, weight), "data_type", kind
                ),
            )
        yield spoil(
            f"{weight} twice",
            lambda graph, weight=weight: graph.initializer.append(initializer(graph, weight)),
        )
    for of in ("conv1", "conv2"):
        for name in ("pads", "strides", "dilations", "kernel_shape", "group"):
            for values in ([], [0, 0], [-1, -1, -1, -1], [2**40] * 4, [2**62, 2**62], [2**31 - 1] * 2):

                def refill(
                    graph: onnx.GraphProto, of: str = of, name: str = name, values: list[int] = values
                ) -> None:
                    at = node(graph, of).attribute
                    kept = [each for each in at if each.name != name]
                    del at[:]
                    at.extend(kept)
                    number = name == "group"
                    at.append(
                        onnx.AttributeProto(
                            name=name,
                            type=onnx.AttributeProto.INT if number else onnx.AttributeProto.INTS,
                            ints=[] if number else values,
                            i=values[0] if number and values else 0,
                        )
                    )

                yield spoil(f"{name} {values} of {of}", refill)
    for kind in range(15):
        yield spoil(
            f"pads of type {kind}",
            lambda graph, kind=kind: setattr(attribute(graph, "conv1", "pads"), "type", kind),
        )
        yield spoil(
            f"a constant of type {kind}",
            lambda graph, kind=kind: setattr(node(graph, "shape").attribute[0], "type", kind),
        )
    yield spoil("text for numbers", lambda graph: setattr(attribute(graph, "conv1", "pads"), "s", b"1,1"))
    yield spoil("a cycle", lambda graph: node(graph, "conv1").input.__setitem__(0, "r"))
    yield spoil(
        "a node that takes what it makes", lambda graph: node(graph, "relu").input.__setitem__(0, "r")
    )
    yield spoil("an output made twice", lambda graph: node(graph, "relu").output.__setitem__(0, "n"))
    yield spoil("no inputs of a node", lambda graph: node(graph, "conv1").ClearField("input"))
    yield spoil("no outputs of a node", lambda graph: node(graph, "conv1").ClearField("output"))
    yield spoil("no outputs of a norm", lambda graph: node(graph, "norm").ClearField("output"))
    yield spoil("few inputs of a norm", lambda graph: node(graph, "norm").input.__delitem__(slice(2, None)))
    yield spoil("no inputs of a norm", lambda graph: node(graph, "norm").ClearField("input"))
    yield spoil("no inputs of a relu", lambda graph: node(graph, "relu").ClearField("input"))
    yield spoil("empty names", lambda graph: [each.ClearField("output") for each in graph.node])
    yield spoil("reversed", lambda graph: graph.node.reverse())
    yield spoil("doubled", lambda graph: graph.node.extend(list(graph.node)))
    yield spoil("outputs twice", lambda graph: graph.output.append(graph.output[0]))
    yield spoil("inputs twice", lambda graph: graph.input.append(graph.input[0]))
    yield spoil("an output that nobody makes", lambda graph: setattr(graph.output[0], "name", "nothing"))
    yield spoil("an input without a type", lambda graph: graph.input[0].ClearField("type"))
    yield spoil("no input", lambda graph: graph.ClearField("input"))
    for size in (0, -1, 2**31, 2**40, 2**62):
        yield spoil(
            f"an input of size {size}",
            lambda graph, size=size: setattr(graph.input[0].type.tensor_type.shape.dim[2], "dim_value", size),
        )
    yield spoil("an identity of itself", lambda graph: _itself(graph))
    yield spoil("a constant without a value", lambda graph: node(graph, "shape").ClearField("attribute"))
    yield spoil(
        "two values", lambda graph: node(graph, "shape").attribute.append(node(graph, "shape").attribute[0])
    )
    yield spoil("deep bodies", lambda graph: graph.node.append(nested(25)))
    yield spoil("an unknown domain", lambda graph: setattr(node(graph, "relu"), "domain", "evil"))
    for version in (0, -1, 2**40, 2**62):
        name, other = spoil(f"opset {version}", lambda graph: None)
        other.opset_import[0].version = version
        yield name, other
        name, other = spoil(f"IR version {version}", lambda graph: None)
        other.ir_version = version
        yield name, other


def _itself(graph: onnx.GraphProto) -> None:
    """The weight of a convolution that two Identity nodes hand to each other."""
    graph.node.insert(0, onnx.helper.make_node("Identity", ["q"], ["p"]))
    graph.node.insert(0, onnx.helper.make_node("Identity", ["p"], ["q"]))
    next(node for node in graph.node if node.name == "conv1").input[1] = "p"


def nested(depth: int) -> onnx.NodeProto:
    """An If in an If in an If."""
    made = onnx.helper.make_node("Relu", ["x"], ["deep"])
    for level in range(depth):
        value = onnx.ValueInfoProto(name=made.output[0])
        body = onnx.GraphProto(name=f"b{level}", node=[made], output=[value])
        made = (
            onnx.helper.make_node("If", ["x"], [f"deep{level}"], then_branch=body, else_branch=body)
            if (level < 6)
            else onnx.helper.make_node("Loop", ["x"], [f"deep{level}"], body=body)
        )
    return made


def test_what_cannot_be(proto: onnx.ModelProto, check: Check) -> None:
    labels, models = zip(*spoilt(proto), strict=True)
    cases = [model.SerializeToString() for model in models]
    check([("inspect", case) for case in cases], list(labels))
    few = slice(None, None, 10 if "HOSTILE_CASES" in os.environ else 40)
    check([("exact", case) for case in cases[few]], [f"{label} (exact)" for label in labels[few]])


def test_data_outside_the_folder_are_not_read(proto: onnx.ModelProto, check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # whoever opens it waits for ever
    (folder / "link").symlink_to(secret)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add(key="location")
    cases: list[Case] = []
    for number, location in enumerate(("../secret", str(secret), "link", "./../secret", "/dev/zero")):
        entry.value = location
        (folder / f"{number}.onnx").write_bytes(proto.SerializeToString())
        cases.append(("inspect", folder / f"{number}.onnx"))
    assert all(
        "outside the model's folder" in found for found in check(cases, [str(each[1]) for each in cases])
    )
