"""The architecture as measured by tools/house.py: what has been reached stays reached."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import house  # noqa: E402


def test_no_private_name_is_used_across_rooms():
    assert house.private_names_across_rooms(house.sources()) == []


def test_a_line_of_code_holds_few_tokens():
    assert house.density(house.sources())["tokens_a_line"] <= 8.55
