"""The report as a file, and as a browser shows it. The detector is a stand-in, so that no network runs."""

import base64
import contextlib
import csv
import io
import os
import re
import shutil
import time
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from skl_transformaly._reasons import reasons
from skl_transformaly.cli import _cards
from skl_transformaly.cli._cards import path_bytes
from skl_transformaly.cli._histogram import histogram, round_step
from skl_transformaly.cli._provenance import Provenance, image_facts
from skl_transformaly.cli.report import Origin, _fixed, write_report
from skl_transformaly.images._maps import MAP_FROM
from skl_transformaly.images._pixels import as_rgb
from skl_transformaly.images._thumbnails import thumbnail_of
from skl_transformaly.serving._maps import paint

HOSTILE = [
    "<script>window.hacked=1</script>.png",
    "\"><img src=x onerror='window.hacked=1'>.png",
    "' onmouseover='window.hacked=1.png",
    "javascript:window.hacked=1.png",
    "two\nlines\r.png",
    "{{ 7*7 }}{% if 1 %}.png",
    "</script><script>window.hacked=1</script>.png",
    "--><!--.png",
    "&lt;b&gt;&amp;.png",
    "right\u202egnp.png",
    "caf\udce9.png",
    "\x1b[31mred.png",
]


class Bright:
    """Scores an image by how bright it is; dark is normal. Shaped like a calibrated detector."""

    feature_spaces_ = ("pretrained", "discrepancy")
    held_out_ = True
    grey_ = False
    spaces_: dict = {}
    students_ = SimpleNamespace(block_indices_=np.arange(2))
    alpha = 0.05
    calibration = "held-out"
    contamination = 0.05
    offset_ = -100.0

    def __init__(self, n_training=40):
        self.extractor_ = SimpleNamespace(image_size_=(64, 64), to_maps=lambda tokens: tokens)
        self.calibration_scores_ = np.linspace(-110.0, -10.0, 40)
        self.training_scores_ = np.linspace(-100.0, -10.0, n_training)
        self.training_groups_, self.training_labels_ = np.arange(n_training), np.ones(n_training)
        self.training_digests_ = np.zeros((n_training, 16), dtype=np.uint8)
        self.training_embeddings_ = np.random.default_rng(0).normal(size=(n_training, 8))
        self.training_discrepancies_ = np.empty((n_training, 0))

    def score_samples(self, X):
        return np.array([-float(np.mean(image)) for image in X])

    def score_table(self, X, score=None):
        score = self.score_samples(X) if score is None else score
        p = (1 + np.searchsorted(self.calibration_scores_, score, side="right")) / 41
        return {
            "score": score,
            "decision": score - self.offset_,
            "p_value": p,
            "prediction": np.where(p > self.alpha, 1, -1),
        }

    def explain(self, X, *, n_neighbors=3, maps=False):
        score = self.score_samples(X)
        n = len(self.training_scores_)
        table = {"score": score, "pretrained": score - 1, "discrepancy": np.ones(len(X))}
        times = np.column_stack([-score / 20, 9 - 0 * score])
        terms = np.column_stack([np.zeros(len(X)), np.ones(len(X))])
        table.update({"block4": terms[:, 0], "block7": terms[:, 1]})
        table.update({"times_pretrained": times[:, 0], "times_discrepancy": times[:, 1]})
        table["reason"] = reasons(score - self.offset_, times, self.feature_spaces_, terms, [4, 7])
        first = np.arange(len(X)) % n
        table.update({f"neighbor{k}": (first + k) % n for k in range(n_neighbors)})
        table.update({f"distance{k}": np.full(len(X), 1.0 + k) for k in range(n_neighbors)})
        if maps:
            table["map"] = np.empty(len(X), dtype=object)
            table["map"][:] = [image.mean(axis=2, dtype=np.float32) / 64 + np.float32(0.01) for image in X]
        return table


@pytest.fixture
def training(tmp_path, rng):
    """Forty training images on disk, and what a model file says of them."""
    root = tmp_path / "normal"
    root.mkdir()
    files, digests = [], []
    for i in range(40):
        pixels = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        files.append(f"{i:02}.png")
        Image.fromarray(pixels).save(root / files[-1])
        digests.append(image_facts("", pixels).digest)
    return Provenance(
        root=str(root),
        files=files,
        fitted=list(range(40)),
        scores=[float(-i) for i in range(40)],
        digests=digests,
        unreadable={"broken.png": "cannot be decoded"},
        seed=7,
        seconds=12.5,
        settings={"teacher": "a teacher", "weights": "file"},
    )


