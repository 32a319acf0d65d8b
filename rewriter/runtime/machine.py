"""What this machine and its build of ONNX Runtime are, as far as times depend on it."""

import hashlib
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from rewriter.runtime.providers import PROVIDERS
from rewriter.runtime.target import Target, cores
from rewriter.version import version

# What computes on the processor itself; the others have devices of their own.
_ON_PROCESSOR: Final = frozenset({"acl", "armnn", "cpu", "dnnl", "xnnpack"})


def versions() -> dict[str, str]:
    """Returns what a measurement depends on: ONNX Runtime and its providers, the processor, the system."""
    return {
        "onnxruntime": ort.__version__,
        "providers": ", ".join(ort.get_available_providers()),
        "processor": _processor(),
        "cores": str(cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rewriter": version() or "not installed",
    }


def deployment(target: Target) -> dict[str, str]:
    """Returns how sessions run a model on a target, in words."""
    return {
        "execution provider": PROVIDERS[target.provider][0],
        **{f"option {name}": value for name, value in target.options},
        "threads of an operator": "ONNX Runtime's default" if target.threads is None else str(target.threads),
        "idle threads": "spin" if target.spinning else "sleep",
        "graph optimisations": "all" if target.optimizing else "none",
        "execution": "one operator at a time",
        "memory arena": "on" if target.arena else "off",
    }


def conditions(target: Target) -> dict[str, str] | None:
    """Returns what the time of a graph depends on besides the graph: this machine, this build, the target.

    None where the provider computes on a device that ONNX Runtime does not tell from another.
    """
    full, _ = PROVIDERS[target.provider]
    devices = []
    if hasattr(ort, "get_ep_devices"):  # since 1.22
        devices = [
            f"{each.device.type.name} {each.device.vendor} {each.device.device_id}"
            for each in ort.get_ep_devices()
            if each.ep_name == full
        ]
    if not devices and target.provider not in _ON_PROCESSOR:
        return None
    # names of virtual processors say little of what they can do
    able = re.findall(r"^(?:flags|Features|CPU implementer|CPU part)\s*:(.+)$", _cpuinfo(), re.MULTILINE)
    return {
        **{name: str(value) for name, value in asdict(target).items()},
        "onnxruntime": ort.__version__,
        "build": ort.get_build_info(),
        "providers": ", ".join(ort.get_available_providers()),
        "processor": _processor(),
        "features": hashlib.sha256("\n".join(sorted(set(able))).encode()).hexdigest(),
        "machine": platform.machine(),
        "cores": str(cores()),
        "devices": ", ".join(sorted(devices)),
    }


def _processor() -> str:
    if found := re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE):
        return found[1].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> str:
    """What Linux tells of the processor."""
    if sys.platform == "linux":
        try:
            return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            pass
    return ""
