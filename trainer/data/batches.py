"""MixupBatches: the sweep's batches (rows, partners, shares) for a training loop of one's own.

Which rows come when is `stream`'s, where they are `tokens`'s; here they are mixed, or handed out as
pair and share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from featurestore.backbone.device import choose_device
from featurestore.errors import InputError, MismatchError, UsageError, list_some
from featurestore.photos.catalog import TARGETS
from featurestore.store import FeatureStore
from trainer.data.dataset import used_images
from trainer.data.stored_row import StoredRow
from trainer.data.stream import Batch, Split, Stream, mixup_share
from trainer.data.tokens import TokenReader

NO_WORKERS = (
    "MixupBatches reads mapped rows and mixes them in place; use DataLoader(..., num_workers=0)"
)
BLOCK = 1 << 18  # values mixed at a time on the CPU: both parents' and the mix stay in its cache


@dataclass(frozen=True)
class MixupBatch:
    """B photographs, each mixed with another of its batch: share * own + (1 - share) * other."""

    cls: Tensor
    """(B, T, D) class tokens, mixed."""
    patches: Tensor | list[Tensor]
    """(B, T, P, D) patch tokens, mixed; lazy: each photograph's own, unmixed, as B stored rows (T,
    P, D) float16, which refuse to be written to (`StoredRow`)."""
    targets: Tensor
    """(B, K) grams, mixed."""
    images: np.ndarray
    """(B,) positions in the store's catalog."""
    views: np.ndarray
    """(B,) numbers of the stored views."""
    partner: Tensor
    """(B,) position within the batch of what each is mixed with."""
    share: Tensor
    """(B,) the part of each that is its own; 1 where nothing is mixed."""

    def mix(self, own: Tensor) -> Tensor:
        """(B, ...) results for each photograph's own row, mixed: what a linear map makes of the
        mixed rows, at half the work.

        For lazy batches: `batch.mix(torch.stack([row.float() @ weight for row in batch.patches]))`.
        """
        share = _column(self.share, own).to(own.dtype)
        return torch.lerp(own[self.partner], own, share)


