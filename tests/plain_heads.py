"""Saved heads as the plain torch modules that docs/sweep.md describes, made from nothing of ours."""

import torch
from torch import nn


def plain_masses(state: dict[str, torch.Tensor], cls_TD: torch.Tensor, patches_TPD: torch.Tensor) -> torch.Tensor:
    """Total, GDM, Green, Dead, Clover of one photograph."""
    if "density.weight" in state:
        y_TPK = nn.functional.linear(patches_TPD, state["density.weight"], state["density.bias"])
        return nn.functional.softplus(y_TPK).sum((0, 1))
    head = plain_trunk(state)
    features = head["shared_mlp"](read(state, cls_TD, patches_TPD))
    return nn.functional.softplus(torch.cat([head["main_head"](features), head["aux_head"](features)], -1)).sum(0)


def read(state: dict[str, torch.Tensor], cls_TD: torch.Tensor, patches_TPD: torch.Tensor) -> torch.Tensor:
    """What the trunk of each kind is fed."""
    if "gate_mlp.0.weight" in state:
        hidden, width = state["gate_mlp.0.weight"].shape
        gate = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, len(state["gate_mlp.2.bias"])))
        gate.load_state_dict({name.removeprefix("gate_mlp."): t for name, t in state.items() if name.startswith("gate_mlp")})
        return torch.cat([cls_TD, torch.einsum("tp,tpd->td", gate(cls_TD).softmax(-1), patches_TPD)], -1)
    if "attention.weight" in state:
        w_TPM = (patches_TPD @ state["attention.weight"].T).softmax(1)
        return torch.cat([cls_TD, torch.einsum("tpm,tpd->tmd", w_TPM, patches_TPD).flatten(1)], -1)
    cubes = (patches_TPD**3).mean(1)
    return torch.cat([cls_TD, patches_TPD.mean(1), patches_TPD.std(1, correction=0), patches_TPD.amax(1), patches_TPD.amin(1),
                      cubes.abs() ** (1 / 3) * cubes.sign()], -1)


def plain_trunk(state: dict[str, torch.Tensor]) -> nn.ModuleDict:
    shared, n_in = state["shared_mlp.0.weight"].shape
    names = {name.split(".")[0] for name in state if "_head." in name}
    outputs = {name: nn.Linear(shared, len(state[f"{name}.bias"])) for name in names}
    head = nn.ModuleDict({"shared_mlp": nn.Sequential(nn.Linear(n_in, shared), nn.LayerNorm(shared), nn.GELU(), nn.Dropout()),
                          **outputs}).eval()
    head.load_state_dict({name: t for name, t in state.items() if not name.startswith(("gate_mlp", "attention"))})
    return head
