"""Plans as documents: round trip, and one line for each that is none, or fits another model."""

import json
from dataclasses import replace

import graphs
import numpy as np
import pytest
import residual

import passes
from rewriter import graph, planfile
from rewriter.conv import Direct
from rewriter.errors import PlanError
from rewriter.joined import Joined
from rewriter.planfile import SavedForm, SavedPlan, SavedSite
from rewriter.planfile.content import fingerprint
from rewriter.transposed import SubPixel
from rewriter.winograd import Winograd

FORM = SavedForm("channel_svd", (8,), (), 0.1, 0.02, 0.5)
TILED = SavedForm(
    "tucker2", (8, 8), ((Direct(), Winograd((4, 2), threaded=True), Direct()),), 0.25, 1e-9, 0.0
)


@pytest.fixture
def model(rng):
    return graph.load(residual.network(rng))


@pytest.fixture
def plan(model):
    """A plan for that model: its second convolution and its third."""
    forms = {"one": FORM, "two": TILED}
    sites = tuple(
        SavedSite(
            site.name,
            site.conv.weight.shape,
            site.conv.strides,
            site.conv.pads,
            site.conv.dilations,
            site.conv.group,
            site.conv.input_dilations,
            fingerprint(site.conv),
            forms.get(site.name),
        )
        for site in graph.find_sites(model)[0]
    )
    return SavedPlan(
        "conv-rewriter 1",
        "nät.onnx",
        False,
        ("channel_svd",),
        7,
        "cuda",
        {"use_tf32": "0"},
        None,
        2,
        {"x": (2, 8)},
        8,
        36,
        5,
        sites,
    )


@pytest.fixture
def document(plan):
    return json.loads(planfile.to_json(plan))


def refused(tmp_path, document):
    """The line that a document is refused with."""
    path = tmp_path / "plan.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(PlanError) as error:
        planfile.read(path)
    line = str(error.value)
    assert "\n" not in line
    assert f"plan '{path}'" in line
    return line


def matched(plan, model, catalogue=passes.PASSES):
    sites, refusals = graph.find_sites(model)
    return planfile.match(plan, sites, refusals, catalogue, "plan 'p.json'", "'net.onnx'")


def changed(plan, node, /, **changes):
    """The plan with one site changed; what belongs to its form is changed there."""
    sites = []
    for site in plan.sites:
        if site.node == node:
            form = {
                key: changes.pop(key) for key in list(changes) if key in ("pass_name", "rank", "lowerings")
            }
            site = replace(site, **changes, **({"form": replace(site.form, **form)} if form else {}))
        sites.append(site)
    return replace(plan, sites=tuple(sites))


def test_round_trip(plan, tmp_path):
    text = planfile.to_json(plan)
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    assert planfile.read(tmp_path / "plan.json") == plan
    assert planfile.to_json(planfile.read(tmp_path / "plan.json")) == text
    assert next(iter(json.loads(text))) == "schema_version"
    # short enough to look through: a line a site
    assert sum('"node"' in line for line in text.splitlines()) == len(plan.sites)


def test_round_trip_of_a_rank_without_one_of_its_stages(plan, tmp_path):
    form = replace(FORM, pass_name="exact_channels", rank=(0, 1, 8))
    plan = replace(plan, sites=(replace(plan.sites[0], form=form),))
    (tmp_path / "plan.json").write_text(planfile.to_json(plan), encoding="utf-8")
    assert planfile.read(tmp_path / "plan.json") == plan


def test_round_trip_of_a_transposed_site(plan, tmp_path):
    form = replace(FORM, pass_name="sub_pixel", rank=(2, 2), lowerings=((SubPixel(),),))
    site = replace(plan.sites[0], input_dilations=(2, 2), form=form)
    path = tmp_path / "plan.json"
    path.write_text(planfile.to_json(replace(plan, sites=(site,))))
    assert planfile.read(path).sites == (site,)
    assert json.loads(path.read_text())["sites"][0]["input_dilations"] == [2, 2]


def test_round_trip_of_joined_groups(plan, tmp_path):
    form = replace(FORM, pass_name="join_groups", rank=(4,), lowerings=((Joined(4),),))
    site = replace(plan.sites[0], group=8, form=form)
    path = tmp_path / "plan.json"
    path.write_text(planfile.to_json(replace(plan, sites=(site,))))
    assert planfile.read(path).sites == (site,)


