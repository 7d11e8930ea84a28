"""`python -m predictor`: prediction where click, h5py, zarr and scikit-learn are not installed."""

import argparse
import sys
from pathlib import Path

from featurestore.errors import BiomassError


def main() -> int:
    parser = argparse.ArgumentParser("python -m predictor", description="Predict test.csv's photographs with a run's heads.")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.csv and its photographs")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"))
    parser.add_argument("--run", type=Path, help="a run's folder")
    parser.add_argument("--sweep", type=Path, help="a sweep's folder: its best run")
    parser.add_argument("--folds", type=lambda text: [int(word) for word in text.split(",")], help="e.g. 0,2")
    parser.add_argument("--weights", choices=["best", "last"], default="last")
    parser.add_argument("--tta", type=int, default=4, help="1, 2, 4 or 8 views")
    parser.add_argument("--backbone-weights", help="FILE.safetensors, or random")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"])
    options = vars(parser.parse_args())
    try:
        from predictor.command import predict_to_file

        predict_to_file(say=lambda text: print(text, file=sys.stderr), **options)
    except BiomassError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    print(options["out"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
