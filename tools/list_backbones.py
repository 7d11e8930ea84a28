"""Try every model of timm that has a class token, and write docs/backbones.md: which can be a
backbone, and why others cannot; and names.txt, which the TAB key offers.

    python tools/list_backbones.py                    # all models; long, at low priority
    python tools/list_backbones.py --only test_vit cait_xxs24_224

Every model is tried at its own image size on torch's meta device, which computes shapes alone. Of
models up to 10^9 parameters that consist of the same modules, one computes tokens of small tiles
with random weights. Child processes do the work, so that a model that hangs or takes all memory
ends alone.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.demo.model import NAME as PACKAGED
from featurestore.backbone.load import load_backbone, spec_without_weights
from featurestore.backbone.timm_model import BY_FEATURES, CLASS_TOKEN, patch_size_of
from featurestore.errors import InputError
from featurestore.photos.views import VIEWS

DOC = Path(__file__).parent.parent / "docs" / "backbones.md"
NAMES = Path(__file__).parent.parent / "featurestore" / "backbone" / "names.txt"
MOST = 10**9  # parameters of a model that is computed, not only tried on the meta device
# patches of a small tile; better not square, so that rows cannot be taken for columns
GRIDS = (3, 5), (3, 3)
# of pictures at most, until changed patches show in their own tokens: deep models of random weights
# mix them
DRAWS = 6
CHUNK, LIMIT_S = 12, 1200


@dataclass
class Found:
    """What was found out about a model. `why` : the reason it cannot be used, empty if it can."""

    name: str
    module: str
    kind: str
    n_parameters: int
    why: str = ""
    size: tuple[int, int] = (0, 0)
    patch: int = 0
    computed: bool = False
    """Whether it computed tokens, or a model of the same modules did."""
    resized: bool | None = None
    """Whether weights of the model's own image size load at another; None where it was not
    tried."""


def candidates() -> list[tuple[str, bool]]:
    """Names of models with a class token, and whether it is the first of up to MOST parameters with
    its modules."""
    found, seen = [], set()
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        if any(CLASS_TOKEN.fullmatch(each) for each, _ in model.named_parameters()):
            modules = repr(model)  # of all image sizes alike
            found.append((name, modules not in seen and _n_parameters(model) <= MOST))
            seen.add(modules)
    return found


def _n_parameters(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def try_model(name: str, compute: bool = True, resize: bool = False) -> Found:
    """Try a model with a class token. resize : at another image size than its weights' too."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    _, height, width = model.pretrained_cfg["input_size"]
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    found = Found(name, module, type(model).__name__, _n_parameters(model), size=(height, width))
    try:
        found.patch = patch_size_of(name)
        _spec(name, (height, width))
        if compute:
            _compute(name, found.patch, (height, width))
        found.computed = found.n_parameters <= MOST
        if resize:
            found.resized = _resized(name, found.patch, (height, width))
    except InputError as err:
        found.why = str(err).removeprefix(f"{name}: ").partition("; ")[0]
    return found


def _spec(name: str, size: tuple[int, int]) -> None:
    """The trial on the meta device, as every command makes it."""
    spec_without_weights(
        name, crop="whole", image_size=min(size), views=VIEWS[:1], aspect=size[1] / size[0]
    )


def _compute(name: str, patch: int, own: tuple[int, int]) -> None:
    """Tokens of small tiles; InputError if they are not finite, or patches are in another order
    than row by row."""
    size = next(
        each
        for each in [*((rows * patch, columns * patch) for rows, columns in GRIDS), own]
        if _is_taken(name, each)
    )
    backbone = load_backbone(
        name,
        "random",
        crop="whole",
        image_size=min(size),
        views=VIEWS[:1],
        aspect=size[1] / size[0],
    )
    if (order := patch_order(backbone)) != sorted(order):
        raise InputError(
            f"{name}: its patch tokens are not row by row: changed patches show in tokens {order}"
        )


def _is_taken(name: str, size: tuple[int, int]) -> bool:
    try:
        _spec(name, size)
    except InputError:
        return False
    return True


def patch_order(backbone: Backbone) -> list[int]:
    """The token in which a change of each patch shows, each token once; of random weights and
    pictures, so some may be needed."""
    response_PP = 0
    for seed in range(DRAWS):
        response_PP += _response(backbone, seed)
        order = linear_sum_assignment(response_PP, maximize=True)[1].tolist()
        if order == sorted(order):
            break
    return order


def _response(backbone: Backbone, seed: int) -> np.ndarray:
    """(P, P), how much each patch token (second axis) differs where a patch of noise (first axis)
    is replaced by other noise."""
    height, width, patch = (
        backbone.spec.tile_height,
        backbone.spec.tile_width,
        backbone.spec.patch_size,
    )
    plain, other = torch.randint(
        0,
        256,
        (2, height, width, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )
    tiles = plain.repeat(backbone.spec.n_patches, 1, 1, 1)
    for p, tile in enumerate(tiles):
        row, column = divmod(p, backbone.spec.grid[1])
        square = slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)
        tile[square] = other[square]
    before = backbone.tokens(plain[None], "trial", VIEWS[0])[1].float()
    after = backbone.tokens(tiles, "trial", VIEWS[0])[1].float()
    return (after - before).norm(dim=-1).numpy()


