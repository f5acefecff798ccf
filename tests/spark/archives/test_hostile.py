"""One archive of all that is broken, hostile or odd, through the ingest job: each thing ends where it should, once.

The tables below name each thing with what must become of it: a reason for its rejection, or READ or SKIPPED.
`broken.corpus()` and `broken_containers.CORPUS` go the same way: what they hold is not repeated here.
"""

import os
import pickle
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import broken
import broken_containers
import numpy as np
import pandas as pd
import pytest
from broken import encoded
from broken_containers import info, item, tarred, zipped
from conftest import Line, open_line
from PIL import Image, PngImagePlugin

from melanoma_spark.archives import containers
from melanoma_spark.images import hashes, synthetic
from melanoma_spark.images.reasons import REASONS

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")

READ, SKIPPED = "read", "skipped"
PERSON = "Mustermann"
LIMITS = {**broken.LIMITS, "max_bytes": 1_000_000, "max_container_bytes": 20_000_000}

Things = dict[str, tuple[bytes, str]]  # name -> its bytes, and what becomes of it
Packed = dict[str, tuple[bytes, dict[str, str]]]  # container -> its bytes, and what becomes of its members

SEEDS = iter(range(1000, 2000))


def new() -> Image.Image:
    """A lesion that no other file shows."""
    return Image.fromarray(synthetic.draw_lesion(np.random.default_rng(next(SEEDS)), malignant=False, size=64))


def jpeg(**options: Any) -> bytes:
    return encoded(new(), "JPEG", **options)


def exif_of(person: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x013B] = exif[0x010E] = exif[0x9C9D] = person  # Artist, ImageDescription, XPAuthor
    return exif


def text_of(person: str) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", person)
    text.add_itxt("Patient", person, zip=True)
    return text


