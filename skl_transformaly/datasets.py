"""Labelled images, and the paper's two settings that turn them into a task of anomaly detection.

M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR Workshops 2022, Section 4,
take a data set for classification and declare some of its classes normal: :func:`load` reads class folders or an .npz
file, and :func:`unimodal` and :func:`multimodal` make the task.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skl_transformaly.images._folders import FoundFiles, has_image_suffix, walk
from skl_transformaly.images._formats import expand_user
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.utils._missing import is_missing
from skl_transformaly.utils._warnings import warn_user

__all__ = ["ImageDataset", "load", "multimodal", "unimodal"]

# Names of folders of training and of test images, in any case; the first that exists counts.
_TRAIN = ("train", "training", "training_set")
_TEST = ("test", "testing", "test_set", "val", "valid", "validation")


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
    path: str | os.PathLike,
    test_path: str | os.PathLike | None = None,
    *,
    test_size: float | int = 0.2,
    random_state: Any = 0,
) -> ImageDataset:
    """Read labelled images from class folders or an .npz file.

    Parameters
    ----------
    path : str or path
        A folder with a folder of images for each class, or with folders ``train`` and ``test`` of such class folders,
        in any case (or ``training``, ``training_set``; ``testing``, ``test_set``, ``val``, ``valid``, ``validation``).
        Or an .npz file of X_train, y_train, X_test, y_test and, optionally, class_names.
    test_path : str or path, default=None
        Class folders of the test images; `path` is then those of the training images.
    test_size : float or int, default=0.2
        Share (or number) of test images, if a folder is not split into training and test images.
    random_state : int, RandomState or None, default=0
        Seeds that split, which is stratified (:func:`sklearn.model_selection.train_test_split`).

    Returns
    -------
    ImageDataset
        Its `name` is that of `path`, without a suffix. Image files are opened when the images are used.

    Raises
    ------
    ValueError
        A path does not exist or has another layout, a class has no folder of training or of test images, or the .npz
        file is damaged or lacks labels.

    Notes
    -----
    Class names are sorted. Images may lie in folders below that of their class. Hidden files and folders are passed
    over, and so is ``__MACOSX``. A warning reports class folders without images, images beside the class folders, and
    files that are not images.

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
    ...     data = load(root)
    ...     X_train, X_test, y_test = unimodal(data, "dark")
    ...     int(X_train[0].max())
    20
    >>> data.class_names, y_test
    (['dark', 'light'], array([ 1,  1,  1, -1, -1, -1]))
    """
    path = Path(expand_user(path))
    if not path.exists():
        raise ValueError(f"{str(path)!r} does not exist; expected a folder of class folders or an .npz file.")
    name = path.resolve().stem
    if path.is_file():
        if test_path is not None:
            raise ValueError(f"test_path is for class folders, but {str(path)!r} is a file.")
        return _load_npz(name, path)
    split = _find_split(path) if test_path is None else (path, Path(expand_user(test_path)))
    if split is not None:
        return _from_files(name, *map(_class_files, split))
    if nested := [str(folder) for folder in _folders(path) if _find_split(folder)]:
        raise ValueError(
            f"Training and test folders are in {_shown(nested)}, not in {str(path)!r}: pass one of those folders."
        )
    files = _class_files(path)
    if len(classes := {label for label, _ in files}) < 2:
        raise ValueError(
            f"{str(path)!r} has images of only one class, {_shown([*classes])}: pass the folder that holds the folders "
            "of all classes."
        )
    if _is_part(path.absolute()):
        warn_user(
            f"{str(path)!r} seems to be one part of the data set in {str(path.absolute().parent)!r}, but is split "
            "again. Pass that folder to have both parts."
        )
    return _from_files(name, *_split_at_random(files, test_size, random_state))


def unimodal(dataset: Any, normal_class: Any) -> tuple[Any, Any, np.ndarray]:
    """One class is normal, all others are anomalies (the paper's unimodal setting, Section 4).

    Parameters
    ----------
    dataset : ImageDataset or tuple (X_train, y_train, X_test, y_test)
        In a tuple, images may be arrays, data frames or lists, and labels of any dtype.
    normal_class : int or str
        Position or name of the class in an `ImageDataset`; the label itself in a tuple.

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
        The class does not exist, no training image is normal, the test images are not both normal and anomalous,
        or images and labels differ in length.

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

    Examples
    --------
    >>> from skl_transformaly.datasets import multimodal
    >>> data = (["a.png", "b.png", "c.png"], ["cat", "dog", "owl"], ["d.png", "e.png"], ["dog", "cat"])
    >>> multimodal(data, "cat")
    (['b.png', 'c.png'], ['d.png', 'e.png'], array([ 1, -1]))
    """
    return _setting(dataset, anomalous_class, keep=False)


def _setting(dataset: Any, chosen: Any, *, keep: bool) -> tuple[Any, Any, np.ndarray]:
    """Train on the class `chosen` (``keep=True``) or on all others; the classes of training are +1 in the test."""
    if isinstance(dataset, ImageDataset):
        X_train, y_train, X_test, y_test = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
        label, name = _class_position(dataset, chosen)
    else:
        X_train, y_train, X_test, y_test = _check_parts(dataset, chosen)
        label, name = chosen, repr(chosen)
    rows = np.flatnonzero((y_train == label) == keep)
    if not len(rows):
        which = f"of class {name}" if keep else f"of a class other than {name}"
        raise ValueError(f"There is no training image {which}, so nothing is normal. Choose another class.")
    normal = (y_test == label) == keep
    if normal.all() or not normal.any():
        which = f"of class {name}" if (y_test == label).any() else f"of classes other than {name}"
        raise ValueError(
            f"All {len(y_test)} test images are {which}; both normal images and anomalies are needed to test."
        )
    X_train = X_train.take(rows) if isinstance(X_train, Images) else _safe_indexing(X_train, rows)
    return X_train, X_test, np.where(normal, 1, -1).astype(np.int64)


def _check_parts(dataset: Any, chosen: Any) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """Return images and labels of a tuple, in which `chosen` must be a label."""
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 4:
        raise ValueError(
            f"Expected an ImageDataset or a tuple (X_train, y_train, X_test, y_test), got a {type(dataset).__name__}."
        )
    X_train, y_train, X_test, y_test = dataset
    y_train, y_test = _labels(X_train, y_train, "train"), _labels(X_test, y_test, "test")
    if np.ndim(chosen):
        raise ValueError(f"Expected one label, got {chosen!r}.")
    labels = list(dict.fromkeys([*y_train.tolist(), *y_test.tolist()]))
    if chosen not in labels:
        raise ValueError(f"The class {chosen!r} does not exist; the labels are {_shown(labels)}.")
    return X_train, y_train, X_test, y_test


def _class_position(dataset: ImageDataset, chosen: Any) -> tuple[int, str]:
    names = dataset.class_names
    if isinstance(chosen, str) and chosen in names:
        position = names.index(chosen)
    elif isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool) and 0 <= chosen < len(names):
        position = int(chosen)
    else:
        raise ValueError(
            f"{dataset.name!r} has no class {chosen!r}; expected a position in 0 to {len(names) - 1} or one of "
            f"{_shown(names)}."
        )
    return position, repr(names[position])


def _labels(X: Any, y: Any, part: str) -> np.ndarray:
    """Labels as a 1-D array, one for each image."""
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(f"X_{part} is one path: pass a list of files, one for each label.")
    labels = np.asarray(y, dtype=object)
    if labels.ndim != 1:
        raise ValueError(f"y_{part} must be one label for each image, got shape {labels.shape}.")
    if missing := sum(map(is_missing, labels)):
        raise ValueError(f"{missing} of {len(labels)} labels in y_{part} are missing (NaN or None): drop those images.")
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError(f"y_{part} holds both text and other labels; they must be of one kind.")
    y = np.asarray(y)
    n = _num_samples(X)
    if n != len(y):
        raise ValueError(f"X_{part} and y_{part} must have the same length, got {n} and {len(y)}.")
    return y


def _shown(names: Sequence) -> str:
    return ", ".join(map(repr, names[:25])) + (f", ... ({len(names)})" if len(names) > 25 else "")


def _find_split(folder: Path) -> tuple[Path, Path] | None:
    """Folders of training and of test images in `folder`, by their names."""
    named = {child.name.lower(): child for child in _folders(folder)}
    pairs = [(named[train], named[test]) for test in _TEST for train in _TRAIN if train in named and test in named]
    # a folder of test images without labels may be beside training and validation images
    return next((pair for pair in pairs if all(map(_folders, pair))), pairs[0] if pairs else None)


def _is_part(folder: Path) -> bool:
    """Whether training and test folders are side by side, and this is one of them."""
    try:
        return folder in (_find_split(folder.parent) or ())
    except OSError:  # a folder of others, which may not be listed
        return False


def _folders(folder: Path) -> list[Path]:
    """Folders in `folder`, sorted; hidden ones and those of macOS's archives left out."""
    return sorted(
        child for child in folder.iterdir() if child.is_dir() and child.name[0] != "." and child.name != "__MACOSX"
    )


def _class_files(folder: Path) -> list[tuple[str, str]]:
    """Class and path of the images below each folder in `folder`."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; expected one of class folders.")
    classes = {child.name: FoundFiles() for child in _folders(folder)}
    for name, found in classes.items():
        walk(folder / name, found, found.paths.append)
    if others := ", ".join(sum(classes.values(), FoundFiles()).reasons()):
        warn_user(f"Passed over files below {str(folder)!r}: {others}.")
    if loose := sum(has_image_suffix(child.name) for child in folder.iterdir() if child.is_file()):
        warn_user(f"{loose} images in {str(folder)!r} itself, outside of its class folders, are left out.")
    if empty := [name for name, found in classes.items() if not found.paths]:
        warn_user(f"There are no images in {_shown(empty)} of {str(folder)!r}.")
    files = [(name, path) for name, found in classes.items() for path in found.paths]
    if not files:
        raise ValueError(
            f"There are no class folders with images in {str(folder)!r}: expected a folder for each class, or folders "
            "train and test of such class folders."
        )
    return files


def _split_at_random(files: list[tuple[str, str]], test_size: Any, random_state: Any) -> list[list[tuple[str, str]]]:
    """Training and test files, drawn within each class."""
    labels = [label for label, _ in files]
    if alone := [label for label, count in Counter(labels).items() if count < 2]:
        raise ValueError(
            f"There is only one image of {_shown(alone)}; a split needs two. Add some, or remove the class."
        )
    parts = train_test_split(np.arange(len(files)), test_size=test_size, random_state=random_state, stratify=labels)
    return [[files[i] for i in np.sort(part)] for part in parts]


def _from_files(name: str, train: list[tuple[str, str]], test: list[tuple[str, str]]) -> ImageDataset:
    """A data set of files, given as pairs of class and path."""
    names = sorted({label for label, _ in train})
    if differing := sorted(set(names) ^ {label for label, _ in test}):
        raise ValueError(
            f"Training and test images of {name!r} must be of the same classes, but only one part has images of "
            f"{_shown(differing)}. Rename or remove those, or change test_size if the images are split at random."
        )
    X_train, X_test = (as_images([path for _, path in files]) for files in (train, test))
    y_train, y_test = (np.array([names.index(label) for label, _ in files]) for files in (train, test))
    return ImageDataset(name, X_train, y_train, X_test, y_test, names)


def _class_names(names: np.ndarray) -> list[str]:
    if names.ndim != 1:
        raise ValueError(f"class_names has {names.ndim} dimensions; expected a list of texts")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


def _load_npz(name: str, path: Path) -> ImageDataset:
    wanted = ("X_train", "y_train", "X_test", "y_test")
    try:
        with open(path, "rb") as stream:  # numpy leaves it open if it is damaged
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            if missing := [key for key in wanted if key not in file.files]:
                raise ValueError(f"it lacks {_shown(missing)} and has {_shown(file.files)}")
            X, y, X_test, y_test = (file[key] for key in wanted)
            names = _class_names(file["class_names"]) if "class_names" in file.files else None
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r} cannot be used ({error}). Expected an .npz of X_train, y_train, X_test, y_test and perhaps "
            "class_names, no objects (numpy.savez)."
        ) from error
    if names is None:
        y, y_test = _labels(X, y, "train").tolist(), _labels(X_test, y_test, "test").tolist()
        try:
            classes = sorted({*y, *y_test})
        except TypeError as error:
            raise ValueError("y_train and y_test hold labels of different kinds; they must be of one kind.") from error
        names = [str(label) for label in classes]
        places = {label: place for place, label in enumerate(classes)}
        y, y_test = (np.array([places[label] for label in part], dtype=np.int64) for part in (y, y_test))
    return ImageDataset(name, as_images(X), y, as_images(X_test), y_test, names)
