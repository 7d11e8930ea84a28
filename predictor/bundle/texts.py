"""What a bundle tells people and upload tools: predict.ipynb, README.md, and the metadata that
`kaggle` reads."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from predictor.bundle.bundle import LISTING, ListedBackbone, ListedMember
from predictor.members.member import Member
from trainer.score.metrics import TARGETS, weighted_r2

USER = "INSERT_KAGGLE_USER"
TITLE = "biomass-bundle"

ABOUT = """\
# Dry masses of pasture photographs

Needs this folder, a folder with `test.csv` and its photographs, and no network. Leaves `submission.csv`, and `predictions.csv`
with all masses and their spread. Run all cells. This file is one of those that are checked: change settings in a copy of it
elsewhere, or by the variables `BIOMASS_...`."""

SETTINGS = """\
import os
from pathlib import Path

INPUTS = Path("/kaggle/input")
BUNDLE = os.environ.get("BIOMASS_BUNDLE", "")  # folder with bundle.json; empty: this one, or the only one under INPUTS
DATA = os.environ.get("BIOMASS_DATA", "")      # folder with test.csv; empty: this one, or the only one under INPUTS
SHA256 = ""                                    # of bundle.json, as `biomass bundle` printed it; empty: not compared
TTA = 4                                        # views averaged: 1, 2, 4 or 8
DEADLINE = "8h30m"                             # from when the last cell starts: fewer views rather than overrun
ALLOW_OUTSIDE = bool(os.environ.get("BIOMASS_ALLOW_OUTSIDE"))  # True: also photographs that test.csv's folder only links to
OUT = Path(os.environ.get("BIOMASS_OUT", "submission.csv"))


def folder_with(name, told, setting):
    found = [Path(told)] if told else [Path()] if Path(name).exists() else sorted(file.parent for file in INPUTS.rglob(name))
    if len(found) != 1 or not (found[0] / name).exists():
        raise FileNotFoundError(f"set {setting}: one folder with {name} is needed, found {', '.join(map(str, found)) or 'none'}")
    return found[0].resolve()


bundle, data = folder_with("bundle.json", BUNDLE, "BUNDLE"), folder_with("test.csv", DATA, "DATA")
if bundle in OUT.resolve().parents:
    OUT = bundle.parent / OUT.name             # a bundle stays as it is
print(bundle, data, OUT, sep="\\n")"""

UNPACK = """\
import hashlib
import sys
import tempfile
import zipfile

wheel = bundle / "wheel" / "{name}"  # pure Python: unpacked it can be imported, and nothing is installed
if hashlib.sha256(wheel.read_bytes()).hexdigest() != "{sha256}":
    raise ImportError(f"{{wheel}} is not the one that this notebook was made with; copy the bundle again")
if "unpacked" not in globals():  # run again, it goes to the same place: what is imported stays so
    unpacked = tempfile.TemporaryDirectory(prefix=".biomass-", dir=OUT.absolute().parent)
    sys.path.insert(0, unpacked.name)
zipfile.ZipFile(wheel).extractall(unpacked.name)"""

PREDICT = """\
import torch
from predictor.bundle.bundle import check_bundle
from predictor.end_to_end import predict_to_file

print(check_bundle(bundle, SHA256 or None))
device = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "cpu"
predict_to_file(data, OUT, print, bundle=bundle, tta=TTA, device=device, deadline=DEADLINE, resume=True,
                allow_outside=ALLOW_OUTSIDE)
unpacked.cleanup()"""

LOOK = """\
import pandas as pd

pd.read_csv(OUT).head(10)"""


def notebook(wheel: str, wheel_sha256: str) -> str:
    """predict.ipynb, which runs no other wheel than this one."""
    cells = {
        "about": ABOUT,
        "settings": SETTINGS,
        "unpack": UNPACK.format(name=wheel, sha256=wheel_sha256),
        "predict": PREDICT,
        "look": LOOK,
    }
    return _json(
        {
            "cells": [_cell(name, text) for name, text in cells.items()],
            "metadata": {
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                "language_info": {"name": "python"},
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def _cell(name: str, text: str) -> dict:
    cell = {
        "cell_type": "code",
        "id": name,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    return cell | (
        {"cell_type": "markdown"} if name == "about" else {"execution_count": None, "outputs": []}
    )


def dataset_metadata() -> str:
    """What `kaggle datasets create` reads, once the user has put in a name."""
    return _json({"title": TITLE, "id": f"{USER}/{TITLE}", "licenses": [{"name": "other"}]})


def kernel_metadata() -> str:
    """What `kaggle kernels push` reads: the notebook over that dataset, offline, on a GPU."""
    return _json(
        {
            "id": f"{USER}/{TITLE}-predict",
            "title": f"{TITLE}-predict",
            "code_file": "predict.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": True,
            "enable_internet": False,
            "dataset_sources": [f"{USER}/{TITLE}"],
            "competition_sources": [],
            "kernel_sources": [],
        }
    )


def _json(value: Mapping) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


README = """\
---
tags: [biomass, pasture, regression]
---
# {title}

