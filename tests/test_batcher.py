"""Images of all clients share batches, and each has its own answer."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serve import Mean, png

from skl_transformaly.images._values import ImageError
from skl_transformaly.serving._batcher import Batcher, Closed, Expired, QueueFull
from skl_transformaly.serving._decoding import decoder
from skl_transformaly.serving._scorers import Result


def batcher(scorer, decode=None, **options):
    return Batcher(scorer, decode or decoder(scorer.prepare, 10**6), **options)


def soon():
    return time.monotonic() + 30


def test_images_of_all_clients_share_batches():
    scorer = Mean()
    scorer.go.clear()
    threads = batcher(scorer, max_batch=4)
    futures = threads.submit([png(1)], maps=False, deadline=soon())
    assert scorer.begun.wait(10)
    for value in range(2, 10):
        futures += threads.submit([png(value)], maps=False, deadline=soon())
    while threads._encoded or threads._decoding:
        time.sleep(0.001)
    scorer.go.set()
    assert [future.result(10).result.score for future in futures] == list(range(1, 10))
    assert scorer.batches == [1, 4, 4]
    assert threads.close(10)


def test_one_image_alone_does_not_wait():
    scorer = Mean()
    threads = batcher(scorer, max_wait=60)
    threads.submit([png()], maps=False, deadline=soon())[0].result(10)
    assert threads.close(10)


def test_what_was_accepted_is_answered_before_the_end():
    scorer = Mean()
    scorer.go.clear()
    threads = batcher(scorer)
    futures = threads.submit([png()] * 40, maps=False, deadline=soon())
    closing = threading.Thread(target=threads.close)
    closing.start()
    while not threads._closing:
        time.sleep(0.001)
    with pytest.raises(Closed):
        threads.submit([png()], maps=False, deadline=soon())
    scorer.go.set()
    closing.join(10)
    assert not closing.is_alive() and not threads.alive
    assert all(future.done() and future.exception() is None for future in futures)


def test_all_images_of_a_request_are_accepted_or_none():
    scorer = Mean()
    scorer.go.clear()
    threads = batcher(scorer, max_queue=3)
    threads.submit([png()] * 2, maps=False, deadline=soon())
    with pytest.raises(QueueFull):
        threads.submit([png()] * 2, maps=False, deadline=soon())
    assert threads.pending == 2
    scorer.go.set()
    assert threads.close(10) and threads.pending == 0


def test_what_nobody_waits_for_is_not_scored():
    scorer = Mean()
    scorer.go.clear()
    threads = batcher(scorer, max_batch=1)
    threads.submit([png()], maps=False, deadline=soon())
    assert scorer.begun.wait(10)
    late = threads.submit([png()], maps=False, deadline=time.monotonic() - 1)
    gone = threads.submit([png()], maps=False, deadline=soon())
    assert gone[0].cancel()
    scorer.go.set()
    assert isinstance(late[0].exception(10), Expired)
    assert threads.close(10)
    assert scorer.batches == [1]


def test_a_cancelled_image_leaves_its_place_to_others():
    scorer = Mean()
    scorer.go.clear()
    threads = batcher(scorer, max_batch=1, max_queue=5, max_pixels=100, decoders=1)
    held = threads.submit([png(size=(10, 10))] * 2, maps=False, deadline=soon())  # one is scored, a decoder has one
    assert scorer.begun.wait(10)
    while threads._encoded:
        time.sleep(0.001)
    gone = threads.submit([png()] * 3, maps=False, deadline=soon())
    with pytest.raises(QueueFull):
        threads.submit([png()], maps=False, deadline=soon())
    assert all(future.cancel() for future in gone)
    assert threads.pending == 2 and not threads._encoded  # nor are their bytes kept
    more = threads.submit([png()] * 3, maps=False, deadline=soon())
    scorer.go.set()
    assert all(future.result(10).result.score == 150 for future in [*held, *more])
    assert threads.close(10) and threads.pending == 0


def test_pixels_that_wait_are_bounded_and_a_larger_image_passes():
    scorer = Mean()
    most = []

    def score(images, maps):
        most.append(threads._held)
        return [scorer.result(image, False) for image in images]

    scorer.score = score
    threads = batcher(scorer, max_pixels=100, max_batch=8)
    futures = threads.submit([png(size=(7, 7))] * 10 + [png(size=(20, 20))], maps=False, deadline=soon())
    assert all(future.result(10).result.score == 150 for future in futures)
    assert threads.close(10)
    assert max(held for held in most if held != 400) <= 100 and threads._held == 0


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    max_batch=st.integers(1, 8),
    decoders=st.integers(1, 4),
    broken=st.sets(st.integers(0, 29)),
)
def test_every_image_has_its_own_answer(values, max_batch, decoders, broken):
    threads = batcher(Mean(), max_batch=max_batch, decoders=decoders, max_pixels=200)
    contents = [b"broken" if i in broken else png(value) for i, value in enumerate(values)]
    futures = threads.submit(contents, maps=False, deadline=soon())
    for i, (value, future) in enumerate(zip(values, futures)):
        if i in broken:
            assert isinstance(future.exception(10), ImageError)
        else:
            assert future.result(10).result.score == value
    assert threads.close(10)
    assert threads.pending == 0 and threads._held == 0


def test_results_that_are_missing_are_an_error(caplog):
    scorer = Mean()
    scorer.score = lambda images, maps: []
    threads = batcher(scorer)
    assert isinstance(threads.submit([png()], maps=False, deadline=soon())[0].exception(10), RuntimeError)
    assert threads.close(10)


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(FloatingPointError):
        Result(float("nan"), 1.0, 0.5)
    assert Result(1.0, 1.0, float("nan")).p_value is None
