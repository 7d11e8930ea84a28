"""tests/FAULTS.md explains every fault id that a test name holds, and no other."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_the_legend_has_the_ids_of_the_test_names():
    legend = re.findall(r"^\| ([A-Z]\d+) \|", (TESTS / "FAULTS.md").read_text(), re.M)

    used = set()
    for path in TESTS.glob("test_*.py"):
        for name in re.findall(r"def (test_\w+)", path.read_text()):
            used.update(re.findall(r"_([A-Z]\d+)(?=_)", name))

    assert len(legend) == len(set(legend))
    assert set(legend) == used
