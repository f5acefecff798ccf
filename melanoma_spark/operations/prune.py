"""Tells what of a warehouse nobody needs any more, and with prune.apply=true removes it.

What users are told of it is in `jobs/prune.py`, the text of --help.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from melanoma_spark import config, logs, tracking
from melanoma_spark.errors import ClusterError, DataError
from melanoma_spark.images import hashes
from melanoma_spark.models import engines
from melanoma_spark.operations import retention
from melanoma_spark.registry import alias_history
from melanoma_spark.runner.context import StageContext, Summary
from melanoma_spark.storage import files, lease, manifests

# The leases of all jobs that write, in the order in which a pipeline takes them.
JOBS = ("pipeline", "ingest", "featurize", "train_head", "finetune", "evaluate", "register", "score", "search")


def prune(context: StageContext) -> Summary:
    settings = context.settings
    warehouse, chosen = context.warehouse, settings.prune
    if not files.exists(warehouse):
        raise DataError(f"{warehouse} is not there; name a warehouse by warehouse=URL")
    try:
        with at_rest(warehouse, settings) as still_at_rest:
            listing = listed(warehouse)
            found = retention.decide(listing, needed(settings, warehouse, listing), chosen, time.time())
            tell(warehouse, found, still_at_rest)
            if still_at_rest:
                still_at_rest()
                for place in retention.PLACES:  # who was killed while it removed a folder may have left it, empty
                    files.remove_empty_folders(files.join(warehouse, place))
    except OSError as error:
        raise ClusterError(f"{warehouse}: {files.reason(error)}; mend that and run prune again") from None
    if chosen.worklists_days is None and any(file.path.startswith("batches/") for file in listing):
        logs.result("pictures of worklists stay, whatever their age: prune.worklists_days is not set")
    if not found:
        return Summary(f"nothing may go of the {len(listing):,} files that were looked at")
    if chosen.apply:
        return Summary(f"{retention.told(found)} removed")
    words = [word for word in context.argv if not word.startswith("prune.apply=")]
    again = shlex.join(["melanoma-spark", "prune", *words, "prune.apply=true"])
    return Summary(f"{retention.told(found)} may go, nothing was removed; to remove them: {again}")


@contextmanager
def at_rest(warehouse: str, settings: config.Settings) -> Iterator[Callable[[], None] | None]:
    """No job is at work, and where prune.apply says so none starts. Who only looks writes nothing and is given None."""
    if settings.prune.apply:
        with lease.block_jobs(warehouse, JOBS, "prune", settings.wait) as still_at_rest:
            yield still_at_rest
    else:
        lease.check_idle(warehouse)
        yield None


def listed(warehouse: str) -> list[retention.File]:
    """The files of the warehouse about which there is something to decide."""
    now, found = time.time(), []
    for place in files.list_names(warehouse, "*"):
        if place in retention.PLACES or place.startswith(retention.INGEST):
            for path, size, changed in files.walk(files.join(warehouse, place)):
                when = now if changed is None else changed.timestamp()
                found.append(retention.File(f"{place}/{path}", size, when))
    return found


def needed(settings: config.Settings, warehouse: str, listing: list[retention.File]) -> retention.Needed:
    """What manifests name, and registered versions. Raises `DataError` where either cannot be told for sure."""
    places = retention.manifests_in(listing)
    named = {place: manifests.read_values(files.join(warehouse, place, manifests.FILE)) or {} for place in places}
    versions, evidence = registered(settings, warehouse)
    tags = [version.tags for version in versions]
    sums = {found.get(engines.TAG.format(engine=engine)) for found in tags for engine in engines.ENGINES}
    kept = [file.path for file in listing if file.path.startswith("models/exported/")]
    return retention.Needed(
        named,
        datasets=frozenset(found["dataset_id"] for found in tags if "dataset_id" in found),
        reports=frozenset(found["report_id"] for found in [*tags, *evidence] if "report_id" in found),
        exported=frozenset(p for p in kept if hashes.sha256(files.read_bytes(files.join(warehouse, p))) in sums),
    )


def registered(settings: config.Settings, warehouse: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """All registered versions, and the evidence of all moves of aliases. Raises `DataError` where MLflow is another."""
    uri = tracking.tracking_uri(settings.mlflow, warehouse)
    versions = []
    if settings.mlflow.tracking_uri or files.exists(files.join(warehouse, "mlflow.db")):  # else it would be made now
        versions = tracking.Tracker(settings.mlflow, warehouse).versions()
    known, evidence = {f"{version.name} version {version.version}" for version in versions}, []
    for name, alias in alias_history.list_aliases(warehouse):
        moves = alias_history.read_moves(warehouse, name, alias)
        last = f"{name} version {moves[-1]['to']}" if moves else ""
        if moves and last not in known:
            raise DataError(
                f"{last} is {alias} by registry/, and MLflow at {uri} does not know it, so what registered versions "
                "need cannot be told; name the server that has it by mlflow.tracking_uri=URL"
            )
        evidence += [move["evidence"] for move in moves]
    return versions, evidence


def tell(warehouse: str, found: list[retention.Item], still_at_rest: Callable[[], None] | None) -> None:
    """A line for each item; where `still_at_rest` is given, once the item is removed."""
    width = max([len(item.what) for item in found], default=0)
    if found and not logs.in_json():
        logs.result(f"{'what':{width}}  {'files':>7}  {'MB':>10}  why")
    looked = 0.0
    for item in found:
        if still_at_rest:
            if time.time() - looked > lease.BEAT:  # a job that stood still has lost its leases to others
                still_at_rest()
                looked = time.time()
            for path in item.paths:
                files.remove(files.join(warehouse, path))
        line = f"{item.what:{width}}  {item.files:7,}  {retention.megabytes(item.size):>10}  {item.why}"
        removed = still_at_rest is not None
        logs.result(line, "item", path=item.what, files=item.files, bytes=item.size, why=item.why, removed=removed)
