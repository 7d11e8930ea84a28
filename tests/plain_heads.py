"""Heads as the plain torch modules that docs/sweep.md describes, made from nothing of ours."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init


@dataclass(frozen=True)
class PlainOutputs:
    """Of one photograph, or of a batch along leading axes; None for what a head does not tell."""

    masses_5: Tensor
    state_C: Tensor | None = None
    height: Tensor | None = None
    interval_5I: Tensor | None = None


def plain_masses(state: dict[str, Tensor], cls_TD: Tensor, patches_TPD: Tensor) -> Tensor:
    """Total, GDM, Green, Dead, Clover of one photograph by a saved head."""
    head = plain_head(state)
    return plain_outputs(head, read(head, cls_TD, patches_TPD)).masses_5


def plain_head(state: dict[str, Tensor]) -> nn.ModuleDict:
    """The modules whose tensors these are, with these values and their type."""

    def linear(name: str, bias: bool = True) -> nn.Linear:
        n_out, n_in = state[f"{name}.weight"].shape
        return skip_init(nn.Linear, n_in, n_out, bias)

    layers: dict[str, nn.Module] = {}
    if "gate_mlp.0.weight" in state:
        layers["gate_mlp"] = nn.Sequential(linear("gate_mlp.0"), nn.GELU(), linear("gate_mlp.2"))
    if "attention.weight" in state:
        layers["attention"] = linear("attention", bias=False)
    if "density.weight" in state:
        layers["density"] = linear("density")
    if "shared_mlp.0.weight" in state:
        shared = linear("shared_mlp.0")
        norm = nn.LayerNorm(shared.out_features)
        layers["shared_mlp"] = nn.Sequential(shared, norm, nn.GELU(), nn.Dropout())
    for name in {name.split(".")[0] for name in state if "_head." in name}:
        layers[name] = linear(name)

    head = nn.ModuleDict(layers).to(next(iter(state.values())).dtype).eval()
    head.load_state_dict(state)
    return head


def read(
    head: nn.ModuleDict, cls_TD: Tensor, patches_TPD: Tensor, pooled_T5D: Tensor | None = None
) -> Tensor:
    """What a head makes of each photograph before its outputs: for `density` its five masses."""
    if "density" in head:
        return F.softplus(head["density"](patches_TPD)).sum((-3, -2))
    if "gate_mlp" in head:
        weight_TP = head["gate_mlp"](cls_TD).softmax(-1)
        z_TD = torch.einsum("...tp,...tpd->...td", weight_TP, patches_TPD)
        return torch.cat([cls_TD, z_TD], -1)
    if "attention" in head:
        weight_TPM = head["attention"](patches_TPD).softmax(-2)
        z_TMD = torch.einsum("...tpm,...tpd->...tmd", weight_TPM, patches_TPD)
        return torch.cat([cls_TD, z_TMD.flatten(-2)], -1)
    pooled_T5D = pool(patches_TPD) if pooled_T5D is None else pooled_T5D
    return torch.cat([cls_TD, pooled_T5D.flatten(-2)], -1)


def pool(patches_TPD: Tensor) -> Tensor:
    """Mean, std, max, min and signed GeM(3) over the patches."""
    cubes_TD = (patches_TPD**3).mean(-2)
    gem_TD = cubes_TD.abs() ** (1 / 3) * cubes_TD.sign()
    std_TD = patches_TPD.std(-2, correction=0)
    vectors = [patches_TPD.mean(-2), std_TD, patches_TPD.amax(-2), patches_TPD.amin(-2), gem_TD]
    return torch.stack(vectors, -2)


def plain_outputs(head: nn.ModuleDict, x_TI: Tensor, kept_TS: Tensor | float = 1.0) -> PlainOutputs:
    """From what `read` gives; kept_TS is what dropout multiplies the shared layer by."""
    if "density" in head:
        return PlainOutputs(x_TI)
    features_TS = head["shared_mlp"](x_TI) * kept_TS
    raw_T5 = torch.cat([head["main_head"](features_TS), head["aux_head"](features_TS)], -1)
    masses_5 = F.softplus(raw_T5).sum(-2)
    state_C = head["state_head"](features_TS).mean(-2)
    height = F.softplus(head["height_head"](features_TS)).mean(-2).squeeze(-1)
    if "interval_head" not in head:
        return PlainOutputs(masses_5, state_C, height)
    interval_5I = head["interval_head"](features_TS).mean(-2).unflatten(-1, (5, -1))
    return PlainOutputs(masses_5, state_C, height, interval_5I)
