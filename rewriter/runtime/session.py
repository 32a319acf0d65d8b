"""Sessions of ONNX Runtime with pinned options.

Everything that is timed or compared runs through `Session`, so both sides of a comparison get the same
options: the target's threads, one operator at a time, every graph optimisation (as users deploy; at lower
levels layouts and fusions, and with them the ranking of rewrites, come out differently) and no silent change
of provider.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from rewriter.errors import ModelError, OptionError, ProviderError, RewriterError
from rewriter.runtime.providers import DEVICES, PROVIDERS, check_provider, missing
from rewriter.runtime.target import Target
from rewriter.serialized import Serialized, write_model

_DTYPES: Final = MappingProxyType(
    {
        "float": "float32",
        "double": "float64",
        "float16": "float16",
        "bool": "bool",
        "string": "object",
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }
)

# A model in memory of so many bytes goes to ONNX Runtime through a file, for it copies every weight that it
# is given: 144 million parameters peak at 1.1 GB instead of 1.7 (measured).
_LARGE: Final = 1 << 27

ModelSource = Serialized | str | os.PathLike[str] | Callable[[], Serialized]
"""A model: serialised, its path, or what serialises it, which then is not kept."""

# Providers with pools of threads of their own, and the option that says how large these are.
_POOLS: Final = MappingProxyType({"openvino": "num_of_threads", "xnnpack": "intra_op_num_threads"})

# Errors reach the user as one line of an exception; what ONNX Runtime logs beside them would be a second one.
_LOG_FATAL: Final = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """An input or output of a model.

    Attributes:
        name: The name in the graph.
        shape: Sizes; a dynamic dimension is its symbol or None.
        dtype: The element type, or None where numpy has none (bfloat16, sequences, maps).
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any] | None


class Session:
    """A loaded model.

    Args:
        model: The serialised model, its path, or what serialises it.
        target: How it is deployed.
        label: What messages call it; by default its path, else "the model".

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        ProviderError: The provider cannot be used here; a silent fallback to the CPU counts as that.
    """

    def __init__(self, model: ModelSource, target: Target | None = None, label: str | None = None) -> None:
        self.target = target or Target()
        self._label = label or (
            f"'{os.fspath(model)}'" if isinstance(model, str | os.PathLike) else "the model"
        )
        with loadable(model) as source:
            self._session = load(source, self.target, session_options(self.target), self._label)
        self.inputs: Final = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs: Final = tuple(_spec(node) for node in self._session.get_outputs())

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that must be fed, in the graph's order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the graph's order."""
        return tuple(spec.name for spec in self.outputs)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns the outputs by name: all of them, or those asked for, in that order.

        Raises:
            ModelError: A feed does not fit the model, or a node of the model fails on it.
        """
        names = self.output_names if outputs is None else tuple(outputs)
        with self._told():
            values = self._session.run(names, dict(feeds))
        return dict(zip(names, values, strict=True))

    def bound(self, feeds: Mapping[str, Any]) -> Callable[[], object]:
        """Returns what runs the model once on these inputs, with nothing copied to or from a device.

        On a provider with memory of its own the inputs are there beforehand and the outputs stay there.

        Raises:
            ModelError: A feed does not fit the model; when called, also where a node fails.
            OptionError: CUDA graphs were asked for, and an output has no fixed size.
        """
        device = DEVICES.get(self.target.provider)
        if device is None:
            return partial(self.run, feeds)
        place = (device, int(dict(self.target.options).get("device_id", 0)))
        binding = self._session.io_binding()
        with self._told():
            for name, array in feeds.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, *place))
            for spec in self.outputs:
                if self.target.graphs:
                    value = ort.OrtValue.ortvalue_from_shape_and_type(self._fixed(spec), spec.dtype, *place)
                    binding.bind_ortvalue_output(spec.name, value)
                else:
                    binding.bind_output(spec.name, *place)

        def run() -> None:
            with self._told():
                self._session.run_with_iobinding(binding)
                binding.synchronize_outputs()

        return run

    def _fixed(self, spec: Spec) -> list[int]:
        """The sizes of an output that is recorded in a CUDA graph, and so always lies in the same memory."""
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if len(sizes) < len(spec.shape) or spec.dtype is None:
            raise OptionError(
                f"enable_cuda_graph needs outputs of fixed sizes, and {spec.name!r} of {self._label} has "
                f"{list(spec.shape)}; export the model with fixed sizes, or leave that option out"
            )
        return sizes

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever ONNX Runtime raises as one line."""
        try:
            yield
        except RewriterError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self._label} failed to run: {one_line(error)}; "
                "check the names, shapes and types of its inputs"
            ) from error


def session_options(target: Target) -> ort.SessionOptions:
    """What every session of a target is made with."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if target.optimizing else levels.ORT_DISABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = target.threads or 0  # 0 is the default: one a physical core, pinned to it
    options.log_severity_level = _LOG_FATAL
    if not target.spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = target.arena
    return options


