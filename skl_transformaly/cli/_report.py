"""``transformaly report``: one HTML file to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skl_transformaly.cli._app import OUT, Model, Output, Paths, Weights, command, fail
from skl_transformaly.cli._console import counted
from skl_transformaly.cli._inputs import (
    check_folder,
    check_model,
    check_no_input,
    check_writable,
    find_images,
    load_model,
    missing_text,
    passed_over,
)

__all__ = ["report"]


@command()
def report(
    tell: Output,
    model: Model,
    paths: Paths,
    out: Annotated[Path, typer.Option(*OUT, metavar="FILE", help="The HTML file to make.")] = Path("report.html"),
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the normal images, to show the nearest ones; folders that the model names are not opened.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Number of images to show with picture and map, the most anomalous first.")
    ] = 1000,
    weights: Weights = None,
) -> None:
    """Make one HTML file to look at: images from most to least anomalous, with maps and nearest normal images."""
    check_model(model, "report MODEL IMAGES")
    check_writable(out, model, weights)
    check_folder(normal, "folder of normal images")
    found = find_images(paths, missing="keep")
    check_no_input(out, found.paths)
    missing = missing_text(found)
    detector, header = load_model(model, weights, tell)
    from skl_transformaly._wrappers import innermost
    from skl_transformaly.cli._describe import saved_with
    from skl_transformaly.cli._provenance import Provenance
    from skl_transformaly.cli.report import Origin, write_report
    from skl_transformaly.images._folders import display_path

    made = Provenance.from_json(header["metadata"])
    if normal is not None and not made.files:
        with tell.waiting("Looking for the images of the fit"):
            made = Provenance.found_below(innermost(detector), normal)
        if not made.files:
            tell.warn(f"no image below {display_path(str(normal))} is one of the fit: none is shown.")

    with tell.progress("Scoring", len(found.paths)) as advance:
        summary = write_report(
            detector,
            found.paths,
            out,
            origin=Origin(made, saved_with(header), str(model), (found.hidden, found.other)),
            normal_dir=normal,
            limit=limit,
            title=f"{model.name}: {', '.join(Path(path).name or path for path in paths)}",
            advance=advance,
        )
    unreadable = summary["unreadable"]
    text = f"{counted(summary['images'], 'image')}: {counted(summary['anomalies'] - unreadable, 'anomaly')}"
    text += f", {unreadable} could not be read (named at its end)" if unreadable else ""
    text += f"{passed_over(found)}; {summary['bytes'] / 1e6:.1f} MB."
    tell.made(f"{out}: {text}", {"out": str(out), **summary})
    if changed := summary["normal_changed"]:
        tell.warn(
            f"{counted(changed, 'normal image')} not shown: below {display_path(str(normal or made.root))} there "
            f"{'is another image' if changed == 1 else 'are other images'} of the same name. Give the folder that the "
            "model was fitted on: --normal DIR."
        )
    if absent := summary["normal_missing"]:
        tell.warn(
            f"{counted(absent, 'normal image')} not shown: not found below {display_path(str(normal or made.root))}. "
            f"The model was fitted on images below {display_path(str(made.root))}: name that folder, or where it is "
            "now, with --normal DIR."
        )
    if missing:
        fail(missing)
