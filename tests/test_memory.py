"""`memory=`: what is computed once is found again, and nothing else is."""

import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from conftest import on_training, tiny_extractor, tiny_students
from conftest import tiny_paper as tiny_detector
from PIL import Image
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skl_transformaly import GaussianDensity, TimmExtractor
from skl_transformaly._measuring import Measurer
from skl_transformaly.images._images import as_images
from skl_transformaly.utils._cache import Cache, fingerprint, identity


@pytest.fixture
def work(monkeypatch):
    """Counts how often students are trained and the teacher is run for scores."""
    counts = {"trained": [], "runs": 0}
    run = Measurer.run

    def counted_run(self, images, *rest):
        counts["runs"] += 1
        return run(self, images, *rest)

    on_training(monkeypatch, lambda layer: counts["trained"].append(layer.index))
    monkeypatch.setattr(Measurer, "run", counted_run)
    return counts


def test_a_second_fit_computes_nothing(tmp_path, images, work):
    first = tiny_detector(memory=str(tmp_path)).fit(images).score_samples(images)
    done = (list(work["trained"]), work["runs"])
    second = tiny_detector(memory=str(tmp_path)).fit(images).score_samples(images)
    assert (work["trained"], work["runs"]) == done
    np.testing.assert_array_equal(first, second)


class CentreExtractor(TimmExtractor):
    """Looks at the middle of an image alone."""

    def preprocess(self, pixels):
        return super().preprocess(np.ascontiguousarray(np.asarray(pixels)[:, 5:15, 6:18]))


def test_a_subclass_of_the_extractor_does_not_find_what_its_parent_left(tmp_path, images):
    parent = tiny_extractor()
    subclass = CentreExtractor(**parent.get_params())
    tiny_detector(extractor=parent, memory=str(tmp_path)).fit(images)
    found = tiny_detector(extractor=subclass, memory=str(tmp_path)).fit(images).score_samples(images)
    np.testing.assert_array_equal(found, tiny_detector(extractor=subclass).fit(images).score_samples(images))


@pytest.mark.parametrize("trim", [0.0, 0.2])
def test_a_second_fit_runs_no_teacher_to_trim(tmp_path, images, work, trim):
    first = tiny_detector(trim=trim, memory=str(tmp_path)).fit(images)
    before = work["runs"]
    second = tiny_detector(trim=trim, memory=str(tmp_path)).fit(images)
    assert work["runs"] == before
    np.testing.assert_array_equal(second.training_labels_, first.training_labels_)
    np.testing.assert_array_equal(second.training_scores_, first.training_scores_)


class Inverted(TimmExtractor):
    """With a parameter of its own, by which it computes otherwise."""

    def __init__(
        self,
        model_name="test_vit",
        *,
        inverted=False,
        weights=None,
        image_size=32,
        interpolation=None,
        batch_size=8,
        device="auto",
        precision="float32",
    ):
        super().__init__(
            model_name,
            weights=weights,
            image_size=image_size,
            interpolation=interpolation,
            batch_size=batch_size,
            device=device,
            precision=precision,
        )
        self.inverted = inverted

    def preprocess(self, pixels):
        batch = super().preprocess(pixels)
        return -batch if self.inverted else batch


