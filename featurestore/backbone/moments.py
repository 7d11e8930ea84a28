"""What a row's tokens come to: pooled vectors and moments, taken while they are at hand."""

import numpy as np
import torch
from torch import Tensor

from featurestore.format.spec import STATS


def pool(patches_TPD: Tensor, photo_TP: np.ndarray | None = None) -> Tensor:
    """(T, 5, D) float32: per tile and channel mean, std, max, min and signed GeM(3) of patches.

    photo_TP : which patches count, at least one of each tile (`photos.padding.photo_patches`).

    GeM: Radenovic et al. 2018, arXiv:1711.02512; with p = 3 the cube keeps the sign, so negative
    channels count.
    """
    if photo_TP is not None:
        # tile by tile, as each has a number of patches of its own
        tiles = zip(patches_TPD, torch.from_numpy(photo_TP), strict=True)
        return torch.cat([pool(tile_PD[photo_P][None]) for tile_PD, photo_P in tiles])
    x = patches_TPD.float()
    std, mean = torch.std_mean(x, dim=1, correction=0)  # of n values, by the format
    cubes = (x * x).mul_(x).mean(1)
    gem = cubes.abs().pow(1 / 3) * cubes.sign()
    greatest = x.amax(1)
    least = x.amin(1)
    return torch.stack([mean, std, greatest, least, gem], 1)


def row_stats(
    cls_TD: Tensor,
    patches_TPD: Tensor,
    pooled_T5D: Tensor,
    photo_TP: np.ndarray | None = None,
) -> Tensor:
    """(14,) float64, the fields of spec.STATS, of cls and of patches; photo_TP as of `pool`."""
    if photo_TP is not None:  # tiles have different numbers of patches: all as one tile
        of_photo_1ND = patches_TPD[torch.from_numpy(photo_TP)][None]
        return row_stats(cls_TD, of_photo_1ND, pool(of_photo_1ND))
    stats_S = finite_stats(cls_TD[None], patches_TPD[None], pooled_T5D[None])[0]
    for kind, tokens in (("cls", cls_TD), ("patch", patches_TPD)):
        # counted only when their norms say there are some
        if not torch.isfinite(stats_S[STATS.index(f"{kind}_norm")]):
            n = (~torch.isfinite(tokens)).sum()
            stats_S[STATS.index(f"{kind}_non_finite")] = n
    return stats_S


def finite_stats(cls_RTD: Tensor, patches_RTPD: Tensor, pooled_RT5D: Tensor) -> Tensor:
    """(R, 14) float64: `row_stats` of rows whose values are all finite.

    On a device the host waits for nothing here.
    """
    x = cls_RTD.double()
    mean_R11 = x.mean((1, 2), keepdim=True)
    m2_R = (x - mean_R11).square().sum((1, 2))
    cls = [
        torch.full_like(m2_R, x[0].numel()),
        torch.zeros_like(m2_R),
        x.amin((1, 2)),
        x.amax((1, 2)),
        mean_R11.flatten(),
        m2_R,
        torch.linalg.vector_norm(x, dim=-1).mean(1),
    ]

    mean, std, greatest, least, _ = pooled_RT5D.double().unbind(2)
    whole_R11 = mean.mean((1, 2), keepdim=True)
    # M2 of all values from the channels' means and deviations (Chan et al. 1979): no second pass
    of_channels = std.square() + (mean - whole_R11).square()
    m2_R = of_channels.sum((1, 2)) * patches_RTPD.shape[2]
    norm_RTP = torch.linalg.vector_norm(patches_RTPD.float(), dim=-1).double()
    patch = [
        torch.full_like(m2_R, patches_RTPD[0].numel()),
        torch.zeros_like(m2_R),
        least.amin((1, 2)),
        greatest.amax((1, 2)),
        whole_R11.flatten(),
        m2_R,
        norm_RTP.mean((1, 2)),
    ]
    return torch.stack([*cls, *patch], 1)
