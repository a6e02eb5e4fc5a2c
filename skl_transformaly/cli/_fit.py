"""``transformaly fit``: learn what is normal from a folder of normal images."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skl_transformaly.cli._app import (
    INTERRUPTED,
    OUT,
    Mistake,
    Output,
    command,
    fail,
    in_options,
    is_of_large_files,
)
from skl_transformaly.cli._console import command_line, counted, duration
from skl_transformaly.cli._inputs import check_model_output, check_no_input, find_images, passed_over, unreadable_text

if TYPE_CHECKING:
    from skl_transformaly.cli._provenance import Provenance
    from skl_transformaly.images._folders import FoundFiles

__all__ = ["fit"]

# Relative durations of the phases of a fit, in order: the second pass over the images takes as long as the first;
# trained students are trained three times more, on two thirds of the images each, to judge the others.
_PHASES = {"ridge": (1.0, 1.0), "trained": (1.0, 2 / 3, 2 / 3, 2 / 3)}
# Of images with a shorter side, a teacher sees nothing.
_LEAST_SIDE = 16
# Share of a fit after which its duration can be estimated: one batch, or enough epochs to outweigh the teacher's pass.
_TOLD_AFTER = {"ridge": 0.0, "trained": 0.03}

Normal = Annotated[
    list[str],
    typer.Argument(
        metavar="NORMAL_DIR", help="Folder of normal images; also files, patterns, or -.", show_default=False
    ),
]
ModelFile = Annotated[Path, typer.Option(*OUT, metavar="FILE", help="The model file to make.", show_default=False)]
Teacher = Annotated[str, typer.Option(metavar="NAME", help="'bundled', or the name of a timm model; see `teachers`.")]
TeacherWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights of a timm model, .safetensors or .pth. Default: timm's hub."),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS|HxW",
        help="Side that images are resized to, or height and width such as 224x448. Default: that of the weights.",
    ),
]
Alpha = Annotated[
    float,
    typer.Option(help="Share of new normal images that may be flagged, in (0, 0.5] (`contamination` in Python)."),
]
Students = Annotated[
    str,
    typer.Option(
        metavar="ridge|trained",
        help="How students are fitted: solved in one pass, or trained by gradient as in the paper, which takes much "
        "longer.",
    ),
]
Blocks = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of students, one for each of the teacher's last blocks.",
        show_default="10, or all if there are fewer",
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Epochs of training, 8 by default; only with --students trained.")
]
Trim = Annotated[
    float,
    typer.Option(
        min=0, max=0.49, help="Share of the images that may not be normal; those least like the others are left out."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that go through the teacher at a time.")]
Device = Annotated[
    str, typer.Option(help="'auto', 'cpu', 'cuda', ... for the fit; models score where there is no GPU, too.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same model.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder where trained students are kept until all are trained, so that the same command can continue. "
        "Default: a folder beside the model file. Only with --students trained.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")]


@command()
def fit(
    out: Output,
    normal: Normal,
    output: ModelFile,
    teacher: Teacher = "bundled",
    weights: TeacherWeights = None,
    image_size: ImageSize = None,
    alpha: Alpha = 0.05,
    students: Students = "ridge",
    blocks: Blocks = 10,
    epochs: Epochs = None,
    trim: Trim = 0.0,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    strict: Strict = False,
) -> None:
    """Learn what is normal from a folder of normal images."""
    _check(output, teacher, weights, alpha, students, epochs, checkpoint)
    size = _parse_size(image_size)
    found = _normal_images(normal, 3 if students == "trained" else 2)
    check_no_input(output, found.paths)
    out.note(f"Fitting on {counted(len(found.paths), 'image')} with teacher {teacher!r}.")
    kept = _Kept(output, checkpoint) if students == "trained" else None

    from skl_transformaly import BlockStudents, RidgeStudents, TransformalyDetector
    from skl_transformaly.cli._provenance import save_with
    from skl_transformaly.persistence._networks import check_storable
    from skl_transformaly.teacher._extractor import resolve_extractor

    extractor = resolve_extractor(teacher).set_params(image_size=size, batch_size=batch_size, device=device)
    if weights is not None:
        extractor.set_params(weights=str(weights.resolve()))
    check_storable(extractor)
    imitators: Any = RidgeStudents(n_blocks=blocks)
    if kept is not None:
        imitators = BlockStudents(n_blocks=blocks, checkpoint=kept.folder)
        if epochs:
            imitators.set_params(max_epochs=epochs, max_steps=None)
    detector = TransformalyDetector(
        extractor,
        students=imitators,
        contamination=alpha,
        trim=trim,
        random_state=seed,
    )
    with contextlib.closing(kept) if kept is not None else contextlib.nullcontext():
        seconds = _fit(detector, found.paths, "raise" if strict else "skip", students, kept, out)
        unreadable = _unreadable(detector, found.paths)
        made = _provenance(detector, found, unreadable, seed, seconds)
        if device != "cpu":  # or the model of a machine with a GPU could not score on one without
            for teacher_of in (detector.extractor, detector.extractor_):
                teacher_of.set_params(device="auto")
        if kept is not None:
            imitators.checkpoint = detector.students_.checkpoint = checkpoint  # the folder beside the model goes
        save_with(made, detector, output, {}, out)
        if kept is not None:
            kept.clear()
    _tell(detector, output, found, unreadable, made, normal, out)


def _check(
    output: Path,
    teacher: str,
    weights: Path | None,
    alpha: float,
    students: str,
    epochs: int | None,
    checkpoint: Path | None,
) -> None:
    """Refuse options that cannot work before anything slow is done."""
    check_model_output(output, weights)
    if weights is not None:
        if teacher == "bundled":
            raise Mistake("--weights needs --teacher NAME, the timm model that they belong to.")
        if not weights.is_file():
            raise Mistake(f"The file of weights {str(weights)!r} does not exist.")
    if not 0 < alpha <= 0.5:
        raise Mistake(f"--alpha must be in (0, 0.5], got {alpha}.")
    if students not in _PHASES:
        raise Mistake(f"--students must be 'ridge' or 'trained', got {students!r}.")
    if students == "ridge" and not (epochs is None and checkpoint is None):
        raise Mistake("--epochs and --checkpoint need --students trained.")
    if checkpoint is not None:
        try:
            checkpoint.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=checkpoint).close()
        except OSError as error:
            raise Mistake(f"--checkpoint needs a folder that can be written: {error}.") from error


def _parse_size(text: str | None) -> int | tuple[int, int] | None:
    """Parse ``--image-size``: "224" is the side of a square, "224x448" or "224,448" are height and width."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([1-9]\d*)(?:\s*[xX,]\s*([1-9]\d*))?\s*", text)
    if found is None:
        raise Mistake(f"--image-size must be a number of pixels, or height and width such as 224x448, got {text!r}.")
    sides = [int(side) for side in found.groups() if side is not None]
    if min(sides) < _LEAST_SIDE:
        raise Mistake(f"--image-size must be at least {_LEAST_SIDE} pixels, got {text!r}.")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _normal_images(names: list[str], least: int) -> FoundFiles:
    found = find_images(names)
    if len(found.paths) < least:
        raise Mistake(
            f"fit needs at least {least} normal images{' for students that are trained' if least > 2 else ''}, found "
            f"{len(found.paths)}."
        )
    return found


