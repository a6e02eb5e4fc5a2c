"""What the command does otherwise on Windows, as far as another system can tell."""

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from skl_transformaly.cli import _actions, _app, _console, _files, _scores, _watcher
from skl_transformaly.cli._actions import Hook
from skl_transformaly.cli._files import find_files, split_list
from skl_transformaly.cli._inputs import check_no_input
from skl_transformaly.cli._watch import _until_stopped


@contextlib.contextmanager
def windows():
    """Let this system pass for Windows; no paths can be made within."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "name", "nt")
        yield


# ----- commands that are called


@pytest.fixture
def on_path(monkeypatch):
    """Set where a command is found."""
    return lambda program: monkeypatch.setattr(shutil, "which", lambda name: program)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (r'"C:\My Tools\alarm.exe" --line 3', ["--line", "3"]),
        (r'alarm "a b" "" C:\new\t.txt', ["a b", "", r"C:\new\t.txt"]),
        (r"""alarm '{path}' "it's" """, ["{path}", "it's"]),
    ],
)
def test_arguments_are_what_is_in_the_quotes(on_path, target, arguments):
    on_path(r"C:\My Tools\alarm.exe")
    with windows():
        assert Hook(target).arguments == [r"C:\My Tools\alarm.exe", *arguments]


@pytest.mark.parametrize("suffix", [".cmd", ".BAT", ".py"])
def test_what_is_no_program_is_refused(on_path, suffix):
    on_path(rf"C:\tools\alarm{suffix}")
    with windows(), pytest.raises(ValueError, match="cannot start by itself. Name a program"):
        Hook("alarm")


def test_ctrl_c_is_kept_from_a_command(monkeypatch):
    given = []
    done = SimpleNamespace(communicate=lambda *a, **k: None, poll=lambda: 0, returncode=0)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda arguments, **options: given.append(options) or done)
    _actions._execute(["alarm"], b"")
    assert given[0]["creationflags"] == 512


# ----- links and listings


@pytest.mark.parametrize(
    ("read", "place"),
    [
        (r"\\?\C:\in\a.png", r"C:\in\a.png"),
        (r"\\?\UNC\server\share\a.png", r"\\server\share\a.png"),
        (r"..\a.png", r"..\a.png"),
    ],
)
def test_a_link_is_known_by_the_path_that_it_was_made_with(tmp_path, monkeypatch, read, place):
    (tmp_path / "link").symlink_to("a.png")
    monkeypatch.setattr(os, "readlink", lambda link: read)
    with windows():
        assert _actions._is_link_to(tmp_path / "link", place)


class Stale:
    """An entry of a folder that knows its file as it was when the folder was listed first."""

    known: dict = {}

    def __init__(self, entry):
        self.name, self.path, self.is_dir, self.is_file = entry.name, entry.path, entry.is_dir, entry.is_file
        self.status = self.known.setdefault(entry.path, entry.stat())

    def stat(self):
        return self.status


def test_a_file_that_grows_is_incomplete_though_its_listing_is_old(tmp_path, monkeypatch):
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext([Stale(entry) for entry in scandir(path)]))
    now = [0.0]
    arrivals = _watcher.Arrivals(tmp_path, settle=2.0, patience=60.0, clock=lambda: now[0])
    for size in range(1, 6):
        (tmp_path / "a.png").write_bytes(b"x" * size)
        assert arrivals.look(lambda path, state: False) == []
        now[0] += 1.0
    now[0] += 2.0
    assert arrivals.look(lambda path, state: False) == [str(tmp_path / "a.png")]


# ----- network drives


@pytest.fixture
def unnumbered(monkeypatch):
    """Let no file have a number."""
    stat = os.stat

    def without(path, *args, **options):
        found = stat(path, *args, **options)
        return os.stat_result((found[0], 0, *found[2:]), {"st_mtime_ns": found.st_mtime_ns})

    monkeypatch.setattr(os, "stat", without)


@pytest.mark.parametrize(
    "find",
    [
        lambda folder: find_files([str(folder)]).paths,
        lambda folder: find_files([f"{folder}/**/*.png"]).paths,
        lambda folder: [path for path, _ in _watcher.Arrivals(folder, settle=0, patience=0)._files(str(folder), set())],
    ],
)
def test_subfolders_of_a_drive_without_numbers_are_searched_each_once(tmp_path, unnumbered, find):
    names = ["a.png", "deep/b.png", "deep/er/c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "deep" / "er" / "back").symlink_to(tmp_path)
    assert sorted(find(tmp_path)) == [str(tmp_path / name) for name in names]


def test_a_file_of_a_drive_without_numbers_is_told_from_the_others(tmp_path, unnumbered):
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    check_no_input(tmp_path / "a", [tmp_path / "b"])
    with pytest.raises(_app.Mistake, match="would be lost"):
        check_no_input(tmp_path / "a", [tmp_path / "b", tmp_path / "." / "a"])


# ----- signals and streams


@pytest.fixture
def ctrl_break(monkeypatch):
    """Give SIGBREAK the number of another signal, and keep its handler."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGBREAK, signal.SIGTERM, signal.SIGHUP)}
    yield signal.SIGBREAK
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_break_stops_watching(ctrl_break):
    signal.signal(ctrl_break, signal.SIG_IGN)
    with _until_stopped() as stopped:
        signal.raise_signal(ctrl_break)
        assert stopped()
    assert signal.getsignal(ctrl_break) == signal.SIG_IGN


