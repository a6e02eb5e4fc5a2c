"""Data sets in each form in which they are distributed, and the paper's two settings."""

import dataclasses
import gzip
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import types
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit

from skl_transformaly import ImageError, datasets
from skl_transformaly.datasets import CIFAR100_COARSE, DATASETS, ImageDataset, load, multimodal, unimodal
from skl_transformaly.images._images import Images, as_images

# two classes stand for all here; the warning has a test of its own
pytestmark = pytest.mark.filterwarnings("ignore:.*classes, but:UserWarning", "ignore:.*has no images of:UserWarning")

# CIFAR-100's superclass of each class, in the order of its files' fine labels
COARSE_OF_FINE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
]  # fmt: skip


def write_image(path, rng, size=(6, 5)):
    """Write a random image without loss and give its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


def write_folders(root, rng, files):
    return {name: write_image(root / name, rng) for name in files}


def split_files(train="train", test="test", classes=("cat", "dog"), n=3):
    return [f"{part}/{c}/{i}.png" for part in (train, test) for c in classes for i in range(n)]


def names_of(X):
    """Which file each image is, in the message that a missing one gives."""
    return [Path(X._name(i).strip("'")) for i in range(len(X))]


# ------------------------------------------------------------------ class folders


@pytest.mark.parametrize(
    "name", ["cats_vs_dogs", "blood_cells", "covid19", "weather", "view", "concrete_crack", "folder"]
)
@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("TRAIN", "TEST"),
        ("Train", "Test"),
        ("train", "val"),
        ("training", "test"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("dataset2-master/dataset2-master/images/TRAIN", "dataset2-master/dataset2-master/images/TEST"),
    ],
)
def test_split_folders(name, train, test, tmp_path, rng):
    pixels = write_folders(tmp_path, rng, split_files(train, test))
    data = load(name, tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.y_train.tolist() == data.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    for part, X in ((train, data.X_train), (test, data.X_test)):
        expected = [pixels[f"{part}/{c}/{i}.png"] for c in ("cat", "dog") for i in range(3)]
        assert all((got == want).all() for got, want in zip(X[:], expected, strict=True))


def test_images_are_opened_when_they_are_used(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    (tmp_path / "train/cat/1.png").write_bytes(b"no image")
    data = load("folder", tmp_path)
    X_train, _, _ = unimodal(data, "cat")
    assert X_train[0].shape == (6, 5, 3)
    with pytest.raises(ImageError, match=re.escape(str(Path("train/cat/1.png")))):
        X_train[1]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_no_file_stays_open(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    before = len(os.listdir("/proc/self/fd"))
    data = load("folder", tmp_path)
    data.X_train[0]
    assert len(os.listdir("/proc/self/fd")) == before


def test_messy_names_and_strangers_in_folders(tmp_path, rng):
    kept = ["train/viral pneumonia/a (1).PNG", "train/viral pneumonia/sub/b.JpEg", "train/ok/c d.png"]
    kept += ["test/viral pneumonia/x.png", "test/ok/y.png"]
    write_folders(tmp_path, rng, kept)
    write_folders(tmp_path, rng, ["train/ok/.hidden.png", "train/.git/z.png", "__MACOSX/train/ok/._c.png"])
    (tmp_path / "train/ok/Thumbs.db").write_bytes(b"")
    (tmp_path / "train/empty").mkdir()
    data = load("covid19", tmp_path)
    assert data.class_names == ["ok", "viral pneumonia"]
    assert sorted(names_of(data.X_train)) == sorted(tmp_path / name for name in kept[:3])


def test_test_folder_is_preferred_to_validation(tmp_path, rng):
    write_folders(tmp_path, rng, split_files() + split_files("valid", "val", n=5))
    assert len(load("folder", tmp_path).y_test) == 6


@pytest.mark.parametrize("part, other", [("train", "test"), ("test", "train")])
def test_class_in_one_part_only_is_named(part, other, tmp_path, rng):
    write_folders(tmp_path, rng, [*split_files(), f"{part}/owl/0.png"])
    with pytest.raises(ValueError, match=rf"Only .*{part}.* has images of 'owl'"):
        load("folder", tmp_path)


def test_several_data_sets_below_root_are_not_guessed_between(tmp_path, rng):
    write_folders(tmp_path, rng, split_files("a/train", "a/test") + split_files("b/train", "b/test"))
    with pytest.raises(ValueError, match="Several folders.*Pass one"):
        load("folder", tmp_path)


def test_deeper_folders_do_not_hide_a_shallow_split(tmp_path, rng):
    write_folders(tmp_path, rng, split_files() + split_files("copy/train", "copy/test", n=5))
    assert len(load("folder", tmp_path).y_test) == 6


@pytest.mark.parametrize("below", ["", "Concrete Crack Images for Classification/"])
def test_folders_without_a_split_are_split_by_seed(below, tmp_path, rng):
    files = [f"{below}{c}/{i:02d}.png" for c, n in (("Negative", 12), ("Positive", 8)) for i in range(n)]
    write_folders(tmp_path, rng, files)
    data = load("concrete_crack", tmp_path, test_size=0.25, random_state=3)
    assert np.bincount(data.y_train).tolist() == [9, 6] and np.bincount(data.y_test).tolist() == [3, 2]
    train, test = names_of(data.X_train), names_of(data.X_test)
    assert sorted(train + test) == [tmp_path / name for name in files]
    for paths, y in ((train, data.y_train), (test, data.y_test)):
        assert [path.parent.name for path in paths] == [data.class_names[k] for k in y]
    # scikit-learn's splitter over the sorted files
    _, expected = next(StratifiedShuffleSplit(1, test_size=0.25, random_state=3).split(files, [0] * 12 + [1] * 8))
    assert sorted(test) == sorted(tmp_path / files[i] for i in expected)


def test_split_depends_on_the_seed_only(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    one, same, other = (names_of(load("folder", tmp_path, random_state=seed).X_test) for seed in (0, 0, 1))
    assert one == same != other


def test_class_of_one_image_cannot_be_split(tmp_path, rng):
    write_folders(tmp_path, rng, ["a/0.png", "a/1.png", "b/0.png"])
    with pytest.raises(ValueError, match="one image only of 'b'"):
        load("folder", tmp_path)


def test_split_that_leaves_a_class_without_test_images_is_refused(tmp_path, rng):
    write_folders(tmp_path, rng, [f"a/{i:02d}.png" for i in range(30)] + ["b/0.png", "b/1.png"])
    with pytest.raises(ValueError, match="no test image of 'b'"):
        load("folder", tmp_path, test_size=0.1)


def test_flat_cats_and_dogs(tmp_path, rng):
    """As Kaggle's competition has them: named files, and unlabelled ones to test on."""
    pixels = write_folders(tmp_path, rng, [f"train/{c}.{i}.jpg" for c in ("cat", "dog") for i in range(5)])
    write_folders(tmp_path, rng, [f"test/{i}.jpg" for i in range(4)])
    data = load("cats_vs_dogs", tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert np.bincount(data.y_train).tolist() == [4, 4] and np.bincount(data.y_test).tolist() == [1, 1]
    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        for path, image, label in zip(names_of(X), X[:], y):
            assert path.name.startswith(data.class_names[label])
            assert (image == pixels[f"train/{path.name}"]).all()


def test_flat_weather(tmp_path, rng):
    classes = ["cloudy", "rain", "shine", "sunrise"]
    write_folders(tmp_path, rng, [f"dataset2/{c}{i}.jpg" for c in classes for i in (1, 2, 30, 411, 5)])
    data = load("weather", tmp_path)
    assert data.class_names == classes
    assert np.bincount(data.y_train).tolist() == [4] * 4 and np.bincount(data.y_test).tolist() == [1] * 4


def test_a_stranger_among_weather_images_is_no_class(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}{i}.jpg" for c in ("rain", "shine", "screenshot") for i in range(5)])
    with pytest.raises(ValueError, match="screenshot0.jpg' does not say its class"):
        load("weather", tmp_path)


def test_flat_file_without_a_class_is_named(tmp_path, rng):
    write_folders(tmp_path, rng, ["rain1.jpg", "rain2.jpg", "shine1.jpg", "shine2.jpg", "17.jpg"])
    with pytest.raises(ValueError, match="17.jpg' does not say its class"):
        load("weather", tmp_path)


def test_unlabelled_train_and_test_are_not_two_classes(tmp_path, rng):
    write_folders(tmp_path, rng, ["train/0.png", "train/1.png", "test/0.png", "test/1.png"])
    with pytest.raises(ValueError, match="no class folders"):
        load("folder", tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Testing"])
def test_validation_beside_unlabelled_test_images(val, tmp_path, rng):
    write_folders(tmp_path, rng, [*split_files("train", val), "test/0.png", "test/1.png"])
    assert names_of(load("folder", tmp_path).X_test)[0] == tmp_path / val / "cat/0.png"


@pytest.mark.parametrize(
    "files",
    [
        ["Negative/0.png", "Negative/1.png", "Positive/deep/0.png", "Positive/thin/0.png"],
        ["A/x/0.png", "A/y/0.png", "B/x/0.png"],
    ],
)
def test_classes_of_which_some_are_nested_are_not_guessed(files, tmp_path, rng):
    write_folders(tmp_path, rng, files)
    with pytest.raises(ValueError, match="look like classes, but there are images in"):
        load("folder", tmp_path)


def test_images_may_be_nested_within_their_class(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}/{i}.png" for c in "ab" for i in range(5)] + ["b/more/6.png", "c/x/7.png"])
    write_folders(tmp_path, rng, ["c/y/8.png"])
    data = load("folder", tmp_path)
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).tolist() == [5, 6, 2]


def test_a_folder_without_images_is_warned_of(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    (tmp_path / "train/owl").mkdir()
    with pytest.warns(UserWarning, match="There are no images in 'owl'") as caught:
        assert load("folder", tmp_path).class_names == ["cat", "dog"]
    assert caught[0].filename == __file__


def test_a_class_too_many_is_warned_of(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("cats", "dogs", "owls")))
    with pytest.warns(UserWarning, match="'cats_vs_dogs' has 2 classes, but .* of 3: 'cats', 'dogs', 'owls'"):
        load("cats_vs_dogs", tmp_path)


def test_cifar10_folders_of_some_classes_are_warned_about(tmp_path, rng):
    write_folders(tmp_path, rng, split_files())
    with pytest.warns(UserWarning, match="has no images of 'airplane', .*'truck' of 'cifar10'"):
        load("cifar10", tmp_path)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_folders_that_may_not_be_read_are_passed_over(tmp_path, rng, monkeypatch):
    write_folders(tmp_path, rng, split_files())
    (tmp_path / "lost+found").mkdir()
    access = os.access  # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: "lost+found" not in str(path) and access(path, mode))
    assert tmp_path / "lost+found" not in datasets._folders(tmp_path)
    assert len(load("folder", tmp_path).y_test) == 6


def test_data_sets_go_through_pickle(tmp_path, rng):
    pixels = write_folders(tmp_path, rng, split_files())
    data = pickle.loads(pickle.dumps(load("folder", tmp_path)))
    X_train, _, _ = unimodal(data, "dog")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(X_train))[1], pixels["train/dog/1.png"])
    assert "train/dog/2.png" in X_train._name(2)


