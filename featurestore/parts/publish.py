"""All parts of a plan made one store in object storage."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from featurestore.disk.urls import is_elsewhere, published_url
from featurestore.errors import UsageError
from featurestore.manage.publish import ROOT, Publisher, PutShard, scratch_store
from featurestore.parts.build import part_folder
from featurestore.parts.merge import (
    MergeReport,
    check_there,
    is_merged,
    merge_parts,
    missing_parts,
    remove_parts,
    report_of,
)
from featurestore.parts.plan import PartPlan
from featurestore.parts.put import PUT, shards_put
from featurestore.read.sources.object_client import NotThere, ObjectClient

Progress = Callable[[int], object]


def publish_parts(
    plan: PartPlan,
    url: str,
    *,
    scratch: Path | None = None,
    remove: bool = False,
    progress: Progress = lambda n_bytes: None,
) -> MergeReport:
    """Merge a plan's parts, and put the store at a URL; both go on where they stopped.

    Parts of a plan that was made for this URL have put their shards; the rest is put here, and
    makes it a store.

    scratch : where the store is made; None is the plan's own folder, where shards are links.
    remove : the parts, once the store is published.

    Raises what `merge_parts` and `Publisher` raise, UsageError for another URL than the plan's.
    """
    start = time.monotonic()
    url = published_url(url)
    check_place(plan, url)
    # with all parts at hand it is sealed once more, which removes what a run that was killed left
    is_told = plan.url and missing_parts(plan) and is_published(plan.url)
    if is_told and is_merged(plan, plan.url):
        report = report_of(plan, plan.url, start)
    elif plan.url:
        report = _seal(plan, scratch or plan.folder, progress)
    else:
        report = _publish(plan, url, scratch or plan.folder, progress)
    if remove:
        remove_parts(plan)
    return replace(report, parts=None if remove else report.parts)


def check_place(plan: PartPlan, out: Path | str) -> None:
    """UsageError where the parts of a plan cannot become a store at this path or URL."""
    if plan.url and not (is_elsewhere(out) and published_url(out) == plan.url):
        raise UsageError(
            f"--out {out}: the parts of {plan.folder} are put at {plan.url}; leave --out out, and "
            f"copy what is published there by `biomass store convert {plan.url} {out}`"
        )


def is_published(url: str) -> bool:
    """Whether a store is there, and all of it."""
    try:
        ObjectClient(url).facts(ROOT)
    except NotThere:
        return False
    return True


def _publish(plan: PartPlan, url: str, scratch: Path, progress: Progress) -> MergeReport:
    """Merge and publish parts that have put nothing."""

    def half(n_bytes: int) -> None:  # of the progress: merging, and then putting what was merged
        progress(n_bytes // 2)

    publisher = Publisher(url)
    with scratch_store(scratch, url, plan.spec.to_json(), str(plan.n_images)) as place:
        report = merge_parts(plan, _inner(place), progress=half)
        publisher.publish(report.path, half)
    return replace(report, path=publisher.url)


def _seal(plan: PartPlan, scratch: Path, progress: Progress) -> MergeReport:
    """Publish everything but the shards, which the parts have put."""
    check_there(plan)
    told = [(part_folder(plan, part) / PUT).read_bytes() for part in range(plan.n_parts)]
    shards: dict[str, PutShard] = {}
    for each in told:
        shards |= shards_put(each)
    publisher = Publisher(plan.url)
    # of these very attempts: a part that was removed and built anew has other small arrays
    attempts = hashlib.sha256(b"".join(told)).hexdigest()
    with scratch_store(scratch, plan.url, plan.spec.to_json(), attempts) as place:
        report = merge_parts(plan, _inner(place), progress=progress)
        n_new = publisher.publish(report.path, put=shards)
    if not n_new:
        return replace(report, path=plan.url, n_copied=0)
    return replace(report, path=plan.url, n_put=len(shards))


def _inner(place: Path) -> Path:
    """In a folder of its own: merging puts the backbone's weights beside the store."""
    place.mkdir(exist_ok=True)
    return place / "features.zarr"
