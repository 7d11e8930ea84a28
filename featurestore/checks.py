"""One finding of `biomass doctor`, whatever it is about."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    ok; warn: it works and should be known; FAIL: something will break.
    """

    name: str
    level: str
    found: str
    advice: str = ""
    """What to do; empty where all is well."""