# ------------------------------------------------------------------ CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2's str, which is what CIFAR's files hold."""

    def save_str(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {str: save_str, bytes: save_str}


def python2_pickle(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3_pickle(value):
    return pickle.dumps({key.encode(): v for key, v in value.items()}, protocol=2)


def write_cifar(folder, rng, name="cifar10", n=4, dump=python2_pickle, **changes):
    """Batches in CIFAR's format, and the pixels and labels written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ["train", "test"] if name == "cifar100" else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    written = {}
    for file in files:
        X = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        planes = np.stack([X[..., c].reshape(n, -1) for c in range(3)], axis=1).reshape(n, 3072)
        if name == "cifar100":
            fine = rng.integers(0, 100, n)
            y = np.array(COARSE_OF_FINE)[fine]
            batch = {"data": planes, "fine_labels": fine.tolist(), "coarse_labels": y.tolist()}
        else:
            y = rng.integers(0, 10, n)
            batch = {"data": planes, "labels": y.tolist(), "batch_label": f"{file} of 5", "filenames": ["a.png"] * n}
        (folder / file).write_bytes(dump(batch | changes))
        written[file] = X, y
    return written


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_batches(dump, below, tmp_path, rng):
    written = write_cifar(tmp_path / below, rng, dump=dump)
    data = load("cifar10", tmp_path)
    assert data.class_names[0] == "airplane" and data.class_names[9] == "truck" and len(data.class_names) == 10
    batches = [written[f"data_batch_{i}"] for i in range(1, 6)]
    np.testing.assert_array_equal(data.X_train.stack, np.concatenate([X for X, _ in batches]))
    np.testing.assert_array_equal(data.y_train, np.concatenate([y for _, y in batches]))
    np.testing.assert_array_equal(data.X_test.stack, written["test_batch"][0])
    np.testing.assert_array_equal(data.y_test, written["test_batch"][1])


@pytest.mark.parametrize("below", ["", "cifar-100-python"])
def test_cifar100_batches_are_labelled_by_superclass(below, tmp_path, rng):
    written = write_cifar(tmp_path / below, rng, "cifar100", n=12)
    data = load("cifar100", tmp_path)
    assert data.class_names == list(CIFAR100_COARSE) and len(data.class_names) == 20
    np.testing.assert_array_equal(data.X_train.stack, written["train"][0])
    np.testing.assert_array_equal(data.y_train, written["train"][1])
    np.testing.assert_array_equal(data.y_test, written["test"][1])


def test_cifar100_batches_without_superclasses(tmp_path, rng):
    fine = [0, 99, 7, 51]
    write_cifar(tmp_path, rng, "cifar100", dump=lambda x: pickle.dumps({k: x[k] for k in ("data", "fine_labels")}),
                fine_labels=fine)  # fmt: skip
    assert load("cifar100", tmp_path).y_test.tolist() == [COARSE_OF_FINE[i] for i in fine]


def test_cifar100_labels_that_contradict_each_other_are_refused(tmp_path, rng):
    coarse = [COARSE_OF_FINE[0], 1, COARSE_OF_FINE[2], COARSE_OF_FINE[3]]
    write_cifar(tmp_path, rng, "cifar100", fine_labels=[0, 2, 2, 3], coarse_labels=coarse)
    with pytest.raises(ValueError, match="contradict each other for 1 images"):
        load("cifar100", tmp_path)


def test_the_files_of_the_tests_are_those_of_python_2(tmp_path, rng):
    """Python's own unpickler, told the encoding, reads them as it reads CIFAR's."""
    X, y = write_cifar(tmp_path, rng)["test_batch"]
    content = (tmp_path / "test_batch").read_bytes()
    assert content[:2] == b"\x80\x02" and b"_codecs" not in content
    batch = pickle.loads(content.replace(b"cnumpy.core", b"cnumpy._core" if np.__version__ >= "2" else b"cnumpy.core"),
                         encoding="bytes")  # fmt: skip
    np.testing.assert_array_equal(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), X)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_batch_is_refused_and_not_run(tmp_path, rng):
    trace = tmp_path / "ran"
    write_cifar(tmp_path, rng)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(Call(os.system, f'echo > "{trace}"'), protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3.*reference to \w+\.system.*not run"):
        load("cifar10", tmp_path)
    assert not trace.exists()
    pickle.loads((tmp_path / "data_batch_3").read_bytes())  # the attack works where nothing stops it
    assert trace.exists()


@pytest.mark.parametrize(
    "attack",
    [
        Call(eval, "1"),
        Call(getattr, "text", "upper"),
        Call(np.load, "file"),
        Call(np.frombuffer, b"1"),
        Call(__import__, "antigravity"),
        Call(io.open, "file"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_only_arrays_are_unpickled(attack, protocol, tmp_path, rng):
    write_cifar(tmp_path, rng)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": attack}, protocol=protocol))
    with pytest.raises(ValueError, match="a reference to"):
        load("cifar10", tmp_path)


def test_encodings_other_than_that_of_bytes_are_refused(tmp_path, rng):
    import _codecs

    write_cifar(tmp_path, rng)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Call(_codecs.encode, "text", "utf-7"), protocol=2))
    with pytest.raises(ValueError, match="encoding 'utf-7'"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": np.zeros((4, 3071), np.uint8)}, r"shape \(n, 3072\)"),
        ({"data": np.zeros((4, 3072), np.float32)}, "uint8"),
        ({"data": [[0] * 3072] * 4}, "uint8"),
        ({"labels": [0, 1, 2]}, "4 integers in 0 to 9"),
        ({"labels": [0, 1, 2, 10]}, "4 integers in 0 to 9"),
        ({"labels": ["a", "b", "c", "d"]}, "4 integers in 0 to 9"),
    ],
)
def test_batches_of_other_shapes_or_labels_are_refused(changes, message, tmp_path, rng):
    write_cifar(tmp_path, rng, **changes)
    with pytest.raises(ValueError, match=message):
        load("cifar10", tmp_path)


def test_truncated_batch_is_named(tmp_path, rng):
    write_cifar(tmp_path, rng)
    path = tmp_path / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="data_batch_2' is not one of CIFAR's batches"):
        load("cifar10", tmp_path)


def test_missing_batch_is_named(tmp_path, rng):
    write_cifar(tmp_path, rng)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"lacks 'data_batch_4'.*cs\.toronto\.edu"):
        load("cifar10", tmp_path)


def test_cifar10_folders(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("airplane", "truck"), n=2))
    data = load("cifar10", tmp_path)
    assert data.y_train.tolist() == [0, 0, 9, 9]  # its own numbers, though most classes are absent


def test_cifar10_folders_of_other_classes_are_refused(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("cat", "plane")))
    with pytest.raises(ValueError, match="CIFAR-10 has no class 'plane'"):
        load("cifar10", tmp_path)


def test_cifar_is_not_split_anew(tmp_path, rng):
    write_folders(tmp_path, rng, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)])
    with pytest.raises(ValueError, match="neither batches nor folders"):
        load("cifar10", tmp_path)


def test_superclasses_against_the_list_of_coarse_labels():
    fine = sorted(name for group in CIFAR100_COARSE.values() for name in group)
    assert len(set(fine)) == 100
    assert list(CIFAR100_COARSE) == sorted(CIFAR100_COARSE)
    coarse = {name: i for i, group in enumerate(CIFAR100_COARSE.values()) for name in group}
    assert [coarse[name] for name in fine] == COARSE_OF_FINE


@pytest.mark.parametrize(
    "classes", [("trout", "apple", "shark"), ("fish", "fruit_and_vegetables"), ("Sweet pepper", "ray")]
)
def test_cifar100_folders_by_class_or_superclass(classes, tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=classes, n=1))
    data = load("cifar100", tmp_path)
    assert set(data.y_train.tolist()) == {1, 4}  # fish, fruit and vegetables
    for path, label in zip(names_of(data.X_train), data.y_train):
        name = path.parent.name.lower().replace(" ", "_")
        assert name in (data.class_names[label], *CIFAR100_COARSE[data.class_names[label]])


def test_cifar100_folder_of_no_class_is_named(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("trout", "unicorn")))
    with pytest.raises(ValueError, match="neither a class nor a superclass 'unicorn'"):
        load("cifar100", tmp_path)


# ------------------------------------------------------------------ Fashion-MNIST

FASHION_FILES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, rng, compress=False, size=28):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [
        array
        for n in (20, 10)
        for array in (rng.integers(0, 256, (n, size, size), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8))
    ]
    for name, array in zip(FASHION_FILES, arrays):
        content = gzip.compress(idx(array)) if compress else idx(array)
        (folder / f"{name}-ubyte{'.gz' if compress else ''}").write_bytes(content)
    return arrays


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(compress, below, tmp_path, rng):
    X, y, X_test, y_test = write_fashion(tmp_path / below, rng, compress)
    data = load("fashion_mnist", tmp_path)
    np.testing.assert_array_equal(data.X_train.stack, X[..., None])
    np.testing.assert_array_equal(data.X_test.stack, X_test[..., None])
    np.testing.assert_array_equal(data.y_train, y)
    np.testing.assert_array_equal(data.y_test, y_test)
    assert data.class_names[0] == "T-shirt/top" and data.class_names[9] == "Ankle boot"
    assert data.X_train.stack.flags.writeable  # torch warns of arrays that are not


def test_fashion_mnist_without_root_is_debians(tmp_path, rng, monkeypatch):
    write_fashion(tmp_path, rng, compress=True)
    monkeypatch.setattr(datasets, "_DEBIAN_FASHION", tmp_path)
    assert len(load("fashion_mnist").y_train) == 20


def test_fashion_mnist_without_root_and_without_debians(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_DEBIAN_FASHION", tmp_path / "none")
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        load("fashion_mnist")


def test_real_fashion_mnist():
    if not datasets._DEBIAN_FASHION.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = load("fashion_mnist")
    assert data.X_train.stack.shape == (60000, 28, 28, 1) and data.X_test.stack.shape == (10000, 28, 28, 1)
    assert data.y_train[:5].tolist() == [9, 0, 0, 3, 0] and data.y_test[:5].tolist() == [9, 2, 1, 1, 6]
    assert np.bincount(data.y_train).tolist() == [6000] * 10


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content[:-1], "says it holds"),
        (lambda content: content + b"0", "says it holds"),
        (lambda content: content[:10], "at least 16 bytes"),
        (lambda content: b"", "at least 16 bytes"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "begins with 00000d03"),
        (lambda content: content[:3] + b"\x01" + content[4:], "begins with 00000801"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "says it holds"),
    ],
)
def test_damaged_idx_files_are_refused(change, message, tmp_path, rng):
    write_fashion(tmp_path, rng)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"t10k-images-idx3-ubyte.*{message}"):
        load("fashion_mnist", tmp_path)


@pytest.mark.parametrize("change", [lambda c: c[:-20], lambda c: b"no gzip", lambda c: c[:60] + b"\xff" * 60 + c[120:]])
def test_damaged_gzip_files_are_refused(change, tmp_path, rng):
    write_fashion(tmp_path, rng, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz' is damaged"):
        load("fashion_mnist", tmp_path)


def test_idx_images_of_another_size_are_refused(tmp_path, rng):
    write_fashion(tmp_path, rng, size=27)
    with pytest.raises(ValueError, match=r"expected \(28, 28\)"):
        load("fashion_mnist", tmp_path)


def test_missing_idx_file_is_named(tmp_path, rng):
    write_fashion(tmp_path, rng)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="lacks 'train-labels-idx1-ubyte'"):
        load("fashion_mnist", tmp_path)


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
    data = load("npz", tmp_path / "a.npz")
    assert data.name == "a"
    np.testing.assert_array_equal(data.X_train.stack, arrays["X_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    assert data.class_names == ["x", "y", "z"]


@pytest.mark.parametrize("names", [["5", "7", "9"], ["ant", "bee", "cat"]])
def test_npz_without_class_names_has_its_labels_as_names(names, arrays, tmp_path):
    labels = np.array([int(n) if n.isdigit() else n for n in names])
    np.savez(tmp_path / "a.npz", **arrays | {"y_train": labels[arrays["y_train"]], "y_test": labels[arrays["y_test"]]})
    data = load("npz", tmp_path / "a.npz")
    assert data.class_names == names
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])


def test_cifar10_npz_has_cifars_names(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    assert load("cifar10", tmp_path / "a.npz").class_names[2] == "bird"


def test_npz_of_pickles_is_refused(arrays, tmp_path):
    trace = tmp_path / "ran"
    attack = np.array([Call(os.system, f'echo > "{trace}"')], dtype=object)
    np.savez(tmp_path / "a.npz", **arrays | {"y_test": attack})
    with pytest.raises(ValueError, match="cannot be used.*no objects"):
        load("npz", tmp_path / "a.npz")
    assert not trace.exists()


def test_npz_that_lacks_an_array_says_which(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", X_train=arrays["X_train"], y=arrays["y_train"])
    with pytest.raises(ValueError, match="lacks 'y_train', 'X_test', 'y_test' and has 'X_train', 'y'"):
        load("npz", tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_files_that_are_no_npz_are_refused(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="Expected an .npz"):
        load("npz", tmp_path / "a.npz")


def test_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="it holds one array"):
        load("npz", tmp_path / "a.npy")


# ------------------------------------------------------------------ DIOR


def voc(boxes, size=(200, 180)):
    """An annotation in Pascal VOC's format; size is (width, height)."""
    objects = "".join(
        f"<object><name>{kind}</name><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for kind, box in boxes
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"


def write_dior(root, rng, boxes, *, images=("JPEGImages-trainval", "JPEGImages-test"), annotations="Annotations",
               lists="ImageSets/Main", names=("train", "val", "test")):  # fmt: skip
    """One image 180 x 200 for each part, with `boxes` in all."""
    (root / annotations).mkdir(parents=True)
    (root / lists).mkdir(parents=True, exist_ok=True)
    pixels = {}
    for i, name in enumerate(names):
        image = f"{i:05d}"
        pixels[name] = write_image(root / images[name == "test"] / f"{image}.jpg", rng, (180, 200))
        (root / annotations / f"{image}.xml").write_text(voc(boxes))
        (root / lists / f"{name}.txt").write_text(f"{image}\n")
    return pixels


# 60 overlapping objects of each of two classes in an image: more than 50 training objects of each
DIOR_BOXES = [(kind, (i % 10, i % 7, i % 10 + 130, i % 7 + 125)) for kind in ("ship", "airplane") for i in range(60)]


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"images": ("JPEGImages", "JPEGImages")},
        {"images": ("JPEGImages-trainval/JPEGImages-trainval", "JPEGImages-test/JPEGImages-test")},
        {"annotations": "Annotations/Horizontal Bounding Boxes", "lists": "Main"},
        {"names": ("trainval", "test")},
    ],
)
def test_dior_forms(form, tmp_path, rng):
    pixels = write_dior(tmp_path, rng, DIOR_BOXES, **form)
    oriented = tmp_path / "Annotations" / "Oriented Bounding Boxes"
    oriented.mkdir()
    (oriented / "00000.xml").write_text("rotated boxes are of no use here")
    data = load("dior", tmp_path)
    parts = [name for name in pixels if name != "test"]
    assert data.class_names == ["airplane", "ship"]
    assert np.bincount(data.y_train).tolist() == [60 * len(parts)] * 2
    assert data.y_test.tolist() == [1] * 60 + [0] * 60  # in the annotations' order
    expected = [pixels[part][y0:y1, x0:x1] for part in parts for _, (x0, y0, x1, y1) in DIOR_BOXES]
    for i in (0, 1, 59, 60, len(expected) - 1):
        np.testing.assert_array_equal(data.X_train[i], expected[i])
    _, (x0, y0, x1, y1) = DIOR_BOXES[17]
    np.testing.assert_array_equal(data.X_test[17], pixels["test"][y0:y1, x0:x1])


