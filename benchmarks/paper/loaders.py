"""The paper's ten data sets, as they are distributed.

`load` finds a data set below a folder, whatever archive it was unpacked from, and reads it by
skl_transformaly.datasets; it says where to get what is not there.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import dior
import numpy as np

from skl_transformaly import datasets
from skl_transformaly.datasets import ImageDataset
from skl_transformaly.images._folders import has_image_suffix
from skl_transformaly.images._images import as_images

# CIFAR-100's 20 superclasses, each with its five classes (A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html)
CIFAR100_COARSE: dict[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_FASHION = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

# Data sets that may be one folder of files whose names begin with their classes.
_FLAT = {
    "cats_vs_dogs": re.compile(r"(cat|dog)\.\d+\.", re.IGNORECASE),
    "weather": re.compile(r"(cloudy|rain|shine|sunrise)[ _-]?\d+\.", re.IGNORECASE),
}
_DEPTH = 4  # levels below root in which training and test folders are looked for


def load(name: str, root: str | Path | None = None, *, download: bool = False, random_state: Any = 0) -> ImageDataset:
    """Read a data set.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    root : str or path, default=None
        Folder or file of the data set, or a folder above it. None is Debian's package for "fashion_mnist".
    download : bool, default=False
        Fetch "cifar10", "cifar100" or "fashion_mnist" into `root` by torchvision if it is not there. The other data
        sets are behind a login or a form.
    random_state : int, RandomState or None, default=0
        Draws the test images of a data set without a split of its own: 20 %.

    Returns
    -------
    ImageDataset

    Raises
    ------
    ValueError
        The name is unknown, or `root` does not hold the data set. The message says where to get it.
    ConnectionError
        The download failed.
    """
    if name not in _SOURCES:
        raise ValueError(f"Unknown data set {name!r}; expected one of {', '.join(DATASETS)}.")
    source = _SOURCES[name]
    where = _DEBIAN_FASHION if root is None and name == "fashion_mnist" else root
    try:
        return _read(source, name, where, random_state)
    except ValueError as error:
        if not download:
            raise ValueError(f"{error} {source.text}") from error
    if source.torchvision is None or root is None:
        raise ValueError(f"Only CIFAR and Fashion-MNIST can be downloaded, with root=FOLDER. {source.text}")
    _download(source, str(root))
    return _read(source, name, root, random_state)


def _read(source: _Source, name: str, root: str | Path | None, random_state: Any) -> ImageDataset:
    if root is None or not Path(root).expanduser().exists():
        raise ValueError(f"There is no {str(root)!r}." if root else f"root is None: say where {name!r} is.")
    data = source.read(name, Path(root).expanduser(), random_state)
    if source.n_classes not in (None, len(set(data.y_train))):
        warnings.warn(
            f"{name!r} has {source.n_classes} classes, but {str(root)!r} has images of {len(set(data.y_train))}.",
            stacklevel=3,
        )
    return data


# --------------------------------------------------------------------------- folders


def _read_own(name: str, root: Path, random_state: Any) -> ImageDataset:
    """A user's own images; called as their folder or file is."""
    return datasets.load(root, random_state=random_state)


def _read_folders(name: str, root: Path, random_state: Any) -> ImageDataset:
    if name in _FLAT and (flat := _flat_files(root, _FLAT[name])):
        return datasets._from_files(name, *datasets._split_at_random(flat, 0.2, random_state))
    split = _find_split(root)
    if split is None:
        while root.is_dir() and len(inner := datasets._folders(root)) == 1:  # the archive's own folder
            root = inner[0]
        return replace(datasets.load(root, random_state=random_state), name=name)
    return replace(datasets.load(*split), name=name)


def _find_split(root: Path) -> tuple[Path, Path] | None:
    """Training and test folders, with a folder for each class, in the uppermost folder that has them."""
    level = [root] if root.is_dir() else []
    for _ in range(_DEPTH + 1):
        found = [pair for folder in level if (pair := _split_in(folder)) is not None]
        if len(found) > 1:
            several = ", ".join(str(train.parent) for train, _ in found)
            raise ValueError(f"Several folders hold a data set: {several}. Pass one of them as root.")
        if found:
            train, test = (part / part.name for part in found[0])  # Kaggle's archives hold seg_train/seg_train
            return (train, test) if train.is_dir() and test.is_dir() else found[0]
        level = [child for folder in level for child in datasets._folders(folder)]
    return None


def _split_in(folder: Path) -> tuple[Path, Path] | None:
    pair = datasets._find_split(folder)
    if (folder / "seg_train").is_dir():  # View
        pair = folder / "seg_train", folder / "seg_test"
    return pair if pair and datasets._folders(pair[0]) else None


