"""Rot that comes after a store was opened or verified: training sees it before any head learns from
it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import biomass
from store_server import serving
from sweeps import config, write_store

from featurestore import FeatureStore, open_writer
from featurestore.errors import StoreDamaged
from featurestore.read.checksums import Checksums
from trainer import MixupBatches
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep

PARTS = ("cls", "patches", "pooled", "stats")


@pytest.fixture(params=["h5", "zarr"])
def path(request, tmp_path) -> Path:
    return write_store(tmp_path / f"features.{request.param}", n=12)


def place_of(path: Path, part: str, image: int, view: int) -> tuple[Path, int]:
    """File and offset of the middle of a part of a row."""
    store = FeatureStore.open(path)
    names = [name for name in PARTS if store.spec.has_patches or name != "patches"]
    file, offset, n_bytes = store.layout.row_parts(image, view)[names.index(part)]
    return file, offset + n_bytes // 2


def flip(path: Path, part: str, image: int, view: int) -> None:
    """Flip one bit of a row; the same once more mends it."""
    file, offset = place_of(path, part, image, view)
    with open(file, "r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 1]))


def small(tmp_path: Path, path: Path, **changes) -> SweepConfig:
    changes = {
        "kind": "cls_gating",
        "lr": "1e-2",
        "epochs": 2,
        "normalize": "false",
        "n_folds": 2,
    } | changes
    return config(tmp_path, path, **changes)


def trained(tmp_path: Path, settings: SweepConfig, **options) -> Path:
    return run_sweep(settings, tmp_path / "runs", "cpu", progress=False, **options).path


@pytest.mark.parametrize("part", ["cls", "patches", "pooled"])
def test_K9_train_names_image_view_file_and_offset_of_a_rotten_row(tmp_path, path, part):
    flip(path, part, 3, 0)
    small(tmp_path, path)
    message = biomass(
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        code=4,
    ).stderr
    file, offset, _ = FeatureStore.open(path).layout.extents["patches"].locate(3 * 3)
    assert f"{file} at byte {offset}: image 3 (ID3), view 'plain': its bytes changed" in message
    assert "store verify" in message


def test_K9_no_check_trains_on_what_is_there(tmp_path, path):
    flip(path, "patches", 3, 0)
    small(tmp_path, path)
    command = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--no-check",
    ]
    assert "cls_gating" not in biomass(*command).stderr


@pytest.mark.parametrize("kind", ["ridge", "pooled_mlp"])
@pytest.mark.parametrize("part", ["cls", "pooled"])
def test_K9_heads_that_read_no_patches_are_kept_from_rotten_vectors(tmp_path, path, kind, part):
    flip(path, part, 5, 0)
    with pytest.raises(StoreDamaged, match="image 5"):
        trained(tmp_path, small(tmp_path, path, kind=kind))


def test_K9_moments_are_kept_from_rotten_vectors(tmp_path, path):
    """View 1 is scored by nobody, and one epoch shows it of few images: only moments read it of
    all."""
    sweep = prepare_sweep(small(tmp_path, path), "cpu")
    flip(path, "pooled", 7, 1)
    with pytest.raises(StoreDamaged, match="image 7 .*hflip"):
        sweep.data.moments(sweep.splits, ["patch"])


def test_K9_vectors_of_a_zarr_store_are_checked_without_its_patches(tmp_path):
    path = write_store(tmp_path / "features.zarr", n=12)
    flip(path, "patches", 5, 0)
    trained(tmp_path, small(tmp_path, path, kind="ridge"))


def test_K9_a_rotten_sum_of_patches_does_not_condemn_a_row_that_is_whole(tmp_path):
    path = write_store(tmp_path / "features.zarr", n=12)
    store = FeatureStore.open(path)
    file, offset, n_bytes = store.layout.extents["patches"].locate(5 * 3)
    with open(file, "r+b") as handle:
        handle.seek(offset + n_bytes)
        handle.write(b"rot!")
    store.check_rows([(5, 0)], patches=False)
    flip(path, "pooled", 5, 0)
    with pytest.raises(StoreDamaged, match="image 5"):
        FeatureStore.open(path).check_rows([(5, 0)], patches=False)


def test_K9_a_pooled_store_is_checked_as_well(tmp_path):
    path = write_store(tmp_path / "features.h5", n=12, has_patches=False)
    flip(path, "cls", 5, 0)
    with pytest.raises(StoreDamaged, match="image 5"):
        trained(tmp_path, small(tmp_path, path, kind="ridge"))


def test_K9_a_row_is_compared_once(tmp_path, path, monkeypatch):
    rows, of_row = [], Checksums.of_row
    monkeypatch.setattr(
        Checksums, "of_row", lambda self, *row: rows.append(row) or of_row(self, *row)
    )
    trained(tmp_path, small(tmp_path, path, epochs=5))
    assert len(rows) == len(set(rows)) > 12


def first_met(settings: SweepConfig, epoch: int) -> tuple[int, int]:
    """A row that training meets in this epoch and not before; views 0 and 2 are those that are
    scored."""
    stream = prepare_sweep(settings, "cpu").stream
    met = {(image, view) for image in range(12) for view in (0, 2)}

    def rows(e: int) -> list[tuple[int, int]]:
        return [
            tuple(row)
            for step in range(stream.n_steps)
            for row in stream.batch(e, step).rows_U2.tolist()
        ]

    for e in range(epoch):
        met.update(rows(e))
    return next(row for row in rows(epoch) if row not in met)


@pytest.mark.parametrize(
    "kind", ["cls_gating", "[cls_gating, density]"], ids=["one bank", "two banks"]
)
def test_K9_a_mended_store_lets_the_sweep_go_on_to_the_same_bits(tmp_path, kind):
    path = write_store(tmp_path / "features.h5", n=12)
    whole = trained(tmp_path, small(tmp_path, path, epochs=4, kind=kind))
    settings = small(tmp_path, path, epochs=4, kind=kind)
    row = first_met(settings, 2)
    flip(path, "patches", *row)
    with pytest.raises(StoreDamaged, match=f"image {row[0]} "):
        run_sweep(settings, tmp_path / "stopped", "cpu", progress=False)
    (folder,) = (tmp_path / "stopped").iterdir()
    assert list(folder.glob("checkpoints/*.safetensors"))  # what was trained before is kept
    with pytest.raises(StoreDamaged):
        resume_sweep(folder, progress=False)
    flip(path, "patches", *row)
    resume_sweep(folder, progress=False)
    heads = sorted(whole.rglob("*.safetensors"))
    assert heads
    for file in heads:
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_K9_a_plan_checks_nothing_since_it_keeps_nothing(tmp_path, path):
    flip(path, "patches", 3, 0)
    small(tmp_path, path)
    assert (
        "heads"
        in biomass("train", "--config", tmp_path / "sweep.yaml", "--device", "cpu", "--plan").stdout
    )


@pytest.mark.parametrize("part", ["cls", "patches"])
def test_K9_mixup_batches_check_their_rows(path, part):
    flip(path, part, 3, 1)
    store = FeatureStore.open(path)
    with pytest.raises(StoreDamaged, match=r"image 3 .*hflip"):
        list(MixupBatches(store, batch_size=12, views=["hflip"]))
    (batch,) = MixupBatches(store, batch_size=12, views=["hflip"], check=False)
    assert isinstance(batch.cls, torch.Tensor)


def test_K9_rows_from_a_server_are_not_checked_twice(tmp_path, path, monkeypatch):
    with serving(path) as server, FeatureStore.open(server.url, cache=tmp_path / "cache") as store:
        monkeypatch.setattr(Checksums, "check", None)  # not called
        assert len(list(MixupBatches(store, batch_size=6))) == 2


def test_C1_first_touch_checks_the_rows_that_are_asked_for(path):
    flip(path, "patches", 3, 1)
    store = FeatureStore.open(path, check="first-touch")
    store.patches[3, 0], store.patches[3, [0, 2]], store.take([(3, 2)])  # noqa: B018
    for read in (
        lambda: store.patches[3],
        lambda: store.patches[3, 1:],
        lambda: store.take([(3, 1)]),
        lambda: store.rows(3),
    ):
        with pytest.raises(StoreDamaged, match=r"image 3 .*hflip"):
            read()


def test_a_row_that_is_built_again_is_checked_again(path):
    store = FeatureStore.open(path, check="first-touch")
    rows = store.rows(3)
    whole = replace(rows, patches_VTPD=rows.patches_VTPD.copy())
    flip(path, "patches", 3, 1)
    biomass("store", "verify", path, "--repair", code=4)
    store.refresh()
    with open_writer(path, store.spec, store.catalog) as writer:
        writer.put(3, replace(whole, patches_VTPD=whole.patches_VTPD * 2))
    flip(path, "patches", 3, 1)
    store.refresh()
    with pytest.raises(StoreDamaged, match=r"image 3 .*hflip"):
        store.patches[3, 1]


def test_K9_no_more_than_a_window_is_asked_for_ahead_of_the_check(path, monkeypatch):
    store = FeatureStore.open(path)
    row_bytes = store.layout.extents["patches"].array.row_bytes
    monkeypatch.setattr("featurestore.read.checksums.AHEAD_BYTES", 3 * row_bytes)
    asked, ahead = [], []
    monkeypatch.setattr(store.source, "will_need", asked.extend)
    of_row = store.checksums.of_row
    monkeypatch.setattr(
        store.checksums,
        "of_row",
        lambda *row: ahead.append(len(asked) - len(ahead)) or of_row(*row),
    )
    rows = [(image, view) for image in range(4) for view in range(3)]
    store.check_rows(rows)
    assert asked == rows and ahead == [4] * 9 + [3, 2, 1]
