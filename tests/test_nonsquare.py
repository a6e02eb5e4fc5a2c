"""Teachers whose images are not square: sizes, maps, files, graphs."""

import pickle

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor
from hypothesis import given, settings
from hypothesis import strategies as st

from skl_transformaly import BlockStudents, load, save
from skl_transformaly.teacher._architecture import image_sides

MODELS = {"test_vit": 16, "test_vit3": 16, "test_resnet": 32, "test_convnext": 32, "test_efficientnet": 32}


@pytest.fixture(scope="module")
def wide_images():
    return np.random.default_rng(3).integers(0, 256, (12, 40, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 64), [64, 32], (np.int64(32), 64)])
@pytest.mark.parametrize("model", MODELS)
def test_images_are_resized_to_height_and_width(model, size, wide_images):
    extractor = tiny_extractor(model, image_size=size).fit(wide_images)
    assert extractor.image_size_ == tuple(size)
    batch = extractor.preprocess(wide_images[:2])
    assert batch.shape == (2, 3, *size)
    assert np.isfinite(extractor.transform(wide_images)).all()


@pytest.mark.parametrize("model", MODELS)
def test_one_number_is_the_pair_of_it(model, wide_images):
    one, pair = (tiny_extractor(model, image_size=size).fit(wide_images) for size in (64, (64, 64)))
    np.testing.assert_array_equal(one.transform(wide_images), pair.transform(wide_images))
    assert one.teacher_ is pair.teacher_  # shared


@settings(max_examples=20, deadline=None)
@given(
    high=st.integers(2, 5),
    wide=st.integers(2, 5),
    row=st.floats(0, 0.999),
    column=st.floats(0, 0.999),
    model=st.sampled_from(list(MODELS)),
)
def test_maps_have_places_where_the_image_has_them(high, wide, row, column, model):
    """A change at one place of the image changes the first block's map most there."""
    step = MODELS[model]
    extractor = tiny_extractor(model, image_size=(high * step, wide * step))
    blank = np.full((1, high * step, wide * step, 3), 128, np.uint8)
    extractor.fit(np.concatenate([blank, blank]))
    i, j = int(row * high), int(column * wide)
    spot = blank.copy()
    spot[:, i * step : (i + 1) * step, j * step : (j + 1) * step] = [255, 0, 90]
    seen = []

    def visit(index, block, args, kwargs, output):
        if index == 0:
            seen.append(extractor.to_maps(args[0]))

    extractor.embed(extractor.preprocess(np.concatenate([blank, spot])), visit)
    maps = seen[0]
    assert maps.shape[2] / maps.shape[3] == pytest.approx(high / wide)
    change = (maps[1] - maps[0]).abs().mean(0)
    if "vit" in model:  # convolutions before the first block blur what is where
        assert np.unravel_index(int(change.argmax()), change.shape) == (i, j)


def test_tokens_that_are_merged_keep_the_shape_of_the_image(wide_images):
    """The square that has as many places would scramble them."""
    extractor = tiny_extractor(image_size=(64, 256)).fit(wide_images)
    teacher = extractor.teacher_
    prefix = teacher.model.num_prefix_tokens
    merged = torch.arange(2 * 8.0).reshape(1, 16, 1)  # half of 4 x 16 places a side
    tokens = torch.cat([torch.zeros(1, prefix, 1), merged], dim=1)
    np.testing.assert_array_equal(teacher.to_maps(tokens)[0, 0], np.arange(16).reshape(2, 8))


@pytest.mark.parametrize("students", [None, BlockStudents(n_blocks=2, max_epochs=1)])
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_a_detector_scores_maps_and_saves(model, students, wide_images, tmp_path):
    changes = {} if students is None else {"students": students}
    detector = tiny_detector(extractor=tiny_extractor(model, image_size=(32, 64)), **changes).fit(wide_images)
    new = 255 - wide_images[:3]
    scores, maps = detector.score_samples(new), detector.anomaly_map(new)
    assert maps.shape == (3, 40, 80)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(detector)).score_samples(new), scores)
    for teacher in (True, False):
        save(detector, tmp_path / "model.tfm", teacher=teacher)
        loaded = load(tmp_path / "model.tfm")
        assert tuple(loaded.extractor_.image_size_) == (32, 64)
        np.testing.assert_allclose(loaded.score_samples(new), scores)
        np.testing.assert_allclose(loaded.anomaly_map(new), maps, rtol=1e-5, atol=1e-5)


def test_a_saved_detector_can_be_saved_again(wide_images, tmp_path):
    detector = tiny_detector(extractor=tiny_extractor(image_size=[32, 64]), feature_spaces=["pretrained"])
    save(detector.fit(wide_images), tmp_path / "one.tfm")
    save(load(tmp_path / "one.tfm"), tmp_path / "two.tfm")
    scores = load(tmp_path / "two.tfm").score_samples(wide_images)
    np.testing.assert_allclose(scores, detector.score_samples(wide_images))


@pytest.mark.slow
def test_an_exported_graph_takes_images_that_are_not_square(wide_images, tmp_path):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    from skl_transformaly.export import to_onnx

    extractor = tiny_extractor(image_size=(32, 64), precision="float32")
    detector = tiny_detector(extractor=extractor).fit(wide_images)
    to_onnx(detector, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    new = 255 - wide_images[:3]
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": new})))
    scores = detector.score_samples(new)
    np.testing.assert_allclose(outputs["score"], scores, rtol=1e-2)
    if "anomaly_map" in outputs:
        assert outputs["anomaly_map"].shape == (3, 40, 80)


@pytest.mark.parametrize("size", [0, -1, (32,), (32, 64, 3), (0, 32), (32, 1.5), (True, 32), "32x64", ("a", 2), 2.5])
def test_other_sizes_are_refused(size, wide_images):
    with pytest.raises(ValueError, match="image_size"):
        tiny_extractor(image_size=size).fit(wide_images)


@pytest.mark.parametrize("size, message", [((32, 40), "(32, 40)"), ((40, 32), "(40, 32)"), (40, "40")])
def test_a_size_that_is_not_of_whole_patches_is_refused(size, message, wide_images):
    with pytest.raises(ValueError) as caught:
        tiny_extractor(image_size=size).fit(wide_images)
    assert f"image_size={message}" in str(caught.value)


@given(high=st.integers(1, 5000), wide=st.integers(1, 5000))
def test_sides_are_height_and_width(high, wide):
    assert image_sides((high, wide)) == image_sides([high, wide]) == (high, wide)
    assert image_sides(high) == (high, high)
