"""Words for diagnoses and the target of a run: the table in diagnoses.csv and what several labels of an image say."""

import csv
import itertools
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.archives import diagnoses
from melanoma_spark.archives.diagnoses import TARGETS, Answer, diagnosis_table, find, key, target_of

ROWS = list(
    csv.DictReader(resources.files("melanoma_spark.archives").joinpath("diagnoses.csv").read_text("utf-8").splitlines())
)
WORDS = sorted(row["word"] for row in ROWS)
MELANOMA = "Malignant:Malignant melanocytic proliferations (Melanoma)"


def both(*labels, **own):
    """The targets for melanoma and for malignant."""
    return tuple(target_of(labels, target, **own).target for target in TARGETS)


def test_table_is_well_formed_and_has_no_word_twice():
    assert list(ROWS[0]) == ["word", "diagnosis", "malignant", "melanoma", "kind", "notes"]
    assert len(ROWS) > 200
    for row in ROWS:
        assert None not in row, "a cell too many: quote those with commas"
        assert None not in row.values(), "a cell too few"
        assert all(cell == cell.strip() for cell in row.values()), row
        assert key(row["word"])
        assert row["diagnosis"]
        assert row["kind"] in diagnoses.KINDS
        assert row["malignant"] in {"yes", "no", "unknown", "assumed no"}, row
        assert row["melanoma"] in {"yes", "no", "unknown", "assumed yes"}, row
        assert ("assumed" in row["malignant"] + row["melanoma"]) == (row["kind"] == "answer"), row
        assert row["melanoma"] != "yes" or row["malignant"] == "yes", f"a melanoma is malignant: {row}"
        assert row["malignant"] != "no" or row["melanoma"] == "no", f"what is benign is no melanoma: {row}"

    keys = [key(row["word"]) for row in ROWS]
    assert sorted({word for word in keys if keys.count(word) > 1}) == []
    assert set(keys) == set(diagnosis_table())
    answers = {(row["diagnosis"], row["malignant"], row["melanoma"], row["kind"]) for row in ROWS}
    assert sorted(a[0] for a, b in itertools.combinations(sorted(answers), 2) if a[0] == b[0]) in ([], ["negative"])


@pytest.mark.parametrize(
    "words",
    [
        ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK"),  # ISIC 2018 and 2019
        (
            "akiec",
            "bcc",
            "bkl",
            "df",
            "mel",
            "nv",
            "vasc",
            "melanoma",
            "seborrheic_keratosis",
            "nevus",
        ),  # HAM10000, 2017
        ("ACK", "BCC", "MEL", "NEV", "SCC", "SEK", "BOD"),  # PAD-UFES-20
        ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC"),  # MILK10k
        ("lentigo NOS", "lichenoid keratosis", "solar lentigo", "cafe-au-lait macule"),  # ISIC 2020
        ("atypical melanocytic proliferation",),
    ],
)
def test_every_word_of_the_published_archives_is_known(words):
    assert [word for word in words if not find(word)] == []


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ((1, 1), ("melanoma", "melanoma in situ", "lentigo maligna", "1", "1.0", MELANOMA)),
        ((1, 1), (f"{MELANOMA}:Melanoma in situ:anything new",)),
        ((0, 0), ("lentigo", "nevus", "benign", "0", "0.0", "Benign:Benign melanocytic proliferations:Nevus")),
        ((0, 1), ("BCC", "SCC", "Bowen's disease", "Bowen\N{RIGHT SINGLE QUOTATION MARK}s disease")),
        ((0, 1), ("Malignant:Malignant epidermal proliferations:Squamous cell carcinoma, Invasive",)),
        ((0, None), ("AK", "akiec", "not_melanoma")),
        ((0, None), ("Indeterminate:Indeterminate epidermal proliferations:Solar or actinic keratosis",)),
        ((None, 1), ("malignant", "Malignant:Of a branch that is new")),
        ((None, None), ("indeterminate", "UNK", "Indeterminate:Indeterminate melanocytic proliferations")),
        (
            (1, 1),
            ("malignes Melanom", "Melanoma cutáneo", "mélanome", "melanoma a diffusione superficiale", "melanoom"),
        ),
        ((0, 0), ("Nävus", "NAEVUSZELLNAEVUS", "nevo displásico", "nævus bleu", "ceratose seborreica", "moedervlek")),
        ((0, 1), ("Basaliom", "carcinoma de células escamosas", "carcinome épidermoïde", "Ziekte van Bowen")),
        ((None, 1), ("bösartig", "maligno", "malin", "câncer de pele", "cancro della pelle", "kwaadaardig")),
        (
            (1, 1),
            ("ja", "sí", "oui", "sim", "vero", "SSM", "C43", "C43.5", "C43.59", "c435", "D03.4", "8743/3", "8720/2"),
        ),
        ((0, 0), ("D22.9", "D22", "L82", "L82.1", "8720/0", "nee", "não", "falso", "400096001")),
        ((0, 1), ("C44.311", "D04.5", "8090/3", "254701007")),
        ((None, None), ("unbekannt", "D48.5", "C79.2")),
    ],
)
def test_words_answer_both_questions(expected, words):
    assert {word: both(word) for word in words} == dict.fromkeys(words, expected)


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        *((labels, Answer(None, "no_label")) for labels in (None, "", (), ("",), (" ", "-", "?"), ":")),
        ("malignant", Answer(None, "indeterminate", "malignant", "malignant")),  # which is not melanoma
        ("quux", Answer(None, "unknown_label", "quux")),
        (("quux", "malignant"), Answer(None, "unknown_label", "quux", "malignant")),
        (("quux", "benign"), Answer(0, None, "benign", "benign")),  # an unknown word does not hide a known one
    ],
)
def test_why_there_is_no_answer(labels, answer):
    assert target_of(labels, "melanoma") == answer
    assert target_of("malignant", "malignant") == Answer(1, None, "malignant", "malignant")
    # a bare zero of the question of melanoma does not contradict a carcinoma
    assert target_of(("BCC", "0"), "malignant") == Answer(1, None, "BCC", "basal cell carcinoma")
    assert target_of(("a", "b"), "melanoma", ["a"], ["b"]).contradiction == "'a' against 'b'"


