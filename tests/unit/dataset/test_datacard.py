"""The data card: its content, that its counts add up, and that hostile bytes and text do no harm."""

import copy
import io
import re

import numpy as np
import pytest
from page import PLAIN, Page
from PIL import Image

from melanoma_spark.dataset import card_facts, card_limits, card_pictures, datacard
from melanoma_spark.errors import DataError

HOSTILE = '<script>alert(\'x\')</script>" onload="steal()" & {{ 7 * 7 }} <b>'
NO_LIMITS = ["HAM10000 is CC BY-NC."]  # what remains where there is nothing to mind


def shown(facts):
    return Page(datacard.render(facts), apart=("td", "th", "dt", "dd", "h3", "span", "code"))


def drawn(seed, side=96, form="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def sha(number):
    return f"{number:08x}" + "f" * 56


def thumbnail(number, form="JPEG"):
    return {"sha256": sha(number), "image": drawn(number, 12, form)}


def grey(number):
    return {"sha256": sha(number), "image": None}


@pytest.fixture
def facts():
    return card_facts.CardFacts(
        dataset_id="3f2d9c4a81be0c55",
        grew_from="9911c2aa01be0c55",
        created_at="2026-11-23T09:21:44Z",
        image_size=224,
        target="malignant",
        labels=("benign", "malignant"),
        layout="images in two folders and metadata.csv",
        listed=1012,
        accepted=1000,
        rejected=10,
        skipped=2,
        splits={
            "train": {"images": (540, 180), "groups": {"patient": 300, "image": 11}, "asked": 0.7},
            "validation": {"images": (100, 30), "groups": {"patient": 66}, "asked": 0.15},
            "test": {"images": (110, 40), "groups": {"patient": 77}, "asked": None},
        },
        with_patient=1000,
        with_lesion=0,
        distributions={
            "source": {"Vienna": (400, 130), "Sydney": (350, 120)},
            "age": {None: (10, 5), "80 and over": (300, 100), "under 30": (40, 20), "50-59": (400, 125)},
            "sex": {"male": (350, 150), "female": (400, 100)},
            "site": {f"site {k:02}": (10 * (k < 10) + 50, 50 * (k < 5)) for k in range(13)},
            "skin_type": {"VI": (50, 50), "II": (600, 150), "IV": (100, 50)},
            "image_type": {None: (750, 250)},
        },
        sizes={(1024, 1024): 600, (600, 450): 380, (200, 180): 20},
        file_bytes={"median": 231_044, "p95": 2_450_021, "max": 18_233_111},
        rejects={
            "duplicate": {"count": 3, "meaning": "another one is kept", "thumbnails": [thumbnail(k) for k in range(8)]},
            "hidden": {"count": 6, "meaning": "its name starts with a dot", "thumbnails": []},
            "empty": {"count": 1, "meaning": "no bytes", "thumbnails": [{"sha256": None, "image": None}]},
        },
        duplicates={
            "same_bytes": 21,
            "same_pixels": 4,
            "same_look": 1,
            "sizes": {2: 24, 11: 1, 3: 1},
            "conflicting": 2,
            "largest": [
                {"kind": "same bytes", "count": 11, "members": [thumbnail(0x100 + k) for k in range(11)]},
                *({"kind": "same look", "count": 2, "members": [thumbnail(0x200 + k)]} for k in range(10)),
            ],
        },
        twins={
            "mode": "group",
            "least_correlation": 0.97,
            "pairs": 31,
            "groups_joined": 25,
            "outcomes": {"joined": 27, "one group": 3, "too many alike": 1},
            "shown": [
                {
                    "correlation": 0.995 - k / 1000,
                    "outcome": "joined",
                    "members": [thumbnail(0x500 + k), thumbnail(0x600 + k)],
                }
                for k in range(65)
            ],
        },
        contacts=(
            [{**thumbnail(0x300 + k, "PNG"), "split": "train"} for k in range(45)],
            [{**thumbnail(0x400), "split": "test"}, {**grey(0x401), "split": "validation"}],
        ),
        unmatched={
            "rows_without_image": {"count": 31, "examples": ["ISIC_0012345"]},
            "images_without_row": {"count": 1234, "examples": []},
            "ambiguous_rows": {"count": 7, "examples": []},
            "contradictory_images": {"count": 0, "examples": []},
        },
        label_words=[
            {"word": "nv", "diagnosis": "nevus", "target": "benign", "count": 750},
            {"word": "bcc", "diagnosis": "basal cell carcinoma", "target": "malignant", "count": 1250},
        ],
        settings={"seed": "7", "ingest.min_side": "32", "archive": "https://hospital.example/export"},
        licences=list(NO_LIMITS),
    )


@pytest.fixture
def bare():
    """The least that a card can say."""
    least = dict.fromkeys(card_facts.CardFacts.__required_keys__)
    least |= dict.fromkeys(("listed", "accepted", "rejected", "skipped", "with_patient", "with_lesion"), 0)
    least |= {name: {} for name in ("splits", "sizes", "rejects", "settings")}
    least |= {"dataset_id": "00", "created_at": "2026-11-23T09:21:44Z", "image_size": 64, "target": "melanoma"}
    least |= {"labels": ("other", "melanoma"), "layout": "a folder per class", "label_words": [], "licences": []}
    least |= {"distributions": dict.fromkeys(datacard.SHOWN), "unmatched": dict.fromkeys(card_facts.UNMATCHED)}
    return card_facts.CardFacts(**least | {"contacts": ([], [])})


def test_the_page_shows_all_facts(facts):
    words = shown(facts).words
    for stated in (
        "Dataset 3f2d9c4a81be0c55 , 2026-11-23T09:21:44Z",
        "Grew from 9911c2aa01be0c55",
        "224 x 224 px",
        "Target malignant",
        "images in two folders and metadata.csv",
        "1,012 files listed = 1,000 accepted + 10 rejected + 2 skipped",
        "train 540 180 720",
        "test 110 40 150",
        "all 750 250 1,000",
        "patient image all train 300 11 311",
        "test 77 0 77",
        "train 72.0 % asked 70.0 %, off by +2.0 points 25.0 % differs from all images by 0.0 points",
        "validation 13.0 % asked 15.0 %, off by -2.0 points 23.1 % differs from all images by -1.9 points",
        "test 15.0 % as the archive has it 26.7 %",
        "benign: 40 of 750 images",
        "malignant: 2 of 250 images",
        "00000400 test",
        "Vienna 400 130 24.5 %",
        "under 30 40 20 33.3 % 50-59 400 125 23.8 % 80 and over 300 100 25.0 % not stated 10 5 33.3 %",
        "II 600 150 20.0 % IV 100 50 33.3 % VI 50 50 50.0 %",
        "other (4 kinds) 210 0 0.0 %",
        "Not stated for any image: image type.",
        "under 256 px 20 256-511 px 0 512-1,023 px 380 1,024-2,047 px 600",
        "600 x 450 380",
        "400 images are not square and were squeezed to a square; 20 have a side under 224 px",
        "231.0 kB (median), 2.5 MB (95th percentile), at most 18.2 MB",
        "hidden 6 its name starts with a dot",
        "Sets of the same bytes 21 Sets of the same pixels 4 Sets of the same look 1 Sets with conflicting labels 2",
        "2 files 24 3 files 1 11 files 1",
        "same bytes 11 00000100 00000101 00000102 00000103 00000104 00000105 00000106 00000107 and 3 more",
        "Rows without an image: 31, for example ISIC_0012345 .",
        "Images without a row: 1,234.",
        "bcc basal cell carcinoma malignant 1,250 nv nevus benign 750",
        "ingest.min_side 32",
        "archive https://hospital.example/export",
        "its name starts with a dot hidden",
        "no bytes empty not read",
    ):
        assert stated in words
    assert words.count("It gives no diagnosis and is not a medical device.") == 2
    assert not re.search(r"\bnan\b|None|melanoma_spark", words)
    facts["distributions"]["image_type"] = {"dermoscopic": (750, 250)}
    assert "Not stated for any image" not in shown(facts).words
    del facts["layout"]
    with pytest.raises(DataError, match="the data card lacks layout"):
        datacard.render(facts)


def test_missing_optional_facts_are_reported(bare):
    words = shown(bare).words
    for stated in (
        "nothing: the first version",
        "0 files listed = 0 accepted + 0 rejected + 0 skipped",
        "No thumbnail is given.",
        "Groups are not known.",
        "Not stated for any image: age, sex, site, skin type (Fitzpatrick), image type, source.",
        "Sizes are not known.",
        "No file was rejected.",
        "Duplicates were not searched.",
        "Rows without an image: there is no table.",
        "No words were mapped.",
        "No settings are given.",
        "No license is stated.",
    ):
        assert stated in words
    assert not {"median", "left out"} & set(words.split())
    assert "No skin types" not in words
    bare["duplicates"] = dict.fromkeys(("same_bytes", "same_pixels", "same_look", "conflicting"), 0)
    bare["duplicates"] |= {"sizes": {}, "largest": []}
    assert "No duplicates were found." in shown(bare).words


def test_what_no_image_has_is_left_out(facts):
    facts["splits"]["test"]["asked"] = 0.0
    facts["distributions"]["sex"] = {"male": (750, 250), "female": (0, 0)}
    facts["duplicates"]["sizes"] = {2: 24, 5: 0}
    words = shown(facts).words
    assert "test 15.0 % asked 0.0 %, off by +15.0 points" in words
    assert "female" not in words
    assert "5 files" not in words
    nothing = {"distributions": dict.fromkeys(datacard.SHOWN), "sizes": {}}
    assert "Sizes are not known." in shown(facts | nothing).words
    for one_class, row in ((lambda images: (images, 0), "950 0 0.0 %"), (lambda images: (0, images), "0 950 100.0 %")):
        nothing["splits"] = {"train": {"images": one_class(1000), "groups": {}, "asked": 1.0}}
        nothing["distributions"]["source"] = {"Vienna": one_class(950), "Sydney": one_class(50)}
        assert f"Vienna {row}" in shown(facts | nothing).words


def test_long_tails_and_long_texts_are_cut(facts):
    facts["distributions"]["source"] = {f"source {k}": (1, 0) for k in range(700)} | {"last": (50, 250)}
    rows = datacard._distribution(datacard.SHOWN["source"], facts["distributions"]["source"])
    assert [rows[0], rows[-1]] == [("last", 50, 250), ("other (692 kinds)", 692, 0)]
    assert (sum(r.negative for r in rows), sum(r.positive for r in rows)) == (750, 250)
    assert len(rows) == datacard.KINDS

    before = len(datacard.render(facts))
    facts["settings"] = {"word " * 100_000: "x" * 1_000_000}
    facts["label_words"] = [
        {"word": f"{k} " + "y" * 9999, "diagnosis": "", "target": "", "count": 1} for k in range(5000)
    ]
    assert len(datacard.render(facts)) < before + 30_000
    assert f"{5000 - card_facts.WORDS:,} more are not shown." in shown(facts).words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"listed": 1013}, "1013 files listed are not 1000 accepted"),
        ({"skipped": -2, "listed": 1008}, "not 1000 accepted"),
        ({"accepted": 999, "listed": 1011}, "the splits hold 1000 images, 999 were accepted"),
        ({"rejected": 11, "listed": 1013}, "count 10 files, 11 were rejected"),
        ({"sizes": {(8, 8): 999}}, "the sizes count 999 images"),
        ({"with_patient": 1001}, "1001 of 1000 images are counted with a patient id"),
    ],
)
def test_counts_that_do_not_add_up_raise(facts, change, message):
    with pytest.raises(DataError, match=message):
        datacard.render(facts | change)


