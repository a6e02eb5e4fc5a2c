"""Every form of image gives the same pixels; every fault is named."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import tiny_detector, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, ImageSequence

from skl_transformaly import ImageError
from skl_transformaly.datasets import load
from skl_transformaly.images._folders import list_images
from skl_transformaly.images._images import as_images
from skl_transformaly.images._pixels import file_shape


def save_all(images, folder):
    paths = [folder / f"{i:03} ü.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    return paths


class ListDataset(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def as_tensor(image):
    return torch.from_numpy(np.moveaxis(image, -1, 0).copy())


FORMS = {
    "rows": lambda X, folder: X.reshape(len(X), -1),
    "list of arrays": lambda X, folder: list(X),
    "list of (array, label)": lambda X, folder: [(x, 0) for x in X],
    "list of (PIL, label)": lambda X, folder: [(Image.fromarray(x), 0) for x in X],
    "paths": save_all,
    "str paths": lambda X, folder: [str(p) for p in save_all(X, folder)],
    "array of paths": lambda X, folder: np.array([str(p) for p in save_all(X, folder)]),
    "folder": lambda X, folder: (save_all(X, folder), folder)[1],
    "PIL images": lambda X, folder: [Image.fromarray(x) for x in X],
    "tensor": lambda X, folder: torch.stack([as_tensor(x) for x in X]),
    "list of tensors": lambda X, folder: [as_tensor(x) for x in X],
    "Dataset of tensors": lambda X, folder: ListDataset([as_tensor(x) for x in X]),
    "Dataset of (PIL, label)": lambda X, folder: ListDataset([(Image.fromarray(x), 0) for x in X]),
    "float": lambda X, folder: X / 255,
    "int64": lambda X, folder: X.astype(np.int64),
    "uint16": lambda X, folder: X.astype(np.uint16) * 257,
    "Fortran order": lambda X, folder: np.asfortranarray(X),
    "negative strides": lambda X, folder: X[::-1].copy()[::-1],
    "read-only": lambda X, folder: np.frombuffer(X.tobytes(), np.uint8).reshape(X.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_scores_do_not_depend_on_the_form_of_the_images(form, fitted, tmp_path):
    detector, X = fitted
    other = FORMS[form](X, tmp_path)
    if form == "rows":
        detector = tiny_detector(image_shape=X.shape[1:]).fit(other)
    np.testing.assert_allclose(detector.score_samples(other), detector.score_samples(X), rtol=1e-9)


@pytest.mark.parametrize("form", ["rows", "folder", "PIL images", "Dataset of tensors"])
def test_fit_does_not_depend_on_the_form_of_the_images(form, fitted, tmp_path):
    detector, X = fitted
    shape = X.shape[1:] if form == "rows" else None
    other = tiny_detector(image_shape=shape).fit(FORMS[form](X, tmp_path))
    np.testing.assert_allclose(other.offset_, detector.offset_, rtol=1e-9)


def test_grey_images_equal_the_same_grey_in_colour(fitted, rng):
    grey = rng.integers(0, 256, (3, 20, 24), dtype=np.uint8)
    detector, _ = fitted
    colour = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_allclose(detector.score_samples(list(grey)), detector.score_samples(colour), rtol=1e-9)


def test_grey_arrays_after_colour_arrays_are_to_be_a_list(fitted):
    detector, X = fitted
    grey = X.mean(axis=-1).astype(np.uint8)
    with pytest.raises(ValueError, match=r"list\(X\), if grey and colour"):
        detector.predict(grey)
    assert len(detector.predict(list(grey))) == len(X)


def decoded(path):
    return as_images([path])[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_opaque_pillow_modes_decode_as_pillow_converts_them(mode, tmp_path, images):
    picture = Image.fromarray(images[0]).convert(mode)
    path = tmp_path / "picture.tif"
    if mode in ("HSV", "YCbCr"):  # files come back in another mode
        array = as_images([picture])[0]
    else:
        picture.save(path)
        array = decoded(path)
        picture = Image.open(path)
    expected = np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"))
    np.testing.assert_array_equal(array.squeeze(), expected)


def preprocessed(fitted, image):
    return fitted[0].extractor_.preprocess([as_images([image])[0]]).numpy()


def test_transparency_is_laid_on_white(fitted, images, rng):
    alpha = np.full((20, 24, 1), 64, np.uint8)
    flat = np.rint(images[0] * (64 / 255) + (255 - 64)).astype(np.uint8)
    rgba = np.concatenate([images[0], alpha], axis=-1)
    np.testing.assert_array_equal(preprocessed(fitted, rgba), preprocessed(fitted, flat))
    half = rng.random((20, 24, 4))
    expected = half[..., :3] * half[..., 3:] + 1 - half[..., 3:]
    np.testing.assert_allclose(preprocessed(fitted, half), preprocessed(fitted, expected), atol=1e-12)


def test_transparent_palette_and_grey_alpha_become_rgba(tmp_path, images):
    palette = Image.fromarray(images[0]).convert("P")
    palette.info["transparency"] = 0
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(images[0]).convert("LA").save(tmp_path / "grey.png")
    assert decoded(tmp_path / "palette.png").shape == (20, 24, 4)
    assert decoded(tmp_path / "grey.png").shape == (20, 24, 4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_keep_their_full_range(suffix, tmp_path, rng, fitted):
    deep = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(decoded(tmp_path / f"deep.{suffix}")[..., 0], deep)
    np.testing.assert_allclose(
        preprocessed(fitted, tmp_path / f"deep.{suffix}"), preprocessed(fitted, deep / 65535), atol=1e-12
    )


def test_float_tiff_is_taken_as_0_to_1(tmp_path, rng):
    picture = rng.random((20, 24), dtype=np.float32)
    Image.fromarray(picture).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(decoded(tmp_path / "float.tif")[..., 0], picture)


def test_exif_orientation_turns_the_image_upright(tmp_path, images):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(images[0]).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decoded(tmp_path / "turned.png"), np.rot90(images[0], -1))


def no_memory(*_, **__):
    raise MemoryError


def test_lack_of_memory_is_not_taken_for_a_broken_header(tmp_path, images, monkeypatch):
    Image.fromarray(images[0]).save(tmp_path / "photo.png")
    monkeypatch.setattr(ImageOps, "exif_transpose", no_memory)
    with pytest.raises(MemoryError, match="not enough memory to decode"):
        as_images([tmp_path / "photo.png"])[0]


def test_lack_of_memory_is_not_taken_for_a_file_that_is_not_an_image(tmp_path, images, monkeypatch):
    Image.fromarray(images[0]).save(tmp_path / "photo", format="png")
    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        list_images(tmp_path)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (8, 6), value) for value in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert decoded(tmp_path / "moving.gif").max() == 10


def test_png_named_jpg_is_read_by_its_content(tmp_path, images):
    Image.fromarray(images[0]).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "claims.jpg")
    np.testing.assert_array_equal(decoded(tmp_path / "claims.jpg"), images[0])


@pytest.mark.filterwarnings("ignore:Passed over")
def test_folder_lists_images_below_it_and_nothing_else(tmp_path, images):
    for name in ("b/2.PNG", "a/1.png", "0.png", ".hidden.png", ".hidden/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[0]).save(tmp_path / name, format="png")
    (tmp_path / "notes.txt").write_text("no image")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["0.png", "a/1.png", "b/2.PNG"]


def test_images_of_different_sizes_score_as_alone(fitted, images):
    detector, _ = fitted
    mixed = [images[0], images[1][:10, :9], images[2][:, :, 0]]
    alone = [detector.score_samples([image])[0] for image in mixed]
    np.testing.assert_allclose(detector.score_samples(mixed), alone, rtol=1e-9)


# Faults


def broken_files(folder, images):
    Image.fromarray(images[0]).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("this is no image")
    (folder / "empty.png").write_bytes(b"")
    return [folder / "truncated.png", folder / "text.png", folder / "empty.png", folder / "missing.png"]


def test_each_unreadable_file_is_named(tmp_path, images, fitted):
    for path in broken_files(tmp_path, images):
        with pytest.raises(ImageError, match=path.name):
            fitted[0].score_samples([tmp_path / "whole.png", path])


def test_skipping_scores_nan_in_place(tmp_path, images, fitted):
    broken = broken_files(tmp_path, images)
    detector, X = fitted
    detector = tiny_detector(on_error="skip").fit(X)
    with pytest.warns(UserWarning, match="4 of 6 images could not be read.*truncated.png"):
        scores = detector.score_samples([tmp_path / "whole.png", *broken, tmp_path / "whole.png"])
    assert np.isnan(scores[1:5]).all()
    np.testing.assert_allclose(scores[[0, 5]], detector.score_samples(images[:1])[0], rtol=1e-9)


def test_skipping_fits_on_the_readable_images(tmp_path, images):
    paths = save_all(images, tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_text("no")
    with pytest.warns(UserWarning, match="1 of 13 images could not be read"):
        skipping = tiny_detector(on_error="skip").fit([*paths[:5], broken, *paths[5:]])
    np.testing.assert_allclose(skipping.offset_, tiny_detector().fit(paths).offset_, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_is_warned_of_once_and_not_read_again(tmp_path, images):
    """Trimming measures the images before those that are left are learned."""
    broken = tmp_path / "broken.png"
    broken.write_text("no")
    sequence = as_images([*save_all(images, tmp_path), broken], on_error="skip")
    with pytest.warns(UserWarning, match="1 of 13 images could not be read"):
        list(sequence.batches(4))
    taken = sequence.take([12, 3, 4])
    assert [positions.tolist() for positions, _ in taken.batches(4)] == [[1, 2]]
    assert list(taken.unreadable) == [0]


def test_skipping_says_minus_one_of_what_it_cannot_read(tmp_path, images):
    detector = tiny_detector(on_error="skip", contamination=0.1).fit(images)
    with pytest.warns(UserWarning, match="could not be read"):
        assert detector.predict([*images[:2], tmp_path / "missing.png"])[2] == -1


def test_the_first_images_may_be_the_unreadable_ones(tmp_path, images):
    with pytest.warns(UserWarning, match="2 of 14 images could not be read"):
        skipping = tiny_detector(on_error="skip").fit([tmp_path / "a.png", tmp_path / "b.png", *images])
    np.testing.assert_allclose(skipping.offset_, tiny_detector().fit(images).offset_, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:2 of 2 images could not be read")
@pytest.mark.parametrize("spaces", [["pretrained"], ["discrepancy"], ["pretrained", "discrepancy"]])
def test_nothing_but_unreadable_images(spaces, tmp_path, images):
    """Scores are all NaN; a fit is an error."""
    detector = tiny_detector(on_error="skip", feature_spaces=spaces).fit(images)
    missing = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.warns(UserWarning, match="2 of 2 images"):
        assert np.isnan(detector.score_samples(missing)).all()
    with pytest.warns(UserWarning, match="2 of 2 images"):
        assert detector.transform(missing).shape == (2, detector.get_feature_names_out().size)
    with pytest.raises(ValueError, match=r"could be read.*a\.png"):
        tiny_detector(on_error="skip", feature_spaces=spaces).fit(missing)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch, images):
    Image.fromarray(images[0]).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="bomb.png.*MAX_IMAGE_PIXELS"):
        decoded(tmp_path / "bomb.png")


WRONG = {
    "NaN": (np.full((4, 8, 8), np.nan), ValueError, "NaN or infinity"),
    "infinity": (np.full((4, 8, 8), np.inf), ValueError, "NaN or infinity"),
    "two channels": (np.zeros((4, 8, 8, 2)), ValueError, "2 channels"),
    "channels first": (np.zeros((4, 3, 8, 8)), ValueError, "moveaxis"),
    "five dimensions": (np.zeros((4, 1, 8, 8, 3)), ValueError, "shape"),
    "no pixels": (np.zeros((4, 0, 8, 3)), ValueError, "no pixels"),
    "no images": (np.zeros((0, 8, 8, 3)), ValueError, "0 sample"),
    "complex": (np.zeros((4, 8, 8), complex), ValueError, "complex"),
    "a number": (3, (TypeError, ValueError), "Cannot read images"),
    "a PIL image alone": (Image.new("L", (8, 8)), TypeError, "Cannot read images"),
    "an empty list": ([], ValueError, "no image in X"),
    "None inside": ([Image.new("L", (8, 8)), None], ImageError, "image 1: is missing"),
    "a missing folder": ("no/such/folder", ValueError, "no/such/folder"),
    "one image to fit": (np.zeros((1, 8, 8)), ValueError, "n_samples = 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_says_what_is_wrong(case):
    X, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        tiny_detector().fit(X)


def test_a_file_instead_of_a_folder_says_so(tmp_path, images):
    path = save_all(images[:1], tmp_path)[0]
    with pytest.raises(ValueError, match=r"pass a list: \[path\]"):
        tiny_detector().fit(path)


@pytest.mark.parametrize("kind", ["names", "paths", "PIL images"])
def test_lists_of_images_within_a_list_are_refused(kind, tmp_path):
    image = Image.new("RGB", (8, 8))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        image.save(path)
    items = {"names": [str(path) for path in paths], "paths": paths, "PIL images": [image] * 3}[kind]
    with pytest.raises(TypeError, match="image 0: an item of X is a list of 3 images"):
        list(as_images([items, items]).batches(2))


def test_a_name_of_a_class_may_come_with_a_path(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(list(as_images([(str(tmp_path / "a.png"), "good")]).batches(2))) == 1


def test_an_iterable_dataset_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="map-style"):
        tiny_detector().fit(Stream())


@pytest.mark.parametrize(
    "X, message",
    [
        (np.arange(4 * 49, dtype=np.uint16).reshape(4, 7, 7), "cast 8-bit values"),
        (np.arange(4 * 12.0).reshape(4, 12) / 48, "image_shape"),
    ],
)
def test_suspicious_values_are_warned_of(X, message):
    with pytest.warns(UserWarning, match=message):
        tiny_detector(feature_spaces=["pretrained"]).fit(X)


def test_another_array_shape_at_scoring_is_refused(fitted):
    with pytest.raises(ValueError, match=r"shape \(24, 20, 3\).*fitted on.*\(20, 24, 3\)"):
        fitted[0].score_samples(np.zeros((2, 24, 20, 3), np.uint8))


def test_one_image_is_not_taken_for_rows(tmp_path, images):
    detector = tiny_detector(feature_spaces=["pretrained"]).fit(save_all(images, tmp_path))
    with pytest.raises(ValueError, match="newaxis"):
        detector.score_samples(images[0, :, :, 0])


@pytest.mark.parametrize("shape", [(20, 24, 3), (5, 5, 4)])
@pytest.mark.parametrize("kind", ["array", "tensor", "channels first"])
def test_one_image_in_colour_is_not_taken_for_grey_ones(shape, kind):
    """The message tells what to pass for either, and that works."""
    X = np.zeros(shape, np.uint8)
    X = {"array": X, "tensor": torch.from_numpy(X), "channels first": torch.from_numpy(np.moveaxis(X, 2, 0))}[kind]
    with pytest.raises(ValueError, match="may be one image in colour or .* grey images") as caught:
        as_images(X)
    one, grey = re.search(r"For the one, pass (.*); for the others, (.*)\.$", str(caught.value)).groups()
    names = {"image": X, "images": X, "np": np}
    assert as_images(eval(one, names))[0].shape == shape
    assert len(as_images(eval(grey, names))) == len(X)


@pytest.mark.parametrize("X", [np.arange(5.0), np.arange(5), [1, 2, 3]], ids=str)
def test_a_row_of_numbers_gets_no_advice_for_tables(X):
    with pytest.raises(ValueError, match=r"^Got one row of \d numbers\..* Expected images as"):
        tiny_detector().fit(X)


def test_image_shape_must_fit_the_rows():
    with pytest.raises(ValueError, match="image_shape=.*12"):
        tiny_detector(image_shape=(3, 5)).fit(np.zeros((4, 12)))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, bool, np.float32, np.float64]),
    seed=st.integers(0, 2**16),
)
def test_any_image_is_resized_within_its_range(fitted, shape, dtype, seed):
    high = {np.uint8: 255, np.uint16: 65535, np.int32: 255}.get(dtype, 1)
    image = (np.random.default_rng(seed).random(shape) * high).astype(dtype)
    if image.dtype == np.uint16:
        image.flat[0] = 65535
    batch = preprocessed(fitted, image)
    assert batch.shape == (1, 3, 32, 32)
    # timm's test models normalise by mean 0.5 and standard deviation 0.5
    assert np.isfinite(batch).all() and batch.min() >= -1 - 1e-9 and batch.max() <= 1 + 1e-9


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_sides_of_the_upright_image(tmp_path, images, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(images[0]).save(path, exif=exif)
    assert file_shape(path) == decoded(path).shape[:2]


def test_each_frame_of_an_iterator_is_an_image(tmp_path):
    frames = [Image.new("L", (8, 6), value) for value in (10, 90, 200)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "stack.tif") as stack:
        found = as_images(ImageSequence.Iterator(stack))
        assert [image.max() for image in found] == [10, 90, 200]
        with pytest.raises(ValueError, match="several frames more than once.*copies"):
            as_images(list(ImageSequence.Iterator(stack)))
        stack.seek(1)
        assert as_images([stack])[0].max() == 90  # the one that it shows


def test_images_are_found_again_from_another_folder(tmp_path, images, monkeypatch):
    folder = tmp_path / "in"
    write_images(folder, images[:3])
    monkeypatch.chdir(tmp_path)
    few, whole = as_images(["in/000.png", "in/001.png"]), as_images("in")
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(few[1], images[1])
    np.testing.assert_array_equal(whole[2], images[2])
    (folder / "001.png").unlink()
    with pytest.raises(ImageError, match=r"^'in/001\.png': the file does not exist"):  # as it was given
        few[1]


def test_a_folders_name_that_was_taken_apart_is_told_of():
    with pytest.raises(ImageError, match=r"letter of a folder's name.*pass the folder's files"):
        as_images(list("photos"))[0]


def test_images_that_are_skipped_are_skipped_together_with_arrays(tmp_path, images):
    write_images(tmp_path / "in", images[:6])
    (tmp_path / "in" / "002.png").write_bytes(b"not an image")
    for more in (images[6:], list(images[6:])):
        with pytest.warns(UserWarning, match="1 of .* images could not be read"):
            detector = tiny_detector(on_error="skip").fit(tmp_path / "in").partial_fit(more)
        assert np.flatnonzero(np.isnan(detector.training_scores_)).tolist() == [2]


def test_images_of_a_loaded_data_set_are_skipped(tmp_path, images):
    for kind in ("train/good", "train/bad", "test/good", "test/bad"):
        write_images(tmp_path / kind, images[:4])
    (tmp_path / "test" / "bad" / "001.png").write_bytes(b"not an image")
    data = load(tmp_path)
    with pytest.warns(UserWarning, match="could not be read"):
        scores = tiny_detector(on_error="skip").fit(data.X_train).score_samples(data.X_test)
    assert np.isnan(scores).sum() == 1


def test_a_fit_on_a_loaded_data_set_forgets_the_features_of_an_array(tmp_path, images):
    for kind in ("train/good", "train/bad", "test/good", "test/bad"):
        write_images(tmp_path / kind, images[:4])
    detector = tiny_detector().fit(images)
    assert detector.n_features_in_ == images[0].size
    assert not hasattr(detector.fit(load(tmp_path).X_train), "n_features_in_")


class Opened(torch.utils.data.Dataset):
    """Files that are opened when they are asked for, as in torchvision's ImageFolder."""

    def __init__(self, paths, fails=Image.open):
        self.paths, self.fails = paths, fails

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        if i == 2:
            self.fails(self.paths[i])
        return Image.open(self.paths[i]).convert("RGB"), 0


