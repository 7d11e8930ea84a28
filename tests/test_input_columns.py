"""Columns of the table as inputs of heads: `head.columns`."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from preset import csiro
from safetensors.torch import load_file
from sweeps import write_store
from torch.nn import functional as F

from featurestore.errors import InputError
from trainer.config.sections import dump_yaml
from trainer.heads.input_columns import InputColumns
from trainer.judge.baselines import fit_splits
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.sweep import run_sweep

TASK = """
experiment: {{name: beside, seed: 1}}
dataset: {{store: {store}}}
targets: {{yield_t: {{}}, ndvi: {{kind: level, auxiliary: true}}}}
head: {{kind: {kinds}, features: [mean], columns: {columns}, shared_hidden: 8, gate_hidden: 5,
        dropout: 0, normalize: {normalize}}}
loss: {{space: raw}}
trainer: {{num_epochs: 6, batch_size: 8}}
optimization: {{lr: 3e-2, weight_decay: 1e-2, ema_decay: 0.9}}
augmentation: {{mixup: {{enabled: true}}}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 3, groups: [farm]}}
"""
BOTH = "[rain_mm, season]"


def labels(frame: pd.DataFrame) -> pd.DataFrame:
    """A yield that the table tells and the photograph does not; one farm has a season of its
    own, which is in one fold alone."""
    i = np.arange(len(frame))
    rain = (37 * i % 101).astype(float)
    season = np.where(i % 10 == 7, "monsoon", np.where(i // 10 == 1, "wet", "dry"))
    known = np.where(i % 9 == 4, np.nan, rain)
    return frame[["image_id", "path"]].assign(
        farm=[f"F{k % 10}" for k in i],
        yield_t=5 + 0.1 * rain + 4 * (season == "wet"),
        ndvi=np.sin(i),
        rain_mm=known,
        season=season,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("beside") / "f.h5", labels=labels)


def config(tmp_path, store, kinds="[ridge]", columns=BOTH, normalize="null") -> SweepConfig:
    path = tmp_path / "beside.yaml"
    given = {"store": store, "kinds": kinds, "columns": columns, "normalize": normalize}
    path.write_text(TASK.format(**given))
    return SweepConfig.load(path)


def by_hand(catalog: pd.DataFrame, train_N: np.ndarray) -> np.ndarray:
    """(N, 4): rain, the training mean where it is not known, and dry, monsoon, wet."""
    rain = catalog["rain_mm"].fillna(catalog["rain_mm"].iloc[train_N].mean())
    words = [catalog["season"] == word for word in ("dry", "monsoon", "wet")]
    return np.stack([rain, *words], 1).astype(float)


def test_a_regressor_learns_from_them_what_the_photograph_does_not_tell(tmp_path, store):
    given = config(tmp_path, store, "[ridge, pls, hist_gbdt]", f"[[], {BOTH}]")
    result = run_sweep(given, tmp_path, "cpu", progress=False)
    board = result.summary.set_index("name")["score_last"]
    assert not result.failed
    for kind in ("ridge", "pls"):
        score = {"rain" in name: board[name] for name in board.index if f"kind-{kind}__" in name}
        assert score[True] > score[False] + 0.1


@pytest.mark.parametrize("columns", [BOTH, "[season]"])
def test_a_ridge_is_that_of_features_joined_by_hand(tmp_path, store, columns):
    """Its saved maps, at the table by hand: gaps hold the fold's own mean, and a word that the fold
    does not have says nothing."""
    result = run_sweep(config(tmp_path, store, columns=columns), tmp_path, "cpu", progress=False)
    run = result.path / result.best
    sweep = prepare_sweep(config(tmp_path, store, columns=columns), "cpu")
    oof = pd.read_csv(run / "oof.csv").set_index("image_id")
    catalog = sweep.data.catalog
    for split in sweep.splits:
        head = load_file(run / "weights" / f"last_fold{split.fold}.safetensors")
        beside_NC = by_hand(catalog, split.train_N)
        if columns == "[season]":
            beside_NC = beside_NC[:, 1:]
        mean_C = beside_NC[split.train_N].mean(0)  # gaps hold the mean, and do not move it
        assert head["column_mean_C"].numpy() == pytest.approx(mean_C)
        mean_ND = sweep.data.features(["mean"], 0, np.arange(len(catalog)))
        x_NF = np.hstack([mean_ND, beside_NC])
        weight_FM = head["weight_FM"].numpy()
        found_NM = x_NF[split.val_N] @ weight_FM + head["bias_M"].numpy()
        told = oof.loc[catalog["image_id"].iloc[split.val_N], "yield_t"]
        yield_n = found_NM @ head["raw_MK"].numpy()[:, 0]
        np.testing.assert_allclose(told, np.maximum(yield_n, 0), rtol=1e-9)
        if not (catalog["season"].iloc[split.train_N] == "monsoon").any():
            assert abs(weight_FM[-2]).max() < 1e-12


@pytest.mark.parametrize("normalize", ["true", "false"])
@pytest.mark.parametrize("kind", ["pooled_mlp", "cls_gating", "attention"])
def test_the_trunk_reads_them_scaled_by_its_fold(tmp_path, store, kind, normalize):
    """What the shared layer is fed in training, and what a saved head makes of a row."""
    given = config(tmp_path, store, kind, normalize=normalize)
    sweep = prepare_sweep(given, "cpu", torch.float64)
    (trainer,) = sweep.trainers([0])
    batch = sweep.stream.batch(0, 0)
    reader = sweep.reader()
    rows = reader.step(batch.rows_U2)
    shared = sweep.data.inputs(batch, rows, [trainer.bank], {trainer.partners})
    inputs = trainer.inputs(shared[""], sweep.data, sweep.stream, batch, (0, 0), mixing=True)
    found_QGBC = trainer.bank.columns(inputs).numpy()
    for q, split in enumerate(sweep.splits):
        z_N4 = by_hand(sweep.data.catalog, split.train_N)
        rain_n = z_N4[split.train_N, 0]
        known = sweep.data.catalog["rain_mm"].iloc[split.train_N]
        assert rain_n.mean() == pytest.approx(known.mean())
        z_N4[:, 0] = (z_N4[:, 0] - rain_n.mean()) / rain_n.std()
        z_N4[:, 1:] *= np.ptp(z_N4[split.train_N, 1:], axis=0) > 0  # a word it never saw
        share_B1 = inputs.share_QGB[q, 0].numpy()[:, None]
        own, partner = batch.images_QB[q], batch.images_QB[q][batch.partner_QB[q]]
        mixed = share_B1 * z_N4[own] + (1 - share_B1) * z_N4[partner]
        np.testing.assert_allclose(found_QGBC[q, 0], mixed, atol=1e-12)
        state = trainer.bank.head_state(q, 0)
        assert state["columns.center"].shape == state["columns.factor"].shape == (4,)
        n_in = trainer.bank.tensors["shared_mlp.0.weight"].shape[2]
        assert state["shared_mlp.0.weight"].shape == (8, n_in)
        raw = trainer.bank.tensors["shared_mlp.0.weight"][q, 0, -4:].T.detach()
        np.testing.assert_allclose(state["shared_mlp.0.weight"][:, -4:], raw, rtol=1e-6)


def test_a_saved_head_is_the_plain_module_that_the_docs_describe(tmp_path, store):
    """Its predictions of what it did not learn from, computed by hand from file and table."""
    result = run_sweep(
        config(tmp_path, store, "pooled_mlp", normalize="true"), tmp_path, "cpu", False
    )
    run = next(result.path.glob("0*"))
    sweep = prepare_sweep(config(tmp_path, store, "pooled_mlp"), "cpu")
    oof = pd.read_csv(run / "oof.csv").query("weights == 'last'").set_index("image_id")
    catalog = sweep.data.catalog
    channels = [catalog["rain_mm"], *(catalog["season"] == w for w in ("dry", "monsoon", "wet"))]
    channel_N4 = torch.tensor(np.stack(channels, 1).astype(np.float32))
    mean_NTD = torch.tensor(sweep.data.store.array("pooled")[:, 0, :, 0].astype(np.float32))
    for split in sweep.splits:
        head = load_file(run / "weights" / f"last_fold{split.fold}.safetensors")
        z_N4 = ((channel_N4 - head["columns.center"]) * head["columns.factor"]).nan_to_num()
        beside_NT4 = z_N4[:, None].expand(-1, mean_NTD.shape[1], -1)
        x = torch.cat([mean_NTD, beside_NT4], -1)
        x = F.linear(x, head["shared_mlp.0.weight"], head["shared_mlp.0.bias"])
        scale, shift = head["shared_mlp.1.weight"], head["shared_mlp.1.bias"]
        h = F.gelu(F.layer_norm(x, x.shape[-1:], scale, shift))
        of_tile = F.softplus(F.linear(h, head["amount_head.weight"], head["amount_head.bias"]))
        told = oof.loc[catalog["image_id"].iloc[split.val_N], "yield_t"]
        np.testing.assert_allclose(told, of_tile.sum(1)[split.val_N, 0], rtol=1e-4)


@pytest.mark.parametrize(
    "columns, why",
    [
        ("[yield_t]", "yield_t is a target"),
        ("[rain]", "no column rain to read; it has farm, rain_mm, season"),
        ("[width]", "no column width"),
    ],
)
def test_what_cannot_be_an_input_is_refused(tmp_path, store, columns, why):
    with pytest.raises(InputError, match=why):
        prepare_sweep(config(tmp_path, store, columns=columns), "cpu")


def test_a_column_is_named_once(tmp_path, store):
    with pytest.raises(InputError, match="head.columns: rain_mm is there twice"):
        config(tmp_path, store, columns="[rain_mm, rain_mm]")


def test_too_many_texts_are_no_class():
    frame = pd.DataFrame({"image_id": list("abc") * 20, "note": [f"n{i}" for i in range(60)]})
    with pytest.raises(InputError, match="note has 60 different texts"):
        InputColumns.of(frame, ["note"], csiro(), "f.h5")


def test_density_ignores_them_and_a_config_without_them_is_saved_as_before(tmp_path, store):
    """Points that differ in what density does not read are one."""
    both = config(tmp_path, store, "[density, ridge]", f"[[], {BOTH}]")
    assert [(point.head.kind, point.head.columns) for point in both.points] == [
        ("density", []),
        ("ridge", []),
        ("ridge", ["rain_mm", "season"]),
    ]
    assert ["columns" in dump_yaml(point) for point in both.points] == [False, False, True]


def test_a_sweep_does_not_go_on_with_other_columns(tmp_path, store):
    facts = prepare_sweep(config(tmp_path, store), "cpu").facts
    other = prepare_sweep(config(tmp_path, store, columns="[season]"), "cpu").facts
    none = prepare_sweep(config(tmp_path, store, columns="[]"), "cpu").facts
    assert facts["columns"] != other["columns"] and "columns" not in none


def test_a_target_of_the_preset_is_refused_with_what_to_write():
    frame = pd.DataFrame({"image_id": ["a"], "Height_Ave_cm": [3.0]})
    with pytest.raises(InputError, match="name all targets but it in `targets`"):
        InputColumns.of(frame, ["Height_Ave_cm"], csiro(), "f.h5")


def test_words_that_look_like_numbers_are_found_in_a_table_of_numbers_alone():
    """A CSV whose cells are all numbers is read as float64, however large they are."""
    frame = pd.DataFrame({"image_id": list("abc"), "plot": ["20150721", "20150722", "edge"]})
    columns = InputColumns.of(frame, ["plot"], csiro(), "f.h5")
    numbers = pd.DataFrame({"image_id": list("de"), "plot": [20150722.0, 20150721.0]})
    assert columns.encoded(numbers, "test.csv").tolist() == [[0, 1, 0], [1, 0, 0]]


def test_cells_of_held_out_photographs_change_no_bit_of_their_heads(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store, "[ridge, pooled_mlp]"), "cpu")
    split = sweep.splits[0]
    catalog = sweep.data.catalog.copy()
    catalog.loc[split.val_N, "rain_mm"] = [np.nan, *range(1000, 999 + len(split.val_N))]
    there = catalog["season"].iloc[split.val_N] != "monsoon"  # the only ones: words must stay
    catalog.loc[split.val_N[there], "season"] = "wet"
    changed = replace(sweep.data, catalog=catalog, _encoded={})
    states = []
    for data in (sweep.data, changed):
        (state,), _ = fit_splits(data, sweep.folds, [split], sweep.config.points[0], [])
        scale = data.column_scale([split], data.columns_of(sweep.config.points[1]))
        states.append([*state.values(), *map(np.asarray, scale)])
    for before, after in zip(*states, strict=True):
        assert np.isfinite(before).all() and (before == after).all()
