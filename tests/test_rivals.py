"""The benchmark's rivals against formulas, scipy and each other."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_extractor
from scipy.spatial.distance import cosine, mahalanobis
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import OneClassSVM

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "paper"))

from rivals import (
    DN2,
    MSAD,
    OCSVM,
    PANDA,
    RIVALS,
    TRAINED_RIVALS,
    DeepSVDD,
    Forest,
    Mahalanobis,
    OCSVMPixels,
    UnitMahalanobis,
    UnitNeighbours,
)
from rivals._base import minibatches, pixel_tensor
from rivals._tuning import Tail, capture, capture_images
from rivals.msad import mean_shifted_loss

from skl_transformaly.images._images import as_images
from skl_transformaly.teacher._network import Teacher

QUICK = {
    DeepSVDD: {"max_epochs": 6, "pretrain_epochs": 3, "batch_size": 10},
    PANDA: {"max_epochs": 2, "n_checkpoints": 2},
    MSAD: {"max_epochs": 1},
}


def noise(colour, n, seed):
    """Images of noise around one colour."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(colour, 25, (n, 24, 20, 3)), 0, 255).astype(np.uint8)


def build(kind, **changes):
    params = QUICK.get(kind, {}) | changes
    if "random_state" in kind().get_params():
        params = {"random_state": 0} | params
    return kind(tiny_extractor(), **params)


NORMAL = noise((180, 90, 60), 30, 0)
TEST = np.concatenate([noise((180, 90, 60), 15, 1), noise((60, 90, 180), 15, 2)])
LABELS = np.repeat([1, 0], 15)
TRAINED = [RIVALS[name] for name in TRAINED_RIVALS]


@pytest.fixture(scope="module")
def fitted():
    return {kind: build(kind).fit(NORMAL) for kind in RIVALS.values()}


@pytest.fixture(scope="module")
def embeddings():
    extractor = tiny_extractor().fit(NORMAL)
    return extractor.transform(NORMAL), extractor.transform(TEST)


@pytest.mark.parametrize("kind", RIVALS.values())
def test_tells_one_colour_from_another(fitted, kind):
    assert roc_auc_score(LABELS, fitted[kind].score_samples(TEST)) > 0.9


@pytest.mark.parametrize("kind", RIVALS.values())
def test_scores_are_one_finite_float64_for_each_image(fitted, kind):
    scores = fitted[kind].score_samples(TEST)
    assert scores.shape == (30,) and scores.dtype == np.float64 and np.isfinite(scores).all()


@pytest.mark.parametrize("kind", RIVALS.values())
def test_decisions_are_scores_less_the_offset(fitted, kind):
    rival = fitted[kind]
    np.testing.assert_allclose(rival.decision_function(TEST), rival.score_samples(TEST) - rival.offset_)
    np.testing.assert_array_equal(rival.predict(TEST) == -1, rival.decision_function(TEST) < 0)


@pytest.mark.parametrize("kind", [OCSVM, OCSVMPixels, DeepSVDD, Mahalanobis, UnitMahalanobis, Forest])
def test_offset_is_the_5_percent_quantile_of_training_scores(fitted, kind):
    assert fitted[kind].offset_ == pytest.approx(np.percentile(fitted[kind].score_samples(NORMAL), 5))


@pytest.mark.parametrize("kind", RIVALS.values())
def test_scores_do_not_depend_on_the_form_of_images(fitted, kind):
    as_floats = [image / 255 for image in TEST]
    np.testing.assert_allclose(fitted[kind].score_samples(as_floats), fitted[kind].score_samples(TEST), rtol=1e-5)


@pytest.mark.parametrize("kind", RIVALS.values())
def test_clones_with_the_same_parameters(kind):
    rival = build(kind)
    assert str(clone(rival)) == str(rival)


@pytest.mark.parametrize("kind", RIVALS.values())
def test_one_image_is_refused(kind):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        build(kind).fit(NORMAL[:1])


@pytest.mark.parametrize("kind", [*TRAINED, Forest])
def test_same_seed_same_scores_and_another_seed_others(fitted, kind):
    again, other = build(kind).fit(NORMAL), build(kind, random_state=1).fit(NORMAL)
    np.testing.assert_array_equal(again.score_samples(TEST), fitted[kind].score_samples(TEST))
    assert not np.array_equal(other.score_samples(TEST), fitted[kind].score_samples(TEST))


