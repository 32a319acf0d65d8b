"""What a Concat joins to an output is told apart, in whatever way its axes are moved afterwards."""

import graphs
import numpy as np
import pytest

from rewriter import graph
from rewriter.graph import Piece

# x is all ones, so what came from a branch is told by its factor
BRANCHES = """
  a = Mul(x, one)
  b = Mul(x, two)
  c = Mul(x, three)
"""
FACTORS = {
    "one": np.float32(1.0),
    "two": np.float32(2.0),
    "three": np.float32(3.0),
    "flat": np.array([0, 9, -1]),
    "split": np.array([0, 3, 3, 4, -1]),
    "half": np.full((1, 9, 1, 1), 0.5, np.float32),
}


def read(text: str) -> graph.Model:
    """The model of nodes between x `[N, 3, 4, 4]` and the output y, whose shape is not declared."""
    proto = graphs.parse(f"agraph (float[N,3,4,4] x) => (float y) {{ {BRANCHES} {text} }}", **FACTORS)
    proto.graph.output[0].type.Clear()
    return graph.load(proto)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("y = Concat<axis=1>(a, b, c)", ["y[:, :3]", "y[:, 3:6]", "y[:, 6:]"]),
        ("y = Concat<axis=-3>(a, b)", ["y[:, :3]", "y[:, 3:]"]),
        # behind it
        (
            "j = Concat<axis=1>(a, b, c) t = Transpose<perm=[0,2,3,1]>(j) s = Sigmoid(t) y = Neg(s)",
            None,
        ),
        ("j = Concat<axis=1>(a, b, c) r = Reshape(j, flat) y = Transpose<perm=[0,2,1]>(r)", None),
        ("j = Concat<axis=1>(a, b, c) y = Mul(half, j)", ["y[:, :3]", "y[:, 3:6]", "y[:, 6:]"]),
        # one in another
        ("i = Concat<axis=1>(a, b) y = Concat<axis=1>(i, c)", ["y[:, :3]", "y[:, 3:6]", "y[:, 6:]"]),
        ("i = Concat<axis=1>(b, a) j = Concat<axis=1>(b, c) y = Concat<axis=2>(i, j)", None),
    ],
)
def test_each_piece_is_what_one_branch_gives(text: str, names: list[str] | None) -> None:
    model = read(text)
    ((*pieces,),) = graph.output_pieces(model)
    y = graphs.run(model.bytes(), {"x": np.ones((2, 3, 4, 4), np.float32)})["y"]
    found = [each.of(y) for each in pieces]
    assert len(found) > 1
    along = y.ndim + pieces[0].axis
    np.testing.assert_array_equal(np.concatenate(found, axis=along), y)
    for each, piece in zip(found, pieces, strict=True):
        half = each[..., : y.shape[2] // 2, :] if "axis=2" in text else each
        assert len(np.unique(half)) == 1
        index = eval(f"np.s_{piece.name.removeprefix('y')}")
        np.testing.assert_array_equal(y[index], each)
    assert names is None or [each.name for each in pieces] == names


@pytest.mark.parametrize(
    "text",
    [
        "y = Neg(a)",
        # the places of several scales, of which there are more than channels
        "r = Reshape(a, flat) s = Transpose<perm=[0,2,1]>(r) t = Neg(s) y = Concat<axis=1>(s, t, s, t, s)",
        # mixed again, summed, cut up
        "j = Concat<axis=1>(a, b, c) y = Softmax<axis=1>(j)",
        "j = Concat<axis=1>(a, b) k = Concat<axis=1>(b, c) y = Add(j, k)",
        "j = Concat<axis=1>(a, b, c) r = Reshape(j, split) y = ReduceMax<axes=[1]>(r)",
        # steps of a sequence
        f"y = Concat<axis=1>({', '.join('abc' * 6)})",
    ],
)
def test_an_output_of_one_kind_is_one_piece(text: str) -> None:
    proto = graphs.parse(
        f"agraph (float[N,3,4,4] x) => (float y) {{ {BRANCHES} {text} }}",
        **FACTORS,
    )
    proto.graph.output[0].type.Clear()
    assert graph.output_pieces(graph.load(proto)) == ((Piece("y"),),)


def test_pieces_of_a_piece_of_text() -> None:
    assert Piece("y").name == "y"
    assert Piece("y", -1, 4, 5, 3).name == "y[:, :, 4:5]"
    values = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(Piece("y", -2, 1, None, 3).of(values[None]), values[None, :, 1:])
