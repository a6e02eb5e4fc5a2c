"""The paper's tables: one teacher's run and one training serve all, and give what separate ones give."""

import csv
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import on_training, tiny_extractor
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances, roc_auc_score
from sklearn.mixture import GaussianMixture

from skl_transformaly import BlockStudents, GaussianDensity, ImageError, TransformalyDetector
from skl_transformaly.datasets import ImageDataset
from skl_transformaly.images._images import as_images
from skl_transformaly.images._values import SKIP_ADVICE

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "paper"))

import confusion
import loaders
import losses
import options
import published
import quirks
import results
import spaces
import tables
import why
from recording import Recording, join
from rivals import RIVALS
from study import Rows, Study


@pytest.fixture
def data(rng):
    """Three classes of noise that differ a little in colour, so that no AUROC is perfect."""
    colours = rng.integers(90, 130, (3, 1, 1, 1, 3))

    def draw(n):
        return as_images(np.concatenate([rng.integers(-60, 60, (n, 20, 24, 3)) + c for c in colours]).astype(np.uint8))

    train, test = np.repeat(np.arange(3), 10), np.repeat(np.arange(3), 6)
    return ImageDataset("noise", draw(10), train, draw(6), test, ["a", "b", "c"])


@pytest.fixture
def study(data, tmp_path):
    def make(*arguments, dataset=data):
        parser = options.parser(None)
        settings = (
            "--teacher test_vit --image-size 32 --interpolation bicubic --precision float64 --epochs 1 --n-blocks 3"
        )
        given = parser.parse_args([*settings.split(), "--data", "folder", "--out", str(tmp_path), *arguments])
        given = options.complete(parser, given)
        given.dataset, given.weights = dataset, None
        return Study(given)

    return make


def test_a_recording_plays_back_what_the_teacher_did(data, tmp_path):
    extractor = tiny_extractor().fit(data.X_train)
    recording = Recording(extractor, data.X_train, 3, tmp_path)
    live, played = {}, {}
    batch = extractor.preprocess(data.X_train.stack[[4, 7]])
    z_live = extractor.embed(batch, lambda i, block, args, kwargs, output: live.update({i: (args[0], output)}))
    z_played = recording.embed(
        recording.preprocess(recording.images.take([4, 7])[:]),
        lambda i, block, args, kwargs, output: played.update({i: (args[0], output)}),
    )
    np.testing.assert_allclose(z_played, z_live, rtol=1e-12)
    for index in (3, 4, 5):
        for a, b in zip(live[index], played[index]):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_recording_leaves_nothing_behind(data, tmp_path):
    Recording(tiny_extractor().fit(data.X_train), data.X_train, 3, tmp_path)
    assert not list(tmp_path.iterdir())


def test_joined_images_are_those_of_the_parts_in_order(rng):
    files = [rng.integers(0, 256, (3 + i, 4, 3), dtype=np.uint8) for i in range(5)]
    joined = join(as_images(files[:2]), as_images(files[2:]))
    assert all((one == other).all() for one, other in zip(joined[:], files))


def test_figures_of_the_papers_settings_are_the_detectors(study, data):
    study = study("--seeds", "5")
    study.run("unimodal", ["embedding", "students"])
    rows, y_test = study.task("unimodal", 1)
    students = BlockStudents(n_blocks=3, max_epochs=1, random_state=5)
    detector = TransformalyDetector.paper(tiny_extractor(interpolation="bicubic"), students=students)
    detector.fit(data.X_train.take(rows))
    expected = roc_auc_score(data.y_test == 1, detector.score_samples(data.X_test))
    assert study.values("unimodal", "students", "Transformaly")[1, 0] == pytest.approx(expected, abs=1e-6)
    alone = TransformalyDetector.paper(tiny_extractor(interpolation="bicubic"), feature_spaces=["pretrained"])
    expected = roc_auc_score(data.y_test == 1, alone.fit(data.X_train.take(rows)).score_samples(data.X_test))
    assert study.values("unimodal", "embedding", "embedding")[1, 0] == pytest.approx(expected, abs=1e-6)


