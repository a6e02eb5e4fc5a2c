"""The command `transformaly`, mostly in this process; and what it stands on: files, scores, figures."""

import contextlib
import csv
import errno
import glob
import html
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from conftest import pictures_of, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import logit
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.main import get_command
from typer.testing import CliRunner

import skl_transformaly
from skl_transformaly import TransformalyDetector, load, persistence
from skl_transformaly._fusion import conformal_threshold
from skl_transformaly.cli import _app, _console, _scores
from skl_transformaly.cli._app import in_options
from skl_transformaly.cli._commands import app
from skl_transformaly.cli._comments import comments
from skl_transformaly.cli._describe import outline
from skl_transformaly.cli._evaluation import METRICS, evaluate_scores, fpr_at_tpr, normal_classes
from skl_transformaly.cli._files import find_files
from skl_transformaly.cli._fit import _parse_size
from skl_transformaly.cli._fit import _warnings as _fit_warnings
from skl_transformaly.cli._inputs import load_model
from skl_transformaly.cli._parquet import ParquetScores
from skl_transformaly.cli._provenance import Provenance, image_facts
from skl_transformaly.cli._scores import COLUMNS, ScoreFile, ScoreFileError
from skl_transformaly.cli._trust import FalseAlarms, least_normal_text
from skl_transformaly.export import _export
from skl_transformaly.export._export import ExportError
from skl_transformaly.images import _images
from skl_transformaly.images._folders import display_path
from skl_transformaly.images._images import as_images
from skl_transformaly.students._activations import ImitationError
from skl_transformaly.students._block import _StudentTrainer
from skl_transformaly.utils import _container

# ----- finding files


