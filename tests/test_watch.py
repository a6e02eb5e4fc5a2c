"""A watched folder: every image is scored once when it is complete, whatever writes it and whatever stops watching."""

import contextlib
import csv
import errno
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from skl_transformaly.cli import _actions, _watch
from skl_transformaly.cli import _score as score_command
from skl_transformaly.cli._actions import Actions, Hook, Shelf
from skl_transformaly.cli._commands import app
from skl_transformaly.cli._console import Output
from skl_transformaly.cli._scores import COLUMNS, ScoreFile, ScoreFileError
from skl_transformaly.cli._watch import _check_links, _display, _state
from skl_transformaly.cli._watcher import Arrivals, Watcher

DARK, LIGHT = 20, 200


class Mean:
    """A detector that takes dark images as anomalies."""

    alpha = 0.05
    calibration_scores_ = np.linspace(150.0, 250.0, 101)

    def score_samples(self, X):
        return self.score_table(X)["score"]

    def score_table(self, X, score=None):
        score = np.full(len(X), np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for positions, pixels in X.batches(8):
                score[positions] = [image.mean() for image in pixels]
        prediction = np.where(score >= 100, 1, -1)
        return {"score": score, "decision": score - 100, "p_value": score / 256, "prediction": prediction}


def draw(path, grey=LIGHT, side=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), grey).save(path)
    return path


def encoded(tmp_path, grey=LIGHT, side=64):
    content = draw(tmp_path / "elsewhere" / "any.png", grey, side).read_bytes()
    return content


