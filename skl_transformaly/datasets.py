"""The paper's ten data sets as labelled images that are decoded when used, and its two evaluation settings.

The experiments of M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR
Workshops 2022, Section 4, take a data set for classification and declare some of its classes normal:
:func:`load` reads such a data set as it is distributed, :func:`unimodal` and :func:`multimodal` make the task of it.
"""

from __future__ import annotations

import gzip
import os
import pickle
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import URLError
from xml.etree import ElementTree
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skl_transformaly.images._images import ImageError, Images, as_images, list_images

__all__ = ["CIFAR100_COARSE", "DATASETS", "ImageDataset", "load", "multimodal", "unimodal"]

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
"""CIFAR-100's 20 superclasses, each with its five classes (A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html)."""

_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_FASHION = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
# CIFAR-100 numbers its classes by the alphabet.
_FINE_TO_COARSE = np.array(
    [i for _, i in sorted((fine, i) for i, group in enumerate(CIFAR100_COARSE.values()) for fine in group)]
)
# Of data sets whose classes are folders or objects
_N_CLASSES = {
    "cats_vs_dogs": 2,
    "dior": 19,
    "blood_cells": 4,
    "covid19": 3,
    "weather": 4,
    "view": 6,
    "concrete_crack": 2,
}
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

# Pairs of folders that hold training and test images, compared without case; the first that is there counts.
_SPLITS = (
    ("train", "test"),
    ("training_set", "test_set"),
    ("seg_train", "seg_test"),
    ("training", "test"),
    ("training", "testing"),
    ("train", "testing"),
    ("train", "val"),
    ("train", "valid"),
    ("train", "validation"),
    ("training", "validation"),
)
_DEPTH = 4  # levels below root in which a layout is looked for

# DIOR: crops of at least so many pixels in height and in width, classes with more than so many training crops
_DIOR_MIN_SIDE = 120
_DIOR_MORE_THAN = 50

_Found = TypeVar("_Found")
_Files = dict[str, list[Path]]  # class name -> its images


class _Missing(Exception):
    """What was looked for is not below root; `load` adds where to get it."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Labelled images, split into training and test images.

    Parameters
    ----------
    name : str
        For tables and messages.
    X_train : Images, array or sequence of n_train images
        From :func:`load` they are decoded when they are used.
    y_train : array-like of int, shape (n_train,)
        Class of each image, a position in `class_names`; kept as an int64 array.
    X_test : Images, array or sequence of n_test images
    y_test : array-like of int, shape (n_test,)
    class_names : list of str
        All different.

    Raises
    ------
    ValueError
        Lengths differ, a label is not an integer or names no class, or a class name comes twice.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly.datasets import ImageDataset
    >>> X = np.zeros((4, 8, 8), dtype=np.uint8)
    >>> ImageDataset("black", X, [0, 0, 1, 1], X[:2], [0, 1], ["left", "right"])
    ImageDataset('black': 4 training images, 2 test images, 2 classes)
    """

    name: str
    X_train: Any
    y_train: np.ndarray
    X_test: Any
    y_test: np.ndarray
    class_names: list[str]

    def __post_init__(self) -> None:
        names = [str(name) for name in self.class_names]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"class_names of {self.name!r} must all be different, but {_shown(twice)} come twice.")
        object.__setattr__(self, "class_names", names)
        for part in ("train", "test"):
            y = _labels(getattr(self, f"X_{part}"), getattr(self, f"y_{part}"), part)
            if y.dtype.kind not in "iu":
                raise ValueError(
                    f"y_{part} of {self.name!r} must be integers, positions in class_names, got dtype {y.dtype}. "
                    "For names use np.unique(y, return_inverse=True)."
                )
            if y.size and (y.min() < 0 or y.max() >= len(names)):
                raise ValueError(
                    f"y_{part} of {self.name!r} spans {y.min()} to {y.max()}; with {len(names)} class_names labels "
                    f"must be in 0 to {len(names) - 1}."
                )
            object.__setattr__(self, f"y_{part}", y.astype(np.int64))

    def __repr__(self) -> str:
        return (
            f"ImageDataset({self.name!r}: {len(self.y_train)} training images, {len(self.y_test)} test images, "
            f"{len(self.class_names)} classes)"
        )


