"""Depth and range of pixels: the same in every container, and nothing out of its range is scored."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from skl_transformaly import ImageError
from skl_transformaly.images._depth import _avif_bits, _jpeg_2000_bits
from skl_transformaly.images._images import as_images
from skl_transformaly.images._maps import map_colours, map_to, shrunk
from skl_transformaly.images._pixels import as_rgb, eight_bits

HIGH, WIDE = 5, 7


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def predicted(kind, left, up, corner):
    """What a PNG filter takes off a byte."""
    if kind == 4:  # Paeth
        guess = left + up - corner
        return min((left, up, corner), key=lambda near: abs(guess - near))
    return (0, left, up, (left + up) // 2)[kind]


def deep_png(pixels, kind=0, before=b""):
    """A PNG of 16 bits a channel, its rows filtered by `kind`."""
    colour, size = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]], 2 * pixels.shape[2]
    rows, above = b"", bytes(size * pixels.shape[1])
    for row in pixels.astype(">u2"):
        raw = row.tobytes()
        near = zip(bytes(size) + raw, above, bytes(size) + above)
        rows += bytes([kind]) + bytes((byte - predicted(kind, *three)) % 256 for byte, three in zip(raw, near))
        above = raw
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + chunk(b"IEND", b"")


def deep_tiff(pixels, order="<", compressed=False, planar=1, extra=None):
    """A TIFF of 16 bits a channel."""
    high, wide, channels = pixels.shape
    data = (np.moveaxis(pixels, 2, 0) if planar == 2 else pixels).astype(f"{order}u2").tobytes()
    strips = 1 if planar == 1 else channels
    size = len(data) // strips
    data = zlib.compress(data) if compressed else data
    entries = {256: wide, 257: high, 259: 8 if compressed else 1, 262: 2, 277: channels, 278: high, 284: planar}
    extras = 8 + len(data)
    tags = [(tag, 3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in entries.items()]
    tags.append((258, 3, channels, struct.pack(f"{order}I", extras)))
    tail = struct.pack(f"{order}{channels}H", *[16] * channels)
    if strips == 1:
        tags.append((273, 4, 1, struct.pack(f"{order}I", 8)))
        tags.append((279, 4, 1, struct.pack(f"{order}I", len(data))))
    else:
        for tag, values in ((273, [8 + i * size for i in range(strips)]), (279, [size] * strips)):
            tags.append((tag, 4, strips, struct.pack(f"{order}I", extras + len(tail))))
            tail += struct.pack(f"{order}{strips}I", *values)
    if extra is not None:
        tags.append((338, 3, 1, struct.pack(f"{order}HH", extra, 0)))
    directory = struct.pack(f"{order}H", len(tags))
    directory += b"".join(struct.pack(f"{order}HHI", *tag[:3]) + tag[3] for tag in sorted(tags))
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, extras + len(tail))
    return start + data + tail + directory + bytes(4)


def deep_ppm(pixels, largest=65535):
    return f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n{largest}\n".encode() + pixels.astype(">u2").tobytes()


def decoded(folder, content, name="image"):
    (folder / name).write_bytes(content)
    return as_images([folder / name])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deep")


def drawn_pixels(seed, channels):
    """Some smooth, some random: all filters have something to predict."""
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(HIGH) * 900, np.arange(WIDE) * 70)[..., np.newaxis] * np.arange(1, channels + 1)
    return np.where(rng.random() < 0.5, smooth, rng.integers(0, 65536, (HIGH, WIDE, channels))).astype(np.uint16)


# Depth


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([1, 2, 3, 4]), kind=st.integers(0, 4))
def test_a_png_keeps_its_16_bits(folder, seed, channels, kind):
    pixels = drawn_pixels(seed, channels)
    expected = pixels if channels != 2 else pixels[..., [0, 0, 0, 1]]
    np.testing.assert_array_equal(decoded(folder, deep_png(pixels, kind)), expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    channels=st.sampled_from([3, 4]),
    order=st.sampled_from("<>"),
    compressed=st.booleans(),
)
def test_a_tiff_keeps_its_16_bits(folder, seed, channels, order, compressed):
    pixels = drawn_pixels(seed, channels)
    content = deep_tiff(pixels, order, compressed, extra=2 if channels == 4 else None)
    np.testing.assert_array_equal(decoded(folder, content), pixels)


def test_premultiplied_colours_of_16_bits_are_divided_by_their_opacity(folder, rng):
    alpha = rng.integers(20000, 65536, (HIGH, WIDE, 1))
    colours = (rng.random((HIGH, WIDE, 3)) * alpha).astype(np.int64)
    content = deep_tiff(np.concatenate([colours, alpha], axis=-1), extra=1)
    expected = np.concatenate([colours / alpha, alpha / 65535], axis=-1) * 65535
    np.testing.assert_allclose(decoded(folder, content), expected, atol=1)


@pytest.mark.parametrize("largest", [65535, 4095, 1023])
def test_a_ppm_keeps_its_16_bits_and_is_scaled_by_its_own_largest_value(folder, rng, largest):
    pixels = rng.integers(0, largest + 1, (HIGH, WIDE, 3))
    found = decoded(folder, deep_ppm(pixels, largest))
    np.testing.assert_allclose(found, pixels * (65535 / largest), atol=0.51)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_a_pgm_is_scaled_by_its_own_largest_value(folder, rng, largest):
    pixels = rng.integers(0, largest + 1, (HIGH, WIDE))
    content = f"P5\n{WIDE} {HIGH}\n{largest}\n".encode() + pixels.astype(">u2").tobytes()
    np.testing.assert_allclose(decoded(folder, content)[..., 0], pixels * (65535 / largest), atol=0.51)


def test_one_transparent_colour_of_16_bits_is_seen_through(folder, rng):
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 3), dtype=np.uint16)
    hole = chunk(b"tRNS", pixels[0, 0].astype(">u2").tobytes())
    found = decoded(folder, deep_png(pixels, before=hole))
    np.testing.assert_array_equal(found[..., :3], pixels)
    np.testing.assert_array_equal(found[..., 3], np.where((pixels == pixels[0, 0]).all(-1), 0, 65535))


def test_16_bits_are_turned_upright(folder, rng):
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = deep_png(pixels, before=chunk(b"eXIf", exif.tobytes()[6:]))
    np.testing.assert_array_equal(decoded(folder, content), np.rot90(pixels, -1))


def test_16_bit_planes_are_refused(folder, rng):
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 3), dtype=np.uint16)
    with pytest.raises(ImageError, match="planes"):
        decoded(folder, deep_tiff(pixels, planar=2))


def test_a_plain_ppm_of_16_bits_says_that_it_is_cut(folder):
    with pytest.warns(UserWarning, match="reduces PPM images of 16 bits"):
        decoded(folder, b"P3\n1 1\n65535\n1 2 65535\n")


def saved_as(format, **options):
    out = io.BytesIO()
    gradient = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    Image.fromarray(np.stack([gradient] * 3, axis=-1)).save(out, format, **options)
    return bytearray(out.getvalue())


def jpeg_2000(bits):
    """A JPEG 2000 whose header states `bits` for each component."""
    content = saved_as("JPEG2000", no_jp2=True)
    start = content.index(b"\xff\x4f\xff\x51") + 42
    content[start : start + 9 : 3] = bytes([bits - 1] * 3)
    return bytes(content)


def avif(bits):
    """An AVIF whose header states `bits` for each channel, 8 or 10."""
    content = saved_as("AVIF")
    start = content.index(b"pixi\0\0\0\0\3") + 9
    content[start : start + 3] = bytes([bits] * 3)
    if bits > 8:
        content[content.index(b"av1C") + 6] |= 0x40
    return bytes(content)


def heic(bits):
    """A HEIC of `bits` per channel, 8 or 10."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    out = io.BytesIO()
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = np.zeros((32, 32, 3), dtype=dtype)
    pillow_heif.encode("RGB" if bits == 8 else "RGB;16", (32, 32), pixels.tobytes(), out, quality=-1)
    return out.getvalue()


