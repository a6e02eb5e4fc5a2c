"""Labelled images from folders and .npz files, and the paper's two settings."""

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit

from skl_transformaly import ImageError
from skl_transformaly.datasets import ImageDataset, load, multimodal, unimodal
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.utils._missing import is_missing


def write_folders(root, rng, files):
    """Write random images without loss, and return their pixels by name."""
    pixels = {name: rng.integers(0, 256, (6, 5, 3), dtype=np.uint8) for name in files}
    for name, image in pixels.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name, format="PNG")
    return pixels


def split_files(train="train", test="test", classes=("cat", "dog"), n=3):
    return [f"{part}/{c}/{i}.png" for part in (train, test) for c in classes for i in range(n)]


def names_of(X):
    """Which file each image is, as messages about it tell."""
    return [Path(X._name(i).strip("'")) for i in range(len(X))]


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# ------------------------------------------------------------------ class folders


@pytest.mark.parametrize("train, test", [("train", "test"), ("TRAIN", "Val"), ("training_set", "test_set")])
def test_split_folders(train, test, tmp_path, rng):
    pixels = write_folders(tmp_path, rng, split_files(train, test))
    data = load(tmp_path)
    assert data.name == tmp_path.name and data.class_names == ["cat", "dog"]
    assert data.y_train.tolist() == data.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    for part, X in ((train, data.X_train), (test, data.X_test)):
        expected = [pixels[f"{part}/{c}/{i}.png"] for c in ("cat", "dog") for i in range(3)]
        assert all((got == want).all() for got, want in zip(X[:], expected, strict=True))


def test_training_and_test_folders_of_any_name(tmp_path, rng):
    write_folders(tmp_path, rng, split_files("monday", "tuesday"))
    data = load(tmp_path / "monday", tmp_path / "tuesday")
    assert names_of(data.X_test)[0] == tmp_path / "tuesday/cat/0.png" and len(data.X_train) == 6


