"""Draws one synthetic dermoscopic lesion. `synthetic` draws whole archives of them.

What separates the classes is what dermatologists' ABCD rule looks at: asymmetry, border, color, diameter. The classes
overlap, so that the best possible classifier stays below an AUC of 1.

Coordinates are in units of half the image's width, with the origin in its center. Colors are RGB in 0..1 until the last
step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_SIZE = 32  # pixels; below, a lesion is a smudge
ATYPIA_DISTANCE = 2.8  # between the classes' means, in standard deviations; Phi(2.8 / sqrt 2) = 0.976 bounds the AUC

Floats = NDArray[np.float32]

PALE_SKIN = np.array([0.91, 0.74, 0.67], np.float32)
TANNED_SKIN = np.array([0.71, 0.53, 0.43], np.float32)
MELANIN = np.array([0.75, 1.25, 1.50], np.float32)  # absorption by channel: most of blue, so thin melanin is brown
HAIR = np.array([0.16, 0.11, 0.09], np.float32)
# The colors that dermoscopy counts besides light brown, the last number being how far each covers what lies below.
PATCH_COLORS = np.array(
    [
        [0.27, 0.15, 0.10, 0.80],  # dark brown
        [0.11, 0.08, 0.08, 0.85],  # black
        [0.40, 0.43, 0.52, 0.75],  # blue-gray veil
        [0.70, 0.30, 0.29, 0.65],  # red
        [0.86, 0.76, 0.72, 0.60],  # white, regression
    ],
    np.float32,
)


@dataclass(frozen=True)
class Lesion:
    """What all views of one lesion share. Waves are rows of (frequency x, frequency y, phase), see `_field`."""

    skin: Floats  # (3,)
    outline: Floats  # (angles,) radius at evenly spaced angles from -pi to pi, ends equal
    softness: float  # width of the border
    ragged: float  # how far texture moves the border
    density: float  # of melanin; 0.4 is light brown, 1.5 dark brown
    core: float  # melanin added in the center, or taken away
    mottling: float  # amplitude of the slow changes of density
    network: float  # amplitude of the pigment network
    slow: Floats  # (waves, 3)
    fine: Floats  # (waves, 3)
    mesh: Floats  # (waves, 3)
    patches: Floats  # (patches, 8): center x, center y, radius, red, green, blue, cover, sharpness
    hairs: Floats  # (hairs, 6): angle, offset, bend, middle, half length, half width
    rim: float  # radius of the dermoscope's dark rim, infinite where it stays out of sight


def draw_lesion(rng: np.random.Generator, malignant: bool, size: int = 96) -> NDArray[np.uint8]:
    """One photograph of one lesion on its own skin: uint8 (size, size, 3), RGB.

    The label sets only the distribution from which the lesion's atypia comes; skin, light, hairs and noise are drawn
    without regard to it. Every call takes fresh numbers from `rng`. Raises ValueError if size is below 32 pixels.
    """
    return photograph(rng, new_lesion(rng, malignant, new_skin(rng)), size)


def new_skin(rng: np.random.Generator) -> Floats:
    """A skin tone, (3,)."""
    tan = rng.beta(1.5, 2.0)
    tone = PALE_SKIN + (TANNED_SKIN - PALE_SKIN) * tan + rng.normal(0, 0.018, 3)
    return np.asarray(tone, np.float32)


def _waves(direction: NDArray[Any], frequency: NDArray[Any] | float, phase: NDArray[Any]) -> Floats:
    """Rows of (frequency x, frequency y, phase)."""
    rows = [frequency * np.cos(direction), frequency * np.sin(direction), phase]
    return np.asarray(np.stack(rows, axis=1), np.float32)


def _new_waves(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Plane waves in all directions with angular frequencies from low to high, (count, 3)."""
    direction, frequency = rng.uniform(0, 2 * np.pi, count), rng.uniform(low, high, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    return _waves(direction, frequency, phase)


def _new_mesh(rng: np.random.Generator) -> Floats:
    """Three waves a third of a turn apart, whose sum is a honeycomb, (3, 3)."""
    direction = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3 + rng.normal(0, 0.12, 3)
    frequency, phase = rng.uniform(34, 44), rng.uniform(0, 2 * np.pi, 3)
    return _waves(direction, frequency, phase)


def new_lesion(rng: np.random.Generator, malignant: bool, skin: Floats) -> Lesion:
    """A lesion whose signs follow a random atypia, higher on average if it is malignant."""
    atypia = 1 / (1 + np.exp(-rng.normal(ATYPIA_DISTANCE / 2 if malignant else -ATYPIA_DISTANCE / 2, 1)))
    # Each sign follows the atypia loosely, so that all four say more than any one of them.
    asymmetry, border, color, diameter = np.clip(atypia + rng.normal(0, 0.15, 4), 0, 1)

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
    return Lesion(
        skin=skin,
        outline=outline.astype(np.float32),
        softness=rng.uniform(0.02, 0.06),
        ragged=0.01 + 0.07 * border,
        density=float(np.clip(rng.normal(0.62, 0.17) + 0.25 * color, 0.25, 1.3)),
        core=rng.normal(0.1, 0.2),
        mottling=0.06 + 0.16 * color,
        network=rng.uniform(0, 0.13),
        slow=_new_waves(rng, 6, 3, 9),
        fine=_new_waves(rng, 8, 14, 40),
        mesh=_new_mesh(rng),
        patches=_new_patches(rng, asymmetry, color, radius),
        hairs=_new_hairs(rng, int(hairs)),
        rim=rng.uniform(1.08, 1.25) if rng.random() < 0.15 else np.inf,
    )


def _new_patches(rng: np.random.Generator, asymmetry: float, color: float, radius: float) -> Floats:
    """Patches of other colors, (5, 8): more of them show with `color`, to one side with `asymmetry`."""
    count = len(PATCH_COLORS)
    shown = np.clip((1.15 * color - rng.uniform(0.15, 1.1, count)) / 0.25, 0, 1)
    side = rng.uniform(0, 2 * np.pi) + rng.normal(0, 2.0 - 1.3 * asymmetry, count)
    distance = radius * (0.15 + 0.55 * asymmetry) * rng.uniform(0.5, 1.3, count)
    center = np.stack([distance * np.cos(side), distance * np.sin(side)], axis=1)
    extent = radius * rng.uniform(0.25, 0.6, count)
    tints = PATCH_COLORS[:, :3] + rng.normal(0, 0.02, (count, 3))
    rest = np.stack([PATCH_COLORS[:, 3] * shown, rng.uniform(3, 8, count)], axis=1)
    return np.asarray(np.hstack([center, extent[:, None], tints, rest])[rng.permutation(count)], np.float32)


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
    return np.asarray(np.stack(columns, axis=1), np.float32)


def _field(waves: Floats, x: Floats, y: Floats) -> Floats:
    """A random texture of mean 0 and standard deviation about 1 at the points x, y; shaped like them."""
    phase = np.multiply.outer(waves[:, 0], x) + np.multiply.outer(waves[:, 1], y) + waves[:, 2, None, None]
    return np.asarray(np.cos(phase).sum(axis=0) * np.float32(np.sqrt(2 / len(waves))), np.float32)


def _step(distance: Floats) -> Floats:
    """0 far below zero, 1 far above, smooth between -1 and 1."""
    return np.asarray((1 + np.tanh(2 * distance)) / 2, np.float32)


def photograph(rng: np.random.Generator, lesion: Lesion, size: int) -> NDArray[np.uint8]:
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

    # Melanin darkens the skin it lies in, so a mole takes part of its color from the patient.
    density = lesion.density + lesion.core * (1 - 2 * (distance / outline).clip(0, 1) ** 2)
    density = density + lesion.mottling * slow + lesion.network * mesh + 0.05 * fine
    melanin = inside * density.clip(0.05, 3)
    rgb = lesion.skin * (1 + 0.015 * fine + 0.01 * mesh)[..., None] * np.exp(-melanin[..., None] * MELANIN)

    for center_x, center_y, extent, red, green, blue, cover, sharpness in lesion.patches:
        if cover > 0:
            reach = np.hypot(x - center_x, y - center_y) / extent
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
    return np.asarray((rgb.clip(0, 1) * 255).round(), np.uint8)
