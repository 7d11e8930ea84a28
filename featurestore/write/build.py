"""The one building loop: photographs + views + backbone -> store.

Three things go on at once: threads decode the next photographs, the backbone works on this one, a
thread writes the last one. Tokens are held of two photographs, or of as many as a batch has.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone.backbone import Backbone
from featurestore.counts import count_of, for_count
from featurestore.disk import durable
from featurestore.disk.durations import duration
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.messages import new_bar
from featurestore.disk.threads import Pool, usable_threads
from featurestore.disk.usable import check_memory
from featurestore.errors import InputError, list_some
from featurestore.format.spec import POOLED, ROUNDING, STATS, StoreSpec
from featurestore.photos.decode import (
    Unusable,
    ahead_for,
    decode_ahead,
)
from featurestore.photos.sites import copies_told, count_sites
from featurestore.read.open import open_reader
from featurestore.write.config import BuildConfig
from featurestore.write.encoding import Encoding, Image, n_images_in_hand
from featurestore.write.prepare import prepare_build
from featurestore.write.writer import ImageRows, StoreWriter, image_bytes, open_writer

if TYPE_CHECKING:
    from featurestore.disk.bars import Bar
    from featurestore.disk.progress_lines import ProgressLines

Known = Callable[[int, str], dict[int, tuple]]
"""From an image and the sha256 of its photograph: rows that need no backbone, by view."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    path: Path | str
    n_images: int
    n_sites: int | None
    """None where the catalog does not tell State and date of every image."""
    n_built: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        rate = f", {self.n_built / self.seconds:.2f} images/s" if self.n_built else ""
        sites = f"; {count_of(self.n_sites, 'site')}" if self.n_sites else ""
        return (
            f"{self.path}: {count_of(self.n_images, 'image')} sealed, {self.n_built} of them now "
            f"in {duration(self.seconds)}{rate}, {self.n_bytes / 1e9:.3g} GB{sites}"
        )


@usable_threads()
def build_store(config: BuildConfig, progress: bool = True) -> BuildReport:
    """Turn the photographs of a data folder into a store; goes on where an earlier build stopped.

    All that can be found wrong without the backbone is found first: CSV, missing or damaged
    photographs, aspects, the place to write to. InputError, MismatchError (the store there holds
    other tokens) or LockedError (another builder).
    """
    start = time.monotonic()
    prepared = prepare_build(config)
    # stores are sparse: a disk that is too small would be found out after hours
    if config.check_space:
        need = prepared.n_pending * image_bytes(prepared.spec)
        advice = "fewer views, or go on all the same with --no-check-space"
        durable.check_free(config.out.parent, need, advice)
    check_buffers(prepared.backbone, prepared.spec, prepared.n_pending)

    with open_writer(
        config.out,
        prepared.spec,
        prepared.frame,
        config.reserve,
        config.wait,
        config.lock,
    ) as writer:
        _warn_of_other_precision(writer.spec, prepared.spec)
        # places are the store's: it may have had other images, in another order, before these
        path_of = dict(zip(prepared.frame["image_id"], prepared.paths, strict=True))
        image_ids = writer.image_ids
        images = {image: path_of[image_ids[image]] for image in writer.pending()}

        unusable = prepared.unusable
        skipped = {image: unusable[path] for image, path in images.items() if path in unusable}
        writer.skip({image: each.status for image, each in skipped.items()})

        todo = {image: path for image, path in images.items() if image not in skipped}
        bar = images_bar("store build", len(image_ids), len(todo), progress)
        build_images(prepared.backbone, writer, todo, bar, skipped if config.skip_missing else None)

    reasons = [each.why for each in skipped.values()]
    return finish_build(config.out, len(images) - len(skipped), reasons, start)


def images_bar(title: str, n: int, n_todo: int, progress: bool) -> "Bar | ProgressLines":
    return new_bar(title, n, "image", progress, initial=n - n_todo)


def finish_build(
    path: Path | str,
    n_built: int,
    skipped: list[str],
    start: float,
) -> BuildReport:
    """What a build did, and warnings of what a person should know about the store."""
    warn_of_skipped(skipped)
    with open_reader(path) as store:
        sealed = store.catalog.iloc[store.sealed]
        if same := copies_told(sealed["image_id"], sealed["sha256"]):
            warnings.warn(same, stacklevel=3)
        return BuildReport(
            path,
            n_images=len(sealed),
            n_sites=count_sites(sealed),
            n_built=n_built,
            seconds=time.monotonic() - start,
            n_bytes=image_bytes(store.spec) * len(sealed),
        )


