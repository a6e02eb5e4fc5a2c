"""Files: absolute paths are those that `open` opens, and files are replaced whole, as private as before."""

import os
import stat
import threading

import pytest

from skl_transformaly.utils._files import absolute_path, replacing


@pytest.fixture
def places(tmp_path, monkeypatch):
    """``link`` leads to ``other/deep``, so that ``link/..`` is ``other``; each folder has files of its own."""
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "link").symlink_to("other/deep")
    for name in ("a", "plain/a", "other/a", "other/deep/a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "other" / "short").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PATHS = ["a", "./a", "plain/../a", "plain/..//plain/a", "link/a", "link/../a", "link/../deep/../a", "link/../short"]


@pytest.mark.parametrize("path", PATHS)
def test_an_absolute_path_leads_to_the_same_file(places, path):
    whole = absolute_path(path)
    assert os.path.isabs(whole) and ".." not in whole.split(os.sep)
    assert os.path.samefile(whole, path)


@pytest.mark.parametrize("path, expected", [("link/..", "other"), ("link/../", "other"), ("plain/..", "")])
def test_so_does_that_of_a_folder(places, path, expected):
    assert absolute_path(path) == str(places / expected).rstrip(os.sep)


def test_links_and_their_names_are_kept_where_nothing_else_is_needed(places):
    assert absolute_path("link/a") == str(places / "link" / "a")
    assert absolute_path("link/../short") == str(places / "other" / "short")
    assert absolute_path("plain/../gone") == str(places / "gone")


def write(path, content):
    with replacing(path) as file:
        file.write(content)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="named pipes of POSIX")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path, b"new")
    reader.join(10)
    assert got == [b"new"] and stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(OSError, match="was not saved"):
        write(tmp_path, b"new")
    assert tmp_path.is_dir()
