"""How far a sweep is that is being trained: epochs, scores so far, and whether anybody trains it.

No lock is taken, and of a log only its end is read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.disk.held import is_held
from service.explore.sweeps import base_of, is_finished, read_json

TAIL_BYTES = 256 << 10


def progress(sweep: Path) -> dict[str, Any]:
    """Epochs that are trained of all, by pass and by run; and whether it runs.

    running : None where that cannot be told, see featurestore.disk.held. last_epoch_at : seconds
    since 1970 when a log was last written to; None before the first epoch. A run's score is that of
    its last epoch, on what its heads hold out, by view 0.
    """
    told = read_json(sweep / "sweep.json") or {}
    n_epochs = _whole(base_of(sweep).get("trainer"), "num_epochs")
    names = list(told.get("runs") or [])
    records = {name: last_record(sweep / name / "metrics.jsonl") for name in names}
    done = {name: _whole(record, "epoch", -1) + 1 for name, record in records.items()}
    passes = []
    for number, points in enumerate(told.get("passes") or []):
        own = [names[point] for point in points if point < len(names)]
        # the least: a run's line is written after the epoch, and a look may fall between two
        epoch = min((done[name] for name in own), default=0)
        about = {"pass": number, "n_runs": len(own), "epoch": epoch, "epochs": n_epochs}
        passes.append({**about, "running": is_held(sweep / f"pass{number}")})

    runs = []
    for name in names:
        record = records[name] or {}
        about = {"name": name, "epoch": done[name]}
        runs.append({**about, "loss": record.get("loss"), "score": record.get("score")})

    times = []
    for name in names:
        log = sweep / name / "metrics.jsonl"
        if log.is_file() and log.stat().st_size:  # an empty log is of no epoch yet
            times.append(log.stat().st_mtime)

    # what a sweep's processes lock: all of it, its regressors, a pass
    held = [is_held(sweep / name) for name in ("sweep", "fits")]
    held += [each["running"] for each in passes]
    return {
        "finished": is_finished(sweep),
        "running": _any(held),
        "epoch": sum(each["epoch"] for each in passes),
        "epochs": n_epochs * len(passes),
        "last_epoch_at": max(times, default=None),
        "passes": passes,
        "runs": runs,
    }


def last_record(log: Path) -> Mapping[str, Any] | None:
    """The last whole line of a log; None where there is none, or it cannot be read."""
    try:
        with open(log, "rb") as file:
            n_bytes = file.seek(0, 2)  # the end
            file.seek(max(0, n_bytes - TAIL_BYTES))
            tail = file.read()
        line = tail[: tail.rfind(b"\n") + 1].splitlines()[-1]
        record = json.loads(line)
    except (OSError, ValueError, IndexError):
        return None
    return record if isinstance(record, dict) else None


def _any(held: Sequence[bool | None]) -> bool | None:
    """True if one is; None if none is known to be, and of one it is not known."""
    if True in held:
        return True
    return None if None in held else False


def _whole(record: Any, name: str, default: int = 0) -> int:
    """A whole number of a record, which may be damaged."""
    value = record.get(name) if isinstance(record, Mapping) else None
    return value if isinstance(value, int) else default
