"""Scoring by partitions: every scheduler gives what the detector gives, and a dead worker costs nothing."""

import builtins
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor, tiny_students
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from threadpoolctl import threadpool_info, threadpool_limits

import skl_transformaly
from skl_transformaly import ConformalDetector, ImageError, ModelFileError, RidgeStudents, distributed, load, save
from skl_transformaly.distributed import fit_detector, fit_students, map_detector
from skl_transformaly.utils._torch import limited_threads, own_settings, single_threaded_blas

da = pytest.importorskip("dask.array", reason="dask is not installed")
import dask
import dask.bag as db


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten files of different sizes."""
    rng = np.random.default_rng(2)
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        pixels = rng.integers(0, 256, (16 + i, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def paths_of(folder):
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize("method", ["score_samples", "decision_function", "predict", "transform"])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_array_of_pixels(fitted, method, scheduler):
    detector, X = fitted
    lazy = map_detector(detector, da.from_array(X, chunks=(5, -1, -1, -1)), method=method)
    expected = getattr(detector, method)(X)
    assert lazy.shape == expected.shape and lazy.dtype == expected.dtype
    values = lazy.compute(scheduler=scheduler)
    assert values.dtype == expected.dtype
    np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_nothing_is_computed_before_it_is_asked_for(fitted, monkeypatch):
    monkeypatch.setattr(type(fitted[0]), "score_samples", lambda *_: pytest.fail("computed"))
    lazy = map_detector(fitted[0], da.from_array(fitted[1], chunks=(5, -1, -1, -1)))
    assert lazy.chunks == ((5, 5, 2),)


def test_chunks_that_cut_images_apart_are_merged(fitted):
    detector, X = fitted
    lazy = map_detector(detector, da.from_array(X, chunks=(6, 7, -1, 1)))
    np.testing.assert_allclose(lazy.compute(), detector.score_samples(X), rtol=1e-9)


def test_rows_are_scored_where_the_detector_takes_rows(images):
    rows = images.reshape(len(images), -1)
    detector = tiny_detector(image_shape=images.shape[1:]).fit(rows)
    for method in ("score_samples", "transform"):
        lazy = map_detector(detector, da.from_array(rows, chunks=(5, 100)), method=method)
        np.testing.assert_allclose(lazy.compute(), getattr(detector, method)(rows), rtol=1e-9)


def test_partitions_that_a_filter_emptied(fitted):
    detector, X = fitted
    array = da.from_array(X, chunks=(4, -1, -1, -1))
    keep = np.arange(12) >= 8
    lazy = map_detector(detector, array[da.from_array(keep, chunks=4)])
    np.testing.assert_allclose(lazy.compute(), detector.score_samples(X[keep]), rtol=1e-9)


@pytest.mark.parametrize("form", ["folder", "list", "array", "dask array", "transform"])
def test_paths(fitted, folder, form):
    detector, paths = fitted[0], paths_of(folder)
    method = "transform" if form == "transform" else "score_samples"
    X = {"folder": folder, "array": np.array(paths), "dask array": da.from_array(np.array(paths, object), chunks=4)}
    lazy = map_detector(detector, X.get(form, paths), method=method, partition_size=4)
    assert lazy.chunks[0] == (4, 4, 2)
    np.testing.assert_allclose(lazy.compute(), getattr(detector, method)(paths), rtol=1e-9)


def test_a_tilde_in_a_path_is_the_home_folder(fitted, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    paths = paths_of(folder)
    short = [f"~/{os.path.relpath(path, folder.parent)}" for path in paths]
    lazy = map_detector(fitted[0], short, partition_size=4)
    np.testing.assert_allclose(lazy.compute(), fitted[0].score_samples(paths), rtol=1e-9)


def test_bag_of_paths(fitted, folder):
    paths = paths_of(folder)
    lazy = map_detector(fitted[0], db.from_sequence(paths, npartitions=3))
    assert lazy.npartitions == 3
    np.testing.assert_allclose(lazy.compute(), fitted[0].score_samples(paths), rtol=1e-9)


def test_bag_of_images_of_different_sizes(fitted, folder):
    pixels = [np.asarray(Image.open(path)) for path in paths_of(folder)]
    lazy = map_detector(fitted[0], db.from_sequence(pixels, npartitions=3), method="predict")
    np.testing.assert_array_equal(lazy.compute(), fitted[0].predict(pixels))


def test_series_of_paths_keeps_its_index(fitted, folder):
    dd = pytest.importorskip("dask.dataframe", reason="dask.dataframe needs pandas and pyarrow")
    pd = pytest.importorskip("pandas")
    paths = pd.Series(paths_of(folder), index=np.arange(10) * 3, name="path")
    scores = map_detector(fitted[0], dd.from_pandas(paths, npartitions=3)).compute()
    assert scores.name == "score_samples" and scores.index.tolist() == paths.index.tolist()
    np.testing.assert_allclose(scores, fitted[0].score_samples(paths), rtol=1e-9)
    with pytest.raises(TypeError, match="column of paths"):
        map_detector(fitted[0], dd.from_pandas(paths.to_frame(), npartitions=3))
    with pytest.raises(TypeError, match="to_bag"):
        map_detector(fitted[0], dd.from_pandas(paths, npartitions=3), method="transform")


def test_p_values_of_a_conformal_detector(fitted, rng):
    X = rng.integers(0, 256, (25, 20, 24, 3), dtype=np.uint8)
    conformal = ConformalDetector(FrozenEstimator(fitted[0]), calibration=(X,), alpha=0.1).fit(fitted[1])
    lazy = map_detector(conformal, da.from_array(fitted[1], chunks=(5, -1, -1, -1)), method="p_values")
    np.testing.assert_array_equal(lazy.compute(), conformal.p_values(fitted[1]))


def test_an_unreadable_file_is_named(fitted, folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    lazy = map_detector(fitted[0], [*paths_of(folder), str(broken)], partition_size=4)
    with pytest.raises(ImageError, match="broken.png"):
        lazy.compute()


@pytest.mark.filterwarnings("ignore:1 of 3 images could not be read")
def test_an_unreadable_file_is_skipped_where_the_detector_skips(images, folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    detector = tiny_detector(on_error="skip").fit(images)
    scores = map_detector(detector, [*paths_of(folder), str(broken)], partition_size=4).compute()
    assert np.flatnonzero(np.isnan(scores)).tolist() == [10]


@pytest.mark.filterwarnings("ignore:2 of ")
@pytest.mark.parametrize("size", [2, 3])
def test_a_partition_of_unreadable_images_alone_is_skipped(images, size):
    X = images[:6] / 255
    X[2:4] = np.nan
    detector = tiny_detector(on_error="skip").fit(images)
    scores = map_detector(detector, da.from_array(X, chunks=(size, -1, -1, -1))).compute()
    assert np.flatnonzero(np.isnan(scores)).tolist() == [2, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:2 of ")
@pytest.mark.parametrize("first", [0, 4])
def test_a_fit_goes_on_after_a_partition_of_unreadable_images(images, first):
    X = images / 255
    X[first : first + 2] = np.nan
    detector = tiny_detector(on_error="skip")
    found = fit_detector(detector, da.from_array(X, chunks=(2, -1, -1, -1)))
    assert np.flatnonzero(np.isnan(found.training_scores_)).tolist() == [first, first + 1]
    np.testing.assert_allclose(found.training_scores_, detector.fit(X).training_scores_, atol=1e-6)


@pytest.mark.parametrize(
    "X, error, message",
    [
        (np.zeros((4, 20, 24, 3), np.uint8), TypeError, "from_array"),
        (7, TypeError, "Cannot partition a int"),
        ([], ValueError, "no path"),
        ("no/such/folder", ValueError, "folder.*does not exist"),
        (dask.delayed(1), TypeError, "Delayed"),
    ],
)
def test_what_is_no_partitioned_input_is_refused(fitted, X, error, message):
    with pytest.raises(error, match=message):
        map_detector(fitted[0], X)


def test_wrong_parameters_are_refused(fitted, folder):
    with pytest.raises(ValueError, match="method must be one of"):
        map_detector(fitted[0], folder, method="fit")
    with pytest.raises(NotFittedError):
        map_detector(tiny_detector(), folder)


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
@pytest.mark.parametrize("name", ["threads", "partition_size"])
def test_counts_are_checked_before_any_worker_is_asked(fitted, folder, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got"):
        map_detector(fitted[0], folder, **{name: value})


def test_relative_paths_lead_to_the_same_files_from_another_folder(fitted, folder, tmp_path, monkeypatch):
    expected = fitted[0].score_samples(paths_of(folder))
    monkeypatch.chdir(folder.parent)
    lazy = map_detector(fitted[0], folder.name)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-9)


def test_a_generator_of_paths_is_refused_as_by_fit(fitted, folder):
    with pytest.raises(TypeError, match="Cannot partition a generator"):
        map_detector(fitted[0], (path for path in paths_of(folder)))


def test_without_dask_the_error_names_the_extra(fitted, folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "dask":
            raise ImportError("No module named 'dask'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"skl-transformaly\[dask\]"):
        map_detector(fitted[0], folder)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_process_loads_a_saved_detector_once(fitted, tmp_path, scheduler):
    path = tmp_path / "detector.tfm"
    save(fitted[0], path)
    distributed._load.cache_clear()
    array = da.from_array(fitted[1], chunks=(3, -1, -1, -1))
    for method in ("score_samples", "predict"):
        values = map_detector(path, array, method=method).compute(scheduler=scheduler)
        np.testing.assert_allclose(values, getattr(fitted[0], method)(fitted[1]), rtol=1e-9)
    assert distributed._load.cache_info().misses == 1


def test_a_relative_model_file_is_found_from_another_folder(fitted, tmp_path, monkeypatch):
    save(fitted[0], tmp_path / "detector.tfm")
    monkeypatch.chdir(tmp_path)
    lazy = map_detector("detector.tfm", da.from_array(fitted[1], chunks=(6, -1, -1, -1)))
    distributed._load.cache_clear()
    monkeypatch.chdir("/")
    np.testing.assert_allclose(lazy.compute(), fitted[0].score_samples(fitted[1]), rtol=1e-9)


@pytest.mark.parametrize("moment", ["before", "while it is read"])
def test_a_file_that_was_replaced_since_is_an_error(fitted, images, tmp_path, moment, monkeypatch):
    detector, X = fitted
    path = tmp_path / "detector.tfm"
    save(detector, path)
    lazy = map_detector(path, da.from_array(X, chunks=(6, -1, -1, -1)))
    distributed._load.cache_clear()  # as in another process

    def retrain():
        save(tiny_detector(feature_spaces=["pretrained"]).fit(images), path)

    if moment == "before":
        retrain()
    else:
        monkeypatch.setattr(skl_transformaly, "load", lambda path: (retrain(), load(path))[1])
    with pytest.raises(ModelFileError, match=r"was replaced after this graph was built.*Call map_detector again"):
        lazy.compute()
    monkeypatch.undo()
    again = map_detector(path, da.from_array(X, chunks=(6, -1, -1, -1)))
    np.testing.assert_allclose(again.compute(), load(path).score_samples(X), rtol=1e-9)


def test_tasks_beside_each_other_use_one_thread_each(fitted, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(fitted[0]), "predict", lambda self, X: seen.append(torch.get_num_threads()) or [0] * len(X)
    )
    array = da.from_array(fitted[1], chunks=(3, -1, -1, -1))
    with limited_threads(2):
        map_detector(fitted[0], array, method="predict").compute(scheduler="threads", num_workers=2)
        assert set(seen) == {1}
        seen.clear()
        map_detector(fitted[0], array, method="predict", threads=3).compute(scheduler="threads", num_workers=2)
        assert set(seen) == {3}
        assert torch.get_num_threads() == 2


def test_limits_of_threads_end_with_the_last():
    before = torch.get_num_threads()
    first, second = limited_threads(before + 1), limited_threads(before + 2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == before + 2
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before


def test_a_thread_that_leaves_before_the_last_is_not_limited_for_ever():
    """torch's number is each thread's own: nobody else can put it back."""
    before = torch.get_num_threads()
    own, other = limited_threads(before + 1), limited_threads(before + 2)

    @own_settings()
    def compute():
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(own.__enter__).result()
        other.__enter__()
        pool.submit(own.__exit__, None, None, None).result()
        other.__exit__(None, None, None)
        assert pool.submit(compute).result() == before


def test_a_limit_within_another_gives_it_back():
    before = torch.get_num_threads()
    with limited_threads(before + 1):
        with limited_threads(before + 2):
            assert torch.get_num_threads() == before + 2
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_thread_that_begins_within_a_limit_does_not_take_it_for_the_number_to_be_put_back():
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        with limited_threads(before + 1):
            assert pool.submit(torch.get_num_threads).result() == before + 1
        limit = limited_threads(before + 2)
        pool.submit(limit.__enter__).result()
        pool.submit(limit.__exit__, None, None, None).result()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_threads_of_blas_are_limited_until_the_last_is_out():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert threads() == before


def test_any_thread_limits_those_of_blas_and_lets_others_do_so():
    """Also after another one did, as the first of a server's threads, and whichever leaves last."""

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def limited(_):
        with single_threaded_blas():
            return threads()

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with single_threaded_blas():
            pass
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(limited, None).result() == {1}
            entered = single_threaded_blas()
            pool.submit(entered.__enter__).result()
            with single_threaded_blas():
                pool.submit(entered.__exit__, None, None, None).result()
                assert threads() == {1}
            assert threads() == before

        def limit_as_others_do():
            with threadpool_limits(1, user_api="blas"):
                return threads()

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(limit_as_others_do).result() == {1}


