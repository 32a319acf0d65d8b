"""Calibration and evaluation inputs: from what the user has to single samples that fit the model.

    a path, script.py:function, iterable …  ->  feeds or (feeds, target)  ->  cut, checked  ->  `Samples`

    arrays       .npz, and .npy for models of one input
    images       folders of images       preprocess  how their pixels become inputs
    labels       what the images show    test_data   ONNX test_data_set folders
    scripts      script.py:function      items       iterables, callables and readers, in Python
    cutting      batches into single samples, checked against what the model takes

Whatever does not fit raises a `SampleError`: one line with the source, the input, what was found, what was
expected and how to mend it. Nothing is ever unpickled.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rewriter.errors import OptionError, SampleError
from rewriter.samples import Feeds, InputSpec, Samples
from rewriter.sources import arrays, cutting, images, items, test_data
from rewriter.sources.items import Item, Source
from rewriter.sources.preprocess import Preprocess
from rewriter.sources.scripts import is_reference, load_function

__all__ = ["Item", "Preprocess", "Source", "check_preprocess", "load", "load_function"]

_log = logging.getLogger(__name__)


def load(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    what: str = "calibration",
    limit: int | None = None,
    labels_key: str = "labels",
    preprocess: Preprocess | None = None,
) -> Samples:
    """Single samples from `source`, checked against what the model takes.

    Args:
        source: one of
            a path to an `.npz` keyed by input name with the samples along the leading axis, and optionally
            `labels` or `targets` of the same length;
            a path to an `.npy` with the samples along the leading axis, where the model has one input;
            a path to a folder of images, see `images`;
            a path to a folder of ONNX `test_data_set_N`, or to one of them; `folder:outputs` takes their
            outputs as targets;
            `path/script.py:function`, a function without arguments that yields feeds (a dict of arrays, any
            batch size) or pairs of feeds and target;
            in Python also such an iterable, one feeds dictionary, an object with `get_next` such as ONNX
            Runtime's `CalibrationDataReader`, or a callable that returns one of these.
        inputs: the model's inputs.
        what: the word for these samples in messages.
        limit: take the first so many and read no further.
        labels_key: the name of the array that holds the targets, besides `targets`.
        preprocess: how the pixels of a folder of images become inputs; other sources have no use for it.

    Batches are cut into single samples along axis 0 where every input has it in common; a fixed batch of b is
    cut into samples of b. An array with one axis more than the model fixes is taken as stacked samples. A
    target with the batch's leading axis is cut along. float64 becomes float32 where the model takes float32,
    integers change width where their values fit; no other type is converted.

    Raises:
        OptionError: the preprocessing does not fit the model, or says too little.
        SampleError: the samples are missing or do not fit; the message says how to mend it.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"a limit of {limit} {what} samples leaves none; give at least 1")
    inputs = tuple(inputs)
    where = f"{what} samples {items.name_of(source)}"
    notes: tuple[str, ...] = ()
    if images.is_folder(source):
        pictures = images.find(Path(source), inputs, preprocess or Preprocess(), where)
        notes = tuple(f"{where}: {note}" for note in pictures.notes)
        found = pictures.read(where)
    else:
        found = _read(source, inputs, where, what, labels_key)
    pairs = list(islice(found, limit))
    if not pairs:
        raise SampleError(f"{where}: there are no samples in it; give at least one")
    feeds, targets = zip(*pairs, strict=True)
    missing = [i for i, target in enumerate(targets) if target is None]
    if missing and len(missing) < len(targets):
        raise SampleError(
            f"{where}: sample {missing[0]} has no target but others have; give every sample one, or none"
        )
    for told in (f"{where}: {len(feeds)}, {'without' if missing else 'with'} targets", *notes):
        _log.info("%s", told)
    batch_names = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    joinable = len(batch_names) == 1 and all(s.shape and s.fixed_batch is None for s in inputs)
    return Samples(feeds, None if missing else targets, joinable, notes)


def check_preprocess(preprocess: Preprocess | None, sources: Sequence[Source | None]) -> None:
    """Raises an `OptionError` where preprocessing is asked for that none of the sources has a use for."""
    if preprocess is not None and not any(map(images.is_folder, sources)):
        raise OptionError(
            "--preprocess is for folders of images, and none was given; other samples come as the model takes"
            " them, leave it out"
        )


def _read(
    source: Source, inputs: tuple[InputSpec, ...], where: str, what: str, labels_key: str
) -> Iterator[tuple[Feeds, Any]]:
    """The single samples of any source but images with their targets, cut and checked."""
    if isinstance(source, str | Path):
        if test_data.is_folder(source):
            for place, feeds, target in test_data.read(source, inputs, where):
                yield from cutting.cut(feeds, target, inputs, place, labels_key, stacked=False)
            return
        if not is_reference(source):
            found = arrays.read(Path(source), inputs, where)
            yield from cutting.cut(found, None, inputs, where, labels_key, stacked=True)
            return
        source = load_function(str(source), what=f"{what} samples")
    for i, item in enumerate(items.iterate(source, where)):
        place = f"{where}, item {i}"
        feeds, target = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feeds, Mapping):
            example = inputs[0].name if inputs else "name"
            raise SampleError(
                f"{place}: found {items.type_name(item)}, expected a dict of arrays or a pair of one and its"
                f" target; yield {{'{example}': array}}"
            )
        yield from cutting.cut(feeds, target, inputs, place, labels_key, stacked=False)