class _Kept:
    """Folder in which trained students survive if the fit is stopped: beside the model file, or the user's own."""

    def __init__(self, output: Path, chosen: Path | None):
        self.folder = output.with_name(output.name + ".students") if chosen is None else chosen
        self._own = chosen is None

    def count(self) -> int:
        """Return the number of students in the folder."""
        return sum(1 for _ in self.folder.rglob("output.pkl"))

    def close(self) -> None:
        """Leave nothing, unless there are students for the same command to go on with."""
        if not self.count():
            self.clear()

    def clear(self) -> None:
        """Remove the folder, unless it is the user's own."""
        import shutil

        if self._own:
            shutil.rmtree(self.folder / "joblib", ignore_errors=True)
            with contextlib.suppress(OSError):  # something else is in it
                (self.folder / ".gitignore").unlink(missing_ok=True)  # joblib's
                self.folder.rmdir()


class _Watch:
    """Follows a fit through its phases, and estimates once how long it will take."""

    def __init__(self, students: str, out: Output, advance: Any):
        self._shares = _PHASES[students]
        self._told = False
        self._told_after = _TOLD_AFTER[students]
        self._out, self._advance = out, advance
        self._phase = -1
        self._share = 0.0

    def __call__(self, phase: str, done: float, total: float) -> None:
        if not done:
            self._phase = min(self._phase + 1, len(self._shares) - 1)
            if not self._phase:
                self._start = time.monotonic()
            return
        before = sum(self._shares[: self._phase])
        share = (before + self._shares[self._phase] * min(done / total, 1)) / sum(self._shares)
        gained, self._share = max(0.0, share - self._share), max(share, self._share)
        if not self._told and share > self._told_after:
            self._told = True
            left = (time.monotonic() - self._start) * (1 - share) / share
            self._out.note(f"About {duration(left)} left.")
        self._advance(100 * gained)


