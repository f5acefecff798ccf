"""Decoding: every kind of image gives the same pixels upright, and every kind of rubbish its reason."""

import io
import pickle
import time
from itertools import combinations

import broken
import numpy as np
import pandas as pd
import pytest
from broken import GREY, LESION, MASK, PIXELS, encoded, png, tiff, tiff_tags
from conftest import SHARED
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms
from samples import examples

from melanoma_spark.errors import DataError, ImageError
from melanoma_spark.images import decoding, formats, hashes, synthetic
from melanoma_spark.images.reasons import REASONS

DATA = SHARED / "data"
CORPUS = broken.corpus()
SQUARES = arrays(np.uint8, st.tuples(*[st.integers(1, 12)] * 2, st.just(3)))

# EXIF's number -> how an upright image has to be turned to be stored that way.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def deep(pixels):
    """8-bit samples as big-endian 16-bit ones: white stays white."""
    return np.asarray(pixels).astype(">u2") * np.array(257, ">u2")


def views(pixels):
    """An image turned by quarters and mirrored: eight of it."""
    return [view for turns in range(4) for view in (np.rot90(pixels, turns), np.rot90(pixels, turns)[:, ::-1])]


def distance(result, expected):
    return np.abs(result.astype(int) - expected.astype(int)).mean()


JPEG, PNG = encoded(LESION, "JPEG", quality=95), encoded(LESION)
PROGRESSIVE = encoded(LESION, "JPEG", quality=90, progressive=True)


