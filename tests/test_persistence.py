"""Saved detectors: what comes back is what was saved, and anything else in a file is refused."""

import copy
import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import tiny_detector, tiny_extractor, tiny_students
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from skl_transformaly import (
    ConformalDetector,
    GaussianDensity,
    KNNDensity,
    LocalKNNDensity,
    ModelFileError,
    TransformalyDetector,
    load,
    save,
)
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.persistence import DriftWarning, read_header
from skl_transformaly.persistence._model import SKOPS_TYPES
from skl_transformaly.teacher import _architecture, _weights
from skl_transformaly.utils import _container

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

from fuzz_model_file import DAMAGE, FORGERIES, join, outcome, signed, split


@pytest.fixture
def many(rng):
    """Enough images for mixtures and calibration."""
    return rng.integers(0, 256, (24, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def saved(fitted, tmp_path_factory):
    """Content of a saved tiny detector, not to be changed; its detector; its training images."""
    path = tmp_path_factory.mktemp("saved") / "detector.tfm"
    X = fitted[1]
    # with a part of nearly every class
    detector = tiny_detector(students=tiny_students(), density="gaussian", explained_variance=0.8).fit(X)
    save(detector, path, metadata={"camera": "left"})
    return path.read_bytes(), detector, X


@pytest.fixture
def forge(saved, tmp_path):
    """Write the saved file with changes and the right checksum; gives its path."""

    def write(change=lambda header, document: None, data=lambda data: data, document_text=None):
        header, document, rest = split(saved[0])
        change(header, document)
        path = tmp_path / "forged.tfm"
        path.write_bytes(join(header, document_text or document, data(rest)))
        return path

    return write


def the(document, name):
    """The object of that class in a document."""
    return next(entry for entry in document["objects"] if entry["class"] == name and entry["state"] is not None)


def state_of(part):
    """All that an estimator holds, parts within parts as dicts, arrays and tensors as bytes."""
    if isinstance(part, torch.nn.Module):
        tensors = {name: tensor.numpy() for name, tensor in part.state_dict().items()}
        return type(part).__name__, part.training, state_of(tensors)
    if isinstance(part, np.ndarray):
        if part.dtype.kind in "UO":
            return part.tolist()
        return part.dtype.str, part.shape, part.tobytes()
    if isinstance(part, dict):
        return {key: state_of(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part).__name__, [state_of(item) for item in part]
    if isinstance(part, np.random.RandomState):
        return state_of(part.get_state(legacy=True))
    if hasattr(part, "__dict__") and not isinstance(part, np.generic):
        here = ("_teacher", "_images_seen", "_fit_svd_solver", "_inverses", "cache_keys_")  # and parameters
        here += ("weights", "memory", "device")
        return type(part).__name__, {name: state_of(v) for name, v in vars(part).items() if name not in here}
    if type(part).__module__ == "sklearn.neighbors._kd_tree":
        return "KDTree", state_of(np.asarray(part.data))
    if isinstance(part, (float, np.generic)):
        return repr(float(part)) if not isinstance(part, (np.bool_, np.integer)) else int(part)
    return part


def assert_same(loaded, detector, X):
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    np.testing.assert_array_equal(loaded.predict(X), detector.predict(X))
    assert state_of(loaded) == state_of(detector)


# ----- what comes back


VARIANTS = {
    "default": {},
    "gmm": {"density": GaussianMixture(2), "discrepancy_density": "gmm"},
    "gmm diagonal": {"density": GaussianMixture(2, covariance_type="diag", random_state=np.random.RandomState(3))},
    "gmm spherical": {"density": GaussianMixture(2, covariance_type="spherical")},
    "gmm tied": {"density": GaussianMixture(2, covariance_type="tied", means_init=None)},
    "knn": {"density": KNNDensity(n_neighbors=3), "discrepancy_density": "knn"},
    "local knn": {"density": LocalKNNDensity(n_neighbors=3, scaling=0.5)},
    "gaussian": {"discrepancy_density": GaussianDensity(shrinkage="ledoit-wolf", ridge=1e-3)},
    "embedding alone": {"feature_spaces": ["pretrained"], "normalize": True},
    "discrepancy alone": {"feature_spaces": np.array(["discrepancy"])},
    "settings": {
        "students": tiny_students(n_blocks=[0, -1], storage="ram", max_epochs=2),
        "extractor": tiny_extractor(interpolation="bilinear", precision="float32", batch_size=5),
        "contamination": 0.1,
        "explained_variance": 0.5,
        "random_state": np.random.RandomState(5),
    },
    "bfloat16": {"extractor": tiny_extractor(precision="bfloat16")},
}
_RARE_VARIANTS = ("gmm diagonal", "gmm spherical", "gmm tied")


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in _RARE_VARIANTS)) for name in VARIANTS]
)
def test_a_loaded_detector_is_the_one_that_was_saved(variant, many, tmp_path):
    detector = tiny_detector(**VARIANTS[variant]).fit(many)
    save(detector, tmp_path / "detector.tfm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tmp_path / "detector.tfm")
    assert_same(loaded, detector, many)


@pytest.mark.parametrize(
    "name, size",
    [
        ("test_vit3", 32),
        ("test_efficientnet", 64),
        pytest.param("test_convnext", 64, marks=pytest.mark.slow),
        pytest.param("eva02_tiny_patch14_224", 28, marks=pytest.mark.slow),
        pytest.param("vit_small_patch16_dinov3", 32, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", 64, marks=pytest.mark.slow),
    ],
)
def test_every_architecture_comes_back(name, size, images, tmp_path):
    extractor = tiny_extractor(name, image_size=size, precision="float32")
    detector = tiny_detector(extractor=extractor, students=tiny_students(n_blocks=3)).fit(images)
    save(detector, tmp_path / "detector.tfm")
    assert_same(load(tmp_path / "detector.tfm"), detector, images)


def test_the_native_image_size_comes_back(images, tmp_path):
    detector = tiny_detector(extractor=tiny_extractor(image_size=None)).fit(images)
    save(detector, tmp_path / "detector.tfm")
    assert_same(load(tmp_path / "detector.tfm"), detector, images)


def test_rows_and_column_names_come_back(images, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = images.reshape(len(images), -1)
    frame = pandas.DataFrame(rows, columns=[f"p{i}" for i in range(rows.shape[1])])
    detector = tiny_detector(image_shape=images.shape[1:]).set_output(transform="pandas").fit(frame)
    save(detector, tmp_path / "detector.tfm")
    loaded = load(tmp_path / "detector.tfm")
    assert_same(loaded, detector, frame)
    pandas.testing.assert_frame_equal(loaded.transform(frame), detector.transform(frame))


def test_unreadable_training_images_come_back_as_nan(images, tmp_path):
    for i, image in enumerate(images[:5]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="5.png"):
        detector = tiny_detector(on_error="skip", students=tiny_students(max_epochs=1)).fit(tmp_path)
    save(detector, tmp_path / "detector.tfm")
    assert_same(load(tmp_path / "detector.tfm"), detector, images)
    made = read_header(tmp_path / "detector.tfm")["made"]
    assert (made["n_images"], made["n_unreadable"]) == (6, 1)


def test_maps_and_explanations_come_back(saved, tmp_path):
    content, detector, X = saved
    (tmp_path / "detector.tfm").write_bytes(content)
    loaded = load(tmp_path / "detector.tfm")
    np.testing.assert_array_equal(loaded.anomaly_map(X), detector.anomaly_map(X))
    theirs = detector.explain(X)
    for name, column in loaded.explain(X).items():
        np.testing.assert_array_equal(column, theirs[name])


@pytest.mark.parametrize("calibration", [0.4, "held-out"])
def test_conformal_detectors_come_back(calibration, many, tmp_path):
    detector = ConformalDetector(tiny_detector(), alpha=0.2, calibration=calibration, random_state=0).fit(many)
    save(detector, tmp_path / "detector.tfm")
    loaded = load(tmp_path / "detector.tfm")
    np.testing.assert_array_equal(loaded.p_values(many), detector.p_values(many))
    np.testing.assert_array_equal(loaded.decision_function(many), detector.decision_function(many))
    assert vars(loaded).keys() == vars(detector).keys()
    assert loaded.calibration == calibration


def test_a_loaded_detector_learns_more_images(many, tmp_path):
    detector = tiny_detector().fit(many[:12])
    save(detector, tmp_path / "detector.tfm")
    loaded = load(tmp_path / "detector.tfm")
    for part in (detector, loaded):
        part.partial_fit(many[12:], update_students=False)
    np.testing.assert_array_equal(loaded.score_samples(many), detector.score_samples(many))


def test_a_frozen_detector_stays_frozen(fitted, many, tmp_path):
    detector = ConformalDetector(FrozenEstimator(fitted[0]), alpha=0.2, calibration=(many[:12],)).fit(many[12:])
    save(detector, tmp_path / "detector.tfm")
    loaded = load(tmp_path / "detector.tfm")
    np.testing.assert_array_equal(loaded.p_values(many), detector.p_values(many))
    assert loaded.estimator is loaded.estimator_
    assert os.path.getsize(tmp_path / "detector.tfm") < 1.1 * len(pickle.dumps(fitted[0])) + 1_600_000  # the teacher


def test_normal_only_comes_back(many, tmp_path):
    detector = NormalOnly(tiny_detector()).fit(many, np.repeat([1, -1], [20, 4]))
    save(detector, tmp_path / "detector.tfm")
    np.testing.assert_array_equal(load(tmp_path / "detector.tfm").score_samples(many), detector.score_samples(many))


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(saved, tmp_path):
    content, detector, X = saved
    (tmp_path / "detector.tfm").write_bytes(content)
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys, numpy as np; from skl_transformaly import load; folder = sys.argv[1];"
        "np.save(folder + '/scores.npy', load(folder + '/detector.tfm').score_samples(np.load(folder + '/X.npy')))"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), detector.score_samples(X))


# ----- the teacher's weights


@pytest.fixture
def with_weights(images, tmp_path):
    """A detector whose teacher's weights came from a file, and that file."""
    source = tmp_path / "elsewhere"
    source.mkdir()
    path = source / "weights.safetensors"
    state = tiny_extractor(image_size=None).fit(images).teacher_.model.state_dict()
    save_file({name: tensor.float() + 0.01 for name, tensor in state.items()}, path)
    return tiny_detector(extractor=tiny_extractor(weights=path)).fit(images), path


def test_the_teacher_in_the_file_needs_no_source(with_weights, images, tmp_path):
    detector, weights = with_weights
    expected = detector.score_samples(images)
    save(detector, tmp_path / "detector.tfm")
    weights.unlink()
    loaded = load(tmp_path / "detector.tfm")
    for copied in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(copied.score_samples(images), expected)
    again = clone(loaded).fit(images)
    np.testing.assert_array_equal(again.score_samples(images), expected)
    save(loaded, tmp_path / "again.tfm")
    np.testing.assert_array_equal(load(tmp_path / "again.tfm").score_samples(images), expected)


def test_loading_never_asks_timm_for_weights(saved, monkeypatch, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(saved[0])

    def refuse(*args, **kwargs):
        raise AssertionError("asked for weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    monkeypatch.setattr(_weights, "_from_hub", refuse)
    load(tmp_path / "detector.tfm")


def test_clones_of_a_detector_with_a_named_teacher_need_no_network(images, monkeypatch, tmp_path):
    monkeypatch.setattr(_weights, "_from_hub", lambda name: timm.create_model(name, num_classes=0).eval())
    detector = TransformalyDetector("test_vit", feature_spaces=["pretrained"], contamination=0.3, random_state=0)
    save(detector.fit(images), tmp_path / "m.tfm")
    loaded = load(tmp_path / "m.tfm")
    monkeypatch.setattr(_weights, "_from_hub", None)
    monkeypatch.setattr(_weights, "_shared", {})  # or the clone would get the teacher of this process
    np.testing.assert_array_equal(clone(loaded).fit(images).training_scores_, detector.training_scores_)


def test_weights_outside_the_file_are_found_beside_it_or_pointed_to(with_weights, images, tmp_path):
    detector, weights = with_weights
    expected = detector.score_samples(images)
    path = tmp_path / "detector.tfm"
    save(detector, path, teacher=False)
    assert path.stat().st_size < 0.6 * weights.stat().st_size + 200_000
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors"):
        load(path)
    np.testing.assert_array_equal(load(path, weights=weights).score_samples(images), expected)
    weights.rename(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(load(path).score_samples(images), expected)


def test_other_weights_than_those_that_were_saved_are_refused(with_weights, tmp_path):
    detector, weights = with_weights
    save(detector, tmp_path / "detector.tfm", teacher=False)
    state = load_file(weights)
    state["cls_token"] += 1
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelFileError, match="SHA-256"):
        load(tmp_path / "detector.tfm")


def test_a_source_that_would_not_be_used_is_refused(saved, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(saved[0])
    with pytest.raises(ModelFileError, match="holds the teacher's weights itself"):
        load(tmp_path / "detector.tfm", weights="hub")


def test_an_extractor_takes_weights_from_a_model_file(saved, images, tmp_path):
    content, detector, _ = saved
    (tmp_path / "detector.tfm").write_bytes(content)
    extractor = tiny_extractor(weights=tmp_path / "detector.tfm").fit(images)
    np.testing.assert_array_equal(extractor.transform(images), detector.extractor_.transform(images))
    with pytest.raises(
        ModelFileError, match=r"does not hold the weights of 'test_vit2'.*it holds 'test_vit' at image_size=32"
    ):
        tiny_extractor("test_vit2", weights=tmp_path / "detector.tfm").fit(images)


def test_the_device_can_be_chosen(forge, saved):
    def elsewhere(header, document):
        for entry in document["objects"]:
            if entry["class"] == "TimmExtractor":
                entry["params"]["device"] = "cuda:99"

    path = forge(elsewhere)
    with pytest.raises(ModelFileError, match=r"cuda:99.*device='cpu'"):
        load(path)
    assert load(path, device="cpu").extractor_.teacher_.model.cls_token.device.type == "cpu"


def test_a_replaced_file_is_read_anew(many, tmp_path):
    """Teachers are shared within a process; those of another file of the same name are others."""
    path = tmp_path / "detector.tfm"
    first, second = tiny_detector().fit(many), tiny_detector(extractor=tiny_extractor("test_vit2")).fit(many)
    save(first, path)
    kept = load(path)
    save(second, path)
    np.testing.assert_array_equal(load(path).score_samples(many), second.score_samples(many))
    np.testing.assert_array_equal(kept.score_samples(many), first.score_samples(many))


# ----- what cannot be saved


def test_only_detectors_are_saved(images, tmp_path):
    with pytest.raises(TypeError, match=r"takes a fitted TransformalyDetector, ConformalDetector.*IsolationForest"):
        save(IsolationForest(), tmp_path / "detector.tfm")
    with pytest.raises(NotFittedError):
        save(tiny_detector(), tmp_path / "detector.tfm")
    assert not list(tmp_path.iterdir())


class OwnDensity(GaussianDensity):
    """Its code is in no file."""


@pytest.mark.parametrize("density", [BayesianGaussianMixture(n_components=2), OwnDensity()])
def test_an_estimator_outside_the_list_is_refused_by_name(density, many, tmp_path):
    detector = tiny_detector(density=density).fit(many)
    with pytest.raises(TypeError, match=rf"cannot hold a .*{type(density).__name__}.*GaussianMixture.*joblib"):
        save(detector, tmp_path / "detector.tfm")
    assert not list(tmp_path.iterdir())


def test_a_conformal_detector_of_something_else_is_refused(tmp_path):
    detector = ConformalDetector(IsolationForest(), random_state=0).fit(np.random.default_rng(0).normal(size=(200, 2)))
    with pytest.raises(TypeError, match=r"IsolationForest.*TransformalyDetector"):
        save(detector, tmp_path / "detector.tfm")


def test_attributes_that_are_left_out_are_named(images, tmp_path):
    detector = tiny_detector().fit(images)
    detector.note_ = "mine"
    with pytest.warns(UserWarning, match="not saved: note_"):
        save(detector, tmp_path / "detector.tfm")


def test_memory_is_left_out(images, tmp_path):
    detector = tiny_detector(memory=str(tmp_path / "cache")).fit(images)
    save(detector, tmp_path / "detector.tfm")
    loaded = load(tmp_path / "detector.tfm")
    assert loaded.memory is None
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))


@pytest.mark.parametrize("metadata, error", [({"x": {1, 2}}, TypeError), ({"x": float("nan")}, ValueError)])
def test_metadata_must_be_json(metadata, error, fitted, tmp_path):
    with pytest.raises(error):
        save(fitted[0], tmp_path / "detector.tfm", metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_metadata_that_load_would_refuse_are_not_saved(fitted, tmp_path):
    for metadata in ({"x": "a" * 2**25}, {"x": [0] * 10**6}):
        with pytest.raises(ValueError, match=r"not saved.*Pass less metadata"):
            save(fitted[0], tmp_path / "detector.tfm", metadata=metadata)
    assert not list(tmp_path.iterdir())


# ----- the file


def test_the_header_says_what_is_in_the_file(saved, tmp_path):
    content, detector, X = saved
    (tmp_path / "detector.tfm").write_bytes(content)
    header = read_header(tmp_path / "detector.tfm")
    assert (header["class"], header["metadata"], header["size"]) == (
        "TransformalyDetector",
        {"camera": "left"},
        len(content),
    )
    assert header["made"]["n_images"] == len(X)
    assert header["made"]["environment"]["torch"] == torch.__version__.partition("+")[0]
    (teacher,) = header["teachers"]
    assert (teacher["model_name"], teacher["sha256"]) == ("test_vit", detector.extractor_.weights_sha256_)


def test_names_that_are_not_unicode_are_kept(fitted, tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80 <script>.png")
    save(fitted[0], tmp_path / "detector.tfm", metadata={"files": [name]})
    assert read_header(tmp_path / "detector.tfm")["metadata"]["files"] == [name]
    load(tmp_path / "detector.tfm", verify=False)


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d\ude00", "\udfff\\", '\u2028\x7f\x00"\\', "相机 🙂"], ids=ascii)
def test_text_of_every_kind_comes_back(text, fitted, tmp_path):
    save(fitted[0], tmp_path / "detector.tfm", metadata={text: [text]})
    same = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves are one character
    assert read_header(tmp_path / "detector.tfm")["metadata"] == {same: [same]}
    load(tmp_path / "detector.tfm", verify=False)


@pytest.mark.parametrize("text", ["camera left/picture", "Камера слева/снимок", "相机/图像", "🙂"])
def test_text_of_any_language_takes_the_bytes_of_utf8(text, fitted, tmp_path):
    sizes = []
    for number in (1000, 2000):
        save(fitted[0], tmp_path / "detector.tfm", metadata={"files": [text] * number})
        sizes.append((tmp_path / "detector.tfm").stat().st_size)
    within = len('\\"\\",')  # quotes of JSON within JSON
    assert sizes[1] - sizes[0] == pytest.approx(1000 * (len(text.encode()) + within), abs=8)  # headers are padded


def test_reading_a_header_loads_no_torch(saved, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(saved[0])
    code = (
        "import sys; from skl_transformaly.utils._container import read_header;"
        "print(read_header(sys.argv[1])['class'], any(m in sys.modules for m in ('torch', 'timm', 'sklearn')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "detector.tfm")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["TransformalyDetector", "False"]


def test_any_tool_for_safetensors_can_read_the_arrays(saved, tmp_path):
    content, detector, _ = saved
    (tmp_path / "detector.tfm").write_bytes(content)
    tensors = load_file(tmp_path / "detector.tfm")
    for name, tensor in detector.extractor_.teacher_.model.state_dict().items():
        np.testing.assert_array_equal(tensors[f"teachers.0.{name}"], tensor)


def test_saving_follows_links_and_the_umask(fitted, tmp_path):
    (tmp_path / "link.tfm").symlink_to(tmp_path / "target.tfm")
    before = os.umask(0o027)
    try:
        save(fitted[0], tmp_path / "link.tfm")
    finally:
        os.umask(before)
    assert (tmp_path / "link.tfm").is_symlink()
    assert stat.S_IMODE((tmp_path / "target.tfm").stat().st_mode) == 0o640


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(moment, error, fitted, tmp_path, monkeypatch):
    path = tmp_path / "detector.tfm"
    path.write_bytes(b"the old one")

    def fail(*args, **kwargs):
        raise error

    if moment == "write":
        monkeypatch.setattr(_container.np, "ascontiguousarray", fail)
    else:
        monkeypatch.setattr(os, moment, fail)
    with pytest.raises(type(error)) as caught:
        # the writer alone: the arrays themselves are at hand before the file is opened
        _container.write_model_file(path, {}, {"a": np.zeros(3)})
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["detector.tfm"]
    assert path.read_bytes() == b"the old one"
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "detector.tfm was not saved" in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_a_disk_that_is_full_is_said_to_be_so(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np; from skl_transformaly.utils._container import write_model_file;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "write_model_file(sys.argv[1], {}, {'a': np.zeros(10_000)})"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "d.tfm")], capture_output=True, text=True)
    assert "was not saved (File too large); nothing was left behind" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_os_error(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="detector.tfm was not saved"):
        save(fitted[0], tmp_path / "nowhere" / "detector.tfm")
    with pytest.raises(FileNotFoundError, match=r"The model file does not exist.*nowhere\.tfm"):
        load(tmp_path / "nowhere.tfm")


def test_loading_leaves_random_state_and_dtype_alone(saved, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(saved[0])
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load(tmp_path / "detector.tfm")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    np.testing.assert_array_equal(loaded.score_samples(saved[2]), saved[1].score_samples(saved[2]))


# ----- probes


def test_probe_images_are_kept_and_scored_again(fitted, rng, tmp_path):
    detector, X = fitted
    probes = [X[0], rng.random((9, 30, 1)), Image.fromarray(X[1]), (X[2] * 257.0).astype(np.uint16)]
    save(detector, tmp_path / "detector.tfm", probes=probes)
    encoded = read_header(tmp_path / "detector.tfm")["probes"]
    assert encoded["scores"] == [float(detector.score_as_new([probe])[0]) for probe in probes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "detector.tfm", tolerance=0)


def test_drift_is_a_warning_with_the_numbers(forge, saved):
    def drifted(header, document):
        document["probes"]["scores"][2] += 500
        document["made"]["environment"]["timm"] = "0.9.0"

    path = forge(drifted)
    with pytest.warns(DriftWarning, match=r"probe 2 scored .* and scores .*timm '?0.9.0'? -> \d") as caught:
        load(path)
    old, new = split(path.read_bytes())[1]["probes"]["scores"][2], split(saved[0])[1]["probes"]["scores"][2]
    assert f"{old:.9g}" in str(caught[0].message) and f"{new:.9g}" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, verify=False)
        load(path, tolerance=1e6)


def test_another_precision_is_drift(images, tmp_path):
    """What a machine without bfloat16 would do with a detector that was fitted in it, or the other way round."""
    detector = tiny_detector(extractor=tiny_extractor(precision="bfloat16")).fit(images)
    path = tmp_path / "detector.tfm"
    save(detector, path)
    header, document, data = split(path.read_bytes())
    the(document, "TimmExtractor")["state"]["precision_"] = "float32"
    path.write_bytes(join(header, document, data))
    with pytest.warns(DriftWarning, match=r"drifted by up to \d"):
        load(path)


@pytest.mark.parametrize("probes", [[], np.zeros((65, 4, 4), np.uint8)])
def test_a_wrong_number_of_probes_is_refused(probes, fitted, tmp_path):
    with pytest.raises(ValueError):
        save(fitted[0], tmp_path / "detector.tfm", probes=probes)


# ----- what is refused


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + b"\0" * 300, "zip archive"),
        (pickle.dumps({"a": np.zeros(100)}), "a pickle"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32"' + b" " * 300, "a safetensors file"),
        (b"hello", "is not a model file"),
    ],
)
def test_another_kind_of_file_is_said_to_be_one(content, message, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(content)
    for read in (load, read_header):
        with pytest.raises(ModelFileError, match=message):
            read(tmp_path / "detector.tfm")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names there")
def test_folders_devices_and_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [(tmp_path, "is a folder"), (tmp_path / "pipe", "regular"), ("/dev/zero", "regular")]:
        with pytest.raises(ModelFileError, match=message):
            load(path)


def test_every_truncation_near_the_ends_and_some_between_are_refused(saved, tmp_path):
    content, path = saved[0], tmp_path / "detector.tfm"
    length = len(content)
    for end in [*range(0, 400, 7), *range(400, length, length // 40), *range(length - 9, length)]:
        path.write_bytes(content[:end])
        with pytest.raises(ModelFileError):
            load(path)


@pytest.mark.parametrize("version, advice", [("2", "fit and save the detector again"), ("4", "upgrade")])
def test_another_format_is_refused_with_advice(version, advice, saved, tmp_path):
    other = saved[0].replace(b'"version":"3"', f'"version":"{version}"'.encode(), 1)
    (tmp_path / "detector.tfm").write_bytes(signed(other))
    with pytest.raises(ModelFileError, match=rf"is of format {version}, .* reads format 3: {advice}"):
        load(tmp_path / "detector.tfm")


def forged_params(name, **params):
    def change(header, document):
        for entry in document["objects"]:
            if entry["class"] == name:
                entry["params"].update(params)

    return change


def forged_state(name, **state):
    return lambda header, document: the(document, name)["state"].update(state)


def forged_student(place, **changes):
    return lambda header, document: the(document, "BlockStudents")["state"]["students"][place]["dict"].update(changes)


def forged_reuse(key):
    """Arrays that are asked for twice: memory that is not in the file."""

    def change(header, document):
        first, second = (student["dict"] for student in the(document, "BlockStudents")["state"]["students"])
        second[key] = first[key]

    return change


def forged_arrays(end, **changes):
    def change(header, document):
        next(entry for key, entry in header.items() if key.endswith(end)).update(changes)

    return change


def forged_array(header, document):
    header["x"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


def forged_class(name, other):
    return lambda header, document: the(document, name).update({"class": other})


def forged_teacher(**changes):
    def change(header, document):
        document["teachers"][0].update(changes)
        forged_params("TimmExtractor", **{k: v for k, v in changes.items() if k in ("model_name", "image_size")})(
            header, document
        )

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (forged_class("GaussianDensity", "os.system"), "names the class 'os.system'; allowed are"),
        (forged_class("GaussianDensity", "builtins.eval"), "names the class"),
        (forged_class("GaussianDensity", "PCA"), "parameters that its class does not have"),
        (forged_params("PCA", svd_solver="nonsense"), "svd_solver"),
        (forged_params("GaussianDensity", shrinkage=7), "shrinkage"),
        (forged_params("GaussianDensity", nonsense=7), "parameters"),
        (forged_params("TransformalyDetector", memory="/tmp/x"), "parameters"),
        (forged_params("TimmExtractor", model_name="test_vit2"), "does not go with its teacher"),
        (forged_teacher(model_name="local-dir:/etc"), "not one of timm's own"),
        (forged_teacher(model_name="hf-hub:timm/test_vit.r160_in1k", stored=False), "not one of timm's own"),
        (forged_teacher(model_name="vit_giant_patch16_gap_224"), "does not hold the weights"),
        (forged_teacher(model_name="vit_huge_of_tomorrow"), "has no model"),
        (forged_teacher(data_config={}), "describes teacher 0"),
        (forged_teacher(sha256="0" * 64), "does not go with its teacher"),
        (forged_teacher(stored=False, weights="../../x"), "are not used"),
        (forged_state("PCA", mean_={"array": "nowhere", "order": "C"}), "not in the file"),
        (forged_state("PCA", n_components_=3), "where .* was expected"),
        (forged_state("PCA", n_components_=True), "whole number"),
        (forged_state("FeatureSpace", density_={"object": 10**6}), "does not come before"),
        (forged_state("FeatureSpace", density_={"object": -1}), "does not come before"),
        (forged_state("FeatureSpace", spread_=0.0), "expected a positive number"),
        (forged_state("GaussianDensity", floor_=0.0), "not positive definite"),
        (forged_state("TransformalyDetector", spaces_={"dict": {}}), "has no feature spaces"),
        (forged_state("TransformalyDetector", spaces_={"dict": {"x": {"object": 0}}}), "expected pretrained"),
        (forged_state("TransformalyDetector", extractor_={"object": 0}), "expected a fitted TimmExtractor"),
        (forged_state("TransformalyDetector", offset_="a"), "expected a number"),
        (forged_state("TransformalyDetector", _private=1), "attributes of its class"),
        (lambda header, document: the(document, "TransformalyDetector")["state"].pop("image_shape_"), "attributes of"),
        (forged_student(0, network="teachers.0."), "has weights under"),
        (forged_reuse("network"), "belong to something else"),
        (forged_reuse("residuals"), "belong to something else"),
        (forged_student(1, history={"dict": {"loss": ["x"]}}), "has history, which is 'x'"),
        (forged_state("TimmExtractor", image_size_={"tuple": [10**6, 10**6]}), "from 1 to 2048"),
        (forged_state("TimmExtractor", precision_="float8"), "expected float64"),
        (forged_arrays("mean_", dtype="F32"), "laid out as safetensors"),
        (forged_arrays("components_", shape=[1, 1]), "laid out as safetensors"),
        (forged_arrays("cls_token", shape=[1, 64, 1]), "cls_token is float32"),
        (forged_arrays("cls_token", shape=[2**40, 2**40]), "laid out as safetensors"),
        (forged_arrays("cls_token", data_offsets=[0, 256]), "laid out as safetensors"),
        (forged_arrays("cls_token", dtype="F16", shape=[128]), "of dtype F16; expected one of F64"),
        (forged_array, "are not used"),
        (lambda header, document: document.pop("objects"), "does not describe a detector"),
        (lambda header, document: document.update(objects=[]), "no list of 1 to"),
        (lambda header, document: document.update(objects=[{}] * 20_000), "no list of 1 to"),
        (lambda header, document: document["objects"].insert(0, document["objects"][-1]), "does not come before"),
        (lambda header, document: document.update({"class": "ConformalDetector"}), "says that it holds"),
        (lambda header, document: document["probes"].update(scores=[]), "a score for each of its"),
    ],
)  # fmt: skip
def test_a_forged_file_is_refused(change, message, forge):
    path = forge(change)
    with pytest.raises(ModelFileError, match=message):
        load(path)


def test_names_of_weights_stay_beside_the_file(with_weights, tmp_path):
    detector, weights = with_weights
    path = tmp_path / "detector.tfm"
    save(detector, path, teacher=False)
    header, document, data = split(path.read_bytes())
    for name in ("../elsewhere/weights.safetensors", str(weights), "..", "", "a\0b", "c:weights", "a\\b"):
        for entry in document["objects"]:
            if entry["class"] == "TimmExtractor":
                entry["params"]["weights"] = name
        path.write_bytes(join(header, document, data))
        with pytest.raises(ModelFileError, match="plain name of a file beside it"):
            load(path)


@pytest.mark.parametrize(
    "bomb, message",
    [
        ("[" * 100_000 + "]" * 100_000, "recursion"),
        ("[" + "[]," * 1_100_000 + "0]", "values; at most"),
        ("1" + "0" * 5000, "digits"),
        ("1e999", "not a finite number"),
        ("NaN", "not a finite number"),
        ('{"a":1,"a":2}', "same key twice"),
        ("[", "JSON"),
        ('"' + "a" * 2**25 + '"', "at most 33554432"),
    ],
)
def test_json_beyond_the_limits_is_refused_before_it_is_parsed(bomb, message, saved, tmp_path):
    header, document, data = split(saved[0])
    document["metadata"] = "BOMB"
    path = tmp_path / "bomb.tfm"
    path.write_bytes(join(header, json.dumps(document).replace('"BOMB"', bomb), data))
    for read in (load, read_header):
        with pytest.raises(ModelFileError, match=message):
            read(path)


def test_a_claim_takes_no_memory(forge):
    """The shapes of a network of a billion parameters are known before memory is taken for them."""
    import tracemalloc

    path = forge(forged_teacher(model_name="vit_giant_patch16_gap_224"))
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="does not hold the weights"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    model = _architecture.outline("vit_giant_patch16_gap_224", None)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_swapped_arguments_of_save_are_told(fitted, tmp_path):
    with pytest.raises(TypeError, match=r"The detector comes first: save\(detector, path\)"):
        save(str(tmp_path / "m.tfm"), fitted[0])


def test_a_model_file_that_is_gone_is_asked_for(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="load the detector from its new place"):
        tiny_extractor(weights=tmp_path / "gone.tfm").fit(images)


def test_nothing_is_unpickled(saved, monkeypatch, tmp_path):
    (tmp_path / "detector.tfm").write_bytes(saved[0])

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load(tmp_path / "detector.tfm")


# The file of a detector without students: small, so that thousands of mutants are quick
@pytest.fixture(scope="session")
def small(tmp_path_factory):
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("small")
    detector = tiny_detector(feature_spaces=["pretrained"], discrepancy_density=KNNDensity()).fit(X)
    save(detector, folder / "detector.tfm")
    other = tiny_detector(feature_spaces=["pretrained"], density="knn").fit(X)
    save(other, folder / "other.tfm")
    contents = [(folder / name).read_bytes() for name in ("detector.tfm", "other.tfm")]
    return contents, X[:2], detector.score_samples(X[:2])


@seed(0)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(kind=st.sampled_from(DAMAGE + FORGERIES), number=st.integers(0, 2**32))
def test_any_mutant_loads_right_or_is_refused(small, tmp_path, kind, number):
    contents, X, expected = small
    mutant = kind(contents[0], np.random.default_rng(number), contents)
    path = tmp_path / "mutant.tfm"
    path.write_bytes(mutant)
    found = outcome(path, X, expected)
    assert not found.startswith("WRONG")
    if kind in DAMAGE and mutant != contents[0]:
        assert found == "refused" or mutant in contents


# ----- forged files that are consistent in themselves


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory):
    """Document and arrays of a small conformal detector, new images, and their predictions and p-values."""
    rng = np.random.default_rng(3)
    X, new = rng.integers(0, 256, (30, 20, 24, 3), dtype=np.uint8), rng.integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
    inner = tiny_detector(feature_spaces=["pretrained", "discrepancy"])
    detector = ConformalDetector(inner, alpha=0.2, calibration=0.4, random_state=0).fit(X)
    path = tmp_path_factory.mktemp("calibrated") / "detector.tfm"
    save(detector, path)
    with _container.ModelFile(path) as file:
        arrays = {name: file.array(name) for name in file.arrays}
    return file.document, arrays, new, (detector.predict(new), detector.p_values(new))


def _leaves(value, path=()):
    if isinstance(value, (dict, list)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))
    elif path:
        yield path


_ARRAY_CHANGES = {
    "sign": lambda a, i: -a,
    "one sign": lambda a, i: _with(a, i, -a.flat[i]),
    "reversed": lambda a, i: a[::-1],
    "swapped": lambda a, i: a[np.r_[1, 0, 2 : len(a)].astype(int)] if len(a) > 1 else a,
    "infinite": lambda a, i: _with(a, i, np.inf),
    "NaN": lambda a, i: _with(a, i, np.nan),
    "huge": lambda a, i: _with(a, i, np.iinfo(np.int64).max if a.dtype == np.int64 else 1e30),
    "cut": lambda a, i: a[:-1],
    "first cut": lambda a, i: a[1:],
    "longer": lambda a, i: np.concatenate([a, a[-1:]]),
    "other dtype": lambda a, i: a.astype(np.float32 if a.dtype == np.float64 else np.float64),
    "zero": lambda a, i: np.zeros_like(a),
}
_VALUES = [None, True, 0, -1, 1, 2**31, 2**62, 10**19, 0.5, -0.5, 1e308, "", "x", "../x", "/etc/passwd", [], {}]
_VALUES += [{"float": "nan"}, {"float": "inf"}, {"float": "-inf"}]


def _with(array, place, value):
    array = array.copy()
    if array.dtype.kind == "f" or np.isfinite(value):
        array.flat[place] = value if array.dtype != np.uint8 else 7
    return array


def _assert_refused_or_same(path, calibrated):
    """Refused; or said to be another detector; or one that judges new images as the honest one does."""
    _, _, new, (labels, p) = calibrated
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load(path)
        except ModelFileError:
            return
    if not caught:
        np.testing.assert_array_equal(loaded.predict(new), labels)
        np.testing.assert_array_equal(loaded.p_values(new), p)


@seed(1)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
@pytest.mark.slow
def test_a_changed_array_is_refused_or_changes_nothing(calibrated, tmp_path, data):
    document, arrays, _, _ = calibrated
    names = sorted(name for name in arrays if not name.startswith("teachers."))
    name = data.draw(st.sampled_from([*names, "teachers.0.cls_token", "teachers.0.blocks.0.norm1.weight"]))
    change = data.draw(st.sampled_from(sorted(_ARRAY_CHANGES)))
    array = arrays[name]
    if array.size == 0 or array.ndim == 0:
        return
    changed = _ARRAY_CHANGES[change](array, data.draw(st.integers(0, array.size - 1)))
    _container.write_model_file(tmp_path / "m.tfm", document, {**arrays, name: changed})
    _assert_refused_or_same(tmp_path / "m.tfm", calibrated)


@seed(1)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
@pytest.mark.slow
def test_a_changed_value_is_refused_or_changes_nothing(calibrated, tmp_path, data):
    document, arrays, _, _ = calibrated
    document = copy.deepcopy(document)
    parts = {key: document[key] for key in ("objects", "teachers", "probes")}
    path = data.draw(st.sampled_from(sorted(_leaves(parts), key=str)))
    holder = parts
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    nudged = [-old, old * 2, old + 1] if type(old) in (int, float) else []
    holder[path[-1]] = data.draw(st.sampled_from(_VALUES + nudged))
    try:
        _container.write_model_file(tmp_path / "m.tfm", document, arrays)
    except ValueError:
        return
    _assert_refused_or_same(tmp_path / "m.tfm", calibrated)


def _state(document, name):
    return next(entry for entry in document["objects"] if entry["class"] == name and entry["state"])["state"]


def _name(document, part, attribute):
    return _state(document, part)[attribute]["array"]


def _features(document):
    return _state(document, "TransformalyDetector")["training_features_"]["dict"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: a.update({(n := _name(d, "ConformalDetector", "calibration_scores_")): a[n][::-1]}), "ascending"),
        (lambda d, a: a.update({(n := _name(d, "ConformalDetector", "calibration_scores_")): a[n] + 1}), "offset_"),
        (lambda d, a: _state(d, "ConformalDetector").update(offset_={"float": "-inf"}), "offset_"),
        (lambda d, a: _state(d, "TransformalyDetector").update(offset_={"float": "inf"}), "offset_"),
        (lambda d, a: _state(d, "TransformalyDetector").update(offset_=0.125), "offset_ 0.125, but contamination"),
        (lambda d, a: [o["params"].update(alpha=0.9) for o in d["objects"] if o["class"][0] == "C"], "alpha=0.9"),
        (lambda d, a: a.update({(n := _name(d, "GaussianDensity", "components_")): a[n] * 2}), "not orthonormal"),
        (lambda d, a: _state(d, "RidgeStudents")["students"][0]["dict"].update(size={"tuple": [99] * 2}), "are larger"),
        (lambda d, a: d["teachers"][0]["data_config"].update(std=[1e-300] * 3), "with std"),
        (lambda d, a: d["teachers"][0]["data_config"].update(interpolation="../x"), "with interpolation"),
        (lambda d, a: a.update({"teachers.0.cls_token": a["teachers.0.cls_token"] * np.nan}), "NaN"),
        (lambda d, a: _state(d, "TimmExtractor").update(embedding_size_=63), "embedding_size_|was expected"),
        (lambda d, a: a.update({(n := _name(d, "TransformalyDetector", "training_labels_")): -a[n]}), "were learned"),
        (lambda d, a: a.update({(n := _name(d, "TransformalyDetector", "training_groups_")): ~a[n]}), "groups_"),
        (
            lambda d, a: a.update({(n := _features(d)["pretrained"]["array"]): _with(a[n], 0, np.nan)}),
            "training_features_ of parts of an image",
        ),
    ],
)  # fmt: skip
def test_what_does_not_hold_between_attributes_is_named(calibrated, tmp_path, change, message):
    document, arrays = copy.deepcopy(calibrated[0]), dict(calibrated[1])
    change(document, arrays)
    _container.write_model_file(tmp_path / "m.tfm", document, arrays)
    with pytest.raises(ModelFileError, match=message):
        load(tmp_path / "m.tfm")