def load(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    download: bool = False,
    test_size: float | int = 0.2,
    random_state: Any = 0,
) -> ImageDataset:
    """Read a data set as it is distributed; image files are opened when the images are used.

    Parameters
    ----------
    name : str
        One of `DATASETS`:

        - "cifar10": the Python batches (or the folder that holds ``cifar-10-batches-py``), ``train/CLASS`` and
          ``test/CLASS``, or an .npz file (see "npz").
        - "cifar100": the same with ``cifar-100-python``; folders carry the names of the classes or of the
          superclasses. The labels are the 20 superclasses, as in the paper.
        - "fashion_mnist": the four IDX files, gzipped or not.
        - "cats_vs_dogs": class folders, or one folder of ``cat.0.jpg``, ``dog.0.jpg``, ...
        - "dior": ``JPEGImages-trainval`` and ``JPEGImages-test`` (or ``JPEGImages``), ``Annotations``, and the lists
          ``train.txt``, ``val.txt``, ``test.txt`` in ``ImageSets/Main`` or ``Main``.
        - "blood_cells", "covid19", "view", "concrete_crack", and "folder" for your own: class folders.
        - "weather": class folders, or one folder of ``cloudy1.jpg``, ``rain12.jpg``, ...
        - "npz": a file with X_train, y_train, X_test, y_test and, if wanted, class_names.
    root : str or path, default=None
        Folder or file. None is understood for "fashion_mnist" only, where Debian's package
        ``dataset-fashion-mnist`` is installed.
    download : bool, default=False
        Fetch "cifar10", "cifar100" or "fashion_mnist" into `root` if it is not there yet (by torchvision). The other
        data sets are behind a login or a form.
    test_size : float or int, default=0.2
        Share (or number) of test images, for class folders without a split and flat folders.
    random_state : int, RandomState or None, default=0
        Seeds that split, which is stratified (:func:`sklearn.model_selection.train_test_split`).

    Returns
    -------
    ImageDataset
        Its `name` is `name`; of "folder" and "npz" that of `root`, without a suffix.

    Raises
    ------
    ValueError
        An unknown name; nothing that fits below `root` (the message says where to get the data and what the folder
        should look like); a damaged file; a class that only the training or only the test images have.
    ConnectionError
        The download failed.

    Notes
    -----
    Class folders are ``train``/``test``, ``training_set``/``test_set``, ``seg_train``/``seg_test``,
    ``training``/``test`` or ``train``/``val`` (``testing``, ``valid``, ``validation``) in any case, up to four levels
    below `root`, each with a folder per class, or with one folder of its own name that holds those (as in Kaggle's
    archives); test images without class folders beside training and validation images are left alone. Otherwise they
    are one folder of class folders. Class names are sorted; hidden files and folders are passed over. A folder without
    images, and a number of classes that is not the data set's, is warned of.

    DIOR is a data set for object detection; an image here is an annotated object, cropped by its box. As in the
    experiments with DIOR before the paper's [2]_, only objects with at least ``min_side=120`` pixels in height and in
    width count, and only classes with more than 50 such training objects: too few pixels are left of smaller ones,
    and too few samples in smaller classes. Train and validation lists together are the training set. A box is
    half-open, ``xmin <= x < xmax``, and is clipped to the image.

    CIFAR's batches are pickles. They are read by an unpickler that can build NumPy arrays and nothing else, so that a
    manipulated file cannot run code.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR Workshops
       2022, Section 4.
    .. [2] T. Reiss, N. Cohen, L. Bergman and Y. Hoshen, "PANDA: Adapting Pretrained Features for Anomaly Detection
       and Segmentation", CVPR 2021.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from skl_transformaly.datasets import load, unimodal
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for part in ("train", "test"):
    ...         for name, value in (("dark", 20), ("light", 230)):
    ...             folder = Path(root, part, name)
    ...             folder.mkdir(parents=True)
    ...             for i in range(3):
    ...                 Image.new("L", (8, 8), value).save(folder / f"{i}.png")
    ...     data = load("folder", root)
    ...     X_train, X_test, y_test = unimodal(data, "dark")
    ...     int(X_train[0].max())
    20
    >>> data.class_names, y_test
    (['dark', 'light'], array([ 1,  1,  1, -1, -1, -1]))
    """
    if name not in _SOURCES:
        close = get_close_matches(str(name).lower(), DATASETS, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"There is no data set {name!r}; expected one of {', '.join(DATASETS)}.{hint}")
    source = _SOURCES[name]
    where = None if root is None else Path(root).expanduser()

    def read() -> ImageDataset:
        if where is None and name != "fashion_mnist":
            raise _Missing(f"root is None: say where {name!r} is.")
        if where is not None and not where.exists():
            raise _Missing(f"There is no {str(where)!r}.")
        data = source.read(name, where, test_size, random_state)
        if name in ("folder", "npz") and where is not None:  # a user's own data are called as their file is
            data = replace(data, name=where.resolve().stem)
        return data

    try:
        return read()
    except _Missing as error:
        if not download:
            raise ValueError(f"{error} {source.text}") from None
        if source.torchvision is None:
            raise ValueError(f"{error} {name!r} cannot be downloaded by load. {source.text}") from None
        if where is None:
            raise ValueError(f"download=True needs root, the folder to download {name!r} into.") from None
    _download(source, where)
    try:
        return read()
    except _Missing as error:
        raise ValueError(f"{error} {source.text}") from None


def unimodal(dataset: Any, normal_class: Any) -> tuple[Any, Any, np.ndarray]:
    """One class is normal, all others are anomalies (the paper's unimodal setting, Section 4).

    Parameters
    ----------
    dataset : ImageDataset or tuple (X_train, y_train, X_test, y_test)
        In a tuple images may be :class:`Images <skl_transformaly.images._images.Images>`, arrays, data frames or lists;
        labels may be of any dtype.
    normal_class : int or str
        Of an `ImageDataset` the position or the name of the class; of a tuple the label itself.

    Returns
    -------
    X_train : as `dataset` has them
        Training images of that class, in their order.
    X_test : as `dataset` has them
        All test images.
    y_test : ndarray of shape (n_test,), int64
        +1 where the class is `normal_class`, else -1.

    Raises
    ------
    ValueError
        There is no such class, no training image of it, or test images of it only, or of others only: no AUROC could
        be computed. Also images and labels of different lengths.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR Workshops
       2022, Section 4.

    Examples
    --------
    >>> from skl_transformaly.datasets import unimodal
    >>> data = (["a.png", "b.png", "c.png"], ["cat", "dog", "cat"], ["d.png", "e.png"], ["dog", "cat"])
    >>> unimodal(data, "cat")
    (['a.png', 'c.png'], ['d.png', 'e.png'], array([-1,  1]))
    """
    return _setting(dataset, normal_class, keep=True)


