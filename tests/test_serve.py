"""The server: what it answers, what it refuses, and that it does neither late, wrongly or with a traceback."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from conftest import tiny_detector, tiny_extractor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_report import chromium

from skl_transformaly import ConformalDetector, load, save
from skl_transformaly.images._values import ImageError
from skl_transformaly.model_selection import NormalOnly

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from skl_transformaly.serving._app import create_app
from skl_transformaly.serving._batcher import Batcher, Closed, Expired, QueueFull
from skl_transformaly.serving._decoding import FORMATS, decoder
from skl_transformaly.serving._limits import Limits, Refusal
from skl_transformaly.serving._maps import paint
from skl_transformaly.serving._scorers import DetectorScorer, OnnxScorer, Result, open_scorer
from skl_transformaly.serving._uploads import Held, parse

FORM = "multipart/form-data; boundary=b"


class Mean:
    """A scorer in no time: the mean of the pixels, below 100 an anomaly."""

    about = {"file": "mean.tfm", "kind": "Mean", "sha256": "0" * 64, "teacher": ""}
    has_maps = True
    at_least = None

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def prepare(self, image):
        return image

    def score(self, images, maps):
        self.begun.set()
        assert self.go.wait(30)
        self.batches.append(len(images))
        if any(image.shape[:2] == (13, 13) for image in images):
            raise ValueError("secret details")
        return [self.result(image, with_map) for image, with_map in zip(images, maps)]

    @staticmethod
    def result(image, with_map):
        score = float(image.mean())
        drawn = paint(image[..., 0].astype(np.float32)) if with_map else None
        return Result(score, score - 100, score / 255, {"pretrained": score}, "normal", drawn)


def png(value=150, size=(8, 6)):
    return encoded(Image.new("RGB", size, (value,) * 3))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png(width, height, data=b""):
    """A PNG of a few bytes that says it is large."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@contextlib.contextmanager
def served(scorer=None, limits=None, **options):
    with TestClient(create_app(scorer or Mean(), limits=limits, **options)) as client:
        yield client


def post(client, *contents, query=""):
    return client.post("/score" + query, files=[("image", (f"{i}.png", c)) for i, c in enumerate(contents)])


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


# ----- what is answered


def test_each_image_is_answered_in_order(client):
    found = post(client, png(150), png(50), png(250))
    assert found.status_code == 200
    results = found.json()["results"]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png"]
    assert [result["decision"] for result in results] == ["normal", "anomaly", "normal"]
    assert [result["score"] for result in results] == [150, 50, 250]
    assert [result["threshold"] for result in results] == [100, 100, 100]
    assert results[0]["p_value"] == pytest.approx(150 / 255)
    assert found.json()["model"] == "0" * 64


def test_json_is_answered_as_multipart_is(client):
    content = base64.b64encode(png(70)).decode()
    images = [{"name": "a.png", "data": content}, content, {"data": "data:image/png;base64," + content}]
    results = client.post("/score", json={"images": images}).json()["results"]
    assert [result["name"] for result in results] == ["a.png", "image 1", "image 2"]
    assert [result["score"] for result in results] == [70, 70, 70]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\x00b", "<script>", "ü 图\u202e.png", "\ud800"])
def test_names_come_back_as_they_were_sent(client, name):
    body = json.dumps({"images": [{"name": name, "data": base64.b64encode(png()).decode()}]})
    found = client.post("/score", content=body, headers={"content-type": "application/json"})
    assert found.json()["results"][0]["name"] == name


def test_maps_are_sent_if_asked_for(client):
    assert "map" not in post(client, png(200)).json()["results"][0]
    assert "map" not in post(client, png(200), query="?maps=0").json()["results"][0]
    drawn = post(client, png(200), query="?maps=1").json()["results"][0]["map"]
    assert drawn["peak"] == 200 and drawn["from"] == 2
    picture = Image.open(io.BytesIO(base64.b64decode(drawn["png"])))
    assert picture.size == (8, 6) and picture.mode == "RGBA"


