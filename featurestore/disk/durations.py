"""Durations as a person would say them, 9 s, 12 min, 3.4 h, 2.5 days, and types them, 8h30m."""

import re

from featurestore.errors import UsageError

MS = 0.001
MINUTE = 60
HOUR = 3600
DAY = 24 * HOUR


def duration(seconds: float) -> str:
    """With two digits, in the unit that a person would choose."""
    # each bound is where the next smaller unit would need three digits; days begin at two
    if 0 < seconds < 99.5 * MS:
        return f"{seconds / MS:.2g} ms"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 99.5 * MINUTE:
        return f"{seconds / MINUTE:.2g} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.2g} h"
    days = seconds / DAY
    return f"{days:.2g} days" if days < 99.5 else f"{days:.0f} days"


def parse_duration(text: str) -> float:
    """Seconds of `8h30m`, `45m`, `90s` or `1h`. UsageError for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not found or not any(found.groups()):
        raise UsageError(f"--deadline {text!r}: give hours, minutes, seconds, e.g. 8h30m or 45m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60 * minutes + seconds
