"""Structure that a kernel was written without: undone to its original cost, or refused with a reason."""

import numpy as np
import pytest

import passes
from passes.crop_kernel import CropKernel
from passes.exact_channels import ExactChannels
from passes.exact_spatial import ExactSpatial
from passes.split_groups import SplitGroups
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments
from rewriter.rewrite import Rewrite

PASSES = (SplitGroups(), CropKernel(), ExactChannels(), ExactSpatial())
SOBEL = np.outer([1, 2, 1], [-1, 0, 1])
GAUSSIAN = np.exp(-np.add.outer(np.arange(-3, 4) ** 2, np.arange(-3, 4) ** 2) / 2)
SIZE = (64, 64)


def _drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _conv(weight, **attributes):
    return Conv(np.asarray(weight, np.float32), **attributes)


def _same(weight, **attributes):
    """With the pads that keep the size."""
    half = [size // 2 for size in np.shape(weight)[2:]]
    return _conv(weight, pads=(*half, *half), **attributes)


def _blocks(*parts):
    """A block-diagonal kernel of dense ones."""
    outputs, inputs = (sum(part.shape[axis] for part in parts) for axis in (0, 1))
    weight = np.zeros((outputs, inputs, *parts[0].shape[2:]), np.float32)
    m = c = 0
    for part in parts:
        weight[m : m + part.shape[0], c : c + part.shape[1]] = part
        m, c = m + part.shape[0], c + part.shape[1]
    return weight


def _rewrites(conv, step):
    group, _, size = conv.matrix.shape
    unseen = Metric(Moments(np.broadcast_to(0.0, (group, size, size)), np.zeros((group, size)), 0))
    ranks = step.ranks(conv, Grid())
    return dict(zip(ranks, step.rewrites(conv, ranks, unseen), strict=True))


def _cheapest(conv):
    """The cheapest rewrite of all passes, all of them checked to be the same convolution."""
    found = []
    for step in PASSES:
        if step.refuse(conv) is None:
            found += _rewrites(conv, step).values()
    for rewrite in found:
        assert np.linalg.norm(rewrite.dense(conv) - conv.weight) <= 1e-6 * np.linalg.norm(conv.weight)
        assert rewrite.out_size(SIZE) == conv.out_size(SIZE)
    return min(found, key=lambda rewrite: rewrite.cost(SIZE).macs)


def _dense_of(*stages):
    """A chain written as one dense kernel, and the multiply-adds of the chain."""
    chain = Rewrite((stages,))
    taps = [1 + sum(s.dilations[a] * (s.kernel_shape[a] - 1) for s in stages) for a in (0, 1)]
    pads = [sum(s.pads[a] for s in stages) for a in range(4)]
    strides = tuple(np.prod([s.strides for s in stages], axis=0))
    empty = Conv(
        np.zeros((stages[-1].out_channels, stages[0].in_channels, *taps), np.float32),
        None,
        strides,
        tuple(pads),
    )
    return empty.with_(weight=chain.dense(empty).astype(np.float32)), chain.cost(SIZE).macs


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param((_same(_drawn(32, 8, 3, 3), group=4),), id="grouped"),
        pytest.param((_same(_drawn(16, 1, 3, 3), group=16, strides=(2, 2)),), id="depthwise"),
        pytest.param((_same(_drawn(32, 1, 5, 5), group=16),), id="depthwise with a multiplier"),
        pytest.param((_conv(_drawn(16, 16, 3, 3), dilations=(2, 2), pads=(2,) * 4),), id="dilated"),
        pytest.param((_conv(_drawn(16, 8, 3, 3), dilations=(1, 3), pads=(1, 3, 1, 3)),), id="dilated on x"),
        pytest.param(
            (_conv(_drawn(16, 1, 3, 3), dilations=(2, 2), pads=(2,) * 4, group=16),), id="dilated depthwise"
        ),
        pytest.param(
            (_conv(_drawn(6, 16, 3, 3), pads=(1,) * 4), _conv(_drawn(32, 6, 1, 1))), id="channel SVD"
        ),
        pytest.param(
            (_conv(_drawn(5, 32, 1, 1)), _conv(_drawn(16, 5, 3, 3), pads=(1,) * 4)), id="few mixtures read"
        ),
        pytest.param(
            (_same(_drawn(16, 1, 3, 3), group=16), _conv(_drawn(32, 16, 1, 1))), id="depthwise separable"
        ),
        pytest.param(
            (_conv(_drawn(16, 32, 1, 1)), _same(_drawn(16, 1, 3, 3), group=16)),
            id="pointwise, then depthwise",
        ),
        pytest.param(
            (_same(_drawn(16, 4, 3, 3), group=4), _conv(_drawn(32, 16, 1, 1))), id="grouped, then pointwise"
        ),
        pytest.param(
            (_conv(_drawn(4, 32, 1, 1)), _same(_drawn(6, 4, 3, 3)), _conv(_drawn(32, 6, 1, 1))), id="Tucker-2"
        ),
        pytest.param(
            (_conv(_drawn(6, 16, 3, 1), pads=(1, 0, 1, 0)), _conv(_drawn(16, 6, 1, 3), pads=(0, 1, 0, 1))),
            id="vertical, then horizontal",
        ),
        pytest.param(
            (
                _conv(_drawn(6, 16, 1, 5), pads=(0, 2, 0, 2), strides=(1, 2)),
                _conv(_drawn(16, 6, 5, 1), pads=(2, 0, 2, 0), strides=(2, 1)),
            ),
            id="horizontal, then vertical, with strides",
        ),
        pytest.param(
            (
                _conv(_drawn(16, 1, 5, 1), pads=(2, 0, 2, 0), group=16),
                _conv(_drawn(16, 1, 1, 5), pads=(0, 2, 0, 2), group=16),
            ),
            id="depthwise in both directions",
        ),
    ],
)
def test_what_was_written_densely_is_undone_to_its_cost(stages):
    conv, macs = _dense_of(*stages)
    assert macs < conv.macs(SIZE)
    assert _cheapest(conv).cost(SIZE).macs == macs


