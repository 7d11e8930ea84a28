"""The banks: H = Q splits x G points heads of one kind and shape, held as stacked tensors; one head is one slice.

Mass is additive over area, so a head works on each tile and its masses are summed; State and Height are averaged.
A saved head is a plain torch.nn module's state (docs/sweep.md): whatever normalisation it learned under is folded into it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.errors import MismatchError
from featurestore.spec import TokenSpec
from trainer.config import HeadConfig
from trainer.pooling import attend, project

N_MAIN, N_AUX = 3, 2  # Total, GDM, Green; Dead, Clover


@dataclass(frozen=True)
class HeadShape:
    """What heads of one bank have in common; widths in channels."""

    kind: str
    width: int
    n_patches: int
    gate_hidden: int = 0
    shared_hidden: int = 0
    n_states: int = 1

    @classmethod
    def of(cls, head: HeadConfig, tokens: TokenSpec, states: Sequence[str]) -> "HeadShape":
        """The shape of a config's heads over a store's tokens."""
        if head.kind == "density":
            return cls(head.kind, tokens.width, tokens.n_patches)
        return cls(head.kind, tokens.width, tokens.n_patches, head.gate_hidden or tokens.width // 4, head.shared_hidden,
                   max(1, len(states)))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of a saved head, as nn.Linear and nn.LayerNorm have them."""
        if self.kind == "density":
            return {"density.weight": (N_MAIN + N_AUX, self.width), "density.bias": (N_MAIN + N_AUX,)}
        layers = {"gate_mlp.0": (self.gate_hidden, self.width), "gate_mlp.2": (self.n_patches, self.gate_hidden),
                  "shared_mlp.0": (self.shared_hidden, 2 * self.width), "main_head": (N_MAIN, self.shared_hidden),
                  "state_head": (self.n_states, self.shared_hidden), "height_head": (1, self.shared_hidden),
                  "aux_head": (N_AUX, self.shared_hidden)}
        shapes = {f"{name}.{part}": shape for name, (o, i) in layers.items()
                  for part, shape in (("weight", (o, i)), ("bias", (o,)))}
        return shapes | {f"shared_mlp.1.{part}": (self.shared_hidden,) for part in ("weight", "bias")}

    @property
    def n_parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


@dataclass
class Inputs:
    """One step as a bank sees it. share_QGB is None where nothing is mixed; partners are then not looked at."""

    rows: Sequence[Tensor]
    own_QB: np.ndarray
    cls_QBTD: Tensor
    partner_QB: np.ndarray | None = None
    share_QGB: Tensor | None = None
    dropout_QBTS: Tensor | None = None
    """Uniforms in [0, 1); None in evaluation."""

    @property
    def n_tiles(self) -> int:
        return self.cls_QBTD.shape[2]

    def partners(self, x_QGB: Tensor) -> Tensor:
        """The partner's values of a (Q, G, B, ...) tensor."""
        index = torch.from_numpy(self.partner_QB).to(x_QGB.device)
        return torch.stack([x[:, i] for x, i in zip(x_QGB, index, strict=True)])

    def mix(self, own_QGB: Tensor, partner_QGB: Tensor) -> Tensor:
        """share * own + (1 - share) * partner."""
        share = self.share_QGB.reshape(*self.share_QGB.shape, *(1,) * (own_QGB.dim() - 3))
        return share * own_QGB + (1 - share) * partner_QGB


@dataclass(frozen=True)
class Outputs:
    """Of every head and sample, in grams, logits and cm; a kind without State and Height has None there."""

    masses_QGB5: Tensor
    """Total, GDM, Green, Dead, Clover; summed over tiles."""
    state_QGBC: Tensor | None = None
    height_QGB: Tensor | None = None


