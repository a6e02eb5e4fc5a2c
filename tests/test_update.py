"""The command `transformaly update`: from labels and more normal images to a better model."""

import csv
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import pictures_of, write_images
from PIL import Image
from typer.testing import CliRunner

from skl_transformaly import TransformalyDetector, load, save
from skl_transformaly.cli._app import Mistake
from skl_transformaly.cli._commands import app
from skl_transformaly.cli._provenance import Provenance
from skl_transformaly.cli._relearning import Lessons, read_labels
from skl_transformaly.persistence import read_header

run = CliRunner().invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Digits as files: ``train`` (24 zeros and a six, zz.png), ``more`` (8 zeros), ``sixes`` (6), and ``model.tfm``."""
    root = tmp_path_factory.mktemp("update")
    zeros, sixes = pictures_of(0), pictures_of(6)
    for name, images in {"train": zeros[:24], "more": zeros[24:32], "sixes": sixes[:6]}.items():
        write_images(root / name, images)
    Image.fromarray(sixes[6]).save(root / "train" / "zz.png")
    (root / "train" / "broken.png").write_bytes(b"no image")
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2"]
    result = run(app, ["fit", str(root / "train"), "-o", str(root / "model.tfm"), *options])
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that may be changed, in the place that its model names."""
    shutil.copytree(made, tmp_path / "kept")
    yield made
    for name in ("train", "more", "sixes"):
        shutil.rmtree(made / name, ignore_errors=True)
        shutil.copytree(tmp_path / "kept" / name, made / name)


def save_labels(path, labels):
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("path", "label"), *labels.items()])
    return str(path)


def labels_of(root, tmp_path):
    """Two more zeros, five sixes, and the six among the training images."""
    labels = {str(root / "more" / f"00{i}.png"): 1 for i in range(2)}
    labels.update({str(root / "sixes" / f"00{i}.png"): -1 for i in range(5)})
    return save_labels(tmp_path / "labels.csv", {**labels, str(root / "train" / "zz.png"): -1})


