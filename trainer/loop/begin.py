"""A sweep's folder as it is laid out before the first step, and what of it can be trained alone."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.backbone.device import choose_device
from featurestore.disk.durable import locked, remove
from featurestore.disk.threads import ASKED
from featurestore.errors import InputError, UsageError
from trainer.data.splits import save_splits
from trainer.loop.grid import SweepConfig
from trainer.loop.places import Place
from trainer.loop.plan import too_large
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.runs import RunFolder, SweepFolder

FITS = "fits"
"""Where passes have numbers: all regressors, with the baselines beside the board."""

MOST_LISTED = 10
"""Lines of commands that are printed; of more, those in the middle are left out."""

Item = int | str
"""A pass, numbered from 0, or FITS: what one process trains while others are at others."""


@dataclass(frozen=True)
class Begun:
    """A sweep and its folder."""

    sweep: Sweep
    folder: SweepFolder
    plan: Mapping[str, Any]
    """What sweep.json says."""
    given: Sequence[str] = ()
    """What `resuming_options` gave, which every way on repeats."""

    @property
    def passes(self) -> list[list[int]]:
        """Points of each pass over the tokens."""
        return self.plan["passes"]

    @property
    def runs(self) -> dict[int, RunFolder]:
        """Folder of each point."""
        names = self.sweep.config.names
        return {p: self.folder.run(name) for p, name in enumerate(names)}

    def command(self, *options: object) -> str:
        """What a user types to go on with it."""
        resuming = ["biomass", "train", "--resume", str(self.folder.path)]
        return shlex.join([*resuming, *self.given, *map(str, options)])

    @property
    def items(self) -> list[Item]:
        """All that can be trained alone."""
        return [*range(len(self.passes)), FITS]

    @property
    def commands(self) -> list[str]:
        """What trains each item."""
        return [self.command("--pass", item) for item in self.items]

    def values(self) -> dict[str, Any]:
        """For machines: where it is, and what goes on with it."""
        return {"path": self.folder.path, "commands": self.commands, "finish": self.command()}

    def ways_on(self) -> str:
        """The commands that train it, a line each."""
        each = self.commands
        if len(each) > MOST_LISTED:
            each[MOST_LISTED - 3 : -2] = ["..."]
        return "\n".join(
            [
                "each of these trains on its own, in any order, here or on other machines:",
                *each,
                "then finish with:",
                self.command(),
            ]
        )

    def lock(self, item: Item) -> Path:
        """What `locked` takes: one process is at an item."""
        return self.folder.path / (item if item == FITS else f"pass{item}")

    @contextmanager
    def all_locked(self) -> Iterator[None]:
        """No other process is at any item; LockedError if one is. Locks of a sweep that is finished
        by then are removed: whoever gets one looks for that first."""
        locks = [self.lock(item) for item in self.items]
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(locked(lock))
            yield
            if self.folder.is_finished:
                for lock in locks:
                    remove(lock.with_name(f"{lock.name}.lock"))


def begin_sweep(
    config: SweepConfig,
    out: Path = Path("runs"),
    device: str = "auto",
    check: bool = True,
) -> Begun:
    """Lay a sweep out under `out`: its folder, folds.csv and sweep.json, which `--resume` needs.

    device : several with commas, all CPUs or all CUDA, train a pass each at a time.

    Raises as `run_sweep` does before any step, UsageError for several devices and a single pass.
    """
    devices = [each.strip() for each in device.split(",")]
    if len({choose_device(each).type for each in devices}) > 1:
        raise UsageError(f"--device {device}: name devices of one kind, all cpu or all cuda")
    # the first stands for all, which are of one kind
    sweep = prepare_sweep(config, devices[0], check=check)
    costs = sweep.plan()
    if refusal := too_large(costs, sweep.data.device):
        raise InputError(refusal)
    if len(devices) > 1 and len(costs.passes) < 2:
        there = "one pass in all" if costs.passes else "no pass over the tokens"
        n_passes = min(len(devices), sum(map(len, costs.passes)))
        more = f"add --passes {n_passes}, or " if n_passes > 1 else ""
        raise UsageError(
            f"--device {device}: each device trains a pass at a time, and there is {there}; "
            f"{more}name one device"
        )

    folder = SweepFolder.create(out, sweep.base.experiment.name)
    save_splits(sweep.folds, folder.path / "folds.csv")
    base = sweep.base.model_dump(mode="json")
    # where the stores were found, whatever the config or an option called it
    places = {name: used.store.address for name, used in sweep.data.stores.items()}
    base["dataset"] |= {"store": places[""]} if "" in places else {"stores": places}
    plan = {
        "base": base,
        "axes": config.axes,
        "runs": {name: config.settings(index) for index, name in enumerate(config.names)},
        "passes": costs.passes,
        "device": devices[0],
        "threads": _threads(len(devices)),
        "multiply": sweep.data.multiply,
        "side_by_side": sweep.data.side_by_side,
        **sweep.facts,
    }
    if len(devices) > 1:
        plan["devices"] = devices
    folder.write_json("sweep.json", plan)  # last: a folder with it can be resumed
    return Begun(sweep, folder, plan, resuming_options(None, check))


def resuming_options(store: Place | Mapping[str, Place] | None, check: bool) -> list[str]:
    """As a user types what sweep.json does not keep: where stores are now, and whether rows are
    checked."""
    stores = [] if store is None else [str(store)]
    if isinstance(store, Mapping):
        stores = [f"{name}={place}" for name, place in store.items()]
    options = []
    for each in stores:
        options += ["--store", each]
    return options if check else [*options, "--no-check"]


def _threads(n_processes: int) -> int:
    """Of each process; what the environment asks for is not shared among them."""
    threads = torch.get_num_threads()
    if any(os.environ.get(name) for name in ASKED):
        return threads
    return max(1, threads // n_processes)