@pytest.mark.parametrize("name", datacard.SHOWN)
def test_distributions_count_every_accepted_image(facts, name):
    facts["distributions"][name] = {"some": (749, 251)}
    with pytest.raises(DataError, match=rf"{name} counts \(749, 251\)"):
        datacard.render(facts)


def with_images(validation, test):
    splits = {"train": (540, 180), "validation": validation, "test": test}
    return {"splits": {name: {"images": pair, "groups": {}, "asked": None} for name, pair in splits.items()}}


def of_skin(**pairs):
    return {"distributions": dict.fromkeys(datacard.SHOWN) | {"skin_type": pairs}}


PARTED = "lesions of one patient may stand on both sides of the split."


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({}, []),  # nothing to mind
        (
            {"with_patient": 0},
            [
                f"There are no patient ids: {PARTED}",
                "There are no lesion ids: images of one lesion may stand on both sides of the split.",
            ],
        ),
        ({"with_patient": 990, "with_lesion": 1000}, [f"10 of 1,000 images carry no patient id: {PARTED}"]),
        (
            with_images((101, 29), (109, 41)),
            ["The validation split has fewer than 30 malignant images (29): figures measured on it are rough."],
        ),
        (
            {"distributions": dict.fromkeys(datacard.SHOWN) | {"skin_type": {None: (750, 250)}}},
            ["No skin types are stated"],
        ),
        (
            of_skin(V=(20, 0), VI=(0, 9), II=(730, 241)),
            ["Fewer than 30 images are stated to be of skin type V or VI (29)"],
        ),
        (of_skin(V=(20, 1), VI=(0, 9), II=(730, 240)), []),
    ],
)
def test_limits_of_the_dataset_are_listed(facts, change, output):
    result = card_limits.limits(facts | change)
    assert len(result) == len(output) + 1
    assert result[-1:] == NO_LIMITS
    assert all(limit.startswith(text) for limit, text in zip(result, output, strict=False))


