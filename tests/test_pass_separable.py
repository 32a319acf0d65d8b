"""What is special to depthwise + pointwise, pointwise + depthwise and grouped + pointwise."""

from itertools import pairwise

import numpy as np
import pytest

from passes.depthwise_pointwise import DepthwisePointwise
from passes.grouped_pointwise import GroupedPointwise
from passes.pointwise_depthwise import PointwiseDepthwise
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric

PASSES = (DepthwisePointwise(), PointwiseDepthwise(), GroupedPointwise())


def _conv(outputs, inputs, kernel=(3, 3), group=1, **attributes):
    weight = np.random.default_rng(0).standard_normal((outputs, inputs // group, *kernel))
    return Conv(weight.astype(np.float32), group=group, **attributes)


def _one(step, conv, rank):
    (rewrite,) = step.rewrites(conv, [rank], Metric.isotropic(conv))
    return rewrite


def test_one_branch_is_the_classical_depthwise_separable_convolution():
    conv = _conv(32, 16, pads=(1, 1, 1, 1))
    rewrite = _one(DepthwisePointwise(), conv, (1,))
    assert conv.weight.size == 4608
    assert sum(stage.weight.size for branch in rewrite.branches for stage in branch) == 656


def test_branches_are_depthwise_without_a_multiplier():
    conv = _conv(32, 16, strides=(2, 2), pads=(0, 1, 1, 1), dilations=(1, 2))
    rewrite = _one(DepthwisePointwise(), conv, (3,))
    assert len(rewrite.branches) == 3
    for depthwise, pointwise in rewrite.branches:
        assert depthwise.weight.shape == (16, 1, 3, 3)
        assert depthwise.group == 16
        assert (depthwise.strides, depthwise.pads, depthwise.dilations) == ((2, 2), (0, 1, 1, 1), (1, 2))
        assert pointwise.weight.shape == (32, 16, 1, 1)


def test_pointwise_comes_first_and_the_depthwise_stage_has_the_spatial_attributes():
    conv = _conv(32, 16, pads=(0, 1, 1, 1), dilations=(1, 2))
    rewrite = _one(PointwiseDepthwise(), conv, (2,))
    for pointwise, depthwise in rewrite.branches:
        assert pointwise.weight.shape == (32, 16, 1, 1)
        assert (pointwise.strides, pointwise.pads) == ((1, 1), (0, 0, 0, 0))
        assert depthwise.weight.shape == (32, 1, 3, 3)
        assert (depthwise.group, depthwise.pads, depthwise.dilations) == (32, (0, 1, 1, 1), (1, 2))


def test_an_axis_with_one_tap_has_its_stride_and_pads_on_the_pointwise_stage():
    conv = _conv(12, 8, kernel=(1, 3), strides=(2, 2), pads=(1, 1, 0, 1))
    ((pointwise, depthwise),) = _one(PointwiseDepthwise(), conv, (1,)).branches
    assert (pointwise.strides, pointwise.pads) == ((2, 1), (1, 0, 0, 0))
    assert (depthwise.strides, depthwise.pads) == ((1, 2), (0, 1, 0, 1))


def test_every_stage_keeps_the_groups_of_the_original():
    conv = _conv(16, 32, group=2, pads=(1, 1, 1, 1))
    groups = {
        step.name: [stage.group for stage in _one(step, conv, rank).branches[0]]
        for step, rank in zip(PASSES, [(1,), (1,), (8, 16)], strict=True)
    }
    assert groups == {
        "depthwise_pointwise": [32, 2],
        "pointwise_depthwise": [2, 16],
        "grouped_pointwise": [4, 2],
    }


def test_eight_groups_need_an_eighth_of_the_weights():
    conv = _conv(256, 256, pads=(1, 1, 1, 1))
    ((grouped, pointwise),) = _one(GroupedPointwise(), conv, (32, 256)).branches
    assert conv.weight.size == 589824
    assert grouped.weight.size == 589824 // 8
    assert (grouped.group, grouped.weight.shape) == (8, (256, 32, 3, 3))
    assert pointwise.weight.shape == (256, 256, 1, 1)


def test_grouped_ranks_are_on_the_grid_nest_and_are_cheaper():
    for conv in (_conv(64, 96, pads=(1, 1, 1, 1)), _conv(48, 96, group=2), _conv(256, 256)):
        for block in (8, 16):
            ranks = GroupedPointwise().ranks(conv, Grid(block))
            assert 0 < len(ranks) <= 10
            assert len(set(ranks)) == len(ranks)
            sizes = sorted({size for size, _ in ranks})
            assert all(after % before == 0 for before, after in pairwise(sizes))
            for size, written in ranks:
                groups, rest = divmod(conv.in_channels, size)
                assert rest == 0
                assert groups % conv.group == 0
                assert groups > conv.group
                assert size % block == written // groups % block == written % groups == 0
                pointwise = conv.out_channels * written // conv.group
                assert written * size * conv.taps + pointwise < 0.95 * conv.weight.size


def test_ranks_of_branches_are_cheaper_than_the_original():
    size = (64, 64)
    for step in PASSES[:2]:
        for conv in (_conv(64, 64, pads=(1, 1, 1, 1)), _conv(8, 8, pads=(1, 1, 1, 1)), _conv(32, 16, (2, 2))):
            ranks = step.ranks(conv, Grid())
            assert ranks[0] == (1,)
            metric = Metric.isotropic(conv)
            assert all(
                rewrite.cost(size).macs < 0.97 * conv.macs(size)
                for rewrite in step.rewrites(conv, ranks, metric)
            )


def test_strides_make_the_pointwise_first_form_dearer():
    step = PointwiseDepthwise()
    assert step.ranks(_conv(64, 64), Grid()) == [(1,), (2,), (3,), (4,)]
    assert step.ranks(_conv(64, 64, strides=(2, 2)), Grid()) == [(1,), (2,)]
    assert "strides (3, 3)" in step.refuse(_conv(64, 64, strides=(3, 3)))


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_refusals_say_why(step):
    assert step.refuse(_conv(64, 64)) is None
    assert "depthwise" in step.refuse(_conv(16, 16, group=16))
    assert "tap" in step.refuse(_conv(16, 16, (1, 1)))
    assert "3 channels" in step.refuse(_conv(16, 3))


def test_a_single_output_has_no_cheaper_branches():
    assert "no cheaper" in DepthwisePointwise().refuse(_conv(1, 16))