def make_images(folder, names, rng, size=(48, 64)):
    folder.mkdir(exist_ok=True)
    paths = []
    for i, name in enumerate(names):
        pixels = rng.integers(0, 20 + 230 * i // max(1, len(names)), (*size, 3), dtype=np.uint8)
        paths.append(os.path.join(folder, name))
        os.makedirs(os.path.dirname(paths[-1]), exist_ok=True)  # names may hold slashes
        with open(paths[-1], "wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
    return paths


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cards, self.inside, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)
        if dict(attrs).get("class", "").split()[:1] == ["card"]:
            self.cards.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data)


def fitted_on(training):
    """A detector that was fitted on the images of `training`; those without a score are known anomalies."""
    detector = Bright()
    if training is not None:
        detector.training_digests_ = np.array([list(bytes.fromhex(digest)) for digest in training.digests], np.uint8)
        detector.training_labels_ = np.array([1 if score is not None else -1 for score in training.scores])
    return detector


class Split(Bright):
    """A detector around another one that was fitted on the odd images alone: the others calibrate."""

    calibration = 0.5

    def __init__(self, estimator):
        super().__init__()
        self.estimator_ = estimator

    def explain(self, X, **options):
        table = super().explain(X, **options)
        return {name: 2 * column if name.startswith("neighbor") else column for name, column in table.items()}


def write(tmp_path, paths, training=None, **changes):
    out = tmp_path / "report.html"
    origin = Origin(training or Provenance(), model=changes.pop("model", ""))
    detector = changes.pop("detector", None) or fitted_on(training)
    summary = write_report(detector, paths, out, origin=origin, **changes)
    text = out.read_text(encoding="utf-8")
    return text, Reader(text), summary


def test_images_are_ranked_from_most_to_least_anomalous(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(9)], rng)
    text, page, summary = write(tmp_path, paths, training)
    scores = [float(card["data-score"]) for card in page.cards]
    assert len(scores) == 9 and scores == sorted(scores)
    assert text.index("8.png") < text.index("7.png")
    assert summary["anomalies"] == sum(card["data-kind"] == "-1" for card in page.cards) > 0


@pytest.mark.parametrize(("n", "said"), [(39, "about 2 would be (5 %)"), (4, "about 8 would be (20 %)")])
def test_the_page_expects_as_many_flagged_as_the_calibration_allows(tmp_path, rng, n, said):
    """Four images cannot keep 5 %; what cannot be read is not expected to be flagged."""
    detector = Bright()
    detector.calibration_scores_, detector.calibration = np.linspace(-110.0, -10.0, n), 0.5
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(40)], rng)
    broken = [tmp_path / f"{i}.png" for i in range(20)]
    for path in broken:
        path.write_bytes(b"no image")
    write_report(detector, [*paths, *broken], tmp_path / "r.html")
    assert f"If all were normal, {said}." in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_scores_and_p_values_are_the_detectors(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["a.png", "b.png", "c.png"], rng)
    _, page, _ = write(tmp_path, paths, training)
    table = Bright().score_table([np.asarray(Image.open(path)) for path in paths])
    order = np.argsort(table["score"])
    np.testing.assert_array_equal([float(card["data-score"]) for card in page.cards], table["score"][order])
    np.testing.assert_array_equal([float(card["data-p"]) for card in page.cards], table["p_value"][order])


def test_nothing_in_the_page_has_an_address_outside_it(tmp_path, rng, training):
    _, page, _ = write(tmp_path, make_images(tmp_path / "new", HOSTILE, rng), training)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,", "data:,")), (tag, attributes)
    assert not {"iframe", "object", "embed", "base", "a:external"} & {tag for tag, _ in page.tags}


