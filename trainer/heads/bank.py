"""Banks: Q splits x G points heads of one kind and shape, held as stacked tensors.

What a kind computes is its file in trainer/heads/kinds; here is what all kinds share. An amount is
additive over area, so a head works on each tile and its amounts are summed; levels, shares, classes
and intervals are averaged. A saved head is a plain torch.nn module's state (docs/sweep.md):
whatever normalisation it learned under is folded into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.errors import MismatchError
from featurestore.format.spec import POOLED
from trainer.config.stores import split_vector
from trainer.heads import kinds
from trainer.heads.pooling import attend, project
from trainer.heads.shape import COLUMN_SCALE, HeadShape
from trainer.heads.spaces import SPACES
from trainer.heads.step_index import StepIndex
from trainer.heads.tokens import StepTokens


@dataclass
class Inputs:
    """One step as a bank sees it. Partners are used only where share_QGB says what to mix."""

    tokens: StepTokens
    index: StepIndex
    cls_QBTD: Tensor
    pooled_QBT5D: Tensor | None = None
    """Pooled rows (spec.POOLED), for kinds that read them."""
    photo_QBTP: Tensor | None = None
    """Which patches of each sample hold any of its photograph; None where none is padding."""
    partners: str = "any"
    """How the partners of the index are chosen."""
    share_QGB: Tensor | None = None
    mix_pooled: bool = False
    """Mix what heads make of each photograph, not the patches it is made from."""
    dropout_QGBTS: Tensor | None = None
    """Uniforms in [0, 1), G or 1 of them; None in evaluation."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """(Q, B, C) each column of `head.columns`, by its name; NaN for a number that is not known."""
    stores: Mapping[str, "Inputs"] = field(default_factory=dict)
    """The same step in each store by name; these are the inputs of one of them."""

    def vector(self, name: str) -> Tensor:
        """(Q, 1, B, T, D) of each sample's own photograph; name: as `head.features` has it."""
        store, vector = split_vector(name)
        own = self.stores[store] if store else self
        if vector == "cls":
            return own.cls_QBTD[:, None]
        return own.pooled_QBT5D[:, None, :, :, POOLED.index(vector)]

    @property
    def n_tiles(self) -> int:
        return self.cls_QBTD.shape[2]

    def early(self, own_QGB: Tensor) -> Tensor:
        """What a head reads before it has pooled patches: mixed here, unless pooled results are."""
        return own_QGB if self.mix_pooled else self.mixed(own_QGB)

    def late(self, own_QGB: Tensor) -> Tensor:
        """What a head has pooled from its own photograph: mixed here, if it was not before."""
        return self.mixed(own_QGB) if self.mix_pooled else own_QGB

    def mixed(self, own_QGB: Tensor) -> Tensor:
        """(Q, G or 1, B, ...) values of each sample, mixed with its partner's."""
        if self.share_QGB is None:
            return own_QGB
        partner_QGB = self.index.partners_of(self.partners, own_QGB)
        n_more = own_QGB.dim() - 3
        share = self.share_QGB.reshape(*self.share_QGB.shape, *(1,) * n_more)
        return torch.lerp(partner_QGB, own_QGB, share)

    def project(self, weight_QGDK: Tensor) -> Tensor:
        """(Q, G, B, T, P, K): every patch of each sample's own photograph through linear maps."""
        return project(weight_QGDK, self.tokens, self.index.own)

    def attend(self, weight_QGBTP: Tensor) -> Tensor:
        """(Q, G, B, T, D): patches under each sample's weights, of the mixed photograph unless
        pooled results are mixed."""
        if self.share_QGB is None or self.mix_pooled:
            return attend(weight_QGBTP, self.tokens, self.index.own).squeeze(3)
        # the same weights over own and partner's patches: mixing commutes with a linear map
        y = attend(weight_QGBTP, self.tokens, self.index.pairs[self.partners])
        n_maps = y.shape[1] // self.share_QGB.shape[1]  # of each head
        share = self.share_QGB.repeat_interleave(n_maps, 1)
        own, partner = y.unbind(3)
        return torch.lerp(partner, own, share[..., None, None])