@pytest.mark.parametrize(("pair", "output"), [((800, 200), None), ((801, 199), "malignant"), ((100, 900), "benign")])
def test_limits_name_the_rare_class(facts, pair, output):
    facts["splits"] = {"train": {"images": pair, "groups": {}, "asked": None}}
    result = [limit for limit in card_limits.limits(facts | of_skin(V=pair)) if "unbalanced" in limit]
    assert len(result) == (output is not None)
    assert output is None or result[0].endswith(f"of the images are {output}.")


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"Vienna": (750, 250)}, []),  # the only one
        ({"Vienna": (690, 230), "Sydney": (60, 20)}, ["holds 92.0 %"]),  # alike in rate
        ({"Vienna": (400, 224), "Sydney": (350, 26)}, ["Of source Sydney 6.9 %"]),  # of Vienna, the rest, too
        ({"Vienna": (400, 225), "Sydney": (350, 25)}, ["holds 90.0 %", "Of source Sydney"]),
        ({"Vienna": (400, 220), "Sydney": (300, 20), None: (50, 10)}, ["Of source Sydney", "Of source Vienna"]),
        ({"Vienna": (400, 150), "Sydney": (350, 100)}, []),
        ({"Vienna": (400, 150), "Sydney": (350, 80), None: (0, 20)}, []),
        ({"Vienna": (390, 140), "Sydney": (360, 90), "small": (0, 20)}, []),  # too small to tell
        ({"Vienna": (750, 221), "small": (0, 29)}, []),  # ... what all others are
        ({"Vienna": (350, 125), "Sydney": (350, 125), None: (50, 0)}, []),  # not stated is no source
        (
            {f"s{k}": (0, 50) for k in range(5)} | {"rest": (750, 0)},
            ["Of source rest 0.0 %", "Of source s0", "s1", "3 sources"],
        ),
    ],
)
def test_limits_name_sources_that_predict_the_label(facts, sources, expected):
    facts["distributions"]["source"] = sources
    output = card_limits.limits(facts)[:-1]
    assert len(output) == len(expected), output
    assert all(part in limit.translate(PLAIN) for part, limit in zip(expected, output, strict=True))


