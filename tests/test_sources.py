import pickle
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import F32, IMAGE, indices, pictures
from onnxruntime.quantization import CalibrationDataReader

from rewriter.errors import OptionError, SampleError
from rewriter.samples import InputSpec
from rewriter.sources import load, load_function


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a script adds its folder

    def write(code, function="feeds", name="made.py"):
        path = tmp_path / name
        path.write_text("import numpy as np\n" + textwrap.dedent(code))
        return f"{path}:{function}"

    return write


def refused(source, inputs=(IMAGE,), **options):
    """The message of the SampleError that loading raises; always one line that names the source's kind."""
    with pytest.raises(SampleError) as caught:
        load(source, inputs, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{options.get('what', 'calibration')} samples ")
    return message


# npz


def test_npz_gives_one_read_only_sample_a_row(npz):
    loaded = load(npz(image=pictures(3)), [IMAGE])
    assert len(loaded) == 3
    assert indices(loaded) == [0, 1, 2]
    assert all(f["image"].shape == (1, 1, 2, 2) and f["image"].dtype == F32 for f in loaded.feeds)
    assert loaded.targets is None
    with pytest.raises(ValueError, match="read-only"):
        loaded.feeds[0]["image"][...] = 0


@pytest.mark.parametrize("key", ["labels", "targets"])
def test_npz_labels_become_targets(npz, key):
    loaded = load(npz(image=pictures(3), **{key: np.array([7, 8, 9])}), [IMAGE])
    assert loaded.targets == (7, 8, 9)


def test_labels_key_names_another_array(npz):
    path = npz(image=pictures(2), y=np.array([1, 0]))
    assert load(path, [IMAGE], labels_key="y").targets == (1, 0)
    assert "'y' is no input" in refused(path)


def test_an_input_named_labels_is_an_input(npz):
    specs = [IMAGE, InputSpec("labels", np.dtype("int64"), ("batch",))]
    loaded = load(npz(image=pictures(2), labels=np.array([4, 5])), specs)
    assert loaded.targets is None
    assert [f["labels"].tolist() for f in loaded.feeds] == [[4], [5]]


def test_image_targets_are_cut_along(npz):
    wanted = pictures(3, 4, 4)
    loaded = load(npz(image=pictures(3), targets=wanted), [IMAGE])
    assert [t.shape for t in loaded.targets] == [(4, 4)] * 3
    assert [t[0, 0] for t in loaded.targets] == [0, 1, 2]


def test_limit_takes_the_first_and_reads_no_further(npz):
    assert indices(load(npz(image=pictures(5)), [IMAGE], limit=2)) == [0, 1]

    def endless():
        i = 0
        while True:
            yield {"image": np.full((3, 1, 2, 2), i, F32)}, [i] * 3
            i += 1

    loaded = load(endless, [IMAGE], limit=4)
    assert indices(loaded) == [0, 0, 0, 1]
    assert loaded.targets == (0, 0, 0, 1)


def test_fixed_batch_gives_units_of_it(npz):
    spec = InputSpec("image", F32, (2, 1, 2, 2))
    loaded = load(npz(image=pictures(4), labels=np.arange(4)), [spec])
    assert [f["image"][:, 0, 0, 0].tolist() for f in loaded.feeds] == [[0, 1], [2, 3]]
    assert [t.tolist() for t in loaded.targets] == [[0, 1], [2, 3]]
    assert not loaded.joinable


def test_fixed_batch_of_one_is_one_sample_a_row(npz):
    spec = InputSpec("image", F32, (1, 1, 2, 2))
    loaded = load(npz(image=pictures(3)), [spec])
    assert indices(loaded) == [0, 1, 2]
    assert not loaded.joinable


def test_inputs_without_batch_are_stacked_along_an_extra_axis(npz):
    specs = [IMAGE, InputSpec("size", np.dtype("int64"), (2,)), InputSpec("scale", F32, ())]
    loaded = load(
        npz(image=pictures(3), size=np.array([[1, 2], [3, 4], [5, 6]]), scale=np.array([0.5, 1, 2], F32)),
        specs,
    )
    assert [f["size"].tolist() for f in loaded.feeds] == [[1, 2], [3, 4], [5, 6]]
    assert [f["scale"].item() for f in loaded.feeds] == [0.5, 1, 2]
    assert loaded.feeds[1]["scale"].shape == ()
    assert [f["image"].shape for f in loaded.feeds] == [(1, 1, 2, 2)] * 3
    assert not loaded.joinable


def test_dynamic_dimensions_take_any_size(npz):
    spec = InputSpec("image", F32, (None, 1, "height", "width"))
    loaded = load(npz(image=pictures(2, 1, 5, 7)), [spec])
    assert loaded.feeds[0]["image"].shape == (1, 1, 5, 7)


def test_column_major_arrays_come_row_major(npz):
    array = np.random.default_rng(0).random((2, 1, 2, 2)).astype(F32)
    loaded = load(npz(image=np.asfortranarray(array)), [IMAGE])
    assert all(f["image"].flags.c_contiguous for f in loaded.feeds)
    np.testing.assert_array_equal(np.concatenate([f["image"] for f in loaded.feeds]), array)


# types


@pytest.mark.parametrize("found", ["float64", "float16", ">f4"])
def test_float_widths_are_cast(npz, found):
    loaded = load(npz(image=pictures(2).astype(found)), [IMAGE])
    assert loaded.feeds[1]["image"].dtype == F32
    assert indices(loaded) == [0, 1]


@pytest.mark.parametrize("found", ["uint8", "int64", "bool", "complex64"])
def test_other_types_for_a_float_input_are_refused(npz, found):
    message = refused(npz(image=pictures(2).astype(found)))
    assert f"input 'image' is {found}, expected float32; convert with .astype('float32')" in message


def test_integer_widths_change_only_where_values_fit():
    spec = InputSpec("ids", np.dtype("int32"), ("batch",))
    assert load([{"ids": [1, 2]}], [spec]).feeds[0]["ids"].dtype == np.int32
    assert "do not fit into int32" in refused([{"ids": [1, 2**40]}], [spec])
    assert "is float64, expected int32" in refused([{"ids": [1.0]}], [spec])


def test_texts_fit_a_text_input():
    spec = InputSpec("words", np.dtype(object), ("batch",))
    assert load([{"words": ["a", "bc"]}], [spec]).feeds[1]["words"].tolist() == ["bc"]


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_no_numbers_are_refused(npz, value, word):
    array = pictures(5)
    array[3, 0, 1, 1] = value
    assert f"holds {word}" in (message := refused(npz(image=array)))
    assert "the first in sample 3" in message


def test_values_that_overflow_the_models_type_are_refused(npz):
    assert "infinity (as float32)" in refused(npz(image=np.full((1, 1, 2, 2), 1e300)))


# refusals of files


def test_missing_file(tmp_path):
    message = refused(tmp_path / "none.npz", what="evaluation")
    assert message == f"evaluation samples {tmp_path / 'none.npz'}: there is no such file; check the path"


@pytest.mark.parametrize("name", ["data.csv", "data"])
def test_unknown_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"1,2")
    assert "cannot read a" in (message := refused(tmp_path / name))
    assert "numpy.savez" in message


