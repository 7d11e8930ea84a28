"""Nothing held out reaches a head: not its tokens, other views, pooled rows or labels, as own,
partner, scaler or border."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweeps import TRAINED, config, train_epoch, write_store

from trainer.data.stream import Split
from trainer.judge.baselines import fit_splits
from trainer.loop.prepare import Sweep, prepare_sweep

pytestmark = pytest.mark.usefixtures("small_searches")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """The sweep over a store, and over one where every number of some images is another: (sweep,
    images) -> that sweep."""
    folder = tmp_path_factory.mktemp("leakage")
    write_store(folder / "clean.h5")
    changes = {
        "kind": f"[{', '.join(TRAINED)}]",
        "lr": "[3e-2]",
        "normalize": "true",
        "intervals": 3,
        "mixup": "[patches, same_site]",
        "epochs": 2,
    }
    clean = prepare_sweep(config(folder, folder / "clean.h5", **changes), "cpu", torch.float64)

    def spoil(images: np.ndarray) -> Sweep:
        (folder / "spoiled.h5").write_bytes((folder / "clean.h5").read_bytes())
        add_to(clean.data.store.layout.extents, folder / "spoiled.h5", images)
        given = config(folder, folder / "spoiled.h5", **changes)
        # its rows are not what was committed
        other = prepare_sweep(given, "cpu", torch.float64, check=False)
        labels = other.data.labels
        labels.values_NK[images] += 100
        labels.word_NC[images] = labels.word_NC[images].roll(1, -1)
        return other

    return clean, spoil


def add_to(extents, path, images) -> None:
    """Add to every token and pooled vector of these images, all views, in the file itself."""
    with open(path, "r+b") as file:
        for name in ("cls", "patches", "pooled"):
            extent = extents[name]
            for i in images:
                for row in range(i * 3, i * 3 + 3) if name == "patches" else [i]:
                    _, offset, n_bytes = extent.locate(row)
                    file.seek(offset)
                    values = np.frombuffer(file.read(n_bytes), extent.array.dtype) + 1
                    file.seek(offset)
                    file.write(values.astype(extent.array.dtype).tobytes())


def weights(sweep: Sweep, splits: list[Split]) -> list[torch.Tensor]:
    """Every averaged tensor of all heads of these splits."""
    part = Sweep.of(sweep.config, sweep.data, sweep.folds, splits)
    trainers = part.trainers(range(len(part.config.points)))
    for epoch in range(part.base.trainer.num_epochs):
        train_epoch(part, trainers, part.reader(), epoch)
    return [tensor for trainer in trainers for tensor in trainer.averaged.tensors.values()]


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(held_out=st.sets(st.integers(0, 29), min_size=1, max_size=20))
def test_held_out_images_reach_no_head(spoiled, held_out):
    """Any split, by site or not: changing all numbers of what it holds out changes no bit of its
    heads."""
    clean, spoil = spoiled
    val_N = np.array(sorted(held_out))
    split = Split(0, 1, np.setdiff1d(np.arange(30), val_N), val_N)
    for before, after in zip(weights(clean, [split]), weights(spoil(val_N), [split]), strict=True):
        assert torch.equal(before, after)


def test_a_training_image_reaches_every_head(spoiled):
    """The test above can fail."""
    clean, spoil = spoiled
    split = Split(0, 1, np.arange(20), np.arange(20, 30))
    before, after = weights(clean, [split]), weights(spoil(np.array([3])), [split])
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["ridge", "kernel_ridge", "svr", "pls", "gpr"])
def test_held_out_images_reach_no_regressor(spoiled, kind):
    clean, spoil = spoiled
    split = Split(0, 1, np.arange(20), np.arange(20, 30))
    point = clean.config.points[0].model_copy(update={"head": type(clean.base.head)(kind=kind)})
    (before,), _ = fit_splits(clean.data, clean.folds, [split], point, [0])
    (after,), _ = fit_splits(spoil(split.val_N).data, clean.folds, [split], point, [0])
    assert all(np.array_equal(before[name], after[name]) for name in before)
