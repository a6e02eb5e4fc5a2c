"""Every target of speed and memory beside what is measured, in one run.

    python benchmarks/speed/run.py all --out benchmarks/speed/RESULTS.md
    python benchmarks/speed/run.py score epoch --models vit_tiny_patch16_224

Ratios are of timings that alternate within the run, so a machine whose speed drifts does not move them; each figure is
the median of five, with minimum and maximum. The floor is the floating-point operations of the work over the rate that
one large matrix product reaches in the same precision at that moment. Nothing is compared with an earlier run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from baselines import PlainLoop, plain_timm
from harness import (
    REPEATS,
    Timing,
    block_and_teacher_flops,
    interleaved,
    machine,
    matrix_product,
    noise,
    ratio,
    table,
    teacher,
)

from skl_transformaly.utils._torch import PRECISIONS

PAPER_EPOCHS, BATCH, BLOCKS = 30, 32, 10
BATCHES = 4  # that are scored in a row


def fit(options: argparse.Namespace) -> str:
    """Whole fit against the plain loop at the paper's settings."""
    from skl_transformaly import BlockStudents, TransformalyDetector

    rows = []
    for model, n in zip(options.models, options.images):
        images = noise(n)
        plain = teacher(model, precision="float32")
        loop = PlainLoop(plain, BLOCKS)
        batch = plain.preprocess(images[:BATCH])
        detector = TransformalyDetector(teacher(model), students=BlockStudents(n_blocks=BLOCKS), random_state=0)
        times = interleaved({"fit": partial(detector.fit, images), "plain": partial(loop.step, batch)}, options.repeats)
        per_image = Timing([s / n for s in times["fit"].seconds])
        plain_fit = Timing([PAPER_EPOCHS * s / BATCH for s in times["plain"].seconds])
        rows.append([model, str(n), str(detector.students_.max_epochs), per_image.show(), plain_fit.show(digits=0),
                     ratio(plain_fit, per_image).show(1, "x", 1)])  # fmt: skip
    header = [
        "teacher",
        "images",
        "epochs",
        "fit, an image",
        f"plain loop, an image in {PAPER_EPOCHS} epochs",
        "times as fast",
    ]
    return (
        f"### Fit against the plain loop (target: 20 times as fast)\n\n{table(header, rows)}\n\n"
        "`TransformalyDetector.fit` with the defaults, scoring of the training images included; a step of the plain "
        f"loop (batch {BATCH}, {BLOCKS} students, float32), times {PAPER_EPOCHS} epochs."
    )


def epoch(options: argparse.Namespace) -> str:
    """One epoch of all students against the floor."""
    from skl_transformaly import BlockStudents

    rows = []
    for model, n in zip(options.models, options.images):
        images = noise(n)
        extractor = teacher(model)
        product, operations = matrix_product(PRECISIONS[extractor.precision_], extractor._parameter().device.type)
        block, _ = block_and_teacher_flops(extractor)

        def train(epochs: int, extractor: Any = extractor, images: np.ndarray = images) -> Callable[[], Any]:
            students = BlockStudents(n_blocks=2, max_epochs=epochs, random_state=0)
            return lambda: students.fit(images, extractor=extractor)

        def products(product: Callable[[], Any] = product) -> None:
            for _ in range(10):
                product()

        times = interleaved({"product": products, "three": train(3), "one": train(1)}, options.repeats)
        one_epoch = Timing([(b - a) / 2 / 2 for a, b in zip(times["one"].seconds, times["three"].seconds)])
        floor = Timing([3 * block * n / (10 * operations / s) for s in times["product"].seconds])
        per_image = Timing([s / n for s in one_epoch.seconds])
        rows.append([model, str(n), extractor.precision_, per_image.show(),
                     Timing([s / n for s in floor.seconds]).show(),
                     ratio(floor, one_epoch).show(100, "%", 0)])  # fmt: skip
    header = ["teacher", "images", "precision", "a student's epoch, an image", "floor", "share of the floor's speed"]
    return (
        f"### One training epoch (target: 60 % of the floor's speed)\n\n{table(header, rows)}\n\nThree epochs less "
        "one, of two students; floor: 3 block-forwards an image."
    )


