"""What color management and the child that decodes cost: the same files with and without, in turns, in one process.

Profiles: JPEGs of ../shared/data/lesions, else drawn, decoded with pixels of version 2, which ignores ICC profiles, and
of this version; without profiles, and all with one of Display P3. Child: simple TIFF files and DICOM photographs, which
this process decodes, and TIFF files of two pages, which the child decodes; beside them, all in this process.

    .venv/bin/python benchmarks/decoding.py            (3 minutes)
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit
from side_by_side import REPO

from melanoma_spark.images import child, decoding, synthetic
from melanoma_spark.images.limits import DEFAULT_LIMITS
from melanoma_spark.images.synthetic_lesions import draw_lesion

sys.path.append(str(REPO / "tests"))
import broken
import icc

LESIONS = REPO.parent / "shared/data/lesions"
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="files of each kind [300]")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each [9]")
    options = parser.parse_args()
    plain = jpegs(options.images)
    profiled = [with_profile(content) for content in plain]
    for name, contents in (("no file has a profile", plain), ("every file has one", profiled)):
        compare(name, contents, options.rounds, lambda content: decode(content, decoding.UNMANAGED), decode)
    for side, share in ((SIZE, 3), (1024, 12)):
        lesion = Image.fromarray(draw_lesion(np.random.default_rng(1), malignant=True, size=side))
        files = {
            "TIFF with LZW": broken.encoded(lesion, "TIFF", compression="tiff_lzw"),
            "TIFF with JPEG": broken.encoded(lesion, "TIFF", compression="jpeg"),
            "DICOM": broken.dicom(np.asarray(lesion)),
            "DICOM with JPEG": broken.dicom(
                syntax=JPEGBaseline8Bit, frame=broken.encoded(lesion, "JPEG"), Rows=side, Columns=side
            ),
            "TIFF of two pages, in the child": broken.encoded(
                lesion, "TIFF", compression="tiff_lzw", save_all=True, append_images=[lesion.resize((8, 8))]
            ),
        }
        for name, content in files.items():
            contents = [content] * (options.images // share)
            compare(f"{name}, {side} px", contents, options.rounds, in_process, decode)


def jpegs(count: int) -> list[bytes]:
    """Contents of so many JPEG files."""
    paths = sorted(Path(LESIONS).glob("*/*.jpg"))[:count]
    return [path.read_bytes() for path in paths] or [synthetic.lesion_jpeg(seed, size=SIZE) for seed in range(count)]


def with_profile(content: bytes) -> bytes:
    """The same JPEG data with a profile of Display P3."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "JPEG", quality="keep", icc_profile=icc.of_primaries(icc.P3))
    return buffer.getvalue()


def decode(content: bytes, version: int = decoding.PIXELS_VERSION) -> None:
    decoding.decode_with_hashes(content, SIZE, version=version)


def in_process(content: bytes) -> None:
    decoding.decode_in_child(content, child.Request(SIZE, DEFAULT_LIMITS, decoding.PIXELS_VERSION, hashes=True))


def processor_seconds() -> float:
    """Of this process and its child, so that other work on the machine counts less."""
    running = child._child
    nanoseconds = int(Path(f"/proc/{running.process.pid}/schedstat").read_text().split()[0]) if running else 0
    return time.process_time() + nanoseconds / 1e9


def compare(
    name: str,
    contents: Sequence[bytes],
    rounds: int,
    before: Callable[[bytes], None],
    after: Callable[[bytes], None],
) -> None:
    """Print the processor time of an image before and after, and the median of the ratios of neighboring turns."""
    seconds: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        pair = []
        for function in (before, after) if turn % 2 else (after, before):
            started = processor_seconds()
            for content in contents:
                function(content)
            pair.append(processor_seconds() - started)
        if turn:  # the first one warms up
            seconds.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
    old, new = (statistics.median(column) / len(contents) * 1000 for column in zip(*seconds, strict=True))
    ratio = statistics.median(one / other for one, other in seconds)
    print(f"{name}: {old:.2f} ms before, {new:.2f} ms after, speed {ratio:.3f} of before", flush=True)


if __name__ == "__main__":
    main()