@pytest.fixture
def folder(tmp_path):
    """Images at two depths, and what is none."""
    for name in ("b.png", "a.JPG", "deep/er/c.tif", ".hidden.png", ".git/d.png", "notes.txt", "deep/Thumbs.db"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def relative(found, folder):
    return [os.path.relpath(path, folder) for path in found.paths]


def test_folders_are_searched_in_depth_and_in_order(folder):
    found = find_files([str(folder)])
    assert relative(found, folder) == ["a.JPG", "b.png", "deep/er/c.tif"]
    assert (found.hidden, found.other) == (2, 2)


def test_patterns_pass_over_what_is_no_image(folder):
    found = find_files([f"{folder}/*"])
    assert relative(found, folder) == ["a.JPG", "b.png", "deep/er/c.tif"]
    assert relative(find_files([f"{folder}/**/*.tif"]), folder) == ["deep/er/c.tif"]
    assert find_files([f"{folder}/*.txt", f"{folder}/b*"]).other == 1


def test_a_pattern_that_links_lead_back_to_finds_each_image_once_by_the_shortest_path(folder):
    (folder / "deep" / "back").symlink_to("..")
    for pattern in ("**/*", "**", "deep/**/*.*", "**/*.???"):
        found = find_files([f"{folder}/{pattern}"])
        files = [os.path.realpath(path) for path in found.paths]
        assert len(files) == len(set(files)) == 3
    assert relative(find_files([f"{folder}/**/*.???"]), folder) == ["a.JPG", "b.png", "deep/er/c.tif"]


def test_two_links_that_lead_back_do_not_make_a_search_endless(folder):
    for name in ("x", "y"):
        (folder / "deep" / name).symlink_to("..")
        (folder / "deep" / "er" / name).symlink_to("..")
    assert relative(find_files([f"{folder}/**/*.???"]), folder) == ["a.JPG", "b.png", "deep/er/c.tif"]
    assert relative(find_files([f"{folder}/**/er/**/*.tif"]), folder) == ["deep/er/c.tif"]


@pytest.mark.parametrize(
    "pattern", ["**/*.png", "*/**/*.png", "**", "a/**/c/*.png", "**/b/**", "**/c/../*.png", "a/**b/*.png"]
)
def test_two_stars_match_what_glob_matches(tmp_path, monkeypatch, pattern):
    for name in ("0.png", "a/1.png", "a/b/2.png", "a/b/c/3.png", "a/.b/4.png", "d/b/5.png", "a/[x]/c/6.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    expected = {os.path.realpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert {os.path.realpath(path) for path in find_files([pattern]).paths} == expected and expected


def test_the_home_folder_is_found_in_lists_as_in_arguments(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    for found in (find_files(["~/b.png"]), find_files(["~/b*"]), find_files([], listed=["~/b.png"])):
        assert relative(found, folder) == ["b.png"]


def test_a_named_image_is_kept_though_a_pattern_finds_a_shorter_path(folder):
    (folder / "deep" / "back").symlink_to("..")
    names = [f"{folder}/deep/back/b.png", f"{folder}/*.png"]
    assert relative(find_files(names), folder) == ["deep/back/b.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(folder):
    (folder / "[b].png").write_bytes(b"")
    assert relative(find_files([str(folder / "[b].png")]), folder) == ["[b].png"]


def test_each_image_counts_once(folder):
    found = find_files([str(folder), str(folder / "b.png"), f"{folder}/./b.png", f"{folder}/*.png"])
    assert len(found.paths) == len(set(found.paths)) == 3


TWICE = ["{0} {0}", "{0} {0}/.", "{0}/deep {0}", "{0} {0}/deep", "{0} {0}/notes.txt", "{0}/** {0}", "{0}/**/*.* {0}"]


@pytest.mark.parametrize("names", TWICE)
@pytest.mark.parametrize("as_list", [False, True])
def test_what_is_passed_over_counts_once(folder, names, as_list):
    whole = find_files([str(folder)])
    names = [name.format(folder) for name in names.split(" ")]
    if as_list and not any("*" in name for name in names):
        found = find_files(names[:1], listed=names[1:])
    else:
        found = find_files(names)
    assert sorted(found.paths) == sorted(whole.paths)
    assert (found.hidden, found.others) == (whole.hidden, whole.others)


def test_what_is_passed_over_in_a_hidden_folder_counts_if_it_is_named(folder):
    (folder / ".git" / "notes.md").write_bytes(b"")
    found = find_files([str(folder), str(folder / ".git")])
    assert (found.hidden, found.others[".md"]) == (2, 1) and len(found.paths) == 4


def test_content_decides_where_a_named_file_has_no_image_suffix(folder):
    Image.new("L", (4, 4)).save(folder / "image.dat", format="PNG")
    found = find_files([str(folder / "image.dat"), str(folder / "notes.txt"), str(folder / ".hidden.png")])
    assert relative(found, folder) == ["image.dat", ".hidden.png"] and found.other == 1


def test_a_list_may_be_out_of_date(folder):
    found = find_files([], listed=[str(folder / "gone.png"), str(folder / "b.png")])
    assert relative(found, folder) == ["gone.png", "b.png"]


@pytest.mark.parametrize("name", ["nowhere", "no*thing"])
def test_a_name_that_is_not_there_is_refused(folder, name):
    with pytest.raises(ValueError, match=r"does not exist|Nothing matches"):
        find_files([str(folder / name)])


@settings(deadline=None)
@given(st.text())
def test_shown_paths_are_printable(text):
    assert display_path(text).isprintable()


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P"])))
def test_plain_names_are_shown_as_they_are(text):
    assert display_path(text) == text


# ----- files of scores

paths_of_all_kinds = st.text(min_size=1).filter(lambda text: "\0" not in text and "/" not in text and text != ".")
numbers = st.one_of(st.none(), st.floats(allow_nan=False))
rows_of_scores = st.lists(
    st.builds(
        lambda path, score, decision, p, label: dict(zip(COLUMNS, (path, score, decision, p, label))),
        paths_of_all_kinds,
        numbers,
        numbers,
        numbers,
        st.sampled_from([1, -1]),
    ),
    max_size=6,
    unique_by=lambda row: row["path"],
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=rows_of_scores, data=st.data())
def test_cut_anywhere_a_file_goes_on_to_what_it_would_have_been(tmp_path, suffix, rows, data):
    whole = tmp_path / f"whole{suffix}"
    with ScoreFile(whole) as file:
        file.write(rows)
    content = whole.read_bytes()
    stopped = tmp_path / f"stopped{suffix}"
    stopped.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with ScoreFile(stopped, resume=True) as file:
        left = [row for row in rows if row["path"] not in file.done]
        # rows that are there are the first ones, none of them torn
        assert left == rows[len(rows) - len(left) :]
        file.write(left)
    assert stopped.read_bytes() == content


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=rows_of_scores)
def test_csv_says_what_was_written(tmp_path, rows):
    with ScoreFile(tmp_path / "s.csv") as file:
        file.write(rows)
    with open(tmp_path / "s.csv", newline="", encoding="utf-8", errors="surrogateescape") as text:
        header, *read = csv.reader(text)
    assert tuple(header) == COLUMNS
    for row, fields in zip(rows, read, strict=True):
        assert fields[0] in (row["path"], "./" + row["path"])
        assert [float(field) if field else None for field in fields[1:4]] == [row[name] for name in COLUMNS[1:4]]
        assert int(fields[4]) == row["prediction"]


ROW = dict(zip(COLUMNS, ("a.png", -1.5, 0.5, 0.25, 1)))


def test_a_spreadsheet_sees_no_formula(tmp_path):
    with ScoreFile(tmp_path / "s.csv") as file:
        file.write([{**ROW, "path": "=HYPERLINK(1).png"}])
    with ScoreFile(tmp_path / "s.csv", resume=True) as file:
        assert list(file.done) == ["=HYPERLINK(1).png"]
    assert "\n./=HYPERLINK" in (tmp_path / "s.csv").read_text()


@pytest.mark.parametrize("content", [b"other,columns\n1,2\n", b'"' + b"x\n" * 40_000, b"\x00\xff" * 40_000])
def test_a_file_of_something_else_is_not_gone_on_with(tmp_path, content):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ScoreFileError, match="not a file of scores"):
        ScoreFile(tmp_path / "s.csv", resume=True)
    assert (tmp_path / "s.csv").read_bytes() == content


def scored_row(path, score=1.0):
    return dict(zip(COLUMNS, (path, score, 1.0, 1.0, 1)))


def stop(*args, **kw):
    raise KeyboardInterrupt


STOPS = {
    "formatting": lambda patch: patch.setattr(_scores, "format_rows", stop),
    "writing": lambda patch: patch.setattr(os, "fsync", stop),
    "replacing": lambda patch: patch.setattr(os, "replace", stop),
    "locking": lambda patch: patch.setattr(_scores, "_lock", stop),
    "nothing": lambda patch: None,
}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("change", ["drop", "arrange"])
@pytest.mark.parametrize("during", STOPS)
def test_a_change_of_rows_that_is_stopped_loses_none(tmp_path, monkeypatch, kind, change, during):
    """As for a million rows, which take seconds; afterwards the file is locked and can be added to."""
    path, names = tmp_path / f"s.{kind}", ["a.png", "b.png", "c.png"]
    with ScoreFile(path) as file:
        file.write([scored_row(name) for name in names])
    os.chmod(path, 0o600)
    with ScoreFile(path, resume=True) as file:
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            STOPS[during](patch)
            file.drop(["a.png"]) if change == "drop" else file.arrange(names[::-1])
        with ScoreFile(tmp_path / f"t.{kind}") as other:
            other.write([scored_row(name) for name in (names[1:] if change == "drop" else names[::-1])])
        before, after = path.read_bytes(), (tmp_path / f"t.{kind}").read_bytes()
        if during == "nothing":
            assert before == after
            file.write([scored_row("d.png")])
            assert path.read_bytes().startswith(after) and "d.png" in file.done
            with pytest.raises(ScoreFileError, match="Another process"):
                ScoreFile(path)
    with ScoreFile(path, resume=True) as file:
        assert set(names[1:]) <= set(file.done) and ("a.png" in file.done or before == after)
    assert path.stat().st_mode & 0o777 == 0o600 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_full_disk_leaves_whole_rows(tmp_path, suffix):
    path = tmp_path / f"s{suffix}"

    class Full:
        """A file that takes ten more bytes."""

        def __init__(self, file):
            self.file, self.room = file, 10

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(content[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    with ScoreFile(path) as file:
        file.write([ROW])
        before = file.path.read_bytes()
        file._file = Full(file._file)
        with pytest.raises(OSError, match="No space"):
            file.write([{**ROW, "path": "b.png"}])
        assert file.path.read_bytes() == before
    with ScoreFile(path, resume=True) as file:
        assert list(file.done) == ["a.png"]


def test_parquet_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "s.parquet"
    rows = [ROW, {**ROW, "path": "caf\udce9.png", "score": None, "prediction": -1}]
    table = ParquetScores(path)
    table.add(rows[:1])
    table.add(rows[1:])
    assert not path.exists()
    table.write()
    assert pyarrow.parquet.read_table(path).to_pylist() == [rows[0], {**rows[1], "path": "caf\\xe9.png"}]
    assert os.listdir(tmp_path) == ["s.parquet"]


# ----- evaluating

labelled_scores = st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(-5, 5)), min_size=2, max_size=30).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@settings(deadline=None)
@given(labelled_scores)
def test_fpr_is_that_of_the_strictest_threshold_that_catches_enough(pairs):
    y, scores = np.array(pairs).T
    best = min(np.mean(scores[y == 1] <= t) for t in scores if np.mean(scores[y == -1] <= t) >= 0.95)
    assert fpr_at_tpr(y == -1, -scores) == pytest.approx(best)


@settings(deadline=None, max_examples=15)
@given(labelled_scores)
def test_figures_are_scikit_learns_with_anomalies_as_positives(pairs):
    y, scores = np.array(pairs).T
    figures = evaluate_scores(scores, y, n_resamples=2)
    assert figures["auroc"].value == pytest.approx(roc_auc_score(y, scores))
    assert figures["aupr"].value == pytest.approx(average_precision_score(y == -1, -scores))


def test_intervals_are_as_wide_as_a_standard_error_on_the_scale_of_logits(rng):
    y = np.repeat([1, -1], [50, 30])
    scores = rng.normal(np.where(y == 1, 1.0, 0.0))
    wins = (scores[y == 1][:, np.newaxis] > scores[y == -1]).astype(float)  # AUROC is their mean
    # of which DeLong et al. give the variance
    error = np.sqrt(wins.mean(axis=1).var(ddof=1) / 50 + wins.mean(axis=0).var(ddof=1) / 30)
    value, low, high = evaluate_scores(scores, y, n_resamples=400)["auroc"]
    away = student.ppf(0.975, 29) * error / (value * (1 - value))
    np.testing.assert_allclose(logit([low, high]), logit(value) + np.array([-away, away]), atol=0.15)


@pytest.mark.parametrize("n_anomalies, most", [(85, 1.0), (86, 0.2)])
def test_few_anomalies_set_no_upper_limit_to_false_alarms(rng, n_anomalies, most):
    """With 85, all of those at hand may be easier to find than a twentieth of all are: 0.95^85 is above 0.0125."""
    y = np.repeat([1, -1], [200, n_anomalies])
    _, _, high = evaluate_scores(rng.normal(np.where(y == 1, 5.0, 0.0)), y, n_resamples=2)["fpr95"]
    assert high == 1 if most == 1 else high < most


@pytest.mark.parametrize(("n", "confidence"), [(40, 0.95), (7, 0.8)])
@pytest.mark.slow
def test_figures_without_mistakes_claim_no_certainty(n, confidence):
    """No anomaly scores as high as a normal image: a share of 0 of n is below p, or chance would bring (1 - p)^n."""
    y = np.repeat([1, -1], [n, 200])
    figures = evaluate_scores(np.where(y == 1, 1.0, 0.0) + np.linspace(0, 0.5, n + 200), y, confidence=confidence)
    assert figures["auroc"].value == pytest.approx(figures["aupr"].value) == 1
    assert np.isnan([*figures["auroc"][1:], *figures["aupr"][1:]]).all()
    value, low, high = figures["fpr95"]
    assert value == low == 0 and (1 - high) ** n == pytest.approx((1 - confidence) / 4)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setitem(evaluate_scores.__kwdefaults__, "n_resamples", 100)


@pytest.mark.usefixtures("few_resamples")
def test_evaluate_says_why_there_is_no_interval(tmp_path, monkeypatch, model, test_dir):
    def perfect(detector, images):
        normal = np.arange(len(images)) < 8  # "good" comes before "six"
        return {"score": 1.0 * normal, "decision": normal - 0.5, "p_value": 0.5 * normal, "prediction": 2 * normal - 1}

    monkeypatch.setattr(TransformalyDetector, "score_table", perfect)
    said = run(app, ["evaluate", model, test_dir]).stdout
    assert "AUROC             1.000  too few mistakes for an interval" in said
    assert "FPR at 95 % TPR   0.000  too few images for an interval" in said


@pytest.mark.slow
@pytest.mark.parametrize("n_normal, n_anomalies", [(60, 60), (50, 10), (200, 10)])
@pytest.mark.parametrize("apart", [1.0, 2.0])
def test_intervals_cover_what_they_should(rng, n_normal, n_anomalies, apart):
    """Of 40 samples of two Gaussians, whose figures are known, nearly all intervals of 95 % hold them."""
    y = np.repeat([1, -1], [n_normal, n_anomalies])
    many = np.repeat([1, -1], [100_000, 100_000 * n_anomalies // n_normal])
    scores = rng.normal(np.where(many == 1, apart, 0.0))
    true = {name: metric(many == -1, -scores) for name, metric in METRICS.items()}
    held = dict.fromkeys(true, 0)
    for k in range(40):
        figures = evaluate_scores(rng.normal(np.where(y == 1, apart, 0.0)), y, n_resamples=100, random_state=k)
        for name, (_, low, high) in figures.items():
            held[name] += low <= true[name] <= high
    assert min(held.values()) >= 33, held


@pytest.mark.parametrize(
    ("classes", "good", "expected"),
    [
        (["crack", "good"], [], ["good"]),
        (["Normal", "Covid"], [], ["Normal"]),
        (["cat", "dog", "emu"], ["emu", "cat"], ["cat", "emu"]),
        (["crack", "good"], ["crack"], ["crack"]),
    ],
)
def test_which_class_is_normal(classes, good, expected):
    assert normal_classes(classes, good) == expected


@pytest.mark.parametrize(
    ("classes", "good", "message"),
    [
        (["cat", "dog"], [], "Which class is normal"),
        (["good", "normal", "x"], [], "Which class is normal"),
        (["good", "x"], ["god"], "Did you mean 'good'"),
        (["good"], [], "nothing to find"),
    ],
)
def test_what_is_normal_is_never_guessed(classes, good, message):
    with pytest.raises(ValueError, match=message):
        normal_classes(classes, good)


def commented(normal_p, anomalous_p, *, images=200, alpha=0.05, classes=None):
    """Comments on p-values of normal images and anomalies, which are their scores as well."""
    p = np.concatenate([normal_p, anomalous_p])
    y = np.repeat([1, -1], [len(normal_p), len(anomalous_p)])
    figures = evaluate_scores(p, y, n_resamples=100)
    return " ".join(comments(figures, y, p < alpha, p, classes or {}, FalseAlarms.promised(images, alpha)))


def test_a_good_model_gets_one_sentence():
    said = commented(np.linspace(0.03, 1, 50), np.repeat([0.01, 0.06], [20, 10]))
    assert said.startswith("The model tells these anomalies from normal images (AUROC 0.9")
    assert "It flags 20 of 30 anomalies, and about as many normal images" in said


def test_anomalies_above_the_threshold_name_the_rate_that_would_flag_them():
    said = commented(np.linspace(0.06, 1, 40), np.full(20, 0.07))
    assert "but no anomaly is flagged" in said and "--alpha 0.1, 20 of 20 anomalies" in said
    assert "and 2 of 40 normal images" in said and "Images among those of the fit that are not normal" in said


def test_more_false_alarms_than_expected_are_told():
    normal = np.concatenate([np.full(15, 0.01), np.linspace(0.1, 1, 35)])
    assert "15 of 50 normal images are flagged; about 2 (5 %) were expected" in commented(normal, np.full(30, 0.005))
    # of ten images alone nobody knows the rate
    assert "were expected" not in commented(normal, np.full(30, 0.005), images=10, alpha=0.2)


def test_few_images_are_said_to_be_few():
    assert "3 normal images and 1 anomaly are few" in commented([0.5, 0.6, 0.7], [0.01])


def test_the_hardest_class_is_named():
    classes = {"crack": {"auroc": 0.95}, "dust": {"auroc": 0.55}}
    assert "dust is the hardest class" in commented(np.linspace(0.03, 1, 50), np.full(30, 0.01), classes=classes)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 300), st.floats(0.005, 0.5))
def test_expected_false_alarms_are_those_of_exchangeable_scores(images, asked):
    alarms = FalseAlarms.promised(images, asked)
    assert alarms.expected == max(asked, 1 / (images + 1))
    assert 0 <= alarms.low < alarms.expected < alarms.high <= 1
    if images >= 20:
        return
    # the threshold lies between held-out scores; uniform ones tell how much of new ones is below the k-th
    k = max(1, round(alarms.expected * (images + 1)))
    exact = FalseAlarms.promised(images, k / (images + 1))
    kth = np.sort(np.random.default_rng(0).random((4000, images)), axis=1)[:, k - 1]
    np.testing.assert_allclose([exact.low, exact.high], np.percentile(kth, [5, 95]), atol=0.03)


@pytest.mark.parametrize(("images", "alpha"), [(8, 0.2), (19, 0.05), (20, 0.05), (99, 0.07), (10, 0.75)])
def test_a_conformal_detector_flags_a_multiple_of_what_one_image_counts(images, alpha):
    draws = np.sort(np.random.default_rng(0).random((20_000, images)), axis=1)
    below = np.array([conformal_threshold(scores, alpha) for scores in draws])  # the share that scores lower
    alarms = FalseAlarms.of(SimpleNamespace(calibration_scores_=draws[0], alpha=alpha))
    assert alarms.expected == pytest.approx(below.mean(), abs=0.005)
    np.testing.assert_allclose([alarms.low, alarms.high], np.percentile(below, [5, 95]), atol=0.01)
    assert "cannot promise" not in str(alarms)


@pytest.mark.parametrize("asked", [0.05, 0.3])
@pytest.mark.parametrize("conformal", [False, True])
def test_copies_promise_no_more_than_one_image(asked, conformal):
    """Five images five times each, a known anomaly, one that was left out, and one that could not be read."""
    detector = SimpleNamespace(
        training_scores_=np.append(np.repeat(np.linspace(1, 2, 5), 5), [np.nan] * 3),
        training_groups_=np.append(np.repeat(np.arange(5), 5), [-1, -1, 7]),
        training_labels_=np.append(np.ones(25), [-1, 0, 1]),
        held_out_=True,
        contamination=asked,
    )
    if conformal:
        detector.alpha, detector.calibration, detector.calibration_scores_ = asked, "held-out", np.arange(25.0)
    alarms = FalseAlarms.of(detector)
    assert alarms.images == 5 and alarms.left_out == (not conformal)
    assert alarms.expected == pytest.approx(max(1 / 6, 7 / 26 if conformal and asked == 0.3 else asked))


# ----- what a model file says of its training


def test_what_is_kept_of_the_training_comes_back():
    made = Provenance("/r", ["a/b.png"], [0], [-1.5], ["00"], {"c.png": "why"}, 1, 2, 3, 4.5, {"teacher": "t"})
    assert Provenance.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["../secret.png"]},
        {"files": ["/etc/secret.png"]},
        {"files": "a.png"},
        {"files": ["a.png"], "fitted": [1]},
        {"scores": [1.0]},
        {"settings": {"teacher": 1}},
        {"seed": "x"},
    ],
    ids=str,
)
def test_what_is_wrong_about_the_training_is_refused(change):
    with pytest.raises(ValueError, match="not valid"):
        Provenance.from_json({next(iter(Provenance().to_json())): change})


