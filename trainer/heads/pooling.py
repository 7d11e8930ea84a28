"""A @ T and T @ W over stored rows, forward and backward, for all heads of a bank at once.

Heads see a row T only through a linear map, so all weights that touch a row are stacked and one
multiplication serves every head of the sweep. Mixing is linear too and commutes: it happens to the
small results, a mixed image never exists. Tokens get no gradient.
"""

import torch
from torch import Tensor

from trainer.heads.step_index import Touches
from trainer.heads.tokens import StepTokens


class _Attend(torch.autograd.Function):
    """Weighted sums over patches of each row that a sample touches."""

    @staticmethod
    def forward(ctx, w_QGBTP: Tensor, tokens: StepTokens, touches: Touches) -> Tensor:
        _, g, _, t, p = w_QGBTP.shape
        # of every place: (U, M, G, T, P)
        own = w_QGBTP.transpose(1, 2)[touches.split_UM, touches.sample_UM]
        by_tile = own.permute(0, 3, 1, 2, 4)
        w_UTMP = by_tile.reshape(len(tokens), t, -1, p)
        # of each row the first so many count: its touches, and all points of each
        y_UTMD = tokens.under(w_UTMP, [m * g for m in touches.counts_U])
        y = y_UTMD.unflatten(2, (-1, g)).transpose(1, 2)
        y_QBSTGD = touches.without_missing(y[touches.row_QBS, touches.place_QBS])
        ctx.tokens = tokens
        ctx.touches = touches
        return y_QBSTGD.permute(0, 4, 1, 2, 3, 5)

    @staticmethod
    def backward(ctx, dy_QGBSTD: Tensor) -> tuple:
        touches: Touches = ctx.touches
        g = dy_QGBSTD.shape[1]
        t, _, d = ctx.tokens.shape
        dy = dy_QGBSTD.permute(0, 2, 3, 1, 4, 5)
        own = dy[touches.split_UM, touches.sample_UM, touches.slot_UM]
        by_tile = own.permute(0, 3, 1, 2, 4)
        dy_UTMD = by_tile.reshape(len(ctx.tokens), t, -1, d)
        dw_UTMP = ctx.tokens.through(dy_UTMD, [m * g for m in touches.counts_U])
        dw = dw_UTMP.unflatten(2, (-1, g)).transpose(1, 2)
        dw_QBSTGP = touches.without_missing(dw[touches.row_QBS, touches.place_QBS])
        # over slots: own row and partner's were weighed alike
        return dw_QBSTGP.sum(2).permute(0, 3, 1, 2, 4), None, None


class _Project(torch.autograd.Function):
    """Every patch of each sample's own row through its heads' linear maps."""

    @staticmethod
    def forward(ctx, w_QGDK: Tensor, tokens: StepTokens, touches: Touches) -> Tensor:
        _, g, d, k = w_QGDK.shape
        t = tokens.shape[0]
        # of every place: (U, M, G, K, D)
        own = w_QGDK.transpose(2, 3)[touches.split_UM]
        # all tiles go through the same maps: a view, no copy for each
        w_U1MD = own.reshape(len(tokens), 1, -1, d)
        w_UTMD = w_U1MD.expand(-1, t, -1, -1)
        y_UTMP = tokens.through(w_UTMD, [m * g * k for m in touches.counts_U])
        y = y_UTMP.unflatten(2, (-1, g, k)).transpose(1, 2)
        y_QBSTGKP = touches.without_missing(y[touches.row_QBS, touches.place_QBS])
        ctx.tokens = tokens
        ctx.touches = touches
        ctx.g = g
        return y_QBSTGKP[:, :, 0].permute(0, 3, 1, 2, 5, 4)

    @staticmethod
    def backward(ctx, dy_QGBTPK: Tensor) -> tuple:
        touches: Touches = ctx.touches
        g = ctx.g
        k = dy_QGBTPK.shape[-1]
        t, p, _ = ctx.tokens.shape
        dy = dy_QGBTPK.permute(0, 2, 3, 1, 5, 4)
        # of every place: (U, M, T, G, K, P)
        own = dy[touches.split_UM, touches.sample_UM]
        dy_UTMP = own.transpose(1, 2).reshape(len(ctx.tokens), t, -1, p)
        dw_UTMD = ctx.tokens.under(dy_UTMP, [m * g * k for m in touches.counts_U])
        dw = dw_UTMD.sum(1).unflatten(1, (-1, g, k))
        dw_QBSGKD = touches.without_missing(dw[touches.row_QBS, touches.place_QBS])
        # over samples too: a head has one map for all of a batch
        return dw_QBSGKD.sum((1, 2)).transpose(2, 3), None, None


def attend(w_QGBTP: Tensor, tokens: StepTokens, touches: Touches) -> Tensor:
    """Weighted sums over patches.

    Parameters
    ----------
    w_QGBTP : (Q, G, B, T, P), one weight row for each split, point, sample and tile.
    touches : rows that each sample touches: its own; its partner's.

    Returns (Q, G, B, S, T, D) in w's dtype: w @ T[row] for each touched row; zeros for none.
    """
    return _Attend.apply(w_QGBTP, tokens, touches)


def project(w_QGDK: Tensor, tokens: StepTokens, touches: Touches) -> Tensor:
    """Linear maps of every patch: (Q, G, D, K) weights -> (Q, G, B, T, P, K), T[row] @ w.

    touches : of each sample's own row alone; zeros for none.
    """
    return _Project.apply(w_QGDK, tokens, touches)
