"""trainer.heads.kinds.ridge: the space of each target, what is saved, and its equal by hand."""

from functools import cache

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.preprocessing import RobustScaler
from sweeps import config, write_store

from featurestore.errors import InputError
from trainer.heads import kinds, shrinkage, table
from trainer.heads.kinds.ridge import choose_spaces
from trainer.heads.regressor import TrainingRows
from trainer.heads.shrinkage import ALPHAS, solutions
from trainer.heads.table import ReadTable, Table
from trainer.judge import baselines
from trainer.judge.baselines import fit_splits
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep

N, M = 48, 30
SITES = np.repeat(np.arange(8), 6)  # alike in size, so that a mean over folds is a mean over rows
INTO = {"raw": lambda y: y, "log1p": np.log1p, "sqrt": np.sqrt}
BACK = {"raw": lambda z: z, "log1p": np.expm1, "sqrt": lambda z: np.maximum(z, 0) ** 2}
SPACES = ("average", *INTO)


def draw(f: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, masses that are linear in raw, sqrt and log1p, and features of new rows."""
    rng = np.random.default_rng(0)
    cause_N3 = rng.normal(size=(N + M, 3))
    x = 5 + cause_N3 @ rng.normal(size=(3, f)) + 0.3 * rng.normal(size=(N + M, f))
    raw, root, log = (cause_N3 @ rng.normal(size=(3, 3))).T
    y = np.stack([np.maximum(20 + 5 * raw, 0), (5 + 2 * root) ** 2, np.exp(2 + log)], 1)
    return x[:N], y[:N], x[N:]


@cache
def all_by_hand(f: int) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Of each target that is drawn."""
    x, y, new = draw(f)
    return [by_hand(x, y_N, new) for y_N in y.T]


def by_hand(x_NF, y_N, new_MF) -> tuple[str, dict[str, np.ndarray]]:
    """The space that scikit-learn's own cross-validation chooses, and predictions in each."""
    scaler = RobustScaler().fit(x_NF)
    z_NF, new_MF = scaler.transform(x_NF), scaler.transform(new_MF)
    grid, folds = {"alpha": ALPHAS}, GroupKFold(4)
    held, new = {}, {}
    for space, into in INTO.items():
        search = GridSearchCV(SklearnRidge(), grid, scoring="neg_mean_squared_error", cv=folds)
        search.fit(z_NF, into(y_N), groups=SITES)
        best = SklearnRidge(**search.best_params_)
        held[space] = BACK[space](cross_val_predict(best, z_NF, into(y_N), groups=SITES, cv=folds))
        new[space] = BACK[space](search.predict(new_MF))
    for each in (held, new):
        each["average"] = (each["raw"] + each["log1p"]) / 2
    errors = {space: ((np.maximum(held[space], 0) - y_N) ** 2).sum() for space in SPACES}
    return min(errors, key=errors.get), {space: np.maximum(new[space], 0) for space in SPACES}


@pytest.mark.parametrize("f", [7, 100], ids=["few features", "more features than rows"])
def test_each_target_is_fitted_in_the_space_that_sklearn_finds_best(f):
    x, y, new = draw(f)
    kind = kinds.load("ridge").in_space("chosen")
    state = kind.fit(x, y, SITES, 0)
    chosen, guesses = zip(*all_by_hand(f), strict=True)
    assert kind.spaces_of(state) == list(chosen) and len(set(chosen)) > 1
    wanted = np.stack([each[space] for space, each in zip(chosen, guesses, strict=True)], 1)
    np.testing.assert_allclose(kind.predict(state, new), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("f", [7, 100], ids=["few features", "more features than rows"])
@pytest.mark.parametrize("space", SPACES)
def test_a_space_that_is_named_is_heeded(space, f):
    x, y, new = draw(f)
    kind = kinds.load("ridge").in_space(space)
    state = kind.fit(x, y, SITES, 0)
    wanted = np.stack([guesses[space] for _, guesses in all_by_hand(f)], 1)
    np.testing.assert_allclose(kind.predict(state, new), wanted, rtol=1e-8, atol=1e-8)
    assert kind.spaces_of(state) is None


def test_the_kind_chooses_unless_a_space_is_named():
    assert kinds.load("ridge").space == "chosen"


def test_only_maps_that_are_used_are_saved():
    x, y, _ = draw(100)
    kind = kinds.load("ridge")
    state = kind.fit(x, y, SITES, 0)
    shares = {space: state[f"{space}_MK"] for space in INTO}
    # each map serves one target in one space, alone or with another
    assert all(sum((share != 0).sum(1) for share in shares.values()) == 1)
    assert (sum(share.sum(0) for share in shares.values()) == 1).all()
    n_maps = sum(2 if space == "average" else 1 for space in kind.spaces_of(state))
    assert state["weight_FM"].shape == (100, n_maps) and state["bias_M"].shape == (n_maps,)


def test_a_space_with_an_endless_guess_is_not_chosen():
    y_NK = np.array([[1.0], [2.0], [3.0]])
    far = np.array([[np.log1p(1.0)], [np.log1p(2.0)], [800.0]])  # expm1 is infinite
    guesses = {"raw": y_NK + 1, "log1p": far, "sqrt": np.sqrt(y_NK) + 9}
    assert choose_spaces(guesses, y_NK) == ["raw"]
    guesses["log1p"] = np.log1p(y_NK)
    assert choose_spaces(guesses, y_NK) == ["log1p"]


def test_guesses_are_judged_in_grams_from_0():
    y_NK = np.zeros((2, 1))
    guesses = {"raw": y_NK - 50, "log1p": y_NK + 0.1, "sqrt": y_NK + 0.1}
    assert choose_spaces(guesses, y_NK) in (["raw"], ["average"])


def test_rows_that_no_part_holds_out_are_not_judged():
    y_NK = np.array([[1.0], [2.0], [3.0]])
    guesses = {space: np.where([[1], [1], [0]], INTO[space](y_NK) + 0.1, np.nan) for space in INTO}
    guesses["sqrt"] = np.where([[1], [1], [0]], np.sqrt(y_NK), np.nan)
    assert choose_spaces(guesses, y_NK) == ["sqrt"]


def test_a_wild_map_of_one_target_spoils_no_other():
    kind = kinds.load("ridge")
    eye = np.eye(2)
    state = {
        "weight_FM": np.array([[1.0, 0.0]]),
        "bias_M": np.array([0.0, 3.0]),
        "raw_MK": eye * [0, 1],
        "log1p_MK": eye * [1, 0],
        "sqrt_MK": 0 * eye,
    }
    assert kind.predict(state, np.array([[5000.0]])).tolist() == [[np.inf, 3.0]]


@pytest.mark.parametrize("few", [0, 1500], ids=["factors", "reflections"])
def test_a_strength_that_rounding_hides_is_solved_all_the_same(few, monkeypatch):
    row_N = 1e10 * np.arange(1, 7)
    product_NN = np.outer(row_N, row_N)  # 1e20 beside a strength of 1: no Cholesky factor
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(product_NN + np.eye(6))
    monkeypatch.setattr(shrinkage, "FEW", few)
    for share_NT in solutions(product_NN, row_N[:, None], np.array([1.0, 10.0])):
        np.testing.assert_allclose(product_NN @ share_NT, row_N[:, None], rtol=1e-6)


def test_quantiles_of_some_rows_are_those_of_robust_scaler():
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(23, 9)).round(1)  # with ties
    x_NF[:, 3] = 0.1
    of_all = Table(x_NF)
    for rows in (np.arange(23), np.arange(0, 23, 2), np.array([5, 1, 20, 9]), np.array([4, 2])):
        center_F, scale_F = of_all.robust_scale(rows)
        scaler = RobustScaler().fit(x_NF[rows])
        np.testing.assert_allclose(center_F, scaler.center_, rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(scale_F, scaler.scale_, rtol=1e-13)
        z_nF = of_all.scaled(rows, center_F, scale_F)
        np.testing.assert_allclose(z_nF, scaler.transform(x_NF[rows]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("few", [0, 1500], ids=["factors", "reflections"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_every_strength_solves_its_equations(few, n, monkeypatch):
    monkeypatch.setattr(shrinkage, "FEW", few)
    rng = np.random.default_rng(0)
    half = rng.normal(size=(n, 12))
    product_RR, y_RT, alphas = half @ half.T, rng.normal(size=(n, 4)), np.array([100.0, 1.0, 0.1])
    for alpha, share_RT in zip(alphas, solutions(product_RR, y_RT, alphas), strict=True):
        wanted = np.linalg.solve(product_RR + alpha * np.eye(n), y_RT)
        np.testing.assert_allclose(share_RT, wanted, rtol=1e-9, atol=1e-12)


def test_features_kept_in_memory_or_read_a_split_at_a_time_give_the_same_bits(tmp_path, store):
    found = []
    for memory_gb in (8.0, 1e-6):
        config(tmp_path, store, kind="ridge", lr="[1e-2]")
        path = tmp_path / "sweep.yaml"
        sweep = prepare_sweep(SweepConfig.load(path, {"trainer.memory_gb": memory_gb}), "cpu")
        point = sweep.config.points[0]
        found.append(fit_splits(sweep.data, sweep.folds, sweep.splits, point, [0, 2]))
    (states, raw), (read_states, read_raw) = found
    for state, read in zip(states, read_states, strict=True):
        assert all((state[name] == read[name]).all() for name in state)
    np.testing.assert_array_equal(raw[2], read_raw[2])
    assert np.isfinite(raw[0]).all()


def test_sums_over_blocks_are_those_of_all_rows_at_once(monkeypatch):
    x, y, new = draw(7)
    kind = kinds.load("ridge")
    whole = kind.predict(kind.fit(x, y, SITES, 0), new)
    monkeypatch.setattr(table, "READ", 5)
    in_blocks = kind.predict(kind.fit(x, y, SITES, 0), new)
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-10)


@pytest.mark.parametrize("n_bytes", [0, 10**9], ids=["one a pass", "all in one pass"])
def test_more_rows_than_memory_holds_give_the_bits_of_those_that_fit(n_bytes):
    x, y, _ = draw(7)
    kind = kinds.load("ridge")
    in_memory = Table(x)
    each = []
    for left_out in (3, 5):
        rows_n = np.flatnonzero(left_out != SITES)
        each.append(TrainingRows(rows_n, y[rows_n], SITES[rows_n]))
    passes = []

    def read(rows_n):
        passes.append(rows_n[0] == 0)
        return x[rows_n]

    read_again = ReadTable(read, *x.shape, n_bytes)
    states = list(kind.fit_together(read_again, each, n_bytes))
    # quantiles of a feature a pass or of all in one; then sums, and what inner folds hold out
    assert sum(passes) == (7 + 2 * 2 if n_bytes == 0 else 1 + 2)
    for rows, state in zip(each, states, strict=True):
        alone = kind.fit_rows(in_memory, rows.rows_n, rows.y_nK, rows.group_n, 0)
        assert all((state[name] == alone[name]).all() for name in alone)


def test_a_number_that_is_not_finite_is_named_by_its_row_in_the_table():
    x, y, _ = draw(7)
    x[40, 2] = np.nan
    broken = ReadTable(lambda rows_n: x[rows_n], *x.shape, 10**9)
    rows = TrainingRows(np.arange(N), y, SITES)
    with pytest.raises(InputError, match="nan in row 40, column 2"):
        list(kinds.load("ridge").fit_together(broken, [rows], 0))


def test_a_sweep_over_more_images_than_features_reads_them_in_blocks(tmp_path, monkeypatch):
    """The plan's memory does not grow with the images, and what is found does not depend on it."""
    monkeypatch.setattr(baselines, "READ", 7)
    monkeypatch.setattr(table, "READ", 16)
    found = []
    for n_images in (60, 90):
        config(tmp_path, write_store(tmp_path / f"{n_images}.h5", n_images), kind="ridge", lr=1e-2)
        path = tmp_path / "sweep.yaml"
        for memory_gb in (8.0, 1e-6):
            settings = {"trainer.memory_gb": memory_gb, "head.features": ["cls"]}
            sweep = prepare_sweep(SweepConfig.load(path, settings), "cpu")
            point = sweep.config.points[0]
            fits = fit_splits(sweep.data, sweep.folds, sweep.splits, point, [0, 2])
            found.append((sweep.plan().fit_bytes, *fits))
    (few_bytes, *_), _, (many_bytes, states, raw), (_, read_states, read_raw) = found
    assert few_bytes == many_bytes
    for state, read in zip(states, read_states, strict=True):
        assert all((state[name] == read[name]).all() for name in state)
    np.testing.assert_array_equal(raw[2], read_raw[2])
    assert np.isfinite(raw[0]).all()