def test_a_parameter_of_a_subclass_tells_its_teachers_apart(tmp_path, images):
    for inverted in (False, True):
        scores = [
            tiny_detector(extractor=Inverted(inverted=inverted), memory=memory)
            .fit(images)
            .score_samples(images[:2] // 2)
            for memory in (None, str(tmp_path))
        ]
        np.testing.assert_allclose(*scores, rtol=1e-6)


def test_scores_are_those_without_memory(tmp_path, images):
    np.testing.assert_array_equal(
        tiny_detector(memory=str(tmp_path)).fit(images).score_samples(images),
        tiny_detector().fit(images).score_samples(images),
    )


def test_found_students_score_new_images_as_trained_ones(tmp_path, images, rng):
    new = rng.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    tiny_detector(memory=str(tmp_path)).fit(images)
    found = tiny_detector(memory=str(tmp_path)).fit(images)
    assert found.students_.history_ == tiny_detector().fit(images).students_.history_
    np.testing.assert_array_equal(found.score_samples(new), tiny_detector().fit(images).score_samples(new))


@pytest.mark.parametrize(
    "change",
    [
        {"explained_variance": 0.5},
        {"density": GaussianMixture(2, random_state=0)},
        {"discrepancy_density": "knn"},
        {"normalize": True},
        {"contamination": 0.2},
    ],
    ids=str,
)
def test_another_density_costs_the_density(tmp_path, images, work, change):
    tiny_detector(memory=str(tmp_path)).fit(images)
    done = (list(work["trained"]), work["runs"])
    tiny_detector(memory=str(tmp_path), **change).fit(images)
    assert (work["trained"], work["runs"]) == done


def test_more_blocks_train_only_the_new_ones(tmp_path, images, work):
    for n_blocks in (2, 4, 3):
        tiny_detector(memory=str(tmp_path), students=tiny_students(n_blocks=n_blocks)).fit(images)
    assert work["trained"] == [4, 5, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"students": tiny_students(max_epochs=2)},
        {"students": tiny_students(lr=1e-3)},
        {"students": tiny_students(batch_size=4)},
        {"students": tiny_students(random_state=1)},
        {"extractor": tiny_extractor("test_vit2")},
        {"extractor": tiny_extractor(image_size=48)},
        {"extractor": tiny_extractor(interpolation="bilinear")},
        {"extractor": tiny_extractor(precision="float32")},
    ],
    ids=str,
)
def test_a_changed_setting_trains_again(tmp_path, images, work, change):
    tiny_detector(memory=str(tmp_path)).fit(images)
    tiny_detector(memory=str(tmp_path), **change).fit(images)
    assert len(work["trained"]) == 4


def test_a_changed_weight_file_trains_again(tmp_path, images, work):
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", num_classes=0)
    for name in ("one", "two"):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        tiny_detector(
            extractor=tiny_extractor(weights=tmp_path / f"{name}.safetensors"), memory=str(tmp_path / "cache")
        ).fit(images)
        with torch.no_grad():
            model.blocks[5].mlp.fc1.weight[0, 0] += 0.1
    assert len(work["trained"]) == 4


@pytest.mark.parametrize("package", ["torch", "timm", "skl-transformaly"])
def test_another_version_of_a_library_trains_again(tmp_path, images, work, monkeypatch, package):
    from skl_transformaly.utils import _cache

    tiny_detector(memory=str(tmp_path)).fit(images)
    found = _cache._versions()
    monkeypatch.setattr(_cache, "_versions", lambda: {**found, package: "99"})
    tiny_detector(memory=str(tmp_path)).fit(images)
    assert len(work["trained"]) == 4


def test_a_changed_pixel_is_another_image(images):
    before = fingerprint(as_images(images))
    images[3, 2, 1, 0] += 1
    assert fingerprint(as_images(images)) != before


def test_order_and_form_of_images_are_part_of_them(images):
    prints = {
        fingerprint(as_images(images)),
        fingerprint(as_images(images[::-1])),
        fingerprint(as_images(images[:-1])),
        fingerprint(as_images(np.moveaxis(images, 1, 2))),
    }
    assert len(prints) == 4


def test_the_same_pixels_in_another_dtype_are_the_same_image(images):
    assert fingerprint(as_images(images / 255)) == fingerprint(as_images(images))


def test_the_same_pixels_as_files_are_found(tmp_path, images, work):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    tiny_detector(memory=str(tmp_path / "cache")).fit(images)
    tiny_detector(memory=str(tmp_path / "cache")).fit(paths)
    assert len(work["trained"]) == 2


def test_discrepancies_that_nobody_held_out_are_not_found_by_a_fit_that_needs_them(tmp_path, images):
    settings = {"threshold": "held-out", "explained_variance": None}
    tiny_detector(memory=str(tmp_path)).fit(images)  # the paper's threshold, on fitted scores
    found = tiny_detector(memory=str(tmp_path), **settings).fit(images)
    np.testing.assert_array_equal(found.training_scores_, tiny_detector(**settings).fit(images).training_scores_)


