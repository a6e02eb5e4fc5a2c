"""`checkpoint=`: a fit that was killed goes on after the last finished block, and ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import on_training, tiny_extractor, tiny_students
from conftest import tiny_paper as tiny_detector
from sklearn.base import clone

from skl_transformaly import BlockStudents

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def kill_at(monkeypatch):
    """Lets training die as it begins with a block, and counts the blocks that were trained."""
    state = {"at": None, "trained": []}

    def notice(layer):
        if layer.index == state["at"]:
            raise Killed
        state["trained"].append(layer.index)

    on_training(monkeypatch, notice)
    return state


def kept(folder):
    return list(folder.rglob("output.pkl*"))


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("block", [3, 4, 5])
def test_a_fit_goes_on_after_the_last_finished_block(block, model, tmp_path, images, kill_at):
    extractor = tiny_extractor(model)
    blocks = len(extractor.fit(images).blocks_)
    kill_at["at"] = blocks - 6 + block
    detector = tiny_detector(extractor=extractor, students=tiny_students(n_blocks=4, checkpoint=tmp_path))
    with pytest.raises(Killed):
        clone(detector).fit(images)
    done = len(kill_at["trained"])
    kill_at["at"] = None
    resumed = clone(detector).fit(images)
    assert kill_at["trained"] == sorted(set(kill_at["trained"])) and 0 < done < 4
    undisturbed = clone(detector).set_params(students__checkpoint=None).fit(images)
    np.testing.assert_array_equal(resumed.score_samples(images), undisturbed.score_samples(images))
    np.testing.assert_array_equal(resumed.anomaly_map(images), undisturbed.anomaly_map(images))
    assert resumed.students_.history_ == undisturbed.students_.history_


def test_a_finished_fit_leaves_nothing_there(tmp_path, images, kill_at):
    tiny_detector(students=tiny_students(checkpoint=tmp_path)).fit(images)
    assert kept(tmp_path) == []
    tiny_detector(students=tiny_students(checkpoint=tmp_path)).fit(images)
    assert kill_at["trained"] == [4, 5, 4, 5]


def test_a_finished_fit_leaves_what_others_keep_there(tmp_path, images, kill_at):
    kill_at["at"] = 5
    with pytest.raises(Killed):
        tiny_detector(students=tiny_students(checkpoint=tmp_path)).fit(images)
    kill_at["at"] = None
    tiny_detector(students=tiny_students(checkpoint=tmp_path)).fit(images[:6])
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("change", [{"max_epochs": 2}, {"random_state": 1}, {"lr": 1e-3}], ids=str)
def test_another_fit_does_not_take_it(change, tmp_path, images, kill_at):
    kill_at["at"] = 5
    with pytest.raises(Killed):
        tiny_detector(students=tiny_students(checkpoint=tmp_path)).fit(images)
    kill_at["at"] = None
    tiny_detector(students=tiny_students(checkpoint=tmp_path, **change)).fit(images)
    assert kill_at["trained"] == [4, 4, 5]


def test_an_unseeded_fit_goes_on_with_the_seed_that_it_had(tmp_path, images, kill_at):
    students = BlockStudents(n_blocks=3, max_epochs=1, extractor=tiny_extractor(), checkpoint=str(tmp_path))
    kill_at["at"] = 4
    with pytest.raises(Killed):
        clone(students).fit(images)
    kill_at["at"] = None
    resumed = clone(students).fit(images)
    assert kill_at["trained"] == [3, 4, 5]
    found = [clone(students).fit(images).history_[3], clone(students).fit(images).history_[3]]
    assert resumed.history_[3] not in found  # a finished fit's seed is gone
    assert found[0] != found[1]


def test_an_unseeded_detector_goes_on_too(tmp_path, images, kill_at):
    detector = tiny_detector(
        students=tiny_students(n_blocks=3, random_state=None, checkpoint=str(tmp_path)), random_state=None
    )
    kill_at["at"] = 5
    with pytest.raises(Killed):
        clone(detector).fit(images)
    kill_at["at"] = None
    clone(detector).fit(images)
    assert kill_at["trained"] == [3, 4, 5]


def test_a_checkpoint_and_a_cache_serve_together(tmp_path, images, kill_at):
    detector = tiny_detector(students=tiny_students(checkpoint=tmp_path / "a"), memory=str(tmp_path / "b"))
    kill_at["at"] = 5
    with pytest.raises(Killed):
        clone(detector).fit(images)
    kill_at["at"] = None
    resumed = clone(detector).fit(images)
    assert kill_at["trained"] == [4, 5]
    assert kept(tmp_path / "a") == [] and len(kept(tmp_path / "b")) > 2
    np.testing.assert_array_equal(resumed.score_samples(images), tiny_detector().fit(images).score_samples(images))


def test_a_damaged_checkpoint_trains_again(tmp_path, images, kill_at):
    kill_at["at"] = 5
    detector = tiny_detector(students=tiny_students(checkpoint=tmp_path))
    with pytest.raises(Killed):
        clone(detector).fit(images)
    kill_at["at"] = None
    (path,) = kept(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    resumed = clone(detector).fit(images)
    assert kill_at["trained"] == [4, 4, 5]
    np.testing.assert_array_equal(resumed.score_samples(images), tiny_detector().fit(images).score_samples(images))


def test_a_checkpoint_that_cannot_be_written_is_a_warning(tmp_path, images):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="Set `checkpoint` to a folder"):
        detector = tiny_detector(students=tiny_students(checkpoint=tmp_path / "file")).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), tiny_detector().fit(images).score_samples(images))


@pytest.mark.slow
def test_killed_processes_leave_nothing_and_their_successors_end_alike():
    """The table's own script: kills at random moments, and Ctrl-C at a terminal."""
    script = [sys.executable, str(ROOT / "benchmarks" / "faults" / "kill.py"), "--times", "4", "--interrupts", "2"]
    done = subprocess.run(script, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", [0, None])
def test_a_fit_that_dies_among_held_out_students_goes_on_after_them(seed, tmp_path, images, monkeypatch):
    trained, most = [], [3]

    def notice(layer):
        if len(trained) == most[0]:
            raise Killed
        trained.append(layer.index)

    on_training(monkeypatch, notice)
    students = tiny_students(n_blocks=2, checkpoint=tmp_path, random_state=None)
    detector = tiny_detector(students=students, threshold="held-out", contamination=0.3, random_state=seed)
    with pytest.raises(Killed):
        clone(detector).fit(images)
    assert kept(tmp_path)
    most[0] = 99
    clone(detector).fit(images)
    assert len(trained) == 2 + 3 * 2  # each once: the students, and those of three folds
    assert not kept(tmp_path)


def test_a_fit_that_dies_after_all_training_trains_nothing_again(tmp_path, images, monkeypatch):
    trained = []
    on_training(monkeypatch, lambda layer: trained.append(layer.index))
    students = tiny_students(n_blocks=2, checkpoint=tmp_path, random_state=None)
    detector = tiny_detector(students=students, threshold="held-out", contamination=0.3, random_state=0)
    with monkeypatch.context() as dying:
        dying.setattr(type(detector), "_fit_spaces", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            clone(detector).fit(images)
    assert len(trained) == 2 + 3 * 2
    clone(detector).fit(images)
    assert len(trained) == 2 + 3 * 2 and not kept(tmp_path)
