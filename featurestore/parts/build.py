"""One part of a planned build: refused where it would not be the plan's, whole or not there at all.

A part is a folder with a store and a receipt. It grows under a name of its attempt's own, and gets
the part's name by one rename. Where the plan publishes to a bucket the store's files of patches are
there, and the rest is in a record (see `put`).
"""

import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import torch

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.device import choose_device
from featurestore.backbone.load import backbone_of_store
from featurestore.backbone.weights import kept_weights
from featurestore.counts import count_of
from featurestore.disk import durable
from featurestore.disk.durations import duration
from featurestore.disk.usable import usable_cpus
from featurestore.errors import InputError, MismatchError, UsageError
from featurestore.parts.plan import STORE, PartPlan, load_plan
from featurestore.parts.put import ATTEMPTS, put_part
from featurestore.photos.decode import Unusable
from featurestore.photos.find import find_photographs
from featurestore.write.build import build_images, images_bar
from featurestore.write.prepare import installed_versions
from featurestore.write.writer import image_bytes, open_writer

RECEIPT = "receipt.json"
Load = Callable[[PartPlan, str], Backbone]


@dataclass(frozen=True)
class Receipt:
    """What stands in a finished part: whose it is, and how it was made."""

    plan: str
    part: int
    n_images: int
    skipped: list[str]
    """Why images have no tokens."""
    seconds: float
    host: str

    def __str__(self) -> str:
        left_out = f", {len(self.skipped)} of them skipped" if self.skipped else ""
        return f"{count_of(self.n_images, 'image')}{left_out} in {duration(self.seconds)}"


def part_folder(plan: PartPlan, part: int) -> Path:
    return plan.folder / "parts" / f"{part:05d}"


def scratch_folder(plan: PartPlan, scratch: Path) -> Path:
    """Where parts of a plan lie that are being built elsewhere than in its folder."""
    return scratch / f"biomass-{plan.id[:16]}"


def finished_part(plan: PartPlan, part: int) -> Receipt | None:
    """What a finished part says; None if it is not there, MismatchError for one of another plan."""
    folder = part_folder(plan, part)
    try:
        receipt = Receipt(**json.loads((folder / RECEIPT).read_bytes()))
    except FileNotFoundError:
        if not folder.exists():
            return None
        receipt = None
    except (ValueError, TypeError):
        receipt = None
    if receipt is None or (receipt.plan, receipt.part) != (plan.id, part):
        raise MismatchError(
            f"{folder}: is no part {part} of the plan {plan.folder}; remove it, and build that "
            "part again"
        )
    return receipt


def build_part(
    folder: Path,
    part: int,
    device: str | None = None,
    *,
    wait: bool = False,
    lock: bool = True,
    progress: bool = True,
    load: "Load | None" = None,
    scratch: Path | None = None,
) -> tuple[Receipt, bool]:
    """Build one part of a plan, where it is not there yet; its receipt, and whether it was.

    An attempt that was killed is continued by the next one.

    Parameters
    ----------
    folder : of the plan. part : its number, from 0.
    device : None is the plan's kind.
    wait, lock : as in `build_store`, of other processes at this part. Without the lock several may
        be at it; the part is that of the first to end.
    load : makes the plan's backbone for a device.
    scratch : where a part lies until it is in its bucket, on this machine say; None is the plan's
        folder.

    Raises UsageError for no such part, MismatchError where this machine, the table or the weights
    are not those of the plan, LockedError for a part that another process builds; else as
    `build_store`.
    """
    start = time.monotonic()
    plan = load_plan(folder)
    if not 0 <= part < plan.n_parts:
        raise UsageError(f"--part {part}: {folder} has the parts 0 to {plan.n_parts - 1}")
    if scratch and plan.url is None:
        raise UsageError(f"--scratch: the parts of {folder} stay in it; leave it out")
    if receipt := finished_part(plan, part):
        return receipt, True
    device = _checked_device(plan, device)
    _check_table(plan)

    place = part_folder(plan, part)
    durable.check_writable(place.parent)
    attempts = (scratch_folder(plan, scratch) if scratch else plan.folder) / ATTEMPTS
    durable.check_writable(attempts)
    held = durable.locked(place, wait, command="biomass store build") if lock else nullcontext()
    with held:
        if receipt := finished_part(plan, part):
            return receipt, True
        attempt = _attempt(plan, part, attempts, goes_on=lock)
        backbone = (load or plan_backbone)(plan, device)
        with _same_threads(plan):
            skipped = _build(plan, part, backbone, attempt / STORE, progress)
        n_images = plan.bounds[part + 1] - plan.bounds[part]
        whose = plan.id, part, n_images, skipped
        made = put_part(plan, part, attempt) if plan.url else attempt
        receipt = Receipt(*whose, round(time.monotonic() - start, 3), socket.gethostname())
        try:
            durable.write_whole(made / RECEIPT, json.dumps(asdict(receipt)))
            # nothing is synced once more: the writer did, as the store grew
            durable.rename(made, place)
        except OSError as err:
            if not place.parent.exists():
                durable.remove(attempt)
                raise InputError(
                    f"{place}: all parts were removed while it was built, as a merge with "
                    "--remove-parts does; another process had built it by then"
                ) from err
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # another process, which no lock kept out, was faster
            durable.remove(made)
            durable.remove(attempt)
            return finished_part(plan, part), True
        if plan.url:  # its shards are in the bucket, the rest in a record
            durable.remove(attempt)
    return receipt, False