def multimodal(dataset: Any, anomalous_class: Any) -> tuple[Any, Any, np.ndarray]:
    """All classes but one are normal, that one is the anomaly (the paper's multimodal setting, Section 4).

    Parameters
    ----------
    dataset : ImageDataset or tuple (X_train, y_train, X_test, y_test)
        As for :func:`unimodal`.
    anomalous_class : int or str
        As `normal_class` of :func:`unimodal`.

    Returns
    -------
    X_train : as `dataset` has them
        Training images of all other classes, in their order.
    X_test : as `dataset` has them
        All test images.
    y_test : ndarray of shape (n_test,), int64
        -1 where the class is `anomalous_class`, else +1.

    Raises
    ------
    ValueError
        As for :func:`unimodal`.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR Workshops
       2022, Section 4.

    Examples
    --------
    >>> from skl_transformaly.datasets import multimodal
    >>> data = (["a.png", "b.png", "c.png"], ["cat", "dog", "owl"], ["d.png", "e.png"], ["dog", "cat"])
    >>> multimodal(data, "cat")
    (['b.png', 'c.png'], ['d.png', 'e.png'], array([ 1, -1]))
    """
    return _setting(dataset, anomalous_class, keep=False)


def _setting(dataset: Any, chosen: Any, *, keep: bool) -> tuple[Any, Any, np.ndarray]:
    """Train on `chosen` (``keep=True``) or on all but it; test labels +1 for what is trained on."""
    if isinstance(dataset, ImageDataset):
        X_train, y_train, X_test, y_test = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
        label, name = _class_position(dataset, chosen)
    else:
        if not isinstance(dataset, (tuple, list)) or len(dataset) != 4:
            raise ValueError(
                "Expected an ImageDataset or a tuple (X_train, y_train, X_test, y_test), got "
                f"{type(dataset).__name__}{f' of {len(dataset)}' if isinstance(dataset, (tuple, list)) else ''}."
            )
        X_train, y_train, X_test, y_test = dataset
        y_train, y_test = _labels(X_train, y_train, "train"), _labels(X_test, y_test, "test")
        labels = list(dict.fromkeys([*y_train.tolist(), *y_test.tolist()]))
        if np.ndim(chosen):
            raise ValueError(f"Expected one label, got {chosen!r}.")
        if chosen not in labels:
            raise ValueError(f"There is no class {chosen!r} in the labels, which are {_shown(labels)}.")
        label, name = chosen, repr(chosen)
    rows = np.flatnonzero((y_train == label) == keep)
    if not len(rows):
        which = f"of class {name}" if keep else f"of a class other than {name}"
        raise ValueError(f"There is no training image {which}, so nothing is normal. Choose another class.")
    normal = (y_test == label) == keep
    if normal.all() or not normal.any():
        which = f"of class {name}" if (y_test == label).any() else f"of other classes than {name}"
        raise ValueError(
            f"All {len(y_test)} test images are {which}; both normal images and anomalies are needed to test."
        )
    X_train = X_train.take(rows) if isinstance(X_train, Images) else _safe_indexing(X_train, rows)
    return X_train, X_test, np.where(normal, 1, -1).astype(np.int64)


def _class_position(dataset: ImageDataset, chosen: Any) -> tuple[int, str]:
    names = dataset.class_names
    if isinstance(chosen, str) and chosen in names:
        position = names.index(chosen)
    elif isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool) and 0 <= chosen < len(names):
        position = int(chosen)
    else:
        close = get_close_matches(str(chosen), names, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"{dataset.name!r} has no class {chosen!r}; expected a position in 0 to {len(names) - 1} or one of "
            f"{_shown(names)}.{hint}"
        )
    return position, repr(names[position])


def _labels(X: Any, y: Any, part: str) -> np.ndarray:
    """Labels as a 1-D array, one for each image."""
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(f"X_{part} is one path; labelled images are a sequence: pass the list of files.")
    labels = np.asarray(y, dtype=object)
    if labels.ndim != 1:
        raise ValueError(f"y_{part} must be one label for each image, got shape {labels.shape}.")
    if missing := sum(map(_is_missing, labels)):
        raise ValueError(f"y_{part} has no label (NaN or None) for {missing} images: leave those images out.")
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError(f"y_{part} holds both text and other labels; they must be of one kind.")
    y = np.asarray(y)
    n = _num_samples(X)
    if n != len(y):
        raise ValueError(f"X_{part} holds {n} images but y_{part} {len(y)} labels; they must be as many.")
    return y


def _is_missing(label: Any) -> bool:
    """None, NaN, NaT, pandas' NA: what is not equal to itself, or does not know."""
    try:
        return label is None or bool(label != label)
    except TypeError:  # the truth of NA
        return True


