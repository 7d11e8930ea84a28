"""What a bundle tells people and upload tools: notebook, README.md, and Kaggle's metadata."""

import json
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader

from featurestore.format.spec import StoreSpec
from featurestore.photos.targets import Targets
from predictor.bundle.listing import LISTING, ListedBackbone, ListedMember
from predictor.members.member import Member
from predictor.members.oof import score_of

USER = "INSERT_KAGGLE_USER"
TITLE = "biomass-bundle"

ABOUT = """\
# Dry masses of pasture photographs

Needs this folder, a folder with `test.csv` and its photographs, and no network. Leaves
`submission.csv`, and `predictions.csv` with all masses and their spread. Run all cells. This file
is one of those that are checked: change settings in a copy of it elsewhere, or by the variables
`BIOMASS_...`."""

ABOUT_OTHERS = """\
# {names} of photographs

Needs this folder, a folder with `test.csv` and its photographs, and no network. Leaves
`predictions.csv` with {names}. Where `test.csv` has a row for each photograph and target, set
`BIOMASS_OUT` to the name of the table with the same rows. Run all cells. This file
is one of those that are checked: change settings in a copy of it elsewhere, or by the variables
`BIOMASS_...`."""

SETTINGS = """\
import os
from pathlib import Path

INPUTS = Path("/kaggle/input")
# Folder with bundle.json; empty: this one, or the only one under INPUTS
BUNDLE = os.environ.get("BIOMASS_BUNDLE", "")
# Folder with test.csv; empty: this one, or the only one under INPUTS
DATA = os.environ.get("BIOMASS_DATA", "")
# sha256 of bundle.json, as `biomass bundle` printed it; empty: not compared
SHA256 = ""
# Views averaged: 1, 2, 4 or 8
TTA = 4
# From when the last cell starts: fewer views rather than overrun
DEADLINE = "8h30m"
# True: also photographs that test.csv's folder only links to
ALLOW_OUTSIDE = bool(os.environ.get("BIOMASS_ALLOW_OUTSIDE"))
OUT = Path(os.environ.get("BIOMASS_OUT", "OUTPUT"))


def folder_with(name, told, setting):
    if told:
        found = [Path(told)]
    elif Path(name).exists():
        found = [Path()]
    else:
        found = sorted(file.parent for file in INPUTS.rglob(name))
    if len(found) != 1 or not (found[0] / name).exists():
        places = ", ".join(map(str, found)) or "none"
        raise FileNotFoundError(f"set {setting}: one folder with {name} is needed, found {places}")
    return found[0].resolve()


bundle = folder_with("bundle.json", BUNDLE, "BUNDLE")
data = folder_with("test.csv", DATA, "DATA")
if bundle in OUT.resolve().parents:
    OUT = bundle.parent / OUT.name  # a bundle stays as it is
print(bundle, data, OUT, sep="\\n")"""

UNPACK = """\
import hashlib
import sys
import tempfile
import zipfile

# Pure Python: unpacked it can be imported, and nothing is installed
wheel = bundle / "wheel" / "{name}"
if hashlib.sha256(wheel.read_bytes()).hexdigest() != "{sha256}":
    raise ImportError(
        f"{{wheel}} is not the one that this notebook was made with; copy the bundle again"
    )
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
predict_to_file(
    data,
    OUT,
    print,
    bundle=bundle,
    tta=TTA,
    device=device,
    deadline=DEADLINE,
    resume=True,
    allow_outside=ALLOW_OUTSIDE,
)
unpacked.cleanup()"""

LOOK = """\
import pandas as pd

pd.read_csv(OUT).head(10)"""


def notebook(wheel: str, wheel_sha256: str, targets: Targets) -> str:
    """predict.ipynb, which runs no other wheel than this one."""
    about = ABOUT
    output = "submission.csv"
    if not targets.preset:
        about = ABOUT_OTHERS.format(names=", ".join(target.name for target in targets.each))
        output = "predictions.csv"
    cells = {
        "about": about,
        "settings": SETTINGS.replace("OUTPUT", output),
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
    # by nbformat's schema, which refuses these two keys in a text
    if name == "about":
        return cell | {"cell_type": "markdown"}
    return cell | {"execution_count": None, "outputs": []}


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


def readme(
    members: Mapping[str, Member],
    listed: Sequence[ListedMember],
    backbones: Sequence[ListedBackbone],
    wheel: str,
) -> str:
    """README.md, in the manner of a model card."""
    about_members = []
    specs = []
    for (name, member), told in zip(members.items(), listed, strict=True):
        specs += member.specs.values()
        about = {
            "name": name,
            "kind": member.config.head.kind,
            "weights": told.weights,
            "folds": "all" if told.folds is None else ", ".join(map(str, told.folds)),
            "n_heads": len(member.heads),
            "share": f"{told.weight:.3f}",
            "score": "learned on every image",
        }
        if member.has_oof:  # the mean of its repeats
            about["score"] = f"{score_of(member, member.oof):.4f}"
        about_members.append(about)
    about_backbones = []
    for each in backbones:
        about = {
            "model": each.model,
            "tokens": _tokens(specs, each.weights_sha256),
            "file": each.file,
            "licence": each.licence,
            "weights_sha256": each.weights_sha256,
        }
        about_backbones.append(about)
    # Markdown, in which nothing is escaped: what stands here is the maker's own
    targets = next(iter(members.values())).targets
    texts = Environment(loader=PackageLoader("predictor.bundle"), keep_trailing_newline=True)
    return texts.get_template("README.md").render(
        title=TITLE,
        columns=list(dict.fromkeys(name for m in members.values() for name in m.columns.names)),
        targets=targets.names,
        told=[target.name for target in targets.each],
        is_contest=bool(targets.preset),
        version=wheel.split("-")[1],
        members=about_members,
        backbones=about_backbones,
        wheel=wheel,
        listing=LISTING,
    )


def _tokens(specs: Sequence[StoreSpec], weights_sha256: str) -> str:
    """What tokens of these weights are made from: of several stores each, once."""
    made_from = [
        f"{spec.tokens.crop_and_fit}, {spec.tokens.tile_height} x {spec.tokens.tile_width} pixels"
        for spec in specs
        if spec.tokens.weights_sha256 == weights_sha256
    ]
    return "; ".join(dict.fromkeys(made_from))
