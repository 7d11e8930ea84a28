"""All parts of a plan made one store, which has the bytes of a build in one piece.

Shards of patches become files of the new store by a link, not by a copy. What cannot be linked
(HDF5, another file system) is copied row by row, each one checked.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.backbone.weights import saved_weights_path
from featurestore.disk import durable
from featurestore.disk.durations import duration
from featurestore.disk.interrupts import check_interrupt
from featurestore.errors import InputError, MismatchError, StoreDamaged, list_some
from featurestore.format.choose import check_suffix, create_store
from featurestore.format.layout import Layout
from featurestore.manage.transfer import checked_rows
from featurestore.parts.build import finished_part, part_folder
from featurestore.parts.plan import STORE, PartPlan, load_plan
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader
from featurestore.read.sources.mapped import Mapped
from featurestore.write.writer import StoreWriter, image_bytes, open_writer

Progress = Callable[[int], object]
AT_ONCE = 4096
"""Images whose seals are computed at once."""


@dataclass(frozen=True)
class MergeReport:
    """What became of a plan's parts."""

    path: Path | str
    n_images: int
    """That have tokens."""
    n_skipped: int
    n_parts: int
    n_linked: int
    """Shards."""
    n_copied: int
    """Images whose patches, if they have some, were copied."""
    seconds: float
    n_bytes: int
    parts: Path | None
    """The parts, if they are still there: they may be removed."""

    def __str__(self) -> str:
        left_out = f" ({self.n_skipped} more were skipped)" if self.n_skipped else ""
        how = "it was whole already"
        if self.n_linked or self.n_copied:
            how = f"{self.n_linked} shards linked, {self.n_copied} images copied"
        lines = [
            f"{self.path}: {self.n_images} images{left_out} of {self.n_parts} parts; {how}, "
            f"in {duration(self.seconds)}"
        ]
        if self.parts:
            lines.append(f"The parts may be removed, --remove-parts does it: {self.parts}")
        return "\n".join(lines)


def merge_parts(
    folder: Path,
    out: Path,
    *,
    remove: bool = False,
    lock: bool = True,
    progress: Progress = lambda n_bytes: None,
) -> MergeReport:
    """One store of all parts of a plan, the same bytes as `build_store` writes of all images.

    A merge that was killed is begun again, one that copies goes on. One that is finished is told.

    remove : the parts, once the store is whole.
    lock : False where the caller holds the lock of `out`.

    Raises InputError naming the parts that are missing, MismatchError for a part of another plan
    and where `out` holds something else, StoreDamaged for a part with a damaged image.
    """
    start = time.monotonic()
    plan = load_plan(folder)
    parts = part_folder(plan, 0).parent
    check_suffix(out)
    if not out.parent.is_dir():  # else the lock says whether it can be written to
        durable.check_writable(out.parent)
    n_linked = n_copied = 0
    held = durable.locked(out) if lock else nullcontext()
    with held:
        if not (out.exists() and is_merged(plan, out)):
            _check_there(plan)
            if _can_link(plan, out):
                n_linked, n_copied = _link(plan, out, progress)
            else:
                n_copied = _copy(plan, out, progress)
        _keep_weights(plan, out.parent)
        with open_reader(out) as store:
            n_images = len(store.sealed)
        if remove:
            remove_parts(plan)
    return MergeReport(
        out,
        n_images=n_images,
        n_skipped=plan.n_images - n_images,
        n_parts=plan.n_parts,
        n_linked=n_linked,
        n_copied=n_copied,
        seconds=time.monotonic() - start,
        n_bytes=image_bytes(plan.spec) * n_images,
        parts=parts if parts.exists() else None,
    )


def remove_parts(plan: PartPlan) -> None:
    """Remove all parts of a plan, finished or not."""
    for folder in (part_folder(plan, 0).parent, plan.folder / "attempts"):
        durable.remove(folder)


def is_merged(plan: PartPlan, out: Path) -> bool:
    """Whether a store holds all images of a plan; MismatchError if it is no store of that plan."""
    with open_reader(out) as store:
        n_images = plan.n_images
        ids = plan.frame(0, n_images)["image_id"].tolist()
        if store.spec != plan.spec or store.image_ids != ids:
            raise MismatchError(
                f"{out}: is there, and is not of the plan {plan.folder}; choose another name or "
                "remove it"
            )
        return len(store.sealed) + len(store.skipped) == n_images


def _check_there(plan: PartPlan) -> None:
    """Errors name the parts that are missing, or one that is of another plan."""
    missing = [part for part in range(plan.n_parts) if finished_part(plan, part) is None]
    if missing:
        raise InputError(
            f"{plan.folder}: {len(missing)} of {plan.n_parts} parts are missing: "
            f"{_ranges(missing)}; build each with `biomass store build --from {plan.folder} "
            "--part N`"
        )


def _each_part(plan: PartPlan) -> Iterator[tuple[int, Reader]]:
    """Every part with the place of its first image; one is open at a time."""
    for part, first in enumerate(plan.bounds[:-1]):
        with open_reader(part_folder(plan, part) / STORE) as reader:
            yield first, reader


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few words, 0-2,7, as `sbatch --array` takes them, too."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)