class MixupBatches(IterableDataset):
    """Batches of a store, mixed; one epoch each time it is iterated, then the next one.

    Parameters
    ----------
    store : open feature store; rows are read where it is mapped.
    images : ids or positions of the images to learn from, a training fold say; partners are among
        them too. None: all but those that the store's build skipped.
    batch_size : B. An epoch is floor(images / batch_size) batches; no image is in two of them.
    alpha : Beta(alpha, alpha) draws the shares. Zhang et al. 2018, arXiv:1710.09412.
    mixup : False leaves rows as they are, converted.
    lazy : patches are not mixed; a batch holds rows as stored and `MixupBatch.mix`, and copies no
        token on the CPU. An operation that would write into such a row raises UsageError; write
        into `row.clone()`.
    seed : with epoch and step it fixes every draw. Seed and images being a sweep's and its fold's,
        so are order and views; not those of a sweep with `dataset.images`, which numbers its own
        images alone.
    views : names or numbers of stored views, of which each image shows one an epoch. None: all.
    targets : columns of the catalog, the K axis of a batch's targets.
    device : where batches are made; "auto" is CUDA where there is one.
    pin_memory : mixed patches in pinned memory of the CPU, to be copied to CUDA in the background.
    dtype : of all a batch holds but lazy rows.
    check : compare every row with its checksum before it is in a batch first; StoreDamaged if it is
        not what was committed.

    Raises InputError for images, views, targets or a store that cannot be learned from, UsageError
    for what means nothing.

    Works by itself and in a `DataLoader(batches, batch_size=None)` without workers: they would only
    copy what is mapped. A full-size batch is a new buffer of 590 MB;
    `trainer.loop.memory.keep_freed_memory()`, called first, halves what it takes.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: Sequence[str | int] | None = None,
        *,
        batch_size: int = 32,
        alpha: float = 1.0,
        mixup: bool = True,
        lazy: bool = False,
        seed: int = 0,
        views: Sequence[str | int] | None = None,
        targets: Sequence[str] = TARGETS,
        device: str = "cpu",
        pin_memory: bool = False,
        dtype: torch.dtype = torch.float32,
        check: bool = True,
    ) -> None:
        self.device = choose_device(str(device))
        _check_usage(batch_size, alpha, dtype, pin_memory, lazy, self.device)
        self.store = store
        self.images_N = _positions_of(store, images, batch_size)
        self.views_V = _views_of(store, views)
        self.alpha = alpha
        self.mixup = mixup
        self.lazy = lazy
        self.pin_memory = pin_memory
        self.dtype = dtype
        self.check = check
        self._targets_NK = _targets_of(store, self.images_N, targets)
        # a sweep numbers its images without those its store's build skipped, and draws orders and
        # views of these numbers
        self._used_M = np.setdiff1d(np.arange(store.n_images), store.skipped)
        own_N = np.searchsorted(self._used_M, self.images_N)
        self._stream = _stream_of(len(self._used_M), len(self.views_V), own_N, batch_size, seed)
        self._reader = TokenReader(store, self.device)
        self._epoch = 0
        self._step = 0
        self._first = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._stream.n_steps

    def __iter__(self) -> Iterator[MixupBatch]:
        if get_worker_info() is not None:
            raise UsageError(NO_WORKERS)
        epoch = self._epoch
        first = self._first
        self._first = 0
        self._step = first
        batch = self._batch(epoch, first)
        for step in range(first, len(self)):
            if self.check:
                self.store.check_rows(batch.rows_U2)
            rows = self._reader.step(batch.rows_U2)
            following = self._batch(*self._after(epoch, step))
            self._reader.expect(following.rows_U2)
            # before the batch is out: it may be the last one asked for
            self._epoch, self._step = self._after(epoch, step)
            yield self._made(batch, rows)
            batch = following

    def __reduce__(self) -> NoReturn:
        """UsageError: a worker that is spawned would need a copy."""
        raise UsageError(NO_WORKERS)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at this epoch's first batch."""
        self._epoch = epoch
        self._step = 0
        self._first = 0

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is, and what must be the same there."""
        return {"epoch": self._epoch, "step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next iteration with the batch that would have come next; MismatchError if it
        would be another one."""
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise MismatchError(
                    f"MixupBatches: {name} is {mine}, the state was saved with {state.get(name)}; "
                    "make them one"
                )
        self._epoch = state["epoch"]
        self._step = state["step"]
        self._first = self._step

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self._stream.seed,
            "batch_size": self._stream.batch_size,
            "n_images": len(self.images_N),
            "n_views": len(self.views_V),
        }

    def _after(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)

    def _batch(self, epoch: int, step: int) -> Batch:
        """The stream's batch, its images and views by their numbers in the store."""
        batch = self._stream.batch(epoch, step)
        images_U, views_U = batch.rows_U2.T
        # the stream counts images and views that are used, the store all that it has
        stored_U2 = np.stack([self._used_M[images_U], self.views_V[views_U]], 1)
        return replace(batch, rows_U2=stored_U2)

    def _made(self, batch: Batch, rows_UTPD: Sequence[Tensor]) -> MixupBatch:
        """Tokens and labels of a batch."""
        own_B = batch.own_QB[0]  # of the only split
        if self.mixup:
            partner_B = batch.partner_QB[0]
            share_B = mixup_share(batch.uniform_QB[0], self.alpha)
        else:
            partner_B = np.arange(len(own_B))
            share_B = np.ones(len(own_B))
        images_B, views_B = batch.rows_U2[own_B].T
        rows = [rows_UTPD[u] for u in own_B]
        if self.lazy:
            patches = [StoredRow.of(row) for row in rows]
        else:
            patches = self._mixed_rows(rows, partner_B, share_B)
        return MixupBatch(
            cls=self._mixed(self.store.raw.cls[images_B, views_B], partner_B, share_B),
            patches=patches,
            targets=self._mixed(self._targets_NK[images_B], partner_B, share_B),
            images=images_B,
            views=views_B,
            partner=torch.from_numpy(partner_B).to(self.device),
            share=torch.from_numpy(share_B).to(self.device, self.dtype),
        )

    def _mixed(self, own: np.ndarray, partner_B: np.ndarray, share_B: np.ndarray) -> Tensor:
        """(B, ...) of what is small, mixed in float64."""
        own = torch.from_numpy(own).double()
        share = _column(torch.from_numpy(share_B), own)
        mixed = torch.lerp(own[partner_B], own, share)
        return mixed.to(self.device, self.dtype)

    def _mixed_rows(
        self,
        rows: Sequence[Tensor],
        partner_B: np.ndarray,
        share_B: np.ndarray,
    ) -> Tensor:
        """(B, T, P, D) mixed patches: one new buffer a batch. Each parent is converted into it, or
        into one small block, once."""
        mixed = torch.empty(
            (len(rows), *rows[0].shape),
            dtype=self.dtype,
            device=self.device,
            pin_memory=self.pin_memory,
        )
        # the cache is the CPU's concern: elsewhere one call serves a row
        block = BLOCK if self.device.type == "cpu" else rows[0].numel()
        other = mixed.new_empty(block)
        for own, partner, share, out in zip(rows, partner_B, share_B, mixed, strict=True):
            if share == 1:
                out.copy_(own)
                continue
            # share * own + (1 - share) * partner, block by block
            blocks = [x.reshape(-1).split(block) for x in (own, rows[partner], out)]
            for a, b, mixed_ab in zip(*blocks, strict=True):
                mixed_ab.copy_(a)
                partners = other[: len(b)].copy_(b)
                torch.lerp(partners, mixed_ab, float(share), out=mixed_ab)
        return mixed


