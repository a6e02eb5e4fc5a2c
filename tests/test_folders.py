"""Folders: each file below one is an image, or is counted and told."""

import os
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from skl_transformaly.cli._files import find_files
from skl_transformaly.images._folders import list_images
from skl_transformaly.images._images import as_images


@pytest.fixture
def folder(tmp_path, images):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        Image.fromarray(images[i]).save(root / f"{i}.png")
    return root


def names(folder):
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_nothing_is_said_of_a_clean_folder(folder):
    (folder / ".DS_Store").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(folder) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("name", ["features.h5", "clip.mpg", "drawing.eps", "weather.grib", "notes.txt", "archive.zip"])
def test_files_that_cannot_be_decoded_are_passed_over_and_counted(folder, name):
    (folder / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / f"second_{name.upper()}").write_bytes(bytes(10))
    told = f"Passed over files below {str(folder)!r}: 2 .{name.split('.')[1]}."
    with pytest.warns(UserWarning, match=re.escape(told)):
        assert len(as_images(folder)) == 3
    assert find_files([str(folder)]).other == 2


def test_without_a_suffix_the_content_decides(folder, images):
    Image.fromarray(images[0]).save(folder / "photo", format="PNG")
    (folder / "README").write_text("no image")
    with pytest.warns(UserWarning, match="1 without a suffix"):
        assert names(folder) == ["0.png", "1.png", "2.png", "photo"]


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe")
    with pytest.warns(UserWarning, match="1 without a suffix"):
        assert len(as_images(folder)) == 3


def test_links_to_folders_are_followed_once(folder, tmp_path, images):
    (tmp_path / "store").mkdir()
    Image.fromarray(images[5]).save(tmp_path / "store" / "5.png")
    (folder / "linked").symlink_to(tmp_path / "store")
    (folder / "linked again").symlink_to(tmp_path / "store")
    (folder / "loop").symlink_to(folder)
    assert names(folder) == ["0.png", "1.png", "2.png", "linked/5.png"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(folder):
    (folder / "locked").mkdir(mode=0)
    with pytest.raises(ValueError, match=r"locked' cannot be listed: Permission denied"):
        as_images(folder)


def test_a_folder_that_cannot_be_listed_is_an_error_for_any_reason(folder, monkeypatch):
    def scandir(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="cannot be listed: Input/output error"):
        as_images(folder)


def test_photographs_of_phones_are_read_or_the_missing_package_is_named(folder, images, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(np.kron(images[0], np.ones((4, 4, 1), np.uint8))).save(folder / "phone.heic")
    assert names(folder) == ["0.png", "1.png", "2.png", "phone.heic"]
    assert as_images(folder)[3].shape == (80, 96, 3)
    monkeypatch.setattr("skl_transformaly.images._folders._image_suffixes", lambda: frozenset({".png"}))
    with pytest.warns(UserWarning, match=r"1 \.heic \(to read these, install pillow-heif\)"):
        assert len(as_images(folder)) == 3


def test_files_are_in_the_order_of_their_whole_paths(folder, images):
    for i, name in enumerate(("b/0.png", "a/9.png", "a/b/1.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(folder / name)
    assert names(folder) == ["0.png", "1.png", "2.png", "a/9.png", "a/b/1.png", "b/0.png"]
