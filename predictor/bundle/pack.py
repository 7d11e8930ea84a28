"""Making a bundle: the heads of runs and sweeps, what they need to predict, and a list."""

import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

import pandas as pd

from featurestore.backbone.demo.model import NAME as PACKAGED
from featurestore.backbone.load import backbone_of_store
from featurestore.backbone.weights import UNKNOWN_WEIGHTS, is_random, saved_weights_path
from featurestore.disk.durable import appears_whole, check_writable, file_sha256
from featurestore.disk.messages import say
from featurestore.disk.tables import find_table, read_text
from featurestore.disk.tensor_file import save_tensors
from featurestore.errors import InputError, NoAccessError, UsageError
from predictor.bundle.bundle import Bundle, check_bundle, check_reach
from predictor.bundle.listing import (
    BACKBONE_FOLDER,
    FORMAT,
    FORMAT_VERSION,
    LISTING,
    NAME,
    UPLOAD_FILES,
    ListedBackbone,
    ListedFile,
    ListedMember,
    Listing,
)
from predictor.bundle.texts import dataset_metadata, kernel_metadata, notebook, readme
from predictor.bundle.wheel import metadata, write_wheel
from predictor.checks import check_backbone_choice, check_is_source, check_new
from predictor.extras.blend import Blend, weighed
from predictor.members.combine import Combiner
from predictor.members.member import Member, say_lone_folds
from predictor.members.sweep_rows import completed, describe_row, outdone, row_names, row_of
from trainer.config.sections import PointConfig, dump_yaml
from trainer.loop.blend_folder import SharedRun, is_blend, shared_runs
from trainer.loop.runs import dump_json

LICENCE_FILE = "backbone/LICENCE.txt"
MAX_LICENCE = 1 << 20


@dataclass(frozen=True)
class BackboneChoice:
    """Whether backbones' weights go along, where they come from, and the text of their licence."""

    included: bool = False
    weights: str | None = None
    """A file; None is what was kept beside the store, or is packaged."""

    licence: Path | None = None

    def __post_init__(self) -> None:
        check_backbone_choice(self.included, self.weights, self.licence)
        if self.licence:
            self.licence_text()

    def licence_text(self) -> str:
        """The licence; InputError for a file that is empty, large or no text."""
        try:
            with open(self.licence, encoding="utf-8") as file:
                # no more: any file may have been given, one without end too
                text = file.read(MAX_LICENCE)
        except PermissionError as err:
            raise NoAccessError.of(err, self.licence) from err
        except (OSError, UnicodeDecodeError) as err:
            raise InputError(
                f"{self.licence}: cannot be read as UTF-8 text ({err}); give the licence's text"
            ) from err
        if not text.strip() or "\0" in text or len(text.encode()) >= MAX_LICENCE:
            raise InputError(
                f"{self.licence}: empty, of {MAX_LICENCE} bytes or more, or no text; give the "
                "licence's text"
            )
        return text


def make_bundle(
    sources: Sequence[Path],
    out: Path,
    points: str = "chosen",
    folds: Sequence[int] | None = None,
    weights: str = "last",
    blend: Blend | None = None,
    backbone: BackboneChoice | None = None,
    say: Callable[[str], object] = say,
) -> Bundle:
    """Make the folder `out`, whole or not at all: the same inputs give the same bytes.

    sources : folders of runs, blends and sweeps; points : of sweeps, `chosen`, `best`, `all` or
        names with commas.
    folds, weights : which heads; blend : shares in the ensemble, None is as the sources say.
    backbone : None is without.
    say : told what a person should know.

    Raises InputError if `out` exists or cannot be written, a run lacks something, or a licence is
    missing; MismatchError if the backbone's weights are others than those that made the tokens.
    """
    out, place = Path(out), Path(os.path.abspath(out))
    check_new(out)
    folds = sorted(set(folds)) if folds else None
    runs = chosen_runs(sources, points, say)
    names = _names([run.path for run in runs])
    members = [Member.load(run.path, folds, weights).weighing(run.share) for run in runs]
    for member in members:
        check_reach(member.run)
    say_lone_folds(members, say)
    Combiner(members)  # those that do not go together are refused
    if blend:
        members = weighed(members, blend, say)
    check_writable(place.parent)
    try:
        with appears_whole(place) as partial:
            partial.mkdir()
            named = {names[member.run.path]: member for member in members}
            _fill(partial, named, folds, backbone or BackboneChoice(), say)
            made = check_bundle(partial)  # what its own check refuses does not appear
    except PermissionError as err:
        raise NoAccessError.of(err, out, what="read or write") from err
    except OSError as err:
        raise InputError(
            f"{err.filename2 or err.filename or out}: cannot be read or written ({err.strerror}); "
            "make room, or choose another --out"
        ) from err
    return replace(made, path=out)