def test_dior_below_root(tmp_path, rng):
    write_dior(tmp_path / "data" / "DIOR", rng, DIOR_BOXES)
    assert len(load("dior", tmp_path).y_test) == 120


def test_dior_objects_have_120_pixels_on_both_sides(tmp_path, rng):
    near = [("ship", (0, 0, 119, 150)), ("ship", (0, 0, 150, 119)), ("ship", (5, 5, 125, 125))]
    write_dior(tmp_path, rng, DIOR_BOXES + near)
    data = load("dior", tmp_path)
    assert (data.y_test == 1).sum() == 61
    assert data.X_test[120].shape == (120, 120, 3)


@pytest.mark.parametrize("n, kept", [(25, False), (26, True)])
def test_dior_classes_have_more_than_50_training_objects(n, kept, tmp_path, rng):
    """The same boxes are in the train and in the val list: 50 and 52 objects."""
    write_dior(tmp_path, rng, DIOR_BOXES + [("dam", (0, 0, 130, 130))] * n)
    data = load("dior", tmp_path)
    assert ("dam" in data.class_names) == kept
    assert len(data.y_test) == 120 + n * kept


def test_dior_boxes_are_clipped_and_empty_ones_counted(tmp_path, rng):
    odd = [("ship", (-20, -3.4, 130, 500)), ("ship", (100, 100, 100, 150)), ("ship", (210, 10, 400, 150))]
    pixels = write_dior(tmp_path, rng, DIOR_BOXES + odd)
    with pytest.warns(UserWarning, match="6 boxes of 'dior' are empty or outside"):  # two in each of three images
        data = load("dior", tmp_path)
    assert len(data.y_test) == 121
    np.testing.assert_array_equal(data.X_test[120], pixels["test"][:, :130])


