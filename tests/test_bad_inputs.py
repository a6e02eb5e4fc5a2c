"""The corpus of hostile inputs: the score of its pixels or a clear error of each."""

import sys
from pathlib import Path

import pytest

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
