"""Draws an archive of synthetic dermoscopic lesions, for the demo and the end-to-end tests.

    python -m melanoma_spark.images.synthetic FOLDER [--images N] [--seed S] [--size PX]

Nothing here imitates a real patient, and no figure measured on a drawing says anything about melanoma. With drawings
every stage can run, and learn something, without an archive of real lesions.
"""

import argparse
import csv
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from melanoma_spark.images import formats
from melanoma_spark.images.synthetic_lesions import SMALLEST_SIZE, Floats, draw_lesion, new_lesion, new_skin, photograph

REVISION = 1  # raise it when the same parameters draw other bytes, so that earlier archives count as different
MARKER = ".drawn.json"
COLUMNS = ("image_id", "label", "patient_id", "lesion_id")
LABELS = ("benign", "malignant")

SMALLEST_ARCHIVE = 8  # images; room for a duplicate, two turned JPEGs and a wrong suffix
JPEG_QUALITY = 90
PNG_SHARE = 0.15
BOMB_SIDE = 30_000  # pixels; 900 million in all, far more than Pillow opens


def lesion_jpeg(seed: int, malignant: bool = False, size: int = 96) -> bytes:
    """One drawn lesion as the bytes of a JPEG file, the same for the same seed."""
    return jpeg_bytes(draw_lesion(np.random.default_rng(seed), malignant, size))


@dataclass(frozen=True)
class _Case:
    """A lesion with its place in the archive."""

    patient_id: str
    lesion_id: str
    label: str
    skin: Floats  # the patient's, (3,)
    views: int


