"""What of a warehouse may go: nothing that a manifest or a registered version names, at no moment of its removal."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import examples

from melanoma_spark import config, lineage
from melanoma_spark.operations import retention
from melanoma_spark.operations.retention import DAY, File, References

NOW = 1_800_000_000.0
OLD, NEW, BETWEEN = (lineage.content_id([name]) for name in ("old", "new", "between"))
MADE = lineage.content_id(["made from"])


def decided(*listing, manifests=None, now=NOW, versions=None, **settings):
    """path -> why, of a listing of (path, days ago)."""
    files = [File(path, 10, NOW - days * DAY) for path, days in listing]
    result = retention.decide(files, References(manifests or {}, **versions or {}), config.Prune(**settings), now)
    return {item.what: item.why for item in result}


@pytest.mark.parametrize("place", ["features", "models/head", "models/finetuned", "reports"])
def test_older_folders_not_named_by_the_manifest_are_superseded(place):
    listing = [(f"{place}/{OLD}/a", 3), (f"{place}/{NEW}/a", 2), (f"{place}/manifest.json", 2)]
    result = decided(*listing, manifests={place: {"path": NEW}})
    assert result == {f"{place}/{OLD}": f"superseded: {place}/manifest.json names another"}
    assert decided(*listing, manifests={place: {"path": OLD}}).keys() == {f"{place}/{NEW}"}


def test_datasets_are_removed_unless_a_registered_version_needs_them():
    listing = [(f"{place}/{name}-{MADE}/a", 9) for place in ("images", "rejects", "unmatched") for name in (OLD, NEW)]
    listing += [(f"decoded/{OLD}/a", 9), (f"decoded/{NEW}/a", 9), ("images/manifest.json", 1)]
    facts = {"id": NEW, "path": f"{NEW}-{MADE}", "decoded": NEW}
    three = {f"{place}/{OLD}-{MADE}" for place in ("images", "rejects", "unmatched")}
    assert decided(*listing, manifests={"images": facts}).keys() == {*three, f"decoded/{OLD}"}
    del facts["decoded"]  # before version 0.2
    assert decided(*listing, manifests={"images": facts}).keys() == three

    listing = [(f"images/{name}-{made}/a", 9) for name in (OLD, NEW) for made in (MADE, OLD)]
    listing += [("images/manifest.json", 1)]
    manifests = {"images": {"id": NEW, "path": f"{NEW}-{MADE}"}}
    versions = {"datasets": frozenset({OLD, NEW})}
    result = decided(*listing, manifests=manifests, versions=versions)
    assert result.keys() == {f"images/{NEW}-{OLD}"}, "the same images as those that the manifest names"

    listing = [(f"reports/{OLD}/a", 9), (f"reports/{BETWEEN}/a", 9), ("reports/manifest.json", 1)]
    listing += [(f"models/exported/{name}.ncnn", 0) for name in (OLD, NEW)]
    versions = {"reports": frozenset({OLD}), "exported": frozenset({f"models/exported/{NEW}.ncnn"})}
    result = decided(*listing, manifests={"reports": {"path": NEW}}, versions=versions)
    assert result.keys() == {f"reports/{BETWEEN}", f"models/exported/{OLD}.ncnn"}


@pytest.mark.parametrize("published", [True, False])
def test_results_of_a_killed_job_are_kept_to_be_resumed(published):
    listing = [(f"features/{NEW}/a", 40), (f"features/{NEW}/b", 31)]
    listing += [("features/manifest.json", 50)] * published
    manifests = {"features": {"path": OLD}} if published else {}
    assert decided(*listing, manifests=manifests, unfinished_days=32) == {}
    assert decided(*listing, manifests=manifests) == {f"features/{NEW}": "unfinished, 31 days old"}


def test_unfinished_work_and_pictures_are_removed_by_age():
    listing = [(f"models/finetuned/{OLD}/checkpoint.npz", 20), ("models/finetuned/manifest.json", 1)]
    manifests = {"models/finetuned": {"path": NEW}}
    assert decided(*listing, manifests=manifests) == {}
    assert decided(*listing, manifests=manifests, unfinished_days=19).keys() == {f"models/finetuned/{OLD}"}
    listing = [(f"scoring/{OLD}/{NEW}/a", 31), (f"scoring/{OLD}/{BETWEEN}/a", 31), (f"scoring/{OLD}/{BETWEEN}/b", 29)]
    why = "rows of a batch that was not finished, 31 days old"
    assert decided(*listing) == {f"scoring/{OLD}/{NEW}": why}

    def batch(days):
        return time.strftime("%Y%m%dT%H%M%SZ-0a1b2c", time.gmtime(NOW - days * DAY))

    ids = [batch(91), batch(89), "by hand"]
    listing = [(f"batches/{name}/pictures/a.jpg", 5) for name in ids]  # copied, after a restore
    listing += [(f"batches/{name}/{file}", 999) for name in ids for file in ("batch.json", "worklist.html")]
    assert decided(*listing) == {}
    result = decided(*listing, worklists_days=90)
    assert result == {f"batches/{ids[0]}/pictures": "pictures of a worklist, 91 days old"}
    assert decided(*listing, worklists_days=4).keys() == {f"batches/{name}/pictures" for name in ids}


def test_external_sets_are_removed_by_the_age_of_their_last_evaluation():
    top = f"external/{OLD}"
    listing = [(f"{top}/{place}/{NEW}-{MADE}/a", 200) for place in ("images", "rejects", "unmatched")]
    listing += [(f"{top}/decoded/{NEW}/a", 200), (f"{top}/images/manifest.json", 200), (f"{top}/reports/{NEW}/a", 181)]
    manifests = {f"{top}/images": {"id": NEW, "path": f"{NEW}-{MADE}", "decoded": NEW}}
    (item,) = retention.decide(
        [File(path, 10, NOW - days * DAY) for path, days in listing], References(manifests), config.Prune(), NOW
    )
    assert (item.what, item.files, item.size, item.why) == (top, 5, 50, "an external set, 181 days old")
    assert item.paths[0] == f"{top}/images/manifest.json"
    assert sorted(item.paths[1:]) == [f"{top}/{place}" for place in ("decoded", "images", "rejects", "unmatched")]
    assert decided(*listing, manifests=manifests, external_days=None) == {}
    assert decided(*listing, (f"{top}/reports/{BETWEEN}/a", 179), manifests=manifests) == {}
    assert decided((f"{top}/reports/{NEW}/a", 999)) == {}

    listing = [(f"{top}/images/{name}-{MADE}/a", 9) for name in (OLD, NEW)] + [(f"{top}/images/manifest.json", 1)]
    manifests = {f"{top}/images": {"id": NEW, "path": f"{NEW}-{MADE}"}}
    versions = {"datasets": frozenset({OLD})}  # which no external set is
    assert decided(*listing, manifests=manifests, versions=versions).keys() == {f"{top}/images/{OLD}-{MADE}"}


def test_folders_of_killed_ingests_go_first_and_sizes_are_described():
    top = f"external/{OLD}"
    folders = ["_ingest-0a1b2c3d", f"{top}/_ingest-4e5f6071"]
    result = decided(*((f"{folder}/listed/a", 0) for folder in folders))
    assert result == dict.fromkeys(folders, "left by an ingest that was killed")
    listing = [File(f"reports/search/symmetries/{OLD}/{name}", 1, 0.0) for name in ("part-0", "_SUCCESS")]
    (item,) = retention.decide(listing, References({}), config.Prune(), NOW)
    assert item.paths == (f"reports/search/symmetries/{OLD}/_SUCCESS", f"reports/search/symmetries/{OLD}")

    names = ["images", "models/head", "reports", f"external/{OLD}/images", f"reports/search/{OLD}", f"images/{OLD}"]
    files = [File(f"{name}/manifest.json", 1, 0.0) for name in names]
    assert retention.manifests_in(files) == [f"external/{OLD}/images", "images", "models/head", "reports"]
    items = [retention.Item("a", ("a",), 1200, 3_000_000, ""), retention.Item("b", ("b",), 34, 400_000, "")]
    assert retention.describe(items) == "2 entries, 1,234 files, 3.4 MB"


def test_files_unknown_to_all_jobs_stay():
    listing = [
        ("images/by-hand/a", 999),
        (f"images/{OLD}", 999),
        (f"features/{OLD}.tar", 999),
        (f"models/other/{OLD}/a", 999),
        (f"reports/search/{OLD}/manifest.json", 999),
        (f"reports/search/symmetries/{OLD}", 999),
        (f"backup/features/{OLD}/a", 999),
        ("batches/x/worklist.csv", 999),
        (f"scores/batch_id=x/{OLD}/a", 999),
        (f"ledger/melanoma/1/{OLD}/a", 999),
        (f"registry/melanoma/champion/{OLD}/a", 999),
        ("running/score.json", 999),
    ]
    settings = {"worklists_days": 0, "unfinished_days": 0, "external_days": 0}
    assert decided(*listing, **settings, manifests={"images": {"path": "x"}, "features": {"path": "x"}}) == {}


IDS = [lineage.content_id([number]) for number in range(3)]
OTHER = "by-hand"  # no job gives a folder this name
NAMES = [*IDS, f"{IDS[0]}-{IDS[1]}", f"{IDS[0]}-{IDS[2]}", f"{IDS[1]}-{IDS[2]}", OTHER]
ENDS = ["part-0.parquet", "_SUCCESS", "weights.npz", "checkpoint.npz", "below/part-1.parquet"]
SET = f"external/{IDS[0]}/"
KEPT = ("scores/batch_id=x/part-0.parquet", "ledger/m/1/batch_id=x/part-0.parquet", "registry/m/champion/000001.json")
OTHERS = [
    *(f"scoring/{one}/{two}/{end}" for one in (IDS[0], OTHER) for two in IDS[:2] for end in ENDS[:2]),
    *(f"batches/{name}/{end}" for name in IDS[:2] for end in ("pictures/a.jpg", "batch.json", "worklist.html")),
    *(f"reports/search/{name}/{end}" for name in ("symmetries", IDS[0]) for end in ("manifest.json", f"{IDS[0]}/a")),
    *(f"models/exported/{name}.ncnn" for name in (*IDS, OTHER)),
    *(f"{top}_ingest-0a1b2c3d/a" for top in ("", SET)),
    *KEPT,
]


def some(values, **limits):
    return st.lists(st.sampled_from(values), unique=True, **limits)


@st.composite
def warehouses(draw):
    paths, manifests = set(draw(some(OTHERS))), {}
    for place, (of, key) in retention.NAMED.items():
        for top in ["", SET] if of == "images" else [""]:
            names = draw(some(NAMES, max_size=3))
            for name in names:
                paths |= {f"{top}{place}/{name}/{end}" for end in draw(some(ENDS, min_size=1, max_size=2))}
            if place == of and draw(st.booleans()):
                name = draw(st.sampled_from(names or NAMES))
                manifests[top + of] = {"id": name.partition("-")[0], key: name}
                paths.add(f"{top}{of}/manifest.json")
            elif place == "decoded" and top + of in manifests and draw(st.booleans()):
                manifests[top + of][key] = draw(st.sampled_from(names or NAMES))
    ages = {place: draw(st.integers(0, 99)) for place in sorted({path.partition("/")[0] for path in paths})}
    listing = [File(p, 1, NOW - (ages[p.partition("/")[0]] + draw(st.integers(-1, 1))) * DAY) for p in sorted(paths)]
    datasets, reports, exported = (frozenset(draw(some(IDS, max_size=1))) for _ in range(3))
    needed = References(manifests, datasets, reports, frozenset(f"models/exported/{one}.ncnn" for one in exported))
    days = st.one_of(st.none(), st.integers(0, 99))
    chosen = config.Prune(unfinished_days=draw(st.integers(0, 99)), worklists_days=draw(days), external_days=draw(days))
    return listing, needed, chosen


def named(place, facts):
    """The folders of a manifest."""
    top = place.removesuffix("images") if place.startswith("external/") else ""
    own = place.removeprefix(top)
    return {f"{top}{where}/{facts[key]}/" for where, (of, key) in retention.NAMED.items() if of == own and key in facts}


@given(warehouses(), st.randoms(use_true_random=False))
@examples(0.4)
def test_manifests_never_name_removed_files_and_registered_files_stay(warehouse, order):
    listing, needed, chosen = warehouse
    before = {file.path for file in listing}
    there, complete = set(before), {}
    for place, facts in needed.manifests.items():
        complete[place] = {path for path in before if path.startswith(tuple(named(place, facts)))}
    for item in retention.decide(listing, needed, chosen, NOW):
        going = [sorted(one for one in there if one == path or one.startswith(f"{path}/")) for path in item.paths]
        for files in going:
            order.shuffle(files)  # of those in a folder any may be the first
            for file in files:
                there.discard(file)
                for place, own in complete.items():
                    assert f"{place}/manifest.json" not in there or own <= there
        assert len({file for files in going for file in files}) == item.files == item.size
    gone = before - there
    kept = [r"(?!external|batches|scoring)[^_].*/by-hand/", r"batches/[^/]+/(batch\.json|worklist\.html)"]
    kept += [r"external/.*/reports", *(f"reports/{one}/" for one in needed.reports)]
    kept += [f"images/{one}-" for one in needed.datasets - {needed.manifests.get("images", {}).get("id")}]
    assert not gone & (needed.exported | set(KEPT))
    assert not [path for path in gone if re.match("|".join(kept), path)]
