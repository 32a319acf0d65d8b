"""Makes constants of weights that a caller could replace."""

from __future__ import annotations

from rewriter.graph.model import Model


def unpin(model: Model) -> Model:
    """The model whose initializers are graph inputs no more; the same model where none are.

    From IR version 4 on an initializer that is also an input is only its default value: ONNX Runtime must not
    fold it, lay it out anew or fuse it. Before that the listing is obligatory and means nothing.
    """
    pinned = model.pinned
    if not pinned:
        return model
    proto = model.copy()
    for index in reversed(range(len(proto.graph.input))):
        if proto.graph.input[index].name in pinned:
            del proto.graph.input[index]
    return model.edited(proto)
