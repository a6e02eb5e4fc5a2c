"""Arithmetic for ten million images: what one core does, measured in this run, and the cluster that follows from it.

    python benchmarks/speed/ten_million.py --out benchmarks/speed/TEN_MILLION.md

Seconds are processor time of one process whose torch has one thread, so other programs on the machine hardly count, and
a cluster of workers with one thread for each core is what they add up to. Weights are random: speed does not depend on
them. The photographs are the two that come with scikit-learn, shrunk or tiled, as JPEG of quality 90. They are decoded
as a detector does it, large ones at a part of their size, and read from the system's page cache, so reading from
storage is arithmetic and not measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cloudpickle
import numpy as np
import torch
from harness import REPEATS, Timing, machine, noise, table, teacher
from PIL import Image
from sklearn.datasets import load_sample_images

from skl_transformaly import BlockStudents, RidgeStudents, TransformalyDetector
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import Comparer

IMAGES = 10_000_000
DAY = 86_400
CORES_PER_MACHINE = 32
PARTITION = 256  # the default of map_detector
FITTED_ON = 10_000  # images of the fit that the arithmetic is about
TEACHERS = ("vit_tiny_patch16_224", "bundled", "vit_base_patch16_224")
GPU = not torch.cuda.is_available() and "not measured: no GPU at hand"


class Cost(Timing):
    """Seconds of one image, from several repeats."""

    def cells(self) -> list[str]:
        """Milliseconds as median (minimum to maximum), and images in a second."""
        low, high = min(self.seconds) * 1e3, max(self.seconds) * 1e3
        return [f"{self.median * 1e3:.3g} ({low:.3g} to {high:.3g})", f"{1 / self.median:.3g}"]


def cost(
    action: Callable[[], Any],
    images: int,
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    warm: bool = True,
) -> Cost:
    """Measure `action`, which handles so many images, after one warm-up where `warm`."""
    if warm:
        action()
    seconds = []
    for _ in range(repeats):
        start = clock()
        action()
        seconds.append((clock() - start) / images)
    return Cost(seconds)


def photographs(folder: Path, width: int, count: int) -> list[str]:
    """JPEG files of `width` pixels and 2/3 of that: scikit-learn's photographs, shrunk, or tiled and cut."""
    paths = []
    for number in range(count):
        pixels = load_sample_images().images[number % 2]
        pixels = np.roll(pixels, 37 * number, axis=1)
        height = round(width * 2 / 3)
        if width < pixels.shape[1]:
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        else:
            times = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]), 1)
            image = Image.fromarray(np.tile(pixels, times)[:height, :width])
        path = folder / f"{width}_{number}.jpg"
        image.save(path, quality=90)
        paths.append(str(path))
    return paths


@dataclass
class Size:
    """What one size of photographs costs before the network sees it."""

    name: str
    bytes: float
    decode: Cost
    resize: Cost

    @property
    def before(self) -> float:
        """Seconds of one image until it is ready for the network."""
        return self.decode.median + self.resize.median


@dataclass
class Model:
    """What one teacher with ten students costs."""

    name: str
    embed: Cost
    score: Cost
    solved: Cost
    epoch: float
    once: float
    layer_bytes: float
    pickled_bytes: int
    gpu: Cost | None


def measure_size(width: int, extractor: Any, folder: Path, repeats: int) -> Size:
    paths = photographs(folder, width, count=8 if width > 2000 else 32)
    images = as_images(paths).reduced(extractor.image_size_)  # as a detector decodes them
    decoded = list(images)
    with Image.open(paths[0]) as photograph:
        name = f"{photograph.width} x {photograph.height}"
    return Size(
        name,
        statistics.mean(Path(path).stat().st_size for path in paths),
        cost(lambda: list(images), len(paths), repeats),
        cost(lambda: extractor.preprocess(decoded), len(paths), repeats),
    )