def test_figures_of_the_default_may_be_of_the_accuracy_benchmark(study, tmp_path):
    rows = tmp_path / "accuracy.csv"
    lines = ["data,setting,teacher,class,method,auroc,seconds"]
    for setting, name, auroc in (("one class normal", "a", 0.5), ("all but one normal", "a", 0.6)):
        lines += [f"noise,{setting},vit_tiny,{name},{method},{auroc},1.0" for method in ("all spaces", "layers")]
    lines += [
        "noise,one class normal,bundled,b,all spaces,0.7,1.0",
        "other,one class normal,vit_tiny,b,all spaces,0.8,1",
    ]
    rows.write_text("\n".join(lines))
    given = study("--default-rows", str(rows))
    np.testing.assert_array_equal(given.values("unimodal", "default", "default").ravel(), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(given.values("multimodal", "default", "default").ravel(), [0.6, np.nan, np.nan])


@pytest.mark.parametrize("setting", ["unimodal", "multimodal"])
def test_figures_of_the_default_are_the_detectors(setting, study, data):
    study = study("--classes", "b", "--seeds", "5", "6")
    study.run(setting, ["default"])
    rows, y_test = study.task(setting, 1)
    detector = TransformalyDetector(tiny_extractor(interpolation="bicubic")).fit(data.X_train.take(rows))
    expected = roc_auc_score(y_test, detector.score_as_new(data.X_test))
    assert study.values(setting, "default", "default").ravel() == pytest.approx([expected], abs=1e-6)


def test_scoring_is_part_of_the_key_of_what_depends_on_it_alone(study, monkeypatch):
    groups = ("embedding", "students", "densities", "default", "DN2")
    study = study()
    before, discrepancies = [study.group_key(group, 0) for group in groups], study.student_key(0)
    monkeypatch.setitem(spaces.SCORING, "density", GaussianDensity(shrinkage=0.3))
    changed = [group for group, key in zip(groups, before) if study.group_key(group, 0) != key]
    assert changed == ["embedding", "students"] and study.student_key(0) == discrepancies


def test_rivals_without_training_have_a_name_together(tmp_path):
    parser = options.parser(None)
    given = options.complete(parser, parser.parse_args(["--dry-run", "--out", str(tmp_path), "--rivals", "untrained"]))
    assert set(RIVALS) - set(given.rivals) == {"Deep SVDD", "PANDA", "MSAD"}


def test_blocks_trained_together_are_those_trained_alone(study, data):
    study = study("--seeds", "3")
    rows, _ = study.task("multimodal", 2)
    together, together_test, _ = study.discrepancies("multimodal", 2, 3)
    for m in (1, 2):
        students = BlockStudents(n_blocks=m, max_epochs=1, random_state=3, extractor=study.live)
        alone = students.fit(data.X_train.take(rows))
        np.testing.assert_allclose(alone.transform(data.X_train.take(rows)), together[:, -m:], rtol=1e-6)
        np.testing.assert_allclose(alone.transform(data.X_test), together_test[:, -m:], rtol=1e-6)


def test_without_room_for_a_recording_the_teacher_runs_again(study, tmp_path, capsys):
    recorded, live = study(), study("--room", "0", "--out", str(tmp_path / "live"))
    for one, other in zip(recorded.discrepancies("unimodal", 0, 0)[:2], live.discrepancies("unimodal", 0, 0)[:2]):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert "more than --room 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PANDA", "MSAD"])
@pytest.mark.parametrize("n_blocks", ["1", "3"])  # recorded
@pytest.mark.parametrize("n_tuned", [2, 4])
@pytest.mark.parametrize("room", ["16", "0"])
def test_tuned_rivals_score_by_the_recording_as_they_would_without(study, data, name, n_blocks, n_tuned, room):
    settings = [f"{name}__{setting}" for setting in (f"n_tuned={n_tuned}", "max_epochs=1")]
    study = study("--n-blocks", n_blocks, "--room", room, "--rival-settings", *settings)
    rows, _ = study.task("unimodal", 0)
    rival = RIVALS[name](study.live).set_params(random_state=4, max_epochs=1, n_tuned=n_tuned)
    found = study._rival_scores(name, rows, 4)
    np.testing.assert_allclose(found, rival.fit(data.X_train.take(rows)).score_samples(data.X_test), rtol=1e-6)


@pytest.mark.parametrize(("room", "shared"), [("16", True), ("0", False)])
def test_views_of_msad_are_shared_where_most_images_are(study, room, shared):
    study = study("--room", room, "--rival-settings", "MSAD__max_epochs=1")
    apart, _ = study.task("unimodal", 0)
    assert study.fit_rival("MSAD", apart, 0).views is None
    most, other = study.task("multimodal", 0)[0], study.task("multimodal", 1)[0]
    one, two = study.fit_rival("MSAD", most, 0), study.fit_rival("MSAD", other, 0)
    assert (one.views is two.views is not None) == shared
    assert study.fit_rival("MSAD", other, 1).views is not two.views or not shared