def test_page_needs_no_other_file_and_shows_bars_and_pictures(facts):
    html = datacard.render(facts)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "a", "form"} & set(page.tags)
    assert not any(name in ("href", "srcset", "action") or name.startswith("on") for name, _ in page.attributes)
    assert all(re.match("data:image/(png|jpeg);base64,", value) for name, value in page.attributes if name == "src")
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html
    assert ("name", "viewport") in page.attributes
    assert "@media print" in html

    assert 'class="accepted" style="width: 98.814%"' in html
    assert 'class="negative" style="width: 75.000%"></i><i class="positive" style="width: 25.000%"' in html

    pictures = shown(facts).pictures
    expected = [t["image"] for t in facts["contacts"][0][:40]] + [facts["contacts"][1][0]["image"]]
    expected += [t["image"] for t in facts["rejects"]["duplicate"]["thumbnails"][:6]]
    expected += [t["image"] for result in facts["duplicates"]["largest"][:5] for t in result["members"][:8]]
    expected += [t["image"] for pair in facts["twins"]["shown"][: card_facts.TWINS] for t in pair["members"]]
    assert pictures == expected


def test_hostile_text_is_escaped(facts):
    for key in ("dataset_id", "grew_from", "created_at", "target", "layout"):
        facts[key] = HOSTILE
    facts["labels"] = (HOSTILE, HOSTILE)
    facts["splits"] = {
        HOSTILE + name: split | {"groups": {HOSTILE: 1}} for name, split in copy.deepcopy(facts["splits"]).items()
    }
    facts["distributions"] = {name: {HOSTILE: (750, 250)} for name in facts["distributions"]}
    facts["rejects"] = {HOSTILE: {"count": 10, "meaning": HOSTILE, "thumbnails": []}}
    facts["duplicates"]["largest"][0]["kind"] = HOSTILE
    facts["contacts"][0][0]["split"] = HOSTILE
    facts["unmatched"] = {name: {"count": 1, "examples": [HOSTILE]} for name in card_facts.UNMATCHED}
    facts["label_words"] = [{"word": HOSTILE, "diagnosis": HOSTILE, "target": HOSTILE, "count": 1}]
    facts["settings"], facts["licences"] = {HOSTILE: HOSTILE}, [HOSTILE]
    page = shown(facts)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(HOSTILE) >= 20
    assert "7 * 7" in page.text


