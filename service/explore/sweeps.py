"""What a sweep's folder tells, finished or not: settings, targets, leaderboard, curves.

Pure functions of folders that `biomass train` leaves (trainer.loop.runs). A folder that lacks
something gives what there is, and InputError for what is not, by the sweep's and run's names.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.disk.tables import find_table
from featurestore.errors import BiomassError, InputError
from featurestore.photos.targets import CSIRO, Target, Targets
from service.explore.settings import in_words, with_view_names
from trainer.config.section import fields_of
from trainer.loop.baselines import BASELINES, LOGISTIC
from trainer.loop.grid import PointConfig, SweepConfig, idle_keys, load_point
from trainer.score.metrics import Score

BESIDE = ("mean", *BASELINES)  # rows of summary.csv that are no points
REFIT = "refit"
BLEND = "blend.json"
SUMMARY = "summary.json"
SWEEP_FILES = ("sweep.json", SUMMARY, "summary.csv", "comparisons.csv")
RUN_FILES = ("config.yaml", "spec.json", "metrics.jsonl", "oof.csv")

Stamp = tuple[str, int, int]
Plan = tuple[dict[str, str], dict[str, dict[str, Any]]]


def stamp(path: Path) -> Stamp:
    """What a file's content is known by: path, time and size. They are 0 while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size


# -- a sweep


def is_finished(sweep: Path) -> bool:
    return (sweep / SUMMARY).is_file()


def best(sweep: Path) -> str | None:
    """Name of the best run, of a sweep that is finished."""
    return (read_json(sweep / SUMMARY) or {}).get("best")


def state(sweep: Path) -> str:
    """16 hex digits, others whenever a file changed that answers about the sweep are made from."""
    stamps = [stamp(sweep / file) for file in SWEEP_FILES]
    for name in (*run_names(sweep), *blend_names(sweep)):
        stamps += [stamp(find_table(sweep / name / file)) for file in RUN_FILES]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def describe(sweep: Path, plan: Plan) -> dict[str, Any]:
    """Settings in words, runs with parameters, baselines, the honest estimate and notes.

    plan : what `plan` made of this sweep.
    """
    settings, parameters = plan
    names = run_names(sweep)
    spec = read_json(sweep / names[0] / "spec.json") if names else None
    summary = read_json(sweep / SUMMARY) or {}
    table = _summary(sweep)
    # a baseline that tells nothing of what ranks has no score
    scores = {}
    if table is not None:
        scores = table.set_index("name")["score_last"].dropna().to_dict()
    targets = targets_of_sweep(sweep)
    score = score_of(sweep, targets)
    runs = []
    for name in names:
        if name == REFIT:
            continue
        about = {
            "name": name,
            "parameters": parameters.get(name, {}),
            "score": scores.get(name),
            "has_oof": find_table(sweep / name / "oof.csv").is_file(),
            "baseline": name in BESIDE,
        }
        runs.append(about)
    first = [summary["headline"]] if summary.get("headline") else []
    blends = [{"name": name, "score": scores.get(name)} for name in blend_names(sweep)]
    return {
        "finished": bool(summary),
        "settings": with_view_names(settings, spec or {}),
        "runs": runs,
        "blends": blends,
        "best": summary.get("best"),
        "chosen": (summary.get("chosen") or {}).get("name"),
        "baselines": {name: scores[name] for name in BESIDE if name in scores},
        "honest": summary.get("honest"),
        "notes": [*first, *summary.get("notes", [])],
        "refitted": (sweep / REFIT).is_dir(),
        "n_images": summary.get("n_images"),
        "targets": [*targets.names, *(target.name for target in told_classes(targets))],
        "classes": [target.name for target in told_classes(targets)],
        "target": targets.foremost.name,
        "ranked_by": score.name,
        "larger_is_better": score.larger_is_better,
    }


def score_of(sweep: Path, targets: Targets) -> Score:
    """What ranks its points."""
    return Score.of(base_of(sweep).get("score"), targets)


def seed_of(sweep: Path) -> int:
    """What its draws began from; 0 where that is not known."""
    experiment = base_of(sweep).get("experiment")
    seed = experiment.get("seed") if isinstance(experiment, dict) else None
    return seed if isinstance(seed, int) and seed >= 0 else 0


