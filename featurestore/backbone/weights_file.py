"""A model with the weights of a user's safetensors file, whoever named its tensors.

Names are timm's, transformers' (`transformers_names.py`), or others that timm converts itself, as
Meta's. A file that does not fit is refused with what is missing or left over. Nothing is unpickled.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from torch import Tensor, nn

from featurestore.backbone.timm_model import new_model, short
from featurestore.backbone.transformers_names import is_theirs, renamed
from featurestore.disk.pickles import PICKLED, pickled
from featurestore.errors import InputError

INDEX = ".safetensors.index.json"
"""How a file ends that names the parts of a large model's weights."""

DINOV3_OF_META = "storage_tokens"  # a name that only these files have

PART = re.compile(r"-\d+-of-\d+\.safetensors$")
QKV_BIAS = re.compile(r"attention\.(?:[qkv]_proj|attention\.(?:query|key|value))\.bias$")


def model_with(model_name: str, path: Path, size: tuple[int, int]) -> nn.Module:
    """A timm model with the weights of a file, in float32.

    size : height and width in pixels; timm resizes position embeddings to it.

    Raises InputError, naming what is missing, left over or of another shape.
    """
    state = load_state(path)
    model = new_model(model_name, {"img_size": size})
    expected = model.state_dict()

    if is_theirs(state):
        state = _from_transformers(path, model_name, state, model)
    else:
        _refuse_lost_biases(path, model_name, state, expected)
    if shapes(state) == shapes(expected):
        model.load_state_dict(state)
        return model

    found = list(state)  # timm's conversion may change the dict
    # timm then converts these tensors as it does those that it downloads
    overlay = {"state_dict": without_classifier(model, state), "source": "", "num_classes": 0}
    arguments = {"img_size": size, "pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        with redirect_stdout(io.StringIO()):  # timm prints where it leaves biases out
            return new_model(model_name, arguments)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise InputError(
            f"{path}: not whole weights of {model_name}: {_misfit(model, found, err)}"
        ) from err


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of all files that an index names.

    Raises InputError if it is none, or may hold pickles.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from featurestore.disk.tensor_file import readable_name

    if path.name.endswith(INDEX):
        state = {}
        for part in parts_of(path):
            state |= load_state(part)
        return state
    if not path.is_file():
        raise InputError(f"{path}: no such weights; give a .safetensors file")
    _refuse_pickles(path)
    try:
        with readable_name(path) as name:
            return load_file(name)
    except (SafetensorError, OSError) as err:
        raise InputError(
            f"{path}: not safetensors weights: {short(err)}; copy the file again, or give another"
        ) from err


def parts_of(index: Path) -> list[Path]:
    """The files beside an index that together hold one model's weights."""
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise InputError(
            f"{index}: not the index of safetensors files: {short(err)}; copy it again"
        ) from err
    # nothing outside of the folder is read, and no index that names an index
    strange = [name for name in names if Path(name).name != name or name.endswith(INDEX)]
    if strange:
        raise InputError(f"{index}: names {strange[0]!r}, which is no file beside it")
    return [index.with_name(name) for name in names]


def _refuse_pickles(path: Path) -> None:
    what = None
    if path.suffix.lower() in PICKLED:
        what = f"is a {path.suffix} file"
    elif begins := pickled(path):
        what = f"begins as {begins}"
    if what:
        new = path.with_suffix(".safetensors").name
        new = "converted.safetensors" if new == path.name else new
        raise InputError(
            f"{path}: not safetensors weights: it {what}, which can hold a pickle; run "
            f"`biomass weights convert {path} {new}` and give what that writes"
        )


def _from_transformers(
    path: Path,
    model_name: str,
    state: dict[str, Tensor],
    model: nn.Module,
) -> dict[str, Tensor]:
    """The tensors under timm's names; InputError if some are missing or left over."""
    ours = renamed(state, model)
    told = _counted(ours.missing, ours.left_over, ours.n_expected)
    if not told:
        if ours.family == "CLIP":
            _check_activation(path, model_name)
        return ours.tensors
    advice = "copy the file again, or give the backbone that these weights were made for"
    if PART.search(path.name):
        advice = f"this is a part of a model: give the file NAME{INDEX} beside it"
    elif not ours.missing and all(QKV_BIAS.search(name) for name in ours.left_over):
        advice = f"these are not zero, so give --backbone {model_name}_qkvb"
    raise InputError(
        f"{path}: not whole weights of {model_name}: read as {ours.family} under transformers' "
        f"names, {told}; {advice}"
    )


def _check_activation(path: Path, model_name: str) -> None:
    """InputError where the config.json beside CLIP's weights names another activation.

    The tensors are the same with either, so nothing else would tell.
    """
    try:
        config = json.loads(path.with_name("config.json").read_text("utf-8"))
        config = config.get("vision_config", config)
        found = config.get("hidden_act")
    except (OSError, ValueError, AttributeError):
        return
    quick = "quickgelu" in model_name
    if found not in ("gelu", "quick_gelu") or (found == "quick_gelu") == quick:
        return
    if quick:
        other = model_name.replace("_quickgelu", "")
    else:
        other = model_name.replace("_clip_", "_clip_quickgelu_")
    raise InputError(
        f"{path}: its config.json says hidden_act {found}, which is not that of {model_name}; "
        f"give --backbone {other}"
    )


def _refuse_lost_biases(
    path: Path,
    model_name: str,
    state: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> None:
    """InputError where timm would silently leave out biases that are not zero.

    DINOv3's published biases of q and v are zero in most models, so timm has each model with them
    and without.
    """
    if DINOV3_OF_META not in state or "blocks.0.attn.q_bias" in expected:
        return
    for name, bias in state.items():
        if not name.endswith("attn.qkv.bias"):
            continue
        q, _, v = bias.chunk(3)  # the model masks the bias of k
        if q.any() or v.any():
            raise InputError(
                f"{path}: not weights of {model_name}: {name} is not zero, and this model has no "
                f"such bias; give --backbone {model_name}_qkvb"
            )


def _misfit(model: nn.Module, found: Sequence[str], err: Exception) -> str:
    """Which tensors are missing, left over or of another shape, and what to do."""
    expected = list(model.state_dict())
    told = str(err)
    sizes = []
    for line in told.splitlines():
        if "size mismatch for" in line:
            sizes.append(line.strip().rstrip("."))
    # by timm's names, as its conversion left them; if it failed, by those of the file
    converted = "Error(s) in loading state_dict" in told
    if converted:
        missing = _listed("Missing", told)
        left_over = _listed("Unexpected", told)
    else:
        missing = [name for name in expected if name not in found]
        left_over = [name for name in found if name not in expected]
    parts = [_counted(missing, left_over, len(expected))]
    if sizes:
        parts.append(f"{len(sizes)} have another shape ({_some(sizes, 2, '; ')})")
    text = ", ".join(part for part in parts if part) or short(err)
    return f"{text}; {_advice(model, missing or left_over, sizes)}"


def _advice(model: nn.Module, unmatched: Sequence[str], sizes: Sequence[str]) -> str:
    if sizes and not unmatched:
        if not all("pos" in line.partition(":")[0] for line in sizes):
            return "give the weights of this very model"
        side = model.pretrained_cfg["input_size"][-1]
        return (
            f"timm fits no position embeddings of a {type(model).__name__}: use the image size "
            f"that the weights were made for, by timm's account {side}"
        )
    hub = model.pretrained_cfg.get("hf_hub_id")
    source = f", for example model.safetensors of {hub} on huggingface.co" if hub else ""
    return (
        f"give the whole weights of this model under timm's names, transformers' or Meta's{source}"
    )


def _listed(kind: str, told: str) -> list[str]:
    """Names that torch lists as `Missing key(s)` or `Unexpected key(s)`."""
    match = re.search(rf"{kind} key\(s\) in state_dict: (.*)", told)
    return re.findall(r'"([^"]+)"', match[1]) if match else []


def _counted(missing: Sequence[str], left_over: Sequence[str], n_expected: int) -> str:
    parts = []
    if missing:
        parts.append(f"of {n_expected} tensors {len(missing)} are missing ({_some(missing)})")
    if left_over:
        parts.append(f"{len(left_over)} are left over ({_some(left_over)})")
    return ", ".join(parts)


def _some(items: Sequence[str], most: int = 3, comma: str = ", ") -> str:
    return comma.join([*items[:most], *["..."] * (len(items) > most)])


def without_classifier(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state less its classifier, which we do not have.

    Only then does timm load strictly, so that a missing tensor is an error.
    """
    names = model.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    heads = tuple(f"{name}." for name in names)
    return {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
