"""The server scores as the detector does, and its process ends and survives as it should."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import tiny_detector, tiny_extractor
from PIL import Image
from test_report import chromium
from test_serve import encoded, png, post, served

from skl_transformaly import ConformalDetector, load, save
from skl_transformaly.images._values import ImageError
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.serving._decoding import FORMATS, decoder
from skl_transformaly.serving._scorers import DetectorScorer, OnnxScorer, open_scorer


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
    assert {result["threshold"] for result in (*results, *alone)} == {detector.offset_}
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
    assert {result["threshold"] for result in results} == {model[1].offset_}
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


def ask(port, body, kind="application/json", path="/score"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", path, body, {"Content-Type": kind})
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
        for arguments, text in (([str(model[0]), "--port", port], "Cannot listen"), (["no.tfm"], "does not exist")):
            command = [sys.executable, "-m", "skl_transformaly", "serve", *arguments]
            found = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert found.returncode == 2 and text in found.stderr and "Traceback" not in found.stderr


@pytest.mark.slow
def test_the_page_in_a_browser(model, tmp_path, rng):
    names = ["<img src=x onerror=window.hacked=1>.png", "second.png", "broken.png"]
    for name in names[:2]:
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        pixels[:30, :40] = 255  # what a map shows
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"no image")
    with process(model[0]) as (_, port), contextlib.closing(chromium(tmp_path, 1100, 900)) as browser:
        browser.get(f"http://127.0.0.1:{port}/")
        browser.find_element("id", "files").send_keys("\n".join(str(tmp_path / name) for name in names))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not browser.find_elements("css selector", ".card"):
            time.sleep(0.05)
        _, expected = ask(port, as_json(*[(tmp_path / name).read_bytes() for name in names]), path="/score?maps=1")
        cards = browser.find_elements("css selector", ".card")
        assert [card.find_element("class name", "name").text for card in cards] == names
        for card, result in zip(cards, expected["results"]):
            assert card.find_element("class name", "decision").text == result["decision"]
            if result["score"] is not None:
                assert f"score {result['score']:.3f}" in card.text and f"p-value {result['p_value']:.3f}" in card.text
                assert result["map"]["peak"] > result["map"]["from"]
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
