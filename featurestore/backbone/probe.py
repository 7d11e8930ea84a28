"""How many tiles a device should take at once: tried, and capped by its memory."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from featurestore.backbone.backbone import Backbone, Row
from featurestore.backbone.forward import Forward
from featurestore.backbone.lane import Streamed

MOST = 1024  # tiles
GAIN = 1.05  # times as many tiles a second, or a batch of twice the size is not worth its memory
SHARE = 0.5  # of the memory that is free


def with_batch(backbone: Backbone, batch: int) -> Backbone:
    """The backbone with so many tiles at once."""
    forward = Forward(backbone.model, backbone.spec.layers, batch)
    return replace(backbone, forward=forward, batch=batch)


def probed(backbone: Backbone, fits: Callable[[Backbone], bool]) -> Backbone:
    """The backbone with the batch that a device is fast with.

    On a CPU that is one photograph's tiles: more gain nothing there.

    fits : whether the host has memory for the tokens of such a backbone's batches.
    """
    spec, lane = backbone.spec, backbone.lane
    if not isinstance(lane, Streamed):
        return backbone
    free_bytes = lane.free_bytes()
    size = spec.n_tiles, 3, spec.tile_height, spec.tile_width
    tiles_T3HW = torch.zeros(size, device=backbone.device)
    row = Row("probe", spec.views[0], tiles_T3HW)

    best, most_a_second, batch = backbone, 0.0, spec.n_tiles
    while batch <= max(MOST, spec.n_tiles):
        tried = with_batch(backbone, batch)
        if not fits(tried):
            break
        rows = [row] * tried.n_rows
        try:
            with warnings.catch_warnings():
                # a trial that is halved is given up: nothing goes on with it
                warnings.simplefilter("ignore")
                seconds, n_bytes = lane.measure(partial(tried.encode, rows))
        except torch.OutOfMemoryError:
            break
        # halved, it did not fit
        if tried.forward.n_crops < batch or batch / seconds < GAIN * most_a_second:
            break
        best, most_a_second = tried, batch / seconds
        if 2 * n_bytes > SHARE * free_bytes:
            break
        batch *= 2
    return best