def _shown(names: Sequence) -> str:
    return ", ".join(map(repr, names[:25])) + (f", ... ({len(names)})" if len(names) > 25 else "")


# --------------------------------------------------------------------------- class folders


def _read_folders(name: str, root: Path, test_size: Any, random_state: Any) -> ImageDataset:
    train, test = _class_files(name, root, test_size, random_state)
    names = sorted(train)
    if (expected := _N_CLASSES.get(name, len(names))) != len(names):
        _warn(f"{name!r} has {expected} classes, but {str(root)!r} has images of {len(names)}: {_shown(names)}.")
    return _from_files(name, train, test, names, {c: i for i, c in enumerate(names)})


def _from_files(
    name: str, train: _Files, test: _Files, class_names: list[str], number: Mapping[str, int]
) -> ImageDataset:
    def labelled(files: _Files) -> tuple[Images, np.ndarray]:
        order = sorted(files)
        y = np.repeat([number[c] for c in order], [len(files[c]) for c in order])
        return as_images([path for c in order for path in files[c]]), y

    return ImageDataset(name, *labelled(train), *labelled(test), class_names)


def _class_files(name: str, root: Path, test_size: Any, random_state: Any) -> tuple[_Files, _Files]:
    """Training and test files of each class: split folders, else one flat folder, else one folder of classes."""
    if not root.is_dir():
        raise _Missing(f"{str(root)!r} is a file; expected a folder.")
    split = _find(root, _as_split)
    if split is not None:
        train, test = (_files_by_class(part) for part in split)
        for files, other, part in ((train, test, split[0]), (test, train, split[1])):
            if only := sorted(set(files) - set(other)):
                raise ValueError(
                    f"Only {str(part)!r} has images of {_shown(only)}; training and test folders must have the same "
                    "classes. Rename or remove those."
                )
        if not train:
            raise _Missing(f"There are no class folders with images in {str(split[0])!r}.")
        return train, test
    if name.startswith("cifar"):  # its split is part of it
        raise _Missing(f"There are neither batches nor folders train and test with class folders in {str(root)!r}.")
    files = {}
    if name in _FLAT:
        flat = _find(root, lambda folder: _as_flat(folder, _FLAT[name]))
        files = {} if flat is None else _flat_files(flat, _FLAT[name])
    if not files:
        parent = _find(root, _as_classes)
        if parent is None:
            raise _Missing(f"There are no class folders with images in {str(root)!r}.")
        _check_beside(parent, root)
        files = _files_by_class(parent)
    pairs = _split_pairs(_folders(root.absolute().parent))
    if whole := next((pair for pair in pairs if root.absolute() in pair), None):
        _warn(
            f"{str(root)!r} lies beside {str(whole[1 - whole.index(root.absolute())])!r} and looks like one part of a "
            "data set; it is split anew. Give the folder above it to have both parts."
        )
    return _split(files, test_size, random_state)


def _split(files: _Files, test_size: Any, random_state: Any) -> tuple[_Files, _Files]:
    if alone := sorted(c for c, paths in files.items() if len(paths) < 2):
        raise ValueError(
            f"There is one image only of {_shown(alone)}; a split needs two. Add some, or remove the class."
        )
    pairs = [(c, path) for c in sorted(files) for path in files[c]]
    parts = train_test_split(
        np.arange(len(pairs)), test_size=test_size, random_state=random_state, stratify=[c for c, _ in pairs]
    )
    train: _Files = {c: [] for c in files}
    test: _Files = {c: [] for c in files}
    for part, positions in zip((train, test), parts):
        for i in np.sort(positions):
            part[pairs[i][0]].append(pairs[i][1])
        if empty := sorted(c for c in part if not part[c]):
            raise ValueError(
                f"With test_size={test_size!r} no {'test' if part is test else 'training'} image of {_shown(empty)} is "
                "left: change test_size, or add images."
            )
    return train, test


def _files_by_class(parent: Path) -> _Files:
    """Images below each folder in `parent`, by its name."""
    files = {folder.name: _images_below(folder) for folder in _folders(parent)}
    if empty := [name for name, paths in files.items() if not paths]:
        _warn(f"There are no images in {_shown(empty)} of {str(parent)!r}; that is no class.")
    return {name: paths for name, paths in files.items() if paths}


def _warn(message: str) -> None:
    """Warn whoever called `load`."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _folders(folder: Path) -> list[Path]:
    """Folders in `folder`, sorted; hidden ones, those of macOS archives and those that may not be read left out."""
    with os.scandir(folder) as entries:
        names = [
            e.name
            for e in entries
            if e.name[0] != "." and e.name != "__MACOSX" and e.is_dir() and os.access(e.path, os.R_OK | os.X_OK)
        ]
    return [folder / name for name in sorted(names)]


def _images_below(folder: Path) -> list[Path]:
    try:
        return list_images(folder)
    except ValueError:  # none; the folder exists
        return []


@cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _image_names(folder: Path) -> Iterator[str]:
    """Names of the images directly in `folder`, by the rules of `list_images`, unsorted."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] != "." and os.path.splitext(name)[1].lower() in _suffixes() and entry.is_file():
                yield name


