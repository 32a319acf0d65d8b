"""What is special to stacked kernels."""

import numpy as np
import pytest

from passes.stacked import Stacked
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric

STEP = Stacked()


def _conv(outputs, inputs, kernel, group=1, **attributes):
    weight = np.random.default_rng(0).standard_normal((outputs, inputs // group, *kernel))
    return Conv(weight.astype(np.float32), group=group, **attributes)


def _stages(conv, rank):
    (rewrite,) = STEP.rewrites(conv, [(rank,)], Metric.isotropic(conv))
    ((first, last),) = rewrite.branches
    return first, last


@pytest.mark.parametrize(
    ("kernel", "first", "last"),
    [
        ((5, 5), (3, 3), (3, 3)),
        ((9, 9), (5, 5), (5, 5)),
        ((7, 7), (4, 4), (4, 4)),
        ((4, 6), (3, 4), (2, 3)),
        ((3, 5), (3, 3), (1, 3)),
        ((1, 5), (1, 3), (1, 3)),
    ],
)
def test_both_kernels_together_reach_as_far_as_the_original(kernel, first, last):
    stages = _stages(_conv(8, 8, kernel), 4)
    assert tuple(stage.kernel_shape for stage in stages) == (first, last)


def test_pads_come_first_strides_last_and_both_are_dilated():
    conv = _conv(8, 8, (5, 5), strides=(2, 1), pads=(1, 2, 3, 4), dilations=(1, 2))
    first, last = _stages(conv, 4)
    assert (first.pads, last.pads) == ((1, 2, 3, 4), (0, 0, 0, 0))
    assert (first.strides, last.strides) == ((1, 1), (2, 1))
    assert first.dilations == last.dilations == (1, 2)


def test_an_axis_that_stays_whole_has_its_stride_on_the_first_stage():
    first, last = _stages(_conv(8, 8, (3, 5), strides=(2, 2), pads=(1, 2, 1, 2)), 4)
    assert (first.strides, last.strides) == ((2, 1), (1, 2))


def test_both_stages_keep_the_groups():
    first, last = _stages(_conv(8, 16, (5, 5), group=2), 3)
    assert (first.weight.shape, first.group) == ((6, 8, 3, 3), 2)
    assert (last.weight.shape, last.group) == ((8, 3, 3, 3), 2)


def test_two_kernels_of_nine_taps_cost_less_than_one_of_twenty_five():
    conv = _conv(64, 64, (5, 5), pads=(2,) * 4)
    first, last = _stages(conv.with_(weight=conv.weight[:8, :8]), 8)
    assert first.weight.size + last.weight.size == 2 * 8 * 8 * 9
    ranks = STEP.ranks(conv, Grid())
    assert ranks == sorted(ranks)
    assert all(rank % 8 == 0 and rank * 2 * 64 * 9 < 0.95 * conv.weight.size for (rank,) in ranks)


def test_strides_make_it_dearer():
    plain, strided = (
        STEP.ranks(_conv(64, 64, (5, 5), strides=strides), Grid()) for strides in ((1, 1), (2, 2))
    )
    assert strided[-1] < plain[-1]


def test_refusals_say_why():
    assert STEP.refuse(_conv(16, 16, (5, 5))) is None
    assert "at most 3 taps" in STEP.refuse(_conv(16, 16, (3, 3)))
    assert "at most 3 taps" in STEP.refuse(_conv(16, 16, (1, 1)))
    assert "depthwise" in STEP.refuse(_conv(16, 16, (5, 5), group=16))
    assert "no cheaper" in STEP.refuse(_conv(1, 1, (5, 5), strides=(3, 3)))