def test_twins_are_shown_in_pairs_with_what_came_of_them(facts):
    words = shown(facts).words
    assert "31 pairs look like one lesion photographed twice (correlation of thumbnails of 0.970 or more)" in words
    assert "27 joined, 3 one group, 1 too many alike. 25 groups were joined to others." in words
    assert "0.995, joined" in words
    facts["twins"] |= {"pairs": 0, "shown": []}
    assert "No two images look like one lesion" in shown(facts).words
    assert "Twins were not searched." in shown(facts | {"twins": None}).words


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a" + bytes(90),
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='steal()'/>",
        b"\xff\xd8\xff" + b"<script>",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"\n" + drawn(0, 8),
        drawn(0, 8, "BMP"),
        drawn(0, 97),
    ],
    ids=["empty", "gif", "svg", "jpeg-signature", "png-signature", "signature-later", "bmp", "97-pixels"],
)
def test_only_small_jpeg_and_png_files_are_embedded(bare, content):
    bare["contacts"] = ([{"sha256": sha(1), "image": content, "split": "train"}], [])
    page = shown(bare)
    assert page.pictures == []
    assert "no picture 00000001 train" in page.words
    bare["contacts"] = ([{**thumbnail(k, form), "split": ""} for k, form in enumerate(("JPEG", "PNG"))], [])
    kinds = [value[:16] for name, value in shown(bare).attributes if name == "src"]
    assert kinds == ["data:image/jpeg;", "data:image/png;b"], "told by their first bytes"