class Bench:
    """A watcher whose time is told by hand."""

    def __init__(self, tmp_path, *, shelf=None, hook=None, kind="jsonl", patience=60.0, model="0" * 64):
        self.folder, self.out = tmp_path / "in", tmp_path / f"scores.{kind}"
        self.folder.mkdir(exist_ok=True)
        self.now, self.stopped, self.warnings, self.rows, self.slept = 0.0, False, [], [], 0
        self.file = ScoreFile(self.out, resume=True, model=model)
        self.actions = Actions(
            tmp_path / "actions.jsonl",
            shelf,
            hook,
            warn=self.warnings.append,
            count=self.file.count,
            clock=lambda: self.now,
        )
        self.arrivals = Arrivals(
            self.folder,
            settle=2.0,
            patience=patience,
            excluded=[] if shelf is None else [shelf.folder],
            clock=lambda: self.now,
        )
        self.watcher = Watcher(
            Mean(),
            self.file,
            self.arrivals,
            self.actions,
            on_row=self.rows.append,
            warn=self.warnings.append,
            stopping=lambda: self.stopped,
        )
        self.watcher._sleep = self.sleep

    def sleep(self, seconds):
        self.slept += 1

    def pass_time(self, seconds, step=1.0):
        for _ in range(int(seconds / step)):
            self.watcher.step()
            self.now += step
        self.watcher.step()
        return self

    def written(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def names(self):
        return [os.path.relpath(row["path"], self.folder) for row in self.written()]

    def close(self):
        self.file.close()
        self.actions.close()


@pytest.fixture
def bench(tmp_path):
    opened = []

    def make(**settings):
        for one in opened:
            one.close()
        opened.append(Bench(tmp_path, **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


# ----- when a file is complete


def test_a_file_is_scored_when_it_has_not_changed_for_a_while(bench):
    watch = bench()
    draw(watch.folder / "a.png")
    watch.watcher.step()
    watch.now = 1.9
    watch.watcher.step()
    assert watch.rows == []
    watch.now = 2.0
    watch.watcher.step()
    assert [(Path(row["path"]).name, row["score"], row["prediction"]) for row in watch.rows] == [("a.png", LIGHT, 1)]
    watch.pass_time(10)
    assert watch.names() == ["a.png"]


def test_a_slow_writer_is_waited_for(bench, tmp_path):
    watch = bench()
    content = encoded(tmp_path, DARK)
    path = watch.folder / "slow.png"
    for end in range(10, len(content) + 10, 10):  # each step a little more, and once a pause
        path.write_bytes(content[:end])
        os.utime(path, ns=(end, end))
        watch.pass_time(8 if end == 50 else 1)
        assert watch.written() == [] or end >= len(content)
    watch.pass_time(3)
    assert [row["score"] for row in watch.written()] == [DARK] and watch.warnings == []


def test_what_stays_unreadable_is_written_down_and_scored_when_it_has_changed(bench, tmp_path):
    watch = bench(patience=10.0)
    path = watch.folder / "half.png"
    path.write_bytes(encoded(tmp_path)[:60])
    watch.pass_time(8)
    assert watch.written() == []
    watch.pass_time(5)
    assert [(row["score"], row["prediction"]) for row in watch.written()] == [(None, -1)]
    assert len(watch.warnings) == 1 and "half.png could not be read" in watch.warnings[0]
    watch.pass_time(30)
    draw(path)
    watch.pass_time(5)
    assert [row["score"] for row in watch.written()] == [None, LIGHT]


def test_a_file_that_is_renamed_into_place_counts_by_its_last_name(bench, tmp_path):
    watch = bench()
    content = encoded(tmp_path)
    for name in ("a.png.part", ".b.png"):
        (watch.folder / name).write_bytes(content)
    watch.pass_time(5)
    assert watch.rows == []
    (watch.folder / "a.png.part").rename(watch.folder / "a.png")
    (watch.folder / ".b.png").rename(watch.folder / "b.png")
    watch.pass_time(3)
    assert sorted(watch.names()) == ["a.png", "b.png"]


def test_an_image_in_place_of_another_gets_a_row_of_its_own(bench):
    watch = bench()
    for grey in (LIGHT, DARK, LIGHT + 1):
        draw(watch.folder / "latest.png", grey)
        watch.pass_time(3)
    assert [row["score"] for row in watch.written()] == [LIGHT, DARK, LIGHT + 1]


def test_what_changes_while_it_is_read_is_read_again(bench, monkeypatch):
    watch = bench()
    path = draw(watch.folder / "a.png")
    watch.watcher.step()
    watch.now = 2.0
    usual = Mean.score_table

    def slow(self, X, score=None):
        table = usual(self, X, score)
        monkeypatch.setattr(Mean, "score_table", usual)
        draw(path, DARK)
        return table

    monkeypatch.setattr(Mean, "score_table", slow)
    watch.watcher.step()
    assert watch.rows == []
    watch.pass_time(3)
    assert [row["score"] for row in watch.written()] == [DARK]


def test_folders_links_and_what_is_no_image(bench, tmp_path):
    watch = bench()
    draw(watch.folder / "deep" / "er" / "a.png")
    draw(watch.folder / ".hidden" / "b.png")
    (watch.folder / "notes.txt").write_text("x")
    (watch.folder / "README").write_text("x")
    Path(watch.folder / "without").write_bytes(encoded(tmp_path))
    (watch.folder / "deep" / "round").symlink_to(watch.folder)
    os.mkfifo(watch.folder / "pipe.png")
    watch.pass_time(5)
    assert sorted(watch.names()) == ["deep/er/a.png", "without"]


def test_a_flood_is_scored_once_each_in_the_order_of_arrival(bench):
    watch = bench()
    for i in range(1000):
        path = draw(watch.folder / f"{i % 7}" / f"{i}.bmp", 150 + i % 100)
        os.utime(path, ns=(10**9 * i, 10**9 * i))
    watch.pass_time(3)
    assert [int(Path(row["path"]).stem) for row in watch.written()] == list(range(1000))


def test_a_folder_that_goes_away_is_waited_for(bench):
    watch = bench()
    watch.folder.rename(watch.folder.with_name("away"))
    watch.pass_time(5)
    assert len(watch.warnings) == 1 and "Waiting for it" in watch.warnings[0]
    watch.folder.with_name("away").rename(watch.folder)
    draw(watch.folder / "a.png")
    watch.pass_time(3)
    assert watch.names() == ["a.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root lists any folder")
def test_a_folder_that_cannot_be_listed_keeps_nobody_waiting(bench):
    watch = bench()
    draw(watch.folder / "a.png")
    (watch.folder / "locked").mkdir(mode=0)
    watch.pass_time(5)
    assert watch.names() == ["a.png"] and len(watch.warnings) == 1


# ----- stopping, and starting again


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_new_start_goes_on(bench, kind):
    watch = bench(kind=kind)
    draw(watch.folder / "a.png")
    watch.pass_time(3)
    draw(watch.folder / "b.png")
    watch = bench(kind=kind).pass_time(3)
    lines = watch.out.read_text().splitlines()
    assert len(lines) == 2 + (kind == "csv")
    assert [Path(row["path"]).name for row in watch.rows] == ["b.png"]


def test_a_stop_ends_after_the_rows_of_what_was_scored(bench):
    watch = bench()
    for i in range(100):
        draw(watch.folder / f"{i}.png")
    watch.watcher.step()
    watch.now = 5.0
    watch.watcher._on_row = lambda row: setattr(watch, "stopped", True)
    watch.watcher.step()
    assert 0 < len(watch.written()) < 100
    bench().pass_time(3)
    assert len(set(watch.names())) == len(watch.names()) == 100


class Bursting:
    """A file on a disk that is full after so many bytes, in the middle of a line, until it is emptied."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(content)[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(rows=st.integers(0, 600), ledger=st.integers(0, 600), actions=st.integers(0, 600))
def test_a_full_disk_loses_nothing(tmp_path_factory, rows, ledger, actions):
    folder = tmp_path_factory.mktemp("full")
    watch = Bench(folder, shelf=Shelf(folder / "out", folder / "in"))
    with contextlib.closing(watch):
        draw(watch.folder / "first.png", DARK)
        watch.pass_time(3)  # all files are open now
        full = [Bursting(watch.file._file, rows), Bursting(watch.file._ledger._file, ledger)]
        full.append(Bursting(watch.actions._file, actions))
        watch.file._file, watch.file._ledger._file, watch.actions._file = full
        for i in range(6):
            draw(watch.folder / f"{i}.png", DARK + i)

        def make_room(seconds):
            watch.slept += 1
            if watch.slept == 3:
                for file in full:
                    file.room = 10**9

        watch.watcher._sleep = make_room
        watch.pass_time(3)
        for file in full:
            file.room = 10**9
        watch.pass_time(130)
        assert sorted(watch.names()) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "first.png"]
        assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(watch.names())
    again = Bench(folder, shelf=Shelf(folder / "out", folder / "in"))
    with contextlib.closing(again):
        again.pass_time(5)
        assert again.rows == [] and again.actions.waiting == 0


def test_a_stop_on_a_full_disk_ends(bench):
    watch = bench()
    draw(watch.folder / "a.png")
    watch.watcher.step()
    watch.now = 3.0
    usual, watch.file._file = watch.file._file, Bursting(watch.file._file, 20)
    watch.watcher._sleep = lambda seconds: setattr(watch, "stopped", True)
    watch.watcher.step()
    watch.file._file = usual
    assert watch.written() == [] and "nothing is lost" in watch.warnings[0]
    assert bench().pass_time(3).names() == ["a.png"]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_killed_between_any_two_writes_nothing_is_lost_and_nothing_twice(tmp_path_factory, data):
    """Files are replaced and moved, and the program is killed in a write, which may be half done."""
    folder = tmp_path_factory.mktemp("killed")
    told = []

    def shelf():
        return Shelf(folder / "out", folder / "in") if move else None

    class Killed(BaseException):
        pass

    class Deadly(Bursting):
        def write(self, content):
            nonlocal left
            left -= 1
            if left < 0:
                self.file.write(bytes(content)[: int(len(content) * share)])
                raise Killed
            return self.file.write(content)

        def truncate(self, *size):
            raise OSError  # who is killed does not clean up

    move, share = data.draw(st.booleans()), data.draw(st.floats(0, 1))
    expected = []
    for round_ in range(3):
        for name in data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)):
            grey = data.draw(st.sampled_from([DARK, LIGHT])) + round_
            expected.append((name, grey))
            # a file of another time of change, whatever the clock of the file system
            path = draw(folder / "in" / f"{name}.png", grey)
            os.utime(path, ns=(len(expected), len(expected)))
        left = data.draw(st.integers(0, 12))
        for attempt in range(2):
            watch = Bench(folder, shelf=shelf(), hook=lambda row: told.append((row["path"], row["score"])))
            with contextlib.suppress(Killed):
                if attempt == 0:
                    watch.file._file = Deadly(watch.file._file, 0)
                    for part in (watch.file._ledger, watch.actions):

                        def start(part=part, usual=part._start):
                            usual()
                            part._file = Deadly(part._file, 0)

                        part._start = start
                watch.pass_time(3)
            for part in (watch.file, watch.file._ledger, watch.actions):
                if part._file is not None:
                    part._file.close()
    names = [(Path(row["path"]).stem, row["score"]) for row in watch.written()]
    assert sorted(names) == sorted(expected)
    dark = sorted((name, grey) for name, grey in expected if grey < 100)
    assert sorted({(Path(path).stem, score) for path, score in told}) == dark
    if move:
        assert len(list((folder / "out").glob("*"))) == len(dark)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_watch import Bench, Path
from skl_transformaly.cli._actions import Shelf
folder = Path({folder!r})
watch = Bench(folder, shelf=Shelf(folder / "out", folder / "in"))
watch.arrivals.settle = 0.05
watch.arrivals._clock = time.monotonic
print("ready", flush=True)
while True:
    watch.watcher.step()
"""


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    made = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            end = time.monotonic() + rng.uniform(0.1, 0.6)
            while time.monotonic() < end:
                draw(tmp_path / "in" / f"{made}.png", DARK if made % 3 == 0 else LIGHT)
                made += 1
            process.kill()
    watch = Bench(tmp_path, shelf=Shelf(tmp_path / "out", tmp_path / "in"))
    with contextlib.closing(watch):
        watch.pass_time(5)
        assert made > 50
        assert sorted(watch.names()) == sorted(f"{i}.png" for i in range(made))
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{i}.png" for i in range(0, made, 3))


# ----- anomalies


def test_anomalies_are_moved_in_the_folders_they_came_from(bench, tmp_path):
    watch = bench(shelf=Shelf(tmp_path / "in" / "bad", tmp_path / "in"))
    draw(watch.folder / "line 1" / "a.png", DARK)
    draw(watch.folder / "b.png", LIGHT)
    watch.pass_time(10)
    assert (watch.folder / "bad" / "line 1" / "a.png").is_file() and not (watch.folder / "line 1" / "a.png").exists()
    assert (watch.folder / "b.png").is_file() and len(watch.written()) == 2


def test_moving_replaces_nothing(bench, tmp_path):
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in"))
    for grey in (DARK, DARK + 1, DARK + 2):
        draw(watch.folder / "a.png", grey)
        watch.pass_time(3)
    found = {path.name: np.asarray(Image.open(path)).mean() for path in (tmp_path / "bad").iterdir()}
    assert found == {"a.png": DARK, "a-1.png": DARK + 1, "a-2.png": DARK + 2}


def test_a_move_to_another_disk_is_whole_or_not_at_all(bench, tmp_path, monkeypatch):
    def rename(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    copy = _actions.shutil.copy2
    full = [True]

    def copy2(source, target):
        if full:
            Path(target).write_bytes(b"part")
            raise OSError(full.pop() and errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(_actions.os, "rename", rename)
    monkeypatch.setattr(_actions.shutil, "copy2", copy2)
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in"))
    draw(watch.folder / "a.png", DARK)
    watch.pass_time(2)
    assert (watch.folder / "a.png").is_file() and list((tmp_path / "bad").iterdir()) == []
    assert len(watch.warnings) == 1 and "No space left" in watch.warnings[0]
    watch.pass_time(5)
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["a.png"] and not (watch.folder / "a.png").exists()


def test_a_move_that_was_not_noted_is_not_done_again(tmp_path):
    """Killed after a copy to another disk and before the file itself was removed."""
    path = draw(tmp_path / "in" / "a.png", DARK)
    draw(tmp_path / "bad" / "a.png", DARK)
    status = path.stat()
    place = Shelf(tmp_path / "bad", tmp_path / "in")(str(path), (status.st_size, status.st_mtime_ns))
    assert place == str(tmp_path / "bad" / "a.png")
    assert not path.exists() and len(list((tmp_path / "bad").iterdir())) == 1


def test_anomalies_are_linked(bench, tmp_path):
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in", link=True))
    path = draw(watch.folder / "a.png", DARK)
    watch.pass_time(10)
    assert (tmp_path / "bad" / "a.png").resolve() == path and path.is_file() and len(watch.written()) == 1


def state_of(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns


LEFT_THERE = {
    "a link by an earlier run": lambda path, there: Shelf(there.parent, path.parent, link=True)(
        str(path), state_of(path)
    ),
    "a relative link": lambda path, there: there.symlink_to(os.path.relpath(path, there.parent)),
    "a link to a link": lambda path, there: (
        (there.parent / "b.png").symlink_to(path),
        there.symlink_to(there.parent / "b.png"),
    ),
    "a link that leads nowhere": lambda path, there: there.symlink_to(there.parent / "nowhere.png"),
    "another name of the file": lambda path, there: os.link(path, there),
    "a copy": lambda path, there: there.write_bytes(path.read_bytes()),
    "another file": lambda path, there: there.write_bytes(b"other"),
    "a folder": lambda path, there: there.mkdir(),
}


@pytest.mark.parametrize("what", LEFT_THERE)
def test_whatever_is_there_already_a_move_keeps_the_picture(tmp_path, what):
    path, there = draw(tmp_path / "in" / "a.png", DARK), tmp_path / "bad" / "a.png"
    there.parent.mkdir()
    content = path.read_bytes()
    LEFT_THERE[what](path, there)
    moved = Path(Shelf(there.parent, path.parent)(str(path), state_of(path)) or "")
    assert moved.parent == there.parent and not moved.is_symlink() and moved.read_bytes() == content
    assert not os.path.lexists(path)
    # no link of ours is left that leads nowhere, and nothing of others is replaced
    assert (moved == there) == (what in ("a link by an earlier run", "a copy"))
    assert what != "another file" or there.read_bytes() == b"other"


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_link_that_is_moved_leads_where_it_led(tmp_path, monkeypatch, kind, killed):
    picture = draw(tmp_path / "store" / "b.png", DARK)
    path = tmp_path / "in" / "deep" / "b.png"
    path.parent.mkdir(parents=True)
    path.symlink_to(picture if kind == "absolute" else os.path.relpath(picture, path.parent))
    shelf = Shelf(tmp_path / "elsewhere" / "bad", tmp_path / "in")
    if killed:  # between the two halves of the move
        with monkeypatch.context() as patch:
            patch.setattr(_actions.os, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
            with contextlib.suppress(KeyboardInterrupt):
                shelf(str(path), state_of(path))
    moved = shelf.folder / "deep" / "b.png"
    if os.path.lexists(path):  # not moved in one step
        assert shelf(str(path), state_of(path)) == str(moved)
    assert moved.is_symlink() and moved.samefile(picture)
    assert not os.path.lexists(path) and os.listdir(moved.parent) == ["b.png"]


def test_what_cannot_be_read_is_told_of_but_not_moved(bench, tmp_path):
    told = []
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in"), hook=told.append, patience=5.0)
    (watch.folder / "a.png").write_bytes(b"x")
    watch.pass_time(10)
    assert [(row["score"], row["moved_to"]) for row in told] == [(None, None)] and (watch.folder / "a.png").is_file()


def test_a_newline_in_a_name_breaks_no_line_of_the_log(bench, capsys):
    watch = bench(patience=5.0)
    (watch.folder / "a\nb.png").write_bytes(b"x")
    watch.pass_time(10)
    row = {"path": "/in/c\nd.png", "prediction": -1, "score": 1.0, "p_value": None}
    with _display(Output(json=False, quiet=False), watch.folder) as (on_row, _):
        on_row(row)
    (warning,) = watch.warnings
    assert "a\\nb.png could not be read" in warning and "c\\nd.png (score 1)" in capsys.readouterr().err


def test_who_does_not_listen_is_told_again(bench):
    told, deaf = [], [True, True, True]

    def hook(row):
        if deaf:
            deaf.pop()
            raise OSError("no answer")
        told.append(Path(row["path"]).name)

    watch = bench(hook=hook)
    for name in "abc":
        draw(watch.folder / f"{name}.png", DARK)
    watch.pass_time(3)
    assert told == [] and watch.actions.waiting == 3 and len(watch.written()) == 3
    watch.pass_time(20)
    assert sorted(told) == ["a.png", "b.png", "c.png"] and watch.actions.waiting == 0
    assert all("It is repeated" in text for text in watch.warnings) and len(watch.warnings) == 3


def unreported(bench):
    """A watcher that has seen one anomaly, a.png, and could not report it."""

    def deaf(row):
        raise OSError("no answer")

    watch = bench(hook=deaf)
    draw(watch.folder / "a.png", DARK)
    watch.pass_time(3)
    return watch


def test_the_next_start_tells_what_this_one_could_not(bench):
    told = []
    unreported(bench)
    bench(hook=told.append).pass_time(3)
    bench(hook=told.append).pass_time(3)
    assert [Path(row["path"]).name for row in told] == ["a.png"]


def test_what_a_run_is_not_asked_for_is_left_to_one_that_is(bench, tmp_path):
    told = []
    unreported(bench)
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in"))
    assert (watch.actions.waiting, watch.actions.left) == (0, 1)
    draw(watch.folder / "b.png", DARK)  # for which the file of actions is written anew
    watch.pass_time(3)
    assert (watch.actions.waiting, watch.actions.left) == (0, 1) and (tmp_path / "bad" / "b.png").is_file()
    bench(hook=told.append).pass_time(3)
    assert [Path(row["path"]).name for row in told] == ["a.png"]


def test_no_more_than_one_anomaly_waits_for_a_server_though_moves_are_left(bench, tmp_path):
    told = []

    def deaf(row):
        told.append(row["path"])
        raise OSError("no answer")

    (tmp_path / "bad").write_bytes(b"")  # in place of a folder, so that nothing can be moved
    watch = bench(shelf=Shelf(tmp_path / "bad", tmp_path / "in"), hook=deaf)
    for name in "abc":
        draw(watch.folder / f"{name}.png", DARK)
    watch.pass_time(3)
    assert watch.actions.waiting == 3
    told.clear()
    bench(hook=deaf).watcher.step()
    assert len(told) == 1


def script(tmp_path, text):
    path = tmp_path / "hook.py"
    path.write_text(text)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"


def test_a_command_gets_the_path_and_the_row_and_no_shell(bench, tmp_path):
    name = "a; touch $(echo injected) '`x` {score}.png"
    saved = "import json, sys; open('got.json', 'w').write(json.dumps([sys.argv[1:], json.load(sys.stdin)]))"
    command = script(tmp_path, saved.replace("got.json", str(tmp_path / "got.json")))
    for arguments, expected in (
        ("", [str(tmp_path / "in" / name)]),
        (" --score={score} {path} '{x}'", [f"--score={float(DARK)}", str(tmp_path / "in" / name), "{x}"]),
    ):
        watch = bench(hook=Hook(command + arguments))
        draw(watch.folder / name, DARK, side=len(arguments) + 1)
        watch.pass_time(3)
        arguments, row = json.loads((tmp_path / "got.json").read_text())
        assert arguments == expected
        assert (row["score"], row["prediction"], row["moved_to"]) == (DARK, -1, None)
    assert watch.warnings == []


def test_a_command_that_fails_or_hangs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_actions, "_COMMAND_SECONDS", 0.3)
    row = {"path": "a", "score": 1.0, "decision": 1.0, "p_value": None, "prediction": -1, "moved_to": None}
    with pytest.raises(OSError, match="ended with status 3"):
        Hook(script(tmp_path, "raise SystemExit(3)"))(row)
    start = time.monotonic()
    with pytest.raises(OSError, match="took more than"):
        Hook(script(tmp_path, "import time; time.sleep(60)"))(row)
    assert time.monotonic() - start < 30
    Hook(script(tmp_path, "pass"))({**row, "path": "x" * 10**5})  # who does not read stdin is not an error


@pytest.mark.parametrize("target", ["", "no-such-command-here", "ftp://example.org/x", "'unclosed"])
def test_what_is_neither_a_command_nor_a_url_is_refused(target):
    with pytest.raises(ValueError, match="--on-anomaly"):
        Hook(target)


@pytest.fixture
def server():
    """A server that keeps what is posted, and answers with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.path, self.headers["Content-Type"], json.loads(content)))
            time.sleep(self.server.delay)
            self.send_response(self.server.status)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.got, found.status, found.delay = [], 204, 0.0
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


ROW = {"path": "/a/b.png", "score": -1.0, "decision": -2.0, "p_value": 0.01, "prediction": -1, "moved_to": None}


def test_a_url_is_posted_the_row(server):
    Hook(f"http://127.0.0.1:{server.server_port}/alarm?line=3")(ROW)
    assert server.got == [("/alarm?line=3", "application/json", ROW)]


@pytest.mark.parametrize("status", [301, 302, 404, 500])
def test_an_answer_that_is_no_2xx_is_an_error(server, status):
    server.status = status
    with pytest.raises(OSError, match=f"answered {status}"):
        Hook(f"http://127.0.0.1:{server.server_port}/")(ROW)
    assert len(server.got) == 1


def test_a_server_that_does_not_answer_is_an_error(server, monkeypatch):
    monkeypatch.setattr(_actions, "_URL_SECONDS", 0.2)
    server.delay = 0.6
    with pytest.raises(OSError, match="timed out|took more"):
        Hook(f"http://127.0.0.1:{server.server_port}/")(ROW)
    with pytest.raises(OSError, match="refused"):
        Hook("http://127.0.0.1:9/")(ROW)


@pytest.mark.parametrize(
    "url", ["http://localhost:80a/", "http:///alarm", "http://a b/", "http://[::1/", "http://x/\u00e9", "https://h/\n"]
)
def test_a_url_that_no_request_can_be_sent_to_is_refused_at_the_start(url):
    with pytest.raises(ValueError, match="is not a URL"):
        Hook(url)


@contextlib.contextmanager
def answering(*pieces, pause=0.0):
    """A server that answers each request with `pieces`, one after the other; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        for piece in pieces:
                            connection.sendall(piece)
                            time.sleep(pause)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02", b"SSH-2.0-x\r\n", b"", b"HTTP/1.1 " + b"9" * 70000])
def test_what_answers_in_another_protocol_is_an_error_and_no_bug(answer):
    with answering(answer) as port, pytest.raises(OSError, match=f"{port}"):
        Hook(f"http://127.0.0.1:{port}/")(ROW)


def test_a_server_that_answers_a_byte_at_a_time_does_not_hold_scoring_up(monkeypatch):
    monkeypatch.setattr(_actions, "_URL_SECONDS", 0.3)
    pieces = [b"HTTP/1.1 200 OK\r\nX: ", *[b"y"] * 50]
    with answering(*pieces, pause=0.1) as port, pytest.raises(OSError, match="took more than 0.3 s"):
        Hook(f"http://127.0.0.1:{port}/")(ROW)


def test_what_is_told_is_json_though_a_score_is_infinite(server):
    Hook(f"http://127.0.0.1:{server.server_port}/")({**ROW, "score": -np.inf})
    assert server.got[0][2]["score"] == -sys.float_info.max


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("how", ["cut", "moved", "removed"])
def test_a_file_of_scores_that_was_rotated_is_an_error_and_not_torn(tmp_path, kind, how):
    path = tmp_path / f"s.{kind}"
    row = {name: ROW[name] for name in COLUMNS}
    with ScoreFile(path) as file:
        file.write([row])
        whole = path.read_bytes()
        if how == "cut":
            os.truncate(path, 0)
        else:
            os.rename(path, tmp_path / "old")
        if how == "removed":
            (tmp_path / "old").unlink()
        with pytest.raises(ScoreFileError, match="while it was being written"):
            file.write([row])
    if how != "removed":
        assert (path if how == "cut" else tmp_path / "old").read_bytes() == (b"" if how == "cut" else whole)


def test_a_folder_of_scores_that_is_gone_is_waited_for(tmp_path):
    (tmp_path / "drive").mkdir()
    row = {name: ROW[name] for name in COLUMNS}
    with ScoreFile(tmp_path / "drive" / "s.csv") as file:
        (tmp_path / "drive").rename(tmp_path / "away")
        with pytest.raises(OSError):
            file.write([row])
        (tmp_path / "away").rename(tmp_path / "drive")
        file.write([row])
    assert (tmp_path / "drive" / "s.csv").read_text().count("\n") == 2


def test_rows_that_are_written_anew_have_no_actions_of_the_old_ones(tmp_path):
    path, due = tmp_path / "s.jsonl", tmp_path / "s.jsonl.actions.jsonl"
    for resume in (True, False):
        due.write_bytes(b"")
        ScoreFile(path, resume=resume, model="m").close()
        assert due.exists() == resume


# ----- drift


def test_a_stream_that_has_changed_is_warned_of_once(bench):
    watch = bench()
    for i in range(40):
        draw(watch.folder / f"{i}.png", 120 + i % 5)  # normal, but darker than any image of the calibration
    watch.pass_time(5)
    assert len(watch.warnings) == 1 and "scores have drifted" in watch.warnings[0]
    draw(watch.folder / "more.png")
    watch.pass_time(5)
    assert len(watch.warnings) == 1
    assert "scores have drifted" in bench().warnings[0]  # a new start knows of it


@pytest.mark.parametrize(("grey", "warns"), [(LIGHT, False), (5, True)])
def test_score_warns_of_a_batch_that_cannot_be_mostly_normal(tmp_path, monkeypatch, grey, warns):
    monkeypatch.setattr(score_command, "load_model", lambda model, weights, tell: (Mean(), {"sha256": "0" * 64}))
    for i in range(20):
        draw(tmp_path / "in" / f"{i}.png", grey)
    (tmp_path / "m.tfm").write_bytes(b"")
    result = CliRunner().invoke(
        app, ["score", str(tmp_path / "m.tfm"), str(tmp_path / "in"), "--out", str(tmp_path / "s.csv")]
    )
    assert result.exit_code == 0
    assert (
        "warning: 100 % of these images have p <= 0.05: that many anomalies, another camera" in result.stderr
    ) == warns


# ----- the command


@pytest.fixture
def model(fitted, tmp_path):
    from skl_transformaly import save

    save(fitted[0], tmp_path / "m.tfm")
    return tmp_path / "m.tfm"


def command(*arguments):
    return [str(argument) for argument in ("watch", *arguments)]


def test_once_scores_what_is_there_and_ends(model, fitted, tmp_path):
    for i, image in enumerate(fitted[1]):
        Image.fromarray(image).save(draw(tmp_path / "in" / f"{i}.png"))
    out = tmp_path / "s.csv"
    options = ("--settle", 0, "--interval", 0.05, "--once")
    result = CliRunner().invoke(app, command(tmp_path / "in", "-m", model, "-o", out, "--json", *options))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {Path(row["path"]).stem: float(row["score"]) for row in rows} == pytest.approx(
        {str(i): score for i, score in enumerate(fitted[0].training_scores_)}
    )
    assert [json.loads(line)["path"] for line in result.stdout.splitlines()] == [row["path"] for row in rows]
    again = CliRunner().invoke(app, command(tmp_path / "in", "-m", model, "-o", out, "--json", *options))
    assert again.exit_code == 0 and again.stdout == ""
    anomalies = sum(row["prediction"] == "-1" for row in rows)
    assert f"s.csv has {len(rows)} images of earlier runs ({anomalies} anomal" in again.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-m", "m.tfm", "-o", "s.jsonl"], "folder to watch 'nowhere' does not exist"),
        (["in", "-m", "m.tfm", "-o", "s.parquet"], "must end in .jsonl or .csv"),
        (["in", "-m", "none.tfm", "-o", "s.jsonl"], "none.tfm"),
        (["in", "-m", "m.tfm", "-o", "s.jsonl", "--move-to", "in/."], "another folder"),
        (["in", "-m", "m.tfm", "-o", "s.jsonl", "--move-to", "m.tfm"], "not a folder"),
        (["in", "-m", "m.tfm", "-o", "s.jsonl", "--move-to", "x", "--link-to", "y"], "exclude each other"),
        (["in", "-m", "m.tfm", "-o", "s.jsonl", "--on-anomaly", "no-such-command"], "neither a URL"),
    ],
)
def test_a_mistake_is_one_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "m.tfm").write_bytes(b"")
    result = CliRunner().invoke(app, command(*arguments))
    assert result.exit_code == 2 and message in result.stderr


def test_a_folder_in_which_no_links_can_be_made_is_refused(tmp_path, monkeypatch):
    def symlink_to(self, target):
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "m.tfm").write_bytes(b"")
    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    result = CliRunner().invoke(app, command("in", "-m", "m.tfm", "-o", "s.jsonl", "--link-to", "bad"))
    assert result.exit_code == 2 and "--link-to cannot make links in 'bad': Operation not permitted" in result.stderr


def test_where_links_can_be_made_none_is_left(tmp_path):
    _check_links(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "said"), [(0, ""), (2, ", 2 incomplete (0.png, 1.png)"), (4, "0.png, 1.png, 2.png, ...")]
)
def test_the_last_line_names_what_is_not_complete(bench, number, said):
    watch = bench()
    for i in range(number):
        draw(watch.folder / f"{i}.png")
    watch.pass_time(0)
    text = _state(watch.watcher, named=True).replace(f"{watch.folder}{os.sep}", "")
    assert said in text and ("incomplete" in text) == bool(number)
    assert ".png" not in _state(watch.watcher)


def test_rows_of_another_model_are_not_added_to(model, tmp_path):
    (tmp_path / "in").mkdir()
    watch = Bench(tmp_path, model="1" * 64)
    draw(watch.folder / "a.png")
    watch.pass_time(3).close()
    result = CliRunner().invoke(app, command(watch.folder, "-m", model, "-o", watch.out, "--once"))
    assert result.exit_code == 2 and "rows of another or unknown model" in result.stderr


def test_a_second_watcher_is_refused(model, bench):
    watch = bench()
    result = CliRunner().invoke(app, command(watch.folder, "-m", model, "-o", watch.out, "--once"))
    assert result.exit_code == 2 and "Another process is writing" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(model, tmp_path, number):
    (tmp_path / "in").mkdir()
    out = tmp_path / "s.jsonl"
    run = [sys.executable, "-m", "skl_transformaly"]
    run += command(tmp_path / "in", "-m", model, "-o", out, "--interval", 0.05, "--settle", 0.1)
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "Watching" in process.stderr.readline()
            Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "in" / "a.png")
            end = time.monotonic() + 60
            while not out.read_text() and time.monotonic() < end:
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert len(out.read_text().splitlines()) == 1


