"""Images whose decoder warns of missing or corrupt data are rejected, or accepted with a flag; others are as before."""

import io
import re
import tracemalloc
import zlib

import broken
import cv2
import numpy as np
import pytest
from broken import GREY, LESION, PIXELS, changed, dicom, encoded, half
from conftest import SHARED
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from melanoma_spark import config
from melanoma_spark.dataset import archive
from melanoma_spark.errors import ImageError
from melanoma_spark.images import damage, decoding, hashes, quality

DATA = SHARED / "data"
END = b"\xff\xd9"
KINDS = {
    "baseline": encoded(LESION, "JPEG", quality=95),
    "progressive": encoded(LESION, "JPEG", quality=90, progressive=True),
    "gray": encoded(GREY, "JPEG", quality=95),
    "cmyk": encoded(LESION.convert("CMYK"), "JPEG", quality=90),
    "rgb": encoded(LESION, "JPEG", quality=90, keep_rgb=True),
    "restarts": encoded(LESION, "JPEG", quality=95, restart_marker_rows=1),
    "large": encoded(LESION.resize((1900, 1900)), "JPEG", quality=80),
}
JPEG = KINDS["baseline"]

ACCEPT = decoding.ImageLimits(accept_damaged=True)


def scan_of(content: bytes) -> int:
    """Where the data of the first scan starts."""
    start = content.index(b"\xff\xda")
    return start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")


