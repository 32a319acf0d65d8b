import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewriter import _measures, budget, drift
from rewriter.budget import Budget
from rewriter.drift import Drift
from rewriter.errors import SampleError
from rewriter.graph import Piece
from rewriter.meter import Meter


def measured(
    before: object, after: object, targets: object = None, names: tuple[str, ...] = ("y",), **options: object
) -> dict[tuple[str, str | None], Drift]:
    """The drift of one output (arrays) or several (lists of arrays), by measure and output."""
    if len(names) == 1:
        before, after = [np.asarray(before)], [np.asarray(after)]
    meter = Meter(names, **options)
    meter.update(before, after, targets)
    return {(each.measure, each.output): each for each in meter.result()}


def value(found: dict[tuple[str, str | None], Drift], measure: str) -> float:
    return found[measure, None].value


# --- hand-computed values ----------------------------------------------------------------


def test_pieces_by_hand() -> None:
    """Squares and cosines are of each piece; what looks like classes is read as a whole."""
    pieces = [[Piece("y", -1, 0, 2, 2), Piece("y", -1, 2, None, 2)]]
    before, after = np.array([[3.0, 4.0, 0.1, 0.0]]), np.array([[3.0, 0.0, 0.1, 5.0]])
    found = measured(before, after, pieces=pieces)
    assert found["rel_l2", "y[:, :2]"].value == pytest.approx(4 / 5)
    assert found["rel_l2", "y[:, 2:]"].value == pytest.approx(5 / 0.1)
    assert value(found, "rel_l2") == pytest.approx(5 / 0.1)
    assert found["cosine_distance", "y[:, :2]"].value == pytest.approx(1 - 3 / 5)
    assert found["max_abs", "y[:, 2:]"].value == 5.0
    assert value(found, "top1_flips") == 100.0
    # classes are not read from a sample that is spoilt in any piece
    assert value(measured(before, np.array([[np.nan, 4.0, 0.1, 0.0]]), pieces=pieces), "kl") == math.inf


def test_distances_by_hand() -> None:
    found = measured(np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([[3.0, 4.0], [3.0, 5.0]]))
    assert value(found, "rel_l2") == pytest.approx(3 / math.sqrt(50))
    assert value(found, "noise_db") == pytest.approx(10 * math.log10(9 / 50))
    assert value(found, "max_abs") == 3.0
    assert value(found, "cosine_distance") == pytest.approx((0 + 1 - 25 / (5 * math.sqrt(34))) / 2)
    assert found["rel_l2", None].worst == 1
    assert found["rel_l2", None].samples == 2
    assert ("top1_drop", None) not in found  # no labels


def test_kl_of_logits_and_of_probabilities_agree() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert value(measured(p, q), "kl") == pytest.approx(expected)
    assert value(measured(np.log(p) + 3, np.log(q) - 1), "kl") == pytest.approx(expected)


def test_flips_and_drops_by_hand() -> None:
    before = np.eye(8)[[0, 1, 2, 3]]
    after = np.eye(8)[[0, 1, 3, 4]]
    found = measured(before, after, targets=[0, 5, 2, 4])  # right, wrong, lost, won
    assert value(found, "top1_flips") == 50.0
    assert value(found, "top1_drop") == 0.0
    found = measured(before, after, targets=[0, 1, 2, 3])
    assert value(found, "top1_drop") == 50.0
    # zeros tie by their index: class 3 comes fifth behind (4, 0, 1, 2), class 2 fourth behind (3, 0, 1)
    assert value(found, "top5_drop") == 0.0


def test_top5_needs_more_than_five_classes() -> None:
    assert ("top5_drop", None) not in measured(np.eye(5), np.eye(5), targets=[0, 1, 2, 3, 4])
    before, after = np.arange(7.0)[None], np.array([[9.0, 9, 9, 9, 9, 1, 0]])
    assert value(measured(before, after, targets=np.array([[6]])), "top5_drop") == 100.0


def test_class_maps_count_pixels_and_ignore_unlabelled_ones() -> None:
    before = np.zeros((1, 4, 2, 2))
    before[0, 1] = 1.0
    after = before.copy()
    after[0, 3, 0, 0] = after[0, 3, 1, 1] = 2.0
    labels = np.array([[[1, 1], [1, 255]]])
    found = measured(before, after, targets=labels)
    assert value(found, "top1_flips") == 50.0
    assert value(found, "top1_drop") == pytest.approx(100 / 3)


