"""The corpus of hostile inputs: the score of its pixels or a clear error of each."""

import dataclasses
import sys
from pathlib import Path

import pytest

from skl_transformaly import ImageError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import bad_inputs

MISSING = bad_inputs.refused("is missing.*NoneType")
OUT_OF_RANGE = bad_inputs.refused("pixels are expected in 0-")

# What is now scored, or refused in other words, than the corpus says.
SUPERSEDED = {
    "TIFF file, float 0-255": bad_inputs.refused("input.*divide by 255"),
    "PIL image of mode F, 0-255": bad_inputs.refused("image 0.*divide by 255"),
    "array of <i2, its extreme values": OUT_OF_RANGE,
    "array of >i2, its extreme values": OUT_OF_RANGE,
    "array of float16, a pixel of 65,504": OUT_OF_RANGE,
    "array of floats 0-255": bad_inputs.refused("divide by 255"),
    "array of negative floats": OUT_OF_RANGE,
    "array of int32 in 0-65535": bad_inputs.refused("uint16"),
    "array of None": MISSING,
    "a list of None": MISSING,
    "a list of images and None": MISSING,
    "a list of paths and None": MISSING,
    "a Dataset of None": MISSING,
    "a generator": bad_inputs.same(bad_inputs.PICTURE),
    "a map": bad_inputs.refused("no such file", ImageError, fit_too=False),  # whose items are gone by then
    "a data frame of paths": bad_inputs.same(bad_inputs.PICTURE),
}


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
    case = dataclasses.replace(case, expected=SUPERSEDED.get(case.name, case.expected))
    _, problem = bad_inputs.judge(case, detector, tmp_path)
    assert problem == ""


def test_what_is_superseded_is_in_the_corpus():
    assert set(SUPERSEDED) <= {case.name for case in bad_inputs.CASES}


def test_the_corpus_is_large_and_names_each_input_once():
    names = [case.name for case in bad_inputs.CASES]
    assert len(names) >= 200
    assert len(set(names)) == len(names)
