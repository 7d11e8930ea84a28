"""A build by several devices, of this machine or of an engine, in one call.

It is planned, built in parts and merged.
"""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from featurestore.backbone.device import choose_device
from featurestore.disk import durable
from featurestore.disk.messages import say
from featurestore.disk.threads import ASKED
from featurestore.disk.usable import usable_cpus
from featurestore.engines.choose import check_engine, run_items
from featurestore.errors import UsageError
from featurestore.parts.build import finished_part
from featurestore.parts.merge import is_merged, merge_parts
from featurestore.parts.plan import CATALOG, PLAN, PartPlan, plan_parts
from featurestore.write.build import BuildReport, build_store, finish_build, images_bar
from featurestore.write.config import BuildConfig

TASK = "featurestore.parts.build:part_task"
PARTS_A_DEVICE = 4
"""So that a slow device holds the others up for a fourth of its work at most."""
LEAST_PARTS, MOST_PARTS = 8, 64
"""Of an engine, whose nodes may come and go."""


def build_on_devices(
    config: BuildConfig,
    progress: bool = True,
    engine: str | None = None,
    n_parts: int | None = None,
) -> BuildReport:
    """`build_store` by several devices, one process each; goes on where it stopped.

    Parts are kept in NAME.parts beside the store until they are merged. A store that is there
    already is continued by the first device alone.

    config : its device names several with commas, all CPUs ("cpu,cpu") or all CUDA; with an engine
        it names their kind, which this machine has too.
    engine : as `check_engine`: has the parts done elsewhere; all see the files of this machine.
    n_parts : with an engine; None is as many as there are shards, from LEAST_PARTS to MOST_PARTS.
    """
    if engine:
        check_engine(engine)
    start = time.monotonic()
    devices = config.device.split(",")
    kinds = {choose_device(device).type for device in devices}
    if len(kinds) > 1:
        raise UsageError(f"--device {config.device}: name devices of one kind, all cpu or all cuda")
    folder = Path(os.path.abspath(config.out)).with_name(config.out.name + ".parts")
    one = config.model_copy(update={"device": devices[0]})
    if config.out.exists() and not (folder / PLAN).exists():
        _clear(folder)
        say(f"{config.out}: is there already; {devices[0]} alone goes on with it")
        return build_store(one, progress)

    command = "biomass store build"
    durable.check_writable(folder.parent)
    held = (
        durable.locked(config.out, config.wait, command=command) if config.lock else nullcontext()
    )
    with held:
        n = len(devices)
        threads = _threads(n)
        least, most = n, PARTS_A_DEVICE * n
        if engine:
            least, most = n_parts or LEAST_PARTS, None if n_parts else MOST_PARTS
        plan = plan_parts(one, least, folder, most=most, threads=threads)
        if engine:  # which of a node's devices is the engine's choice
            devices = [plan.device]
            threads = None
        n_built, skipped = 0, []
        if not (config.out.exists() and is_merged(plan, config.out)):
            n_built, skipped = _build(plan, devices, threads, progress, engine)
        merge_parts(folder, config.out, remove=True, lock=False)
        _clear(folder)
    return finish_build(config.out, n_built, skipped, start)


def _build(
    plan: PartPlan,
    devices: Sequence[str],
    threads: int | None,
    progress: bool,
    engine: str | None,
) -> tuple[int, list[str]]:
    """Build the parts that are missing; how many images now, and why others have no tokens."""
    sizes = {}
    items = {}
    for part in range(plan.n_parts):
        if finished_part(plan, part) is None:
            name = f"part {part}"
            sizes[name] = plan.bounds[part + 1] - plan.bounds[part]
            items[name] = {"folder": str(plan.folder), "part": part}
    n_todo = sum(sizes.values())
    bar = images_bar("store build", plan.n_images, n_todo, progress)
    threads = plan.threads or threads
    with bar:
        run_items(
            TASK,
            items,
            engine=engine,
            bar=bar,
            sizes=sizes,
            devices=devices,
            folder=plan.folder,
            threads=threads,
        )
    skipped = []
    n_built = n_todo
    for part in range(plan.n_parts):
        reasons = finished_part(plan, part).skipped
        skipped += reasons
        if f"part {part}" in items:
            n_built -= len(reasons)
    return n_built, skipped


def _threads(n_devices: int) -> int | None:
    """Of each process, where the environment does not say."""
    if any(os.environ.get(name) for name in ASKED):
        return None
    return max(1, usable_cpus() // n_devices)


def _clear(folder: Path) -> None:
    """Remove a plan whose parts are merged; a file of somebody else's, and its folder, are left."""
    weights = folder.glob("backbone-*.safetensors*")
    for each in ("parts", "attempts", "tries", PLAN, CATALOG, f"{PLAN}.lock", *weights):
        durable.remove(folder / each)
    with suppress(OSError):
        folder.rmdir()