@pytest.mark.parametrize(("make", "feature"), [(jpeg_2000, "jpg_2000"), (avif, "avif"), (heic, None)])
def test_a_container_whose_depth_pillow_cuts_warns_and_one_of_8_bits_does_not(folder, make, feature):
    if feature is not None and not features.check(feature):
        pytest.skip(f"Pillow without {feature}")
    with pytest.warns(UserWarning, match="of 10 bits per channel to 8 bits: save them as PNG or TIFF"):
        decoded(folder, make(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(folder, make(8)).dtype == np.uint8


@pytest.mark.parametrize("bits_of", [_jpeg_2000_bits, _avif_bits])
def test_a_header_that_tells_no_depth_is_of_8_bits(bits_of):
    assert bits_of(b"") == bits_of(bytes(100)) == 8


def test_a_grey_jpeg_2000_keeps_its_16_bits(folder, rng):
    if not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    pixels = rng.integers(0, 65536, (32, 32), dtype=np.uint16)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG2000")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decoded(folder, out.getvalue())[..., 0], pixels)


def test_an_opened_pil_image_keeps_its_16_bits_and_can_still_be_used(folder, rng):
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 3), dtype=np.uint16)
    (folder / "opened.png").write_bytes(deep_png(pixels))
    with Image.open(folder / "opened.png") as image:
        for _ in range(2):
            np.testing.assert_array_equal(as_images([image])[0], pixels)
        np.testing.assert_array_equal(np.asarray(image), pixels >> 8)


