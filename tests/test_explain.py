"""Why an image is an anomaly: maps, the parts of a score, and scores for every number of components."""

import copy

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor, tiny_paper, tiny_students
from PIL import Image
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize
from test_extractor import FAMILIES

from skl_transformaly import ConformalDetector, TransformalyDetector
from skl_transformaly._reasons import reasons
from skl_transformaly.serving._scorers import DetectorScorer


def residuals(students, X):
    """What each student gives less what its block gives, at tokens that are places: (blocks, n, tokens, channels)."""
    found = {}

    def visit(index, block, args, kwargs, output):
        if index in students.block_indices_:
            student = students.students_[students.block_indices_.tolist().index(index)]
            found[index] = (student(*args, **kwargs) - output)[:, 1:].numpy()

    students.extractor_.embed(students.extractor_.preprocess(X), visit)
    return np.stack([found[index] for index in sorted(found)])


def test_map_is_the_mean_over_blocks_of_how_unusual_residuals_are_at_their_place():
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    detector = tiny_paper().fit(X)
    new = np.random.default_rng(5).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    usual, found = residuals(detector.students_, X), residuals(detector.students_, new)
    coarse = []
    for block in range(2):

        def log_distance(rows, normal, shrinkage):
            mean = normal.mean(axis=0)
            covariance = np.cov((normal - mean).reshape(-1, 64).T, bias=True)
            covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 64 * np.eye(64)
            away = rows - mean
            return np.log(np.einsum("ntc,cd,ntd->nt", away, np.linalg.inv(covariance), away) / 64)

        normal = usual[block]
        centred = (normal - normal.mean(axis=0)).reshape(-1, 64)
        shrinkage = LedoitWolf(assume_centered=True).fit(centred).shrinkage_
        folds = np.array_split(np.arange(len(normal)), 4)
        logs = np.concatenate(
            [log_distance(normal[fold], np.delete(normal, fold, axis=0), shrinkage) for fold in folds]
        )
        spread = np.maximum(logs.std(axis=0), np.sqrt(2 / 64))
        coarse.append((log_distance(found[block], normal, shrinkage) - logs.mean(axis=0)) / spread)
    maps = detector.anomaly_map(new)
    assert maps.shape == (2, 20, 24) and maps.dtype == np.float32
    for single, tokens in zip(maps, np.mean(coarse, axis=0)):
        expected = Image.fromarray(tokens.reshape(2, 2).astype(np.float32)).resize((24, 20), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(single, np.asarray(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n, channels", [(32, 8), (12, 64), (4, 32), (3, 32)])
def test_new_normal_residuals_are_around_zero_however_few_images_there_were(n, channels, rng):
    from skl_transformaly.students._residuals import ResidualStatistics

    usual, new = (torch.from_numpy(rng.normal(size=(m, channels, 2, 2))) for m in (n, 200))
    z = ResidualStatistics.fit(usual).standardize(new)
    # in-sample statistics of 12 images give 30 and more, those of 3 images 3
    assert (-0.7 if n > 4 else -3) < z.mean() < 0.7 and z.std() < (2 if n > 4 else 3)


@pytest.mark.parametrize("n, level", [(5, 0), (32, 0), (33, 10)])
def test_residuals_are_whitened_by_scikit_learns_shrunk_covariance(n, level, rng):
    from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance

    from skl_transformaly.students._residuals import ResidualStatistics

    # much the same in all images, where differences of large sums would cancel
    usual = (
        level * rng.normal(size=(1, 6, 3, 4)) + 0.01 * rng.normal(size=(n, 6, 3, 4)) * np.arange(1, 7)[:, None, None]
    )
    statistics = ResidualStatistics.fit(torch.from_numpy(usual.astype(np.float32)))
    rows = np.moveaxis(usual - usual.mean(0), 1, -1).reshape(-1, 6)
    shrinkage = max(0.01, ledoit_wolf_shrinkage(rows, assume_centered=True))
    covariance = shrunk_covariance(rows.T @ rows / len(rows), shrinkage)
    whitening = statistics.whitening.astype(np.float64)
    np.testing.assert_allclose(whitening @ covariance @ whitening.T, np.eye(6), atol=2e-3)


@pytest.mark.parametrize("scale", [1e-15, 1e15, 1e90])
def test_residuals_of_any_size_are_told_apart_alike(scale, rng):
    from skl_transformaly.students._residuals import ResidualStatistics

    usual = torch.from_numpy(rng.normal(size=(9, 6, 2, 2)))
    expected = ResidualStatistics.fit(usual)
    found = ResidualStatistics.fit(usual * scale)
    # float64 for sizes that float32 does not have; whitening is kept in float32
    if scale < 1e30:
        np.testing.assert_allclose(found.whitening * scale, expected.whitening, rtol=1e-4)
    else:
        assert np.isfinite(found.whitening).all()


def test_residuals_of_a_student_that_diverged_are_refused():
    from skl_transformaly.students._residuals import ResidualStatistics

    with pytest.raises(FloatingPointError, match="training diverged. Lower lr"):
        ResidualStatistics.fit(torch.randn(9, 6, 2, 2) * 1e30)


def test_maps_do_not_depend_on_how_large_a_channel_is(rng):
    from skl_transformaly.students._residuals import ResidualStatistics

    usual, new = (torch.from_numpy(rng.normal(size=(n, 3, 4, 4))) for n in (20, 5))
    scale = torch.tensor([1.0, 100.0, 1.0])[:, None, None] + 0 * usual[0]
    z = ResidualStatistics.fit(usual * scale).standardize(new * scale)
    # up to the ridge, which is a share of the mean variance
    expected = ResidualStatistics.fit(usual).standardize(new)
    assert np.corrcoef(z.ravel(), expected.ravel())[0, 1] > 0.5
    unequal = (new * scale).square().mean(1)
    assert np.corrcoef(unequal.log().ravel(), expected.ravel())[0, 1] < 0.5


@pytest.mark.parametrize("n", [1, 2])
def test_residuals_that_do_not_vary_make_finite_maps(n):
    from skl_transformaly.students._residuals import ResidualStatistics

    usual = torch.ones(n, 3, 2, 2)
    statistics = ResidualStatistics.fit(usual)
    assert torch.allclose(statistics.standardize(usual), torch.zeros(n, 2, 2))
    z = statistics.standardize(usual + 1)
    assert torch.isfinite(z).all() and (z > 5).all()


def test_students_without_residuals_make_no_maps(fitted, images):
    detector = copy.deepcopy(fitted[0])
    detector.students_.residuals_ = [None, None]
    with pytest.raises(ValueError, match="block 4 has no residuals of normal images to compare with: fit again"):
        detector.anomaly_map(images)


def test_explained_maps_and_scores_are_those_of_their_own_methods(fitted):
    detector, X = fitted
    table = detector.explain(X, maps=True)
    alone = detector.explain(X)
    assert set(table) == {*alone, "map"}
    np.testing.assert_array_equal(np.stack(table["map"]), detector.anomaly_map(X))
    for name, column in alone.items():
        np.testing.assert_array_equal(table[name], column)


def test_an_unreadable_image_has_no_explained_map(fitted, tmp_path):
    detector, X = fitted
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    good = tmp_path / "good.png"
    Image.fromarray(X[0]).save(good)
    detector = copy.deepcopy(detector).set_params(on_error="skip")
    with pytest.warns(UserWarning, match="broken"):
        table = detector.explain([good, path], maps=True)
    assert table["map"][0].shape == X[0].shape[:2] and table["map"][1] is None


def test_found_students_make_the_same_maps(tmp_path, images):
    first = tiny_detector(memory=str(tmp_path)).fit(images).anomaly_map(images)
    np.testing.assert_array_equal(tiny_detector(memory=str(tmp_path)).fit(images).anomaly_map(images), first)
    np.testing.assert_array_equal(tiny_detector().fit(images).anomaly_map(images), first)


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
@pytest.mark.slow
def test_every_family_has_maps(name, size, kind, number, images):
    detector = tiny_detector(extractor=tiny_extractor(name, image_size=size, precision="float32")).fit(images)
    maps = detector.anomaly_map(images[:2])
    assert maps.shape == (2, 20, 24) and np.isfinite(maps).all()


def test_map_points_at_the_changed_corner():
    rng = np.random.default_rng(0)
    X = rng.integers(120, 136, (24, 96, 96, 3), dtype=np.uint8)
    detector = tiny_detector(extractor=tiny_extractor(image_size=96), students=tiny_students(max_epochs=20)).fit(X)
    odd = X[:1].copy()
    odd[:, :32, 64:] = rng.integers(0, 256, (1, 32, 32, 3))
    grid = detector.anomaly_map(odd)[0].reshape(3, 32, 3, 32).mean(axis=(1, 3))
    assert np.unravel_index(grid.argmax(), grid.shape) == (0, 2)


def test_maps_have_the_size_of_their_images(fitted, rng):
    detector, _ = fitted
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((10, 12), (33, 7))]
    assert [single.shape for single in detector.anomaly_map(images)] == [(10, 12), (33, 7)]


@pytest.fixture
def good_and_bad(tmp_path, images):
    """Paths of an image and of a file that is not an image."""
    Image.fromarray(images[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    return [tmp_path / "good.png", tmp_path / "bad.png"]


def test_an_unreadable_image_has_a_map_of_nan(good_and_bad, images):
    detector = tiny_detector(on_error="skip").fit(images)
    with pytest.warns(UserWarning, match="could not be read"):
        maps = detector.anomaly_map(good_and_bad)
    assert maps[0].shape == (20, 24) and np.isnan(maps[1]).all()


def test_maps_need_students_and_a_block_that_has_one(fitted, images):
    with pytest.raises(ValueError, match="'discrepancy' among feature_spaces"):
        tiny_detector(feature_spaces=["pretrained"]).fit(images).anomaly_map(images)
    with pytest.raises(ValueError, match=r"block=3 has no student; those with one are \[4, 5\]"):
        fitted[0].anomaly_map(images, block=3)


def test_an_extractor_without_places_says_so(images):
    from test_extractor import MeanExtractor

    detector = TransformalyDetector(MeanExtractor(), students=tiny_students(n_blocks=1)).fit(images)
    with pytest.raises(TypeError, match="no method to_maps"):
        detector.anomaly_map(images)
    # which pictures take as they are
    plotting = pytest.importorskip("skl_transformaly.plotting")
    assert plotting.ExtremeImagesDisplay.from_estimator(detector, images, n_images=2).maps is None


def test_tokens_that_fill_no_grid_are_refused(fitted):
    with pytest.raises(ValueError, match="6 tokens of VisionTransformer do not fill a grid"):
        fitted[0].extractor_.to_maps(torch.zeros(1, 7, 8))


def test_explanation_adds_up(fitted, images):
    detector, _ = fitted
    table = detector.explain(images)
    np.testing.assert_allclose(table["score"], detector.score_samples(images), rtol=1e-12)
    parts = sum(table[name] for name in detector.feature_spaces_)
    np.testing.assert_allclose(parts, table["score"], rtol=1e-12)
    np.testing.assert_allclose(table["block4"] + table["block5"], table["discrepancy"], rtol=1e-9, atol=1e-9)


def test_explanation_of_new_images_adds_up_too(fitted, rng):
    detector, _ = fitted
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    table = detector.explain(new)
    np.testing.assert_allclose(sum(table[name] for name in detector.feature_spaces_), table["score"], rtol=1e-12)
    np.testing.assert_allclose(table["block4"] + table["block5"], table["discrepancy"], rtol=1e-9, atol=1e-9)


def test_times_count_how_far_the_lowest_hundredth_of_normal_images_lies(fitted, rng):
    detector, _ = fitted
    odd = np.repeat(np.array([0, 60, 128, 255], dtype=np.uint8), 20 * 24 * 3).reshape(4, 20, 24, 3)
    table = detector.explain(odd[[detector.score_samples(odd).argmin()]])
    for j, name in enumerate(detector.feature_spaces_):
        usual, lowest = np.quantile(detector.training_parts_[:, j], [0.5, 0.01])
        assert table[f"times_{name}"][0] == pytest.approx((usual - table[name][0]) / (usual - lowest))
    worst = max(detector.feature_spaces_, key=lambda name: table[f"times_{name}"][0])
    assert table["reason"][0].startswith(f"unusual in {worst} (")


def test_a_reason_does_not_call_far_what_only_adds_up():
    """The threshold of 5 % flags images that lie within 99 % of the normal ones in each space."""
    times, none = np.array([[0.5, 0.82], [0.5, 1.2], [0.5, 0.6]]), np.empty((3, 0))
    below, beyond, normal = reasons(np.array([-1.0, -1.0, 1.0]), times, ["layers", "pretrained"], none, [])
    for reason, amount in ((below, "0.82"), (beyond, "1.2")):
        assert reason.startswith("unusual in pretrained (") and f"{amount} times as far from the usual" in reason
    assert "not far by itself" in below and "not far by itself" not in beyond and normal == "normal"


def test_a_reason_names_all_spaces_in_which_an_image_is_far_from_the_usual():
    times = np.array([[1.3, 2.4, 0.9, 12.0]])
    (reason,) = reasons(np.array([-1.0]), times, ["pretrained", "classes", "layers", "variation"], np.empty((1, 0)), [])
    assert reason.startswith("unusual in variation (") and ": 12 times as far from the usual" in reason
    assert reason.endswith("; also in classes (2.4 times), pretrained (1.3 times)")


def test_images_that_are_not_flagged_have_no_reason_to_be(fitted):
    detector, X = fitted
    reasons = detector.explain(X)["reason"]
    np.testing.assert_array_equal(reasons == "normal", detector.predict(X) == 1)
    assert {reason.split()[0] for reason in reasons} == {"normal", "unusual"}


def test_nearest_images_are_the_nearest(fitted, images):
    detector, X = fitted
    table = detector.explain(images, n_neighbors=2)
    z, training = (normalize(detector.extractor_.transform(part)) for part in (images, X))
    distances = np.linalg.norm(z[:, None] - training[None], axis=2)
    np.testing.assert_array_equal(table["neighbor0"], distances.argmin(axis=1))
    np.testing.assert_allclose(table["distance1"], np.sort(distances, axis=1)[:, 1], rtol=1e-6)


def test_a_training_image_is_its_own_neighbour_in_discrepancies_alone(images):
    detector = tiny_detector(feature_spaces=["discrepancy"]).fit(images)
    assert detector.explain(images, n_neighbors=1)["neighbor0"].tolist() == list(range(len(images)))


def test_without_a_gaussian_there_are_no_blocks_in_the_table(images):
    table = tiny_detector(discrepancy_density="knn").fit(images).explain(images)
    assert not [name for name in table if name.startswith("block")] and "discrepancy" in table


@pytest.mark.parametrize("contamination, alpha", [(0.08, 0.5), (0.5, 0.08)])
def test_a_reason_is_of_what_the_wrapper_flags(images, contamination, alpha):
    detector = ConformalDetector(tiny_detector(contamination=contamination), alpha=alpha, calibration="held-out")
    detector.fit(images)
    new = np.random.default_rng(3).integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)
    flagged = detector.predict(new) < 0
    assert flagged.any() or alpha < 0.1
    np.testing.assert_array_equal(detector.explain(new)["reason"] != "normal", flagged)
    served = DetectorScorer(detector).score(list(new), [False] * len(new))
    np.testing.assert_array_equal([result.reason != "normal" for result in served], flagged)


def test_an_explanation_is_a_data_frame(fitted, images):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(fitted[0].explain(images))
    assert len(frame) == len(images) and frame.loc[:, "neighbor0"].dtype.kind == "i"


def test_an_unreadable_image_is_a_row_of_nan(good_and_bad, images):
    detector = tiny_detector(on_error="skip").fit(images)
    with pytest.warns(UserWarning, match="could not be read"):
        table = detector.explain(good_and_bad)
    assert np.isnan(table["score"][1]) and np.isnan(table["block4"][1]) and table["neighbor0"][1] == -1
    assert np.isfinite(table["score"][0])
