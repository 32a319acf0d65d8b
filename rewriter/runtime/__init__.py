"""ONNX Runtime: sessions with pinned options, their profiles, and what this machine and its build offer."""

from rewriter.runtime.machine import conditions, deployment, versions
from rewriter.runtime.profiler import Kernel, optimized, profiled
from rewriter.runtime.providers import PROVIDERS, check_provider
from rewriter.runtime.session import ModelSource, Session, Spec
from rewriter.runtime.target import Clock, Target, cores

__all__ = [
    "PROVIDERS",
    "Clock",
    "Kernel",
    "ModelSource",
    "Session",
    "Spec",
    "Target",
    "check_provider",
    "conditions",
    "cores",
    "deployment",
    "optimized",
    "profiled",
    "versions",
]