def test_without_room_for_all_images_the_teacher_runs_once_over_the_test_images(study, data, tmp_path, monkeypatch):
    recorded = study()
    need = recorded._room_for(len(data.X_test))
    half = study("--room", str(1.5 * need), "--out", str(tmp_path / "half"))
    embed, seen = half.live.embed, []
    monkeypatch.setattr(half.live, "embed", lambda batch, *visit: seen.append(len(batch)) or embed(batch, *visit))
    for label in (0, 1):
        want = recorded.discrepancies("unimodal", label, 0)
        for one, other in zip(half.discrepancies("unimodal", label, 0)[:2], want):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    training = 2 * 2 * 10  # of two classes, to train and to measure
    assert training + len(data.X_test) <= sum(seen) <= training + len(data.X_test) + 20


def test_rows_do_not_depend_on_rounding(study, monkeypatch):
    one = study()
    assert len(one.z_p) == 30
    embeddings, groups = Study._embeddings, ("default", "embedding", "densities", "students", "DN2")
    monkeypatch.setattr(Study, "_embeddings", lambda self: embeddings(self) * (1 + 1e-9))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    other = study("--out", str(one.options.out / "other"))
    assert (one.z_p != other.z_p).any()
    assert all(one.group_key(group, 0) == other.group_key(group, 0) for group in groups)
    assert study("--precision", "float32").group_key("DN2", 0) != one.group_key("DN2", 0)


def test_rows_depend_on_which_images_are_for_training(study, data, tmp_path):
    moved = dataclasses.replace(
        data,
        X_train=join(data.X_train, data.X_test.take([0])),
        y_train=np.append(data.y_train, data.y_test[0]),
        X_test=data.X_test.take(np.arange(1, len(data.X_test))),
        y_test=data.y_test[1:],
    )
    one, other = study(), study("--out", str(tmp_path / "other"), dataset=moved)
    assert one.base["images"] == other.base["images"]
    assert one.group_key("DN2", 0) != other.group_key("DN2", 0)


def test_paper_and_device_reach_rivals(study):
    paper = study("--paper", "--device", "cpu")
    assert paper.rival_settings("Deep SVDD", 1) == {
        "random_state": 1, "device": "cpu", "max_epochs": 150, "pretrain_epochs": 350,
    }  # fmt: skip
    assert study("--device", "cpu").group_key("Deep SVDD", 0) == study().group_key("Deep SVDD", 0)


def test_a_table_is_written_after_each_class(tmp_path, monkeypatch, capsys):
    results_of, states = Study._results, []

    def results(self, setting, label, seed, group):
        path = tmp_path / "table3_dry.md"
        states.append(path.read_text().count("| - |") if path.exists() else None)
        yield from results_of(self, setting, label, seed, group)

    monkeypatch.setattr(Study, "_results", results)
    tables.main(["3", "--dry-run", "--teacher", "test_vit", "--n-blocks", "1", "--out", str(tmp_path)])
    assert [s is None for s in states] == [True, True, False, False, False, False]


def test_names_of_classes_may_hold_what_separates_cells(study, tmp_path, data):
    study = study()
    study.data.class_names[0] = "a | b"
    text = tables.markdown("4", study, "", 0)
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "| a \\| b |" in text


def test_a_figure_of_one_seed_has_no_deviation_where_others_ran_with_more():
    assert tables.cell(np.array([0.5, np.nan])) == "50.0" and tables.cell(np.array([0.5, 0.6])) == "55.0 ± 5.0"


def test_classes_without_images_take_no_turn(study, data):
    study = study()
    study.data.class_names.append("nothing")
    assert study.labels() == [0, 1, 2]


def test_a_dry_run_finds_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "paper-results" / "dry-run" / "rows.csv"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    parser = options.parser(None)
    assert options.complete(parser, parser.parse_args(["--dry-run"])).out.resolve() == old.parent
    assert not old.exists()


def test_a_rivals_own_settings_reach_it_and_its_rows(study):
    default = study()
    changed = study("--rival-settings", "Deep SVDD__lr=0.5", "OC-SVM__nu=0.25", "Deep SVDD__device=cpu")
    assert changed.rival_settings("Deep SVDD", 3) == {"random_state": 3, "device": "cpu", "lr": 0.5}
    assert changed.group_key("OC-SVM", 0) != default.group_key("OC-SVM", 0)
    assert changed.group_key("MSAD", 0) == default.group_key("MSAD", 0)


def test_rivals_run_with_seeds_of_their_own(study, monkeypatch):
    study = study("--seeds", "1", "2", "--rival-seeds", "5", "--classes", "a")
    ran = []
    monkeypatch.setattr(study, "_results", lambda setting, label, seed, group: ran.append((group, seed)) or [0.0])
    study.run("unimodal", ["MSAD", "DN2", "students"])
    assert sorted(ran) == [("DN2", 0), ("MSAD", 5), ("students", 1), ("students", 2)]
    assert study.values("unimodal", "MSAD", "MSAD").shape == (1, 1)


