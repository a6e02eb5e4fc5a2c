"""``transformaly demo``: the first steps, on pieces of two photographs from scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skl_transformaly.cli._app import Mistake, Output, command
from skl_transformaly.cli._console import command_line
from skl_transformaly.cli._fit import fit
from skl_transformaly.cli._report import report
from skl_transformaly.cli._score import score

__all__ = ["demo"]

# Pixels of a piece's side, and how many pieces of the first photograph are normal images of the fit
_SIDE, _FITTED = 80, 28
# Pieces of the second photograph, among the others of the first
_ANOMALIES = 8


@command(json=False)
def demo(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create for images and results.")] = Path(
        "transformaly-demo"
    ),
) -> None:
    """Try fit, score and report on pieces of two photographs, in a minute and offline."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Mistake(f"{str(folder)!r} is not an empty folder; name another one.")
    _write_images(folder, out)
    normal, new, model = str(folder / "normal"), str(folder / "new"), folder / "model.tfm"
    shared = {"quiet": out.quiet, "debug": out.debug}
    scores, page = folder / "scores.csv", folder / "report.html"

    _show(out, "fit", normal, "-o", model)
    fit(normal=[normal], output=model, **shared)
    _show(out, "score", model, new, "--out", scores)
    score(model=model, paths=[new], out=scores, **shared)
    _show(out, "report", model, new, "--normal", normal, "--out", page)
    report(model=model, paths=[new], out=page, normal=Path(normal), **shared)
    out.note(
        f"\nOpen {page} in a browser: the pieces of the other photograph should come first.\n"
        f"{scores} is a table of the scores.\n"
        "With images of your own: transformaly fit FOLDER_OF_NORMAL_IMAGES -o model.tfm"
    )


def _show(out: Output, *words: str | Path) -> None:
    out.note(f"\n$ transformaly {command_line(map(str, words))}")


def _write_images(folder: Path, out: Output) -> None:
    """Cut the photographs into pieces, in an order that does not depend on their place."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for kind in ("normal", "new"):
        (folder / kind).mkdir(parents=True)
    for name in ("china", "flower"):
        photograph = load_sample_image(f"{name}.jpg")
        height, width = (side // _SIDE * _SIDE for side in photograph.shape[:2])
        corners = [(top, left) for top in range(0, height, _SIDE) for left in range(0, width, _SIDE)]
        order = rng.permutation(len(corners))
        for i, place in enumerate(order if name == "china" else order[:_ANOMALIES]):
            top, left = corners[place]
            piece = Image.fromarray(photograph[top : top + _SIDE, left : left + _SIDE])
            kind = "normal" if name == "china" and i < _FITTED else "new"
            piece.save(folder / kind / f"{name}-{i:02}.png")
    out.note(
        f"{folder}: pieces of a photograph of a temple as normal images; more of them as new images, with {_ANOMALIES} "
        "pieces of a flower."
    )
