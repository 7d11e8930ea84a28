"""Tables of many photographs are compressed, and read as others are."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from commands import biomass
from sweeps import DEFAULTS, YAML

from featurestore.disk import tables
from service.explore import out_of_fold
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(tables, "LARGE", 0)


def test_a_table_has_one_of_two_names(tmp_path, monkeypatch):
    path = tmp_path / "oof.csv"
    table = pd.DataFrame({"image_id": ["é1", "2"], "Dry": [0.1, 1 / 3]})
    n_bytes = len(table.to_csv(index=False).encode())
    for most, names in [(n_bytes, ["oof.csv"]), (n_bytes - 1, ["oof.csv.gz"])] * 2:
        monkeypatch.setattr(tables, "LARGE", most)
        tables.write_table(path, table)
        assert [each.name for each in tmp_path.iterdir()] == names
        found = tables.find_table(path)
        assert tables.read_text(found) == table.to_csv(index=False)
        pd.testing.assert_frame_equal(pd.read_csv(found, dtype={"image_id": str}), table)
    first = found.read_bytes()
    tables.write_table(path, table)
    assert found.read_bytes() == first


def test_a_sweep_leaves_large_tables_compressed(store, tmp_path, all_are_large):
    settings = {"store": store, "kind": "ridge", "lr": "1e-3", "epochs": 1, "n_folds": 2}
    (tmp_path / "sweep.yaml").write_text(YAML.format(**DEFAULTS | settings))
    done = run_sweep(SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "runs", "cpu")
    run = next(Path(done.path).glob("001_*"))
    assert (run / "oof.csv.gz").is_file() and not (run / "oof.csv").exists()
    assert len(out_of_fold.oof(run, None, averaged=True)) == 30 * 5


@pytest.fixture
def compressed(sweep, tmp_path, all_are_large) -> Path:
    """The sweep, as it would be with more photographs."""
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    for path in copy.glob("*/oof.csv"):
        tables.write_table(path, pd.read_csv(path, dtype=str, keep_default_na=False))
    assert not list(copy.glob("*/oof.csv"))
    return copy


def test_predict_reads_them(pasture, sweep, compressed, tmp_path):
    """Intervals and weights of a blend come from errors out of fold."""
    made = []
    for folder in (sweep, compressed):
        out = tmp_path / f"{folder.parent.name}.csv"
        runs = [word for run in sorted(folder.glob("00*"))[:2] for word in ("--run", run)]
        options = ["--tta", 1, "--blend", "fitted", "--interval", 0.5, "--device", "cpu"]
        biomass("predict", "--data", pasture, *runs, *options, "--out", out)
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_oof_is_compared_with_them(pasture, compressed, tmp_path):
    (run, *_) = sorted(compressed.glob("00*"))
    options = ["--data", pasture, "--run", run, "--device", "cpu"]
    biomass("predict", "--oof", *options, "--out", tmp_path / "o.csv")


def test_a_bundle_has_their_rows(sweep, compressed, tmp_path):
    for folder, name in ((sweep, "a"), (compressed, "b")):
        (run, *_) = sorted(folder.glob("00*"))
        biomass("bundle", run, "--out", tmp_path / name)
    assert texts_of(tmp_path / "a") == texts_of(tmp_path / "b")


def texts_of(bundle: Path) -> list[str]:
    return [path.read_text() for path in sorted(bundle.glob("runs/*/oof.csv"))]
