"""Students in closed form: what they are, that batches do not matter, and that an image is left out exactly."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor, tiny_students
from sklearn.base import clone
from test_chunks import out_of_memory_above
from test_extractor import FAMILIES

from skl_transformaly import RidgeStudents, save
from skl_transformaly.images._images import as_images
from skl_transformaly.students import _regression, _residuals, _ridge
from skl_transformaly.students._regression import Layout
from skl_transformaly.utils._cache import Cache

CONVOLUTIONS = [("test_efficientnet", 64), ("test_convnext", 64)]


def activations(extractor, X, index):
    """What block `index` gets and gives."""
    found = {}

    def visit(i, block, args, kwargs, output):
        if i == index:
            found["x"], found["output"] = args[0], output

    extractor.embed(extractor.preprocess(X), visit)
    return found["x"], found["output"]


def regression(extractor, X, index):
    """Features of each place with class token, mean and 1 beside them, and targets, by image; in numpy alone."""
    x, output = (tensor.numpy() for tensor in activations(extractor, X, index))
    context = np.concatenate([x[:, 0], x[:, 1:].mean(axis=1), np.ones((len(x), 1))], axis=1)
    H = np.concatenate([x, np.repeat(context[:, None], x.shape[1], axis=1)], axis=2)
    return H, output - x


def solve(H, Y, penalty):
    rows, targets = H.reshape(-1, H.shape[2]), Y.reshape(-1, Y.shape[2])
    return np.linalg.solve(rows.T @ rows + np.diag(penalty), rows.T @ targets)


def penalty_of(H, ridge):
    rows = H.reshape(-1, H.shape[2])
    variance, local = rows.var(axis=0), rows.shape[1] - (rows.shape[1] - 1) // 3 * 2 - 1
    for group in (variance[:local], variance[local:-1]):
        group[:] = np.maximum(group, 0.01 * np.median(group))
    penalty = ridge * len(rows) * variance
    penalty[-1] = 0
    return penalty


def test_a_student_is_the_ridge_regression_of_what_its_block_adds(images, rng):
    extractor = tiny_extractor(image_size=64).fit(images)
    students = RidgeStudents(n_blocks=[4], ridge=0.03).fit(images, extractor=extractor)
    H, Y = regression(extractor, images, 4)
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    H_new, Y_new = regression(extractor, new, 4)
    residual = H_new @ solve(H, Y, penalty_of(H, 0.03)) - Y_new
    np.testing.assert_allclose(students.transform(new)[:, 0], (residual**2).mean(axis=(1, 2)), rtol=1e-5)


def test_updates_are_mean_squares_of_what_blocks_add(images):
    extractor = tiny_extractor(image_size=64).fit(images)
    students = RidgeStudents(n_blocks=[2, 4]).fit(images, extractor=extractor)
    assert students.measures_ == ("discrepancy", "update")
    for j, index in enumerate([2, 4]):
        x, output = (tensor.numpy() for tensor in activations(extractor, images, index))
        np.testing.assert_allclose(
            students.transform(images)[:, 2 + j], ((output - x) ** 2).mean(axis=(1, 2)), rtol=1e-5
        )


def test_without_updates_there_are_discrepancies_alone(images):
    with_updates = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(images)
    without = RidgeStudents(n_blocks=2, updates=False, extractor=tiny_extractor()).fit(images)
    assert without.measures_ == ("discrepancy",)
    np.testing.assert_array_equal(without.held_out_discrepancies_, with_updates.held_out_discrepancies_[:, :2])


@pytest.mark.parametrize("name, size", [("test_vit", 64), *CONVOLUTIONS])
@pytest.mark.parametrize("copies", [1, 4, 20])
def test_copies_have_the_same_measures_whatever_batch_they_are_in(images, name, size, copies):
    X = np.concatenate([images, np.repeat(images[:1], copies, axis=0)])
    extractor = tiny_extractor(name, image_size=size, batch_size=5, precision="float32")
    students = RidgeStudents(extractor=extractor).fit(X)
    for measures in (students.training_discrepancies_, students.held_out_discrepancies_):
        assert len(np.unique(np.vstack([measures[:1], measures[len(images) :]]), axis=0)) == 1


@pytest.mark.parametrize("copies", [0, 2])
def test_an_image_is_left_out_as_if_it_had_not_been_there(images, copies):
    """With its copies, and with the penalty of all images."""
    X = np.concatenate([images, np.repeat(images[:1], copies, axis=0)])
    extractor = tiny_extractor(image_size=64).fit(X)
    students = RidgeStudents(n_blocks=[4], ridge=0.03, extractor=tiny_extractor(image_size=64)).fit(X)
    H, Y = regression(extractor, X, 4)
    penalty = penalty_of(H, 0.03)
    for i in (0, 5):
        others = [j for j in range(len(X)) if not (X[j] == X[i]).all()]
        residual = H[i] @ solve(H[others], Y[others], penalty) - Y[i]
        assert students.held_out_discrepancies_[i, 0] == pytest.approx((residual**2).mean(), rel=1e-3)


def test_leaving_out_in_float32_agrees_with_float64(rng):
    X = rng.integers(0, 256, (100, 24, 24, 3), dtype=np.uint8)
    exact, single = (
        RidgeStudents(n_blocks=2, extractor=tiny_extractor(precision=precision)).fit(X).held_out_discrepancies_
        for precision in ("float64", "float32")
    )
    np.testing.assert_allclose(single, exact, rtol=1e-3)


@pytest.mark.parametrize("width", [1, 191, 192, 193, 401])
def test_symmetric_products_by_blocks_are_the_whole_product(width, rng):
    rows = rng.normal(size=(50, width)).astype(np.float32)
    found = _regression._gram(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, rows.T.astype(float) @ rows, atol=1e-4)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_residuals_are_predictions_less_outputs(tokens, residual, rng):
    shape = (3, 10, 8) if tokens else (3, 8, 4, 5)
    x, output = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    layout = Layout(tokens, int(tokens), False, residual, 1 if tokens else 3)
    features, context = (8, 17) if tokens else (72, 9)
    student = _regression.RidgeStudent(layout, rng.normal(size=(8, features)), rng.normal(size=(8, context)), (4, 5))
    before = x.clone(), output.clone()
    np.testing.assert_allclose(student.residual(x, output), student(x) - output, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before[0]) and torch.equal(output, before[1])


def test_solving_leaves_targets_as_they_are(rng):
    """Also those of one column, which are turned without a copy."""
    for columns in (1, 3):
        targets = torch.from_numpy(rng.normal(size=(2, 4, columns)).astype(np.float32))
        before = targets.clone()
        systems = torch.stack([2 * torch.eye(4)] * 2)
        torch.testing.assert_close(_regression._solve_each(systems, targets), before / 2)
        assert torch.equal(targets, before)


def test_residuals_for_maps_do_not_hold_their_batch(images):
    students = RidgeStudents(n_blocks=2).fit(images, extractor=tiny_extractor(image_size=64).fit(images))
    checked = students._check_images(images, reset=False)
    measured = students.measure_part(checked, np.ones(12, int), np.array([3, 7]))
    for by_position in measured.residuals:
        assert sorted(by_position) == [3, 7]
        assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in by_position.values())


@pytest.mark.parametrize("least", [0.5, 1e-3, 1e-5, -0.1])
def test_systems_with_small_pivots_are_solved_as_in_float64(least, rng):
    """An image that alone decides some coefficients: in float32, its residuals would be wrong by 1e-7 / least."""
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    system = ((basis * [least, 1, 1, 1, 1, 1]) @ basis.T).astype(np.float32)
    target = rng.normal(size=(6, 2)).astype(np.float32)
    expected = np.linalg.solve(system.astype(np.float64), target)
    found = _regression._solve_each(*(torch.from_numpy(part)[None] for part in (system, target)))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_accelerator_solves_what_is_easy_and_leaves_the_rest_to_lapack(rng, monkeypatch):
    mixed = rng.normal(size=(3, 12, 12)) / 8
    systems = (np.eye(12) - 0.5 * mixed @ mixed.transpose(0, 2, 1)).astype(np.float32)
    alone = rng.normal(size=12)
    alone /= np.linalg.norm(alone)
    systems[1] = np.eye(12) - (1 - 1e-5) * np.outer(alone, alone)
    targets = rng.normal(size=(3, 12, 4)).astype(np.float32)
    given, lapack = [], _regression._solve_each
    monkeypatch.setattr(_regression, "_solve_each", lambda a, b: (given.append(len(a)), lapack(a, b))[1])
    expected = np.linalg.solve(systems.astype(np.float64), targets)
    found = _regression._solve_together(torch.from_numpy(systems.copy()), torch.from_numpy(targets)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert given == [1]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name, size", [("test_vit", 32), *CONVOLUTIONS])
@pytest.mark.slow
def test_copies_that_differ_a_little_are_left_out_together(name, size, precision):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 248, (40, 24, 24, 3), dtype=np.uint8)
    X = np.concatenate([X, X[:5] + rng.integers(0, 8, (5, 24, 24, 3), dtype=np.uint8)])
    groups = np.r_[np.arange(40), np.arange(5)]
    extractor = tiny_extractor(name, image_size=size, precision=precision).fit(X)
    students = RidgeStudents(n_blocks=[0])
    images = as_images(X)
    students._fit(images, extractor, Cache(None))
    students.measure_training(images, groups=groups)
    for group in (0, 4):
        rest = RidgeStudents(n_blocks=[0], extractor=extractor).fit(X[groups != group])
        expected = rest.transform(X[groups == group])
        # the penalty is in units of the features' variance over all images
        np.testing.assert_allclose(students.held_out_discrepancies_[groups == group], expected, rtol=0.05)


@pytest.mark.parametrize("solved", [True, False])
def test_fewer_images_are_kept_for_maps_of_large_outputs(solved, monkeypatch, images):
    """No fewer than eight, over all images; residuals of 32 images of a ViT-L at 518 pixels are 1.7 GB."""
    seen = []
    monkeypatch.setattr(_residuals, "_MAP_BYTES", 9 * 5 * 64 * 4)  # nine images' outputs, 5 tokens of 64 channels
    fit = _residuals.ResidualStatistics.fit
    monkeypatch.setattr(
        _residuals.ResidualStatistics, "fit", lambda residuals: seen.append(len(residuals)) or fit(residuals)
    )
    students = RidgeStudents(n_blocks=2) if solved else tiny_students()
    tiny_detector(students=students).fit(images)
    assert max(seen) == 9  # students of folds have fewer images
    monkeypatch.setattr(_residuals, "_MAP_BYTES", 1)
    seen.clear()
    tiny_detector(students=clone(students)).fit(images)
    assert max(seen) == 8


@pytest.mark.parametrize("name, block", [("resnet18", 3), ("test_resnet", 3)])
def test_features_that_few_images_activate_are_left_out_with_these(name, block):
    X = np.random.default_rng(3).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    extractor = tiny_extractor(name, image_size=64, precision="float64").fit(X)
    whole = RidgeStudents(n_blocks=[block], extractor=extractor, updates=False).fit(X)
    for i in range(4):
        without = RidgeStudents(n_blocks=[block], extractor=extractor, updates=False).fit(np.delete(X, i, axis=0))
        expected = without.transform(X[i : i + 1])[0]
        # but that the units of the features are those of all images
        np.testing.assert_allclose(whole.held_out_discrepancies_[i], expected, rtol=0.1)


def test_the_penalty_is_in_units_of_what_varies():
    variance, squares = torch.tensor([4.0, 1.0, 9.0, 1e-3, 1e-20, 0.0]).double(), torch.ones(6).double()
    found = _regression._penalty_scale(variance, squares).numpy()  # of what varies, the median is 2.5
    np.testing.assert_allclose(found**-2, [4, 1, 9, 0.025, 0.025, 0.025])
    constant = _regression._penalty_scale(torch.zeros(3), torch.ones(3))
    assert constant.tolist() == [1, 1, 1]


def test_a_fit_forgets_what_an_earlier_one_measured(images):
    students = RidgeStudents(n_blocks=1, extractor=tiny_extractor()).fit(images)
    students.fit(images[:5], extractor=tiny_extractor().fit(images))
    assert not hasattr(students, "held_out_discrepancies_") and not hasattr(students, "training_discrepancies_")


@pytest.mark.parametrize("name, size", CONVOLUTIONS)
def test_all_places_of_a_map_are_left_out_with_their_image(name, size):
    """Those that are not in the sums, too; against students that were solved without it, with hardly any penalty."""
    X = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    X = np.concatenate([X, X[:1]])
    settings = {"n_blocks": [0], "ridge": 1e-9, "extractor": tiny_extractor(name, image_size=size)}
    students = RidgeStudents(**settings).fit(X)
    for i, others in ((0, slice(1, 40)), (5, [j for j in range(41) if j != 5])):
        expected = RidgeStudents(**settings).fit(X[others]).transform(X[i : i + 1])[0]
        assert students.held_out_discrepancies_[i] == pytest.approx(expected, rel=1e-3)


def test_sums_do_not_depend_on_batches_or_order(images):
    expected = RidgeStudents(n_blocks=3, extractor=tiny_extractor(batch_size=12)).fit(images)
    for batch_size, order in ((1, np.arange(12)), (5, np.arange(12)[::-1])):
        students = RidgeStudents(n_blocks=3, extractor=tiny_extractor(batch_size=batch_size)).fit(images[order])
        np.testing.assert_allclose(students.held_out_discrepancies_, expected.held_out_discrepancies_[order], rtol=1e-4)
        np.testing.assert_allclose(students.transform(255 - images), expected.transform(255 - images), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_no_image_counts_twice_where_memory_runs_out(images):
    whole = RidgeStudents(n_blocks=3, extractor=tiny_extractor(image_size=64)).fit(images)
    scarce = out_of_memory_above(tiny_extractor(image_size=64, batch_size=8).fit(images), 3)
    parts = RidgeStudents(n_blocks=3).fit(images, extractor=scarce)
    parts.measure_training(parts._check_images(images, reset=False))
    np.testing.assert_allclose(parts.held_out_discrepancies_, whole.held_out_discrepancies_, rtol=1e-4)
    np.testing.assert_allclose(parts.residuals_[0].mean, whole.residuals_[0].mean, atol=1e-5)


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
@pytest.mark.slow
def test_every_family_can_be_imitated(name, size, kind, number, images):
    extractor = tiny_extractor(name, image_size=size, precision="float32")
    students = RidgeStudents(n_blocks=None, extractor=extractor).fit(images)
    measured = students.transform(images[:2])
    assert measured.shape == (2, 2 * len(students.extractor_.blocks_))
    assert np.isfinite(students.held_out_discrepancies_).all()
    for j, index in enumerate(students.block_indices_.tolist()):
        x, output = activations(students.extractor_, images[:2], index)
        predicted = students.students_[j](x)
        assert predicted.shape == output.shape


def test_channels_are_found_by_their_place_in_memory_not_by_their_number():
    """Maps of 8 x 8 places and 8 channels have one shape in either layout."""

    class NHWC:
        @staticmethod
        def to_maps(x):
            return x.permute(0, 3, 1, 2)

    class NCHW:
        @staticmethod
        def to_maps(x):
            return x

    x = torch.zeros(2, 8, 8, 8)
    assert Layout.of(x, x, NHWC()).channels_last and not Layout.of(x, x, NCHW()).channels_last


def test_a_block_that_varies_little_around_large_values_is_solved(images):
    """Products of float32 would drown the variation, if they were not taken around a typical image."""
    X = (images // 64 + 120).astype(np.uint8)  # nearly grey
    students = RidgeStudents(n_blocks=None, extractor=tiny_extractor(precision="float32")).fit(X)
    assert np.isfinite(students.held_out_discrepancies_).all()
    assert (students.training_discrepancies_ <= students.held_out_discrepancies_).all()


def test_values_that_are_not_finite_are_an_error(images, monkeypatch):
    extractor = tiny_extractor().fit(images)
    embed = type(extractor).embed

    def broken(self, batch, visit=None):
        def spoil(index, block, args, kwargs, output):
            visit(index, block, args, kwargs, output * (torch.nan if index == 5 else 1))

        return embed(self, batch, spoil if visit is not None else None)

    monkeypatch.setattr(type(extractor), "embed", broken)
    with pytest.raises((FloatingPointError, TypeError)):
        RidgeStudents(n_blocks=2).fit(images, extractor=extractor)


def test_a_file_holds_coefficients_and_not_what_they_came_from(images, tmp_path):
    from conftest import tiny_detector

    detector = tiny_detector().fit(images)
    save(detector, tmp_path / "a.tfm", teacher=False)
    weights = sum(w.nbytes for w in (*detector.students_.local_weights_, *detector.students_.context_weights_))
    assert (tmp_path / "a.tfm").stat().st_size < weights + 400_000


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (4, 1, 7)])
def test_students_learn_in_parts_as_at_once(images, sizes):
    students, start = RidgeStudents(n_blocks=2, extractor=tiny_extractor()), 0
    for size in sizes:
        students.partial_fit(images[start : start + size])
        start += size
    whole = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(images)
    np.testing.assert_allclose(students.transform(images), whole.transform(images), rtol=1e-8)
    last = slice(12 - sizes[-1], None)
    np.testing.assert_allclose(students.held_out_discrepancies_, whole.held_out_discrepancies_[last], rtol=1e-6)


def test_training_images_are_measured_once(images):
    students = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(images)
    with pytest.raises(ValueError, match="fit anew"):
        students.measure_training(as_images(images))


def test_copies_of_images_of_an_earlier_part_are_left_out_with_these(images):
    again = np.concatenate([images, images[:2], images[5:6]])
    students = RidgeStudents(n_blocks=2, extractor=tiny_extractor())
    students.partial_fit(again[:8]).partial_fit(again[8:14]).partial_fit(again[14:])
    whole = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(again)
    np.testing.assert_allclose(students.held_out_discrepancies_, whole.held_out_discrepancies_[14:], rtol=1e-6)


def test_students_go_on_from_fit(images):
    again = np.concatenate([images, images[:2]])
    students = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(again[:6]).partial_fit(again[6:])
    whole = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).fit(again)
    np.testing.assert_allclose(students.transform(images), whole.transform(images), rtol=1e-8)
    np.testing.assert_allclose(students.held_out_discrepancies_, whole.held_out_discrepancies_[6:], rtol=1e-6)


def test_students_of_a_detector_keep_no_sums_to_go_on_with(fitted):
    with pytest.raises(ValueError, match="keep no sums"):
        copy.deepcopy(fitted[0].students_).partial_fit(fitted[1])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("side", "step"), [(5, 1), (21, 3)])
def test_rows_of_maps_are_places_with_their_neighbourhoods(channels_last, side, step):
    rng = np.random.default_rng(0)
    x, output = (rng.normal(size=(2, side, side, 3)).astype(np.float32) for _ in range(2))
    order = (0, 1, 2, 3) if channels_last else (0, 3, 1, 2)
    layout = Layout(tokens=False, prefix=0, channels_last=channels_last, residual=True, kernel=3)
    local, context, target = (
        part.numpy() for part in layout.rows(*(torch.from_numpy(a.transpose(order).copy()) for a in (x, output)))
    )
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(0, side, step) for j in range(0, side, step)]
    for row, (i, j) in enumerate(places):
        # channel by channel, each with its 3 x 3 places
        expected = padded[:, i : i + 3, j : j + 3].transpose(0, 3, 1, 2).reshape(2, -1)
        np.testing.assert_array_equal(local[:, row], expected)
        np.testing.assert_allclose(target[:, row], output[:, i, j] - x[:, i, j], rtol=1e-6)
    assert local.shape[1] == len(places)
    np.testing.assert_allclose(context, np.column_stack([x.mean((1, 2)), np.ones(2)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 95, 96, 97, 250])
@pytest.mark.parametrize("inverted", [_regression._inverted, _regression._inverted_by_torch])
def test_the_inverse_of_a_definite_matrix(size, inverted, rng):
    rows = rng.normal(size=(3 * size, size))
    matrix = rows.T @ rows
    found = inverted(torch.from_numpy(matrix.copy())).numpy()
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inverted", [_regression._inverted, _regression._inverted_by_torch])
def test_a_matrix_that_is_not_definite_is_an_error_that_names_the_ridge(inverted):
    with pytest.raises(np.linalg.LinAlgError, match="column 3.*ridge"):
        inverted(torch.tensor(np.diag([1.0, 2.0, -1.0, 4.0])))


def test_students_do_not_depend_on_how_many_blocks_are_solved_at_a_time(images, monkeypatch):
    threads = torch.get_num_threads()
    together = RidgeStudents(n_blocks=3, extractor=tiny_extractor()).fit(images)
    monkeypatch.setattr(_ridge, "_SOLVED_AT_ONCE", 1)
    alone = RidgeStudents(n_blocks=3, extractor=tiny_extractor()).fit(images)
    for one, other in zip(together.local_weights_, alone.local_weights_):
        np.testing.assert_array_equal(one, other)
    assert torch.get_num_threads() == threads


def test_sums_travel_as_arrays_of_the_cpu(images):
    """Those of a worker's GPU are added up on machines that have none."""
    students = RidgeStudents(n_blocks=2, extractor=tiny_extractor()).partial_fit(images)
    sums = students._sums[students.block_indices_[0]]
    state = sums.__getstate__()
    assert all(isinstance(part, np.ndarray) for part in [*state["parts"], *state["origin"]])
    loaded = pickle.loads(pickle.dumps(sums))
    for one, other in zip([*loaded.parts, *loaded.origin], [*sums.parts, *sums.origin], strict=True):
        assert torch.equal(one, other)
    total = loaded.copy()
    total.add(sums.copy().parts)
    torch.testing.assert_close(total.parts[0], 2 * sums.parts[0])


