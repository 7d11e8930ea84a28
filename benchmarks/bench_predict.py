"""What does `predict` cost beyond the backbone? P7: its wall time with 30 heads, TTA 4, vs the bare
forward over the same crops.

The store is built and the heads are trained before; model and heads are loaded once. Everything
else of a prediction is in its time: CSV, header checks, decoding, crops, views, heads, averages,
spreads, the journal, writing. The forward runs on crops that are ready in memory. Both take turns;
page cache warm.
"""

import argparse
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from _bench import add_before, context, finish, measured_beside, spread, work_folder
from _forward import add_options, forward, ready_crops, timed

from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.photos.views import tta_views
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from predictor.end_to_end import predict_to_file
from predictor.predictor import Predictor, test_photographs
from trainer.loop.chosen import best_run
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep

P7_MARK = 1.10
N_TRAIN = 30  # photographs the heads learn from: enough sites for five folds
CONFIG = """
experiment: {{name: bench, seed: 0}}
head: {{kind: {kind}}}
trainer: {{num_epochs: 1, batch_size: 8}}
optimization: {{lr: 1e-3, weight_decay: 1e-2}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 5, groups: date, repeats: {repeats}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--kind", default="cls_gating")
    parser.add_argument(
        "--repeats", type=int, default=6, help="of five folds: heads are five times as many"
    )
    parser.add_argument("--tta", type=int, default=4)
    add_before(parser)
    options = parser.parse_args()
    if compared := measured_beside(Path(__file__), options):
        finish(compared)
        return
    warnings.filterwarnings("ignore", message=".*random weights")
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Rounds of bare forward, then a prediction; the ratio of each to its own round's forward."""
    predictor, run = trained(options, folder)
    crops = ready_crops(
        predictor.backbone, test_photographs(folder / "data").items(), tta_views(options.tta)
    )
    forward(predictor.backbone, crops[:1])  # warm-up: the first call plans its kernels
    predict(predictor, run, folder, options.tta)
    times: dict[str, list[float]] = {"forward": [], "predict": []}
    for _ in range(options.rounds):
        times["forward"].append(timed(lambda: forward(predictor.backbone, crops)))
        times["predict"].append(timed(lambda: predict(predictor, run, folder, options.tta)))
    ratio = spread(p / f for p, f in zip(times["predict"], times["forward"], strict=True))
    for name, values in times.items():
        print(
            f"{name:8} {spread(values)['median']:.3f} s   {options.images} photographs x "
            f"{options.tta} views x 2 halves"
        )
    n_heads = 5 * options.repeats
    print(
        f"predict with {n_heads} {options.kind} heads takes {ratio['median']:.3f} x the bare "
        f"forward; mark {P7_MARK}"
    )
    config = {key: str(value) for key, value in vars(options).items()}
    return {
        "P7": ratio,
        "seconds": {name: spread(values) for name, values in times.items()},
        "mark": P7_MARK,
        "heads": n_heads,
        "threads": torch.get_num_threads(),
        **context(config, ["torch", "timm", "numpy"]),
    }


def trained(options: argparse.Namespace, folder: Path) -> tuple[Predictor, Path]:
    """Heads of one epoch, loaded, and their run: what they say does not matter here."""
    draw_pasture(folder / "data", n_train=N_TRAIN, n_test=options.images)
    build_store(
        BuildConfig(
            data=folder / "data",
            out=folder / "features.h5",
            backbone=options.backbone,
            views="1",
            image_size=options.image_size,
            weights="random",
            device=options.device,
            precision=options.precision,
        )
    )
    (folder / "bench.yaml").write_text(CONFIG.format(kind=options.kind, repeats=options.repeats))
    config = SweepConfig.load(folder / "bench.yaml", {"dataset.store": folder / "features.h5"})
    run = best_run(run_sweep(config, folder / "runs", options.device).path)
    return Predictor.load(run, device=options.device), run


def predict(predictor: Predictor, run: Path, folder: Path, tta: int) -> None:
    """`biomass predict` from its options to its files, but for loading."""
    with patch.object(Predictor, "load", lambda *_, **__: predictor):
        predict_to_file(folder / "data", folder / "submission.csv", say=print, run=[run], tta=tta)


if __name__ == "__main__":
    main()