def _check_whole(part: Reader) -> np.ndarray:
    """Positions of a part's sealed images; StoreDamaged unless the others were skipped."""
    sealed = part.sealed
    if len(sealed) + len(part.skipped) < part.n_images:
        damaged = sorted(set(range(part.n_images)) - set(sealed.tolist()) - set(part.skipped))
        ids = [part.image_ids[image] for image in damaged]
        raise StoreDamaged(
            f"{part.path}: these images are no longer as they were built; remove "
            f"{part.path.parent} and build that part again:{list_some(ids)}"
        )
    return sealed


def _can_link(plan: PartPlan, out: Path) -> bool:
    """Whether a new store can be put together from the parts' files."""
    if out.exists():  # a copy has begun
        return False
    if not plan.spec.has_patches:
        return True
    if out.suffix != ".zarr":
        return False
    with open_reader(part_folder(plan, 0) / STORE) as part:
        shard = part.layout.extents["patches"].paths[0]
    tried = out.with_name(f".{out.stem}.linked")
    durable.remove(tried)
    try:
        os.link(shard, tried)
    except OSError:
        return False
    durable.remove(tried)
    return True


def _link(plan: PartPlan, out: Path, progress: Progress) -> tuple[int, int]:
    """Lay the store out, fill it part by part, and give it its name."""
    n_linked = n_copied = 0
    hidden = out.with_name(f".{out.stem}.unfinished{out.suffix}")
    n = plan.n_images + plan.config.reserve
    with durable.appears_whole(out, hidden):
        layout = create_store(hidden, plan.spec, n, plan.shard_images)
        with Reader(Mapped(layout)) as store:
            for first, part in _each_part(plan):
                sealed = _check_whole(part)
                _put_small_arrays(layout, first, part)
                if plan.spec.has_patches:
                    linked = _link_shards(layout, first, part)
                    n_linked += len(linked)
                    n_copied += _copy_others(store, first, part, sealed, linked)
                else:
                    n_copied += len(sealed)
                _seal(store, first + sealed)
                progress(part.n_images * image_bytes(plan.spec))
                check_interrupt()
    return n_linked, n_copied


def _put_small_arrays(layout: Layout, first: int, part: Reader) -> None:
    """Everything but patches and seals, as it lies in the part. Rows bring their checksums."""
    for name, extent in layout.extents.items():
        if name in ("patches", "seal", "metadata_crc32c"):
            continue
        path, offset, _ = extent.locate(first)
        with open(path, "r+b", buffering=0) as file:
            durable.pwrite(file.fileno(), [part.array(name)[: part.n_images]], offset)


def _link_shards(layout: Layout, first: int, part: Reader) -> list[range]:
    """Give shards that the part has just so to the new store; the part's images in them."""
    ours, theirs = layout.extents["patches"], part.layout.extents["patches"]
    linked = []
    for number, path in enumerate(theirs.paths):
        file, within = ours.locate_image(first + theirs.images_in(number).start)
        same_grid = ours.rows_per_file == theirs.rows_per_file and within == 0
        # a last one that is short may lie in the middle here
        if same_grid and ours.rows_in(file) == theirs.rows_in(number):
            ours.paths[file].unlink()
            os.link(path, ours.paths[file])
            linked.append(theirs.images_in(number))
    return linked


def _copy_others(
    store: Reader, first: int, part: Reader, sealed: np.ndarray, linked: Sequence[range]
) -> int:
    """Copy sealed images that lie in no shard that was linked; how many."""
    is_other_N = np.zeros(part.n_images, bool)
    is_other_N[sealed] = True
    for images in linked:
        is_other_N[images.start : images.stop] = False
    others = np.flatnonzero(is_other_N).tolist()
    writer = StoreWriter(store.layout, store)
    for image in others:
        writer.put(first + image, checked_rows(part, image))
        writer.commit_if_due()
    writer.commit()
    return len(others)


def _seal(store: Reader, images: np.ndarray) -> None:
    """Seals of these images, which hold an image's place and so are not the part's."""
    path, _, _ = store.layout.extents["seal"].locate(0)
    with open(path, "r+b", buffering=0) as file:
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            begin, end = int(some[0]), int(some[-1]) + 1
            seal_N = np.zeros(end - begin, "<u4")
            seal_N[some - begin] = store.seals.expected(begin, end)[some - begin]
            durable.pwrite(file.fileno(), [seal_N], store.layout.extents["seal"].locate(begin)[1])


def _copy(plan: PartPlan, out: Path, progress: Progress) -> int:
    """Put every image that the store lacks; how many."""
    frame = plan.frame(0, plan.n_images)
    if not out.exists():
        durable.check_free(out.parent, image_bytes(plan.spec) * plan.n_images)
    n_copied = 0
    with open_writer(
        out, plan.spec, frame, plan.config.reserve, lock=False, shard_images=plan.shard_images
    ) as writer:
        pending = set(writer.pending())
        for first, part in _each_part(plan):
            sealed = set(_check_whole(part).tolist())
            status = part.catalog["status"]
            skipped = {}
            for image in range(part.n_images):
                if image not in sealed:
                    skipped[first + image] = status[image]
                elif first + image in pending:
                    writer.put(first + image, checked_rows(part, image))
                    writer.commit_if_due()
                    n_copied += 1
                progress(image_bytes(plan.spec))
                check_interrupt()
            writer.skip(skipped)
    return n_copied


def _keep_weights(plan: PartPlan, folder: Path) -> None:
    """The backbone's weights, where the plan kept them, beside the store too."""
    name = saved_weights_path(Path(), plan.spec.tokens.weights_sha256)
    if (plan.folder / name).exists():
        durable.link_or_copy(plan.folder / name, folder / name)
