"""The paper's ten data sets in each form in which they are distributed."""

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from skl_transformaly import ImageError
from skl_transformaly.datasets import unimodal

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "paper"))

import loaders
from loaders import CIFAR100_COARSE, DATASETS, load

# two classes stand for all here; the warning has a test of its own
pytestmark = pytest.mark.filterwarnings("ignore:.*classes, but:UserWarning")

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
    "name, train, test",
    [
        ("covid19", "Covid19-dataset/train", "Covid19-dataset/test"),
        ("view", "seg_train/seg_train", "seg_test/seg_test"),
        ("cats_vs_dogs", "training_set/training_set", "test_set/test_set"),
        ("blood_cells", "dataset2-master/dataset2-master/images/TRAIN", "dataset2-master/dataset2-master/images/TEST"),
    ],
)
def test_split_folders_of_archives(name, train, test, tmp_path, rng):
    write_folders(tmp_path, rng, split_files(train, test))
    data = load(name, tmp_path)
    assert data.name == name and data.class_names == ["cat", "dog"]
    for part, X, y in ((train, data.X_train, data.y_train), (test, data.X_test, data.y_test)):
        assert [str(path.relative_to(tmp_path / part)) for path in names_of(X)] == [
            f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)
        ]
        assert y.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("below", ["", "Concrete Crack Images for Classification/"])
def test_folders_without_a_split_are_split(below, tmp_path, rng):
    files = [f"{below}{c}/{i}.png" for c in ("Negative", "Positive") for i in range(10)]
    write_folders(tmp_path, rng, files)
    data, other = (load("concrete_crack", tmp_path, random_state=seed) for seed in (0, 1))
    train, test = names_of(data.X_train), names_of(data.X_test)
    assert sorted(train + test) == [tmp_path / name for name in files] and len(test) == 4
    assert test != names_of(other.X_test)


def test_several_data_sets_below_root_are_not_guessed_between(tmp_path, rng):
    write_folders(tmp_path, rng, split_files("a/train", "a/test") + split_files("b/train", "b/test"))
    with pytest.raises(ValueError, match="Several folders.*Pass one"):
        load("covid19", tmp_path)


def test_deeper_folders_do_not_hide_a_shallow_split(tmp_path, rng):
    write_folders(tmp_path, rng, split_files() + split_files("copy/train", "copy/test", n=5))
    assert len(load("covid19", tmp_path).y_test) == 6


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


def test_flat_file_without_a_class_is_named(tmp_path, rng):
    write_folders(tmp_path, rng, ["rain1.jpg", "rain2.jpg", "shine1.jpg", "shine2.jpg", "17.jpg"])
    with pytest.raises(ValueError, match="17.jpg' does not say its class"):
        load("weather", tmp_path)


def test_a_class_too_many_is_warned_of(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("cats", "dogs", "owls")))
    with pytest.warns(UserWarning, match="'cats_vs_dogs' has 2 classes, but .* of 3"):
        load("cats_vs_dogs", tmp_path)


# ------------------------------------------------------------------ CIFAR


@pytest.fixture
def write_cifar(monkeypatch, rng):
    """Writes batches in CIFAR's format, with the MD5 that torchvision expects; returns their pixels and labels."""

    def write(root, kind, n=4):
        batches = {"train": [], "test": []}
        for part, files in (("train", kind.train_list), ("test", kind.test_list)):
            for file, _ in files:
                pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
                planes = pixels.transpose(0, 3, 1, 2).reshape(n, 3072)
                labels = rng.integers(0, 10, n).tolist()
                batches[part].append((file, pixels, labels, {"data": planes, "labels": labels, "fine_labels": labels}))
        folder = root / kind.base_folder
        folder.mkdir(parents=True)

        def put(file, content):
            (folder / file).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / file).read_bytes()).hexdigest()

        for part, files in batches.items():
            sums = [[file, put(file, content)] for file, _, _, content in files]
            monkeypatch.setattr(kind, f"{part}_list", sums)
        key, file = kind.meta["key"], kind.meta["filename"]
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": put(file, {key: [str(i) for i in range(100)]})})
        return {
            part: (np.concatenate([X for _, X, _, _ in files]), np.concatenate([y for _, _, y, _ in files]))
            for part, files in batches.items()
        }

    return write