def score(options: argparse.Namespace) -> str:
    """The whole method's scoring against timm's embedding alone, and against the floor."""
    from skl_transformaly import BlockStudents
    from skl_transformaly.students._imitation import Comparer

    rows = []
    for model in options.models:
        extractor = teacher(model)
        plain = teacher(model, precision="float32")
        images = noise(BATCH)
        students = BlockStudents(n_blocks=BLOCKS, max_epochs=1, random_state=0).fit(images[:8], extractor=extractor)
        batch, plain_batch = extractor.preprocess(images), plain.preprocess(images)
        product, operations = matrix_product(PRECISIONS[extractor.precision_], batch.device.type)
        block, whole = block_and_teacher_flops(extractor)

        def products(product: Callable[[], Any] = product) -> None:
            for _ in range(10):
                product()

        actions = {
            "product": products,
            "score": partial(_each, BATCHES, partial(Comparer(extractor, students), batch)),
            "timm": partial(_each, BATCHES, plain_timm(plain, plain_batch)),
        }
        times = interleaved(actions, options.repeats)
        floor = Timing(
            [BATCHES * BATCH * (whole + BLOCKS * block) / (10 * operations / s) for s in times["product"].seconds]
        )
        rows.append([
            model, extractor.precision_,
            *(Timing([s / BATCH / BATCHES for s in t.seconds]).show() for t in (times["score"], times["timm"], floor)),
            ratio(times["score"], times["timm"]).show(1, "", 2), ratio(floor, times["score"]).show(100, "%", 0),
        ])  # fmt: skip
    header = ["teacher", "precision", "score, an image", "timm's embedding, float32", "floor", "score / timm",
              "share of the floor's speed"]  # fmt: skip
    return (
        "### Scoring (targets: no slower than timm's embedding alone; 60 % of the floor's speed)\n\n"
        f"{table(header, rows)}\n\nEmbedding and {BLOCKS} discrepancies of {BATCHES} preprocessed batches of {BATCH}, "
        "one after the other, as a folder is scored."
    )


def _each(times: int, action: Callable[[], Any]) -> None:
    for _ in range(times):
        action()


def memory(options: argparse.Namespace) -> str:
    """Growth of a fit's memory with the number of images."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for n in options.memory_images:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(options.models[0], n, sender))
        process.start()
        sender.close()
        peak = receiver.recv()
        process.join()
        rows.append([f"{n:,}", f"{peak:.0f} MiB"])
    return (
        "### Memory of fit (target: 1 GiB whatever the number of images)\n\n"
        f"{table(['images', 'peak of anonymous memory'], rows)}\n\n"
        "Growth of a process's own memory in `TransformalyDetector.fit`, the images and the loaded teacher aside "
        f"({options.models[0]}, 2 students, 1 epoch; the number of students adds only their weights)."
    )


def _peak(model: str, n: int, connection: Any) -> None:
    from skl_transformaly import BlockStudents, TransformalyDetector

    images = noise(n)
    extractor = teacher(model)
    students = BlockStudents(n_blocks=2, max_epochs=1)
    TransformalyDetector(extractor, students=students, random_state=0).fit(images[:64])  # what kernels keep for good
    before = _anonymous()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    TransformalyDetector(extractor, students=students, random_state=0).fit(images)
    done.set()
    watcher.join()
    connection.send(peak - before)


def _anonymous() -> float:
    """MiB that this process asked for; mapped files, which the system drops at need, are not counted."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def growth(options: argparse.Namespace) -> str:
    """Exponent of the time of fit in the number of images."""
    from skl_transformaly import BlockStudents, TransformalyDetector

    detector = TransformalyDetector(
        teacher(options.models[0]), students=BlockStudents(n_blocks=2, max_epochs=1), random_state=0
    )
    numbers = options.growth_images
    images = noise(max(numbers))
    detector.fit(images[:64])
    rounds = []
    for _ in range(options.growth_rounds):
        seconds = []
        for n in numbers:
            start = time.perf_counter()
            detector.fit(images[:n])
            seconds.append(time.perf_counter() - start)
        rounds.append(seconds)
    exponents = Timing([float(np.polyfit(np.log(numbers), np.log(seconds), 1)[0]) for seconds in rounds])
    rows = [[f"{n:,}", Timing([r[i] for r in rounds]).show(1, "s", 1)] for i, n in enumerate(numbers)]
    return (
        "### Growth (target: exponent of at most 1.05)\n\n"
        f"{table(['images', 'fit'], rows)}\n\nExponent by least squares over logarithms: {exponents.show(1, '', 3)}; "
        f"rounds: {options.growth_rounds} ({options.models[0]}, 2 students, 1 epoch)."
    )