def test_only_what_ran_with_several_seeds_has_a_deviation(tmp_path, capsys):
    arguments = ["--dry-run", "--teacher", "test_vit", "--out", str(tmp_path), "--rivals", "DN2", "Deep SVDD"]
    tables.main(["2", *arguments, "--seeds", "0", "1", "--rival-seeds", "0"])
    text = (tmp_path / "table2_dry.md").read_text()
    header, mean = (next(line for line in text.splitlines() if line.startswith(f"| {x}")) for x in ("normal", "**mean"))
    spread = [title.strip() for title, cell in zip(header.split("|"), mean.split("|")) if "±" in cell]
    assert spread == ["embedding", "discrepancy", "Transformaly"]
    assert "seeds [0, 1] (rivals [0])" in text


def test_a_stopped_training_goes_on_with_the_student_that_was_next(study, tmp_path, monkeypatch):
    whole = study("--out", str(tmp_path / "whole")).discrepancies("multimodal", 0, 0)
    began = []

    def stop(layer):
        began.append(layer.index)
        if len(began) == 2:
            raise KeyboardInterrupt

    on_training(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        study().discrepancies("multimodal", 0, 0)
    train, test, _ = study().discrepancies("multimodal", 0, 0)
    first, second, third = sorted(began[:1] + began[2:])
    assert len(began) == 4 and began[1] == began[2] == second
    np.testing.assert_allclose(train, whole[0], rtol=1e-9)
    np.testing.assert_allclose(test, whole[1], rtol=1e-9)


def test_a_finished_study_computes_nothing_again(study, monkeypatch):
    study("--seeds", "0", "1").run("unimodal", ["embedding", "students", "DN2"])
    monkeypatch.setattr(Study, "_results", None)
    monkeypatch.setattr(Study, "_embeddings", None)
    again = study("--seeds", "0", "1")
    again.run("unimodal", ["embedding", "students", "DN2"])
    assert np.isfinite(again.values("unimodal", "students", "Transformaly")).all()
    assert np.isfinite(again.values("unimodal", "DN2", "DN2")).all()


@pytest.mark.parametrize(
    "changed",
    [["--epochs", "2"], ["--paper"], ["--image-size", "48"], ["--samples", "9"], ["--quirks", "unscaled-ridge"]],
)
def test_a_changed_option_finds_no_stale_row(study, changed):
    study().run("unimodal", ["students"])
    assert np.isnan(study(*changed).values("unimodal", "students", "Transformaly")).all()


@pytest.mark.parametrize("cut", [1, 2, 12, 30, 40])  # without its end of line, within its key, its figure, its method
def test_a_row_that_was_half_written_is_not_there(cut, tmp_path):
    path = tmp_path / "rows.csv"
    row = {"dataset": "d", "setting": "s", "class": "c", "seed": 0, "auroc": 0.5, "seconds": 1, "key": "k" * 16}
    rows = Rows(path)
    rows.add(**row, method="first")
    rows.add(**row, method="second, with a comma")
    path.write_bytes(path.read_bytes()[:-cut])
    rows = Rows(path)
    assert [r["method"] for r in rows.find("k" * 16)] == ["first"]
    rows.add(**row, method="third")
    assert [r["method"] for r in Rows(path).find("k" * 16)] == ["first", "third"]
    with path.open(newline="") as file:
        assert len(list(csv.reader(file))) == 3


@pytest.mark.parametrize("share", [0.5, 0.85, 0.9, 0.99])
def test_whitening_is_scikit_learns_at_every_threshold(rng, share):
    train, test = rng.normal(size=(30, 12)) * np.arange(1, 13), rng.normal(size=(8, 12))
    pca = PCA(share, whiten=True, svd_solver="full").fit(train)
    for mine, theirs in zip(spaces.Whitening(train, test).cut(share), (pca.transform(train), pca.transform(test))):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-10)
    assert spaces.Whitening(train, test, fewer=1).cut(share)[0].shape[1] == pca.n_components_ - 1


def test_the_best_epoch_on_the_held_out_images_is_kept(data):
    students = quirks.BestEpochOnTest(
        n_blocks=1, max_epochs=5, lr=0.03, n_held_out=6, random_state=0, extractor=tiny_extractor()
    )
    losses = students.fit(data.X_train.take(np.arange(16))).history_[5]["validation_loss"]
    assert len(losses) == 5 and losses[-1] > min(losses)
    held_out = data.X_train.take(np.arange(10, 16))
    assert students.transform(held_out).mean() == pytest.approx(min(losses), rel=1e-9)