def written_and_read():
    """Endings of the formats that Pillow writes and reads by itself, as they come with this installation."""
    Image.init()
    own = [
        ending for ending, name in Image.registered_extensions().items() if {name} <= set(Image.SAVE) & set(Image.OPEN)
    ]
    return sorted(own)


@pytest.mark.parametrize("ending", written_and_read())
def test_an_opened_pil_image_is_what_its_path_is(folder, ending, rng):
    path = folder / f"any{ending}"
    try:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        expected = as_images([path])[0]
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        pytest.skip(f"Pillow cannot write or read it here: {error}")
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_images([image])[0], expected)


def test_16_bits_of_colour_score_as_their_array(folder, fitted, rng):
    detector, _ = fitted
    pixels = rng.integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    (folder / "scored.png").write_bytes(deep_png(pixels))
    (folder / "scored.tif").write_bytes(deep_tiff(pixels))
    scores = detector.score_samples([folder / "scored.png", folder / "scored.tif", pixels, pixels / 65535])
    np.testing.assert_allclose(scores, detector.score_samples(pixels[np.newaxis])[0], rtol=1e-9)


# 16 bits that hold fewer


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return [folder / name]


def saved(folder, image):
    image.save(folder / "saved.tif")
    return [folder / "saved.tif"]


# The same 16-bit pixels, by container.
CONTAINERS = {
    "array": lambda pixels, folder: pixels[np.newaxis],
    "list of arrays": lambda pixels, folder: [pixels],
    "grey array": lambda pixels, folder: [pixels[..., 0]],
    "big-endian array": lambda pixels, folder: [pixels.astype(">u2")],
    "tensor": lambda pixels, folder: torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())[None],
    "grey PNG": lambda pixels, folder: written(folder, "grey.png", deep_png(pixels[..., :1])),
    "grey TIFF": lambda pixels, folder: saved(folder, Image.fromarray(pixels[..., 0])),
    "colour PNG": lambda pixels, folder: written(folder, "colour.png", deep_png(pixels)),
    "colour TIFF": lambda pixels, folder: written(folder, "colour.tif", deep_tiff(pixels)),
    "opened PIL image": lambda pixels, folder: [Image.open(io.BytesIO(deep_png(pixels)))],
    "PIL image of mode I": lambda pixels, folder: [Image.fromarray(pixels[..., 0].astype(np.int32))],
    "PIL image of mode I;16": lambda pixels, folder: [Image.fromarray(pixels[..., 0])],
    "PIL image of mode I;16B": lambda pixels, folder: [
        Image.frombytes("I;16B", pixels.shape[1::-1], pixels[..., 0].astype(">u2").tobytes())
    ],
}


