"""trainer.heads.regressor and its kinds: NumPy predictions against scikit-learn's own pipelines,
and what a baseline must not do."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.cross_decomposition import PLSRegression
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.svm import SVR
from sweeps import ALPHAS, GAMMAS, MARGINS

from featurestore.errors import InputError
from trainer.heads import kinds
from trainer.heads.kinds import kernel_ridge, svr
from trainer.heads.regressor import Regressor, choose, inner_folds

pytestmark = pytest.mark.usefixtures("small_searches")
ROOT = Path(__file__).parent.parent
SAVED = ("ridge", "kernel_ridge", "svr", "pls", "gpr")
EVERY = (*SAVED, "hist_gbdt")
N, M, F, K = 40, 30, 70, 3
# alike in size, so that a mean over folds is a mean over rows
SITES = np.repeat([f"site {i}" for i in range(8)], 5)


def draw(seed: int = 0, f: int = F) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_NF and y_NK in grams, x_MF and y_MK of new rows, behind all of which are four causes.
    Nobody may write to them."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(N + M, 4))
    x = 5 + cause @ rng.normal(size=(4, f)) + rng.normal(size=(N + M, f))
    y = np.exp(3 + cause @ rng.normal(scale=0.3, size=(4, K))) + rng.uniform(0, 9, (N + M, K))
    x.flags.writeable = y.flags.writeable = False
    return x[:N], y[:N], x[N:], y[N:]


def regressor(name: str) -> Regressor:
    """`ridge average` is ridge in that space."""
    kind, *space = name.split()
    return kinds.load(kind).in_space(*space) if space else kinds.load(kind)


def predict(
    name: str, x: np.ndarray, y: np.ndarray, new: np.ndarray, groups: np.ndarray = SITES
) -> np.ndarray:
    return regressor(name).fit_predict(x, y, groups, 0, new)


def by_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    features = RobustScaler().fit(x)
    search = GridSearchCV(
        Ridge(),
        {"alpha": np.logspace(0, 5, 11)},
        scoring="neg_mean_squared_error",
        cv=GroupKFold(4),
    )

    def guess(y_N: np.ndarray) -> np.ndarray:
        return search.fit(features.transform(x), y_N, groups=SITES).predict(features.transform(new))

    return np.stack(
        [np.maximum((guess(y_N) + np.expm1(guess(np.log1p(y_N)))) / 2, 0) for y_N in y.T], 1
    )


def by_search(estimator, grid: dict, x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predictions of the best by scikit-learn's own search, on unit features and masses."""
    features, masses = StandardScaler().fit(x), StandardScaler().fit(y)
    search = GridSearchCV(estimator, grid, scoring="neg_mean_squared_error", cv=GroupKFold(4))
    search.fit(features.transform(x), np.squeeze(masses.transform(y)), groups=SITES)
    return masses.inverse_transform(search.predict(features.transform(new)).reshape(len(new), -1))


def by_kernel_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    grid = {"gamma": np.array(GAMMAS) / x.shape[1], "alpha": ALPHAS}
    return np.hstack(
        [by_search(KernelRidge(kernel="rbf"), grid, x, y_N[:, None], new) for y_N in y.T]
    )