def grid(options: argparse.Namespace) -> str:
    """A grid of ten values over five folds with ``memory=``, against the five fits alone."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    from skl_transformaly import BlockStudents, TransformalyDetector
    from skl_transformaly.model_selection import NormalOnly, OneClassSplit

    rng = np.random.default_rng(0)
    X = noise(120)
    y = np.where(rng.permutation(len(X)) < 100, 1, -1)
    detector = TransformalyDetector(teacher(options.models[0]), students=BlockStudents(n_blocks=BLOCKS), random_state=0)
    split = OneClassSplit(5, random_state=0)
    values = np.linspace(0.5, 0.95, 10).tolist()

    def search() -> None:
        with tempfile.TemporaryDirectory() as folder:
            candidate = NormalOnly(clone(detector).set_params(memory=folder))
            GridSearchCV(
                candidate, {"estimator__explained_variance": values}, cv=split, scoring="roc_auc", refit=False
            ).fit(X, y)

    def fits() -> None:
        for train, test in split.split(X, y):
            clone(detector).fit(X[train]).score_samples(X[test])

    times = interleaved({"grid": search, "fits": fits}, options.repeats)
    rows = [[times["grid"].show(1, "s", 1), times["fits"].show(1, "s", 1),
             ratio(times["grid"], times["fits"]).show(1, "", 3)]]  # fmt: skip
    return (
        "### Explained-variance grid of ten values over five folds, with `memory=` (target: 1.15 times the fits)\n\n"
        f"{table(['grid', 'five fits, each with its scoring', 'grid / fits'], rows)}\n\n{len(X)} images, cache "
        f"empty at the start of each grid; {options.models[0]}."
    )


def imports(options: argparse.Namespace) -> str:
    """Time of ``import skl_transformaly``, and what it loads."""
    code = (
        "import time; a = time.perf_counter(); import skl_transformaly; b = time.perf_counter(); import sys; "
        "print(b - a, [m for m in ('torch', 'timm', 'sklearn', 'numpy') if m in sys.modules])"
    )
    seconds, loaded = [], ""
    for _ in range(options.repeats):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        first, loaded = answer.strip().split(" ", 1)
        seconds.append(float(first))
    return (
        "### Import (target: under 0.5 s, no torch)\n\n"
        f"`import skl_transformaly`: {Timing(seconds).show()}; of torch, timm, sklearn and numpy it loads {loaded}."
    )


def profile(options: argparse.Namespace) -> str:
    """Where the time of scoring goes, by operation."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from skl_transformaly import BlockStudents
    from skl_transformaly.students._imitation import Comparer

    columns, totals = [], []
    for model in options.models:
        extractor = teacher(model)
        images = noise(BATCH)
        students = BlockStudents(n_blocks=BLOCKS, max_epochs=1, random_state=0).fit(images[:8], extractor=extractor)
        batch = extractor.preprocess(images)
        compare = Comparer(extractor, students)
        compare(batch)
        with record(activities=[ProfilerActivity.CPU]) as found:
            _each(options.repeats, partial(compare, batch))
        times: dict[str, float] = {}
        for event in found.key_averages():
            name = _OPERATIONS.get(event.key, _OTHER)
            times[name] = times.get(name, 0) + event.self_cpu_time_total
        columns.append(times)
        totals.append(sum(times.values()))
    names = list(dict.fromkeys([*_OPERATIONS.values(), _OTHER]))
    rows = [
        [name, *(f"{100 * times.get(name, 0) / total:.0f} %" for times, total in zip(columns, totals))]
        for name in names
    ]
    return (
        f"### Profile of scoring\n\n{table(['operation', *options.models], rows)}\n\nShare of the time of "
        f"{options.repeats} batches of {BATCH}, embedding and {BLOCKS} discrepancies, as torch's profiler counts. Only "
        "products are in the floor."
    )