def test_a_folder_may_be_a_path_object(tmp_path, images, work):
    tiny_detector(memory=tmp_path).fit(images)
    tiny_detector(memory=str(tmp_path)).fit(images)
    assert len(work["trained"]) == 2


def test_clones_and_pipelines_share_it(tmp_path, images, work):
    detector = tiny_detector(memory=joblib.Memory(tmp_path, verbose=0))
    clone(detector).fit(images)
    make_pipeline(FunctionTransformer(), clone(detector)).fit(images)
    assert len(work["trained"]) == 2


def test_verbose_says_what_is_found(tmp_path, images, capsys):
    tiny_detector(memory=str(tmp_path)).fit(images)
    tiny_detector(memory=str(tmp_path), verbose=1).fit(images)
    printed = capsys.readouterr().out
    assert (
        "found: student of block 5" in printed
        and "found: features of training images" in printed
        and "computing" not in printed
    )


def test_a_cache_that_cannot_be_made_is_a_warning(tmp_path, images):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="cache cannot be used"):
        detector = tiny_detector(memory=str(tmp_path / "file")).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), tiny_detector().fit(images).score_samples(images))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_a_warning_and_the_result_is_there(tmp_path, monkeypatch):
    cache = Cache(str(tmp_path))

    def full(*args, **kwargs):
        with open("/dev/full", "w") as file:
            file.write("x" * 10_000)

    monkeypatch.setattr(cache._call.store_backend, "dump_item", full)
    calls = []
    with pytest.warns(UserWarning, match=r"cache cannot be used.*No space"):
        assert cache("thing", {"k": 1}, lambda: calls.append(1) or 42) == 42
    assert calls == [1]


def test_what_computing_raises_is_raised(tmp_path):
    def fail():
        raise OSError("no room for activations")

    with pytest.raises(OSError, match="no room for activations"):
        Cache(str(tmp_path))("thing", {"k": 1}, fail)


def test_a_damaged_entry_is_computed_again(tmp_path, images):
    expected = tiny_detector(memory=str(tmp_path)).fit(images).score_samples(images)
    for path in tmp_path.rglob("output.pkl"):
        path.write_bytes(path.read_bytes()[:20])
    scores = tiny_detector(memory=str(tmp_path)).fit(images).score_samples(images)
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.slow
def test_two_processes_on_one_cache(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests', '.']; import numpy as np, torch; torch.set_num_threads(1)\n"
        "from conftest import tiny_detector\n"
        "X = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)\n"
        f"for _ in range(3): print(tiny_detector(memory={str(tmp_path)!r}).fit(X).score_samples(X).sum())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {line for process in processes for line in process.communicate(timeout=120)[0].split()}
    assert all(process.returncode == 0 for process in processes)
    assert len(printed) == 1


@pytest.mark.parametrize("threshold", ["training", "held-out"])
def test_students_of_a_seed_that_nobody_will_draw_again_are_not_kept(threshold, tmp_path, images):
    sizes = []
    unseeded = {"random_state": None, "students": tiny_students(random_state=None)}
    for _ in range(2):
        tiny_detector(memory=tmp_path, threshold=threshold, contamination=0.25, **unseeded).fit(images)
        sizes.append(len(list(tmp_path.rglob("output.pkl"))))
    assert sizes == [0, 0]


def test_students_with_a_seed_of_their_own_are_kept(tmp_path, images, work):
    """Whatever the detector's: their next fit is the same."""
    detector = tiny_detector(memory=str(tmp_path), random_state=None, students=tiny_students(random_state=0))
    first = detector.fit(images).score_samples(images[::-1])
    trained = list(work["trained"])
    np.testing.assert_array_equal(clone(detector).fit(images).score_samples(images[::-1]), first)
    assert work["trained"] == trained


def test_a_fit_that_stopped_finds_the_students_of_its_folds(tmp_path, images, monkeypatch):
    trained = []

    def stop_at_the_seventh(layer):
        trained.append(layer.index)
        if len(trained) == 7:
            raise KeyboardInterrupt

    on_training(monkeypatch, stop_at_the_seventh)
    detector = tiny_detector(memory=tmp_path, threshold="held-out", contamination=0.25)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(images)
    detector.fit(images)
    assert len(trained) == 1 + 2 * (1 + 3)  # the one that was stopped, and two blocks of all images and of three folds


def test_a_numpy_integer_is_a_batch_size(images):
    detector = tiny_detector(extractor=tiny_extractor(batch_size=np.int64(4))).fit(images)
    plain = tiny_detector(extractor=tiny_extractor(batch_size=4)).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), plain.score_samples(images))