@pytest.mark.parametrize("kind", RIVALS.values())
def test_leaves_torchs_global_random_state_alone(kind):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build(kind).fit(NORMAL[:6]).score_samples(TEST[:2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", TRAINED)  # scikit-learn's SVM draws a seed from numpy's, and makes no use of it
def test_leaves_numpys_global_random_state_alone(kind):
    before = np.random.get_state()[1].copy(), np.random.get_state()[2]
    build(kind).fit(NORMAL[:6]).score_samples(TEST[:2])
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert np.random.get_state()[2] == before[1]


@pytest.mark.parametrize(
    "kind, changes",
    [
        (DeepSVDD, {"max_epochs": 10}),
        (PANDA, {"max_epochs": 5}),
        (MSAD, {"max_epochs": 8, "lr": 0.3}),
    ],
)
def test_training_lowers_the_loss(kind, changes):
    history = build(kind, **changes).fit(NORMAL).history_
    assert len(history) == changes["max_epochs"]
    assert all(type(loss) is float for loss in history)
    assert history[-1] < history[0]


@pytest.mark.parametrize("kind", [OCSVM, Mahalanobis, DN2, Forest, PANDA, MSAD])
def test_takes_a_fitted_extractor_as_it_is(kind):
    extractor = tiny_extractor().fit(NORMAL)
    rival = build(kind).set_params(extractor=extractor)
    assert rival.fit(NORMAL[:6]).extractor_ is extractor


def test_leaves_an_unfitted_extractor_unfitted(fitted):
    rival = fitted[DN2]
    assert rival.extractor_ is not rival.extractor and not hasattr(rival.extractor, "blocks_")


# references


@pytest.mark.parametrize("k", [1, 2, 4])
def test_dn2_is_the_mean_squared_distance_to_neighbours(embeddings, k):
    train, test = embeddings
    expected = [-np.mean(sorted(((x - y) ** 2).sum() for y in train)[:k]) for x in test]
    np.testing.assert_allclose(build(DN2, n_neighbors=k).fit(NORMAL).score_samples(TEST), expected, rtol=1e-6)


def test_dn2_offset_compares_a_training_image_with_the_others(embeddings):
    train, _ = embeddings
    scores = [-np.mean(sorted(((x - y) ** 2).sum() for y in train)[1:3]) for x in train]
    assert build(DN2).fit(NORMAL).offset_ == pytest.approx(np.percentile(scores, 5), rel=1e-6)


def test_dn2_needs_more_images_than_neighbours():
    with pytest.raises(ValueError, match="n_neighbors=2 needs at least 3 images, got 2"):
        build(DN2).fit(NORMAL[:2])


@pytest.mark.parametrize("n, covariance", [(30, "ledoit-wolf"), (100, "empirical")])  # of 64 dimensions
def test_mahalanobis_is_scipys(n, covariance):
    images = noise((180, 90, 60), n, 3)
    extractor = tiny_extractor().fit(images)
    train = extractor.transform(images)
    matrix = LedoitWolf().fit(train).covariance_ if n == 30 else np.cov(train, rowvar=False, bias=True)
    # a layer norm without scale or shift ends the tiny network, so the features of an embedding add up to nothing
    inverse = np.linalg.pinv(matrix, rcond=1e-9, hermitian=True)
    expected = [-mahalanobis(z, train.mean(axis=0), inverse) for z in extractor.transform(TEST)]
    rival = Mahalanobis(extractor, covariance=covariance).fit(images)
    np.testing.assert_allclose(rival.score_samples(TEST), expected, rtol=1e-4)


def test_mahalanobis_refuses_an_unknown_covariance():
    with pytest.raises(ValueError, match="covariance must be one of"):
        build(Mahalanobis, covariance="diagonal").fit(NORMAL)


def test_oc_svm_is_scikit_learns_on_standardised_embeddings(embeddings):
    train, test = embeddings
    scaler = StandardScaler().fit(train)
    expected = OneClassSVM(nu=0.1).fit(scaler.transform(train)).score_samples(scaler.transform(test))
    np.testing.assert_allclose(build(OCSVM).fit(NORMAL).score_samples(TEST), expected, rtol=1e-4)


def test_rivals_of_unit_length_are_scikit_learns(embeddings):
    train, test = map(normalize, embeddings)
    expected = -np.sqrt(LedoitWolf().fit(train).mahalanobis(test))
    np.testing.assert_allclose(build(UnitMahalanobis).fit(NORMAL).score_samples(TEST), expected, rtol=1e-4)
    expected = [-np.mean(sorted(np.linalg.norm(x - train, axis=1))[:2]) for x in test]
    np.testing.assert_allclose(build(UnitNeighbours).fit(NORMAL).score_samples(TEST), expected, rtol=1e-6)


def test_forest_is_scikit_learns(embeddings):
    train, test = embeddings
    expected = IsolationForest(random_state=0).fit(train).score_samples(test)
    np.testing.assert_allclose(build(Forest).fit(NORMAL).score_samples(TEST), expected, rtol=1e-6)


def test_pixels_of_the_right_size_are_taken_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    got = pixel_tensor(as_images(images), 8)
    np.testing.assert_allclose(got.numpy(), np.moveaxis(images, -1, 1) / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1)])
