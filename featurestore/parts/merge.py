"""All parts of a plan made one store, which has the bytes of a build in one piece.

Shards of patches become files of the new store by a link, not by a copy. What cannot be linked
(HDF5, another file system) is copied row by row, each one checked.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from featurestore.backbone.weights import saved_weights_path
from featurestore.counts import count_of
from featurestore.disk import durable
from featurestore.disk.durations import duration
from featurestore.disk.interrupts import check_interrupt
from featurestore.errors import InputError, MismatchError, StoreDamaged, list_some
from featurestore.format.choose import check_suffix, create_store
from featurestore.format.layout import Layout
from featurestore.manage.transfer import checked_rows
from featurestore.parts.build import finished_part, part_folder
from featurestore.parts.plan import STORE, PartPlan
from featurestore.parts.put import ATTEMPTS, RECORDS, records_of
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
    n_put: int
    """Shards that parts have put into a bucket."""
    seconds: float
    n_bytes: int
    parts: Path | None
    """The parts, if they are still there: they may be removed."""

    def __str__(self) -> str:
        left_out = f" ({self.n_skipped} more were skipped)" if self.n_skipped else ""
        how = "it was whole already"
        if self.n_linked or self.n_copied:
            linked = count_of(self.n_linked, "shard")
            how = f"{linked} linked, {count_of(self.n_copied, 'image')} copied"
        if self.n_put:
            how = f"{self.n_put} shards were there, the rest was put"
        lines = [
            f"{self.path}: {count_of(self.n_images, 'image')}{left_out} of "
            f"{count_of(self.n_parts, 'part')}; {how}, in {duration(self.seconds)}"
        ]
        if self.parts:
            lines.append(f"The parts may be removed, --remove-parts does it: {self.parts}")
        return "\n".join(lines)


def merge_parts(
    plan: PartPlan,
    out: Path,
    *,
    remove: bool = False,
    lock: bool = True,
    progress: Progress = lambda n_bytes: None,
) -> MergeReport:
    """One store of all parts of a plan, the same bytes as `build_store` writes of all images.

    A merge that was killed is begun again, one that copies goes on. One that is finished is told.
    Where parts have put their shards into a bucket, those of the store are empty.

    remove : the parts, once the store is whole.
    lock : False where the caller holds the lock of `out`.

    Raises InputError naming the parts that are missing, MismatchError for a part of another plan
    and where `out` holds something else, StoreDamaged for a part with a damaged image.
    """
    start = time.monotonic()
    check_suffix(out)
    if not out.parent.is_dir():  # else the lock says whether it can be written to
        durable.check_writable(out.parent)
    n_linked = n_copied = 0
    held = durable.locked(out) if lock else nullcontext()
    with held:
        if not (out.exists() and is_merged(plan, out)):
            check_there(plan)
            if plan.url or _can_link(plan, out):
                n_linked, n_copied = _link(plan, out, progress)
            else:
                n_copied = _copy(plan, out, progress)
        _keep_weights(plan, out.parent)
        if remove:
            remove_parts(plan)
        return report_of(plan, out, start, n_linked, n_copied)


def report_of(
    plan: PartPlan,
    out: Path | str,
    start: float,
    n_linked: int = 0,
    n_copied: int = 0,
) -> MergeReport:
    """What became of the parts, once the store is whole; start : of `time.monotonic`."""
    with open_reader(out) as store:
        n_images = len(store.sealed)
    parts = part_folder(plan, 0).parent
    return MergeReport(
        out,
        n_images=n_images,
        n_skipped=plan.n_images - n_images,
        n_parts=plan.n_parts,
        n_linked=n_linked,
        n_copied=n_copied,
        n_put=0,
        seconds=time.monotonic() - start,
        n_bytes=image_bytes(plan.spec) * n_images,
        parts=parts if parts.exists() else None,
    )


def remove_parts(plan: PartPlan) -> None:
    """Remove all parts of a plan, finished or not."""
    parts = part_folder(plan, 0).parent
    removed = plan.folder / ATTEMPTS / "removed"
    if parts.exists():
        # all at once: a part that a kill left half removed would be taken for another plan's
        durable.remove(removed)
        removed.parent.mkdir(exist_ok=True)
        durable.rename(parts, removed)
    for folder in (plan.folder / ATTEMPTS, plan.folder / RECORDS):
        durable.remove(folder)


def is_merged(plan: PartPlan, out: Path | str) -> bool:
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


def missing_parts(plan: PartPlan) -> list[int]:
    """Parts that are not finished; MismatchError for one of another plan."""
    return [part for part in range(plan.n_parts) if finished_part(plan, part) is None]


def check_there(plan: PartPlan) -> None:
    """Errors name the parts that are missing, or one that is of another plan."""
    if missing := missing_parts(plan):
        raise InputError(
            f"{plan.folder}: {len(missing)} of {plan.n_parts} parts are missing: "
            f"{_ranges(missing)}; build each with `biomass store build --from {plan.folder} "
            "--part N`"
        )


@dataclass(frozen=True)
class _Piece:
    """Images of a part that one store has: all of them, if it was not put into a bucket."""

    store: Reader
    first: int
    """Place of the store's first image among all."""
    images: range
    """Positions in the store."""
    sealed: np.ndarray
    """Those of them that have tokens."""