def _flat_files(root: Path, pattern: re.Pattern) -> list[tuple[str, str]]:
    """Class and path of the images in the folder whose files' names begin with classes; empty if there is none."""
    classes: dict[Path, set[str]] = {}
    for path in root.rglob("*.*"):
        if found := pattern.match(path.name):
            classes.setdefault(path.parent, set()).add(found[1].lower())
    folders = [folder for folder, seen in classes.items() if len(seen) > 1]
    if not folders:
        return []
    if len(folders) > 1:
        several = ", ".join(map(str, folders))
        raise ValueError(f"Several folders hold a data set: {several}. Pass one of them as root.")
    files = []
    for path in sorted(p for p in folders[0].iterdir() if has_image_suffix(p.name) and p.name[0] != "."):
        found = pattern.match(path.name)
        if found is None:
            raise ValueError(
                f"{str(path)!r} does not say its class: names of files there begin with the class and a number. Rename "
                "or remove it."
            )
        files.append((found[1].lower(), str(path)))
    return sorted(files)


# --------------------------------------------------------------------------- CIFAR


def _read_cifar(name: str, root: Path, random_state: Any) -> ImageDataset:
    coarse = name == "cifar100"
    names = list(CIFAR100_COARSE) if coarse else _CIFAR10
    folder = "cifar-100-python" if coarse else "cifar-10-batches-py"
    if root.name == folder:
        root = root.parent
    if (root / folder).is_dir():
        kind = getattr(import_module("torchvision.datasets"), "CIFAR100" if coarse else "CIFAR10")
        try:  # which unpickles files only if their MD5 is CIFAR's
            train, test = (kind(str(root), train=part) for part in (True, False))
        except RuntimeError as error:
            raise ValueError(f"{str(root / folder)!r} is not complete or damaged ({error}).") from error
        y_train, y_test = (np.asarray(part.targets) for part in (train, test))
        if coarse:
            y_train, y_test = _FINE_TO_COARSE[y_train], _FINE_TO_COARSE[y_test]
        return ImageDataset(name, as_images(train.data), y_train, as_images(test.data), y_test, names)
    if root.is_file() and not coarse:
        data = datasets.load(root)
        numbers = {str(i): i for i in range(10)} if all(map(str.isdigit, data.class_names)) else {}
    else:
        split = _find_split(root)
        if split is None:  # the data set's own split is part of it
            raise ValueError(f"There are neither batches nor folders train and test of class folders in {str(root)!r}.")
        data, numbers = datasets.load(*split), {}
    numbers |= {label: i for i, label in enumerate(names)}
    if coarse:
        numbers |= {fine: i for i, group in enumerate(CIFAR100_COARSE.values()) for fine in group}
    found = [numbers.get(label.replace(" ", "_").lower(), -1) for label in data.class_names]
    if -1 in found:
        raise ValueError(f"{name!r} has no class {data.class_names[found.index(-1)]!r}.")
    number = np.array(found)
    return replace(data, name=name, class_names=names, y_train=number[data.y_train], y_test=number[data.y_test])


# CIFAR-100 numbers its classes by the alphabet.
_FINE_TO_COARSE = np.array(
    [i for _, i in sorted((fine, i) for i, group in enumerate(CIFAR100_COARSE.values()) for fine in group)]
)


# --------------------------------------------------------------------------- Fashion-MNIST


