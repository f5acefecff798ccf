"""Lists the unreferenced files of a warehouse, and with `prune.apply=true` removes them.

`jobs/prune.py` has the text for users.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
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
    """List, or remove, what is not referenced.

    Raises:
        BusyError: A job runs on the warehouse.
        ClusterError: The warehouse cannot be read or written.
        DataError: There is no warehouse, or MLflow lacks versions that have an alias.
    """
    settings = context.settings
    warehouse, chosen = context.warehouse, settings.prune
    if not files.exists(warehouse):
        raise DataError(f"{warehouse} is not there; name a warehouse by warehouse=URL")
    try:
        with idle_warehouse(warehouse, settings) as check_idle:
            listing = list_files(warehouse)
            items = retention.decide(listing, find_references(settings, warehouse, listing), chosen, time.time())
            report(warehouse, items, check_idle)
            if check_idle:
                check_idle()
                for place in retention.PLACES:  # a prune that was killed may have left empty folders
                    files.remove_empty_folders(files.join(warehouse, place))
    except OSError as error:
        raise ClusterError(f"{warehouse}: {files.reason(error)}; fix that and run prune again") from None
    if chosen.worklists_days is None and any(file.path.startswith("batches/") for file in listing):
        logs.result("pictures of worklists stay, whatever their age: prune.worklists_days is not set")
    if not items:
        return Summary(f"all of the {len(listing):,} files that were checked are needed")
    if chosen.apply:
        return Summary(f"{retention.describe(items)} removed")
    words = [word for word in context.argv if not word.startswith("prune.apply=")]
    again = shlex.join(["melanoma-spark", "prune", *words, "prune.apply=true"])
    return Summary(f"{retention.describe(items)} can be removed, nothing was removed; to remove them: {again}")


@contextmanager
def idle_warehouse(warehouse: str, settings: config.Settings) -> Iterator[Callable[[], None] | None]:
    """Check that no job runs; with `prune.apply` none can start in the block.

    Yields:
        With `prune.apply`, a function that raises if this job has lost its leases; else None, and nothing is written.
    """
    if settings.prune.apply:
        with lease.block_jobs(warehouse, JOBS, "prune", settings.wait) as check_idle:
            yield check_idle
    else:
        lease.check_idle(warehouse)
        yield None


def list_files(warehouse: str) -> list[retention.File]:
    """Return the files of the places that `retention` decides about."""
    now, listing = time.time(), []
    for place in files.list_names(warehouse, "*"):
        if place in retention.PLACES or place.startswith(retention.INGEST):
            for path, size, changed in files.walk(files.join(warehouse, place)):
                when = now if changed is None else changed.timestamp()
                listing.append(retention.File(f"{place}/{path}", size, when))
    return listing


def find_references(settings: config.Settings, warehouse: str, listing: list[retention.File]) -> retention.References:
    """Return what manifests and registered versions name. Raise `DataError` if that is not certain."""
    places = retention.manifests_in(listing)
    named = {place: manifests.read_values(files.join(warehouse, place, manifests.FILE)) or {} for place in places}
    tags, evidence = registered_versions(settings, warehouse)
    sums = {values.get(engines.TAG.format(engine=engine)) for values in tags for engine in engines.ENGINES}
    exported = [file.path for file in listing if file.path.startswith("models/exported/")]
    return retention.References(
        named,
        datasets=frozenset(values["dataset_id"] for values in tags if "dataset_id" in values),
        reports=frozenset(values["report_id"] for values in [*tags, *evidence] if "report_id" in values),
        exported=frozenset(p for p in exported if hashes.sha256(files.read_bytes(files.join(warehouse, p))) in sums),
    )


def registered_versions(
    settings: config.Settings, warehouse: str
) -> tuple[list[Mapping[str, str]], list[Mapping[str, Any]]]:
    """Return the tags of all registered versions, and the evidence of all moves of aliases.

    Raises:
        DataError: MLflow lacks a version that has an alias, so it is not the one that registered it.
    """
    uri = tracking.tracking_uri(settings.mlflow, warehouse)
    versions = []
    if settings.mlflow.tracking_uri or files.exists(files.join(warehouse, "mlflow.db")):  # MLflow would create it
        versions = tracking.Tracker(settings.mlflow, warehouse).versions()
    known = {f"{version.name} version {version.version}" for version in versions}
    evidence: list[Mapping[str, Any]] = []
    for history in alias_history.list_histories(warehouse):
        moves = history.read()
        last = f"{history.name} version {moves[-1]['to']}" if moves else ""
        if moves and last not in known:
            raise DataError(
                f"{last} is {history.alias} by registry/, but MLflow at {uri} does not have it, so what registered "
                "versions need is unknown; name the server that has it by mlflow.tracking_uri=URL"
            )
        evidence += [move["evidence"] for move in moves]
    return [version.tags for version in versions], evidence


def report(warehouse: str, items: list[retention.Item], check_idle: Callable[[], None] | None) -> None:
    """Log a line for each item; with `check_idle` remove it first."""
    width = max([len(item.what) for item in items], default=0)
    if items and not logs.in_json():
        logs.result(f"{'what':{width}}  {'files':>7}  {'MB':>10}  why")
    checked = 0.0
    for item in items:
        if check_idle:
            if time.time() - checked > lease.BEAT:  # a job that paused may have lost its leases
                check_idle()
                checked = time.time()
            for path in item.paths:
                files.remove(files.join(warehouse, path))
        line = f"{item.what:{width}}  {item.files:7,}  {retention.megabytes(item.size):>10}  {item.why}"
        removed = check_idle is not None
        logs.result(line, "item", path=item.what, files=item.files, bytes=item.size, why=item.why, removed=removed)
