"""Targets of time, each beside what it is compared with in the same run."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from baselines import PlainLoop, plain_timm
from harness import Timing, block_flops, flops, interleaved, matrix_product, noise, ratio, table, teacher

from skl_transformaly.images._images import as_images
from skl_transformaly.utils._torch import PRECISIONS

__all__ = ["epoch", "fit", "grid", "imports", "profile", "score"]

PAPER_EPOCHS, BATCH, BLOCKS = 30, 32, 10
BATCHES = 4  # that are scored in a row
EPOCHS = 10  # whose time is told from that of the teacher's pass, which takes much longer than one


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


def students_of(kind: str, **settings: Any) -> Any:
    """Students in closed form, "solved", or "trained" ones."""
    from skl_transformaly import BlockStudents, RidgeStudents

    if kind == "solved":
        return RidgeStudents(n_blocks=settings.get("n_blocks", BLOCKS))
    return BlockStudents(**{"n_blocks": BLOCKS, "random_state": 0, **settings})


def score(options: argparse.Namespace) -> str:
    """The whole method's scoring against timm's embedding alone, and against the floor."""
    from skl_transformaly.students._imitation import Comparer

    rows = []
    for model in options.models:
        extractor = teacher(model, precision=options.precision)
        plain = teacher(model, precision="float32")
        images = noise(BATCH)
        batch, plain_batch = extractor.preprocess(images), plain.preprocess(images)
        compare = {
            kind: Comparer(extractor, students_of(kind, max_epochs=1).fit(images, extractor=extractor))
            for kind in options.students
        }
        product, operations = matrix_product(PRECISIONS[extractor.precision_], batch.device.type)
        single, _ = matrix_product(torch.float32, batch.device.type)
        actions = {"product": partial(_each, 10, product), "single": partial(_each, 10, single)}
        actions |= {kind: partial(_each, BATCHES, partial(run, batch)) for kind, run in compare.items()}
        actions["timm"] = partial(_each, BATCHES, plain_timm(plain, plain_batch))
        times = interleaved(actions, options.repeats)
        whole = flops(extractor.embed, batch)
        for kind, run in compare.items():
            own = flops(run, batch) - whole
            # solved students compute in float32
            rate = times["single" if kind == "solved" else "product"]
            floor = Timing(
                [
                    BATCHES * (whole * a + own * b) / (10 * operations)
                    for a, b in zip(times["product"].seconds, rate.seconds)
                ]
            )
            shown = (Timing([s / BATCH / BATCHES for s in t.seconds]) for t in (times[kind], times["timm"], floor))
            rows.append([
                model, extractor.precision_, kind, *(timing.show() for timing in shown),
                ratio(times[kind], times["timm"]).show(1, "", 2), ratio(floor, times[kind]).show(100, "%", 0),
            ])  # fmt: skip
    header = ["teacher", "precision", "students", "score, an image", "timm's embedding, float32", "floor",
              "score / timm", "share of the floor's speed"]  # fmt: skip
    return (
        "### Scoring (targets: 0.6 of the time of timm's embedding in bfloat16, 1.25 in float32; 65 % of the floor's "
        f"speed)\n\n{table(header, rows)}\n\nEmbedding and {BLOCKS} discrepancies of {BATCHES} preprocessed batches of "
        f"{BATCH}, one after the other, as a folder is scored. The floor is of the products alone, solved students' in "
        "float32."
    )


def profile(options: argparse.Namespace) -> str:
    """Where the time of scoring goes, by operation."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from skl_transformaly.students._imitation import Comparer

    names, columns = [], []
    for model in options.models:
        extractor = teacher(model, precision=options.precision)
        images = noise(BATCH)
        batch = extractor.preprocess(images)
        for kind in options.students:
            compare = Comparer(extractor, students_of(kind, max_epochs=1).fit(images, extractor=extractor))
            compare(batch)
            with record(activities=[ProfilerActivity.CPU]) as found:
                _each(options.repeats, partial(compare, batch))
            times: dict[str, float] = {}
            for event in found.key_averages():
                name = _OPERATIONS.get(event.key, _OTHER)
                times[name] = times.get(name, 0) + event.self_cpu_time_total
            names.append(f"{model}, {kind}")
            columns.append(times)
    rows = [
        [name, *(f"{100 * times.get(name, 0) / sum(times.values()):.0f} %" for times in columns)]
        for name in dict.fromkeys([*_OPERATIONS.values(), _OTHER])
    ]
    return (
        f"### Profile of scoring\n\n{table(['operation', *names], rows)}\n\nShare of the time of {options.repeats} "
        f"batches of {BATCH}, embedding and {BLOCKS} discrepancies, as torch's profiler counts. Only products are in "
        "the floor."
    )


