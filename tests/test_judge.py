import math
import textwrap
from pathlib import Path

import graphs
import numpy as np
import pytest

from rewriter import judge
from rewriter.errors import OptionError, SampleError
from rewriter.judge import Judge
from rewriter.samples import Samples

TEXT = """
agraph (float[N,3,6,6] x) => (float[N,4] y) {
  a = Conv(x, w)
  p = GlobalAveragePool(a)
  y = Flatten(p)
}
"""
# float32 outputs of a few products each
CLOSE = 1e-4


@pytest.fixture
def weight(rng):
    return graphs.random(rng, 4, 3, 3, 3)


@pytest.fixture
def original(weight):
    return graphs.model(TEXT, w=weight)


@pytest.fixture
def louder(weight):
    """The original with its outputs larger by a hundredth: a relative L2 drift of 0.01."""
    return graphs.model(TEXT, w=np.float32(1.01) * weight)


@pytest.fixture
def samples(rng):
    def make(count=6, targets=None):
        return Samples(tuple({"x": graphs.random(rng, 1, 3, 6, 6)} for _ in range(count)), targets)

    return make


def usage(original, model, samples, **budgets):
    return Judge(original, budgets, samples(), samples(), 0).usage(model)


def test_usage_is_the_share_of_the_budget(original, louder, samples):
    assert usage(original, louder, samples, rel_l2=0.05) == pytest.approx(0.2, rel=CLOSE)
    assert usage(original, louder, samples, rel_l2=0.005) == pytest.approx(2.0, rel=CLOSE)


def test_the_tightest_budget_counts(original, louder, samples):
    both = usage(original, louder, samples, rel_l2=0.05, noise_db=-20.0)
    assert both == pytest.approx(0.2, rel=CLOSE)  # of the noise it is a tenth
    both = usage(original, louder, samples, rel_l2=0.5, noise_db=-20.0)
    assert both == pytest.approx(0.1, rel=CLOSE)


@pytest.mark.parametrize(("limit", "share"), [(-40.0, 1.0), (-20.0, 0.1), (-60.0, 10.0), (0.0, 0.01)])
def test_decibels_are_shares_of_the_amplitude(original, louder, samples, limit, share):
    assert usage(original, louder, samples, noise_db=limit) == pytest.approx(share, rel=CLOSE)


@pytest.mark.parametrize("measure", ["rel_l2", "max_abs", "kl"])
def test_a_budget_of_nothing(original, louder, samples, measure):
    assert usage(original, louder, samples, **{measure: 0.0}) == math.inf
    assert usage(original, original, samples, **{measure: 0.0}) == 0.0


def test_flips_of_scaled_scores_use_nothing(original, louder, samples):
    assert usage(original, louder, samples, top1_flips=0.0) == 0.0


@pytest.mark.parametrize(
    ("budgets", "drift"),
    [
        ({"rel_l2": 0.02}, 0.02),
        ({"rel_l2": 1e-5}, 1e-5),
        ({"noise_db": -40.0}, 0.01),
        ({"rel_l2": 0.02, "noise_db": -60.0}, 0.001),
    ],
)
def test_the_search_starts_near_the_budget(original, samples, budgets, drift):
    limit, power = Judge(original, budgets, samples(60), samples(), 0).start()
    # a little inside; noise has about the size that it is said to have
    assert 0.75 * drift < math.sqrt(limit) < 1.05 * drift
    assert power == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(("points", "least"), [(1.0, 1e-3), (5.0, 5e-3), (10.0, 1e-2)])
def test_the_search_for_a_loss_of_accuracy_starts_where_noise_takes_it(original, samples, points, least):
    """Outputs of four values are easily confused; noise of their own size loses most of them."""
    inputs = samples(400)
    answers = [
        next(iter(graphs.run(original.proto.SerializeToString(), feeds).values())) for feeds in inputs.feeds
    ]
    labelled = Samples(inputs.feeds, tuple(int(each.argmax()) for each in answers))
    limit, _ = Judge(original, {"top1_drop": points}, labelled, samples(4, (0,) * 4), 0).start()
    assert least < math.sqrt(limit) < 1.0
    rng = np.random.default_rng(1)
    before = np.concatenate(answers)
    noise = math.sqrt(limit * np.mean(before**2)) * rng.standard_normal(before.shape)
    lost = 100 * np.mean((before + noise).argmax(1) != before.argmax(1))
    assert 0.3 * points < lost < 2.0 * points