def test_psnr_by_hand() -> None:
    target = np.full((1, 3, 2, 2), 0.5)
    found = measured(target + 0.1, target + 0.2, targets=target)
    assert value(found, "psnr_drop_db") == pytest.approx(20 * math.log10(2))
    # outputs are clipped to the range of the target
    found = measured(target + 0.5, target + 9.0, targets=target)
    assert value(found, "psnr_drop_db") == pytest.approx(0.0)


@pytest.mark.parametrize(("scale", "peak"), [(1.0, None), (255.0, None), (255.0, 255.0)])
def test_psnr_peak_comes_from_the_target(scale: float, peak: float | None) -> None:
    target = np.linspace(0.1, 0.9, 48).reshape(1, 3, 4, 4) * scale
    found = measured(target + 0.01 * scale, target - 0.03 * scale, targets=target, peak=peak)
    assert value(found, "psnr_drop_db") == pytest.approx(20 * math.log10(3))


@pytest.mark.parametrize(
    ("shape", "probabilities", "looks"),
    [
        ((2, 2), False, True),
        ((2, 1), False, False),
        ((2, 10, 1, 1), False, True),
        ((2, 3, 4, 4), False, False),  # an image
        ((2, 3, 4, 4), True, True),
        ((2, 4, 4, 4), False, True),
        ((2, 1001, 2, 2), False, False),
        ((2, 7, 5), False, False),
        ((2, 7, 5), True, True),
        ((2, 3, 4, 4, 4), False, False),
    ],
)
def test_what_looks_like_scores(
    shape: tuple[int, ...], probabilities: bool, looks: bool, rng: np.random.Generator
) -> None:
    output = rng.random(shape) * 3
    if probabilities:
        output /= output.sum(axis=1, keepdims=True)
    found = measured(output, output)
    assert (("kl", None) in found) == (("top1_flips", None) in found) == looks


def test_scores_over_the_last_axis(rng: np.random.Generator) -> None:
    output = rng.dirichlet(np.ones(5), size=(2, 7))
    after = output.copy()
    after[0, 0] = np.roll(after[0, 0], 1)
    assert value(measured(output, after), "top1_flips") == pytest.approx(100 / 14)


def test_several_outputs_are_headed_by_the_worst(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(6, 3, 4, 4)), rng.normal(size=(6, 9))
    found = measured([a, b], [a * 1.01, b * 1.1], names=("a", "b"))
    assert found["rel_l2", "a"].value == pytest.approx(0.01)
    assert found["rel_l2", "b"].value == pytest.approx(0.1)
    assert value(found, "rel_l2") == found["rel_l2", "b"].value
    assert value(found, "kl") == found["kl", None].value
    assert ("kl", "a") not in found


def test_one_output_is_not_said_twice() -> None:
    assert {output for _, output in measured(np.ones((2, 3)), np.ones((2, 3)))} == {None}


# --- odd outputs ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(bad: float, rng: np.random.Generator) -> None:
    before = rng.normal(size=(4, 10))
    after = before.copy()
    after[2, 3] = bad
    meter = Meter(["y"])
    meter.update([before], [after], [0, 1, 2, 3])
    drifts = meter.result()
    assert {each.measure for each in drifts} == set(drift.MEASURES) - {"psnr_drop_db"}
    assert all(each.value == each.high == math.inf for each in drifts)
    assert all(each.worst == 2 for each in drifts)
    assert not budget.within(drifts, [Budget("rel_l2", 1e300)])[0].passed


def test_infinities_of_the_original_are_no_drift() -> None:
    before = np.array([[1.0, -np.inf, np.nan]])
    assert value(measured(before, before), "rel_l2") == 0.0
    assert value(measured(before, np.array([[1.0, 0.0, np.nan]])), "rel_l2") == math.inf


def test_no_drift_is_zero_and_finite_in_decibels(rng: np.random.Generator) -> None:
    before = rng.normal(size=(5, 3, 4))
    found = measured(before, before)
    assert value(found, "rel_l2") == found["rel_l2", None].high == 0.0
    assert value(found, "noise_db") == -300.0
    assert value(measured(np.zeros((2, 3)), np.zeros((2, 3))), "rel_l2") == 0.0
    assert value(measured(np.zeros((2, 3)), np.ones((2, 3))), "rel_l2") == math.inf