_OTHER = "others"
_OPERATIONS = {
    "mkldnn::_linear_pointwise": "products of linear layers, with bias and GELU",
    "aten::addmm": "products of linear layers, with bias and GELU",
    "aten::addmm_": "products of solved students",
    "aten::mm": "products of solved students",
    "aten::bmm": "products of attention",
    "aten::mkldnn_convolution": "convolutions",
    "aten::_slow_conv2d_forward": "convolutions",
    "aten::native_batch_norm": "normalisation",
    "aten::native_layer_norm": "normalisation",
    "aten::_softmax": "softmax of attention",
    "aten::add": "sums",
    "aten::add_": "sums",
    "aten::sub_": "sums",
    "aten::copy_": "copies and changes of precision",
    "aten::constant_pad_nd": "copies and changes of precision",
    "aten::fill_": "copies and changes of precision",
    "aten::gelu": "activations",
    "aten::hardtanh_": "activations",
    "aten::clamp_": "activations",
    "aten::clamp": "activations",
    "aten::sub": "discrepancies",
    "aten::pow": "discrepancies",
    "aten::sum": "discrepancies",
    "aten::mean": "discrepancies",
}


def epoch(options: argparse.Namespace) -> str:
    """One epoch of trained students against the floor."""
    from skl_transformaly import BlockStudents

    rows = []
    for model, n in zip(options.models, options.images):
        images = noise(n)
        extractor = teacher(model, precision=options.precision)
        product, operations = matrix_product(PRECISIONS[extractor.precision_], extractor._parameter().device.type)
        blocks, _ = block_flops(extractor)
        block = sum(blocks[-2:]) / 2

        def train(epochs: int, extractor: Any = extractor, images: np.ndarray = images) -> Callable[[], Any]:
            students = BlockStudents(n_blocks=2, max_epochs=epochs, max_steps=None, random_state=0)
            return lambda: students.fit(images, extractor=extractor)

        actions = {"product": partial(_each, 10, product), "more": train(1 + EPOCHS), "one": train(1)}
        times = interleaved(actions, options.repeats)
        one_epoch = Timing([(b - a) / EPOCHS / 2 for a, b in zip(times["one"].seconds, times["more"].seconds)])
        floor = Timing([3 * block * n / (10 * operations / s) for s in times["product"].seconds])
        per_image = Timing([s / n for s in one_epoch.seconds])
        rows.append([model, str(n), extractor.precision_, per_image.show(),
                     Timing([s / n for s in floor.seconds]).show(),
                     ratio(floor, one_epoch).show(100, "%", 0)])  # fmt: skip
    header = ["teacher", "images", "precision", "a student's epoch, an image", "floor", "share of the floor's speed"]
    return (
        f"### One training epoch (target: 60 % of the floor's speed)\n\n{table(header, rows)}\n\n{1 + EPOCHS} "
        "epochs less one, of the students of the last two blocks; floor: 3 block-forwards an image."
    )