@pytest.mark.parametrize(("limit", "share"), [(-20.0, 0.1), (-40.0, 1.0), (-50.0, 3.16), (-60.0, 10.0)])
def test_a_measure_below_zero_is_on_the_scale_of_noise(original, louder, samples, tmp_path, limit, share):
    """As minus a signal-to-noise ratio, of which a multiple means nothing."""
    code = """
        import numpy as np

        def minus_snr_db(before, after, target):
            (x,), (y,) = before, after
            return 10 * np.log10(np.sum((y - x) ** 2) / np.sum(x**2) + 1e-12)
    """
    (tmp_path / "own.py").write_text(textwrap.dedent(code))
    found = usage(original, louder, samples, **{f"{tmp_path / 'own.py'}:minus_snr_db": limit})
    assert found == pytest.approx(share, rel=0.3)


def test_where_noise_says_nothing_the_search_starts_from_a_guess(samples):
    whole = graphs.model(
        "agraph (float[N,3,6,6] x) => (int64[N,6,6] y) { y = ArgMax<axis=1, keepdims=0>(x) }"
    )
    limit, power = Judge(whole, {"max_abs": 3.0}, samples(), samples(), 0).start()
    assert (limit, power) == pytest.approx((0.05**2, 0.75))


def test_verdicts_are_on_the_final_samples(original, louder, samples):
    found = Judge(original, {"rel_l2": 0.05, "noise_db": -50.0}, samples(2), samples(5), 0)
    measured, verdicts = found.verdicts(louder)
    assert [(each.budget.measure, each.passed) for each in verdicts] == [
        ("rel_l2", True),
        ("noise_db", False),
    ]
    assert {each.samples for each in measured} == {5}
    assert verdicts[0].drift.value == pytest.approx(0.01, rel=CLOSE)


def test_strict_usage_and_verdicts_are_those_of_the_upper_end(original, weight, samples):
    """Only one tap differs, so samples drift differently and the interval has a width."""
    changed = weight.copy()
    changed[0, 0, 0, 0] += 0.05
    model = graphs.model(TEXT, w=changed)
    choosing, final = samples(12), samples(12)
    easy, strict = (
        Judge(original, {"rel_l2": 0.05}, choosing, final, 0, strict=asked) for asked in (False, True)
    )
    whole = easy.drifts(model)[0]
    assert whole.value < whole.high
    assert easy.usage(model) == pytest.approx(whole.value / 0.05)
    assert strict.usage(model) == pytest.approx(whole.high / 0.05)
    measured, (verdict,) = strict.verdicts(model)
    between = (measured[0].value + measured[0].high) / 2
    for asked, passed in ((False, True), (True, False)):
        found = Judge(original, {"rel_l2": between}, choosing, final, 0, strict=asked)
        assert found.verdicts(model)[1][0].passed is passed
    assert verdict.strict


def test_strict_budgets_that_the_original_itself_misses(original, samples):
    def labelled(count):
        return samples(count, (0,) * count)

    with pytest.raises(SampleError, match=r"20 samples for the final word .* top1_drop reaches to 8\.9"):
        Judge(original, {"top1_drop": 5.0}, labelled(80), labelled(20), 0, strict=True)
    with pytest.raises(SampleError, match="20 samples for choosing"):
        Judge(original, {"top1_drop": 5.0}, labelled(20), labelled(80), 0, strict=True)
    Judge(original, {"top1_drop": 5.0}, labelled(80), labelled(80), 0, strict=True)
    Judge(original, {"top1_drop": 5.0}, labelled(20), labelled(20), 0)


