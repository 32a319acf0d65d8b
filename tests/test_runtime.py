from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser

from rewriter import runtime
from rewriter.errors import ModelError, OptionError, ProviderError
from rewriter.runtime import Session, Spec, Target, profiler, providers


def text_model(text: str) -> bytes:
    return parser.parse_model(text).SerializeToString()


ADD = text_model(
    '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, int64[2] k) => (float[N, 4] y, int64[2] z)'
    " <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) z = Neg(k) }"
)
FEEDS = {"x": np.zeros((3, 4), np.float32), "k": np.array([5, 6])}


def conv_model(out_channels: int = 1) -> bytes:
    weight = np.ones((out_channels, 3, 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, out_channels, 4, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[:, 0, 0, 0], "b")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_run_gives_outputs_by_name() -> None:
    outputs = Session(ADD).run(FEEDS)
    assert list(outputs) == ["y", "z"]
    np.testing.assert_array_equal(outputs["y"], np.tile([1, 2, 3, 4], (3, 1)))
    np.testing.assert_array_equal(outputs["z"], [-5, -6])
    assert list(Session(ADD).run(FEEDS, ["z"])) == ["z"]


def test_inputs_and_outputs_are_described() -> None:
    session = Session(ADD)
    assert session.inputs == (
        Spec("x", ("N", 4), np.dtype("float32")),
        Spec("k", (2,), np.dtype("int64")),
    )
    assert session.input_names == ("x", "k")
    assert session.output_names == ("y", "z")


def test_external_data_is_found_beside_the_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.ModelProto.FromString(conv_model())
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    x = np.ones((1, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(Session(path).run({"x": x})["y"], np.full((1, 1, 4, 4), 4.0))


@pytest.mark.parametrize("target", [Target(threads=2), Target(threads=2, spinning=False)])
def test_pools_of_threads_give_the_same(target: Target) -> None:
    np.testing.assert_array_equal(Session(ADD, target).run(FEEDS)["z"], [-5, -6])


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({**FEEDS, "x": np.zeros((3, 5), np.float32)}, "Got: 5 Expected: 4"),
        ({**FEEDS, "x": np.zeros((3, 4))}, r"tensor\(double\)"),
        ({"x": FEEDS["x"]}, "missing from input feed"),
    ],
)
def test_wrong_feeds_are_one_line(
    feeds: dict[str, np.ndarray], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Session(ADD).run(feeds)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_failing_node_is_one_line_without_source_files(capfd: pytest.CaptureFixture[str]) -> None:
    model = text_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x, float[M] z) => (float[K] y) { y = Add(x, z) }'
    )
    with pytest.raises(ModelError, match="running Add node") as caught:
        Session(model).run({"x": np.zeros(3, np.float32), "z": np.zeros(4, np.float32)})
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_broken_models_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_text("not a model")
    unknown = text_model(
        '<ir_version: 8, opset_import: ["": 17, "far": 1]> g (float[2] x) => (float[2] y) { y = far.Out(x) }'
    )
    for model, says in (
        (junk, "junk.onnx.*[Pp]rotobuf parsing failed"),
        (conv_model()[:60], "cannot load the model"),
        (unknown, "far:Out"),
        (tmp_path / "none.onnx", "none.onnx' is not a file"),
    ):
        with pytest.raises(ModelError, match=says) as caught:
            Session(model)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_providers_are_checked() -> None:
    assert runtime.check_provider("cpu") == "CPUExecutionProvider"
    with pytest.raises(OptionError, match=r"unknown provider 'gpu'; known are .*cuda"):
        Target(provider="gpu")
    with pytest.raises(OptionError, match="unknown provider"):
        runtime.check_provider("CPUExecutionProvider")
    with pytest.raises(OptionError, match="at least 1"):
        Target(threads=0)


def test_a_provider_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="pip uninstall onnxruntime, then pip install onnxruntime-gpu"):
        Session(ADD, Target(provider="cuda"))
    with pytest.raises(ProviderError, match="install a build of onnxruntime that has CoreML"):
        runtime.check_provider("coreml")


def test_a_silent_fallback_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(ProviderError, match="fell back to the CPU"):
        Session(ADD, Target(provider="cuda"))


def test_a_provider_that_did_not_start_names_the_library_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    assert providers.missing("cuda") is None
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"not a library")
    assert "providers_cuda.so" in (providers.missing("cuda") or "")


def test_two_builds_over_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("onnxruntime", "onnxruntime-gpu"):
            return "1.32.0"
        raise providers.metadata.PackageNotFoundError

    monkeypatch.setattr(providers.metadata, "version", version)
    providers._check_builds.cache_clear()
    with pytest.raises(
        ProviderError, match=r"onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.32\.0 are installed"
    ):
        Session(ADD)
    monkeypatch.undo()
    providers._check_builds.cache_clear()
    assert Session(ADD).run(FEEDS)


