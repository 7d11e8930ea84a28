"""The sweep that was finished last.

By what sweeps say of themselves: copying changes the times of files.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from featurestore.errors import InputError, NoAccessError
from trainer.loop.runs import STAMP, SUMMARY, read_json

UNKNOWN = datetime.min.replace(tzinfo=UTC)
STAMP_LENGTH = len(time.strftime(STAMP))


@dataclass(frozen=True, order=True)
class _Finished:
    """A finished sweep; of two that finished at the same time the later name counts as newer."""

    when: datetime
    path: Path
    why: str

    @classmethod
    def of(cls, sweep: Path) -> "_Finished":
        """By `finished_at` of its summary.json; else by the time it began, in its folder's name.
        NoAccessError if closed."""
        try:
            told = read_json(sweep / SUMMARY, "finished_at")["finished_at"]
            when = datetime.fromisoformat(told).astimezone(UTC)
            return cls(when, sweep, f"finished {when:%Y-%m-%d %H:%M:%S} UTC by its {SUMMARY}")
        except NoAccessError:
            raise
        except (InputError, TypeError, ValueError):  # made before sweeps kept it, or edited
            pass
        try:
            began = datetime.strptime(sweep.name[:STAMP_LENGTH], STAMP).astimezone(UTC)
            return cls(began, sweep, f"began {began:%Y-%m-%d %H:%M:%S} UTC by its folder's name")
        except ValueError:
            return cls(UNKNOWN, sweep, "of no known time")


def newest_sweep(out: Path) -> tuple[Path, str]:
    """The sweep under `out` finished last, and why that one. InputError if there is none."""
    finished = []
    closed = []
    for folder in sorted(out.iterdir()) if out.is_dir() else []:
        try:
            if (folder / SUMMARY).is_file():
                finished.append(_Finished.of(folder))
        except (PermissionError, NoAccessError):
            closed.append(folder.name)
    unread = f"; this account may not read {', '.join(closed)}" if closed else ""
    if not finished:
        raise InputError(
            f"{out}: no finished sweep; `biomass train --config ... --store ...` makes one, or "
            f"give --sweep{unread}"
        )
    newest = max(finished)
    others = f"the only one under {out}"
    if len(finished) > 1:
        others = f"the newest of {len(finished)} under {out}; --sweep names another"
    # told, since until then it hides every sweep that finishes after it
    ahead = ""
    if newest.when > datetime.now(UTC):
        ahead = "; that is in the future, so a clock was wrong"
    return newest.path, f"{newest.why}{ahead}, {others}{unread}"
