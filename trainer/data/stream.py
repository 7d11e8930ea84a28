"""Which rows, in which order, with which partner and draws: integers and uniforms, no I/O.

A fold's stream depends on (seed, repeat, fold, folds.csv, views, batch size, epochs) and on no
head, so all points of a fold are compared on the same rows, partners and draws; and any batch can
be replayed from its address alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

PERMUTATION, BATCH, DROPOUT = range(3)  # what a generator draws; keeps equal addresses apart

MOST_HELD_OUT = 512
"""Images of a batch in validation, at most, unless `batch_size` is more: where rows are gathered,
all of them are in memory."""


@dataclass(frozen=True)
class Split:
    """One fold of one repeat: which images it trains on, and which it holds out.

    Images are positions in folds.csv.
    """

    repeat: int
    fold: int
    train_N: np.ndarray
    val_N: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step of every split: its rows, distinct (image, view) pairs, and who reads which.

    A sample is one place in a split's batch, (Q, B); what it refers to are positions.
    """

    rows_U2: np.ndarray
    own_QB: np.ndarray
    """Row of each sample; -1 where a split has fewer samples (in validation only)."""
    partner_QB: np.ndarray
    """Sample of the same batch that it is mixed with."""
    uniform_QB: np.ndarray
    """One draw a sample in [0, 1), from which each point takes its share."""
    site_partner_QB: np.ndarray | None = None
    """Partner within the batch and site; the sample itself where there is no other."""

    @property
    def images_QB(self) -> np.ndarray:
        """Image of each sample; of a missing one any, its results are not used."""
        return self.rows_U2[self.own_QB, 0]


def make_splits_of(folds: pd.DataFrame, fold: int | str | None = None) -> list[Split]:
    """The splits of a folds table (columns r00, r01, ...), of all folds (None, "all") or of one."""
    columns = [c for c in folds.columns if c[0] == "r" and c[1:].isdigit()]
    splits = []
    for repeat, column in enumerate(columns):
        fold_N = folds[column].to_numpy()
        for f in range(fold_N.max() + 1):
            if fold in (None, "all", f):
                train_N = np.flatnonzero(fold_N != f)
                val_N = np.flatnonzero(fold_N == f)
                splits.append(Split(repeat, f, train_N, val_N))
    return splits


def everything(n_images: int, n_folds: int) -> Split:
    """A split that holds nothing out; its number follows those of the folds."""
    return Split(0, n_folds, np.arange(n_images), np.arange(0))