@dataclass(frozen=True)
class Outputs:
    """Of every head and sample; a kind without a trunk has numbers alone."""

    values_QGBK: Tensor
    """Numbers in the order of `targets.outputs`, all or those that are `predicted`; amounts are
    summed over tiles."""
    word_QGBC: Tensor | None = None
    """Logits of each class's words, one class after another."""
    interval_QGBAI: Tensor | None = None
    """Logits of the interval each amount lies in, where the loss asks for intervals."""

    def of_split(self, q: int, sample_B: np.ndarray) -> "Outputs":
        """The same of one split and some of its samples; its axis Q stays, with length 1."""
        picked = {}
        for name, values in vars(self).items():
            picked[name] = None if values is None else values[q : q + 1, :, sample_B]
        return Outputs(**picked)


class HeadKind:
    """One kind of head: what its file in trainer/heads/kinds defines.

    All tensors of a bank are (Q, G, *), weights (Q, G, in, out).
    """

    # as a Regressor says of itself
    trained = True
    seeded = True
    report_only = False
    settings: tuple[str, ...] = ()
    """Keys of the config's `head` section that it reads, beside `kind` and `seed`."""
    spaces: tuple[str, ...] = tuple(SPACES)
    """Values of `loss.space` that it takes."""
    default_space = "raw"
    """What `loss.space: null` means."""
    normalizes = False
    """What `head.normalize: null` means: without a LayerNorm, channels of the largest scale would
    lead."""
    has_trunk = True
    """It learns classes, what is not told and, if asked, intervals beside the numbers that it
    predicts."""
    reads_pooled = False
    """It reads pooled rows; what needs no patches never causes a read of them."""
    reads_patches = True
    """False: it needs no patch tokens, and trains from a pooled store too."""
    leaves_padding_out = False
    """It asks `without_padding`, and so may read patches of stores with fit `pad`."""
    floats_per_patch = 8
    """Floats alive for each sample and patch of a step, to plan memory by."""
    maps_say: Literal["grams", "share"] | None = None
    """What `maps` says of a patch: its grams, or its share of the attention; None: no map."""

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, as nn.Linear has them: weights (out, in)."""
        raise NotImplementedError

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        """What each first layer is fed, in order: "cls", "patch" or vectors of `shape.features`;
        normalisation is folded in there."""
        raise NotImplementedError

    def forward(self, bank: "Bank", inputs: Inputs) -> Outputs:
        """Outputs of all heads of a bank."""
        raise NotImplementedError

    def maps(self, bank: "Bank", inputs: Inputs) -> Tensor:
        """(Q, G, B, T, P, M), of every patch: its part of each predicted number, which sum to the
        head's amounts over patches and tiles, and average to its levels and shares; or its share
        under each of M softmaxes, which sum to 1 over a tile. Asked of a kind whose `maps_say` is
        not None.
        """
        raise NotImplementedError


@dataclass
class Bank:
    """Q x G heads of one shape. Tensors are (Q, G, *), weights transposed to (Q, G, in, out).

    moments : mean and std (Q, D) of "cls", "patch" and pooled channels by a split's own training
        rows, which normalise what heads read; None leaves it as it is.
    column_scale : center and factor (Q, G or 1, C) of the columns that heads read, by the same rows
        (`InputColumns.scale`).
    """

    shape: HeadShape
    tensors: dict[str, Tensor]
    rate_G: Tensor = field(default_factory=lambda: torch.zeros(1))
    """Dropout rate of each point."""
    moments: dict[str, tuple[Tensor, Tensor]] | None = None
    column_scale: tuple[Tensor, Tensor] | None = None

    def __call__(self, inputs: Inputs) -> Outputs:
        return self.kind.forward(self, inputs)

    @property
    def kind(self) -> HeadKind:
        return kinds.load(self.shape.kind)

    @property
    def n_splits(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    @property
    def n_points(self) -> int:
        return next(iter(self.tensors.values())).shape[1]

    def head_state(self, q: int, g: int) -> dict[str, Tensor]:
        """One head as a plain module's state dict, float32, normalisation folded in."""
        state = {}
        # float64, so that folding rounds once, at its end
        for name, tensor in self.tensors.items():
            state[name] = tensor[q, g].detach().double().cpu()
        if self.moments:
            of_split = {}
            for part, (mean, std) in self.moments.items():
                of_split[part] = mean[q].double().cpu(), std[q].double().cpu()
            _fold(state, self.kind.reads(self.shape), of_split)
        # nn.Linear's weights are (out, in)
        linear = {name: t.T if t.dim() == 2 else t for name, t in state.items()}
        # one for all points of a split; without columns there is none, and nothing is added
        for name, scale in zip(COLUMN_SCALE, self.column_scale or (), strict=False):
            linear[name] = scale[q, 0].cpu()
        return {name: t.float().contiguous() for name, t in linear.items()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Bank":
        """The same heads' places with other values, e.g. their moving averages."""
        return replace(self, tensors=tensors)

    def tensor(self, name: str) -> Tensor:
        """One of `tensors`, to compute with: its gradient is added where it lies."""
        tensor = self.tensors[name]
        return _Leaf.apply(tensor) if tensor.requires_grad else tensor

    def linear(self, name: str, *parts_QGBTI: Tensor) -> Tensor:
        """(Q, G, B, T, in) -> (Q, G, B, T, out) by each head's own layer.

        What it reads may come in parts, one behind another: those that learn nothing, such as class
        tokens, get no gradient computed.
        """
        weight = self.tensors[f"{name}.weight"]
        bias = self.tensors[f"{name}.bias"]
        return _Linear.apply(weight, bias, *parts_QGBTI)

    def normal(self, part: str, x_QGBTD: Tensor) -> Tensor:
        """A part of the tokens (Q, G or 1, B, T, D), at mean 0 and std 1 if the bank normalises."""
        if not self.moments:
            return x_QGBTD
        mean, std = (m[:, None, None, None] for m in self.moments[part])
        return (x_QGBTD - mean) / std

    def own_cls(self, inputs: Inputs) -> Tensor:
        """(Q, 1, B, T, D) class tokens of each sample's own photograph, as `normal` leaves them."""
        return self.normal("cls", inputs.cls_QBTD[:, None])

    def columns(self, inputs: Inputs) -> Tensor:
        """(Q, G or 1, B, C) columns of each sample: scaled, 0 where one is not known, mixed."""
        parts = [inputs.columns[name] for name in self.shape.columns.names]
        x_QBC = torch.cat(parts, -1)
        center, factor = (scale[:, :, None] for scale in self.column_scale)
        z = (x_QBC[:, None] - center) * factor
        # 0 is the mean of the training images: a gap says nothing
        return inputs.mixed(z.nan_to_num())

    def each_point(self, x_Q1BTD: Tensor) -> Tensor:
        """What is the same for all points, once a point."""
        return x_Q1BTD.expand(-1, self.n_points, -1, -1, -1)


class _Leaf(torch.autograd.Function):
    """A bank's tensor as it is; autograd would want a gradient laid out otherwise than the buffer
    of all gradients has it (`HeadLayout`)."""

    @staticmethod
    def forward(ctx, leaf: Tensor) -> Tensor:
        ctx.leaf = leaf
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        _grad_of(ctx.leaf).add_(grad)


class _Linear(torch.autograd.Function):
    """`Bank.linear`, H = Q G heads at once; it adds to the weights' gradients where they are.

    autograd would write a gradient as large as all weights, then add it: with that, a full-size
    step of 30 heads took 1.6 s of one core, without it 1.3.
    """

    @staticmethod
    def forward(ctx, weight_QGIO: Tensor, bias_QGO: Tensor, *parts_QGBTI: Tensor) -> Tensor:
        ctx.sizes = [part.shape for part in parts_QGBTI]
        x_QGBTI = parts_QGBTI[0] if len(parts_QGBTI) == 1 else torch.cat(parts_QGBTI, -1)
        x_HMI = x_QGBTI.flatten(2, 3).flatten(0, 1)
        ctx.save_for_backward(x_HMI)
        # leaves: kept as they are for their .grad
        ctx.weight = weight_QGIO
        ctx.bias = bias_QGO
        bias_H1O = bias_QGO.flatten(0, 1)[:, None]
        weight_HIO = weight_QGIO.flatten(0, 1)
        y_HMO = torch.baddbmm(bias_H1O, x_HMI, weight_HIO)
        return y_HMO.view(*x_QGBTI.shape[:4], -1)

    @staticmethod
    def backward(ctx, dy_QGBTO: Tensor) -> tuple:
        (x_HMI,) = ctx.saved_tensors
        dy_HMO = dy_QGBTO.flatten(2, 3).flatten(0, 1)
        # views of the buffer of all gradients, so what is added lands there
        dweight_HIO = _grad_of(ctx.weight).flatten(0, 1)
        dweight_HIO.baddbmm_(x_HMI.transpose(1, 2), dy_HMO)
        dbias_HO = _grad_of(ctx.bias).flatten(0, 1)
        dbias_HO.add_(dy_HMO.sum(1))

        dparts: list[Tensor | None] = []
        end = 0
        for size, is_asked in zip(ctx.sizes, ctx.needs_input_grad[2:], strict=True):
            start, end = end, end + size[-1]
            if not is_asked:
                dparts.append(None)
                continue
            weight_HIO = ctx.weight.detach()[:, :, start:end].flatten(0, 1)
            dpart_HMI = torch.bmm(dy_HMO, weight_HIO.transpose(1, 2))
            dparts.append(dpart_HMI.view(size))
        return None, None, *dparts


def _grad_of(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


def load_bank(
    shape: HeadShape,
    states: Sequence[Mapping[str, Tensor]],
    device: torch.device,
) -> Bank:
    """Saved heads as one bank of one split, to predict with."""
    tensors = {}
    for name, size in shape.saved().items():
        heads = []
        for state in states:
            if name not in state or state[name].shape != size:
                found = list(state[name].shape) if name in state else "missing"
                raise MismatchError(
                    f"saved head: {name} is {found}, its config and tokens make it {list(size)}"
                )
            heads.append(state[name].T if state[name].dim() == 2 else state[name])
        tensors[name] = torch.stack(heads)[None].to(device)
    # one set for each head, where a bank in training has one for each split
    scale = tuple(tensors.pop(name) for name in COLUMN_SCALE) if shape.columns else None
    return Bank(shape, tensors, torch.zeros(len(states), device=device), column_scale=scale)


def _fold(
    state: dict[str, Tensor],
    reads: Mapping[str, Sequence[str]],
    moments: Mapping[str, Sequence[Tensor]],
) -> None:
    """Move (x - mean) / std from before the first layers into them; weights are (in, out)."""
    for layer, parts in reads.items():
        mean = torch.cat([moments[part][0] for part in parts])
        std = torch.cat([moments[part][1] for part in parts])
        n_rest = len(state[f"{layer}.weight"]) - len(mean)
        # channels of columns are scaled before they get here
        mean = F.pad(mean, (0, n_rest))
        std = F.pad(std, (0, n_rest), value=1.0)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] / std[:, None]
        if f"{layer}.bias" in state:  # one without feeds a softmax, which sees no constant
            state[f"{layer}.bias"] = state[f"{layer}.bias"] - mean @ state[f"{layer}.weight"]
