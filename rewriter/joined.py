"""Groups of few channels joined into wider ones, with zeros between them.

    [M, C/g, *k] in g groups  ->  [M, C/G, *k] in G groups, block-diagonal,        G a divisor of g

More products, but for zeros the same: ONNX Runtime's CPU provider computes groups on its fast path only where
each fills blocks of channels, and all others one by one as matrix products of a few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rewriter.conv import Conv, Ints


@dataclass(frozen=True, slots=True)
class Joined:
    """As a Conv in fewer groups.

    Attributes:
        group: The groups that are left.
    """

    group: int

    def refuse(self, conv: Conv) -> str | None:
        """Why a convolution cannot be written so, or None."""
        if max(conv.input_dilations) > 1:
            return f"it is transposed with strides {conv.input_dilations}"
        if self.group < 1 or self.group >= conv.group or conv.group % self.group:
            return f"{conv.group} groups cannot be joined into {self.group}"
        return None

    def weight(self, conv: Conv) -> npt.NDArray[Any]:
        """`[M, C/G, *k]`."""
        outputs, inputs, *taps = conv.weight.shape
        together = conv.group // self.group
        whole = np.zeros((self.group, together, outputs // conv.group, together, inputs, *taps), conv.dtype)
        own = conv.weight.reshape(self.group, together, outputs // conv.group, inputs, *taps)
        for each in range(together):
            whole[:, each, :, each] = own[:, each]
        return whole.reshape(outputs, together * inputs, *taps)

    def held(self, conv: Conv) -> int:
        """Weights and biases."""
        weights = int(conv.weight.size) * (conv.group // self.group)
        return weights + (0 if conv.bias is None else int(conv.bias.size))

    def macs_and_activations(self, conv: Conv, in_size: Ints) -> tuple[int, int]:
        """Multiply-adds of one sample, those with zeros included, and the elements that the node writes."""
        places = prod(conv.out_size(in_size))
        products = int(conv.weight.size) * (conv.group // self.group)
        return products * places, conv.out_channels * places