def without_middle(content: bytes) -> bytes:
    """A JPEG without a quarter of the data of its first scan, and with all behind it."""
    start = scan_of(content)
    length = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(content, start).start() - start
    return content[: start + length // 4] + content[start + length // 2 :]


def before(content: bytes, size: int) -> np.ndarray:
    """The pixels of a JPEG as decoded before damage was looked for: by Pillow's draft, load and resize."""
    image = Image.open(io.BytesIO(content))
    side = max(decoding.WORKING_SIDE, 2 * size)
    image.draft("RGB", (side, side))
    image.load()
    turn = decoding.UPRIGHT.get(image.getexif().get(decoding.ORIENTATION, 1))
    image = image.convert("RGB")
    image = image.transpose(turn) if turn is not None else image
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def refusal(content: bytes, **options) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decoding.decode_with_hashes(content, 64, decoding.ImageLimits(**options))
    with pytest.raises(ImageError) as other:
        decoding.decode(content, 64, decoding.ImageLimits(**options))
    assert (other.value.reason, other.value.detail) == (caught.value.reason, caught.value.detail)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_jpegs_are_rejected_or_accepted_with_their_damage(kind):
    assert refusal(half(KINDS[kind])) == ("damaged", "libjpeg: Premature end of JPEG file")
    assert refusal(half(KINDS[kind]) + END) == ("damaged", "libjpeg: Corrupt JPEG data: premature end of data segment")

    content = KINDS[kind]
    reason, detail = refusal(without_middle(content))
    assert reason == "damaged"
    assert detail.startswith(("libjpeg: Corrupt JPEG data: ", "libjpeg: Inconsistent progression sequence"))
    start = scan_of(content)
    ended = changed(content, (start + (len(content) - start) // 2, b"\xff\xd9"))  # an end where there is none
    assert refusal(ended)[0] == "damaged"
    reason, detail = refusal(content[:-2] + b"abcdefgh" + END)
    assert reason == "damaged"
    assert "extraneous bytes before marker 0xd9" in detail

    content = half(KINDS[kind]) + END
    result = decoding.decode_with_hashes(content, 64, ACCEPT)
    assert result.damage == "libjpeg: Corrupt JPEG data: premature end of data segment"
    assert np.array_equal(result.pixels, before(content, 64))
    described = decoding.decode_described(content, 64, ACCEPT)
    assert np.array_equal(described.pixels, result.pixels)
    assert (described.width, described.height, described.damage) == (result.width, result.height, result.damage)
    assert np.array_equal(decoding.decode(content, 64, ACCEPT), result.pixels)
    complete = decoding.decode_with_hashes(KINDS[kind], 64, ACCEPT)
    assert complete.damage is None


@pytest.mark.parametrize("kind", ["baseline", "gray", "progressive", "cmyk"])
@pytest.mark.parametrize("noise", [b"\0", b"abcd", b"\xff\0\xff\0", b"\xff" * 9])
def test_bytes_between_the_segments_of_the_header_are_no_damage(kind, noise):
    content = KINDS[kind]
    start = content.index(b"\xff\xdb")
    noisy = content[:start] + noise + content[start:]
    result, clean = decoding.decode_with_hashes(noisy, 64), decoding.decode_with_hashes(content, 64)
    assert result.damage is None
    assert np.array_equal(result.pixels, clean.pixels)
    # ... nor do they hide damage, as libjpeg's first warning would
    assert refusal(half(noisy) + END)[0] == "damaged"


def test_warnings_about_metadata_neither_reject_nor_hide_damage():
    jfif = JPEG.index(b"JFIF\0")
    adobe = KINDS["cmyk"].index(b"Adobe")
    profile = b"ICC_PROFILE\0\x07\x03" + bytes(200)
    segment = b"\xff\xe2" + (2 + len(profile)).to_bytes(2, "big") + profile
    for odd in (
        changed(JPEG, (jfif + 5, b"\x09")),  # an unknown revision
        changed(KINDS["cmyk"], (adobe + 11, b"\x07")),  # an unknown transform
        JPEG[:2] + segment + JPEG[2:],  # a color profile whose parts are missing
    ):
        assert decoding.decode_with_hashes(odd, 64).damage is None
        assert np.array_equal(decoding.decode(odd, 64), before(odd, 64))
        assert refusal(half(odd) + END)[0] == "damaged"


def test_undecodable_jpegs_are_corrupt_and_huge_ones_take_no_memory():
    assert refusal(JPEG[:60])[0] == "corrupt"
    table = JPEG.index(b"\xff\xc4")
    assert refusal(changed(JPEG, (table + 5, b"\xff" * 16)))[0] == "corrupt"  # too many codes of each length
    assert refusal(b"\xff\xd8\xff and no more")[0] == "corrupt"
    assert refusal(half(JPEG), accept_damaged=True) == ("corrupt", "OSError while decoding 96 x 96 pixels")

    frame = JPEG.index(b"\xff\xc0")
    huge = changed(JPEG, (frame + 5, b"\xff\x00\xff\x00"))
    assert damage.decode_jpeg(huge, "RGB", (96, 96), 1) is None
    assert damage.jpeg_damage(half(huge) + END, (96, 96)) is None
    assert damage._without_metadata(huge, (96, 96)) is None  # of CMYK simplejpeg allocates before it sees the buffer
    assert damage.jpeg_damage(half(JPEG) + END, (96, 96)) is not None


def test_a_damaged_jpeg_in_dicom_is_damaged():
    stored = encoded(Image.frombytes("YCbCr", (96, 96), PIXELS.tobytes()), "JPEG", quality=100, subsampling=0)
    app0 = stored.index(b"\xff\xe0")
    bare = stored[:app0] + stored[app0 + 2 + int.from_bytes(stored[app0 + 2 : app0 + 4]) :]
    for frame, color in ((JPEG, "YBR_FULL_422"), (bare, "RGB")):
        good = dicom(syntax=JPEGBaseline8Bit, frame=frame, PhotometricInterpretation=color)
        assert decoding.decode_with_hashes(good, 64).damage is None
        bad = dicom(syntax=JPEGBaseline8Bit, frame=half(frame) + END, PhotometricInterpretation=color)
        assert refusal(bad) == ("damaged", "libjpeg: Corrupt JPEG data: premature end of data segment")
        assert decoding.decode_with_hashes(bad, 64, ACCEPT).damage.startswith("libjpeg: ")


def test_damaged_pngs_are_rejected():
    complete = encoded(LESION)
    wrong = changed(complete, (complete.index(b"IEND") - 8, bytes(4)))
    for content, detail in ((wrong, "checksum of a chunk is wrong"), (complete[:-12], "its end is missing")):
        Image.open(io.BytesIO(content)).load()  # Pillow does not mind
        assert refusal(content) == ("damaged", f"PNG: {'the ' if 'chunk' in detail else ''}{detail}")
        result = decoding.decode_with_hashes(content, 96, ACCEPT)
        assert np.array_equal(result.pixels, PIXELS)
        assert result.damage

    complete = encoded(LESION, compress_level=1)
    start, end = complete.index(b"IDAT") + 4, complete.index(b"IEND") - 8
    reasons = [refusal(changed(complete, (at, bytes([complete[at] ^ 16]))))[0] for at in range(start, end, 41)]
    assert len(reasons) > 300
    assert set(reasons) <= {"corrupt", "damaged"}
    assert "damaged" in reasons, "nothing here that Pillow accepts"


def test_strips_of_a_tiff_are_checked_by_libjpeg_and_zlib():
    of_jpeg = broken.CORPUS["tiff of a jpeg with zeros inside"][0]
    deflated = broken.CORPUS["deflated tiff with a wrong checksum"][0]
    short = broken.CORPUS["deflated tiff whose stream does not end"][0]
    for content, detail in (
        (of_jpeg, "libjpeg: "),
        (deflated, "zlib: Error -3 while decompressing data: incorrect data check"),
        (short, "zlib: the end of the stream is missing"),
    ):
        Image.open(io.BytesIO(content)).load()
        reason, result = refusal(content)
        assert reason == "damaged"
        assert result.startswith(detail)
        assert decoding.decode_with_hashes(content, 64, ACCEPT).damage == result


def test_a_strip_is_unpacked_no_further_than_its_pixels():
    content = zlib.compress(bytes(1 << 20))
    tracemalloc.start()
    assert damage._deflate_damage(content, 100) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 17
    tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("strip", [2000, 10**6])
def test_good_tiffs_of_one_strip_and_of_many_are_accepted(options, mode, strip, monkeypatch):
    from PIL import TiffImagePlugin

    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", strip)
    assert decoding.decode_with_hashes(encoded(LESION.convert(mode), "TIFF", **options), 64).damage is None


SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("quality_", [30, 95])
@pytest.mark.parametrize("progressive", [0, 1])
def test_pixels_are_those_of_pillow_at_every_subsampling_quality_and_size(sampling, quality_, progressive):
    options = [
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]),
        *(cv2.IMWRITE_JPEG_QUALITY, quality_),
        *(cv2.IMWRITE_JPEG_PROGRESSIVE, progressive),
    ]
    rng = np.random.default_rng(quality_)
    for width, height in ((1, 1), (2, 2), (3, 7), (7, 7), (8, 5), (33, 47), (97, 96), (449, 901)):
        coarse = rng.integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), np.uint8)
        content = cv2.imencode(".jpg", cv2.resize(coarse, (width, height)), options)[1].tobytes()
        decoded = damage.decode_jpeg(content, "RGB", (width, height), 1)
        assert np.array_equal(np.asarray(decoded), np.asarray(Image.open(io.BytesIO(content))))
        if min(width, height) > 1:  # else it is blank
            same_pixels(content)


