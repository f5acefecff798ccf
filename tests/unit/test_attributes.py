"""Attributes: categories of stored values. That one row adds an attribute is tested in systems/test_site.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.attributes import ATTRIBUTES


@pytest.mark.parametrize(
    ("band", "texts"),
    [
        ("under 30", ("0", "29.9")),
        ("30-39", ("30",)),
        ("40-49", ("45.0", "45-50")),
        ("50-59", ("[45, 55)",)),
        ("70-79", ("79",)),
        ("80 and over", ("80", "85+")),
        ("unknown", ("-3", "old", "", None, "1e9", "nan")),
    ],
)
def test_ages_fall_into_bands(band, texts):
    assert {ATTRIBUTES["age"].category(text) for text in texts} == {band}


@pytest.mark.parametrize(
    ("sex", "words"),
    [
        ("female", ("F", "w", "weiblich", "Mujer", "Féminin", "mulher", "donna", "vrouw")),
        ("male", ("M", "männlich", "Maennlich", "varón", "homme", "homem", "uomo", "mannelijk")),
        (None, ("", "h", "x", "diverse", "unknown")),
    ],
)
def test_sexes_in_seven_languages(sex, words):
    assert {ATTRIBUTES["sex"].parse(word) for word in words} == {sex}


@given(st.text(max_size=12))
def test_any_text_has_a_category(text):
    assert ATTRIBUTES["age"].category(text) in (*ATTRIBUTES["age"].categories, "unknown")
    assert ATTRIBUTES["site"].category(text) == (text.strip() or "unknown")