def test_transparent_pixels_are_laid_on_white(dtype, top):
    image = np.zeros((1, 4, 4, 4), dtype=dtype)
    image[..., 3] = top * np.array([0, 1])[:, None].repeat(2, 0)  # the upper half transparent, the lower black
    rows = pixel_tensor(as_images(image), 4)[0, 0]
    np.testing.assert_array_equal(rows, np.repeat([[1.0], [1.0], [0.0], [0.0]], 4, axis=1))


def test_grey_images_fill_three_channels():
    images = np.random.default_rng(0).random((2, 8, 8))
    got = pixel_tensor(as_images(images), 8)
    assert got.shape == (2, 3, 8, 8) and (got == got[:, :1]).all()


def test_deep_svdd_does_not_see_brightness_and_contrast(fitted):
    dark = (TEST * 0.4).astype(np.float64) / 255 + 0.1
    np.testing.assert_allclose(
        fitted[DeepSVDD].score_samples(dark), fitted[DeepSVDD].score_samples(TEST), rtol=1e-2, atol=1e-3
    )


def test_deep_svdds_centre_keeps_off_zero(fitted):
    assert float(fitted[DeepSVDD].centre_.abs().min()) >= 0.1


def test_deep_svdd_has_no_bias_terms(fitted):
    assert all(parameter.ndim > 1 for parameter in fitted[DeepSVDD].encoder_.parameters())


def test_an_image_of_one_value_gets_a_score(fitted):
    assert np.isfinite(fitted[DeepSVDD].score_samples(np.full((1, 24, 20, 3), 7, np.uint8))).all()


def test_minibatches_are_all_positions_once_in_nearly_equal_parts():
    batches = minibatches(65, 32, np.random.RandomState(0))
    assert sorted(np.concatenate(batches)) == list(range(65))
    assert sorted(map(len, batches)) == [21, 22, 22]


# the tail


@pytest.mark.parametrize("n_tuned", [1, 2, 4])
@pytest.mark.parametrize("name", ["test_vit", "tf_efficientnet_lite0", "resnet10t", "test_convnext"])
def test_untrained_tail_gives_the_teachers_embedding(name, n_tuned):
    extractor = tiny_extractor(name, precision="float32", image_size=64 if name != "test_vit" else 32).fit(NORMAL)
    images = as_images(NORMAL[:5])
    tail = Tail(extractor, n_tuned)
    got = tail.embed(capture_images(extractor, images, tail.index), batch_size=2)
    expected = extractor.transform(NORMAL[:5])
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_tail_computes_in_the_extractors_precision():
    half = tiny_extractor(precision="bfloat16").fit(NORMAL)
    tail = Tail(half, 2)
    activations = capture_images(half, as_images(NORMAL[:5]), tail.index)
    np.testing.assert_allclose(tail.embed(activations, 5), half.transform(NORMAL[:5]), rtol=1e-5, atol=1e-5)
    assert np.abs(tail.embed(activations, 5) - tiny_extractor().fit(NORMAL).transform(NORMAL[:5])).max() > 1e-4


def test_only_last_blocks_and_the_norm_behind_them_train():
    tail = Tail(tiny_extractor().fit(NORMAL), 2)
    parts = {".".join(name.split(".")[:3]) for name in tail.tuned()}
    assert parts == {"model.blocks.4", "model.blocks.5", "model.norm.weight", "model.norm.bias"}


def test_training_the_tail_leaves_the_teacher_alone():
    extractor = tiny_extractor().fit(NORMAL)
    before = extractor.transform(NORMAL)
    PANDA(extractor, max_epochs=1, lr=1.0, clip=10.0, random_state=0).fit(NORMAL)
    np.testing.assert_array_equal(extractor.transform(NORMAL), before)
    assert not any(parameter.requires_grad for parameter in extractor.teacher_.model.parameters())