@pytest.mark.parametrize("name", ["test_vit", "test_byobnet", "test_efficientnet"])
def test_found_students_are_the_trained_ones_and_the_teacher_stays_as_it_was(tmp_path, images, name):
    parts = {"extractor": tiny_extractor(name, image_size=None if name != "test_vit" else 32), "memory": tmp_path}
    trained, found = (tiny_detector(**parts).fit(images) for _ in range(2))
    for one, other in zip(trained.students_.students_, found.students_.students_):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
        assert not other.training and not any(p.requires_grad for p in other.parameters())
    np.testing.assert_array_equal(found.score_samples(images[:5] // 2), trained.score_samples(images[:5] // 2))


def test_a_fingerprint_tells_order_and_shape(rng):
    X = rng.integers(0, 256, (6, 4, 10, 3), dtype=np.uint8)
    others = [X[::-1], X.reshape(6, 10, 4, 3), X[:5], np.concatenate([X, X[:1]]), 255 - X]
    prints = {fingerprint(as_images(np.ascontiguousarray(other))) for other in [X, *others]}
    assert len(prints) == 6
    assert fingerprint(as_images(list(X))) == fingerprint(as_images(X))


def test_a_fingerprint_tells_where_an_unreadable_image_is(rng, tmp_path):
    """It gets NaN there, and the others keep their places."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    first, last = list(rng.integers(0, 256, (2, 4, 10, 3), dtype=np.uint8))
    bad = str(tmp_path / "bad.png")
    for image, name in ((first, "first"), (last, "last")):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "first.png"), bad, str(tmp_path / "last.png")]
    with pytest.warns(UserWarning, match="could not be read"):
        found = {fingerprint(as_images(order, on_error="skip")) for order in (paths, [paths[0], paths[2], bad])}
    assert len(found) == 2


@pytest.mark.parametrize("shape", [(4, 10, 3), (10, 4, 3), (10, 12, 1), (40, 1, 3)])
def test_duplicates_have_the_same_shape(shape):
    """Black images of as many bytes are not copies of each other."""
    images = as_images([np.zeros((12, 10, 1), dtype=np.uint8), np.zeros(shape, dtype=np.uint8)])
    next(images.batches(2))
    assert len(set(images.groups().tolist())) == 2


def test_images_from_the_cache_have_thumbnails(images, tmp_path):
    """Of a data set, too, whose images have been seen by an earlier fit; or all would be taken for copies of one."""
    X = as_images(images)
    settings = {"threshold": "held-out", "contamination": 0.3, "density": GaussianDensity()}
    detector = tiny_detector(feature_spaces=["pretrained"], memory=str(tmp_path), **settings)
    first, second = (clone(detector).fit(X) for _ in range(2))
    assert second.training_thumbnails_.any()
    np.testing.assert_array_equal(first.training_thumbnails_, second.training_thumbnails_)
    assert len(np.unique(second.forget([0]).training_groups_)) == len(images)


class Own:
    def __init__(self, seed):
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
        self.half, self.view = torch.ones(2, dtype=torch.bfloat16), torch.arange(6.0)[::2]


def test_equal_teachers_of_ones_own_are_found_again():
    assert identity(Own(0)) == identity(Own(0)) != identity(Own(1))


def test_the_home_folder_may_be_named_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Cache("~/kept").active
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