# Fits


def in_partitions(X, sizes):
    return da.from_array(X, chunks=(sizes, *X.shape[1:]))


def solved(**changes):
    return RidgeStudents(n_blocks=2, extractor=tiny_extractor(batch_size=4, **changes))


@pytest.fixture(scope="module")
def normal():
    """Twenty images, of which two are the same, and students that saw them at once."""
    X = np.random.default_rng(3).integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)
    X[17] = X[3]
    return X, solved().fit(X)


def assert_same_students(students, expected, X, rtol):
    for name in ("local_weights_", "context_weights_"):
        for found, weights in zip(getattr(students, name), getattr(expected, name)):
            np.testing.assert_allclose(found, weights, rtol=0, atol=rtol * np.abs(weights).max())
    np.testing.assert_allclose(students.transform(X), expected.transform(X), rtol=rtol)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(0, 20)), empty=st.booleans())
def test_students_are_those_of_one_process_in_any_partitions(normal, cuts, empty):
    X, expected = normal
    sizes = tuple(np.diff([0, *sorted(cuts - {0, 20}), 20]).tolist())
    students = fit_students(solved(), in_partitions(X, (0, *sizes) if empty else sizes))
    assert_same_students(students, expected, X, rtol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_students_of_whole_batches_are_those_of_one_process_in_other_precisions(normal, precision):
    X = normal[0]
    with limited_threads(1):
        expected = solved(precision=precision).fit(X)
        students = fit_students(solved(precision=precision), in_partitions(X, (8, 4, 8)))
        assert_same_students(students, expected, X, rtol=1e-7)


@pytest.mark.parametrize("form", ["folder", "bag", "series", "threads"])
def test_students_are_fitted_to_whatever_is_scored(folder, form):
    paths = paths_of(folder)
    X = folder
    if form == "bag":
        X = db.from_sequence(paths, npartitions=3)
    if form == "series":
        dd = pytest.importorskip("dask.dataframe", reason="dask.dataframe needs pandas and pyarrow")
        X = dd.from_pandas(pytest.importorskip("pandas").Series(paths), npartitions=3)
    with dask.config.set(scheduler="threads" if form == "threads" else "synchronous"):
        students = fit_students(solved(), X, partition_size=4)
    expected = solved().fit(paths)
    assert_same_students(students, expected, paths, rtol=1e-9)
    assert students.training_discrepancies_.shape == (0, 4)


def test_partitions_take_no_more_than_sums_over_each_other(normal, monkeypatch):
    """What tasks return, besides the first batch's, is of one size for any number of images."""
    from skl_transformaly import _parts

    sizes = []
    total = _parts.total

    def noted(several):
        sizes.extend(sum(product.nbytes for sums in part.sums.values() for product in sums.parts) for part in several)
        assert all(not part.seen for part in several)
        return total(several)

    monkeypatch.setattr(_parts, "total", noted)
    fit_students(solved(), in_partitions(normal[0], (2, 15, 3)))
    assert len(sizes) == 3 and len(set(sizes)) == 1


def test_the_students_that_are_given_stay_unfitted(normal):
    students = solved()
    fit_students(students, in_partitions(normal[0], (10, 10)))
    with pytest.raises(NotFittedError):
        students.transform(normal[0])


@pytest.mark.parametrize("spaces", ["auto", ["pretrained", "layers"]])
def test_a_detector_is_that_of_one_process(normal, spaces, tmp_path):
    X = normal[0]
    detector = tiny_detector(extractor=tiny_extractor(batch_size=4), feature_spaces=spaces)
    expected, found = detector.fit(X), fit_detector(detector, in_partitions(X, (3, 0, 9, 8)))
    np.testing.assert_array_equal(found.training_groups_, expected.training_groups_)
    np.testing.assert_array_equal(found.training_digests_, expected.training_digests_)
    np.testing.assert_array_equal(found.training_thumbnails_, expected.training_thumbnails_)
    np.testing.assert_allclose(found.training_scores_, expected.training_scores_, atol=1e-6)
    assert found.offset_ == pytest.approx(expected.offset_, abs=1e-6)
    assert found.n_features_in_ == expected.n_features_in_ == X[0].size
    new = 255 - X
    np.testing.assert_allclose(found.score_samples(new), expected.score_samples(new), rtol=1e-6)
    if spaces == "auto":
        np.testing.assert_allclose(found.training_held_out_, expected.training_held_out_, rtol=1e-9)
        np.testing.assert_allclose(found.anomaly_map(new[:2]), expected.anomaly_map(new[:2]), atol=1e-4)
    save(found, tmp_path / "detector.tfm")
    np.testing.assert_array_equal(load(tmp_path / "detector.tfm").score_samples(new), found.score_samples(new))


def test_unreadable_files_are_skipped_if_the_detector_skips(folder, tmp_path):
    paths = paths_of(folder)
    for i in (0, 1, 7):  # the first partition holds no other
        paths.insert(i, str(tmp_path / f"{i}.png"))
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    detector = tiny_detector(extractor=tiny_extractor(batch_size=2), on_error="skip")
    with pytest.warns(UserWarning, match="3 of 13 images could not be read: they are left out"):
        found = fit_detector(detector, paths, partition_size=2)
    with pytest.warns(UserWarning, match="3 of 13"):
        expected = detector.fit(paths)
    assert np.flatnonzero(np.isnan(found.training_scores_)).tolist() == [0, 1, 7]
    np.testing.assert_allclose(found.training_scores_, expected.training_scores_, atol=1e-6)
    with pytest.raises(ImageError, match=r"7\.png"):
        fit_detector(detector.set_params(on_error="raise"), paths[2:], partition_size=4)


def test_a_fit_that_finds_no_image_says_why(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for spaces in ("auto", ["pretrained"]):
        detector = tiny_detector(on_error="skip", feature_spaces=spaces)
        with pytest.warns(UserWarning, match="could not be read"), pytest.raises(ValueError, match=r"broken\.png"):
            fit_detector(detector, [broken, broken], partition_size=1)


def test_fits_refuse_what_they_cannot_do(fitted, folder):
    with pytest.raises(TypeError, match="Only RidgeStudents"):
        fit_students(tiny_students(), folder)
    with pytest.raises(TypeError, match="Expected a TransformalyDetector, got RidgeStudents"):
        fit_detector(solved(), folder)
    with pytest.raises(ValueError, match="set trim=0"):
        fit_detector(tiny_detector(trim=0.1), folder)
    with pytest.raises(ValueError, match="students in closed form, got BlockStudents"):
        fit_detector(tiny_detector(students=tiny_students()), folder)
    with pytest.raises(ValueError, match="ridge"):
        fit_students(RidgeStudents(ridge=-1), folder)
    with pytest.raises(ValueError, match="at least 2 images"):
        fit_students(solved(), paths_of(folder)[:1])
    with pytest.raises(TypeError, match="Delayed"):
        fit_students(solved(), dask.delayed(1))


# A real cluster of two processes


@pytest.fixture(scope="module")
def cluster():
    distributed_library = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed_library.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as local,
        distributed_library.Client(local) as client,
        dask.config.set(scheduler=None),
    ):
        yield client


def _slowly(pixels, seconds):
    time.sleep(seconds)
    return pixels


@pytest.mark.slow
def test_a_cluster_of_two_processes_gives_the_detectors_own_scores(cluster, fitted, folder, tmp_path):
    detector, X = fitted
    save(detector, tmp_path / "detector.tfm")
    slow = da.from_array(X, chunks=(1, -1, -1, -1)).map_blocks(_slowly, seconds=0.1, dtype=X.dtype)
    with dask.config.set(scheduler=cluster.get):
        for form in (detector, tmp_path / "detector.tfm", tmp_path / "detector.tfm"):
            np.testing.assert_allclose(map_detector(form, slow).compute(), detector.score_samples(X), rtol=1e-9)
        paths = paths_of(folder)
        lazy = map_detector(detector, folder, partition_size=2)
        np.testing.assert_allclose(lazy.compute(), detector.score_samples(paths), rtol=1e-9)
    state = cluster.run(_state_of_worker)
    assert len({pid for pid, _, _ in state.values()} - {os.getpid()}) == 2
    assert [(loads, threads) for _, loads, threads in state.values()] == [(1, 1), (1, 1)]


@pytest.mark.slow
def test_fits_on_a_cluster_are_those_of_one_process(cluster, normal):
    X, expected = normal
    slow = in_partitions(X, 4).map_blocks(_slowly, seconds=0.1, dtype=X.dtype)
    with dask.config.set(scheduler=cluster.get):
        assert_same_students(fit_students(solved(), slow), expected, X, rtol=1e-10)
        detector = tiny_detector(extractor=tiny_extractor(batch_size=4))
        scores = fit_detector(detector, slow).training_scores_
    np.testing.assert_allclose(scores, detector.fit(X).training_scores_, atol=1e-6)


def _state_of_worker():
    from skl_transformaly import distributed

    return os.getpid(), distributed._load.cache_info().misses, torch.get_num_threads()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["ram", "disk"])