def loose() -> Things:
    """Files of the archive by their names, below the folder of a label."""
    seen, lesion = jpeg(), np.asarray(new())
    return {
        # names
        "emoji \U0001f9d1\u200d\u2695\ufe0f.jpg": (jpeg(), READ),
        "right to left \u202egpj.exe": (jpeg(), READ),
        "\u05e9\u05d5\u05de\u05d0.jpg": (jpeg(), READ),
        "new\nline.jpg": (jpeg(), READ),
        "tab\tand\x1b[31mred.jpg": (jpeg(), READ),
        os.fsdecode(b"m\xe9lanome of latin-1.jpg"): (jpeg(), READ),
        os.fsdecode("\u9ed2\u5b50.jpg".encode("shift-jis")): (jpeg(), READ),
        os.fsdecode(b"\xc0\xae\xc0\xae\xc0\xafoverlong.jpg"): (jpeg(), READ),
        "$(touch pwned).jpg": (jpeg(), READ),
        "`id`; rm -rf ~.jpg": (jpeg(), READ),
        "-rf.jpg": (jpeg(), READ),
        "%2e%2e%2fup.jpg": (jpeg(), READ),
        "..\\..\\up.jpg": (jpeg(), "hidden"),
        "a\\..\\b.jpg": (jpeg(), READ),
        "' OR 1=1 --.jpg": (jpeg(), READ),
        "=cmd|' C calc'!A0.jpg": (jpeg(), READ),
        "<script>alert(1)<script>.jpg": (jpeg(), READ),
        "{{7*7}}${7*7}.jpg": (jpeg(), READ),
        "long" * 62 + ".jpg": (jpeg(), READ),
        "no suffix": (jpeg(), READ),
        "trailing dot.": (jpeg(), READ),
        "CON": (jpeg(), READ),
        "a*b?[c].jpg": (jpeg(), READ),
        "_SUCCESS": (jpeg(), READ),
        "_temporary/0/part.jpg": (jpeg(), READ),
        "label=1/part.jpg": (jpeg(), READ),
        # what a desktop leaves, and what lies beside photographs
        ".hidden.jpg": (jpeg(), "hidden"),
        ".git/objects/lesion.jpg": (jpeg(), "hidden"),
        ".hidden.zip": (zipped({"a.jpg": jpeg()}), "hidden"),
        ".hidden.csv": (b"image_id,label\na,melanoma\n", "hidden"),
        "__MACOSX/._lesion.jpg": (jpeg(), SKIPPED),
        "__MACOSX/part.zip": (zipped({"a.jpg": jpeg()}), SKIPPED),
        "Thumbs.db": (bytes(600), SKIPPED),
        "desktop.ini": (b"[x]", SKIPPED),
        "ISIC_0000001_segmentation.png": (jpeg(), "mask"),
        "ISIC_0000001_superpixels.png": (jpeg(), "mask"),
        "ISIC_0000001_attribute_streaks.png": (jpeg(), "mask"),
        "lesion-mask.bmp": (jpeg(), "mask"),
        "notes.txt": (jpeg(), SKIPPED),
        "run.sh": (b"#!/bin/sh\nrm -rf /\n", SKIPPED),
        "LICENSE": (b"", SKIPPED),
        "page.HTML": (b"<script>", SKIPPED),
        # not what the name says
        "pickle.png": (pickle.dumps(PERSON), "not_an_image"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        "photograph.heic": (b"\0\0\0\x18ftypheic" + bytes(500), "unsupported_format"),
        "tar.gz in a jpg.jpg": (tarred({"a.jpg": jpeg()}, "w:gz"), "archive_by_another_name"),
        "png of a jpg.png": (jpeg(), READ),
        "photograph.zip": (jpeg(), READ),
        "photograph.tar.gz": (encoded(new()), READ),
        "photograph of dicom.tar": (broken.dicom(np.asarray(new())), READ),
        "photograph_mask.zip": (encoded(broken.LESION, "JPEG"), "mask"),
        "large photograph.tar": (encoded(broken.LESION, "JPEG") + bytes(LIMITS["max_bytes"]), "too_many_bytes"),
        # more than one thing
        "jpeg and zip.jpg": (jpeg() + zipped({"a.jpg": jpeg()}), READ),
        "jpeg and page.jpg": (jpeg(comment=b"<?php system($_GET['x']); ?>") + b"<html><script>", READ),
        "animated.webp": (encoded(new(), "WEBP", save_all=True, append_images=[new()]), READ),
        "animated.png": (encoded(new(), "PNG", save_all=True, append_images=[new()]), READ),
        "pages.tif": (encoded(new(), "TIFF", save_all=True, append_images=[new()]), READ),
        "seen.jpg": (seen, READ),
        "seen_again.jpg": (seen, "duplicate"),
        # too large or too small
        "no byte.png": (b"", "empty"),
        "no byte.zip": (b"", "empty"),
        "no member.zip": (zipped({}), "empty"),
        "no member.tar": (tarred({}), "empty"),
        "folders only.tar.gz": (tarred([(item("folder", tarfile.DIRTYPE), b"")], "w:gz"), "empty"),
        "a byte too many.jpg": (jpeg() + bytes(LIMITS["max_bytes"]), "too_many_bytes"),
        "a thousand pixels too many.png": (encoded(new().resize((1001, 1000), 0)), "too_many_pixels"),
        "as many pixels as may be.png": (encoded(new().resize((1000, 1000), 0)), READ),
        "a line.png": (encoded(new().resize((400, 7))), "too_small"),
        # the name of a person
        "exif.jpg": (jpeg(exif=exif_of(PERSON)), READ),
        "comment.jpg": (jpeg(comment=PERSON.encode()), READ),
        "text.png": (encoded(new(), "PNG", pnginfo=text_of(PERSON)), READ),
        "exif.webp": (encoded(new(), "WEBP", exif=exif_of(PERSON), xmp=PERSON.encode()), READ),
        "tags.tif": (encoded(new(), "TIFF", artist=PERSON, description=PERSON), READ),
        "patient.dcm": (broken.dicom(lesion, PatientName=PERSON, PatientID="17"), READ),
        "exif cut.jpg": (jpeg(exif=exif_of(PERSON))[:-60], "damaged"),
        "text cut.png": (broken.half(encoded(new(), "PNG", pnginfo=text_of(PERSON))), "corrupt"),
        "a face.dcm": (broken.dicom(PatientName=PERSON, RecognizableVisualFeatures="YES"), "recognisable"),
        "of another kind.dcm": (broken.dicom(PatientName=PERSON, sop=broken.ENDOSCOPIC), "dicom_not_photographic"),
        "text of a person.jpg": (f"{PERSON}, born 1964".encode(), "not_an_image"),
    }


def packed(outside: Path) -> Packed:
    """Zip and tar files; `outside` is a folder out of the archive for them to reach for."""

    def parts(names: str = "01234567") -> list[tuple[str, bytes]]:
        return [(f"{name}.jpg", jpeg()) for name in names]

    complete = parts()
    stored, cut_tar = zipped(complete, zipfile.ZIP_STORED), tarred(parts())
    many = [(f"{number:02}.bmp", bytes(990_000)) for number in range(30)]
    slips = {
        "../up.jpg": "__/up.jpg",
        "../" * 30 + f"{outside}/up.jpg".lstrip("/"): "__/" * 30 + f"{outside}/up.jpg".lstrip("/"),
        f"{outside}/absolute.jpg": f"{outside}/absolute.jpg".lstrip("/"),
        "C:\\absolute.jpg": "C_/absolute.jpg",
        "a/../../up.jpg": "a/__/__/up.jpg",
    }
    unsafe = dict.fromkeys(slips.values(), "unsafe_name") | {"good.jpg": READ}
    member = {"exif.jpg": jpeg(exif=exif_of(PERSON)), "cut.jpg": jpeg(exif=exif_of(PERSON))[:-60]}
    return {
        "slip.zip": (zipped(dict.fromkeys(slips, b"x") | {"good.jpg": jpeg()}), unsafe),
        "links and devices.tar": (
            tarred(
                [
                    (item("s.jpg", tarfile.SYMTYPE, linkname=f"{outside}/one.jpg"), b""),
                    (item("h.jpg", tarfile.LNKTYPE, linkname=f"{outside}/one.jpg"), b""),
                    (item("folder", tarfile.SYMTYPE, linkname=str(outside)), b""),
                    (item("folder/through.jpg"), jpeg()),
                    (item("c.jpg", tarfile.CHRTYPE), b""),
                    (item("f.jpg", tarfile.FIFOTYPE), b""),
                    (item("root.jpg", mode=0o6777, uname="root"), jpeg()),
                ]
            ),
            {
                **dict.fromkeys(("s.jpg", "h.jpg", "folder"), "link"),
                **dict.fromkeys(("c.jpg", "f.jpg"), "special_file"),
                **dict.fromkeys(("folder/through.jpg", "root.jpg"), READ),
            },
        ),
        "cut.tar": (cut_tar[: cut_tar.index(b"1.jpg") + 700], {"0.jpg": READ, "": "damaged_archive"}),
        "flipped.zip": (
            broken_containers.changed(stored, stored.index(complete[1][1]) + 300, b"\0\xff\0"),
            dict.fromkeys(dict(complete), READ) | {"1.jpg": "damaged_member"},
        ),
        "twice.zip": (zipped(parts("aaA")), {"a.jpg": READ, "a.jpg#2": READ, "A.jpg": READ}),
        "many zeros.zip": (
            zipped(many),
            {f"{number:02}.bmp": "not_an_image" for number in range(20)} | {"": "archive_too_large"},
        ),
        "too long.tar": (
            tarred({"a.jpg": jpeg() + bytes(LIMITS["max_bytes"]), "b.jpg": jpeg()}),
            {"a.jpg": "too_many_bytes", "b.jpg": READ},
        ),
        "odds and ends.zip": (
            zipped(
                {
                    "__MACOSX/a.jpg": b"x",
                    ".DS_Store": b"x",
                    "no byte.jpg": b"",
                    "README.md": b"x",
                    "formulas.csv": b"image_id,age\n=1+1,@SUM(A1)\n",
                    "page.jpg": b"<html>",
                    "tiny.png": encoded(new().resize((4, 4))),
                    "emoji \U0001f9d1.jpg": jpeg(),
                    "b.zip/c.jpg": jpeg(),
                }
            ),
            {
                **dict.fromkeys(("__MACOSX/a.jpg", ".DS_Store"), SKIPPED),
                **dict.fromkeys(("README.md", "formulas.csv"), SKIPPED),
                "no byte.jpg": "empty",
                "page.jpg": "not_an_image",
                "tiny.png": "too_small",
                **dict.fromkeys(("emoji \U0001f9d1.jpg", "b.zip/c.jpg"), READ),
            },
        ),
        "persons.zip": (zipped(member), {"exif.jpg": READ, "cut.jpg": "damaged"}),
        "of jpeg.jpg.zip": (zipped([(info("a.jpg", comment=b"x" * 900), jpeg())]), {"a.jpg": READ}),
    }


@dataclass(frozen=True)
class Ingested:
    """The archive after its ingest. `expected` is what must become of each thing, by its source."""

    line: Line
    output: str
    expected: dict[str, str]
    contents: dict[str, bytes]  # of loose files, by source
    before: dict[str, tuple[int, ...]]  # of all files beside the warehouse

    def rejects(self) -> pd.DataFrame:
        return pd.read_parquet(self.line.folder / "rejects" / self.line.manifest("images")["path"])


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Size, time and number of everything in a folder, links themselves."""
    result = {}
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(above, name)
            stat = os.lstat(path)
            result[path] = (stat.st_mode, stat.st_size if name in names else 0, stat.st_mtime_ns, stat.st_ino)
    return result


def shown(name: str) -> str:
    """A file's name as text: bytes that are none are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def of_corpora() -> tuple[Things, Packed]:
    things = {f"{name}.jpg": case for name, case in broken.corpus().items()}
    boxes: Packed = {}
    for name, (kind, make, members) in broken_containers.CORPUS.items():
        content = make()
        # What is read of these is random bytes, and no image.
        outcome = {member: reason or "not_an_image" for member, reason in members.items()}
        if not content or not members:
            things[f"{name}.{kind}"] = (content, "empty")
        elif name.endswith("photograph"):  # by its first bytes
            things[f"{name}.{kind}"] = (content, "corrupt")
        else:
            boxes[f"{name}.{kind}"] = (content, outcome)
    return things, boxes


def lay_out(root: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Writes the archive. Returns what must become of each thing, and the bytes of those that are loose."""
    expected, contents = {}, {}

    def put(name: str, content: bytes, outcome: str) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        expected[shown(name)], contents[shown(name)] = outcome, content

    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "one.jpg").write_bytes(jpeg())
    for number in range(40):
        content = synthetic.lesion_jpeg(number, malignant=number % 2 == 1, size=64)
        put(f"{('nevus', 'melanoma')[number % 2]}/good/good_{number}.jpg", content, READ)
    things, boxes = of_corpora()
    for folder, files in (("nevus/hostile", loose()), ("nevus/corpus", things), (".", TABLES)):
        for name, (content, outcome) in files.items():
            put(os.path.normpath(f"{folder}/{name}"), content, outcome)
    for folder, containers_ in (("nevus/packed", packed(outside)), ("nevus/boxes", boxes)):
        for name, (content, outcomes) in containers_.items():
            put(f"{folder}/{name}", content, "")
            del expected[f"{folder}/{name}"], contents[f"{folder}/{name}"]
            expected |= {f"{folder}/{name}!/{member}": outcome for member, outcome in outcomes.items()}

    links = root / "nevus/links"
    links.mkdir()
    for name, (aim, outcome) in LINKS.items():
        (links / name).symlink_to(aim.format(outside=outside))
        expected[f"nevus/links/{name}"] = outcome
    os.mkfifo(links / "pipe.jpg")
    expected["nevus/links/pipe.jpg"] = "special_file"
    return {f"file:{root}/{name}": outcome for name, outcome in expected.items()}, {
        f"file:{root}/{name}": content for name, content in contents.items()
    }


# Reasons that are told from the content, which then has a hash. Of a mask and of no bytes the listing may know.
OF_CONTENT = {reason for _, reason in broken.corpus().values()} | {"duplicate"}
LINKS = {  # name -> where it leads, and what becomes of it
    "out.jpg": ("{outside}/one.jpg", "link"),
    "up.jpg": ("../../../outside/one.jpg", "link"),
    "folder": ("{outside}", "link"),
    "passwd.jpg": ("/etc/passwd", "link"),
    "zeros.jpg": ("/dev/zero", "link"),
    "nothing.jpg": ("nowhere.jpg", "link"),
    "self.jpg": ("self.jpg", "link"),
    "cycle": ("..", "link"),
    "inside.jpg": ("../good/good_0.jpg", "duplicate"),
}
TABLES = {
    "formulas.csv": (
        b'image_id,site,patient_id\ngood_0,=HYPERLINK("http://a.b"),"=cmd|\' /C calc\'!A0"\ngood_2,@SUM(1),+1\n',
        SKIPPED,
    ),
    "a million columns.csv": (b",".join(b"c%d" % number for number in range(1_000_000)) + b"\n1\n", SKIPPED),
    "a million columns of nothing.csv": (b"image_id" + b"," * 1_000_000, SKIPPED),
    "latin-1.csv": ("image_id,site\ngood_4,Schl\u00fcsselbein\n".encode("latin-1"), SKIPPED),
    "utf-16.csv": ("image_id,site\ngood_6,back\n".encode("utf-16"), SKIPPED),
    "utf-32.csv": ("image_id,site\ngood_8,back\n".encode("utf-32"), SKIPPED),
    "nul.csv": (b"image_id,label\ngood_10,\0melanoma\n", SKIPPED),
    "zeros.tsv": (bytes(3000), SKIPPED),
    "nothing.csv": (b"", SKIPPED),
    "never closed.csv": (b'image_id,site\ngood_12,"back\n' + b"x,y\n" * 50, SKIPPED),
    "photograph.csv": (jpeg(), SKIPPED),
    "page.csv": (b"<!DOCTYPE html><html>404</html>", SKIPPED),
    "HAM10000_metadata": (b"\xff\xfe\xff\xff\xff", SKIPPED),
}


@pytest.fixture(scope="module")
def ingested(spark, tmp_path_factory, shared_mlflow) -> Ingested:
    """One ingest, for all the tests to look at."""
    root = tmp_path_factory.mktemp("hostile") / "archive"
    root.mkdir()
    expected, contents = lay_out(root)
    before = state(root.parent)
    line = open_line(
        spark,
        root,
        tmp_path_factory.mktemp("made") / "warehouse",
        mlflow={"tracking_uri": shared_mlflow},
        ingest={**LIMITS, "test_fraction": 0.3, "validation_fraction": 0.3},
    )
    return Ingested(line, line.stage("ingest"), expected, contents, before)


def test_each_file_is_accepted_or_rejected_once_with_its_reason(ingested):
    accepted, rejected = ingested.line.read("images").toPandas(), ingested.rejects()
    result = [*accepted["source_uri"], *rejected["source_uri"]]
    assert len(result) == len(set(result))
    outcomes = dict.fromkeys(accepted["source_uri"], READ) | dict(
        zip(rejected["source_uri"], rejected["reason"], strict=True)
    )
    assert outcomes == {source: outcome for source, outcome in ingested.expected.items() if outcome != SKIPPED}

    facts, count = ingested.line.manifest("images"), Counter(ingested.expected.values())
    assert len(ingested.expected) >= 350
    assert facts["listed"] == len(ingested.expected)
    assert facts["accepted"] == count[READ] == sum(facts["counts"].values())
    assert facts["skipped"] == count[SKIPPED]
    assert facts["rejected"] == sum(count.values()) - count[READ] - count[SKIPPED]
    assert facts["reasons"] == {reason: n for reason, n in count.items() if reason not in (READ, SKIPPED)}
    assert ingested.output.startswith(f"ingest: {len(ingested.expected)} files listed = {count[READ]} accepted + ")

    known = REASONS.keys() | containers.REASONS.keys()
    for row in ingested.rejects().itertuples():
        assert row.reason in known
        assert row.detail
        assert len(row.detail.splitlines()) == 1
        if row.sha256 is None:
            assert row.reason not in OF_CONTENT or row.reason in ("mask", "empty"), row
        elif row.source_uri in ingested.contents:
            assert row.sha256 == hashes.sha256(ingested.contents[row.source_uri])
        else:
            assert len(row.sha256) == 64


def test_only_the_warehouse_is_written_and_it_holds_no_persons_name(ingested):
    assert state(ingested.line.archive.parent) == ingested.before
    assert {path.name for path in ingested.line.folder.parent.iterdir()} == {"warehouse"}

    assert sum(PERSON.encode() in content for content in ingested.contents.values()) > 5
    looked_at = Counter()
    for path in ingested.line.folder.rglob("*"):
        if path.is_file():
            looked_at[path.relative_to(ingested.line.folder).parts[0]] += 1
            for content in (path.read_bytes(), *cells_of(path)):
                assert not any(PERSON.encode(code) in content for code in ("utf-8", "utf-16-le")), path
                assert b"Doe^Jane" not in content  # ids are stored, as those of tables are
    assert looked_at["images"] > 1
    assert looked_at["rejects"] > 1
    assert looked_at["decoded"] > 1


def cells_of(path: Path) -> list[bytes]:
    """What a Parquet file holds, uncompressed."""
    if path.suffix != ".parquet":
        return []
    cells = pd.read_parquet(path).select_dtypes("object").to_numpy().ravel()
    return [cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells]
