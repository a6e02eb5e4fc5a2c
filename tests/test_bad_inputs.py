"""The corpus of hostile inputs: the score of its pixels or a clear error of each."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_detector

from skl_transformaly import ImageError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import bad_inputs


@pytest.fixture(scope="module")
def detector():
    return bad_inputs.detector()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case.slow else ()) for case in bad_inputs.CASES],
    ids=lambda case: case.name.encode("ascii", "replace").decode(),
)
def test_an_input_is_scored_by_its_pixels_or_refused(case, detector, tmp_path):
    _, problem = bad_inputs.judge(case, detector, tmp_path)
    assert problem == ""


def test_the_corpus_is_large_and_names_each_input_once():
    names = [case.name for case in bad_inputs.CASES]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


def test_images_of_an_array_that_are_not_finite_are_skipped_or_named(images):
    X = images / 255
    X[[3, 7], 2] = np.nan
    detector = tiny_detector(feature_spaces=["pretrained"], contamination=0.3)
    with pytest.raises(ImageError, match="in 2 of 12 images, the first at position 3"):
        detector.fit(X)
    with pytest.warns(UserWarning, match="2 of 12 images could not be read"):
        detector.set_params(on_error="skip").fit(X)
    assert np.flatnonzero(np.isnan(detector.training_scores_)).tolist() == [3, 7]


@pytest.mark.parametrize("kind", ["Int64", "UInt8", "uint8[pyarrow]"])
def test_rows_of_pandas_own_integers_are_pixels(kind, images):
    if "pyarrow" in kind:
        pytest.importorskip("pyarrow")
    rows = pd.DataFrame(images.reshape(len(images), -1))
    rows.columns = rows.columns.astype(str)
    detector = tiny_detector(feature_spaces=["pretrained"], contamination=0.3, image_shape=images.shape[1:])
    expected = detector.fit(rows).score_samples(rows)
    np.testing.assert_array_equal(detector.fit(rows.astype(kind)).score_samples(rows.astype(kind)), expected)