def test_integer_and_string_outputs() -> None:
    numbers = np.array([[1, 2], [3, 4]])
    assert value(measured(numbers, numbers), "rel_l2") == 0.0
    texts = np.array([["a"], ["b"]], dtype=object)
    assert value(measured(texts, texts), "rel_l2") == 0.0
    assert value(measured(texts, texts[::-1]), "rel_l2") == math.inf


def test_outputs_of_other_sizes_are_one_sample() -> None:
    boxes, count = np.ones((5, 4)), np.array(5)
    found = measured([boxes, count], [boxes * 1.1, count], names=("boxes", "count"))
    assert value(found, "rel_l2") == pytest.approx(0.1)
    assert found["rel_l2", None].samples == 1
    found = measured([boxes, count], [boxes[:4], count], names=("boxes", "count"))
    assert value(found, "rel_l2") == math.inf


# --- streaming and intervals ----------------------------------------------------------------


def test_batches_do_not_matter(rng: np.random.Generator) -> None:
    before = rng.normal(size=(12, 6)).astype(np.float32)
    after = before + 0.3 * rng.normal(size=before.shape).astype(np.float32)
    labels = list(rng.integers(0, 6, 12))
    whole, parts = Meter(["y"]), Meter(["y"])
    whole.update([before], [after], labels)
    for start in (0, 5, 10):
        cut = slice(start, start + 5)
        parts.update([before[cut]], [after[cut]], labels[cut])
    assert whole.result() == parts.result()


def test_no_samples_is_an_error() -> None:
    meter = Meter(["y"])
    with pytest.raises(SampleError, match="no samples"):
        meter.result()
    meter.update([np.ones((0, 3))], [np.ones((0, 3))])
    with pytest.raises(SampleError, match="no samples"):
        meter.result()


def test_intervals_cover_the_truth(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(60):
        before = rng.normal(size=(40, 20))
        found = measured(before, before + 0.1 * rng.normal(size=before.shape))["rel_l2", None]
        covered += found.low <= 0.1 <= found.high
    assert (
        covered >= 49
    )  # 95 % of 60 is 57, its standard deviation 1.7; the bootstrap of 40 falls a little short


def test_no_flip_of_few_samples_is_no_proof() -> None:
    found = measured(np.eye(10), np.eye(10), targets=list(range(10)))
    assert found["top1_flips", None].low == 0.0
    # Wilson at 0 of 10: z² / (n + z²)
    assert found["top1_flips", None].high == pytest.approx(100 * 3.8415 / 13.8415, rel=1e-3)
    assert found["top1_drop", None].low < 0 < found["top1_drop", None].high


def test_paired_interval_by_hand() -> None:
    """Agresti and Min's adjusted interval for 3 lost, 1 won of 20."""
    before, after = np.tile([1.0, 0.0], (20, 1)), np.tile([1.0, 0.0], (20, 1))
    labels = np.zeros(20, dtype=int)
    after[:3] = [0.0, 1.0]
    before[3] = [0.0, 1.0]
    found = measured(before, after, targets=labels)["top1_drop", None]
    mean, half = 2 / 22, 1.96 * math.sqrt(5 - 4 / 22) / 22
    assert found.value == 10.0
    assert (found.low, found.high) == pytest.approx((100 * (mean - half), 100 * (mean + half)), rel=1e-3)


ARRAYS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-100, 100, width=32)
)


@given(ARRAYS, st.floats(0.001, 10))
def test_scaling_the_output_is_its_relative_error(before: np.ndarray, scale: float) -> None:
    if not np.square(before).sum() > 1e-12:
        return
    found = measured(before, before * (1 + scale))
    assert value(found, "rel_l2") == pytest.approx(scale, rel=1e-6)
    assert value(found, "cosine_distance") == pytest.approx(0, abs=1e-12)
    assert value(found, "noise_db") == pytest.approx(20 * math.log10(scale), abs=1e-5)


@given(st.data())
def test_every_measure_is_ordered_and_nothing_drifts_from_itself(data: st.DataObject) -> None:
    before = data.draw(ARRAYS)
    after = data.draw(hnp.arrays(np.float64, before.shape, elements=st.floats(-100, 100, width=32)))
    labels = data.draw(hnp.arrays(np.int64, len(before), elements=st.integers(0, before.shape[1] - 1)))
    for each in measured(before, after, labels).values():
        assert each.low <= each.value <= each.high
        assert 0 <= each.worst < each.samples == len(before)
    for each in measured(before, before, labels).values():
        assert each.value == pytest.approx(-300 if each.measure == "noise_db" else 0, abs=1e-12)


