"""What a fit costs, beside one pass of the teacher over the same images.

    python benchmarks/speed/fit.py PHOTOS [--teacher NAME --weights FILE] [--images 300] [--repeats 3]

PHOTOS is a folder. "pass" decodes and resizes the images and runs timm's `forward_features` on batches of 32, in the
precision of the fit; the fits are those of TransformalyDetector's defaults, without students and whole. All take turns;
median, minimum and maximum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import interleaved, machine, ratio, table

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.images._images import as_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    paths = sorted(path for path in options.photos.rglob("*") if path.is_file())[: options.images]
    extractor = TimmExtractor(options.teacher, weights=options.weights, precision=options.precision).fit(paths[:2])
    model = extractor.teacher_.model

    def one_pass() -> None:
        with torch.no_grad(), extractor.compute():
            for _, pixels in as_images(paths).batches(32):
                model.forward_features(extractor.preprocess(pixels))

    def fit(**settings: object) -> None:
        # an extractor that is fitted is cloned: its teacher is loaded anew, as a user's is
        TransformalyDetector(extractor, **settings).fit(paths)

    times = interleaved(
        {"pass": one_pass, "without students": lambda: fit(feature_spaces="teacher"), "whole": fit},
        options.repeats,
    )
    print(f"{machine()}\n\n{len(paths)} images, {options.teacher}, {extractor.precision_}\n")
    rows = [
        [name, timing.show(1, "s", 1), ratio(timing, times["pass"]).show(1, "", 2)] for name, timing in times.items()
    ]
    print(table(["", "time", "of the pass"], rows))


if __name__ == "__main__":
    main()