def test_teacher_drops_out_only_within(data):
    extractor = tiny_extractor().fit(data.X_train)
    batch = extractor.preprocess(data.X_train.stack[:4])
    before = extractor.embed(batch)
    with quirks.teacher_dropout(extractor, seed=0):
        assert not np.allclose(extractor.embed(batch), before)
    np.testing.assert_array_equal(extractor.embed(batch), before)


def test_dropout_in_the_teacher_changes_what_students_learn(study):
    plain, odd = study(), study("--quirks", "teacher-dropout")
    assert not np.allclose(plain.discrepancies("unimodal", 0, 0)[1], odd.discrepancies("unimodal", 0, 0)[1])


def test_best_epoch_on_test_hands_the_tests_normal_images_over(study):
    plain, odd = study(), study("--quirks", "best-epoch-on-test")
    # with a single epoch there is nothing to choose
    np.testing.assert_allclose(plain.discrepancies("unimodal", 0, 0)[1], odd.discrepancies("unimodal", 0, 0)[1])


@pytest.fixture
def places(rng):
    """Embeddings of three classes: 0 and 1 in the same place, 2 apart."""
    y = np.repeat([0, 1, 2], 30)
    return rng.normal(size=(90, 4)) + 20 * (y == 2)[:, None], y


@pytest.mark.parametrize("n_neighbors", [1, 2])
def test_class_confusion_is_what_a_run_without_the_class_would_miss(n_neighbors, places):
    Z, y = places
    found = confusion.class_confusion(confusion.class_distances(Z, y, n_neighbors), y)
    away = pairwise_distances(Z)
    np.fill_diagonal(away, np.inf)
    for label in range(3):
        score = -np.sort(away[:, y != label], axis=1)[:, :n_neighbors].mean(axis=1)
        assert found[label] == pytest.approx(1 - roc_auc_score(y != label, score))
    assert abs(found[0] - 0.5) < 0.2 and found[2] == 0


def test_pairs_of_classes_in_the_same_place_come_first(places):
    Z, y = places
    pairs = confusion.pair_confusion(confusion.class_distances(Z, y, 1), y)
    away = pairwise_distances(Z)
    np.fill_diagonal(away, np.inf)
    for a, b in [(0, 1), (1, 0), (2, 0), (1, 2)]:
        first, second = away[np.ix_(y == a, y == b)].min(axis=1), away[np.ix_(y == b, y == b)].min(axis=1)
        assert pairs[a, b] == pytest.approx(np.mean(first[:, None] < second))
    (a, b, chance), *rest = confusion.ranked_pairs(pairs)
    assert {a, b} == {0, 1} and chance == max(pairs[0, 1], pairs[1, 0]) and [pair[2] for pair in rest] == [0, 0]


def test_confusion_takes_two_images_of_each_class():
    with pytest.raises(ValueError, match="Each class needs two images"):
        confusion.class_distances(np.zeros((3, 2)), np.array([0, 0, 1]))


def test_subsample_keeps_so_many_of_each_class(study, data):
    small = study("--samples", "4", "--test-samples", "2").data
    assert np.bincount(small.y_train).tolist() == [4, 4, 4] and np.bincount(small.y_test).tolist() == [2, 2, 2]
    rows = [np.flatnonzero((data.X_train.stack == image).all((1, 2, 3)))[0] for image in small.X_train[:]]
    assert (data.y_train[rows] == small.y_train).all()


def test_density_rows_against_scikit_learn(rng):
    train, test = rng.normal(size=(40, 6)), rng.normal(size=(30, 6))
    y = np.where(test[:, 0] > 0, 1, -1)
    whitening = spaces.Whitening(train, test)
    rows = dict([*spaces.embedding_rows(whitening, y), *spaces.density_rows(whitening, y, seed=0)])
    pca = PCA(0.9, whiten=True, svd_solver="full").fit(train)
    distance = np.sort(np.linalg.norm(pca.transform(test)[:, None] - pca.transform(train)[None], axis=2), axis=1)
    assert rows["kNN k = 5"] == pytest.approx(roc_auc_score(y, -distance[:, 4]))
    density = GaussianMixture(1).fit(pca.transform(train))
    assert rows["embedding"] == pytest.approx(roc_auc_score(y, density.score_samples(pca.transform(test))))


