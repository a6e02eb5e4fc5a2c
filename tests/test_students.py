"""Students: what they are, what they learn from, and what their discrepancy is."""

import copy
import pickle
import tempfile

import numpy as np
import pytest
import torch
from conftest import on_training, tiny_detector, tiny_extractor, tiny_paper, tiny_students
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from test_extractor import FAMILIES
from torch import nn

from skl_transformaly import BlockStudents, TransformalyDetector
from skl_transformaly.students import _block, _parallel, _training
from skl_transformaly.students._activations import BlockActivations
from skl_transformaly.students._imitation import select_blocks
from skl_transformaly.students._training import Descent, Imitation
from skl_transformaly.utils._torch import limited_threads


@pytest.fixture(scope="module")
def students():
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    return tiny_students(extractor=tiny_extractor(), n_blocks=3, max_epochs=4, lr=1e-3).fit(X)


def test_discrepancy_is_the_mean_squared_difference_on_the_teachers_own_input(students, images):
    model = students.extractor_.teacher_.model
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(students.extractor_.preprocess(images))))
        expected = []
        for j, block in enumerate(model.blocks):
            if j >= 3:
                expected.append(((students.students_[j - 3](x) - block(x)) ** 2).mean(dim=(1, 2)))
            x = block(x)
    np.testing.assert_allclose(students.transform(images), torch.stack(expected, dim=1), rtol=1e-9)


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
@pytest.mark.slow
def test_every_family_can_be_imitated(name, size, kind, number, images):
    extractor = tiny_extractor(name, image_size=size, precision="float32")
    students = tiny_students(extractor=extractor, n_blocks=2, max_epochs=8, batch_size=4, lr=3e-4).fit(images)
    for history in students.history_.values():
        assert history["loss"][-1] < history["loss"][0]
    assert np.isfinite(students.transform(images)).all()


def test_a_student_has_its_blocks_architecture_and_other_weights(students):
    for index, student in zip(students.block_indices_, students.students_):
        own, teachers = student.state_dict(), students.extractor_.blocks_[index].state_dict()
        assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in teachers.items()}
        assert not torch.equal(own["attn.qkv.weight"], teachers["attn.qkv.weight"])


def test_fresh_students_are_drawn_from_the_architectures_own_initialisation(images):
    extractor = tiny_extractor("vit_tiny_patch16_224", precision="float32").fit(images)
    weights = extractor.new_blocks(1)[4].attn.qkv.weight
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.05)  # timm's ViT draws with 0.02


def test_rotary_embeddings_reach_the_student(images):
    extractor = tiny_extractor("eva02_tiny_patch14_224", image_size=28)
    students = tiny_students(extractor=extractor, n_blocks=1).fit(images)
    model = students.extractor_.teacher_.model
    batch = students.extractor_.preprocess(images)
    with torch.no_grad():
        x, rope = model._pos_embed(model.patch_embed(batch))
        for block in model.blocks[:-1]:
            x = block(x, rope=rope)
        student, teacher = students.students_[0](x, rope=rope), model.blocks[-1](x, rope=rope)
        without = students.students_[0](x)
    assert not torch.allclose(student, without)
    expected = ((student - teacher) ** 2).mean(dim=(1, 2))
    np.testing.assert_allclose(students.transform(images)[:, 0], expected, rtol=1e-9)


def test_a_trained_student_deviates_more_on_what_it_has_not_seen(rng):
    ramp = np.linspace(0, 255, 32)
    normal = (ramp[None, :, None] * np.ones((40, 1, 32)) * rng.uniform(0.5, 1, (40, 1, 1))).astype(np.uint8)
    odd = rng.integers(0, 256, (10, 32, 32), dtype=np.uint8)
    students = tiny_students(extractor=tiny_extractor(), max_epochs=20, lr=1e-3, batch_size=8).fit(normal[:30])
    assert students.transform(odd).min(axis=0).min() > students.transform(normal[30:]).max(axis=0).max()