def part_task(folder: str, part: int, device: str, scratch: str | None = None) -> int:
    """`build_part` as an engine calls it: how many images the part has, one way or another."""
    receipt, _ = build_part(
        Path(folder),
        part,
        device,
        wait=True,
        progress=False,
        load=_kept_backbone,
        scratch=Path(scratch) if scratch else None,
    )
    return receipt.n_images


def plan_backbone(plan: PartPlan, device: str) -> Backbone:
    """The backbone that a plan was made with; MismatchError for other weights."""
    weights = kept_weights(plan.spec, [plan.folder]) or plan.config.weights
    backbone = backbone_of_store(plan.spec, weights, [plan.folder], "store plan --weights", device)
    backbone.try_out()
    return backbone


@lru_cache(1)
def _loaded(folder: Path, plan_id: str, device: str) -> Backbone:
    return plan_backbone(load_plan(folder), device)


def _kept_backbone(plan: PartPlan, device: str) -> Backbone:
    """Loaded once for all parts that this process builds."""
    return _loaded(plan.folder, plan.id, device)


def _checked_device(plan: PartPlan, device: str | None) -> str:
    """The device to use; MismatchError unless it is of the plan's kind, and versions are."""
    made_by = plan.spec.made_by
    here = installed_versions()
    device = device or ("cpu" if plan.device == "cpu" else "auto")
    here["device"] = choose_device(device).type
    differing = []
    for name, found in here.items():
        if found != made_by.get(name):
            differing.append(f"{name}: plan {made_by.get(name, 'without')}, here {found}")
    if differing:
        raise MismatchError(
            f"{plan.folder}: its tokens would not be the same here; build the part on a machine "
            "like the one that made the plan, or make a new plan\n  " + "\n  ".join(differing)
        )
    return device


def _check_table(plan: PartPlan) -> None:
    """MismatchError if the table has changed; one that is not here cannot have."""
    table = plan.config.table
    if table.exists() and durable.file_sha256(table) != plan.table_sha256:
        raise MismatchError(
            f"{table}: changed since the plan {plan.folder} was made; restore it, or make a new "
            "plan and build all its parts"
        )


def _attempt(plan: PartPlan, part: int, attempts: Path, goes_on: bool) -> Path:
    """A folder for this attempt, among others, with what a dead one had finished.

    goes_on : the lock is held, so that all other attempts at this part are dead.
    """
    own = attempts / f"{part:05d}-{plan.id[:8]}-{socket.gethostname()}-{uuid4().hex[:8]}"
    left = []
    if goes_on:
        left = sorted(attempts.glob(f"{part:05d}-*"), key=lambda path: path.stat().st_mtime)
    while left:
        dead = left.pop()
        if not own.exists() and dead.name.startswith(f"{part:05d}-{plan.id[:8]}"):
            os.replace(dead, own)
        else:
            durable.remove(dead)
    own.mkdir(exist_ok=True)
    return own


@contextmanager
def _same_threads(plan: PartPlan) -> Iterator[None]:
    """Compute with as many threads as the plan says, for the same bits."""
    before = torch.get_num_threads()
    if plan.threads in (None, before):
        yield
        return
    usable = usable_cpus()
    if plan.threads > usable:
        warnings.warn(
            f"{plan.folder}: was planned with {plan.threads} threads, and computes with as many "
            f"for the same tokens; only {usable} CPUs are usable here, which can make it slow. "
            "OMP_NUM_THREADS sets their number when a plan is made",
            stacklevel=4,
        )
    torch.set_num_threads(plan.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(plan: PartPlan, part: int, backbone: Backbone, out: Path, progress: bool) -> list[str]:
    """Build a part's store, or what is left of it; why images have no tokens."""
    first, end = plan.bounds[part : part + 2]
    config = plan.config
    frame = plan.frame(first, end)
    paths = find_photographs(
        frame, config.data, config.allow_outside, missing=True, allow="--allow-outside"
    )
    unusable = {k - first: each for k, each in plan.unusable.items() if first <= k < end}
    with open_writer(
        out,
        plan.spec,
        frame,
        lock=False,
        shard_images=plan.shard_images,
        appears_late=True,
    ) as writer:
        pending = writer.pending()
        todo = {image: paths[image] for image in pending if image not in unusable}
        if config.check_space:
            durable.check_free(out.parent, len(todo) * image_bytes(plan.spec))
        writer.skip({image: each.status for image, each in unusable.items()})
        bar = images_bar(f"part {part}", len(frame), len(todo), progress)
        damaged: dict[int, Unusable] = {}
        skipped = damaged if config.skip_missing else None
        build_images(backbone, writer, todo, bar, skipped, first=first)
    return [each.why for each in (unusable | damaged).values()]