def test_oblong_and_upside_down_images_keep_their_pixels():
    halves = np.zeros((40, 120, 3), np.uint8)
    halves[:, 60:] = 255
    halves[0, 0, 0] = 9  # gray with two values would be a mask
    pixels = decoding.decode(encoded(Image.fromarray(halves)), 30)
    assert (pixels[1:, :14] == 0).all()
    assert (pixels[:, 16:] == 255).all()

    upside_down = encoded(LESION.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP")
    negative = broken.changed(upside_down, (22, (-96 & 0xFFFFFFFF).to_bytes(4, "little")))
    assert np.array_equal(decoding.decode(negative, 96), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grayscale_has_three_equal_channels(kind):
    pixels = decoding.decode(encoded(GREY, kind), 96)
    assert (pixels == pixels[:, :, :1]).all()
    assert distance(pixels[:, :, 0], np.asarray(GREY)) < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_image_has_the_colors_of_its_palette_or_is_a_mask(kind):
    marks = MASK.convert("1")
    with pytest.raises(ImageError, match="mask: gray with two values only"):
        decoding.decode(encoded(marks, kind), 96)
    two = Image.fromarray((np.asarray(marks)).astype(np.uint8), "P")
    two.putpalette([200, 150, 140, 90, 40, 30])
    expected = np.where(np.asarray(marks)[:, :, None], np.uint8([90, 40, 30]), np.uint8([200, 150, 140]))
    options = {"bits": 1} if kind == "PNG" else {}
    assert np.array_equal(decoding.decode(encoded(two, kind, **options), 96), expected)


def test_transparent_pixels_are_white():
    few = LESION.quantize(16)
    clear = few.getpixel((48, 48))
    expected = np.asarray(few.convert("RGB")).copy()
    expected[np.asarray(few) == clear] = 255
    assert np.array_equal(decoding.decode(encoded(few, transparency=clear), 96), expected)

    hidden = LESION.copy()
    hidden.putalpha(0)
    hidden.putpixel((0, 0), (1, 2, 3, 255))  # without a pixel to see it would be blank
    result = decoding.decode(encoded(hidden), 96)
    assert result[0, 0].tolist() == [1, 2, 3]
    assert (result.reshape(-1, 3)[1:] == 255).all()

    samples = deep(GREY)
    clear = samples[48, 48]
    expected = np.where(samples == clear, 255, np.asarray(GREY))
    pixels = decoding.decode(png(16, 0, samples, transparent=clear.tobytes()), 96)
    assert np.array_equal(pixels[:, :, 0], expected)


@pytest.mark.parametrize(
    ("color", "samples"),
    [(0, deep(GREY)), (2, deep(LESION)), (4, np.stack([deep(GREY), np.full((96, 96), 65535, ">u2")], axis=-1))],
    ids=["gray", "rgb", "gray and alpha"],
)
def test_16_bit_png_has_the_pixels_of_its_8_bit_twin(color, samples):
    twin = LESION if color == 2 else GREY
    for size in (96, 40):
        assert np.array_equal(decoding.decode(png(16, color, samples), size), decoding.decode(encoded(twin), size))


def test_large_jpegs_look_like_their_png_and_small_ones_as_in_pillow():
    large = Image.fromarray(synthetic.draw_lesion(np.random.default_rng(3), malignant=True, size=500))
    exact = decoding.decode(encoded(large), 48)
    for mode in ("RGB", "CMYK", "L"):
        result = decoding.decode(encoded(large.convert(mode), "JPEG", quality=95), 48)
        expected = decoding.decode(encoded(large.convert("L")), 48) if mode == "L" else exact
        assert distance(result, expected) < 1.5
    # Splits hang on the hashes of 224-pixel JPEGs: no scaling by libjpeg, one bilinear resize.
    small = encoded(LESION.resize((224, 224), Image.Resampling.BICUBIC), "JPEG", quality=90)
    result = decoding.decode_with_hashes(small, 224)
    with Image.open(io.BytesIO(small)) as plain:
        assert np.array_equal(result.pixels, np.asarray(plain))
        assert np.array_equal(result.hash_pixels, np.asarray(plain.resize((128, 128), Image.Resampling.BILINEAR)))


FEW = LESION.quantize(16)
OF_FEW = np.asarray(FEW.convert("RGB"))
OPAQUE, HALF = LESION.copy(), LESION.copy()
OPAQUE.putalpha(255)
HALF.putalpha(128)
ON_WHITE = (PIXELS * (128 / 255) + 255 * (127 / 255)).round()
LOSSLESS = {"lossless": True}
AVIF = {"quality": 100, "subsampling": "4:4:4"}
SEVERAL = [  # the format, its options, and how near it comes
    (kind, {**options, "save_all": True, "append_images": [LESION.rotate(90)]}, within)
    for kind, options, within in (("PNG", {}, 0), ("MPO", {}, 6), ("TIFF", {}, 0), ("WEBP", LOSSLESS, 0))
]
NO_TURN = Image.Exif()
NO_TURN[0x0112] = 99  # an orientation that does not exist


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected", "within"),
    [
        (LESION, "PNG", {}, PIXELS, 0),
        (LESION, "PNG", {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}, PIXELS, 0),
        (LESION, "PNG", {"exif": NO_TURN}, PIXELS, 0),
        *((LESION, "TIFF", {"compression": f"tiff_{how}"}, PIXELS, 0) for how in ("lzw", "adobe_deflate")),
        *((LESION, "TIFF", options, PIXELS, 0) for options in ({}, {"compression": "packbits"}, {"big_tiff": True})),
        (LESION, "BMP", {}, PIXELS, 0),
        (LESION, "WEBP", LOSSLESS, PIXELS, 0),
        *((FEW, kind, {}, OF_FEW, 0) for kind in ("PNG", "TIFF", "BMP")),
        (OPAQUE, "PNG", {}, PIXELS, 0),
        (GREY.convert("LA"), "PNG", {}, np.asarray(GREY.convert("RGB")), 0),
        *((HALF, kind, LOSSLESS if kind == "WEBP" else {}, ON_WHITE, 1) for kind in ("PNG", "TIFF", "WEBP")),
        *((LESION, kind, more, PIXELS, near) for kind, more, near in SEVERAL),
        (LESION, "JPEG", {"quality": 100, "subsampling": 0}, PIXELS, 1),
        (LESION.convert("CMYK"), "JPEG", {"quality": 100}, PIXELS, 3),
        (LESION, "WEBP", {"quality": 95}, PIXELS, 4),
        (LESION, "TIFF", {"compression": "jpeg", "quality": 95}, PIXELS, 4),
        (FEW, "GIF", {}, OF_FEW, 0),
        (FEW, "GIF", {"save_all": True, "append_images": [FEW.rotate(90)]}, OF_FEW, 0),
        *((LESION, "JPEG2000", {"no_jp2": bare}, PIXELS, 0) for bare in (False, True)),
        (HALF, "JPEG2000", {}, ON_WHITE, 1),
        (LESION, "AVIF", AVIF, PIXELS, 2),
        (HALF, "AVIF", AVIF, ON_WHITE, 2),
    ],
)
def test_formats_keep_their_pixels(image, kind, options, expected, within):
    """To the bit where the format is without loss; transparent pixels are on white, and the first picture counts."""
    result = decoding.decode_with_hashes(encoded(image, kind, **options), 96)
    assert distance(result.pixels, expected) <= within
    assert (result.width, result.height, result.format) == (96, 96, "JPEG" if kind == "MPO" else kind)


def test_cmyk_images_have_the_colors_of_their_inks():
    inks = np.random.default_rng(0).integers(0, 256, (96, 96, 4)).astype(np.uint8)
    expected = (1 - inks[:, :, :3] / 255) * (1 - inks[:, :, 3:] / 255) * 255
    result = decoding.decode(encoded(Image.fromarray(inks, "CMYK"), "TIFF"), 96)
    assert np.abs(result - expected).max() < 2

    inks = np.full((96, 96, 4), (20, 90, 60, 40), np.uint8)
    inks[48:] = (5, 10, 200, 0)
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in content
    expected = (1 - inks[:, :, :3] / 255) * (1 - inks[:, :, 3:] / 255) * 255
    assert distance(decoding.decode(content, 96), expected) < 2


@pytest.mark.parametrize(("photometric", "order"), [(0, "<"), (1, "<"), (1, ">"), (2, "<"), (2, ">")])
def test_16_bit_tiff_has_the_pixels_of_its_8_bit_twin(order, photometric):
    twin = LESION if photometric == 2 else GREY
    samples = np.asarray(twin).astype(order + "u2") * 257
    if photometric == 0:  # white is zero
        samples = 65535 - samples
    tags = tiff_tags(photometric=photometric, bits=(16,) * (3 if photometric == 2 else 1))
    content = tiff(tags, samples.astype(order + "u2").tobytes(), order)
    assert np.array_equal(decoding.decode(content, 96), decoding.decode(encoded(twin), 96))


LARGE = {
    kind: encoded(LESION.resize((1800, 1300), Image.Resampling.BICUBIC), kind, **options)
    for kind, options in {"JPEG": {"quality": 90}, "PNG": {"compress_level": 1}, "BMP": {}}.items()
}


@pytest.mark.parametrize(
    ("kind", "size"), [*(("JPEG", size) for size in (32, 128, 224, 225, 300, 512)), ("PNG", 225), ("BMP", 512)]
)
def test_pixels_are_those_of_decode_and_hashes_do_not_depend_on_size(kind, size):
    result = decoding.decode_with_hashes(LARGE[kind], size)
    assert np.array_equal(result.pixels, decoding.decode(LARGE[kind], size))
    assert np.array_equal(result.hash_pixels, decoding.decode_with_hashes(LARGE[kind], 64).hash_pixels)
    assert (result.width, result.height, result.format) == (1800, 1300, kind)
    for pixels, side in ((result.pixels, size), (result.hash_pixels, hashes.HASH_SIZE)):
        assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.uint8)