def test_a_pictures_digest_is_the_one_by_which_a_detector_knows_it(work, model):
    path = str(work[0] / "train" / "000.png")
    assert image_facts(path, as_images([path])[0]).digest == bytes(load(model).training_digests_[0]).hex()


# ----- the command

run = CliRunner().invoke


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Digits as files, and a model of the zeros: ``train``, ``test/good``, ``test/six``, ``model.tfm``."""
    root = tmp_path_factory.mktemp("work")
    zeros = pictures_of(0)
    write_images(root / "train", zeros[:24])
    write_images(root / "test" / "good", zeros[24:32])
    write_images(root / "test" / "six", pictures_of(6)[:6])
    (root / "train" / ".hidden.png").write_bytes(b"")
    (root / "train" / "notes.txt").write_bytes(b"")
    (root / "train" / "broken.png").write_bytes(b"no image")
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2"]
    result = run(app, ["fit", str(root / "train"), "-o", str(root / "model.tfm"), *options, "--json"])
    assert result.exit_code == 0, result.output
    return root, json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def model(work):
    return str(work[0] / "model.tfm")


@pytest.fixture(scope="module")
def test_dir(work):
    return str(work[0] / "test")


@pytest.mark.parametrize("text, size", [("32x64", (32, 64)), (" 64, 32", (64, 32)), ("32", 32), (None, None)])
def test_image_sizes_are_a_side_or_height_and_width(text, size):
    assert _parse_size(text) == size


def test_images_may_be_resized_to_height_and_width(work, tmp_path):
    options = ["--blocks", "1", "--alpha", "0.2", "--image-size", "32x64"]
    result = run(app, ["fit", str(work[0] / "train"), "-o", str(tmp_path / "model.tfm"), *options])
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "model.tfm").extractor_.image_size_ == (32, 64)


def test_fit_says_what_it_took_and_learned(work):
    root, said, stderr = work
    assert (said["images"], said["hidden"], said["other"]) == (24, 1, 1)
    assert list(map(os.path.basename, said["unreadable"])) == ["broken.png"]
    assert "Fitting on 25 images with teacher 'bundled'." in stderr and "s left." in stderr
    assert "1 image could not be read (left out)" in stderr
    assert said["expected_false_positive_rate"] == 0.2
    scores = load(root / "model.tfm").training_scores_
    lowest = [os.path.basename(one["path"]) for one in said["least_normal"]]
    assert lowest == [f"{i:03}.png" for i in np.argsort(scores)[:5]]


@pytest.mark.parametrize("name", ["my good", "it's", "a;b", "$HOME"])
def test_the_next_command_can_be_pasted(work, tmp_path, name):
    shutil.copytree(work[0] / "test" / "good", tmp_path / name)
    model, page = str(tmp_path / f"{name}.tfm"), tmp_path / "r.html"
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2"]
    said = run(app, ["fit", str(tmp_path / name), "-o", model, *options]).stderr
    command = shlex.split(said.partition("Next: ")[2])
    assert command == ["transformaly", "report", model, "NEW_IMAGES", "--normal", str(tmp_path / name)]
    run(app, ["report", model, str(work[0] / "test" / "six"), "-o", str(page)])
    shown = re.search("<code>(transformaly update .*)</code>", page.read_text(encoding="utf-8"))[1]
    assert shlex.split(html.unescape(shown))[:4] == ["transformaly", "update", model, "--labels"]


def test_images_left_out_may_have_been_normal_and_then_more_are_flagged():
    alarms = FalseAlarms.promised(90, 0.05, left_out=10)
    assert alarms.most == pytest.approx((10 + 0.05 * 90) / 100)
    assert "If the images that were left out are normal, it will be about 14 %" in str(alarms)
    assert FalseAlarms.promised(90, 0.05).most == pytest.approx(0.05)


@pytest.mark.parametrize("trim", [0.0, 0.1])
def test_fit_counts_what_is_below_the_threshold_and_says_what_to_do(trim):
    scores = np.array([0.0, -3.0, 0.2, np.nan, -2.5, 0.3, -2.2, -2.1])
    text = least_normal_text(SimpleNamespace(training_scores_=scores, offset_=-2.0, trim=trim), [("b.png", -3.0)])
    assert "(4 of 7 are below the threshold of -2.0):\n      -3.0  b.png" in text
    assert f"fit again with {'a higher --trim than 0.1' if trim else '--trim, such as --trim 0.1'}:" in text


def test_nothing_is_advised_where_no_image_is_odd():
    detector = SimpleNamespace(training_scores_=-np.arange(8.0), offset_=-9.0, trim=0.0)
    text = least_normal_text(detector, [("b.png", -7.0)])
    assert "0 of 8 are below" in text and "trim" not in text and "remove" not in text


@pytest.mark.parametrize("option, here", [("--contamination", "--alpha"), ("--batch_size=2", "--batch-size")])
def test_a_parameter_of_the_library_is_called_otherwise_here(option, here, test_dir, tmp_path):
    result = run(app, ["fit", str(test_dir), "-o", str(tmp_path / "m.tfm"), option, "0.1"])
    assert result.exit_code == 2 and f"Use {here} instead." in result.stderr


@pytest.mark.parametrize("n, advised", [(2, False), (5, False), (6, True)])
def test_no_trim_is_advised_that_would_leave_out_no_image(n, advised):
    detector = SimpleNamespace(training_scores_=-np.arange(float(n)), offset_=-0.5, trim=0.0)
    text = least_normal_text(detector, [("b.png", 1.0 - n)])
    assert ("--trim" in text) == advised == (round(0.1 * n) >= 1)
    assert "remove them" in text


def test_fit_leaves_out_what_is_least_like_the_others_and_names_copies(work, tmp_path):
    folder = tmp_path / "unclean"
    shutil.copytree(work[0] / "train", folder, ignore=shutil.ignore_patterns("broken.png", ".*", "*.txt"))
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    shutil.copy(folder / "003.png", folder / "again.png")
    options = ["--image-size", "32", "--blocks", "1", "--alpha", "0.2", "--trim", "0.04"]
    result = run(app, ["fit", str(folder), "-o", str(tmp_path / "m.tfm"), *options])
    assert result.exit_code == 0, result.output
    assert "Left out as least like the others: 1 image" in result.output and "red.png" in result.output
    assert "If the images that were left out are normal, it will be about" in result.output
    assert "1 image is a copy of another, such as" in result.output
    assert run(app, ["info", str(tmp_path / "m.tfm")]).exit_code == 0
    # 0.2 of two images, and more if the one that was left out of 25 is normal
    scored = run(app, ["score", str(tmp_path / "m.tfm"), str(folder / "003.png"), str(folder / "004.png")])
    assert "If all were normal, 0.4 to 0.5 would be flagged on average." in scored.output


def test_copies_are_no_images_more(work, tmp_path):
    """In what `fit`, `info`, `score` and the page expect."""
    (tmp_path / "in").mkdir()
    for i in range(5):
        for copy in range(5):
            shutil.copy(work[0] / "train" / f"{i:03}.png", tmp_path / "in" / f"{i}-{copy}.png")
    model, page = str(tmp_path / "m.tfm"), tmp_path / "r.html"
    options = ["--image-size", "32", "--blocks", "1"]
    said = run(app, ["fit", str(tmp_path / "in"), "-o", model, *options]).stderr
    assert "About 17 % of new normal images" in said and "5 images cannot promise 5 %; 19 images can." in said
    settings = json.loads(run(app, ["info", model, "--json"]).stdout)["settings"]
    assert settings["expected false-positive rate"] == "0.17"
    assert settings["calibration"] == "25 training images, each scored without itself and its copies: 5 different ones"
    new = str(work[0] / "test" / "six")
    assert "If all were normal, 1.0 would be flagged on average." in run(app, ["score", model, new]).stderr
    run(app, ["report", model, new, "-o", str(page)])
    assert "If all were normal, about 1 would be (17 %)." in page.read_text(encoding="utf-8")


def test_fit_decodes_each_image_once(work, tmp_path, monkeypatch):
    decoded = Counter()
    real = _images.decode_file
    monkeypatch.setattr(_images, "decode_file", lambda path, **kw: (decoded.update([str(path)]), real(path, **kw))[1])
    options = ["--blocks", "1", "--alpha", "0.2", "--image-size", "32"]
    assert run(app, ["fit", str(work[0] / "test" / "good"), "-o", str(tmp_path / "m.tfm"), *options]).exit_code == 0
    # the first two also show how the teacher's blocks are called
    assert sorted(decoded.values())[:-2] == [1] * 6


def test_a_model_knows_its_training_images(work, model):
    detector = load(model)
    said = json.loads(run(app, ["info", model, "--json"]).stdout)
    assert said["saved"]["images of the fit"] == "25, 1 of them unreadable" and said["seed"] == 0
    assert said["settings"]["calibration"] == "24 training images, each scored without itself"
    assert said["settings"]["teacher"] == "bundled, tf_efficientnet_lite0"
    from skl_transformaly.persistence import read_header

    made = Provenance.from_json(read_header(model)["metadata"])
    # the nearest training image of a training image is itself, by its place among the files
    fitted = [os.path.join(made.root, made.files[i]) for i in made.fitted if i >= 0]
    assert detector.explain(fitted[:4], n_neighbors=1)["neighbor0"].tolist() == made.fitted[:4]
    assert made.fitted[24] == -1 and list(made.unreadable) == ["broken.png"]
    paths = [os.path.join(made.root, name) for name in made.files]
    np.testing.assert_allclose(made.scores, detector.score_samples(paths), rtol=1e-4, atol=1e-3)


METADATA = [
    None,
    {"camera": "left"},
    {"settings": {"exposure": 3}},
    {"files": ["/data/a.png"], "scores": "none", "fitted": 1, "root": "/data", "seed": "x"},
]


@pytest.mark.parametrize("metadata", METADATA, ids=str)
@pytest.mark.slow
def test_metadata_of_python_are_the_users_own(tmp_path, model, test_dir, metadata):
    saved, page = str(tmp_path / "python.tfm"), tmp_path / "r.html"
    persistence.save(load(model), saved, metadata=metadata)
    said = json.loads(run(app, ["info", saved, "--json"]).stdout)
    assert said["images"] == 24 and (said["root"], said["seed"]) == ("", None)
    result = run(app, ["report", saved, test_dir + "/six", "-o", str(page)])
    assert result.exit_code == 0 and "of the fit</span>distance" in page.read_text(encoding="utf-8"), result.output
    updated = str(tmp_path / "updated.tfm")
    result = run(app, ["update", saved, test_dir + "/good", "-o", updated])
    assert result.exit_code == 0 and "32 normal images, 24 before" in result.stderr, result.output
    kept = persistence.read_header(updated)["metadata"]
    assert {name: kept[name] for name in metadata or {}} == (metadata or {})
    # the page names those whose names are known, which are the new ones
    run(app, ["report", updated, test_dir, "-o", str(page), "--normal", test_dir + "/good"])
    named = re.findall(r'title="([^"]+)"|class="none">([^<]+)<', page.read_text(encoding="utf-8"))
    names = {name or text for name, text in named}
    assert names <= {f"{i:03}.png" for i in range(8)} | {f"image {i} of the fit" for i in range(25)}
    assert (
        any("image" in name for name in names)
        and json.loads(run(app, ["info", updated, "--json"]).stdout)["images"] == 32
    )


def test_names_that_a_file_has_no_room_for_are_left_out(work, tmp_path, monkeypatch, model):
    """With a warning at the end of a fit, instead of an error that loses it."""
    document = persistence.read_header(model)
    text = json.dumps({name: document[name] for name in ("metadata", "objects", "probes", "teachers", "made")})
    values = sum(text.count(mark) for mark in ",[{")
    monkeypatch.setattr(_container, "_MAX_NODES", values - 2 * 24)
    out, options = str(tmp_path / "m.tfm"), ["--image-size", "32", "--blocks", "1", "--alpha", "0.2"]
    result = run(app, ["fit", str(work[0] / "train"), "-o", out, *options])
    assert result.exit_code == 0 and "the names of 24 images are too much for a model file" in result.stderr
    made = Provenance.from_json(persistence.read_header(out)["metadata"])
    assert (made.files, made.fitted, made.seed) == ([], [], 0) and list(made.unreadable) == ["broken.png"]
    assert json.loads(run(app, ["info", out, "--json"]).stdout)["images"] == 24
    # and so with an update, of which the names have no room either
    monkeypatch.setattr(_container, "_MAX_NODES", values + 24)
    out = str(tmp_path / "updated.tfm")
    result = run(app, ["update", model, str(work[0] / "test" / "good"), "-o", out])
    assert result.exit_code == 0 and "the names of 32 images are too much for a model file" in result.stderr
    assert Provenance.from_json(persistence.read_header(out)["metadata"]).files == []
    load(out)


def test_images_on_two_drives_make_a_model_that_names_none(work, tmp_path, monkeypatch, model):
    """Windows has no folder above them, which must not lose a fit at its end."""

    def refuse(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", refuse)
    out = str(tmp_path / "m.tfm")
    result = run(
        app, ["fit", str(work[0] / "train"), "-o", out, "--image-size", "32", "--blocks", "1", "--alpha", "0.2"]
    )
    assert result.exit_code == 0 and "several drives" in result.stderr
    made = Provenance.from_json(persistence.read_header(out)["metadata"])
    assert (made.root, made.files, made.fitted, made.unreadable) == ("", [], [], {})
    updated, page = str(tmp_path / "updated.tfm"), str(tmp_path / "page.html")
    result = run(app, ["update", model, str(work[0] / "test" / "good"), "-o", updated])
    assert result.exit_code == 0 and "several drives" in result.stderr
    result = run(app, ["report", updated, str(work[0] / "test"), "-o", page])
    assert result.exit_code == 0 and str(work[0] / "test") in Path(page).read_text(encoding="utf-8")


def test_info_says_the_main_settings_of_a_model_saved_in_python(tmp_path, model):
    detector = load(model)
    persistence.save(detector, tmp_path / "python.tfm")
    said = json.loads(run(app, ["info", str(tmp_path / "python.tfm"), "--json"]).stdout)["settings"]
    assert said == {
        "teacher": "bundled",
        "weights": "in the file",
        "weights SHA-256": detector.extractor_.weights_sha256_,
        "feature spaces": ", ".join(detector.feature_spaces_),
        "contamination": str(detector.contamination),
        "threshold": f"{detector.offset_:.6g}",
    }


def test_info_imports_nothing_that_takes_long(model):
    code = (
        f"import sys; sys.argv = ['transformaly', 'info', {str(model)!r}]\n"
        "from skl_transformaly.__main__ import main\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code\n"
        "print(code, [m for m in ('torch', 'timm', 'sklearn') if m in sys.modules], file=sys.stderr)"
    )
    assert python(code).stderr == "0 []\n"


def test_info_is_for_people_too(model):
    text = run(app, ["info", model]).stdout
    assert "tf_efficientnet_lite0" in text and "expected false-positive rate" in text


def test_info_prints_the_digest_of_the_file(model):
    assert persistence.read_header(model)["sha256"] in run(app, ["info", model]).stdout.split()


def test_info_refuses_a_damaged_file(model, tmp_path):
    content = bytearray(Path(model).read_bytes())
    content[-1] ^= 1
    (tmp_path / "m.tfm").write_bytes(content)
    result = run(app, ["info", str(tmp_path / "m.tfm")])
    assert result.exit_code == 2 and "is damaged" in result.stderr


def forged(path, **changes):
    """A file that describes what it likes."""
    document = {"class": "x", "made": {}, "teachers": [], "metadata": {}, "probes": {}, "objects": []}
    _container.write_model_file(path, {**document, **changes}, {})
    return str(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"class": "x\nSHA-256  0"},
        {"made": {"saved_at": "now\nSHA-256  0"}},
        {"teachers": [{"model_name": "a\nSHA-256  0", "sha256": ["b\nSHA-256  0"]}, 3, None]},
        {"objects": [3, {"state": 1, "params": 2}, {"state": {"offset_": "c\nSHA-256  0"}, "params": {}}]},
        {"teachers": 1, "objects": "a"},
        {"made": {"environment": {"a\nSHA-256  0": "b\nSHA-256  0"}}},
        {"metadata": {"transformaly command line": {"root": "/a\nSHA-256  0", "settings": {"b\nSHA-256  0": "7"}}}},
    ],
)
def test_no_line_of_info_can_be_forged(tmp_path, changes):
    result = run(app, ["info", forged(tmp_path / "m.tfm", **changes)])
    assert result.exit_code == 0
    assert sum(line.startswith("SHA-256") for line in result.stdout.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["x", 10**400, True, None])
def test_info_refuses_numbers_that_are_none(tmp_path, seconds):
    metadata = {"transformaly command line": {"root": "/a", "seconds": seconds}}
    result = run(app, ["info", forged(tmp_path / "m.tfm", metadata=metadata)])
    assert result.exit_code == 2 and "seconds" in result.stderr


def test_info_refuses_what_describes_no_detector(tmp_path):
    _container.write_model_file(tmp_path / "m.tfm", {}, {})
    result = run(app, ["info", str(tmp_path / "m.tfm")])
    assert result.exit_code == 2 and "does not describe a detector" in result.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed):
    command = f"{shlex.quote(sys.executable)} -m skl_transformaly info nowhere.tfm {closed}"
    assert subprocess.run(["sh", "-c", command], check=False, capture_output=True).returncode == 2


@pytest.mark.parametrize("command", [["report", "{m}", "{t}", "-o", "-"], ["report", "{m}", "{t}", "-o", "{tmp}"]])
def test_an_output_that_is_no_file_is_refused(tmp_path, monkeypatch, model, test_dir, command):
    monkeypatch.chdir(tmp_path)
    result = run(app, [part.format(m=model, t=test_dir, tmp=tmp_path) for part in command])
    assert result.exit_code == 2 and os.listdir(tmp_path) == []


def test_a_report_of_a_model_that_was_saved_in_python_shows_its_images(tmp_path, work, model, test_dir):
    saved = str(tmp_path / "python.tfm")
    persistence.save(load(model), saved)
    for folder, shown in ((work[0] / "train", True), (work[0] / "test" / "six", False)):
        out = tmp_path / "r.html"
        result = run(app, ["report", saved, test_dir, "--normal", str(folder), "-o", str(out)])
        assert result.exit_code == 0, result.output
        assert ("data-near=" in out.read_text()) == shown
        assert ("is one of the fit" in result.stderr) != shown


@pytest.mark.parametrize("row", [{"prediction": "1"}, {"score": "1"}, {"path": 3}, {"p_value": True}, {"decision": []}])
def test_rows_of_another_kind_are_not_continued(tmp_path, row):
    good = {"path": "a.png", "score": 1.0, "decision": 1.0, "p_value": None, "prediction": 1}
    (tmp_path / "s.jsonl").write_text(json.dumps({**good, **row}) + "\n")
    with pytest.raises(ScoreFileError, match="of another kind"):
        ScoreFile(tmp_path / "s.jsonl", resume=True)


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_scores_are_the_detectors(tmp_path, model, test_dir):
    result = run(app, ["score", model, test_dir, "--out", str(tmp_path / "s.csv")])
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.endswith("If all were normal, 2.8 would be flagged on average.\n")
    rows = read_csv((tmp_path / "s.csv").read_text())
    paths = find_files([test_dir]).paths
    assert [row["path"] for row in rows] == paths
    table = load(model).score_table(paths)
    for name in COLUMNS[1:]:
        np.testing.assert_allclose([float(row[name]) for row in rows], table[name], rtol=1e-9)


def test_every_kind_of_file_has_the_same_rows(tmp_path, model, test_dir):
    for suffix in ("csv", "jsonl", "parquet"):
        assert run(app, ["score", model, test_dir, "-o", str(tmp_path / f"s.{suffix}")]).exit_code == 0
    from_csv = [
        {name: value if name == "path" else float(value) for name, value in row.items()}
        for row in read_csv((tmp_path / "s.csv").read_text())
    ]
    assert from_csv == [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert from_csv == pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pylist()


def test_without_a_file_rows_go_to_stdout(model, test_dir):
    rows = read_csv(run(app, ["score", model, test_dir + "/six"]).stdout)
    lines = run(app, ["score", model, test_dir + "/six", "--json"]).stdout.splitlines()
    assert [row["path"] for row in rows] == [json.loads(line)["path"] for line in lines]
    assert len(rows) == 6


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_of_paths_on_stdin(model, test_dir, separator):
    paths = [f"{test_dir}/six/000.png", f"{test_dir}/gone.png"]
    result = run(app, ["score", model, "-"], input=separator.join(paths))
    rows = read_csv(result.stdout)
    assert [row["path"] for row in rows] == paths
    assert (rows[1]["score"], rows[1]["p_value"], rows[1]["prediction"]) == ("", "", "-1")
    assert "1 image could not be read" in result.stderr and "the file does not exist" in result.stderr
    assert result.exit_code == 2 and f"error: not found: '{paths[1]}'" in result.stderr


def test_a_stopped_scoring_goes_on(tmp_path, model, test_dir):
    whole, stopped = tmp_path / "whole.csv", tmp_path / "stopped.csv"
    run(app, ["score", model, test_dir, "--out", str(whole)])
    stopped.write_bytes(whole.read_bytes()[:400])
    result = run(app, ["score", model, test_dir, "--out", str(stopped), "--resume", "--json"])
    assert result.exit_code == 0, result.output
    one, other = (read_csv(path.read_text()) for path in (whole, stopped))
    assert [row["path"] for row in one] == [row["path"] for row in other]
    np.testing.assert_allclose(*([float(row["score"]) for row in rows] for rows in (one, other)), rtol=1e-4)
    summary = json.loads(result.stdout)
    assert summary["images"] == 14 and summary["anomalies"] == sum(row["prediction"] == "-1" for row in one)


KINDS = ["csv", "jsonl"]


def read_rows(path):
    """Rows of a file of scores of any kind, by path."""
    if path.suffix == ".csv":
        rows = read_csv(path.read_text())
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: tuple(float(row[name]) for name in COLUMNS[1:] if row[name] not in ("", None)) for row in rows}


@pytest.fixture
def cheap(monkeypatch, tmp_path):
    """A model that says how large an image's file is, and three images: resuming is about files, not about scores."""
    from skl_transformaly import persistence

    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    digest = ["0" * 64]

    def table(images):
        score = np.array([float(os.path.getsize(path)) if os.path.exists(path) else np.nan for path in images.paths])
        decision = score - len(digest[0].rstrip("1"))
        return {"score": score, "decision": decision, "p_value": score, "prediction": np.where(decision > 0, 1, -1)}

    class Paths:
        def __init__(self, paths, on_error):
            self.paths = paths

    (tmp_path / "m.tfm").write_bytes(b"")
    monkeypatch.setattr(_images, "as_images", Paths)
    detector = SimpleNamespace(extractor_=None, held_out_=False, offset_=0.0, score_table=table)
    monkeypatch.setattr(persistence, "load", lambda path, weights: detector)
    monkeypatch.setattr(persistence, "read_header", lambda path: {"sha256": digest[0]})
    return digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["larger", "same size", "gone", "came"])
