"""What a row's tokens come to: pooled vectors and moments, taken while they are at hand."""

import numpy as np
import torch
from torch import Tensor


def pool(patches_TPD: Tensor, photo_TP: np.ndarray | None = None) -> Tensor:
    """(T, 5, D) float32: per tile and channel mean, std, max, min and signed GeM(3) of patches.

    photo_TP : which patches count, at least one of each tile (`photos.padding.photo_patches`).

    GeM: Radenovic et al. 2018, arXiv:1711.02512; with p = 3 the cube keeps the sign, so negative
    channels count.
    """
    if photo_TP is not None:
        tiles = zip(patches_TPD, torch.from_numpy(photo_TP), strict=True)
        return torch.cat([pool(tile_PD[photo_P][None]) for tile_PD, photo_P in tiles])
    x = patches_TPD.float()
    std, mean = torch.std_mean(x, dim=1, correction=0)
    cubes = (x * x).mul_(x).mean(1)
    gem = cubes.abs().pow(1 / 3) * cubes.sign()
    return torch.stack([mean, std, x.amax(1), x.amin(1), gem], 1)


def row_stats(
    cls_TD: Tensor, patches_TPD: Tensor, pooled_T5D: Tensor, photo_TP: np.ndarray | None = None
) -> Tensor:
    """(14,) float64, the fields of spec.STATS, of cls and of patches; photo_TP as of `pool`."""
    if photo_TP is not None:  # tiles have different numbers of patches: all as one tile
        of_photo_1ND = patches_TPD[torch.from_numpy(photo_TP)][None]
        return row_stats(cls_TD, of_photo_1ND, pool(of_photo_1ND))
    mean, std, greatest, least, _ = pooled_T5D.double().unbind(1)
    n = patches_TPD.numel()
    whole = mean.mean()
    # M2 of all values from the channels' means and deviations (Chan et al. 1979): no second pass
    m2 = (std.square() + (mean - whole).square()).sum() * patches_TPD.shape[1]
    norms = torch.linalg.vector_norm(patches_TPD.float(), dim=-1).double().mean()
    patch = [n, _non_finite(patches_TPD, norms), least.min(), greatest.max(), whole, m2, norms]
    return torch.tensor(
        [float(field) for field in (*_vector_stats(cls_TD), *patch)], dtype=torch.float64
    )


def _vector_stats(cls_TD: Tensor) -> tuple:
    x = cls_TD.double()
    norms = torch.linalg.vector_norm(x, dim=-1).mean()
    return (
        x.numel(),
        _non_finite(x, norms),
        x.min(),
        x.max(),
        x.mean(),
        (x - x.mean()).square().sum(),
        norms,
    )


def _non_finite(x: Tensor, norms: Tensor) -> int:
    """How many values are not finite; counted only when their norms say there are some."""
    return 0 if torch.isfinite(norms) else int((~torch.isfinite(x)).sum())