def draw_archive(
    folder: Path,
    *,
    images: int = 360,
    seed: int = 0,
    size: int = 96,
    broken: bool = True,
    malignant_fraction: float = 0.4,
) -> dict[str, int]:
    """Draw a labeled archive with the faults of real ones.

    It has `benign/` and `malignant/` with JPEG and PNG files of size x size pixels, `metadata.csv` (image_id, label,
    patient_id, lesion_id; the image id is the file's stem), `notes.txt` and one image without a row. A patient has one
    to four lesions, benign or malignant, and a lesion one to three images. A few images are exact copies of another one
    of the same lesion; two JPEGs have an EXIF orientation; one PNG is called .jpg. All of these are good images.

    The same arguments give the same bytes, with the same versions of numpy and Pillow on the same kind of processor. A
    folder that holds the same drawing is not touched; one that a killed run left unfinished is drawn again.

    Args:
        folder: made if missing; else it must be empty or hold the same drawing.
        images: good images with a row in metadata.csv, copies included; 8 or more.
        seed: of all random numbers, 0 or more.
        size: width and height of the good images in pixels, 32 or more.
        broken: whether to add the eight files of `_broken_files`, with rows; the good images do not depend on it.
        malignant_fraction: share of malignant among the good images, 0 to 1, met as closely as whole lesions allow.

    Returns:
        The number of files: `images` (good, with a row), `broken` (with a row), `unlabelled` (good, without a row) and
        `other` (not images).

    Raises:
        FileExistsError: the folder holds something else; it is not touched.
        ValueError: an argument is out of range.
    """
    if images < SMALLEST_ARCHIVE:
        raise ValueError(f"images {images}: an archive has {SMALLEST_ARCHIVE} or more")
    if size < SMALLEST_SIZE:
        raise ValueError(f"size {size}: a lesion is drawn at {SMALLEST_SIZE} pixels or more")
    if not 0 <= malignant_fraction <= 1:
        raise ValueError(f"malignant_fraction {malignant_fraction}: a share lies between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed {seed}: a seed is 0 or more")
    folder = Path(folder)
    drawing: dict[str, object] = {"revision": REVISION, "images": images, "seed": seed, "size": size}
    drawing |= {"broken": broken, "malignant_fraction": malignant_fraction}
    finished = _counts_of_finished(folder, drawing)
    if finished is not None:
        return finished

    folder.mkdir(parents=True, exist_ok=True)
    # The marker comes first, without counts, so that a killed run is distinguished from another folder.
    (folder / MARKER).write_text(json.dumps({"drawing": drawing}, indent=2) + "\n")
    for label in LABELS:
        (folder / label).mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    cases = _new_cases(rng, images, malignant_fraction)
    rows = _draw_images(rng, folder, cases, size)
    (folder / "unlabelled.jpg").write_bytes(jpeg_bytes(draw_lesion(rng, malignant=False, size=size)))
    (folder / "notes.txt").write_text("Drawn lesions, no real patients. Labels are in metadata.csv.\n")

    broken_files = _broken_files(rng, size) if broken else {}
    for number, (name, content) in enumerate(broken_files.items(), start=1):
        label = LABELS[number % 2]
        (folder / label / name).write_bytes(content)
        rows.append((Path(name).stem, label, f"patient_x{number}", f"lesion_x{number}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])

    counts = {"images": images, "broken": len(broken_files), "unlabelled": 1, "other": 1}
    (folder / MARKER).write_text(json.dumps({"drawing": drawing, "counts": counts}, indent=2) + "\n")
    return counts


def _counts_of_finished(folder: Path, drawing: dict[str, object]) -> dict[str, int] | None:
    """The counts of a finished drawing in the folder; None if there is none yet. Raises FileExistsError."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder that is empty or does not exist")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        raise FileExistsError(f"{folder} is not empty and holds no drawing: name another folder, or empty it") from None
    other = marker.get("drawing") if isinstance(marker, dict) else None
    if other != drawing:
        raise FileExistsError(
            f"{folder} holds another drawing ({other}, not {drawing}): name another folder, or empty it"
        )
    return cast("dict[str, int] | None", marker.get("counts"))


def _new_cases(rng: np.random.Generator, images: int, malignant_fraction: float) -> list[_Case]:
    """Patients with their lesions, `images` views in all."""
    patients: list[tuple[Floats, list[int]]] = []
    left = images
    while left:
        views = rng.choice([1, 2, 3], size=rng.integers(1, 5), p=[0.5, 0.35, 0.15])
        if left == images:
            views[0] = 2  # so that an archive, however small, has a lesion with room for a copy
        kept = [int(min(count, left - before)) for count, before in zip(views, np.cumsum(views) - views, strict=True)]
        kept = [count for count in kept if count > 0]
        patients.append((new_skin(rng), kept))
        left -= sum(kept)

    lesions = [(patient, skin, count) for patient, (skin, kept) in enumerate(patients, start=1) for count in kept]
    quota = round(malignant_fraction * images)
    malignant = set()
    for index in rng.permutation(len(lesions)):
        if lesions[index][2] <= quota:
            malignant.add(int(index))
            quota -= lesions[index][2]
    return [
        _Case(f"patient_{patient:04d}", f"lesion_{index + 1:05d}", LABELS[index in malignant], skin, count)
        for index, (patient, skin, count) in enumerate(lesions)
    ]


def _draw_images(rng: np.random.Generator, folder: Path, cases: list[_Case], size: int) -> list[tuple[str, ...]]:
    """Writes the good images and returns their rows of metadata.csv."""
    images = sum(case.views for case in cases)
    several = [index for index, case in enumerate(cases) if case.views > 1]
    copied = set(rng.permutation(several)[: max(1, images // 60)].tolist())
    # Three files differ from the rest; none is of a lesion with copies, so that there are exactly three.
    single = [(index, view) for index, case in enumerate(cases) if index not in copied for view in range(case.views)]
    upside_down, on_its_side, misnamed = (single[i] for i in rng.permutation(len(single))[:3])
    encodings: dict[tuple[int, int], Callable[[NDArray[np.uint8]], bytes]] = {
        upside_down: partial(jpeg_bytes, orientation=3),
        on_its_side: partial(jpeg_bytes, orientation=6),
        misnamed: png_bytes,
    }

    rows: list[tuple[str, ...]] = []
    for index, case in enumerate(cases):
        lesion = new_lesion(rng, case.label == "malignant", case.skin)
        for view in range(case.views):
            is_copy = index in copied and view == case.views - 1
            if not is_copy:
                is_png = rng.random() < PNG_SHARE and (index, view) not in encodings
                encode = encodings.get((index, view), png_bytes if is_png else jpeg_bytes)
                content, suffix = encode(photograph(rng, lesion, size)), ".png" if is_png else ".jpg"
            image_id = f"image_{len(rows) + 1:06d}"
            (folder / case.label / (image_id + suffix)).write_bytes(content)
            rows.append((image_id, case.label, case.patient_id, case.lesion_id))
    return rows


def jpeg_bytes(pixels: NDArray[np.uint8], orientation: int = 1) -> bytes:
    """JPEG bytes of uint8 (height, width, 3), stored turned if `orientation` is 3 or 6, as by a camera.

    The number is EXIF's: 3 is stored upside down, 6 a quarter turn counterclockwise, 1 upright and not written.
    """
    turns = {1: 0, 3: 2, 6: 1}[orientation]
    image, exif = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns))), Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    return formats.encode(image, "JPEG", quality=JPEG_QUALITY, exif=exif)


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 (height, width, 3)."""
    return formats.encode(Image.fromarray(pixels), "PNG")


def _broken_files(rng: np.random.Generator, size: int) -> dict[str, bytes]:
    """Files that an ingest must reject: name -> bytes."""
    jpeg = jpeg_bytes(draw_lesion(rng, malignant=True, size=size))
    scan = jpeg.index(b"\xff\xda")  # start of scan, which follows the header
    page = (
        "<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head>\n<body><h1>403 Forbidden</h1></body></html>\n"
    )
    return {
        "broken_empty.jpg": b"",
        "broken_truncated.jpg": jpeg[: (scan + len(jpeg)) // 2],
        "broken_text.jpg": b"This was to be a photograph.\n",
        "broken_random.png": rng.bytes(2048),
        "broken_tiny.png": png_bytes(draw_lesion(rng, malignant=True, size=64)[::8, ::8]),
        "broken_bomb.png": bomb_png(),
        "broken_zero_length.png": b"",
        "broken_page.jpg": page.encode(),
    }


def bomb_png() -> bytes:
    """A decompression bomb: a valid black 1-bit PNG, BOMB_SIDE wide and high, in about a hundred kilobytes.

    Only its size is wrong, so a decoder that does not check the size first tries to unpack it.
    """
    length = BOMB_SIDE * (1 + (BOMB_SIDE + 7) // 8)  # every row is a filter byte and its bits, all zero
    block = 1 << 20
    deflate = zlib.compressobj(9)
    # After a full flush the compressor starts anew: equal blocks give equal bytes, so one is packed and repeated.
    head = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    repeated = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    tail = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    rest = tail.compress(bytes(length % block)) + tail.flush()
    checksum = (length % 65521) << 16 | 1  # Adler-32 of that many zeros
    stream = head + repeated * (length // block - 1) + rest + checksum.to_bytes(4, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = BOMB_SIDE.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # one bit a pixel, grayscale, not interlaced
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def main(arguments: list[str] | None = None) -> None:
    """Draw an archive by the arguments of the command line, and print one line about it."""
    parser = argparse.ArgumentParser(
        prog="python -m melanoma_spark.images.synthetic",
        description="Draws an archive of synthetic dermoscopic lesions: benign/, malignant/ and metadata.csv with "
        "patient and lesion ids. Among the good images are copies, turned JPEGs and a wrong suffix; eight files more "
        "are broken, for the ingest to reject.",
        epilog="The same settings give the same bytes. A folder that holds the same drawing is left as it is; one that "
        "holds anything else is refused. Example: python -m melanoma_spark.images.synthetic demo/archive --images 360",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to draw: a new or an empty folder")
    parser.add_argument("--images", type=int, default=360, metavar="N", help="good images with a label (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another archive (%(default)s)")
    parser.add_argument("--size", type=int, default=96, metavar="PX", help="width and height in pixels (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        counts = draw_archive(options.folder, images=options.images, seed=options.seed, size=options.size)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(
        f"{options.folder}: {counts['images']} labelled images, {counts['broken']} broken files, "
        f"{counts['unlabelled']} image without a label, {counts['other']} other file"
    )


if __name__ == "__main__":
    main()