_OTHER = "others"
_OPERATIONS = {
    "mkldnn::_linear_pointwise": "products of linear layers, with bias and GELU",
    "aten::addmm": "products of linear layers, with bias and GELU",
    "aten::bmm": "products of attention",
    "aten::mkldnn_convolution": "patch embedding",
    "aten::_softmax": "softmax of attention",
    "aten::native_layer_norm": "layer normalisation",
    "aten::add": "residual sums",
    "aten::copy_": "copies and changes of precision",
    "aten::gelu": "GELU",
    "aten::sub": "discrepancies",
    "aten::pow": "discrepancies",
    "aten::sum": "discrepancies",
    "aten::mean": "discrepancies",
}


TARGETS: dict[str, Callable[[argparse.Namespace], str]] = {
    f.__name__: f for f in (imports, score, profile, epoch, fit, grid, memory, growth)
}


def main() -> None:
    """Measure what is asked for, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["vit_tiny_patch16_224", "vit_base_patch16_224"],
        help="timm names, weights are random; grid, memory and growth take the first (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[300, 96],
        help="for fit and epoch, of each model (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each timing (default: %(default)s)")
    parser.add_argument("--memory-images", type=int, nargs="+", default=[500, 5000, 20000], help="default: %(default)s")
    parser.add_argument(
        "--growth-images", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000], help="default: %(default)s"
    )
    parser.add_argument("--growth-rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    options = parser.parse_args()
    if options.out and not options.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.absolute().parent}")
    if len(options.images) < len(options.models):
        parser.error("--images needs a number for each of --models")
    names = list(TARGETS) if "all" in options.targets else options.targets
    kept = _sections(options.out) if options.out else {}
    for name in names:
        section = TARGETS[name](options)
        command = f"    python benchmarks/speed/run.py {shlex.join([name, *_given(sys.argv[1:])])}"
        kept[name] = f"{section}\n\n{command}\n\n{machine()}, {date.today()}."
        print("\n" + kept[name], flush=True)
        if options.out:  # as each target finishes
            parts = [kept[target] for target in TARGETS if target in kept]
            options.out.write_text("\n\n".join([_TITLE, *parts, _NOTES.read_text()]))


_NOTES = Path(__file__).with_name("NOTES.md")
_TITLE = """# Speed and memory

Written by `python benchmarks/speed/run.py all --out benchmarks/speed/RESULTS.md`; a target that is measured again takes
its own section's place. Teachers with random weights, seed 0. Median (minimum to maximum) of repeats that alternate
with what they are compared with."""


def _given(arguments: list[str]) -> list[str]:
    """Options of the command line, without the targets and the file to write."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    options = arguments[first:]
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    return options


def _sections(path: Path) -> dict[str, str]:
    """What a file of results says of each target, by the command at its end."""
    text = path.read_text().partition("\n\n## ")[0].rstrip() if path.exists() else ""
    parts = re.split(r"\n\n(?=### )", text)
    found = [(re.search(r"run\.py (\w+)[^\n]*\n\n[^\n]+$", part), part) for part in parts]
    return {match[1]: part for match, part in found if match}


if __name__ == "__main__":
    main()