@given(total=st.integers(1, 40), n=st.integers(1, 60))
def test_an_int_selects_the_last_blocks(total, n):
    assert select_blocks(n, total).tolist() == list(range(total))[-n:]


@given(total=st.integers(1, 40), data=st.data())
def test_a_sequence_selects_its_places_in_order(total, data):
    places = data.draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True))
    signed = [p - total if data.draw(st.booleans()) else p for p in places]
    assert select_blocks(signed, total).tolist() == sorted(places)


def test_none_selects_all_blocks():
    assert select_blocks(None, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [[4], [-5], [0, -4], [], [0.5], [[1]]])
def test_blocks_that_are_not_there_are_refused(wrong):
    with pytest.raises(ValueError, match="n_blocks"):
        select_blocks(wrong, 4)


def test_training_in_16_bits_learns_as_in_32(images):
    first, second = (
        tiny_students(extractor=tiny_extractor(precision=precision), max_epochs=3, batch_size=4, lr=1e-3).fit(images)
        for precision in ("float32", "bfloat16")
    )
    for block, history in first.history_.items():
        assert history["loss"][-1] < 0.9 * history["loss"][0]
        np.testing.assert_allclose(second.history_[block]["loss"], history["loss"], rtol=0.05)


def test_a_student_does_not_depend_on_how_many_others_there_are(students, images):
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    alone = tiny_students(extractor=tiny_extractor(), n_blocks=[4], max_epochs=4, lr=1e-3).fit(X)
    np.testing.assert_array_equal(alone.transform(images)[:, 0], students.transform(images)[:, 1])


