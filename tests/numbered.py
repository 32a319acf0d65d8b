"""Pictures that carry their own numbers, for tests of what reads, splits and cuts samples."""

import numpy as np

from rewriter.samples import InputSpec

F32 = np.dtype("float32")
IMAGE = InputSpec("image", F32, ("batch", 1, 2, 2))


def pictures(n, *shape):
    """n pictures, each filled with its own index."""
    shape = shape or (1, 2, 2)
    return np.broadcast_to(np.arange(n, dtype=F32).reshape(n, *[1] * len(shape)), (n, *shape)).copy()


def indices(loaded, name="image"):
    """The numbers of the pictures in loaded samples, in their order."""
    return [float(feeds[name].flat[0]) for feeds in loaded.feeds]