def test_the_policy_allows_its_own_script_and_style_alone(tmp_path, rng, training):
    text, page, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        import hashlib

        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(tmp_path, rng, training, name):
    plain, _, _ = write(tmp_path, make_images(tmp_path / "new", ["x.png"], rng), training)
    (tmp_path / "new" / "x.png").unlink()
    try:
        paths = make_images(tmp_path / "new", [name], rng)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes no such name")
    text, page, _ = write(tmp_path, paths, training, title=f"model: {name}")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Reader(plain).tags]
    # what names the image is visible: printable, escaped where it is not
    shown = "".join(page.texts)
    assert name.encode("unicode_escape").decode().replace("\\udce9", "\\xe9") in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_hostile_names_of_training_images_are_text(tmp_path, rng, training):
    plain, _, _ = write(tmp_path, make_images(tmp_path / "new", ["x.png"], rng), training)
    training.files[0] = HOSTILE[0]
    (path,) = make_images(tmp_path / "normal", HOSTILE[:1], rng)
    training.digests[0] = image_facts("", np.asarray(Image.open(path))).digest
    training.settings["<script>"] = "<script>window.hacked=1</script>"
    training.unreadable["<img src=x>"] = "<b>"
    text, page, _ = write(tmp_path, [str(tmp_path / "new" / "x.png")], training)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    for tag in ("b", "img"):
        assert tags.count(tag) == [other for other, _ in Reader(plain).tags].count(tag)


def test_unreadable_images_are_listed_with_their_reason(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["a.png", "b.png"], rng)
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no image")
    text, page, summary = write(tmp_path, [*paths, str(tmp_path / "new" / "broken.jpg")], training)
    assert len(page.cards) == 2 and summary["unreadable"] == 1 and summary["images"] == 3
    assert "broken.jpg" in text and "cannot be decoded as an image" in text


def test_the_same_pixels_under_another_name_and_format_are_a_duplicate(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["a.png", "b.png"], rng)
    Image.open(paths[0]).save(tmp_path / "new" / "copy.bmp")
    _, _, summary = write(tmp_path, [*paths, str(tmp_path / "new" / "copy.bmp")], training)
    assert summary["duplicates"] == 1


def test_images_of_the_fit_are_pointed_out(tmp_path, rng, training):
    text, _, summary = write(tmp_path, [str(tmp_path / "normal" / "03.png")], training)
    assert summary["known"] == 1 and "1 image of the fit" in text and "(of the fit)" in text


def test_so_are_those_of_a_model_that_names_none(tmp_path, rng, training):
    text, _, summary = write(tmp_path, [str(tmp_path / "normal" / "03.png")], detector=fitted_on(training))
    assert summary["known"] == 1 and "was part of the fit" not in text


def test_what_the_file_does_not_say_of_the_fit_is_not_made_up(tmp_path, rng, training):
    training.seconds = 0.0
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    assert "time to fit" not in text and "passed over there" not in text


def test_neighbours_are_images_of_the_fit_and_not_those_that_calibrate(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["a.png"], rng)
    text, page, _ = write(tmp_path, paths, training, detector=Split(fitted_on(training)))
    titles = [a["title"] for tag, a in page.tags if tag == "img" and "data-near" in a and a["alt"]]
    assert titles == ["00.png", "01.png", "02.png"]
    assert "40 normal images that calibrate the threshold." in text and "judged by the others" not in text


def test_known_anomalies_are_not_of_the_fit(tmp_path, training):
    training.scores[3] = None
    text, _, summary = write(tmp_path, [str(tmp_path / "normal" / "03.png")], training)
    assert summary["known"] == 0 and "(of the fit)" not in text


@pytest.mark.parametrize(("size", "tiny"), [((15, 64), 1), ((16, 16), 0)])
def test_tiny_is_a_quarter_of_what_the_teacher_sees(tmp_path, rng, training, size, tiny):
    paths = make_images(tmp_path / "new", ["a.png"], rng, size=size)
    assert write(tmp_path, paths, training)[2]["tiny"] == tiny


def test_blank_images_are_pointed_out(tmp_path, training):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    assert write(tmp_path, [str(tmp_path / "red.png")], training)[2]["blank"] == 1


@pytest.mark.parametrize(("grey", "coloured"), [(True, 1), (False, 0)])
def test_images_in_colour_are_pointed_out_where_normal_ones_are_grey(tmp_path, training, grey, coloured):
    for name, tint in (("grey.png", 0), ("tinted.png", 6)):
        Image.new("RGB", (40, 40), (90 + tint, 90, 90)).save(tmp_path / name)
    detector = fitted_on(training)
    detector.grey_ = grey
    paths = [str(tmp_path / name) for name in ("grey.png", "tinted.png")]
    text, _, summary = write(tmp_path, paths, training, detector=detector)
    assert summary["coloured"] == coloured and ("1 image in colour" in text) is grey


