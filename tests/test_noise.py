"""Noise on outputs, as a measure of what drift is likely to cost."""

import numpy as np
import pytest

from rewriter.graph import Piece
from rewriter.noise import Noise


def value(drifts, measure):
    return next(each.value for each in drifts if each.measure == measure and each.output is None)


@pytest.mark.parametrize("size", [1e-4, 0.01, 0.5])
def test_noise_has_the_size_it_is_asked_for(rng, size):
    outputs = [rng.standard_normal((50, 20)).astype(np.float32) * 7]
    found = Noise(["y"], [(outputs, None)], {}, 0).measured(size)
    assert value(found, "rel_l2") == pytest.approx(size, rel=0.05)


def test_pieces_of_an_output_have_noise_of_their_own_sizes(rng):
    y = rng.standard_normal((50, 20)).astype(np.float32) * np.where(np.arange(20) < 4, 1000, 0.01)
    pieces = [[Piece("y", -1, 0, 4, 2), Piece("y", -1, 4, None, 2)]]
    found = Noise(["y"], [([y.astype(np.float32)], None)], {}, 0, pieces).measured(0.1)
    by_output = {each.output: each.value for each in found if each.measure == "rel_l2"}
    assert list(by_output) == [None, "y[:, :4]", "y[:, 4:]"]
    assert list(by_output.values()) == pytest.approx([0.1] * 3, rel=0.1)


def test_noise_is_the_same_at_every_size(rng):
    """So more of it never flips fewer decisions by luck alone."""
    outputs = [rng.standard_normal((200, 10)).astype(np.float32)]
    noise = Noise(["y"], [(outputs, None)], {}, 0)
    found = [value(noise.measured(size), "top1_flips") for size in (0.05, 0.1, 0.2, 0.4)]
    assert found == sorted(found)
    assert found[0] < found[-1]
    assert found == [value(noise.measured(size), "top1_flips") for size in (0.05, 0.1, 0.2, 0.4)]


def test_what_is_no_real_number_gets_none(rng):
    whole = rng.integers(0, 9, (8, 4))
    words = np.array([["a"], ["b"]] * 4, object)
    broken = np.full((8, 4), np.nan, np.float32)
    batches = [([whole, words, broken, np.ones((8, 4), np.float32)], None)]
    found = Noise(["whole", "words", "broken", "y"], batches, {}, 0).measured(0.5)
    by_output = {each.output: each.value for each in found if each.measure == "max_abs"}
    assert by_output["whole"] == by_output["words"] == 0.0
    assert by_output["y"] > 0.0


def test_a_part_of_many_samples_is_enough(rng):
    def batches():
        for _ in range(1000):
            taken.append(1)
            yield [rng.standard_normal((16, 10)).astype(np.float32)], None

    taken = []
    Noise(["y"], batches(), {}, 0)
    assert len(taken) < 100
