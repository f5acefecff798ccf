"""What all plots share: their size, their styles for paper and screen, and text that is no formula."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from melanoma_spark.pages import COLOURS

# Beside the colours, for print.
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")


MARKERS = ("o", "s", "^", "D")


# Wide enough for a phone's column at nearly full size: text of 10 pt stays readable there.
PLOT_WIDTH = 4.7


PLOT_DPI = 200


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the Software entry, equal facts give equal bytes whatever the version that drew them.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def new_figure(height: float) -> Figure:
    return Figure(figsize=(PLOT_WIDTH, height), dpi=PLOT_DPI, layout="constrained", facecolor="white")


def plain(text: str, width: int = 18) -> str:
    """Text for a plot: short, and a dollar sign is no formula."""
    line = " ".join(text.split())
    shown = line if len(line) <= width else line[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return shown.replace("$", r"\$")


def style(model: int) -> dict[str, Any]:
    return {"color": COLOURS[model % len(COLOURS)], "linestyle": LINE_STYLES[model % len(LINE_STYLES)]}


def unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.8, zorder=1)