class Stream:
    """Training batches of all splits at once.

    Parameters
    ----------
    n_images, n_views : images of folds.csv and views of each.
    splits : what each fold may see.
    n_folds : of the cross-validation; with n_images and batch_size it sets the steps of an epoch,
        equal for all splits: the whole batches of a fold of average size. One that trains on more
        images leaves some out of an epoch, at other places each time; one that trains on fewer
        shows some again. A batch larger than a split's images holds some of them twice.
    site_N : (N,) any labels, the site of each image; None leaves out partners of the same site.
    """

    def __init__(
        self,
        n_images: int,
        n_views: int,
        splits: list[Split],
        n_folds: int,
        batch_size: int,
        seed: int,
        site_N: np.ndarray | None = None,
    ) -> None:
        self.n_images = n_images
        self.n_views = n_views
        self.splits = splits
        self.batch_size = batch_size
        self.seed = seed
        self.site_N = None if site_N is None else np.unique(site_N, return_inverse=True)[1]
        # without the ragged last batch: all folds, and so all heads, take equally many steps
        self.n_steps = max(1, int(n_images * (1 - 1 / n_folds)) // batch_size)
        self._epoch: tuple[int, list[np.ndarray], np.ndarray] | None = None
        self._made: dict[tuple[int, int], Batch] = {}

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch at an address; the last two are kept, so that a step can read ahead."""
        if (epoch, step) not in self._made:
            latest = list(self._made.items())[-1:]
            self._made = dict(latest) | {(epoch, step): self._new_batch(epoch, step)}
        return self._made[epoch, step]

    def _new_batch(self, epoch: int, step: int) -> Batch:
        orders, view_N = self._order(epoch)
        images = []
        partners = []
        uniforms = []
        site_partners = []
        for split, order in zip(self.splits, orders, strict=True):
            # from where this step is in the epoch: between steps are gaps where a split has many
            # images, overlaps where it has few
            start = step * len(order) // self.n_steps
            images_B = order[(start + np.arange(self.batch_size)) % len(order)]
            images.append(images_B)

            # drawn for every split, used or not, and always in this order: so a batch can be
            # replayed whatever else is trained
            rng = self.rng(BATCH, epoch, step, split.repeat, split.fold)
            partners.append(rng.permutation(self.batch_size))
            uniforms.append(rng.random(self.batch_size))
            key_B = rng.random(self.batch_size)
            if self.site_N is not None:
                site_partners.append(_shuffled_within(self.site_N[images_B], key_B))

        # a row as one number: what several splits show at this step is read once
        images_QB = np.stack(images)
        rows_QB = images_QB * self.n_views + view_N[images_QB]
        distinct_U, own = np.unique(rows_QB, return_inverse=True)
        return Batch(
            rows_U2=np.stack(np.divmod(distinct_U, self.n_views), 1),
            own_QB=own.reshape(rows_QB.shape),
            partner_QB=np.stack(partners),
            uniform_QB=np.stack(uniforms),
            site_partner_QB=np.stack(site_partners) if site_partners else None,
        )

    def rng(self, kind: int, *address: int) -> np.random.Generator:
        """Draws from an address; nothing else that is trained changes them."""
        return np.random.default_rng([self.seed, kind, *address])

    def _order(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Each split's training images in this epoch's order, and the view of each image."""
        if self._epoch is None or self._epoch[0] != epoch:
            # of no split's address: what one trains on changes nothing for the others
            rng = self.rng(PERMUTATION, epoch)
            order = rng.permutation(self.n_images)
            view_N = rng.integers(self.n_views, size=self.n_images)
            # one order for all: splits that share images show them at about the same steps
            orders = [order[np.isin(order, split.train_N)] for split in self.splits]
            self._epoch = (epoch, orders, view_N)
        return self._epoch[1:]

    def dropout(
        self,
        epoch: int,
        step: int,
        shape: tuple[int, ...],
        seed: int = 0,
    ) -> np.ndarray:
        """(Q, *shape) float32 uniforms for one layer, compared with each point's rate; other draws
        for another head's seed."""
        more = [seed] if seed else []  # seed 0 has the address of before there were seeds
        draws = []
        for split in self.splits:
            rng = self.rng(DROPOUT, epoch, step, split.repeat, split.fold, *more)
            draws.append(rng.random(shape, np.float32))
        return np.stack(draws)


def _shuffled_within(site_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """(B,) a permutation by the keys that leaves every sample within its site."""
    # within a site, the first sample of the batch gets the first by key, and so on
    partner_B = np.empty(len(site_B), int)
    partner_B[np.argsort(site_B, kind="stable")] = np.lexsort([key_B, site_B])
    return partner_B


def validation_batches(
    splits: list[Split],
    n_images: int,
    batch_size: int,
    view: int = 0,
) -> list[Batch]:
    """Batches that show every held-out image once, in order, to the splits that hold it out.

    No split has more samples than in a step of training; together they have more, as each holds out
    other images. Where a split has fewer than another, its samples are padded with -1.
    """
    batches = []
    end = 0
    while end < n_images:
        start = end
        end = min(n_images, start + max(MOST_HELD_OUT, batch_size))
        for split in splits:
            first = np.searchsorted(split.val_N, start)
            end = min([end, *split.val_N[first + batch_size :][:1].tolist()])
        held_out = []
        for split in splits:
            first, last = np.searchsorted(split.val_N, [start, end])
            held_out.append(split.val_N[first:last])
        images = np.unique(np.concatenate(held_out))
        if not len(images):  # only one fold is trained, and it holds out none of these
            continue
        own_QB = np.full((len(splits), max(map(len, held_out))), -1)
        for q, own in enumerate(held_out):
            own_QB[q, : len(own)] = np.searchsorted(images, own)
        rows_U2 = np.stack([images, np.full(len(images), view)], 1)
        # nothing is mixed: any partner and draw will do
        partner_QB = np.zeros_like(own_QB)
        uniform_QB = np.zeros(own_QB.shape)
        batches.append(Batch(rows_U2, own_QB, partner_QB, uniform_QB))
    return batches


def mixup_share(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Share of a sample's own row: the draw's quantile of Beta(alpha, alpha).

    Source: Zhang et al. 2018, arXiv:1710.09412.
    """
    if alpha == 1:  # Beta(1, 1) is uniform
        return uniform
    from scipy.special import betaincinv  # not at the top: predictors run without scipy

    return betaincinv(alpha, alpha, uniform)
