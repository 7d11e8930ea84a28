"""A backbone's weights: named by their hash, kept beside a store.

`weights_file.py` reads a user's file.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from featurestore.backbone.timm_model import short
from featurestore.disk.durable import appears_whole, locked
from featurestore.errors import InputError, MismatchError
from featurestore.format.spec import AND, StoreSpec

RANDOM = "random"
UNKNOWN_WEIGHTS = "0" * 64  # the hash of no weights


def weights_hash(model: nn.Module) -> str:
    """sha256 over the state's tensors in order of name: name, dtype, shape, bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        # as bytes: numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def saved_weights_path(folder: Path, weights_sha256: str) -> Path:
    """Where the weights of this hash are kept beside a store."""
    # 16 digits for a name; whoever loads the file compares the whole hash
    return folder / f"backbone-{weights_sha256[:16]}.safetensors"


def from_every_folder(weights: str | None) -> str | None:
    """What `--weights` names, good in another working directory: a file's whole path, a word such
    as `random` as it is."""
    is_there = weights is not None and Path(weights).exists()
    return os.path.abspath(weights) if is_there else weights


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
        stacklevel=2,
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