@pytest.mark.parametrize("number", [2, 3, 6])
def test_few_images_are_left_out_as_exactly_as_in_double_precision(number, rng):
    # smooth images, whose tokens resemble each other: leverages are close to 1
    X = np.kron(rng.integers(0, 256, (number, 4, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    X = np.concatenate([X, np.roll(X[:1], 1, axis=1), X[:1]])
    single, double = (
        RidgeStudents(n_blocks=3, extractor=tiny_extractor(image_size=32, precision=precision)).fit(X)
        for precision in ("float32", "float64")
    )
    np.testing.assert_allclose(single.held_out_discrepancies_, double.held_out_discrepancies_, rtol=2e-3)


@pytest.mark.parametrize("changes", [{"ridge": -1.0}, {"updates": "no"}], ids=str)
def test_a_parameter_out_of_its_range_is_refused_when_learning(changes, images):
    with pytest.raises(ValueError, match=f"The '{next(iter(changes))}' parameter"):
        RidgeStudents(n_blocks=2, extractor=tiny_extractor(), **changes).partial_fit(images)


def test_blocks_that_merge_tokens_are_refused_in_words(images):
    """Such as the first one of the last stage of Hiera."""
    extractor = tiny_extractor("hiera_tiny_224", image_size=224, precision="float32")
    with pytest.raises(TypeError, match=r"turns 196 tokens into 49; .* feature_spaces=\"teacher\""):
        RidgeStudents(extractor=extractor, n_blocks=2).fit(images[:2])
    assert np.isfinite(RidgeStudents(extractor=extractor, n_blocks=1).fit(images[:2]).transform(images[:2])).all()
