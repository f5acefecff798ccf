"""What all plots share: their size, their styles for paper and screen, and text that is no formula."""

import io
from typing import Literal, TypedDict

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from melanoma_spark.pages import COLORS

CHANCE = "#8a8a8a"  # color of what is no model
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")  # for black and white print, with the colors
MARKERS = ("o", "s", "^", "D")
PLOT_WIDTH = 4.7  # inches: text of 10 pt stays readable in a phone's column at nearly full size
PLOT_DPI = 200
HEAT = 0.7  # weight of the colors of a heat map over the picture, where it is 1


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. Equal figures give equal bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the entry would name matplotlib's version
    return file.getvalue()


def new_figure(height: float) -> Figure:
    """An empty figure of `PLOT_WIDTH`; `height` in inches."""
    return Figure(figsize=(PLOT_WIDTH, height), dpi=PLOT_DPI, layout="constrained", facecolor="white")


def plain(text: str, width: int = 18) -> str:
    """Text for a plot in at most `width` characters; a dollar sign starts no formula."""
    line = " ".join(text.split())
    shown = line if len(line) <= width else line[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return shown.replace("$", r"\$")


class LineStyle(TypedDict):
    """Arguments of `Axes.plot`."""

    color: str
    linestyle: str


def style(model: int) -> LineStyle:
    """Return color and line style of the curve of the model of that number."""
    return LineStyle(color=COLORS[model % len(COLORS)], linestyle=LINE_STYLES[model % len(LINE_STYLES)])


def open_frame(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Draw a grid, and no lines above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", linewidth=0.6)


def unit_square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a square figure with axes from 0 to 1, a grid and the diagonal."""
    figure = new_figure(PLOT_WIDTH)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    open_frame(axes)
    axes.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.8, zorder=1)
    return figure, axes


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image, uint8 RGB (h, w, 3), under a heat map in [0, 1] of any size; zeros leave it as it is.

    The colors are magma: green to red would look like a traffic light, and color-blind people can read it.
    """
    size = (pixels.shape[1], pixels.shape[0])
    heats = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    weight = HEAT * heats[..., None].clip(0, 1)
    colors = 255 * np.asarray(colormaps["magma"](heats))[..., :3]
    return np.asarray((pixels * (1 - weight) + colors * weight).round(), np.uint8)
