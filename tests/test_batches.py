"""Batches for a loop of one's own: the stream's rows, partners and shares; mixed once, or not at
all."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from sweeps import config, write_store
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from featurestore import FeatureStore
from featurestore.errors import InputError, MismatchError, UsageError
from featurestore.photos.catalog import TARGETS
from featurestore.write.writer import open_writer
from trainer import MixupBatches
from trainer.data.stream import Split, Stream, mixup_share
from trainer.loop.prepare import prepare_sweep

IMAGES = [*range(3, 24), 28, 29]  # 23: five batches of four, and three over


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path_factory.mktemp("batches") / "features.h5"))


def same(a, b) -> bool:
    """Whether two batches are equal bit for bit."""

    def equal(x, y) -> bool:
        return all(map(equal, x, y)) if isinstance(x, list) else bool((x == y).all())

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_batches_are_what_the_stream_gives_mixed(store, alpha):
    stream = Stream(30, 3, [Split(0, 0, np.array(IMAGES), np.arange(3))], 2, 4, seed=7)
    stream.n_steps = 5
    batches = MixupBatches(store, IMAGES, batch_size=4, alpha=alpha, seed=7)
    truth_NK = store.catalog[list(TARGETS)].to_numpy()
    for epoch in range(2):
        for step, got in enumerate(batches):
            b = stream.batch(epoch, step)
            rows, partner, share = (
                b.rows_U2[b.own_QB[0]],
                b.partner_QB[0],
                mixup_share(b.uniform_QB[0], alpha),
            )
            assert np.array_equal(np.stack([got.images, got.views], 1), rows)
            for of_row, mixed in (
                (lambda r: store.patches[r[0], r[1]], got.patches),
                (lambda r: store.cls[r[0], r[1]], got.cls),
                (lambda r: truth_NK[r[0]], got.targets),
            ):
                own = np.stack([of_row(row) for row in rows]).astype(float)
                s = share.reshape(-1, *(1,) * (own.ndim - 1))
                np.testing.assert_allclose(
                    mixed.numpy(), s * own + (1 - s) * own[partner], rtol=1e-5, atol=1e-5
                )
    assert step == 4


def test_an_epoch_shows_given_images_alone_none_twice_and_partners_are_among_them(store):
    seen = []
    for batch in MixupBatches(store, IMAGES, batch_size=4):
        assert set(batch.images[batch.partner]) == set(batch.images)
        seen += batch.images.tolist()
    assert len(seen) == len(set(seen)) == 20 and set(seen) <= set(IMAGES)


def test_images_and_views_go_by_name_or_position(store):
    by_name = MixupBatches(
        store, [f"ID{i}" for i in IMAGES], views=["vflip", "plain"], batch_size=4, seed=1
    )
    by_number = MixupBatches(store, np.array(IMAGES), views=[2, 0], batch_size=4, seed=1)
    first, second = list(by_name), list(by_number)
    assert all(map(same, first, second))
    assert {int(v) for batch in first for v in batch.views} == {0, 2}


def test_a_lazy_batch_mixes_what_a_linear_map_made_of_its_rows(store):
    weight = torch.randn(7, 3)
    for mixed, lazy in zip(
        *(MixupBatches(store, batch_size=4, lazy=lazy) for lazy in (False, True)), strict=True
    ):
        torch.testing.assert_close(
            lazy.mix(torch.stack([row.float() @ weight for row in lazy.patches])),
            mixed.patches @ weight,
            rtol=1e-4,
            atol=1e-4,
        )
        assert torch.equal(lazy.cls, mixed.cls) and torch.equal(lazy.targets, mixed.targets)


def test_lazy_rows_are_views_of_the_file(store):
    batch = next(iter(MixupBatches(store, batch_size=4, lazy=True)))
    for row, image, view in zip(batch.patches, batch.images, batch.views, strict=True):
        assert row.data_ptr() == store.patches[image, view].ctypes.data


class Allocations(TorchDispatchMode):
    """Bytes of every piece of memory that was not there before."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.sizes, self._known = [], {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, torch.Tensor)
            and (at := out.untyped_storage().data_ptr()) not in self._known
        ):
            self._known.add(at)
            self.sizes.append(out.untyped_storage().nbytes())
        return out


def test_mixing_makes_one_buffer_and_one_block(store, monkeypatch):
    monkeypatch.setattr("trainer.data.batches.BLOCK", 16)
    rows = [torch.from_dlpack(store.patches[i, 0]) for i in range(4)]
    with Allocations(*rows) as allocations:
        MixupBatches(store, batch_size=4)._mixed_rows(
            rows, np.array([2, 3, 1, 0]), np.array([0.2, 0.5, 0.9, 1.0])
        )
    assert allocations.sizes == [4 * 2 * 6 * 7 * 4, 16 * 4]


def test_without_mixup_rows_come_as_they_are(store):
    for batch in MixupBatches(store, batch_size=4, mixup=False):
        expected = np.stack(
            [store.patches[i, v] for i, v in zip(batch.images, batch.views, strict=True)]
        )
        assert np.array_equal(batch.patches.numpy(), expected.astype(np.float32))
        assert batch.share.tolist() == [1.0] * 4 and batch.partner.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_batch_is_of_the_dtype_asked_for(store, dtype):
    batch, exact = (
        next(iter(MixupBatches(store, batch_size=4, dtype=d))) for d in (dtype, torch.float64)
    )
    assert {x.dtype for x in (batch.cls, batch.patches, batch.targets, batch.share)} == {dtype}
    torch.testing.assert_close(batch.patches.double(), exact.patches, rtol=2e-2, atol=2e-2)