def test_tiles_of_earlier_versions_are_for_one_thread(plan, tmp_path):
    text = planfile.to_json(plan)
    path = tmp_path / "plan.json"
    path.write_text(text.replace(', "threaded": true', ""))
    assert path.read_text() != text
    (form,) = (site.form for site in planfile.read(path).sites if site.form and site.form.lowerings)
    assert form.lowerings == ((Direct(), Winograd((4, 2)), Direct()),)


def test_round_trip_of_other_settings(plan, tmp_path):
    other = replace(
        plan, exact=True, threads=3, shapes={}, samples=0, gradients=0, sites=(), expanded=("a", "b")
    )
    (tmp_path / "plan.json").write_text(planfile.to_json(other))
    assert planfile.read(tmp_path / "plan.json") == other


def test_files_that_are_no_plans(tmp_path, document):
    with pytest.raises(PlanError, match=r"there is no plan '.*none.json'; check its name"):
        planfile.read(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot read plan"):
        planfile.read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="it is not text"):
        planfile.read(tmp_path / "binary")
    whole = json.dumps(document)
    for text in ("", whole[: len(whole) // 2], "model.onnx", "[" * 100_000):
        assert "is not JSON, or only a part of it" in refused(tmp_path, text)
    for other in ([], 3, {}, {"sites": []}):
        assert "is no plan: it has no schema_version; save it anew with rewriter" in refused(tmp_path, other)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_other_versions(tmp_path, document, version):
    line = refused(tmp_path, document | {"schema_version": version})
    assert f"has schema_version {json.dumps(version)}, this version of rewriter reads 1" in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tool", 3, "has 3 as tool, which is a text"),
        ("exact", "no", 'has "no" as exact, which is true or false'),
        ("passes", "all", "as passes, which is a list of texts"),
        ("seed", -1, "has -1 as seed, which is a whole number of at least 0"),
        ("seed", True, "has true as seed"),
        ("seed", 10**30, "as seed"),
        ("threads", 0, "as threads, which is a whole number of at least 1"),
        ("batch", 1.5, "has 1.5 as batch"),
        ("shapes", {"x": []}, "has [] as shapes.x, which is a list of whole numbers"),
        ("shapes", ["x"], 'has ["x"] as shapes, which is an object'),
        ("samples", 0, "as samples, which is a whole number of at least 1"),
        ("gradients", None, "has no gradients, which is a whole number"),
        ("sites", {}, "has {} as sites, which is a list"),
        ("sites", [3], "has 3 as sites[0], which is an object"),
    ],
)
def test_fields_of_another_kind(tmp_path, document, name, value, message):
    assert message in refused(tmp_path, document | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pass", None, "has no sites[1].form.pass, which is a text"),
        ("rank", [], "has [] as sites[1].form.rank"),
        ("rank", [-1], "has [-1] as sites[1].form.rank"),
        ("rank", [[8]], "has [[8]] as sites[1].form.rank"),
        ("latency_ms", float("nan"), "has NaN as sites[1].form.latency_ms, which is a number of at least 0"),
        ("predicted_drift", 10**400, "as sites[1].form.predicted_drift"),
        ("predicted_error", "x" * 99, f'has "{"x" * 36}... as sites[1].form.predicted_error'),
        ("lowerings", [{}], "has [{}] as sites[1].form.lowerings, which is a list of lists"),
        (
            "lowerings",
            [[{"as": "fft"}]],
            'has "fft" as sites[1].form.lowerings[0][0].as, which is one of direct',
        ),
        ("lowerings", [[{"as": ["direct"]}]], "lowerings[0][0].as, which is one of direct, transposed, "),
        ("lowerings", [[{"as": "winograd"}]], "has no sites[1].form.lowerings[0][0].m"),
    ],
)
def test_forms_of_another_kind(tmp_path, document, name, value, message):
    document["sites"][1]["form"][name] = value
    assert message in refused(tmp_path, document)


def test_every_field_is_needed(tmp_path, document):
    optional = {"threads"}
    for name in document.keys() - optional - {"schema_version"}:
        refused(tmp_path, {key: value for key, value in document.items() if key != name})
    site = document["sites"][1]
    for name in site.keys() - {"form"}:
        refused(tmp_path, document | {"sites": [{key: site[key] for key in site if key != name}]})


def test_a_plan_on_its_model(plan, model):
    found = matched(plan, model)
    assert [site.name for site in found.sites] == ["stem", "one", "two", "down"]
    assert [(site.name, form) for site, form in found.chosen] == [("one", FORM), ("two", TILED)]
    assert found.remarks == ()


