"""Draws an archive of synthetic dermoscopic lesions, for the demo and the end-to-end tests.

    python -m melanoma_spark.images.synthetic FOLDER [--images N] [--seed S] [--size PX]

Nothing here imitates a real patient, and no figure measured on a drawing says anything about melanoma. The drawings
are there so that every stage can be run, and seen to learn, where no archive can be had: what separates the classes
is what dermatologists' ABCD rule looks at (asymmetry, border, colour, diameter), and the classes overlap, so that the
best possible classifier stays below an AUC of 1.

Coordinates are in units of half the image's width, with the origin in its centre; colours are RGB in 0..1 until the
last step.
"""

import argparse
import csv
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REVISION = (
    1  # raise it when the same parameters draw other bytes: archives drawn before are then not taken for the same
)
MARKER = ".drawn.json"
COLUMNS = ("image_id", "label", "patient_id", "lesion_id")
LABELS = ("benign", "malignant")

SMALLEST_SIZE = 32  # pixels; below, a lesion is a smudge
SMALLEST_ARCHIVE = 8  # images; room for a duplicate, two turned JPEGs and a wrong suffix
ATYPIA_DISTANCE = 2.8  # between the classes' means, in standard deviations; Phi(2.8 / sqrt 2) = 0.976 bounds the AUC
JPEG_QUALITY = 90
PNG_SHARE = 0.15
BOMB_SIDE = 30_000  # pixels; 900 million of them, far beyond what Pillow agrees to open

Floats = NDArray[np.float32]

PALE_SKIN = np.array([0.91, 0.74, 0.67], np.float32)
TANNED_SKIN = np.array([0.71, 0.53, 0.43], np.float32)
MELANIN = np.array(
    [0.75, 1.25, 1.50], np.float32
)  # absorption by channel: it takes blue most, so thin melanin is brown
HAIR = np.array([0.16, 0.11, 0.09], np.float32)
# The colours that dermoscopy counts besides light brown, the last number being how far each covers what lies below.
PATCH_COLOURS = np.array(
    [
        [0.27, 0.15, 0.10, 0.80],  # dark brown
        [0.11, 0.08, 0.08, 0.85],  # black
        [0.40, 0.43, 0.52, 0.75],  # blue-grey veil
        [0.70, 0.30, 0.29, 0.65],  # red
        [0.86, 0.76, 0.72, 0.60],  # white, regression
    ],
    np.float32,
)


@dataclass(frozen=True)
class _Lesion:
    """What all views of one lesion share. Waves are rows of (frequency x, frequency y, phase), see `_field`."""

    skin: Floats  # (3,)
    outline: Floats  # (angles,) radius at evenly spaced angles from -pi to pi, ends equal
    softness: float  # width of the border
    ragged: float  # how far texture moves the border
    density: float  # of melanin; 0.4 is light brown, 1.5 dark brown
    core: float  # melanin added in the centre, or taken away
    mottling: float  # amplitude of the slow changes of density
    network: float  # amplitude of the pigment network
    slow: Floats  # (waves, 3)
    fine: Floats  # (waves, 3)
    mesh: Floats  # (waves, 3)
    patches: Floats  # (patches, 8): centre x, centre y, radius, red, green, blue, cover, sharpness
    hairs: Floats  # (hairs, 6): angle, offset, bend, middle, half length, half width
    rim: float  # radius of the dermoscope's dark rim, infinite where it stays out of sight


def draw_lesion(rng: np.random.Generator, malignant: bool, size: int = 96) -> NDArray[np.uint8]:
    """One photograph of one lesion on its own skin: uint8 (size, size, 3), RGB.

    The label sets only the distribution from which the lesion's atypia comes; skin, light, hairs and noise are drawn
    without regard to it. Every call takes fresh numbers from `rng`. Raises ValueError if size is below 32 pixels.
    """
    return _photograph(rng, _new_lesion(rng, malignant, _new_skin(rng)), size)


