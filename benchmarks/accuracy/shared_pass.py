"""Score images by many detectors of one teacher, which runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skl_transformaly import TransformalyDetector
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import block_measures, by_measure, residual_of
from skl_transformaly.teacher._features import TeacherFeatures


def parts_of_many(detectors: Sequence[TransformalyDetector], images: Any) -> list[dict[str, np.ndarray]]:
    """What each detector's spaces add to the scores of new images, as ``detector.score_as_new`` adds them up."""
    first = detectors[0]
    extractor = first.extractor_
    images = as_images(images)
    collected = TeacherFeatures(extractor, first.feature_spaces_, len(images))
    students = [d.students_ if "discrepancy" in d.feature_spaces_ else None for d in detectors]
    z_fs = [None if s is None else np.zeros((len(images), len(s.get_feature_names_out()))) for s in students]
    modules = [{} if s is None else dict(zip(s.block_indices_.tolist(), s.students_)) for s in students]

    for positions, pixels in images.batches(extractor.batch_size):
        watch, finish = collected.collect(positions)
        found: list[dict[int, torch.Tensor]] = [{} for _ in detectors]

        def visit(index, block, args, kwargs, output, watch=watch, found=found):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            for measured, own, of_detector in zip(found, modules, students):
                if index in own:
                    residual = residual_of(own[index], args, kwargs, output)
                    measured[index] = block_measures(of_detector.measures_, args[0], output, residual)

        with torch.no_grad():
            finish(extractor.embed(extractor.preprocess(pixels), visit))
        for z_f, measured in zip(z_fs, found):
            if z_f is not None:
                z_f[positions] = by_measure(measured).double().cpu().numpy()
    parts = []
    for detector, z_f in zip(detectors, z_fs):
        features = {**collected.features, **({} if z_f is None else {"discrepancy": z_f})}
        parts.append({name: detector.spaces_[name].score_samples(features[name]) for name in detector.feature_spaces_})
    return parts