Heads that predict dry masses, in grams, from top-view photographs of pasture: {targets}. Made by biomass {version}.

| member | kind | weights | folds | heads | share | out of fold |
| --- | --- | --- | --- | --- | --- | --- |
{members}

"Out of fold" is the weighted R2 of predictions by heads that never saw a photograph's site, over all folds, mean of the repeats.

| backbone | tokens | weights here | licence of the weights, as timm has it | sha256 of its tensors |
| --- | --- | --- | --- | --- |
{backbones}

Not for decisions about animals or land without measurements beside it: the heads know the pastures, seasons and the camera
height they learned from. `runs/*/oof.csv` holds the masses of the training photographs; publish it where their licence lets you.

## Predict

From another folder, since nothing may be added to this one, and Python imports what lies where it is started; DIR is this one:

```
biomass predict --bundle DIR --data FOLDER_WITH_TEST_CSV
```

or, where biomass is not installed but torch, torchvision, timm, numpy, pandas, scipy, Pillow, safetensors, pydantic, PyYAML, tqdm, click
and Jinja2 are,

```
pip install --no-deps --no-index DIR/wheel/{wheel}
python -m predictor --bundle DIR --data FOLDER_WITH_TEST_CSV
```

or `predict.ipynb`. All check every file against `{listing}` first; `biomass bundle check DIR --sha256 HEX` compares that file's
own sha256 too.

## Upload, with your own account and tools

Put your name and a title into `dataset-metadata.json` (and `kernel-metadata.json`, with the contest under `competition_sources`);
these two are no part of what is checked. Then

```
kaggle datasets create -p . -r zip -t            # private; later: kaggle datasets version -p . -r zip -t -m "what changed"
kaggle kernels push -p .                         # predict.ipynb over it, offline
python -c "import kagglehub; kagglehub.dataset_upload('USER/NAME', '.')"    # instead of the first
hf upload USER/NAME . . --private                # Hugging Face
hf download USER/NAME --local-dir DIR --exclude .gitattributes && rm -r DIR/.cache
```
"""


def readme(
    members: Mapping[str, Member],
    listed: Sequence[ListedMember],
    backbones: Sequence[ListedBackbone],
    wheel: str,
) -> str:
    """README.md, in the manner of a model card."""
    rows = [
        _row(name, member, told)
        for (name, member), told in zip(members.items(), listed, strict=True)
    ]
    specs = {member.spec.tokens.weights_sha256: member.spec.tokens for member in members.values()}
    about = [
        f"| {each.model} | {specs[each.weights_sha256].crop}, "
        f"{specs[each.weights_sha256].tile_height} x "
        f"{specs[each.weights_sha256].tile_width} pixels | {each.file or 'no'} | {each.licence} | "
        f"{each.weights_sha256} |"
        for each in backbones
    ]
    return README.format(
        title=TITLE,
        targets=", ".join(TARGETS),
        version=wheel.split("-")[1],
        members="\n".join(rows),
        backbones="\n".join(about),
        wheel=wheel,
        listing=LISTING,
    )


def _row(name: str, member: Member, told: ListedMember) -> str:
    folds = "all" if told.folds is None else ", ".join(map(str, told.folds))
    cells = [
        name.replace("|", "&#124;"),
        member.config.head.kind,
        told.weights,
        folds,
        len(member.heads),
        f"{told.weight:.3f}",
        _score(member),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _score(member: Member) -> str:
    """Weighted R2 of the run's out-of-fold table, mean of its repeats."""
    if not (member.run.path / "oof.csv").exists():
        return "learned on every image"
    scores = [
        weighted_r2(
            table[[f"true_{name}" for name in TARGETS]].to_numpy(float),
            table[list(TARGETS)].to_numpy(float),
        )
        for _, table in member.oof.groupby("repeat")
    ]
    return f"{np.mean(scores):.4f}"
