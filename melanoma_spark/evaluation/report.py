"""One run as a self-contained HTML page and a model card: what was measured, on which data, with which limits.

The page needs no script, no network and no other file, and reads on paper, a desktop and a phone. Text from outside
(titles, reject reasons, settings) is escaped.
"""

import base64
from collections.abc import Mapping

import numpy as np
from PIL import Image

from melanoma_spark import pages, plotting
from melanoma_spark.evaluation.facts import Facts, Mistake
from melanoma_spark.evaluation.plots import PLOTS
from melanoma_spark.evaluation.subgroups import ATTRIBUTES, FEWEST, flag_text, largest_gaps
from melanoma_spark.images import formats, quality
from melanoma_spark.images.reasons import REASONS

MISTAKE_SIDE = 224  # pixels


def render(facts: Facts, plots: Mapping[str, bytes]) -> str:
    """The report as one HTML document, with the PNG files of `plots.draw` inside."""
    subgroups = facts.deciding.subgroups
    flags = {subgroup.value for subgroup in subgroups if subgroup.attribute == "quality"}
    return pages.render(
        "report.html",
        facts=facts,
        plots=[(PLOTS[file], _base64(png)) for file, png in plots.items()],
        attributes=ATTRIBUTES,
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
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    gap = np.full((size, 4, 3), 255, np.uint8)
    both = Image.fromarray(np.hstack([pixels, gap, plotting.overlay(pixels, mistake.heat)]))
    return formats.encode(both, "JPEG", quality=85)