def test_the_least_normal_training_images_are_shown(tmp_path, rng, training):
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    wrong = text[text.index("Training images that look least normal") : text.index('id="made"')]
    assert re.findall(r"(\d\d)\.png</bdi>", wrong) == ["39", "38", "37", "36", "35", "34", "33", "32"]


def test_neighbours_are_named_in_the_order_of_the_fit(tmp_path, rng, training):
    training.fitted = list(range(39, -1, -1))
    text, page, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    titles = [a["title"] for tag, a in page.tags if tag == "img" and "data-near" in a and a["alt"]]
    assert titles == ["39.png", "38.png", "37.png"]
    assert [re.search(rf'title="{name}">distance ([\d.]+)</span>', text)[1] for name in titles] == [
        "1.00",
        "2.00",
        "3.00",
    ]


def test_a_neighbour_whose_name_is_not_known_gets_none(tmp_path, rng, training):
    """Of a model that Python made and `update` went on with, the file names the later images alone."""
    training.fitted = [-1, 0, 5] + [-1] * 37
    text, page, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    near = text[text.index('class="near"') : text.index('class="more"')]
    titles = [a["title"] for tag, a in page.tags if tag == "img" and "data-near" in a and a["alt"]]
    assert titles == ["00.png", "05.png"] and "image 0 of the fit" in near and "39.png" not in near


def test_each_neighbour_is_in_the_page_once(tmp_path, rng, training):
    text, page, _ = write(tmp_path, make_images(tmp_path / "new", [f"{i}.png" for i in range(30)], rng), training)
    used = [a["data-near"] for tag, a in page.tags if "data-near" in a]
    pool = text[text.index('id="near"') :]
    assert len(used) > 90 and pool.count("data:image/webp") == len(set(used))


def test_training_images_that_are_gone_are_counted(tmp_path, rng, training):
    for name in training.files:
        (tmp_path / "normal" / name).unlink()
    text, page, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    assert "40 normal images not shown" not in text and "not found below" in text and "00.png" in text


def test_training_images_may_have_moved(tmp_path, rng, training):
    os.rename(tmp_path / "normal", tmp_path / "elsewhere")
    text, page, _ = write(
        tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training, normal_dir=tmp_path / "elsewhere"
    )
    assert "not found below" not in text and "differs from what" not in text


def test_images_of_another_folder_are_not_shown_as_normal_ones(tmp_path, rng, training):
    make_images(tmp_path / "other", training.files, rng)
    text, page, summary = write(
        tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training, normal_dir=tmp_path / "other"
    )
    assert summary["normal_changed"] > 3 and summary["normal_missing"] == 0
    assert f"{summary['normal_changed']} normal images not shown" in text
    assert "data:image" not in text[text.index('id="near"') :]
    named = [a["data-path"].rpartition("/")[0] for tag, a in page.tags if "data-path" in a]
    assert set(named) == {path_bytes(str(tmp_path / folder)) for folder in ("new", "normal")}  # labels go to these


@pytest.mark.parametrize(("levels", "shown"), [(1, True), (20, False)])
def test_pixels_of_another_decoder_are_the_same_image(tmp_path, rng, training, levels, shown):
    detector = Bright()
    pixels = [np.asarray(Image.open(tmp_path / "normal" / name)) for name in training.files]
    detector.training_thumbnails_ = np.stack([thumbnail_of(image) for image in pixels])
    for name, image in zip(training.files, pixels):
        Image.fromarray(image + np.uint8(levels)).save(tmp_path / "normal" / name)
    paths = make_images(tmp_path / "new", ["a.png"], rng)
    summary = write_report(detector, paths, tmp_path / "r.html", origin=Origin(training))
    assert (summary["normal_changed"] == 0) == shown


def test_a_changed_training_image_is_said_to_be(tmp_path, rng, training):
    Image.new("RGB", (9, 9)).save(tmp_path / "normal" / "00.png")
    text, _, summary = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    assert summary["normal_changed"] == 1 and "under its name differs from what the model was fitted on" in text


def test_more_images_than_the_limit_leave_the_least_anomalous_out(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(9)], rng)
    text, page, summary = write(tmp_path, paths, training, limit=4)
    assert len(page.cards) == summary["shown"] == 4
    assert "5 more count in the histogram only" in text
    assert min(float(card["data-score"]) for card in page.cards) == min(
        Bright().score_table([np.asarray(Image.open(path)) for path in paths])["score"]
    )


