"""Networks of teachers and students in a file, checked against the architectures that the file names."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from skl_transformaly.persistence._fields import brief, refuse
from skl_transformaly.persistence._invariants import check_residuals
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.students._ridge import Layout, RidgeStudents
from skl_transformaly.teacher._architecture import count_bytes, find_blocks, image_sides, outline
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._stored import MAX_IMAGE_SIZE
from skl_transformaly.utils._container import ModelFileError
from skl_transformaly.utils._files import absolute_path
from skl_transformaly.utils._torch import resolve_device, weights_dtype

if TYPE_CHECKING:
    from torch import nn

    from skl_transformaly.persistence._reader import Reader
    from skl_transformaly.persistence._writer import Writer

# The most random weights that `load` draws for a file without weights, since a network's name alone could take memory.
_MOST_DRAWN_BYTES = 100 * 10**6
# A file of weights has at least a fourth of their bytes in float32, which is 8 bits for each weight.
_MOST_PACKED = 4


# ----- teachers


def pack_teacher(extractor: TimmExtractor, writer: Writer) -> dict[str, Any]:
    """Store the teacher of an extractor. Raises ValueError if a file cannot hold it."""
    check_storable(extractor)
    needed = count_bytes(extractor.model_name, extractor.image_size)
    if extractor.weights is None and not writer.with_teacher and needed > _MOST_DRAWN_BYTES:
        raise ValueError(
            f"Random weights of {needed} bytes cannot be left out of a model file, because load draws at most "
            f"{_MOST_DRAWN_BYTES} bytes that a file does not hold: save with teacher=True."
        )
    teacher = extractor.teacher_
    config = teacher.data_config
    sides = image_sides(extractor.image_size)
    entry = {
        "model_name": extractor.model_name,
        "image_size": None if sides is None else sides[0] if sides[0] == sides[1] else list(sides),
        "sha256": teacher.weights_sha256,
        "content_sha256": teacher.content_sha256,
        "stored": writer.with_teacher,
        "weights": _without_folder(extractor.weights),
        "data_config": {
            "input_size": [int(size) for size in config["input_size"]],
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
            "interpolation": str(config["interpolation"]),
        },
    }
    return {"teacher": writer.teacher(teacher, entry)}


def check_storable(extractor: TimmExtractor) -> None:
    """Raise ValueError if a model file cannot hold the teacher of an extractor, which need not be fitted."""
    if _is_described_elsewhere(extractor.model_name):
        raise ValueError(
            f"A model file cannot hold the teacher {extractor.model_name!r}, whose architecture is described "
            "elsewhere: give TimmExtractor the name of a timm model, and the weights as a file."
        )
    sides = getattr(extractor, "image_size_", image_sides(extractor.image_size))
    if sides is not None and max(sides) > MAX_IMAGE_SIZE:
        raise ValueError(f"A model file holds teachers of up to {MAX_IMAGE_SIZE} pixels a side, got {max(sides)}.")
    _without_folder(extractor.weights)


def portable_extractor(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an extractor without the folder of its weights."""
    return {**params, "weights": _without_folder(params["weights"]), "device": str(params["device"])}


def localise(extractor: TimmExtractor, reader: Reader) -> None:
    """Point an unfitted extractor to the weights and the device of this machine."""
    if not isinstance(extractor.model_name, str) or _is_described_elsewhere(extractor.model_name):
        refuse(f"names the model {brief(extractor.model_name)}, which is not one of timm's own")
    if reader.device is not None:
        extractor.device = reader.device
    wanted = (extractor.model_name, image_sides(extractor.image_size))
    if any(
        entry["stored"] and (entry["model_name"], image_sides(entry["image_size"])) == wanted
        for entry in reader.teachers
    ):
        extractor.weights = absolute_path(reader.file.path)
    elif reader.weights is not None:
        extractor.weights = reader.weights
    elif extractor.weights not in ("hub", "bundled", None):
        name = str(extractor.weights)
        if not _is_plain(name):
            refuse(f"names weights {brief(name)}, which is not the plain name of a file beside it")
        extractor.weights = str(reader.file.path.absolute().with_name(name))


def restore_teacher(extractor: TimmExtractor, packed: dict[str, Any], reader: Reader) -> None:
    """Load the teacher now, so that `load` reports its errors."""
    place = packed["teacher"]
    if place >= len(reader.teachers):
        refuse(f"names teacher {place}, but the file has {len(reader.teachers)}")
    entry = reader.teachers[place]
    stated = (entry["model_name"], image_sides(entry["image_size"]), entry["sha256"])
    if (*stated, tuple(entry["data_config"]["input_size"][1:])) != (
        extractor.model_name,
        image_sides(extractor.image_size),
        extractor.weights_sha256_,
        extractor.image_size_,
    ):
        refuse("does not go with its teacher")
    extractor.keep_settings()
    try:
        resolve_device(extractor.device)
    except ValueError as error:
        refuse(f"computes elsewhere: {error} Pass load(..., device='cpu')")
    try:
        if entry["stored"]:
            reader.use_teacher(place)
            extractor.restore_teacher()
        else:
            _check_can_build(extractor, reader)
        blank = np.zeros((1, *extractor.image_size_, 3), dtype=np.uint8)
        with extractor.compute():
            size = extractor.teacher_.probe(extractor.preprocess(blank))[0]
    except ModelFileError:
        raise
    except ValueError as error:
        refuse(f"cannot have its weights: {error}")
    if size != extractor.embedding_size_:
        refuse(f"has embedding_size_ {extractor.embedding_size_}, but its teacher returns {size} values")


