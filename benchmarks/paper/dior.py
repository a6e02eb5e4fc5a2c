"""DIOR, a data set for object detection, as images of its annotated objects.

As in the experiments with it before the paper's (T. Reiss, N. Cohen, L. Bergman and Y. Hoshen, "PANDA: Adapting
Pretrained Features for Anomaly Detection and Segmentation", CVPR 2021), only objects with at least 120 pixels in height
and in width count, and only classes with more than 50 such training objects: too few pixels are left of smaller ones,
and too few samples in smaller classes. Train and validation lists together are the training set. A box is half-open,
``xmin <= x < xmax``, and is clipped to the image.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from skl_transformaly import ImageError
from skl_transformaly.datasets import ImageDataset
from skl_transformaly.images._images import Images, as_images

MIN_SIDE = 120
MORE_THAN = 50


class _Crop(NamedTuple):
    image: Path
    box: tuple[int, int, int, int]  # left, top, right, bottom; half-open
    kind: str


def read(name: str, root: Path, random_state: Any) -> ImageDataset:
    """Read the crops' boxes; images are opened when the crops are used."""
    home = next((path.parent for path in sorted(root.rglob("Annotations")) if path.is_dir()), None)
    if home is None:
        raise ValueError(f"The folder {str(root)!r} has no subfolder Annotations.")
    images: dict[str, Path] = {}
    for folder in ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages"):
        images |= {path.stem: path for path in (home / folder).rglob("*.jpg")}
    annotations = {
        path.stem: path
        for path in (home / "Annotations").rglob("*.xml")
        if "oriented" not in str(path.relative_to(home)).lower()  # rotated boxes of the same objects
    }
    train, test = (_large_objects(ids, images, annotations) for ids in _lists(home))
    counts, test_counts = Counter(crop.kind for crop in train), Counter(crop.kind for crop in test)
    names = sorted(kind for kind in counts if counts[kind] > MORE_THAN and test_counts[kind])
    if len(names) < 2:
        raise ValueError(
            f"Fewer than two classes have test objects and more than {MORE_THAN} training objects of at least "
            f"{MIN_SIDE} pixels in height and width; the training objects are: {dict(counts)}."
        )
    labelled = [_crops([crop for crop in crops if crop.kind in names], names) for crops in (train, test)]
    return ImageDataset(name, *labelled[0], *labelled[1], names)


def _lists(home: Path) -> tuple[list[str], list[str]]:
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
                raise ValueError(f"The lists in {str(folder)!r} name {both[:9]} both for training and for testing.")
            return list(dict.fromkeys(train)), list(dict.fromkeys(test))
    raise ValueError(f"There are no lists train.txt, val.txt and test.txt in ImageSets/Main or Main of {str(home)!r}.")


def _large_objects(ids: list[str], images: dict[str, Path], annotations: dict[str, Path]) -> list[_Crop]:
    if absent := [i for i in ids if i not in images or i not in annotations]:
        raise ValueError(f"The image or annotation of {absent[:9]} is missing, which a list of images names.")
    crops = [crop for i in ids for crop in _read_boxes(annotations[i], images[i])]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in (crop.box for crop in crops)]
    if empty := sum(min(size) <= 0 for size in sizes):
        warnings.warn(f"{empty} boxes are empty or outside their image; they are left out.", stacklevel=4)
    return [crop for crop, size in zip(crops, sizes) if min(size) >= MIN_SIDE]


def _read_boxes(path: Path, image: Path) -> list[_Crop]:
    """Boxes of one annotation, clipped to the image."""
    crops = []
    try:
        tree = ElementTree.parse(path)
        width, height = (float(tree.findtext(f"size/{side}") or np.inf) for side in ("width", "height"))
        for thing in tree.iterfind("object"):
            left, top, right, bottom = (
                round(min(max(float(thing.findtext(f"bndbox/{side}", "")), 0), limit))
                for side, limit in (("xmin", width), ("ymin", height), ("xmax", width), ("ymax", height))
            )
            kind = thing.findtext("name", "").strip()
            if not kind:
                raise ValueError("an object has no name")
            crops.append(_Crop(image, (left, top, right, bottom), kind))
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} is not an annotation in Pascal VOC's format with object/name and object/bndbox ({error})."
        ) from error
    return crops


def _crops(crops: list[_Crop], names: list[str]) -> tuple[Images, np.ndarray]:
    whole = as_images([crop.image for crop in crops])
    y = np.array([names.index(crop.kind) for crop in crops], dtype=np.int64)
    return Images(len(crops), partial(_decode_crop, whole, crops), name=partial(_crop_name, crops)), y


def _decode_crop(whole: Images, crops: list[_Crop], i: int) -> np.ndarray:
    left, top, right, bottom = crops[i].box
    pixels = whole[i][top:bottom, left:right]
    if pixels.shape[:2] != (bottom - top, right - left):
        raise ImageError(f"{str(crops[i].image)!r} is smaller than its annotation states. Get both anew.")
    return pixels


def _crop_name(crops: list[_Crop], i: int) -> str:
    return f"crop {crops[i].box}"