def test_a_file_without_weights_draws_no_large_network(calibrated, many, tmp_path, monkeypatch):
    path = tmp_path / "m.tfm"
    save(tiny_detector(feature_spaces=["pretrained"]).fit(many), path, teacher=False)
    np.testing.assert_array_equal(load(path).extractor_.image_size_, (32, 32))
    with _container.ModelFile(path) as file:
        arrays = {name: file.array(name) for name in file.arrays}
    text = json.dumps(file.document).replace('"test_vit"', '"vit_large_patch16_224"')
    _container.write_model_file(path, json.loads(text), arrays)

    def refuse(*args):
        raise AssertionError("built")

    monkeypatch.setattr(_weights, "create_model", refuse)
    with pytest.raises(ModelFileError, match=r"asks for 12\d{8} bytes of random weights"):
        load(path)
    (tmp_path / "small.pth").write_bytes(b"x")
    text = text.replace('"weights": null', '"weights": "small.pth"')
    _container.write_model_file(path, json.loads(text), arrays)
    with pytest.raises(ModelFileError, match="is the file of another network"):
        load(path)


def test_a_forged_teacher_does_not_answer_for_the_honest_one(many, tmp_path):
    """A shared cache knows teachers by what they are, not by what a file says."""
    honest = tiny_detector(feature_spaces=["pretrained"], extractor=tiny_extractor(precision="float32")).fit(many)
    path, cache = tmp_path / "m.tfm", str(tmp_path / "cache")
    save(honest, path)
    loaded = load(path)
    assert loaded.extractor_.identity() == honest.extractor_.identity()
    assert loaded.extractor_.weights_sha256_ == honest.extractor_.weights_sha256_
    with _container.ModelFile(path) as file:
        arrays = {name: file.array(name) for name in file.arrays}
    for change in ("weights", "weights and what is stated", "mean"):
        document, forged = copy.deepcopy(file.document), dict(arrays)
        if change == "mean":
            document["teachers"][0]["data_config"]["mean"] = [0.4, 0.4, 0.4]
        else:
            forged["teachers.0.blocks.5.mlp.fc1.weight"] = forged["teachers.0.blocks.5.mlp.fc1.weight"][::-1]
        _container.write_model_file(path, document, forged)
        if change == "weights and what is stated":
            with pytest.warns(UserWarning, match="holds other weights") as caught:
                load(path, verify=False)
            (content,) = {str(w.message).split("is ")[1].split(",")[0] for w in caught}
            document["teachers"][0]["content_sha256"] = content
            _container.write_model_file(path, document, forged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = load(path, verify=False)
        assert other.extractor_.identity() != honest.extractor_.identity()
        other.set_params(memory=cache).score_samples(many)
    again = clone(honest).set_params(memory=cache).fit(many)
    np.testing.assert_array_equal(again.training_scores_, honest.training_scores_)


def test_a_rate_that_was_set_after_fit_is_not_saved(many, tmp_path):
    detector = tiny_detector(feature_spaces=["pretrained"]).fit(many).set_params(contamination=0.5)
    with pytest.raises(ValueError, match=r"contamination=0.5.*set after fit"):
        save(detector, tmp_path / "m.tfm")
    assert not list(tmp_path.iterdir())


# ----- the other ways


@pytest.mark.parametrize("variant", ["gmm", "knn"])
def test_skops_loads_it_with_the_listed_types(variant, many):
    skops = pytest.importorskip("skops.io")
    detector = tiny_detector(**VARIANTS[variant]).fit(many)
    content = skops.dumps(detector)
    assert set(skops.get_untrusted_types(data=content)) <= set(SKOPS_TYPES)
    assert_same(skops.loads(content, trusted=list(SKOPS_TYPES)), detector, many)


def test_skops_loads_wrappers_with_the_listed_types(many):
    skops = pytest.importorskip("skops.io")
    detector = NormalOnly(ConformalDetector(tiny_detector(), alpha=0.2, calibration=0.4, random_state=0))
    detector.fit(many, np.ones(len(many)))
    content = skops.dumps(detector)
    assert set(skops.get_untrusted_types(data=content)) <= set(SKOPS_TYPES)
    loaded = skops.loads(content, trusted=list(SKOPS_TYPES))
    np.testing.assert_array_equal(loaded.estimator_.p_values(many), detector.estimator_.p_values(many))


def test_pickling_leaves_the_detector_as_it_is(many):
    """From Python 3.11 on, what scikit-learn gives as an estimator's state is its own dict."""
    detector = tiny_detector().fit(many)
    teacher, students = detector.extractor_.teacher_, list(detector.students_.students_)
    copied = pickle.loads(pickle.dumps(detector))
    assert vars(detector.extractor_)["_teacher"] is teacher
    assert all(one is other for one, other in zip(detector.students_.students_, students))
    assert_same(copied, detector, many)


def test_probes_may_be_rows(images, tmp_path):
    rows = images.reshape(len(images), -1)
    detector = tiny_detector(image_shape=images.shape[1:]).fit(rows)
    save(detector, tmp_path / "m.tfm", probes=rows[:2])
    np.testing.assert_allclose(load(tmp_path / "m.tfm").score_samples(rows), detector.score_samples(rows))


def test_weights_that_no_file_can_name_are_refused_when_saving(images, tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w:1.pth")
    named = tiny_extractor(weights=str(tmp_path / "w:1.pth"))
    with pytest.raises(ValueError, match="'w:1.pth', which a model file cannot name"):
        save(tiny_detector(extractor=named).fit(images), tmp_path / "m.tfm")
    assert not (tmp_path / "m.tfm").exists()