@pytest.mark.parametrize(
    "bits, advice", [(8, "uint8"), (10, "X \\* 64"), (12, r"X \* 16 or .*/ 4095"), (14, r"X \* 4")]
)
@pytest.mark.parametrize("name", CONTAINERS)
def test_fewer_bits_in_16_are_warned_of_in_every_container(name, bits, advice, folder, fitted, rng):
    pixels = rng.integers(0, 2**bits, (20, 24, 3), dtype=np.uint16)
    pixels[0, 0] = 2**bits - 1
    X = CONTAINERS[name](pixels, folder)
    with pytest.warns(UserWarning, match=f"Pixels of the image are uint16 of at most {2**bits - 1},.*{advice}"):
        fitted[0].score_samples(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels[0, 0] = 2**15
        fitted[0].score_samples(CONTAINERS[name](pixels, folder))


def test_many_images_of_fewer_bits_are_one_warning(rng):
    low = [rng.integers(0, 4096, (20, 24), dtype=np.uint16) for _ in range(12)]
    low[3][0, 0] = 4095
    whole = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    for X, count in ((np.stack(low), 12), ([*low, whole, np.zeros_like(whole)], 12)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tiny_detector().fit(X)
        told = [str(warning.message) for warning in caught if "nearly black" in str(warning.message)]
        assert len(told) == 1
        assert told[0].startswith(f"Pixels of {count} of {len(X)} images are uint16 of at most 4095")


@pytest.mark.parametrize(
    "image, message",
    [
        (np.eye(20, 24, dtype=np.uint8), "0 and 1 only"),
        (np.eye(20, 24) / 255, "divided by 255 twice"),
        (np.eye(20, 24, dtype=np.int64), "0 and 1 only"),
    ],
)
def test_other_pixels_on_a_smaller_scale_are_warned_of(image, message, fitted):
    with pytest.warns(UserWarning, match=message):
        fitted[0].score_samples([image])


def test_black_images_are_not_warned_of(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.uint8, np.uint16, np.float32, bool):
            fitted[0].score_samples([np.zeros((20, 24), dtype)])


# Ranges


def float_containers(image):
    """The same float image of one channel, by container."""
    return {
        "array": image[np.newaxis],
        "list of arrays": [image.astype(np.float32)],
        "tensor": torch.from_numpy(image)[None, None],
        "list of tensors": [torch.from_numpy(image)[None]],
        "PIL image": [Image.fromarray(image.astype(np.float32))],
    }


@settings(max_examples=80, deadline=None)
@given(
    low=st.floats(-300, 300),
    width=st.floats(0.01, 70000),
    name=st.sampled_from(list(float_containers(np.zeros((1, 1))))),
    seed=st.integers(0, 2**16),
)
def test_floats_out_of_range_never_score(low, width, name, seed):
    high = low + width
    image = np.random.default_rng(seed).uniform(low, high, (6, 8))
    image.flat[:2] = low, high
    outside = low < -0.01 or high > 1.01
    if not outside and (low < 0 or high > 1):
        return  # rounding, of which another test sees
    if outside:
        with pytest.raises(ImageError, match="float pixels are expected in 0-1|too large"):
            as_images(float_containers(image)[name])[0]
    else:
        assert as_images(float_containers(image)[name])[0].shape == (6, 8, 1)


@pytest.mark.parametrize(
    "low, high, message",
    [
        (0, 255, "divide by 255, or pass uint8"),
        (-0.0005, 255, "divide by 255"),
        (-3, 260, "divide by 255"),
        (0, 4095, "largest value"),
        (-2.1, 2.6, r"undo the normalisation \(X \* std \+ mean\)"),
        (-1, 1, "undo the normalisation"),
        (-0.1, 1.1, r"numpy\.clip"),
        (0, 1.2, r"numpy\.clip"),
    ],
)
@pytest.mark.parametrize("name", list(float_containers(np.zeros((1, 1)))))
def test_each_range_has_its_own_advice(name, low, high, message, fitted):
    image = np.linspace(low, high, 480).reshape(20, 24)
    for use in (fitted[0].score_samples, tiny_detector().fit):
        X = float_containers(image)[name]
        with pytest.raises(ValueError, match=message):
            use(X if use == fitted[0].score_samples or (isinstance(X, list) and len(X) > 1) else _twice(X))


def _twice(X):
    return (
        X + X if isinstance(X, list) else torch.cat([X, X]) if isinstance(X, torch.Tensor) else np.concatenate([X, X])
    )


def test_a_float_tiff_of_0_to_255_is_refused_by_name(tmp_path, fitted):
    Image.fromarray(np.full((20, 24), 99, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif.*divide by 255"):
        fitted[0].score_samples([tmp_path / "float.tif"])


@pytest.mark.parametrize("name", list(float_containers(np.zeros((1, 1)))))
def test_rounding_beyond_the_range_is_clipped(name, fitted, rng):
    image = np.round(rng.random((20, 24)) * 255) / 255
    rough = image.copy()
    image[0, :2], rough[0, :2] = (0, 1), (-1e-3, 1.001)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = as_images(float_containers(rough)[name])[0]
    np.testing.assert_allclose(found[..., 0], image, atol=1e-6)
    prepared = fitted[0].extractor_.preprocess
    np.testing.assert_array_equal(prepared([found]), prepared([image[..., np.newaxis]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", list(float_containers(np.zeros((1, 1)))))
def test_pixels_that_are_not_finite_are_refused(name, value):
    image = np.full((6, 8), 0.5)
    image[3, 4] = value
    with pytest.raises(ImageError, match="NaN or infinity"):
        as_images(float_containers(image)[name])[0]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_integers_out_of_range_are_refused(dtype):
    info = np.iinfo(dtype)
    for value in (-1, 256, 4095, 65535):
        if info.min <= value <= info.max:
            image = np.full((6, 8), value, dtype)
            for X in (image[np.newaxis], [image]):
                with pytest.raises(ImageError, match="expected in 0-255 but span.*uint16" if value > 0 else "rescale"):
                    as_images(X)[0]


def test_rows_with_image_shape_are_images_and_rows_without_are_any_numbers(rng):
    rows = rng.normal(size=(12, 48))
    with pytest.raises(ImageError, match="undo the normalisation"):
        tiny_detector(image_shape=(6, 8)).fit(rows)
    with pytest.warns(UserWarning, match="used as they are"):
        tiny_detector(feature_spaces=["pretrained"]).fit(rows)


# Limits of Pillow


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_long_text_names_the_limit_and_how_to_raise_it(kind, folder, rng, monkeypatch):
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 1), dtype=np.uint16)
    packed = zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))
    text = b"key\0\0" + packed if kind == b"zTXt" else b"key\0\1\0\0\0" + packed
    content = deep_png(pixels, before=chunk(kind, text))
    with pytest.raises(ImageError, match=r"PIL\.PngImagePlugin\.MAX_TEXT_CHUNK.*raise that limit") as caught:
        decoded(folder, content, "text.png")
    assert "repair" not in str(caught.value)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100 * PngImagePlugin.MAX_TEXT_CHUNK)
    np.testing.assert_array_equal(decoded(folder, content, "text.png"), pixels)


def test_many_texts_name_the_limit(folder, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 100)
    content = deep_png(np.ones((HIGH, WIDE, 1), np.uint16), before=chunk(b"tEXt", b"key\0" + b"a" * 200))
    with pytest.raises(ImageError, match=r"PIL\.PngImagePlugin\.MAX_TEXT_MEMORY.*raise that limit"):
        decoded(folder, content)


@pytest.mark.parametrize("share", [0.6, 3])
def test_a_large_image_names_the_limit(share, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(HIGH * WIDE / share / 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS.*raise that limit") as caught:
            decoded(folder, deep_png(np.full((HIGH, WIDE, 1), 65535, np.uint16)))
    assert "repair" not in str(caught.value)


def test_tiffs_made_here_are_tiffs(folder, rng):
    """What Pillow makes of the files of this module, by its high bytes."""
    pixels = rng.integers(0, 65536, (HIGH, WIDE, 3), dtype=np.uint16)
    (folder / "check.tif").write_bytes(deep_tiff(pixels))
    with Image.open(folder / "check.tif") as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        np.testing.assert_array_equal(np.asarray(image), pixels >> 8)


# ----- pixels that people look at


LEVELS = np.arange(0, 255, 17, dtype=np.uint8)[:12].reshape(2, 2, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        LEVELS,
        LEVELS / np.float32(255),
        LEVELS / 255,
        LEVELS * np.uint16(257),
        np.concatenate([LEVELS, np.full((2, 2, 1), 255, dtype=np.uint8)], axis=2),
    ],
    ids=["uint8", "float32", "float64", "uint16", "opaque"],
)
def test_people_see_the_same_picture_of_any_dtype(pixels):
    seen = as_rgb(pixels)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, LEVELS)


def test_people_see_floats_beyond_their_range_scaled_by_it():
    seen = as_rgb(np.array([[[-1.0], [0.0], [4.0]]]))
    np.testing.assert_array_equal(seen, np.repeat([[[0], [51], [255]]], 3, axis=2))


def test_people_see_transparency_laid_on_white():
    seen = as_rgb(np.array([[[0, 0, 0, 0], [0, 100, 200, 255], [0, 0, 0, 51]]], dtype=np.uint8))
    np.testing.assert_array_equal(seen, [[[255, 255, 255], [0, 100, 200], [204, 204, 204]]])


@pytest.mark.parametrize("pixels", [LEVELS / np.float32(255), LEVELS / 255, LEVELS * np.uint16(257)])
def test_levels_of_8_bits_are_recognised_in_any_dtype(pixels):
    found = eight_bits(pixels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LEVELS)


def test_finer_values_than_8_bits_are_kept():
    np.testing.assert_array_equal(eight_bits(LEVELS / 256), LEVELS / 256)
    np.testing.assert_allclose(eight_bits(LEVELS * np.uint16(256)), LEVELS * 256.0 / 65535)


def test_a_map_is_shrunk_with_its_sides_in_proportion():
    values = np.repeat(np.arange(4, dtype=np.float32)[:, None], 6, axis=1)
    small = shrunk(values, 0.5)
    assert small.shape == (2, 3)
    np.testing.assert_allclose(small.mean(axis=0), values.mean())
    assert shrunk(values, 0.01).shape == (1, 1)


def test_the_strongest_colour_is_for_what_half_a_per_cent_reach_but_not_for_noise():
    assert map_to(np.arange(0, 20.1, 0.1)) == pytest.approx(19.9)
    assert map_to(np.arange(0, 2, 0.1)) == map_to(np.empty(0)) == 6.0


def test_a_map_is_laid_over_an_image_from_clear_to_strong_red():
    colours = np.asarray(map_colours(np.array([[0.0, 2.0, 3.0, 6.0, 9.0]]), 2.0, 6.0))
    expected = [[255, 220, 40, 0], [255, 220, 40, 0], [255, 165, 30, 100], [255, 0, 0, 200], [255, 0, 0, 200]]
    np.testing.assert_array_equal(colours[0], expected)
