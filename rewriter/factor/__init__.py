"""Kernel factorisations, arrays to arrays, each with its paper, its equation and its shapes."""

from rewriter.factor.low_rank import channel, spatial, tucker2
from rewriter.factor.thin import fewer_channels

__all__ = ["channel", "fewer_channels", "spatial", "tucker2"]