def test_every_table_runs_dry(tmp_path, capsys):
    tables.main(["all", "--dry-run", "--teacher", "test_vit", "--rivals", "DN2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(title in printed for number, title in tables.TITLES.items() if number != "1")
    assert len(list(tmp_path.glob("table?_dry.md"))) == 6


@pytest.mark.parametrize("table", list(tables.TITLES))
def test_every_quoted_figure_is_a_per_cent_of_a_known_data_set(table):
    for data, row in published.TABLES[table].items():
        assert data in loaders.DATASETS
        assert all(50 <= auroc <= 100 for auroc in row.values())


def test_all_of_the_papers_figures_are_there():
    counts = {table: sum(map(len, rows.values())) for table, rows in published.TABLES.items()}
    assert counts == {"1": 39, "2": 20, "3": 70, "4": 25, "5": 20, "6": 20, "7": 12}


@pytest.mark.parametrize("table", list(tables.TITLES))
def test_the_papers_figures_have_a_column(table):
    columns = {title for title, _, _ in tables.plan(table, options.parser(None).parse_args([]))[2]}
    assert all(set(row) <= columns | {"MHRot", "CSI"} for row in published.TABLES[table].values())


def test_a_subset_is_quoted_as_its_data_set():
    assert published.quoted("1", "cifar10_subset") == published.quoted("1", "cifar10") != {}


def test_nothing_is_quoted_of_data_that_the_paper_does_not_have():
    assert all(published.quoted(table, "noise") == {} for table in tables.TITLES)
    assert published.paper_auroc("noise", "unimodal") is None and published.paper_lift("noise", "multimodal") is None


def test_the_papers_own_figure_and_lift_are_those_of_the_setting():
    assert published.paper_auroc("view", "unimodal") == 95.8 and published.paper_auroc("view", "multimodal") is None
    assert published.paper_auroc("cifar10", "multimodal") == 90.38
    assert published.paper_lift("covid19", "unimodal") == pytest.approx(1.81)
    assert published.paper_lift("cifar10_subset", "multimodal") == pytest.approx(0.15)


def rows_of(dataset, setting, **methods):
    """Rows of one seed, from the AUROC of classes "a", "b", ... by method."""
    for method, aurocs in methods.items():
        for name, auroc in zip("abc", aurocs):
            yield {
                "dataset": dataset, "setting": setting, "class": name, "seed": "0",
                "method": method.replace("_", " ").replace("discrepancy ", "discrepancy, "), "auroc": str(auroc),
            }  # fmt: skip


def test_the_main_figures_are_means_of_unrounded_rows():
    one = rows_of("cifar10", "unimodal", default=[0.9, 0.9007], Transformaly=[0.8, 0.9], DN2=[0.7, 0.8], PANDA=[0.99])
    other = rows_of("noise", "multimodal", Transformaly=[0.6, 0.7])
    paper = rows_of("cifar10", "unimodal", default=[0.1, 0.1], Transformaly=[0.81, 0.83])
    lines = results.main_figures(results.Figures([*other, *one]), results.Figures(paper), results.Figures([]))
    assert lines[2:] == [
        "| cifar10 | unimodal | 90.0 | 82.0 | 85.0 | DN2 75.0 | 98.3 |",
        "| noise | multimodal | - | - | 65.0 | - | - |",
    ]


def test_the_papers_settings_on_fewer_images_have_a_line_of_their_own():
    studies = ("cifar10", "unimodal"), ("view", "multimodal")
    every = results.Figures(row for study in studies for row in rows_of(*study, default=[0.8], DN2=[0.75]))
    few = results.Figures(
        row for study in studies for row in rows_of(*study, default=[0.7], Transformaly=[0.6], DN2=[0.65])
    )
    lines = results.main_figures(every, results.Figures(rows_of(*studies[0], Transformaly=[0.9])), few)
    assert lines[2:] == [
        "| cifar10 | unimodal | 80.0 | 90.0 | - | DN2 75.0 | 98.3 |",
        "| view | multimodal | 80.0 | - | - | DN2 75.0 | - |",
        "| view, fewer images | multimodal | 70.0 | 60.0 | - | DN2 65.0 | - |",
    ]


def test_the_papers_settings_on_some_classes_are_compared_on_these():
    every = results.Figures(
        rows_of("view", "multimodal", default=[0.8, 0.6], DN2=[0.75, 0.55], Transformaly=[0.7, 0.5])
    )
    paper = results.Figures(rows_of("view", "multimodal", Transformaly=[0.72]))
    few = results.Figures(rows_of("view", "multimodal", default=[0.7, 0.7], Transformaly=[0.6, 0.6], DN2=[0.65, 0.65]))
    assert results.main_figures(every, paper, few)[2:] == [
        "| view | multimodal | 70.0 | - | 60.0 | DN2 65.0 | - |",
        "| view, 1 of 2 classes | multimodal | 80.0 | 72.0 | 70.0 | DN2 75.0 | - |",
        "| view, fewer images | multimodal | 70.0 | 60.0 | - | DN2 65.0 | - |",
    ]


def test_runs_on_fewer_images_are_compared_with_each_other_alone():
    rows = rows_of("view", "multimodal", default=[0.8], Transformaly=[0.7], embedding=[0.6], DN2=[0.75], PANDA=[0.65])
    lines = results.few_figures(results.Figures(rows))
    assert lines[2:] == ["| view | multimodal | 1 | 80.0 | 70.0 | 60.0 | DN2 75.0 |"]


def test_lifts_stand_beside_the_papers():
    one = rows_of("cifar10", "unimodal", embedding=[0.8004], Transformaly=[0.8146])
    other = rows_of("noise", "multimodal", embedding=[0.7], Transformaly=[0.695])
    assert results.lifts(results.Figures([*one, *other]))[2:] == [
        "| cifar10 | unimodal | 80.0 | 81.5 | +1.4 | +0.5 |",
        "| noise | multimodal | 70.0 | 69.5 | -0.5 | - |",
    ]


def test_classes_that_lose_are_listed_the_worst_first():
    columns = {
        "embedding": [0.9, 0.8, 0.7],
        "discrepancy_3_blocks": [0, 0, 0],
        "discrepancy_10_blocks": [0.8, 0.85, 0.4],
        "Transformaly": [0.8999, 0.84, 0.65],
    }
    lines = results.where_it_helps(results.Figures(rows_of("x", "unimodal", **columns)))
    assert "over 3 classes" in lines[0] and "rho 1.00" in lines[0] and "The 2 that lose" in lines[0]
    assert lines[4:6] == ["| x, c | 70.0 | 40.0 | 65.0 | -5.00 |", "| x, a | 90.0 | 80.0 | 90.0 | -0.01 |"]


def test_shown_tables_are_those_of_the_run_that_computed_the_rows(tmp_path, capsys, monkeypatch):
    arguments = ["3", "--dry-run", "--teacher", "test_vit", "--n-blocks", "2", "--rivals", "--out", str(tmp_path)]
    tables.main(arguments)
    computed = (tmp_path / "table3_dry.md").read_text()
    monkeypatch.setattr(Study, "run", None)
    tables.main([*arguments, "--show"])
    shown = (tmp_path / "table3_dry.md").read_text()
    assert re.sub(r"\d+ s for the rows, \d+ s for the teacher's run.", "Written by", computed) == shown


def test_rows_of_an_earlier_version_are_shown_if_asked_for(study):
    row = {"dataset": "noise", "setting": "unimodal", "class": "a", "seed": 0, "method": "DN2"}
    study().rows.add(**row, auroc=0.5, seconds=0, key="another version's")
    assert np.isnan(study().values("unimodal", "DN2", "DN2")).all()
    assert study("--show").values("unimodal", "DN2", "DN2")[0, 0] == 0.5


def test_rows_beside_a_table_are_those_of_its_settings(tmp_path, capsys):
    arguments = ["5", "--dry-run", "--teacher", "test_vit", "--n-blocks", "2", "--rivals", "--out", str(tmp_path)]
    tables.main([*arguments, "--seeds", "1"])
    tables.main([*arguments, "--image-size", "48"])
    rows = Rows(tmp_path / "table5_dry.csv").rows
    assert len(rows) == 3 * 4 and {row["seed"] for row in rows} == {"0"}  # default, embedding, discrepancy, both
    assert len(Rows(tmp_path / "rows.csv").rows) > 2 * len(rows)


def test_results_put_the_tables_into_one_file(tmp_path, monkeypatch, capsys):
    tables.main(["3", "--dry-run", "--teacher", "test_vit", "--n-blocks", "1", "--out", str(tmp_path)])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path)])
    results.main()
    printed = capsys.readouterr().out
    assert "| dry |" in printed and (tmp_path / "table3_dry.md").read_text().strip() in printed


