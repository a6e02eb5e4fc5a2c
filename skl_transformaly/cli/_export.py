"""``transformaly export``: a model as ONNX."""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from skl_transformaly.cli._app import OUT, Mistake, Model, Output, Weights, command
from skl_transformaly.cli._console import counted
from skl_transformaly.cli._inputs import (
    check_model,
    check_no_input,
    check_writable,
    find_images,
    load_model,
    unreadable_text,
)

__all__ = ["export"]


@command()
def export(
    out: Output,
    model: Model,
    onnx: Annotated[
        Path, typer.Option("--onnx", *OUT, metavar="FILE", help="The ONNX file to write.", show_default=False)
    ],
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Images to compare scores on, such as a folder. Default: synthetic ones."),
    ] = None,
    weights: Weights = None,
) -> None:
    """Export a model to ONNX, to run without torch or timm, after comparing their scores."""
    check_model(model)
    check_writable(onnx, model, weights)
    if onnx.suffix.lower() != ".onnx":
        raise Mistake(
            f"{str(onnx)!r} must end in .onnx, by which `transformaly serve` and other runtimes know the file."
        )
    from skl_transformaly._explanation import has_maps
    from skl_transformaly._wrappers import innermost
    from skl_transformaly.export._export import ExportError, ParityError, import_onnx, to_onnx

    import_onnx()  # before images are read and an export is announced
    images = find_images(check).paths if check else None
    check_no_input(onnx, images or [])
    if images is not None:
        images = _readable(images, out)
    detector, _ = load_model(model, weights, out)
    noun = "synthetic image" if images is None else "image"
    compared = "a few synthetic images" if images is None else counted(len(images), noun)
    out.note(f"Exporting {model} to {onnx} and comparing scores on {compared}.")
    try:
        with out.waiting("Exporting"):
            measured = to_onnx(detector, onnx, images, anomaly_map=has_maps(innermost(detector)))
    except (ExportError, ParityError) as error:
        raise Mistake(str(error)) from error
    out.made(
        f"{onnx}: {measured['bytes'] / 1e6:.1f} MB; on {counted(measured['n_images'], noun)}, scores differ by "
        f"at most {measured['score_deviation']:.2g} of their value.",
        {"onnx": str(onnx), **measured},
    )


def _readable(paths: list[str], out: Output) -> list[str]:
    """Return the images that can be read, and warn of the others."""
    from skl_transformaly.cli._provenance import reason
    from skl_transformaly.images._images import as_images

    images = as_images(paths, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told below
        deque(images.batches(1), maxlen=0)
    unreadable = {paths[i]: reason(paths[i], why) for i, why in images.unreadable.items()}
    if unreadable:
        out.warn(unreadable_text(unreadable, "scores are not compared on them"))
    if len(unreadable) == len(paths):
        raise Mistake("None of the images to --check can be read.")
    readable = [path for path in paths if path not in unreadable]
    if len(readable) < 2:
        raise Mistake("There is 1 image to --check that can be read; expected 2 or more, to compare their order.")
    return readable