def by_svr(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    grid = [
        {"gamma": np.array(GAMMAS) / x.shape[1], "C": [C], "epsilon": [epsilon]}
        for C, epsilon in MARGINS
    ]
    return np.hstack([by_search(SVR(tol=svr.TOLERANCE), grid, x, y_N[:, None], new) for y_N in y.T])


def by_pls(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    return by_search(
        PLSRegression(scale=False), {"n_components": range(1, min(16, x.shape[1]) + 1)}, x, y, new
    )


def by_gpr(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    unit = np.sqrt(x.shape[1])
    kernel = ConstantKernel(1, (1e-3, 1e3)) * RBF(unit, (0.1 * unit, 30 * unit)) + WhiteKernel(
        1, (1e-3, 10)
    )
    gpr = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of noise at its bound
        return np.stack([gpr.fit(x, y_N).predict(new) for y_N in y.T], 1)


@pytest.mark.parametrize("f", [7, F], ids=["few features", "more features than rows"])
@pytest.mark.parametrize(
    "name, oracle, tolerance",
    [
        ("ridge average", by_ridge, 1e-9),
        ("kernel_ridge", by_kernel_ridge, 1e-6),
        ("pls", by_pls, 1e-6),
        ("gpr", by_gpr, 1e-6),
        # its solver keeps kernels in float32: two runs over the same rows agree to 1e-5
        ("svr", by_svr, 1e-4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numpy_predicts_what_sklearn_does(name, oracle, tolerance, f):
    x, y, new, _ = draw(f=f)
    np.testing.assert_allclose(
        predict(name, x, y, new), oracle(x, y, new), rtol=tolerance, atol=tolerance * y.mean()
    )


@pytest.mark.parametrize(
    "kind, penalty",
    [(kernel_ridge.KIND, (0.1,)), (svr.KIND, (1.0, 0.1))],
    ids=["kernel_ridge", "svr"],
)
def test_coefficients_are_the_estimators(kind, penalty):
    x, y, _, _ = draw()
    kernel_NN = np.corrcoef(x)
    fitted = kind.estimator(*penalty).fit(kernel_NN, y[:, :1])
    coef_N, intercept = kind.dual(fitted, N)
    np.testing.assert_allclose(
        kernel_NN @ coef_N + intercept, fitted.predict(kernel_NN)[:, 0], rtol=1e-12
    )


@pytest.mark.parametrize("name", EVERY)
def test_signal_is_found(name):
    x, y, new, truth = draw()
    error, error_of_mean = (
        ((predict(name, x, y, new) - truth) ** 2).sum(0),
        ((y.mean(0) - truth) ** 2).sum(0),
    )
    # trees reach 0.72 with 40 rows, the others 0.1 to 0.5
    assert (error < 0.75 * error_of_mean).all()


@pytest.mark.parametrize("name", EVERY)
def test_what_never_varied_says_nothing(name):
    x, y, new, _ = draw()
    with_constant, now_varying = (
        np.insert(x, 4, 0.1, axis=1),
        np.insert(new, 4, np.arange(M), axis=1),
    )
    np.testing.assert_allclose(
        predict(name, with_constant, y, now_varying), predict(name, x, y, new), rtol=1e-4
    )


@pytest.mark.parametrize("name", EVERY)
def test_rows_all_alike_get_one_prediction_within_the_masses(name):
    _, y, _, _ = draw()
    prediction = predict(name, np.full((N, F), 0.1), y, np.full((M, F), 0.1))
    assert (
        (np.ptp(prediction, axis=0) < 1e-9).all()
        and (prediction > y.min(0)).all()
        and (prediction < y.max(0)).all()
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_mass_that_never_varies_is_predicted(name):
    x, y, new, _ = draw()
    y = np.insert(y, 1, 0.1, axis=1)
    np.testing.assert_allclose(predict(name, x, y, new)[:, 1], 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_single_site_are_dealt_one_by_one(name):
    x, y, new, _ = draw()
    one_site, one_row_each = (
        predict(name, x, y, new, np.array(["site"] * N)),
        predict(name, x, y, new, np.arange(N)),
    )
    assert (one_site == one_row_each).all()


@pytest.mark.parametrize("name", EVERY)
def test_two_rows_are_enough(name):
    x, y, new, _ = draw()
    assert predict(name, x[:2], y[:2], new, np.array(["a", "b"])).shape == (M, K)


@pytest.mark.parametrize("name", EVERY)
def test_one_seed_one_result(name):
    x, y, new, _ = draw()
    assert (predict(name, x, y, new) == predict(name, x, y, new)).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_row_is_predicted_whatever_else_is(name):
    x, y, new, _ = draw()
    among_others = predict(name, x, y, np.concatenate([-new, new[:2]]))[-2:]
    np.testing.assert_allclose(among_others, predict(name, x, y, new[:2]), rtol=1e-9)


@pytest.mark.parametrize("name", SAVED)
def test_a_state_is_saved_as_it_is(name, tmp_path):
    x, y, new, _ = draw()
    state = kinds.load(name).fit(x, y, SITES, 0)
    save_file(state, tmp_path / "head.safetensors")
    read = load_file(tmp_path / "head.safetensors")
    assert (kinds.load(name).predict(read, new) == kinds.load(name).predict(state, new)).all()


def test_predicting_takes_numpy_alone(tmp_path):
    x, y, new, _ = draw()
    for name in SAVED:
        np.savez(tmp_path / f"{name}.npz", new=new, **kinds.load(name).fit(x, y, SITES, 0))
    code = f"""
import sys, numpy as np
from trainer.heads import kinds
for name in {SAVED}:
    state = dict(np.load(rf"{tmp_path}/{{name}}.npz"))
    kinds.load(name).predict(state, state.pop("new"))
print(*sys.modules)"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"sklearn", "scipy", "torch", "pandas"} & set(done.stdout.split())


def test_trees_are_for_reports_only():
    assert [name for name in EVERY if kinds.load(name).report_only] == ["hist_gbdt"]


def test_ridge_predicts_no_mass_below_zero():
    x, y, new, _ = draw()
    assert predict("ridge", x, y, 9 * new).min() == 0


def test_ridge_is_judged_by_sites_it_did_not_learn_from():
    rng = np.random.default_rng(0)
    site = np.repeat(np.arange(20), 6)
    cause, visit = rng.normal(size=(120, 4)), rng.normal(size=(20, 4))[site]
    x = np.hstack([cause, visit]) @ rng.normal(size=(8, 150)) + 0.3 * rng.normal(size=(120, 150))
    # features tell known visits, not the next one's masses
    y = 30 + 4 * cause[:, :1] + 10 * rng.normal(size=(20, 1))[site]
    known, new = site < 14, site >= 14
    by_site, by_row = (
        ((predict("ridge", x[known], np.maximum(y[known], 0), x[new], groups) - y[new]) ** 2).mean()
        for groups in (site[known], np.arange(known.sum()))
    )
    assert by_site < 0.9 * by_row


def test_inner_folds_keep_sites_together_and_hold_each_row_out_once():
    sites = np.array(["b", "a", "c", "b", "d", "e", "a", "c", "b"])
    folds = inner_folds(sites)
    assert len(folds) == 4 and sorted(np.concatenate([held for _, held in folds])) == list(range(9))
    assert not any(set(sites[train]) & set(sites[held]) for train, held in folds)


def test_inner_folds_of_two_rows_are_none():
    assert inner_folds(np.array(["a", "b"])) == []


def test_each_target_chooses_for_itself_and_the_first_of_equals():
    y_NK = np.array([[1.0, 5, 2], [1, 5, 2]])
    folds = [(np.array([0]), np.array([1])), (np.array([1]), np.array([0]))]
    grid = [(0,), (4,), (3,)]
    assert choose(grid, lambda setting, train, held: np.full((1, 3), setting[0]), y_NK, folds) == [
        (0,),
        (4,),
        (3,),
    ]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "bad, message",
    [
        (0, "features: 1 of 2800 numbers are not finite, the first is nan in row 7, column 2"),
        (1, "labels: 1 of 120 numbers are not finite, the first is nan in row 7, column 2"),
        (2, "features: 1 of 2100 numbers are not finite, the first is nan in row 7, column 2"),
    ],
    ids=["features", "labels", "new features"],
)
def test_what_is_not_finite_is_named(name, bad, message):
    tables = [table.copy() for table in draw()[:3]]
    tables[bad][7, 2] = np.nan
    with pytest.raises(InputError, match=message):
        predict(name, *tables)


@pytest.mark.parametrize("name", EVERY)
def test_one_row_is_refused(name):
    x, y, new, _ = draw()
    with pytest.raises(InputError, match="1 training rows: a regressor needs at least 2"):
        predict(name, x[:1], y[:1], new, SITES[:1])


def test_ridge_refuses_amounts_below_0():
    x, y, new, _ = draw()
    with pytest.raises(InputError, match="ridge takes amounts"):
        predict("ridge", x, -y, new)


def test_rows_must_match():
    x, y, new, _ = draw()
    with pytest.raises(ValueError, match="40 rows of features, 39 of labels and 40 groups"):
        predict("pls", x, y[1:], new)