def test_thumbnails_are_named_by_hash_and_never_by_file_name(facts):
    assert not re.search("[0-9a-f]{8}f{56}", datacard.render(facts))
    facts["contacts"][0][0]["sha256"] = "erika_mustermann.jpg"
    with pytest.raises(DataError, match="something else than the SHA-256") as raised:
        datacard.render(facts)
    assert "erika" not in str(raised.value)


def test_twins_by_features_are_shown_when_they_are_known(facts):
    pairs = [
        {"cosine": 0.9 - k / 100, "members": [{**thumbnail(2 * k + n), "split": HOSTILE, "label": "b"} for n in (0, 1)]}
        for k in range(61)
    ]
    twins = {"least_cosine": 0.72, "pairs": 1234, "in_one_group": 9, "with_test_only": False, "shown": pairs}
    before = datacard.render(facts)
    assert before.count('<section id="feature-twins">') == 1
    assert "Not searched yet." in before
    after = datacard.show_feature_twins(before, twins)
    assert after.count('<section id="feature-twins">') == 1
    assert "Not searched yet." not in after
    page = Page(after, apart=("p", "code"))
    for words in (
        "1,234 pairs look like one lesion",
        "(cosine of whitened features of 0.72 or more): 9 are in one",
        "0.310",
    ):
        assert words in page.words
    assert "0.300" not in page.words, "60 at most"
    assert len(page.pictures) == len(Page(before).pictures) + 120
    assert datacard.show_feature_twins(after, twins) == after
    of_release_02 = datacard.FEATURE_TWINS.sub("", before)
    assert Page(datacard.show_feature_twins(of_release_02, twins)).pictures == page.pictures


def test_a_full_page_stays_under_two_megabytes(facts):
    # Noise is the worst there is: 15 kB a JPEG, 28 kB a PNG, of which not all are let in.
    for form, left_out in (("JPEG", False), ("PNG", True)):
        sheet = [{"sha256": sha(k), "image": drawn(k, 96, form), "split": "train"} for k in range(40)]
        facts |= {"contacts": (sheet, sheet)}
        html = datacard.render(facts)
        assert len(html.encode()) < 2_000_000
        assert ("left out to keep this page under 2 MB" in html) == left_out
        assert Page(html).pictures[:40] == [t["image"] for t in sheet]
        pairs = [{"cosine": 0.9, "members": [{**one, "label": ""} for one in sheet[k : k + 2]]} for k in (0, 1, 2) * 20]
        twins = {"least_cosine": 0.72, "pairs": 60, "in_one_group": 0, "with_test_only": False, "shown": pairs}
        html = datacard.show_feature_twins(html, twins)
        assert len(html.encode()) < 2_000_000
        assert html.count("left out to keep this page under 2 MB") == 2 * left_out


def test_contact_sheet_is_a_grid():
    pictures = [drawn(k, 96, "PNG") for k in range(5)]
    png = card_pictures.contact_sheet(
        [*pictures, None, b"junk"], ["00000000\ntrain"] * 6 + ["too long " * 9], columns=3
    )
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.size == (3 * 104 + 8, 3 * 130 + 8)
        with Image.open(io.BytesIO(pictures[4])) as fifth:
            assert image.crop((112, 138, 208, 234)).tobytes() == fifth.tobytes()
        assert image.getpixel((112 + 100, 138 + 5)) == (255, 255, 255)
        assert image.getpixel((216 + 5, 138 + 5)) == image.getpixel((8 + 5, 268 + 5)) == (0xD5, 0xD9, 0xDF)
    again = card_pictures.contact_sheet(
        [*pictures, None, b"junk"], ["00000000\ntrain"] * 6 + ["too long " * 9], columns=3
    )
    assert again == png
    for broken in ([drawn(0)[:400]], []):
        assert card_pictures.contact_sheet(broken, [""] * len(broken), 8).startswith(b"\x89PNG")
    for captions, columns in (([], 8), (["a"], 0)):
        with pytest.raises(DataError, match="make no sheet"):
            card_pictures.contact_sheet([None], captions, columns)