def test_running_the_tail_is_not_seen_by_the_teachers_visitors():
    extractor = tiny_extractor().fit(NORMAL)
    tail, batch, seen = Tail(extractor, 2), extractor.preprocess(NORMAL[:2]), []
    activations = capture(extractor, batch, tail.index)

    def visit(index, block, args, kwargs, output):
        seen.append(index)
        tail(activations)

    extractor.embed(batch, visit)
    assert seen == list(range(7))  # six blocks, and what comes after them


def test_a_snapshot_brings_earlier_weights_back():
    extractor = tiny_extractor().fit(NORMAL)
    tail = Tail(extractor, 2)
    activations = capture_images(extractor, as_images(NORMAL), tail.index)
    early, before = tail.snapshot(), tail.embed(activations, 8)
    with torch.no_grad():
        for parameter in tail.tuned().values():
            parameter.mul_(1.5)
    assert np.abs(tail.embed(activations, 8) - before).max() > 0.1
    np.testing.assert_array_equal(tail.embed(activations, 8, early), before)


def test_more_blocks_than_there_are_cannot_be_tuned():
    with pytest.raises(ValueError, match="between 1 and 6.*got 7"):
        build(PANDA, n_tuned=7).fit(NORMAL)


# what tunes


@pytest.mark.parametrize("early", ["ses", "constant"])
def test_panda_without_training_ranks_as_dn2(fitted, early):
    panda = build(PANDA, early=early, max_steps=0).fit(NORMAL)
    assert panda.history_ == []
    np.testing.assert_array_equal(rankdata(panda.score_samples(TEST)), rankdata(fitted[DN2].score_samples(TEST)))


def test_panda_draws_normal_images_to_their_mean():
    panda = build(PANDA, early="constant", max_epochs=8, lr=0.1, clip=1.0).fit(NORMAL)
    untuned = tiny_extractor().fit(NORMAL).transform(NORMAL)
    tuned = panda.tail_.embed(capture_images(panda.extractor_, as_images(NORMAL), 4), 32)
    centre = untuned.mean(axis=0)
    assert ((tuned - centre) ** 2).sum() < 0.5 * ((untuned - centre) ** 2).sum()


def test_pandas_ses_is_the_largest_ratio_over_checkpoints():
    panda = build(PANDA, max_epochs=4, lr=0.1, clip=1.0, n_checkpoints=2).fit(NORMAL)
    assert len(panda.checkpoints_) == 3  # before, half way, at the end
    train, test = (capture_images(panda.extractor_, as_images(X), 4) for X in (NORMAL, TEST))
    ratios = []
    for weights, _, _ in panda.checkpoints_:
        a, b = panda.tail_.embed(train, 32, weights), panda.tail_.embed(test, 32, weights)
        own = [np.mean(sorted(((x - y) ** 2).sum() for y in a)[1:3]) for x in a]
        ratios.append([np.mean(sorted(((x - y) ** 2).sum() for y in a)[:2]) / np.mean(own) for x in b])
    np.testing.assert_allclose(panda.score_samples(TEST), -np.max(ratios, axis=0), rtol=1e-6)
    assert len(set(np.argmax(ratios, axis=0))) > 1  # more than one checkpoint decides


@pytest.mark.parametrize("bounds, n", [({"max_steps": 3, "max_epochs": None}, 3), ({"max_epochs": 2}, 8)])
def test_panda_takes_as_many_steps_as_allowed(monkeypatch, bounds, n):
    steps = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *args: (steps.append(1), step(self, *args))[1])
    build(PANDA, batch_size=8, **bounds).fit(NORMAL)  # 30 images: 4 minibatches an epoch
    assert len(steps) == n


def test_panda_moves_weights_no_further_than_clipped_steps_go():
    panda = build(PANDA, early="constant", max_steps=3, momentum=0.0, weight_decay=0.0, clip=1e-3, lr=1.0).fit(NORMAL)
    before = Tail(tiny_extractor().fit(NORMAL), 2).snapshot()
    now = panda.tail_.snapshot()
    moved = sum(float((now[name] - before[name]).square().sum()) for name in now) ** 0.5
    assert 1e-4 < moved <= 3e-3 + 1e-9


def test_panda_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="early must be"):
        build(PANDA, early="late").fit(NORMAL)


class Replay:
    """An extractor that replays what a real one's blocks got; "images" are numbers of rows."""

    def __init__(self, extractor, images):
        self.seen, self.batch_size, self.compute = [], 7, extractor.compute
        self.blocks_, self.teacher_ = extractor.blocks_, extractor.teacher_
        batch = extractor.preprocess(images)
        self.embedding = extractor.embed(batch, lambda *event: self.seen.append(event))

    def fit(self, X, y=None):
        return self

    def new_blocks(self, seed):
        raise NotImplementedError

    def preprocess(self, pixels):
        return torch.as_tensor(np.array([image.flat[0] for image in pixels]))

    def embed(self, batch, visit=None):
        rows = batch.long()
        for index, block, args, kwargs, output in self.seen if visit else []:
            visit(index, block, (args[0][rows], *args[1:]), kwargs, output[rows])
        return self.embedding[rows]