def test_without_a_budget_usage_is_the_drift_itself(original, louder, samples):
    found = Judge(original, {}, samples(), samples(), 0)
    assert found.usage(louder) == pytest.approx(0.01, rel=CLOSE)
    assert found.verdicts(louder)[1] == ()
    assert [each.measure for each in found.drifts(louder)] == ["rel_l2"]


def test_drifts_are_those_with_a_budget(original, louder, samples):
    budgets = {"noise_db": -20.0, "rel_l2": 0.05, "max_abs": 1.0}
    found = Judge(original, budgets, samples(), samples(9), 0).drifts(louder)
    assert [each.measure for each in found] == ["rel_l2", "noise_db", "max_abs"]
    assert {each.samples for each in found} == {6}


def test_custom_measures_see_both_outputs_and_the_target(original, louder, samples, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "def worst(before, after, target):\n    return abs(after[0] / before[0] - 1).max() * target\n"
    )
    name = f"{script}:worst"
    found = Judge(original, {name: 0.1}, samples(3, (2, 2, 2)), samples(3, (4, 4, 4)), 0)
    assert found.usage(louder) == pytest.approx(0.2, rel=1e-3)  # the quotient of two float32 outputs
    ((verdict,),) = found.verdicts(louder)[1:]
    assert verdict.drift.value == pytest.approx(0.04, rel=1e-3)


def test_budgets_that_cannot_be_judged(original, samples):
    with pytest.raises(SampleError, match=r"top1_drop needs integer labels .*; add that"):
        usage(original, original, samples, top1_drop=1.0)
    with pytest.raises(OptionError, match="unknown measure 'accuracy'; known are rel_l2"):
        usage(original, original, samples, accuracy=1.0)
    with pytest.raises(OptionError, match="not a number"):
        usage(original, original, samples, rel_l2="much")
    with pytest.raises(SampleError, match=r"--max-drift .*no\.py:f: there is no script"):
        usage(original, original, samples, **{str(Path("no.py:f")): 1.0})


def test_labels_make_accuracy_measurable(original, weight, samples):
    flipped = graphs.model(TEXT, w=-weight)
    choosing = samples(8)
    right = tuple(
        int(graphs.run(original.bytes(), feeds)["y"].argmax()) for feeds, _ in choosing.batches(size=1)
    )
    labelled = Samples(choosing.feeds, right)
    found = Judge(original, {"top1_drop": 50.0}, labelled, labelled, 0)
    assert found.usage(original) == 0.0
    assert found.usage(flipped) > 1.0
    (gate,) = found.verdicts(flipped)[1]
    assert gate.drift.value == 100.0  # every sample is wrong


@pytest.mark.parametrize("kept", [0, 600, 1 << 29])
def test_kept_references_are_the_recomputed_ones(original, louder, samples, monkeypatch, kept):
    monkeypatch.setattr(judge, "_KEPT_BYTES", kept)
    choosing = samples(40)  # three batches of at most 256 bytes of output
    found = Judge(original, {"rel_l2": 0.05}, choosing, samples(), 0)
    runs = []

    class Counted(judge.Session):
        def __init__(self, data, target):
            super().__init__(data, target)
            self.counts = data() == original.bytes()

        def run(self, feeds, outputs=None):
            if self.counts:
                runs.append(len(feeds["x"]))
            return super().run(feeds, outputs)

    monkeypatch.setattr(judge, "Session", Counted)
    first, again = found.usage(louder), found.usage(louder)
    assert first == again == pytest.approx(0.2, rel=CLOSE)
    batches = [16, 16, 8]
    expected = {0: [*batches, *batches[1:]], 600: [*batches, *batches[2:]], 1 << 29: batches}
    assert runs == expected[kept]


@pytest.mark.parametrize("kept", [0, 1 << 29])
def test_one_session_is_alive_at_a_time(original, louder, samples, monkeypatch, kept):
    monkeypatch.setattr(judge, "_KEPT_BYTES", kept)
    alive, most = [], []

    class Counted(judge.Session):
        def __init__(self, data, target):
            super().__init__(data, target)
            alive.append(None)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(judge, "Session", Counted)
    found = Judge(original, {"rel_l2": 0.05}, samples(40), samples(40), 0)
    found.usage(louder)
    found.usage(louder)
    found.verdicts(louder)
    assert max(most) == 1
    assert not alive


