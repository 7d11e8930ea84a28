"""The folders a sweep leaves: one for the sweep, in it one for each point; every file appears whole."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurestore._bytes import appears_whole, check_writable, remove, write_whole
from featurestore.errors import InputError
from featurestore.spec import StoreSpec
from featurestore.store import FeatureStore
from trainer.config import PointConfig, dump_yaml, safe_name

WEIGHTS = ("best", "last")


@dataclass(frozen=True)
class RunFolder:
    """One point's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: PointConfig, store: FeatureStore, states: list[str], n_epochs: int = 0) -> "RunFolder":
        """A point's folder, new or of a sweep that is resumed after n_epochs: later lines of its log are dropped."""
        (path / "weights").mkdir(parents=True, exist_ok=True)
        write_whole(path / "config.yaml", dump_yaml(config))
        write_whole(path / "spec.json", dump_json({"store": json.loads(store.spec.to_json()), "states": states,
                                                   "store_folder": str(store.path.parent)}))
        log = path / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        write_whole(log, "".join(lines[:n_epochs]))
        return cls(path)

    @property
    def config(self) -> PointConfig:
        return PointConfig.load(self.path / "config.yaml")

    @property
    def spec(self) -> StoreSpec:
        return StoreSpec.from_json(json.dumps(self._spec_json()["store"]), str(self.path / "spec.json"))

    @property
    def states(self) -> list[str]:
        return self._spec_json()["states"]

    @property
    def store_folder(self) -> Path:
        """Where the store lay, and the backbone's weights beside it."""
        return Path(self._spec_json()["store_folder"])

    def _spec_json(self) -> dict:
        return read_json(self.path / "spec.json", "store", "states", "store_folder")

    def log(self, record: Mapping) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(_plain(record)) + "\n")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        write_whole(self.path / name, table.to_csv(index=False))

    def save_head(self, which: str, repeat: int, fold: int, n_repeats: int, state: dict[str, Tensor]) -> None:
        with appears_whole(self.path / "weights" / head_file(which, repeat, fold, n_repeats)) as partial:
            save_file(state, partial)

    def heads(self, which: str, folds: list[int] | None = None) -> dict[str, dict[str, Tensor]]:
        """File name and tensors of all heads, or of those of some folds. InputError if one is missing or damaged."""
        cv = self.config.cv
        made = list(range(cv.n_folds)) if cv.fold is None else [cv.fold]
        wanted = made if folds is None else folds
        files = [self.path / "weights" / head_file(which, repeat, fold, cv.repeats)
                 for repeat in range(cv.repeats) for fold in wanted]
        if missing := sorted({int(f.stem.rsplit("fold", 1)[1]) for f in files if not f.is_file()}):
            raise InputError(f"{self.path}: no {which} weights of folds {missing}; the run is unfinished or lost files, or "
                             "choose other --folds or --weights")
        return {f.name: _load_head(f) for f in files}


class SweepFolder:
    """The folder of a whole sweep, `STAMP_NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, name: str) -> "SweepFolder":
        """A new folder named for the second it was begun in."""
        stamp = time.strftime("%Y%m%d_%H%M%S")
        check_writable(out)
        taken = {path.name for path in out.iterdir()}
        names = (f"{stamp}{f'-{i}' if i else ''}_{safe_name(name)}" for i in itertools.count())
        path = out / next(each for each in names if each not in taken)
        path.mkdir()
        return cls(path)

    def checkpoint(self, points: Sequence[int], every: int) -> Path:
        """File of the pass that trains these points; its folder is made if there will be one."""
        if every:
            (self.path / "checkpoints").mkdir(exist_ok=True)
        return self.path / "checkpoints" / f"points{min(points)}-{max(points)}.safetensors"

    def remove_checkpoints(self) -> None:
        """A finished sweep needs none."""
        remove(self.path / "checkpoints")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        write_whole(self.path / name, table.to_csv(index=False))

    def write_json(self, name: str, value: Mapping) -> None:
        write_whole(self.path / name, dump_json(value))


def head_file(which: str, repeat: int, fold: int, n_repeats: int) -> str:
    """best_fold0.safetensors; with repeats best_r00_fold0.safetensors."""
    return f"{which}_{f'r{repeat:02d}_' if n_repeats > 1 else ''}fold{fold}.safetensors"


def newest_sweep(out: Path) -> Path:
    """The sweep under `out` that was finished last. InputError if there is none."""
    finished = sorted(out.glob("*/summary.json"), key=lambda f: f.stat().st_mtime)
    if not finished:
        raise InputError(f"{out}: no finished sweep; `biomass train --config ... --store ...` makes one, or give --sweep")
    return finished[-1].parent


def best_run(sweep: Path) -> Path:
    """The run at the top of a sweep's leaderboard."""
    return sweep / read_json(sweep / "summary.json", "best")["best"]


def read_json(path: Path, *keys: str) -> dict:
    """A JSON object with at least these keys; InputError if there is no such file, or it is something else."""
    try:
        value = json.loads(path.read_text())
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"lacks {', '.join(missing)}")
        return value
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror}); is this the folder of a sweep or run?") from err
    except (ValueError, TypeError, RecursionError) as err:
        raise InputError(f"{path}: not the JSON of a sweep or run ({err})") from err


def _load_head(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as err:
        raise InputError(f"{path}: damaged weights ({err}); train the run again") from err


def dump_json(value: Mapping) -> str:
    return json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n"


def _plain(value):
    """NumPy numbers as Python's, what is not finite as null: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
