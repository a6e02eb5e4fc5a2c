"""The teachers at hand: how well they tell classes apart, how long they take, how large they are.

    python benchmarks/accuracy/run.py fit --setting one --teacher bundled --precision float32 --fashion-test 200
    python benchmarks/accuracy/teachers.py

AUROC is read from rows.csv, which run.py writes. Times are measured here, on photographs of cats: with what the
processor can do, and in another process restricted to AVX2 and float32. Writes teachers.csv and TEACHERS.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from data import NAMES, assets
from run import extractor

from skl_transformaly import TransformalyDetector, save

sys.path.append(str(Path(__file__).parents[1] / "speed"))

from harness import machine

TEACHERS = {"bundled": "bundled EfficientNet-lite0", "vit_tiny": "ViT-Tiny/16"}
DATA = dict(zip(NAMES, ("CIFAR-10", "Fashion-MNIST", "View", "cats vs dogs", "chest X-rays (Covid19)")))
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
HEAD = """\
# Teachers

`python benchmarks/accuracy/teachers.py --images {images} --repeats {repeats}`: AUROC from rows.csv (`run.py fit`): mean
over classes, each in turn normal, per cent. Times: {images} photographs of cats learned and as many
others scored, from files, the default detector; medians of {repeats}, milliseconds an image.

{machine}. Load of the machine, by all that ran on it: {load:.1f}.

"""


def photographs(split: str, count: int) -> list[Path]:
    """Files of real photographs, some 250 pixels wide."""
    return sorted((assets() / "data" / "cats_vs_dogs" / split).rglob("*.jpg"))[:count]


def measure(teacher: str, precision: str, images: int, repeats: int) -> dict[str, float | str]:
    """Seconds an image of fit and score, and bytes of the weights and of the model file."""
    normal, new = photographs("train", images), photographs("test", images)
    fits, scores = [], []
    for number in [min(20, images), *[images] * repeats]:  # the first warms up
        start = time.perf_counter()
        detector = TransformalyDetector(extractor(teacher, precision), random_state=0).fit(normal[:number])
        fitted = time.perf_counter()
        detector.score_samples(new[:number])
        fits.append((fitted - start) / number)
        scores.append((time.perf_counter() - fitted) / len(new[:number]))
    with tempfile.TemporaryDirectory() as folder:
        save(detector, Path(folder) / "model.tfm")
        size = (Path(folder) / "model.tfm").stat().st_size
    network = detector.extractor_.teacher_.model
    return {
        "fit": statistics.median(fits[1:]),
        "score": statistics.median(scores[1:]),
        "precision": detector.extractor_.precision_,
        "weights": sum(values.numel() * values.element_size() for values in network.state_dict().values()),
        "model": size,
        "machine": machine(),
    }


def elsewhere(teacher: str, precision: str, options: argparse.Namespace, environment: dict[str, str]) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", teacher, "--precision", precision]
    command += ["--images", str(options.images), "--repeats", str(options.repeats)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def auroc(rows: list[dict[str, str]], teacher: str, data: str) -> str:
    """Mean over classes, each in turn normal, in per cent."""
    wanted = {"teacher": teacher, "data": data, "setting": "one class normal", "method": "all spaces"}
    found = [float(row["auroc"]) for row in rows if wanted.items() <= row.items()]
    return f"{100 * statistics.mean(found):.1f}" if found else "not measured"


def column(teacher: str, rows: list[dict[str, str]], options: argparse.Namespace) -> dict[str, str]:
    """What the table has of one teacher."""
    fast, slow = elsewhere(teacher, "auto", options, {}), elsewhere(teacher, "float32", options, AVX2)
    return {
        "machine": fast["machine"],
        **{f"AUROC, {title}": auroc(rows, teacher, data) for data, title in DATA.items()},
        "precision here": fast["precision"],
        "fit, ms an image": f"{1e3 * fast['fit']:.0f}",
        "fit, ms an image, AVX2 and float32": f"{1e3 * slow['fit']:.0f}",
        "score, ms an image": f"{1e3 * fast['score']:.0f}",
        "score, ms an image, AVX2 and float32": f"{1e3 * slow['score']:.0f}",
        "weights, MB": f"{fast['weights'] / 1e6:.0f}",
        "model file with the weights, MB": f"{fast['model'] / 1e6:.0f}",
    }


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=here / "rows.csv")
    parser.add_argument("--out", type=Path, default=here, help="the folder of teachers.csv and TEACHERS.md")
    parser.add_argument("--auroc", action="store_true", help="only AUROC anew, by rows.csv; times stay as they are")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=list(TEACHERS), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.precision, options.images, options.repeats)))
        return
    rows = list(csv.DictReader(options.rows.open(encoding="utf-8")))
    if options.auroc:
        with (options.out / "teachers.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        known = {f"AUROC, {title}": data for data, title in DATA.items()}
        lines = [
            [line[0], *(auroc(rows, teacher, known[line[0]]) for teacher in TEACHERS)] if line[0] in known else line
            for line in lines
        ]
        write(options.out, lines, (options.out / "TEACHERS.md").read_text(encoding="utf-8").partition("| ")[0])
        return
    columns = {title: column(teacher, rows, options) for teacher, title in TEACHERS.items()}
    machines = [found.pop("machine") for found in columns.values()]
    lines = [["", *columns], *([name, *(c[name] for c in columns.values())] for name in next(iter(columns.values())))]
    head = HEAD.format(images=options.images, repeats=options.repeats, machine=machines[0], load=os.getloadavg()[1])
    write(options.out, lines, head)


def write(folder: Path, lines: list[list[str]], head: str) -> None:
    """The table as teachers.csv and, below `head`, as TEACHERS.md."""
    with (folder / "teachers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    table = [f"| {' | '.join(line)} |" for line in lines]
    table.insert(1, "|---" * len(lines[0]) + "|")
    (folder / "TEACHERS.md").write_text(head + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore", UserWarning)  # of few images
    main()