def same_pixels(content: bytes) -> None:
    for size in (1, 64, 300):
        result = decoding.decode_with_hashes(content, size)
        assert np.array_equal(result.pixels, before(content, size))
        assert np.array_equal(result.hash_pixels, before(content, hashes.HASH_SIZE))
        assert result.damage is None


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_at_a_scale_gives_pillow_s_draft_to_the_bit(scale, mode):
    rng = np.random.default_rng(scale)
    for width, height in ((16, 9), (95, 64), (130, 257), (640, 481)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        content = encoded(picture, "JPEG", quality=85)
        drafted = Image.open(io.BytesIO(content))
        drafted.draft(mode, (width // scale, height // scale))
        result = damage.decode_jpeg(content, mode, (width, height), scale)
        assert result.mode == drafted.mode == mode
        assert np.array_equal(np.asarray(result), np.asarray(drafted))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exif_turns_a_jpeg_as_before(orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    oblong = LESION.resize((130, 70)).convert(mode)
    for options in ({}, {"progressive": True}):
        same_pixels(encoded(oblong, "JPEG", exif=exif, **options))
    if orientation in (1, 6):
        large = encoded(LESION.resize((1300, 2700)).convert(mode), "JPEG", exif=exif)
        assert np.array_equal(decoding.decode(large, 64), before(large, 64))


@pytest.mark.parametrize("kind", ["baseline", "gray"])
def test_good_jpegs_are_decoded_by_simplejpeg_alone(kind, monkeypatch):
    calls, real = [], damage.simplejpeg.decode_jpeg
    monkeypatch.setattr(damage.simplejpeg, "decode_jpeg", lambda *of, **more: calls.append(1) or real(*of, **more))
    monkeypatch.setattr(damage, "jpeg_damage", lambda *of: pytest.fail("checked after it was decoded"))
    monkeypatch.setattr(Image.Image, "draft", lambda *of: pytest.fail("Pillow decodes as well"))
    decoding.decode_with_hashes(KINDS[kind], 64)
    assert len(calls) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xd9\0\0", JPEG[:200]])
def test_a_jpeg_without_a_scan_has_no_damage(content):
    assert damage.jpeg_damage(content, (96, 96)) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("folder", ["lesions", "other", "isic_ids"])
def test_no_real_photograph_is_damaged(folder):
    paths = sorted((DATA / folder).rglob("*.jpg"))[:: {"lesions": 8, "other": 2}.get(folder, 1)]
    assert paths
    for path in paths:
        content = path.read_bytes()
        with Image.open(path) as image:
            assert damage.jpeg_damage(content, image.size) is None, path.name
            scale = decoding._draft(image.size, decoding.WORKING_SIDE)
            assert damage.decode_jpeg(content, image.mode, image.size, scale) is not None, path.name


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(("places", "length", "least"), [(16, 1, 250), (1, 16, 130), (1, 1, 70)])
def test_share_of_real_lesions_with_random_bytes_that_libjpeg_sees(places, length, least):
    """The table of docs/decisions/damaged-images.md."""
    paths, reasons = sorted((DATA / "lesions").rglob("*.jpg"))[::8][:300], []
    for number, path in enumerate(paths):
        rng, content = np.random.default_rng(number), bytearray(path.read_bytes())
        for at in rng.integers(scan_of(bytes(content)), len(content) - 2 - length, places):
            content[at : at + length] = rng.bytes(length)
        try:
            decoding.decode_with_hashes(bytes(content), 224)
            reasons.append("accepted")
        except ImageError as error:
            reasons.append(error.reason)
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    print(f"{places} x {length} random bytes: {counts}")
    assert len(reasons) == 300
    assert counts["damaged"] >= least
    assert counts.keys() <= {"accepted", "corrupt", "damaged"}


def test_damaged_is_the_first_flag_and_a_setting_of_decoded_rows():
    measured = np.full((3, 5), np.nan, np.float32)
    side = np.array([0.5, 2, 2])
    result = quality.flags(measured, config.Quality(), side, damaged=[True, True, False])
    assert result == [("damaged", "too_small"), ("damaged",), ()]
    assert quality.describe_flags(result[1]) == "damaged: the file is damaged: a part of the picture may be missing"

    settings = [config.parse({"ingest": {"damaged": choice}}) for choice in ("reject", "accept")]
    assert settings[0] == config.parse({})
    assert archive.decoded_folder(settings[0]) != archive.decoded_folder(settings[1])
