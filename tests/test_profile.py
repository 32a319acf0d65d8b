"""Kernels of the runtime, told to the layers of the model."""

import graphs
import numpy as np
import pytest

from rewriter import graph, profile, runtime
from rewriter.runtime import Kernel, Target


def fixed(name, zoo):
    model = graph.load(zoo / "models" / f"{name}.onnx")
    return graph.with_shapes(model, {spec.name: (1, *spec.shape[1:]) for spec in model.inputs})


def measured(model, rng):
    layers = graph.inventory(model, dict).layers
    return layers, profile.profile(model, layers, graphs.random_feeds(model, rng), Target(threads=1))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    found = runtime.profiled
    monkeypatch.setattr(runtime, "profiled", lambda *given, **_: found(*given, seconds=0.01))


def test_fused_layers(rng):
    text = """
    agraph (float[1,8,16,16] x) => (y) {
      [one] a = Conv<pads=[1,1,1,1]>(x, w)
      [norm] b = BatchNormalization(a, g, h, m, v)
      [act] c = Relu(b)
      [two] d = Conv<pads=[1,1,1,1]>(c, u)
      [sum] e = Add(d, c)
      [act2] f = Relu(e)
      [concat] j = Concat<axis=1>(f, c)
      [alone] k = BatchNormalization(j, g2, h2, m2, v2)
      [pool] p = GlobalAveragePool(k)
      [flat] q = Flatten(p)
      [head] r = MatMul(q, z)
      [bias] s = Add(r, i)
      [soft] y = Softmax(s)
    }
    """
    ones = {name: np.ones(8, np.float32) for name in "ghmv"}
    ones |= {f"{name}2": np.ones(16, np.float32) for name in "ghmv"}
    model = graphs.model(
        text,
        w=graphs.random(rng, 8, 8, 3, 3),
        u=graphs.random(rng, 8, 8, 3, 3),
        z=graphs.random(rng, 16, 5),
        i=graphs.random(rng, 5),
        **ones,
    )
    layers, found = measured(model, rng)
    assert [layer.output for layer in layers] == ["a", "d", "r"]
    assert set(found.layers) == {"a", "d", "r"}
    assert all(ms > 0 for ms in found.layers.values())
    assert found.total_ms == pytest.approx(sum(found.layers.values()) + sum(found.others.values()))
    # which no convolution in front of it is charged with, though it may be run as one
    assert "BatchNormalization" in found.others
    assert list(found.others.values()) == sorted(found.others.values(), reverse=True)


@pytest.mark.parametrize(
    "name", ["ultraface_version-RFB-320", "cifar10_mlperftiny_resnet8", "mnist_ort", "lprnet_plates"]
)
def test_every_layer_of_a_trained_model_has_a_time(rng, zoo, name):
    """Unnamed nodes, sums fused into convolutions, MatMul with Add, grids of kernels."""
    layers, found = measured(fixed(name, zoo), rng)
    assert set(found.layers) == {layer.output for layer in layers}


def test_a_kernel_whose_node_is_unknown_belongs_to_no_layer(monkeypatch, rng):
    model = graphs.model(
        "agraph (float[1,4] x) => (float[1,4] y) { [one] y = MatMul(x, w) }", w=graphs.random(rng, 4, 4)
    )
    kernels = (Kernel("TensorrtEngine_0", "MatMul", 3.0), Kernel("one", "Gemm", 1.0))
    monkeypatch.setattr(runtime, "profiled", lambda *_, **__: kernels)
    found = measured(model, rng)[1]
    assert (found.total_ms, found.layers, found.others) == (4.0, {"y": 1.0}, {"MatMul": 3.0})


def test_a_loop_is_one_kernel():
    text = """
    agraph (float[4] x, int64 n, bool c) => (float[4] y) {
      [loop] y = Loop(n, c, x) <body = b (int64 i, bool k, float[4] t) => (bool l, float[4] u) {
        l = Identity(k)
        [step] u = Mul(t, t)
      }>
    }
    """
    data = graphs.model(text).bytes()
    feeds = {"x": np.ones(4, np.float32), "n": np.array(3), "c": np.array(True)}
    kernels = runtime.profiled(data, feeds, Target(threads=1))
    assert [kernel.op_type for kernel in kernels] == ["Loop"]
    assert kernels[0].ms > 0
