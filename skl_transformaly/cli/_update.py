"""``transformaly update``: improve a model by labels and more normal images."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skl_transformaly.cli._app import OUT, Mistake, Model, Output, Weights, command
from skl_transformaly.cli._console import counted, duration
from skl_transformaly.cli._inputs import (
    check_folder,
    check_model,
    check_model_output,
    check_no_input,
    find_images,
    load_model,
    unreadable_text,
)
from skl_transformaly.utils._files import absolute_path

if TYPE_CHECKING:
    from skl_transformaly.cli._relearning import Earlier, Lessons

__all__ = ["update"]

# Names of images that are shown in a line.
_MOST_SHOWN = 5


@command()
def update(
    out: Output,
    model: Model,
    output: Annotated[
        Path, typer.Option(*OUT, metavar="NEW_MODEL", help="The model file to write.", show_default=False)
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NEW_IMAGES]...", help="More normal images: folders, files, patterns, or -."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Labels saved by a report: path,label with 1 (normal) or -1 (anomaly)."),
    ] = None,
    normal: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the images of the fit, if it was moved."),
    ] = None,
    weights: Weights = None,
) -> None:
    """Learn from labels saved by a report, and from more normal images.

    Images labelled 1, and new ones without a label, are learned as normal. Images labelled -1 are known anomalies, by
    which feature spaces are weighed; if the model was fitted on them, they are taken back.
    """
    if not images and labels is None:
        raise Mistake("update needs something to learn from: new normal images, --labels FILE, or both.")
    check_model(model, "update MODEL NEW_IMAGES")
    check_model_output(output, labels, weights)
    check_folder(normal, "folder of normal images")
    new = find_images(images) if images else None

    import numpy as np

    from skl_transformaly.cli._relearning import Earlier, Lessons, read_labels

    given = {absolute_path(path): 1 for path in (new.paths if new is not None else [])}
    if labels is not None:
        given.update(read_labels(labels))  # a label counts before the folder of an image
    check_no_input(output, given)
    detector, header = load_model(model, weights, out)
    earlier = Earlier.of(detector, header["metadata"], normal)
    with out.progress("Reading", len(given)) as advance:
        lessons = Lessons.of(given, earlier, advance)
    if lessons.unreadable:
        out.warn(unreadable_text(lessons.unreadable, "left out"))
    if lessons.left_out:
        out.warn(_left_out_text(lessons.left_out, detector.trim))
    if not lessons:
        given_as = " and ".join(["images"] * bool(images) + ["labels"] * (labels is not None))
        already = f": the model has learned these {given_as} already" if lessons.known else ""
        raise Mistake(f"nothing new to learn{already}.")
    before = {"images": earlier.learned, "threshold": float(detector.offset_)}
    start = time.perf_counter()
    exact = _learn(detector, earlier, lessons, out)
    made = earlier.provenance_after(lessons, exact, time.perf_counter() - start, new)

    from skl_transformaly.cli._provenance import save_with
    from skl_transformaly.utils._labels import TRIMMED

    stored = all(entry["stored"] for entry in header["teachers"])  # or left out, as `save` may be told
    save_with(made, detector, output, header["metadata"], out, teacher=stored)
    paths = [*earlier.paths, *lessons.normal, *lessons.anomalies]
    trimmed = np.flatnonzero(detector.training_labels_ == TRIMMED)
    left_out = [paths[i] or "one whose name is not known" for i in trimmed]
    if overruled := [path for path in left_out if given.get(path) == 1 and path not in lessons.left_out]:
        out.warn(_overruled_text(overruled, detector.trim))
    if not earlier.solved and hasattr(detector, "students_"):
        out.note("The trained students stay as they are; to train them on all images, fit again.")
    _tell(detector, output, lessons, before, left_out, earlier.solved and exact, made.seconds, out)


def _learn(detector: Any, earlier: Earlier, lessons: Lessons, out: Output) -> bool:
    """Learn, and return whether the result is that of a fit on all images."""
    from skl_transformaly.images._images import as_images

    exact = not earlier.solved
    if earlier.solved:
        with out.progress("Checking earlier images", len(earlier.paths)) as advance:
            reason = earlier.why_not_again(lessons, advance)
        exact = not reason
        if reason:
            out.warn(
                f"{reason}, so the students stay as they are, and only densities, threshold and p-values are updated. "
                f"To update all, {_where(earlier)}fit on all images."
            )
        else:
            earlier.hand_over()
            number = counted(earlier.learned + len(lessons.normal) - lessons.unlearned, "image")
            out.note(f"All earlier images were found: learning from {number}, like a fit on all of them.")
    again = earlier.solved and exact
    paths = [*lessons.normal, *lessons.anomalies]
    y = [1] * len(lessons.normal) + [-1] * len(lessons.anomalies)
    with out.waiting("Learning"), warnings.catch_warnings():
        if out.tells:  # this, at the end
            warnings.filterwarnings("ignore", message=".*(cannot be promised|changes? nothing)")
        if lessons.taken_back:
            # students are fitted once, in the last step
            detector.forget(lessons.taken_back, update_students=again and not paths)
        if paths:
            detector.partial_fit(as_images(paths, on_error="skip"), y, update_students=again)
    return exact


def _left_out_text(paths: list[str], trim: float) -> str:
    return (
        f"{counted(len(paths), 'image')} given as normal, such as {paths[0]!r}: left out by --trim {trim:g} when the "
        "model was made, and so again. To learn what was left out, fit again with a lower --trim, or without."
    )


def _overruled_text(paths: list[str], trim: float) -> str:
    return (
        f"{counted(len(paths), 'image')} given as normal, such as {paths[0]!r}: among the least like the others now, "
        f"and left out by --trim {trim:g} all the same. To learn them, fit again with a lower --trim, or without."
    )


def _where(earlier: Earlier) -> str:
    """Return advice on which folder to name, for images that the model file names."""
    if not earlier.made.root:
        return "name with --normal DIR the folder of these images, or "
    return f"name with --normal DIR the folder that is now what {earlier.made.root!r} was, or "


def _tell(
    detector: Any,
    output: Path,
    lessons: Lessons,
    before: dict[str, Any],
    left_out: list[str],
    students_updated: bool,
    seconds: float,
    out: Output,
) -> None:
    """Report what changed."""
    import numpy as np

    from skl_transformaly._weighting import LEAST_ANOMALIES, default_weights
    from skl_transformaly.cli._trust import FalseAlarms
    from skl_transformaly.images._folders import display_path
    from skl_transformaly.utils._labels import KNOWN_ANOMALY

    labels, scores = detector.training_labels_, detector.training_scores_
    after = int(np.sum(np.isfinite(scores)))
    anomalies = int(np.sum(labels == KNOWN_ANOMALY))
    same = detector.offset_ == before["threshold"]
    learned = lessons.kept_by(detector)
    change = (
        "as before: no score changes" if same else f"{before['threshold']:.2f} before; scores are on another scale now"
    )
    lines = [
        f"{output}: {counted(after, 'normal image')}, {before['images']} before "
        f"({learned} learned, {lessons.unlearned} taken back), in {duration(seconds)}.",
        f"Threshold {detector.offset_:.2f}, {change}.",
    ]
    if left_out:
        shown = ", ".join(map(display_path, left_out[:_MOST_SHOWN])) + ", ..." * (len(left_out) > _MOST_SHOWN)
        lines.append(f"Left out by --trim {detector.trim:g}, now: {counted(len(left_out), 'image')}: {shown}.")
    if lessons.known:
        lines.append(f"{counted(lessons.known, 'image')} passed over, which the model knew already.")
    if lessons.copies:
        are = "is a copy of another" if lessons.copies == 1 else "are copies of others"
        lines.append(f"{counted(lessons.copies, 'image')} passed over, which {are} in this call.")
    if 0 < anomalies < LEAST_ANOMALIES:
        lines.append(
            f"{counted(anomalies, 'known anomaly')}: {LEAST_ANOMALIES} are needed to weigh the feature spaces."
        )
    elif anomalies and np.array_equal(
        detector.weights_, default_weights(detector.feature_spaces_, detector.fusion == "standardized")
    ):
        lines.append(
            f"{counted(anomalies, 'known anomaly')}: no change, since the usual weights of the feature spaces were as "
            "good on held-out images."
        )
    elif anomalies:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(detector.feature_spaces_, detector.weights_))
        lines.append(f"{counted(anomalies, 'known anomaly')}: feature spaces weigh {weights}.")
    alarms = FalseAlarms.of(detector)
    if alarms is not None:
        lines.append(str(alarms))
    data = {
        "model": str(output),
        "images_before": before["images"],
        "images": after,
        "learned": learned,
        "taken_back": lessons.unlearned,
        "known": lessons.known,
        "copies": lessons.copies,
        "left_out": left_out,
        "known_anomalies": anomalies,
        "threshold_before": before["threshold"],
        "threshold": float(detector.offset_),
        "expected_false_positive_rate": None if alarms is None else alarms.expected,
        "students_updated": students_updated,
        "unreadable": lessons.unreadable,
        "seconds": seconds,
    }
    out.made("\n".join(lines), data)
