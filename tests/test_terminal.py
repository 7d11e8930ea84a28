"""Tables and lines in a terminal of 60 columns and more; files and pipes get all there is."""

import io
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from commands import biomass

from cli import main
from featurestore import FeatureStore
from featurestore.disk.terminal import fitting, hung, shortened, terminal_width
from featurestore.explore.doctor import Check, table
from featurestore.explore.statistics import stats_text
from trainer.loop.result import SweepResult


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def widest(text: str) -> int:
    return max(map(len, text.split("\n")))


@pytest.mark.parametrize("columns, width", [("80", 80), ("60", 60), ("20", 60)])
def test_the_width_of_a_terminal(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert terminal_width() == width


def test_a_file_has_no_width(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert terminal_width() is None and hung("long " * 40, None, 2) == "long " * 40
    monkeypatch.setattr("sys.stdout", None)
    assert terminal_width() is None


def test_long_lines_go_on_behind_an_indent_and_others_stay():
    text = "  tokens   " + "word " * 4 + "end\nshort  line"
    assert hung(text, 25, 11).split("\n") == [
        "  tokens   word word word",
        "           word end",
        "short  line",
    ]
    path = "/a/path/that/is/longer/than/the/terminal"
    assert hung(path, 25, 4) == path


def test_columns_are_dropped_until_the_table_fits():
    assert fitting("abcd", "da", None, " ".join) == "a b c d"
    assert fitting("abcd", "da", 5, " ".join) == "a b c"
    assert fitting("abcd", "da", 3, " ".join) == "b c"
    assert fitting("abcd", "da", 1, " ".join) == "b c"  # no more can go
    assert shortened("001_name_lr-0_1", 9) == "001_…-0_1" and shortened("abc", 3) == "abc"


def result(name: str) -> SweepResult:
    names = [name, name.replace("001", "002"), "mean"]
    numbers = {each: [0.5, 0.25, None] for each in ("sd_last", "vs_best", "low", "high")}
    board = pd.DataFrame({"name": names, "score_last": [0.5, 0.25, 0.1], **numbers})
    note = "a sentence that is longer than sixty columns are, about the board above it"
    return SweepResult(Path("runs/x"), board, name, None, f"{name} leads", [note])


@pytest.mark.parametrize(
    "name", ["001_short", "001_first__kind-density__lr-0_003", "001_" + 70 * "x"]
)
@pytest.mark.parametrize("width", [60, 80])
def test_a_board_fits(name, width):
    whole = result(name)
    text = whole.table(width)
    _, board = text.split(" leads\n")  # a sentence breaks no name
    assert widest(board) <= width
    assert "score_last" in text and "sixty columns" in text
    if len(name) < 40:
        assert name in text and "002_" in text
    assert all(column in whole.table() for column in ("sd_last", "low", "high", name))


def test_statistics_fit_and_keep_values_that_are_not_finite(built):
    store = FeatureStore.open(built)
    assert widest(stats_text(store)) > 60 >= widest(stats_text(store, 60))
    assert "count" in stats_text(store) and "norm" in stats_text(store, 60)


def test_checks_go_on_below_themselves():
    checks = [Check("ok", "ok", "found"), Check("long name", "ok", "words " * 20, "advice")]
    lines = table(checks, 60).split("\n")
    assert widest("\n".join(lines)) <= 60 and all(line.startswith(17 * " ") for line in lines[2:])
    assert len(table(checks).split("\n")) == 2


def test_in_a_pipe_nothing_is_broken(built, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert widest(biomass("store", "stats", built).stdout) > 60


def test_help_says_of_each_command_a_whole_sentence():
    for group in ([], ["store"], ["weights"]):
        said = CliRunner().invoke(main, [*group, "--help"], terminal_width=60).stdout
        _, commands = said.split("Commands:\n")
        assert "..." not in commands and widest(said) <= 60