def update(root, out, *arguments):
    result = run(app, ["update", str(root / "model.tfm"), "-o", str(out), "--json", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr, load(out)


def provenance(path):
    return Provenance.from_json(read_header(path)["metadata"])


def test_labels_make_the_model_of_a_fit_on_all_images(root, tmp_path):
    said, stderr, detector = update(root, tmp_path / "new.tfm", "--labels", labels_of(root, tmp_path))
    assert (said["images_before"], said["images"], said["learned"], said["taken_back"]) == (25, 26, 2, 1)
    assert said["known_anomalies"] == 6 and said["students_updated"]
    assert "All earlier images were found: learning from 26 images" in stderr and "warning" not in stderr
    paths = [str(root / "train" / f"{i:03}.png") for i in range(24)]
    paths += [str(root / "more" / f"00{i}.png") for i in range(2)]
    anomalies = [str(root / "sixes" / f"00{i}.png") for i in range(5)] + [str(root / "train" / "zz.png")]
    old = load(root / "model.tfm")
    whole = TransformalyDetector(**old.get_params(deep=False)).fit([*paths, *anomalies], [1] * 26 + [-1] * 6)
    new = [str(root / "more" / f"00{i}.png") for i in range(2, 8)] + [str(root / "sixes" / "005.png")]
    np.testing.assert_allclose(detector.score_samples(new), whole.score_samples(new), rtol=1e-6, atol=1e-6)
    assert detector.offset_ == pytest.approx(whole.offset_, abs=1e-6)


@pytest.mark.parametrize("what", ["gone", "changed", "moved"])
def test_without_the_earlier_images_students_stay(root, tmp_path, what):
    first = root / "train" / "000.png"
    if what == "gone":
        first.unlink()
    elif what == "changed":
        Image.new("L", (8, 8), 77).save(first)
    else:
        os.rename(root / "train", root / "elsewhere")
    try:
        labels = {str(root / "more" / "000.png"): 1}
        said, stderr, detector = update(
            root, tmp_path / "new.tfm", "--labels", save_labels(tmp_path / "labels.csv", labels)
        )
        assert not said["students_updated"] and said["images"] == 26
        count = {"gone": "1 image of the fit cannot be found", "changed": "1 image of the fit changed since"}
        assert count.get(what, "25 images of the fit cannot be found") in stderr
        old = load(root / "model.tfm").partial_fit([str(root / "more" / "000.png")], [1], update_students=False)
        np.testing.assert_array_equal(detector.training_scores_, old.training_scores_)
        if what == "moved":
            arguments = ["--labels", tmp_path / "labels.csv", "--normal", root / "elsewhere"]
            assert update(root, tmp_path / "newer.tfm", *arguments)[0]["students_updated"]
    finally:
        if (root / "elsewhere").exists():
            shutil.rmtree(root / "elsewhere")


@pytest.mark.slow
def test_an_updated_model_can_be_updated(root, tmp_path):
    update(root, tmp_path / "one.tfm", "--labels", labels_of(root, tmp_path))
    result = run(
        app, ["update", str(tmp_path / "one.tfm"), str(root / "more"), "-o", str(tmp_path / "two.tfm"), "--json"]
    )
    said = json.loads(result.stdout)
    assert (said["images_before"], said["images"], said["learned"]) == (26, 32, 6)
    assert said["known_anomalies"] == 6 and said["students_updated"], result.stderr
    # what was taken for an anomaly, and is not, is learned again
    labels = save_labels(tmp_path / "back.csv", {str(root / "train" / "zz.png"): 1})
    result = run(
        app, ["update", str(tmp_path / "two.tfm"), "--labels", labels, "-o", str(tmp_path / "three.tfm"), "--json"]
    )
    said = json.loads(result.stdout)
    assert (said["images"], said["known_anomalies"], said["students_updated"]) == (33, 5, True), result.stderr


def test_the_new_model_knows_how_it_was_made(root, tmp_path):
    _, _, detector = update(root, tmp_path / "new.tfm", root / "more", "--labels", labels_of(root, tmp_path))
    made = provenance(tmp_path / "new.tfm")
    assert made.root == str(root) and len(made.fitted) == len(detector.training_labels_)
    names = {i: made.files[k] for i, k in enumerate(made.fitted) if k >= 0}
    for i, label in enumerate(detector.training_labels_):
        if label != -2 and detector.training_digests_[i].any():
            assert made.digests[made.fitted[i]] == bytes(detector.training_digests_[i]).hex()
            folder = names[i].split("/")[0]
            assert folder in ("train", "more") if label == 1 else folder == "sixes" or names[i] == "train/zz.png"
    assert sum(score is not None for score in made.scores) == 32 and made.files.count("train/zz.png") == 1
    assert list(made.unreadable) == ["train/broken.png"]
    saved = read_header(tmp_path / "new.tfm")["made"]
    assert (saved["n_images"], saved["n_unreadable"]) == (32 + 1, 1)
    assert "8 learned, 1 taken back, 6 known anomalies, students learned anew" in made.settings["updates"]


@pytest.mark.slow
def test_a_report_of_the_new_model_names_neighbours(root, tmp_path):
    update(root, tmp_path / "new.tfm", root / "more", "--labels", labels_of(root, tmp_path))
    out = tmp_path / "r.html"
    result = run(app, ["report", str(tmp_path / "new.tfm"), str(root / "sixes"), "-o", str(out), "--normal", str(root)])
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    assert "not found below" not in text and "differs from what" not in text


def test_a_label_says_more_than_the_folder_of_an_image(root, tmp_path):
    labels = save_labels(tmp_path / "labels.csv", {os.path.relpath(root / "more" / "003.png"): -1})
    said, stderr, _ = update(root, tmp_path / "new.tfm", os.path.relpath(root / "more"), "--labels", labels)
    assert (said["learned"], said["known_anomalies"]) == (7, 1)


def test_images_that_were_learned_are_passed_over(root, tmp_path):
    shutil.copy(root / "train" / "003.png", tmp_path / "copy.png")
    said, _, _ = update(root, tmp_path / "new.tfm", root / "more", tmp_path / "copy.png")
    assert said["learned"] == 8
    result = run(
        app, ["update", str(root / "model.tfm"), str(root / "train" / "004.png"), "-o", str(tmp_path / "x.tfm")]
    )
    assert result.exit_code == 2 and "the model has learned these images already" in result.stderr
    assert not (tmp_path / "x.tfm").exists()


def test_copies_of_new_images_do_not_count_as_known(root, tmp_path):
    shutil.copy(root / "more" / "003.png", tmp_path / "copy.png")
    said, _, _ = update(root, tmp_path / "new.tfm", root / "more", root / "train" / "004.png", tmp_path / "copy.png")
    assert (said["learned"], said["known"], said["copies"]) == (8, 1, 1)


def test_a_training_image_that_is_gone_can_be_taken_back(root, tmp_path):
    (root / "train" / "zz.png").unlink()
    labels = save_labels(tmp_path / "labels.csv", {str(root / "train" / "zz.png"): -1})
    said, _, detector = update(root, tmp_path / "new.tfm", "--labels", labels)
    assert (said["images"], said["taken_back"], said["students_updated"]) == (24, 1, True)


def test_new_images_that_cannot_be_read_are_left_out(root, tmp_path):
    (root / "more" / "torn.png").write_bytes(b"no image")
    said, stderr, _ = update(root, tmp_path / "new.tfm", root / "more")
    assert said["learned"] == 8 and "1 image could not be read (left out)" in stderr
    assert sorted(provenance(tmp_path / "new.tfm").unreadable) == ["more/torn.png", "train/broken.png"]


@pytest.fixture
def trimmed(root, tmp_path):
    """A model of ``train``, of which the six was left out."""
    (root / "train" / "broken.png").unlink()
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2", "--trim", "0.04"]
    result = run(app, ["fit", str(root / "train"), "-o", str(tmp_path / "trimmed.tfm"), *options])
    assert "zz.png" in result.stderr.partition("Left out")[2].partition("About")[0], result.output
    return tmp_path / "trimmed.tfm"


def test_a_model_that_left_images_out_is_updated_exactly(root, trimmed, tmp_path):
    saved = read_header(trimmed)["made"]
    assert (saved["n_images"], saved["n_unreadable"], saved["n_trimmed"]) == (25, 0, 1)
    made = provenance(trimmed)
    assert made.scores[made.files.index("zz.png")] is None and made.scores.count(None) == 1
    result = run(app, ["update", str(trimmed), str(root / "more"), "-o", str(tmp_path / "new.tfm"), "--json"])
    assert json.loads(result.stdout)["students_updated"], result.stderr
    paths = [root / "train" / f"{i:03}.png" for i in range(24)] + [root / "train" / "zz.png"]
    whole = load(trimmed)
    whole = TransformalyDetector(**whole.get_params(deep=False)).fit([*paths, *sorted((root / "more").iterdir())])
    detector = load(tmp_path / "new.tfm")
    new = [root / "sixes" / f"00{i}.png" for i in range(6)]
    np.testing.assert_allclose(detector.score_samples(new), whole.score_samples(new), rtol=1e-6, atol=1e-6)
    assert json.loads(run(app, ["info", str(trimmed), "--json"]).stdout)["images"] == 24
    # the image that was left out does not count as an image of the fit
    run(app, ["report", str(trimmed), str(root / "train"), "-o", str(tmp_path / "r.html")])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "24 images of the fit" in text and "<dd>24 from " in text


@pytest.mark.parametrize("more", [False, True])
def test_what_was_left_out_and_is_normal_is_told_how_it_is_learned(root, trimmed, tmp_path, more):
    labels = save_labels(tmp_path / "labels.csv", {root / "train" / "zz.png": 1})
    arguments = ["update", str(trimmed), *[str(root / "more")] * more, "--labels", labels]
    result = run(app, [*arguments, "-o", str(tmp_path / "new.tfm")])
    assert result.exit_code == (0 if more else 2) and "learned these" not in result.stderr
    assert "1 image given as normal, such as" in result.stderr and "lower --trim, or without" in result.stderr


def test_what_is_left_out_now_is_named_even_if_it_was_given_as_normal(root, trimmed, tmp_path):
    """Once what was left out is a known anomaly, the next image takes its place."""
    train = sorted((root / "train").glob("0*.png"))
    labels = save_labels(tmp_path / "labels.csv", {root / "train" / "zz.png": -1, **dict.fromkeys(train, 1)})
    result = run(app, ["update", str(trimmed), "--labels", labels, "-o", str(tmp_path / "new.tfm")])
    positions = np.flatnonzero(load(tmp_path / "new.tfm").training_labels_ == 0)
    assert len(positions) == 1
    name = provenance(trimmed).files[positions[0]]
    assert f"Left out by --trim 0.04, now: 1 image: {root / 'train' / name}." in result.stdout + result.stderr
    assert "1 image given as normal" in result.stderr and "left out by --trim 0.04 all the same" in result.stderr


def test_new_images_that_trim_leaves_out_do_not_count_as_learned(root, trimmed, tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "more" / "noise.png")
    result = run(app, ["update", str(trimmed), str(root / "more"), "-o", str(tmp_path / "new.tfm"), "--json"])
    said = json.loads(result.stdout)
    assert said["left_out"] == [str(root / "more" / "noise.png")] and said["learned"] == 8
    assert ": 8 learned, " in provenance(tmp_path / "new.tfm").settings["updates"]


def test_a_folder_that_was_moved_stays_the_folder(root, tmp_path):
    """Also if one of its images could not be read."""
    os.rename(root / "train", root / "elsewhere")
    try:
        shutil.copytree(root / "more", root / "elsewhere" / "more")
        options = ["--normal", root / "elsewhere"]
        said, _, _ = update(root, tmp_path / "one.tfm", root / "elsewhere" / "more", *options)
        made = provenance(tmp_path / "one.tfm")
        assert said["students_updated"] and made.root == str(root / "elsewhere")
        assert list(made.unreadable) == ["broken.png"]
        arguments = ["update", str(tmp_path / "one.tfm"), str(root / "sixes" / "000.png"), "--json"]
        result = run(app, [*arguments, "-o", str(tmp_path / "two.tfm"), *map(str, options)])
        assert json.loads(result.stdout)["students_updated"], result.stderr
    finally:
        shutil.rmtree(root / "elsewhere")


def test_a_wrong_folder_of_normal_images_is_told_which_is_the_right_one(root, tmp_path):
    """After an update with images of another folder it is the folder of both."""
    update(root, tmp_path / "one.tfm", root / "more")
    wrong = ["--normal", str(root / "train")]
    out = tmp_path / "r.html"
    result = run(app, ["report", str(tmp_path / "one.tfm"), str(root / "sixes"), "-o", str(out), *wrong])
    assert result.exit_code == 0 and f"normal images not shown: not found below {root / 'train'}" in result.stderr
    text = re.sub(r"<[^>]+>", "", out.read_text(encoding="utf-8"))
    assert f"The model was fitted on images below {root}: name that folder" in text
    arguments = ["update", str(tmp_path / "one.tfm"), str(root / "sixes" / "000.png"), "-o", str(tmp_path / "two.tfm")]
    shutil.rmtree(root / "more")
    stderr = run(app, [*arguments, *wrong]).stderr
    assert f"name with --normal DIR the folder that is now what {str(root)!r} was" in stderr


def test_the_summary_says_what_changed(root, tmp_path):
    result = run(app, ["update", str(root / "model.tfm"), str(root / "more"), "-o", str(tmp_path / "new.tfm")])
    assert result.exit_code == 0 and result.stdout == ""
    assert "33 normal images, 25 before (8 learned, 0 taken back)" in result.stderr
    old, new = load(root / "model.tfm").offset_, load(tmp_path / "new.tfm").offset_
    assert f"Threshold {new:.2f}, {old:.2f} before; scores are on another scale now." in result.stderr


def test_the_counts_of_the_summary_add_up_for_what_had_not_been_learned(root, tmp_path):
    first = save_labels(tmp_path / "first.csv", {root / "train" / "000.png": -1})
    _, _, _ = update(root, tmp_path / "one.tfm", "--labels", first)
    again = save_labels(tmp_path / "again.csv", {root / "train" / "000.png": 1})
    arguments = ["update", str(tmp_path / "one.tfm"), "--labels", again, "-o", str(tmp_path / "two.tfm")]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    assert "learning from 25 images" in result.stderr
    assert "25 normal images, 24 before (1 learned, 0 taken back)" in result.stderr


def test_a_teacher_that_was_left_out_stays_so(root, tmp_path):
    shutil.copy(root / "model.tfm", tmp_path)  # whose teacher it names
    save(load(root / "model.tfm"), tmp_path / "small.tfm", teacher=False)
    new = str(tmp_path / "new.tfm")
    result = run(app, ["update", str(tmp_path / "small.tfm"), str(root / "more"), "-o", new])
    assert result.exit_code == 0, result.output
    assert not any(entry["stored"] for entry in read_header(new)["teachers"])


def test_the_images_of_a_model_that_was_saved_in_python_are_found_by_their_pixels(root, tmp_path):
    save(load(root / "model.tfm"), tmp_path / "python.tfm")
    new = str(tmp_path / "new.tfm")
    arguments = ["update", str(tmp_path / "python.tfm"), str(root / "more"), "--normal", str(root / "train")]
    result = run(app, [*arguments, "-o", new])
    assert result.exit_code == 0, result.output
    assert "All earlier images were found: learning from 33 images" in result.stderr
    _, _, expected = update(root, tmp_path / "expected.tfm", root / "more")
    np.testing.assert_allclose(load(new).training_scores_, expected.training_scores_, rtol=1e-6)


def test_one_of_several_folders_of_the_fit_may_be_named(root, tmp_path):
    update(root, tmp_path / "one.tfm", root / "more")  # of which the root is the folder of both
    new = [str(root / "sixes" / "000.png"), "--normal", str(root / "train"), "-o", str(tmp_path / "two.tfm")]
    result = run(app, ["update", str(tmp_path / "one.tfm"), *new])
    assert result.exit_code == 0, result.output
    assert "All earlier images were found: learning from 34 images" in result.stderr
    page = tmp_path / "r.html"
    run(
        app,
        ["report", str(tmp_path / "one.tfm"), str(root / "sixes"), "--normal", str(root / "train"), "-o", str(page)],
    )
    assert "data-near=" in page.read_text(encoding="utf-8")


def test_without_names_the_folder_is_asked_for(root, tmp_path):
    save(load(root / "model.tfm"), tmp_path / "python.tfm")
    arguments = ["update", str(tmp_path / "python.tfm"), str(root / "more"), "-o", str(tmp_path / "new.tfm")]
    assert "name with --normal DIR the folder of these images" in run(app, arguments).stderr
    stderr = run(app, [*arguments, "--normal", str(root / "sixes")]).stderr
    assert f"25 images of the fit cannot be found below {str(root / 'sixes')!r}" in stderr


def test_too_few_known_anomalies_to_weigh_spaces_change_no_score(root, tmp_path):
    labels = save_labels(tmp_path / "labels.csv", {root / "sixes" / "000.png": -1})
    result = run(app, ["update", str(root / "model.tfm"), "--labels", labels, "-o", str(tmp_path / "new.tfm")])
    old, new = load(root / "model.tfm"), load(tmp_path / "new.tfm")
    images = [str(root / "sixes" / f"00{i}.png") for i in range(3)]
    np.testing.assert_array_equal(old.score_samples(images), new.score_samples(images))
    assert f"Threshold {old.offset_:.2f}, as before: no score changes." in result.stderr


TABLES = {
    "no columns": "a,b\n1,2\n",
    "another label": "path,label\n{root}/more/000.png,normal\n",
    "no path": "path,label\n,1\n",
    "no rows": "path,label\n",
    "two labels": "path,label\n{root}/more/000.png,1\n{root}/more/000.png,-1\n",
    "a path that leads nowhere": "path,label\n{root}/more/nowhere.png,1\n",
    "a quote that is never closed": 'path,label\n"{root}/more/000.png,1\n' + "{root}/more/001.png,1\n" * 4000,
    "copies with two labels": "path,label\n{root}/more/000.png,1\n{root}/more/copy.png,-1\n",
}


@pytest.mark.parametrize("what", TABLES)
def test_a_wrong_file_of_labels_is_one_message(root, tmp_path, what):
    shutil.copy(root / "more" / "000.png", root / "more" / "copy.png")
    (tmp_path / "labels.csv").write_text(TABLES[what].format(root=root), encoding="utf-8")
    arguments = ["--labels", str(tmp_path / "labels.csv"), "-o", str(tmp_path / "new.tfm")]
    result = run(app, ["update", str(root / "model.tfm"), *arguments])
    assert result.exit_code == 2 and "Traceback" not in result.output and result.stderr.count("error") == 1
    assert not (tmp_path / "new.tfm").exists()


@pytest.mark.parametrize("line", ["a.png,normal", "a.png,1.5,left", "a.png"])
def test_a_wrong_line_of_labels_is_shown(tmp_path, line):
    (tmp_path / "labels.csv").write_text(f"path,label\n{line}\n", encoding="utf-8")
    with pytest.raises(Mistake, match=f"line 2: expected path,1 or path,-1, got '{re.escape(line)}'"):
        read_labels(tmp_path / "labels.csv")


def test_without_images_and_labels_there_is_nothing_to_learn(made, tmp_path):
    result = run(app, ["update", str(made / "model.tfm"), "-o", str(tmp_path / "new.tfm")])
    assert result.exit_code == 2 and "--labels FILE" in result.stderr


@pytest.mark.slow
def test_names_that_are_not_text_survive(root, tmp_path):
    try:
        path = os.path.join(root, "more", 'a,"b\ncaf\udce9.png')
        with open(path, "wb") as file:
            Image.new("L", (8, 8), 90).save(file, "PNG")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes no such name")
    said, _, _ = update(root, tmp_path / "new.tfm", "--labels", save_labels(tmp_path / "labels.csv", {path: 1}))
    assert said["learned"] == 1


def test_trained_students_stay_and_it_is_said(root, tmp_path):
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2", "--students", "trained", "--epochs", "1"]
    model, newer = str(tmp_path / "trained.tfm"), str(tmp_path / "newer.tfm")
    assert run(app, ["fit", str(root / "train"), "-o", model, *options]).exit_code == 0
    result = run(app, ["update", model, str(root / "more"), "-o", newer, "--json"])
    assert result.exit_code == 0 and not json.loads(result.stdout)["students_updated"]
    assert "The trained students stay as they are" in result.stderr
    before, after = load(model), load(newer)
    for one, other in zip(before.students_.students_, after.students_.students_):
        assert all((a == b).all() for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_an_image_that_was_repaired_is_no_longer_unreadable(root, tmp_path):
    Image.fromarray(pictures_of(0)[30]).save(root / "train" / "broken.png")
    update(root, tmp_path / "new.tfm", str(root / "train" / "broken.png"))
    assert provenance(root / "model.tfm").unreadable and not provenance(tmp_path / "new.tfm").unreadable


def test_a_copy_of_a_learned_image_was_not_left_out(root, tmp_path):
    labels = np.array([1, 0])
    detector = SimpleNamespace(training_scores_=np.array([0.0, np.nan]))
    earlier = SimpleNamespace(labels=labels, detector=detector)
    for places, left_out in (([0, 1], []), ([1], ["a.png"])):
        lessons = Lessons()
        lessons._add("a.png", 1, places, earlier)
        assert lessons.left_out == left_out
