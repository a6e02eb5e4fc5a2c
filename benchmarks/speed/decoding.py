"""What decoding costs a fit and a scoring: photographs of 12 megapixels beside the same ones at 224 pixels.

    python benchmarks/speed/decoding.py PHOTOS FOLDER [--images 48] [--batch-size 8] [--repeats 3]
        [--teacher NAME --weights FILE] [--out FILE]

PHOTOS is a folder of images. FOLDER receives `--images` of them, enlarged to 4000 x 3000 pixels with noise like that of
a camera and saved as JPEG, and the same ones at 224 x 224. First, what decoding at a part of the size ("reduced")
changes: levels of 255 in the resized images, and scores of photographs that were not in the fit, in standard deviations
of normal images. Then images are decoded, fitted and scored in turn: small ones; large ones as by default; and each
without decoding on threads while the teacher works ("ahead"), without the reduction, or without both. A file of
`--out` is written as each part finishes.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from harness import interleaved, machine, ratio, table
from PIL import Image

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.images import _sequence
from skl_transformaly.images._images import Images, as_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    small, large = make(options.photos, options.folder, options.images)
    settings = {"weights": options.weights, "batch_size": options.batch_size}
    teacher = TimmExtractor(options.teacher, **settings).fit(small[:2])
    size = teacher.image_size_

    def decode(paths: list[Path]) -> None:
        deque(as_images(paths).reduced(size).batches(teacher.batch_size), maxlen=0)

    def fit(paths: list[Path]) -> None:
        TransformalyDetector(teacher, contamination=0.5).fit(paths)

    detector = TransformalyDetector(teacher, contamination=0.5).fit(small)
    parts: list[str] = []

    def show(part: str) -> None:
        parts.append(part)
        print(part + "\n", flush=True)
        if options.out:
            options.out.write_text("\n\n".join(parts) + "\n")

    show(_TITLE)
    show(f"    python benchmarks/speed/decoding.py {shlex.join(given(options))}")
    show(f"{len(small)} photographs; {options.teacher} in {teacher.precision_}; {machine()}, {date.today()}.")
    show(changes(teacher, large))
    for name, work in (("decode", decode), ("fit", fit), ("score", detector.score_samples)):
        actions: dict[str, Callable[[], object]] = {
            "224 px": partial(work, small),
            "12 MP": partial(work, large),
            "12 MP, not ahead": switched_off(partial(work, large), ahead=False),
            "12 MP, not reduced": switched_off(partial(work, large), reduced=False),
            "12 MP, neither": switched_off(partial(work, large), ahead=False, reduced=False),
            "224 px, not ahead": switched_off(partial(work, small), ahead=False),
        }
        times = interleaved(actions, options.repeats)
        rows = []
        for action, timing in times.items():
            speed = ratio(times["224 px"], timing)
            rows.append([action, timing.show(1e3 / len(small), "ms", 1), speed.show(1, "", 2)])
        show(table([name, "per image", "speed against 224 px"], rows))


_TITLE = """# Photographs of 12 megapixels

What decoding costs where photographs come from a camera: time an image, and speed beside the same photographs saved at
224 x 224 (target: at least 0.5). "Ahead" is decoding on threads while the teacher works, "reduced" is decoding a JPEG
at a part of its size. Median (minimum to maximum) of repeats that alternate."""


def given(options: argparse.Namespace) -> list[str]:
    """The command line's options as they can be typed elsewhere."""
    names = ("teacher", "weights", "images", "batch_size", "repeats")
    return ["PHOTOS", "FOLDER"] + [
        part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]


def make(photos: Path, folder: Path, number: int) -> tuple[list[Path], list[Path]]:
    """Write the images, unless they exist; paths of the small and of the large ones."""
    sources = sorted(path for path in photos.rglob("*") if path.is_file())
    sources = sources[:: max(1, len(sources) // number)][:number]
    found: tuple[list[Path], list[Path]] = ([], [])
    for i, source in enumerate(sources):
        for paths, size in zip(found, ((224, 224), (4000, 3000))):
            path = folder / str(size[0]) / f"{i:04}.jpg"
            paths.append(path)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(source).convert("RGB").resize(size, Image.Resampling.BICUBIC))
            noise = np.random.default_rng(i).normal(0, 3, (*pixels.shape[:2], 1))
            Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return found


def switched_off(work: Callable[[], object], *, ahead: bool = True, reduced: bool = True) -> Callable[[], None]:
    """`work` without decoding ahead, or without reduction."""

    def at_once(function: Callable, items: list[int], *, threads: int) -> Iterator:
        return ((item, partial(function, item)) for item in items)

    def run() -> None:
        with contextlib.ExitStack() as stack:
            if not ahead:
                stack.enter_context(patch.object(_sequence, "ahead", at_once))
            if not reduced:
                stack.enter_context(patch.object(Images, "reduced", lambda self, size: self))
            work()

    return run


def changes(teacher: TimmExtractor, paths: list[Path]) -> str:
    """How far reduced images and their scores lie from those of whole ones."""
    whole = as_images(paths)
    reduced = whole.reduced(teacher.image_size_)
    levels = np.concatenate(
        [
            (teacher.preprocess([one]) - teacher.preprocess([other])).abs().flatten().numpy()
            for one, other in zip(whole, reduced)
        ]
    ) * (255 * np.mean(teacher.teacher_.data_config["std"]))
    middle = len(paths) // 2
    detector = TransformalyDetector(teacher, contamination=0.5).fit(paths[:middle])
    scores = detector.score_samples(paths[middle:])
    with patch.object(Images, "reduced", lambda self, size: self):
        differences = np.abs(detector.score_samples(paths[middle:]) - scores)
    return (
        f"Resized images differ by {levels.mean():.2f} levels on average, {levels.max():.0f} at most; scores by "
        f"{differences.mean():.3f} on average, {differences.max():.3f} at most, where they have a standard deviation "
        f"of {scores.std():.2f}."
    )


if __name__ == "__main__":
    main()
