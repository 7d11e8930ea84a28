"""`python -m predictor`: prediction where click, h5py, zarr and scikit-learn are not installed."""

import argparse
import sys
from pathlib import Path

from featurestore.disk.interrupts import stopped_by_signals
from featurestore.disk.messages import say, secure_standard_streams, show_crashes
from featurestore.disk.refusals import as_ours
from featurestore.disk.threads import check_thread


def main() -> int:
    secure_standard_streams()
    parser = argparse.ArgumentParser(
        "python -m predictor", description="Predict test.csv's photographs with a run's heads."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with test.csv and its photographs"
    )
    parser.add_argument("--out", type=Path, help="submission.csv; with --oof oof_predictions.csv")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        help="a run's folder; several make an ensemble",
    )
    parser.add_argument("--sweep", type=Path, help="a sweep's folder: its best run")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder, which is checked first")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="go without a bundle's heads that are missing or damaged",
    )
    parser.add_argument(
        "--folds", type=lambda text: [int(word) for word in text.split(",")], help="e.g. 0,2"
    )
    parser.add_argument(
        "--weights", choices=["best", "last"], help="of which epoch; last, or a bundle's own"
    )
    parser.add_argument("--tta", help="1, 2, 4 or 8 views, or their names with commas; 4")
    parser.add_argument("--average", choices=["mean", "median"], help="over heads and views; mean")
    parser.add_argument(
        "--constraints",
        choices=["order", "clip"],
        help="how masses are made to balance; as the run says",
    )
    parser.add_argument("--backbone-weights", help="FILE.safetensors, or random")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N; several with commas"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="of the backbone; the store's"
    )
    parser.add_argument(
        "--on-error",
        choices=["fail", "mean"],
        help="mean: the training mean for photographs that cannot be used; fail",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="take photographs from outside the data folder too",
    )
    parser.add_argument(
        "--deadline", help="time from now, e.g. 8h30m: fewer views rather than overrun"
    )
    parser.add_argument(
        "--resume", action="store_true", help="take up what a stopped prediction had finished"
    )
    parser.add_argument(
        "--interval",
        type=float,
        help="e.g. 0.9: intervals that cover so much of new sites' photographs",
    )
    parser.add_argument(
        "--blend", choices=["equal", "fitted"], help="how an ensemble's members are weighed"
    )
    parser.add_argument(
        "--oof",
        action="store_true",
        help="the training photographs, by the heads that held them out",
    )
    parser.add_argument(
        "--explain", type=Path, help="folder for a picture per photograph and report.html"
    )
    options = vars(parser.parse_args())
    options["out"] = options["out"] or Path(
        "oof_predictions.csv" if options["oof"] else "submission.csv"
    )
    show_crashes()
    try:
        check_thread()
        with stopped_by_signals("with --resume the same command goes on from here"):
            from predictor.command import predict_to_file

            code = predict_to_file(say=say, **options)
    except Exception as err:
        told = as_ours(err)
        if told is None:
            raise
        say(f"error: {told}")
        return told.exit_code
    print(options["out"])
    return code


if __name__ == "__main__":
    sys.exit(main())
