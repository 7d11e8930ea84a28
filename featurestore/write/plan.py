"""What a build would take: images, bytes, memory and time. Nothing is written."""

import resource
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from featurestore.backbone.backbone import Row
from featurestore.counts import count_of
from featurestore.disk.durations import duration
from featurestore.disk.threads import usable_threads
from featurestore.disk.urls import is_elsewhere
from featurestore.disk.usable import usable_memory
from featurestore.format.spec import StoreSpec
from featurestore.photos.decode import decode
from featurestore.photos.sites import count_sites
from featurestore.write.config import BuildConfig
from featurestore.write.encoding import n_images_in_hand
from featurestore.write.prepare import PreparedBuild, prepare_build
from featurestore.write.writer import image_bytes

AGAIN_S = 20.0  # a first view that took less is timed once more: it paid for what is done once


@dataclass(frozen=True)
class BuildPlan:
    """What a build comes to.

    Bytes are of the whole store, of what is to be written, and of memory.
    """

    path: Path | str
    """A URL where the store is to be published."""
    spec: StoreSpec
    n_images: int
    n_sites: int | None
    n_pending: int
    n_unusable: int
    view_s: float
    store_bytes: int
    pending_bytes: int
    free_bytes: int
    memory_bytes: int
    usable_bytes: int
    """Memory that this process may hold in all."""

    @property
    def seconds(self) -> float:
        return self.view_s * self.n_pending * len(self.spec.tokens.views)

    def values(self) -> dict[str, Any]:
        """The fields, for machines; of the spec what the tokens are."""
        t = self.spec.tokens
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        del known["spec"]
        return known | {
            "seconds": self.seconds,
            "model": t.model,
            "views": t.view_names,
            "n_tiles": t.n_tiles,
            "grid": t.grid,
            "width": t.width,
            "has_patches": self.spec.has_patches,
            "device": self.spec.made_by["device"],
            "precision": self.spec.made_by["precision"],
        }

    def __str__(self) -> str:
        t, made_by = self.spec.tokens, self.spec.made_by
        left_out = f", {self.n_unusable} to be skipped" if self.n_unusable else ""
        sites = f" of {count_of(self.n_sites, 'site')}" if self.n_sites else ""
        disk = (
            f"{self.store_bytes / 1e9:.3g} GB the store, {self.pending_bytes / 1e9:.3g} GB to "
            f"write, {self.free_bytes / 1e9:.3g} GB free"
        )
        if is_elsewhere(self.path):
            disk = (
                f"{self.store_bytes / 1e9:.3g} GB in object storage; parts that are being built "
                f"take room here, {self.free_bytes / 1e9:.3g} GB are free"
            )
        elif self.free_bytes < self.pending_bytes:
            disk += "  NOT ENOUGH"
        memory = "" if self.usable_bytes >= self.memory_bytes else "  NOT ENOUGH"
        return (
            f"{self.path}: {count_of(self.n_images, 'image')}{sites}, {self.n_pending} to "
            f"build{left_out}; nothing was written\n"
            f"  tokens  {count_of(len(t.views), 'view')} x {t.n_tiles} tile(s) x (1 + {t.grid[0]} "
            f"x {t.grid[1]}) x {t.width}{'' if self.spec.has_patches else ', pooled only'}\n"
            f"  disk    {disk}\n"
            f"  memory  {self.memory_bytes / 1e9:.2g} GB, {self.usable_bytes / 1e9:.3g} GB "
            f"usable{memory}\n"
            f"  time    {duration(self.seconds)}: {duration(self.view_s)} a view on "
            f"{made_by['device']} in {made_by['precision']}"
        )


@usable_threads()
def plan_build(config: BuildConfig) -> BuildPlan:
    """Check all that `build_store` checks before it writes, then time the backbone.

    Errors as there.
    """
    # before weights are loaded, which take from what is usable
    usable_bytes = usable_memory().n_bytes + _peak_bytes()
    prepared = prepare_build(config, save=False)
    view_s = _time_view(prepared)
    n_images = len(prepared.frame)
    each = image_bytes(prepared.spec)
    n_held = n_images_in_hand(prepared.backbone)
    return BuildPlan(
        path=config.out,
        spec=prepared.spec,
        n_images=n_images,
        n_sites=count_sites(prepared.frame),
        n_pending=prepared.n_pending,
        n_unusable=len(prepared.unusable),
        view_s=view_s,
        store_bytes=each * (n_images + config.reserve),
        pending_bytes=each * prepared.n_pending,
        free_bytes=shutil.disk_usage(config.out.parent).free,
        # the peak has the weights and one batch's activations in it: the view was timed
        memory_bytes=_peak_bytes() + n_held * each,
        usable_bytes=usable_bytes,
    )


def _peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kB


def _time_view(prepared: PreparedBuild) -> float:
    """Seconds that one view of the first usable photograph takes.

    Decoding is left out: it goes on meanwhile.
    """
    path = next(path for path in prepared.paths if path not in prepared.unusable)
    backbone = prepared.backbone
    photograph, view_s = decode(path, backbone.crop), 0.0
    row = Row("plan", backbone.spec.views[0], backbone.on_device(photograph.tiles_THW3))
    # the first pass warms up (CUDA loads its kernels), and counts only where it is slow anyhow
    for _ in range(2):
        start = time.perf_counter()
        batch = backbone.encode([row] * backbone.n_rows)
        batch.check(batch.is_finite_RL)
        batch_s = time.perf_counter() - start
        view_s = batch_s / backbone.n_rows
        if batch_s > AGAIN_S:
            break
    return view_s
