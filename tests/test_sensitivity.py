import graphs
import numpy as np
import pytest
import residual

from rewriter import graph
from rewriter.fitting import Survey
from rewriter.runtime import Target
from rewriter.sensitivity import sensitivities, squared_drift

TARGET = Target(threads=1)


def spoilt(conv, rng, share):
    """The convolution with a kernel that is off by a share of itself."""
    noise = graphs.random(rng, *conv.weight.shape) * np.std(conv.weight)
    return graphs.only(conv.with_(weight=conv.weight + np.float32(share) * noise))


@pytest.fixture
def model(rng):
    return graph.load(residual.network(rng))


@pytest.fixture
def surveys(model, rng):
    """Probes at all sites but one, with errors as if they had been predicted."""
    sites = graph.find_sites(model)[0]
    probes = {"stem": 0.01, "one": 0.04, "down": 0.09}
    return [
        Survey(
            site,
            (),
            (),
            spoilt(site.conv, rng, 0.1) if site.name in probes else None,
            probes.get(site.name, 0.0),
        )
        for site in sites
    ]


def test_sensitivities_are_drifts_of_single_rewrites(model, surveys, rng):
    batches = residual.batches(rng)
    told = []
    found = sensitivities(model, surveys, batches, TARGET, lambda *args: told.append(args))
    right = np.concatenate([graphs.run(model.bytes(), batch)["y"] for batch in batches]).astype(np.float64)
    assert list(found) == ["stem", "one", "down"]
    for each in surveys:
        if each.probe is None:
            continue
        data = graph.splice(model, [(each.site, each.probe)]).bytes()
        made = np.concatenate([graphs.run(data, batch)["y"] for batch in batches])
        drift = np.sum((made - right) ** 2) / np.sum(right**2)
        # the same in float32, the layers behind the site in another run
        assert found[each.site.name] == pytest.approx(drift / each.probe_error, rel=1e-4)
    assert told == [("probing", done, 3) for done in (1, 2, 3)]


def test_an_exact_probe_cares_for_nothing(model, rng):
    site = graphs.site(model, "one")
    exact = Survey(site, (), (), graphs.only(site.conv), 0.0)
    found = sensitivities(model, [exact], residual.batches(rng, 1), TARGET, lambda *_: None)
    # the rounding of another run, over the least error that is divided by
    assert found["one"] * 1e-12 < 1e-12


def test_the_output_that_drifts_most_counts(rng):
    before = [[graphs.random(rng, 2, 3), graphs.random(rng, 2, 5)] for _ in range(3)]
    after = [[1.1 * one, 0.7 * two] for one, two in before]
    # float32 products of a few values
    assert squared_drift(before, after) == pytest.approx(0.09, rel=1e-5)


def test_batches_are_summed_before_the_quotient_is_taken():
    before = [[np.float32([3.0])], [np.float32([4.0])]]
    after = [[np.float32([3.0])], [np.float32([5.0])]]
    assert squared_drift(before, after) == pytest.approx(1 / 25)


def test_outputs_that_are_no_floats_do_not_count():
    labels = [np.array([1, 2]), np.float32([1.0])]
    assert squared_drift([labels], [[np.array([2, 1]), np.float32([1.0])]]) == 0.0


def test_what_comes_in_another_shape_is_lost():
    before = [[np.float32([3.0, 0.0])], [np.float32([4.0, 0.0])]]
    after = [[np.float32([3.0, 0.0])], [np.float32([4.0, 0.0, 1.0])]]
    assert squared_drift(before, after) == pytest.approx(16 / 25)


def test_drift_from_silence_is_finite_where_nothing_changes():
    silence = [[np.zeros(3, np.float32)]]
    assert squared_drift(silence, silence) == 0.0
    assert squared_drift(silence, [[np.ones(3, np.float32)]]) > 1e6
