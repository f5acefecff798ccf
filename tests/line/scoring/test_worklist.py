"""The worklist: abstained images come first, names from outside are text, and pictures show what was scored."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import with_pictures
from page import Page
from PIL import Image

from melanoma_spark import plotting
from melanoma_spark.errors import DataError
from melanoma_spark.images import quality, synthetic
from melanoma_spark.monitoring import statistics
from melanoma_spark.monitoring.measures import UNLIKE
from melanoma_spark.scoring import columns, worklist_page
from melanoma_spark.scoring import worklist as job


def row(**changes):
    plain = {"rank": 1, "patient_id": "p", "image_id": "i", "status": "scored", "decision": "positive", "sha256": "s"}
    plain |= {"probability": 0.7, "spread": None, "flags": None, "reason": None, "detail": None}
    return {**plain, **changes}


def facts(**changes) -> worklist_page.Facts:
    plain = {"batch_id": "b", "created_at": "2026-11-24T02:00:00+00:00", "model": "melanoma version 1"}
    plain |= {"operating_point": "screening, sensitivity>=0.9", "threshold": 0.3, "target": "malignant"}
    plain |= {"counts": {"scored": 3, "abstained": 0, "rejected": 2, "copies": 1, "positive": 2}, "patients": 2}
    plain |= {"reasons": {"corrupt": 2}, "flags": {}, "rows": [row()], "pictures": {}, "left_out": 0, "expected": 12.3}
    plain |= {"drift": statistics.Drift(statistics.TOO_FEW, detail="3 images, 50 are needed"), "notes": []}
    return worklist_page.Facts(**{**plain, **changes})


def test_the_page_says_what_it_is_and_what_it_is_not():
    page = Page(worklist_page.render(facts()), apart=("dt", "dd", "label", "b", "span", "th"))
    for words in ("Worklist of 2026-11-24", "gives no diagnosis and is not a medical device", "70.0 %", "corrupt 2"):
        assert words in page.words
    assert "script" not in page.tags
    assert len(re.findall("more rows, of lower risk", worklist_page.render(facts(left_out=1234)))) == 1
    html = worklist_page.render(facts(rows=[row(flags=",".join(quality.FLAGS))], flags=dict.fromkeys(quality.FLAGS, 1)))
    assert all(f"{name} ({text})" in Page(html).words for name, text in quality.FLAGS.items())
    with pytest.raises(DataError, match="a worklist lacks expected, rows"):
        worklist_page.render({key: value for key, value in facts().items() if key not in ("rows", "expected")})


def test_names_are_text_and_not_markup():
    bad = '<script>alert("x")</script>"><img src=x onerror=y>'
    rows = [row(image_id=bad, patient_id=bad, reason=bad, detail=bad)]
    html = worklist_page.render(facts(rows=rows, reasons={bad: 1}))
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name == "onerror"]


def test_pictures_come_when_they_are_looked_at():
    pictures = {"s": ("pictures/a.jpg", "pictures/b.jpg")}
    page = Page(worklist_page.render(facts(rows=[row()] * 3, pictures=pictures)))
    assert [value for name, value in page.attributes if name == "src"] == ["pictures/a.jpg", "pictures/b.jpg"] * 3
    assert [value for name, value in page.attributes if name == "loading"] == ["lazy"] * 6


def test_thousands_of_rows_are_light():
    rows = [row(rank=place, image_id=f"ISIC_{place:07d}", flags="blurred") for place in range(5000)]
    assert len(worklist_page.render(facts(rows=rows))) < 5000 * 800


def test_a_map_of_zeros_leaves_the_picture_as_it_is_and_others_do_not():
    pixels = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(plotting.overlay(pixels, np.zeros((4, 4), np.float32)), pixels)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    result = plotting.overlay(pixels, heat)
    changed = np.abs(result.astype(int) - pixels).mean(axis=2)
    assert (result.shape, result.dtype) == ((64, 64, 3), np.uint8)
    assert changed[:8, :8].mean() > 30
    assert changed[-16:, -16:].mean() < 1


def test_drift_is_open_on_the_page_and_folded_without_drift():
    shares = {"before": (0.1,) * 10, "now": (0.0, *(0.1,) * 8, 0.2)}
    moved = statistics.Comparison("distance", 900, statistics.BEYOND, 0.31, 0.25, **shares)
    bad = '"><script>'
    stated = statistics.Comparison(
        "site", 800, statistics.AS_TRAINED, 0.01, labels=(bad, "arm"), before=(0.5, 0.5), now=(0.4, 0.6)
    )
    few = statistics.Comparison(UNLIKE, 900, statistics.DRIFTING, share=0.07, before=(0.01,), now=(0.07,))
    result = statistics.Drift(statistics.BEYOND, (moved, stated, few), "distance in feature space")
    html = worklist_page.render(facts(drift=result))
    page = Page(html, apart=("th", "td", "b", "summary"))
    for words in ("beyond the limit: distance in feature space", "0.31", "0.25", "7.0 %", "1.0 %", "site"):
        assert words in page.words
    assert "script" not in page.tags
    assert html.count("<u style") == 12
    assert [name for name, _ in page.attributes].count("open") == 1
    calm = worklist_page.render(facts(drift=statistics.Drift(statistics.AS_TRAINED, (stated,))))
    assert "open" not in [name for name, _ in Page(calm).attributes]
    assert "too few to tell: 3 images, 50 are needed" in Page(worklist_page.render(facts())).words


@pytest.fixture
def wards(copied):
    """Three patients, one of them with an image that is not fit, a file that is no image, and names with formulas."""
    for name in ("scores", "ledger", "batches"):
        shutil.rmtree(copied.folder / name)
    shutil.rmtree(copied.archive)
    copied.archive.mkdir()
    table = [("image_id", "patient_id", "diagnosis")]
    for seed in range(9):
        name = f"=cmd{seed}" if seed == 4 else f"img{seed}"
        (copied.archive / f"{name}.jpg").write_bytes(synthetic.lesion_jpeg(seed, malignant=seed % 2 == 0, size=64))
        table.append((name, f"patient {seed % 3}", "nevus"))
    noise = np.random.default_rng(0).integers(0, 25, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(copied.archive / "dark.png")
    table.append(("dark", "patient 1", "nevus"))
    (copied.archive / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (copied.archive / "metadata.csv").write_text("".join(",".join(line) + "\n" for line in table))
    return copied


def test_a_batch_has_its_worklist(wards):
    gate = wards.context.settings.score.quality
    strict = gate.model_copy(update={"action": "abstain", "distance": None})  # that is test_drift's
    output = wards.stage("score", score=with_pictures(wards, 3).model_copy(update={"quality": strict}))
    assert "11 images listed = 9 scored + 1 abstained + 1 rejected + 0 copies" in output
    (folder,) = (wards.folder / "batches").iterdir()
    assert json.loads((folder / "batch.json").read_text())["rows"] == 11
    assert {path.name for path in folder.iterdir()} == {"batch.json", "worklist.html", "worklist.csv", "pictures"}

    rows = list(csv.DictReader((folder / "worklist.csv").open()))
    assert list(rows[0]) == columns.of_worklist()
    assert [int(line["rank"]) for line in rows] == list(range(1, 12))
    assert (rows[0]["image_id"], rows[0]["status"], rows[0]["patient_id"]) == ("dark", "abstained", "patient 1")
    assert "dark: underexposed" in rows[0]["detail"]
    assert [line["patient_id"] for line in rows[:4]] == ["patient 1"] * 4, "one patient's images stand together"
    assert (rows[-1]["image_id"], rows[-1]["status"]) == ("broken", "rejected")
    result = wards.scores().set_index("image_id")["probability"]
    own: dict[str, list[float]] = {}
    for line in rows[1:-1]:
        name = line["image_id"].removeprefix("'")
        assert float(line["probability"]) == pytest.approx(result[name])
        own.setdefault(line["patient_id"], []).append(result[name])
    assert all(values == sorted(values, reverse=True) for values in own.values())
    others = [max(own[patient]) for patient in own if patient != "patient 1"]
    assert others == sorted(others, reverse=True)
    assert [line["image_id"] for line in rows if "cmd" in line["image_id"]] == ["'=cmd4"], "no formula"

    html = (folder / "worklist.html").read_text()
    page = Page(html, apart=("b", "span", "small", "dt", "dd"))
    for words in ("patient 2", "no decision", "not readable", "=cmd4", "dark", "corrupt"):
        assert words in page.words
    shown = [value for name, value in page.attributes if name == "src"]
    assert len(shown) == 6
    assert {path.name for path in (folder / "pictures").iterdir()} == {name.removeprefix("pictures/") for name in shown}
    image = Image.open(folder / shown[0])
    assert image.size == (worklist_page.THUMBNAIL, worklist_page.THUMBNAIL)
    assert not image.getexif()


def test_the_order_is_the_same_for_the_same_rows(spark):
    columns = "source_uri string, sha256 string, patient_id string, status string, probability double"
    rows = [
        ("a", "1", "x", "scored", 0.9),
        ("b", "2", "y", "scored", 0.95),
        ("c", "3", "x", "scored", 0.1),
        ("d", "4", "y", "abstained", None),
        ("e", None, None, "rejected", None),
        ("f", "6", None, "scored", 0.92),
        ("g", "7", None, "scored", 0.92),
    ]
    for some in (rows, rows[::-1]):
        result = job.rank(spark.createDataFrame(some, columns)).orderBy("rank").collect()
        assert "".join(line.source_uri for line in result) == "dbfgace"
