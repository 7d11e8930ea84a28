"""Every kind of head alone, and every pair of sorts of kinds, ends in a leaderboard."""

import itertools
import json

import pytest
from commands import biomass
from sweeps import config, write_store

from trainer.heads import kinds
from trainer.heads.kinds import gpr, hist_gbdt, kernel_ridge, logistic, svr
from trainer.loop.runs import SweepFolder
from trainer.loop.sweep import run_sweep


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve photographs of ten sites."""
    return write_store(tmp_path_factory.mktemp("twelve") / "features.h5", n=12)


@pytest.fixture(autouse=True)
def small_searches(monkeypatch):
    monkeypatch.setattr(hist_gbdt, "ROUNDS", 5)
    monkeypatch.setattr(logistic, "STRENGTHS", logistic.STRENGTHS[:1])
    monkeypatch.setattr(gpr, "_minimise", lambda loss, first, bounds: (first, loss(first)[0]))
    for kind in (kernel_ridge.KernelRidge, svr.Svr):
        monkeypatch.setattr(kind, "gammas", kind.gammas[:1])
        monkeypatch.setattr(kind, "penalties", kind.penalties[:1])


def assert_a_leaderboard_of(chosen, folder, store):
    """In `summary`, and in the table that is printed."""
    given = config(folder, store, kind=f"[{', '.join(chosen)}]", lr="[1e-2]", epochs=1, n_folds=2)
    result = run_sweep(given, folder, "cpu", progress=False)
    names = result.summary["name"].tolist()
    points = [name.partition("kind-")[2].partition("__")[0] for name in names if "kind-" in name]
    assert sorted(points) == sorted(chosen)
    assert names.count("mean") == names.count("ridge") == 1
    assert all(name in result.table() for name in names)


@pytest.mark.parametrize("kind", kinds.names())
def test_K1_every_kind_alone_has_a_leaderboard(tmp_path, twelve, kind, laid_out):
    assert_a_leaderboard_of([kind], tmp_path, twelve)


def pairs() -> list:
    """Every pair of kinds; outside test-system one for each two sorts, and each kind with the next
    of its sort. test_results and test_other_tasks have sweeps of ten and nine kinds."""
    sorts: dict[tuple, list[str]] = {}
    for name in kinds.names():
        kind = kinds.load(name)
        trunk = kind.trained and kind.has_trunk
        # ridge is the baseline of every board as well
        sort = (kind.trained, trunk, kind.reads_patches, kinds.tells_numbers(name), name == "ridge")
        sorts.setdefault(sort, []).append(name)

    quick = set()
    for (i, first), (j, second) in itertools.combinations(enumerate(sorts.values()), 2):
        # another one of a sort for each other sort
        quick.add(frozenset({first[(i + j) % len(first)], second[(i + j) % len(second)]}))
    for members in sorts.values():
        quick |= {frozenset(two) for two in itertools.pairwise([*members, members[0]])}
    return [
        two if frozenset(two) in quick else pytest.param(two, marks=pytest.mark.system)
        for two in itertools.combinations(kinds.names(), 2)
    ]


@pytest.mark.parametrize("pair", pairs(), ids="+".join)
def test_K1_every_pair_of_kinds_has_a_leaderboard(tmp_path, twelve, pair):
    assert_a_leaderboard_of(pair, tmp_path, twelve)


@pytest.mark.parametrize("fold", ["0", "all"])
def test_K1_regressors_alone_train_one_fold_and_refit(tmp_path, twelve, fold):
    config(tmp_path, twelve, kind="[ridge, pls]", lr="[1e-2]", n_folds=2)
    arguments = [
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--fold",
        fold,
    ]
    printed = biomass("train", *arguments).stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert (
        "score_last" in printed
        and json.loads((folder / "summary.json").read_text())["best"] in printed
    )
    assert SweepFolder(folder).is_refitted == (fold == "all")
    assert "score_best" not in printed
