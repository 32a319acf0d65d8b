import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import F32, IMAGE, indices, pictures

from rewriter.errors import OptionError, SampleError
from rewriter.samples import InputSpec, Samples, split
from rewriter.sources import load

# Samples


def test_targets_align_with_samples():
    with pytest.raises(ValueError, match="2 samples with 1 targets"):
        Samples(({}, {}), (1,))


def test_subset_keeps_the_order_asked_for():
    part = load([({"image": pictures(5)}, np.arange(5))], [IMAGE]).subset(np.array([3, 0]))
    assert indices(part) == [3, 0]
    assert part.targets == (3, 0)


@given(
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=12),
    size=st.integers(1, 5),
    labelled=st.booleans(),
)
def test_batches_keep_order_and_never_mix_shapes(widths, size, labelled):
    spec = InputSpec("image", F32, ("batch", "width"))
    items = [({"image": np.full((1, w), i, F32)}, i if labelled else None) for i, w in enumerate(widths)]
    batches = list(load(items, [spec]).batches(size))
    assert [int(x) for feeds, _ in batches for x in feeds["image"][:, 0]] == list(range(len(widths)))
    assert all(len(feeds["image"]) <= size for feeds, _ in batches)
    rows = [feeds["image"].shape[1] for feeds, _ in batches for _ in feeds["image"]]
    assert rows == widths
    for (one, _), (other, _) in pairwise(batches):  # nothing more could be joined
        assert len(one["image"]) == size or one["image"].shape[1:] != other["image"].shape[1:]
    for feeds, targets in batches:
        assert targets == ([int(x) for x in feeds["image"][:, 0]] if labelled else None)


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_of_a_fixed_batch_come_as_they_are(batch):
    loaded = load([{"image": pictures(4)}], [InputSpec("image", F32, (batch, 1, 2, 2))])
    assert [len(feeds["image"]) for feeds, _ in loaded.batches(8)] == [batch] * (4 // batch)


def test_inputs_with_different_axis_names_are_not_joined():
    specs = [InputSpec("image", F32, ("batch", 1, 2, 2)), InputSpec("boxes", F32, ("count", 4))]
    loaded = load([{"image": pictures(1), "boxes": np.zeros((1, 4), F32)}] * 2, specs)
    assert len(list(loaded.batches(2))) == 2


def test_batches_of_none():
    with pytest.raises(ValueError, match="at least one sample"):
        next(Samples(({},)).batches(0))


def test_samples_travel_to_other_processes():
    loaded = load([({"image": pictures(2)}, np.arange(2))], [IMAGE])
    assert indices(pickle.loads(pickle.dumps(loaded))) == [0, 1]


# split


@given(
    n=st.integers(1, 60),
    fractions=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_split_is_a_partition_without_empty_parts(n, fractions, seed):
    whole = Samples(tuple({"i": np.array([i])} for i in range(n)), tuple(range(n)))
    if n < len(fractions):
        with pytest.raises(SampleError, match=f"found {n}, but .* need at least {len(fractions)}"):
            split(whole, fractions, seed)
        return
    parts = split(whole, fractions, seed)
    assert len(parts) == len(fractions)
    assert all(len(part) for part in parts)
    assert sorted(t for part in parts for t in part.targets) == list(range(n))
    assert all(list(part.targets) == [int(f["i"][0]) for f in part.feeds] for part in parts)
    again = split(whole, fractions, seed)
    assert [p.targets for p in again] == [p.targets for p in parts]


def test_split_follows_fractions_and_seed():
    whole = Samples(tuple({} for _ in range(100)), tuple(range(100)))
    parts = split(whole, (3, 1, 1), seed=0)
    assert [len(part) for part in parts] == [60, 20, 20]
    assert parts[0].targets != tuple(range(60))
    assert parts[0].targets != split(whole, (3, 1, 1), seed=1)[0].targets


@pytest.mark.parametrize("fractions", [[], [0.5, 0], [-1.0], [float("nan")], [float("inf"), 1]])
def test_split_by_nonsense(fractions):
    with pytest.raises(OptionError, match=re.escape("positive fractions")):
        split(Samples(({}, {})), fractions, seed=0)