def test_a_model_without_maps_refuses_them():
    scorer = Mean()
    scorer.has_maps = False
    with served(scorer) as client:
        assert post(client, png(), query="?maps=1").status_code == 422


@pytest.mark.parametrize("query", ["?map=1", "?maps=2", "?maps=1&maps=0", "?maps=1&path=/etc/passwd"])
def test_unknown_queries_are_refused(client, query):
    found = post(client, png(), query=query)
    assert found.status_code == 422 and "maps" in found.json()["error"]


def test_an_unreadable_image_does_not_spoil_the_others(client):
    results = post(client, png(150), b"no image", png(50)).json()["results"]
    assert [result["decision"] for result in results] == ["normal", "unreadable", "anomaly"]
    assert results[1]["score"] is None and "not an image" in results[1]["error"]
    assert "on_error" not in results[1]["error"] and "BytesIO" not in results[1]["error"]


def test_no_readable_image_is_an_error(client):
    found = post(client, b"", b"%PDF-1.4")
    assert found.status_code == 422 and "could be read" in found.json()["error"]
    assert "PDF" in found.json()["results"][1]["error"]


def test_what_is_odd_about_a_file_is_noted(client):
    dark = encoded(Image.fromarray(np.full((6, 6), 800, dtype=np.uint16)))
    assert "uint16" in post(client, dark).json()["results"][0]["notes"][0]
    assert "notes" not in post(client, png()).json()["results"][0]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/"])
def test_other_paths_answer(client, path):
    found = client.get(path)
    assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/score", 405), ("POST", "/", 405), ("GET", "/score/", 404), ("GET", "/..%2f..%2fetc/passwd", 404)],
)
def test_wrong_paths_are_refused_in_json(client, method, path, status):
    found = client.request(method, path)
    assert found.status_code == status and set(found.json()) == {"error"}


def test_requests_images_and_refusals_are_counted():
    with served() as client:
        post(client, png(150), png(50), b"no image")
        post(client)
        client.get("/nowhere")
        text = client.get("/metrics").text
    assert 'transformaly_images_total{decision="anomaly"} 1.0' in text
    assert 'transformaly_images_total{decision="unreadable"} 1.0' in text
    assert 'transformaly_requests_total{path="/score",status="200"} 1.0' in text
    assert 'transformaly_requests_total{path="other",status="404"} 1.0' in text
    assert "transformaly_queue_images 0.0" in text
    assert 'sha256="' + "0" * 64 in text


def fits(value, schema, document):
    """Whether a value is as a schema has it, as far as the document's own schemas go."""
    if "$ref" in schema:
        return fits(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not isinstance(
        value, tuple(kinds[name] for name in names if name != "number") + (int, float) * ("number" in names)
    ):
        return False
    if isinstance(value, list):
        return all(fits(item, schema["items"], document) for item in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        return set(schema.get("required", ())) <= set(value) and all(
            fits(item, known.get(name) or others, document) for name, item in value.items()
        )
    return "enum" not in schema or value in schema["enum"]


@pytest.mark.parametrize(
    ("contents", "query"),
    [((png(), png(50)), "?maps=1"), ((png(), b"no image"), ""), ((b"",), ""), ((), ""), ((png(),), "?x=1")],
)
def test_the_openapi_document_describes_what_is_answered(client, contents, query):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {route.path for route in client.app.routes}
    found = post(client, *contents, query=query)
    responses = document["paths"]["/score"]["post"]["responses"]
    assert fits(found.json(), responses[str(found.status_code)]["content"]["application/json"]["schema"], document)


# ----- what is refused


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"a", 415),
        ("image/png", png(), 415),
        ("", b"", 415),
        ("multipart/form-data", b"a", 400),
        (FORM, b"a", 400),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\nx', 400),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="i"\r\n\r\nx\r\n--b--\r\n', 422),
        (FORM, b"--b\r\nX: " + b"a" * 20000 + b"\r\n\r\nx\r\n--b--\r\n", 400),
        (FORM, b"--b--\r\n", 422),
        ("application/json", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"\xff\xfe\xfd", 400),
        ("application/json", b'{"images": [NaN]}', 400),
        ("application/json", b"[" * 1500, 400),
        ("application/json", b"1" * 5000, 400),
        ("application/json", b"[]", 422),
        ("application/json", b'{"images": {}}', 422),
        ("application/json", b'{"images": []}', 422),
        ("application/json", b'{"images": [1]}', 422),
        ("application/json", b'{"images": [{"path": "/etc/passwd"}]}', 422),
        ("application/json", b'{"images": [{"data": 1}]}', 422),
        ("application/json", b'{"images": ["*"]}', 422),
        ("application/json", b'{"images": [' + b"{}," * 10000 + b"{}]}", 422),
        ("application/json", b'{"images": ["aaaa"], "path": "/etc/passwd"}', 422),
    ],
)  # fmt: skip
def test_malformed_bodies_are_refused(client, kind, body, status):
    found = client.post("/score", content=body, headers={"content-type": kind})
    assert found.status_code == status, found.text
    assert "Traceback" not in found.text


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=300), kind=st.sampled_from(["application/json", FORM]))
def test_any_body_is_parsed_or_refused(body, kind):
    with contextlib.suppress(Refusal):
        parse(kind, body, Limits())