def test_folder(tmp_path):
    assert "there are no images (.png, .jpg, …) in the folder, nor ONNX test data" in refused(tmp_path)


def test_script_without_function(tmp_path):
    path = tmp_path / "made.py"
    path.write_text("")
    assert f"name it as {path}:function" in refused(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"image": 1})])
def test_not_an_npz(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    message = refused(path)
    assert "not an .npz file" in message
    assert "pickle" not in message  # numpy's own message advises to allow it


def test_truncated_npz(npz):
    path = npz(image=pictures(50))
    path.write_bytes(path.read_bytes()[:-200])
    assert "cut short" in refused(path)


def test_damaged_npz(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, image=pictures(500))
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    assert "not an .npz of plain arrays" in refused(path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, image=np.array([{"evil": 1}], dtype=object))
    assert "not an .npz of plain arrays" in refused(path)


def test_missing_input_lists_found_and_needed(npz):
    message = refused(npz(picture=pictures(2)))
    assert "missing input 'image'; found 'picture', the model takes 'image'" in message


def test_extra_arrays_are_named(npz):
    message = refused(npz(image=pictures(2), mask=pictures(2), labels=np.arange(2)))
    assert "'mask' is no input; the model takes 'image'" in message


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (5, 1, 1, 2, 2)])
def test_wrong_rank(npz, shape):
    message = refused(npz(image=np.zeros(shape, F32)))
    assert f"has shape {list(shape)}, expected [batch, 1, 2, 2]; reshape it" in message


def test_wrong_shape(npz):
    message = refused(npz(image=pictures(6, 2, 2, 1)))
    assert "has shape [6, 2, 2, 1], expected [batch, 1, 2, 2]; resize or transpose" in message