def test_commands_are_shown_without_the_places_of_files():
    arguments = ["3", "--data", "covid19", "--root", "/home/me/x", "--weights", "/w.safetensors", "--out", "/o"]
    assert options.command("tables.py", arguments) == (
        "python benchmarks/paper/tables.py 3 --data covid19 --root DIR --weights FILE --out OUT"
    )
    assert options.command("tables.py", ["3", "--weights", "bundled"]).endswith("--weights bundled")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--samples", "-3"], "argument --samples: must be at least 2, got -3"),
        (["--dry-run", "--data", "cifar10"], "--dry-run has data of its own: leave out --data and --root"),
        (["--dry-run", "--seeds", "0", "0"], "--seeds names something twice: 0 0"),
        ([], "--data is needed"),
        (["--rival-settings", "MSAD"], "must look like MSAD__max_epochs=5, got 'MSAD'"),
        (["--rival-settings", "CSI__lr=1"], "there is no rival 'CSI': choose from OC-SVM (pixels)"),
        (["--rival-settings", "DN2__lr=1"], "DN2 has no parameter 'lr': choose from n_neighbors"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = options.parser(None)
    with pytest.raises(SystemExit) as stop:
        options.complete(parser, parser.parse_args(arguments))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bundled_weights_bring_their_teacher(tmp_path):
    parser = options.parser(None)
    arguments = ["--data", "covid19", "--weights", "bundled", "--out", str(tmp_path)]
    assert options.complete(parser, parser.parse_args(arguments)).teacher == "tf_efficientnet_lite0"
    arguments += ["--teacher", "vit_tiny_patch16_224"]
    assert options.complete(parser, parser.parse_args(arguments)).teacher == "vit_tiny_patch16_224"


@pytest.mark.parametrize("error", [ValueError("no such class"), FileNotFoundError("no such file"), KeyboardInterrupt()])
def test_a_users_mistake_is_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        options.guarded(main)
    assert str(stop.value.code).count("\n") == 0
    assert (str(error) or "the same command goes on") in stop.value.code


def test_no_advice_that_a_command_does_not_take():
    def main():
        raise ImageError(f"'a.jpg': cannot be decoded.{SKIP_ADVICE}")

    with pytest.raises(SystemExit, match="Remove or repair it.$"):
        options.guarded(main)


@pytest.mark.parametrize("n, counts", [(10, [1, 3, 10]), (12, [1, 3, 10, 12]), (2, [1, 2]), (7, [1, 3, 7]), (1, [1])])
def test_all_students_are_among_the_numbers_of_blocks(n, counts):
    assert spaces.block_counts(n) == counts


def test_novelty_of_hand_made_levels():
    y = np.array([0, 0, 1, 1, 2, 2])
    image = np.array([0.0, 3.0, 1.0, 2.0, 5.0, 4.0])
    raised = np.array([0.1, 0.1, 0.5, 0.5, 0.2, 0.2])
    novel = np.arange(3)[:, None] == y
    run = np.array([[0.3], [-0.2], [0.05]])
    for setting, levels in (("multimodal", image + raised * novel), ("unimodal", image + raised * ~novel)):
        levels = levels + run
        found = why.novelty(levels, y, setting)
        np.testing.assert_allclose(np.log(found["raised"]), [0.1, 0.5, 0.2])
        np.testing.assert_allclose(found["correlation"], 1)
        np.testing.assert_allclose(found["familiar"], [roc_auc_score(y == c, image) for c in range(3)])


@pytest.mark.parametrize("setting", ["unimodal", "multimodal"])
def test_why_runs_dry_and_is_among_the_results(setting, tmp_path, capsys, monkeypatch):
    arguments = ["--dry-run", "--teacher", "test_vit", "--n-blocks", "2", "--out", str(tmp_path)]
    tables.main(["3", *arguments])
    why.main([setting, *arguments])
    text = (tmp_path / f"why_{setting}_dry.md").read_text()
    assert text.strip() in capsys.readouterr().out and ("AUROC" in text) == (setting == "multimodal")
    monkeypatch.setattr("sys.argv", ["results.py", str(tmp_path)])
    results.main()
    assert text.strip() in capsys.readouterr().out


def test_losses_of_rivals_are_shown(tmp_path, capsys):
    arguments = ["--dry-run", "--teacher", "test_vit", "--n-blocks", "2", "--out", str(tmp_path)]
    losses.main([*arguments, "--rivals", "DN2", "Deep SVDD", "PANDA"])
    text = (tmp_path / "losses_dry.md").read_text()
    assert "| Deep SVDD | 1 |" in text and "| PANDA | 1 |" in text and "DN2 |" not in text


def test_losses_are_those_of_epochs_at_equal_intervals():
    text = losses.report({"MSAD": list(range(21, 0, -1)), "PANDA": [0.5]}, "", "")
    assert "| MSAD | 21 | 21 | 16 | 11 | 6 | 1 |" in text and "| PANDA | 1 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 |" in text


def test_the_lift_of_few_blocks_is_the_detectors(tmp_path, capsys):
    arguments = ["--dry-run", "--teacher", "test_vit", "--n-blocks", "2", "--out", str(tmp_path)]
    tables.main(["3", "2", *arguments, "--rivals"])
    capsys.readouterr()
    means = [results.Figures(Rows(tmp_path / f"table{number}_dry.csv").rows) for number in "23"]
    study = ("dry", "unimodal")
    assert means[0].mean(study, "Transformaly") == means[1].mean(study, "both, 2 blocks")