def test_dior_images_are_opened_when_they_are_used(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / "JPEGImages-test/00002.jpg").write_bytes(b"no image")
    data = load("dior", tmp_path)
    X_train, X_test, _ = unimodal(data, "ship")
    X_train[0]
    with pytest.raises(ImageError, match=r"crop \(0, 0, 130, 125\).*00002.jpg"):
        X_test[0]


def test_dior_image_smaller_than_annotated_is_an_error(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    write_image(tmp_path / "JPEGImages-test/00002.jpg", rng, (100, 100))
    with pytest.raises(ImageError, match="00002.jpg' is smaller than its annotation says"):
        load("dior", tmp_path).X_test[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dior_xml_with_a_doctype_is_refused(encoding, tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    bomb = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 1000}">' for a, b in zip("abcdef", "bcdefg")
    )
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}]><annotation>&g;</annotation>'
    (tmp_path / "Annotations/00001.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="00001.xml'.*DOCTYPE"):
        load("dior", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><object>",
        "<annotation><object><name>ship</name></object></annotation>",
        voc([("ship", ("a", 0, 1, 1))]),
        voc([("ship", ("nan", 0, 1, 1))]),
        voc([("", (0, 0, 1, 1))]),
        "",
    ],
)
def test_dior_damaged_annotation_is_named(text, tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / "Annotations/00001.xml").write_text(text)
    with pytest.raises(ValueError, match="00001.xml' is not an annotation"):
        load("dior", tmp_path)