def _find(root: Path, match: Callable[[Path], _Found | None]) -> _Found | None:
    """What `match` gives for the one folder, least levels below root, for which it gives anything."""
    level = [root]
    for _ in range(_DEPTH + 1):
        found = [(folder, result) for folder in level if (result := match(folder)) is not None]
        if len(found) > 1:
            raise ValueError(
                f"Several folders below {str(root)!r} hold a data set: {_shown([str(f) for f, _ in found])}. Pass one "
                "of them as root."
            )
        if found:
            return found[0][1]
        level = [child for folder in level for child in _folders(folder)]
    return None


def _split_pairs(folders: list[Path]) -> list[tuple[Path, Path]]:
    """Pairs of training and test folders among these, in the order in which they count."""
    named = {folder.name.lower(): folder for folder in folders}
    return [(named[train], named[test]) for train, test in _SPLITS if train in named and test in named]


def _as_split(folder: Path) -> tuple[Path, Path] | None:
    pairs = [pair for pair in _split_pairs(_folders(folder)) if _folders(pair[0])]  # flat folders are no class folders
    if not pairs:
        return None
    # beside training and validation images there may lie test images without labels
    train, test = next((pair for pair in pairs if _folders(pair[1])), pairs[0])
    return _unwrap(train), _unwrap(test)


def _unwrap(folder: Path) -> Path:
    """Go down while a folder holds just one of its own name."""
    inner = _folders(folder)
    if len(inner) == 1 and inner[0].name.lower() == folder.name.lower():
        return _unwrap(inner[0])
    return folder


def _as_classes(folder: Path) -> Path | None:
    folders = _folders(folder)
    if _split_pairs(folders):  # flat training and test images are not two classes
        return None
    filled = [child for child in folders if next(_image_names(child), None) is not None]
    return folder if len(filled) > 1 else None


def _check_beside(parent: Path, root: Path) -> None:
    """Refuse classes in `parent` if images lie beside it, below `root`: they might be other classes."""
    while parent != root:
        if beside := [folder for folder in _folders(parent.parent) if folder != parent and _images_below(folder)]:
            raise ValueError(
                f"The folders in {str(parent)!r} look like classes, but there are images in {str(beside[0])!r} too. "
                f"Pass the one as root, or put all images of a class directly into its folder in {str(root)!r}."
            )
        parent = parent.parent


# Where the class is in the file's name
_FLAT = {
    "cats_vs_dogs": re.compile(r"(cat|dog)\.\d+\.", re.IGNORECASE),
    "weather": re.compile(r"(cloudy|rain|shine|sunrise)[ _-]?\d+\.", re.IGNORECASE),
}


def _as_flat(folder: Path, pattern: re.Pattern) -> Path | None:
    seen = set()
    for name in _image_names(folder):
        if found := pattern.match(name):
            seen.add(found[1].lower())
            if len(seen) > 1:
                return folder
    return None


def _flat_files(folder: Path, pattern: re.Pattern) -> _Files:
    files: _Files = {}
    for name in sorted(_image_names(folder)):
        found = pattern.match(name)
        if found is None:
            raise ValueError(
                f"{str(folder / name)!r} does not say its class: names of files there begin with the class and a "
                "number. Rename or remove it."
            )
        files.setdefault(found[1].lower(), []).append(folder / name)
    return files


# --------------------------------------------------------------------------- CIFAR


def _read_cifar(name: str, root: Path, test_size: Any, random_state: Any) -> ImageDataset:
    coarse = name == "cifar100"
    class_names = list(CIFAR100_COARSE) if coarse else _CIFAR10
    if root.is_file() and not coarse:
        return _read_npz(name, root, test_size, random_state)
    batches = (["train"], ["test"]) if coarse else ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
    for folder in (root, root / ("cifar-100-python" if coarse else "cifar-10-batches-py")):
        files = [folder / batch for part in batches for batch in part]
        there = [path.is_file() for path in files]
        if any(there):
            if not all(there):
                missing = [path.name for path, found in zip(files, there) if not found]
                raise _Missing(f"{str(folder)!r} lacks {_shown(missing)}.")
            parts = [[_read_batch(folder / batch, coarse) for batch in part] for part in batches]
            (X, y), (X_test, y_test) = ([np.concatenate(both) for both in zip(*part)] for part in parts)
            return ImageDataset(name, as_images(X), y, as_images(X_test), y_test, class_names)
    train, test = _class_files(name, root, test_size, random_state)
    number = {c: i for i, c in enumerate(class_names)}
    if coarse:
        number = _coarse_numbers(sorted(train))
    elif unknown := sorted(set(train) - set(number)):
        raise ValueError(f"CIFAR-10 has no class {_shown(unknown)}; expected folders {_shown(_CIFAR10)}.")
    if absent := sorted(set(class_names) - {class_names[number[folder]] for folder in train}):
        _warn(f"{str(root)!r} has no images of {_shown(absent)} of {name!r}.")
    return _from_files(name, train, test, class_names, number)


