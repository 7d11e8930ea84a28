"""Patch tokens of an int8 archive: rounded view by view, and given back."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from featurestore.backbone.moments import pool, row_stats
from featurestore.backbone.rounding import ErrorTally, dequantise, quantise
from featurestore.disk.threads import lone_threads
from featurestore.format.spec import StoreSpec
from featurestore.photos.padding import photo_patches
from featurestore.read.rows import ImageRows

# rounded while their float32 copies are in the cache: 20 ms a full-size row, all at once 78
VALUES_AT_ONCE = 1 << 18


def rounded_rows(
    spec: StoreSpec,
    rows: ImageRows,
    tally: ErrorTally,
) -> tuple[ImageRows, dict[str, np.ndarray]]:
    """An image's rows as an int8 archive gives them back, and the arrays that it keeps for that."""
    restored = replace(
        rows,
        patches_VTPD=np.empty_like(rows.patches_VTPD),
        pooled_VT5D=np.empty(rows.pooled_VT5D.shape, spec.pooled_dtype),
        stats_VS=np.empty_like(rows.stats_VS),
    )
    parts = {
        "patches": np.empty(rows.patches_VTPD.shape, np.int8),
        "patches_scale": np.empty(rows.patches_VTPD.shape[:-1], np.float32),
    }

    def round_view(v: int) -> ErrorTally:
        photo_TP = photo_patches(spec.tokens, spec.tokens.views[v], *rows.photo_size)
        return _round_view(v, rows, restored, parts, photo_TP)

    with lone_threads() as threads:
        tallies = list(threads.map(round_view, range(len(rows.patches_VTPD))))
    for each in tallies:  # in the views' order: the same archive, the same last digit
        tally.merge(each)
    return restored, parts


def _round_view(
    v: int,
    rows: ImageRows,
    restored: ImageRows,
    parts: dict[str, np.ndarray],
    photo_TP: np.ndarray | None,
) -> ErrorTally:
    """Fill one view of `restored` and `parts`."""
    tally = ErrorTally()
    for tokens, q, scale, rounded in _blocks(
        rows.patches_VTPD[v],
        parts["patches"][v],
        parts["patches_scale"][v][..., None],
        restored.patches_VTPD[v],
    ):
        q[:], scale[:, 0] = quantise(tokens)
        rounded[:] = dequantise(q, scale[:, 0])
        tally.add(tokens, rounded)
    rounded_TPD = torch.from_numpy(restored.patches_VTPD[v])
    cls_TD = torch.from_dlpack(rows.cls_VTD[v])
    pooled_T5D = pool(rounded_TPD, photo_TP)
    restored.pooled_VT5D[v] = pooled_T5D
    restored.stats_VS[v] = row_stats(cls_TD, rounded_TPD, pooled_T5D, photo_TP)
    return tally


def dequantised(q_VTPD: np.ndarray, scale_VTP: np.ndarray) -> np.ndarray:
    """(V, T, P, D) float16."""
    tokens_VTPD = np.empty(q_VTPD.shape, np.float16)

    def fill(q_TPD: np.ndarray, scale_TP1: np.ndarray, tokens_TPD: np.ndarray) -> None:
        for q, scale, tokens in _blocks(q_TPD, scale_TP1, tokens_TPD):
            tokens[:] = dequantise(q, scale[:, 0])

    with lone_threads() as threads:
        list(threads.map(fill, q_VTPD, scale_VTP[..., None], tokens_VTPD))  # raises what a view did
    return tokens_VTPD


def _blocks(*arrays_TPX: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same few tokens of each array, as tensors that share its memory."""
    at_once = max(1, VALUES_AT_ONCE // arrays_TPX[0].shape[-1])
    parts = [torch.from_dlpack(array).flatten(0, 1).split(at_once) for array in arrays_TPX]
    return zip(*parts, strict=True)
