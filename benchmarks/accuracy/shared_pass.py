"""Score images by many detectors of one teacher, which runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skl_transformaly import TransformalyDetector
from skl_transformaly._features import TeacherFeatures
from skl_transformaly._images import as_images
from skl_transformaly._imitation import at_least_float32


def parts_of_many(detectors: Sequence[TransformalyDetector], images: Any) -> list[dict[str, np.ndarray]]:
    """What each detector's spaces add to the scores of new images, as ``detector.score_as_new`` adds them up."""
    first = detectors[0]
    extractor = first.extractor_
    images = as_images(images)
    collected = TeacherFeatures(extractor, first.feature_spaces_, len(images))
    students = [d.students_ if "discrepancy" in d.feature_spaces_ else None for d in detectors]
    z_fs = [None if s is None else np.zeros((len(images), len(s.block_indices_))) for s in students]
    modules = [[] if s is None else s.students_ for s in students]
    places = [{} if s is None else {index: j for j, index in enumerate(s.block_indices_.tolist())} for s in students]

    for positions, pixels in images.batches(extractor.batch_size):
        watch, finish = collected.collect(positions)

        def visit(index, block, args, kwargs, output, watch=watch, positions=positions):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            for z_f, own, place in zip(z_fs, modules, places):
                if index in place:
                    residual = own[place[index]](*args, **kwargs) - at_least_float32(output)
                    z_f[positions, place[index]] = residual.square().flatten(1).mean(1).double().numpy()

        with torch.no_grad():
            finish(extractor.embed(extractor.preprocess(pixels), visit))
    found = []
    for detector, z_f in zip(detectors, z_fs):
        features = {**collected.features, **({} if z_f is None else {"discrepancy": z_f})}
        found.append({name: detector.spaces_[name].score_samples(features[name]) for name in detector.feature_spaces_})
    return found
