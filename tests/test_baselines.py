"""trainer.judge.baselines: which rows a fit keeps together."""

from dataclasses import replace

from sweeps import config, write_store

from trainer.heads.regressor import Regressor
from trainer.judge import baselines
from trainer.loop.prepare import prepare_sweep


class Spy(Regressor):
    def fit_rows(self, table, rows_n, y_NK, group_N, seed):
        self.group_N = group_N
        return {}


def test_a_fit_keeps_copies_of_a_photograph_together(tmp_path, monkeypatch):
    sweep, spy = (
        prepare_sweep(
            config(tmp_path, write_store(tmp_path / "features.h5"), kind="ridge", lr="[1e-2]"),
            "cpu",
        ),
        Spy(),
    )
    monkeypatch.setattr(baselines.kinds, "load", lambda _: spy)
    digests = sweep.data.catalog["sha256"].copy()
    # of two sites, which are dealt by themselves here as in another tool's folds
    digests[4] = digests[1]
    data = replace(sweep.data, catalog=sweep.data.catalog.assign(sha256=digests))
    everything = [replace(sweep.splits[0], train_N=sweep.data.images_N)]
    baselines.fit_splits(data, sweep.folds, everything, sweep.base, [])
    site = sweep.folds["site"]
    assert (
        site[4] != site[1]
        and spy.group_N[4] == spy.group_N[1]
        and len(set(spy.group_N)) == site.nunique() - 1
    )
