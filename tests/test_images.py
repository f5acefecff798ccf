"""Decoding: every kind of image gives the same pixels upright, and every kind of rubbish its reason."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from melanoma_spark import drawing, images
from melanoma_spark.errors import DataError, ImageError

PIXELS = drawing.draw_lesion(np.random.default_rng(1), malignant=True, size=96)
LESION = Image.fromarray(PIXELS)
GREY = LESION.convert("L")
WHITE = np.full((96, 96, 3), 255, np.uint8)
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


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth, colour, rows, transparent=b"", claimed=None):
    """A PNG as Pillow does not write it: of 16-bit samples, or with a header that claims another height and width.

    `rows` is big-endian (height, width[, channels]).
    """

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = claimed or rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    optional = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IHDR", header) + optional + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(pixels):
    """8-bit samples as big-endian 16-bit ones: white stays white."""
    return np.asarray(pixels).astype(">u2") * np.array(257, ">u2")


def views(pixels):
    """An image turned by quarters and mirrored: eight of it."""
    return [view for turns in range(4) for view in (np.rot90(pixels, turns), np.rot90(pixels, turns)[:, ::-1])]


def distance(found, expected):
    return np.abs(found.astype(int) - expected.astype(int)).mean()


JPEG, PNG = encoded(LESION, "JPEG", quality=95), encoded(LESION)
PROGRESSIVE = encoded(LESION, "JPEG", quality=90, progressive=True)


# What can be read


def test_png_of_the_model_s_size_keeps_its_pixels_to_the_bit():
    assert np.array_equal(images.decode(PNG, 96), PIXELS)


def test_jpeg_is_close_to_what_it_was_made_from():
    assert distance(images.decode(encoded(LESION, "JPEG", quality=100, subsampling=0), 96), PIXELS) < 1


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, PNG], ids=["jpeg", "progressive", "png"])
@pytest.mark.parametrize("size", [1, 32, 96, 224])
def test_pixels_are_uint8_rgb_of_the_size_asked_for(content, size):
    pixels = images.decode(content, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


def test_oblong_image_is_squashed_whole():
    halves = np.zeros((40, 120, 3), np.uint8)
    halves[:, 60:] = 255
    pixels = images.decode(encoded(Image.fromarray(halves)), 30)
    assert (pixels[:, :14] == 0).all()
    assert (pixels[:, 16:] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grayscale_has_three_equal_channels(kind):
    pixels = images.decode(encoded(GREY, kind), 96)
    assert (pixels == pixels[:, :, :1]).all()
    assert distance(pixels[:, :, 0], np.asarray(GREY)) < 4


def test_one_bit_image_is_black_and_white():
    marks = GREY.point(lambda value: 255 * (value > 128)).convert("1")
    assert np.array_equal(images.decode(encoded(marks), 96)[:, :, 0], np.asarray(marks) * np.uint8(255))


def test_palette_is_looked_up():
    few = LESION.quantize(16)
    assert np.array_equal(images.decode(encoded(few), 96), np.asarray(few.convert("RGB")))


def test_palette_with_a_transparent_colour_shows_it_on_white():
    few = LESION.quantize(16)
    clear = few.getpixel((48, 48))
    expected = np.asarray(few.convert("RGB")).copy()
    expected[np.asarray(few) == clear] = 255
    assert np.array_equal(images.decode(encoded(few, transparency=clear), 96), expected)


def test_transparent_pixels_are_white_whatever_they_hide():
    hidden = LESION.copy()
    hidden.putalpha(0)
    assert np.array_equal(images.decode(encoded(hidden), 96), WHITE)


def test_half_transparent_pixels_are_half_white():
    half = LESION.copy()
    half.putalpha(128)
    expected = PIXELS * (128 / 255) + 255 * (127 / 255)
    assert distance(images.decode(encoded(half), 96), expected.round()) < 1


def test_opaque_alpha_changes_nothing():
    opaque = LESION.copy()
    opaque.putalpha(255)
    assert np.array_equal(images.decode(encoded(opaque), 96), PIXELS)
    assert np.array_equal(images.decode(encoded(GREY.convert("LA")), 96), images.decode(encoded(GREY), 96))


def test_cmyk_jpeg_has_the_colours_of_its_rgb_twin():
    pixels = images.decode(encoded(LESION.convert("CMYK"), "JPEG", quality=100), 96)
    assert distance(pixels, PIXELS) < 3


@pytest.mark.parametrize(
    ("colour", "samples"),
    [
        (0, deep(GREY)),
        (2, deep(LESION)),
        (4, np.stack([deep(GREY), np.full((96, 96), 65535, ">u2")], axis=-1)),
    ],
    ids=["grey", "rgb", "grey and alpha"],
)
def test_16_bit_png_has_the_pixels_of_its_8_bit_twin(colour, samples):
    twin = LESION if colour == 2 else GREY
    for size in (96, 40):
        assert np.array_equal(images.decode(png(16, colour, samples), size), images.decode(encoded(twin), size))


def test_16_bit_grey_with_a_transparent_value_shows_only_that_on_white():
    samples = deep(GREY)
    clear = samples[48, 48]
    expected = np.where(samples == clear, 255, np.asarray(GREY))
    pixels = images.decode(png(16, 0, samples, transparent=clear.tobytes()), 96)
    assert np.array_equal(pixels[:, :, 0], expected)


def test_large_jpegs_scaled_down_while_they_are_decoded_look_like_their_png():
    large = Image.fromarray(drawing.draw_lesion(np.random.default_rng(3), malignant=True, size=500))
    exact = images.decode(encoded(large), 48)
    for mode in ("RGB", "CMYK", "L"):
        found = images.decode(encoded(large.convert(mode), "JPEG", quality=95), 48)
        expected = images.decode(encoded(large.convert("L")), 48) if mode == "L" else exact
        assert distance(found, expected) < 1.5


def test_first_picture_of_several_counts():
    for kind in ("PNG", "MPO"):
        several = encoded(LESION, kind, save_all=True, append_images=[LESION.rotate(90)])
        assert distance(images.decode(several, 96), PIXELS) < 6


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_stored_orientation_is_undone(orientation, kind):
    upright = LESION.crop((0, 0, 96, 64))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    stored = encoded(upright if turn is None else upright.transpose(turn), kind, exif=exif, **options)
    # oblong sides: a picture left lying would not be near, nor would one turned the other way round
    assert distance(images.decode(stored, 48), images.decode(encoded(upright), 48)) < 1
    assert images.dimensions(stored) == ((64, 96) if orientation > 4 else (96, 64))


def test_orientation_holds_for_16_bit_grey_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(deep(GREY).astype(np.uint16)).transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(images.decode(encoded(turned, exif=exif), 96), images.decode(encoded(GREY), 96))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0rubbish rubbish", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_damaged_exif_is_no_reason_to_lose_an_image(exif):
    assert np.array_equal(images.decode(encoded(LESION, "JPEG", quality=95, exif=exif), 96), images.decode(JPEG, 96))


def test_orientation_that_does_not_exist_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(images.decode(encoded(LESION, exif=exif), 96), PIXELS)


def test_content_decides_and_there_is_no_name_to_be_wrong():
    # A PNG called .jpg and a JPEG called .png are images like others: only bytes are handed in.
    assert np.array_equal(images.decode(PNG, 96), PIXELS)
    assert distance(images.decode(JPEG, 96), PIXELS) < 6


@given(st.integers(1, 64))
@settings(max_examples=20)
def test_decoding_is_deterministic(size):
    assert np.array_equal(images.decode(JPEG, size), images.decode(bytes(bytearray(JPEG)), size))


# What cannot


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"This was to be a photograph.\n", "not_an_image", "the content is text"),
        (b"<!DOCTYPE html>\n<html><body>403</body></html>", "not_an_image", "the content is an HTML page"),
        (b"\n <HTML><body>403</body></HTML>", "not_an_image", "the content is an HTML page"),
        (bytes(range(128, 256)), "not_an_image", "unknown content, starting with bytes 80818283"),
        (encoded(LESION, "GIF"), "not_an_image", "unknown content, starting with bytes 47494638"),
        (encoded(LESION, "TIFF"), "not_an_image", "unknown content, starting with bytes 49492a00"),
        (encoded(LESION, "BMP"), "not_an_image", "unknown content, starting with bytes 424d"),
        (JPEG[: len(JPEG) // 2], "corrupt", "OSError while decoding 96 x 96 pixels"),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], "corrupt", "OSError while decoding 96 x 96 pixels"),
        (PNG[: len(PNG) // 2], "corrupt", "OSError while decoding 96 x 96 pixels"),
        (JPEG[:60], "corrupt", "its header cannot be read"),
        (PNG[:20], "corrupt", "its header cannot be read"),
        (PNG[:2000] + bytes(2000) + PNG[4000:], "corrupt", "while decoding 96 x 96 pixels"),
        (drawing._bomb(), "too_many_pixels", "over Pillow's own limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_content_has_its_reason(content, reason, detail):
    with pytest.raises(ImageError) as error:
        images.decode(content, 64, min_side=8)
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_image_over_the_limit_of_pixels_is_not_decoded():
    hollow = png(8, 0, np.zeros((1, 1), np.uint8), claimed=(9000, 8000))  # decoding it would fail
    with pytest.raises(ImageError, match="8000 x 9000 pixels, the limit is 1000") as error:
        images.decode(hollow, 64, max_pixels=1000)
    assert error.value.reason == "too_many_pixels"


def test_limit_of_pixels_is_a_limit_that_may_be_reached():
    assert images.decode(PNG, 8, max_pixels=96 * 96).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="96 x 96 pixels, the limit is 9215"):
        images.decode(PNG, 8, max_pixels=96 * 96 - 1)


def test_each_side_must_reach_the_least():
    narrow = encoded(LESION.crop((0, 0, 96, 31)))
    assert images.decode(narrow, 8, min_side=31).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="96 x 31 pixels, each side must be at least 32") as error:
        images.decode(narrow, 8, min_side=32)
    assert error.value.reason == "too_small"


def test_every_reason_that_decoding_gives_is_explained():
    assert {"empty", "not_an_image", "corrupt", "too_many_pixels", "too_small"} <= set(images.REASONS)
    assert all(images.REASONS.values())


@given(st.binary(max_size=400))
def test_any_bytes_are_pixels_or_an_image_error(content):
    with pytest.raises(ImageError) as error:
        images.decode(content, 8)
    assert error.value.reason in images.REASONS


def checked(content):
    """The pixels, or the reason why there are none; anything else a decoder may do fails the test."""
    try:
        found = images.decode(content, 8, min_side=2, max_pixels=200_000)
    except ImageError as error:
        found = error
    if isinstance(found, ImageError):
        assert found.reason in images.REASONS
        assert len(str(found).splitlines()) == 1
        return found.reason
    assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8)
    return found


@given(
    st.sampled_from([JPEG, PROGRESSIVE, PNG, encoded(LESION.quantize(16)), png(16, 0, deep(GREY))]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=10),
)
@settings(max_examples=150)
def test_corrupted_image_is_pixels_or_an_image_error(content, changes):
    changed = bytearray(content)
    for place, value in changes:
        changed[int(place**3 * len(changed))] = value  # most of them in the headers, where the decoders decide
    assert isinstance(checked(bytes(changed)), np.ndarray | str)


@given(st.sampled_from([JPEG, PROGRESSIVE, PNG]), st.binary(min_size=1, max_size=200))
def test_rubbish_behind_a_signature_is_an_image_error(content, rubbish):
    assert checked(content[:8] + rubbish) in ("corrupt", "too_small", "too_many_pixels")


@given(st.sampled_from([JPEG, PROGRESSIVE, PNG]), st.floats(0, 1, exclude_max=True))
def test_truncated_image_is_rejected_unless_all_its_pixels_came(content, part):
    found = checked(content[: 8 + int(part * (len(content) - 8))])
    if isinstance(found, str):
        assert found == "corrupt"
    else:
        assert np.array_equal(found, images.decode(content, 8))


def test_jpeg_cut_anywhere_is_corrupt():
    ends = [3, 50, 300, 640, len(JPEG) // 2, len(JPEG) - 100, len(JPEG) - 3]
    assert {checked(JPEG[:end]) for end in ends} == {"corrupt"}


@pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, PNG], ids=["jpeg", "progressive", "png"])
def test_bytes_behind_an_image_are_no_harm(content):
    assert np.array_equal(images.decode(content + b"left behind", 8), images.decode(content, 8))


def test_image_error_survives_pickle():
    with pytest.raises(ImageError) as raised:
        images.decode(b"text", 8)
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is ImageError
    assert (again.reason, again.detail, str(again)) == ("not_an_image", "the content is text", str(raised.value))
    assert isinstance(again, DataError)


def test_details_never_quote_the_content_which_may_name_a_person():
    secret = b"patient_jane_doe.jpg"
    for content in (secret, b"<html>" + secret, secret * 30, b"\x80" + secret, JPEG[:2] + secret, PNG[:8] + secret):
        with pytest.raises(ImageError) as error:
            images.decode(content, 8)
        assert "jane" not in str(error.value)


# Hashes


def test_hash_of_a_file_is_its_sha256():
    assert images.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_pixel_hash_does_not_see_the_container():
    twins = [PNG, encoded(LESION, compress_level=1), encoded(LESION, exif=b"Exif\0\0", dpi=(300, 300))]
    assert len({images.sha256(content) for content in twins}) == 3
    assert len({images.pixel_hash(images.decode(content, 64)) for content in twins}) == 1


@given(SQUARES, st.data())
def test_pixel_hash_sees_every_pixel(pixels, data):
    place = tuple(data.draw(st.integers(0, side - 1)) for side in pixels.shape)
    changed = pixels.copy()
    changed[place] ^= np.uint8(data.draw(st.integers(1, 255)))
    assert images.pixel_hash(changed) != images.pixel_hash(pixels)


def test_pixel_hash_sees_the_shape():
    flat = np.arange(24, dtype=np.uint8)
    assert images.pixel_hash(flat.reshape(2, 4, 3)) != images.pixel_hash(flat.reshape(4, 2, 3))


@given(SQUARES)
def test_pixel_hash_does_not_see_how_an_array_lies_in_memory(pixels):
    assert images.pixel_hash(np.asfortranarray(pixels)) == images.pixel_hash(pixels)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([33, 48, 96, 100]))
@settings(max_examples=25)
def test_perceptual_hash_of_a_lesion_is_the_same_turned_and_mirrored(seed, malignant, size):
    pixels = drawing.draw_lesion(np.random.default_rng(seed), malignant, size)
    assert len({images.perceptual_hash(view) for view in views(pixels)}) == 1


@given(arrays(np.uint8, st.integers(1, 60).map(lambda side: (side, side, 3))))
def test_perceptual_hash_of_any_square_is_the_same_turned_and_mirrored(pixels):
    hashes = {images.perceptual_hash(view) for view in views(pixels)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 16


def test_perceptual_hash_tells_lesions_apart():
    lesions = [drawing.draw_lesion(np.random.default_rng(seed), seed % 2 == 0, 96) for seed in range(40)]
    assert len({images.perceptual_hash(pixels) for pixels in lesions}) == 40


def test_perceptual_hash_is_near_after_jpeg_compression():
    near = []
    for seed in range(10):
        pixels = drawing.draw_lesion(np.random.default_rng(seed), seed % 2 == 0, 96)
        again = images.decode(encoded(Image.fromarray(pixels), "JPEG", quality=90), 96)
        bits = int(images.perceptual_hash(pixels), 16) ^ int(images.perceptual_hash(again), 16)
        near.append(bits.bit_count())
    assert np.median(near) <= 4


def test_perceptual_hash_does_not_see_brightness():
    dark = np.repeat(np.asarray(GREY)[:, :, None] // 2, 3, axis=2)
    assert images.perceptual_hash(dark * 2) == images.perceptual_hash(dark)