def _coarse_numbers(folders: list[str]) -> dict[str, int]:
    """Superclass of each folder, named after a class or a superclass."""
    by_name = {fine: i for i, group in enumerate(CIFAR100_COARSE.values()) for fine in group}
    by_name |= {name: i for i, name in enumerate(CIFAR100_COARSE)}
    number = {folder: by_name.get(folder.lower().replace(" ", "_"), -1) for folder in folders}
    if unknown := [folder for folder, i in number.items() if i < 0]:
        raise ValueError(
            f"CIFAR-100 has neither a class nor a superclass {_shown(unknown)}; expected folders such as 'apple' or "
            "'fruit_and_vegetables' (see CIFAR100_COARSE)."
        )
    return number


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"an encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and NumPy arrays; refuses to look up anything that could be called."""

    # what arrays of Python 2's and Python 3's protocol 2 are made of; NumPy 2 has renamed the module
    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}, which CIFAR's files do not have")
        return self._ALLOWED[module, name]


def _read_batch(path: Path, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 32, 32, 3) and labels of one of CIFAR's files."""
    with open(path, "rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        except MemoryError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything
            raise ValueError(
                f"{str(path)!r} is not one of CIFAR's batches ({type(error).__name__}: {error}). It was not run; get "
                "the file anew."
            ) from error
    if not isinstance(batch, dict):
        raise ValueError(f"{str(path)!r} holds a {type(batch).__name__}; one of CIFAR's batches is a dict.")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    key, classes = ("coarse_labels", 20) if coarse else ("labels", 10)
    if coarse and key not in batch:
        key, classes = "fine_labels", 100
    if "data" not in batch or key not in batch:
        raise ValueError(
            f"{str(path)!r} lacks 'data' or {'coarse_labels' if coarse else key!r}; it has "
            f"{_shown(sorted(map(str, batch)))}."
        )
    data, labels = batch["data"], np.asarray(batch[key])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(
            f"'data' of {str(path)!r} must be uint8 of shape (n, 3072), got "
            f"{getattr(data, 'dtype', type(data).__name__)} of shape {np.shape(data)}."
        )
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(classes)).all():
        raise ValueError(f"{key!r} of {str(path)!r} must be {len(data)} integers in 0 to {classes - 1}.")
    if coarse and "fine_labels" in batch:
        derived = _coarse_of(batch["fine_labels"], len(data), path)
        if key == "coarse_labels" and (derived != labels).any():
            raise ValueError(
                f"'fine_labels' and 'coarse_labels' of {str(path)!r} contradict each other for "
                f"{(derived != labels).sum()} images. Get the file anew."
            )
        labels = derived
    # a row is the red, the green and the blue plane
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _coarse_of(fine_labels: Any, n: int, path: Path) -> np.ndarray:
    labels = np.asarray(fine_labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(100)).all():
        raise ValueError(f"'fine_labels' of {str(path)!r} must be {n} integers in 0 to 99.")
    return _FINE_TO_COARSE[labels]


# --------------------------------------------------------------------------- Fashion-MNIST


