"""The folders a sweep leaves: one for the sweep, in it one for each point.

Every file appears whole.
"""

import itertools
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from featurestore.disk.durable import appears_whole, check_writable, remove, write_whole
from featurestore.disk.json_values import json_value
from featurestore.disk.tables import write_table
from featurestore.disk.tensor_file import save_tensors
from featurestore.errors import InputError, NoAccessError
from featurestore.format.spec import StoreSpec
from featurestore.photos.targets import CSIRO, Targets
from featurestore.store import FeatureStore
from trainer.config.sections import PointConfig, dump_yaml
from trainer.data.dataset import TrainingData
from trainer.heads import kinds
from trainer.heads.input_columns import InputColumns
from trainer.heads.reads import columns_of, widths_of
from trainer.heads.saved import read_head
from trainer.heads.shape import HeadShape
from trainer.judge.baselines import saved_arrays
from trainer.loop.grid import load_point, safe_name
from trainer.loop.places import moved_places
from trainer.loop.result import SweepResult

WEIGHTS = ("best", "last")
STAMP = "%Y%m%d_%H%M%S"  # local time
SUMMARY = "summary.json"
BLEND = "blend.json"
ALL_FILE = "{which}_all.safetensors"  # of a head trained on every image


@dataclass(frozen=True)
class RunFolder:
    """One point's folder."""

    path: Path

    def begin(self, config: PointConfig, data: TrainingData, n_epochs: int = 0) -> None:
        """Make the folder; of a sweep resumed after n_epochs, drop later lines of its log."""
        (self.path / "weights").mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "config.yaml", dump_yaml(config))
        told = {name: _told_of(used.store) for name, used in data.stores.items()}
        first, *others = told
        spec = {
            "store": told[first]["store"],
            "states": states_of(data.targets),
            "store_folder": told[first]["store_folder"],
        }
        if not data.targets.preset:
            spec["targets"] = data.targets.to_json()
        if columns := data.columns_of(config):
            spec["columns"] = columns.to_json()
        write_whole(self.path / "spec.json", dump_json(spec))
        if others:
            further = {name: told[name] for name in others}
            write_whole(self.path / "stores.json", dump_json(further))
        # later lines, a torn one among them, are of epochs that are trained again
        log = self.path / "metrics.jsonl"
        lines = log.read_text("utf-8").splitlines(keepends=True) if log.exists() else []
        write_whole(log, "".join(lines[:n_epochs]))

    @cached_property
    def config(self) -> PointConfig:
        """InputError if it cannot be read; it says so if the folder is a sweep's."""
        file = self.path / "config.yaml"
        # told apart from a run that lost a file: a sweep's folder has no config.yaml of its own
        if (self.path / "sweep.json").exists() and not file.exists():
            raise InputError(
                f"{self.path}: a sweep's folder, not a run's; give it as --sweep, "
                "or one of the runs in it"
            )
        return load_point(file)

    @property
    def spec(self) -> StoreSpec:
        """Of the first store."""
        return _spec_of(self._spec_json, self.path / "spec.json")

    @cached_property
    def specs(self) -> dict[str, StoreSpec]:
        """Of every store, by the names that `dataset.stores` gives them; of the only one by an
        empty name."""
        first, *others = self.config.dataset.store_names
        specs = {first: self.spec}
        for name in others:
            specs[name] = _spec_of(self._stores_json[name], self.path / "stores.json")
        return specs

    @property
    def targets(self) -> Targets:
        """What its heads learned, with the words of each class.

        Runs of before there were targets are of the preset.
        """
        about = self._spec_json
        if "targets" not in about:
            return CSIRO.with_values({"State": about["states"]})
        return Targets.told(about, str(self.path / "spec.json"))

    @property
    def columns(self) -> InputColumns:
        """What its heads read beside photographs, with the words of classes."""
        told = self._spec_json.get("columns", {})
        return InputColumns.from_json(told, columns_of(self.config), self.path / "spec.json")

    @property
    def store_folder(self) -> Path:
        """Where the first store lay, and the backbone's weights beside it.

        A path that is not absolute starts at the run's folder.
        """
        return self.path / self._spec_json["store_folder"]

    def store_folders(self, name: str | None = None) -> list[Path]:
        """Where the weights that were kept beside a store may be: where it lay, or where it lies if
        all was moved together. name : of the store; None is the first.

        Of a run in a bundle, whose spec.json names a folder of the bundle, that one alone.
        """
        is_first = name is None or name == self.config.dataset.store_names[0]
        about = self._spec_json if is_first else self._stores_json[name]
        told = Path(about["store_folder"])
        places = [self.path / told]
        if told.is_absolute():
            places += moved_places(told, self.path)
        return places

    @cached_property
    def _spec_json(self) -> dict:
        return read_json(self.path / "spec.json", "store", "states", "store_folder")

    @cached_property
    def _stores_json(self) -> dict[str, dict]:
        """What spec.json says of the first store, of the others by name."""
        file = self.path / "stores.json"
        names = self.config.dataset.store_names[1:]
        told = read_json(file, *names)
        for name in names:
            about = told[name]
            if not isinstance(about, dict) or not {"store", "store_folder"} <= about.keys():
                raise InputError(
                    f"{file}: {name}: not what a run says of a store; copy the run again"
                )
        return told

    def log(self, record: Mapping) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(json_value(record)) + "\n")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.path / name, table)

    def save_head(self, file: str, state: dict[str, Tensor]) -> None:
        with appears_whole(self.path / "weights" / file) as partial:
            save_tensors(state, partial)

    def heads(
        self,
        which: str,
        folds: list[int] | None = None,
        without: Collection[str] = (),
    ) -> dict[str, dict[str, Tensor]]:
        """File name and tensors of all heads or of some folds', less some files.

        InputError if one is missing or damaged, MismatchError if it holds other tensors than a head
        of this run.
        """
        names = [name for name in self.head_files(which, folds) if name not in without]
        files = [self.path / "weights" / name for name in names]
        if missing := [f.name for f in files if not f.is_file()]:
            raise InputError(
                f"{self.path}: no {which} weights {', '.join(missing)}; the run is unfinished, a "
                "head failed, or files were lost; choose other --only-folds or --epoch"
            )

        # what the config makes of each tensor, before any is read; None: the kind does not say
        config = self.config
        tokens = {name: spec.tokens for name, spec in self.specs.items()}
        kind = kinds.load(config.head.kind)
        if kind.trained:
            shapes = HeadShape.of(config, tokens, self.targets, self.columns).saved()
            expected = {name: ("F32", shape) for name, shape in shapes.items()}
        else:
            n_features = sum(widths_of(config, tokens))
            expected = saved_arrays(config, self.targets, n_features, self.columns.width)
        return {f.name: read_head(f, expected) for f in files}

    def splits(self, folds: list[int] | None = None) -> list[tuple[int, int] | None]:
        """(repeat, fold) of each head that `heads` gives, in its order; None for the one that
        learned on every image."""
        cv = self.config.cv
        if cv.fold == "all":
            return [None]
        if folds is None:
            folds = list(range(cv.n_folds)) if cv.fold is None else [cv.fold]
        return list(itertools.product(range(cv.repeats), folds))

    def weights_for(self, which: str) -> str:
        """The weights that `best` or `last` means here: a regressor has no epochs to choose from,
        and gives its last ones for either."""
        return which if kinds.load(self.config.head.kind).trained else "last"

    def head_files(self, which: str, folds: list[int] | None = None) -> list[str]:
        """Names of the files that `heads` reads, beside `splits`; InputError if it has none."""
        cv = self.config.cv
        kind = kinds.load(self.config.head.kind)
        if kind.report_only:
            raise InputError(
                f"{self.path}: {self.config.head.kind} is for reports only, it is not saved; "
                "choose another run"
            )
        which = self.weights_for(which)
        if cv.fold == "all":
            if folds is not None:
                raise InputError(
                    f"{self.path}: one head, trained on every image; there are no folds to choose"
                )
            return [ALL_FILE.format(which=which)]
        return [head_file(which, *split, cv.repeats) for split in self.splits(folds)]


