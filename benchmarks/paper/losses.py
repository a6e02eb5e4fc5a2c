"""How the losses of the rivals that train fall, on one class.

    python benchmarks/paper/losses.py --data cifar10 --root DIR --weights FILE --classes airplane

Trains each on the images of the first class (or of the first of --classes) with the first seed; writes
OUT/losses_DATA.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from options import command, complete, guarded, publish
from options import parser as common_options
from rivals import TRAINED_RIVALS
from study import Study

SHARES = (0, 0.25, 0.5, 0.75, 1)


def report(histories: dict[str, list[float]], title: str, shown: str) -> str:
    """Losses at `SHARES` of all epochs as Markdown."""
    lines = [
        f"### {title}",
        "",
        "| rival | epochs | first epoch | after 1/4 | after 1/2 | after 3/4 | last |",
        "|---" * 7 + "|",
    ]
    for name, history in histories.items():
        at = [history[round(share * (len(history) - 1))] for share in SHARES]
        lines.append(f"| {name} | {len(history)} | " + " | ".join(f"{loss:.4g}" for loss in at) + " |")
    return "\n".join([*lines, "", "Mean loss over the images of an epoch.", "", f"    {shown}", ""])


def main(arguments: list[str] | None = None) -> None:
    parser = common_options(__doc__)
    options = complete(parser, parser.parse_args(arguments))
    shown = command("losses.py", sys.argv[1:] if arguments is None else arguments)
    study = Study(options)
    label = study.labels()[0]
    rows, _ = study.task("unimodal", label)
    histories = {}
    for name in TRAINED_RIVALS:
        if name in options.rivals:
            histories[name] = list(np.asarray(study.fit_rival(name, rows, options.seeds[0]).history_))
    if not histories:
        parser.error(f"--rivals must name one of {', '.join(TRAINED_RIVALS)}")
    text = report(histories, f"{study.data.name}, {study.data.class_names[label]}", shown)
    path = options.out / f"losses_{study.data.name}.md"
    publish(text, path)


if __name__ == "__main__":
    guarded(main)