def test_the_same_seed_gives_the_same_students(images):
    one, same, other = (
        tiny_students(extractor=tiny_extractor(), random_state=seed).fit(images).transform(images) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_history_has_the_loss_of_each_block_and_epoch(students):
    assert list(students.history_) == [3, 4, 5]
    assert all(len(history["loss"]) == 4 for history in students.history_.values())


@pytest.mark.parametrize("name, size", [("test_vit", 32), ("eva02_tiny_patch14_224", 28)])
def test_history_is_the_mean_squared_error_while_training(name, size, images):
    """With a vanishing learning rate the loss of an epoch is that of the fresh student, rotary embeddings and all."""
    extractor = tiny_extractor(name, image_size=size)
    students = tiny_students(extractor=extractor, lr=1e-30, batch_size=5).fit(images)
    expected = students.transform(images).mean(axis=0)
    np.testing.assert_allclose([h["loss"][0] for h in students.history_.values()], expected, rtol=1e-9)


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_a_given_learning_rate_is_plain_adam(lr, images):
    """Retraced with torch's own Adam on the whole chain of teacher and student."""
    students = tiny_students(
        extractor=tiny_extractor(), n_blocks=1, max_epochs=2, lr=lr, batch_size=12, random_state=0
    ).fit(images)
    extractor = students.extractor_
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    student = extractor.new_blocks(seed)[5]
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    seen = []
    extractor.embed(extractor.preprocess(images), lambda i, block, args, kwargs, out: seen.append((args[0], out)))
    inputs, targets = seen[5]
    for _ in range(2):  # one batch an epoch, so the order of images does not matter
        optimizer.zero_grad()
        ((student(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        expected = ((student.eval()(inputs) - targets) ** 2).mean(dim=(1, 2))
    np.testing.assert_allclose(students.transform(images)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [3, 36, 99, 100, 1000])
def test_the_automatic_rate_of_transformers_grows_with_the_steps_up_to_100(steps):
    assert _training._auto_lr(nn.Linear(2, 2), steps) == pytest.approx(1.5e-3 * min(1, steps / 100))


def test_the_automatic_rate_is_full_with_batch_normalisation():
    assert _training._auto_lr(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), 3) == 2e-3


@pytest.mark.parametrize("total", [1, 4, 5, 24, 100])
def test_the_automatic_rate_rises_for_a_fifth_of_the_steps_and_falls_to_nothing(total):
    shares = [_training._one_cycle(step, total) for step in range(total)]
    top = max(1, total // 5) - 1
    assert shares[top] == max(shares) == 1
    assert np.all(np.diff(shares[: top + 1]) > 0) and np.all(np.diff(shares[top + 1 :]) < 0)
    assert _training._one_cycle(total, total) == pytest.approx(0) or total == 1


def test_paper_has_the_papers_settings():
    paper = BlockStudents.paper(n_blocks=3)
    assert (paper.max_epochs, paper.lr, paper.batch_size, paper.token_share, paper.n_blocks) == (30, 1e-4, 32, 1.0, 3)


def test_a_loss_that_is_not_finite_is_an_error(images):
    with pytest.raises(FloatingPointError, match="block 4.*Lower lr"):
        tiny_students(extractor=tiny_extractor(precision="float32"), max_epochs=9, lr=1e30, batch_size=3).fit(images)


def test_batch_statistics_are_those_of_the_training_images(images):
    students = tiny_students(extractor=tiny_extractor("test_resnet", image_size=64), n_blocks=1, batch_size=4).fit(
        images
    )
    extractor, student = students.extractor_, students.students_[0]
    seen = []
    extractor.embed(extractor.preprocess(images), lambda i, block, args, kwargs, out: seen.append(args[0]))
    with torch.no_grad():
        maps = student[0].conv1(seen[3])
    np.testing.assert_allclose(student[0].bn1.running_mean, maps.mean(dim=(0, 2, 3)), rtol=1e-6, atol=1e-9)


def test_students_inside_a_detector_take_no_extractor_of_their_own(images):
    with pytest.raises(ValueError, match="students.extractor must be None"):
        tiny_detector(students=tiny_students(extractor=tiny_extractor())).fit(images)


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_of_tokens_is_at_most_all(share, images):
    with pytest.raises(ValueError, match="'token_share' parameter"):
        tiny_students(token_share=share, extractor=tiny_extractor()).fit(images)


def test_a_batch_may_be_one_image(images):
    students = tiny_students(batch_size=1, extractor=tiny_extractor()).fit(images)
    assert np.isfinite(students.transform(images)).all()


def test_progress_shows_the_loss(images, capsys):
    tiny_students(extractor=tiny_extractor(), verbose=1).fit(images)
    shown = capsys.readouterr().err
    assert "Training students" in shown and "loss=" in shown


def test_quiet_by_default(images, capsys):
    tiny_students(extractor=tiny_extractor()).fit(images)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_copies_and_pickles_measure_the_same(students, images):
    expected = students.transform(images)
    for duplicate in (copy.deepcopy(students), pickle.loads(pickle.dumps(students))):
        np.testing.assert_array_equal(duplicate.transform(images), expected)


def test_a_grid_reaches_the_students(images):
    detector = TransformalyDetector(tiny_extractor(), students=BlockStudents(max_epochs=1))
    detector.set_params(students__n_blocks=[-1], extractor__batch_size=3).fit(images)
    assert detector.students_.block_indices_.tolist() == [5]


# Several at a time


def fitted_on(images, n_jobs, **changes):
    settings = {"n_blocks": 5, "max_epochs": 2, "batch_size": 5, **changes}
    extractor = settings.pop("extractor", None) or tiny_extractor(precision="float32")
    return tiny_students(extractor=extractor, n_jobs=n_jobs, **settings).fit(images)


def assert_the_same_bits(one, other):
    assert one.history_ == other.history_
    for mine, theirs in zip(one.students_, other.students_):
        theirs = theirs.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.state_dict().items())


@pytest.fixture
def one_thread():
    """What each worker has on a machine with as many cores as workers."""
    with limited_threads(1):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["ram", "disk"])
def test_students_trained_in_processes_are_those_of_one_after_another(images, one_thread, storage):
    with parallel_config("loky", inner_max_num_threads=1):
        assert_the_same_bits(fitted_on(images, 2, storage=storage), fitted_on(images, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_blocks": [0, 3, 5]},
        {"extractor": tiny_extractor("eva02_tiny_patch14_224", image_size=28, precision="float32"), "n_blocks": 3},
        {"extractor": tiny_extractor("test_resnet", image_size=64, precision="float32"), "n_blocks": 3},
        {"extractor": tiny_extractor(precision="bfloat16"), "storage": "disk"},
    ],
    ids=["gaps", "rotary embeddings", "batch norm", "bfloat16"],
)
def test_students_trained_in_threads_are_those_of_one_after_another(images, one_thread, changes):
    with parallel_config("threading"):
        assert_the_same_bits(fitted_on(images, 2, **changes), fitted_on(images, 1, **changes))


def test_joblibs_configuration_says_how_many(images, one_thread, monkeypatch):
    called = []
    real = _block.train_in_waves
    monkeypatch.setattr(_block, "train_in_waves", lambda *args, **kwargs: called.append(1) or real(*args, **kwargs))
    fitted_on(images, None)
    assert not called
    with parallel_config("threading", n_jobs=3):
        fitted_on(images, None)
    assert called


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_no_more_layers_are_stored_than_students_are_trained(images, one_thread, monkeypatch, n_jobs):
    stored = []
    copy_layer, leave = _parallel._Store._copy, _parallel._Store.__exit__
    monkeypatch.setattr(_parallel._Store, "_copy", lambda self, t: stored.append(1) or copy_layer(self, t))
    monkeypatch.setattr(_parallel._Store, "__exit__", lambda self, *a: stored.append(0) or leave(self, *a))
    with parallel_config("threading"):
        fitted_on(images, n_jobs)
    waves = "".join(map(str, stored)).split("0")[:-1]
    assert [len(wave) for wave in waves] == {2: [3, 3, 2], 3: [4, 3]}[n_jobs]  # five blocks


def test_no_file_is_left(images, one_thread, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = []
    on_training(monkeypatch, lambda layer: found.extend(tmp_path.glob("skl_transformaly_*/*")))
    with parallel_config("threading"):
        fitted_on(images, 2, storage="disk")
        assert found and not list(tmp_path.iterdir())
        with pytest.raises(FloatingPointError):
            fitted_on(images, 2, storage="disk", lr=1e30, max_epochs=9)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_comes_back_from_a_process(images):
    with pytest.raises(FloatingPointError, match="block .*Lower lr"):
        fitted_on(images, 2, lr=1e30, max_epochs=9)


def test_workers_share_the_cores(images, monkeypatch):
    seen = []
    on_training(monkeypatch, lambda layer: seen.append(torch.get_num_threads()))
    with limited_threads(6), parallel_config("threading"):
        fitted_on(images, 3)
        assert torch.get_num_threads() == 6
    assert set(seen) == {2}


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 5000),
    epochs=st.integers(1, 40),
    batch=st.integers(1, 64),
    most=st.one_of(st.none(), st.integers(1, 2000)),
    data=st.data(),
)
def test_students_of_a_fold_take_as_many_steps_as_those_of_all_images(n, epochs, batch, most, data):
    """Else they would deviate more from the teacher than those that score new images."""
    fold = data.draw(st.integers(1, n))
    students = BlockStudents(max_epochs=epochs, batch_size=batch, max_steps=most, lr=1e-3, random_state=0)
    assert students.for_fold(n, fold)._settings().plan(fold)[1] == students._settings().plan(n)[1]
    changed = {**students.for_fold(n, fold).get_params(), "max_epochs": epochs, "max_steps": most}
    assert changed == students.get_params()


def test_held_out_discrepancies_are_of_students_that_took_as_many_steps(images, monkeypatch):
    steps = []
    train = _block.train_student

    def counted(student, layer, *rest, settings):
        steps.append(settings.plan(len(layer.outputs))[1])
        return train(student, layer, *rest, settings=settings)

    monkeypatch.setattr(_block, "train_student", counted)
    tiny_detector(students=tiny_students(max_epochs=3, batch_size=5)).fit(images)  # 12, and 8 of each fold
    assert steps == [9] * 2 * (1 + 3)


def test_the_detector_hands_its_n_jobs_to_students_without(images, one_thread):
    with parallel_config("threading"):
        detector = tiny_detector(n_jobs=2, students=tiny_students()).fit(images)
        own = tiny_detector(n_jobs=2, students=tiny_students(n_jobs=1)).fit(images)
    assert detector.students_.n_jobs == 2 and own.students_.n_jobs == 1
    alone = tiny_detector(students=tiny_students()).fit(images)
    np.testing.assert_array_equal(detector.score_samples(images), alone.score_samples(images))


def test_what_memory_has_is_not_trained_again(images, one_thread, monkeypatch, tmp_path):
    trained = []
    on_training(monkeypatch, lambda layer: trained.append(layer.index))

    def fit(n_jobs, n_blocks):
        with parallel_config("threading"):
            students = tiny_students(n_blocks=n_blocks)
            return tiny_paper(n_jobs=n_jobs, students=students, memory=str(tmp_path)).fit(images)

    fit(None, 2)
    more = fit(2, 4)
    assert sorted(trained) == [2, 3, 4, 5]
    fit(2, 4)
    assert len(trained) == 4
    np.testing.assert_array_equal(
        more.score_samples(images), tiny_paper(students=tiny_students(n_blocks=4)).fit(images).score_samples(images)
    )


def test_progress_of_several_at_a_time(images, one_thread, capsys):
    with parallel_config("threading"):
        fitted_on(images, 2, verbose=1)
    assert "10/10" in capsys.readouterr().err


def test_workers_need_no_network(images):
    extractor = tiny_extractor(precision="bfloat16").fit(images)
    light = _parallel._without_network(extractor, torch.device("cpu"))
    with light.compute():
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert light._teacher is None if hasattr(light, "_teacher") else True
    assert len(pickle.dumps(light)) < 10_000


def test_a_fit_that_stopped_in_the_middle_goes_on_after_its_last_wave(images, one_thread, monkeypatch, tmp_path):
    trained, stopping = [], [True]

    def notice(layer):
        if layer.index == 4 and stopping:
            raise KeyboardInterrupt
        trained.append(layer.index)

    on_training(monkeypatch, notice)
    with parallel_config("threading"):
        with pytest.raises(KeyboardInterrupt):
            fitted_on(images, 2, n_blocks=4, checkpoint=tmp_path)
        stopping.clear()
        trained += [None]
        students = fitted_on(images, 2, n_blocks=4, checkpoint=tmp_path)
    assert sorted(trained[: trained.index(None)])[:2] == [2, 3]
    assert sorted(trained[trained.index(None) + 1 :]) == [4, 5]
    assert_the_same_bits(students, fitted_on(images, 1, n_blocks=4))


# ----- float16


class _Scaled(nn.Module):
    """A linear map whose gradients on unit inputs are about as large as `size`."""

    def __init__(self, size):
        super().__init__()
        self.linear, self.size = nn.Linear(8, 8, bias=False), size

    def forward(self, x):
        return self.linear(x) * self.size


def _descent(size, precision=torch.float16):
    torch.manual_seed(0)
    student = _Scaled(size)
    inputs, targets = torch.ones(4, 3, 8), torch.zeros(4, 3, 8)
    layer = BlockActivations(index=0, inputs=inputs, outputs=targets, args=(), kwargs={})

    class Extractor:
        def compute(self):
            return torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)

    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    return Descent(Imitation(student, layer, Extractor()), optimizer), student