def test_the_order_is_that_of_the_graph(plan, model):
    found = matched(replace(plan, sites=plan.sites[::-1]), model)
    assert [site.name for site, _ in found.chosen] == ["one", "two"]


def test_other_weights_are_told(plan, model, rng):
    assert matched(plan, graph.load(residual.network(rng))).remarks[0].startswith("4 of 4 convolutions")
    one = changed(plan, "down", weights_sha256="0")
    assert matched(one, model).remarks[0].startswith("1 of 4 convolutions have other weights")
    fewer = replace(one, sites=one.sites[1:])
    assert matched(fewer, model).remarks[0].endswith("; 1 more, of which it does not know, stay as they are")
    assert matched(replace(plan, sites=plan.sites[1:]), model).remarks == ()


def test_a_site_that_stays_may_be_missing_or_another(plan, model):
    stays = changed(plan, "down", weight_shape=(1, 1, 1, 1))
    assert len(matched(stays, model).chosen) == 2
    gone = changed(plan, "down", node="elsewhere")
    assert [site.name for site in matched(gone, model).sites] == ["stem", "one", "two"]


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        (
            "one",
            {"node": "none"},
            "rewrites 'none', and 'net.onnx' has no such convolution, but 'down', 'one', 'stem', 'two'; save",
        ),
        ("one", {"node": "two"}, "has the node 'two' twice; take one of them out"),
        (
            "one",
            {"weight_shape": (32, 16, 3, 3)},
            "rewrites 'one' with a weight of shape [32, 16, 3, 3], the model has [16, 16, 3, 3]; save",
        ),
        ("one", {"strides": (2, 2)}, "'one' with strides [2, 2], the model has [1, 1]"),
        ("one", {"pads": (0, 0, 0, 0)}, "'one' with pads [0, 0, 0, 0], the model has [1, 1, 1, 1]"),
        ("one", {"dilations": (1, 2)}, "'one' with dilations [1, 2], the model has [1, 1]"),
        ("one", {"input_dilations": (2, 2)}, "'one' with input dilations [2, 2], the model has [1, 1]"),
        ("one", {"group": 2}, "'one' with group 2, the model has 1"),
        (
            "one",
            {"pass_name": "svdd"},
            "'one' as svdd, and there is no such pass; there are depthwise_pointwise,",
        ),
        (
            "one",
            {"rank": (13,)},
            "'one' as channel_svd, which has no rank 13 for it in blocks of 8; there are 4, 8",
        ),
        ("one", {"rank": (8, 8)}, "which has no rank 8x8 for it"),
    ],
)
def test_plans_that_do_not_fit(plan, model, node, changes, message):
    with pytest.raises(PlanError) as error:
        matched(changed(plan, node, **changes), model)
    assert str(error.value).startswith("plan 'p.json' ")
    assert message in str(error.value)


def test_a_pass_that_refuses_the_site(plan, rng):
    """A plan written by hand: nothing to share in a depthwise convolution."""
    text = """
    agraph (float[n,8,12,12] x) => (float[n,8,12,12] y) {
        [one] y = Conv<group=8, kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    }
    """
    model = graphs.model(text, w=graphs.random(rng, 8, 1, 3, 3))
    saved = replace(changed(plan, "one", weight_shape=(8, 1, 3, 3), group=8).sites[1])
    with pytest.raises(PlanError, match="as channel_svd, which refuses it: it is depthwise"):
        matched(replace(plan, sites=(saved,)), model)


def test_a_convolution_that_became_unfit(plan, model):
    proto = model.copy()
    node = next(node for node in proto.graph.node if node.name == "one")
    node.input[1] = "ar"
    with pytest.raises(PlanError, match=r"'one', which cannot be rewritten in 'net\.onnx': its weight"):
        matched(plan, graph.load(proto))


def test_the_fingerprint_is_of_weight_and_bias(model):
    conv = graph.find_sites(model)[0][0].conv
    moved = conv.bias.copy()
    moved[0] = np.nextafter(moved[0], np.float32(9))
    others = [conv.with_(bias=moved), conv.with_(bias=None), conv.with_(weight=-conv.weight)]
    found = {fingerprint(each) for each in (conv, *others)}
    assert len(found) == 4
    assert fingerprint(conv.with_(weight=np.asfortranarray(conv.weight))) == fingerprint(conv)
