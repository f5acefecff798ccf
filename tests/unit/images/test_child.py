"""The child that decodes: bounds of memory and time, and deaths of which its parent only hears."""

import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from broken import LESION, PIXELS, dicom, encoded

from melanoma_spark.errors import ClusterError, ImageError
from melanoma_spark.images import child, decoding
from melanoma_spark.images.limits import ImageLimits

TIFF = encoded(LESION, "TIFF")


def process():
    """The child, which runs."""
    decoding.decode(TIFF, 8)
    return psutil.Process(child._child.process.pid)


def error_of(content, **limits):
    with pytest.raises(ImageError) as error:
        decoding.decode(content, 8, ImageLimits(**limits))
    return error.value


def test_one_child_serves_many_images_with_the_pixels_of_this_process():
    pid = process().pid
    for content in (TIFF, dicom(), encoded(LESION, "TIFF", compression="jpeg")):
        for hashes in (False, True):
            there = decoding._decode(content, 96, ImageLimits(), decoding.PIXELS_VERSION, hashes)
            here = decoding._decode(content, 96, ImageLimits(), decoding.PIXELS_VERSION, hashes, in_child=True)
            assert {**vars(there), "pixels": 0, "hash_pixels": 0} == {**vars(here), "pixels": 0, "hash_pixels": 0}
            assert np.array_equal(there.pixels, here.pixels)
            assert np.array_equal(there.hash_pixels, here.hash_pixels)
            assert there.pixels.shape == here.pixels.shape
            assert there.hash_pixels.shape == here.hash_pixels.shape
    assert process().pid == pid


def test_large_images_of_other_formats_go_to_the_child(monkeypatch):
    asked = []
    monkeypatch.setattr(decoding, "_ask_child", lambda *of: asked.append(len(of[0])))
    monkeypatch.setattr(decoding, "MOST_IN_PROCESS", 4 * 96 * 96 - 1)
    for kind, options in (("PNG", {}), ("WEBP", {}), ("BMP", {}), ("JPEG", {"progressive": True})):
        decoding._decode(encoded(LESION, kind, **options), 8, ImageLimits(), 3, False)
    assert len(asked) == 4
    asked.clear()
    monkeypatch.setattr(decoding, "MOST_IN_PROCESS", 4 * 96 * 96)
    for kind in ("PNG", "WEBP", "BMP", "JPEG"):
        decoding._decode(encoded(LESION, kind), 8, ImageLimits(), 3, False)
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
        "d.answer = busy\nfrom melanoma_spark.images.child import serve; serve()",
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
        "d.answer = greedy\nfrom melanoma_spark.images.child import serve; serve()",
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