class SweepFolder:
    """The folder of a whole sweep, `STAMP_NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, name: str) -> "SweepFolder":
        """A new folder named for the second it was begun in."""
        stamp = time.strftime(STAMP)
        check_writable(out)
        taken = {path.name for path in out.iterdir()}
        suffixes = itertools.chain([""], (f"-{i}" for i in itertools.count(1)))  # begun together
        names = (f"{stamp}{suffix}_{safe_name(name)}" for suffix in suffixes)
        path = out / next(each for each in names if each not in taken)
        path.mkdir()
        return cls(path)

    def run(self, name: str) -> RunFolder:
        """The folder of a point."""
        return RunFolder(self.path / name)

    @property
    def refit(self) -> RunFolder:
        """Of what was chosen, trained on every image."""
        return RunFolder(self.path / "refit")

    @property
    def is_refitted(self) -> bool:
        of_before = self.refit.path / "weights" / ALL_FILE.format(which="last")
        return (self.refit.path / BLEND).exists() or of_before.exists()

    @property
    def is_finished(self) -> bool:
        return (self.path / SUMMARY).exists()

    def result(self) -> SweepResult:
        """What a finished sweep found."""
        summary = read_json(self.path / SUMMARY, "best", "notes", "points")
        failed = {}
        for point in summary["points"]:
            failure = point.get("failed")
            steps = point.get("failed_at_batch")
            if not failure and steps:  # written before `failed` was there
                failure = f"its loss was no longer finite after {min(steps.values())} steps"
            if failure:
                failed[point["name"]] = failure
        return SweepResult(
            self.path,
            pd.read_csv(self.path / "summary.csv"),
            summary["best"],
            summary.get("chosen"),
            summary.get("headline"),
            summary["notes"],
            failed,
        )

    def checkpoint(self, points: Sequence[int] | str) -> Path:
        """File of the pass that trains these points."""
        name = points if isinstance(points, str) else f"points{min(points)}-{max(points)}"
        return self.path / "checkpoints" / f"{name}.safetensors"

    def pass_note(self, points: Sequence[int]) -> Path:
        """File of what that pass came to."""
        return self.checkpoint(f"results{min(points)}-{max(points)}")

    def fit_note(self, point: int | str) -> Path:
        """The same of a point that is fitted on pooled rows, or for a baseline."""
        return self.checkpoint(f"fit{point}" if isinstance(point, int) else f"fit_{point}")

    def remove_checkpoints(self) -> None:
        """A finished sweep needs none."""
        remove(self.path / "checkpoints")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.path / name, table)

    def write_json(self, name: str, value: Mapping) -> None:
        write_whole(self.path / name, dump_json(value))


def states_of(targets: Targets) -> list[str]:
    """The States that heads of the preset tell; none elsewhere."""
    return list(targets["State"].values) if targets.preset else []


def _told_of(store: FeatureStore) -> dict[str, Any]:
    """What a run keeps of a store."""
    return {"store": json.loads(store.spec.to_json()), "store_folder": store.folder}


def _spec_of(told: Mapping, where: Path) -> StoreSpec:
    return StoreSpec.from_json(json.dumps(told["store"]), str(where))


def head_file(which: str, repeat: int, fold: int, n_repeats: int) -> str:
    """best_fold0.safetensors; with repeats best_r00_fold0.safetensors."""
    of_repeat = f"r{repeat:02d}_" if n_repeats > 1 else ""
    return f"{which}_{of_repeat}fold{fold}.safetensors"


def read_json(path: Path, *keys: str) -> dict:
    """A JSON object with at least these keys; InputError if the file does not hold one."""
    try:
        value = json.loads(path.read_bytes())
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"lacks {', '.join(missing)}")
        return value
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except OSError as err:
        raise InputError(
            f"{path}: cannot be read ({err.strerror}); is this the folder of a sweep or run?"
        ) from err
    except (ValueError, TypeError, RecursionError) as err:
        raise InputError(f"{path}: not the JSON of a sweep or run ({err})") from err


def dump_json(value: Mapping) -> str:
    """JSON as UTF-8 can hold it.

    Bytes of a path that are not UTF-8 become JSON's own escapes, which reading gives back.
    """
    text = json.dumps(json_value(value), indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace").decode()