# --- custom measures ----------------------------------------------------------------


def test_custom_measures_see_one_sample_at_a_time() -> None:
    def lost(before: list[np.ndarray], after: list[np.ndarray], target: object) -> float:
        assert [x.shape for x in (*before, *after)] == [(1, 2), (1, 2)]
        return float(before[0].sum() - after[0].sum()) + target

    found = measured([[1.0, 2], [3, 4]], [[1.0, 1], [3, 1]], targets=[10, 20], custom={"m.py:lost": lost})
    assert value(found, "m.py:lost") == pytest.approx((1 + 10 + 3 + 20) / 2)
    assert found["m.py:lost", None].worst == 1
    found = measured(np.ones((2, 2)), np.ones((2, 2)), custom={"m": lambda b, a, t: math.nan})
    assert value(found, "m") == math.inf


def test_a_failing_custom_measure_is_one_line() -> None:
    with pytest.raises(SampleError, match=r"measure 'm.py:f' failed on a sample: ZeroDivisionError"):
        measured(np.ones((1, 2)), np.ones((1, 2)), custom={"m.py:f": lambda b, a, t: 1 / 0})


def test_targets_are_counted() -> None:
    with pytest.raises(SampleError, match="3 targets for 2 samples"):
        measured(np.ones((2, 4)), np.ones((2, 4)), targets=[1, 2, 3])


def test_targets_that_fit_no_output_are_for_custom_measures() -> None:
    found = measured(np.ones((2, 4)), np.ones((2, 4)), targets=["cat", "dog"])
    assert ("top1_drop", None) not in found
    found = measured(np.ones((2, 4)), np.ones((2, 4)), targets=[np.ones(2), np.ones(3)])
    assert ("top1_drop", None) not in found


def many_decisions(rng, temperature, count=100_000, classes=10):
    """Scores of a model that is sure of itself by a temperature, labels, and scores that moved."""
    scores = rng.normal(0.0, 2.0, (count, classes))
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    labels = (shares.cumsum(axis=1) < rng.random((count, 1)) * shares.sum(axis=1, keepdims=True)).sum(axis=1)
    moved = scores + rng.normal(0.0, 0.3, scores.shape)
    return temperature * scores, labels, temperature * moved


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_probabilities_of_any_temperature_tell_what_changed_decisions_cost(temperature):
    scores, labels, moved = many_decisions(np.random.default_rng(0), temperature)
    lost = np.mean(scores.argmax(axis=1) == labels) - np.mean(moved.argmax(axis=1) == labels)
    expected = _measures.expected_losses(scores, labels, moved.argmax(axis=1))
    assert np.array_equal(expected > 0.0, scores.argmax(axis=1) != moved.argmax(axis=1))
    # what was counted scatters by a twentieth
    assert expected.mean() == pytest.approx(lost, rel=0.15)


def test_the_likely_drop_is_nearer_than_counting():
    """Those of a few samples tell more by their margins and probabilities than by their count."""
    rng = np.random.default_rng(0)
    scores, labels, moved = many_decisions(rng, 2.0)
    margins = [_measures.margins(each, labels) for each in (scores, moved)]
    true = 100.0 * (np.mean(margins[0] > 0) - np.mean(margins[1] > 0))
    counted, likely = [], []
    for _ in range(300):
        few = rng.choice(len(labels), 150, replace=False)
        before, after = (each[few] for each in margins)
        expected = _measures.expected_losses(scores[few], labels[few], moved[few].argmax(axis=1))
        counted.append(100.0 * (np.mean(before > 0) - np.mean(after > 0)))
        likely.append(_measures.likely_drop(before, after, expected))
    errors = [np.sqrt(np.mean((np.array(each) - true) ** 2)) for each in (counted, likely)]
    assert errors[1] < 0.6 * errors[0]


def test_the_likely_drop_where_nothing_moves():
    margins = np.array([1.0, -1.0, 2.0])
    assert _measures.likely_drop(margins, margins, np.zeros(3)) == 0.0


def test_margins_of_scores():
    logits = np.array([[1.0, 3.0, 2.0], [5.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    found = _measures.margins(logits, np.array([1, 2, 255]))
    assert np.allclose(found[:2], [1.0, -4.0])
    assert np.isnan(found[2])


def test_labels_of_no_class_tell_no_likely_drop():
    found = measured(np.ones((2, 4)), np.ones((2, 4)), targets=[255, 255])
    assert all(each.likely is None for each in found.values())
