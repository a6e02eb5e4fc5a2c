"""Options that every command here takes."""

from __future__ import annotations

import argparse
import ast
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loaders
import numpy as np
from quirks import QUIRKS
from rivals import RIVALS, TRAINED_RIVALS

from skl_transformaly.datasets import ImageDataset
from skl_transformaly.images._images import as_images
from skl_transformaly.images._values import SKIP_ADVICE
from skl_transformaly.teacher._architecture import BUNDLED_MODEL
from skl_transformaly.utils._torch import PRECISIONS

TEACHER = "vit_tiny_patch16_224"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the shared options, to which a command adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=loaders.DATASETS, help="data set (see loaders.py)")
    parser.add_argument("--root", type=Path, help="its folder or file")
    parser.add_argument(
        "--split-seed",
        type=_at_least(0),
        default=0,
        help="draws the test images of a data set without a split of its own (default: %(default)s)",
    )
    parser.add_argument("--download", action="store_true", help="fetch it into --root, where that is possible")
    parser.add_argument("--teacher", help=f"timm name (default: {TEACHER}; with --weights bundled {BUNDLED_MODEL})")
    parser.add_argument(
        "--weights",
        default="hub",
        help="'hub', 'bundled' (needs no network), or the path of the teacher's weights (default: %(default)s)",
    )
    parser.add_argument("--image-size", type=_at_least(1), help="pixels (default: that of the weights)")
    parser.add_argument(
        "--interpolation",
        default="bilinear",
        choices=["bilinear", "bicubic"],
        help="default: the authors', bilinear",
    )
    parser.add_argument(
        "--precision", default="auto", choices=["auto", *PRECISIONS], help="default: %(default)s; with --paper float32"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=_at_least(1), default=32, help="images that the teacher takes at a time")
    parser.add_argument("--classes", nargs="+", help="names of the classes that take turns (default: all)")
    parser.add_argument("--samples", type=_at_least(2), help="at most so many training images a class")
    parser.add_argument("--test-samples", type=_at_least(1), help="at most so many test images a class")
    parser.add_argument("--seeds", type=_at_least(0), nargs="+", default=[0])
    parser.add_argument("--rival-seeds", type=_at_least(0), nargs="+", help="seeds of the rivals (default: --seeds)")
    parser.add_argument("--paper", action="store_true", help="the paper's training: Adam, 1e-4, 30 epochs, float32")
    parser.add_argument(
        "--epochs", type=_at_least(1), help="epochs of the students (default: the library's, or the paper's)"
    )
    parser.add_argument("--n-blocks", type=_at_least(1), default=10, help="students (default: %(default)s)")
    parser.add_argument(
        "--rivals",
        nargs="*",
        default=list(RIVALS),
        choices=[*RIVALS, "untrained"],
        help="for tables 1, 2, 5 (default: all); untrained: all that train no network",
    )
    parser.add_argument(
        "--rival-settings",
        nargs="+",
        type=_setting,
        default=[],
        metavar="NAME__PARAMETER=VALUE",
        help="parameters of rivals instead of their own, as 'Deep SVDD__max_epochs=150'",
    )
    parser.add_argument(
        "--quirks",
        nargs="*",
        default=[],
        choices=list(QUIRKS),
        help="ways in which the authors' code differs from their paper: "
        + " ".join(f"{name}: {what}" for name, what in QUIRKS.items()),
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results, one for each study: tables are named by data set alone, and replace those of "
        "other settings (default: paper-results, or paper-results/dry-run)",
    )
    parser.add_argument(
        "--default-rows",
        type=Path,
        help="rows.csv of benchmarks/accuracy/run.py: the default's figures are taken from there, not computed",
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="compute nothing: show the rows in OUT, by whatever version and on whatever machine they were computed",
    )
    parser.add_argument("--room", type=float, default=16, help="GiB below --out for the recording of the teacher's run")
    parser.add_argument(
        "--dry-run", action="store_true", help="random weights and images, 64 pixels, one epoch: does it all run?"
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """Type of an option: an integer of at least so much."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


def _setting(text: str) -> tuple[str, str, Any]:
    """Type of an option: a rival's name, a parameter of it and its value."""
    where, equals, value = text.partition("=")
    name, _, parameter = where.partition("__")
    if not equals or not parameter:
        raise argparse.ArgumentTypeError(f"must look like MSAD__max_epochs=5, got {text!r}")
    if name not in RIVALS:
        raise argparse.ArgumentTypeError(f"there is no rival {name!r}: choose from {', '.join(RIVALS)}")
    known = sorted(RIVALS[name]().get_params(deep=False).keys() - {"extractor", "random_state"})
    if parameter not in known:
        raise argparse.ArgumentTypeError(f"{name} has no parameter {parameter!r}: choose from {', '.join(known)}")
    try:
        return name, parameter, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, parameter, value  # a text without quotes


def guarded(main: Callable[[], None]) -> None:
    """Run a command; what its user can mend is said in one line, without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        sys.exit("error: " + str(error).replace(SKIP_ADVICE, " Remove or repair it."))  # a study leaves no image out


def publish(text: str, path: Path) -> None:
    """Print a report, and write it to `path`."""
    path.write_text(text)
    print(text)
    print(f"# Written to {path}.", file=sys.stderr)


def command(script: str, arguments: list[str]) -> str:
    """The command as a table shows it: where files lie is each reader's own affair."""
    places = {"--root": "DIR", "--weights": "FILE", "--out": "OUT"}
    shown = list(arguments)
    for i, argument in enumerate(shown[:-1]):
        if argument in places and shown[i + 1] not in ("hub", "bundled"):
            shown[i + 1] = places[argument]
    return f"python benchmarks/paper/{script} {shlex.join(shown)}"


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """Check the options, fill in what depends on others, make the folder of results."""
    options.dataset = None
    if options.dry_run:
        if options.data or options.root:
            parser.error("--dry-run has data of its own: leave out --data and --root")
        options.weights, options.epochs = None, 1
        options.image_size = options.image_size or 64
        options.dataset = dry_data()
        options.data = options.dataset.name
    elif options.data is None:
        parser.error("--data is needed (or --dry-run)")
    if "untrained" in options.rivals:
        options.rivals.remove("untrained")
        options.rivals += [name for name in RIVALS if name not in TRAINED_RIVALS]
    for name in ("seeds", "rival_seeds", "classes", "rivals"):
        chosen = getattr(options, name) or []
        if len(set(chosen)) < len(chosen):
            parser.error(f"--{name.replace('_', '-')} names something twice: {' '.join(map(str, chosen))}")
    options.teacher = options.teacher or (BUNDLED_MODEL if options.weights == "bundled" else TEACHER)
    if options.dry_run and options.out is None:
        options.out = Path("paper-results", "dry-run")
        shutil.rmtree(options.out, ignore_errors=True)  # what ran before says nothing about now
    options.out = options.out or Path("paper-results")
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def dry_data() -> ImageDataset:
    """Three classes of noise of three colours, eight training and four test images each."""
    rng = np.random.default_rng(0)
    colours = rng.integers(50, 200, (3, 1, 1, 1, 3))

    def draw(n):
        return np.concatenate([rng.integers(-40, 40, (n, 32, 32, 3)) + c for c in colours]).astype(np.uint8)

    train, test = np.repeat(np.arange(3), 8), np.repeat(np.arange(3), 4)
    return ImageDataset("dry", as_images(draw(8)), train, as_images(draw(4)), test, ["a", "b", "c"])