def unplugged(path):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("fails", [Image.open, unplugged])
def test_files_that_a_data_set_cannot_open_are_named_or_skipped(tmp_path, images, fails):
    write_images(tmp_path / "in", images[:6])
    (tmp_path / "in" / "002.png").write_bytes(b"not an image")
    data = Opened(sorted((tmp_path / "in").iterdir()), fails)
    with pytest.raises(ImageError, match="image 2: cannot be read"):
        tiny_detector().fit(data)
    with pytest.warns(UserWarning, match="1 of 6 images could not be read"):
        scores = tiny_detector(on_error="skip").fit(data).training_scores_
    assert np.flatnonzero(np.isnan(scores)).tolist() == [2]


def test_heic_files_in_a_list_are_read_in_a_new_process(tmp_path, images):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(np.kron(images[0], np.ones((4, 4, 1), np.uint8))).save(tmp_path / "phone.heic")
    script = (
        "import sys; from skl_transformaly.images._images import as_images; print(as_images(sys.argv[1:])[0].shape)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "phone.heic")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(80, 96, 3)"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_images_of_more_than_eight_bits_have_thumbnails(channels, dtype):
    """Of values between those of 8 bits, too; those of grey images must not be cut off to black and white."""
    fine = np.random.default_rng(0).random((6, 20, 24, channels))
    X = (fine * 65535).astype(np.uint16) if dtype == "uint16" else fine.astype(dtype)
    images, coarse = as_images(X), as_images(np.rint(fine * 255).astype(np.uint8))
    for found in (images, coarse):
        found.thumbnails = {}
        list(found.batches(4))
    for i in range(6):
        np.testing.assert_allclose(images.thumbnails[i].astype(int), coarse.thumbnails[i].astype(int), atol=1)