def test_a_changed_image_is_scored_again(cheap, tmp_path, kind, change):
    out, image = tmp_path / f"s.{kind}", tmp_path / "b.png"
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    if change == "came":
        content = image.read_bytes()
        image.unlink()
    run(app, ["score", str(tmp_path / "m.tfm"), "-", "-o", str(out)], input="\n".join(paths))
    before = read_rows(out)
    if change == "gone":
        image.unlink()
    elif change == "came":
        image.write_bytes(content)
    else:
        image.write_bytes(image.read_bytes() + b"x" * (change == "larger"))
        os.utime(image, ns=(0, 0))
    result = run(app, ["score", str(tmp_path / "m.tfm"), "-", "-o", str(out), "--resume"], input="\n".join(paths))
    assert result.exit_code == (2 if change == "gone" else 0), result.output
    assert "scoring 1 image again" in result.stderr and "b.png" in result.stderr
    run(app, ["score", str(tmp_path / "m.tfm"), "-", "-o", str(tmp_path / f"t.{kind}")], input="\n".join(paths))
    assert list(read_rows(out).items()) == list(read_rows(tmp_path / f"t.{kind}").items())
    assert (read_rows(out) == before) == (change == "same size")


@pytest.mark.parametrize("kind", KINDS)
def test_what_could_not_be_read_is_tried_again(cheap, tmp_path, monkeypatch, kind):
    """As from a network that failed for a while; the file itself does not change."""
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    out, fresh = tmp_path / f"s.{kind}", tmp_path / f"t.{kind}"
    command = ["score", str(tmp_path / "m.tfm"), *paths, "-o"]
    with monkeypatch.context() as failing:
        size = os.path.getsize
        failing.setattr(os.path, "getsize", lambda path: float("nan") if path == paths[1] else size(path))
        for resume in ([], ["--resume"]):
            result = run(app, [*command, str(out), *resume])
            assert result.exit_code == 0 and "1 image could not be read" in result.stderr
            assert [len(numbers) for numbers in read_rows(out).values()] == [4, 1, 4]
    result = run(app, [*command, str(out), "--resume"])
    assert result.exit_code == 0 and "could not be read" not in result.stderr
    run(app, [*command, str(fresh)])
    assert list(read_rows(out).items()) == list(read_rows(fresh).items())


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_of_two_models_are_not_mixed(cheap, tmp_path, kind):
    """Even if both give the same scores."""
    out, fresh = tmp_path / f"s.{kind}", tmp_path / f"t.{kind}"
    run(app, ["score", str(tmp_path / "m.tfm"), str(tmp_path / "b.png"), "-o", str(out)])
    before = out.read_bytes()
    cheap[0] = "0" * 60 + "1" * 4
    command = ["score", str(tmp_path / "m.tfm"), str(tmp_path / "a.png"), "-o", str(out), "--resume"]
    refused = run(app, command)
    assert refused.exit_code == 2 and "may have been scored by another model" in refused.stderr
    assert out.read_bytes() == before
    command[2] = str(tmp_path)
    result = run(app, command)
    assert result.exit_code == 0 and "scoring 1 image again" in result.stderr
    run(app, ["score", str(tmp_path / "m.tfm"), str(tmp_path), "-o", str(fresh)])
    assert read_rows(out) == read_rows(fresh) and list(read_rows(out)) == list(read_rows(fresh))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [b"", b"garbage\n", None])
