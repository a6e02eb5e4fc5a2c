"""Decoding ahead on threads, and large JPEGs at a part of their size."""

import os
import threading
import time

import numpy as np
import pytest
from conftest import tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skl_transformaly import ImageError
from skl_transformaly.images._ahead import ahead
from skl_transformaly.images._images import as_images
from skl_transformaly.images._pixels import decode_file, file_shape
from skl_transformaly.images._sequence import Images


def decode_threads():
    return [thread for thread in threading.enumerate() if "decode" in thread.name]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_results_come_in_order_and_failures_at_their_items(fails, threads):
    def work(i):
        if fails[i]:
            raise ValueError(i)
        return np.array(i)

    taken = []
    for i, result in ahead(work, range(len(fails)), threads=threads):
        if fails[i]:
            with pytest.raises(ValueError, match=str(i)):
                result()
        else:
            assert result() == i
        taken.append(i)
    assert taken == list(range(len(fails)))
    assert not decode_threads()


@pytest.mark.parametrize(("size", "most"), [(10, 64), (2**24, 4), (2**28, 2)])
def test_no_more_is_computed_ahead_than_the_bounds_allow(size, most):
    started = []

    def work(i):
        started.append(i)
        return np.broadcast_to(np.uint8(0), size)  # takes no memory, whatever its nbytes

    worst = 0
    for i, result in ahead(work, range(200), threads=2):
        result()
        worst = max(worst, len(started) - 1 - i)
    assert 1 <= worst <= most


def test_closing_ends_the_threads(rng, tmp_path):
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    batches = as_images(tmp_path).batches(2)
    next(batches)
    assert decode_threads()
    batches.close()
    assert not decode_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_goes_on_without_threads():
    results = ahead(np.array, range(10), threads=2)
    assert next(results)[1]() == 0
    child = os.fork()
    if not child:
        found = [int(result()) for _, result in results]
        os._exit(0 if found == list(range(1, 10)) else 1)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done and status == 0
    assert [int(result()) for _, result in results] == list(range(1, 10))


def test_unreadable_files_are_left_out_and_named_as_without_threads(rng, tmp_path):
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    images = as_images(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 9 images could not be read"):
        taken = [(positions.tolist(), len(pixels)) for positions, pixels in images.batches(2)]
    assert taken == [([0, 1], 2), ([2], 1), ([4, 5], 2), ([6, 7], 2), ([8], 1)]
    assert list(images.unreadable) == [3]
    with pytest.raises(ImageError, match=r"3\.png"):
        list(as_images(tmp_path).batches(2))
    assert not decode_threads()


def test_files_score_as_the_same_pixels_do(rng, tmp_path):
    X = rng.integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    for i, pixels in enumerate(X):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    detector = tiny_detector().fit(X)
    np.testing.assert_array_equal(detector.score_samples(tmp_path), detector.score_samples(X))


# Large JPEGs


def photograph(rng, path, size=(1400, 1350), **options):
    """Detail of all sizes, in colour."""
    layers = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for n in (4, 250)
    ]
    pixels = np.mean([np.asarray(layer, dtype=float) for layer in layers], axis=0).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90, **options)
    return path


def test_a_reduced_jpeg_resizes_to_nearly_the_same_pixels(rng, tmp_path):
    path = photograph(rng, tmp_path / "a.jpg")
    whole = as_images([path])
    reduced = whole.reduced((224, 224))
    assert whole[0].shape == (1350, 1400, 3)
    assert reduced[0].shape == (675, 700, 3)
    one, other = (
        np.asarray(Image.fromarray(images[0]).resize((224, 224), Image.Resampling.BICUBIC), dtype=float)
        for images in (whole, reduced)
    )
    assert np.abs(one - other).mean() < 1
    assert reduced.size(0, reduced[0]) == (1350, 1400)


@pytest.mark.parametrize(
    ("size", "expected"), [((224, 224), 675), ((32, 32), 675), ((300, 20), 1350), ((600, 600), 1350)]
)
def test_no_side_becomes_shorter_than_three_times_the_teachers_or_672(rng, tmp_path, size, expected):
    assert as_images([photograph(rng, tmp_path / "a.jpg")]).reduced(size)[0].shape[0] == expected


def test_what_is_small_or_no_jpeg_is_decoded_in_full(rng, tmp_path):
    pixels = np.asarray(Image.open(photograph(rng, tmp_path / "a.jpg")))
    Image.fromarray(pixels).save(tmp_path / "b.png", compress_level=1)
    Image.fromarray(pixels[:1343, :1343]).save(tmp_path / "c.jpg")
    png, small = as_images([tmp_path / "b.png", tmp_path / "c.jpg"]).reduced((224, 224))
    assert png.shape == (1350, 1400, 3)
    assert small.shape == (1343, 1343, 3)


def test_a_turned_photograph_stays_upright(rng, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = photograph(rng, tmp_path / "a.jpg", exif=exif)
    assert file_shape(path) == decode_file(path).shape[:2] == (1400, 1350)
    assert decode_file(path, at_least=672).shape == (700, 675, 3)


@pytest.mark.parametrize("form", [lambda paths: [*paths, None], lambda paths: [(path, 0) for path in paths]])
def test_paths_among_missing_ones_or_with_labels_are_files(rng, tmp_path, form):
    paths = [photograph(rng, tmp_path / f"{i}.jpg") for i in range(3)]
    images = as_images(form(paths), on_error="skip").reduced((224, 224))
    np.testing.assert_array_equal(images[1], as_images(paths).reduced((224, 224))[1])
    assert images[0].shape == (675, 700, 3) and images.size(0, images[0]) == (1350, 1400)


def test_extractors_without_a_known_size_get_whole_images(rng, tmp_path):
    images = as_images([photograph(rng, tmp_path / "a.jpg")])
    assert images.reduced(None) is images
    assert images.reduced((224, 224)).reduced(None)[0].shape == (1350, 1400, 3)


def test_a_detector_recognises_reduced_training_images_and_maps_have_the_files_size(rng, tmp_path):
    for i in range(3):
        photograph(rng, tmp_path / f"{i}.jpg")
    detector = tiny_detector().fit(tmp_path)
    np.testing.assert_array_equal(detector.score_samples(tmp_path), detector.training_scores_)
    assert detector.anomaly_map(tmp_path).shape == (3, 1350, 1400)


def test_a_broken_large_jpeg_is_an_error(rng, tmp_path):
    path = photograph(rng, tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ImageError, match=r"a\.jpg.*truncated"):
        as_images([path]).reduced((224, 224))[0]


def test_joined_images_are_decoded_as_their_own_parts_do(rng, tmp_path):
    large = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((2400, 1800))
    large.save(tmp_path / "large.jpg")
    files = as_images([tmp_path / "large.jpg"]).reduced((224, 224))
    arrays = as_images(rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8))
    for parts in ([files, arrays], [arrays, files], [files, files]):
        joined = Images.joined(parts)
        alone = [image for part in parts for image in part]
        assert [image.shape for image in joined] == [image.shape for image in alone]
        assert all((one == other).all() for one, other in zip(joined, alone))


def test_a_broken_file_among_joined_images_is_named(rng, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    arrays = as_images(rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        Images.joined([arrays, as_images([tmp_path / "broken.jpg"])])[2]
