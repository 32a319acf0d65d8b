"""The execution providers that ONNX Runtime knows, and whether this machine has them."""

import contextlib
import ctypes
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final

import onnxruntime as ort

from rewriter.errors import OptionError, ProviderError

# short name -> (ONNX Runtime's name, the package on PyPI that carries it, if one does)
PROVIDERS: Final[Mapping[str, tuple[str, str | None]]] = MappingProxyType(
    {
        "acl": ("ACLExecutionProvider", None),
        "armnn": ("ArmNNExecutionProvider", None),
        "cann": ("CANNExecutionProvider", "onnxruntime-cann"),
        "coreml": ("CoreMLExecutionProvider", None),
        "cpu": ("CPUExecutionProvider", "onnxruntime"),
        "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
        "dml": ("DmlExecutionProvider", "onnxruntime-directml"),
        "dnnl": ("DnnlExecutionProvider", None),
        "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
        "nnapi": ("NnapiExecutionProvider", None),
        "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
        "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
        "rocm": ("ROCMExecutionProvider", "onnxruntime-rocm"),
        "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
        "webgpu": ("WebGpuExecutionProvider", None),
        "xnnpack": ("XnnpackExecutionProvider", None),
    }
)


# What has memory of its own, and ONNX Runtime's name of it.
DEVICES: Final[Mapping[str, str]] = MappingProxyType({"cuda": "cuda", "tensorrt": "cuda", "dml": "dml"})


def check_provider(name: str) -> str:
    """Returns ONNX Runtime's name of a provider that the installed build offers.

    Raises:
        OptionError: No provider has that name.
        ProviderError: The installed build of ONNX Runtime lacks it, or there are several builds.
    """
    if name not in PROVIDERS:
        raise OptionError(f"unknown provider {name!r}; known are {', '.join(PROVIDERS)}")
    _check_builds()
    full, package = PROVIDERS[name]
    if full not in ort.get_available_providers():
        mend = (
            f"pip uninstall onnxruntime, then pip install {package}"
            if package
            else f"install a build of onnxruntime that has {full}"
        )
        raise ProviderError(f"provider {name!r} is not in the installed onnxruntime; {mend}")
    return full


def missing(name: str) -> str | None:
    """What the system's loader says that a provider's library lacks; None where it has all or is not known.

    ONNX Runtime itself only logs it, and goes on without the provider.
    """
    folder = Path(ort.__file__).parent / "capi"
    for library in folder.glob(f"*onnxruntime_providers_{name}.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return " ".join(str(error).split())
    return None


@cache
def _check_builds() -> None:
    """All builds of ONNX Runtime own the same folder: where there are two, files of both are in it."""
    found = []
    for package in dict.fromkeys(package for _, package in PROVIDERS.values() if package):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    if len(found) > 1:
        raise ProviderError(
            f"{' and '.join(found)} are installed over each other; "
            f"pip uninstall {' '.join(each.split()[0] for each in found)}, then install the one that you need"
        )