def _read_fashion(name: str, root: Path, random_state: Any) -> ImageDataset:
    wanted = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for place in (root, root / "FashionMNIST" / "raw"):  # the latter is torchvision's
        files = [path for path in place.glob("*-ubyte*") if path.name.removesuffix(".gz") in wanted]
        if files:
            break
    by_name = {path.name.removesuffix(".gz"): path for path in files}
    if missing := [file for file in wanted if file not in by_name]:
        raise ValueError(f"{str(root)!r} lacks {', '.join(missing)} (with or without .gz).")
    X, y, X_test, y_test = (_read_idx(by_name[file], 3 if "images" in file else 1) for file in wanted)
    return ImageDataset(name, as_images(X), y, as_images(X_test), y_test, _FASHION)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Bytes of an IDX file: two zeros, a type, the number of dimensions, big-endian sizes, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is damaged or not complete ({error}).") from error
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):  # 8: unsigned bytes
        raise ValueError(
            f"{str(path)!r} begins with {content[:4].hex()}; an IDX file of bytes in {ndim} dimensions begins with "
            f"{bytes([0, 0, 8, ndim]).hex()} and has at least {header} bytes."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"{str(path)!r} must have {expected} bytes for its shape {shape}, but has {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # writable


# --------------------------------------------------------------------------- where to get them


def _download(source: _Source, root: str) -> None:
    kinds = import_module("torchvision.datasets")
    try:
        getattr(kinds, str(source.torchvision))(root=root, download=True)
    except (URLError, ConnectionError, TimeoutError, HTTPException, RuntimeError) as error:
        raise ConnectionError(f"The download failed ({error}). {source.text}") from error


class _Source(NamedTuple):
    read: Callable[[str, Path, Any], ImageDataset]
    title: str
    url: str
    layout: str
    n_classes: int | None = None
    torchvision: str | None = None

    @property
    def text(self) -> str:
        got = f"Get {self.title} from {self.url}, and" if self.url else "Please"
        fetch = ", or load it with download=True" if self.torchvision else ""
        return f"{got} pass as root {self.layout}{fetch}."


_CLASS_FOLDERS = "a folder that holds train/CLASS and test/CLASS, or CLASS, with image files"

_SOURCES = {
    "cifar10": _Source(
        _read_cifar,
        "CIFAR-10 (python version)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "the folder cifar-10-batches-py with data_batch_1 to data_batch_5 and test_batch, or the folder that holds it, "
        "or one with train/CLASS and test/CLASS, or an .npz file",
        10,
        "CIFAR10",
    ),
    "cifar100": _Source(
        _read_cifar,
        "CIFAR-100 (python version)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "the folder cifar-100-python with train and test, or the folder that holds it, or one with train/CLASS and "
        "test/CLASS",
        20,
        "CIFAR100",
    ),
    "fashion_mnist": _Source(
        _read_fashion,
        "Fashion-MNIST",
        "https://github.com/zalandoresearch/fashion-mnist (or Debian's package dataset-fashion-mnist, with root=None)",
        "the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte, gzipped or not",
        10,
        "FashionMNIST",
    ),
    "cats_vs_dogs": _Source(
        _read_folders,
        "Kaggle's 'Dogs vs. Cats'",
        "https://www.kaggle.com/c/dogs-vs-cats",
        "the unpacked folder with train/cat.0.jpg, train/dog.0.jpg, ..., or one with class folders "
        "(training_set/cats, test_set/cats, ...)",
        2,
    ),
    "dior": _Source(
        dior.read,
        "DIOR (Li et al., 'Object detection in optical remote sensing images')",
        "https://gcheng-nwpu.github.io/",
        "the folder with JPEGImages-trainval and JPEGImages-test (or JPEGImages), Annotations/*.xml (or "
        "Annotations/Horizontal Bounding Boxes/*.xml) and the lists train.txt, val.txt, test.txt in ImageSets/Main or "
        "Main",
        19,
    ),
    "blood_cells": _Source(
        _read_folders,
        "Kaggle's 'Blood Cell Images'",
        "https://www.kaggle.com/datasets/paultimothymooney/blood-cells",
        "the unpacked folder, in which dataset2-master/dataset2-master/images holds TRAIN/CLASS and TEST/CLASS",
        4,
    ),
    "covid19": _Source(
        _read_folders,
        "Kaggle's 'Covid-19 Image Dataset'",
        "https://www.kaggle.com/datasets/pranavraikokte/covid19-image-dataset",
        "the unpacked folder, in which Covid19-dataset holds train/CLASS and test/CLASS",
        3,
    ),
    "weather": _Source(
        _read_folders,
        "the 'Multi-class Weather Dataset for Image Classification'",
        "https://data.mendeley.com/datasets/4drtyfjtfy/1",
        "the unpacked folder of cloudy1.jpg, rain1.jpg, shine1.jpg, sunrise1.jpg, ..., or " + _CLASS_FOLDERS,
        4,
    ),
    "view": _Source(
        _read_folders,
        "Kaggle's 'Intel Image Classification'",
        "https://www.kaggle.com/datasets/puneet6060/intel-image-classification",
        "the unpacked folder with seg_train/seg_train/CLASS and seg_test/seg_test/CLASS",
        6,
    ),
    "concrete_crack": _Source(
        _read_folders,
        "'Concrete Crack Images for Classification'",
        "https://data.mendeley.com/datasets/5y9wdsg2zt/2",
        "the unpacked folder with Negative and Positive, or train/CLASS and test/CLASS",
        2,
    ),
    "folder": _Source(_read_own, "", "", _CLASS_FOLDERS),
    "npz": _Source(_read_own, "", "", "an .npz file of X_train, y_train, X_test, y_test and perhaps class_names"),
}

# The paper's ten data sets, and others
DATASETS: tuple[str, ...] = tuple(_SOURCES)
