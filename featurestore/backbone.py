"""A frozen timm vision transformer: photograph tiles in, class and patch tokens out, with the model's own preprocessing."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featurestore._bytes import appears_whole, locked
from featurestore.errors import InputError, MismatchError
from featurestore.images import Crop, plan_crop
from featurestore.rounding import int8_rounded
from featurestore.spec import DECODE_RULES, StoreSpec, TokenSpec, ViewSpec
from featurestore.timm_model import checked_layers, new_model, patch_size, patch_size_of, read_tokens, short, tried_model
from featurestore.views import make_view, normalise, view_amounts

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM = "random"
UNKNOWN_WEIGHTS = "0" * 64  # the hash of no weights


@dataclass(frozen=True)
class Backbone:
    """A loaded model on its device, and what makes its tokens these tokens."""

    model: nn.Module
    spec: TokenSpec
    device: torch.device
    dtype: torch.dtype

    @property
    def crop(self) -> Crop:
        return Crop(self.spec.crop, self.spec.tile_height, self.spec.tile_width, self.spec.interpolation)

    def tokens(self, tiles_THW3: Tensor, image_id: str, view: ViewSpec) -> tuple[Tensor, Tensor]:
        """Tokens of one view of one photograph: its T tiles are one batch, whatever else is asked for.

        Parameters
        ----------
        tiles_THW3 : (T, H, W, 3) uint8, as `crop` gives them.

        Returns
        -------
        cls_TD, patches_TPD : (T, D) and (T, P, D) float16 on the device; D holds all layers one after another. Where the
        spec's dtype is int8, patch tokens are rounded as those of the restored archive were.

        Raises InputError, naming image, view and layer, where a token is not finite or does not fit float16.
        """
        x = tiles_THW3.to(self.device).permute(0, 3, 1, 2).float().div_(255)
        x = make_view(x, view, view_amounts(view, self.spec.seed, image_id))
        x = normalise(x, self.spec.mean, self.spec.std).to(self.dtype)
        cls, patches = self._forward(x)
        for layer, c, p in zip(self.spec.layers, cls, patches, strict=True):
            if not (torch.isfinite(c).all() and torch.isfinite(p.sum(dtype=torch.float32))):
                raise InputError(f"image {image_id!r}, view {view.name!r}, layer {layer}: tokens are not finite or beyond "
                                 "float16's 65504; try --precision fp32, or check the photograph and the weights")
        patches_TPD = torch.cat(patches, -1)
        return torch.cat(cls, -1), int8_rounded(patches_TPD) if self.spec.dtype == "int8" else patches_TPD

    def _forward(self, x_T3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Class and patch tokens of each layer; where a device cannot hold a batch, it gets the halves."""
        try:
            return self._forward_at_once(x_T3HW)
        except torch.OutOfMemoryError:
            if len(x_T3HW) == 1:
                raise
            warnings.warn(f"{self.device}: out of memory with {len(x_T3HW)} tiles at once; going on with half", stacklevel=2)
            torch.cuda.empty_cache()
        parts = [self._forward(half) for half in x_T3HW.split(-(-len(x_T3HW) // 2))]
        return tuple([torch.cat(layer) for layer in zip(*kind, strict=True)] for kind in zip(*parts, strict=True))

    def try_out(self) -> None:
        """Pass one grey tile through the model: what fails on this device in this precision fails before a store is laid out."""
        try:
            self._forward(torch.zeros(1, 3, self.spec.tile_height, self.spec.tile_width, dtype=self.dtype, device=self.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
            raise InputError(f"{self.spec.model}: cannot be used on {self.device} in {precision}, a trial with a grey tile "
                             f"failed ({short(err)}); try --precision fp32, or another --device or backbone") from err

    @torch.inference_mode()
    def _forward_at_once(self, x_T3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        cls, patches = read_tokens(self.model, self.spec.layers, x_T3HW)
        return [layer_TD.half() for layer_TD in cls], [layer_TPD.half() for layer_TPD in patches]


def load_backbone(
    model_name: str, weights: str | None, *, crop: str, image_size: int, views: Sequence[ViewSpec], aspect: float = 2.0,
    layers: Sequence[int] = (-1,), seed: int = 0, device: str = "cpu", precision: str = "fp32", keep_in: Path | None = None,
) -> Backbone:
    """A backbone for new tokens, with mean, std and interpolation from the model's own data config.

    weights : None for timm's own (the demo backbone's are packaged, others are downloaded), "random" (seeded, with a warning),
        or a .safetensors file of the model.
    aspect : width / height of the photographs, for crop "whole".
    keep_in : folder to save the weights in, as they are hashed, before any rounding to `precision`.

    Raises InputError for an unknown model, one that is no vision transformer with a class token, or unusable weights.
    """
    size = _tile_size(model_name, crop, image_size, aspect)
    tried_model(model_name, size, layers)  # before any weights are fetched
    model = _create(model_name, weights, size, seed)
    spec = _token_spec(model, model_name, weights_hash(model), crop, size, views, layers, seed)
    if keep_in:
        save_weights(model.state_dict(), spec.weights_sha256, keep_in)
    return _on_device(model, spec, device, precision)


def spec_without_weights(model_name: str, *, crop: str, image_size: int, views: Sequence[ViewSpec],
                         aspect: float = 2.0) -> TokenSpec:
    """The spec of tokens that a model made elsewhere, by weights that nobody knows: their hash is zeros. Nothing is loaded."""
    size = _tile_size(model_name, crop, image_size, aspect)
    model = tried_model(model_name, size, (-1,))
    return _token_spec(model, model_name, UNKNOWN_WEIGHTS, crop, size, views, (-1,), 0)


def _token_spec(model: nn.Module, model_name: str, weights_sha256: str, crop: str, size: tuple[int, int],
                views: Sequence[ViewSpec], layers: Sequence[int], seed: int) -> TokenSpec:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    return TokenSpec(
        model=model_name, weights_sha256=weights_sha256, layers=checked_layers(model, layers), crop=crop,
        tile_height=size[0], tile_width=size[1], interpolation=data["interpolation"], mean=data["mean"], std=data["std"],
        patch_size=patch_size(model), n_tiles=2 if crop == "halves" else 1, width=model.num_features * len(layers),
        views=tuple(views), seed=seed)


def restore_backbone(spec: TokenSpec, weights: str | None, device: str, precision: str) -> Backbone:
    """The backbone that made tokens of this spec, for the same tokens again; MismatchError if the weights are others."""
    if spec.decode_rules != DECODE_RULES:
        raise MismatchError(f"photographs were decoded by rules {spec.decode_rules}, this program has {DECODE_RULES}; "
                            "use the biomass version that built the store")
    model = _create(spec.model, weights, (spec.tile_height, spec.tile_width), spec.seed)
    found = weights_hash(model)
    if found != spec.weights_sha256:
        raise MismatchError(f"{spec.model}: weights from {weights or 'timm'} have hash {found}, the tokens were made with "
                            f"{spec.weights_sha256}; give the file that has them with --weights (of predict: --backbone-weights)")
    return _on_device(model, spec, device, precision)


def _on_device(model: nn.Module, spec: TokenSpec, device: str, precision: str) -> Backbone:
    dtype, place = PRECISIONS[precision], choose_device(device)
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # takes half precision with its own numbers in float32, and not with some of each
            continue
        biases = [buffer for name, buffer in module.named_buffers(recurse=False) if name.endswith("bias")]
        for tensor in [*module.parameters(recurse=False), *biases]:  # not the other buffers: rotary positions lose too much
            tensor.data = tensor.data.to(dtype)
    return Backbone(model.to(place).eval().requires_grad_(False), spec, place, dtype)


def choose_device(device: str) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one. InputError rather than a silent other one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as err:
        raise InputError(f"device {device!r}: not a torch device; use auto, cpu, cuda or cuda:N") from err
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: not supported; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: {torch.cuda.device_count()} CUDA devices here; use auto or cpu")
    return chosen


def weights_hash(model: nn.Module) -> str:
    """sha256 over the state's tensors in order of name: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def saved_weights_path(folder: Path, weights_sha256: str) -> Path:
    """Where the weights of this hash are kept beside a store."""
    return folder / f"backbone-{weights_sha256[:16]}.safetensors"


def kept_weights(spec: StoreSpec, folder: Path) -> str | None:
    """Where the weights that made a store come from when nobody says: the file kept in its folder, random, or None: timm."""
    kept = saved_weights_path(folder, spec.tokens.weights_sha256)
    if kept.exists():
        return str(kept)
    return RANDOM if spec.made_by.get("weights") == RANDOM else None


def save_weights(state: dict[str, Tensor], weights_sha256: str, folder: Path) -> Path:
    """Keep weights beside the store, under a name that is their hash; nothing is written if they are there.

    Waits for another process that writes them; InputError if they cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = saved_weights_path(folder, weights_sha256)
    if path.exists():
        return path
    try:
        with locked(path, wait=True, needed=False), appears_whole(path) as partial:
            if path.exists():  # another process was faster
                return path
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    except (OSError, SafetensorError) as err:
        raise InputError(f"{path}: cannot be written ({short(err)}); make room, or --no-save-weights") from err
    return path


def _tile_size(model_name: str, crop: str, image_size: int, aspect: float) -> tuple[int, int]:
    """Height and width of a tile."""
    planned = plan_crop(crop, image_size, patch_size_of(model_name), "bicubic", aspect)
    return planned.height, planned.width


def _create(model_name: str, weights: str | None, size: tuple[int, int], seed: int) -> nn.Module:
    """The model with its weights, on the CPU in float32."""
    if weights == RANDOM:
        warnings.warn(f"{model_name}: random weights (seed {seed}); the tokens know nothing about images", stacklevel=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return new_model(model_name, {"img_size": size})
    if weights is None:
        return _downloaded(model_name, size)
    return _from_file(model_name, Path(weights), size)


def _downloaded(model_name: str, size: tuple[int, int]) -> nn.Module:
    try:
        return new_model(model_name, {"img_size": size, "pretrained": True})
    except (OSError, RuntimeError, ValueError) as err:  # hub, URL and file errors all are one of these
        raise InputError(f"{model_name}: its weights cannot be downloaded ({short(err)}); on an offline machine give "
                         "--weights FILE.safetensors (or --weights random to try things out)") from err


def _from_file(model_name: str, path: Path, size: tuple[int, int]) -> nn.Module:
    """Weights from a safetensors file, ours as they are, others by timm's own conversion; nothing is unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weights; give a .safetensors file, or --weights random")
    try:
        state = load_file(path)
        model = new_model(model_name, {"img_size": size})
        ours = model.state_dict()
        if state.keys() == ours.keys() and all(state[k].shape == ours[k].shape for k in ours):
            model.load_state_dict(state)
            return model
        overlay = {"state_dict": _without_classifier(model, state), "source": "", "num_classes": 0}
        return new_model(model_name, {"img_size": size, "pretrained": True, "pretrained_cfg_overlay": overlay})
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise InputError(f"{path}: not safetensors weights of {model_name}: {short(err)}") from err


def _without_classifier(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state less the classifier we do not have; only then does timm load strictly, and what is missing is an error."""
    names = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {key: tensor for key, tensor in state.items() if not key.startswith(heads)} if heads else state
