"""ONNX files beside torch: do they score the same, how fast, and how large.

    python benchmarks/export.py digits
    python benchmarks/export.py covid19 --root DIR --weights FILE
    python benchmarks/export.py cifar10 --root FILE --weights FILE --out benchmarks/export.md

Data as in ``auroc.py``. One class is normal; the detector is fitted in float32 and exported, and both score the test
images. Deviations are as a share of the score. Times are those of one process, one kind of scoring after the other, in
the same number of threads, best of --repeats; ratios above 1 mean that the file is faster than torch.

--out FILE adds the table to those that the file holds already.
"""

from __future__ import annotations

import platform
import tempfile
import timeit
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from auroc import DATA, data_parser

from skl_transformaly import TimmExtractor, TransformalyDetector, __version__
from skl_transformaly.export import to_onnx
from skl_transformaly.images._images import as_images

INTRODUCTION = """# ONNX files beside torch

`python benchmarks/export.py digits`, and the same with `covid19` or `cifar10 --root DIR --weights FILE`. Deviation of
scores is a share of the score.
"""


def seconds(work: Callable[[], object], repeats: int) -> float:
    return min(timeit.repeat(work, number=1, repeat=repeats))


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--classes", type=int, default=1, help="the first so many classes are normal in turn")
    parser.add_argument("--train", type=int, default=1000, help="normal images to fit on, at most")
    parser.add_argument("--test", type=int, default=200, help="images to score, at most, evenly from all")
    parser.add_argument("--batch", type=int, default=16, help="images in a call that is timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file to add the table to")
    options = parser.parse_args()
    image_size = None
    if options.data == "digits" and options.teacher is None:
        options.teacher, options.weights, image_size = "tf_efficientnet_lite0", "bundled", 64
    elif options.root is None and options.data != "digits":
        parser.error(f"{options.data} needs --root")

    head = (
        f"{options.data}, normal class", "images", "deviation", "AUROC torch", "AUROC ONNX", "MB",
        "torch, ms an image", "ONNX speed-up",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, (name, X_normal, X_test, is_normal) in enumerate(DATA[options.data](options.root)):
        if number >= options.classes:
            break
        training = as_images(X_normal)
        training = [training[i] for i in range(min(len(training), options.train))]
        test, places = as_images(X_test), np.arange(0, len(X_test), max(1, len(X_test) // options.test))
        images, y = [test[int(i)] for i in places], np.where(is_normal[places], 1, -1)
        if images[0].dtype != np.uint8:  # the files take bytes
            training, images = ([np.rint(x * 255).astype(np.uint8) for x in part] for part in (training, images))
        teacher = TimmExtractor(
            options.teacher or "vit_tiny_patch16_224",
            weights=options.weights,
            image_size=image_size,
            precision="float32",
            device="cpu",
        )
        detector = TransformalyDetector(teacher, random_state=0).fit(training)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "float32.onnx")
            report = to_onnx(detector, path, images, y, anomaly_map=False)
            run = session(path)
            batch = np.stack([image for image in images if image.shape == images[0].shape][: options.batch])
            baseline = seconds(lambda: detector.score_as_new(list(batch)), options.repeats)  # noqa: B023
            time = seconds(lambda: run.run(["score"], {"images": batch}), options.repeats)  # noqa: B023
        row = (
            name, len(images), f"{report['score_deviation']:.1e}", f"{report['auroc_torch']:.4f}",
            f"{report['auroc_onnx']:.4f}", f"{report['bytes'] / 1e6:.1f}",
            f"{1000 * baseline / len(batch):.1f}", f"{baseline / time:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, row)) + " |")
    packages = ("torch", "timm", "onnx", "onnxruntime")
    versions = [f"Python {platform.python_version()}", f"skl-transformaly {__version__}"]
    versions += [f"{package} {version(package)}" for package in packages]
    lines += [
        "",
        f"{options.teacher or 'vit_tiny_patch16_224'}, the default detector, seed 0, batches of {options.batch}, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {', '.join(versions)}.",
    ]
    text = "\n".join(lines)
    print(text)
    if options.out:
        before = options.out.read_text() if options.out.exists() else INTRODUCTION
        options.out.write_text(f"{before}\n{text}\n")


if __name__ == "__main__":
    main()