def test_a_detector_without_p_values_has_no_filter_for_them(tmp_path, rng):
    class Plain(Bright):
        def __init__(self):
            super().__init__()
            del self.calibration_scores_

        def score_table(self, X, score=None):
            return {**Bright().score_table(X, score), "p_value": np.full(len(X), np.nan)}

    out = tmp_path / "report.html"
    origin = Origin(Provenance(settings={"teacher": "x"}))
    write_report(Plain(), make_images(tmp_path / "new", ["a.png"], rng), out, origin=origin)
    page = Reader(out.read_text(encoding="utf-8"))
    assert not any(a.get("id") == "p" for _, a in page.tags)


def test_a_card_says_what_explain_says(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(9)], rng)
    text, page, _ = write(tmp_path, paths, training)
    table = Bright().explain([np.asarray(Image.open(path)) for path in paths])
    for card, i in zip(re.findall('<li class="card.*?\n</li>', text, re.DOTALL), np.argsort(table["score"])):
        assert (f"<p>{table['reason'][i]}</p>" in card) == (table["reason"][i] != "normal")
        if 'data-kind="-1"' in card:
            said = re.search(r"unusual in <b>(\w+)</b>(, block \d)?: (\S+) ×", card)
            assert f"unusual in {said[1]} (" in table["reason"][i] and f" {said[3]} times as far" in table["reason"][i]
            assert (said[2] or "") in table["reason"][i]


def test_figures_have_the_same_decimals_everywhere(tmp_path, rng, training):
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", [f"{i}.png" for i in range(9)], rng), training)
    for name, count in (("score", 9), ("p", 9)):
        shown = re.findall(rf"<span>{name} <b>(\S+)</b>", text)
        assert len(shown) == count and len({len(number.partition(".")[2]) for number in shown}) == 1


def test_a_map_of_noise_is_not_shown(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["dark.png", "bright.png", "grey.png"], rng)
    Image.new("RGB", (64, 48), (40, 40, 40)).save(paths[0])
    Image.new("RGB", (64, 48), (230, 230, 230)).save(paths[1])  # 3.6 by Bright; the others are below 3
    Image.new("RGB", (64, 48), (128, 128, 128)).save(paths[2])
    text, _, _ = write(tmp_path, paths, training)
    cards = {re.search(r">(\w+)\.png<", card)[1]: card for card in text.split('<li class="card')[1:4]}
    assert [name for name, card in cards.items() if 'class="map"' in card] == ["bright"]
    # of an anomaly without a map the card says why; dark is none
    assert [name for name, card in cards.items() if "No single place stands out" in card] == ["grey"]


def test_distances_of_neighbours_are_called_so(tmp_path, rng, training):
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    assert all(f"distance {number}.00" in text for number in (1, 2, 3))


def test_cards_know_their_folders(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", ["a/1.png", "a/2.png", "b/c/3.png"], rng)
    text, page, _ = write(tmp_path, paths, training)
    names = re.findall(r'<option value="(\d)">([^<]*) \((\d) of (\d) flagged\)', text)
    assert [(name, int(total)) for _, name, _, total in names] == [("a", 2), ("b/c", 1)]
    folders = {card["data-path"].rpartition("/")[2]: int(card["data-folder"]) for card in page.cards}
    assert folders == {"1.png": 0, "2.png": 0, "3.png": 1}


@example(scores=[101.0], reference=[101.0, 101.0], threshold=101.0)  # rounding put a number beyond the axis
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40),
    st.floats(-2e3, 2e3),
)
@settings(deadline=None)
def test_histograms(scores, reference, threshold):
    scores, reference = np.array(scores), np.array(reference)
    drawn = histogram(scores, scores < threshold, reference, threshold)
    bars = drawn["bars"]
    assert sum(bar["count"] for bar in bars) == len(scores) and sum(bar["other"] for bar in bars) == len(reference)
    assert 0 <= drawn["at"] <= 100 and len(bars) <= 45
    # one scale: heights are shares, the highest of all is 100
    assert max(max(bar["height"], bar["normal"]) for bar in bars) == pytest.approx(100)
    for bar in bars:
        for height, share in (
            (bar["height"], bar["count"] / len(scores)),
            (bar["normal"], bar["other"] / len(reference)),
        ):
            assert height == pytest.approx(max(100 * share / drawn["top"], 1.5 * (share > 0)))
    # the axis has few, round numbers
    values = [value for _, value in drawn["ticks"]]
    assert 1 <= len(values) <= 8 and all(0 <= x <= 100 for x, _ in drawn["ticks"])
    assert all(abs(value - round(value, drawn["decimals"])) <= 1e-9 * max(1, abs(value)) for value in values)


