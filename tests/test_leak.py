"""A service scores for days: nothing may grow."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import leak


@pytest.mark.slow
def test_what_grows_is_found():
    kept = []

    def keep(i):
        # straight from the system: what an allocator has at hand already would not show
        kept.append(mmap.mmap(-1, 20_480, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        kept[-1][:] = bytes(20_480)

    assert leak.leaks(leak.watch(keep, 2000, looks=9)) == ["memory, MiB", "objects"]


@pytest.mark.slow
def test_two_thousand_scorings_leave_nothing():
    """In a process of its own: what other tests left to threads and pools would be counted too."""
    script = [sys.executable, leak.__file__, "--calls", "2000", "--fits", "0", "--threads", "0"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
