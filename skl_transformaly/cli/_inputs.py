"""Images, models and output files of commands, checked before any work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skl_transformaly.cli._app import Mistake
from skl_transformaly.cli._console import Output, counted

if TYPE_CHECKING:
    from skl_transformaly.images._folders import FoundFiles

__all__ = [
    "check_folder",
    "check_model",
    "check_model_output",
    "check_no_input",
    "check_writable",
    "find_images",
    "load_model",
    "missing_text",
    "passed_over",
    "unreadable_text",
]


def find_images(names: list[str], *, missing: str = "refuse") -> FoundFiles:
    """Find the images of `names`, of which "-" is a list on stdin. Raises Mistake if no image is found.

    Listed files that do not exist are a mistake, too, unless `missing` is "keep".
    """
    from skl_transformaly.cli._files import find_files, split_list

    listed = split_list(sys.stdin.buffer.read()) if "-" in names else []
    found = find_files([name for name in names if name != "-"], listed=listed)
    if not found.paths:
        raise Mistake(f"Found no images in {', '.join(map(repr, names))}{passed_over(found)}.")
    if missing == "refuse" and (text := missing_text(found)):
        raise Mistake(text)
    return found


def passed_over(found: FoundFiles) -> str:
    return f"; passed over {found}" if str(found) else ""


def unreadable_text(unreadable: dict[str, str], consequence: str) -> str:
    from skl_transformaly.images._folders import display_path

    shown = [f"  {display_path(path)}: {error}" for path, error in list(unreadable.items())[:5]]
    more = [f"  and {len(unreadable) - 5} more"] if len(unreadable) > 5 else []
    return "\n".join([f"{counted(len(unreadable), 'image')} could not be read ({consequence}):", *shown, *more])


def missing_text(found: FoundFiles) -> str:
    """Return a message about listed files that do not exist; "" if all do."""
    missing = [path for path in found.paths if not os.path.lexists(path)]
    if not missing:
        return ""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"not found: {', '.join(map(repr, missing[:5]))}{more}. Correct the list of paths."


def check_model_output(path: Path, *inputs: str | Path | None) -> None:
    """Refuse, before any work, a model file to write that no command would take afterwards."""
    check_writable(path, *inputs)
    if path.exists() and not path.is_file():
        raise Mistake(f"{str(path)!r} is a device or a pipe; a model can be written to a regular file only.")
    if path.suffix.lower() == ".onnx":
        raise Mistake(
            f"{str(path)!r} has the suffix of an ONNX file; expected another for a model file, such as .tfm. To make "
            "an ONNX file, fit first, and then transformaly export."
        )


def check_folder(path: Path | None, what: str) -> None:
    """Refuse a folder that does not exist."""
    if path is not None and not path.is_dir():
        raise Mistake(f"The {what} {str(path)!r} does not exist.")


def check_writable(path: Path, *inputs: str | Path | None) -> None:
    """Refuse, before any work, an output file that cannot be written, that would be an image, or that is an input."""
    from skl_transformaly.images._folders import has_image_suffix

    folder = path.parent
    if path.is_dir():
        raise Mistake(f"{str(path)!r} is a folder; expected a file to write.")
    if str(path) == "-":
        raise Mistake("'-' is not a file to write: name one.")
    if path.exists() and not path.is_file():  # a device or a pipe
        if not os.access(path, os.W_OK):
            raise Mistake(f"{str(path)!r} cannot be written: no permission.")
        return
    if not folder.is_dir():
        raise Mistake(f"The folder {str(folder)!r}, in which to write {path.name!r}, does not exist.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise Mistake(f"{str(path)!r} cannot be written: no permission.")
    if has_image_suffix(path.name):
        raise Mistake(f"{str(path)!r} has the suffix of an image; expected another name for the file to write.")
    check_no_input(path, inputs)


def check_no_input(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output file that is one of the inputs, under any name."""
    from skl_transformaly.images._folders import file_identity

    if not path.exists():
        return
    identity = file_identity(path)
    for given in inputs:
        if given is not None and os.path.exists(given) and file_identity(given) == identity:
            raise Mistake(f"{str(path)!r} is read by this command, and would be lost: name another file to write.")


def check_model(path: Path, usage: str = "", *, onnx: bool = False) -> None:
    """Refuse a path that does not look like a model file, or like an ONNX file if `onnx`.

    `usage` shows the order of a command's arguments, for users who name the model after the images.
    """
    from skl_transformaly.images._folders import has_image_suffix

    what = "a folder" if path.is_dir() else "an image" if path.is_file() and has_image_suffix(path.name) else ""
    if what:
        advice = f" The model comes first: transformaly {usage}." if usage else ""
        raise Mistake(f"{str(path)!r} is {what}; expected a model file.{advice}")
    if path.suffix.lower() == ".onnx" and not onnx:
        raise Mistake(
            f"{str(path)!r}: ONNX files are for `transformaly serve` and other runtimes; expected a model file that "
            "`transformaly fit` made."
        )
    if not path.is_file():
        raise Mistake(f"The model file {str(path)!r} does not exist; `transformaly fit` makes one.")


def load_model(path: Path, weights: str | None, tell: Output) -> tuple[Any, dict[str, Any]]:
    """Load a model, without wrappers that decide nothing; returns it and the header of its file."""
    tell.loading()
    from skl_transformaly._wrappers import decider
    from skl_transformaly.persistence import load, read_header

    header = read_header(path)
    detector = decider(load(path, weights=weights))
    if read_header(path)["sha256"] != header["sha256"]:
        raise Mistake(f"{str(path)!r} was replaced while it was loaded; try again.")
    return detector, header