@example(flagged=2, others=0, elsewhere=19)  # three times a height, by three, was more than the height
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
@settings(deadline=None)
def test_parts_of_a_bar_have_heights(flagged, others, elsewhere):
    """A part below zero, if only by rounding, would be an error to browsers."""
    scores = np.repeat([0.0, 0.0, 9.0], [flagged + 1, others, elsewhere])
    is_flagged = np.arange(len(scores)) <= flagged
    for bar in histogram(scores, is_flagged, np.arange(10.0), None)["bars"]:
        assert 0 <= bar["flagged"] <= bar["height"] and 0 <= bar["rest"] <= bar["height"]
        assert bar["flagged"] + bar["rest"] == pytest.approx(bar["height"])


def test_places_in_drawings_are_numbers_to_programs(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(40)], rng)
    text, _, _ = write(tmp_path, paths, training)
    numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|width|height)="([^"]*)"', text)
    assert len(numbers) > 100
    assert all(float(number.rstrip("%")) >= 0 for number in numbers)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (-0.0, "0.00"), (-0.006, "−0.01"), (1e7, "1e+07"), (np.nan, "–")]
)
def test_numbers_align(value, text):
    assert _fixed(value, 2) == text


@given(st.floats(1e-6, 1e9), st.integers(3, 50))
def test_steps_are_round(span, most):
    step = round_step(span, most)
    assert f"{step:.0e}"[0] in "125" and float(f"{step:.0e}") == step
    assert span / step <= most * (1 + 1e-6) < 2.6 * (span / step)


def test_histogram_bars_hold_every_image_once(tmp_path, rng, training):
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", [f"{i}.png" for i in range(20)], rng), training)
    assert sum(int(count) for count in re.findall(r": (\d+) images, \d+ normal", text)) == 20
    assert sum(int(count) for count in re.findall(r"images, (\d+) normal ones", text)) == 40


def test_progress_adds_up(tmp_path, rng, training):
    paths = make_images(tmp_path / "new", [f"{i}.png" for i in range(5)], rng)
    (tmp_path / "new" / "broken.png").write_bytes(b"")
    steps = []
    write(tmp_path, [*paths, str(tmp_path / "new" / "broken.png")], training, advance=steps.append)
    assert sum(steps) == pytest.approx(6, abs=0.6)


