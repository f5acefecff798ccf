"""The child that decodes: bounds of memory and time, and deaths of which its parent only hears."""

import os
import signal
import struct
import threading
import time

import icc
import numpy as np
import psutil
import pytest
from broken import (
    END_OF_ITEM,
    END_OF_SEQUENCE,
    GREY,
    ITEM,
    LESION,
    PIXELS,
    SEQUENCE,
    dicom,
    encoded,
    nested,
    tiff,
    tiff_tags,
    with_elements,
)
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from melanoma_spark.errors import ClusterError, ImageError
from melanoma_spark.images import child, decoding
from melanoma_spark.images.child import Request
from melanoma_spark.images.limits import ImageLimits

TIFF = encoded(LESION, "TIFF", big_tiff=True)
FRAGMENT = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
IMPLICIT_SYNTAX = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", 18) + ImplicitVRLittleEndian.encode() + b"\0"
RAW = PIXELS.tobytes()
JPEG_FRAME = {"syntax": JPEGBaseline8Bit, "frame": encoded(LESION, "JPEG"), "PhotometricInterpretation": "YBR_FULL_422"}
SIMPLE = {
    "TIFF": [
        *(
            encoded(LESION, "TIFF", compression=name)
            for name in (None, "jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits")
        ),
        encoded(
            LESION.convert("CMYK"), "TIFF", dpi=(300, 300), description="x" * 1000, icc_profile=icc.of_primaries(icc.P3)
        ),
        encoded(LESION.quantize(16), "TIFF"),
        tiff(tiff_tags(t254=(4, 0)), RAW, ">"),
    ],
    "DICOM": [
        dicom(ICCProfile=icc.of_primaries(icc.P3)),
        dicom(np.asarray(GREY).astype(np.uint16) * 257, PatientID="Jos\u00e9", SpecificCharacterSet="ISO_IR 192"),
        dicom(**JPEG_FRAME),
        dicom(syntax=ImplicitVRLittleEndian),
        nested(20),
        with_elements(SEQUENCE + ITEM + IMPLICIT_SYNTAX + END_OF_ITEM + END_OF_SEQUENCE),
        with_elements(struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 3000) + bytes(3000)),
    ],
}
# Files that hold, or may hold, more than their pixels -> why
INVOLVED = {
    "TIFF": {
        "old jpeg": tiff(tiff_tags(compression=6, photometric=6), RAW),
        "fax": encoded(LESION.convert("1"), "TIFF", compression="group4"),
        "tiles": tiff({324 if tag == 273 else tag: of for tag, of in tiff_tags().items()}, RAW),
        "BigTIFF": encoded(LESION, "TIFF", big_tiff=True),
        "pages": encoded(LESION, "TIFF", save_all=True, append_images=[LESION]),
        "EXIF": tiff(tiff_tags(t34665=(4, 8)), RAW),
        "subdirectories": tiff(tiff_tags(t330=(4, 8)), RAW),
        "long tables of JPEG": tiff(tiff_tags(t347=(4, (0,) * 1025)), RAW),
        "many values": tiff(tiff_tags(t700=(4, (0,) * (1 << 18))), RAW),
        "strips of the same bytes": tiff(tiff_tags(t273=(4, (8, 8)), t278=(4, 48), t279=(4, (20_000, 20_000))), RAW),
        "more strips than rows": tiff(tiff_tags(t273=(4, (8, 8)), t279=(4, (9, 9))), RAW),
        "bands apart": tiff(tiff_tags(t284=(3, 2)), RAW),
        "a tag twice": tiff(tiff_tags(t254=(4, 0)), RAW).replace(
            struct.pack("<HH", 254, 4), struct.pack("<HH", 256, 4)
        ),
        "no directory": b"II*\0" + bytes(4),
    },
    "DICOM": {
        "another packing": dicom(syntax=DeflatedExplicitVRLittleEndian),
        "no kinds": dicom(syntax=ImplicitVRLittleEndian).replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1"),
        "no preamble": dicom()[132:],
        "many elements": with_elements((SEQUENCE + END_OF_SEQUENCE) * 501),
        "a long text": dicom(InstitutionName="x" * 1025).replace(b"\x08\0\x80\0LO", b"\x08\0\x05\0LO"),
        "a text as a sequence": dicom().replace(b"\x10\0\x20\0LO", b"\x10\0\x20\0SQ"),
        "a delimiter": with_elements(END_OF_SEQUENCE),
        "many fragments": dicom(**JPEG_FRAME | {"frame": b"\0\0"}).replace(
            END_OF_SEQUENCE, FRAGMENT * 1001 + END_OF_SEQUENCE
        ),
        "many offsets": dicom(**JPEG_FRAME).replace(
            struct.pack("<HHII", 0xFFFE, 0xE000, 4, 0), struct.pack("<HHI", 0xFFFE, 0xE000, 12) + bytes(12)
        ),
        "no pixels": dicom(PixelData=None),
        "cut": dicom()[:-1],
    },
}


def process():
    """The child, which runs."""
    decoding.decode(TIFF, 8)
    return psutil.Process(child._child.process.pid)


