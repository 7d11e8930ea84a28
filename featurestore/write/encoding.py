"""From photographs to images' rows: views are put into batches, whose tokens fill buffers.

A row has a place of its own in its batch, whatever else is in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from featurestore.backbone.backbone import Backbone, Row
from featurestore.backbone.moments import pool, row_stats
from featurestore.photos.decode import Decoded
from featurestore.photos.padding import photo_patches
from featurestore.read.rows import ImageRows

KnownRows = Mapping[int, tuple]
"""Rows (cls, patches, pooled, stats) by view, which the backbone need not compute."""


@dataclass
class Image:
    """An image whose rows are being filled."""

    place: int
    """In the store."""
    image_id: str
    rows: ImageRows
    size: tuple[int, int]
    """Width and height of its photograph."""
    n_left: int = 0
    """Views whose tokens are still to come."""


class Encoding:
    """Fills images' buffers, and tells of each image that is whole."""

    def __init__(
        self, backbone: Backbone, finished: Callable[[Image], None], keeps_places: bool
    ) -> None:
        """keeps_places : a view's place in a batch follows from its place in the store, so that a
        build that went on from a stop puts it where it was; else rows are put one after another."""
        self._backbone = backbone
        self._finished = finished
        self._keeps_places = keeps_places
        self._number = 0
        self._batch: dict[int, tuple[Image, int, Row]] = {}

    def add(self, image: Image, photograph: Decoded, known: KnownRows) -> None:
        """Put an image's views into batches, all but those that are known."""
        views = self._backbone.spec.views
        # first: the image is whole with the last of the others
        for v, row in known.items():
            _fill(image.rows, v, row)
        missing = [v for v in range(len(views)) if v not in known]
        image.n_left = len(missing)
        if not missing:
            self._finished(image)
            return

        tiles_T3HW = self._backbone.on_device(photograph.tiles_THW3)
        for v in missing:
            if self._keeps_places:
                self._number = image.place * len(views) + v
            row = Row(image.image_id, views[v], tiles_T3HW)
            self._put(image, v, row)

    def finish(self) -> None:
        """Compute the batch in hand, however many of its places are empty."""
        batch, self._batch = self._batch, {}
        if not batch:
            return
        n_rows = self._backbone.n_rows
        rows = [None] * n_rows
        for number, (_, _, row) in batch.items():
            rows[number % n_rows] = row
        made = self._backbone.encode(rows)
        made.check(made.is_finite_RL)
        for number, (image, v, row) in batch.items():
            r = number % n_rows
            cls_TD, patches_TPD = made.cls_RTD[r], made.patches_RTPD[r]
            photo_TP = photo_patches(self._backbone.spec, row.view, *image.size)
            pooled_T5D = pool(patches_TPD, photo_TP)
            stats_S = row_stats(cls_TD, patches_TPD, pooled_T5D, photo_TP)
            _fill(image.rows, v, (cls_TD, patches_TPD, pooled_T5D, stats_S))
            image.n_left -= 1
            if not image.n_left:
                self._finished(image)

    def _put(self, image: Image, v: int, row: Row) -> None:
        n_rows = self._backbone.n_rows
        first = next(iter(self._batch), self._number)
        # of another batch: rows in between are there already
        if self._number // n_rows != first // n_rows:
            self.finish()
        self._batch[self._number] = image, v, row
        self._number += 1
        if self._number % n_rows == 0:
            self.finish()


def n_images_in_hand(backbone: Backbone) -> int:
    """Most images that are not written yet: those of a batch, and one that is being written."""
    n_views = len(backbone.spec.views)
    return -(-(backbone.n_rows - 1) // n_views) + 2


def _fill(rows: ImageRows, v: int, values: tuple) -> None:
    buffers = (rows.cls_VTD, rows.patches_VTPD, rows.pooled_VT5D, rows.stats_VS)
    for buffer, value in zip(buffers, values, strict=True):
        if buffer is not None:  # the one copy: from the device to the buffer that is written
            torch.from_numpy(buffer[v]).copy_(torch.as_tensor(value))