def test_zeros_written_around_a_kernel_are_cropped_to_its_cost():
    small = _drawn(16, 8, 3, 3)
    conv = _same(np.pad(small, ((0, 0), (0, 0), (1, 1), (2, 2))), strides=(2, 2))
    ((stage,),) = _cheapest(conv).branches
    assert np.array_equal(stage.weight, small)
    assert (stage.pads, stage.strides, stage.dilations) == ((1,) * 4, (2, 2), (1, 1))


def test_the_centre_alone_is_a_pointwise_convolution():
    weight = np.zeros((16, 8, 3, 3))
    weight[..., 1, 1] = _drawn(16, 8)
    ((stage,),) = _cheapest(_same(weight, dilations=(2, 2)).with_(pads=(2,) * 4)).branches
    assert (stage.kernel_shape, stage.pads, stage.dilations) == ((1, 1), (0,) * 4, (1, 1))


def test_a_kernel_is_cropped_as_far_as_its_pads_allow():
    weight = np.zeros((8, 8, 5, 5))
    weight[..., 1:4, 1:4] = _drawn(8, 8, 3, 3)
    ((stage,),) = _rewrites(_conv(weight, pads=(1, 0, 2, 0)), CropKernel())[3, 5].branches
    assert (stage.kernel_shape, stage.pads) == ((3, 5), (0, 0, 1, 0))
    reason = CropKernel().refuse(_conv(weight))
    assert "pads (0, 0, 0, 0) would have to become negative" in reason


def test_taps_between_others_stay():
    weight = _drawn(8, 8, 5, 3)
    weight[:, :, 1] = 0.0
    assert "neither at the border nor" in CropKernel().refuse(_same(weight))


def test_a_lattice_that_the_pads_do_not_reach_has_a_smaller_step():
    weight = np.zeros((4, 4, 1, 7))
    weight[..., [2, 4, 6]] = _drawn(4, 4, 1, 3)
    ((stage,),) = _rewrites(_conv(weight, pads=(0, 1, 0, 0)), CropKernel())[1, 4].branches
    # from tap 0 on, which the pads do not let go
    assert (stage.dilations, stage.pads) == ((1, 2), (0, 1, 0, 0))


