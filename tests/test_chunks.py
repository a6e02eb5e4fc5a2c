import numpy as np
import pytest
import torch
from conftest import tiny_extractor, tiny_students

from skl_transformaly import BlockStudents
from skl_transformaly.utils._chunks import Chunks


def fits(most):
    """A function that takes at most so many at a time, and the sizes that it was called with."""
    sizes = []

    def function(part):
        sizes.append(len(part))
        if len(part) > most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return part * 2

    return function, sizes


def test_without_failure_nothing_is_divided():
    function, sizes = fits(100)
    (result,) = Chunks("testing")(function, np.arange(10))
    assert sizes == [10] and result.tolist() == list(range(0, 20, 2))


@pytest.mark.parametrize("n, most, size", [(10, 5, 5), (10, 4, 2), (7, 3, 3), (9, 1, 1)])
def test_parts_are_halved_until_they_fit_and_are_all_there(n, most, size):
    chunks = Chunks("testing")
    function, _ = fits(most)
    with pytest.warns(UserWarning, match="Out of memory while testing"):
        parts = chunks(function, np.arange(n))
    assert chunks.size == size
    np.testing.assert_array_equal(np.concatenate(parts), 2 * np.arange(n))


def test_the_next_batch_is_not_tried_whole():
    chunks = Chunks("testing")
    function, sizes = fits(5)
    with pytest.warns(UserWarning, match="going on with 5"):
        chunks(function, np.arange(10))
    del sizes[:]
    chunks(function, np.arange(10))
    assert sizes == [5, 5]


def test_one_image_that_does_not_fit_is_an_error():
    function, _ = fits(0)
    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(torch.cuda.OutOfMemoryError):
        Chunks("testing")(function, np.arange(2))


def out_of_memory_above(extractor, most):
    """Let the fitted extractor's blocks run out of memory on more than so many images."""

    def check(block, args):
        if len(args[0]) > most:
            raise torch.cuda.OutOfMemoryError("out of memory")

    for block in extractor.blocks_:
        block.register_forward_pre_hook(check)
    fresh = extractor.new_blocks

    def new_blocks(seed):
        blocks = fresh(seed)
        for block in blocks:
            block.register_forward_pre_hook(check)
        return blocks

    extractor.new_blocks = new_blocks
    return extractor


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_students_trained_in_parts_are_those_trained_whole(images):
    whole = tiny_students(max_epochs=2).fit(images, extractor=tiny_extractor(image_size=64).fit(images))
    # an extractor of its own, since those of equal parameters share a teacher
    scarce = out_of_memory_above(tiny_extractor(image_size=64, batch_size=8, interpolation="bicubic").fit(images), 3)
    for block in whole.extractor_.blocks_:
        block._forward_pre_hooks.clear()
    parts = tiny_students(max_epochs=2).fit(images, extractor=scarce)
    assert isinstance(parts, BlockStudents)
    for index, history in whole.history_.items():
        np.testing.assert_allclose(parts.history_[index]["loss"], history["loss"], rtol=1e-9)


@pytest.mark.parametrize("n, bound, sizes", [(10, 4, [4, 4, 2]), (32, 27, [16, 16]), (3, 27, [3])])
def test_parts_within_a_bound_are_as_equal_as_can_be(n, bound, sizes):
    function, seen = fits(100)
    parts = Chunks("testing", bound)(function, np.arange(n))
    assert seen == sizes
    np.testing.assert_array_equal(np.concatenate(parts), 2 * np.arange(n))


def test_a_teacher_runs_on_so_many_images_as_its_largest_layer_allows(images, monkeypatch):
    from skl_transformaly.teacher import _extractor

    extractor = tiny_extractor(image_size=64, precision="float32").fit(images)
    monkeypatch.setattr(_extractor, "REUSED_BYTES", 1)
    assert extractor.chunk_size_ == 1
    sizes = []
    extractor.blocks_[0].register_forward_hook(lambda block, args, output: sizes.append(len(output)))
    one_by_one = extractor.transform(images)
    assert sizes[-len(images) :] == [1] * len(images)
    monkeypatch.undo()
    np.testing.assert_allclose(one_by_one, extractor.transform(images), rtol=1e-4, atol=1e-5)


def test_chunk_size_is_that_of_the_largest_output_of_any_layer(images):
    from skl_transformaly.teacher._extractor import REUSED_BYTES

    extractor = tiny_extractor(image_size=64, precision="float32").fit(images)
    sizes = []

    def note(module, args, output):
        if isinstance(output, torch.Tensor):
            sizes.append(output[:1].numel() * 4)

    handles = [module.register_forward_hook(note) for module in extractor.teacher_.model.modules()]
    extractor.transform(images[:1])
    for handle in handles:
        handle.remove()
    assert extractor.chunk_size_ == REUSED_BYTES // max(sizes)