def test_rows_that_are_no_multiple_of_the_fixed_batch(npz):
    spec = InputSpec("image", F32, (4, 1, 2, 2))
    assert "has 6 rows, the model's batch is 4; leave out 2" in refused(npz(image=pictures(6)), [spec])


def test_inputs_of_unequal_length(npz):
    specs = [IMAGE, InputSpec("mask", F32, ("batch", 1, 2, 2))]
    message = refused(npz(image=pictures(3), mask=pictures(2)), specs)
    assert "('image' 3, 'mask' 2); give every input the same number" in message


def test_a_single_value_is_not_stacked(npz):
    specs = [IMAGE, InputSpec("scale", F32, ())]
    assert "'scale' is a single value" in refused(npz(image=pictures(1), scale=np.float32(2)), specs)


def test_labels_of_unequal_length(npz):
    assert "3 samples, but the target has 2 entries" in refused(npz(image=pictures(3), labels=np.arange(2)))


def test_one_dimension_name_has_one_size_within_a_sample(npz):
    specs = [InputSpec("ids", F32, ("batch", "length")), InputSpec("mask", F32, ("batch", "length"))]
    path = npz(ids=np.zeros((2, 7), F32), mask=np.zeros((2, 8), F32))
    assert "dimension 'length' is 7 in input 'ids' and 8 in input 'mask'" in refused(path, specs)


def test_no_samples(npz):
    assert "there are no samples" in refused(npz(image=pictures(0)))
    assert "there are no samples" in refused([])


def test_limit_below_one_is_a_wrong_option():
    with pytest.raises(OptionError, match="at least 1"):
        load([], [IMAGE], limit=0)


# scripts


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(4): yield {'image': np.full((1, 1, 2, 2), i, np.float32)}, i",
        "return [({'image': np.full((2, 1, 2, 2), i, np.float32)}, [i, i]) for i in range(2)]",
        "yield {'image': np.arange(4, dtype=np.float32).repeat(4).reshape(4, 1, 2, 2), 'labels': range(4)}",
    ],
    ids=["generator", "list of batches", "labels in the feeds"],
)
def test_script(script, body):
    loaded = load(script(f"def feeds():\n    {body}\n"), [IMAGE])
    assert len(loaded) == 4
    assert indices(loaded) == list(loaded.targets)


def test_script_imports_its_neighbours(script):
    script("def make(): return [{'image': np.ones((1, 1, 2, 2), np.float32)}]\n", name="neighbour_of_made.py")
    reference = script("def feeds():\n    import neighbour_of_made\n    return neighbour_of_made.make()\n")
    assert len(load(reference, [IMAGE])) == 1


def test_a_reused_buffer_is_copied(script):
    code = """
        def feeds():
            buffer, label = np.zeros((1, 1, 2, 2), np.float32), np.zeros(1)
            for i in range(3):
                buffer[...] = label[...] = i
                yield {'image': buffer}, label
        """
    loaded = load(script(code), [IMAGE])
    assert indices(loaded) == [0, 1, 2]
    assert [float(t) for t in loaded.targets] == [0, 1, 2]


def test_missing_script(tmp_path):
    reference = f"{tmp_path}/none.py:feeds"
    assert refused(reference) == (
        f"calibration samples {reference}: there is no script {tmp_path}/none.py; check the path"
    )


def test_missing_function_lists_those_found(script):
    message = refused(script("def pictures(): return []\n", "feeds"))
    assert message.endswith("the script has no function 'feeds'; it has 'pictures'")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no data\\nat all')", "the script raised ValueError: no data (made.py, line 2)"),
        ("def feeds(:", "the script raised SyntaxError"),
        ("import no_such_module", "the script raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "the script raised SystemExit: 3"),
        ("def feeds(): return open('/no/such')", "the function raised FileNotFoundError"),
        ("def feeds():\n    yield {}[1]", "the function raised KeyError: 1 (made.py, line 3)"),
        ("def feeds(path): return []", "the function raised TypeError: feeds() missing 1 required"),
        ("def feeds(): return None", "found NoneType, expected an iterable of feeds"),
        ("def feeds(): return 'image'", "found str, expected an iterable of feeds"),
        ("def feeds(): yield np.zeros(3)", "item 0: found numpy.ndarray, expected a dict of arrays"),
        ("def feeds(): yield [1, 2]", "item 0: found list, expected a dict"),
        ("def feeds(): yield {'image': [[1], [2, 3]]}", "item 0: input 'image' is not an array"),
        ("def feeds(): yield {'image': None}", "item 0: input 'image' is object, expected float32"),
    ],
)
def test_mistakes_of_a_script(script, code, words):
    assert words in refused(script(code))


