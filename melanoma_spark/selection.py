"""Decoded files and the archive's metadata -> which images are kept, with label, group and split, and why not the rest.

Pure: rows in, rows out. What is decided here is decided for the whole archive at once, on the driver.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from melanoma_spark import config, groups, layouts, splits
from melanoma_spark.errors import DataError


@dataclass(frozen=True)
class Found:
    """A listed file after decoding: its hashes, or the reason why it has no pixels."""

    source_uri: str
    sha256: str | None
    pixel_sha256: str | None = None
    perceptual_hash: str | None = None
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Chosen:
    """An image that is kept."""

    source_uri: str
    sha256: str
    image_id: str
    label: int
    split: str
    group: str
    patient_id: str | None
    lesion_id: str | None


@dataclass(frozen=True)
class Selection:
    """The kept images, the rejected files, and how many rows of the metadata have no image."""

    chosen: tuple[Chosen, ...]
    rejected: tuple[Found, ...]
    rows_without_image: int

    def counts(self) -> dict[str, int]:
        """Kept images by split and label, as `train_0`, `train_1`, ..."""
        counted = Counter((row.split, row.label) for row in self.chosen)
        return {f"{split}_{label}": counted[split, label] for split in splits.SPLITS for label in (0, 1)}

    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(row.reason or "" for row in self.rejected).items()))


def select(
    found: Iterable[Found], records: Sequence[layouts.Record], root: str, settings: config.Settings
) -> Selection:
    """Decide on every file. Without records, the folder directly above an image names its class.

    Of files with the same pixels the one with the smallest SHA-256 is kept; if their labels differ none is. Raises
    `DataError` when nothing is left, or only one class.
    """
    by_id = {record.image_id: record for record in records}
    rejected: list[Found] = []
    labelled: list[tuple[Found, layouts.Record, int]] = []
    seen: set[str] = set()
    for file in found:
        name = layouts.image_id(file.source_uri)
        seen.add(name)
        if file.reason is not None:
            rejected.append(file)
            continue
        record = by_id.get(name) if records else layouts.Record(name, layouts.folder_label(file.source_uri, root))
        label = _label(record, settings.ingest.labels)
        if isinstance(label, str):
            detail = "no row in metadata.csv" if record is None else f"label {record.label!r}"
            rejected.append(replace(file, reason=label, detail=detail))
        else:
            assert record is not None
            labelled.append((file, record, label))
    names = groups.connected_components(_keys(file, record) for file, record, _ in labelled)
    kept: list[Chosen] = []
    same: dict[str, list[int]] = defaultdict(list)
    for place, (file, _, _) in enumerate(labelled):
        same[file.pixel_sha256 or ""].append(place)
    for places in same.values():
        places.sort(key=lambda place: (labelled[place][0].sha256 or "", labelled[place][0].source_uri))
        conflict = len({labelled[place][2] for place in places}) > 1
        for order, place in enumerate(places):
            file, record, label = labelled[place]
            if conflict:
                rejected.append(replace(file, reason="conflicting_labels", detail=f"{len(places)} images, both labels"))
            elif order:
                detail = f"same pixels as {labelled[places[0]][0].sha256}"
                rejected.append(replace(file, reason="duplicate", detail=detail))
            else:
                kept.append(_chosen(file, record, label, names[place], settings))
    selection = Selection(
        tuple(sorted(kept, key=lambda row: (row.split, row.sha256))),
        tuple(sorted(rejected, key=lambda row: row.source_uri)),
        len(by_id.keys() - seen),
    )
    _check(selection)
    return selection


def _label(record: layouts.Record | None, words: config.Labels) -> int | str:
    """0 or 1, or the reason why there is none."""
    if record is None or record.label is None:
        return "no_label"
    word = record.label.lower()
    if word in (positive.lower() for positive in words.positive):
        return 1
    return 0 if word in (negative.lower() for negative in words.negative) else "unknown_label"


def _keys(file: Found, record: layouts.Record) -> list[str]:
    keys = [f"pixels:{file.pixel_sha256}", f"looks:{file.perceptual_hash}"]
    if record.patient_id:
        keys.append(f"patient:{record.patient_id}")
    if record.lesion_id:
        keys.append(f"lesion:{record.lesion_id}")
    return keys


def _chosen(file: Found, record: layouts.Record, label: int, group: str, settings: config.Settings) -> Chosen:
    assert file.sha256 is not None
    split = splits.split_of(group, settings.seed, settings.ingest.test_fraction, settings.ingest.validation_fraction)
    return Chosen(
        file.source_uri, file.sha256, record.image_id, label, split, group, record.patient_id, record.lesion_id
    )


def _check(selection: Selection) -> None:
    reasons = ", ".join(f"{reason} {count}" for reason, count in selection.reasons().items()) or "none"
    unknown = {row.detail or "" for row in selection.rejected if row.reason == "unknown_label"}
    if unknown:
        reasons += f" ({layouts.some(unknown)}; known words: ingest.labels.positive and ingest.labels.negative)"
    if not selection.chosen:
        raise DataError(f"no usable image in the archive; rejected: {reasons}")
    counts = selection.counts()
    total = {label: sum(counts[f"{split}_{label}"] for split in splits.SPLITS) for label in (0, 1)}
    if not total[0] or not total[1]:
        present = 1 if total[1] else 0
        raise DataError(
            f"one class only: all {total[present]} usable images carry the "
            f"{'positive' if present else 'negative'} label; rejected: {reasons}; check the label words in "
            "ingest.labels.positive and ingest.labels.negative"
        )
    for split in splits.SPLITS:
        if not counts[f"{split}_0"] or not counts[f"{split}_1"]:
            raise DataError(
                f"the {split} split has {counts[f'{split}_0']} negative and {counts[f'{split}_1']} positive images of "
                f"{len(selection.chosen)}: too few groups to split; add images, change seed=N, or raise "
                "ingest.test_fraction and ingest.validation_fraction"
            )
