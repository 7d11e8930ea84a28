"""What pydantic found wrong with a value, in words for people."""

import reprlib
from collections.abc import Mapping
from typing import Any


def explained(error: Mapping[str, Any]) -> str:
    """One of a ValidationError's errors, without the key's name."""
    if error["type"] == "missing":
        return "missing, and it has no default"
    if error["type"] == "value_error":  # ours: it says what was found
        return error["msg"].removeprefix("Value error, ")
    wanted = error["msg"].replace("Input should be", "expected").replace(" after validation", "")
    return f"found {reprlib.repr(error['input'])}, {wanted}"
