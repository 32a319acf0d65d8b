"""The vocabulary: convolutions, rewrites and their cost."""

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from rewriter import graph
from rewriter.conv import Conv, Cost, Direct
from rewriter.grid import Grid
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd


def _zeros(*shape, **attributes):
    return Conv(np.zeros(shape, np.float32), **attributes)


def _chain(*stages):
    return Rewrite((stages,))


def _run(rewrite, x):
    data = graph.rewrite_model(rewrite)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def _reference(rewrite, x):
    model = ReferenceEvaluator(onnx.ModelProto.FromString(graph.rewrite_model(rewrite)))
    return model.run(None, {model.input_names[0]: x})[0]


def _flops(rewrite, size):
    """(2·Cin·k² - 1)·H·W·Cout of every stage: the first of the terms needs no addition."""
    cost = rewrite.cost(size)
    return 2 * cost.macs - cost.activations


# Conv


def test_defaults_and_properties():
    conv = _zeros(6, 2, 3, 5, group=2)
    assert (conv.strides, conv.pads, conv.dilations) == ((1, 1), (0, 0, 0, 0), (1, 1))
    assert (conv.out_channels, conv.in_channels, conv.kernel_shape, conv.taps) == (6, 4, (3, 5), 15)
    assert conv.matrix.shape == (2, 3, 30)
    assert not conv.depthwise


@pytest.mark.parametrize(("shape", "group", "depthwise"), [((8, 1, 3, 3), 8, True), ((8, 1, 3, 3), 1, False)])
def test_depthwise(shape, group, depthwise):
    assert _zeros(*shape, group=group).depthwise is depthwise


def test_arrays_are_read_only():
    weight = np.zeros((2, 2, 1))
    conv = Conv(weight, np.zeros(2))
    for array in (conv.weight, conv.bias):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    weight[0] = 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": (1,)},
        {"pads": (0, 0)},
        {"pads": (-1, 0, 0, 0)},
        {"strides": (0, 1)},
        {"dilations": (1, 0)},
        {"group": 3},
        {"group": 0},
        {"bias": np.zeros(3)},
    ],
)
def test_shapes_that_do_not_belong_together(wrong):
    with pytest.raises(ValueError, match=r"\d"):
        _zeros(4, 2, 3, 3, **wrong)


def test_weight_without_an_axis():
    with pytest.raises(ValueError, match="weight"):
        _zeros(4, 2)


@pytest.mark.parametrize(
    ("attributes", "size", "expected"),
    [
        ({}, (7, 7), (5, 5)),
        ({"pads": (1, 1, 1, 1)}, (7, 7), (7, 7)),
        ({"strides": (2, 2), "pads": (1, 0, 1, 0)}, (8, 8), (4, 3)),
        ({"dilations": (2, 3)}, (9, 9), (5, 3)),
    ],
)
def test_out_size_and_macs(attributes, size, expected):
    conv = _zeros(4, 2, 3, 3, **attributes)
    assert conv.out_size(size) == expected
    assert conv.macs(size) == expected[0] * expected[1] * 4 * 2 * 9


# Cost


def test_weights_of_a_separable_convolution():
    dense = _chain(_zeros(32, 16, 3, 3))
    separable = _chain(_zeros(16, 1, 3, 3, group=16), _zeros(32, 16, 1, 1))
    assert dense.cost((8, 8)).params == 4608
    assert separable.cost((8, 8)).params == 656


def test_eight_groups_have_one_eighth_of_the_weights():
    assert _chain(_zeros(256, 256, 3, 3)).cost((4, 4)).params == 589_824
    assert _chain(_zeros(256, 32, 3, 3, group=8)).cost((4, 4)).params == 589_824 // 8