def test_an_interrupt_passes_through(script):
    with pytest.raises(KeyboardInterrupt):
        load(script("def feeds():\n    raise KeyboardInterrupt\n    yield\n"), [IMAGE])


def test_targets_for_some_samples_only():
    items = [({"image": pictures(1)}, 3), {"image": pictures(1)}]
    assert "sample 1 has no target but others have" in refused(items)


def test_load_function_runs_other_functions_too(script):
    assert load_function(script("def drift(a, b, t): return a - b\n", "drift"))(5, 3, None) == 2


# iterables


def test_every_form_of_a_source_gives_the_same():
    feeds = {"image": pictures(3)}
    sources = [feeds, [feeds], (feeds,), iter([feeds]), lambda: feeds, lambda: iter([feeds]), [(feeds, None)]]
    for source in sources:
        loaded = load(source, [IMAGE])
        assert indices(loaded) == [0, 1, 2]
        assert loaded.targets is None


def test_a_pair_is_feeds_and_target_but_two_feeds_are_two():
    feeds = {"image": pictures(1)}
    assert load((feeds, [5]), [IMAGE]).targets == (5,)
    assert len(load((feeds, feeds), [IMAGE])) == 2
    assert load([(feeds, {"boxes": 1})], [IMAGE]).targets == ({"boxes": 1},)


def test_a_whole_target_of_one_sample_stays_whole():
    assert load([({"image": pictures(1)}, "cat")], [IMAGE]).targets == ("cat",)
    assert "has no leading axis" in refused([({"image": pictures(2)}, 7)])


def test_the_callers_arrays_stay_writeable():
    array = pictures(2)
    load([{"image": array}], [IMAGE])
    array[...] = 5


def test_inputs_without_a_common_batch_axis_stay_whole():
    specs = [InputSpec("image", F32, ("batch", 1, 2, 2)), InputSpec("boxes", F32, ("count", 4))]
    loaded = load([({"image": pictures(1), "boxes": np.zeros((5, 4), F32)}, "right")], specs)
    assert loaded.feeds[0]["boxes"].shape == (5, 4)
    assert loaded.targets == ("right",)
    assert not loaded.joinable


def test_fixed_batch_in_feeds_that_do_not_fill_it():
    spec = InputSpec("image", F32, (4, 1, 2, 2))
    assert "has shape [6, 1, 2, 2], expected [4, 1, 2, 2]" in refused([{"image": pictures(6)}], [spec])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_cutting_is_the_same_however_the_samples_are_batched(sizes):
    rows = pictures(sum(sizes))
    labels = np.arange(len(rows))
    parts = np.cumsum(sizes)[:-1]
    loaded = load(
        [({"image": x}, y) for x, y in zip(np.split(rows, parts), np.split(labels, parts), strict=True)],
        [IMAGE],
    )
    assert indices(loaded) == list(labels) == list(loaded.targets)


# npy


def test_npy_is_the_only_input(tmp_path):
    np.save(tmp_path / "data.npy", pictures(3))
    assert indices(load(tmp_path / "data.npy", [IMAGE])) == [0, 1, 2]
    two = [IMAGE, InputSpec("mask", F32, ("batch",))]
    assert "an .npy holds one input, the model takes 'image', 'mask'" in refused(tmp_path / "data.npy", two)


def test_not_an_npy(tmp_path):
    path = tmp_path / "data.npy"
    np.save(path, np.array([{"evil": 1}], dtype=object))
    assert "not an .npy of a plain array" in refused(path)
    np.save(path, pictures(3))
    path.write_bytes(path.read_bytes()[:-8])
    assert "not an .npy of a plain array, or cut short" in refused(path)
    path.write_bytes(pickle.dumps(1))
    assert "not an .npy of a plain array" in refused(path)


# readers


class Reader(CalibrationDataReader):
    """What ONNX Runtime's own quantisation takes."""

    def __init__(self, count=3):
        self.left = iter({"image": picture[None]} for picture in pictures(count))

    def get_next(self):
        return next(self.left, None)


@pytest.mark.parametrize("source", [Reader(), Reader, lambda: Reader()], ids=["object", "class", "function"])
def test_readers_give_feeds_until_there_are_none(source):
    assert indices(load(source, [IMAGE])) == [0, 1, 2]


def test_a_reader_that_raises_is_one_line():
    class Broken:
        def get_next(self):
            raise OSError("no data")

    assert "the function raised OSError: no data (test_sources.py, line " in refused(Broken())
