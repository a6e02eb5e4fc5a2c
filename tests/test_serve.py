"""The server: what it answers, what it refuses, and that it does neither late, wrongly or with a traceback."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import json
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from skl_transformaly.serving._app import create_app
from skl_transformaly.serving._limits import Limits, Refusal
from skl_transformaly.serving._maps import paint
from skl_transformaly.serving._scorers import Result
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
    assert results[1]["score"] is None
    assert results[1]["error"] == "The file is not an image of a format that is accepted here."
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
    text = found.json()["error"]
    assert text == f"{method} is not allowed here; use {found.headers['allow']}." if status == 405 else "path" in text


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


# Lines that forms are made of, in any order: parts without headers, headers without an end, ends without a beginning
LINES = (
    b"--b",
    b"--b--",
    b"",
    b"x",
    b"X: y",
    b"Content-Transfer-Encoding: base64",
    b'Content-Disposition: form-data; name="a"; filename="a"',
)


@given(st.lists(st.sampled_from(LINES), max_size=12), st.sampled_from(["b", "", "-", "b" * 300]))
def test_any_lines_are_files_or_refused(lines, boundary):
    with contextlib.suppress(Refusal):
        assert parse(f"multipart/form-data; boundary={boundary}", b"\r\n".join(lines), Limits())


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


def test_a_score_of_minus_infinity_is_an_anomaly():
    result = Result(-np.inf, -np.inf, 0.1, spaces={"layers": -np.inf, "classes": 1.0})
    lowest = -sys.float_info.max
    assert (result.score, result.margin, result.spaces) == (lowest, lowest, {"layers": lowest, "classes": 1.0})
    for score in (np.nan, np.inf):
        with pytest.raises(FloatingPointError):
            Result(score, 1.0, None)
        with pytest.raises(FloatingPointError):
            Result(1.0, score, None)


@pytest.mark.parametrize(
    "image, what",
    [
        ({"data": "data:image/png,abc"}, "base64"),
        ("data:", "base64"),
        ({"data": "", "name": False}, "strings"),
        ({"data": None}, "strings"),
    ],
)
def test_images_in_json_that_are_not_what_was_agreed_on_are_refused(client, image, what):
    found = client.post("/score", json={"images": [image]})
    assert found.status_code == 422 and what in found.json()["error"]


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