def test_groups_and_zero_taps_go_together():
    weight = np.pad(_blocks(*_drawn(4, 8, 8, 3, 3)), ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = _rewrites(_same(weight), SplitGroups())
    assert list(found) == [(2,), (4,)]
    for (groups,), rewrite in found.items():
        ((stage,),) = rewrite.branches
        assert (stage.group, stage.kernel_shape, stage.pads) == (groups, (3, 3), (1,) * 4)


def test_existing_groups_are_split_further():
    weight = np.concatenate([_blocks(*_drawn(2, 4, 4, 3, 3, seed=seed)) for seed in (1, 2)])
    conv = _same(weight, group=2)
    ((stage,),) = _rewrites(conv, SplitGroups())[(4,)].branches
    assert stage.weight.shape == (16, 4, 3, 3)


@pytest.mark.parametrize("kernel", [SOBEL, SOBEL.T, GAUSSIAN], ids=["sobel", "its transpose", "gaussian"])
@pytest.mark.parametrize("channels", [1, 8])
def test_filters_of_image_processing_become_a_column_and_a_row(kernel, channels):
    conv = _same(np.repeat(kernel[None, None], channels, 0), group=channels)
    rewrites = _rewrites(conv, ExactSpatial())
    assert set(rewrites) == {(1, 0, 1), (0, 1, 1)}
    for rewrite in rewrites.values():
        ((one, two),) = rewrite.branches
        assert sorted(min(stage.kernel_shape) for stage in (one, two)) == [1, 1]
        assert (one.group, two.group) == (channels, channels)
        assert np.abs(rewrite.dense(conv) - conv.weight).max() < 1e-6


def test_two_sobel_filters_of_one_image_have_a_column_and_a_row_each():
    conv = _same(np.stack([SOBEL, SOBEL.T])[:, None])
    ((column, row),) = _rewrites(conv, ExactSpatial())[1, 0, 2].branches
    assert (column.weight.shape, column.group) == ((2, 1, 3, 1), 1)
    assert (row.weight.shape, row.group) == ((2, 1, 1, 3), 2)


def test_duplicate_and_proportional_filters_are_computed_once():
    weight = _drawn(24, 16, 3, 3)
    weight[12:] = weight[:12] * _drawn(12, 1, 1, 1)
    conv = _same(weight[np.random.default_rng(0).permutation(24)])
    assert list(_rewrites(conv, ExactChannels())) == [(0, 1, 12)]


def test_outputs_of_any_size_count():
    # a channel a million times smaller than the others is not lost, nor taken for a duplicate
    weight = _drawn(24, 16, 3, 3)
    weight[12:] = weight[:12] * 3
    weight[5] *= 1e-7
    weight[:, 3] *= 1e-6
    conv = _same(weight)
    (rewrite,) = _rewrites(conv, ExactChannels()).values()
    off = np.abs(rewrite.dense(conv) - conv.weight).max(axis=(2, 3))
    assert np.all(off <= 1e-5 * np.abs(conv.weight).max(axis=(2, 3)))


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
@pytest.mark.parametrize(
    "shape", [(24, 24, 3, 3), (16, 48, 1, 1), (8, 3, 7, 7), (32, 16, 1, 5), (12, 12, 4, 2)]
)
def test_nothing_is_found_in_random_kernels(step, shape):
    for seed in range(3):
        assert step.refuse(_same(_drawn(*shape, seed=seed)))


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_nothing_is_found_a_little_off_the_structure(step):
    """Structure up to a thousandth is not structure."""
    for weight in (
        _blocks(*_drawn(4, 8, 8, 3, 3)),
        np.repeat(_drawn(16, 32, 3, 3), 2, 0),
        np.pad(_drawn(32, 32, 1, 1), ((0, 0), (0, 0), (1, 1), (1, 1))),
    ):
        assert step.refuse(_same(weight + 1e-3 * _drawn(32, 32, 3, 3, seed=1)))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (_blocks(*_drawn(4, 8, 8, 3, 3))[np.arange(32) * 5 % 32], "would have to be permuted"),
        (_blocks(_drawn(8, 8, 3, 3), _drawn(16, 16, 3, 3)), "not of one size"),
        (_drawn(16, 16, 3, 3), "hang together"),
        (_drawn(1, 16, 3, 3), "one channel"),
    ],
)
def test_blocks_that_are_no_groups_are_refused_with_the_reason(weight, words):
    assert words in SplitGroups().refuse(_same(weight))


def test_refusals_say_why():
    random = _same(_drawn(16, 16, 3, 3))
    assert "all 9 taps" in CropKernel().refuse(random)
    assert "one tap" in CropKernel().refuse(_conv(_drawn(16, 16, 1, 1)))
    assert "independent" in ExactChannels().refuse(random)
    assert "not separable" in ExactSpatial().refuse(random)
    assert "two axes" in ExactSpatial().refuse(Conv(_drawn(8, 8, 3)))
    assert "not several taps along two axes" in ExactSpatial().refuse(_same(_drawn(8, 8, 1, 3)))


def test_zero_kernels_are_cropped_to_one_tap():
    conv = _same(np.zeros((8, 8, 3, 3)))
    ((stage,),) = _cheapest(conv).branches
    assert stage.kernel_shape == (1, 1)
    assert not stage.weight.any()


def test_all_exact_passes_are_offered_with_exact():
    assert {step.name for step in passes.PASSES if step.exact} == {
        "join_groups",
        "sub_pixel",
        "winograd",
        *(step.name for step in PASSES),
    }