@contextlib.contextmanager
def loadable(model: ModelSource) -> Iterator[bytes | str | os.PathLike[str]]:
    """What ONNX Runtime loads a model from; large models made here lie in a file for the time being."""
    if isinstance(model, bytes | str | os.PathLike):
        yield model
        return
    data = model() if callable(model) else model
    if isinstance(data, bytes) and len(data) < _LARGE:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="conv-rewriter-") as folder:
        path = Path(folder, "model.onnx")
        write_model(data, path)
        del data
        yield path


def load(
    model: bytes | str | os.PathLike[str], target: Target, options: ort.SessionOptions, label: str
) -> ort.InferenceSession:
    """ONNX Runtime's own session on the target's provider.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        OptionError: The provider does not take one of its options.
        ProviderError: The provider cannot be used here; a silent fallback to the CPU counts as that.
    """
    wanted = check_provider(target.provider)
    names = [wanted]
    if target.provider == "tensorrt" and PROVIDERS["cuda"][0] in ort.get_available_providers():
        names.append(PROVIDERS["cuda"][0])  # nodes that TensorRT leaves would otherwise run on the CPU
    if target.provider != "cpu":
        names.append(PROVIDERS["cpu"][0])
    settings: list[dict[str, str]] = [{} for _ in names]
    if target.provider in _POOLS and target.threads is not None:
        settings[0][_POOLS[target.provider]] = str(target.threads)
    settings[0].update(target.options)
    if target.provider != "cpu":
        # what fails in the library of a provider is logged before any session has options
        ort.set_default_logger_severity(_LOG_FATAL)
    source = model if isinstance(model, bytes) else os.fspath(model)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ModelError(f"{label} is not a file; check the path")
    try:
        session = ort.InferenceSession(source, options, names, settings, enable_fallback=0)
    except Exception as error:
        reason = one_line(error)
        if target.options and re.search(r"\boptions?\b", reason, re.IGNORECASE):
            raise OptionError(f"provider {target.provider!r} refuses its options: {reason}") from error
        raise ModelError(f"ONNX Runtime cannot load {label}: {reason}") from error
    if wanted not in session.get_providers():
        raise ProviderError(
            f"provider {target.provider!r} did not start and ONNX Runtime fell back to the CPU: "
            f"{missing(target.provider) or 'no device, or its driver does not answer'}; "
            "install what is missing, or use --provider cpu"
        )
    return session


def _spec(node: Any) -> Spec:
    found = re.fullmatch(r"tensor\((\w+)\)", node.type)
    name = _DTYPES.get(found[1]) if found else None
    return Spec(node.name, tuple(node.shape or ()), np.dtype(name) if name else None)


def one_line(error: Exception) -> str:
    """Returns ONNX Runtime's message without its code, source file and C++ signature, on one line."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S*?onnxruntime\S*:\d+ .*?\)(?: const)? (?=[A-Z][a-z]|axis)", "", text)
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(" .")
