"""A build by several devices, of this machine or of an engine, in one call.

It is planned, built in parts and merged, here or in object storage.
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
from featurestore.disk.urls import is_elsewhere
from featurestore.disk.usable import usable_cpus
from featurestore.engines.choose import check_engine, run_items
from featurestore.errors import MismatchError, UsageError
from featurestore.parts.build import finished_part, scratch_folder
from featurestore.parts.merge import is_merged, merge_parts
from featurestore.parts.plan import CATALOG, PLAN, PartPlan, plan_parts
from featurestore.parts.publish import is_published, publish_parts
from featurestore.parts.put import ATTEMPTS, RECORDS
from featurestore.read.open import open_reader
from featurestore.write.agreement import check_labels, check_same
from featurestore.write.build import BuildReport, build_store, finish_build, images_bar
from featurestore.write.config import BuildConfig
from featurestore.write.prepare import prepare_build

TASK = "featurestore.parts.build:part_task"
MADE = ("parts", ATTEMPTS, RECORDS, "tries")
PARTS_A_DEVICE = 4
"""So that a slow device holds the others up for a fourth of its work at most."""
LEAST_PARTS, MOST_PARTS = 8, 64
"""Of an engine, whose nodes may come and go; the most, too, of a store in object storage, whose
parts take room here only while they are built."""


def build_on_devices(
    config: BuildConfig,
    progress: bool = True,
    engine: str | None = None,
    n_parts: int | None = None,
    url: str | None = None,
    scratch: Path | None = None,
) -> BuildReport:
    """`build_store` by several devices, one process each; goes on where it stopped.

    Parts are kept in NAME.parts beside the store until they are merged. A store that is there
    already is continued by the first device alone; one in object storage is told.

    config : its device names several with commas, all CPUs ("cpu,cpu") or all CUDA; with an engine
        it names their kind, which this machine has too.
    engine : as `check_engine`: has the parts done elsewhere; all see the files of this machine.
    n_parts : with an engine or a URL; None is as many as there are shards, up to MOST_PARTS, and of
        an engine LEAST_PARTS or more.
    url : of object storage, where parts put their shards; `config.out` gives NAME.parts its name.
    scratch : as in `build_part`, on each machine.

    Raises what `build_store`, `build_part` and `publish_parts` raise.
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
    out = url or config.out
    if not (folder / PLAN).exists() and _is_there(out):
        _clear(folder)
        if url:
            _check_published(one, url)
            return finish_build(url, 0, [], start)
        say(f"{out}: is there already; {devices[0]} alone goes on with it")
        return build_store(one, progress)

    command = "biomass store build"
    locked = config.out
    if url:  # nothing of it stays here
        locked = folder / "build"
    durable.check_writable(locked.parent)
    held = durable.locked(locked, config.wait, command=command) if config.lock else nullcontext()
    with held:
        n = len(devices)
        # one process alone has as many as `build_store`, for the same bytes
        threads = _threads(n) if engine or n > 1 else None
        least, most = n, PARTS_A_DEVICE * n
        if engine:
            least, most = LEAST_PARTS, MOST_PARTS
        elif url:
            most = MOST_PARTS
        if n_parts:
            least, most = n_parts, None
        plan = plan_parts(one, least, folder, most=most, threads=threads, url=url)
        if engine:  # which of a node's devices is the engine's choice
            devices = [plan.device]
            threads = None
        n_built, skipped = 0, []
        if not (_is_there(out) and is_merged(plan, out)):
            n_built, skipped = _build(plan, devices, threads, progress, engine, scratch)
        if url:
            publish_parts(plan, url, remove=True)
        else:
            merge_parts(plan, config.out, remove=True, lock=False)
        _clear(folder)
        if scratch:
            durable.remove(scratch_folder(plan, scratch))
    return finish_build(out, n_built, skipped, start)


def _is_there(out: Path | str) -> bool:
    return is_published(out) if is_elsewhere(out) else out.exists()


def _check_published(config: BuildConfig, url: str) -> None:
    """MismatchError unless the store at a URL is what this build would make."""
    nothing = config.out.with_name(f".{config.out.stem}.published.zarr")
    prepared = prepare_build(config.model_copy(update={"out": nothing}), save=False)
    with open_reader(url) as store:
        check_same(store, prepared.spec)
        check_labels(store, prepared.frame)
        if store.image_ids != prepared.frame["image_id"].tolist():
            raise MismatchError(
                f"{url}: holds other photographs, and nothing is added to a store in object "
                "storage; choose another name"
            )


def _build(
    plan: PartPlan,
    devices: Sequence[str],
    threads: int | None,
    progress: bool,
    engine: str | None,
    scratch: Path | None,
) -> tuple[int, list[str]]:
    """Build the parts that are missing; how many images now, and why others have no tokens."""
    sizes = {}
    items = {}
    for part in range(plan.n_parts):
        if finished_part(plan, part) is None:
            name = f"part {part}"
            sizes[name] = plan.bounds[part + 1] - plan.bounds[part]
            items[name] = {"folder": str(plan.folder), "part": part}
            if scratch:
                items[name]["scratch"] = os.path.abspath(scratch)
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
    for each in (*MADE, PLAN, CATALOG, f"{PLAN}.lock", "build.lock", *weights):
        durable.remove(folder / each)
    with suppress(OSError):
        folder.rmdir()
