"""All parts of a plan made one store in object storage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from featurestore.manage.publish import Publisher, scratch_store
from featurestore.parts.merge import MergeReport, merge_parts, remove_parts
from featurestore.parts.plan import load_plan

Progress = Callable[[int], object]


def publish_parts(
    folder: Path,
    url: str,
    *,
    scratch: Path | None = None,
    remove: bool = False,
    progress: Progress = lambda n_bytes: None,
) -> MergeReport:
    """Merge a plan's parts, and put the store at a URL; both go on where they stopped.

    scratch : where the store is made; None is the plan's own folder, where shards are links.
    remove : the parts, once the store is published.

    Raises what `merge_parts` and `Publisher` raise.
    """
    plan = load_plan(folder)
    publisher = Publisher(url)
    with scratch_store(scratch or folder, url, plan.spec.to_json(), str(plan.n_images)) as place:
        # in a folder of its own: merging puts the backbone's weights beside the store
        inner = place / "features.zarr"
        inner.parent.mkdir(exist_ok=True)
        report = merge_parts(folder, inner, progress=lambda n_bytes: progress(n_bytes // 2))
        publisher.publish(inner, lambda n_bytes: progress(n_bytes // 2))
    if remove:
        remove_parts(plan)
    return replace(report, path=publisher.url, parts=None if remove else report.parts)