def test_students_trained_on_a_cluster_are_those_of_one_after_another(cluster, images, storage):
    from distributed import get_task_stream

    settings = {"extractor": tiny_extractor(precision="float32"), "n_blocks": 3, "max_epochs": 2, "batch_size": 5}
    students = tiny_students(storage=storage, **settings)
    with limited_threads(1):  # as each worker has
        alone = students.fit(images)
        expected, history = alone.transform(images), alone.history_
        with get_task_stream(client=cluster) as tasks, parallel_config("dask"):
            spread = students.fit(images)
        assert spread.history_ == history
        np.testing.assert_array_equal(spread.transform(images), expected)
    assert len({task["worker"] for task in tasks.data if "train_elsewhere" in str(task["key"])}) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_loses_no_score(cluster, fitted):
    from distributed import futures_of

    detector, X = fitted
    X = np.concatenate([X, X[::-1]])
    slow = da.from_array(X, chunks=(1, -1, -1, -1)).map_blocks(_slowly, seconds=0.25, dtype=X.dtype)
    expected = detector.score_samples(X)
    pids = cluster.run(os.getpid)
    with dask.config.set(scheduler=cluster.get):
        scores = map_detector(detector, slow).persist()
    futures = futures_of(scores)
    while sum(future.done() for future in futures) < len(futures) // 3:
        time.sleep(0.05)
    held = {address: len(keys) for address, keys in cluster.has_what().items()}
    victim = max(held, key=held.get)
    assert held[victim] > 1 and not all(future.done() for future in futures)
    os.kill(pids[victim], signal.SIGKILL)
    with dask.config.set(scheduler=cluster.get):
        np.testing.assert_allclose(scores.compute(), expected, rtol=1e-9)
    assert pids[victim] not in cluster.run(os.getpid).values()


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_students_trained_by_ray_are_those_of_one_after_another(ray, images):
    from ray.util.joblib import register_ray

    register_ray()
    settings = {"extractor": tiny_extractor(precision="float32"), "n_blocks": 3, "max_epochs": 2, "batch_size": 5}
    with limited_threads(1):  # as each worker has
        alone = tiny_students(**settings).fit(images)
        with parallel_config("ray", n_jobs=2):
            spread = tiny_students(n_jobs=2, **settings).fit(images)
        assert spread.history_ == alone.history_
        np.testing.assert_array_equal(spread.transform(images), alone.transform(images))


def test_copies_in_other_parts_are_left_out_as_by_fit():
    rng = np.random.default_rng(0)
    X = np.repeat(np.repeat(rng.integers(0, 248, (12, 4, 4, 3), dtype=np.uint8), 6, axis=1), 6, axis=2)
    X = np.concatenate([X, X[:3] + rng.integers(0, 4, (3, *X.shape[1:]), dtype=np.uint8)])
    extractor = tiny_extractor(precision="float64")
    detector = tiny_detector(extractor=extractor, students=RidgeStudents(n_blocks=2), contamination=0.2)
    whole, parts = detector.fit(X), fit_detector(detector, da.from_array(X, chunks=(4, -1, -1, -1)))
    assert len(np.unique(whole.training_groups_)) == 12
    np.testing.assert_allclose(parts.training_held_out_, whole.training_held_out_, rtol=1e-8)
