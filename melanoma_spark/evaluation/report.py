"""One run as a self-contained HTML page and a model card: what was measured, on which data, with which limits.

The page needs no script, no network and no other file, and reads on paper, a desktop and a phone. Text from outside
(titles, reject reasons, settings) is escaped.
"""

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from melanoma_spark import pages
from melanoma_spark.evaluation.facts import Facts, Mistake
from melanoma_spark.evaluation.plots import PLOTS
from melanoma_spark.evaluation.subgroups import ATTRIBUTES, FEWEST, flag_text, largest_gaps
from melanoma_spark.images import quality
from melanoma_spark.images.reasons import REASONS

MISTAKE_SIDE = 224  # pixels


class Published(NamedTuple):
    """A published result on dermoscopy photographs."""

    data: str
    result: str
    source: str


PUBLISHED = (
    Published(
        "malignant vs benign, 3,297 images, the half that is shipped as test",
        "accuracy 84.24 %",
        "VGG16; Ibrahim, JILSA 2023",
    ),
    Published(
        "melanoma, 10,000 images, 1,000 of them test",
        "AUROC 0.961, accuracy 88.8 %, calibration error 0.025",
        "VGG16; github.com/abarriuso/melanoma-detection-vgg16",
    ),
    Published(
        "ISIC 2020, patient split, locked test",
        "AUROC 0.834 (0.795 to 0.872)",
        "EfficientNetV2-S; github.com/Edgar-Ontiveros/melanoma-triage",
    ),
    Published("ISIC 2017, melanoma", "AUROC 0.874, the best; 0.868, the winner's", "Menegola et al.; Matsunaga et al."),
    Published("SIIM-ISIC 2020", "AUROC 0.949", "18 models together; Ha et al. 2020"),
)


def render(facts: Facts, plots: Mapping[str, bytes]) -> str:
    """The report as one HTML document, with the PNG files of `plots.draw` inside."""
    subgroups = facts.deciding.subgroups
    flags = {subgroup.value for subgroup in subgroups if subgroup.attribute == "quality"}
    return pages.render(
        "report.html",
        facts=facts,
        plots=[(PLOTS[file], _base64(png)) for file, png in plots.items()],
        attributes=ATTRIBUTES,
        published=PUBLISHED,
        fewest=FEWEST,
        flags={flag_text(flag): meaning for flag, meaning in quality.FLAGS.items() if flag_text(flag) in flags},
        reasons=REASONS,
        gaps=largest_gaps(subgroups),
        mistakes=[(mistake, _base64(_picture(mistake))) for mistake in facts.deciding.mistakes],
    )


def card(facts: Facts) -> str:
    """The deciding model's card in Markdown; text from outside is escaped as in HTML."""
    gaps = largest_gaps(facts.deciding.subgroups)
    return pages.render("card.md", facts=facts, attributes=ATTRIBUTES, gaps=gaps, fewest=FEWEST)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _picture(mistake: Mistake) -> bytes:
    """JPEG of the image and, to its right, the same under its heat map."""
    image = Image.fromarray(mistake.image)
    size = min(image.width, MISTAKE_SIDE)
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    heat = Image.fromarray((255 * mistake.heat).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    strength = np.asarray(heat, np.float32) / 255
    warm = 255 * colormaps["inferno"](strength)[..., :3]
    share = 0.65 * strength[..., None]
    over = Image.fromarray(((1 - share) * np.asarray(image, np.float32) + share * warm).astype(np.uint8))
    both = Image.new("RGB", (2 * size + 4, size), "white")
    both.paste(image, (0, 0))
    both.paste(over, (size + 4, 0))
    file = io.BytesIO()
    both.save(file, "JPEG", quality=85)
    return file.getvalue()