@pytest.mark.parametrize(
    ("stages", "flops", "params"),
    [
        ([((6, 4, 3, 3), 1)], 10_650, 216),
        ([((6, 2, 3, 3), 2)], 5_250, 108),
        ([((4, 1, 3, 3), 4)], 1_700, 36),
        ([((6, 4, 1, 1), 1)], 1_050, 24),
        ([((4, 1, 3, 3), 4), ((6, 4, 1, 1), 1)], 2_750, 60),
    ],
)
def test_flops_of_five_by_five_inputs(stages, flops, params):
    chain = _chain(*(_zeros(*s, group=g, pads=(s[2] // 2,) * 4) for s, g in stages))
    assert _flops(chain, (5, 5)) == flops
    assert chain.cost((5, 5)).params == params


def test_cost_counts_bias_branches_and_sums():
    stages = (_zeros(3, 2, 1, 1), _zeros(4, 3, 3, 3))
    rewrite = Rewrite((stages, stages)).with_bias(np.zeros(4, np.float32))
    # Two branches of 3·7·7 and 4·5·5 elements and one sum.
    activations = 2 * (147 + 100) + 100
    macs = 2 * (49 * 6 + 25 * 108)
    assert rewrite.cost((7, 7)) == Cost(macs, 2 * (6 + 108) + 4, activations)
    assert rewrite.cost((7, 7)).weight_bytes() == 4 * 232


def test_costs_add():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)


# Known outputs


def test_depthwise_outputs_by_hand():
    x = np.array([[[2, 5], [3, 3], [8, 2]], [[6, 1], [1, 2], [5, 4]], [[7, 9], [2, 3], [-1, 3]]], np.float32)
    kernels = np.array([[[3, -2], [-1, 4]], [[1, 2], [-3, 5]]], np.float32)
    rewrite = _chain(Conv(kernels[:, None], group=2))
    found = _run(rewrite, x.transpose(2, 0, 1)[None])[0]
    assert np.array_equal(found[0], [[-2, 12], [17, -13]])
    assert np.array_equal(found[1], [[18, 21], [-7, 16]])


def test_grouped_ones_by_hand():
    weight = np.zeros((20, 5, 3, 3), np.float32)
    weight[10:] = 1.0
    found = _run(_chain(Conv(weight, group=2)), np.ones((1, 10, 7, 7), np.float32))
    assert found.shape == (1, 20, 5, 5)
    assert np.all(found[:, :10] == 0.0)
    assert np.all(found[:, 10:] == 45.0)


# Rewrite


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([], "branch"),
        ([[]], "branch"),
        ([[_zeros(3, 2, 1, 1), _zeros(4, 2, 1, 1)]], "3 channels cannot feed 2"),
        ([[_zeros(3, 2, 1, 1, bias=np.zeros(3)), _zeros(4, 3, 1, 1)]], "bias"),
        ([[_zeros(4, 2, 1, 1)], [_zeros(4, 2, 1, 1, bias=np.zeros(4))]], "bias"),
        ([[_zeros(3, 2, 3, 3), _zeros(4, 3, 3, 3, pads=(1, 1, 1, 1))]], "pads on stage 1"),
        ([[_zeros(3, 2, 3, 1), _zeros(4, 3, 1, 3, pads=(1, 0, 0, 0))]], "axis 0"),
        ([[_zeros(3, 2, 1, 1, pads=(1, 1, 1, 1)), _zeros(4, 3, 3, 3)]], "before the first kernel"),
        ([[_zeros(3, 2, 1, 1, strides=(2, 1)), _zeros(4, 3, 3, 3)]], "before the first kernel"),
        ([[_zeros(4, 2, 1, 1)], [_zeros(5, 2, 1, 1)]], "channels"),
        ([[_zeros(4, 2, 1, 1)], [_zeros(4, 2, 1, 1, strides=(2, 2))]], "strides"),
    ],
)
def test_chains_that_are_not_one_convolution(branches, message):
    with pytest.raises(ValueError, match=message):
        Rewrite(tuple(map(tuple, branches)))


def test_spatial_stages_may_pad_their_own_axis():
    chain = _chain(_zeros(3, 2, 3, 1, pads=(1, 0, 1, 0)), _zeros(4, 3, 1, 3, pads=(0, 1, 0, 1)))
    assert chain.out_size((9, 9)) == (9, 9)


def test_with_bias_is_on_the_last_stage_of_the_first_branch():
    branch = (_zeros(3, 2, 1, 1), _zeros(4, 3, 1, 1))
    rewrite = Rewrite((branch, branch)).with_bias(np.ones(4))
    assert np.array_equal(rewrite.bias, np.ones(4))
    assert [stage.bias is None for stages in rewrite.branches for stage in stages] == [
        True,
        False,
        True,
        True,
    ]
    assert rewrite.with_bias(None).bias is None


def test_dense_refuses_what_is_not_the_original():
    conv = _zeros(4, 4, 3, 3)
    ones = np.ones((4, 4, 1, 1), np.float32)
    with pytest.raises(ValueError, match="strides"):
        _chain(Conv(ones, strides=(2, 2))).dense(conv)
    with pytest.raises(ValueError, match="offset"):
        _chain(Conv(ones, pads=(1, 1, 1, 1))).dense(conv)
    with pytest.raises(ValueError, match="groups"):
        _chain(Conv(ones)).dense(_zeros(4, 2, 3, 3, group=2))


def test_dense_allows_zero_taps_outside_and_leaves_out_zeros():
    conv = _zeros(2, 2, 3, 3, pads=(1, 1, 1, 1))
    centre = Conv(np.ones((2, 2, 1, 1), np.float32))
    found = _chain(centre).dense(conv)
    assert np.all(found[:, :, 1, 1] == 1.0)
    assert found.sum() == 4.0
    wide = np.zeros((2, 2, 5, 5), np.float32)
    wide[:, :, 2, 2] = 1.0
    assert np.array_equal(_chain(Conv(wide, pads=(2, 2, 2, 2))).dense(conv), found)


def test_branches_of_different_size():
    rewrite = Rewrite(((_zeros(2, 2, 3, 3),), (_zeros(2, 2, 1, 1),)))
    with pytest.raises(ValueError, match="different sizes"):
        rewrite.out_size((8, 8))


def _forms(rng, group, kernel, strides, pads, dilations):
    """One rewrite of every kind of chain for a convolution with these attributes, 8 -> 12 channels."""

    def weight(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    attributes = {"strides": strides, "pads": pads, "dilations": dilations}
    (high, wide), (down, across), (top, left, bottom, right), (tall, broad) = kernel, strides, pads, dilations
    bias = weight(12)
    ins = 8 // group
    return (
        {
            "single": [(Conv(weight(12, ins, *kernel), bias, group=group, **attributes),)],
            "depthwise_pointwise": [
                (
                    Conv(weight(8, 1, *kernel), group=8, **attributes),
                    Conv(weight(12, ins, 1, 1), bias if first else None, group=group),
                )
                for first in (True, False)
            ],
            "pointwise_depthwise": [
                (
                    Conv(weight(12, ins, 1, 1), group=group),
                    Conv(weight(12, 1, *kernel), bias, group=12, **attributes),
                )
            ],
            "spatial": [
                (
                    Conv(
                        weight(4, ins, high, 1),
                        None,
                        (down, 1),
                        (top, 0, bottom, 0),
                        (tall, 1),
                        group,
                    ),
                    Conv(
                        weight(12, 4 // group, 1, wide),
                        bias,
                        (1, across),
                        (0, left, 0, right),
                        (1, broad),
                        group,
                    ),
                )
            ],
            "tucker": [
                (
                    Conv(weight(4, ins, 1, 1), group=group),
                    Conv(weight(6, 4 // group, *kernel), group=group, **attributes),
                    Conv(weight(12, 6 // group, 1, 1), bias, group=group),
                )
            ],
            "grouped": [
                (
                    Conv(weight(8, 2, *kernel), group=4, **attributes),
                    Conv(weight(12, ins, 1, 1), bias, group=group),
                )
            ],
        },
        Conv(np.zeros((12, ins, *kernel), np.float32), bias, group=group, **attributes),
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2]),
    st.tuples(st.integers(2, 4), st.integers(2, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
)
def test_dense_kernel_is_what_the_chain_computes(seed, group, kernel, strides, pads, dilations):
    rng = np.random.default_rng(seed)
    forms, conv = _forms(rng, group, kernel, strides, pads, dilations)
    x = rng.standard_normal((2, 8, 13, 14)).astype(np.float32)
    for branches in forms.values():
        rewrite = Rewrite(tuple(branches))
        dense = _chain(conv.with_(weight=rewrite.dense(conv).astype(np.float32)))
        found, expected = _run(rewrite, x), _run(dense, x)
        assert found.shape[2:] == rewrite.out_size((13, 14)) == conv.out_size((13, 14))
        # float32 sums in another order.
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["single", "depthwise_pointwise", "spatial", "tucker", "grouped"])
def test_runtime_and_reference_agree(rng, name):
    forms, _ = _forms(rng, 2, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2))
    x = rng.standard_normal((1, 8, 9, 10)).astype(np.float32)
    rewrite = Rewrite(tuple(forms[name]))
    # float32 sums in another order.
    assert np.allclose(_run(rewrite, x), _reference(rewrite, x), atol=1e-4)


def test_stacked_kernels_compose_with_strides_and_dilations(rng):
    first = Conv(rng.standard_normal((3, 2, 3, 2)).astype(np.float32), None, (2, 1), (1, 0, 1, 0), (1, 2))
    second = Conv(rng.standard_normal((4, 3, 2, 3)).astype(np.float32), None, (1, 2), (), (2, 1))
    rewrite = _chain(first, second)
    # Taps at (0..2) + 2·2·(0, 1) and 2·(0, 1) + (0..2).
    conv = _zeros(4, 2, 7, 5, strides=(2, 2), pads=(1, 0, 1, 0))
    x = rng.standard_normal((1, 2, 12, 12)).astype(np.float32)
    dense = _chain(conv.with_(weight=rewrite.dense(conv).astype(np.float32)))
    assert np.allclose(_run(rewrite, x), _run(dense, x), atol=1e-4)


# Grid


@pytest.mark.parametrize(
    ("block", "limit", "expected"),
    [(8, 14, [4, 8, 12]), (16, 14, [8]), (8, 40, [8, 16, 24, 32]), (16, 16, [8]), (8, 4, []), (8, 0, [])],
)
def test_grid_ranks(block, limit, expected):
    assert list(Grid(block).ranks(limit)) == expected


@pytest.mark.parametrize(("block", "limit"), list(product((8, 16), (100, 500, 2000))))
def test_grid_ranks_are_few_multiples_below_the_limit(block, limit):
    ranks = Grid(block).ranks(limit)
    assert len(ranks) <= 8
    assert ranks == sorted(set(ranks))
    assert ranks[0] == block
    assert limit - block <= ranks[-1] < limit
    assert all(rank % block == 0 for rank in ranks)


def test_a_rewrite_is_lowered_as_another_was(rng):
    """Stages along one axis each may come in the other order: the axes of their tiles follow."""

    def chain(*kernels):
        weights = (rng.standard_normal((16, 16, *kernel)).astype(np.float32) for kernel in kernels)
        return Rewrite((tuple(Conv(weight) for weight in weights),))

    high, wide = Winograd((4, 1), threaded=True), Winograd((1, 2))
    plain = chain((3, 1), (1, 3))
    assert plain.lowerings == ()
    assert plain.lowered_as(()) is plain
    assert plain.lowered_as(((high, wide),)).lowerings == ((high, wide),)
    turned = chain((1, 3), (3, 1)).lowered_as(((high, Direct()),))
    assert turned.lowerings == ((Winograd((1, 4), threaded=True), Direct()),)
    with pytest.raises(ValueError, match="longer"):
        plain.lowered_as(((high, wide, Direct()),))
    with pytest.raises(ValueError, match="one tap along an axis"):
        plain.lowered_as(((Winograd((4, 4)), Direct()),))
