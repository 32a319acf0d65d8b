"""What every pass promises, over a grid of convolutions."""

from functools import cache
from itertools import product

import numpy as np
import onnxruntime
import pytest

import passes
from rewriter import graph
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments, free_bias, relative_error, squared_error
from rewriter.rewrite import Rewrite
from rewriter.transposed import Transposed

SAMPLES = 24
GRID = Grid(4)


def _conv(seed, outputs, inputs, kernel, bias=True, group=1, **attributes):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32)
    values = rng.standard_normal(outputs).astype(np.float32) if bias else None
    return Conv(weight, values, group=group, **attributes)


CONVS = {
    "plain": _conv(0, 12, 8, (3, 3), pads=(1, 1, 1, 1)),
    "widening": _conv(1, 24, 6, (3, 3), bias=False),
    "narrowing": _conv(2, 6, 24, (3, 3), pads=(1, 1, 1, 1)),
    "stride": _conv(3, 8, 8, (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "stride_asymmetric_pads": _conv(4, 12, 8, (3, 3), bias=False, strides=(2, 1), pads=(0, 2, 1, 0)),
    "dilation": _conv(5, 8, 12, (3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)),
    "even": _conv(6, 8, 8, (4, 2), pads=(1, 0, 2, 1)),
    "rectangular": _conv(7, 12, 12, (3, 5), strides=(1, 2), dilations=(2, 1), pads=(2, 2, 2, 1)),
    "row": _conv(8, 12, 8, (1, 3), strides=(2, 2), pads=(1, 1, 0, 1)),
    "groups": _conv(9, 16, 24, (3, 3), group=2, pads=(1, 1, 1, 1)),
    "groups_of_four": _conv(10, 24, 16, (3, 3), bias=False, group=4, strides=(2, 2), pads=(0, 0, 1, 1)),
    "pointwise": _conv(11, 24, 20, (1, 1)),
    "pointwise_stride": _conv(12, 12, 16, (1, 1), bias=False, strides=(2, 2)),
    "signal": _conv(13, 12, 8, (5,), strides=(2,), pads=(2, 1)),
    "blocks": _conv(15, 16, 32, (3, 3), pads=(1, 1, 1, 1)),
    "blocks_even": _conv(16, 24, 16, (4, 2), bias=False, pads=(1, 0, 2, 1)),
    "blocks_large": _conv(17, 16, 16, (5, 5), pads=(0, 2, 4, 1)),
    "blocks_row": _conv(18, 16, 32, (1, 3), pads=(0, 1, 0, 1)),
    "blocks_column": _conv(19, 16, 16, (5, 1), pads=(2, 1, 2, 0)),
    "blocks_groups": _conv(20, 32, 64, (3, 3), group=2, pads=(1, 1, 1, 1)),
    "large_stride": _conv(21, 12, 8, (5, 5), strides=(2, 1), pads=(2, 1, 2, 3)),
    "large_groups": _conv(22, 16, 16, (5, 5), group=2, dilations=(2, 1), pads=(4, 2, 4, 2)),
    "slab": _conv(23, 12, 8, (1, 3, 3), strides=(2, 1, 2), dilations=(1, 1, 2), pads=(1, 0, 1, 0, 2, 2)),
    "upconv": _conv(23, 12, 16, (4, 4), pads=(2, 2, 2, 2), input_dilations=(2, 2)),
    "upconv_groups": _conv(24, 16, 16, (3, 5), group=2, pads=(1, 2, 2, 3), input_dilations=(2, 3)),
    "volume": _conv(14, 8, 8, (2, 3, 2), pads=(1, 1, 0, 0, 1, 1)),
}


def _only(weight, *kept):
    """A weight that is zero but at some places."""
    found = np.zeros_like(weight)
    for place in kept:
        found[place] = weight[place]
    return found


def _diagonal(weight, blocks):
    (outputs, inputs), shape = (size // blocks for size in weight.shape[:2]), weight.shape
    places = [
        (slice(b * outputs, (b + 1) * outputs), slice(b * inputs, (b + 1) * inputs)) for b in range(blocks)
    ]
    return _only(weight, *places).reshape(shape)


def _mixed(conv, outputs, inputs):
    """A kernel whose outputs are mixtures of so many, and that reads so many mixtures of its inputs."""
    rng = np.random.default_rng(50)
    cut = conv.weight.reshape(conv.group, -1, *conv.weight.shape[1:]).astype(np.float64)
    left = rng.standard_normal((conv.group, cut.shape[1], outputs))
    right = rng.standard_normal((conv.group, inputs, cut.shape[2]))
    mixed = np.einsum("gms,gsr...,grc->gmc...", left, cut[:, :outputs, :inputs], right)
    return mixed.reshape(conv.weight.shape).astype(np.float32)


def _separable(conv, rank):
    """A kernel of a vertical and a horizontal convolution with `rank` channels between."""
    rng = np.random.default_rng(51)
    outputs, inputs, *kernel = conv.weight.shape
    height, width = (taps for taps in kernel if taps > 1)
    first = rng.standard_normal((conv.group, rank, inputs, height))
    last = rng.standard_normal((conv.group, outputs // conv.group, rank, width))
    return np.einsum("gmrx,grcy->gmcyx", last, first).reshape(conv.weight.shape).astype(np.float32)


def _planted(make, *keys):
    """Convolutions of the grid with another kernel."""
    return {f"{make.__name__.strip('_')} {key}": CONVS[key].with_(weight=make(CONVS[key])) for key in keys}


def _two_blocks(conv):
    return _diagonal(conv.weight, 2) if conv.group == 1 else _halves_of_groups(conv)


def _halves_of_groups(conv):
    return np.concatenate([_diagonal(part, 2) for part in np.split(conv.weight, conv.group)])


def _bordered(conv):
    return _only(conv.weight, (..., slice(1, -1), slice(1, -1)))


def _lattice(conv):
    return _only(conv.weight, (..., slice(None, None, 2), slice(None, None, 2)))


def _alike(conv):
    return _mixed(conv, 3, conv.weight.shape[1])


def _read_alike(conv):
    return _mixed(conv, conv.out_channels // conv.group, 2)


def _both_alike(conv):
    return _mixed(conv, 3, 3)


def _one_lined(conv):
    return _separable(conv, 1)


def _few_lined(conv):
    return _separable(conv, 3)


# Kernels with the structure that the passes look for which read it off the kernel.
PLANTED = {
    "split_groups": _planted(
        _two_blocks, "plain", "stride", "dilation", "even", "rectangular", "groups", "blocks_row", "pointwise"
    ),
    "crop_kernel": {
        **_planted(_bordered, "plain", "dilation", "blocks_large", "blocks_groups", "stride"),
        **_planted(_lattice, "blocks_large", "plain", "groups_of_four"),
    },
    "exact_channels": {
        **_planted(_alike, "plain", "stride_asymmetric_pads", "groups", "volume", "signal", "pointwise"),
        **_planted(_read_alike, "plain", "dilation", "blocks_groups", "row"),
        **_planted(_both_alike, "widening", "rectangular", "blocks_even"),
    },
    "exact_spatial": {
        **_planted(_one_lined, "plain", "stride_asymmetric_pads", "dilation", "even", "groups", "slab"),
        **_planted(_few_lined, "rectangular", "blocks_large", "blocks_groups"),
    },
}
PLANTED["sub_pixel"] = {
    "upconv whole": _conv(25, 12, 8, (4, 4), pads=(2, 2, 2, 2), input_dilations=(2, 2)),
    "upconv cut": _conv(26, 3, 16, (4, 4), input_dilations=(2, 2)),
    "upconv wider": _conv(27, 8, 8, (3, 3), bias=False, pads=(2, 1, 2, 3), input_dilations=(2, 2)),
    "upconv tiles": _conv(28, 8, 8, (2, 2), pads=(1, 1, 1, 1), input_dilations=(2, 2)),
    "upconv large": _conv(29, 4, 8, (9, 9), pads=(4, 4, 6, 6), input_dilations=(3, 3)),
    "upconv of one": _conv(30, 8, 8, (3, 3), pads=(1, 1, 1, 1), lowering=Transposed()),
}
PLANTED["join_groups"] = {
    "groups of two": _conv(31, 32, 32, (3, 3), group=16, pads=(1, 1, 1, 1)),
    "groups of two, strided": _conv(32, 24, 24, (3, 3), group=12, strides=(2, 2), bias=False),
    "multiplied": _conv(33, 16, 32, (3, 3), group=16),
    "groups of one": _conv(35, 64, 32, (1, 3), group=32, pads=(0, 1, 0, 1)),
    "groups of three": _conv(36, 24, 24, (2, 2), group=8),
    "groups of a line": _conv(34, 32, 64, (3,), group=16, dilations=(2,), pads=(2, 2)),
}
# A kernel that holds all phases has the taps of the longest, and joined groups have zeros.
DEARER = {"sub_pixel": 2.2, "join_groups": 8.1}
STEPS = {step.name: step for step in passes.PASSES}
GRIDS = {name: PLANTED.get(name, CONVS) for name in STEPS}
CONVS = {**CONVS, **{key: conv for grid in PLANTED.values() for key, conv in grid.items()}}
TAKEN = [
    (name, key) for name, grid in GRIDS.items() for key in grid if STEPS[name].refuse(CONVS[key]) is None
]
cases = pytest.mark.parametrize(("name", "key"), TAKEN)
weighted = pytest.mark.parametrize("output", [False, True], ids=["plain", "weighted"])


def _full(name, conv):
    """A rank at which the form can be any kernel."""
    inputs = conv.weight.shape[1]
    if name == "grouped_pointwise":
        return (inputs // 2, conv.in_channels // (inputs // 2) * 1000)
    if STEPS[name].exact:
        return STEPS[name].ranks(conv, GRID)[-1]
    return (1000, 1000) if name == "tucker2" else (1000,)


@cache
def _inputs(key):
    """Correlated inputs of non-zero mean, one of the channels dead."""
    conv = CONVS[key]
    rng = np.random.default_rng(100)
    size = tuple(range(9, 9 + len(conv.kernel_shape)))
    x = rng.standard_normal((SAMPLES, conv.in_channels, *size)) + 1.0
    for axis in range(1, x.ndim):
        x = x + 0.7 * np.roll(x, 1, axis)
    x = np.maximum(x, 0.0)
    x[:, -1] = 0.0
    return x.astype(np.float32)


def _patches(conv, x):
    """Every patch that the convolution sees, `[G, n, K]`."""
    axes = len(conv.kernel_shape)
    out = conv.out_size(x.shape[2:])
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], conv.input_dilations, strict=True)]
    spread = np.zeros((*x.shape[:2], *sizes), x.dtype)
    spread[(..., *(slice(None, None, step) for step in conv.input_dilations))] = x
    x = np.pad(spread, ((0, 0), (0, 0), *zip(conv.pads[:axes], conv.pads[axes:], strict=True)))
    taps = []
    for tap in product(*map(range, conv.kernel_shape)):
        starts = [index * dilation for index, dilation in zip(tap, conv.dilations, strict=True)]
        window = [
            slice(start, start + stride * (size - 1) + 1, stride)
            for start, stride, size in zip(starts, conv.strides, out, strict=True)
        ]
        taps.append(x[(slice(None), slice(None), *window)].reshape(len(x), conv.group, -1, np.prod(out)))
    stacked = np.stack(taps, axis=3).astype(np.float64)
    return stacked.transpose(1, 0, 4, 2, 3).reshape(conv.group, len(x) * int(np.prod(out)), -1)


@cache
def _metric(key, output):
    conv = CONVS[key]
    rows = _patches(conv, _inputs(key))
    mean = rows.mean(axis=1)
    centred = rows - mean[:, None]
    moments = Moments(centred.transpose(0, 2, 1) @ centred / rows.shape[1], mean, rows.shape[1])
    square = np.random.default_rng(5).standard_normal((conv.out_channels, conv.out_channels))
    return Metric(moments, square @ square.T / len(square) + 0.1 * np.eye(len(square)) if output else None)


@cache
def _fitted(name, key, output=False, free=False):
    """The ranks that the pass proposes, five at most, and their rewrites."""
    step, conv = STEPS[name], CONVS[key]
    ranks = tuple(step.ranks(conv, GRID))[:5]
    metric = Metric.isotropic(conv) if free else _metric(key, output)
    return ranks, tuple(step.rewrites(conv, ranks, metric))


def _run(rewrite, x):
    data = graph.rewrite_model(rewrite)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0].astype(np.float64)


def _distance(before, after):
    return np.linalg.norm(after - before) / np.linalg.norm(before)


def test_every_pass_takes_most_of_the_grid():
    taken = {name: [key for step, key in TAKEN if step == name] for name in STEPS}
    assert min(map(len, taken.values())) >= 6
    assert all(taken[name] == list(grid) for name, grid in PLANTED.items())
    assert len(set(STEPS)) == len(passes.PASSES)


@cases
@weighted
def test_full_rank_runs_as_the_original(name, key, output):
    conv = CONVS[key]
    (rewrite,) = STEPS[name].rewrites(conv, [_full(name, conv)], _metric(key, output))
    x = np.random.default_rng(7).standard_normal(_inputs(key).shape).astype(np.float32)
    # float32 rounding, of up to three stages.
    assert _distance(_run(Rewrite(((conv,),)), x), _run(rewrite, x)) < 1e-5


@cases
@weighted
def test_planted_structure_is_recovered(name, key, output):
    ranks, planted = _fitted(name, key, free=True)
    if not ranks:
        pytest.skip("no rank on the grid is cheaper")
    conv = CONVS[key].with_(weight=planted[0].dense(CONVS[key]))
    (rewrite,) = STEPS[name].rewrites(conv, ranks[:1], _metric(key, output))
    assert _distance(conv.weight, rewrite.dense(conv)) < 1e-5


@cases
@weighted
def test_error_falls_with_the_rank(name, key, output):
    ranks, rewrites = _fitted(name, key, output)
    errors = [relative_error(CONVS[key], rewrite, _metric(key, output)) for rewrite in rewrites]
    for (less, above), (more, below) in product(zip(ranks, errors, strict=True), repeat=2):
        if all(small <= large for small, large in zip(less, more, strict=True)):
            # The factors are rounded to float32.
            assert below <= above + 1e-6


@cases
@weighted
def test_fit_is_no_worse_than_the_data_free_solution(name, key, output):
    conv, metric = CONVS[key], _metric(key, output)
    _, fitted = _fitted(name, key, output)
    _, free = _fitted(name, key, free=True)
    for one, other in zip(fitted, free, strict=True):
        other = other.with_bias(free_bias(conv, other.dense(conv), metric.input))
        assert relative_error(conv, one, metric) <= relative_error(conv, other, metric) + 1e-6


@cases
@weighted
def test_predicted_error_is_the_measured_one(name, key, output):
    conv, metric = CONVS[key], _metric(key, output)
    ranks, rewrites = _fitted(name, key, output)
    if not ranks:
        pytest.skip("no rank on the grid is cheaper")
    wrong = _run(rewrites[0], _inputs(key)) - _run(Rewrite(((conv,),)), _inputs(key))
    wrong = np.moveaxis(wrong, 1, -1).reshape(-1, conv.group, conv.out_channels // conv.group)
    weights = metric.weights(*wrong.shape[1:])
    measured = np.einsum("ngm,gmk,ngk->", wrong, weights, wrong) / len(wrong)
    energy = metric.squared(np.asarray(conv.matrix, np.float64))
    # float32 rounding of the outputs, which is all that an exact form has, and the ridge of the covariance.
    assert squared_error(conv, rewrites[0], metric) == pytest.approx(measured, rel=1e-3, abs=1e-10 * energy)


@cases
def test_rewrites_are_cheaper_keep_the_type_and_end_in_the_bias(name, key):
    conv, size = CONVS[key], (64,) * len(CONVS[key].kernel_shape)
    ranks, rewrites = _fitted(name, key)
    assert len(set(ranks)) == len(ranks)
    for rewrite in rewrites:
        assert rewrite.cost(size).macs < conv.macs(size) * DEARER.get(name, 1.0)
        assert rewrite.out_size(size) == conv.out_size(size)
        assert {stage.weight.dtype for branch in rewrite.branches for stage in branch} == {
            np.dtype(np.float32)
        }
        assert rewrite.bias.dtype == np.float32
        assert sum(stage.bias is not None for branch in rewrite.branches for stage in branch) == 1


@cases
def test_same_input_gives_the_same_bits(name, key):
    conv = CONVS[key]
    ranks, rewrites = _fitted(name, key)
    again = STEPS[name].rewrites(conv, ranks, Metric(_metric(key, False).input))
    for one, other in zip(rewrites, again, strict=True):
        for before, after in zip(one.branches, other.branches, strict=True):
            assert all(np.array_equal(a.weight, b.weight) for a, b in zip(before, after, strict=True))
        assert np.array_equal(one.bias, other.bias)


@pytest.mark.parametrize("name", STEPS)
def test_ranks_may_come_in_any_order(name):
    key = next(key for taken, key in TAKEN if taken == name)
    step, conv = STEPS[name], CONVS[key]
    ranks, rewrites = _fitted(name, key)
    backwards = list(step.rewrites(conv, ranks[::-1], _metric(key, False)))[::-1]
    for one, other in zip(rewrites, backwards, strict=True):
        assert one.cost((9, 9)) == other.cost((9, 9))
        errors = [relative_error(conv, rewrite, _metric(key, False)) for rewrite in (one, other)]
        # below is float32 rounding
        assert errors[0] == pytest.approx(errors[1], rel=0.02, abs=1e-6)
    assert list(step.rewrites(conv, [], _metric(key, False))) == []


@pytest.mark.parametrize("name", STEPS)
def test_depthwise_convolutions_are_refused_with_a_reason(name):
    assert STEPS[name].refuse(_conv(0, 16, 16, (3, 3), group=16))


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"channel_svd"}))
def test_pointwise_convolutions_are_refused_with_a_reason(name):
    assert STEPS[name].refuse(CONVS["pointwise"])


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("key", GRIDS["channel_svd"])
def test_nothing_is_found_in_random_kernels(name, key):
    if (name == "sub_pixel" and CONVS[key].transposed) or (name == "join_groups" and CONVS[key].group > 1):
        pytest.skip("a structure of its attributes")
    assert STEPS[name].refuse(CONVS[key])


@pytest.mark.parametrize("name", STEPS)
def test_dead_inputs_leave_a_finite_rewrite(name):
    conv = CONVS[next(key for taken, key in TAKEN if taken == name)]
    groups, _, size = conv.matrix.shape
    moments = Moments(np.zeros((groups, size, size)), np.zeros((groups, size)), 100)
    ranks = STEPS[name].ranks(conv, GRID)[:2]
    for rewrite in STEPS[name].rewrites(conv, ranks, Metric(moments)):
        assert np.all(np.isfinite(rewrite.dense(conv)))