def _column(share_B: Tensor, like: Tensor) -> Tensor:
    return share_B.view(-1, *(1,) * (like.dim() - 1))


# -- what it is made from


def _stream_of(
    n_images: int,
    n_views: int,
    images_N: np.ndarray,
    batch_size: int,
    seed: int,
) -> Stream:
    """A stream of one split, the first fold of a cross-validation by its address."""
    split = Split(0, 0, images_N, np.setdiff1d(np.arange(n_images), images_N))
    n_folds = 2  # any number does: it decides about n_steps alone, which is set below
    stream = Stream(n_images, n_views, [split], n_folds, batch_size, seed)
    # of these images alone: there are no other folds to keep step with
    stream.n_steps = len(images_N) // batch_size
    return stream


def _check_usage(
    batch_size: int,
    alpha: float,
    dtype: torch.dtype,
    pin_memory: bool,
    lazy: bool,
    device: torch.device,
) -> None:
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be 1 or more")
    if not 0 < alpha < np.inf:
        raise UsageError(
            f"alpha is {alpha}; it must be a number above 0 (mixup=False mixes nothing)"
        )
    if not dtype.is_floating_point:
        raise UsageError(
            f"dtype is {dtype}; tokens are mixed in a floating-point type, torch.float32 say"
        )
    if pin_memory and (lazy or device.type != "cpu" or not torch.cuda.is_available()):
        raise UsageError(
            "pin_memory is for mixed batches that are made on the CPU (lazy=False, device='cpu') "
            "beside a CUDA device; leave it out"
        )


def _positions_of(
    store: FeatureStore,
    images: Sequence[str | int] | None,
    batch_size: int,
) -> np.ndarray:
    """(N,) positions in order; all sealed, none twice, a batch at least."""
    if not store.spec.has_patches:
        raise InputError(
            f"{store.path}: a pooled store, it holds no patch tokens to mix; build one with them"
        )
    if store.spec.tokens.fit == "pad":
        raise InputError(
            f"{store.path}: built with --fit pad, and padding would be mixed with photographs; "
            "build one with --fit squash or crop"
        )
    given = used_images(store) if images is None else list(images)
    # a mask would be taken for positions 0 and 1
    if any(isinstance(image, bool | np.bool_) for image in given):
        raise InputError(
            "images: true and false; give ids or positions, of a mask np.flatnonzero(mask)"
        )
    numbered = [_numbered(store, "image", image) for image in given]
    positions, counts = np.unique(numbered, return_counts=True)
    if len(twice := positions[counts > 1]):
        ids = store.catalog["image_id"][twice].tolist()
        raise InputError(f"images: {len(twice)} are given twice:{list_some(ids)}")
    if len(positions) < batch_size:
        raise InputError(
            f"images: {len(positions)}, fewer than batch_size {batch_size}; make it smaller or "
            "give more images"
        )
    for position in positions:
        store.require(int(position))
    return positions.astype(int)


def _views_of(store: FeatureStore, views: Sequence[str | int] | None) -> np.ndarray:
    """(V,) numbers of views, in the order given."""
    if views is not None and (isinstance(views, str) or len(views) == 0):
        raise UsageError(
            f"views: {views!r}; give a list of the store's views, {', '.join(store.view_names)}, "
            "or leave it out"
        )
    given = range(len(store.view_names)) if views is None else views
    return np.array([_numbered(store, "view", view) for view in given])


def _numbered(store: FeatureStore, what: str, given: Any) -> int:
    """The position of an image or view given by name or position; InputError if it is not there."""
    if not isinstance(given, str | int | np.integer):
        raise InputError(f"{what} {given!r}: neither a name nor a position")
    try:
        return store.index(given) if what == "image" else store.view_index(given)
    except IndexError as err:
        raise InputError(f"{store.path}: {err}; positions start at 0") from err


def _targets_of(store: FeatureStore, images_N: np.ndarray, targets: Sequence[str]) -> np.ndarray:
    """(all images, K) float64; those of images_N are all numbers."""
    names = [targets] if isinstance(targets, str) else list(targets)
    catalog = store.catalog
    if missing := [name for name in names if name not in catalog]:
        numbers = [column.name for column in store.spec.columns if column.kind == "number"]
        raise InputError(
            f"{store.path}: the catalog has no column {', '.join(missing)}; targets can be "
            f"{', '.join(numbers)}"
        )
    values_NK = catalog[names].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if len(bad := images_N[~np.isfinite(values_NK[images_N]).all(1)]):
        raise InputError(
            f"{len(bad)} images lack a number in {', '.join(names)}; leave them out of images, or "
            f"the target out:{list_some(catalog['image_id'][bad].tolist())}"
        )
    return values_NK