def base_of(sweep: Path) -> Mapping[str, Any]:
    """The config that its points have in common, as sweep.json tells it."""
    base = (read_json(sweep / "sweep.json") or {}).get("base")
    return base if isinstance(base, dict) else {}


def targets_of(run: Path) -> Targets:
    """What a run's heads learn; the preset's where its folder does not say, as runs of before.

    A blend has learned what its sweep's runs did. InputError if what it says cannot be read.
    """
    if (run / BLEND).is_file():
        return targets_of_sweep(run.parent)
    about = read_json(run / "spec.json") or {}
    if "targets" not in about:
        return CSIRO
    return Targets.told(about, f"run {run.name!r} of sweep {run.parent.name!r}: spec.json")


def told_targets(run: Path) -> list[str]:
    """Names of what its out-of-fold table tells."""
    return [*targets_of(run).names, *told_class_names(run)]


def told_class_names(run: Path) -> list[str]:
    """Those of them that are classes."""
    return [target.name for target in told_classes(targets_of(run))]


def first_run(sweep: Path, target: str | None = None) -> str | None:
    """The run whose errors are shown first: the best, or the first that tells a target.

    None while no run has an out-of-fold table.
    """
    names = runs_with_oof(sweep)
    first = best(sweep)
    ordered = sorted(names, key=lambda name: name != first)
    telling = (name for name in ordered if _tells(sweep / name, target))
    return next(telling, next(iter(ordered), None))


def _tells(run: Path, target: str | None) -> bool:
    """Whether a run predicts a target; classes are empty in tables of kinds that tell none."""
    is_class = target in {each.name for each in targets_of(run).classes}
    if not is_class:
        return run.name != LOGISTIC
    try:
        head = pd.read_csv(find_table(run / "oof.csv"), nrows=1, dtype=str)
    except (OSError, ValueError):
        return False
    column = f"predicted_{target}"
    return column in head and bool(head[column].notna().any())


def targets_of_sweep(sweep: Path) -> Targets:
    """Of its first run: all learn the same."""
    names = run_names(sweep)
    return targets_of(sweep / names[0]) if names else CSIRO


def told_classes(targets: Targets) -> tuple[Target, ...]:
    """Classes whose probabilities stand in tables out of fold; the preset's State does not."""
    return () if targets.preset else targets.classes


def run_names(sweep: Path) -> list[str]:
    """Names of the runs that were begun: of points, of baselines that were kept, the refit last."""
    names = sorted(file.parent.name for file in sweep.glob("*/config.yaml"))
    last = (*BESIDE, REFIT)

    def place(name: str) -> int:
        return last.index(name) + 1 if name in last else 0

    return sorted(names, key=place)  # stable: points stay in the order of their numbers


def blend_names(sweep: Path) -> list[str]:
    """Names of the blends of its points: they have predictions, but no curves."""
    return sorted(file.parent.name for file in sweep.glob(f"*/{BLEND}"))


def plan(sweep: Path) -> Plan:
    """What sweep.json says: settings in words, and each run's values on the grid's axes.

    Both are empty where this program cannot read it. Runs are taken from there, for a config that
    counts its points imports every kind, and torch with it; a sweep that was begun before they
    stood there tells none.
    """
    found = read_json(sweep / "sweep.json")
    try:
        config = SweepConfig.of(found["base"], found["axes"], sweep / "sweep.json")
        runs = found.get("runs", {})
        parameters = {name: dict(settings) for name, settings in runs.items()}
        return in_words(config, len(runs)), parameters
    except (BiomassError, AttributeError, KeyError, TypeError, ValueError):
        return {}, {}


def leaderboard(sweep: Path) -> pd.DataFrame:
    """summary.csv: every point's scores, ranked, and the baselines."""
    table = _summary(sweep)
    if table is None:
        raise InputError(
            f"sweep {sweep.name!r} is not finished, it has no leaderboard yet; the curves of its "
            "runs tell how far they are"
        )
    return table


# -- a run


def run_folder(sweep: Path, name: str) -> Path:
    """The folder of a run or a blend, by its name among those that are there."""
    names = [*run_names(sweep), *blend_names(sweep)]
    if name not in names:
        raise InputError(
            f"sweep {sweep.name!r} has no run {name!r}; it has {', '.join(names[:5]) or 'none yet'}"
        )
    return sweep / name