def test_rows_of_which_nothing_is_known_are_scored_again(cheap, tmp_path, kind, left):
    out = tmp_path / f"s.{kind}"
    command = ["score", str(tmp_path / "m.tfm"), *(str(tmp_path / f"{name}.png") for name in "abc"), "-o", str(out)]
    run(app, command)
    beside = tmp_path / f"s.{kind}.meta.jsonl"
    beside.unlink() if left is None else beside.write_bytes(left)
    refused = run(app, ["score", str(tmp_path / "m.tfm"), str(tmp_path / "a.png"), "-o", str(out), "--resume"])
    assert refused.exit_code == 2 and "may have been scored by another model" in refused.stderr
    result = run(app, [*command, "--resume"])
    assert result.exit_code == 0 and "scoring 3 images again" in result.stderr
    assert len(read_rows(out)) == 3
    assert "again" not in run(app, [*command, "--resume"]).stderr


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_whatever_stops_a_scoring_and_changes_going_on_gives_the_rows_of_a_fresh_one(cheap, tmp_path, data, kind):
    """Stopped after any bytes of either file, and images changed at random."""
    out, fresh = tmp_path / f"s.{kind}", tmp_path / f"t.{kind}"
    for path in tmp_path.glob("[st].*"):
        path.unlink()
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    command = ["score", str(tmp_path / "m.tfm"), *(str(tmp_path / f"{name}.png") for name in "abc"), "-o"]
    run(app, [*command, str(out)])
    for path in (out, tmp_path / f"{out.name}.meta.jsonl"):
        share = data.draw(st.floats(0, 1))
        path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    for name in data.draw(st.sets(st.sampled_from("abc"))):
        with open(tmp_path / f"{name}.png", "ab") as image:
            image.write(b"x")
    result = run(app, [*command, str(out), "--resume"])
    assert result.exit_code == 0, result.output
    run(app, [*command, str(fresh)])
    assert list(read_rows(out).items()) == list(read_rows(fresh).items())


