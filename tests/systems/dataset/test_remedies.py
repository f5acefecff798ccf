"""Every remedy that an error names works: it is taken out of the message and applied, and the job runs again."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import command

from melanoma_spark import config
from melanoma_spark.images import synthetic
from melanoma_spark.runner.cli import invoke

SETTING = re.compile(r"(?<![\w.])((?:\w+\.)*\w+)=(null|\[WORD,\.\.\.\]|[A-Za-z0-9_]+)")
COMMON = ("image_size=32", "ingest.test_fraction=0.3", "ingest.validation_fraction=0.3")
IMAGES = 40
CHECK = "--check"  # for errors of settings alone: the job ends before Spark starts


@dataclass(frozen=True)
class Case:
    """A job that fails: what its archive holds, its words, and what a person puts where a message leaves a blank."""

    words: tuple[str, ...]
    archive: Callable[[Path], None] = lambda folder: table(folder)
    blanks: dict[str, str] = field(default_factory=dict)
    remedies: int = 1  # how many the first message names


def table(folder: Path, words: tuple[str, str] = ("nevus", "melanoma"), column: str = "label") -> None:
    rows = "".join(f"{number},{words[number % 2]}\n" for number in range(IMAGES))
    (folder / "t.csv").write_text(f"image_id,{column}\n{rows}")


def numbered(folder: Path) -> None:
    rows = "".join(f"{number},{(0, 1, 4, 5, 4, 6)[number % 6]}\n" for number in range(IMAGES))
    (folder / "t.csv").write_text(f"image_id,label\n{rows}")


def in_folders(folder: Path) -> None:
    """The classes are folders, and a table has them under a name that nobody knows."""
    table(folder, column="befund")
    for number in range(IMAGES):
        place = folder / ("gut", "schlecht")[number % 2] / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").rename(place)


def on_two_sides(folder: Path) -> None:
    """A shipped split, whose last patient has images on both sides."""
    sides = ["train" if number < IMAGES // 2 else "test" for number in range(IMAGES)]
    rows = [f"{n},{('nevus', 'melanoma')[n % 2]},{side},{n // 2}" for n, side in enumerate(sides)]
    rows[0] = rows[0].rpartition(",")[0] + f",{IMAGES // 2 - 1}"
    rows[-1] = rows[-1].rpartition(",")[0] + f",{IMAGES // 2 - 1}"
    (folder / "t.csv").write_text("image_id,label,split,patient_id\n" + "\n".join(rows) + "\n")


def incomplete(folder: Path) -> None:
    table(folder)
    with (folder / "t.csv").open("a") as file:
        file.write("999,nevus\n")


GUT = {"ingest.labels.positive": "[schlecht]", "ingest.labels.negative": "[gut]", "ingest.columns.label": "befund"}
WORDS = {"ingest.labels.positive": "[odd]", "ingest.labels.negative": "[even]"}
CASES = {
    "no labels": Case((), lambda folder: table(folder, column="befund"), {"ingest.columns.label": "befund"}),
    "no labels, folders": Case((), in_folders, GUT, remedies=2),
    "no such column": Case(("ingest.columns.label=Wert",), blanks={"ingest.columns.label": "label"}),
    "another layout": Case(("layout=ham10000",)),
    "unknown layout": Case(("layout=isic_2025",), blanks={"layout": "table"}),
    "unknown field": Case(("ingest.columns={lable: label}",), blanks={"ingest.columns": "{label: label}"}),
    "unknown words": Case((), lambda folder: table(folder, ("even", "odd")), WORDS),
    "numbers of classes": Case((), numbered, {"ingest.labels.positive": "[4]", "ingest.labels.negative": "[0, 1, 5]"}),
    "one class": Case(
        ("target=melanoma",), lambda folder: table(folder, ("nevus", "bcc")), {"ingest.labels.positive": "[bcc]"}, 2
    ),
    "a row without image": Case(("ingest.unmatched=error",), incomplete),
    "overlap": Case(("split=from_layout",), on_two_sides, remedies=2),
    "few groups": Case(
        ("ingest.test_fraction=0.01",),
        blanks={"ingest.test_fraction": "0.3", "ingest.validation_fraction": "0.3"},
    ),
    "few groups, another seed": Case(("ingest.test_fraction=0.05", "seed=4"), blanks={"seed": "3"}),
    "no key": Case(("privacy.source_names=hash",)),
    "no archive": Case(("archive=/not/there",), blanks={"archive": "."}),
    "no archive named": Case(("archive=null",), blanks={"archive": "."}),
    "warehouse in the archive": Case((CHECK, "warehouse=./w"), blanks={"warehouse": "../w"}),
    "views": Case((CHECK, "featurize.views=3"), remedies=2),
    "random weights": Case((CHECK, "backbone.weights=random")),
    "shares": Case((CHECK, "ingest.test_fraction=0.8"), blanks={"ingest.test_fraction": "0.3"}),
    "both words": Case(
        (CHECK, "ingest.labels={positive: [x, mm], negative: [mm]}"), blanks={"ingest.labels.positive": "[x]"}
    ),
    "a key without its section": Case((CHECK, "columns.label=label")),
    "misspelled": Case((CHECK, "imagesize=32")),
}


def remedies(message: str, words: list[str], blanks: dict[str, str]) -> list[list[str]]:
    """The words that a message asks for, with blanks filled; labels go together, and shares; others one by one."""
    result = []
    for key, value in SETTING.findall(message):
        known = key in config.valid_keys() or key.startswith("ingest.columns.")
        if f"{key}={value}" not in words and known:
            result.append(f"{key}={blanks.get(key) if value.isupper() or 'WORD' in value else value}")
    if suggested := re.search(r"unknown setting '([\w.]+)': did you mean '([\w.]+)'", message):
        result = [f"{suggested[2]}={{label: label}}" if "columns" in suggested[2] else f"{suggested[2]}=32"]
    if known := re.search(r"unknown (?:layout|field).*; known: (.*)$", message):
        (key,) = [key for key in ("layout", "ingest.columns") if key in blanks]
        assert re.sub(r"\W.*", "", blanks[key].lstrip("{")) in known[1].split(", ")
        result = [f"{key}={blanks[key]}"]
    assert not [word for word in result if word.endswith("=URL")], message
    filled = [word for word in result if not word.endswith("=None")]
    together = [word for word in filled if word.startswith("ingest.labels.") or "_fraction=" in word]
    return [[word] for word in filled if word not in together] + ([together] if together else [])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_remedy_that_an_error_names_works(case, spark, tmp_path, monkeypatch):
    monkeypatch.delenv(config.NAME_KEY, raising=False)
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(synthetic.lesion_jpeg(number, number % 2 == 1, 64))
    case.archive(folder)
    monkeypatch.chdir(folder)
    first = [*COMMON, "archive=.", "warehouse=../warehouse", f"mlflow.tracking_uri=sqlite:///{tmp_path}/m.db"]
    begin = [*first, *case.words]

    def follow(words: list[str], steps: int = 0) -> int:
        """Run, and while there are errors apply what they name. Returns the number of remedies of this message."""
        done = invoke(command("ingest"), words, spark)
        assert "Traceback" not in done.log
        assert steps < 3 or not done.exit_status, done.log
        if not done.exit_status:
            return 0
        if variable := re.search(r"at least (\d+) characters in the environment variable (\w+)", done.log):
            monkeypatch.setenv(variable[2], "x" * int(variable[1]))
            return follow(words, steps + 1) + 1
        named = remedies(done.summary, words, case.blanks)
        assert named, done.summary
        for remedy in named:
            replaced = {word.partition("=")[0] for word in remedy}
            follow([*(word for word in words if word.partition("=")[0] not in replaced | WRONG), *remedy], steps + 1)
        return len(named)

    assert follow(begin) == case.remedies


WRONG = {"imagesize", "columns.label", "ingest.labels"}  # keys that no remedy replaces, since it is another one
