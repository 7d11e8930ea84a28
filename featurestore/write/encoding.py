"""From photographs to images' rows: views are put into batches, whose tokens fill buffers.

A row has a place of its own in its batch, whatever else is in it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featurestore.backbone.backbone import Backbone, Batch, Row
from featurestore.backbone.lane import Arrived
from featurestore.backbone.moments import finite_stats, pool, row_stats
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


@dataclass(frozen=True)
class _Sent:
    """A batch whose tokens are on their way into images' buffers."""

    made: Batch
    images: list[Image]
    """Of its rows, in order."""
    is_finite_RL: Tensor
    """On the host, once it has arrived."""
    arrived: Arrived


_Places = dict[int, tuple[Image, int, Row]]
"""Image, view and row by their number, whose rest by the rows of a batch is a place in it."""


class Encoding:
    """Fills images' buffers, and tells of each image that is whole."""

    def __init__(
        self,
        backbone: Backbone,
        finished: Callable[[Image], None],
        keeps_places: bool,
        first: int = 0,
    ) -> None:
        """keeps_places : a view's place in a batch follows from its place in the store, so that a
        build that went on from a stop puts it where it was; else rows are put one after another.
        first : place of the store's first image in the store that it is a part of."""
        self._backbone = backbone
        self._finished = finished
        self._keeps_places = keeps_places
        self._first = first
        self._number = 0
        self._batch: _Places = {}
        self._sent: deque[_Sent] = deque()

    def add(self, image: Image, photograph: Decoded, known: KnownRows) -> None:
        """Put an image's views into batches, all but those that are known."""
        views = self._backbone.spec.views
        # first: the image is whole with the last of the others
        for v, row in known.items():
            values = [None if value is None else torch.as_tensor(value) for value in row]
            arrived = self._backbone.lane.down(_into(image.rows, v, values))
            arrived()
        missing = [v for v in range(len(views)) if v not in known]
        image.n_left = len(missing)
        if not missing:
            self._finished(image)
            return

        tiles_T3HW = self._backbone.on_device(photograph.tiles_THW3)
        for v in missing:
            if self._keeps_places:
                self._number = (self._first + image.place) * len(views) + v
            row = Row(image.image_id, views[v], tiles_T3HW)
            self._put(image, v, row)

    def finish(self) -> None:
        """Compute the batch in hand, however many of its places are empty, and receive all."""
        self._send()
        while self._sent:
            self._receive()

    def close(self) -> None:
        """Wait for what is on its way: its buffers must not be given away before."""
        while self._sent:
            self._sent.popleft().arrived()

    def _put(self, image: Image, v: int, row: Row) -> None:
        n_rows = self._backbone.n_rows
        first = next(iter(self._batch), self._number)
        # of another batch: rows in between are there already
        if self._number // n_rows != first // n_rows:
            self._send()
        self._batch[self._number] = image, v, row
        self._number += 1
        if self._number % n_rows == 0:
            self._send()

    def _send(self) -> None:
        """Compute the batch in hand, and begin to copy its tokens; receive what was sent before."""
        batch, self._batch = self._batch, {}
        if not batch:
            return

        n_rows, lane = self._backbone.n_rows, self._backbone.lane
        rows = [None] * n_rows
        sizes = [None] * n_rows
        for number, (image, _, row) in batch.items():
            rows[number % n_rows] = row
            sizes[number % n_rows] = image.size
        made = self._backbone.encode(rows)
        pooled_RT5D, stats_RS = self._summed_up(made, sizes)

        is_finite_RL = torch.from_numpy(lane.empty(made.is_finite_RL.shape, np.dtype(bool)))
        pairs = [(made.is_finite_RL, is_finite_RL)]
        for image, views, places in _runs(batch, n_rows):
            values = (
                made.cls_RTD[places],
                made.patches_RTPD[places],
                pooled_RT5D[places],
                stats_RS[places],
            )
            pairs += _into(image.rows, views, values)

        images = [image for image, _, _ in batch.values()]
        self._sent.append(_Sent(made, images, is_finite_RL, lane.down(pairs)))
        while len(self._sent) > lane.n_behind:
            self._receive()

    def _receive(self) -> None:
        """Wait for the oldest batch; images that it makes whole are finished."""
        sent = self._sent.popleft()
        sent.arrived()
        # before an image is finished, and so written: no store holds a token that is not finite
        sent.made.check(sent.is_finite_RL)
        for image in sent.images:
            image.n_left -= 1
            if not image.n_left:
                self._finished(image)

    def _summed_up(self, made: Batch, sizes: list[tuple[int, int] | None]) -> tuple[Tensor, Tensor]:
        """Pooled vectors (R, T, 5, D) and statistics (R, S) of a batch's rows."""
        spec = self._backbone.spec
        photos = []
        for row, size in zip(made.rows, sizes, strict=True):
            photos.append(photo_patches(spec, row.view, *size) if row else None)

        pooled = pool(made.patches_RTPD.flatten(0, 1))
        pooled_RT5D = pooled.unflatten(0, made.patches_RTPD.shape[:2])
        stats_RS = finite_stats(made.cls_RTD, made.patches_RTPD, pooled_RT5D)
        for r, photo_TP in enumerate(photos):
            if photo_TP is None:
                continue
            # rare, so the host may wait here
            cls_TD, patches_TPD = made.cls_RTD[r], made.patches_RTPD[r]
            pooled_RT5D[r] = pool(patches_TPD, photo_TP)
            stats_RS[r] = row_stats(cls_TD, patches_TPD, pooled_RT5D[r], photo_TP)
        return pooled_RT5D, stats_RS


def n_images_in_hand(backbone: Backbone) -> int:
    """Most images that are not written yet: those of the batches in hand and on their way, and one
    that is being written."""
    n_rows = backbone.n_rows * (1 + backbone.lane.n_behind)
    n_views = len(backbone.spec.views)
    # the most that rows in a line can be of: the first row is then its image's last view
    n_encoding = 1 + -(-(n_rows - 1) // n_views)
    return n_encoding + 1


def _runs(batch: _Places, n_rows: int) -> list[tuple[Image, slice, slice]]:
    """Views of an image that follow each other, and their places in a batch: one copy each."""
    runs = []
    for number, (image, v, _) in batch.items():
        place = number % n_rows
        if runs:
            before, views, places = runs[-1]
            if before is image and (views.stop, places.stop) == (v, place):
                longer_views = slice(views.start, v + 1)
                longer_places = slice(places.start, place + 1)
                runs[-1] = image, longer_views, longer_places
                continue
        runs.append((image, slice(v, v + 1), slice(place, place + 1)))
    return runs


def _into(
    rows: ImageRows,
    views: int | slice,
    values: Sequence[Tensor | None],
) -> list[tuple[Tensor, Tensor]]:
    """Values of views, each with the part of a buffer that it fills."""
    buffers = (rows.cls_VTD, rows.patches_VTPD, rows.pooled_VT5D, rows.stats_VS)
    pairs = []
    for buffer, value in zip(buffers, values, strict=True):
        if buffer is not None:
            pairs.append((value, torch.from_numpy(buffer[views])))
    return pairs