def _read_fashion(name: str, root: Path | None, test_size: Any, random_state: Any) -> ImageDataset:
    if root is None:
        places = [_DEBIAN_FASHION]
    else:  # torchvision's place is FashionMNIST/raw
        places = [root, root / "FashionMNIST" / "raw", root / "raw", root / "fashion-mnist"]
    wanted = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for place in places:
        files = [
            next((path for path in (place / file, place / f"{file}.gz") if path.is_file()), None) for file in wanted
        ]
        if any(files):
            if missing := [file for file, path in zip(wanted, files) if path is None]:
                raise _Missing(f"{str(place)!r} lacks {_shown(missing)} (with or without .gz).")
            X, y, X_test, y_test = (_read_idx(path, 1 + 2 * (i % 2 == 0)) for i, path in enumerate(files) if path)
            for part, path in ((X, files[0]), (X_test, files[2])):
                if part.shape[1:] != (28, 28):
                    raise ValueError(f"{str(path)!r} holds images of {part.shape[1:]} pixels; expected (28, 28).")
            return ImageDataset(name, as_images(X), y, as_images(X_test), y_test, _FASHION)
    raise _Missing(f"There are no IDX files in {str(places[0])!r}.")


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Bytes of an IDX file: two zeros, a type, the number of dimensions, big-endian sizes, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is damaged or not complete ({error}). Get the file anew.") from error
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):  # 8: unsigned bytes
        raise ValueError(
            f"{str(path)!r} begins with {content[:4].hex()}; an IDX file of bytes in {ndim} dimensions begins with "
            f"{bytes([0, 0, 8, ndim]).hex()} and has at least {header} bytes."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(
            f"{str(path)!r} says it holds {shape}, so {expected} bytes, but has {len(content)}. Get the file anew."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # writable


# --------------------------------------------------------------------------- .npz


def _read_npz(name: str, root: Path, test_size: Any, random_state: Any) -> ImageDataset:
    if not root.is_file():
        raise _Missing(f"{str(root)!r} is a folder; expected an .npz file.")
    wanted = ("X_train", "y_train", "X_test", "y_test")
    try:
        with open(root, "rb") as stream:  # numpy leaves it open where it is damaged
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            if missing := [key for key in wanted if key not in file.files]:
                raise ValueError(f"it lacks {_shown(missing)} and has {_shown(file.files)}")
            arrays = [file[key] for key in wanted]
            names = file["class_names"].tolist() if "class_names" in file.files else None
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{str(root)!r} cannot be used ({error}). Expected an .npz of X_train, y_train, X_test, y_test and perhaps "
            "class_names, no objects (numpy.savez)."
        ) from error
    X, y, X_test, y_test = arrays
    if names is None and name == "cifar10":
        names = _CIFAR10
    if name == "cifar10" and (unknown := sorted(set(names or ()) - set(_CIFAR10))):
        raise ValueError(f"CIFAR-10 has no class {_shown(unknown)}: load it as 'npz'.")
    if names is None:
        classes, labels = np.unique(np.concatenate([y.ravel(), y_test.ravel()]), return_inverse=True)
        names = [str(c) for c in classes.tolist()]
        y, y_test = labels[: y.size].reshape(y.shape), labels[y.size :].reshape(y_test.shape)
    return ImageDataset(name, as_images(X), y, as_images(X_test), y_test, names)


# --------------------------------------------------------------------------- DIOR


class _Crop(NamedTuple):
    image: Path
    box: tuple[int, int, int, int]  # left, top, right, bottom; half-open
    kind: str


def _read_dior(name: str, root: Path, test_size: Any, random_state: Any) -> ImageDataset:
    if not root.is_dir():
        raise _Missing(f"{str(root)!r} is a file; expected a folder.")
    home = _find(root, lambda folder: folder if (folder / "Annotations").is_dir() else None)
    if home is None:
        raise _Missing(f"There is no folder Annotations in {str(root)!r}.")
    images: dict[str, Path] = {}
    for folder in ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages"):
        if (home / folder).is_dir():
            images |= {path.stem: path for path in _images_below(home / folder)}
    annotations: dict[str, Path] = {}
    for folder, folders, files in os.walk(home / "Annotations"):
        # rotated boxes of the same objects, not of use for crops
        folders[:] = [inner for inner in folders if not inner.lower().startswith(("oriented", "."))]
        annotations |= {Path(f).stem: Path(folder, f) for f in files if f.lower().endswith(".xml") and f[0] != "."}
    empty = 0
    parts: list[list[_Crop]] = []
    for ids in _dior_lists(home):
        if absent := [i for i in ids if i not in images or i not in annotations]:
            raise _Missing(
                f"{str(home)!r} lacks image or annotation of {_shown(absent)}, which its lists of images name."
            )
        crops: list[_Crop] = []
        for i in ids:
            found, skipped = _read_boxes(annotations[i], images[i])
            crops += found
            empty += skipped
        parts.append(crops)
    if empty:
        _warn(f"{empty} boxes of {name!r} are empty or outside their image; they are left out.")
    train, test = (
        [crop for crop in crops if min(crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]) >= _DIOR_MIN_SIDE]
        for crops in parts
    )
    counts, test_counts = Counter(crop.kind for crop in train), Counter(crop.kind for crop in test)
    names = sorted(kind for kind in counts if counts[kind] > _DIOR_MORE_THAN and test_counts[kind])
    if len(names) < 2:
        raise ValueError(
            f"Fewer than two classes have more than {_DIOR_MORE_THAN} training objects, and test objects, of at least "
            f"{_DIOR_MIN_SIDE} pixels in height and width; training objects are: {dict(counts)}. Is the data set "
            "complete?"
        )
    if len(names) != _N_CLASSES[name]:
        _warn(f"{name!r} has {_N_CLASSES[name]} classes, but {str(home)!r} has enough objects of {len(names)} only.")
    labelled = [_crops([crop for crop in crops if crop.kind in names], names) for crops in (train, test)]
    return ImageDataset(name, *labelled[0], *labelled[1], names)


def _dior_lists(home: Path) -> tuple[list[str], list[str]]:
    """Names of the training and of the test images, from the lists that come with DIOR."""
    for folder in (home / "ImageSets" / "Main", home / "Main", home / "ImageSets"):
        trainings = [folder / "trainval.txt"]
        if not trainings[0].is_file():
            trainings = [folder / "train.txt", folder / "val.txt"]
        if all(path.is_file() for path in (*trainings, folder / "test.txt")):
            train, test = (
                [line.split()[0] for path in paths for line in path.read_text().splitlines() if line.strip()]
                for paths in (trainings, [folder / "test.txt"])
            )
            if both := sorted(set(train) & set(test)):
                raise ValueError(
                    f"The lists in {str(folder)!r} name {_shown(both)} both for training and for testing. Get them "
                    "anew."
                )
            return list(dict.fromkeys(train)), list(dict.fromkeys(test))
    raise _Missing(f"There are no lists train.txt, val.txt and test.txt in ImageSets/Main or Main of {str(home)!r}.")


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE before it is read: entities defined there can grow to fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, whose entities could fill the memory; DIOR's files have none")


def _read_boxes(path: Path, image: Path) -> tuple[list[_Crop], int]:
    """Boxes of one annotation, clipped to the image, and how many were empty."""
    crops, empty = [], 0
    try:
        tree = ElementTree.parse(path, parser=ElementTree.XMLParser(target=_NoDoctype()))
        width, height = (float(tree.findtext(f"size/{side}") or np.inf) for side in ("width", "height"))
        for thing in tree.iterfind("object"):
            left, top, right, bottom = (
                round(min(max(float(thing.findtext(f"bndbox/{side}", "")), 0), limit))
                for side, limit in (("xmin", width), ("ymin", height), ("xmax", width), ("ymax", height))
            )
            kind = thing.findtext("name", "").strip()
            if not kind:
                raise ValueError("an object has no name")
            if left < right and top < bottom:
                crops.append(_Crop(image, (left, top, right, bottom), kind))
            else:
                empty += 1
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} is not an annotation in Pascal VOC's format with object/name and object/bndbox ({error}). "
            "Get the file anew."
        ) from error
    return crops, empty