def measure_model(name: str, blocks: int, images: int, repeats: int) -> tuple[Model, TransformalyDetector]:
    """Students in closed form, by which images are scored, and the cost of training others."""
    extractor = teacher(name, device="cpu")
    X = noise(images)

    def fit(epochs: int) -> BlockStudents:
        students = BlockStudents(n_blocks=blocks, max_epochs=epochs, max_steps=None, random_state=0)
        return students.fit(X, extractor=extractor)

    def solve() -> None:
        students = RidgeStudents(n_blocks=blocks)
        students.fit(X, extractor=extractor).measure_training(as_images(X))

    BlockStudents(n_blocks=1, max_epochs=1, random_state=0).fit(X[:8], extractor=extractor)  # warms up
    short, long = (
        cost(lambda epochs=epochs: fit(epochs), images, max(1, repeats // 2), warm=False) for epochs in (1, 3)
    )
    epoch = (long.median - short.median) / 2
    detector = TransformalyDetector(
        teacher_parameters(extractor), students=RidgeStudents(n_blocks=blocks), random_state=0
    ).fit(X)
    batch = extractor.preprocess(noise(16))
    entering: list[torch.Tensor] = []
    extractor.embed(batch, lambda index, block, args, kwargs, output: entering.append(args[0]))
    layer = entering[-1][0]
    model = Model(
        name,
        cost(lambda: detector.extractor_.embed(batch), len(batch), repeats),
        cost(partial(Comparer(detector.extractor_, detector.students_), batch), len(batch), repeats),
        cost(solve, images, max(1, repeats // 2), warm=False),
        epoch,
        max(0.0, short.median - epoch),
        layer.numel() * layer.element_size(),
        len(cloudpickle.dumps(detector)),
        None if GPU else measure_gpu(name, blocks, repeats),
    )
    return model, detector


def teacher_parameters(extractor: Any) -> Any:
    """The same teacher, unfitted, as a detector takes it."""
    return type(extractor)(**extractor.get_params())


def measure_gpu(name: str, blocks: int, repeats: int) -> Cost:
    extractor = teacher(name, device="cuda", batch_size=256)
    students = RidgeStudents(n_blocks=blocks).fit(noise(32), extractor=extractor)
    batch = extractor.preprocess(noise(256))
    # results come back: synchronous
    return cost(partial(Comparer(extractor, students), batch), len(batch), repeats, time.perf_counter)


def rates(sizes: Sequence[Size], models: Sequence[Model]) -> str:
    rows = []
    for size in sizes:
        rows.append([f"decode a JPEG of {size.name}", *size.decode.cells()])
        rows.append(["resize it to 224 x 224", *size.resize.cells()])
    for model in models:
        rows.append([f"{model.name}: embedding alone", *model.embed.cells()])
        rows.append([f"{model.name}: whole method", *model.score.cells()])
    return table(["stage", "ms an image: median (min to max)", "images a second and core"], rows)


def reading(sizes: Sequence[Size]) -> str:
    rows = []
    for size in sizes:
        total = IMAGES * size.bytes
        rows.append(
            [size.name, f"{size.bytes / 1e3:.0f} kB", f"{total / 1e12:.2f} TB", f"{total / DAY / 1e6:.0f} MB/s"]
        )
    return table(["photographs", "mean file", "all", "to be read in a day at"], rows)


def cluster(sizes: Sequence[Size], models: Sequence[Model]) -> str:
    rows = []
    for model in models:
        for size in sizes:
            seconds = size.before + model.score.median
            cores = math.ceil(IMAGES * seconds / DAY)
            rows.append(
                [
                    model.name,
                    size.name,
                    f"{seconds * 1e3:.3g}",
                    f"{IMAGES * seconds / 3600:,.0f}",
                    f"{cores:,}",
                    f"{math.ceil(cores / CORES_PER_MACHINE):,}",
                    f"{100 * size.before / seconds:.0f} %",
                ]
            )
    header = ["teacher", "photographs", "ms an image", "core hours", "cores for a day"]
    return table([*header, f"machines of {CORES_PER_MACHINE} cores", "of which decoding and resizing"], rows)


def gpus(sizes: Sequence[Size], models: Sequence[Model]) -> str:
    rows = []
    for model in models:
        rate = None if model.gpu is None else 1 / model.gpu.median
        row = [model.name, GPU or f"{rate:,.0f}", "not measured" if rate is None else f"{IMAGES / rate / 3600:.1f}"]
        row += ["not measured" if rate is None else f"{rate * size.before:.0f}" for size in sizes]
        rows.append(row)
    rows.append(["any, for each 1,000 images a second", "", "", *(f"{1000 * size.before:.1f}" for size in sizes)])
    header = ["teacher", "images a second and GPU", "GPU hours"]
    return table([*header, *(f"cores that feed one, {size.name}" for size in sizes)], rows)


def fitting(models: Sequence[Model], blocks: int) -> str:
    trained = BlockStudents()
    epochs = min(trained.max_epochs, (trained.max_steps or np.inf) * trained.batch_size / FITTED_ON)
    rows = []
    for model in models:
        hours = FITTED_ON * (model.once + epochs * model.epoch) / 3600
        rows.append(
            [
                model.name,
                f"{model.solved.median * 1e3:.3g}",
                f"{FITTED_ON * model.solved.median / 3600:.2f}",
                f"{model.once * 1e3:.3g}",
                f"{model.epoch * 1e3:.3g}",
                f"{hours:.2f}",
                f"{hours / blocks:.2f}",
                f"{FITTED_ON * model.layer_bytes / 1e9:.1f} GB",
            ]
        )
    header = [
        "teacher",
        "solved students: ms an image",
        "core hours",
        "trained students: ms an image, teacher and statistics",
        f"an epoch of {blocks}",
        f"core hours, {epochs:.3g} epochs",
        f"hours with n_jobs={blocks}, a core each",
        "one layer of activations",
    ]
    return table(header, rows)


def check(detector: TransformalyDetector, size: Size, model: Model, folder: Path, repeats: int) -> str:
    """The stages' sum beside the whole, measured through the public interface."""
    paths = sorted(str(path) for path in folder.glob(f"{size.name.partition(' ')[0]}_*.jpg"))
    whole = cost(lambda: detector.score_samples(paths), len(paths), repeats)
    total = size.before + model.score.median
    return (
        f"Check: `score_samples` on {len(paths)} files of {size.name} with {model.name} takes {whole.cells()[0]} ms an "
        f"image; the stages above add up to {total * 1e3:.3g} ms, {100 * total / whole.median:.0f} % of it."
    )


def page(sizes: Sequence[Size], models: Sequence[Model], blocks: int, checked: str, command: str) -> str:
    tasks = math.ceil(IMAGES / PARTITION)
    slow, fast = max(models, key=lambda m: m.score.median), min(models, key=lambda m: m.score.median)
    ready = ", ".join(f"{1 / size.before:,.0f} of {size.name}" for size in sizes)
    shares = table(
        ["decoding and resizing, beside the network's time", *(size.name for size in sizes)],
        [[m.name, *(f"{size.before / m.score.median:.2f} x" for size in sizes)] for m in models],
    )
    shortest = PARTITION * (min(size.before for size in sizes) + fast.score.median)
    longest = PARTITION * (max(size.before for size in sizes) + slow.score.median)
    pickles = ", ".join(f"{model.pickled_bytes / 1e6:.0f} MB for {model.name}" for model in models)
    return f"""# Ten million images

Written by `{command}`, seed 0, on {machine()}.

{__doc__.split(chr(10) * 2)[2].strip()}

A detector here has {blocks} students in closed form, and computes in the precision that `precision="auto"` takes on
this machine.

## One core

{rates(sizes, models)}

{checked}

## Bytes

{reading(sizes)}

Ten million scores are {IMAGES * 8 / 1e6:.0f} MB. A worker gets the detector once ({pickles})
and loads the teacher's weights from where they are. `map_detector` makes {tasks:,} tasks of {PARTITION} images,
of {shortest:.1f} to {longest:.0f} s each on one core. A worker that dies costs the task in its hands, and scores that
were not collected yet.

## A day on processors

Decoding, resizing and the whole method on the same core, one task a core:

{cluster(sizes, models)}

Twice the cores take half the time, until storage cannot give its bytes any faster: those to be read are the same
whatever the teacher.

## Where the bottleneck goes

A faster network leaves decoding as it is. A core makes so many photographs a second ready for the network: {ready}.
Nothing speeds that up but more cores or smaller files. Where the table says more than 1, or a GPU takes the network
over, the cores that decode, and behind them storage, set the pace.

{shares}

{gpus(sizes, models)}

## The fit before it

Cost grows in proportion to images. Of ten million, some thousands say what is normal; for {FITTED_ON:,}:

{fitting(models, blocks)}

Solved students need no activations, and `fit_detector` spreads them over as many cores as there are partitions
(`python benchmarks/speed/run.py workers`). Of trained ones, with `n_jobs`, as many layers as there are jobs and one
more are kept at a time, beside the two that the teacher fills.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the page there, too")
    parser.add_argument("--quick", action="store_true", help="does it run? the small teacher and few repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats, blocks = (2, 2) if options.quick else (REPEATS, 10)
    widths = (256, 1280) if options.quick else (256, 1280, 4480)
    models, sizes, checked = [], [], ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, model_name in enumerate(TEACHERS[:1] if options.quick else TEACHERS):
            model, detector = measure_model(model_name, blocks, 64 if number == 0 else 16, repeats)
            models.append(model)
            if number == 0:
                sizes = [measure_size(width, detector.extractor_, folder, repeats) for width in widths]
                checked = check(detector, sizes[1], model, folder, repeats)
            print(f"measured {model_name}", file=sys.stderr, flush=True)
    command = "python benchmarks/speed/ten_million.py" + (" --quick" if options.quick else "")
    text = page(sizes, models, blocks, checked, command)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