def test_ctrl_break_stops_a_command_as_ctrl_c_does(ctrl_break, monkeypatch):
    signal.signal(ctrl_break, signal.SIG_DFL)
    monkeypatch.setattr(_app, "app", lambda **options: None)
    _app.run()
    assert signal.getsignal(ctrl_break) == signal.getsignal(signal.SIGTERM) == _app._stop


def test_ctrl_break_does_not_kill_a_server_that_it_has_stopped(ctrl_break, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    from skl_transformaly.serving import _server
    from skl_transformaly.serving._limits import Limits

    signal.signal(ctrl_break, signal.SIG_DFL)
    handlers = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: handlers.append(signal.getsignal(ctrl_break)))
    limits = Limits(1, 1, 1, 1, 1.0, 1, held=1)
    _server.run(None, SimpleNamespace(close=lambda: None), limits)
    assert handlers == [_server._ignore]


def test_arguments_are_left_to_the_commands(monkeypatch):
    given = []
    monkeypatch.setattr(_app, "app", lambda **options: given.append(options))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    _app.run()
    assert given == [{"windows_expand_args": False}]


class Pipe(io.BytesIO):
    """A pipe, whose reader may be gone."""

    unread = False

    def write(self, content):
        if self.unread:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().write(content)


@pytest.mark.parametrize("closed", [True, False])
def test_an_invalid_argument_is_a_closed_pipe_where_stdout_says_so(monkeypatch, closed):
    pipe = Pipe()
    stdout = io.TextIOWrapper(io.BufferedWriter(pipe))
    monkeypatch.setattr(sys, "stdout", stdout)
    pipe.unread = closed
    with contextlib.suppress(OSError):
        print("a row", flush=True)
    with windows():
        assert _app._is_closed_pipe(OSError(errno.EINVAL, "Invalid argument")) == closed
        assert not _app._is_closed_pipe(OSError(errno.EINVAL, "Invalid argument", "a?.png"))
    assert not _app._is_closed_pipe(OSError(errno.EINVAL, "Invalid argument"))
    pipe.unread = False


# ----- texts


def test_a_command_to_paste_has_the_quotes_of_cmd():
    with windows():
        assert _console.command_line(["info", r"C:\my models\m.tfm", "a'b"]) == r"""info "C:\my models\m.tfm" a'b"""
        assert _app.in_options("weights='/a b/w.pth'") == '--weights "/a b/w.pth"'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp850"])
def test_a_list_of_paths_is_read_as_it_was_written(monkeypatch, encoding):
    monkeypatch.setattr(_files, "_CONSOLE", "cp850")
    with windows():
        assert split_list("Bär.png\r\nb.png\r\n".encode(encoding)) == ["Bär.png", "b.png"]


# ----- locks


@pytest.fixture
def locking(monkeypatch):
    """Let `_lock` find Windows's module, whose answer is an error."""

    def answer(number):
        def fail(*args):
            raise OSError(number, os.strerror(number))

        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=fail, LK_NBLCK=2))

    return answer


@pytest.mark.parametrize("number", [errno.EACCES, errno.EDEADLK])
def test_a_file_that_another_process_writes_is_refused(tmp_path, locking, number):
    locking(number)
    with open(tmp_path / "s.csv", "wb") as file, pytest.raises(BlockingIOError):
        _scores._lock(file)


def test_on_a_share_without_locks_a_file_is_written_with_a_warning(tmp_path, locking):
    locking(errno.EINVAL)
    with open(tmp_path / "s.csv", "wb") as file:
        with pytest.warns(UserWarning, match="cannot be locked"):
            _scores._lock(file)
        assert file.tell() == 0


def test_other_errors_of_a_lock_are_not_another_process(tmp_path, locking):
    locking(errno.EBADF)
    with open(tmp_path / "s.csv", "wb") as file, pytest.raises(OSError, match="Bad file") as caught:
        _scores._lock(file)
    assert not isinstance(caught.value, BlockingIOError)