def fit(options: argparse.Namespace) -> str:
    """Whole fit against one pass of the teacher, and against the plain loop at the paper's settings."""
    from skl_transformaly import TransformalyDetector

    rows = []
    for model, n in zip(options.models, options.images):
        images = noise(n)
        extractor = teacher(model, precision=options.precision)
        plain = teacher(model, precision="float32")
        loop, batch = PlainLoop(plain, BLOCKS), plain.preprocess(images[:BATCH])
        detectors = {
            kind: TransformalyDetector(extractor, students=students_of(kind), random_state=0)
            for kind in options.students
        }
        actions: dict[str, Callable[[], Any]] = {kind: partial(d.fit, images) for kind, d in detectors.items()}
        actions |= {"pass": partial(_pass, extractor, images), "plain": partial(loop.step, batch)}
        times = interleaved(actions, options.repeats)
        plain_fit = Timing([PAPER_EPOCHS * s / len(batch) for s in times["plain"].seconds])
        for kind in detectors:
            per_image = Timing([s / n for s in times[kind].seconds])
            rows.append([model, extractor.precision_, kind, str(n), per_image.show(),
                         ratio(times[kind], times["pass"]).show(1, "x", 2), plain_fit.show(digits=0),
                         ratio(plain_fit, per_image).show(1, "x", 1)])  # fmt: skip
    header = [
        "teacher", "precision", "students", "images", "fit, an image", "of one pass",
        f"plain loop, an image in {PAPER_EPOCHS} epochs", "times as fast",
    ]  # fmt: skip
    return (
        "### Fit (targets, solved students: 2.5 times one pass; 60 times as fast as the plain loop with a ViT-Tiny, "
        f"120 with a ViT-B)\n\n{table(header, rows)}\n\n"
        "`TransformalyDetector.fit` with the defaults but for the students, held-out scores of the training images "
        "included; one pass of the teacher as this library runs it, in the same precision, resizing "
        "included ([FIT.md](FIT.md) compares with plain timm); a step of the plain loop (batch "
        f"{BATCH}, {BLOCKS} students, float32), times {PAPER_EPOCHS} epochs."
    )


@torch.no_grad()
def _pass(extractor: Any, images: np.ndarray) -> None:
    with extractor.compute():
        for _, pixels in as_images(images).batches(BATCH):
            extractor.teacher_.model.forward_features(extractor.preprocess(pixels))


def grid(options: argparse.Namespace) -> str:
    """A grid of ten values over five folds with ``memory=``, against the five fits alone."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    from skl_transformaly import TransformalyDetector
    from skl_transformaly.model_selection import NormalOnly, OneClassSplit

    rng = np.random.default_rng(0)
    X = noise(120)
    y = np.where(rng.permutation(len(X)) < 100, 1, -1)
    split = OneClassSplit(5, random_state=0)
    values = np.linspace(0.5, 0.95, 10).tolist()
    rows = []
    for model in options.models:
        detector = TransformalyDetector(teacher(model, precision=options.precision), random_state=0)

        def search(detector: Any = detector) -> None:
            with tempfile.TemporaryDirectory() as folder:
                candidate = NormalOnly(clone(detector).set_params(memory=folder))
                GridSearchCV(
                    candidate, {"estimator__explained_variance": values}, cv=split, scoring="roc_auc", refit=False
                ).fit(X, y)

        def fits(detector: Any = detector) -> None:
            for train, test in split.split(X, y):
                clone(detector).fit(X[train]).score_samples(X[test])

        times = interleaved({"grid": search, "fits": fits}, options.repeats)
        rows.append([model, times["grid"].show(1, "s", 1), times["fits"].show(1, "s", 1),
                     ratio(times["grid"], times["fits"]).show(1, "", 3)])  # fmt: skip
    return (
        "### Explained-variance grid of ten values over five folds, with `memory=` (target: 1.15 times the fits)\n\n"
        f"{table(['teacher', 'grid', 'five fits, each with its scoring', 'grid / fits'], rows)}\n\n{len(X)} images, "
        "cache empty at the start of each grid; defaults."
    )


def _each(times: int, action: Callable[[], Any]) -> None:
    for _ in range(times):
        action()