def _resized(name: str, patch: int, own: tuple[int, int]) -> bool:
    model = timm.create_model(name, num_classes=0, img_size=own)
    with TemporaryDirectory() as folder:
        file = f"{folder}/weights.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
        try:
            load_backbone(
                name, file, crop="squash", image_size=min(own) - 2 * patch, views=VIEWS[:1]
            )
        except InputError:
            return False
    return True


def try_all(names: list[tuple[str, bool]], resize: bool = False) -> Iterator[Found]:
    """What children find, in chunks; a model whose child ends or hangs is found unusable, and the
    next child goes on after it."""
    while names:
        chunk, names = names[:CHUNK], names[CHUNK:]
        marked = [f"+{name}" if compute else name for name, compute in chunk]
        command = [sys.executable, __file__, *["--resize"] * resize, "--child", *marked]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, timeout=LIMIT_S, preexec_fn=lambda: os.nice(10)
            )
            told, ended = done.stdout, f"its process ended with code {done.returncode}"
        except subprocess.TimeoutExpired as err:
            told, ended = err.stdout or b"", f"took more than {LIMIT_S} s"
        lines = told.decode().splitlines()
        yield from (Found(**json.loads(line)) for line in lines)
        if rest := chunk[len(lines) :]:
            yield Found(rest[0][0], "", "", 0, ended)
            names = rest[1:] + names


def child(names: list[str], resize: bool) -> None:
    warnings.simplefilter("ignore")
    for name in names:
        print(
            json.dumps(asdict(try_model(name.removeprefix("+"), name.startswith("+"), resize))),
            flush=True,
        )


def page(found: list[Found]) -> str:
    """docs/backbones.md."""
    families = sorted({(each.module, each.kind) for each in found})
    rows = [
        _row([each for each in found if (each.module, each.kind) == family]) for family in families
    ]
    refused = [f"| `{each.name}` | {each.why} |" for each in found if each.why]
    lists = [
        f"- {module}, {kind}: "
        + ", ".join(
            f"`{each.name}`"
            for each in found
            if (each.module, each.kind) == (module, kind) and not each.why
        )
        for module, kind in families
        if any((each.module, each.kind) == (module, kind) and not each.why for each in found)
    ]
    usable = [each for each in found if not each.why]
    return TEXT.format(
        timm=version("timm"),
        torch=version("torch"),
        n=len(found),
        usable=len(usable),
        most="10^9",
        computed=sum(each.computed for each in usable),
        meta=sum(not each.computed for each in usable),
        rows="\n".join(rows),
        refused="\n".join(refused),
        lists="\n".join(lists),
    )


def _row(family: list[Found]) -> str:
    usable = [each for each in family if not each.why]
    sizes = sorted(each.n_parameters for each in family)
    patches = ", ".join(map(str, sorted({each.patch for each in usable}))) or "-"
    resized = Counter(each.resized for each in usable if each.resized is not None)
    other = "-" if not resized else "yes" if not resized[False] else "no"
    layers = "-" if not usable else "the last" if family[0].kind in BY_FEATURES else "any"
    millions = f"{sizes[0] / 1e6:.3g} to {sizes[-1] / 1e6:.4g}"
    cells = [
        family[0].module,
        family[0].kind,
        len(family),
        len(usable),
        millions,
        patches,
        layers,
        other,
    ]
    return f"| {' | '.join(map(str, cells))} |"


TEXT = """\
# Backbones

`--backbone NAME` takes a vision transformer of timm that has one class token and returns it with a
square grid of patch tokens. timm {timm} has {n} models with a class token; {usable} of them can be
used. `tools/list_backbones.py` tried each of them and wrote this page (torch {torch}, random
weights, names without the tag of their weights).

Each model was tried at its own image size on torch's meta device, which computes shapes only. For
{computed} of the usable models, tokens of small tiles were computed on the CPU too, once for all
models of the same modules: they were finite, and a changed patch changed its own token. The other
{meta} have more than {most} parameters.

Commands make the trial on the meta device too, before they load weights or write anything. So
models of another version of timm are accepted or refused by the same trial.

| timm's module | class | models | usable | parameters, millions | patch, pixels | layers | other image sizes |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

- Patch: the side of the square that one patch token stands for. Convolutions before the transformer
  and stages within it count: it is 32 for `vit_tiny_r_s16_p8_224`. The image size must be a
  multiple of it.
- Layers: `any` allows several (`--layers -4,-1`). For a class with `the last`, timm gives no class
  token of earlier layers.
- Other image sizes: whether weights for the model's own image size work at another size, because
  timm resizes the position embeddings. Tried with the smallest model of each row. If it says `no`,
  give the size in the model's name, for example `--image-size 224 --crop squash`.

## Not usable

| model | reason |
| --- | --- |
{refused}

## Usable

{lists}
"""  # noqa: E501 (the head of the table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="print what is found of these; nothing is written"
    )
    parser.add_argument("--child", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--resize", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.resize)
    elif options.only:
        for each in try_all([(name, True) for name in options.only], resize=True):
            print(each)
    else:
        found = list(try_all(candidates()))
        smallest = {}
        for each in sorted(found, key=lambda each: each.n_parameters):
            if not each.why:
                smallest.setdefault((each.module, each.kind), each.name)
        resized = {
            each.name: each.resized
            for each in try_all([(name, False) for name in smallest.values()], resize=True)
        }
        for each in found:
            each.resized = resized.get(each.name)
        DOC.write_text(page(found), encoding="utf-8")
        usable = {PACKAGED, *(each.name for each in found if not each.why)}
        NAMES.write_text("\n".join(sorted(usable)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