def test_options_reach_the_provider_and_what_rounds_is_off_for_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Started:
        def __init__(self, _: object, __: object, names: list[str], settings: list[dict], **___: object):
            seen.append(dict(zip(names, settings, strict=True)))

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list:
            return []

        get_outputs = get_inputs

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", Started)
    deployed = Target("cuda", options=(("cudnn_conv_algo_search", "HEURISTIC"), ("enable_cuda_graph", "1")))
    Session(ADD, deployed)
    Session(ADD, deployed.precise)
    assert seen[0] == {
        both[0]: {"cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "1"},
        both[1]: {},
    }
    assert seen[1][both[0]] == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    assert deployed.graphs
    assert not deployed.precise.graphs


def test_an_option_that_a_provider_does_not_know_is_one_line() -> None:
    with pytest.raises(OptionError, match="'cpu' takes no options, and 'use_tf32' was given"):
        Target(options=(("use_tf32", "0"),))


def test_what_is_bound_to_a_device_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.session, "DEVICES", {"cpu": "cpu"})
    session = Session(ADD)
    bindings = []
    make = session._session.io_binding
    monkeypatch.setattr(session, "_session", Watched(session._session, bindings, make))
    session.bound(FEEDS)()
    (binding,) = bindings
    y, z = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(y, np.tile([1, 2, 3, 4], (3, 1)))
    np.testing.assert_array_equal(z, [-5, -6])
    with pytest.raises(ModelError, match="failed to run"):
        session.bound({**FEEDS, "x": np.zeros((3, 5), np.float32)})()


class Watched:
    """A session whose bindings are kept."""

    def __init__(self, session, bindings, make) -> None:
        self._session, self._bindings, self._make = session, bindings, make

    def io_binding(self):
        self._bindings.append(self._make())
        return self._bindings[-1]

    def run_with_iobinding(self, binding) -> None:
        self._session.run_with_iobinding(binding)


def test_graphs_want_outputs_of_fixed_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.session, "DEVICES", {"cpu": "cpu"})
    recorded = property(lambda _: True)
    monkeypatch.setattr(Target, "graphs", recorded)
    with pytest.raises(OptionError, match=r"enable_cuda_graph needs outputs of fixed sizes, and 'y'.*'N', 4"):
        Session(ADD).bound(FEEDS)
    x = np.ones((1, 3, 4, 4), np.float32)
    Session(conv_model()).bound({"x": x})()


def test_a_pool_is_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.target, "cores", lambda: 1)
    assert not Target().parallel
    assert not Target(threads=1).parallel
    assert Target(threads=2).parallel
    assert Target(threads=2).threaded
    assert not Target("cuda", threads=2).threaded
    monkeypatch.setattr(runtime.target, "cores", lambda: 4)
    assert Target().parallel
    assert not Target(threads=1).parallel


def test_optimized_shows_the_layout_of_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.ModelProto.FromString(runtime.optimized(conv_model()))
    blocked = [node for node in model.graph.node if node.domain == "com.microsoft.nchwc"]
    if blocked:  # one output channel is padded to a whole block
        weights = {each.name: each.dims[0] for each in model.graph.initializer}
        assert weights[blocked[0].input[1]] in (4, 8, 16)
    assert capfd.readouterr() == ("", "")


def test_optimized_is_the_model_as_it_came_where_a_provider_compiles_it(monkeypatch) -> None:
    """As OpenVINO does: ONNX Runtime refuses to write down what came of it."""
    plain = profiler.load

    def load(source, target, options, label):
        if target.provider == "openvino":
            raise ModelError("ONNX Runtime cannot load the model: it contains compiled nodes. Please disable")
        return plain(source, target, options, label)

    monkeypatch.setattr(profiler, "load", load)
    model = onnx.ModelProto.FromString(runtime.optimized(conv_model(), Target("openvino")))
    assert [(node.op_type, node.domain) for node in model.graph.node] == [("Conv", "")]


def test_conditions_tell_targets_and_processors_apart(monkeypatch) -> None:
    plain = runtime.conditions(Target(threads=1))
    assert plain == runtime.conditions(Target(threads=1))
    assert plain["onnxruntime"] == runtime.versions()["onnxruntime"]
    for other in (Target(), Target(threads=2), Target(threads=1, spinning=False), Target("xnnpack", 1)):
        assert runtime.conditions(other) != plain
    flags = "model name : Virtual CPU\nflags : fpu sse {}\n"
    found = []
    for able in ("", "avx2"):
        monkeypatch.setattr(runtime.machine, "_cpuinfo", lambda able=able: flags.format(able))
        found.append(runtime.conditions(Target(threads=1)))
    assert found[0]["processor"] == found[1]["processor"]
    assert found[0] != found[1]


def test_a_device_that_cannot_be_told_apart_has_no_conditions(monkeypatch) -> None:
    monkeypatch.setattr(ort, "get_ep_devices", list, raising=False)
    assert runtime.conditions(Target("cuda")) is None
    assert runtime.conditions(Target("cpu")) is not None


def test_versions_name_what_a_measurement_depends_on() -> None:
    found = runtime.versions()
    assert list(found) == [
        "onnxruntime",
        "providers",
        "processor",
        "cores",
        "system",
        "python",
        "numpy",
        "rewriter",
    ]
    assert all(found.values())
    assert int(found["cores"]) >= 1
