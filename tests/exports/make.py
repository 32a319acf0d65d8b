"""Makes the models in this folder: small networks as the exporters of training frameworks write them.

    python tests/exports/make.py [--output FOLDER]

Needs the extra `train` (torch, onnxscript); the tests read what is here and need none of it. The weights are
drawn with a fixed seed, at the scale and with the decaying singular values that training leaves. Of what an
exporter writes nothing is changed but the notes on nodes that name files of this machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

SEED = 0
OPSETS = {"torchscript": 17, "dynamo": 18}


class PreActivation(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), the block of He et al. 2016b."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        return self.conv2(torch.relu(self.bn2(y))) + self.shortcut(x)


class Residual(nn.Module):
    """A classifier: a stem with BatchNormalization behind it, two pre-activation blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(PreActivation(12, 12, 1), PreActivation(12, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.silu(self.bn(self.stem(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """Two levels down and up again, once by a transposed convolution and once by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.bottom = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge = nn.Conv2d(8 + 8 + 16, 16, 3, padding=1)
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.leaky_relu(self.enter(x), 0.1)
        second = functional.leaky_relu(self.norm(self.down(functional.max_pool2d(first, 2))), 0.1)
        third = functional.leaky_relu(self.bottom(functional.avg_pool2d(second, 2)), 0.1)
        near = functional.interpolate(third, size=second.shape[2:], mode="bilinear", align_corners=False)
        wide = functional.interpolate(near, scale_factor=2.0, mode="nearest")
        joined = torch.cat([first, self.up(second), wide], 1)
        return torch.sigmoid(self.leave(functional.leaky_relu(self.merge(joined), 0.1)))


class Temporal(nn.Module):
    """Dilated convolutions over time with normalised weights, as in Bai et al. 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(8, 16, 5, 2, 2)
        self.dilated = nn.ModuleList(weight_norm(nn.Conv1d(16, 16, 3, dilation=step)) for step in (1, 2))
        self.leave = nn.Conv1d(16, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.enter(x))
        for step, layer in zip((1, 2), self.dilated, strict=True):
            x = torch.relu(layer(functional.pad(x, (2 * step, 0)))) + x
        return functional.log_softmax(self.leave(x).mean(2), 1)


class Volume(nn.Module):
    """A small net over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv3d(1, 6, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm3d(6)
        self.down = nn.Conv3d(6, 8, 3, 2, 1)
        self.flat = nn.Conv3d(8, 8, (1, 3, 3), 1, (0, 1, 1))
        self.up = nn.ConvTranspose3d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.enter(x)))
        return torch.softmax(self.up(torch.relu(self.flat(torch.relu(self.down(x))))), 1)


class Cell(nn.Module):
    """A gated recurrent unit whose products are convolutions (Ballas et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        reset, update = torch.sigmoid(self.gates(torch.cat([x, state], 1))).chunk(2, 1)
        fresh = torch.tanh(self.candidate(torch.cat([x, reset * state], 1)))
        return (1 - update) * state + update * fresh


class Recurrent(nn.Module):
    """A convolution for each frame in a loop over time, with another before and behind the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 12, 3, padding=1)
        self.cell = Cell(12)
        self.leave = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(self.enter(x[:, 0]))
        for step in range(x.size(1)):
            state = self.cell(torch.relu(self.enter(x[:, step])), state)
        return self.leave(state)


class Scanned(Recurrent):
    """The same with a loop that the newer exporter takes; before it, all frames are convolved at once."""

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        frames = torch.relu(self.enter(x.flatten(0, 1))).unflatten(0, (1, x.shape[1]))

        def step(state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
            state = self.cell(frame, state)
            return state, state.mean((1, 2, 3))

        state, _ = scan(step, torch.zeros_like(frames[:, 0]), frames.transpose(0, 1))
        return self.leave(state)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[int, str]]] = {
    "residual": (Residual, (2, 3, 16, 16), {0: "batch"}),
    "unet": (UNet, (2, 1, 24, 24), {0: "batch", 2: "height", 3: "width"}),
    "temporal": (Temporal, (2, 8, 40), {0: "batch", 2: "time"}),
    "volume": (Volume, (1, 1, 8, 12, 12), {}),
    "recurrent": (Recurrent, (1, 5, 2, 10, 10), {1: "frames"}),
}
"""Networks, the shapes they are traced with, and which axes of their input are dynamic."""


def fill(module: nn.Module) -> None:
    """Draws weights for a whole network."""
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                for values in (child.weight, child.running_var):
                    values.uniform_(0.6, 1.6)
                for values in (child.bias, child.running_mean):
                    values.normal_(0, 0.2)
            elif isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                values = weight(tuple(child.weight.shape))
                child.weight = values if is_parametrized(child) else nn.Parameter(values)
            elif isinstance(child, nn.ConvTranspose2d | nn.ConvTranspose3d):
                values = weight(tuple(child.weight.transpose(0, 1).shape))
                child.weight = nn.Parameter(values.transpose(0, 1).contiguous())
            if (bias := getattr(child, "bias", None)) is not None:
                bias.normal_(0, 0.1)


def weight(shape: tuple[int, ...]) -> Tensor:
    """A kernel `[M, C, *kernel]` that keeps the variance through a Relu; its singular values decay."""
    left, values, right = torch.linalg.svd(torch.randn(shape).flatten(1), full_matrices=False)
    matrix = left @ torch.diag(values * 0.75 ** torch.arange(len(values))) @ right
    return (matrix * (2 / matrix.shape[1]) ** 0.5 / matrix.std()).reshape(shape)


def export(name: str, exporter: str, path: Path) -> None:
    """Writes one network by one of PyTorch's two exporters."""
    make, shape, dynamic = NETS[name]
    torch.manual_seed(SEED)
    net = Scanned() if (name, exporter) == ("recurrent", "dynamo") else make()
    fill(net.eval())
    common = {"input_names": ["input"], "output_names": ["output"], "opset_version": OPSETS[exporter]}
    sample = torch.randn(shape)
    if exporter == "dynamo":
        axes = {axis: Dim(label) for axis, label in dynamic.items()}
        torch.onnx.export(
            net,
            (sample,),
            path,
            dynamo=True,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
            **common,
        )
        forget_files(path)
        return
    torch.onnx.export(
        torch.jit.script(net) if name == "recurrent" else net,
        (sample,),
        path,
        dynamo=False,
        dynamic_axes={"input": dynamic},
        # as for further training: BatchNormalization and the norms of weights stay nodes
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        **common,
    )


def forget_files(path: Path) -> None:
    """Takes out the notes that say which lines of which files made a node."""
    model = onnx.load(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for body in (entry.g for entry in node.attribute if entry.HasField("g")):
            nodes.extend(body.node)
        kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def channels_last(path: Path) -> None:
    """Writes a graph as converters from TensorFlow do at first: with two Transposes around each Conv."""
    torch.manual_seed(SEED)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}

    def add(op_type: str, name: str, *given: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, given, [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    def held(name: str, values: np.ndarray) -> str:
        weights[name] = values
        return name

    def convolution(given: str, layer: str, kernel: np.ndarray, **attributes: object) -> str:
        """Conv2D and BiasAdd; the kernel is `[kh, kw, C, M]` as TensorFlow has it, turned by a node."""
        turned = add("Transpose", f"{layer}/kernel__1", held(f"{layer}/kernel", kernel), perm=[3, 2, 0, 1])
        first = add("Transpose", f"{layer}/Conv2D__2", given, perm=[0, 3, 1, 2])
        found = add("Conv", f"{layer}/Conv2D", first, turned, kernel_shape=kernel.shape[:2], **attributes)
        last = add("Transpose", f"{layer}/Conv2D__3", found, perm=[0, 2, 3, 1])
        bias = np.float32(np.random.default_rng(len(nodes)).normal(0, 0.1, kernel.shape[3]))
        return add("Add", f"{layer}/BiasAdd", last, held(f"{layer}/bias", bias))

    def kernel(size: int, channels_in: int, channels: int) -> np.ndarray:
        return weight((channels, channels_in, size, size)).numpy().transpose(2, 3, 1, 0).copy()

    same = {"auto_pad": "SAME_UPPER"}
    stem = convolution("image", "net/stem", kernel(3, 3, 16), strides=[2, 2], **same)
    first = add("Relu", "net/stem/Relu", stem)
    deep = convolution(first, "net/depthwise", kernel(3, 1, 16), group=16, pads=[1, 1, 1, 1])
    deep = add("Relu", "net/depthwise/Relu", deep)
    deep = convolution(deep, "net/pointwise", kernel(1, 16, 16))
    deep = convolution(add("Relu", "net/pointwise/Relu", deep), "net/wide", kernel(3, 16, 16), **same)
    joined = add("Relu", "net/add/Relu", add("Add", "net/add", deep, first))
    mean = add("ReduceMean", "net/mean", joined, axes=[1, 2], keepdims=0)
    head = held("net/head/kernel", weight((5, 16)).numpy().T.copy())
    nodes.append(helper.make_node("MatMul", [mean, head], ["scores"], "net/head"))
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["unk__1", 16, 18, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["unk__2", 5])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 15)]), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # of the older exporter, that it is the older one
    for name in NETS:
        for exporter in OPSETS:
            export(name, exporter, folder / f"{name}_{exporter}.onnx")
    channels_last(folder / "channels_last.onnx")


if __name__ == "__main__":
    main()