def test_a_state_saved_after_a_batch_goes_on_with_the_next(store):
    whole = MixupBatches(store, batch_size=7, seed=3)
    expected = [batch for _ in range(3) for batch in whole]
    for n in range(1, len(expected)):
        stopped = MixupBatches(store, batch_size=7, seed=3)
        every = (batch for _ in range(3) for batch in stopped)
        for _ in range(n):
            next(every)
        resumed = MixupBatches(store, batch_size=7, seed=3)
        resumed.load_state_dict(stopped.state_dict())
        assert same(next(iter(resumed)), expected[n])
        assert resumed.state_dict() == {
            "epoch": (n + 1) // 4,
            "step": (n + 1) % 4,
            "seed": 3,
            "batch_size": 7,
            "n_images": 30,
            "n_views": 3,
        }


def test_looking_at_a_batch_does_not_shorten_the_epoch(store):
    batches = MixupBatches(store, batch_size=7)
    peeked = next(iter(batches))
    epoch = list(batches)
    assert len(epoch) == len(batches) == 4 and same(epoch[0], peeked)


def test_set_epoch_begins_that_epoch(store):
    batches = MixupBatches(store, batch_size=7)
    first, second = list(batches), list(batches)
    batches.set_epoch(1)
    assert all(map(same, batches, second)) and not same(first[0], second[0])


@pytest.mark.parametrize("skipped", [{}, {3: "missing"}])
def test_order_and_views_are_the_sweep_s(tmp_path, skipped):
    path = write_store(tmp_path / "features.h5", skipped=skipped)
    with warnings.catch_warnings(action="ignore"):  # of the images that were skipped
        sweep = prepare_sweep(config(tmp_path, path, kind="density"), "cpu")
        learned = sweep.data.images_N[sweep.splits[0].train_N]
        theirs = sweep.stream.batch(0, 0)
    rows = sweep.data.first.stored(theirs.rows_U2)[theirs.own_QB[0]]
    batch = next(
        iter(
            MixupBatches(
                FeatureStore.open(path),
                learned.tolist(),
                batch_size=rows.shape[0],
                seed=sweep.base.experiment.seed,
            )
        )
    )
    assert np.array_equal(np.stack([batch.images, batch.views], 1), rows)


def test_a_data_loader_passes_batches_on(store):
    batches, other = (MixupBatches(store, batch_size=7) for _ in range(2))
    loader = DataLoader(batches, batch_size=None)
    assert len(loader) == 4
    for _ in range(2):
        assert all(map(same, loader, list(other)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_are_refused(store, method):
    loader = DataLoader(
        MixupBatches(store, batch_size=7),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=method,
    )
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(loader))


def test_another_run_s_state_is_refused(store):
    state = MixupBatches(store, batch_size=4).state_dict()
    with pytest.raises(MismatchError, match="batch_size is 5, the state was saved with 4"):
        MixupBatches(store, batch_size=5).load_state_dict(state)


@pytest.mark.parametrize(
    "error, message, options",
    [
        (InputError, "no image 'ID99'; did you mean", {"images": ["ID1", "ID99"]}),
        (InputError, "image 30 is out of bounds", {"images": [0, 30]}),
        (InputError, "np.flatnonzero", {"images": np.arange(30) < 20}),
        (InputError, "1 are given twice:\n  ID5", {"images": [5, 6, 5]}),
        (InputError, "images: 3, fewer than batch_size 4", {"images": [1, 2, 3]}),
        (
            InputError,
            "no column Dry_Gold_g; targets can be .*Dry_Total_g",
            {"targets": ["Dry_Gold_g"]},
        ),
        (InputError, "3 images lack a number in Height_Ave_cm", {"targets": ["Height_Ave_cm"]}),
        (InputError, "no view 'hflop'", {"views": ["hflop"]}),
        (InputError, "view 3 is out of bounds", {"views": [0, 3]}),
        (UsageError, "give a list of the store's views, plain, hflip", {"views": []}),
        (UsageError, "give a list of the store's views, plain, hflip", {"views": "plain"}),
        (UsageError, "alpha is 0", {"alpha": 0}),
        (UsageError, "batch_size is 0", {"batch_size": 0}),
        (UsageError, "dtype is torch.int32", {"dtype": torch.int32}),
        (UsageError, "leave it out", {"pin_memory": True, "lazy": True}),
    ],
)
def test_what_cannot_be_batched_is_refused(store, error, message, options):
    with pytest.raises(error, match=message):
        MixupBatches(store, **{"batch_size": 4} | options)


def test_images_that_are_not_built_are_refused_others_are_not(tmp_path):
    write_tiny(tmp_path / "f.h5", seal=3)
    store = FeatureStore.open(tmp_path / "f.h5")
    with pytest.raises(InputError, match="not built yet"):
        MixupBatches(store, batch_size=2, targets=["Dry_Total_g"])
    assert len(list(MixupBatches(store, [0, 1, 2], batch_size=2, targets=["Dry_Total_g"]))) == 1


def test_a_store_without_labels_gives_batches_without_targets(tmp_path):
    write_tiny(tmp_path / "f.h5")
    (batch,) = MixupBatches(FeatureStore.open(tmp_path / "f.h5"), batch_size=3, targets=())
    assert batch.targets.shape == (3, 0)


def test_a_pooled_store_is_refused(tmp_path):
    frame = tiny_frame(5)
    spec = tiny_spec(frame).model_copy(update={"has_patches": False})
    with open_writer(tmp_path / "f.h5", spec, frame) as writer:
        for i in writer.pending():
            writer.put(i, dataclasses.replace(tiny_rows(spec, i), patches_VTPD=None))
    with pytest.raises(InputError, match="a pooled store"):
        MixupBatches(FeatureStore.open(tmp_path / "f.h5"), batch_size=2)