@pytest.mark.parametrize("name, kind", [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
@pytest.mark.parametrize("below", [False, True])
def test_cifar_batches(name, kind, below, write_cifar, tmp_path):
    written = write_cifar(tmp_path, kind)
    data = load(name, tmp_path / kind.base_folder if below else tmp_path)
    assert len(data.class_names) == (10 if name == "cifar10" else 20)
    for X, y, part in ((data.X_train, data.y_train, "train"), (data.X_test, data.y_test, "test")):
        labels = written[part][1]
        np.testing.assert_array_equal(X.stack, written[part][0])
        np.testing.assert_array_equal(y, labels if name == "cifar10" else np.array(COARSE_OF_FINE)[labels])


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no pickle")])
def test_missing_and_changed_cifar_batches_are_refused(change, write_cifar, tmp_path):
    write_cifar(tmp_path, CIFAR10)
    change(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(ValueError, match=r"not complete or damaged.*cs\.toronto\.edu"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("names, expected", [(None, [0, 1, 2]), (["cat", "truck", "airplane"], [3, 9, 0])])
def test_cifar10_npz_has_cifars_numbers(names, expected, rng, tmp_path):
    arrays = {f"X_{part}": rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8) for part in ("train", "test")}
    extra = {} if names is None else {"class_names": names}
    np.savez(tmp_path / "a.npz", **arrays, y_train=[0, 1, 2], y_test=[0, 1, 2], **extra)
    data = load("cifar10", tmp_path / "a.npz")
    assert data.y_train.tolist() == expected and data.class_names[2] == "bird" and data.name == "cifar10"


def test_cifar10_folders(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("airplane", "truck"), n=2))
    data = load("cifar10", tmp_path)
    assert data.y_train.tolist() == [0, 0, 9, 9]  # its own numbers, though most classes are absent


def test_cifar10_folders_of_other_classes_are_refused(tmp_path, rng):
    write_folders(tmp_path, rng, split_files(classes=("cat", "plane")))
    with pytest.raises(ValueError, match="'cifar10' has no class 'plane'"):
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
    with pytest.raises(ValueError, match="'cifar100' has no class 'unicorn'"):
        load("cifar100", tmp_path)


# ------------------------------------------------------------------ Fashion-MNIST

FASHION_FILES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, rng, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [
        array
        for n in (20, 10)
        for array in (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8))
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
    monkeypatch.setattr(loaders, "_DEBIAN_FASHION", tmp_path)
    assert len(load("fashion_mnist").y_train) == 20


def test_fashion_mnist_without_root_and_without_debians(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "_DEBIAN_FASHION", tmp_path / "none")
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        load("fashion_mnist")


def test_real_fashion_mnist():
    if not loaders._DEBIAN_FASHION.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = load("fashion_mnist")
    assert data.X_train.stack.shape == (60000, 28, 28, 1) and data.X_test.stack.shape == (10000, 28, 28, 1)
    assert data.y_train[:5].tolist() == [9, 0, 0, 3, 0] and data.y_test[:5].tolist() == [9, 2, 1, 1, 6]
    assert np.bincount(data.y_train).tolist() == [6000] * 10


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content[:-1], "must have"),
        (lambda content: content + b"0", "must have"),
        (lambda content: content[:10], "at least 16 bytes"),
        (lambda content: b"", "at least 16 bytes"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "begins with 00000d03"),
        (lambda content: content[:3] + b"\x01" + content[4:], "begins with 00000801"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "must have"),
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


def test_missing_idx_file_is_named(tmp_path, rng):
    write_fashion(tmp_path, rng)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="lacks train-labels-idx1-ubyte"):
        load("fashion_mnist", tmp_path)


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
    with pytest.warns(UserWarning, match="boxes are empty or outside"):
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
    with pytest.raises(ImageError, match="00002.jpg' is smaller than its annotation states"):
        load("dior", tmp_path).X_test[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dior_xml_bomb_is_refused(encoding, tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    bomb = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 1000}">' for a, b in zip("abcdef", "bcdefg")
    )
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}]><annotation>&g;</annotation>'
    (tmp_path / "Annotations/00001.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="00001.xml' is not an annotation"):
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
    with pytest.raises(ValueError, match=r"image or annotation of \['00001'\] is missing"):
        load("dior", tmp_path)


def test_dior_image_in_both_lists_is_refused(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    (tmp_path / "ImageSets/Main/test.txt").write_text("00001\n00002\n")
    with pytest.raises(ValueError, match=r"name \['00001'\] both for training and for testing"):
        load("dior", tmp_path)


@pytest.mark.filterwarnings("default")
def test_dior_of_fewer_classes_is_warned_about(tmp_path, rng):
    write_dior(tmp_path, rng, DIOR_BOXES)
    with pytest.warns(UserWarning, match="'dior' has 19 classes, but .* of 2"):
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


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="Unknown data set 'CIFAR-10'; expected one of cifar10,"):
        load("CIFAR-10")


@pytest.mark.parametrize(
    "name, root",
    [(name, "empty") for name in DATASETS if name not in ("folder", "npz")]
    + [("fashion_mnist", None), ("dior", None), ("cifar10", "missing"), ("weather", "a file"), ("dior", "a file")],
)
def test_what_is_not_there_is_explained(name, root, tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "_DEBIAN_FASHION", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_bytes(b"text")
    where = None if root is None else tmp_path / root
    with pytest.raises(ValueError, match=r"https://.*pass as root|Expected an .npz"):
        load(name, where)


@pytest.mark.parametrize("name, kind", [("cifar10", CIFAR10), ("fashion_mnist", FashionMNIST)])
def test_download_is_torchvisions_and_done_once(name, kind, write_cifar, rng, tmp_path, monkeypatch):
    asked = []

    def download(self):
        asked.append(self.root)
        if kind is CIFAR10:
            write_cifar(Path(self.root), kind)
        else:
            write_fashion(Path(self.raw_folder), rng)

    monkeypatch.setattr(kind, "download", download)
    for _ in range(2):
        assert len(load(name, tmp_path, download=True).y_train) == 20
    assert asked == [str(tmp_path)]


@pytest.mark.parametrize(
    "error, raised", [(URLError("no host"), ConnectionError), (PermissionError("no"), PermissionError)]
)
def test_failed_download_says_where_to_get_the_data(error, raised, tmp_path, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(raised, match="download failed.*cs.toronto.edu" if raised is ConnectionError else "no"):
        load("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("name, root", [("cifar10", None), ("dior", "empty")])
def test_what_cannot_be_downloaded_says_so(name, root, tmp_path):
    with pytest.raises(ValueError, match="Only CIFAR and Fashion-MNIST can be downloaded, with root=FOLDER. Get"):
        load(name, root and tmp_path, download=True)
