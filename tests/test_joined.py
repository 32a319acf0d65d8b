"""Groups joined into wider ones: what is written, what it costs, and where it is offered."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import only, random

from passes.join_groups import JoinGroups
from rewriter.calibration import apply
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.joined import Joined
from rewriter.runtime import Target


def grouped(rng: np.random.Generator, outputs: int, inputs: int, group: int, **attributes) -> Conv:
    return Conv(random(rng, outputs, inputs // group, 3, 3), random(rng, outputs), group=group, **attributes)


def test_the_weight_is_block_diagonal(rng: np.random.Generator) -> None:
    conv = grouped(rng, 12, 8, 4)
    whole = Joined(2).weight(conv)
    assert whole.shape == (12, 4, 3, 3)
    for output in range(12):
        of = output // 3 % 2
        np.testing.assert_array_equal(whole[output, 2 * of : 2 * of + 2], conv.weight[output])
        assert not whole[output, 2 * (1 - of) : 2 * (1 - of) + 2].any()


def test_costs_are_those_of_what_is_written(rng: np.random.Generator) -> None:
    conv = grouped(rng, 12, 8, 4, pads=(1, 1, 1, 1))
    joined = conv.with_(lowering=Joined(2))
    wide = Conv(Joined(2).weight(conv), conv.bias, group=2, pads=(1, 1, 1, 1))
    assert joined.macs((5, 7)) == wide.macs((5, 7)) == 2 * conv.macs((5, 7))
    assert joined.held == wide.held
    assert joined.cost((5, 7)).params == conv.cost((5, 7)).params
    x = random(rng, 2, 8, 5, 7)
    (got,), (expected,) = (apply(only(each), [x], Target(threads=1)) for each in (joined, wide))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("outputs", "inputs", "group", "block", "ranks"),
    [
        (128, 128, 32, 8, [(16,)]),
        (128, 128, 32, 16, [(8,)]),
        (256, 256, 32, 8, []),
        (256, 256, 32, 16, [(16,)]),
        (128, 64, 32, 16, [(4,)]),
        (64, 32, 32, 16, [(2,)]),
        (24, 24, 3, 16, []),
        (512, 512, 32, 16, []),
    ],
)
def test_the_fewest_zeros_that_fill_blocks(outputs, inputs, group, block, ranks, rng) -> None:
    assert JoinGroups().ranks(grouped(rng, outputs, inputs, group), Grid(block)) == ranks


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        ({"outputs": 16, "inputs": 16, "group": 1}, "no groups"),
        ({"outputs": 16, "inputs": 16, "group": 16}, "depthwise"),
        ({"outputs": 24, "inputs": 24, "group": 3}, "fill blocks of 16 channels, or cannot be joined"),
        ({"outputs": 32, "inputs": 32, "group": 2}, "fill blocks of 16 channels, or cannot be joined"),
        ({"outputs": 32, "inputs": 32, "group": 8, "input_dilations": (2, 2)}, "transposed"),
    ],
)
def test_others_are_refused_with_a_reason(conv, words: str, rng: np.random.Generator) -> None:
    assert words in JoinGroups().refuse(grouped(rng, **conv))


def test_only_divisors_of_the_groups(rng: np.random.Generator) -> None:
    conv = grouped(rng, 24, 24, 6)
    for group in (0, 4, 6, 12):
        with pytest.raises(ValueError, match=f"6 groups cannot be joined into {group}"):
            conv.with_(lowering=Joined(group))
