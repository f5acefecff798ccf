"""Colors: images of any of Pillow's modes become sRGB, by their ICC profile where they have one.

Little CMS converts (Pillow's ImageCms): relative colorimetric with black point compensation. White stays white, and
colors that sRGB can show stay as they are, which a perceptual table may change.
"""

import functools
import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

TARGET = "sRGB, relative colorimetric with black point compensation"
MAX_PROFILE = 1 << 22  # bytes; that of a press has 2 MB
SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # of a profile (ICC.1:2022, 7.2.6) -> Pillow's mode
GRAY = {"1", "L", "LA", "La"}
TRANSPARENT = {"RGBA", "LA", "PA", "RGBa", "La"}
DEEP = {"I", "I;16", "I;16B", "I;16L"}  # 16 bits; Pillow had "I" for a PNG of these

# What became of a profile. None: it is that of sRGB, or the image has none.
Profile = Literal["converted", "broken"] | None
STATES: tuple[Profile, ...] = (None, "converted", "broken")


def describe_broken(profiles: Mapping[str, int]) -> str:
    """For the end of a summary: how many files have a profile that cannot be used; empty if none has.

    `profiles` are numbers of images by `Profile`.
    """
    broken = profiles.get("broken", 0)
    return f"; {broken} with a color profile that cannot be used, sRGB is assumed" if broken else ""


def to_srgb(image: Image.Image, profile: bytes | None = None) -> tuple[Image.Image, Profile]:
    """The image in mode RGB, on white where it is transparent, and what became of its ICC profile.

    A profile that cannot be read, or is for other colors than the image has, is `broken`: sRGB is assumed.
    """
    if image.mode in DEEP:  # before the rest: Pillow cuts these at 255 when it converts
        image = _of_16_bits(image)
    alpha, gray = None, image.mode in GRAY
    if image.mode in TRANSPARENT or "transparency" in image.info:
        # On white, as viewers show it; a plain conversion would show the hidden pixels.
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    state: Profile = None
    if profile:
        image, state = _convert(image, profile, gray)
    if alpha is not None:
        if image.mode == "RGB":
            image.putalpha(alpha)
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return (image if image.mode == "RGB" else image.convert("RGB")), state  # convert would copy


def _of_16_bits(image: Image.Image) -> Image.Image:
    deep = np.asarray(image)
    gray = (deep.clip(0, 65535) // 257).astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:
        np.subtract(255, gray, out=gray)  # white is zero; Pillow inverts only 8-bit images
    if "transparency" in image.info:
        gray[deep == image.info["transparency"]] = 255
    return Image.fromarray(gray)


def _convert(image: Image.Image, profile: bytes, gray: bool) -> tuple[Image.Image, Profile]:
    mode = SPACES.get(profile[16:20])
    if mode is None or len(profile) > MAX_PROFILE or (mode == "CMYK") != (image.mode == "CMYK"):
        return image, "broken"
    if mode == "L" and not gray:
        return image, "broken"
    try:
        transform = _transform(profile, mode)
        if transform is None:
            return image, None
        return transform.apply(image.convert(mode)), "converted"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "broken"


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile to sRGB; None if it changes no color by more than a level. Raises as ImageCms does."""
    transform = ImageCms.ImageCmsTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    sample = Image.fromarray(grid if mode == "RGB" else grid[..., 0])
    after = np.asarray(transform.apply(sample)).astype(int)
    return transform if np.abs(after - np.asarray(sample.convert("RGB"))).max() > 1 else None
