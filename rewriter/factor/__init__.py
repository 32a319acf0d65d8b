"""Kernel factorisations, arrays to arrays, each with its paper, its equation and its shapes."""

from rewriter.factor.low_rank import channel, spatial, tucker2

__all__ = ["channel", "spatial", "tucker2"]