def test_half_a_page_is_never_left(tmp_path, rng, training, monkeypatch):
    import skl_transformaly.cli.report as report

    monkeypatch.setattr(report, "_policy", lambda *texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    assert sorted(os.listdir(tmp_path)) == ["new", "normal"]


@pytest.mark.parametrize("mode", ["noise", "flat"])
@pytest.mark.parametrize("most", [1400, 8000])
def test_pictures_keep_to_their_bytes(rng, mode, most):
    pixels = (
        rng.integers(0, 256, (600, 400, 3), dtype=np.uint8) if mode == "noise" else np.zeros((600, 400, 3), np.uint8)
    )
    address = _cards.picture(Image.fromarray(pixels), 192, most)
    content = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
    assert len(content) <= most and max(Image.open(io.BytesIO(content)).size) <= 192


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_every_kind_have_a_picture(rng, dtype, channels):
    scale = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    pixels = (rng.random((20, 30, channels)) * scale).astype(dtype)
    pixels[..., 3:] = scale
    expected = np.broadcast_to(np.rint(pixels[..., :3].astype(float) / scale * 255), (20, 30, 3))
    assert np.abs(as_rgb(pixels) - expected).max() <= 1


def test_a_thousand_images_stay_below_20_megabytes():
    """By what the pictures may take at most, whatever is on them."""
    encoded = 4 / 3 * (_cards.THUMB_BYTES + _cards.MAP_BYTES + _cards.N_NEIGHBORS * _cards.NEAR_BYTES)
    assert 1000 * (encoded + 2000) < 20e6


def test_what_is_said_of_an_image_takes_less_than_2000_bytes(tmp_path, rng, training):
    text, _, _ = write(tmp_path, make_images(tmp_path / "new", ["a.png"], rng), training)
    card = text[text.index('<li class="card') : text.index("</ol>")]
    assert len(re.sub('src="[^"]*"', "", card)) < 2000


# ----- in a browser


def chromium(folder, width, height):
    selenium = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    from selenium.webdriver.chrome.service import Service

    return selenium.Chrome(options=options, service=Service(driver))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_in_a_browser(tmp_path, rng, training, width, height):
    import json

    names = HOSTILE + [f"{i}.png" for i in range(40)]
    write(tmp_path, make_images(tmp_path / "new", names, rng), training, title=HOSTILE[0])
    with contextlib.closing(chromium(tmp_path, width, height)) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.get("about:blank")
        browser.get_log("performance")  # of the browser's own first page
        browser.get((tmp_path / "report.html").as_uri())
        run = browser.execute_script

        def shown():
            return run("return [...document.querySelectorAll('.card')].filter(c => !c.hidden).length")

        def enter(name, value):
            run(
                "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change'))",
                name, value,
            )  # fmt: skip

        scores = run("return [...document.querySelectorAll('.card')].map(c => +c.dataset.score)")
        p_values = run("return [...document.querySelectorAll('.card')].map(c => +c.dataset.p)")
        kinds = run("return [...document.querySelectorAll('.card')].map(c => c.dataset.kind)")
        assert shown() == len(names)
        enter("kind", "-1")
        assert shown() == kinds.count("-1") > 0
        enter("kind", "")
        enter("to", "-60")
        assert shown() == sum(score <= -60 for score in scores)
        enter("from", "-90")
        assert shown() == sum(-90 <= score <= -60 for score in scores)
        enter("from", "")
        enter("to", "")
        enter("p", "50")
        most = float(run("return document.getElementById('p').dataset.least")) ** 0.5
        assert shown() == sum(p <= most for p in p_values) < len(names)
        enter("p", "100")
        enter("text", "JAVASCRIPT:")
        assert shown() == 1
        enter("text", "no such name")
        assert shown() == 0 and run("return !document.getElementById('nothing').hidden")
        run("document.querySelector('button[type=reset]').click()")
        run("return new Promise(done => setTimeout(done, 50))")
        assert shown() == len(names)
        enter("order", "normal")
        reordered = run("return [...document.querySelectorAll('.card')].map(c => +c.dataset.score)")
        assert reordered == scores[::-1]
        # a bar chosen shows its own images
        count = run(
            "const bin = [...document.querySelectorAll('.bin')].find(b => !/ 0 images/.test(b.textContent));"
            "bin.dispatchEvent(new Event('click')); return +/: (\\d+) images/.exec(bin.textContent)[1]"
        )
        assert shown() == count
        # every picture that should be there is
        run("document.querySelector('button[type=reset]').click(); window.scrollTo(0, document.body.scrollHeight)")
        run("return new Promise(done => setTimeout(done, 300))")
        assert run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert run("return typeof window.hacked") == "undefined"
        requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [
            message["params"]["request"]["url"]
            for message in requests
            if message["method"] == "Network.requestWillBeSent"
        ]
        outside = [url for url in sent if not url.startswith(("file://" + str(tmp_path), "data:"))]
        assert not outside
        assert browser.get_log("browser") == []
        # the policy holds even against script that gets into the page
        run("const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)")
        run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
        assert run("return typeof window.hacked") == "undefined"
        assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, tmp_path, rng, training):
    """A browser that shows a report of images in two folders, one of them with a name that is not text."""
    width, height = request.param
    names = [f"{folder}/{i}.png" for folder in ("first", "second") for i in range(8)] + [
        'first/a,"b\ncaf\udce9.png',
        f"second/{'long' * 20}.png",
    ]
    paths = make_images(tmp_path / "new", names, rng)
    write(tmp_path, [*paths, str(tmp_path / "normal" / "39.png")], training, model="parts.tfm")
    with contextlib.closing(chromium(tmp_path, width, height)) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.get((tmp_path / "report.html").as_uri())
        yield browser


def download(tmp_path, browser, button):
    """What a button saves, as rows."""
    before = set(tmp_path.glob("downloads/*.csv"))
    browser.execute_script("document.getElementById(arguments[0]).click()", button)
    for _ in range(600):
        # browsers hold the name with an empty file before they move the rows there
        if new := [path for path in set(tmp_path.glob("downloads/*.csv")) - before if path.stat().st_size]:
            with open(new.pop(), encoding="utf-8", errors="surrogateescape", newline="") as file:
                return list(csv.DictReader(file))
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


