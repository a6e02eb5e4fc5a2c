"""``transformaly fit``: learn what is normal from a folder of normal images."""

from __future__ import annotations

import math
import re
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from skl_transformaly.cli._app import (
    Debug,
    Json,
    Mistake,
    Output,
    Quiet,
    app,
    command,
)
from skl_transformaly.cli._inputs import (
    check_writable,
    find_images,
    missing_paths,
    missing_text,
    passed_over,
    unreadable_text,
)

# Images beyond which a model file would outgrow what its reader takes, if it named them all
_MOST_NAMES = 100_000

__all__ = ["fit"]


def _parse_size(text: str | None) -> int | tuple[int, int] | None:
    """What ``--image-size`` stands for: "224" one side, "224x448" or "224,448" height and width."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([1-9]\d*)(?:\s*[xX,]\s*([1-9]\d*))?\s*", text)
    if found is None:
        raise Mistake(f"--image-size must be a number of pixels, or height and width such as 224x448, got {text!r}.")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


@app.command()
@command
def fit(
    normal: Annotated[
        list[str],
        typer.Argument(
            metavar="NORMAL_DIR", help="Folder of normal images; also files, patterns, or - .", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The model file to make.", show_default=False)
    ],
    teacher: Annotated[
        str, typer.Option(metavar="NAME", help="'bundled', or the name of a timm model; see `teachers`.")
    ] = "bundled",
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of a timm model, .safetensors or .pth; without it, timm's hub."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|HxW",
            help="Side that images are resized to, or height and width such as 224x448; else the weights'.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Share of new normal images that may be flagged, in (0, 0.5].")] = 0.05,
    students: Annotated[
        str,
        typer.Option(
            metavar="ridge|trained",
            help="How blocks are imitated: solved in one pass, or trained by gradient as in the paper, which takes "
            "much longer.",
        ),
    ] = "ridge",
    blocks: Annotated[int, typer.Option(min=1, help="Students: one for each of the teacher's last blocks.")] = 10,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs that students are trained, 8 by default; with --students trained.")
    ] = None,
    explained_variance: Annotated[
        float | None,
        typer.Option(
            help="Share of the features' variance to keep, in (0, 1); without it, all dimensions.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the teacher at a time.")] = 32,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of trained students that are done, from which a fit that was killed goes on; with --students "
            "trained.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop where an image cannot be read.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn what is normal from a folder of normal images."""
    out = Output(as_json, quiet)
    check_writable(output)
    if weights is not None:
        if teacher == "bundled":
            raise Mistake("--weights needs the name of the timm model that they belong to: --teacher NAME.")
        if not weights.is_file():
            raise Mistake(f"There is no file of weights {str(weights)!r}.")
    _parse_size(image_size)
    if not 0 < alpha <= 0.5:
        raise Mistake(f"--alpha must be in (0, 0.5], got {alpha}.")
    if students not in ("ridge", "trained"):
        raise Mistake(f"--students must be 'ridge' or 'trained', got {students!r}.")
    if students == "ridge" and not (epochs is None and checkpoint is None):
        raise Mistake("--epochs and --checkpoint are for students that are trained: add --students trained.")
    if explained_variance is not None and not 0 < explained_variance < 1:
        raise Mistake(f"--explained-variance must be in (0, 1), got {explained_variance}.")
    found = find_images(normal, out)
    if missing := missing_paths(found):
        raise Mistake(missing_text(missing))

    from skl_transformaly.cli._provenance import Provenance, describe, inspect_images, relative_to_root

    facts = []
    with out.progress("Reading", len(found.paths)) as advance:
        for fact in inspect_images(found.paths):
            facts.append(fact)
            advance(1)
    unreadable = {fact.path: fact.error for fact in facts if fact.error}
    if unreadable and strict:
        raise Mistake(unreadable_text(unreadable, "nothing was fitted"))
    if unreadable:
        out.warn(unreadable_text(unreadable, "left out"))
    facts = [fact for fact in facts if not fact.error]
    paths = [fact.path for fact in facts]
    if len(paths) < 2:
        raise Mistake(f"fit needs at least 2 normal images, found {len(paths)}.")

    from skl_transformaly import BlockStudents, RidgeStudents, TimmExtractor, TransformalyDetector
    from skl_transformaly.teacher._architecture import BUNDLED_MODEL

    out.note(f"{len(paths)} images, teacher {teacher!r}.")
    bundled = teacher == "bundled"
    extractor = TimmExtractor(
        BUNDLED_MODEL if bundled else teacher,
        weights="bundled" if bundled else "hub" if weights is None else str(weights.resolve()),
        image_size=_parse_size(image_size),
        batch_size=batch_size,
        device=device,
    )
    imitators: Any = RidgeStudents(n_blocks=blocks, verbose=int(out.lively))
    if students == "trained":
        imitators = BlockStudents(
            n_blocks=blocks, max_epochs=epochs or 8, checkpoint=checkpoint, verbose=int(out.lively)
        )
    detector = TransformalyDetector(
        extractor,
        students=imitators,
        explained_variance=explained_variance,
        contamination=alpha,
        on_error="skip",
        random_state=seed,
    )
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detector.fit(paths)
    except TypeError as error:  # how students say that a teacher cannot be imitated
        raise Mistake(str(error)) from error
    for warning in caught:
        out.warn(str(warning.message))
    seconds = time.perf_counter() - start
    root, names = relative_to_root([fact.path for fact in facts] + list(unreadable))
    made = Provenance(
        root=root,
        files=names[: len(paths)],
        fitted=list(range(len(paths))),
        scores=[None if math.isnan(score) else float(score) for score in detector.training_scores_],
        digests=[fact.digest for fact in facts],
        shortest=min(min(fact.height, fact.width) for fact in facts),
        unreadable=dict(zip(names[len(paths) :], unreadable.values())),
        hidden=found.hidden,
        other=found.other,
        seed=seed,
        seconds=round(seconds, 1),
        settings=describe(detector),
    )
    if len(paths) > _MOST_NAMES:
        out.warn(f"more than {_MOST_NAMES} images: the model file does not name them, so reports show no neighbours.")
        made.files, made.fitted, made.scores, made.digests = [], [], [], []
    for part in (imitators, detector.students_):
        part.verbose = 0  # the progress bar was for this terminal

    from skl_transformaly.persistence import save

    save(detector, output, metadata=made.to_json())
    out.made(
        f"{output}: fitted on {len(paths)} images in {seconds:.0f} s{passed_over(found)}. About "
        f"{max(alpha, 1 / (len(paths) + 1)):.0%} of new normal images will be flagged.",
        {
            "model": str(output),
            "images": len(paths),
            "unreadable": unreadable,
            "hidden": found.hidden,
            "other": found.other,
            "seconds": round(seconds, 1),
            "settings": made.settings,
        },
    )