def chosen_runs(
    sources: Sequence[Path],
    points: str = "chosen",
    say: Callable[[str], object] = say,
) -> list[SharedRun]:
    """The runs meant, each once, however it was spelled, with its share; InputError for a folder
    that is neither a run, a blend nor a sweep, or a sweep without such points.

    A blend's members share one; a run alone has one of its own.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        check_is_source(source)
        if (source / "summary.json").exists():
            found += _of_sweep(source, points, say)
        else:
            found.append(source)
    shares: dict[Path, float] = {}
    for folder in dict.fromkeys(path.resolve() for path in found):  # `.` has no name to go by
        for run in shared_runs(folder):
            if run.share > 0:
                shares[run.path] = shares.get(run.path, 0.0) + run.share
    return [SharedRun(path, share) for path, share in shares.items()]


def _of_sweep(sweep: Path, points: str, say: Callable[[str], object]) -> list[Path]:
    """Folders of rows, with baselines that tell targets which these do not."""
    if points in ("chosen", "best"):
        rows = [row_of(sweep, points)]
        say(f"heads of {describe_row(rows[0], points)}")
        if rival := outdone(sweep, rows[0]):
            say(f"warning: {rival}".replace("--point ", "--points "))
    elif points == "all":
        usable = _usable(sweep, say)
        rows = [sweep / name for name in row_names(sweep) if name in usable]
    else:
        rows = [row_of(sweep, name.strip()) for name in points.split(",")]
    return completed(sweep, rows, say) if rows else rows


def _usable(sweep: Path, say: Callable[[str], object]) -> set[str]:
    """Points of a sweep that have heads to predict with."""
    # of the mean and ridge beside them it says nothing, of blends that they cannot fail
    summary = pd.read_csv(sweep / "summary.csv").dropna(subset="failed")
    usable = set()
    for name, failed in zip(summary["name"], summary["failed"], strict=True):
        weights = sweep / name / "weights"
        if bool(failed) or not weights.is_dir():
            continue
        if any(file.suffix == ".safetensors" for file in weights.iterdir()):
            usable.add(name)

    blends = {name for name in summary["name"] if is_blend(sweep / name)}
    lacking = sorted(set(summary["name"]) - usable - blends)
    if lacking:
        say(f"without {', '.join(lacking)}: failed, or for reports only")
    return usable


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """A folder's name for each run: its own, with its sweep's before it where two are alike.

    InputError for names that are still alike, or that no bundle may hold.
    """
    count = Counter(run.name for run in runs)
    names = {}
    for run in runs:
        is_alone = count[run.name] == 1
        names[run] = run.name if is_alone else f"{run.parent.name}__{run.name}"
    if twice := sorted(name for name, n in Counter(names.values()).items() if n > 1):
        raise InputError(
            f"runs of the same name, of sweeps of the same name: {', '.join(twice)}; rename a "
            "sweep's folder"
        )
    bad = []
    for name in names.values():
        if not (re.fullmatch(NAME, name) and name.isprintable()):
            bad.append(repr(name))
    if bad:
        raise InputError(f"folders whose names no bundle may hold: {', '.join(bad)}; rename them")
    # bundle.json would misspell them
    if sys.getfilesystemencoding() != "utf-8" and not all(map(str.isascii, names.values())):
        raise InputError(
            f"{', '.join(map(str, names))}: this locale's file names are "
            f"{sys.getfilesystemencoding()}, a bundle's "
            "are UTF-8; set LC_ALL=C.UTF-8, or rename the folders"
        )
    return names


def _fill(
    folder: Path,
    members: dict[str, Member],
    folds: Sequence[int] | None,
    choice: BackboneChoice,
    say: Callable[[str], object],
) -> None:
    """Write everything into an empty folder, the listing last."""
    for name, member in members.items():
        _write_run(folder / "runs" / name, member, folds)
    backbones = _write_backbones(folder, list(members.values()), choice, say)
    # of this very program: what predicts there must read what was written here
    (folder / "wheel").mkdir()
    wheel = write_wheel(folder / "wheel")
    listed = [
        ListedMember(
            name=name,
            weights=member.weights,
            folds=list(folds) if folds else None,
            weight=member.weight,
        )
        for name, member in members.items()
    ]
    targets = next(iter(members.values())).targets
    _write(folder / "predict.ipynb", notebook(wheel.name, file_sha256(wheel), targets))
    _write(folder / "README.md", readme(members, listed, backbones, wheel.name))
    files = {}
    for path in sorted(folder.rglob("*")):  # in one order: the same inputs give the same bytes
        if path.is_file():
            listed_file = ListedFile(size=path.stat().st_size, sha256=file_sha256(path))
            files[str(path.relative_to(folder))] = listed_file
    listing = Listing(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        biomass=metadata().version,
        members=listed,
        backbones=backbones,
        files=files,
    )
    _write(folder / LISTING, dump_json(listing.model_dump()))
    # behind the listing, and not in it: users put their names into these
    for name, text in zip(UPLOAD_FILES, (dataset_metadata(), kernel_metadata()), strict=True):
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    """Text as UTF-8, whatever the locale is."""
    path.write_bytes(text.encode())


def _write_run(folder: Path, member: Member, folds: Sequence[int] | None) -> None:
    """A run's folder with nothing but what predict reads, and no path of this machine."""
    run = member.run
    (folder / "weights").mkdir(parents=True)
    for file in run.head_files(member.weights, list(folds) if folds else None):
        copyfile(run.path / "weights" / file, folder / "weights" / file)
    _write(folder / "config.yaml", dump_yaml(_without_folders(member.config)))
    here = {"store_folder": BACKBONE_FOLDER}
    spec = json.loads((run.path / "spec.json").read_bytes())
    _write(folder / "spec.json", dump_json(spec | here))
    if len(run.specs) > 1:
        stores = json.loads((run.path / "stores.json").read_bytes())
        others = {name: told | here for name, told in stores.items()}
        _write(folder / "stores.json", dump_json(others))
    if member.has_oof:  # a refit has none
        table = read_text(find_table(run.path / "oof.csv"))
        _write(folder / "oof.csv", _rows_of(table, member.weights))


