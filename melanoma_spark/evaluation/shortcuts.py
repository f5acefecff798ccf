"""Shortcuts: how much of the label an archive gives away without the lesion, by borders, light, rulers and colours.

A model that still ranks well on images whose lesion is painted over has learnt something that is not the lesion
(Bissoto et al., (De)Constructing Bias on Skin Lesion Datasets, CVPR Workshops 2019; Winkler et al., JAMA Dermatology
155, 2019).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from melanoma_spark.metrics.arrays import Floats, Ints

Image = NDArray[np.uint8]  # RGB, (h, w, 3)

MOST_TRAIN = 20_000  # images from which colours learn: 64 numbers each, and more would change nothing
BINS = 4  # of red, green and blue: 64 colours
ELLIPSE = 0.8  # axes of what is always painted over, of the sides: half of the image
MOST_SHARE = 0.85  # of the image; where more would be painted over, only the ellipse is
MARGIN = 0.04  # by which what was found is grown, of the shorter side: lesions fade out


def lesion_mask(image: Image) -> NDArray[np.bool_]:
    """What is painted over, True, (h, w): a middle ellipse, and the lesion where it goes beyond that.

    The ellipse hides how large the lesion is, which alone tells something of the label, and covers one that is not
    found. The lesion: Otsu's threshold of the blurred luminance (IEEE Transactions on Systems, Man, and Cybernetics 9,
    1979) divides dark from light; of the dark parts the one nearest to the middle for its size is taken, with its
    convex hull, so that dark corners lose to it. Where both make more than 85 % of the image it is the ellipse alone.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    ellipse = np.zeros((height, width), np.uint8)
    axes = round(ELLIPSE * width / 2), round(ELLIPSE * height / 2)
    cv2.ellipse(ellipse, (width // 2, height // 2), axes, 0, 0, 360, (1,), cv2.FILLED)
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), side / 60)
    _, dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    count, part = cv2.connectedComponents(dark)
    if count == 1:
        return ellipse.astype(bool)
    y, x = np.mgrid[:height, :width]
    off = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2
    weight = np.bincount(part.ravel(), np.exp(-off / (2 * 0.2**2)).ravel(), count)
    chosen = int(np.argmax(weight[1:])) + 1
    outlines, _ = cv2.findContours((part == chosen).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    lesion = np.zeros_like(ellipse)
    cv2.fillPoly(lesion, [cv2.convexHull(np.concatenate(outlines))], (1,))
    grown = 2 * round(MARGIN * side) + 1
    both = ellipse | np.asarray(
        cv2.dilate(lesion, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown))), np.uint8
    )
    return (both if both.mean() <= MOST_SHARE else ellipse).astype(bool)


def without_lesion(image: Image) -> Image:
    """uint8 RGB (h, w, 3), the lesion painted over in the median colour of what is around it."""
    mask = lesion_mask(image)
    painted = image.copy()
    painted[mask] = np.median(image[~mask], axis=0).astype(np.uint8)
    return painted


def colour_histogram(image: Image) -> NDArray[np.float32]:
    """Shares of the pixels in 4 x 4 x 4 equal boxes of red, green and blue: (64,) float32, sum 1."""
    boxes = image.reshape(-1, 3) // (256 // BINS)
    counts = np.bincount(boxes @ np.array([BINS**2, BINS, 1]), minlength=BINS**3)
    return (counts / len(boxes)).astype(np.float32)


def colour_histograms(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`colour_histogram` of each: (n, h, w, 3) -> (n, 64)."""
    return np.stack([colour_histogram(image) for image in images])


def judged_by_colours(train: NDArray[np.float32], labels: Ints, test: NDArray[np.float32]) -> Floats:
    """Probabilities of test images (m,), from `colour_histogram` alone (m, 64): a logistic regression fitted on train.

    On square roots, which spread out rare colours, standardised, with scikit-learn's default penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(np.sqrt(train), labels)
    return np.asarray(model.predict_proba(np.sqrt(test))[:, 1], dtype=np.float64)
