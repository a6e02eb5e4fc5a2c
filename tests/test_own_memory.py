"""Memory that training frees is used again, and goes back to the system at the end."""

import threading

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor

from skl_transformaly import RidgeStudents, _learning
from skl_transformaly.images._images import as_images
from skl_transformaly.teacher import _kernels
from skl_transformaly.teacher._kernels import own_memory, release_memory
from skl_transformaly.utils._cache import Cache

resource = pytest.importorskip("resource", reason="needs POSIX")
if _kernels._glibc() is None:
    pytest.skip("needs glibc", allow_module_level=True)

_BYTES = 2**27


def faults_of(times):
    """Pages that the system has to find for several large blocks, one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(_BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_blocks_that_were_freed_are_used_again():
    outside = faults_of(8)
    with own_memory():
        faults_of(8)  # the heap may have to grow in two places
        assert faults_of(8) < outside / 8
    held = [torch.ones(_BYTES, dtype=torch.uint8) for _ in range(2)]  # what such places can still hold
    assert faults_of(8) > outside / 2
    del held


def test_what_was_freed_goes_back_at_the_end():
    with own_memory():
        pass  # what other tests have freed goes back first
    before = resident()
    with own_memory():
        faults_of(1)
        assert resident() > before + _BYTES / 2
    assert resident() < before + _BYTES / 2


def test_the_last_to_leave_gives_memory_back():
    with own_memory():
        with own_memory():
            faults_of(8)
        assert faults_of(2) < _BYTES / 2**12


@pytest.mark.slow
def test_other_threads_may_be_within():
    sums = []

    def work():
        with own_memory():
            sums.append(int(torch.ones(_BYTES, dtype=torch.uint8).sum()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [_BYTES] * 4


def test_holes_between_what_is_kept_are_released():
    release_memory()
    before = resident()
    layers, kept = [], []
    for _ in range(1000):
        layers.append(torch.ones(2**16, dtype=torch.uint8))
        kept.append(torch.ones(2**10, dtype=torch.uint8))
    full = resident() - before
    del layers
    release_memory()
    assert resident() - before < full / 4


def test_a_fit_releases_what_it_has_freed(monkeypatch, images):
    released = []
    monkeypatch.setattr(_learning, "release_memory", lambda: released.append(None))
    detector = tiny_detector()
    monkeypatch.setattr(type(detector), "_fit_spaces", lambda *args: released.clear())
    detector._learn(*detector._begin(images, None))
    assert released  # after the spaces


def test_each_pass_over_many_images_releases_memory(monkeypatch, images):
    """Without it, a fit of 5,000 images grew by 3 GiB."""
    monkeypatch.setattr(_kernels, "release_memory", lambda: released.append(None))
    extractor = tiny_extractor(batch_size=1).fit(images)
    students = RidgeStudents(n_blocks=2)
    passes = {
        "embedding": lambda: extractor.transform(images),
        "sums": lambda: students._fit(images, extractor, Cache(None)),
        "leaving out": lambda: students.measure_part(as_images(images), np.ones(len(images), int), np.array([0])),
    }
    for name, run in passes.items():
        released: list = []
        run()
        assert len(released) >= len(images) // 4, name


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(_kernels, "_glibc", lambda: None)
    release_memory()
    with own_memory():
        assert faults_of(1) > 0