def curves(run: Path) -> pd.DataFrame:
    """Loss and held-out score by epoch, of all folds together and of each.

    A row for all has neither repeat nor fold.

    A last line that is not whole yet is left out: the sweep is being trained. A blend has none.
    """
    splits = _splits(run)
    rows = []
    for record in [] if (run / BLEND).is_file() else _log(run):
        epoch = record.get("epoch")
        rows.append((epoch, None, None, record.get("loss"), record.get("score")))
        of_folds = [record.get(f"fold_{name}") for name in ("loss", "score")]
        # a log of other folds than the config's is drawn without them
        if all(isinstance(values, list) and len(values) == len(splits) for values in of_folds):
            for split, *each in zip(splits, *of_folds, strict=True):
                rows.append((epoch, *split, *each))
    table = pd.DataFrame(rows, columns=["epoch", "repeat", "fold", "loss", "score"])
    table = table.apply(pd.to_numeric, errors="coerce")
    # whole numbers that may be missing, which numpy's integers cannot be
    return table.astype({"repeat": "Int64", "fold": "Int64", "loss": float, "score": float})


def config_of(run: Path) -> dict[str, Any]:
    """Every key of a run's config that makes a difference to it, by dotted key, and its value.

    Empty for a blend. InputError where the config cannot be read.
    """
    if (run / BLEND).is_file():
        return {}
    point = load_point(run / "config.yaml")
    idle = {"experiment.name", "config_version", *idle_keys(point)}
    plain = point.model_dump(mode="json")
    found = {}
    for key, _ in fields_of(PointConfig):
        value: Any = plain
        for name in key.split("."):
            value = value.get(name)
        if key not in idle:
            found[key] = value

    # places as their names: no page tells the server's folders
    for key in ("dataset.store", "cv.folds"):
        found[key] = found[key] and Path(found[key]).name
    places = found["dataset.stores"] or {}
    found["dataset.stores"] = {name: Path(place).name for name, place in places.items()}
    return found


def fold_names(run: Path) -> list[str]:
    """Names of a run's folds: `2`, or of several repeats `1.2`. A blend has those of the runs."""
    names = run_names(run.parent)
    splits = _splits(run if run.name in names else run.parent / names[0])
    if len({repeat for repeat, _ in splits}) < 2:
        return [str(fold) for _, fold in splits]
    return [f"{repeat}.{fold}" for repeat, fold in splits]


def runs_with_oof(sweep: Path) -> list[str]:
    """Names of the runs and blends that have an out-of-fold table."""
    names = [*run_names(sweep), *blend_names(sweep)]
    return [name for name in names if find_table(sweep / name / "oof.csv").is_file()]


def _splits(run: Path) -> list[tuple[int, int]]:
    """(repeat, fold) of a run's heads, in the order of its log.

    None for the refit, or where its config cannot be read.
    """
    try:
        cv = load_point(run / "config.yaml").cv
    except BiomassError:
        return []
    folds = [cv.fold]
    if cv.fold == "all":  # the refit
        folds = []
    elif cv.fold is None:
        folds = range(cv.n_folds)
    return [(repeat, fold) for repeat in range(cv.repeats) for fold in folds]


def _log(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    where = f"run {run.name!r} of sweep {run.parent.name!r}"
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except PermissionError as err:
        raise InputError(f"{where}: the server's account may not read its log; allow it") from err
    except OSError as err:
        raise InputError(f"{where} has no log yet; its first epoch is being trained") from err
    whole = [line for line in lines if line.endswith(b"\n")]  # the last one may be under way
    try:
        return [dict(json.loads(line)) for line in whole]
    except (ValueError, TypeError) as err:
        raise InputError(f"{where}: its log is damaged: a line is no JSON object") from err


# -- files


def read_json(path: Path) -> Mapping[str, Any] | None:
    """An object, or None if it is not there or not whole."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _summary(sweep: Path) -> pd.DataFrame | None:
    """summary.csv, or None if it is not there or no such table."""
    try:
        table = pd.read_csv(sweep / "summary.csv", dtype={"name": str})
    except (OSError, ValueError):
        return None
    return table if {"name", "score_last"} <= set(table) else None