@dataclass
class Bank:
    """Q x G heads of one shape. Tensors are (Q, G, *), weights transposed to (Q, G, in, out).

    mean_QD, std_QD and their cls_ twins normalise channels by a split's own training rows; None leaves them as they are.
    """

    shape: HeadShape
    tensors: dict[str, Tensor]
    rate_G: Tensor = field(default_factory=lambda: torch.zeros(1))
    """Dropout rate of each point."""
    moments: dict[str, Tensor] | None = None

    def __call__(self, inputs: Inputs) -> Outputs:
        return _FORWARD[self.shape.kind](self, inputs)

    @property
    def n_splits(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    @property
    def n_points(self) -> int:
        return next(iter(self.tensors.values())).shape[1]

    def head_state(self, q: int, g: int) -> dict[str, Tensor]:
        """One head as a plain module's state dict, float32, normalisation folded in."""
        state = {name: tensor[q, g].detach().double().cpu() for name, tensor in self.tensors.items()}
        if self.moments:
            _fold(state, {name: m[q].double().cpu() for name, m in self.moments.items()})
        return {name: (t.T if t.dim() == 2 else t).float().contiguous() for name, t in state.items()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Bank":
        """The same heads' places with other values, e.g. their moving averages."""
        return Bank(self.shape, tensors, self.rate_G, self.moments)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """(Q, G, M, in) -> (Q, G, M, out) by each head's own layer."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        q, g, m, n_in = x.shape
        y = torch.baddbmm(bias.reshape(q * g, 1, -1), x.reshape(q * g, m, n_in), weight.reshape(q * g, n_in, -1))
        return y.view(q, g, m, -1)


def load_bank(shape: HeadShape, states: Sequence[Mapping[str, Tensor]], device: torch.device) -> Bank:
    """Saved heads as one bank of one split, to predict with."""
    for state, (name, size) in itertools.product(states, shape.tensors().items()):
        if name not in state or state[name].shape != size:
            found = list(state[name].shape) if name in state else "missing"
            raise MismatchError(f"saved head: {name} is {found}, its config and tokens make it {list(size)}")
    tensors = {name: torch.stack([s[name].T if s[name].dim() == 2 else s[name] for s in states])[None].to(device)
               for name in shape.tensors()}
    return Bank(shape, tensors, torch.zeros(len(states), device=device))


def new_bank(shape: HeadShape, splits: Sequence, rates: Sequence[float], seed: int, dtype: torch.dtype,
             biases: Sequence[Mapping[str, np.ndarray]], moments: dict[str, Tensor] | None, device: torch.device) -> Bank:
    """Fresh heads: all points of a split start alike, from draws keyed by (seed, repeat, fold, tensor).

    biases : for each split, values of the output biases; from zero they would take hundreds of steps to get there.
    """
    tensors = {}
    for name, size in shape.tensors().items():
        drawn = [biases[i].get(name, _initial(name, size, shape, seed, s.repeat, s.fold)) for i, s in enumerate(splits)]
        stacked = torch.tensor(np.stack([d.T for d in drawn]), dtype=dtype, device=device)[:, None]
        every = stacked.expand(-1, len(rates), *stacked.shape[2:])
        # contiguous: a fused AdamW walks weight, gradient and moments as plain memory, whatever their strides say
        tensors[name] = every.clone(memory_format=torch.contiguous_format).requires_grad_()
    return Bank(shape, tensors, torch.tensor(rates, dtype=dtype, device=device), moments)


def _initial(name: str, size: tuple[int, ...], shape: HeadShape, seed: int, repeat: int, fold: int) -> np.ndarray:
    """nn.Linear's and nn.LayerNorm's own defaults: uniform within 1 / sqrt(fan in); ones and zeros."""
    if name.startswith("shared_mlp.1"):
        return np.full(size, float(name.endswith("weight")))
    fan_in = shape.tensors()[name.replace("bias", "weight")][1]
    rng = np.random.default_rng([seed, repeat, fold, crc32(name.encode())])
    return rng.uniform(-1, 1, size) / np.sqrt(fan_in)


def _cls_gating(bank: Bank, inputs: Inputs) -> Outputs:
    """The class token weighs the patches, an MLP reads both (the experiment this project starts from)."""
    t = inputs.n_tiles
    c = _mixed_cls(bank, inputs)
    q, g, b, _, d = c.shape
    hidden = F.gelu(bank.linear("gate_mlp.0", c.reshape(q, g, b * t, d)))
    w_QGBTP = bank.linear("gate_mlp.2", hidden).softmax(-1).view(q, g, b, t, -1)
    z = _normal(bank, "", _pooled(inputs, w_QGBTP))
    shared = bank.linear("shared_mlp.0", torch.cat([c, z], -1).reshape(q, g, b * t, 2 * d))
    features = _dropout(bank, inputs, F.gelu(_layer_norm(bank, "shared_mlp.1", shared)))
    out = {name: bank.linear(f"{name}_head", features).view(q, g, b, t, -1) for name in ("main", "state", "height", "aux")}
    masses = F.softplus(torch.cat([out["main"], out["aux"]], -1)).sum(3)
    return Outputs(masses, out["state"].mean(3), F.softplus(out["height"]).mean(3)[..., 0])


def _density(bank: Bank, inputs: Inputs) -> Outputs:
    """Grams of every patch: softplus of a linear map, summed over the photograph."""
    weight, bias = bank.tensors["density.weight"], bank.tensors["density.bias"]
    if bank.moments:  # folded: normalising every patch would be a pass over the tokens
        weight = weight / bank.moments["std"][:, None, :, None]
        bias = bias - torch.einsum("qd,qgdk->qgk", bank.moments["mean"], weight)
    y = project(weight, inputs.rows, inputs.own_QB)
    if inputs.share_QGB is not None:
        y = inputs.mix(y, inputs.partners(y))
    return Outputs(F.softplus(y + bias[:, :, None, None, None]).sum((3, 4)))


_FORWARD = {"cls_gating": _cls_gating, "density": _density}


def _mixed_cls(bank: Bank, inputs: Inputs) -> Tensor:
    """(Q, G, B, T, D): the class tokens each point sees."""
    c = _normal(bank, "cls_", inputs.cls_QBTD[:, None])
    if inputs.share_QGB is None:
        return c.expand(-1, bank.n_points, -1, -1, -1)
    return inputs.mix(c, inputs.partners(c))


def _pooled(inputs: Inputs, w_QGBTP: Tensor) -> Tensor:
    """(Q, G, B, T, D): patches under the weights, of the mixed image."""
    if inputs.share_QGB is None:
        return attend(w_QGBTP, inputs.rows, inputs.own_QB[..., None])[:, :, :, 0]
    partner = np.take_along_axis(inputs.own_QB, inputs.partner_QB, 1)
    y = attend(w_QGBTP, inputs.rows, np.stack([inputs.own_QB, partner], -1))
    return inputs.mix(y[:, :, :, 0], y[:, :, :, 1])


def _normal(bank: Bank, prefix: str, x_QGBTD: Tensor) -> Tensor:
    if not bank.moments:
        return x_QGBTD
    mean, std = (bank.moments[f"{prefix}{name}"][:, None, None, None] for name in ("mean", "std"))
    return (x_QGBTD - mean) / std


def _layer_norm(bank: Bank, name: str, x_QGMS: Tensor) -> Tensor:
    scale, shift = (bank.tensors[f"{name}.{part}"][:, :, None] for part in ("weight", "bias"))
    return F.layer_norm(x_QGMS, x_QGMS.shape[-1:]) * scale + shift


def _dropout(bank: Bank, inputs: Inputs, x_QGMS: Tensor) -> Tensor:
    if inputs.dropout_QBTS is None:
        return x_QGMS
    uniform = inputs.dropout_QBTS.flatten(1, 2)[:, None]
    rate = bank.rate_G.view(1, -1, 1, 1)
    return x_QGMS * (uniform >= rate) / (1 - rate)


def _fold(state: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Move (x - mean) / std from before the first layers into them; state's weights are (in, out)."""
    mean, std = moments["mean"], moments["std"]
    first = "density"
    if "gate_mlp.0.weight" in state:
        first = "shared_mlp.0"
        _fold_layer(state, "gate_mlp.0", moments["cls_mean"], moments["cls_std"])
        mean, std = torch.cat([moments["cls_mean"], mean]), torch.cat([moments["cls_std"], std])
    _fold_layer(state, first, mean, std)


def _fold_layer(state: dict[str, Tensor], name: str, mean: Tensor, std: Tensor) -> None:
    state[f"{name}.weight"] = state[f"{name}.weight"] / std[:, None]
    state[f"{name}.bias"] = state[f"{name}.bias"] - mean @ state[f"{name}.weight"]