@pytest.mark.parametrize("size", [1e-3, 3e-4])
def test_tiny_gradients_survive_float16(size):
    """Gradients of 1e-7 to 1e-6, which are zero or a few bits in float16, are those of float32."""
    gradients = []
    for precision in (torch.float16, torch.float32):
        descent, student = _descent(size, precision)
        descent.step(np.arange(4), None)
        gradients.append(student.linear.weight.grad)
    largest = float(gradients[1].abs().max())
    assert 1e-9 < largest < 1e-6
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0.02, atol=0.01 * largest)


def test_a_step_whose_scaled_gradients_overflow_is_taken_with_a_lower_scale():
    descent, student = _descent(100.0)
    before = student.linear.weight.detach().clone()
    loss = descent.step(np.arange(4), None)
    assert torch.isfinite(loss) and torch.isfinite(student.linear.weight).all()
    assert not torch.equal(student.linear.weight, before)
    assert descent.scaler.get_scale() < 2**16


def test_a_loss_that_is_not_finite_ends_the_descent():
    descent, student = _descent(float("inf"))
    assert not torch.isfinite(descent.step(np.arange(4), None))


def test_students_train_in_float16(images):
    """As on a GPU without bfloat16: fit ends, and the loss falls."""
    students = tiny_students(max_epochs=6, extractor=tiny_extractor(precision="float16"), n_blocks=1).fit(images)
    (history,) = students.history_.values()
    assert history["loss"][-1] < history["loss"][0]


