"""Makes everything in this folder: the data parts, the trained network, its ONNX file and the checksums.

    python models/make_digits.py [--output FOLDER] [--epochs N]

Needs the extra `train` (torch, scikit-learn, onnxscript); nothing is downloaded. One thread and fixed seeds:
the same machine and the same library versions give the same files.
"""

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 0
SIZE = 32
CALIBRATION, EVALUATION = 300, 497  # of 1,797; the other 1,000 train
BATCH = 50
FILES = ("digits.onnx", "digits_calibration.npz", "digits_evaluation.npz")


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), the basic block of He et al. 2016."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        self.shortcut_bn: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_bn(self.shortcut(x))
        return torch.relu(y + x)

    def fold(self) -> None:
        """Moves every BatchNormalization into the convolution before it."""
        self.conv1, self.bn1 = fuse_conv_bn_eval(self.conv1, self.bn1), nn.Identity()
        self.conv2, self.bn2 = fuse_conv_bn_eval(self.conv2, self.bn2), nn.Identity()
        if self.shortcut is not None:
            self.shortcut = fuse_conv_bn_eval(self.shortcut, self.shortcut_bn)
            self.shortcut_bn = nn.Identity()


class DigitNet(nn.Module):
    """A residual network: stem 64, three stages of 128 channels with one basic block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(64)
        self.stage1 = nn.Sequential(Block(64, 128, 1))
        self.stage2 = nn.Sequential(Block(128, 128, 2))
        self.stage3 = nn.Sequential(Block(128, 128, 2))
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(image)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    def fold(self) -> None:
        """Moves every BatchNormalization into the convolution before it."""
        self.stem, self.stem_bn = fuse_conv_bn_eval(self.stem, self.stem_bn), nn.Identity()
        for stage in (self.stage1, self.stage2, self.stage3):
            for block in stage:
                block.fold()


def load_parts() -> dict[str, tuple[Tensor, Tensor]]:
    """Images `[n, 1, 32, 32]` in [0, 1] and labels `[n]` of three disjoint, stratified parts."""
    digits = load_digits()
    small = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    images = functional.interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    rest, evaluation = train_test_split(
        np.arange(len(labels)), test_size=EVALUATION, random_state=SEED, stratify=labels
    )
    train, calibration = train_test_split(
        rest, test_size=CALIBRATION, random_state=SEED, stratify=labels[rest]
    )
    parts = {"train": train, "calibration": calibration, "evaluation": evaluation}
    return {name: (images[np.sort(part)], labels[np.sort(part)]) for name, part in parts.items()}


def augment(images: Tensor) -> Tensor:
    """The images under small random rotations, scalings, shears and shifts."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.5  # within 14 degrees
    scale = 1 + (torch.rand(n) - 0.5) * 0.3
    shear = (torch.rand(n) - 0.5) * 0.3
    shift = (torch.rand(n, 2) - 0.5) * 0.3  # within 2.4 pixels
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.cos(angle) * scale
    theta[:, 0, 1] = -torch.sin(angle) * scale + shear
    theta[:, 1, 0] = torch.sin(angle) * scale
    theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", align_corners=False)


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Fits the network; the last weights are kept, so no part but the training one has a say."""
    net.to(memory_format=torch.channels_last)
    steps = len(images) // BATCH
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": plain}], lr=0.1, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=epochs * steps, pct_start=0.2
    )
    net.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for chosen in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            batch = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(net(batch), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:3d} of {epochs}  loss {total / steps:.4f}  {seconds:.1f} s", flush=True)


def export(net: DigitNet, path: Path) -> None:
    """Writes one standard ONNX file: BatchNormalization folded, weights inside, dynamic batch."""
    net = net.to(memory_format=torch.contiguous_format).eval()
    net.fold()
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, SIZE, SIZE),),
        path,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    model.doc_string = "Residual network for handwritten digits, 32 x 32 pixels in [0, 1], ten scores."
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "digits", ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # shapes are inferred again, without the exporter's notes
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    spell_head(graph)
    rename(graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def spell_head(graph: onnx.GraphProto) -> None:
    """Writes the mean over the pixels and the reshape after it as GlobalAveragePool and Flatten."""
    for node in graph.node:
        if node.op_type in ("ReduceMean", "Reshape"):
            node.op_type = {"ReduceMean": "GlobalAveragePool", "Reshape": "Flatten"}[node.op_type]
            del node.input[1:], node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def rename(graph: onnx.GraphProto) -> None:
    """Names a node with weights after its module, its activation and its block's sum after it."""
    renamed: dict[str, str] = {}
    for node in graph.node:
        module = next((name.removesuffix(".weight") for name in node.input if name.endswith(".weight")), "")
        feeder = renamed.get(node.input[0], "")
        match node.op_type:
            case "Relu":
                module = f"{feeder.removesuffix('.add')}.relu"
            case "Add":
                module = f"{feeder.rpartition('.')[0]}.add"
            case "GlobalAveragePool" | "Flatten":
                module = node.op_type.lower()
        node.name = module
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        if node.output[0] not in (value.name for value in graph.output):
            renamed[node.output[0]] = module
            node.output[0] = module


def measure_accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that ONNX Runtime classifies as labelled."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images})
    return float(np.mean(scores.argmax(1) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    parts = load_parts()
    net = DigitNet()
    train(net, *parts["train"], options.epochs)

    options.output.mkdir(parents=True, exist_ok=True)
    model, calibration, evaluation = (options.output / name for name in FILES)
    export(net, model)
    np.savez_compressed(calibration, image=parts["calibration"][0].numpy())
    images, labels = (part.numpy() for part in parts["evaluation"])
    np.savez_compressed(evaluation, image=images, labels=labels)
    sums = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in (model, calibration, evaluation)
    ]
    (options.output / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    correct = measure_accuracy(model, images, labels)
    print(f"{model}: {model.stat().st_size:,} bytes, evaluation accuracy {100 * correct:.2f} %")


if __name__ == "__main__":
    main()