@pytest.mark.parametrize(("size", "times"), [(64, 1), (224, 1), (325, 1), (326, 2), (600, 2)])
def test_large_jpeg_is_decoded_once_where_hashes_can_share_it(size, times, monkeypatch):
    # libjpeg halves 1800 x 1300 for 448 pixels and up to twice 325, and leaves it whole above that
    calls, real = [], decoding._decode_source
    monkeypatch.setattr(decoding, "_decode_source", lambda *of: calls.append(of) or real(*of))
    decoding.decode_with_hashes(LARGE["JPEG"], size)
    assert len(calls) == times


def test_libjpeg_scales_down_but_never_below_twice_the_size(monkeypatch):
    sides, real = [], decoding._square
    monkeypatch.setattr(decoding, "_square", lambda image, size: sides.append(image.size) or real(image, size))
    decoding.decode(LARGE["JPEG"], 32)
    decoding.decode(LARGE["JPEG"], 325)
    decoding.decode(LARGE["JPEG"], 326)
    decoding.decode(encoded(LESION.resize((3600, 2600)), "JPEG"), 224)
    assert sides == [(900, 650), (900, 650), (1800, 1300), (900, 650)]


def test_hashes_of_real_images_are_those_of_the_first_version():
    real = DATA / "lesions" / "benign" / "100.jpg"
    if not real.exists():
        pytest.skip("no real images at ../shared/data")
    result = decoding.decode_with_hashes(real.read_bytes(), 224)
    assert hashes.pixel_hash(result.pixels) == "38207e31a567e80fb298c2d1a7dd34ed1388a28f0e165f94682357a88aa1bc94"
    assert hashes.pixel_hash(result.hash_pixels) == "56585c2ae9a9b8b2ffc213a429e7d8020de6d98226dbaac5e2132e0142c65913"
    assert hashes.perceptual_hash(result.hash_pixels) == "010e4e8cde8b68a2"


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_stored_orientation_is_undone(orientation, kind):
    upright = LESION.crop((0, 0, 96, 64))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": LOSSLESS, "AVIF": AVIF}.get(kind, {})
    stored = encoded(upright if turn is None else upright.transpose(turn), kind, exif=exif, **options)
    # oblong sides: a picture left lying would not be near, nor would one turned the other way round
    assert distance(decoding.decode(stored, 48), decoding.decode(encoded(upright), 48)) < 1
    result = decoding.decode_with_hashes(stored, 48)
    assert (result.width, result.height) == ((64, 96) if orientation > 4 else (96, 64))