def test_once_that_was_stopped_has_not_failed(model, fitted, tmp_path, monkeypatch):
    for i, image in enumerate(fitted[1]):
        Image.fromarray(image).save(draw(tmp_path / "in" / f"{i}.png"))
    out = tmp_path / "s.jsonl"
    seen = contextlib.nullcontext(lambda: out.exists() and len(out.read_text().splitlines()) == len(fitted[1]))
    monkeypatch.setattr(_watch, "_until_stopped", lambda: seen)
    given = (tmp_path / "in", "-m", model, "-o", out, "--settle", 0, "--interval", 0.05, "--once")
    result = CliRunner().invoke(app, command(*given, "--on-anomaly", shutil.which("false")))
    assert "still to be moved or reported" in result.stderr and result.exit_code == 0


def test_once_fails_if_an_alarm_did(model, fitted, tmp_path):
    for i, image in enumerate(fitted[1]):  # some of which are flagged
        Image.fromarray(image).save(draw(tmp_path / "in" / f"{i}.png"))
    given = (tmp_path / "in", "-m", model, "-o", tmp_path / "s.csv", "--settle", 0, "--interval", 0.05, "--once")
    result = CliRunner().invoke(app, command(*given, "--on-anomaly", shutil.which("false")))
    assert result.exit_code == 2 and "Not all anomalies could be moved or reported" in result.stderr
    assert CliRunner().invoke(app, command(*given, "--on-anomaly", shutil.which("true"))).exit_code == 0