def _crops(crops: list[_Crop], names: list[str]) -> tuple[Images, np.ndarray]:
    whole = as_images([crop.image for crop in crops])
    y = np.array([names.index(crop.kind) for crop in crops], dtype=np.int64)
    return Images(len(crops), partial(_decode_crop, whole, crops), name=partial(_crop_name, crops)), y


def _decode_crop(whole: Images, crops: list[_Crop], i: int) -> np.ndarray:
    left, top, right, bottom = crops[i].box
    pixels = whole[i][top:bottom, left:right]
    if pixels.shape[:2] != (bottom - top, right - left):
        raise ImageError(
            f"{str(crops[i].image)!r} is smaller than its annotation says. Get the image or the annotation anew."
        )
    return pixels


def _crop_name(crops: list[_Crop], i: int) -> str:
    return f"crop {crops[i].box}"


# --------------------------------------------------------------------------- where to get them


def _download(source: _Source, root: Path | None) -> None:
    kinds = import_module("torchvision.datasets")  # and with it torch, which nothing else here needs
    try:
        getattr(kinds, str(source.torchvision))(root=str(root), download=True)
    except (URLError, ConnectionError, TimeoutError, HTTPException, RuntimeError) as error:
        raise ConnectionError(f"The download failed ({error}). {source.text}") from error


class _Source(NamedTuple):
    read: Callable[[str, Any, Any, Any], ImageDataset]
    title: str
    url: str
    layout: str
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
        "CIFAR10",
    ),
    "cifar100": _Source(
        _read_cifar,
        "CIFAR-100 (python version)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "the folder cifar-100-python with train and test, or the folder that holds it, or one with train/CLASS and "
        "test/CLASS",
        "CIFAR100",
    ),
    "fashion_mnist": _Source(
        _read_fashion,
        "Fashion-MNIST",
        "https://github.com/zalandoresearch/fashion-mnist (or Debian's package dataset-fashion-mnist, with root=None)",
        "the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte, gzipped or not",
        "FashionMNIST",
    ),
    "cats_vs_dogs": _Source(
        _read_folders,
        "Kaggle's 'Dogs vs. Cats'",
        "https://www.kaggle.com/c/dogs-vs-cats",
        "the unpacked folder with train/cat.0.jpg, train/dog.0.jpg, ..., or one with class folders "
        "(training_set/cats, test_set/cats, ...)",
    ),
    "dior": _Source(
        _read_dior,
        "DIOR (Li et al., 'Object detection in optical remote sensing images')",
        "https://gcheng-nwpu.github.io/",
        "the folder with JPEGImages-trainval and JPEGImages-test (or JPEGImages), Annotations/*.xml (or "
        "Annotations/Horizontal Bounding Boxes/*.xml) and the lists train.txt, val.txt, test.txt in ImageSets/Main or "
        "Main",
    ),
    "blood_cells": _Source(
        _read_folders,
        "Kaggle's 'Blood Cell Images'",
        "https://www.kaggle.com/datasets/paultimothymooney/blood-cells",
        "the unpacked folder, in which dataset2-master/dataset2-master/images holds TRAIN/CLASS and TEST/CLASS",
    ),
    "covid19": _Source(
        _read_folders,
        "Kaggle's 'Covid-19 Image Dataset'",
        "https://www.kaggle.com/datasets/pranavraikokte/covid19-image-dataset",
        "the unpacked folder, in which Covid19-dataset holds train/CLASS and test/CLASS",
    ),
    "weather": _Source(
        _read_folders,
        "the 'Multi-class Weather Dataset for Image Classification'",
        "https://data.mendeley.com/datasets/4drtyfjtfy/1",
        "the unpacked folder of cloudy1.jpg, rain1.jpg, shine1.jpg, sunrise1.jpg, ..., or " + _CLASS_FOLDERS,
    ),
    "view": _Source(
        _read_folders,
        "Kaggle's 'Intel Image Classification'",
        "https://www.kaggle.com/datasets/puneet6060/intel-image-classification",
        "the unpacked folder with seg_train/seg_train/CLASS and seg_test/seg_test/CLASS",
    ),
    "concrete_crack": _Source(
        _read_folders,
        "'Concrete Crack Images for Classification'",
        "https://data.mendeley.com/datasets/5y9wdsg2zt/2",
        "the unpacked folder with Negative and Positive, or train/CLASS and test/CLASS",
    ),
    "folder": _Source(_read_folders, "", "", _CLASS_FOLDERS),
    "npz": _Source(_read_npz, "", "", "an .npz file of X_train, y_train, X_test, y_test and perhaps class_names"),
}

DATASETS: tuple[str, ...] = tuple(_SOURCES)
"""Names that :func:`load` knows: the paper's ten data sets, and "folder" and "npz" for others."""
