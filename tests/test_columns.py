"""What people keep images in: frames, data sets of rows, generators; missing entries; files that are not images."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.ensemble import IsolationForest

from skl_transformaly import ConformalDetector, ImageError
from skl_transformaly.images._columns import settled
from skl_transformaly.images._images import as_images
from skl_transformaly.model_selection import NormalOnly, SyntheticOutlierScorer


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(2).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def detector(paths):
    return tiny_detector(feature_spaces=["pretrained"]).fit(paths)


@pytest.fixture(scope="module")
def expected(detector, pictures):
    return detector.score_samples(list(pictures))


class Rows:
    """A data set of Hugging Face as it looks from outside."""

    def __init__(self, **columns):
        self.columns_ = columns
        self.column_names = list(columns)
        self.shape = (len(self), len(columns))

    def __len__(self):
        return len(next(iter(self.columns_.values())))

    def __getitem__(self, i):
        if isinstance(i, str):
            return self.columns_[i]
        if not isinstance(i, int):
            raise TypeError(f"{type(i)}")
        if not 0 <= i < len(self):
            raise IndexError(i)
        return {name: column[i] for name, column in self.columns_.items()}


class Polars:
    """A data frame of polars as it looks from outside."""

    def __init__(self, **columns):
        self.columns_ = {name: pd.Series(column) for name, column in columns.items()}
        self.columns = list(columns)
        self.dtypes = ["String"] * len(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __getitem__(self, name):
        return self.columns_[name]


def pil(pictures):
    return [Image.fromarray(picture) for picture in pictures]


FORMS = {
    "frame of one column": lambda paths, pictures: pd.DataFrame({"path": paths}),
    "frame of one column of categories": lambda paths, pictures: pd.DataFrame({"path": pd.Categorical(paths)}),
    "frame of one column of images": lambda paths, pictures: pd.DataFrame({"image": pil(pictures)}),
    "frame of polars": lambda paths, pictures: Polars(path=paths),
    "table of Arrow": lambda paths, pictures: pa.table({"path": paths}),
    "column of Arrow": lambda paths, pictures: pa.table({"path": paths})["path"],
    "array of one column": lambda paths, pictures: np.array(paths)[:, np.newaxis],
    "array of a frame of one column": lambda paths, pictures: pd.DataFrame({"path": paths}).to_numpy(dtype=object),
    "Series with an index": lambda paths, pictures: pd.Series(paths, index=np.arange(12) + 7),
    "Series of strings": lambda paths, pictures: pd.Series(paths, dtype="string"),
    "index": lambda paths, pictures: pd.Index(paths),
    "rows of images and labels": lambda paths, pictures: Rows(label=[0] * 12, image=pil(pictures)),
    "rows of arrays and labels": lambda paths, pictures: Rows(image=list(pictures), label=[0] * 12),
    "rows of paths": lambda paths, pictures: Rows(file=paths),
    "column of rows": lambda paths, pictures: Rows(image=pil(pictures), label=[0] * 12)["image"],
    "generator of paths": lambda paths, pictures: (path for path in paths),
    "generator of arrays": lambda paths, pictures: iter(pictures),
    "map": lambda paths, pictures: map(Image.open, paths),
    "values of a dict": lambda paths, pictures: dict(enumerate(paths)).values(),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:With 12 images")
@pytest.mark.parametrize("form", FORMS)
def test_images_score_alike_however_they_are_kept(form, detector, paths, pictures, expected):
    make = FORMS[form]
    np.testing.assert_allclose(detector.score_samples(make(paths, pictures)), expected, rtol=1e-9)
    again = tiny_detector(feature_spaces=["pretrained"])
    features = again.fit_transform(make(paths, pictures))
    np.testing.assert_allclose(features, detector.transform(paths), rtol=1e-9)
    np.testing.assert_allclose(again.offset_, detector.offset_, rtol=1e-9)
    labels = again.fit_predict(make(paths, pictures))
    np.testing.assert_array_equal(labels, detector.predict(paths))


@pytest.mark.parametrize("form", FORMS)
def test_wrappers_take_images_however_they_are_kept(form, paths, pictures):
    make = FORMS[form]
    for wrapper in (ConformalDetector, NormalOnly):
        options = {"alpha": 0.4, "random_state": 0} if wrapper is ConformalDetector else {}
        y = np.where(np.arange(12) < 10, 1, -1)
        inner = tiny_detector(feature_spaces=["pretrained"])
        y = None if wrapper is ConformalDetector else y
        plain = wrapper(inner, **options).fit(paths, y)
        found = wrapper(inner, **options).fit(make(paths, pictures), y)
        np.testing.assert_allclose(found.score_samples(paths), plain.score_samples(paths), rtol=1e-9)
        np.testing.assert_allclose(found.decision_function(make(paths, pictures)), plain.decision_function(paths))
        labels = wrapper(inner, **options).fit_predict(make(paths, pictures), y)
        np.testing.assert_array_equal(labels, plain.predict(paths))


AMBIGUOUS = {
    "frame": (lambda paths, pictures: pd.DataFrame({"id": range(12), "file": paths}), r"'id', 'file'.*X\['file'\]"),
    "frame of polars": (lambda paths, pictures: Polars(file=paths, label=paths), r"X\['file'\]"),
    "frame of numbered columns": (lambda paths, pictures: pd.DataFrame([[0, path] for path in paths]), r"X\[1\]"),
    "table of Arrow": (lambda paths, pictures: pa.table({"a": paths, "b": paths}), r"'a', 'b'.*X\['a'\]"),
    "rows of two images": (lambda paths, pictures: Rows(left=pictures, right=pictures), r"'left', 'right'"),
    "rows of paths": (lambda paths, pictures: Rows(file=paths, label=[0] * 12), r"'file', 'label'"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_several_columns_are_named(case, detector, paths, pictures):
    make, message = AMBIGUOUS[case]
    for use in (detector.score_samples, tiny_detector().fit):
        with pytest.raises(ValueError, match=f"one column is expected.*|{message}") as caught:
            use(make(paths, pictures))
        assert "column" in str(caught.value) and "pass the one that holds the images" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        detector.score_samples(make(paths, pictures))


def test_splits_of_a_data_set_and_streams_are_refused(detector, pictures):
    class Splits(dict):
        column_names = {"train": ["image"]}

    class Stream:
        column_names = ["image"]

        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match=r"X\['train'\]"):
        detector.score_samples(Splits(train=Rows(image=pictures)))
    with pytest.raises(TypeError, match="without streaming"):
        detector.score_samples(Stream())


def test_rows_without_entries_are_no_images(detector):
    with pytest.raises(ValueError, match="no image in X"):
        detector.score_samples(Rows(image=[], label=[]))


def test_a_column_of_rows_goes_to_other_processes(pictures):
    column = pickle.loads(pickle.dumps(settled(Rows(image=list(pictures), label=[0] * 12))))
    np.testing.assert_array_equal(as_images(column)[-1], pictures[-1])


def test_frames_of_numbers_are_rows(rng):
    frame = pd.DataFrame(rng.random((30, 4)), columns=list("abcd"))
    assert settled(frame) is frame
    forest = ConformalDetector(IsolationForest(random_state=0), alpha=0.3, random_state=0).fit(frame)
    assert forest.feature_names_in_.tolist() == list("abcd")


@pytest.mark.parametrize("item", [{"image": 1, "label": 2}, {"bytes": b"", "path": "a.png"}])
def test_dicts_among_images_name_their_keys(item, detector):
    with pytest.raises(TypeError, match=f"image 0.*keys {', '.join(map(repr, item))}.*item\\[key\\]"):
        detector.score_samples([item])


# Missing entries

MISSING = {"None": None, "nan": float("nan"), "numpy nan": np.float32("nan"), "NA": pd.NA, "NaT": pd.NaT}
KINDS = {
    "list": list,
    "tuple": tuple,
    "array": lambda items: pd.Series(items, dtype=object).to_numpy(),
    "Series": lambda items: pd.Series(items, dtype=object),
    "frame": lambda items: pd.DataFrame({"path": pd.Series(items, dtype=object)}),
    "generator": iter,
}


@settings(max_examples=60, deadline=None)
@given(
    places=st.sets(st.integers(0, 11), min_size=1, max_size=11),
    missing=st.sampled_from(list(MISSING)),
    kind=st.sampled_from(list(KINDS)),
    form=st.sampled_from(["paths", "images", "arrays"]),
)
def test_missing_entries_are_named_or_score_nan(places, missing, kind, form, detector, paths, pictures, expected):
    items = {"paths": list(paths), "images": pil(pictures), "arrays": list(pictures)}[form]
    for place in places:
        items[place] = MISSING[missing]
    with pytest.raises(ImageError, match=f"^image {min(places)}: is missing"):
        detector.score_samples(KINDS[kind](items))
    detector.set_params(on_error="skip")
    try:
        with pytest.warns(UserWarning, match="could not be read.*is missing"):
            scores = detector.score_samples(KINDS[kind](items))
    finally:
        detector.set_params(on_error="raise")
    kept = np.array([i not in places for i in range(12)])
    np.testing.assert_allclose(scores[kept], expected[kept], rtol=1e-9)
    assert np.isnan(scores[~kept]).all()


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_missing_entries_of_a_series_of_any_dtype_score_nan(dtype, paths, expected):
    series = pd.Series(paths)
    series[0] = None
    skipping = tiny_detector(feature_spaces=["pretrained"], on_error="skip").fit(paths)
    with pytest.warns(UserWarning, match="image 0: is missing"):
        scores = skipping.score_samples(series.astype(dtype))
    assert np.isnan(scores[0])
    np.testing.assert_allclose(scores[1:], expected[1:], rtol=1e-9)


def test_missing_entries_are_left_out_of_a_fit(paths):
    with pytest.warns(UserWarning, match="1 of 13 images could not be read"):
        found = tiny_detector(feature_spaces=["pretrained"], on_error="skip").fit([None, *paths])
    np.testing.assert_allclose(found.offset_, tiny_detector(feature_spaces=["pretrained"]).fit(paths).offset_)


# Paths


def test_one_image_says_to_pass_a_list(detector, pictures):
    with pytest.raises(TypeError, match=r"Pass one image as \[image\]"):
        detector.score_samples(Image.fromarray(pictures[0]))


def test_a_tilde_is_the_home_folder(paths, detector, expected, monkeypatch):
    from pathlib import Path

    home = Path(paths[0]).parent.parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    short = [f"~/{Path(path).relative_to(home)}" for path in paths]
    for X in (short, [Path(path) for path in short], f"~/{Path(paths[0]).parent.name}"):
        np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-9)


def test_a_file_named_with_a_tilde_is_itself(tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    os.mkdir("~")
    Image.fromarray(pictures[0]).save("~/0.png")
    np.testing.assert_array_equal(as_images(["~/0.png"])[0], pictures[0])
    assert len(as_images("~")) == 1


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://a/b", "s3://bucket/a.png", "file:///a.png"])
def test_urls_say_to_download(url, detector):
    for X in ([url], url, pd.Series([url])):
        with pytest.raises(ValueError, match="is a URL: download"):
            detector.score_samples(X)


# Files that are not images


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", b"png")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return buffer.getvalue()


def arrays():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


VIDEOS = {
    "mp4": b"\0\0\0\x20ftypisom" + bytes(50),
    "mov": b"\0\0\0\x14ftypqt  " + bytes(50),
    "avi": b"RIFF\x10\0\0\0AVI LIST" + bytes(50),
    "mkv": b"\x1a\x45\xdf\xa3" + bytes(50),
    "webm": b"\x1a\x45\xdf\xa3" + bytes(50),
    "mpg": b"\0\0\1\xba" + bytes(50),
}
OTHERS = {
    **{suffix: (content, "is a video.*frames") for suffix, content in VIDEOS.items()},
    "zip": (zipped(), "is an archive: unpack"),
    "tar": (tarred(), "is an archive: unpack"),
    "tar.gz": (gzip.compress(tarred()), "is an archive: unpack"),
    "tgz": (gzip.compress(tarred()), "is an archive: unpack"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "is an archive: unpack"),
    "pdf": (b"%PDF-1.4\n%%EOF\n", "is a PDF: save its pages"),
    "npy": (arrays(), r"numpy\.load"),
    "npz": (zipped(), r"numpy\.load"),
    "dcm": (bytes(128) + b"DICM", "pydicom"),
    "csv": (b"path\na.png\n", "is a table"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "h5py"),
}


@pytest.mark.parametrize("suffix", OTHERS)
def test_files_that_are_not_images_say_what_they_are(suffix, detector, tmp_path):
    content, message = OTHERS[suffix]
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"file\.{suffix}.*{message}") as caught:
        detector.score_samples([path])
    assert "repair" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"file\.{suffix}.*{message}"):
        detector.score_samples(path)
    with pytest.raises(ValueError, match=rf"Found no image.*{message}"):
        detector.score_samples(tmp_path)


@pytest.mark.parametrize("suffix", [*VIDEOS, "zip", "tar", "tar.gz", "pdf", "npy", "dcm", "h5"])
@pytest.mark.parametrize("name", ["file", "file.png"])
def test_files_that_are_not_images_are_known_by_their_content(name, suffix, detector, tmp_path):
    content, message = OTHERS[suffix]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}.*{message}"):
        detector.score_samples([tmp_path / name])


@pytest.mark.parametrize("content", [b"\x89PNG", bytearray(b"\x89PNG"), memoryview(b"\x89PNG")])
def test_bytes_say_how_to_open_them(content, detector):
    for X in (content, [content]):
        with pytest.raises(TypeError, match=r"PIL\.Image\.open\(io\.BytesIO\(content\)\)"):
            detector.score_samples(X)


def test_open_files_say_how_to_open_them(detector, paths):
    with open(paths[0], "rb") as file:
        for X in (file, [file], [io.BytesIO(b"")]):
            with pytest.raises(TypeError, match=r"PIL\.Image\.open\(file\)"):
                detector.score_samples(X)


def test_a_loader_says_to_pass_its_data_set(detector, pictures):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(pictures)))
    with pytest.raises(TypeError, match=r"loader\.dataset"):
        detector.score_samples(loader)


# Images in memory


@settings(max_examples=40, deadline=None)
@given(
    high=st.integers(5, 30),
    wide=st.integers(5, 30),
    channels=st.sampled_from([1, 3, 4]),
    listed=st.booleans(),
)
def test_tensors_with_channels_last_say_to_permute(high, wide, channels, listed):
    tensor = torch.zeros(2, high, wide, channels, dtype=torch.uint8)
    advice = r"permute\(2, 0, 1\)" if listed else r"permute\(0, 3, 1, 2\)"
    with pytest.raises(ImageError, match=f"channels last.*{advice}"):
        as_images(list(tensor) if listed else tensor)[0]
    right = tensor.permute(0, 3, 1, 2)
    assert as_images(list(right) if listed else right)[0].shape == (high, wide, channels)


def closed_images(path):
    closed = Image.open(path)
    closed.close()
    with Image.open(path) as left:
        pass
    loaded = Image.open(path)
    loaded.load()
    loaded.close()
    made = Image.new("RGB", (24, 20))
    made.close()
    return {"closed": closed, "left": left, "loaded and closed": loaded, "made and closed": made}


@pytest.mark.parametrize("case", ["closed", "left", "loaded and closed", "made and closed"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_closed_images_are_refused_as_closed(case, kind, tmp_path, pictures, detector):
    Image.fromarray(pictures[0]).save(tmp_path / "image", format=kind)
    with pytest.raises(ImageError, match="image 0: the PIL image was closed.*load") as caught:
        detector.score_samples([closed_images(tmp_path / "image")[case]])
    assert "repair" not in str(caught.value)


def test_an_image_that_was_loaded_before_its_file_was_closed_is_scored(paths, detector, expected):
    with Image.open(paths[0]) as image:
        image.load()
    np.testing.assert_allclose(detector.score_samples([image]), expected[:1], rtol=1e-9)


def test_a_scorer_reads_an_iterator_once(detector, pictures):
    scorer = SyntheticOutlierScorer("channels")
    assert scorer(detector, iter(pictures)) == scorer(detector, list(pictures))


def test_a_parameter_that_is_an_iterator_is_refused(pictures):
    detector = ConformalDetector(tiny_detector(), calibration=(iter(pictures),))
    with pytest.raises(ValueError, match="holds an iterator, which can be read only once"):
        detector.fit(pictures)