def _check_can_build(extractor: TimmExtractor, reader: Reader) -> None:
    """Refuse a teacher whose weights are not in the file, before memory is taken for it, if they cannot be right."""
    try:
        needed = count_bytes(extractor.model_name, extractor.image_size)
    except ValueError as error:
        refuse(f"needs an architecture that cannot be built here: {error}")
    source = extractor.weights
    if source is None:
        if needed > _MOST_DRAWN_BYTES + reader.file.size:
            refuse(
                f"asks for {needed} bytes of random weights that the file does not hold; at most {_MOST_DRAWN_BYTES} "
                "are drawn for a file. Save it with teacher=True"
            )
    elif (
        source not in ("hub", "bundled") and os.path.isfile(source) and os.path.getsize(source) < needed // _MOST_PACKED
    ):
        refuse(
            f"needs {needed} bytes of weights, but {os.fspath(source)!r} has {os.path.getsize(source)}: it is the file "
            "of another network"
        )


def _is_described_elsewhere(model_name: str) -> bool:
    return ":" in model_name or "/" in model_name


def _without_folder(weights: Any) -> Any:
    """Return the source of weights: "hub", "bundled", None, or the name of a file."""
    if weights in ("hub", "bundled", None):
        return weights
    name = PurePath(os.fspath(weights)).name
    if not _is_plain(name):
        raise ValueError(f"The file of weights is named {name!r}, which a model file cannot name: rename it.")
    return name


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file, on any system, and leads nowhere else."""
    return name not in ("", ".", "..") and name == PurePath(name).name and not any(mark in name for mark in "/\\:\0")


# ----- students


def pack_block_students(students: BlockStudents, writer: Writer) -> dict[str, Any]:
    """Store trained blocks, the history of their training, and their residual statistics."""
    parts = zip(students.block_indices_.tolist(), students.students_, _pack_residuals(students))
    return {
        "students": [
            {"network": writer.network(block, f"block{index}"), "history": students.history_[index], "residuals": usual}
            for index, block, usual in parts
        ]
    }


def restore_block_students(students: BlockStudents, packed: dict[str, Any], reader: Reader) -> None:
    """Build the blocks, after checking that the file holds weights of their shapes."""
    extractor, entries = students.extractor_, packed["students"]
    indices = _check_blocks(students, entries, reader)
    outlines = _outline_blocks(extractor)
    dtype = weights_dtype(extractor.precision_)
    states = {i: reader.network(entry["network"], outlines[i], dtype) for i, entry in zip(indices, entries)}
    device = next(extractor.teacher_.model.parameters()).device
    blocks = extractor.restore_blocks(states, sixteen_bits=False)
    students.students_ = [extractor.adapt(block).to(device) for block in blocks]
    students.history_ = {index: entry["history"] for index, entry in zip(indices, entries)}
    students.cache_keys_ = {}  # the cache is elsewhere
    _restore_residuals(students, entries)


def pack_ridge_students(students: RidgeStudents, writer: Writer) -> dict[str, Any]:
    """Store coefficients, layouts and residual statistics."""
    columns = zip(students.students_, students.local_weights_, students.context_weights_, _pack_residuals(students))
    return {
        "students": [
            {
                "layout": vars(student.layout),
                "size": tuple(student.size),
                "local": local,
                "context": context,
                "residuals": usual,
            }
            for student, local, context, usual in columns
        ]
    }


def restore_ridge_students(students: RidgeStudents, packed: dict[str, Any], reader: Reader) -> None:
    """Build the students from their coefficients."""
    entries = packed["students"]
    _check_blocks(students, entries, reader)
    largest = max(students.extractor_.image_size_)
    if any(side > largest for entry in entries for side in entry["size"]):
        refuse(f"has maps that are larger than the teacher's image of {largest} pixels")
    students.local_weights_ = [entry["local"] for entry in entries]
    students.context_weights_ = [entry["context"] for entry in entries]
    _restore_residuals(students, entries)
    students.restore([Layout(**entry["layout"]) for entry in entries], [entry["size"] for entry in entries])


def _check_blocks(students: Any, entries: list[Any], reader: Reader) -> list[int]:
    """Return the indices of the blocks that have students, after checking them."""
    indices = students.block_indices_.tolist()
    total = len(_outline_blocks(students.extractor_))
    if not indices or sorted(set(indices)) != indices or indices[0] < 0 or indices[-1] >= total:
        refuse(f"has students of blocks {indices[:20]}, but the teacher has {total} blocks")
    if len(entries) != len(indices):
        refuse("does not have one student for each of its blocks")
    return indices


def _outline_blocks(extractor: TimmExtractor) -> list[nn.Module]:
    """The blocks of the teacher's architecture, without memory for weights."""
    try:
        return find_blocks(outline(extractor.model_name, image_sides(extractor.image_size)))
    except ValueError as error:
        refuse(f"needs an architecture that cannot be built here: {error}")


def _pack_residuals(students: Any) -> list[dict[str, np.ndarray] | None]:
    return [None if usual is None else vars(usual) for usual in students.residuals_]


def _restore_residuals(students: Any, entries: list[dict[str, Any]]) -> None:
    found = [None if entry["residuals"] is None else ResidualStatistics(**entry["residuals"]) for entry in entries]
    for usual in found:
        if usual is not None:
            check_residuals(usual)
    students.residuals_ = found