@pytest.mark.parametrize("gone", ["JPEGImages-trainval/00001.jpg", "Annotations/00001.xml"])
def test_dior_file_that_a_list_names_must_be_there(gone, tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match="lacks image or annotation of '00001'"):
        load("dior", tmp_path)


def test_dior_image_in_both_lists_is_refused(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / "ImageSets/Main/test.txt").write_text("00001\n00002\n")
    with pytest.raises(ValueError, match="name '00001' both for training and for testing"):
        load("dior", tmp_path)


def test_dior_crops_go_through_pickle(tmp_path, rng):
    pixels = write_dior(tmp_path, rng, DIOR_BOXES)
    data = pickle.loads(pickle.dumps(load("dior", tmp_path)))
    _, (x0, y0, x1, y1) = DIOR_BOXES[17]
    np.testing.assert_array_equal(data.X_test[17], pixels["test"][y0:y1, x0:x1])


@pytest.mark.filterwarnings("default")
def test_dior_of_fewer_classes_is_warned_about(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    with pytest.warns(UserWarning, match="'dior' has 19 classes, but .* of 2 only"):
        load("dior", tmp_path)


def test_dior_without_lists_is_refused(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(ValueError, match="There are no lists"):
        load("dior", tmp_path)


def test_dior_with_too_few_objects_is_refused(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES[:60] + DIOR_BOXES[60:70])
    with pytest.raises(ValueError, match=r"Fewer than two classes.*'airplane': 20"):
        load("dior", tmp_path)


# ------------------------------------------------------------------ where to get them


def test_the_papers_ten_data_sets_are_there():
    assert len(DATASETS) == 12 and {"folder", "npz"} < set(DATASETS)


@pytest.mark.parametrize(
    "given, close", [("CIFAR-10", "cifar10"), ("fashion-mnist", "fashion_mnist"), ("DIOR", "dior")]
)
def test_unknown_name_suggests_close_ones(given, close):
    with pytest.raises(ValueError, match=f"no data set '{given}'.*Did you mean .*'{close}'"):
        load(given)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("folder", "npz")])