def press(browser, *keys):
    """Press keys wherever the focus is."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


@pytest.mark.slow
def test_labels_are_given_by_keys_and_by_buttons_and_saved(tmp_path, page):
    run = page.execute_script
    ranked = run("return [...document.querySelectorAll('.card')].map(c => c.dataset.path)")
    run("document.querySelector('.card').focus()")
    press(page, "a", "\ue014", "n", "\ue014", "n", "\ue012", "u", "\ue014", "\ue014", "A")  # right, left
    run("document.querySelector('.suspicious .label [value=\"-1\"]').click()")
    labels = {quote(os.fsencode(row["path"])): row["label"] for row in download(tmp_path, page, "save-labels")}
    worst = quote(str(tmp_path / "normal" / "39.png"))
    assert labels == {ranked[0]: "-1", ranked[2]: "1", ranked[3]: "-1", worst: "-1"}
    # an image of the fit that is reported on, too, shows its label in both places
    assert run("return document.querySelectorAll('.label [value=\"-1\"][aria-pressed=true]').length") == 4
    # and labels outlive the page
    page.refresh()
    assert run("return document.getElementById('save-labels').textContent") == "Save 4 labels"


@pytest.mark.slow
def test_what_is_shown_is_saved_in_its_order(tmp_path, page):
    page.execute_script(
        "document.getElementById('folder').value = '0'; document.getElementById('order').value = 'normal';"
        "for (const kind of ['input', 'change'])"
        " document.getElementById('order').dispatchEvent(new Event(kind, {bubbles: true}))"
    )
    rows = download(tmp_path, page, "save-shown")
    assert list(rows[0]) == ["path", "score", "decision", "p_value", "prediction"]
    paths = [row["path"] for row in rows]
    inside = sorted(str(path) for path in (tmp_path / "new" / "first").iterdir())
    assert sorted(paths) == inside and any("\udce9" in path for path in paths)
    table = Bright().score_table([np.asarray(Image.open(path)) for path in paths])
    for name in ("score", "decision", "p_value", "prediction"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], table[name])
    assert (np.diff(table["score"]) <= 0).all()


@pytest.mark.slow
def test_groups_have_headings(page):
    run = page.execute_script
    run("document.getElementById('group').click()")
    order = run("return [...document.getElementById('cards').children].map(c => c.dataset.folder)")
    headings = run("return [...document.querySelectorAll('.group h3')].map(h => h.textContent)")
    assert len(headings) == 3 and sorted(order) == order and len(order) == 19 + 3
    run(
        "document.getElementById('folder').value = '1';"
        "document.getElementById('folder').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert run("return [...document.querySelectorAll('.group')].filter(g => !g.hidden).length") == 1


@pytest.mark.slow
def test_nothing_is_clipped_and_a_picture_is_on_the_first_screen(page):
    run = page.execute_script
    top = run("return document.querySelector('.card .picture').getBoundingClientRect().top")
    assert top < 0.8 * run("return innerHeight")
    run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    clipped = run(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('svg, .picture, .wordy, #scores-title')"
        " && e.clientWidth && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 200))"
    )
    assert not clipped


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing_serious(page, scheme):
    """SKL_TRANSFORMALY_AXE is the path of axe.min.js (npm pack axe-core)."""
    script = os.environ.get("SKL_TRANSFORMALY_AXE")
    if not script:
        pytest.skip("SKL_TRANSFORMALY_AXE does not name axe.min.js")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    with open(script, encoding="utf-8") as file:
        page.execute_cdp_cmd("Runtime.evaluate", {"expression": file.read()})
    page.set_script_timeout(120)
    found = page.execute_async_script(
        "axe.run(document).then(found => arguments[0](found.violations.map(v => [v.impact, v.id, v.nodes[0].html])))"
    )
    assert not [violation for violation in found if violation[0] in ("serious", "critical")]


def test_colours_mean_in_reports_what_they_mean_in_answers_of_the_server():
    values = np.full((4, 4), 3.0, dtype=np.float32)
    card = _cards.Card(None, 0.0, 0.0, 0.0, 1, map=values.astype(np.float16))
    answer = paint(values)
    assert (answer["from"], answer["to"]) == (MAP_FROM, _cards.strongest([card]))
