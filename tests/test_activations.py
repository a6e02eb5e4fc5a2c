"""Layer by layer gives what hooks on a whole run give, in bounded memory, and leaves nothing behind."""

import gc
import os
import tempfile

import numpy as np
import pytest
import torch
from conftest import tiny_extractor, write_images
from test_extractor import FAMILIES, MeanExtractor

from skl_transformaly import TransformalyDetector
from skl_transformaly.images._images import as_images
from skl_transformaly.students import _activations
from skl_transformaly.students._activations import LayerWalk, _allocate, _first_two


@pytest.mark.parametrize("broken", [0, 1])
def test_two_readable_images_are_found_behind_one_that_cannot_be_read(tmp_path, images, broken):
    """With one alone, nothing shows that the arguments of a block change with the image."""
    write_images(tmp_path / "images", images[:6])
    paths = sorted(map(str, (tmp_path / "images").iterdir()))
    with open(paths[broken], "wb") as file:
        file.write(b"not an image")
    assert len(_first_two(as_images(paths, on_error="skip"))) == 2


def walk(images, extractor, indices, storage="ram"):
    layer = LayerWalk(as_images(images), extractor, storage)
    for index in indices:
        layer.move_to(index)
        yield layer.index, layer.inputs.clone(), layer.outputs.clone()


def hooked(images, extractor, indices):
    """The same by plain forward hooks over one run of the whole model."""
    seen = {}
    handles = [
        extractor.blocks_[i].register_forward_hook(
            lambda m, args, out, i=i: seen.__setitem__(i, (args[0].clone(), out))
        )
        for i in indices
    ]
    extractor.embed(extractor.preprocess(images))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name, size, kind, number", FAMILIES)
def test_activations_are_those_of_a_whole_run(name, size, kind, number, images):
    extractor = tiny_extractor(name, image_size=size, batch_size=5, precision="float32").fit(images)
    last = len(extractor.blocks_)
    indices = [last - 3, last - 1]
    expected = hooked(images, extractor, indices)
    for index, inputs, outputs in walk(images, extractor, indices):
        scale = float(expected[index][1].abs().max())
        np.testing.assert_allclose(inputs, expected[index][0], rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(outputs, expected[index][1], rtol=1e-3, atol=1e-4 * scale)


def test_blocks_with_something_between_them_are_run_from_the_images(images):
    extractor = Between().fit(images)
    layers = {index: (inputs, outputs) for index, inputs, outputs in walk(images, extractor, [0, 1])}
    np.testing.assert_allclose(layers[1][0], (layers[0][1] * 2 + 1).detach())


@pytest.mark.parametrize("storage, ram", [("disk", 2**30), ("auto", 0)])
def test_activations_on_disk_are_those_in_memory(storage, ram, images, monkeypatch):
    monkeypatch.setattr(_activations, "_RAM_BYTES", ram)
    extractor = tiny_extractor(batch_size=5).fit(images)
    for in_memory, on_disk in zip(walk(images, extractor, [2, 3, 5]), walk(images, extractor, [2, 3, 5], storage)):
        np.testing.assert_array_equal(in_memory[1], on_disk[1])
        np.testing.assert_array_equal(in_memory[2], on_disk[2])


def test_two_layers_serve_all_blocks(images):
    extractor = tiny_extractor().fit(images)
    places = set()
    layer = LayerWalk(as_images(images), extractor, "ram")
    for index in range(6):
        layer.move_to(index)
        places |= {layer.inputs.data_ptr(), layer.outputs.data_ptr()}
    assert len(places) == 2


class Between(MeanExtractor):
    """A teacher that does something between its blocks."""

    def embed(self, batch, visit=None):
        for index, block in enumerate(self.blocks_):
            output = block(batch)
            if visit is not None:
                visit(index, block, (batch,), {}, output)
            batch = output * 2 + 1
        return batch.mean(1)


def test_a_walk_can_go_back(images):
    extractor = tiny_extractor().fit(images)
    (_, *first), _, (_, *again) = walk(images, extractor, [2, 5, 2])
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "extractor", [tiny_extractor("test_convnext", image_size=64), tiny_extractor("test_vit"), Between()], ids=str
)
@pytest.mark.slow
def test_never_more_than_two_layers_are_alive(extractor, images, monkeypatch):
    """Counted at each allocation, over all tensors that the interpreter knows.

    Layers are known by a storage of odd size, since other tensors come to lie where a layer was.
    """
    made, most = [], 0

    def place(tensor):
        return tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()

    def allocate(*args):
        nonlocal most
        plain = _allocate(*args)
        room = torch.empty(plain.nbytes + 997, dtype=torch.uint8)
        tensor = room[: plain.nbytes].view(plain.dtype).view(plain.shape)
        made.append(place(tensor))
        del plain, room
        gc.collect()
        alive = {place(thing) for thing in gc.get_objects() if type(thing) is torch.Tensor} & set(made)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr("skl_transformaly.students._activations._allocate", allocate)
    extractor.fit(images)
    layer = LayerWalk(as_images(images), extractor, "ram")
    for index in range(len(extractor.blocks_)):
        layer.move_to(index)
        assert len(layer.inputs) == len(images)
    assert len(made) >= 2
    assert most == 2


def test_a_temporary_file_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensor = _allocate(10, torch.zeros(1, 3), to_disk=True)
    tensor[:] = 1
    assert os.name != "posix" or not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="files there have no holes unless they are asked for")
def test_a_mapped_file_has_no_holes_where_the_system_cannot_reserve_room(tmp_path, monkeypatch):
    """As on macOS: a write into a hole of a full disk would kill the process."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(_activations, "_ZEROS", 10_000)
    with open(tmp_path / "mapped", "w+b") as file:
        mapped = _activations.map_file(file, 25_000)
        found = os.stat(file.fileno())
    assert mapped.shape == (25_000,) and found.st_size == 25_000 and found.st_blocks * 512 >= 25_000


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No room for .* MiB.*TMPDIR"):
        _allocate(10, torch.zeros(1, 3), to_disk=True)


class Misbehaving(MeanExtractor):
    """A teacher whose blocks break one rule."""

    def __init__(self, fault="none"):
        self.fault = fault

    def embed(self, batch, visit=None):
        order = [1, 0] if self.fault == "order" else [0, 1]
        for index in order:
            output = self.blocks_[index](batch)
            if self.fault == "in place" and index == 1:
                batch += 1
            if visit is not None:
                extra = (batch.mean(),) if self.fault == "arguments" else ()
                visit(index, self.blocks_[index], (batch, *extra), {}, (output,) if self.fault == "tuple" else output)
            batch = output
        return batch.mean(1)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("order", "run in the order"),
        ("in place", "changes its input in place"),
        ("arguments", "change with the image"),
        ("tuple", "one tensor into one tensor"),
    ],
)
def test_blocks_that_cannot_be_imitated_are_refused(fault, message, images):
    with torch.no_grad(), pytest.raises(TypeError, match=message):
        TransformalyDetector(Misbehaving(fault)).fit(images)
