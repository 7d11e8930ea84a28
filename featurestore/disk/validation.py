"""What pydantic found wrong with a value, in words for people."""

import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

BRANCH = re.compile(r"literal\[.*\]|dict\[.*\]|constrained-int")
"""How pydantic names the branches of a choice, among the names of keys."""


def wrong_keys(err: "ValidationError") -> list[str]:
    """A line for each wrong key: its name as it was written, and why.

    Of a choice pydantic tells why each branch is wrong, under names of its own. Here it is one
    line, or that of the branch which takes such values and finds one inside that is wrong.
    """
    why: dict[str, list[str]] = {}
    for error in err.errors(include_url=False):
        names = [str(name) for name in error["loc"] if not BRANCH.fullmatch(str(name))]
        why.setdefault(".".join(names), []).append(explained(error))

    lines = []
    for key, (first, *others) in why.items():
        if any(other.startswith(f"{key}.") for other in why):
            continue
        wanted = [told.split(", expected ")[-1] for told in others]
        lines.append(f"{key}: {' or '.join([first, *wanted])}")
    return lines


def explained(error: Mapping[str, Any]) -> str:
    """One of a ValidationError's errors, without the key's name."""
    if error["type"] == "missing":
        return "missing, and it has no default"
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "value_error":  # ours: it says what was found
        return error["msg"].removeprefix("Value error, ")
    found = reprlib.repr(error["input"])
    if error["type"] == "union_tag_not_found":
        return f"found {found}, expected the key {error['ctx']['discriminator']} in it"
    if error["type"] == "union_tag_invalid":
        return f"found {found}, expected one of {error['ctx']['expected_tags']}"
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return f"found {found}, expected keys and values"
    wanted = error["msg"].replace("Input should be", "expected").replace(" after validation", "")
    return f"found {found}, {wanted}"