@pytest.mark.parametrize(
    "spelling", ["SEBORRHEIC_KERATOSIS", " seborrheic-keratosis ", "Seborrheic  Keratosis", "seborrheic\tkeratosis."]
)
def test_case_and_spaces_do_not_matter(spelling):
    assert find(spelling) == find("seborrheic keratosis")
    assert target_of(spelling, "melanoma").word == spelling, "told as the archive spells it"


@pytest.mark.parametrize(
    "word",
    ["C43.5 V", "C43.5A", "C43 Z", "C4", "C43-C44", "M", "Y", "N", "s", "2", "6", "X43.5", "8720/9", "D48", "C79"],
)
def test_suspicions_letters_and_numbers_of_classes_are_not_guessed(word):
    assert find(word) is None


def test_unknown_targets_are_refused_and_bare_zeros_and_ones_answer_both():
    with pytest.raises(ValueError, match="target 'bcc': expected one of melanoma, malignant"):
        target_of("melanoma", "bcc")
    # One table's "melanoma: 0" and another's "malignant: 1" are a carcinoma.
    for order in (("0", "1"), ("1", "0")):
        assert both(*order) == (0, 1)
        assert target_of(order, "melanoma").contradiction is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("unknown", "benign", "0"), (0, 0)),
        (("melanoma", "malignant", "1"), (1, 1)),
        (("BCC", "malignant"), (0, 1)),
        (("malignant", "1"), (1, 1)),
        (("malignant", "0"), (0, 1)),
        (("indeterminate", "1"), (1, 1)),
        (("AK", "0"), (0, 0)),
        (("AK", "1"), (0, 1)),
    ],
)
def test_most_specific_label_with_an_answer_wins_in_any_order(labels, expected):
    for order in itertools.permutations(labels):
        assert both(*order) == expected
        assert target_of(order, "melanoma").contradiction is None


@pytest.mark.parametrize(
    ("labels", "first", "other"),
    [
        (("melanoma", "benign"), "melanoma", "benign"),
        (("nevus", "1"), "nevus", "1"),
        (("nevus", "malignant"), "nevus", "malignant"),
        (("melanoma", "0"), "melanoma", "0"),
        (("BCC", "benign"), "BCC", "benign"),
        (("melanoma", "nevus"), "melanoma", "nevus"),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_contradictory_labels_are_reported_for_both_targets(labels, first, other, target):
    answer = target_of(labels, target)
    assert answer == target_of(labels[::-1], target)
    assert answer.contradiction in (f"{first!r} against {other!r}", f"{other!r} against {first!r}")
    if other != "1":
        assert answer.word == first


def test_users_words_win_over_the_table_and_deeper_words_over_others():
    assert both("AK", positive=["ak"]) == (1, 1)
    assert both("melanoma in situ", negative=["Melanoma_in_situ"]) == (0, 0)
    assert both("quux", "benign", positive=["QUUX"]) == (1, 1)
    assert both("malignant", positive=["malignant"]) == (1, 1)
    assert both("3", negative=["3"]) == (0, 0)

    label = f"{MELANOMA}:Melanoma in situ"
    assert both(label, negative=[label]) == (0, 0)
    assert both(f"{label}:face", negative=[label]) == (0, 0)
    assert both(label, negative=["malignant"], positive=[MELANOMA]) == (1, 1)


# over the limit of one test: the first that draws any text has Hypothesis read its tables of characters
@given(st.lists(st.text(max_size=30) | st.sampled_from(WORDS), max_size=4), st.sampled_from(TARGETS))
def test_any_words_in_any_order_have_one_answer(labels, target):
    answer, again = target_of(labels, target), target_of(labels[::-1], target)
    assert (again.target, again.reason) == (answer.target, answer.reason)
    assert (answer.target is None) == (answer.reason is not None)
    assert answer.reason in (None, "no_label", "indeterminate", "unknown_label")
    assert answer.word is None or answer.word in labels


@given(st.text(max_size=60))
def test_key_of_a_key_is_itself(word):
    assert key(key(word)) == key(word)