@pytest.mark.parametrize("kind", [OCSVM, Mahalanobis, DN2, PANDA])
def test_takes_stored_activations_for_images(kind):
    replay = Replay(tiny_extractor().fit(NORMAL), np.concatenate([NORMAL, TEST]))
    numbers = np.arange(60, dtype=np.uint8)[:, None, None, None]
    rival = build(kind).set_params(extractor=replay).fit(numbers[:30])
    expected = build(kind).fit(NORMAL).score_samples(TEST)
    np.testing.assert_allclose(rival.score_samples(numbers[30:]), expected, rtol=1e-6)


def test_msad_without_training_is_the_cosine_distance_to_neighbours(embeddings):
    train, test = embeddings
    # between unit vectors, squared distance is twice the cosine distance
    expected = [-2 * np.mean(sorted(cosine(x, y) for y in train)[:2]) for x in test]
    got = build(MSAD, max_epochs=0).fit(NORMAL).score_samples(TEST)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_msad_does_not_see_the_length_of_embeddings():
    plain = tiny_extractor().fit(NORMAL)
    scaled = Replay(plain, NORMAL)
    model = copy.deepcopy(plain.teacher_.model)
    with torch.no_grad():
        model.norm.weight.mul_(7)
        model.norm.bias.mul_(7)
    scaled.teacher_ = Teacher(model, plain.teacher_.data_config, "")
    scaled.preprocess, scaled.embed = plain.preprocess, scaled.teacher_.embed
    got, expected = (MSAD(e, max_epochs=0).fit(NORMAL).score_samples(TEST) for e in (scaled, plain))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_mean_shifted_loss_by_its_formula(rng):
    z, centre = rng.normal(size=(6, 5)), rng.normal(size=5)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True) - centre
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = np.exp(unit @ unit.T / 0.25)
    losses = []
    for i, j in [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]:
        others = [k for k in range(6) if k != i]
        losses.append(-np.log(similarity[i, j] / similarity[i, others].sum()))
    got = mean_shifted_loss(torch.from_numpy(z), torch.from_numpy(centre), 0.25)
    assert float(got) == pytest.approx(np.mean(losses))


def test_msads_two_views_of_an_image_differ_and_keep_its_size(monkeypatch):
    batches = []
    extractor = tiny_extractor().fit(NORMAL)
    embed = extractor.embed
    monkeypatch.setattr(extractor, "embed", lambda batch, visit=None: (batches.append(batch), embed(batch, visit))[1])
    MSAD(extractor, max_epochs=1, batch_size=8, random_state=0).fit(NORMAL[:8])
    views = torch.cat([batch for batch in batches if len(batch) == 16])
    assert views.shape == (16, 3, 32, 32)
    assert all((views[i] != views[j]).any() for i in range(16) for j in range(i))


def test_msads_fits_that_share_views_give_the_same_scores_and_run_the_teacher_on_new_images_alone(monkeypatch):
    extractor, views = tiny_extractor().fit(NORMAL), {}
    settings = {"max_epochs": 2, "lr": 0.3, "random_state": 3}
    MSAD(extractor, **settings, views=views).fit(NORMAL[:20])
    assert len(views) == 2 * 20
    want = MSAD(extractor, **settings).fit(NORMAL[5:25]).score_samples(TEST)
    embed, seen = extractor.embed, []
    monkeypatch.setattr(extractor, "embed", lambda batch, *visit: seen.append(len(batch)) or embed(batch, *visit))
    shared = MSAD(extractor, **settings, views=views).fit(NORMAL[5:25])
    assert sum(seen) == 20 + 2 * 2 * 5  # the images as they are; two views of five new ones in two epochs
    np.testing.assert_allclose(shared.score_samples(TEST), want, rtol=1e-6)


def test_msads_views_of_an_image_that_comes_twice_differ():
    extractor, views = tiny_extractor().fit(NORMAL), {}
    MSAD(extractor, max_epochs=2, random_state=0, views=views).fit(NORMAL[[0, 0, 1]])
    pairs = torch.cat(list(views.values()))  # of three images in two epochs
    assert pairs.shape[0] == 12 and len(torch.unique(pairs.flatten(1), dim=0)) == 12