def test_images_are_opened_when_they_are_used(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    (tmp_path / "train/cat/1.png").write_bytes(b"no image")
    data = load(tmp_path)
    X_train, _, _ = unimodal(data, "cat")
    assert X_train[0].shape == (6, 5, 3)
    with pytest.raises(ImageError, match=re.escape(str(Path("train/cat/1.png")))):
        X_train[1]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_no_file_stays_open(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    before = len(os.listdir("/proc/self/fd"))
    data = load(tmp_path)
    data.X_train[0]
    assert len(os.listdir("/proc/self/fd")) == before


def test_messy_names_and_strangers_in_folders(tmp_path, rng):
    kept = ["train/viral pneumonia/a (1).PNG", "train/viral pneumonia/sub/b.JpEg", "train/ok/c d.png"]
    kept += ["test/viral pneumonia/x.png", "test/ok/y.png"]
    write_folders(tmp_path, rng, kept)
    write_folders(tmp_path, rng, ["train/ok/.hidden.png", "train/.git/z.png", "__MACOSX/train/ok/._c.png"])
    (tmp_path / "train/ok/Thumbs.db").write_bytes(b"")
    (tmp_path / "train/empty").mkdir()
    data = load(tmp_path)
    assert data.class_names == ["ok", "viral pneumonia"]
    assert sorted(names_of(data.X_train)) == sorted(tmp_path / name for name in kept[:3])


def test_test_folder_is_preferred_to_validation(tmp_path, rng):
    write_folders(tmp_path, rng, split_files() + split_files("valid", "val", n=5))
    assert len(load(tmp_path).y_test) == 6


@pytest.mark.parametrize("part, other", [("train", "test"), ("test", "train")])
def test_class_in_one_part_only_is_named(part, other, tmp_path, rng):
    write_folders(tmp_path, rng, [*split_files(), f"{part}/owl/0.png"])
    with pytest.raises(ValueError, match="only one part has images of 'owl'"):
        load(tmp_path)


def test_folders_without_a_split_are_split_by_seed(tmp_path, rng):
    files = [f"{c}/{i:02d}.png" for c, n in (("Negative", 12), ("Positive", 8)) for i in range(n)]
    write_folders(tmp_path, rng, files)
    data = load(tmp_path, test_size=0.25, random_state=3)
    assert np.bincount(data.y_train).tolist() == [9, 6] and np.bincount(data.y_test).tolist() == [3, 2]
    train, test = names_of(data.X_train), names_of(data.X_test)
    assert sorted(train + test) == [tmp_path / name for name in files]
    for paths, y in ((train, data.y_train), (test, data.y_test)):
        assert [path.parent.name for path in paths] == [data.class_names[k] for k in y]
    # scikit-learn's splitter over the sorted files
    _, expected = next(StratifiedShuffleSplit(1, test_size=0.25, random_state=3).split(files, [0] * 12 + [1] * 8))
    assert test == sorted(tmp_path / files[i] for i in expected)


def test_a_folder_too_high_is_refused(tmp_path, rng):
    write_folders(tmp_path, rng, split_files("a/train", "a/test") + split_files("b/train", "b/test"))
    with pytest.raises(ValueError, match=r"Training and test folders are in '.*a', '.*b', not in"):
        load(tmp_path)
    write_folders(tmp_path / "c", rng, ["photos/cat/0.png", "photos/dog/0.png"])
    with pytest.raises(ValueError, match="images of only one class, 'photos'"):
        load(tmp_path / "c")


def test_split_depends_on_the_seed_only(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    one, same, other = (names_of(load(tmp_path, random_state=seed).X_test) for seed in (0, 0, 1))
    assert one == same != other


def test_class_of_one_image_cannot_be_split(tmp_path, rng):
    write_folders(tmp_path, rng, ["a/0.png", "a/1.png", "b/0.png"])
    with pytest.raises(ValueError, match="only one image of 'b'"):
        load(tmp_path)


def test_split_that_leaves_a_class_without_test_images_is_refused(tmp_path, rng):
    write_folders(tmp_path, rng, [f"a/{i:02d}.png" for i in range(30)] + ["b/0.png", "b/1.png"])
    with pytest.raises(ValueError, match="only one part has images of 'b'"):
        load(tmp_path, test_size=0.1)


def test_unlabelled_train_and_test_are_not_two_classes(tmp_path, rng):
    write_folders(tmp_path, rng, ["train/0.png", "train/1.png", "test/0.png", "test/1.png"])
    with pytest.raises(ValueError, match="no class folders"):
        load(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Testing"])
def test_validation_beside_unlabelled_test_images(val, tmp_path, rng):
    write_folders(tmp_path, rng, [*split_files("train", val), "test/0.png", "test/1.png"])
    assert names_of(load(tmp_path).X_test)[0] == tmp_path / val / "cat/0.png"


def test_images_may_be_nested_within_their_class(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}/{i}.png" for c in "ab" for i in range(5)] + ["b/more/6.png", "c/x/7.png"])
    write_folders(tmp_path, rng, ["c/y/8.png"])
    data = load(tmp_path)
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).tolist() == [5, 6, 2]


def test_a_folder_without_images_is_warned_of(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    (tmp_path / "train/owl").mkdir()
    with pytest.warns(UserWarning, match="There are no images in 'owl'") as caught:
        assert load(tmp_path).class_names == ["cat", "dog"]
    assert caught[0].filename == __file__


def test_images_beside_class_folders_are_warned_of(tmp_path, rng):
    write_folders(tmp_path, rng, [*(f"{c}/{i}.png" for c in "ab" for i in range(5)), "1.png", "2.jpg"])
    (tmp_path / "read.me").write_text("no image")
    with pytest.warns(UserWarning, match="2 images in .* itself, outside of its class folders, are left out"):
        data = load(tmp_path)
    assert len(data.y_train) + len(data.y_test) == 10


@pytest.mark.skipif(os.name == "nt", reason="folders have other rights there")
def test_a_parent_that_may_not_be_listed_is_no_obstacle(tmp_path, rng, monkeypatch):
    folder = tmp_path / "home" / "data"
    folder.mkdir(parents=True)
    write_folders(folder, rng, [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    listed = Path.iterdir

    def iterdir(path):
        if path == folder.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert load(folder).class_names == ["a", "b"]


def test_data_sets_go_through_pickle(tmp_path, rng):
    pixels = write_folders(tmp_path, rng, split_files())
    data = pickle.loads(pickle.dumps(load(tmp_path)))
    X_train, _, _ = unimodal(data, "dog")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(X_train))[1], pixels["train/dog/1.png"])
    assert "train/dog/2.png" in X_train._name(2)


def test_one_part_of_a_split_folder_is_warned_about(tmp_path, rng):
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    with pytest.warns(UserWarning, match="seems to be one part of the data set"):
        load(tmp_path / "train", test_size=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(tmp_path).y_test) == 6


def test_importing_the_module_loads_neither_torch_nor_timm():
    code = "import sys, skl_transformaly.datasets; print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------ .npz


@pytest.fixture
def arrays(rng):
    return {
        "X_train": rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "X_test": rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
    }


def test_npz(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays, class_names=["x", "y", "z"])
    data = load(tmp_path / "a.npz")
    assert data.name == "a"
    np.testing.assert_array_equal(data.X_train.stack, arrays["X_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    assert data.class_names == ["x", "y", "z"]


@pytest.mark.parametrize("names", [[b"cat", b"caf\xc3\xa9", b"dog"], ["cat", "caf\u00e9", "dog"]])
def test_class_names_may_be_bytes(arrays, tmp_path, names):
    np.savez(tmp_path / "a.npz", **arrays, class_names=np.array(names))
    assert load(tmp_path / "a.npz").class_names == ["cat", "caf\u00e9", "dog"]


def test_a_single_text_is_no_list_of_class_names(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays, class_names="cat")
    with pytest.raises(ValueError, match="0 dimensions; expected a list of texts"):
        load(tmp_path / "a.npz")


def test_the_home_of_nobody_is_a_folder_that_does_not_exist():
    with pytest.raises(ValueError, match="does not exist"):
        load("~nosuchuser/images")


@pytest.mark.parametrize("names", [["5", "7", "9"], ["ant", "bee", "cat"]])
def test_npz_without_class_names_has_its_labels_as_names(names, arrays, tmp_path):
    labels = np.array([int(n) if n.isdigit() else n for n in names])
    np.savez(tmp_path / "a.npz", **arrays | {"y_train": labels[arrays["y_train"]], "y_test": labels[arrays["y_test"]]})
    data = load(tmp_path / "a.npz")
    assert data.class_names == names
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])


@pytest.mark.parametrize(
    "item",
    [None, np.nan, np.float32("nan"), complex("nan"), Decimal("nan"), np.datetime64("NaT"), pd.NaT, pd.NA],
    ids=repr,
)
def test_values_that_are_missing_are_known_whatever_library_they_are_of(item):
    assert is_missing(item)


@pytest.mark.parametrize(
    "item", [0, "", "nan", False, np.datetime64(0, "s"), np.zeros((2, 2)), [], pd.Timestamp(0)], ids=repr
)
def test_other_values_are_not_missing(item):
    assert not is_missing(item)


@pytest.mark.parametrize("missing", [np.array([0, 0, 1, 1, np.nan, np.nan]), np.array([0, 1, 0, 1, 0, np.nan])])
def test_npz_of_missing_labels_is_refused(missing, arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays | {"y_train": missing})
    with pytest.raises(ValueError, match="labels in y_train are missing"):
        load(tmp_path / "a.npz")


def test_npz_of_labels_of_different_integers_has_their_names(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays | {"y_train": arrays["y_train"].astype(np.uint64)})
    data = load(tmp_path / "a.npz")
    assert data.class_names == ["0", "1", "2"]
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])


def test_npz_of_labels_of_different_kinds_is_refused(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays | {"y_test": np.array(["a", "b", "c"])})
    with pytest.raises(ValueError, match="must be of one kind"):
        load(tmp_path / "a.npz")


def test_npz_of_pickles_is_refused(arrays, tmp_path):
    trace = tmp_path / "ran"
    attack = np.array([Call(os.system, f'echo > "{trace}"')], dtype=object)
    np.savez(tmp_path / "a.npz", **arrays | {"y_test": attack})
    with pytest.raises(ValueError, match="cannot be used.*no objects"):
        load(tmp_path / "a.npz")
    assert not trace.exists()


def test_npz_that_lacks_an_array_says_which(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", X_train=arrays["X_train"], y=arrays["y_train"])
    with pytest.raises(ValueError, match="lacks 'y_train', 'X_test', 'y_test' and has 'X_train', 'y'"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_files_that_are_no_npz_are_refused(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="Expected an .npz"):
        load(tmp_path / "a.npz")


def test_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="it holds one array"):
        load(tmp_path / "a.npy")


# ------------------------------------------------------------------ ImageDataset


def test_image_dataset_keeps_labels_as_int64(images):
    data = ImageDataset("a", images, [0, 1] * 6, images[:2], np.array([0, 1], dtype=np.uint8), ("x", "y"))
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.class_names == ["x", "y"]


def test_image_dataset_is_frozen_and_can_be_replaced(images):
    data = ImageDataset("a", images, [0, 1] * 6, images[:2], [0, 1], ["x", "y"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "b"
    assert len(dataclasses.replace(data, X_train=np.arange(12)).X_train) == 12


def test_image_dataset_prints_short(images):
    data = ImageDataset("a", images, [0, 1] * 6, images[:2], [0, 1], ["x", "y"])
    assert repr(data) == "ImageDataset('a': 12 training images, 2 test images, 2 classes)"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_train": [0] * 11}, "X_train and y_train must have the same length, got 12 and 11"),
        ({"y_test": [0]}, "X_test and y_test must have the same length, got 2 and 1"),
        ({"y_test": [0, 2]}, "y_test of 'a' spans 0 to 2; with 2 class_names"),
        ({"y_test": [-1, 1]}, "y_test of 'a' spans -1 to 1"),
        ({"y_test": [0.0, 1.0]}, "y_test of 'a' must be integers.*float64"),
        ({"y_test": ["x", "y"]}, "y_test of 'a' must be integers"),
        ({"y_test": [[0], [1]]}, r"one label for each image, got shape \(2, 1\)"),
        ({"class_names": ["x", "x"]}, "'x' come twice"),
        ({"X_test": "ab"}, "X_test is one path"),
    ],
)
def test_image_dataset_refuses(changes, message, images):
    good = {"name": "a", "X_train": images, "y_train": [0, 1] * 6, "X_test": images[:2], "y_test": [0, 1]}
    good["class_names"] = ["x", "y"]
    with pytest.raises(ValueError, match=message):
        ImageDataset(**good | changes)


# ------------------------------------------------------------------ the two settings


@pytest.fixture
def data(images):
    y = np.array([0, 1, 2] * 4)
    return ImageDataset("three", as_images(images), y, as_images(images[:6]), y[:6], ["a", "b", "c"])


@pytest.mark.parametrize("chosen", [1, np.int64(1), "b"])
def test_unimodal(chosen, data, images):
    X_train, X_test, y_test = unimodal(data, chosen)
    np.testing.assert_array_equal(X_train.stack, images[1::3])
    assert X_test is data.X_test
    assert y_test.dtype == np.int64 and y_test.tolist() == [-1, 1, -1, -1, 1, -1]


@pytest.mark.parametrize("chosen", [1, "b"])
def test_multimodal(chosen, data, images):
    X_train, X_test, y_test = multimodal(data, chosen)
    np.testing.assert_array_equal(X_train.stack, images[np.arange(12) % 3 != 1])
    assert X_test is data.X_test
    assert y_test.dtype == np.int64 and y_test.tolist() == [1, -1, 1, 1, -1, 1]


@settings(max_examples=50, deadline=None)
@given(
    y=st.lists(st.integers(0, 3), min_size=8, max_size=30).map(lambda y: [0, 1, 2, 3, *y]),
    chosen=st.integers(0, 3),
    names=st.sampled_from([[0, 1, 2, 3], [7, -1, 30, 2], ["d", "a", "c", "b"], [0.5, 1.5, 2.5, 3.5]]),
)
def test_the_two_settings_complement_each_other(y, chosen, names):
    labels = [names[k] for k in y]
    X = np.arange(len(y))
    one, _, y_one = unimodal((X, labels, X, labels), names[chosen])
    rest, _, y_rest = multimodal((X, labels, X, labels), names[chosen])
    assert sorted([*one, *rest]) == X.tolist()
    assert {labels[i] for i in one} == {names[chosen]} and names[chosen] not in {labels[i] for i in rest}
    assert (y_one == -y_rest).all()
    assert [label == names[chosen] for label in labels] == (y_one == 1).tolist()


@pytest.mark.parametrize(
    "wrap, unwrap",
    [
        (list, list),
        (lambda X: as_images(X), lambda X: X[:]),
        (np.asarray, list),
        (lambda X: [str(i) for i in range(len(X))], lambda X: X),
        (lambda X: pd.Series([f"{i}.png" for i in range(len(X))]), lambda X: X.tolist()),
    ],
)
def test_tuples_of_any_images(wrap, unwrap, images):
    y = np.array(["cat", "dog"] * 6)
    X = wrap(images)
    X_train, _, _ = unimodal((X, y, X, y), "dog")
    assert type(X_train) is type(X)
    for got, want in zip(unwrap(X_train), unwrap(X)[1::2], strict=True):
        assert np.all(np.asarray(got) == np.asarray(want))


def test_labels_may_be_a_series(images):
    y = pd.Series(["cat", "dog"] * 6, index=range(100, 112))
    assert len(unimodal((images, y, images, y), "cat")[0]) == 6


def test_selected_images_stay_lazy():
    decoded = []
    X = Images(4, lambda i: decoded.append(i) or np.zeros((2, 2, 1), np.uint8))
    X_train, _, _ = unimodal((X, [0, 1, 0, 1], X, [0, 1, 0, 1]), 1)
    assert not decoded
    X_train[0]
    assert decoded == [1]


@pytest.mark.parametrize("setting", [unimodal, multimodal])
@pytest.mark.parametrize("chosen", [3, -1, "d", 1.5, True, None])
def test_unknown_class_of_a_dataset(setting, chosen, data):
    with pytest.raises(ValueError, match="'three' has no class .*0 to 2 or one of 'a', 'b', 'c'"):
        setting(data, chosen)


@pytest.mark.parametrize("setting", [unimodal, multimodal])
def test_unknown_label_of_a_tuple(setting, images):
    with pytest.raises(ValueError, match="class 'owl' does not exist; the labels are 'cat', 'dog'"):
        setting((images[:2], ["cat", "dog"], images[:2], ["cat", "dog"]), "owl")


def test_class_without_training_images(images):
    with pytest.raises(ValueError, match="no training image of class 'owl'"):
        unimodal((images[:1], ["cat"], images[:2], ["cat", "owl"]), "owl")


def test_nothing_but_the_anomalous_class_to_train_on(images):
    with pytest.raises(ValueError, match="no training image of a class other than 'cat'"):
        multimodal((images[:1], ["cat"], images[:2], ["cat", "owl"]), "cat")


@pytest.mark.parametrize("setting", [unimodal, multimodal])
@pytest.mark.parametrize(
    "chosen, message", [("cat", "All 2 test images are of class"), ("dog", "of classes other than")]
)
def test_one_kind_of_test_images_only(setting, chosen, message, images):
    with pytest.raises(ValueError, match=message):
        setting((images[:2], ["cat", "dog"], images[:2], ["cat", "cat"]), chosen)


def test_tuple_of_other_lengths(images):
    with pytest.raises(ValueError, match="X_test and y_test must have the same length, got 3 and 2"):
        unimodal((images[:2], ["cat", "dog"], images[:3], ["cat", "dog"]), "cat")


@pytest.mark.parametrize("given", [(1, 2, 3), "cifar10", None])
def test_settings_need_labelled_data(given):
    with pytest.raises(ValueError, match="ImageDataset or a tuple"):
        unimodal(given, 0)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0.0, 1.0, np.nan], "1 of 3 labels in y_train are missing"),
        ([0, None, 1], "1 of 3 labels"),
        (["a", None, None], "2 of 3 labels"),
        (pd.Series([0, np.nan, 1], dtype=object), "1 of 3 labels"),
        (pd.array([0, pd.NA, 1]), "1 of 3 labels"),
        (np.array(["2020-01-01", "NaT", "NaT"], "datetime64[D]"), "2 of 3 labels"),
        ([0, "a", 1], "holds both text and other"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    X = np.zeros((3, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=message):
        unimodal((X, labels, X, [0, 1, 0]), 1)


@pytest.mark.parametrize("chosen", [[0, 1], np.array([0, 1]), np.zeros((1, 1))])
def test_a_class_is_one_label(chosen, images):
    with pytest.raises(ValueError, match="Expected one label, got"):
        unimodal((images, [0, 1] * (len(images) // 2), images, [0, 1] * (len(images) // 2)), chosen)
