"""A service scores for days: nothing may grow."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import leak


def test_what_grows_is_found():
    kept = []
    assert leak.leaks(leak.watch(lambda i: kept.append([bytearray(b"x") * 20_000]), 2000, looks=9)) == [
        "memory, MiB",
        "objects",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_scorings_leave_nothing():
    assert leak.leaks(leak.scorings(2000)) == []
