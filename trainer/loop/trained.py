"""What the heads of a pass came to, kept for the leaderboard: whoever finishes the sweep reads it
instead of training."""

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.loop.identity import Identity
from trainer.loop.notes import Note, are_whole, head_crc32c
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult, Prediction
from trainer.loop.runs import WEIGHTS, RunFolder


def save_results(
    note: Note,
    results: Sequence[PointResult],
    runs: Mapping[int, RunFolder],
    identity: Identity,
) -> None:
    """Note what was predicted out of fold and by which heads; last, since a pass with it is
    trained. InputError if it cannot be written."""
    arrays = {}
    about = []
    for result in results:
        own = {
            "errors": result.errors_EQ,
            "best_epoch": result.best_epoch_Q,
            "failed": result.failed_Q,
        }
        for which, prediction in result.held_out.items():
            own[f"raw_{which}"] = prediction.raw_RNK
            if prediction.word_RNC is not None:
                own[f"word_{which}"] = prediction.word_RNC
        for name, array in own.items():
            arrays[f"{result.index}/{name}"] = array

        # heads that failed are not saved, so there may be fewer files than splits
        run = runs[result.index]
        heads = sorted(path.name for path in run.path.glob("weights/*.safetensors"))
        about.append(
            {
                "point": result.index,
                "failure": result.failure,
                "files": {file: head_crc32c(run, file) for file in heads},
            }
        )
    note.save(arrays, {"points": about}, identity)


def load_results(
    note: Note,
    sweep: Sweep,
    runs: Mapping[int, RunFolder],
    identity: Identity,
) -> list[PointResult] | None:
    """What `save_results` noted, in its order; None where a pass has no note, where that is
    damaged, or where a head's file is no longer as it was saved."""
    noted = note.load(identity)
    if noted is None:
        return None
    arrays, about = noted
    results = []
    for point in about["points"]:
        p = point["point"]
        if not are_whole(point["files"], runs[p]):
            return None
        results.append(_result(sweep, p, point["failure"], arrays))
    return results


def _result(
    sweep: Sweep,
    p: int,
    failure: str | None,
    arrays: Mapping[str, np.ndarray],
) -> PointResult:
    config = sweep.config.points[p]
    held_out = {}
    for which in WEIGHTS:
        held_out[which] = Prediction(
            arrays[f"{p}/raw_{which}"],
            arrays.get(f"{p}/word_{which}"),
            config,
            sweep.data.targets,
        )
    return PointResult(
        p,
        sweep.config.names[p],
        config,
        held_out,
        arrays[f"{p}/errors"],
        arrays[f"{p}/best_epoch"],
        arrays[f"{p}/failed"],
        failure,
    )
