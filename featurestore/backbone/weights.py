"""A backbone's weights: loaded from a file, named by their hash, kept beside a store.

Nothing is unpickled.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from featurestore.backbone.timm_model import new_model, short
from featurestore.disk.durable import appears_whole, locked
from featurestore.disk.pickles import PICKLED, pickled
from featurestore.errors import InputError, MismatchError
from featurestore.format.spec import AND, StoreSpec

RANDOM = "random"
UNKNOWN_WEIGHTS = "0" * 64  # the hash of no weights
THEIR_NAMES = ("embeddings.", "encoder.layer", "layer.", "model.layer", "vit.", "dinov2.")
"""How names begin in transformers' files of vision transformers."""


def weights_hash(model: nn.Module) -> str:
    """sha256 over the state's tensors in order of name: name, dtype, shape, bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(
            f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode()
        )
        # as bytes: numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def saved_weights_path(folder: Path, weights_sha256: str) -> Path:
    """Where the weights of this hash are kept beside a store."""
    return folder / f"backbone-{weights_sha256[:16]}.safetensors"


def is_random(spec: StoreSpec) -> bool:
    """Whether the weights that made a store were drawn, and can be drawn again."""
    return RANDOM in spec.made_by.get("weights", "").split(AND)


def kept_weights(spec: StoreSpec, folders: Iterable[Path]) -> str | None:
    """Where the weights that made a store are, when nobody says.

    The first file kept in a folder, "random", or None for timm's own.
    """
    for folder in folders:
        kept = saved_weights_path(folder, spec.tokens.weights_sha256)
        # False also where a folder may not be looked into: the next one may have it
        if os.path.isfile(kept):
            return str(kept)
    return RANDOM if is_random(spec) else None


def check_given(model_name: str, weights: str | None, option: str | None) -> None:
    """Warn of weights that stand for unknown ones; MismatchError unless a file is given.

    option : by which it can be; None where no file is believed.
    """
    why = f"{model_name}: nobody recorded which weights made the store's tokens"
    again = (
        "import the tokens again by `biomass store import` with --weights FILE.safetensors, and "
        "train again"
    )
    if option is None:
        raise MismatchError(f"{why}, so none can be accepted; {again}")
    if weights in (None, RANDOM):
        raise MismatchError(
            f"{why}; give the file, if you know which it was, with {option} FILE.safetensors, or "
            f"{again}"
        )
    warnings.warn(
        f"{why}, so {weights} could not be compared with them, and predictions are wrong if it is "
        "another; `biomass predict --oof` compares predictions of the training photographs",
        stacklevel=3,
    )


def cached_weights(model_name: str) -> str | None:
    """The file of timm's own weights that an earlier download left here, without a network."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    told = timm.get_pretrained_cfg(model_name)
    if told is None or not told.hf_hub_id:
        return None
    found = try_to_load_from_cache(told.hf_hub_id, "model.safetensors")
    return found if isinstance(found, str) else None


def save_weights(state: dict[str, Tensor], weights_sha256: str, folder: Path) -> Path:
    """Keep weights beside the store under a name that is their hash, unless they are there.

    Waits for another process that writes them; InputError if they cannot be written.
    """
    from safetensors import SafetensorError

    from featurestore.disk.tensor_file import save_tensors

    path = saved_weights_path(folder, weights_sha256)
    if path.exists():
        return path
    try:
        with locked(path, wait=True, needed=False), appears_whole(path) as partial:
            if path.exists():  # another process was faster
                return path
            save_tensors(state, partial)
    except (OSError, SafetensorError) as err:
        raise InputError(
            f"{path}: cannot be written ({short(err)}); make room, or --no-save-weights"
        ) from err
    return path


def model_with(model_name: str, path: Path, size: tuple[int, int]) -> nn.Module:
    """A model with the weights of a safetensors file.

    Ours are loaded as they are, others by timm's own conversion.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from featurestore.disk.tensor_file import readable_name

    if not path.is_file():
        raise InputError(f"{path}: no such weights; give a .safetensors file")
    _refuse_pickles(path)
    try:
        with readable_name(path) as name:
            state = load_file(name)
    except (SafetensorError, OSError) as err:
        raise InputError(
            f"{path}: not safetensors weights: {short(err)}; copy the file again, or give another"
        ) from err
    model = new_model(model_name, {"img_size": size})
    ours = model.state_dict()
    if state.keys() == ours.keys() and all(state[k].shape == ours[k].shape for k in ours):
        model.load_state_dict(state)
        return model
    found = list(state)  # timm's conversion may change the dict
    overlay = {"state_dict": _without_classifier(model, state), "source": "", "num_classes": 0}
    try:
        return new_model(
            model_name, {"img_size": size, "pretrained": True, "pretrained_cfg_overlay": overlay}
        )
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise InputError(
            f"{path}: not safetensors weights of {model_name}: {_misfit(model, found, err)}"
        ) from err


def _refuse_pickles(path: Path) -> None:
    what = f"is a {path.suffix} file" if path.suffix.lower() in PICKLED else None
    if begins := None if what else pickled(path):
        what = f"begins as {begins}"
    if what:
        raise InputError(
            f"{path}: not safetensors weights: it {what}, and nothing here is unpickled; give the "
            "weights as .safetensors (where you trust the file, load it with torch and save its "
            "state by safetensors.torch.save_file)"
        )


def _misfit(model: nn.Module, found: Sequence[str], err: Exception) -> str:
    """Which tensors are missing, unknown or of another shape, and what to do."""
    expected = list(model.state_dict())
    told = str(err).splitlines()
    sizes = [line.strip().rstrip(".") for line in told if "size mismatch for" in line]
    if sizes and "Missing key" not in str(err):
        side = model.pretrained_cfg["input_size"][-1]
        advice = (
            f"timm fits no position embeddings of a {type(model).__name__}: use the image size "
            f"that the weights were made for, by timm's account {side}"
            if all("pos" in line.partition(":")[0] for line in sizes)
            else "give the weights of this very model"
        )
        return f"{_some(sizes, 2, '; ')}; {advice}"
    missing = [name for name in expected if name not in found]
    others = [name for name in found if name not in expected]
    theirs = (
        ", as transformers has them" if any(name.startswith(THEIR_NAMES) for name in others) else ""
    )
    hub = model.pretrained_cfg.get("hf_hub_id")
    source = f", for example model.safetensors of {hub} on huggingface.co" if hub else ""
    return (
        f"of {len(expected)} expected tensors {len(missing)} are missing ({_some(missing)}); of "
        f"{len(found)} found ones {len(others)} have other names{theirs} ({_some(others)}); give "
        f"weights under timm's names{source}"
    )


def _some(items: Sequence[str], most: int = 3, comma: str = ", ") -> str:
    return comma.join([*items[:most], *["..."] * (len(items) > most)]) or "none"


def _without_classifier(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state less its classifier, which we do not have.

    Only then does timm load strictly, so that a missing tensor is an error.
    """
    names = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    if not heads:
        return state
    return {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