@settings(max_examples=50, deadline=None)
@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_multipart_is_what_was_sent(contents):
    boundary = "0123456789abcdef" * 2
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{i}"\r\n\r\n'.encode() + c + b"\r\n"
        for i, c in enumerate(contents)
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    found = parse(f"multipart/form-data; boundary={boundary}", body, Limits())
    assert [upload.content for upload in found] == contents


def test_a_body_beyond_the_limit_is_refused():
    with served(limits=Limits(body=1000)) as client:
        assert post(client, bytes(2000)).status_code == 413
        # of a length that is not declared
        found = client.post("/score", content=iter([bytes(600)] * 2), headers={"content-type": "application/json"})
        assert found.status_code == 413 and found.headers["connection"] == "close"
        assert post(client, png()).status_code == 200


def test_bodies_together_are_bounded():
    with served(limits=Limits(body=1000, held=900)) as client:
        assert post(client, bytes(800)).status_code == 503
        assert post(client, png()).status_code == 200  # what was refused is not held
    held = Held(10)
    assert held.add(10) and not held.add(1)


@pytest.mark.parametrize("as_json", [False, True])
def test_more_images_than_allowed_are_refused(as_json):
    with served(limits=Limits(images=2)) as client:
        images = [base64.b64encode(png()).decode()] * 3
        found = client.post("/score", json={"images": images}) if as_json else post(client, *[png()] * 3)
        assert found.status_code == 422 and "more than 2" in found.json()["error"]


@pytest.mark.parametrize("size", [(1000, 1000), (30000, 30000), (2**31 - 1, 2**31 - 1)])
def test_images_that_say_they_are_huge_are_refused_before_memory_is_taken(size):
    with served(limits=Limits(pixels=999_999)) as client:
        found = post(client, huge_png(*size))
        assert found.status_code == 422
        assert found.json()["results"][0]["decision"] == "unreadable"


def test_a_full_queue_refuses_and_recovers():
    scorer = Mean()
    scorer.go.clear()
    with served(scorer, Limits(queue=2)) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(post, client, png(), png())
        assert scorer.begun.wait(10)
        refused = post(client, png())
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 503
        scorer.go.set()
        assert first.result().status_code == 200
        assert post(client, png()).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_score_that_takes_too_long_is_a_timeout():
    scorer = Mean()
    scorer.go.clear()
    with served(scorer, Limits(timeout=0.3)) as client:
        found = post(client, png())
        assert found.status_code == 504
        scorer.go.set()
        assert post(client, png()).status_code == 200