def _without_folders(config: PointConfig) -> PointConfig:
    """The config, its files by their names alone."""
    store = config.dataset.store
    folds = config.cv.folds
    stores = {name: Path(Path(place).name) for name, place in config.dataset.stores.items()}
    dataset = config.dataset.model_copy(
        update={"store": Path(Path(store).name) if store else None, "stores": stores}
    )
    cv = config.cv.model_copy(update={"folds": Path(folds.name) if folds else None})
    return config.model_copy(update={"dataset": dataset, "cv": cv})


def _rows_of(table: str, weights: str) -> str:
    """An out-of-fold table's rows of `best` or `last`, every number as it was written."""
    # not pandas, which would write some numbers with other digits
    header, *rows = csv.reader(io.StringIO(table))
    which = header.index("weights")
    own = [row for row in rows if row[which] == weights]
    chosen = io.StringIO()
    csv.writer(chosen, lineterminator="\n").writerows([header, *own])
    return chosen.getvalue()


def _write_backbones(
    folder: Path,
    members: Sequence[Member],
    choice: BackboneChoice,
    say: Callable[[str], object],
) -> list[ListedBackbone]:
    """The backbones that the members need, each once, with their weights if requested."""
    distinct = {}
    for member in members:
        for name, spec in member.specs.items():
            # whichever member comes last: any store of these weights leads to them
            distinct[spec.tokens.model, spec.tokens.weights_sha256] = member, name
    if choice.weights and len(distinct) > 1:
        raise UsageError(
            f"--backbone-weights is one file, the runs need {len(distinct)} backbones; keep each "
            "beside its store"
        )
    if choice.licence:
        (folder / "backbone").mkdir()
        _write(folder / LICENCE_FILE, choice.licence_text())
    listed = []
    for model, weights_sha256 in sorted(distinct):
        member, name = distinct[model, weights_sha256]
        file = None
        if choice.included:
            file = _write_backbone(folder / "backbone", member, name, choice)
        random = is_random(member.specs[name])
        packaged = model == PACKAGED and weights_sha256 != UNKNOWN_WEIGHTS
        if file is None and not (choice.included or packaged or random):
            say(
                f"without the weights of {model}: where this predicts, give them with "
                "--backbone-weights"
            )
        licence = "random weights" if random else licence_note(model)
        listed.append(
            ListedBackbone(
                model=model,
                weights_sha256=weights_sha256,
                licence=licence,
                file=file and str(file.relative_to(folder)),
            )
        )
    return listed


def _write_backbone(folder: Path, member: Member, name: str, choice: BackboneChoice) -> Path:
    """Weights in a file named for their hash, once that was compared with that of a member's store
    of this name."""
    spec = member.specs[name]
    tokens = spec.tokens
    random = is_random(spec) and not choice.weights
    if "dinov3" in tokens.model and tokens.model != PACKAGED and not random and not choice.licence:
        raise InputError(
            f"{tokens.model}: DINOv3's weights may be passed on with the text of their licence "
            "only; give it with --backbone-licence FILE, or make the bundle without --with-backbone"
        )
    model = backbone_of_store(
        spec,
        choice.weights,
        member.run.store_folders(name),
        "--backbone-weights",
        "cpu",
        "fp32",
    ).model
    folder.mkdir(exist_ok=True)
    path = saved_weights_path(folder, tokens.weights_sha256)
    save_tensors(model.state_dict(), path)
    return path


def licence_note(model: str) -> str:
    """What timm says of the licence of a model's weights."""
    import timm

    told = timm.get_pretrained_cfg(model)
    return (told and told.license) or "not stated by timm"