@pytest.mark.parametrize("root", ["missing", "empty", "a file", None])
def test_what_is_not_there_is_explained(name, root, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_DEBIAN_FASHION", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_bytes(b"text")
    where = None if root is None else tmp_path / root
    with pytest.raises(ValueError, match=r"https://.*pass as root|Expected an .npz"):
        load(name, where)


@pytest.mark.parametrize(
    "name", ["cats_vs_dogs", "dior", "blood_cells", "covid19", "weather", "view", "concrete_crack"]
)
def test_data_behind_a_login_cannot_be_downloaded(name, tmp_path):
    with pytest.raises(ValueError, match=f"'{name}' cannot be downloaded by load. Get .*https://"):
        load(name, tmp_path, download=True)


@pytest.fixture
def torchvision(monkeypatch, rng):
    """A torchvision whose data sets write what the real ones would, and note that they were asked."""
    asked = []

    def fake(name, write):
        def download(root, download):
            asked.append((name, root, download))
            write(Path(root))

        return download

    module = types.ModuleType("torchvision.datasets")
    module.CIFAR10 = fake("CIFAR10", lambda root: write_cifar(root / "cifar-10-batches-py", rng))
    module.CIFAR100 = fake("CIFAR100", lambda root: write_cifar(root / "cifar-100-python", rng, "cifar100"))
    module.FashionMNIST = fake("FashionMNIST", lambda root: write_fashion(root / "FashionMNIST" / "raw", rng))
    module.asked = asked
    parent = types.ModuleType("torchvision")
    parent.datasets = module
    monkeypatch.setitem(sys.modules, "torchvision", parent)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return module


@pytest.mark.parametrize(
    "name, kind, n", [("cifar10", "CIFAR10", 20), ("cifar100", "CIFAR100", 4), ("fashion_mnist", "FashionMNIST", 20)]
)
def test_download_is_torchvisions_and_done_once(name, kind, n, torchvision, tmp_path):
    root = tmp_path / "new"
    assert len(load(name, root, download=True).y_train) == n
    assert torchvision.asked == [(kind, str(root), True)]
    load(name, root, download=True)
    assert len(torchvision.asked) == 1


@pytest.mark.parametrize(
    "error", [URLError("no host"), RuntimeError("Error downloading"), TimeoutError(), ConnectionResetError()]
)
def test_failed_download_says_where_to_get_the_data(error, torchvision, tmp_path):
    def fail(root, download):
        raise error

    torchvision.CIFAR10 = fail
    with pytest.raises(ConnectionError, match="download failed.*cs.toronto.edu"):
        load("cifar10", tmp_path, download=True)


def test_full_disk_is_no_failed_connection(torchvision, tmp_path):
    def fail(root, download):
        raise PermissionError("not yours")

    torchvision.CIFAR10 = fail
    with pytest.raises(PermissionError, match="not yours"):
        load("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_download_needs_a_folder(name, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "_DEBIAN_FASHION", tmp_path / "none")
    with pytest.raises(ValueError, match="download=True needs root"):
        load(name, download=True)


def test_importing_the_module_loads_neither_torch_nor_timm():
    code = "import sys, skl_transformaly.datasets; print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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
        ({"y_train": [0] * 11}, "X_train holds 12 images but y_train 11 labels"),
        ({"y_test": [0]}, "X_test holds 2 images but y_test 1 labels"),
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
    with pytest.raises(ValueError, match="no class 'owl' in the labels, which are 'cat', 'dog'"):
        setting((images[:2], ["cat", "dog"], images[:2], ["cat", "dog"]), "owl")


def test_close_class_names_are_suggested(images):
    data = ImageDataset("pets", images[:2], [0, 1], images[:2], [0, 1], ["cats", "dogs"])
    with pytest.raises(ValueError, match="Did you mean 'cats'"):
        unimodal(data, "cat")


def test_class_without_training_images(images):
    with pytest.raises(ValueError, match="no training image of class 'owl'"):
        unimodal((images[:1], ["cat"], images[:2], ["cat", "owl"]), "owl")


def test_nothing_but_the_anomalous_class_to_train_on(images):
    with pytest.raises(ValueError, match="no training image of a class other than 'cat'"):
        multimodal((images[:1], ["cat"], images[:2], ["cat", "owl"]), "cat")


@pytest.mark.parametrize("setting", [unimodal, multimodal])
@pytest.mark.parametrize(
    "chosen, message", [("cat", "All 2 test images are of class"), ("dog", "of other classes than")]
)
def test_one_kind_of_test_images_only(setting, chosen, message, images):
    with pytest.raises(ValueError, match=message):
        setting((images[:2], ["cat", "dog"], images[:2], ["cat", "cat"]), chosen)


def test_tuple_of_other_lengths(images):
    with pytest.raises(ValueError, match="X_test holds 3 images but y_test 2 labels"):
        unimodal((images[:2], ["cat", "dog"], images[:3], ["cat", "dog"]), "cat")


@pytest.mark.parametrize("given", [(1, 2, 3), "cifar10", None])
def test_settings_need_labelled_data(given):
    with pytest.raises(ValueError, match="ImageDataset or a tuple"):
        unimodal(given, 0)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0.0, 1.0, np.nan], r"y_train has no label \(NaN or None\) for 1 images"),
        ([0, None, 1], r"no label \(NaN or None\) for 1 images"),
        (["a", None, None], r"no label \(NaN or None\) for 2 images"),
        (pd.Series([0, np.nan, 1], dtype=object), r"no label \(NaN or None\) for 1 images"),
        (pd.array([0, pd.NA, 1]), r"no label \(NaN or None\) for 1 images"),
        (np.array(["2020-01-01", "NaT", "NaT"], "datetime64[D]"), r"no label \(NaN or None\) for 2 images"),
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


def test_one_part_of_a_split_folder_is_warned_about(tmp_path, rng):
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    with pytest.warns(UserWarning, match="looks like one part of a data set"):
        load("folder", tmp_path / "train", test_size=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load("folder", tmp_path).y_test) == 6


def test_other_classes_are_not_taken_for_cifar10(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", class_names=np.array(["zero", "one"]), **arrays)
    with pytest.raises(ValueError, match="CIFAR-10 has no class 'one', 'zero': load it as 'npz'"):
        load("cifar10", tmp_path / "a.npz")