def test_a_model_that_fails_on_an_image_fails_on_that_alone(caplog):
    with served() as client:
        found = post(client, png(), png(size=(13, 13)), png())
        assert found.status_code == 500
        assert "secret" not in found.text and "Traceback" not in found.text
        assert "secret" in caplog.text  # where it belongs
        assert post(client, png()).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_a_closing_server_refuses(client):
    scorer = Mean()
    with served(scorer) as client:
        batcher = client.app.state.service.batcher
        assert batcher.close(10)
        assert post(client, png()).status_code == 503
        assert client.get("/readyz").status_code == 503


@pytest.mark.parametrize("name", ["body", "images", "pixels", "queue", "timeout", "connections", "held"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


# ----- batches


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


# ----- the same scores as everywhere


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file, and a detector of it."""
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("model") / "tiny.tfm"
    save(tiny_detector(extractor=tiny_extractor(precision="float32")).fit(X), path)
    return path, load(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of many kinds, sizes and depths."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)

    def noise(*shape):
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        return coarse.resize((50, 40), Image.Resampling.BICUBIC)

    noise(8, 9, 3).save(folder / "colour.png")
    noise(8, 9, 3).save(folder / "colour.jpg", quality=90)
    noise(8, 9, 4).save(folder / "transparent.png")
    noise(8, 9).save(folder / "grey.bmp")
    noise(8, 9, 3).quantize(16).save(folder / "palette.gif")
    noise(8, 9, 3).save(folder / "photo.webp", lossless=True)
    noise(8, 9, 3).save(folder / "scan.tif", compression="tiff_lzw")
    noise(8, 9, 3).resize((1500, 1400)).save(folder / "large.jpg")  # decoded at a part of its size
    noise(8, 9, 3).convert("CMYK").save(folder / "print.jpg")
    noise(8, 9, 3).save(
        folder / "turned.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    return sorted(folder.iterdir())


def test_scores_are_those_of_the_detector(model, pictures):
    path, detector = model
    expected = detector.score_table(pictures)
    with served(open_scorer(path)) as client:
        results = post(client, *[picture.read_bytes() for picture in pictures]).json()["results"]
        alone = [post(client, picture.read_bytes(), query="?maps=1").json()["results"][0] for picture in pictures]
    for found in (results, alone):
        np.testing.assert_allclose([result["score"] for result in found], expected["score"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose([result["p_value"] for result in found], expected["p_value"], rtol=1e-4)
    assert [result["decision"] == "anomaly" for result in results] == (expected["prediction"] == -1).tolist()
    parts = [sum(result["spaces"].values()) for result in results]
    np.testing.assert_allclose(parts, [result["score"] for result in results])
    assert set(results[0]["spaces"]) == set(detector.feature_spaces_)


def test_deep_pixels_keep_their_depth(model, tmp_path, rng):
    path, detector = model
    file = tmp_path / "deep.tif"
    Image.fromarray(rng.integers(0, 65536, (30, 30), dtype=np.uint16)).save(file)
    with served(open_scorer(path)) as client:
        found = post(client, file.read_bytes()).json()["results"][0]
    assert found["score"] == pytest.approx(detector.score_samples([file])[0], rel=1e-5)


def test_a_training_image_gets_its_held_out_score(model, tmp_path):
    path, detector = model
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    with served(open_scorer(path)) as client:
        found = post(client, encoded(Image.fromarray(X[3]))).json()["results"][0]
    assert found["score"] == detector.training_scores_[3]


@pytest.mark.parametrize("wrap", [lambda d: NormalOnly(d), lambda d: ConformalDetector(d, alpha=0.2)])
def test_wrappers_decide(wrap, rng, pictures):
    X = rng.integers(0, 256, (24, 20, 24, 3), dtype=np.uint8)
    detector = wrap(tiny_detector(contamination=0.1))
    detector.fit(X, np.ones(24)) if isinstance(detector, NormalOnly) else detector.fit(X)
    with served(DetectorScorer(detector)) as client:
        results = post(client, *[picture.read_bytes() for picture in pictures]).json()["results"]
    assert [result["decision"] == "anomaly" for result in results] == (detector.predict(pictures) == -1).tolist()
    np.testing.assert_allclose([result["p_value"] for result in results], detector.p_values(pictures), rtol=1e-6)


def test_a_cut_png_is_unreadable_here_as_there(model, pictures):
    _, detector = model
    picture = next(picture for picture in pictures if picture.name == "colour.png")
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1  # in the checksum of its pixels
    with served() as client:
        assert post(client, bytes(content)).status_code == 422


def test_only_formats_of_images_are_decoded():
    decode = decoder(lambda image: image, 10**6)
    assert not {"EPS", "WMF", "PSD", "FLI"} & set(FORMATS)
    with pytest.raises(ImageError, match="vector"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


@pytest.fixture(scope="module")
def onnx_model(model):
    from skl_transformaly.export import to_onnx

    pytest.importorskip("onnxscript")
    path = model[0].with_suffix(".onnx")
    to_onnx(model[1], path)
    return path


@pytest.mark.slow
def test_an_onnx_file_scores_as_the_detector(model, onnx_model, pictures):
    expected = model[1].score_table(pictures)
    with served(open_scorer(onnx_model)) as client:
        found = post(client, *[picture.read_bytes() for picture in pictures], query="?maps=1")
    results = found.json()["results"]
    np.testing.assert_allclose([result["score"] for result in results], expected["score"], rtol=1e-3, atol=1e-3)
    assert all("map" in result and "spaces" not in result for result in results)
    assert [result["decision"] == "anomaly" for result in results] == (expected["prediction"] == -1).tolist()


@pytest.mark.slow
def test_deep_pixels_are_refused_by_an_onnx_file(onnx_model, rng):
    deep = encoded(Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)))
    with served(open_scorer(onnx_model)) as client:
        found = post(client, deep)
    assert found.status_code == 422 and "8 bits" in found.json()["results"][0]["error"]


@pytest.mark.slow
def test_an_onnx_file_is_served_without_torch(onnx_model):
    """With what docker/Dockerfile installs beside the package, and nothing else that it depends on."""
    code = f"""
import sys
for name in "torch torchvision timm sklearn scipy joblib threadpoolctl safetensors tqdm jinja2 pyarrow pandas".split():
    sys.modules[name] = None
import skl_transformaly.cli._commands
from skl_transformaly.serving._app import create_app
from skl_transformaly.serving._scorers import open_scorer
from starlette.testclient import TestClient
with TestClient(create_app(open_scorer({str(onnx_model)!r}))) as client:
    found = client.post("/score?maps=1", files=[("image", ("a.png", bytes.fromhex("{png(size=(24, 20)).hex()}")))])
    print(found.json()["results"][0]["decision"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() in ("normal", "anomaly"), found.stderr


def test_other_onnx_files_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "other.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="ONNX"):
        open_scorer(path)
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opset = [onnx.helper.make_opsetid("", 18)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    with pytest.raises(ValueError, match="another kind"):
        OnnxScorer(path)
    with pytest.raises(ValueError, match="weights"):
        open_scorer(path, weights="hub")


# ----- the process


@contextlib.contextmanager
def process(model, *options):
    """A server of its own, and its port."""
    command = [sys.executable, "-m", "skl_transformaly", "serve", str(model), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    try:
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            pytest.fail("".join(lines))
        port = int(found[1])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as c:
                c.request("GET", "/readyz")
                if c.getresponse().status == 200:
                    break
            time.sleep(0.05)
        yield server, port
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()
        server.stderr.close()


def ask(port, body, kind="application/json"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/score", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def as_json(*contents):
    return json.dumps({"images": [base64.b64encode(content).decode() for content in contents]})


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_exits_with_0(model, rng):
    content = encoded(Image.fromarray(rng.integers(0, 256, (900, 900, 3), dtype=np.uint8)), "JPEG")
    with process(model[0], "--max-batch", "2") as (server, port), concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, port, as_json(*[content] * 8)) for _ in range(8)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
            if float(re.search(r"^transformaly_requests_in_progress (\S+)", text, re.M)[1]) == 9:  # with this one
                break
        assert not any(answer.done() for answer in answers)
        server.send_signal(signal.SIGTERM)
        found = [answer.result(30) for answer in answers]
        assert server.wait(30) == 0
        assert "Traceback" not in server.stderr.read()
    assert [status for status, _ in found] == [200] * 8
    assert sum(len(body["results"]) for _, body in found) == 64
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.slow
def test_hostile_connections_harm_nobody(model):
    honest = as_json(png(100, (24, 20)))
    with process(model[0], "--connections", "40", "--timeout", "2", "--max-body", "1") as (server, port):
        status, before = ask(port, honest)
        assert status == 200
        start, post_ = b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST /score HTTP/1.1\r\nHost: a\r\n"
        hostile = [
            b"",
            b"\0\1\2\3",
            b"GET / HTTP/9.9\r\n\r\n",
            start,
            start + b"X: " + b"a" * 10**6,
            start + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            post_ + b"Content-Length: -1\r\n\r\n",
            post_ + b"Content-Length: 99\r\n\r\nabc",
            post_ + b"Content-Length: 999999999\r\n\r\n" + bytes(10**6),
            post_ + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ]
        with contextlib.ExitStack() as stack:
            for request in hostile * 2:
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                with contextlib.suppress(OSError):
                    connection.sendall(request)
                assert ask(port, honest) == (status, before)
            # those that send nothing more, or too slowly, are sent away
            for connection in [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)]:
                connection.settimeout(25)
                connection.sendall(b"GET / HTTP/1.1\r\n")
                with contextlib.suppress(ConnectionError):
                    assert connection.recv(1) == b""
        assert ask(port, honest) == (status, before)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert "Traceback" not in server.stderr.read()


@pytest.mark.slow
def test_a_port_in_use_and_a_missing_model_are_mistakes(model):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        for arguments, text in (([str(model[0]), "--port", port], "Cannot listen"), (["no.tfm"], "no model")):
            command = [sys.executable, "-m", "skl_transformaly", "serve", *arguments]
            found = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert found.returncode == 2 and text in found.stderr and "Traceback" not in found.stderr


@pytest.mark.slow
def test_the_page_in_a_browser(model, tmp_path, rng):
    names = ["<img src=x onerror=window.hacked=1>.png", "second.png", "broken.png"]
    for name in names[:2]:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"no image")
    with process(model[0]) as (_, port), contextlib.closing(chromium(tmp_path, 1100, 900)) as browser:
        browser.get(f"http://127.0.0.1:{port}/")
        browser.find_element("id", "files").send_keys("\n".join(str(tmp_path / name) for name in names))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not browser.find_elements("css selector", ".card"):
            time.sleep(0.05)
        _, expected = ask(port, as_json(*[(tmp_path / name).read_bytes() for name in names]))
        cards = browser.find_elements("css selector", ".card")
        assert [card.find_element("class name", "name").text for card in cards] == names
        for card, result in zip(cards, expected["results"]):
            assert card.find_element("class name", "decision").text == result["decision"]
            if result["score"] is not None:
                assert f"score {result['score']:.3f}" in card.text and f"p-value {result['p_value']:.3f}" in card.text
                assert card.find_element("css selector", "img.map").size["width"] > 50
        assert "1 cannot be read" in browser.find_element("id", "status").text
        assert browser.execute_script("return typeof window.hacked") == "undefined"
        assert browser.get_log("browser") == []
        if folder := os.environ.get("SKL_TRANSFORMALY_SCREENSHOTS"):
            browser.save_screenshot(os.path.join(folder, "serve.png"))
        browser.execute_script("document.getElementById('maps').click()")
        assert not browser.find_element("css selector", "img.map").is_displayed()
        browser.execute_script("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
        assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