def test_orientation_holds_for_16_bit_grey_too_and_a_damaged_exif_is_no_reason_to_lose_an_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(deep(GREY).astype(np.uint16)).transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decoding.decode(encoded(turned, exif=exif), 96), decoding.decode(encoded(GREY), 96))
    for tail in (b"", b"rubbish rubbish", b"MM\0*\0\0\0\x08\0\x05\x01\x12"):
        odd = encoded(LESION, "JPEG", quality=95, exif=b"Exif\0\0" + tail)
        assert np.array_equal(decoding.decode(odd, 96), decoding.decode(JPEG, 96))


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"This was to be a photograph.\n", "not_an_image", "the content is text"),
        (b"<!DOCTYPE html>\n<html><body>403</body></html>", "not_an_image", "the content is an HTML page"),
        (b"\n <HTML><body>403</body></HTML>", "not_an_image", "the content is an HTML page"),
        (bytes(range(128, 256)), "not_an_image", "unknown content, starting with bytes 80818283"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "unsupported_format", "HEIC: save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1" + bytes(99), "unsupported_format", "HEIC: save it as JPEG or PNG"),
        (b"\xff\x0a" + bytes(99), "unsupported_format", "JPEG XL: save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "unsupported_format", "video: save the picture to use as JPEG or PNG"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "unsupported_format", "7z archive: unpack it, or pack it as zip or tar"),
        (JPEG[: len(JPEG) // 2], "damaged", "libjpeg: Premature end of JPEG file"),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], "damaged", "libjpeg: Premature end of JPEG file"),
        (PNG[: len(PNG) // 2], "corrupt", "OSError while decoding 96 x 96 pixels"),
        (JPEG[:60], "corrupt", "its header cannot be read"),
        (PNG[:20], "corrupt", "its header cannot be read"),
        (PNG[:2000] + bytes(2000) + PNG[4000:], "corrupt", "while decoding 96 x 96 pixels"),
        (synthetic.bomb_png(), "too_many_pixels", "over Pillow's own limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_content_has_its_reason(content, reason, detail):
    with pytest.raises(ImageError) as error:
        decoding.decode(content, 64, decoding.ImageLimits(min_side=8))
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_limits_of_pixels_and_of_sides():
    hollow = png(8, 0, np.zeros((1, 1), np.uint8), claimed=(9000, 8000))  # decoding it would fail
    with pytest.raises(ImageError, match="8000 x 9000 pixels, the limit is 1000") as error:
        decoding.decode(hollow, 64, decoding.ImageLimits(max_pixels=1000))
    assert error.value.reason == "too_many_pixels"
    assert decoding.decode(PNG, 8, decoding.ImageLimits(max_pixels=96 * 96)).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="96 x 96 pixels, the limit is 9215"):
        decoding.decode(PNG, 8, decoding.ImageLimits(max_pixels=96 * 96 - 1))

    narrow = encoded(LESION.crop((0, 0, 96, 31)))
    assert decoding.decode(narrow, 8, decoding.ImageLimits(min_side=31)).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="96 x 31 pixels, each side must be at least 32") as error:
        decoding.decode(narrow, 8, decoding.ImageLimits(min_side=32))
    assert error.value.reason == "too_small"


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_of_broken_files(name, capfd):
    content, reason = CORPUS[name]
    start = time.perf_counter()
    with pytest.raises(ImageError) as error:
        decoding.decode_with_hashes(content, 64, decoding.ImageLimits(**broken.LIMITS))
    assert error.value.reason == reason
    assert time.perf_counter() - start < 5
    output = str(error.value)
    assert len(output.splitlines()) == 1
    assert "jane" not in output.lower()
    assert error.value.__cause__ is None  # whose text might quote the content
    assert capfd.readouterr() == ("", "")  # libtiff would print there


def test_corpus_is_of_every_reason_that_decoding_gives_and_each_is_explained():
    assert len(CORPUS) >= 90
    assert {reason for _, reason in CORPUS.values()} <= set(REASONS)
    assert all(REASONS.values())
    assert {reason for _, reason in CORPUS.values()} == {
        *(
            "empty",
            "not_an_image",
            "unsupported_format",
            "archive_by_another_name",
            "corrupt",
            "too_many_pixels",
            "too_small",
        ),
        *("damaged", "blank", "mask", "recognisable", "burned_in", "dicom_not_photographic"),
        *("too_large", "too_costly", "preview_only", "multi_frame", "unsupported_transfer_syntax"),
    }


@given(st.binary(max_size=400))
def test_any_bytes_are_pixels_or_an_image_error(content):
    with pytest.raises(ImageError) as error:
        decoding.decode(content, 8)
    assert error.value.reason in REASONS


def checked(content):
    """The pixels, or the reason why there are none; anything else a decoder may do fails the test."""
    try:
        result = decoding.decode(content, 8, decoding.ImageLimits(min_side=2, max_pixels=200_000))
    except ImageError as error:
        result = error
    if isinstance(result, ImageError):
        assert result.reason in REASONS
        assert len(str(result).splitlines()) == 1
        return result.reason
    assert (result.shape, result.dtype) == ((8, 8, 3), np.uint8)
    return result


@given(st.sampled_from([JPEG, PROGRESSIVE, PNG]), st.floats(0, 1, exclude_max=True))
def test_truncated_image_is_rejected_unless_all_its_pixels_came(content, part):
    result = checked(content[: 8 + int(part * (len(content) - 8))])
    if isinstance(result, str):
        assert result in ("corrupt", "damaged")
    else:
        assert np.array_equal(result, decoding.decode(content, 8))


FUZZED = [
    *(JPEG, PROGRESSIVE, PNG, encoded(LESION.quantize(16)), png(16, 0, deep(GREY)), encoded(LESION.convert("RGBA"))),
    *(encoded(LESION, "TIFF"), encoded(LESION, "TIFF", compression="tiff_lzw")),
    *(encoded(LESION, "TIFF", compression="jpeg"), encoded(MASK.convert("1"), "TIFF", compression="group4")),
    *(encoded(LESION, "BMP"), encoded(LESION.quantize(16), "BMP")),
    *(encoded(LESION, "WEBP"), encoded(LESION, "WEBP", lossless=True), encoded(LESION, "GIF")),
    *(encoded(LESION, "JPEG2000"), encoded(LESION, "AVIF")),
    *(broken.dicom(), broken.dicom(np.asarray(GREY)), broken.dicom(syntax="1.2.840.10008.1.2.1.99")),
    broken.dicom(syntax="1.2.840.10008.1.2.4.50", frame=JPEG, PhotometricInterpretation="YBR_FULL_422"),
    broken.dicom(syntax="1.2.840.10008.1.2.4.90", frame=encoded(LESION, "JPEG2000", no_jp2=True)),
    *(path.read_bytes() for path in sorted(DATA.glob("lesions/*/*.jpg"))[::400]),
    *(path.read_bytes() for path in sorted(DATA.glob("isic_ids/*.jpg"))[40:42]),
]
PLACE = st.floats(0, 1, exclude_max=True)


def mutated(content, changes):
    """Bytes replaced, cut off, doubled and moved; most of it in the headers, where the decoders decide."""
    for kind, place, length, value in changes:
        start = int(place**3 * len(content))
        piece = content[start : start + length]
        if kind == "flip":
            content = content[:start] + bytes([value]) + content[start + 1 :]
        elif kind == "cut":
            content = content[: max(start, 4)]
        elif kind == "double":
            content = content[:start] + piece + content[start:]
        elif kind == "drop":
            content = content[:start] + content[start + length :]
        else:
            content = content[:start] + bytes([value]) * len(piece) + content[start + length :]
    return content


@given(
    st.sampled_from(FUZZED),
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "flip", "flip", "double", "drop", "fill", "cut"]),
            *(PLACE, st.integers(1, 300), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=6,
    ),
)
@examples(4)
def test_mutated_image_is_decoded_or_an_image_error_within_seconds(content, changes):
    start = time.perf_counter()
    try:
        limits = decoding.ImageLimits(min_side=2, max_pixels=2_000_000)
        result = decoding.decode_with_hashes(mutated(content, changes), 48, limits)
    except ImageError as error:
        result = error
    assert time.perf_counter() - start < 5
    if isinstance(result, ImageError):
        assert result.reason in REASONS
        assert len(str(result).splitlines()) == 1
    else:
        assert (result.pixels.shape, result.pixels.dtype) == ((48, 48, 3), np.uint8)
        assert result.hash_pixels.shape == (128, 128, 3)
        assert min(result.width, result.height) >= 2
        assert result.format in formats.SIGNATURES


def test_jpeg_cut_anywhere_is_rejected():
    scan = JPEG.index(b"\xff\xda")
    assert {checked(JPEG[:end]) for end in (3, 50, 300, scan)} == {"corrupt"}
    assert {checked(JPEG[:end]) for end in (scan + 40, len(JPEG) // 2, len(JPEG) - 100, len(JPEG) - 3)} == {"damaged"}


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, PNG], ids=["jpeg", "progressive", "png"])
def test_bytes_after_an_image_are_harmless(content):
    assert np.array_equal(decoding.decode(content + b"left behind", 8), decoding.decode(content, 8))


def test_image_errors_can_be_pickled_and_never_quote_the_content():
    with pytest.raises(ImageError) as raised:
        decoding.decode(b"text", 8)
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is ImageError
    assert (again.reason, again.detail, str(again)) == ("not_an_image", "the content is text", str(raised.value))
    assert isinstance(again, DataError)

    secret = b"patient_jane_doe.jpg"
    for content in (secret, b"<html>" + secret, secret * 30, b"\x80" + secret, JPEG[:2] + secret, PNG[:8] + secret):
        with pytest.raises(ImageError) as error:
            decoding.decode(content, 8)
        assert "jane" not in str(error.value)


def test_hashes_ignore_containers_and_distinguish_lesions():
    twins = [PNG, encoded(LESION, compress_level=1), encoded(LESION, exif=b"Exif\0\0", dpi=(300, 300))]
    assert hashes.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert len({hashes.sha256(content) for content in twins}) == 3
    assert len({hashes.pixel_hash(decoding.decode(content, 64)) for content in twins}) == 1

    lesions = [synthetic.draw_lesion(np.random.default_rng(seed), seed % 2 == 0, 96) for seed in range(40)]
    result = [hashes.perceptual_hash(pixels) for pixels in lesions]
    assert len(set(result)) == 40
    again = [decoding.decode(encoded(Image.fromarray(pixels), "JPEG", quality=90), 96) for pixels in lesions[:10]]
    far = [int(one, 16) ^ int(hashes.perceptual_hash(other), 16) for one, other in zip(result, again, strict=False)]
    assert np.median([bits.bit_count() for bits in far]) <= 4


@given(SQUARES, st.data())
def test_pixel_hash_sees_every_pixel_and_the_shape_but_not_how_an_array_lies_in_memory(pixels, data):
    assert hashes.pixel_hash(np.asfortranarray(pixels)) == hashes.pixel_hash(pixels)
    flat = np.arange(24, dtype=np.uint8)
    assert hashes.pixel_hash(flat.reshape(2, 4, 3)) != hashes.pixel_hash(flat.reshape(4, 2, 3))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in pixels.shape)
    changed = pixels.copy()
    changed[place] ^= np.uint8(data.draw(st.integers(1, 255)))
    assert hashes.pixel_hash(changed) != hashes.pixel_hash(pixels)


@given(arrays(np.uint8, st.integers(1, 60).map(lambda side: (side, side, 3))))
@example(PIXELS)
@example(np.repeat(np.asarray(GREY)[:, :, None] // 2, 3, axis=2))
def test_perceptual_hash_of_any_square_is_the_same_turned_and_mirrored_and_darker(pixels):
    gray = np.repeat(pixels[:, :, :1] // 2, 3, axis=2)
    assert hashes.perceptual_hash(gray * 2) == hashes.perceptual_hash(gray)  # brightness is not seen
    result = {hashes.perceptual_hash(view) for view in views(pixels)}
    assert len(result) == 1
    assert len(result.pop()) == 16


@given(arrays(np.uint8, st.tuples(st.integers(1, 200), st.integers(1, 200), st.just(3))))
@examples(0.4)
def test_perceptual_hash_is_the_textbook_s_at_every_size(pixels):
    gray = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.int64)
    height, width = gray.shape
    fine = gray.repeat(24, axis=0).repeat(24, axis=1)  # cells of 24ths of a pixel, in whole numbers
    small = fine.reshape(24, height, 24, width).sum(axis=(1, 3))
    expected = []
    for view in views(small):
        cells = view.reshape(8, 3, 8, 3).sum(axis=1)
        expected.append(np.packbits(cells[:, :, 2] > cells[:, :, 0]).tobytes().hex())
    assert hashes.perceptual_hash(pixels) == min(expected)


@pytest.mark.skipif(not (DATA / "lesions_groups.csv").is_file(), reason="../shared/data is not there")
def test_equal_hashes_of_the_real_set_are_near_duplicates():
    """Against the set's own list, made by correlation of thumbnails. Looking alike to the last bit is a strict rule."""
    rows = pd.read_csv(DATA / "lesions_groups.csv")
    listed = rows["near_duplicate_group"].duplicated(keep=False)
    rows = pd.concat([rows[listed], rows[~listed][::8]])  # each pair, and some of those that have none
    looks = [decoding.decode_with_hashes((DATA / path).read_bytes(), 224) for path in rows["path"]]
    for name, hash_of in (("pixels", hashes.pixel_hash), ("looks", hashes.perceptual_hash)):
        rows[name] = [hash_of(result.hash_pixels) for result in looks]

    def pairs(column):
        sets = rows.groupby(column)["path"].apply(sorted)
        return {pair for members in sets if len(members) > 1 for pair in combinations(members, 2)}

    listed, result = pairs("near_duplicate_group"), pairs("looks")
    assert len(listed) == 64
    assert pairs("sha256") <= pairs("pixels") <= result  # what is the same is found: recall 1
    assert len(result & listed) >= 5  # recall 0.08 of near-duplicates
    assert len(result & listed) / len(result) >= 0.8  # precision 0.83
