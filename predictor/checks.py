"""Mistakes in the options of `predict` and `bundle` that are said before torch is imported."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from featurestore.errors import InputError, UsageError

LISTING = "bundle.json"  # as in bundle/listing.py, which imports more


def check_sources(
    run: Sequence[Path],
    sweep: Path | None,
    bundle: Path | None,
    point: str | None,
) -> None:
    """UsageError for heads of several sorts, InputError for a folder that is no bundle."""
    if bool(run) + bool(sweep) + bool(bundle) > 1:
        raise UsageError(
            "give one of --run, --sweep and --bundle: a sweep stands for what it chose, a bundle "
            "for all runs in it"
        )
    if point and (run or bundle):
        raise UsageError("--point names a row of a sweep's board: give --sweep, or neither")
    if bundle and not (bundle / LISTING).exists():
        raise InputError(
            f"{bundle}: no bundle, it has no {LISTING}; `biomass bundle SWEEP --out DIR` makes one"
        )


def parse_part(text: str) -> tuple[int, int]:
    """Number and total of `3/16`; UsageError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    number, total = map(int, found.groups()) if found else (0, 0)
    if number >= total:
        raise UsageError(
            f"--part {text}: give a part and how many there are, counted from 0: 0/16 is the "
            "first of 16, 15/16 the last"
        )
    return number, total


def check_level(level: float | None) -> None:
    """UsageError for an --interval that is no share."""
    if level is not None and not 0 < level < 1:
        raise UsageError(f"--interval {level:g}: a level lies between 0 and 1, e.g. 0.9")


def check_file_name(out: Path | None) -> None:
    """UsageError for an --out that is no file: a folder, a device or a pipe."""
    if not out:
        return
    try:
        mode = out.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG  # what will be there
    except OSError as err:  # a name that is too long, say
        raise UsageError(f"--out {out}: {err.strerror}; name another file") from err
    if stat.S_ISDIR(mode):
        raise UsageError(f"--out {out}: is a folder; name a file")
    # a file is renamed to its name, and root may do that in /dev; /dev/stdout may lead to a file
    if not stat.S_ISREG(mode) or out.absolute().parent == Path("/dev"):
        raise UsageError(f"--out {out}: is a device or a pipe, which it would replace; name a file")


def check_oof_alone(**given: object) -> None:
    """UsageError for options given that --oof would have to ignore."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if named:
        raise UsageError(
            "--oof predicts as the sweep scored its heads, with the run's own views, constraints "
            f"and rules: leave {', '.join(named)} out, or --oof"
        )


def check_backbone_choice(included: bool, weights: object, licence: object) -> None:
    """UsageError for weights or a licence that would not go along."""
    if not included and (weights or licence):
        raise UsageError(
            "--backbone-weights and --backbone-licence are for --with-backbone; add that"
        )


def check_new(out: Path) -> None:
    """InputError for a bundle's folder that is there."""
    if os.path.lexists(out):
        raise InputError(f"{out}: exists; remove it or choose another --out")


def check_is_bundle(folder: Path) -> None:
    """InputError for a folder that has no list of a bundle's files."""
    listing = folder / LISTING
    try:
        listing.stat()
    except FileNotFoundError as err:
        raise InputError(
            f"{listing}: cannot be read ({err.strerror}); `biomass bundle SWEEP --out DIR` makes a "
            "bundle"
        ) from err
    except OSError:  # whoever reads it says why
        pass


def check_is_source(folder: Path) -> None:
    """InputError for what is neither a run, a blend nor a finished sweep."""
    if not is_run_or_blend(folder) and not (folder / "summary.json").exists():
        raise InputError(
            f"{folder}: neither a run's folder nor a finished sweep's; `biomass train` makes both"
        )


def is_run_or_blend(folder: Path) -> bool:
    """Whether a folder is a run's or a blend's."""
    is_run = (folder / "config.yaml").exists() and (folder / "weights").exists()
    return is_run or (folder / "blend.json").exists()