def lesion_jpeg(seed: int, malignant: bool = False, size: int = 96) -> bytes:
    """One drawn lesion as the bytes of a JPEG file, the same for the same seed."""
    return _jpeg(draw_lesion(np.random.default_rng(seed), malignant, size))


def _new_skin(rng: np.random.Generator) -> Floats:
    """A skin tone, (3,)."""
    tan = rng.beta(1.5, 2.0)
    tone = PALE_SKIN + (TANNED_SKIN - PALE_SKIN) * tan + rng.normal(0, 0.018, 3)
    return tone.astype(np.float32)


def _new_waves(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Plane waves in all directions with angular frequencies from low to high, (count, 3)."""
    direction, frequency = rng.uniform(0, 2 * np.pi, count), rng.uniform(low, high, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    return np.stack([frequency * np.cos(direction), frequency * np.sin(direction), phase], axis=1).astype(np.float32)


def _new_mesh(rng: np.random.Generator) -> Floats:
    """Three waves a third of a turn apart, whose sum is a honeycomb, (3, 3)."""
    direction = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3 + rng.normal(0, 0.12, 3)
    frequency, phase = rng.uniform(34, 44), rng.uniform(0, 2 * np.pi, 3)
    return np.stack([frequency * np.cos(direction), frequency * np.sin(direction), phase], axis=1).astype(np.float32)


def _new_lesion(rng: np.random.Generator, malignant: bool, skin: Floats) -> _Lesion:
    atypia = 1 / (1 + np.exp(-rng.normal(ATYPIA_DISTANCE / 2 if malignant else -ATYPIA_DISTANCE / 2, 1)))
    # Each sign follows the atypia loosely, so that no single one of them tells as much as all four.
    asymmetry, border, colour, diameter = np.clip(atypia + rng.normal(0, 0.15, 4), 0, 1)

    angle = np.linspace(-np.pi, np.pi, 181)
    order = np.arange(1, 13)
    amplitude = 0.02 * rng.normal(size=12) / order
    amplitude[1] += rng.uniform(0.03, 0.15)  # most moles are a little oval
    amplitude[[0, 2]] += asymmetry * rng.uniform(0.05, 0.16, 2)  # odd orders: what a half turn does not map on itself
    amplitude[3:] += border * rng.normal(0, 0.8, 9) / order[3:] ** 1.5
    waves = np.cos(order[:, None] * angle + rng.uniform(0, 2 * np.pi, 12)[:, None])
    radius = np.clip(0.28 + 0.23 * diameter + rng.normal(0, 0.04), 0.2, 0.58)
    # Bounded, so that no lesion reaches the corners: they show skin alone.
    outline = np.clip(radius * (1 + amplitude @ waves), 0.12, 0.82)

    hairs = rng.integers(1, 8) if rng.random() < 0.35 else 0
    return _Lesion(
        skin=skin,
        outline=outline.astype(np.float32),
        softness=rng.uniform(0.02, 0.06),
        ragged=0.01 + 0.07 * border,
        density=float(np.clip(rng.normal(0.62, 0.17) + 0.25 * colour, 0.25, 1.3)),
        core=rng.normal(0.1, 0.2),
        mottling=0.06 + 0.16 * colour,
        network=rng.uniform(0, 0.13),
        slow=_new_waves(rng, 6, 3, 9),
        fine=_new_waves(rng, 8, 14, 40),
        mesh=_new_mesh(rng),
        patches=_new_patches(rng, asymmetry, colour, radius),
        hairs=_new_hairs(rng, int(hairs)),
        rim=rng.uniform(1.08, 1.25) if rng.random() < 0.15 else np.inf,
    )


def _new_patches(rng: np.random.Generator, asymmetry: float, colour: float, radius: float) -> Floats:
    """Patches of other colours, (5, 8): more of them show with `colour`, to one side with `asymmetry`."""
    count = len(PATCH_COLOURS)
    shown = np.clip((1.15 * colour - rng.uniform(0.15, 1.1, count)) / 0.25, 0, 1)
    side = rng.uniform(0, 2 * np.pi) + rng.normal(0, 2.0 - 1.3 * asymmetry, count)
    distance = radius * (0.15 + 0.55 * asymmetry) * rng.uniform(0.5, 1.3, count)
    centre = np.stack([distance * np.cos(side), distance * np.sin(side)], axis=1)
    extent = radius * rng.uniform(0.25, 0.6, count)
    tints = PATCH_COLOURS[:, :3] + rng.normal(0, 0.02, (count, 3))
    rest = np.stack([PATCH_COLOURS[:, 3] * shown, rng.uniform(3, 8, count)], axis=1)
    return np.hstack([centre, extent[:, None], tints, rest])[rng.permutation(count)].astype(np.float32)


def _new_hairs(rng: np.random.Generator, count: int) -> Floats:
    """Hairs lying roughly one way, each an arc of a parabola, (count, 6)."""
    columns = [
        rng.uniform(0, np.pi) + rng.normal(0, 0.3, count),
        rng.uniform(-0.9, 0.9, count),
        rng.normal(0, 0.15, count),
        rng.uniform(-0.5, 0.5, count),
        rng.uniform(0.4, 1.2, count),
        rng.uniform(0.008, 0.017, count),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _field(waves: Floats, x: Floats, y: Floats) -> Floats:
    """A random texture of mean 0 and standard deviation about 1 at the points x, y; shaped like them."""
    phase = np.multiply.outer(waves[:, 0], x) + np.multiply.outer(waves[:, 1], y) + waves[:, 2, None, None]
    return np.cos(phase).sum(axis=0) * np.float32(np.sqrt(2 / len(waves)))


def _step(distance: Floats) -> Floats:
    """0 far below zero, 1 far above, smooth between -1 and 1."""
    return (1 + np.tanh(2 * distance)) / 2


def _photograph(rng: np.random.Generator, lesion: _Lesion, size: int) -> NDArray[np.uint8]:
    """A view of the lesion, uint8 (size, size, 3): each call turns, moves and lights it a little otherwise."""
    if size < SMALLEST_SIZE:
        raise ValueError(f"size {size}: a lesion is drawn at {SMALLEST_SIZE} pixels or more")
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    right, down = np.meshgrid(line, line)
    turn, zoom = rng.normal(0, 0.2), rng.uniform(0.94, 1.06)
    shift_x, shift_y = rng.uniform(-0.07, 0.07, 2)
    cos, sin = np.float32(np.cos(turn) / zoom), np.float32(np.sin(turn) / zoom)
    x = (right - np.float32(shift_x)) * cos - (down - np.float32(shift_y)) * sin
    y = (right - np.float32(shift_x)) * sin + (down - np.float32(shift_y)) * cos

    slow, fine = _field(lesion.slow, x, y), _field(lesion.fine, x, y)
    mesh = _field(lesion.mesh, x + np.float32(0.02) * slow, y + np.float32(0.01) * fine)
    distance = np.hypot(x, y)
    outline = np.interp(np.arctan2(y, x), np.linspace(-np.pi, np.pi, len(lesion.outline)), lesion.outline)
    outline = outline.astype(np.float32)
    inside = _step((outline + lesion.ragged * (0.5 * slow + 0.5 * fine) - distance) / lesion.softness)

    # Melanin darkens the skin it lies in, so a mole takes part of its colour from the patient.
    density = lesion.density + lesion.core * (1 - 2 * (distance / outline).clip(0, 1) ** 2)
    density = density + lesion.mottling * slow + lesion.network * mesh + 0.05 * fine
    melanin = inside * density.clip(0.05, 3)
    rgb = lesion.skin * (1 + 0.015 * fine + 0.01 * mesh)[..., None] * np.exp(-melanin[..., None] * MELANIN)

    for centre_x, centre_y, extent, red, green, blue, cover, sharpness in lesion.patches:
        if cover > 0:
            reach = np.hypot(x - centre_x, y - centre_y) / extent
            patch = inside * cover * _step((1 - reach + 0.25 * slow + 0.12 * fine) * sharpness / 4)
            rgb += patch[..., None] * (np.array([red, green, blue], np.float32) * (1 + 0.08 * mesh)[..., None] - rgb)

    for angle, offset, bend, middle, half_length, half_width in lesion.hairs:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        off_axis = (across - offset - bend * along**2) / half_width
        hair = np.exp(-(off_axis**2)) * _step((half_length - np.abs(along - middle)) * 20)
        rgb += 0.8 * hair[..., None] * (HAIR - rgb)

    light_x, light_y = rng.uniform(-0.07, 0.07, 2)
    light = rng.uniform(0.92, 1.06) * (1 + light_x * right + light_y * down)
    light = light * (0.12 + 0.88 * _step((np.float32(lesion.rim) - np.hypot(right, down)) / 0.06))
    rgb *= light.astype(np.float32)[..., None] * (1 + rng.normal(0, 0.012, 3)).astype(np.float32)
    rgb += rng.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(0.008, 0.022))
    return (rgb.clip(0, 1) * 255).round().astype(np.uint8)


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
    images: int = 360,
    seed: int = 0,
    size: int = 96,
    broken: bool = True,
    malignant_fraction: float = 0.4,
) -> dict[str, int]:
    """Draws a labelled archive with the faults that real ones have, and returns how many files of each kind it holds.

    It writes `benign/` and `malignant/` with JPEG and PNG files of size x size pixels, `metadata.csv` (image_id, label,
    patient_id, lesion_id; the image id is the file's stem), `notes.txt` and, beside them, one image that has no row.
    A patient has one to four lesions, benign or malignant, and a lesion one to three images. A few images are exact
    copies of another of the same lesion; two JPEGs carry an EXIF orientation; one PNG is called .jpg. All those are
    good images. With `broken`, eight files more have rows and cannot or must not be decoded: see `_broken_files`. The
    good images are the same with and without them.

    The same arguments give the same bytes (with the same versions of numpy and Pillow, on the same kind of processor).
    A folder that holds this very drawing is left as it is; one that a killed run left half drawn is drawn again.

    Args:
        folder: made if missing; else it must be empty or hold the same drawing.
        images: good images with a row in metadata.csv, copies included; 8 or more.
        seed: of all random numbers, 0 or more.
        size: width and height of the good images in pixels, 32 or more.
        broken: whether to write the files that an ingest must reject.
        malignant_fraction: share of malignant among the good images, 0 to 1, met as closely as whole lesions allow.

    Returns:
        `images` (good, with a row), `broken` (with a row), `unlabelled` (good, without a row), `other` (not images).

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
    drawing: dict[str, object] = {
        "revision": REVISION,
        "images": images,
        "seed": seed,
        "size": size,
        "broken": broken,
        "malignant_fraction": malignant_fraction,
    }
    drawn = _drawn_before(folder, drawing)
    if drawn is not None:
        return drawn

    folder.mkdir(parents=True, exist_ok=True)
    # The marker stands first without counts, so that a run killed half-way can be told from another's folder.
    (folder / MARKER).write_text(json.dumps({"drawing": drawing}, indent=2) + "\n")
    for label in LABELS:
        (folder / label).mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    cases = _new_cases(rng, images, malignant_fraction)
    rows = _draw_images(rng, folder, cases, size)
    (folder / "unlabelled.jpg").write_bytes(_jpeg(draw_lesion(rng, malignant=False, size=size)))
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


def _drawn_before(folder: Path, drawing: dict[str, object]) -> dict[str, int] | None:
    """The counts of a finished drawing in the folder, None if it has yet to be drawn; raises FileExistsError."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder that is empty or does not exist")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        raise FileExistsError(f"{folder} is not empty and holds no drawing: name another folder, or empty it") from None
    found = marker.get("drawing") if isinstance(marker, dict) else None
    if found != drawing:
        raise FileExistsError(
            f"{folder} holds another drawing ({found}, not {drawing}): name another folder, or empty it"
        )
    return marker.get("counts")


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
        patients.append((_new_skin(rng), kept))
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
    # Three files differ from the rest; none is of a lesion with copies, so that there are just three.
    single = [(index, view) for index, case in enumerate(cases) if index not in copied for view in range(case.views)]
    upside_down, on_its_side, misnamed = (single[i] for i in rng.permutation(len(single))[:3])
    encodings: dict[tuple[int, int], Callable[[NDArray[np.uint8]], bytes]] = {
        upside_down: partial(_jpeg, orientation=3),
        on_its_side: partial(_jpeg, orientation=6),
        misnamed: _png,
    }

    rows: list[tuple[str, ...]] = []
    for index, case in enumerate(cases):
        lesion = _new_lesion(rng, case.label == "malignant", case.skin)
        for view in range(case.views):
            is_copy = index in copied and view == case.views - 1
            if not is_copy:
                is_png = rng.random() < PNG_SHARE and (index, view) not in encodings
                encode = encodings.get((index, view), _png if is_png else _jpeg)
                content, suffix = encode(_photograph(rng, lesion, size)), ".png" if is_png else ".jpg"
            image_id = f"image_{len(rows) + 1:06d}"
            (folder / case.label / (image_id + suffix)).write_bytes(content)
            rows.append((image_id, case.label, case.patient_id, case.lesion_id))
    return rows


def _jpeg(pixels: NDArray[np.uint8], orientation: int = 1) -> bytes:
    """JPEG bytes of uint8 (height, width, 3), stored turned and marked so, as a camera does, with orientation 3 or 6.

    The number is EXIF's: 3 is stored upside down, 6 a quarter turn against the clock, 1 upright and not written.
    """
    turns = {1: 0, 3: 2, 6: 1}[orientation]
    image, exif = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns))), Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, exif=exif)
    return buffer.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _broken_files(rng: np.random.Generator, size: int) -> dict[str, bytes]:
    """What an ingest must reject: the file's name -> its bytes."""
    whole = _jpeg(draw_lesion(rng, malignant=True, size=size))
    scan = whole.index(b"\xff\xda")  # start of scan: what lies before it is the header
    page = (
        "<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head>\n<body><h1>403 Forbidden</h1></body></html>\n"
    )
    return {
        "broken_empty.jpg": b"",
        "broken_truncated.jpg": whole[: (scan + len(whole)) // 2],
        "broken_text.jpg": b"This was to be a photograph.\n",
        "broken_random.png": rng.bytes(2048),
        "broken_tiny.png": _png(draw_lesion(rng, malignant=True, size=64)[::8, ::8]),
        "broken_bomb.png": _bomb(),
        "broken_zero_length.png": b"",
        "broken_page.jpg": page.encode(),
    }


def _bomb() -> bytes:
    """A decompression bomb: a whole and valid black 1-bit PNG, BOMB_SIDE wide and high, in about a hundred kilobytes.

    Only its size speaks against it, so a decoder that does not look at the size first will try to unpack it.
    """
    length = BOMB_SIDE * (1 + (BOMB_SIDE + 7) // 8)  # every row is a filter byte and its bits, all zero
    block = 1 << 20
    deflate = zlib.compressobj(9)
    # After a full flush the compressor starts afresh: equal blocks give equal bytes, so one is packed and repeated.
    head = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    repeated = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    tail = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    rest = tail.compress(bytes(length % block)) + tail.flush()
    checksum = (length % 65521) << 16 | 1  # Adler-32 of that many zeros
    stream = head + repeated * (length // block - 1) + rest + checksum.to_bytes(4, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = BOMB_SIDE.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # one bit a pixel, greyscale, not interlaced
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def main(arguments: list[str] | None = None) -> None:
    """The command line: draws an archive and prints one line about it."""
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