def _pieces(plan: PartPlan) -> Iterator[_Piece]:
    """All parts, in order; one is open at a time. StoreDamaged for one that lacks images."""
    for part, (first, end) in enumerate(pairwise(plan.bounds)):
        folder = part_folder(plan, part)
        stores = [(folder / STORE, range(end - first))]
        if plan.url:
            stores = records_of(plan, part, folder)
        for path, images in stores:
            with open_reader(path) as store:
                yield _Piece(store, first, images, _check_whole(store, images, folder))


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few words, 0-2,7, as `sbatch --array` takes them, too."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)


def _check_whole(store: Reader, images: range, part: Path) -> np.ndarray:
    """Positions of a part's images that are sealed; StoreDamaged unless the others were skipped."""
    sealed = store.sealed[np.isin(store.sealed, images)]
    damaged = sorted(set(images) - set(sealed.tolist()) - set(store.skipped))
    if damaged:
        ids = [store.image_ids[image] for image in damaged]
        raise StoreDamaged(
            f"{store.path}: these images are no longer as they were built; remove {part} and build "
            f"that part again:{list_some(ids)}"
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
            for piece in _pieces(plan):
                _put_small_arrays(layout, piece)
                if plan.url is None and plan.spec.has_patches:
                    linked = _link_shards(layout, piece)
                    n_linked += len(linked)
                    n_copied += _copy_others(store, piece, linked)
                else:
                    n_copied += len(piece.sealed)
                _seal(store, piece.first + piece.sealed)
                progress(len(piece.images) * image_bytes(plan.spec))
                check_interrupt()
    return n_linked, n_copied


def _put_small_arrays(layout: Layout, piece: _Piece) -> None:
    """Everything but patches and seals, as it lies in the part. Rows bring their checksums."""
    at = slice(piece.images.start, piece.images.stop)
    for name, extent in layout.extents.items():
        if name in ("patches", "seal", "metadata_crc32c"):
            continue
        path, offset, _ = extent.locate(piece.first + at.start)
        with open(path, "r+b", buffering=0) as file:
            durable.pwrite(file.fileno(), [piece.store.array(name)[at]], offset)


def _link_shards(layout: Layout, piece: _Piece) -> list[range]:
    """Give shards that the part has just so to the new store; the part's images in them."""
    ours, theirs = layout.extents["patches"], piece.store.layout.extents["patches"]
    linked = []
    for number, path in enumerate(theirs.paths):
        file, within = ours.locate_image(piece.first + theirs.images_in(number).start)
        same_grid = ours.rows_per_file == theirs.rows_per_file and within == 0
        # a last one that is short may lie in the middle here
        if same_grid and ours.rows_in(file) == theirs.rows_in(number):
            ours.paths[file].unlink()
            os.link(path, ours.paths[file])
            linked.append(theirs.images_in(number))
    return linked


def _copy_others(store: Reader, piece: _Piece, linked: Sequence[range]) -> int:
    """Copy sealed images that lie in no shard that was linked; how many."""
    is_other_N = np.zeros(piece.store.n_images, bool)
    is_other_N[piece.sealed] = True
    for images in linked:
        is_other_N[images.start : images.stop] = False
    others = np.flatnonzero(is_other_N).tolist()
    writer = StoreWriter(store.layout, store)
    for image in others:
        writer.put(piece.first + image, checked_rows(piece.store, image))
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
        for piece in _pieces(plan):
            sealed = set(piece.sealed.tolist())
            status = piece.store.catalog["status"]
            skipped = {}
            for image in piece.images:
                place = piece.first + image
                if image not in sealed:
                    skipped[place] = status[image]
                elif place in pending:
                    writer.put(place, checked_rows(piece.store, image))
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
