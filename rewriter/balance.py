"""Scales of the channels between the stages of a chain, so that they quantise well.

    x -> W1 -> z -> W2 -> y          W1 <- D W1,  W2 <- W2 D⁻¹,  D diagonal and positive

computes the same for any D. Quantisation rounds all channels of z by one step, and all that a row of W2 reads
by another: what is of another size than the rest loses its bits. With r_i the root mean square of z_i, c_i
the norm of what reads it and D_i = (c_i / r_i)^½ both become (c_i r_i)^½. That is the cross-layer
equalisation of Nagel et al. 2019 (arXiv 1906.04721, eq. 11) with r of z where they take the range of W1;
rows of W1 may be of any size, as each has a step of its own.

Factorisations leave one factor orthonormal, so that c or r falls as the singular values do.
"""

import numpy as np
import numpy.typing as npt

from rewriter.conv import Array, Conv
from rewriter.metric import Moments
from rewriter.rewrite import Branch, Rewrite

Powers = npt.NDArray[np.int32]


def balanced(rewrite: Rewrite, conv: Conv, moments: Moments) -> Rewrite:
    """The same kernel, bit for bit, with the channels between the stages of each chain balanced.

    The scales are powers of two, so that no weight is rounded.

    Args:
        rewrite: What stands for `conv`.
        conv: The convolution.
        moments: Those of its input patches; where none were seen, all stays as it is.
    """
    if moments.count == 0:
        return rewrite
    return Rewrite(tuple(_balanced(branch, conv, moments) for branch in rewrite.branches))


def _balanced(branch: Branch, conv: Conv, moments: Moments) -> Branch:
    stages = list(branch)
    for index in range(1, len(branch)):
        first, after = stages[index - 1], stages[index]
        rows, reading = first.weight.reshape(first.out_channels, -1), _reading(after)
        norms = np.sqrt(np.sum(reading.astype(np.float64) ** 2, axis=1))
        powers = _powers(_sizes(branch, index, conv, moments), norms)
        # a weight that is too small or large to be scaled without rounding keeps its channel as it is
        powers *= _lossless(rows, powers) & _lossless(reading, -powers)
        stages[index - 1] = first.with_(weight=_scaled(rows, powers).reshape(first.weight.shape))
        stages[index] = _read_by(after, _scaled(reading, -powers))
    return tuple(stages)


def _powers(sizes: Array, norms: Array) -> Powers:
    """The binary logarithms of D, rounded; 0 for a channel that is always zero or that nobody reads."""
    powers = np.zeros(len(sizes), np.int32)
    live = (sizes > 0) & (norms > 0)
    powers[live] = np.rint(0.5 * np.log2(norms[live] / sizes[live]))
    return powers


def _scaled(rows: Array, powers: Powers) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        scaled: Array = np.ldexp(rows, powers[:, None])
    return scaled


def _lossless(rows: Array, powers: Powers) -> npt.NDArray[np.bool_]:
    """Which rows can be scaled so and back."""
    back = _scaled(_scaled(rows, powers), -powers)
    same: npt.NDArray[np.bool_] = np.all(back == rows, axis=1)
    return same


def _reading(stage: Conv) -> Array:
    """What reads each channel of the input of a stage, `[C, M/group·taps]`."""
    split = stage.weight.reshape(stage.group, -1, stage.weight.shape[1], stage.taps)
    return split.swapaxes(1, 2).reshape(stage.in_channels, -1)


def _read_by(stage: Conv, reading: Array) -> Conv:
    """The stage with other weights, laid out so."""
    split = reading.reshape(stage.group, stage.weight.shape[1], -1, stage.taps)
    return stage.with_(weight=split.swapaxes(1, 2).reshape(stage.weight.shape))


def _sizes(branch: Branch, count: int, conv: Conv, moments: Moments) -> Array:
    """The root mean square of each channel behind the first `count` stages of a chain."""
    channels = branch[count].in_channels
    # as a kernel on the patches of `conv`: each channel itself, where the later stages read in their middle
    chain = (*branch[:count], *(_middle(stage, channels) for stage in branch[count:]))
    like = conv.with_(weight=np.zeros((channels, *conv.weight.shape[1:])), bias=None)
    kernel = Rewrite((chain,)).dense(like).reshape(conv.group, -1, moments.mean.shape[1])
    variance = np.sum((kernel @ moments.covariance) * kernel, axis=2)
    mean = np.einsum("gzk,gk->gz", kernel, moments.mean)
    sizes: Array = np.sqrt(np.maximum(variance + mean**2, 0.0)).reshape(-1)
    return sizes


def _middle(stage: Conv, channels: int) -> Conv:
    """A stage that hands so many channels on as they are, read in the middle of its kernel."""
    weight = np.zeros((channels, 1, *stage.kernel_shape))
    middle: tuple[slice | int, ...] = (slice(None), 0, *(taps // 2 for taps in stage.kernel_shape))
    weight[middle] = 1.0
    return stage.with_(weight=weight, bias=None, group=channels)