def error_of(content, **limits):
    with pytest.raises(ImageError) as error:
        decoding.decode(content, 8, ImageLimits(**limits))
    return error.value


def assert_same(content, there, hashes=True):
    """`there` is what `decode_in_child` gives in this process."""
    here = decoding.decode_in_child(content, Request(96, ImageLimits(), decoding.PIXELS_VERSION, hashes))
    assert {**vars(there), "pixels": 0, "hash_pixels": 0} == {**vars(here), "pixels": 0, "hash_pixels": 0}
    for name in ("pixels", "hash_pixels"):
        assert np.array_equal(getattr(there, name), getattr(here, name))
        assert getattr(there, name).shape == getattr(here, name).shape


def test_one_child_serves_many_images_with_the_pixels_of_this_process():
    pid = process().pid
    for content in (TIFF, dicom(syntax=DeflatedExplicitVRLittleEndian)):
        assert_same(content, decoding.decode_with_hashes(content, 96))
        assert_same(content, decoding.decode_described(content, 96), hashes=False)
    assert process().pid == pid


@pytest.mark.parametrize("kind", ["TIFF", "DICOM"])
def test_simple_files_are_decoded_by_this_process_to_the_same_pixels(kind, monkeypatch):
    monkeypatch.setattr(child, "decode", lambda *of: pytest.fail("asked"))
    for content in SIMPLE[kind]:
        assert_same(content, decoding.decode_with_hashes(content, 96))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, files in INVOLVED.items() for name in files])
def test_files_that_headers_do_not_bound_go_to_the_child(kind, name):
    assert decoding.BOUNDED[kind](INVOLVED[kind][name]) is None


def test_large_images_of_other_formats_go_to_the_child(monkeypatch):
    asked = []
    monkeypatch.setattr(child, "decode", lambda *of: asked.append(len(of[0])))
    monkeypatch.setattr(decoding, "MOST_IN_PROCESS", 4 * 96 * 96 - 1)
    for kind, options in (("PNG", {}), ("WEBP", {}), ("BMP", {}), ("JPEG", {"progressive": True})):
        decoding.decode_with_hashes(encoded(LESION, kind, **options), 8)
    assert len(asked) == 4
    asked.clear()
    monkeypatch.setattr(decoding, "MOST_IN_PROCESS", 4 * 96 * 96)
    for kind in ("PNG", "WEBP", "BMP", "JPEG"):
        decoding.decode_with_hashes(encoded(LESION, kind), 8)
    assert not asked


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "too_costly"), (signal.SIGXCPU, "too_costly"), (signal.SIGSEGV, "corrupt")],
)
def test_a_death_is_a_rejected_image_and_the_next_one_is_decoded(number, reason):
    stopped = process()
    stopped.suspend()  # else it may be faster

    def strike():
        time.sleep(0.2)
        os.kill(stopped.pid, number)
        stopped.resume()

    thread = threading.Thread(target=strike)
    thread.start()
    assert error_of(TIFF).reason == reason
    thread.join()
    assert np.array_equal(decoding.decode(TIFF, 96), PIXELS)


def test_processor_time_is_bounded(monkeypatch):
    monkeypatch.setattr(
        child,
        "SERVE",
        "import melanoma_spark.images.decoding as d\n"
        "def busy(*of):\n    while True: pass\n"
        "d.decode_in_child = busy\nfrom melanoma_spark.images.child import serve; serve()",
    )
    child._end_child()
    try:
        start = time.monotonic()
        error = error_of(TIFF, max_seconds=1)
        assert (error.reason, error.detail) == ("too_costly", "over 1 s of processor time")
        assert time.monotonic() - start < 60
    finally:
        child._end_child()


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(
        child,
        "SERVE",
        "import melanoma_spark.images.decoding as d\n"
        "def greedy(*of):\n    try: bytes(3_000_000_000)\n"
        "    except MemoryError: raise d.ImageError('too_costly', 'held') from None\n"
        "d.decode_in_child = greedy\nfrom melanoma_spark.images.child import serve; serve()",
    )
    child._end_child()
    try:
        assert error_of(TIFF).detail == "held"
    finally:
        child._end_child()


def test_a_large_picture_within_the_limits_is_decoded_within_its_memory():
    side = 5000
    content = encoded(LESION.resize((side, side)).convert("RGBA"), "TIFF", compression="tiff_adobe_deflate")
    result = decoding.decode_described(content, 96, ImageLimits(max_pixels=side * side))
    assert (result.width, result.height) == (side, side)


def test_a_child_that_cannot_start_ends_the_job_and_is_no_property_of_the_image(monkeypatch):
    monkeypatch.setattr(child, "SERVE", "raise SystemExit(7)")
    child._end_child()
    try:
        with pytest.raises(ClusterError, match="exit status 7"):
            decoding.decode(TIFF, 8)
    finally:
        child._end_child()


def test_the_child_ends_with_its_parent():
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, str(process().pid).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    number = int(os.read(read, 20))
    assert number != process().pid, "a forked process has a child of its own"
    until = time.monotonic() + 20
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)
