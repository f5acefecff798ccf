"""The formats that all pages share."""

import math

import pytest

from melanoma_spark import pages


@pytest.mark.parametrize(
    ("difference", "written"),
    [(0.0213, "+2.1"), (-0.142, "\N{MINUS SIGN}14.2"), (-0.0004, "0.0"), (0.0, "0.0"), (math.nan, "undefined")],
)
def test_points_carry_their_sign_and_zero_has_none(difference, written):
    assert pages.points(difference) == written


def test_thresholds_and_texts_from_outside_are_short():
    output = [pages.significant(value) for value in (0.00012345, 0.5, math.inf, math.nan)]
    assert output == ["0.0001234", "0.5", "none", "undefined"]
    assert pages.short("a\n b\t c") == "a b c"
    assert pages.short("x" * 10, 10) == "x" * 10
    assert pages.short("x" * 11, 10) == "x" * 9 + "\N{HORIZONTAL ELLIPSIS}"
    assert pages.short(7) == "7"
