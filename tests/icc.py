"""ICC profiles, made here: ICC.1:2022, of version 2.4."""

import struct

import numpy as np

# Primaries of Display P3 and sRGB at the white of D50, XYZ by column, as their published profiles have them
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
WHITE = (0.9642, 1.0, 0.8249)
CURVE = (
    b"para"
    + bytes(4)
    + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, 0.947867, 0.052133, 0.077399, 0.04045)))
)


def profile(space, tags, kind=b"mntr", connection=b"XYZ "):
    """A profile of a color space, b"RGB " or another; `tags` is name -> content."""
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    size = start + len(data)
    header = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02400000, kind, space, connection, bytes(12), b"acsp")
    header = header.ljust(68, b"\0") + b"".join(struct.pack(">i", round(v * 65536)) for v in WHITE)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _xyz(values):
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def of_primaries(primaries):
    """A profile of a screen with sRGB's curve."""
    tags = {b"wtpt": _xyz(WHITE)}
    for place, color in enumerate(b"rgb"):
        tags[bytes([color]) + b"XYZ"] = _xyz(primaries[:, place])
        tags[bytes([color]) + b"TRC"] = CURVE
    return profile(b"RGB ", tags)


def of_gray(gamma):
    """A profile of gray levels with a power curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return profile(b"GRAY", {b"wtpt": _xyz(WHITE), b"kTRC": curve})


def of_inks(lab):
    """A profile of a press whose 16 full mixtures of CMYK have these colors: (2, 2, 2, 2, 3), CIELAB of D50."""
    encoded = np.round(lab * (2.55, 1, 1) + (0, 128, 128)).clip(0, 255).astype(np.uint8)
    identity = bytes(range(256))
    unit = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + 4 * identity + encoded.tobytes() + 3 * identity
    return profile(b"CMYK", {b"wtpt": _xyz(WHITE), b"A2B0": table, b"A2B1": table}, b"prtr", b"Lab ")


def linear(levels):
    """Of sRGB's curve: levels of 0 to 1 -> amounts of light."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def level(light):
    """The inverse of `linear`, cut to 0 to 1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def p3_to_srgb(pixels):
    """uint8 RGB of Display P3 as that of sRGB, by the definitions of both."""
    light = linear(pixels / 255) @ (np.linalg.inv(SRGB) @ P3).T
    return np.round(255 * level(light)).astype(np.uint8)


def lab_to_srgb(lab):
    """CIELAB of D50 as uint8 of sRGB, by CIE 15."""
    lightness, a, b = lab
    middle = (lightness + 16) / 116
    roots = np.array([middle + a / 500, middle, middle - b / 200])
    light = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * WHITE
    return np.round(255 * level(np.linalg.inv(SRGB) @ light)).astype(np.uint8)