def test_final_samples_are_never_kept(original, louder, samples):
    found = Judge(original, {"rel_l2": 0.05}, samples(4), samples(4), 0)
    assert found.verdicts(louder)[1][0].drift.value == pytest.approx(0.01, rel=CLOSE)
    assert "_kept" not in vars(found)


def test_spoilt_outputs_use_an_infinite_share(original, weight, samples):
    spoilt = graphs.model(TEXT, w=np.full_like(weight, 3e38))
    assert usage(original, spoilt, samples, rel_l2=0.05) == math.inf


def test_the_original_rounds_otherwise_where_its_graph_is_as_it_was(rng, samples):
    """A sum and its negative leave little but rounding, which a folded bias takes before the sum."""
    bias = np.full((1, 4, 1, 1), 1e4, np.float32)
    text = """
    agraph (float[N,3,6,6] x) => (float[N,4,4,4] y) {
      a = Conv(x, w)
      b = Add(a, up)
      y = Add(b, down)
    }
    """
    model = graphs.model(text, w=graphs.random(rng, 4, 3, 3, 3), up=bias, down=-bias)
    found = Judge(model, {"rel_l2": 1e-5}, samples(), samples(), 0)
    (verdict,) = found.rounding()
    assert verdict.share > 1.0
    (itself,) = found.verdicts(model)[1]
    assert itself.share == 0.0


DETECTOR = """
agraph (float[N,3,6,6] x) => (float[N,8,25] y) {
  a = Conv<strides=[1,1]>(x, w)
  s = Mul(a, k)
  j = Constant<value: tensor=int64[3] {0,8,-1}>()
  y = Reshape(s, j)
}
"""


@pytest.mark.parametrize(
    ("boxes", "budgets", "doubts"),
    [(1000.0, {"rel_l2": 0.1}, 1), (10.0, {"rel_l2": 0.1}, 0), (1000.0, {"max_abs": 1.0}, 0)],
)
def test_outputs_of_unlike_values_are_doubted(boxes, budgets, doubts, samples, rng):
    """Boxes in pixels beside scores: of such an output a relative error is that of the boxes."""
    scales = np.where(np.arange(8) < 3, boxes, 1.0).astype(np.float32).reshape(8, 1, 1)
    detector = graphs.model(DETECTOR, w=graphs.random(rng, 8, 3, 2, 2), k=scales)
    found = Judge(detector, budgets, samples(), samples(), 0).doubts()
    assert len(found) == doubts
    assert all("output 'y' holds values of unlike sizes along axis 1" in each for each in found)


def test_what_a_concat_joins_keeps_to_the_budget_each_by_itself(samples, rng):
    """Scores that are all wrong are nothing beside boxes in pixels, but for who uses them."""
    text = """
    agraph (float[N,3,6,6] x) => (float[N,8,6,6] y) {
      a = Conv(x, w)
      boxes = Mul(a, pixels)
      b = Conv(x, v)
      scores = Sigmoid(b)
      y = Concat<axis=1>(boxes, scores)
    }
    """
    weights = {"w": graphs.random(rng, 4, 3, 1, 1), "v": graphs.random(rng, 4, 3, 1, 1)}
    pixels = np.float32(1000.0)
    detector = graphs.model(text, **weights, pixels=pixels)
    found = Judge(detector, {"rel_l2": 0.1}, samples(), samples(), 0)
    assert found.doubts() == ()
    mute = graphs.model(text, **{**weights, "v": 0 * weights["v"]}, pixels=pixels)
    measured, (verdict,) = found.verdicts(mute)
    by_output = {each.output: each.value for each in measured if each.measure == "rel_l2"}
    assert by_output["y[:, :4]"] == 0.0
    assert by_output["y[:, 4:]"] == by_output[None] > 0.2
    assert not verdict.passed
    assert found.usage(mute) > 2.0


def test_outputs_of_classes_are_not_doubted(original, samples):
    assert Judge(original, {"rel_l2": 0.1}, samples(), samples(), 0).doubts() == ()
