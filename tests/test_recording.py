"""What a recorded run of the teacher shows is what the run itself has shown."""

import io
import tempfile

import numpy as np
import pytest
import torch
from conftest import tiny_extractor
from test_extractor import FAMILIES

from skl_transformaly import RidgeStudents
from skl_transformaly.students import _ridge
from skl_transformaly.teacher._recording import Recording


def seen_by(embed):
    """Visits with copies of what they showed, and the embedding."""
    visits = []

    def visit(index, block, args, kwargs, output):
        visits.append((index, args[0].clone(), args[0].stride(), output.clone(), output.stride()))

    with torch.no_grad():
        return visits, embed(visit)


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
def test_a_recorded_run_shows_what_the_run_has_shown(name, size, kind, number, images):
    """In the same order in memory, which tells channels first from channels last, and sums in the same order."""
    extractor = tiny_extractor(name, image_size=size, precision="float32").fit(images)
    batch = extractor.preprocess(images[:3])
    recording = Recording(2**30)
    visits, embedding = seen_by(lambda visit: recording.embed(extractor, batch, np.arange(3), visit))
    (run,) = recording.runs()
    replayed, again = seen_by(lambda visit: recording.play(run, visit))
    assert run.positions.tolist() == [0, 1, 2]
    assert torch.equal(embedding, again)
    assert len(visits) == len(replayed) > number
    for one, other in zip(visits, replayed):
        assert one[0] == other[0] and one[2] == other[2] and one[4] == other[4]
        assert torch.equal(one[1], other[1]) and torch.equal(one[3], other[3])


@pytest.fixture
def embedded(monkeypatch):
    """Number of images in each run of the teacher while students are fitted."""
    sizes = []
    extractor = tiny_extractor(batch_size=4)
    embed = type(extractor).embed

    def count(self, batch, visit=None):
        sizes.append(len(batch))
        return embed(self, batch, visit)

    monkeypatch.setattr(type(extractor), "embed", count)
    return sizes


def fitted(images):
    students = RidgeStudents(n_blocks=3, extractor=tiny_extractor(batch_size=4)).fit(images)
    return np.hstack([students.training_discrepancies_, students.held_out_discrepancies_])


def test_the_teacher_runs_once(images, embedded):
    fitted(images)
    assert sum(size for size in embedded if size == 4) == len(images)  # others are the first looks at single images


@pytest.mark.parametrize("room, twice", [(0, 12), (1.5, 8), (3, 0)])
def test_what_there_is_no_room_for_runs_again(room, twice, images, embedded, monkeypatch):
    expected = fitted(images)
    recording = Recording(2**30)
    extractor = tiny_extractor(batch_size=4).fit(images)
    with torch.no_grad():
        recording.embed(extractor, extractor.preprocess(images[:4]), np.arange(4), lambda *_: None)
    monkeypatch.setattr(_ridge, "_RECORDED_BYTES", int(room * recording._length))
    embedded.clear()
    np.testing.assert_array_equal(fitted(images), expected)
    assert sum(size for size in embedded if size == 4) == len(images) + twice


class SmallDisk(io.FileIO):
    """A file that takes some bytes, and no more."""

    room = 25_000

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("fault", ["full", "nowhere"])
def test_without_a_disk_the_teacher_runs_again(fault, images, monkeypatch, tmp_path):
    expected = fitted(images)

    def refuse(**_):
        if fault == "full":
            return SmallDisk(tmp_path / "disk", "w+")
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    np.testing.assert_array_equal(fitted(images), expected)
