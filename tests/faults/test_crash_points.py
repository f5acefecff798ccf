"""Each stage fails at its writes, one after another, and is run again: the same rows, none twice, no half result.

A sample holds each kind of write, each moment and each way to fail of a stage. HYPOTHESIS_PROFILE=nightly tries all.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crash_points
import pyarrow.parquet
import pytest
import yaml
from conftest import REPO, TESTS, command, with_settings
from crash_points import Control, Killed, Point, Write

from melanoma_spark import lineage, tracking
from melanoma_spark.images import synthetic
from melanoma_spark.models import model_registry
from melanoma_spark.registry import alias_history
from melanoma_spark.runner.cli import Command, Result, invoke
from melanoma_spark.storage import files, lease, manifests
from melanoma_spark.storage.tensors import WEIGHTS, unpack_tensors

ALL = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
FOLLOW = ["--follow", "score.follow.once=true", "score.follow.settle=0", "score.follow.interval=1"]
# Stage -> its command, its words, and the stage after which it runs.
STAGES: dict[str, tuple[Command, list[str], str]] = {
    "ingest": (command("ingest"), [], ""),
    "featurize": (command("featurize"), [], "ingest"),
    "search": (command("search"), [], "featurize"),
    "train_head": (command("train_head"), [], "featurize"),
    "finetune": (command("finetune"), [], "train_head"),
    "evaluate": (command("evaluate"), [], "finetune"),
    "register": (command("register"), [], "evaluate"),
    "score": (command("score"), [], "register"),
    "follow": (command("score"), FOLLOW, "register"),
    "prune": (command("prune"), ["prune.apply=true"], "score"),
}
SETTINGS = {
    "image_size": 32,
    "backbone": {"name": "tiny_vgg16"},
    "finetune": {"checkpoint_steps": 1, "phases": [{"name": "block5", "cut": "block4_pool", "epochs": 1}]},
    "evaluate": {"mistakes": 1},
    "register": {"gate": {"auroc_margin": 1.0}},
    "score": {"batch_size": 4, "worklist": {"pictures": int(ALL)}},
    "search": {"hidden": [16, 32], "trials": 2, "folds": 2, "seeds": 1, "tta": [2]},
    "mlflow": {"system_metrics": False},
    "prune": {"external_days": 1},
}
LATER = {"augment": {"enabled": True}, "featurize": {"views": 2}}  # than the first results: some are then taken over
# What was finished is kept: who is killed after such a write says so when it runs again.
KEPT = {
    "featurize": ("driver spark features/", r"= \d+ computed \+ [1-9]\d* computed before"),
    "score": ("worker rename scoring/", "resuming a killed run: [1-9]"),
    "follow": ("worker rename scoring/", "resuming a killed run: [1-9]"),
    "finetune": ("rank rename models/", "resuming from the checkpoint"),
}
# Where a result begins to count, or where training goes on from: the sample holds what comes right after.
COUNTS = re.compile(r"rename (scores/batch_id=|registry/\S+/champion/|\S+/manifest\.json|\S+/checkpoint\.npz)")
# Points in the sample; others 4.
MOST = {"ingest": 5, "score": 5, "prune": 5, "finetune": 2, "evaluate": 3, "search": 2, "follow": 1}
# What all stages do around their own work: the sample tries these where there is nothing else of the kind.
AROUND = re.compile(r"\.writable|running/|settings\.txt|:create_run|:update_run_info|:log_inputs")
# What two runs of the same stage do not have in common.
OWN = {"made_at", "run_id", "read", "seconds", "images_per_second", "waited", "left_by_a_killed_run", "engine"}
OWN |= {"scored_at", "batch_id", "committed_at", "report_run_id", "number", "at", "from", "to", "version"}
Content = dict[str, Any]


@dataclass
class Recorded:
    """An undisturbed run of a stage: what was there before and after it, and its writes."""

    before: Path
    result: Result
    old: Content
    new: Content
    writes: list[Write]
    after: Path
    folders: list[str]
    unseen: list[str] = field(default_factory=list)


class Stages:
    """A warehouse in one place, put back into its state before each stage; its archive has grown since then."""

    def __init__(self, spark: Any, folder: Path, control: Control) -> None:
        self.spark, self.folder, self.control = spark, folder, control
        self.warehouse = folder / "warehouse"
        self.recorded: dict[str, Recorded] = {}
        self.folders: list[str] = []  # as `content` saw them last
        self.settings = folder / "settings.yaml"
        values = with_settings(archive=str(folder / "archive"), warehouse=str(self.warehouse))
        for key, value in SETTINGS.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        self.settings.write_text(yaml.safe_dump(values))
        synthetic.draw_archive(folder / "archive", images=40, size=32)
        later = sorted((folder / "archive").glob("*/*.jpg"))[::4]
        for path in later:
            path.rename(folder / path.name)
        for name in ("ingest", "featurize", "train_head", "evaluate", "register", "score"):
            done = self.run(command(name))
            assert done.exit_status in (0, 6), done.log
        for path in later:
            (folder / path.name).rename(path)
        old = self.warehouse / "external" / ("0" * 16) / "images"
        shutil.copytree(self.warehouse / "images", old)
        for path in old.rglob("*"):
            os.utime(path, (0, 0))
        self.settings.write_text(yaml.safe_dump(values | LATER))
        shutil.copytree(self.warehouse, folder / "before-ingest")

    def run(self, job: Command, words: list[str] | None = None) -> Result:
        return invoke(job, ["--conf", str(self.settings), *(words or [])], self.spark)

    def undisturbed(self, name: str) -> Recorded:
        if name not in self.recorded:
            job, words, earlier = STAGES[name]
            before = self.undisturbed(earlier).after if earlier else self.folder / "before-ingest"
            crash_points.restore(before, self.warehouse)
            old = self.content()
            self.control.start(self.warehouse, None)
            result = self.run(job, words)
            writes, unseen = self.control.writes(), self.control.unseen()
            self.control.stop()
            assert result.exit_status in (0, 6), result.log
            shutil.copytree(self.warehouse, after := self.folder / f"after-{name}")
            new = self.content()
            self.recorded[name] = Recorded(before, result, old, new, writes, after, self.folders, unseen)
        return self.recorded[name]

    def content(self) -> Content:
        """All that a reader finds in the warehouse. Raises where something of it cannot be read."""
        top, actual = self.warehouse, {}
        url = files.url_of(str(top))
        for path in sorted(one for one in top.rglob("manifest.json") if "mlartifacts" not in one.parts):
            name = str(path.parent.relative_to(top))
            facts = manifests.read_values(files.join(url, name, manifests.FILE))
            actual[name] = own(facts)
            data = path.parent / facts["path"]
            assert data.is_dir()
            if name in ("images", "features"):
                actual[f"{name}: rows"] = rows(data)
                assert pyarrow.parquet.read_metadata(data / "_common_metadata").metadata[UNISCHEMA]
            if name == "images":
                for other in ("rejects", "unmatched"):
                    actual[other] = rows(top / other / facts["path"])
            if name.startswith("models/"):
                assert lineage.tensors_id(unpack_tensors((data / WEIGHTS).read_bytes())) == facts["tensors_id"]
            if name == "reports":
                actual["reports: rows"] = rows(data / "predictions")
                actual["reports: files"] = sorted(str(one.relative_to(data)) for one in data.rglob("*.[hmj]*"))
        batches = sorted(path.name.removeprefix("batch_id=") for path in (top / "scores").glob("batch_id=*"))
        actual["scores"] = rows(top / "scores")
        actual["batches"] = [own(json.loads((top / "batches" / name / "batch.json").read_text())) for name in batches]
        actual["worklists"] = [(top / "batches" / name / "worklist.csv").read_text().count("\n") for name in batches]
        tracker = tracking.Tracker(tracking.config.Mlflow(), url)
        for alias in ("champion", "challenger"):
            if tracker.find_version(f"melanoma@{alias}"):
                version, artifacts = model_registry.download_model(tracker, f"melanoma@{alias}")
                sums = {key: hashlib.sha256(value).hexdigest() for key, value in artifacts.items()}
                actual[alias] = own(version.tags), len(sums), bool(version.description)
        held = {one for one in top.rglob("*") if one.is_dir() and "mlartifacts" not in one.parts}
        self.folders = sorted(crash_points.RANDOM.sub("*", f"{one.relative_to(top)}/") for one in held)
        actual["moves"] = [own(move) for move in alias_history.History(url, "melanoma", "champion").read()]
        return actual


UNISCHEMA = b"dataset-toolkit.unischema.v1"


def own(facts: Any) -> Any:
    """Values without those that differ in each run; NaN becomes `nan`, which equals itself."""
    if isinstance(facts, float) and facts != facts:
        return "nan"
    if isinstance(facts, dict):
        return {key: own(value) for key, value in facts.items() if key not in OWN}
    return [own(value) for value in facts] if isinstance(facts, list) else facts


def rows(folder: Path) -> list[str]:
    """The rows of a Parquet folder, without the columns that differ in each run."""
    table = pyarrow.parquet.read_table(folder).to_pandas()
    table = table[[name for name in sorted(table) if name not in OWN]]
    return sorted(hashlib.sha1(repr(row).encode()).hexdigest() for row in table.itertuples(index=False))


@pytest.fixture(scope="module")
def stages(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    folder = tmp_path_factory.mktemp("crash")
    (folder / "control").mkdir()
    environment = spark.sparkContext.environment
    before = dict(environment)
    environment[crash_points.VARIABLE] = str(folder / "control")
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS / "plugins", TESTS, REPO)))
    tiny = {"spark.sql.shuffle.partitions": "2", "spark.sql.adaptive.enabled": "false"}
    chosen = {key: spark.conf.get(key) for key in tiny}
    for key, value in tiny.items():
        spark.conf.set(key, value)
    with pytest.MonkeyPatch.context() as only_here:
        only_here.setattr(lease, "BEAT", 3600.0)
        only_here.setattr(lease, "SETTLE", 0.0)
        take_off = crash_points.install(str(folder / "control"))
        yield Stages(spark, folder, Control(folder / "control"))
        take_off()
    environment.clear()
    environment.update(before)
    for key, value in chosen.items():
        spark.conf.set(key, value)


def sample(name: str, writes: list[Write]) -> list[Point]:
    """A few points of a stage, the same ones each time: each kind of write, each moment and each way to fail.

    First what comes right after a result begins to count. Then what adds most, a stage's own work before what is around
    all of them, workers and ranks before the driver.
    """
    kinds = {str(write): f"{write.who} {write.kind}" for write in writes}
    actual = crash_points.points(writes)
    chosen = [point for point in actual if str(point).startswith("kill after") and COUNTS.search(point.write)][-2:]
    drawn = random.Random(name).sample(actual, len(actual))
    drawn.sort(key=lambda point: (bool(AROUND.search(point.write)), " driver " in str(point)))

    def traits(point: Point) -> set[str]:
        return {kinds[point.write], point.moment, point.how}

    while len(chosen) < MOST.get(name, 4):
        seen = {trait for point in chosen for trait in traits(point)}
        chosen.append(max(drawn, key=lambda point: len(traits(point) - seen)))
        drawn.remove(chosen[-1])
    return chosen


def difference(stages: Stages, *allowed: Content) -> list[str]:
    """The parts of the warehouse that are as in none of these, or why it cannot be read."""
    try:
        actual = stages.content()
    except Exception as error:
        return [f"cannot be read: {error!r}"]
    names = set(actual).union(*allowed)
    return [name for name in sorted(names) if all(actual.get(name) != one.get(name) for one in allowed)]


def fail_at(stages: Stages, name: str, point: Point) -> tuple[bool, list[str]]:
    """Run a stage that fails at a point. Returns whether it came there, and what is wrong with what it left."""
    job, words, _ = STAGES[name]
    known = stages.undisturbed(name)
    stages.control.start(stages.warehouse, point)
    result = None
    with contextlib.suppress(Killed):
        result = stages.run(job, words)
    hit = stages.control.was_hit()
    stages.control.stop()
    leases = sorted(path.name for path in (stages.warehouse / "running").glob("*.json"))
    crash_points.as_after_death(stages.warehouse)
    wrong, states = [], [known.old, known.new]
    if not hit or (point.how != "kill" and result is not None):
        allowed = (0, known.result.exit_status, *((3,) if point.how == "error" else (1, 3)))
        if result.exit_status not in allowed:
            wrong.append(f"exit status {result.exit_status}")
        errors = [line for line in result.log.splitlines() if line.startswith("error: ")]
        failed = result.exit_status not in (0, 6)
        states = states if failed else states[1:]
        if len(errors) != failed or "Traceback" in result.log:
            wrong.append(f"its log: {result.log[-3000:]}")
        if leases and " running/" not in point.write:
            wrong.append(f"leases are left: {leases}")
    if parts := difference(stages, *states):
        wrong.append(f"half done: {parts}")
    return hit, [f"{point}: {text}" for text in wrong]


def must_resume(name: str, point: Point) -> bool:
    """Whether the run after a point must report that it resumed: its log is read then."""
    return name in KEPT and point.how == "kill" and point.moment == "after" and KEPT[name][0] in point.write


def fail_and_finish(stages: Stages, name: str, points: list[Point]) -> list[str]:
    """Fail a stage at one point after another, each attempt on what the last one left, and run it to its end.

    An attempt whose point was passed in an earlier one starts again from the beginning. Returns what is wrong.
    """
    job, words, _ = STAGES[name]
    known = stages.undisturbed(name)
    wrong = []
    for number, point in enumerate(points):
        if not number:
            crash_points.restore(known.before, stages.warehouse)
        hit, actual = fail_at(stages, name, point)
        if not hit and number:
            wrong += actual
            crash_points.restore(known.before, stages.warehouse)
            hit, actual = fail_at(stages, name, point)
        wrong += actual if hit else [*actual, f"{point}: it was not reached"]
    again = stages.run(job, words)
    if again.exit_status != known.result.exit_status:
        return [*wrong, f"run again it left with {again.exit_status}: {again.log[-3000:]}"]
    wrong += [f"run again {part} is another" for part in difference(stages, known.new)]
    if left := Counter(stages.folders) - Counter(known.folders):
        wrong.append(f"folders are left: {sorted(left)}")
    if must_resume(name, points[-1]) and not re.search(KEPT[name][1], again.log):
        wrong.append(f"it did not resume: {again.log}")
    return wrong


def attempts(name: str, points: list[Point], writes: list[Write]) -> list[list[Point]]:
    """Points to fail at one after another: each by itself in the nightly run, else as many as there can be."""
    if ALL:
        return [[point] for point in points]
    order = [str(write) for write in writes]
    groups: list[list[Point]] = [[]]
    for point in sorted(points, key=lambda point: order.index(point.write)):
        groups[-1].append(point)
        if must_resume(name, point):
            groups.append([])
    return [group for group in groups if group]


@pytest.mark.timeout(0 if ALL else 900)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_fails_at_a_write_and_runs_again(stages, name):
    known = stages.undisturbed(name)
    assert not known.unseen, f"writes that no crash point covers: {known.unseen}"
    chosen = crash_points.points(known.writes) if ALL else sample(name, known.writes)
    if pattern := os.environ.get("MELANOMA_CRASH_POINT"):
        chosen = [point for point in crash_points.points(known.writes) if pattern in str(point)]
    print(f"\n{name}: {len(known.writes)} writes, {len(crash_points.points(known.writes))} points, {len(chosen)} tried")
    failed = []
    for points in attempts(name, chosen, known.writes):
        if wrong := fail_and_finish(stages, name, points):
            failed.append(f"{name}: {', '.join(map(str, points))}: " + "; ".join(wrong))
            print(failed[-1], flush=True)
    assert not failed, "\n".join(failed)