def warn_of_skipped(reasons: list[str]) -> None:
    if reasons:
        skipped = count_of(len(reasons), "photograph")
        have = for_count(len(reasons), "its image has", "their images have")
        warnings.warn(f"{skipped} skipped; {have} no tokens:{list_some(reasons)}", stacklevel=4)


def check_buffers(backbone: Backbone, spec: StoreSpec, n_images: int) -> None:
    """MemoryShortError if memory cannot hold the tokens that a build holds at once."""
    n_held = min(n_images_in_hand(backbone), n_images)
    what = f"holding the tokens of {n_held} photographs, as a build does,"
    advice = (
        "free some memory, raise the limit, or choose fewer views, smaller images or a smaller "
        "--batch"
    )
    check_memory(n_held * image_bytes(spec), what, advice)


def build_images(
    backbone: Backbone,
    writer: StoreWriter,
    images: dict[int, Path],
    bar: "Bar | ProgressLines",
    skipped: dict[int, Unusable] | None = None,
    known: Known | None = None,
    sealed: Collection[int] = (),
    first: int = 0,
) -> None:
    """Decode ahead, compute, write behind.

    Leaving, also by an error, waits for what is being decoded and written.

    skipped : gets the images whose photographs are damaged; None stops at the first.
    known, sealed : rows that are there already, and images that have some: their photographs may be
        damaged inside.
    first : of a part, see `Encoding`.
    """
    image_ids = writer.image_ids
    n_held = min(n_images_in_hand(backbone), len(images))
    free = [new_rows(writer.spec, backbone.lane.empty) for _ in range(n_held)]
    written: deque[tuple[Future, ImageRows]] = deque()

    def skip(image: int, err: InputError) -> None:
        if skipped is None:
            raise InputError(f"{err}; --skip-missing builds the others") from err
        skipped[image] = Unusable("damaged", str(err))
        writer.skip({image: "damaged"})

    def write(image: Image, before: Future | None) -> None:
        if before:
            before.result()  # nothing is written after what failed
        writer.put(image.place, image.rows)
        writer.commit_if_due()

    def finished(image: Image) -> None:
        before = written[-1][0] if written else None
        written.append((writing.submit(write, image, before), image.rows))
        bar.update()

    def free_buffer() -> ImageRows:
        # then batches that are not full hold every buffer: they go as they are
        if not (free or written):
            encoding.finish()
        if not free:
            future, rows = written.popleft()
            future.result()  # raises what went wrong
            free.append(rows)
        return free.pop()

    encoding = Encoding(backbone, finished, known is None, first)
    ahead = ahead_for(backbone.device)
    decoding = decode_ahead(images, backbone.crop, writer.spec.thumb, skip, sealed, ahead)
    # closed here: an error's traceback would keep the iterator, and its decoding threads
    with bar, Pool(1) as writing, closing(decoding) as photographs, closing(encoding):
        # one thread writes images while the backbone works on the next
        for place, photograph in photographs:
            there = known(place, photograph.facts["sha256"]) if known else {}
            buffer = free_buffer()
            rows = replace(buffer, thumb_HW3=photograph.thumb_HW3, facts=photograph.facts)
            image = Image(place, image_ids[place], rows, photograph.size)
            encoding.add(image, photograph, there)
            check_interrupt()
        encoding.finish()
        for future, _ in written:
            future.result()


def new_rows(
    spec: StoreSpec, empty: Callable[[Sequence[int], np.dtype], np.ndarray] = np.empty
) -> ImageRows:
    """Buffers for one image's rows, without thumbnail and facts."""
    t = spec.tokens
    half = np.dtype(np.float16)
    shape = (len(t.views), t.n_tiles)
    patches_VTPD = None
    if spec.has_patches:
        patches_VTPD = empty((*shape, t.n_patches, t.width), half)
    return ImageRows(
        cls_VTD=empty((*shape, t.width), half),
        patches_VTPD=patches_VTPD,
        pooled_VT5D=empty((*shape, len(POOLED), t.width), np.dtype(spec.pooled_dtype)),
        stats_VS=empty((len(t.views), len(STATS)), np.dtype(np.float64)),
    )


def _warn_of_other_precision(store: StoreSpec, asked: StoreSpec) -> None:
    if store.max_pixels < asked.max_pixels:
        warnings.warn(
            f"the store was begun with --max-pixels {store.max_pixels}, and keeps that; give "
            f"predict --max-pixels {asked.max_pixels} too",
            stacklevel=3,
        )
    for key in ROUNDING:
        if store.made_by.get(key) != asked.made_by.get(key):
            warnings.warn(
                f"{key}: the store was begun with {store.made_by.get(key)}, this build has "
                f"{asked.made_by.get(key)}; tokens agree only within rounding",
                stacklevel=3,
            )
