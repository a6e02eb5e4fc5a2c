"""Every target of speed and memory beside what is measured, in one run.

    python benchmarks/speed/run.py all --out benchmarks/speed/RESULTS.md
    python benchmarks/speed/run.py score epoch --models vit_tiny_patch16_224
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/speed/run.py all --precision float32 --out ...

The last is for a processor that has newer instructions; what it measures stands beside what is measured with them.

Ratios are of timings that alternate within the run, so a machine whose speed drifts does not move them; each figure is
the median of five, with minimum and maximum. The floor is the floating-point operations of the work over the rate that
one large matrix product reaches in the same precision at that moment. Nothing is compared with an earlier run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gpu import gpu
from harness import REPEATS, machine, restriction
from sizes import growth, memory, workers
from times import epoch, fit, grid, imports, profile, score

TARGETS: dict[str, Callable[[argparse.Namespace], str]] = {
    f.__name__: f for f in (imports, score, profile, epoch, fit, grid, memory, growth, workers, gpu)
}


def main() -> None:
    """Measure what is asked for, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["bundled", "vit_tiny_patch16_224", "vit_base_patch16_224"],
        help="bundled, or timm names, whose weights are random (default: %(default)s)",
    )
    parser.add_argument("--precision", default="auto", help="of teacher and students (default: %(default)s)")
    parser.add_argument(
        "--students",
        nargs="+",
        choices=["solved", "trained"],
        default=["solved", "trained"],
        help="for score, profile and fit (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[96, 300, 96],
        help="for fit and epoch, of each model (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each timing (default: %(default)s)")
    parser.add_argument("--memory-images", type=int, nargs="+", default=[500, 5000, 20000], help="default: %(default)s")
    parser.add_argument(
        "--growth-images", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000], help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-images", type=int, nargs="+", default=[12500, 25000, 50000, 100000], help="default: %(default)s"
    )
    parser.add_argument("--growth-rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if options.out and not options.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.absolute().parent}")
    if len(options.images) < len(options.models):
        parser.error("--images needs a number for each of --models")
    names = options.targets
    if "all" in names:
        names = [name for name in TARGETS if name != "gpu" or torch.cuda.is_available()]
    elif "gpu" in names and not torch.cuda.is_available():
        parser.error("gpu: torch finds no GPU on this machine")
    kept = _sections(options.out) if options.out else {}
    restricted = f"{restriction()} " if restriction() else ""
    for name in names:
        heading, rest = TARGETS[name](options).split("\n", 1)
        command = f"    {restricted}python benchmarks/speed/run.py {shlex.join([name, *_given(sys.argv[1:])])}"
        heading += f", {restricted.strip()}" if restricted else ""
        kept[name, restricted] = f"{heading}\n{rest}\n\n{command}\n\n{machine()}, {date.today()}."
        print("\n" + kept[name, restricted], flush=True)
        if options.out:  # as each target finishes
            order = sorted(kept, key=lambda key: (list(TARGETS).index(key[0]), key[1]))
            options.out.write_text("\n\n".join([_TITLE, *(kept[key] for key in order), _NOTES.read_text()]))


_NOTES = Path(__file__).with_name("NOTES.md")
_TITLE = """# Speed and memory

Written by `python benchmarks/speed/run.py all --out benchmarks/speed/RESULTS.md`; a target that is measured again takes
its own section's place, one for each set of instructions. "bundled" is an EfficientNet-lite0; other teachers have
random weights, seed 0. Median (minimum to maximum) of repeats that alternate with what they are compared with."""


def _given(arguments: list[str]) -> list[str]:
    """Options of the command line, without the targets and the file to write."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    options = arguments[first:]
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    return options


def _sections(path: Path) -> dict[tuple[str, str], str]:
    """What a file of results says of each target and restriction, by the command at the section's end."""
    text = path.read_text().partition("\n\n## ")[0].rstrip() if path.exists() else ""
    parts = re.split(r"\n\n(?=### )", text)
    found = [
        (re.search(r"\n    (.*)python benchmarks/speed/run\.py (\w+)[^\n]*\n\n[^\n]+$", part), part) for part in parts
    ]
    return {(match[2], match[1]): part for match, part in found if match}


if __name__ == "__main__":
    main()