def test_two_writers_of_one_file_are_an_error(cheap, tmp_path):
    out = tmp_path / "s.csv"
    code = (
        "import sys; from skl_transformaly.cli._scores import COLUMNS, ScoreFile\n"
        "with ScoreFile(sys.argv[1]) as file:\n"
        "    file.write([dict(zip(COLUMNS, ('x.png', 1.0, 1.0, 1.0, 1)))])\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        for resume in ([], ["--resume"]):
            command = ["score", str(tmp_path / "m.tfm"), str(tmp_path / "a.png"), "-o", str(out), *resume]
            result = run(app, command)
            assert result.exit_code == 2 and "Another process is writing" in result.stderr
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    # whoever died holds no lock, and lost no row
    with ScoreFile(out, resume=True) as file:
        assert list(file.done) == ["x.png"]
    assert run(app, command[:-1]).exit_code == 0


@pytest.mark.parametrize("command", ["fit", "score"])
def test_a_path_that_leads_nowhere_is_an_error_that_names_it(cheap, tmp_path, command):
    gone, there = str(tmp_path / "gone.png"), str(tmp_path / "a.png")
    arguments = [command, "-", "-o", str(tmp_path / "m2.tfm")]
    if command == "score":
        arguments = ["score", str(tmp_path / "m.tfm"), "-"]
    result = run(app, arguments, input=f"{there}\n{gone}\n")
    assert result.exit_code == 2 and "not found: " in result.stderr and gone in result.stderr
    arguments[arguments.index("-") : arguments.index("-") + 1] = [there, gone]
    result = run(app, arguments)
    assert result.exit_code == 2 and gone in result.stderr


def test_exit_codes_tell_whether_there_are_anomalies(model, work, test_dir):
    flagged = run(app, ["score", model, test_dir + "/six", "--fail-on-anomaly"])
    normal = [row["path"] for row in read_csv(run(app, ["score", model, test_dir]).stdout) if row["prediction"] == "1"]
    assert flagged.exit_code == 1
    assert run(app, ["score", model, *normal, "--fail-on-anomaly"]).exit_code == 0
    assert run(app, ["score", model, str(work[0] / "train" / "broken.png"), "--fail-on-anomaly"]).exit_code == 1


@pytest.mark.parametrize("resume", [False, True])
def test_anomalies_and_what_cannot_be_read_are_counted_apart(tmp_path, model, work, test_dir, resume):
    paths = [test_dir + "/six", str(work[0] / "train" / "broken.png")]
    rows = read_csv(run(app, ["score", model, *paths]).stdout)
    flagged = sum(row["prediction"] == "-1" for row in rows) - 1
    out = str(tmp_path / "scores.csv")
    for _ in range(1 + resume):
        said = run(app, ["score", model, *paths, "--out", out, *["--resume"] * resume]).stderr
    assert f"{len(rows)} images: {flagged} anomalies, 1 could not be read." in said


def test_evaluate_measures_what_the_scores_say(model, test_dir):
    result = run(app, ["evaluate", model, test_dir, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    rows = read_csv(run(app, ["score", model, test_dir]).stdout)
    y = np.array([1 if "/good/" in row["path"] else -1 for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    flagged = np.array([row["prediction"] == "-1" for row in rows])
    assert said["auroc"]["value"] == pytest.approx(roc_auc_score(y, scores)) and said["auroc"]["value"] > 0.5
    assert said["aupr"]["value"] == pytest.approx(average_precision_score(y == -1, -scores))
    assert (said["auroc"]["low"] is None) == (said["auroc"]["value"] == 1)
    assert said["fpr95"]["low"] <= said["fpr95"]["value"] <= said["fpr95"]["high"] > 0
    assert (said["flagged_normal"], said["flagged_anomalies"]) == (flagged[y == 1].sum(), flagged[y == -1].sum())
    assert said["classes"]["six"]["n"] == 6


def test_evaluate_warns_where_labels_look_upside_down(model, test_dir):
    result = run(app, ["evaluate", model, test_dir, "--good", "six"])
    assert result.exit_code == 0 and "AUROC is below one half" in result.stderr
    assert "normal: six" in result.stdout


def test_evaluate_leaves_images_outside_the_classes_out(tmp_path, model, test_dir):
    import shutil

    shutil.copytree(test_dir, tmp_path / "test")
    shutil.copy(tmp_path / "test" / "six" / "000.png", tmp_path / "test" / "stray.png")
    result = run(app, ["evaluate", model, str(tmp_path / "test"), "--json"])
    assert "1 image outside the class folders left out" in result.stderr
    assert json.loads(result.stdout)["n_anomalies"] == 6


@pytest.mark.parametrize("name", ["a six", "zix"])
@pytest.mark.parametrize("stray", [0, 1])
@pytest.mark.slow
def test_classes_that_are_links_leave_nothing_outside(tmp_path, model, test_dir, name, stray):
    """Before and after the folder that they lead to, whose images the search of the whole finds by one path alone."""
    shutil.copytree(test_dir, tmp_path / "test")
    (tmp_path / "test" / name).symlink_to("six")
    for i in range(stray):
        shutil.copy(tmp_path / "test" / "six" / "000.png", tmp_path / "test" / f"stray{i}.png")
    result = run(app, ["evaluate", model, str(tmp_path / "test"), "--json"])
    said = json.loads(result.stdout)
    assert said["outside"] == stray and ("outside" in result.stderr) == bool(stray) and said["n_anomalies"] == 12


def test_a_log_has_no_line_twice(monkeypatch, capsys):
    seconds = iter([0.0, 110.0, 120.0, 140.0, 170.0])
    monkeypatch.setattr(_console, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    waits = iter([False] * 4 + [True])
    _console._tick("Exporting", SimpleNamespace(wait=lambda pause: next(waits)))
    assert capsys.readouterr().err == "Exporting: 2 min so far\nExporting: 3 min so far\n"


@pytest.mark.parametrize("broken", [False, True])
def test_report_counts_anomalies_and_what_cannot_be_read_apart(tmp_path, model, work, test_dir, broken):
    paths = [test_dir, *[str(work[0] / "train" / "broken.png")] * broken]
    anomalies = sum(row["prediction"] == "-1" for row in read_csv(run(app, ["score", model, test_dir]).stdout))
    said = run(app, ["report", model, *paths, "-o", str(tmp_path / "r.html")]).stderr
    found = f"{14 + broken} images: {anomalies} anomal"
    assert found in said and ("1 could not be read" in said) == broken and ("read" in said) == broken


def test_report_is_one_file(tmp_path, model, work, test_dir):
    out = tmp_path / "r.html"
    result = run(app, ["report", model, test_dir, "--out", str(out), "--json", "--normal", str(work[0] / "train")])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    text = out.read_text(encoding="utf-8")
    assert said["images"] == 14 and 'class="map"' in text and "tf_efficientnet_lite0" in text
    assert text.count("data-near=") >= 14 * 3 and "are not below" not in text


def test_a_report_opens_no_folder_that_the_model_names(tmp_path, model, work, test_dir, monkeypatch):
    """A stranger's model could name any picture on this machine."""
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args, **kw: (opened.append(str(file)), real(file, *args, **kw))[1])
    sys_opened = []
    sys.addaudithook(lambda event, args: sys_opened.append(str(args[0])) if event == "open" else None)
    gone = f"{test_dir}/gone.png"
    result = run(
        app,
        ["report", model, "-", "--out", str(tmp_path / "r.html")],
        input=f"{test_dir}/six/000.png\n{gone}\n",
    )
    assert result.exit_code == 2 and gone in result.stderr  # after the report was made
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "only from a folder that you name" in text and text.count("data:image/webp") == 2  # the image and its map
    assert not [path for path in [*opened, *sys_opened] if path.startswith(str(work[0] / "train"))]


@pytest.mark.slow
def test_export_runs_without_torch(tmp_path, model, test_dir):
    onnx = tmp_path / "m.onnx"
    result = run(app, ["export", model, "--onnx", str(onnx), "--check", test_dir, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["score_deviation"] < 1e-3 and onnx.exists()


def test_no_export_is_announced_that_cannot_be_made(tmp_path, model, test_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run(app, ["export", model, "--onnx", str(tmp_path / "m.onnx"), "--check", test_dir])
    assert result.exit_code == 2 and "pip install 'skl-transformaly[onnx]'" in result.stderr
    assert "Exporting" not in result.stderr and not list(tmp_path.iterdir())


def test_scores_of_one_image_are_not_compared(tmp_path, model, test_dir):
    images = [f"{test_dir}/good/000.png", str(tmp_path / "broken.png")]
    (tmp_path / "broken.png").write_bytes(b"no image")
    onnx = tmp_path / "m.onnx"
    result = run(app, ["export", model, "--onnx", str(onnx), "--check", images[0], "--check", images[1]])
    assert result.exit_code == 2 and "expected 2 or more" in result.stderr and not onnx.exists()
    assert result.stderr.count(images[1]) == 1 and "on_error" not in result.stderr


def test_teachers_names_what_is_at_hand():
    said = json.loads(run(app, ["teachers", "vit_tiny_patch16_224*", "--json"]).stdout)
    assert said["bundled"] is True
    assert "vit_tiny_patch16_224.augreg_in21k" in said["hub"] + said["cached"]


@pytest.mark.slow
def test_the_demo_puts_what_does_not_belong_first(tmp_path):
    result = run(app, ["demo", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    rows = read_csv((tmp_path / "demo" / "scores.csv").read_text())
    lowest = sorted(rows, key=lambda row: float(row["score"]))[:8]
    assert all("flower" in row["path"] for row in lowest)
    assert (tmp_path / "demo" / "report.html").exists()


def test_a_stopped_fit_says_that_nothing_was_kept(work, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformalyDetector, "fit", stop)
    result = run(app, ["fit", str(work[0] / "train"), "-o", str(tmp_path / "m.tfm")])
    assert result.exit_code == 130 and "nothing was kept" in result.stderr


@pytest.mark.slow
def test_a_stopped_fit_of_trained_students_goes_on(work, tmp_path, monkeypatch):
    command = ["fit", str(work[0] / "train"), "-o", str(tmp_path / "m.tfm"), "--students", "trained"]
    command += ["--blocks", "2", "--epochs", "1", "--image-size", "32", "--alpha", "0.2"]
    real, trained = _StudentTrainer.train, []

    def train(self, index, progress):
        trained.append(index)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(self, index, progress)

    monkeypatch.setattr(_StudentTrainer, "train", train)
    stopped = run(app, command)
    assert stopped.exit_code == 130 and "1 trained student kept in" in stopped.stderr
    went_on = run(app, command)
    assert went_on.exit_code == 0 and "Found 1 student of an earlier fit" in went_on.stderr
    assert trained[:3] == [trained[0], trained[1], trained[1]]  # the first one was not trained again
    assert os.listdir(tmp_path) == ["m.tfm"]


@pytest.mark.slow
def test_a_fit_of_trained_students_that_cannot_be_saved_leaves_nothing(work, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(persistence, "save", fail)
    command = ["fit", str(work[0] / "train"), "-o", str(tmp_path / "m.tfm"), "--students", "trained"]
    result = run(app, [*command, "--blocks", "1", "--epochs", "1", "--image-size", "32", "--alpha", "0.2"])
    assert result.exit_code == 2 and "disk is full" in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_model_of_the_command_line_refuses_unreadable_images_in_python(work, model):
    broken = str(work[0] / "train" / "broken.png")
    with pytest.raises(ValueError, match="cannot be decoded"):
        load(model).predict([broken])


MISTAKES = {
    "no folder": ["fit", "{root}/nowhere", "-o", "{tmp}/m.tfm"],
    "no images": ["fit", "{tmp}", "-o", "{tmp}/m.tfm"],
    "no folder for the model": ["fit", "{root}/train", "-o", "{tmp}/nowhere/m.tfm"],
    "model is a folder": ["fit", "{root}/train", "-o", "{tmp}"],
    "weights without teacher": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--weights", "{root}/model.tfm"],
    "no weights": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--teacher", "test_vit", "--weights", "nowhere"],
    "unknown version of a teacher": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--teacher", "test_vit.typo"],
    "teacher that no file holds": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--teacher", "hf-hub:timm/test_vit"],
    "size that no file holds": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--image-size", "4096"],
    "model to a device": ["fit", "{root}/train", "-o", "/dev/null"],
    "unknown teacher": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--teacher", "vit_tinny", "--alpha", "0.2"],
    "alpha": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--alpha", "5"],
    "a device that computes nothing": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--device", "meta"],
    "students": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--students", "clever"],
    "epochs of what is not trained": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--epochs", "3"],
    "strict": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--strict"],
    "size of a word": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--image-size", "big"],
    "size of nothing": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--image-size", "0"],
    "size of a pixel": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--image-size", "1"],
    "size of three": ["fit", "{root}/train", "-o", "{tmp}/m.tfm", "--image-size", "32x32x3"],
    "no model": ["score", "{root}/nowhere.tfm", "{root}/test"],
    "another file as model": ["score", "{root}/train/notes.txt", "{root}/test"],
    "image as model": ["report", "{root}/train/000.png", "{root}/test", "--out", "{tmp}/r.html"],
    "unknown suffix": ["score", "{model}", "{root}/test", "--out", "{tmp}/s.xls"],
    "resume what": ["score", "{model}", "{root}/test", "--resume"],
    "resume Parquet": ["score", "{model}", "{root}/test", "--resume", "--out", "{tmp}/s.parquet"],
    "no images to score": ["score", "{model}", "{tmp}"],
    "pattern": ["score", "{model}", "{root}/test/*.bmp"],
    "scores in a missing folder": ["score", "{model}", "{root}/test", "--out", "{tmp}/nowhere/s.csv"],
    "no classes": ["evaluate", "{model}", "{root}/train"],
    "wrong class": ["evaluate", "{model}", "{root}/test", "--good", "god"],
    "info of nothing": ["info", "{root}/nowhere.tfm"],
    "demo in a folder of something else": ["demo", "{root}/train"],
    "no such teacher": ["teachers", "no_such_model*"],
    "no command": ["fitt"],
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_users_mistake_is_one_message(tmp_path, work, model, what):
    arguments = [part.format(root=work[0], tmp=tmp_path, model=model) for part in MISTAKES[what]]
    result = run(app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    assert result.stderr.lower().count("error") >= 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("device='xpu' cannot be used: leave device=None.", "--device xpu cannot be used: leave out --device."),
        ("contamination=0.05 was asked for, trim=0.", "--alpha 0.05 was asked for, --trim 0."),
        ("got image_size=(32, 64). Use image_size=None.", "got --image-size 32x64. Leave out --image-size."),
        ("weights='/a b/w.pth', or extractor='bundled'", "--weights '/a b/w.pth', or --teacher bundled"),
        ("the weights are = 3, my_device=3", "the weights are = 3, my_device=3"),
        ("the teacher's 'seed,trim=0.1/x.png': trim=0.1", "the teacher's 'seed,trim=0.1/x.png': --trim 0.1"),
    ],
)
def test_messages_of_the_library_name_options(text, said):
    assert in_options(text) == said


@pytest.mark.parametrize("device, kept", [("cpu", "cpu"), pytest.param("cpu:0", "auto", marks=pytest.mark.slow)])
def test_a_model_is_not_bound_to_the_device_of_its_fit(work, tmp_path, device, kept):
    run(app, ["fit", f"{work[0]}/train", "-o", str(tmp_path / "m.tfm"), "--device", device])
    assert load(tmp_path / "m.tfm").extractor_.device == kept


def test_too_few_images_for_trained_students_are_refused_at_once(work, tmp_path):
    images = sorted(Path(work[0], "train").glob("*.png"))[1:3]
    result = run(app, ["fit", *map(str, images), "-o", str(tmp_path / "m.tfm"), "--students", "trained"])
    assert result.exit_code == 2 and "at least 3 normal images" in result.stderr
    assert os.listdir(tmp_path) == []


def test_what_no_file_holds_is_refused_before_the_fit(work, tmp_path, monkeypatch):
    monkeypatch.setattr(TransformalyDetector, "fit", lambda *_: pytest.fail("it was fitted"))
    for options in (["--teacher", "hf-hub:timm/test_vit"], ["--image-size", "4096"]):
        assert run(app, ["fit", f"{work[0]}/train", "-o", str(tmp_path / "m.tfm"), *options]).exit_code == 2


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.EACCES, "m.tfm was not saved (Permission denied); choose"), "m.tfm was not saved (Permission"),
        (OSError(errno.ENOSPC, "m.tfm was not saved. Make room"), "the disk is full: m.tfm was not saved. Make room."),
        (OSError(errno.ENOSPC, "No space", "s.csv"), "the disk is full: s.csv. Make room and try again."),
        (OSError(errno.EACCES, "Permission denied", "s.csv"), "s.csv: Permission denied."),
    ],
)
def test_errors_of_files_read_like_sentences(error, said):
    assert _app._mistake(error).startswith(said)


def test_the_outline_of_a_detector_around_another_has_what_both_say():
    inner = {"state": {"offset_": -3.0, "feature_spaces_": ["pretrained"]}, "params": {"contamination": 0.05}}
    outer = {"state": {"offset_": -2.5}, "params": {"alpha": 0.1}}
    said = outline({"objects": [inner, outer]})
    assert said["feature spaces"] == "pretrained" and said["threshold"] == "-2.5"
    assert said["promised false-positive rate"] == "0.1"


def test_warnings_of_large_files_are_for_others(capsys):
    with _fit_warnings(_app.Output(json=False, quiet=False)):
        warnings.warn("Image size (100000000 pixels) exceeds limit", Image.DecompressionBombWarning, stacklevel=1)
        warnings.warn("this matters", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: this matters\n"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--json", "-q"])
def test_an_update_hides_no_promise_that_cannot_be_kept(work, tmp_path, option):
    path = str(tmp_path / "m.tfm")
    assert run(app, ["fit", f"{work[0]}/train", "-o", path, "--alpha", "0.001"]).exit_code == 0
    result = run(app, ["update", path, f"{work[0]}/test/six", "-o", path, option])
    assert result.exit_code == 0 and "cannot be promised" in result.stderr, result.output


def test_quiet_hides_no_promise_that_cannot_be_kept(work, tmp_path):
    result = run(app, ["fit", f"{work[0]}/train", "-o", str(tmp_path / "m.tfm"), "--alpha", "0.001", "-q"])
    assert result.stderr.startswith("warning: With") and "--alpha 0.001 was asked for" in result.stderr


OUTPUTS = {
    "fit over an image": ["fit", "in", "-o", "in/000.png"],
    "fit over an image without a suffix": ["fit", "in", "in/plain", "-o", "in/plain"],
    "fit over weights": ["fit", "in", "-o", "w.pth", "--teacher", "test_vit", "--weights", "w.pth"],
    "score over an image": ["score", "m.tfm", "in", "in/plain.csv", "-o", "in/plain.csv"],
    "score over the model": ["score", "m.csv", "in", "-o", "m.csv"],
    "report over the model": ["report", "m.tfm", "in", "-o", "m.tfm"],
    "report over the model by another name": ["report", "m.tfm", "in", "-o", "link.html"],
    "report over an image": ["report", "m.tfm", "in", "-o", "in/000.png"],
    "report under the name of an image": ["report", "m.tfm", "in", "-o", "new.jpg"],
    "export over the model": ["export", "m.tfm", "-o", "m.tfm"],
    "export over an image": ["export", "m.tfm", "-o", "in/plain.onnx", "--check", "in/plain.onnx"],
    "update over an image": ["update", "m.tfm", "in", "-o", "in/000.png"],
    "update over a new image": ["update", "m.tfm", "in/plain", "-o", "in/plain"],
    "update over labels": ["update", "m.tfm", "in", "--labels", "labels.csv", "-o", "labels.csv"],
    "watch over the model": ["watch", "in", "-m", "m.csv", "-o", "m.csv", "--once"],
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_nothing_is_written_over_what_is_read(tmp_path, monkeypatch, work, model, what):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(work[0] / "test" / "six", "in")
    shutil.copy("in/000.png", "in/plain")
    shutil.copy("in/000.png", "in/plain.csv")
    shutil.copy("in/000.png", "in/plain.onnx")
    for name in ("m.tfm", "m.csv"):
        shutil.copy(model, name)
    os.symlink("m.tfm", "link.html")
    Path("w.pth").write_bytes(b"weights")
    Path("labels.csv").write_text("path,label\nin/000.png,1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run(app, OUTPUTS[what])
    assert result.exit_code == 2 and ("would be lost" in result.stderr) != ("suffix of an image" in result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_message(tmp_path, model, test_dir):
    (tmp_path / "s.csv").symlink_to("/dev/full")
    result = run(app, ["score", model, test_dir, "--out", str(tmp_path / "s.csv")])
    assert result.exit_code == 2 and "disk is full" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["fit", "update", "score", "report", "watch", "export"])
def test_the_file_to_write_goes_by_three_names(name):
    (found,) = [one for one in get_command(app).commands[name].params if "-o" in one.opts]
    assert {"-o", "--out", "--output"} <= set(found.opts)
    assert ("--onnx" in found.opts) == (name == "export")


@pytest.mark.parametrize("name", ["score", "report"])
def test_a_model_after_the_images_is_told_its_place(tmp_path, model, test_dir, name):
    for images in (test_dir, f"{test_dir}/six/000.png"):
        result = run(app, [name, images, model])
        assert result.exit_code == 2 and f"The model comes first: transformaly {name} MODEL" in result.stderr


def test_an_onnx_file_is_told_its_use(tmp_path, test_dir):
    (tmp_path / "m.onnx").write_bytes(b"")
    result = run(app, ["score", str(tmp_path / "m.onnx"), test_dir])
    assert result.exit_code == 2 and "ONNX files are for `transformaly serve` and other runtimes" in result.stderr


@pytest.mark.parametrize(("terminal", "quiet", "told"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_terminal_is_told_at_once_that_a_model_is_loaded(monkeypatch, tmp_path, capsys, terminal, quiet, told):
    said = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(persistence, "read_header", lambda path: said.append(capsys.readouterr().err) or 1 / 0)
    (tmp_path / "m.tfm").write_bytes(b"")
    with pytest.raises(ZeroDivisionError):
        load_model(tmp_path / "m.tfm", None, _console.Output(json=False, quiet=quiet))
    assert said == ["Loading the model ...\n" * told]


def test_a_torchvision_of_another_torch_is_told_of_at_the_import(monkeypatch):
    def missing(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(skl_transformaly, "import_module", missing)
    with pytest.raises(ImportError, match="torch and torchvision are not compatible.*pip install"):
        skl_transformaly.TransformalyDetector  # noqa: B018


def test_a_torchvision_of_another_torch_is_not_called_a_bug(monkeypatch, model, test_dir):

    def missing(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(TransformalyDetector, "score_table", missing)
    result = run(app, ["score", model, test_dir])
    assert result.exit_code == 2 and "are not compatible" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "message, code", [("CUDA out of memory. Tried to allocate", 2), ("Unsupported memory format Contiguous3d", 3)]
)
def test_memory_is_short_only_where_torch_says_so(monkeypatch, model, test_dir, message, code):

    def fail(*args):
        raise RuntimeError(message)

    monkeypatch.setattr(TransformalyDetector, "score_table", fail)
    result = run(app, ["score", model, test_dir])
    assert result.exit_code == code and ("not enough memory" in result.stderr) == (code == 2)


@pytest.mark.parametrize("error, code", [(ImitationError("Choose another teacher."), 2), (TypeError("a bug"), 3)])
def test_a_teacher_that_cannot_be_imitated_is_told_from_a_bug(monkeypatch, work, tmp_path, error, code):

    def fail(*args):
        raise error

    monkeypatch.setattr(TransformalyDetector, "fit", fail)
    result = run(app, ["fit", str(work[0] / "train"), "-o", str(tmp_path / "m.tfm")])
    assert result.exit_code == code and ("error: Choose another teacher." in result.stderr) == (code == 2)


@pytest.mark.parametrize("error, code", [(ExportError("Only a detector"), 2), (TypeError("a bug"), 3)])
def test_what_cannot_be_exported_is_told_from_a_bug(monkeypatch, model, tmp_path, error, code):

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(_export, "to_onnx", fail)
    result = run(app, ["export", model, "--onnx", str(tmp_path / "m.onnx")])
    assert result.exit_code == code and ("error: Only a detector" in result.stderr) == (code == 2)


def test_a_bug_is_not_taken_for_anomalies(monkeypatch, model, test_dir):
    monkeypatch.setattr(TransformalyDetector, "score_table", lambda *args: {}["bug"])
    result = run(app, ["score", model, test_dir])
    assert result.exit_code == 3 and "this is a bug" in result.stderr and "Traceback" in result.stderr


def test_ctrl_c_is_130(monkeypatch, model, test_dir):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformalyDetector, "score_table", stop)
    result = run(app, ["score", model, test_dir])
    assert result.exit_code == 130 and result.stderr == "error: stopped.\n"


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options)


def test_the_version_is_printed():
    import skl_transformaly

    result = run(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"skl-transformaly {skl_transformaly.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "m.tfm", "new", "--normal", "a", "--normal", "b"],
        ["update", "m.tfm", "-o", "n.tfm", "--labels", "a.csv", "--labels=b.csv"],
        ["score", "m.tfm", "new", "-o", "a.csv", "--out", "b.csv"],
        ["fit", "normal", "-oa.tfm", "--seed", "1", "--seed", "2"],
    ],
)
def test_no_value_of_an_option_is_lost(arguments):
    result = run(app, arguments)
    assert result.exit_code == 2 and "takes one value, but is given several times" in result.stderr


def test_flags_may_be_repeated(model, test_dir):
    assert run(app, ["score", model, test_dir, "--quiet", "-q", "-q"]).exit_code == 0


def test_help_imports_nothing_that_takes_long():
    code = (
        "import sys; sys.argv = ['transformaly', '--help']\n"
        "from skl_transformaly.__main__ import main\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code\n"
        "found = [m for m in ('torch', 'timm', 'numpy', 'PIL', 'sklearn', 'jinja2') if m in sys.modules]\n"
        "print(code, found, file=sys.stderr)"
    )
    result = python(code)
    assert result.stderr == "0 []\n"
    for name in ("fit", "score", "report", "evaluate", "export", "info", "teachers"):
        assert name in result.stdout


def test_without_its_library_the_command_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None\nfrom skl_transformaly.__main__ import main\nmain()"
    result = python(code)
    assert result.returncode == 2 and "pip install 'skl-transformaly[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("library", ["typer", "pydantic_core"])  # at once, and when arguments are read
def test_a_library_that_memory_has_no_room_for_is_said_so(library):
    code = (
        "import importlib.abc, sys\n"
        "sys.argv = ['transformaly', 'score', 'm.tfm', 'new']\n"
        "class Full(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {library!r}: raise ImportError('some.so: failed to map segment from shared object')\n"
        "sys.meta_path.insert(0, Full())\n"
        "from skl_transformaly.__main__ import main\nmain()"
    )
    result = python(code)
    assert result.returncode == 2 and "too little memory? some.so: failed to map" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], []])
def test_help_that_nobody_reads_is_no_anomaly(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "skl_transformaly", *arguments]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


def test_help_names_all_exit_codes():
    shown = " ".join(run(app, ["--help"]).stdout.partition("Exit codes:")[2].split())
    for code in (0, _app.FOUND, _app.MISTAKE, _app.BUG, _app.INTERRUPTED, _app.PIPE_CLOSED):
        assert re.search(rf"(^|, ){code} ", shown.strip())


@pytest.mark.slow
def test_nobody_reads_stdout_any_more(model, test_dir):
    code = (
        "import sys; sys.argv = ['transformaly', 'score', *sys.argv[1:]]\n"
        "from skl_transformaly.__main__ import main\nmain()"
    )
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-c", code, model, test_dir + "/six"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 141 and stderr == ""


def test_a_checkpoint_that_is_no_folder_is_refused_before_the_fit(tmp_path, test_dir):
    (tmp_path / "file").write_text("")
    options = ["--students", "trained", "--checkpoint", str(tmp_path / "file")]
    result = run(app, ["fit", test_dir, "-o", str(tmp_path / "m.tfm"), *options])
    assert result.exit_code == 2 and "--checkpoint needs a folder" in result.stderr


@pytest.mark.parametrize("option", ["--max-body", "--max-pixels", "--timeout"])
def test_a_server_without_a_limit_is_refused(option, model):
    pytest.importorskip("starlette")
    result = run(app, ["serve", model, option, "inf"])
    assert result.exit_code == 2 and f"{option} must be a finite number" in result.stderr


def test_a_name_that_the_output_cannot_show_loses_no_result():
    code = "from skl_transformaly.cli._app import _guard\n_guard(lambda: print('found \\u597d'), debug=False)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "found \\u597d\n"


def test_names_of_unreadable_images_forge_no_lines():
    from skl_transformaly.cli._inputs import unreadable_text

    assert len(unreadable_text({"x\nerror: the disk is full.jpg": "why"}, "left out").splitlines()) == 2


def test_of_a_rate_that_flags_nothing_more_nothing_is_said():
    from skl_transformaly.cli._comments import _on_other_rates

    anomalies = np.repeat([True, False], 2)
    alarms = SimpleNamespace(expected=0.05)
    found = _on_other_rates(anomalies, np.zeros(4, bool), np.array([0.31, 0.52, 0.58, 0.6]), alarms)
    assert "as many more normal images" not in found
    found = _on_other_rates(anomalies, np.zeros(4, bool), np.array([0.08, 0.52, 0.08, 0.6]), alarms)
    assert "as many more normal images" in found


def test_images_to_check_an_export_on_may_be_unreadable(tmp_path, capsys):
    from skl_transformaly.cli._app import Mistake
    from skl_transformaly.cli._export import _readable

    write_images(tmp_path / "in", pictures_of(0)[:2])
    good = sorted(map(str, (tmp_path / "in").iterdir()))
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    out = _console.Output(json=False, quiet=False)
    assert _readable([*good, str(tmp_path / "in" / "broken.png")], out) == good
    assert "1 image could not be read (scores are not compared on them)" in capsys.readouterr().err
    with pytest.raises(Mistake, match="None of the images"):
        _readable([str(tmp_path / "in" / "broken.png")], out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch", "", "--model", "m.tfm", "--out", "o.csv"],
        ["watch", ".", "--model", "m.tfm", "--out", "o.csv", "--move-to", ""],
        ["evaluate", "m.tfm", ""],
        ["score", "m.tfm", ""],
        ["fit", ".", "-o", ""],
        ["fit", ".", "--output="],
        ["report", "m.tfm", ".", "--normal", ""],
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_not_the_current_folder(arguments):
    result = run(app, arguments)
    assert result.exit_code == 2 and "an argument is empty" in result.stderr


@pytest.mark.parametrize("arguments", [["fit", "."], ["update", "m.tfm", "."]], ids=" ".join)
def test_a_model_is_not_written_under_the_name_of_an_onnx_file(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.tfm").touch()
    result = run(app, [*arguments, "-o", "y.onnx"])
    assert result.exit_code == 2 and "has the suffix of an ONNX file" in result.stderr
    assert not (tmp_path / "y.onnx").exists()


def test_an_onnx_file_is_written_under_no_other_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.tfm").touch()
    result = run(app, ["export", "m.tfm", "--onnx", "wrong.tfm"])
    assert result.exit_code == 2 and "'wrong.tfm' must end in .onnx" in result.stderr


def test_each_kind_of_warning_is_told_once_a_run(tmp_path, model):
    """Of 200 images, of which one is black, scored in chunks of 64, the last few in one of fewer."""
    for i in range(200):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint16)).save(tmp_path / f"{i:03}.png")
    result = run(app, ["score", model, str(tmp_path), "-q"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("so that they score as nearly black") == 1
    assert result.stderr.count("warning: Pixels of 63 images are uint16 of at most 63") == 1
    assert result.stderr.count("warning: in all, 199 images use only the lowest part of their range (uint16)") == 1
