"""What all HTML pages share: colors, number formats, the frame in page.html, and text that is escaped by default.

A page needs no script, no network and no other file, and reads on paper, a desktop and a phone.
"""

import importlib.resources
import math
from collections.abc import Callable, Mapping

import jinja2

from melanoma_spark.errors import DataError

TEMPLATES = importlib.resources.files(__package__) / "templates"
# Okabe and Ito's colors (jfly.uni-koeln.de/color, 2008), which color-blind readers can distinguish; blue and vermilion,
# the first two, also differ in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
NEUTRAL = "#555555"  # of what belongs to no model and no class
RESEARCH = "This is research software. It gives no diagnosis and is not a medical device."


def render(template: str, **facts: object) -> str:
    """Render a template of this package with facts. Text is escaped; an undefined name raises."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (TEMPLATES / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for form in (decimal, difference, significant, percent, count, interval, points, short):
        environment.filters[form.__name__] = form
    environment.globals.update(decimal=decimal, difference=difference, percent=percent)  # as arguments of interval
    environment.globals.update(colors=COLORS, neutral=NEUTRAL, research=RESEARCH)
    return environment.get_template(template).render(**facts)


def check_keys(what: str, given: Mapping[str, object], required: frozenset[str]) -> None:
    """Raise DataError naming the required keys that are missing."""
    if missing := sorted(required - given.keys()):
        raise DataError(f"{what} lacks {', '.join(missing)}")


def decimal(value: float, digits: int = 3) -> str:
    """The number with so many digits behind the point."""
    return "undefined" if math.isnan(value) else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """The number with four significant digits; infinite thresholds, which no image reaches, are `none`."""
    if math.isinf(value):
        return "none"
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def percent(value: float) -> str:
    """The share as a percentage."""
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of two shares, in percentage points."""
    sign = "+" if value > 0 else "\N{MINUS SIGN}"
    if math.isnan(value):
        return "undefined"
    return "0.0" if f"{100 * abs(value):.1f}" == "0.0" else f"{sign}{100 * abs(value):.1f}"


def difference(value: float) -> str:
    """The difference of two figures between 0 and 1, with its sign."""
    return "undefined" if math.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def count(value: int) -> str:
    """The whole number with commas between thousands."""
    return f"{value:,}"


def interval(bounds: tuple[float, float], form: Callable[[float], str]) -> str:
    """The bounds, each as `form` shows it."""
    if any(math.isnan(bound) for bound in bounds):
        return "undefined"
    return f"{form(bounds[0])} to {form(bounds[1])}"


def short(text: object, most: int = 160) -> str:
    """Text from outside in one line of at most `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