def _fit(detector: Any, paths: list[str], on_error: str, students: str, kept: _Kept | None, out: Output) -> float:
    """Fit, and return the seconds that it took."""
    from skl_transformaly.images._images import as_images
    from skl_transformaly.students._activations import ImitationError
    from skl_transformaly.utils._progress import watched

    if kept is not None and kept.count():
        out.note(f"Found {counted(kept.count(), 'student')} of an earlier fit in {kept.folder}.")
    start = time.perf_counter()
    try:
        with (
            _warnings(out),
            out.progress("Fitting", 100, "%") as advance,
            watched(_Watch(students, out, advance)),
        ):
            detector.fit(as_images(paths, on_error=on_error))
    except ImitationError as error:
        raise Mistake(str(error)) from error
    except KeyboardInterrupt:
        if kept is not None and kept.count():
            text = (
                f"{counted(kept.count(), 'trained student')} kept in {kept.folder}: run the same command to continue."
            )
        else:
            text = "nothing was kept."
        fail(f"stopped after {duration(time.perf_counter() - start)}; {text}", INTERRUPTED)
    return time.perf_counter() - start


@contextlib.contextmanager
def _warnings(out: Output) -> Iterator[None]:
    """Show warnings at the end, except those that this command words itself."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    texts = dict.fromkeys(str(warning.message) for warning in caught if not is_of_large_files(warning.category))
    for text in texts:
        # the summary says what can be promised, if it is shown
        if "could not be read" not in text and not (out.tells and "cannot be promised" in text):
            out.warn(in_options(text))


def _unreadable(detector: Any, paths: list[str]) -> dict[str, str]:
    from skl_transformaly.cli._provenance import reasons
    from skl_transformaly.utils._labels import LEARNED

    scores = zip(detector.training_scores_.tolist(), detector.training_labels_.tolist())
    return reasons(paths, [i for i, (score, label) in enumerate(scores) if math.isnan(score) and label == LEARNED])


def _provenance(detector: Any, found: FoundFiles, unreadable: dict[str, str], seed: int, seconds: float) -> Provenance:
    """Return how the model was made, for its file."""
    from skl_transformaly.cli._provenance import Provenance

    # also those that `trim` left out: `update` reads them again
    readable = [i for i, path in enumerate(found.paths) if path not in unreadable]
    numbers: dict[str, Any] = {"hidden": found.hidden, "other": found.other, "seconds": round(seconds, 1)}
    return Provenance.of(detector, found.paths, readable, unreadable, seed=seed, **numbers)


def _tell(
    detector: Any,
    output: Path,
    found: FoundFiles,
    unreadable: dict[str, str],
    made: Provenance,
    normal: list[str],
    out: Output,
) -> None:
    """Report what was learned, and what to do next."""
    from skl_transformaly.cli._trust import FalseAlarms, least_normal, least_normal_text
    from skl_transformaly.utils._labels import TRIMMED

    if unreadable:
        out.warn(unreadable_text(unreadable, "left out"))
    trimmed = [found.paths[i] for i in (detector.training_labels_ == TRIMMED).nonzero()[0].tolist()]
    used = len(found.paths) - len(unreadable) - len(trimmed)
    alarms = FalseAlarms.of(detector)
    least = least_normal(detector, found.paths)
    folder = ["--normal", normal[0]] if len(normal) == 1 and Path(normal[0]).is_dir() else []
    lines = [
        f"{output}: fitted on {counted(used, 'image')} in {duration(made.seconds)}{passed_over(found)}.",
        *_what_was_found(detector, found.paths, trimmed),
        str(alarms),
        least_normal_text(detector, least),
        f"Next: {command_line(['transformaly', 'report', str(output), 'NEW_IMAGES', *folder])}",
    ]
    data = {
        "model": str(output),
        "images": used,
        "unreadable": unreadable,
        "trimmed": trimmed,
        "hidden": found.hidden,
        "other": found.other,
        "seconds": made.seconds,
        "expected_false_positive_rate": None if alarms is None else alarms.expected,
        "least_normal": [{"path": path, "score": score} for path, score in least],
        "settings": made.settings,
    }
    out.made("\n".join(lines), data)


def _what_was_found(detector: Any, paths: list[str], trimmed: list[str]) -> list[str]:
    """Return lines about images that were not learned, and about copies."""
    from skl_transformaly.images._folders import display_path

    lines = []
    if trimmed:
        names = "".join(f"\n  {display_path(path)}" for path in trimmed[:10]) + "\n  ..." * (len(trimmed) > 10)
        lines.append(f"Left out as least like the others: {counted(len(trimmed), 'image')}{names}")
    first: dict[int, int] = {}
    groups = [(i, group) for i, group in enumerate(detector.training_groups_.tolist()) if group >= 0]
    copies = [(i, first[group]) for i, group in groups if first.setdefault(group, i) < i]
    if copies:
        copy, original = (display_path(paths[i]) for i in copies[0])
        are = "is a copy of another" if len(copies) == 1 else "are copies of others"
        lines.append(
            f"{counted(len(copies), 'image')} {are}, such as {copy} of {original}: copies are judged together, as one "
            "image."
        )
    return lines
