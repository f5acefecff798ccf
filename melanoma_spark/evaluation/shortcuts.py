"""Shortcuts: how well the label can be predicted without the lesion, by borders, light, rulers and colors.

A model that still ranks well on images whose lesion is painted over has learned something that is not the lesion
(Bissoto et al., (De)Constructing Bias on Skin Lesion Datasets, CVPR Workshops 2019; Winkler et al., JAMA Dermatology
155, 2019).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from melanoma_spark.metrics.arrays import Floats, Ints

Image = NDArray[np.uint8]  # RGB, (h, w, 3)

MAX_TRAIN = 20_000  # images for the color model: 64 numbers each, and more would change nothing
BINS = 4  # of red, green and blue: 64 colors
ELLIPSE = 0.8  # axes of the ellipse, of the sides: half of the image
MAX_SHARE = 0.85  # of the image; where more would be painted over, only the ellipse is
MARGIN = 0.04  # by which the lesion is grown, of the shorter side: lesions fade out


def lesion_mask(image: Image) -> NDArray[np.bool_]:
    """The pixels to paint over, True, (h, w): an ellipse in the middle, and the lesion where it is larger.

    The ellipse hides the size of the lesion, which predicts the label, and covers a lesion that is not found. Otsu's
    threshold of the blurred luminance (IEEE Transactions on Systems, Man, and Cybernetics 9, 1979) separates dark from
    light. The lesion is the convex hull of the dark part nearest to the middle for its size, so that dark corners lose
    to it. Where both cover more than `MAX_SHARE` of the image, it is the ellipse alone.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    ellipse = np.zeros((height, width), np.uint8)
    axes = round(ELLIPSE * width / 2), round(ELLIPSE * height / 2)
    cv2.ellipse(ellipse, (width // 2, height // 2), axes, 0, 0, 360, (1,), cv2.FILLED)
    gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), side / 60)
    _, dark = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    count, parts = cv2.connectedComponents(dark)
    if count == 1:
        return ellipse.astype(bool)
    y, x = np.mgrid[:height, :width]
    distance = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2
    weight = np.bincount(parts.ravel(), np.exp(-distance / (2 * 0.2**2)).ravel(), count)
    heaviest = int(np.argmax(weight[1:])) + 1
    outlines, _ = cv2.findContours((parts == heaviest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    lesion = np.zeros_like(ellipse)
    cv2.fillPoly(lesion, [cv2.convexHull(np.concatenate(outlines))], (1,))
    grown = 2 * round(MARGIN * side) + 1
    both = ellipse | np.asarray(
        cv2.dilate(lesion, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown))), np.uint8
    )
    return (both if both.mean() <= MAX_SHARE else ellipse).astype(bool)


def without_lesion(image: Image) -> Image:
    """Paint over the lesion of a uint8 RGB image (h, w, 3), in the median color around it."""
    mask = lesion_mask(image)
    painted = image.copy()
    painted[mask] = np.median(image[~mask], axis=0).astype(np.uint8)
    return painted


def color_histogram(image: Image) -> NDArray[np.float32]:
    """Shares of the pixels in 4 x 4 x 4 equal boxes of red, green and blue: (64,) float32, sum 1."""
    boxes = image.reshape(-1, 3) // (256 // BINS)
    counts = np.bincount(boxes @ np.array([BINS**2, BINS, 1]), minlength=BINS**3)
    return (counts / len(boxes)).astype(np.float32)


def color_histograms(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`color_histogram` of each image: (n, h, w, 3) -> (n, 64)."""
    return np.stack([color_histogram(image) for image in images])


def predict_from_colors(train: NDArray[np.float32], labels: Ints, test: NDArray[np.float32]) -> Floats:
    """Probabilities of test images (m,), from their `color_histogram` alone (m, 64).

    A logistic regression fitted on train, on standardized square roots, which spread out rare colors, with
    scikit-learn's default penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(np.sqrt(train), labels)
    return np.asarray(model.predict_proba(np.sqrt(test))[:, 1], dtype=np.float64)
