"""Colour in new images where all training images are grey: the student of an early layer has never seen any."""

import io
import warnings

import numpy as np
import pytest
from conftest import tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skl_transformaly import load, save
from skl_transformaly.images._images import as_images
from skl_transformaly.images._thumbnails import all_grey, has_colour, thumbnail_of
from skl_transformaly.serving._decoding import decoder, note_warnings
from skl_transformaly.serving._scorers import DetectorScorer


def colour_warnings(function, *given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*given)
    return [str(warning.message) for warning in caught if "colour" in str(warning.message)]


def tinted(images, levels=6):
    return np.clip(images.astype(int) + [levels, 0, -levels], 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def grey():
    return np.random.default_rng(3).integers(0, 256, (12, 20, 24, 1), dtype=np.uint8).repeat(3, axis=3)


@pytest.fixture(scope="module")
def fitted(grey):
    return tiny_detector().fit(grey)


@pytest.mark.parametrize("method", ["score_samples", "predict", "p_values", "explain"])
def test_colour_is_told_of_once_if_all_training_images_are_grey(fitted, grey, method):
    new = [*grey[:3], *tinted(grey[3:5])]
    told = colour_warnings(getattr(fitted, method), new)
    assert len(told) == 1 and told[0].startswith("2 of 5 images have colour")
    assert told[0].endswith("They are: image 3, image 4.")
    assert not colour_warnings(getattr(fitted, method), list(grey))


def test_colour_is_told_of_images_that_another_detector_has_scored(fitted, grey):
    """`datasets.load` returns images as an object, which a detector leaves as it was."""
    images = as_images(tinted(grey))
    tiny_detector().fit(tinted(grey)).score_samples(images)
    assert not images.warn_of_colour and not images.digests
    assert len(colour_warnings(fitted.score_samples, images)) == 1


def test_nothing_is_told_if_one_training_image_has_colour(grey):
    images = np.concatenate([grey[:11], tinted(grey[11:])])
    detector = tiny_detector().fit(images)
    assert not detector.grey_
    assert not colour_warnings(detector.score_samples, tinted(grey))


@pytest.mark.slow
def test_a_detector_that_learns_of_colour_tells_no_longer(grey):
    detector = tiny_detector().fit(grey)
    assert detector.grey_
    assert not colour_warnings(detector.partial_fit, tinted(grey[:2], 60))
    assert not detector.grey_
    detector.forget([12, 13])
    assert detector.grey_


def test_the_files_that_have_colour_are_named_up_to_five(fitted, grey, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    for path, image in zip(paths, tinted(grey)):
        Image.fromarray(image).save(path)
    told = colour_warnings(fitted.score_samples, paths)
    assert told[0].endswith(f"They are: {', '.join(map(repr, paths[:5]))} and 2 more.")


def test_a_detector_from_a_file_tells_of_colour(fitted, grey, tmp_path):
    assert not colour_warnings(save, fitted, tmp_path / "m.tfm")  # of probes, which have colour
    assert not colour_warnings(load, tmp_path / "m.tfm")
    assert len(colour_warnings(load(tmp_path / "m.tfm").score_samples, tinted(grey))) == 1


def test_a_server_notes_colour(fitted, grey):
    decode = decoder(DetectorScorer(fitted).prepare, 10**6)
    notes = []
    with warnings.catch_warnings():
        note_warnings()
        for image in (tinted(grey[0]), grey[0]):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png")
            notes.append(decode(content.getvalue())[1])
    assert len(notes[0]) == 1 and notes[0][0].startswith("The image has colour") and notes[1] == []


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(2, 200),
    channel=st.integers(0, 2),
    depth=st.sampled_from([8, 16]),
)
def test_a_tint_of_two_levels_is_colour(seed, levels, channel, depth):
    plain = np.random.default_rng(seed).integers(0, 50, (9, 14, 1), dtype=np.uint8).repeat(3, axis=2)
    image = plain.copy()
    image[..., channel] += levels
    if depth == 16:
        plain, image = (part.astype(np.uint16) * 257 for part in (plain, image))
    assert has_colour(image) and not has_colour(plain)


@settings(deadline=None, max_examples=25)
@given(quality=st.integers(1, 95), mode=st.sampled_from(["RGB", "L", "LA", "RGBA"]))
def test_compression_does_not_colour_grey_images(tmp_path_factory, quality, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)).convert(mode)
    path = tmp_path_factory.mktemp("grey") / "0.jpg"
    image.convert("RGB").save(path, quality=quality)
    assert not has_colour(np.asarray(Image.open(path)))


@pytest.mark.parametrize("shape", [(8, 9, 1), (8, 9, 2)])
def test_one_channel_has_no_colour(rng, shape):
    assert not has_colour(rng.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_are_grey(level):
    assert not has_colour(np.full((8, 9, 3), level, np.uint8))


def test_opacity_is_no_colour(rng):
    image = np.dstack([np.full((8, 9, 3), 40, np.uint8), rng.integers(0, 256, (8, 9), dtype=np.uint8)])
    assert not has_colour(image)


def test_of_unknown_thumbnails_nothing_is_grey(rng):
    blank = np.zeros((3, 768), np.uint8)
    assert not all_grey(blank) and not all_grey(blank[:0])
    assert all_grey(np.vstack([blank, thumbnail_of(np.full((4, 4, 3), 9, np.uint8))]))
