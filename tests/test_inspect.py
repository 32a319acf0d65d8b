"""`inspect`: the function, and the command around it."""

import json

import graphs
import numpy as np
import onnx
import pytest
import residual

import rewriter
from rewriter import cli, inspect
from rewriter.errors import ModelError, OptionError, ProviderError

EVIL = "a`b[bold]<script>\x1b[2J|c"
PASSES = {
    "depthwise_pointwise",
    "pointwise_depthwise",
    "grouped_pointwise",
    "channel_svd",
    "spatial_svd",
    "tucker2",
    "winograd",
}


@pytest.fixture
def network(rng):
    return residual.network(rng)


@pytest.fixture
def run(network, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with models; returns status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network, "net.onnx")

    def call(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", *map(str, args)])
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_network(network):
    found = inspect(network)
    assert [each.layer.name for each in found.layers] == ["stem", "one", "two", "down", "head"]
    assert found.macs == (8 * 16 + 2 * 16 * 16) * 9 * 144 + 16 * 16 * 9 * 36 + 5 * 16
    assert found.params == (8 * 16 + 3 * 16 * 16) * 9 + 3 * 16 + 5 * 16 + 5
    assert found.inputs == {"x": (1, 8, 12, 12)}
    assert found.total_ms is None
    assert [each.layer.window and each.layer.window.receptive_field for each in found.layers] == [
        (3, 3),
        (5, 5),
        (7, 7),
        (9, 9),
        None,
    ]


def test_passes_or_why_not(network):
    found = inspect(network)
    assert set(found.passes) >= PASSES
    stem, *_, down, head = found.layers
    for each in (stem, down):
        assert set(each.passes) | {refusal.pass_name for refusal in each.refusals} == set(found.passes)
    assert "channel_svd" in down.passes
    (winograd,) = (refusal for refusal in down.refusals if refusal.pass_name == "winograd")
    assert "strides" in winograd.reason
    assert head.passes == ()
    assert [(refusal.pass_name, refusal.reason) for refusal in head.refusals] == [
        (None, "a Gemm; only Conv and ConvTranspose are rewritten")
    ]


def test_a_convolution_that_is_no_site():
    text = "agraph (float[1,4,8,8] x, float[2,4,3,3] k) => (float[1,2,6,6] y) { [c] y = Conv(x, k) }"
    (found,) = inspect(graphs.parse(text)).layers
    assert found.layer.macs == 2 * 36 * 36
    assert "a graph input" in found.refusals[0].reason


def test_batch_and_shapes(network):
    once, four = inspect(network), inspect(network, batch=4)
    assert (four.macs, four.params) == (4 * once.macs, once.params)
    assert inspect(network, shapes={"x": (4, 8, 12, 12)}).macs == four.macs
    open_sizes = graphs.parse(
        "agraph (float[N,4,h,w] x) => (float[N,2,p,q] y) { y = Conv(x, k) }",
        k=np.zeros((2, 4, 3, 3), np.float32),
    )
    assert inspect(open_sizes, shapes={"x": (1, 4, 7, 8)}).macs == 2 * 36 * 30
    assert inspect(open_sizes, shapes={"x": (1, 4, 7, 8)}, batch=3).layers[0].layer.out_shape[0] == 1
    with pytest.raises(OptionError, match="input 'x' has dynamic sizes; give them, as in --shape x:1,4,h,w"):
        inspect(open_sizes)
    with pytest.raises(OptionError, match="cannot be 1,3,7,8"):
        inspect(open_sizes, shapes={"x": (1, 3, 7, 8)})
    with pytest.raises(OptionError, match="no input 'z'"):
        inspect(network, shapes={"z": (1,)})
    with pytest.raises(ProviderError, match="cuda"):
        inspect(network, provider="cuda")


def test_shapes_that_only_a_run_tells():
    text = """
    agraph (float[1,4,8,8] x) => (float[1,2,h,w] y) {
      s = NonZero(x)
      c = Transpose(s)
      n = Shape(c)
      m = Gather(n, first)
      k = Div(m, m)
      f = Tile(x, k4)
      g = Mul(f, f)
      z = Concat<axis=0>(k, k, k, k)
      t = Tile(x, z)
      [last] y = Conv(t, w)
    }
    """
    model = graphs.parse(
        text, w=np.zeros((2, 4, 3, 3), np.float32), first=np.int64([0]), k4=np.int64([1, 1, 1, 1])
    )
    assert inspect(model).layers[0].layer.out_shape == (1, 2, 6, 6)


def test_times(network):
    found = inspect(network, profile=True, threads=1)
    assert all(each.ms > 0 for each in found.layers)
    shares = sum(each.share for each in found.layers)
    assert shares + sum(found.others_ms.values()) / found.total_ms == pytest.approx(1)


def test_what_is_printed(run):
    status, out, err = run("net.onnx")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "Input 'x': 1x8x12x12." in out
    assert out.splitlines()[-1] == "5 layers: 912 k MACs, 1.82 M FLOPs, 8.20 k parameters."
    assert "standard Conv" in out
    assert "3x3 s2" in out
    assert "share" not in out
    assert "A multiply-add is one MAC" in out
    assert "all kernels." in run("net.onnx", "--profile")[1]


def test_json(run):
    status, out, _ = run("net.onnx", "--json", "--batch", 2)
    values = json.loads(out)
    assert status == 0
    assert next(iter(values)) == "schema_version"
    assert values["layers"][3]["layer"]["window"]["strides"] == [2, 2]
    assert values["layers"][3]["layer"]["in_shape"] == [2, 16, 12, 12]
    assert values["settings"]["batch"] == 2
    assert "Infinity" not in out


def test_nothing_to_list(run):
    onnx.save(graphs.parse("agraph (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"), "relu.onnx")
    status, out, _ = run("relu.onnx")
    assert status == 0
    assert out.splitlines()[-1] == "0 layers: 0 MACs, 0 FLOPs, 0 parameters."


def test_what_is_not_counted_is_said(run, rng):
    text = 'agraph (float[2,4] x) => (float[2,4] y) { y = Einsum<equation="ij,jk->ik">(x, w) }'
    onnx.save(graphs.parse(text, w=graphs.random(rng, 4, 4)), "sum.onnx")
    assert "Warning: not counted are 1 Einsum." in run("sum.onnx")[1]


def test_hostile_names(run, network):
    for node in network.graph.node:
        node.name += EVIL
    network.graph.input[0].name = EVIL
    network.graph.node[0].input[0] = EVIL
    onnx.save(network, "evil.onnx")
    status, out, err = run("evil.onnx")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert "Input 'a`b[bold]<script>?[2J|c'" in out
    names = [each["layer"]["name"] for each in json.loads(run("evil.onnx", "--json")[1])["layers"]]
    assert names[0] == f"stem{EVIL}"


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["none.onnx"], 1, ["there is no model file 'none.onnx'", "check its name"]),
        (["text.onnx"], 1, ["'text.onnx' is not an ONNX model"]),
        (["net.onnx", "--batch", "0"], 2, ["0 is not in the range"]),
        (["net.onnx", "--shape", "x:1,9,12,12"], 2, ["input 'x'", "cannot be 1,9,12,12"]),
        (["net.onnx", "--shape", "x"], 2, ["is not of the form NAME:SIZES"]),
        (["net.onnx", "--provider", "gpu9"], 2, ["unknown provider 'gpu9'"]),
        (["fixed.onnx", "--batch", "2"], 2, ["--batch 2: the model fixes the batch of 'x' at 1"]),
        (["unknown.onnx"], 1, ["'unknown.onnx'", "Convolve"]),
        ([], 2, ["Missing argument"]),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, rng, args, status, words):
    (tmp_path / "text.onnx").write_text("this is no model\n" * 20)
    fixed = "agraph (float[1,4,8,8] x) => (y) { a = %s(x, w)\n y = Conv(a, w) }"
    weight = graphs.random(rng, 4, 4, 1, 1)
    onnx.save(graphs.parse(fixed % "Conv", w=weight), "fixed.onnx")
    onnx.save(graphs.parse(fixed % "Convolve", w=weight), "unknown.onnx")
    code, out, err = run(*args)
    assert (code, out) == (status, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_inspect_is_the_function(tmp_path):
    assert rewriter.inspect is inspect
    with pytest.raises(ModelError, match="no model file"):
        inspect(tmp_path / "none.onnx")


def test_zoo(zoo_model):
    """Every model is listed whole, and every convolution's name is one that the passes were asked about."""
    model = onnx.load(zoo_model, load_external_data=False)
    defaults = {tensor.name for tensor in model.graph.initializer}
    (given,) = (value for value in model.graph.input if value.name not in defaults)
    sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    shape = tuple(size or (64 if axis else 1) for axis, size in enumerate(sizes))
    found = inspect(zoo_model, shapes={given.name: shape})
    listed = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    assert [each.layer.op_type for each in found.layers] == [
        node.op_type for node in model.graph.node if node.op_type in listed
    ]
    for each in found.layers:
        assert each.passes or each.refusals
        if each.layer.op_type == "Conv":
            assert not any("ConvTranspose are rewritten" in refusal.reason for refusal in each.refusals)
