"""Does the top of a sweep's board beat its ridge, where the ground is strange and sites are few?

Draws photographs whose masses follow cover (_cover.py), builds a store
with the demo's backbone, and trains the kinds of configs/halves.yaml over ten regroupings of the
sites. The row that the sweep chooses, a point or a blend, is compared with the ridge beside the
board, which chooses its own strengths and spaces, regrouping by regrouping.

The row is the first by the mean over all regroupings. `nested` is the sweep's honest estimate
instead: in each regrouping the row is chosen anew, for each fold by the other folds alone.
"""

import argparse
import json
from pathlib import Path

from _bench import context, finish, spread, work_folder
from _cover import draw_cover

from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep

MARK = 8
"""Of ten regroupings."""
YAML = """
experiment: {{name: cover, seed: {seed}}}
dataset: {{store: {store}}}
head: {{kind: [cls_gating, density, pooled_mlp, ridge, gpr], gate_hidden: 64, shared_hidden: 64}}
trainer: {{num_epochs: {epochs}, batch_size: 16}}
optimization: {{lr: [1e-2, 3e-3], weight_decay: 1e-2}}
cv: {{repeats: {repeats}}}
inference: {{tta_indices: [0]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--sites", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=10, help="regroupings of the sites")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of drawing, folds and heads")
    parser.add_argument("--dir", type=Path, help="where data and sweep go for the time being")
    options = parser.parse_args()
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    summary = sweep_of_cover(options, folder)
    ridge = summary["baselines"]["ridge"]
    top = summary["chosen"]["name"]
    scores = {"ridge": ridge["per_repeat_R"]}
    for row in [*summary["points"], *summary["blends"]]:
        scores[row["name"]] = row["last"]["per_repeat_R"]

    gains = differences(scores[top], ridge["per_repeat_R"])
    nested = differences(summary["honest"]["last_per_repeat"], ridge["per_repeat_R"])
    n_better = n_above(gains)
    print(f"top {top} beats ridge in {n_better} of {len(gains)} regroupings, mark {MARK}")
    settings = {key: str(value) for key, value in vars(options).items()}
    return {
        "top": top,
        "better": n_better,
        "of": len(gains),
        "gain": spread(gains),
        "nested_better": n_above(nested),
        "nested_gain": spread(nested),
        "ridge": spread(ridge["per_repeat_R"]),
        "better_by_row": {
            name: n_above(differences(values, ridge["per_repeat_R"]))
            for name, values in scores.items()
        },
        "scores": {name: spread(values) for name, values in scores.items()},
        "mark": MARK,
        **context(settings, ["torch", "numpy", "scikit-learn"]),
    }


def sweep_of_cover(options: argparse.Namespace, folder: Path) -> dict:
    """Draw, build and train; the sweep's summary, its board on stdout."""
    data = folder / "data"
    store = folder / "features.h5"
    draw_cover(data, options.seed, options.images, options.sites)
    build_store(
        BuildConfig(
            data=data,
            out=store,
            backbone="vit_demo_patch16_dinov3",
            image_size=192,
            crop="halves",
            views="1",
            device="cpu",
            seed=options.seed,
        )
    )
    path = folder / "cover.yaml"
    path.write_text(YAML.format(store=store, **vars(options)))
    result = run_sweep(SweepConfig.load(path), folder / "runs", "cpu")
    print(result.table())
    return json.loads((result.path / "summary.json").read_text())


def differences(scores: list[float], others: list[float]) -> list[float]:
    return [score - other for score, other in zip(scores, others, strict=True)]


def n_above(gains: list[float]) -> int:
    return sum(gain > 0 for gain in gains)


if __name__ == "__main__":
    main()
