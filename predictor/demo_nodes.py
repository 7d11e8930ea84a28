"""The demo on a Ray cluster of three nodes on this machine, two of which are killed at work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from featurestore.disk.usable import usable_cpus
from featurestore.engines.ray_nodes import LocalNodes
from featurestore.parts.devices import build_on_devices
from featurestore.write.build import BuildReport
from featurestore.write.config import BuildConfig
from predictor.on_engine import predict_on_engine
from predictor.options import PredictOptions
from trainer.loop.grid import SweepConfig
from trainer.loop.on_engine import run_sweep_on_engine
from trainer.loop.result import SweepResult

LOOK_S = 0.05
BUILD_PARTS, PREDICT_PARTS = 9, 4


@contextmanager
def three_nodes(say: Callable[[str], object]) -> Iterator["ThreeNodes"]:
    """A cluster of three nodes, as long as the block lasts."""
    # what an item computes with: all cores, as one process would
    cores = max(usable_cpus(), torch.get_num_threads())
    say("0. three Ray nodes on this machine")
    with LocalNodes(3, cores) as nodes:
        yield ThreeNodes(nodes, say)


class ThreeNodes:
    """Where the demo builds, trains and predicts; the third node is killed in the build, the
    second in the sweep."""

    def __init__(self, nodes: LocalNodes, say: Callable[[str], object]) -> None:
        self._nodes = nodes
        self._say = say

    def build(self, config: BuildConfig) -> BuildReport:
        parts = config.out.with_name(f"{config.out.name}.parts") / "parts"

        def is_one_built() -> bool:
            return any(parts.glob("*/receipt.json"))

        with self._losing(2, is_one_built, "it built"):
            return build_on_devices(config, engine=self._nodes.engine, n_parts=BUILD_PARTS)

    def train(self, config: SweepConfig, out: Path) -> SweepResult:
        n_points = len(config.points)
        n_passes = config.base.trainer.passes

        def are_two_at_work() -> bool:
            # one pass alone has not so many runs
            n_begun = len(list(out.glob("*/*/metrics.jsonl")))
            return n_begun > -(-n_points // n_passes)

        with self._losing(1, are_two_at_work, "it trained a pass"):
            return run_sweep_on_engine(config, self._nodes.engine, out, "cpu")

    def predict(self, data: Path, out: Path, run: Path, interval: float, **options: Any) -> None:
        """Write a submission and its wide table, with intervals at a level."""
        asked = PredictOptions(data, out, run=[run], interval=interval, device="cpu", **options)
        predict_on_engine(self._nodes.engine, PREDICT_PARTS, asked, self._say)

    @contextmanager
    def _losing(self, place: int, is_time: Callable[[], bool], what: str) -> Iterator[None]:
        """In this block a node is killed as soon as it is time."""
        ended = Event()
        killed = Event()

        def watch() -> None:
            while not ended.wait(LOOK_S):
                if is_time():
                    self._nodes.kill(place)
                    killed.set()
                    return

        watcher = Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        if killed.is_set():
            self._say(f"a node was killed while {what}; another did that again")
