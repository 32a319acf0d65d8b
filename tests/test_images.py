"""Folders of images: what becomes of their pixels, their labels, and what is refused in one line."""

import re

import numpy as np
import pytest
from PIL import Image

from rewriter.errors import OptionError, SampleError
from rewriter.samples import InputSpec
from rewriter.sources import Preprocess, check_preprocess, images, load

F32 = np.dtype("float32")
RGB = InputSpec("x", F32, ("N", 3, 4, 6))
GRAY = InputSpec("x", F32, ("N", 1, 4, 6))
UNIT = {"scale": "1/255"}


def picture(seed, size=(4, 6), gray=False):
    shape = size if gray else (*size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Writes arrays as images under a new folder; returns it."""
    root = tmp_path / "photos"
    root.mkdir()

    def write(**arrays):
        for name, array in arrays.items():
            path = root / f"{name.replace('__', '/')}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(path)
        return root

    return write


def loaded(source, spec=RGB, **said):
    return load(source, [spec], preprocess=Preprocess.of(said))


def refused(source, spec=RGB, error=SampleError, **said):
    with pytest.raises(error) as caught:
        loaded(source, spec, **said)
    message = str(caught.value)
    assert "\n" not in message
    return message


# pixels


def test_images_come_in_the_order_of_their_names(folder):
    found = loaded(folder(b=picture(1), a=picture(0), c=picture(2)), **UNIT)
    assert len(found) == 3
    assert found.joinable
    assert found.targets is None
    for seed, feeds in enumerate(found.feeds):
        assert feeds["x"].dtype == F32
        expected = np.moveaxis(picture(seed), -1, 0)[None] / 255
        np.testing.assert_allclose(feeds["x"], expected, rtol=1e-6)  # float32


def test_every_step_is_that_of_its_formula(folder):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found = loaded(
        folder(a=picture(0)),
        InputSpec("x", F32, ("N", 4, 6, 3)),
        scale="1/255",
        mean="0.485,0.456,0.406",
        std=list(std),
        channels="bgr",
    )
    expected = (picture(0)[None, ..., ::-1] / 255 - mean) / std
    np.testing.assert_allclose(found.feeds[0]["x"], expected, rtol=1e-5, atol=1e-6)  # float32


def test_resize_keeps_the_aspect_and_crop_takes_the_middle(folder):
    flat = np.zeros((20, 30, 3), np.uint8)
    flat[:, 10:20] = 200  # the middle third
    found = loaded(folder(a=flat), InputSpec("x", F32, ("N", 3, 4, 2)), resize=8, crop="4x2", scale=1)
    assert np.all(found.feeds[0]["x"] == 200)
    whole = loaded(folder(a=flat), resize="4x6", scale=1).feeds[0]["x"]
    assert whole.shape == (1, 3, 4, 6)
    assert whole[0, 0, 0, 0] == 0


def test_dynamic_sizes_take_images_as_they_are(folder):
    spec = InputSpec("x", F32, ("N", 3, "H", "W"))
    found = loaded(folder(a=picture(0, (5, 7)), b=picture(1, (8, 3))), spec, scale=1)
    assert [feeds["x"].shape for feeds in found.feeds] == [(1, 3, 5, 7), (1, 3, 8, 3)]


def test_integers_need_no_scale_and_are_rounded(folder):
    spec = InputSpec("x", np.dtype("uint8"), ("N", 4, 6, 3))
    np.testing.assert_array_equal(loaded(folder(a=picture(0)), spec).feeds[0]["x"][0], picture(0))
    half = loaded(folder(a=picture(0)), spec, scale=0.5, mean=20).feeds[0]["x"][0]
    np.testing.assert_array_equal(half, np.clip(np.rint(picture(0) / 2 - 20), 0, 255))


def test_gray_images_become_three_equal_channels(folder):
    array = loaded(folder(a=picture(0, gray=True)), scale=1).feeds[0]["x"]
    np.testing.assert_array_equal(array[0], np.stack([picture(0, gray=True)] * 3))


def test_palettes_and_transparency_are_resolved(folder, tmp_path):
    root = folder(a=picture(0))
    Image.fromarray(picture(0)).convert("RGBA").save(root / "a.png")
    Image.new("P", (6, 4), 3).save(root / "b.gif")
    assert loaded(root, scale=1).feeds[0]["x"].shape == (1, 3, 4, 6)


def test_a_fixed_batch_takes_images_together(folder):
    spec = InputSpec("x", F32, (2, 3, 4, 6))
    root = folder(**{f"{index % 2}__{index}": picture(index) for index in range(5)})
    found = loaded(root, spec, **UNIT)
    assert [feeds["x"].shape[0] for feeds in found.feeds] == [2, 2]
    assert [target.tolist() for target in found.targets] == [[0, 0], [0, 1]]
    assert "the last 1 images were left out" in found.notes[-1]


def test_what_was_guessed_is_said(folder):
    found = loaded(folder(a=picture(0)), **UNIT)
    assert found.notes[0].endswith("layout=NCHW, channels=rgb, dtype=float32, as the model's input suggests")
    said = loaded(folder(a=picture(0)), layout="nchw", channels="rgb", dtype="float32", **UNIT)
    assert said.notes == ()


def test_of_more_than_fit_some_are_taken_at_even_distances(folder, monkeypatch):
    monkeypatch.setattr(images, "_MOST_BYTES", 4 * 3 * 4 * 6 * 4)  # of four samples
    found = loaded(folder(**{f"{index:02}": picture(index) for index in range(10)}), **UNIT)
    assert len(found) == 4
    np.testing.assert_allclose(found.feeds[1]["x"][0], np.moveaxis(picture(3), -1, 0) / 255, rtol=1e-6)
    assert "4 of 10 images, evenly spread" in found.notes[-1]


# preprocessing


def test_a_file_says_what_texts_say(tmp_path):
    path = tmp_path / "steps.toml"
    path.write_text('resize = 256\ncrop = [224, 192]\nscale = "1/255"\nmean = [0.5, 0.4, 0.3]\nstd = 0.25\n')
    texts = {"resize": "256", "crop": "224x192", "scale": 1 / 255, "mean": "0.5,0.4,0.3", "std": "0.25"}
    assert Preprocess.of(path) == Preprocess.of(texts) == Preprocess.of(str(path))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"blur": 3}, "blur: there is no such step; there are 'resize', 'crop', "),
        ({"scale": "1/0"}, "scale: '1/0' is no number"),
        ({"scale": True}, "scale: 'True' is no number"),
        ({"scale": 0}, "scale: 0 is not above 0"),
        ({"std": "1,0,1"}, "std: 0 is not above 0"),
        ({"mean": "a"}, "mean: 'a' is no number"),
        ({"resize": "0x4"}, "resize: '0x4' is no size"),
        ({"crop": "1x2x3"}, "crop: '1x2x3' is no size"),
        ({"crop": 2.5}, "crop: '2.5' is no size"),
        ({"channels": "yuv"}, "channels: 'yuv' is unknown; known are gray, rgb, bgr"),
        ({"layout": "CHW"}, "layout: 'CHW' is unknown; known are NCHW, NHWC"),
        ({"dtype": "float"}, "dtype: 'float' is unknown"),
    ],
)
def test_steps_that_make_no_sense(said, words):
    with pytest.raises(OptionError, match=re.escape(f"--preprocess {words}")):
        Preprocess.of(said)


def test_files_that_make_no_sense(tmp_path):
    path = tmp_path / "steps.toml"
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        Preprocess.of(path)
    path.write_text("resize = = 3\n")
    with pytest.raises(OptionError, match="is no TOML"):
        Preprocess.of(path)
    path.write_text("[preprocess]\nresize = 3\n")
    with pytest.raises(OptionError, match=r"--preprocess preprocess: there is no such step.*steps\.toml"):
        Preprocess.of(path)


@pytest.mark.parametrize(
    ("shape", "said", "words"),
    [
        (("N", 3, 4, 6), {}, "input 'x' [?, 3, 4, 6] may take any range of values; say --preprocess scale="),
        (("N", 3, 6, 3), UNIT, "its axis of channels is not known; say --preprocess layout="),
        (("N", "C", "H", "W"), UNIT, "its axis of channels is not known"),
        (
            ("N", "C", "H", "W"),
            {"layout": "NCHW", **UNIT},
            "its channels are not known; say --preprocess cha",
        ),
        (("N", 4, 4, 6), {"layout": "NCHW", **UNIT}, "its channels are not known"),
        (("N", 3, 4, 6), {"layout": "NCHW", "channels": "gray", **UNIT}, "channels=gray makes 1 channels"),
        (("N", 3, 4, 6), {"mean": "1,2", **UNIT}, "mean: 2 values for 3 channels (rgb)"),
        (("N", 10), UNIT, "input 'x' [?, 10] takes no images, which have 4 axes"),
    ],
)
def test_what_a_model_does_not_tell_must_be_said(folder, shape, said, words):
    assert words in refused(folder(a=picture(0)), InputSpec("x", F32, shape), OptionError, **said)


def test_preprocessing_that_nothing_needs(folder):
    said = Preprocess.of(UNIT)
    check_preprocess(said, ["data.npz", folder(a=picture(0))])
    check_preprocess(None, ["data.npz"])
    with pytest.raises(OptionError, match="none was given"):
        check_preprocess(said, ["data.npz", None, [{}]])


# images that do not fit


def test_no_images(folder):
    root = folder()
    assert "there are no images (.png, .jpg, …) in the folder" in refused(root)
    (root / "readme.txt").write_text("none")
    (root / ".hidden.png").write_text("none")
    assert "there are no images" in refused(root)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half of one"])
def test_broken_images_are_named(folder, content):
    root = folder(a=picture(0))
    (root / "b.png").write_bytes(content)
    message = refused(root, **UNIT)
    assert message.startswith(f"calibration samples {root}, b.png: no image that can be decoded (")
    assert message.endswith("; repair or remove it")


def test_an_image_cut_short(folder):
    root = folder(a=picture(0, (64, 64)))
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:200])
    assert "a.png: no image that can be decoded" in refused(root, **UNIT)


def test_other_sizes(folder):
    message = refused(folder(a=picture(0), b=picture(1, (8, 6))), **UNIT)
    assert "b.png: comes as 8x6 (height x width), the model takes 4x6" in message
    assert "--preprocess resize=4x6" in message
    message = refused(folder(a=picture(0)), crop=5, **UNIT)
    assert "a.png: 4x6 is too small to crop 5x5 from" in message


def test_colours_are_dropped_only_where_that_is_said(folder):
    root = folder(a=picture(0))
    assert "a.png: has colours, the model takes 1 channel; say --preprocess channels=gray" in refused(
        root, GRAY, **UNIT
    )
    assert loaded(root, GRAY, channels="gray", **UNIT).feeds[0]["x"].shape == (1, 1, 4, 6)
    equal = np.stack([picture(0, gray=True)] * 3, axis=-1)
    np.testing.assert_array_equal(
        loaded(folder(a=equal), GRAY, scale=1).feeds[0]["x"][0, 0], picture(0, gray=True)
    )


def test_deep_images_are_not_clipped(folder):
    assert "has more than 8 bits a channel (I;16)" in refused(
        folder(a=np.full((4, 6), 3000, np.uint16)), scale=1
    )


def test_models_of_several_inputs(folder):
    with pytest.raises(SampleError, match="feeds one input, the model takes 'x', 'y'"):
        load(folder(a=picture(0)), [RGB, InputSpec("y", F32, ("N",))])


# labels


def test_subfolders_are_classes(folder):
    root = folder(dog__1=picture(0), cat__2=picture(1), cat__1=picture(2))
    (root / "bird").mkdir()
    found = loaded(root, **UNIT)
    assert found.targets == (1, 1, 2)
    assert found.notes[-1].endswith("labels by the names of its folders: 0 is 'bird', 2 is 'dog'")


def test_one_subfolder_is_no_class(folder):
    assert loaded(folder(dog__1=picture(0)), **UNIT).targets is None


def test_a_file_of_labels(folder):
    root = folder(b__1=picture(0), a__2=picture(1), c=picture(2))
    (root / "labels.csv").write_text("file,label\nb/1.png,7\n\n./c.png, 0\na/2.png,12\n")
    assert loaded(root, **UNIT).targets == (12, 7, 0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a.png,1\nb.png,2\nc.png,3", "labels.csv: there is no image 'c.png'; check its name"),
        ("a.png,1", "labels.csv: there is no label of 'b.png'; give every image one"),
        ("a.png,1\nb.png,cat", "labels.csv, line 2: found 'b.png,cat'; give file,label with a class number"),
        ("a.png,1\nb.png", "labels.csv, line 2: found 'b.png'"),
        ("a.png,1\na.png,1", "labels.csv, line 2: 'a.png' has a label already"),
        ("\x00", "labels.csv"),
    ],
)
def test_labels_that_do_not_fit(folder, lines, words):
    root = folder(a=picture(0), b=picture(1))
    (root / "labels.csv").write_text(lines)
    assert words in refused(root, **UNIT)


def test_images_beside_classes(folder):
    assert "'z.png' is in no subfolder but others are" in refused(
        folder(a__1=picture(0), b__1=picture(1), z=picture(2)), **UNIT
    )


def test_numbers_that_are_not_the_order_of_names(folder):
    root = folder(**{f"{index}__1": picture(index) for index in (1, 2, 10)})
    assert "the folder '1' comes as class 0 in the order of names" in refused(root, **UNIT)
    (root / "labels.csv").write_text("1/1.png,1\n2/1.png,2\n10/1.png,10\n")
    assert loaded(root, **UNIT).targets == (1, 10, 2)