def test_each_epoch_takes_every_image_once_in_an_order_of_its_own(images, monkeypatch):
    batches = []
    step = _training.Descent.step

    def watched(self, batch, tokens):
        batches.append(batch.tolist())
        return step(self, batch, tokens)

    monkeypatch.setattr(_training.Descent, "step", watched)
    tiny_students(n_blocks=1, max_epochs=3, batch_size=5, extractor=tiny_extractor()).fit(images)
    epochs = [[row for batch in batches[start : start + 3] for row in batch] for start in (0, 3, 6)]
    assert len(batches) == 9
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("max_steps", "epochs"), [(None, [3, 3]), (6, [3, 3]), (5, [3, 2]), (3, [3]), (2, [2])])
def test_no_more_steps_are_taken_than_allowed(images, monkeypatch, max_steps, epochs):
    batches = []
    step = _training.Descent.step

    def watched(self, batch, tokens):
        loss = step(self, batch, tokens)
        batches.append((len(batch), float(loss)))
        return loss

    monkeypatch.setattr(_training.Descent, "step", watched)
    settings = {"n_blocks": 1, "max_epochs": 2, "batch_size": 5, "extractor": tiny_extractor()}
    students = tiny_students(max_steps=max_steps, **settings).fit(images)
    assert len(batches) == sum(epochs)
    (history,) = students.history_.values()
    taken = [batches[sum(epochs[:i]) : sum(epochs[: i + 1])] for i in range(len(epochs))]
    expected = [sum(n * loss for n, loss in batch) / sum(n for n, _ in batch) for batch in taken]
    assert history["loss"] == pytest.approx(expected)


def test_a_rate_that_falls_to_nothing_does_so_by_the_last_step_that_is_allowed(images):
    """As in a training of as many steps."""
    settings = {"n_blocks": 1, "batch_size": 4, "extractor": tiny_extractor()}
    short = tiny_students(max_epochs=9, max_steps=6, **settings).fit(images)
    same = tiny_students(max_epochs=2, **settings).fit(images)
    np.testing.assert_array_equal(short.transform(images), same.transform(images))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_layers_that_write_into_their_input_do_so_again_after_training(name):
    X = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    students = tiny_students(extractor=tiny_extractor(name, image_size=64)).fit(X)
    for index, student in zip(students.block_indices_, students.students_):
        teacher = students.extractor_.blocks_[index]
        inplace = [[getattr(m, "inplace", None) for m in block.modules()] for block in (student, teacher)]
        assert inplace[0] == inplace[1]
        assert True in inplace[0]
