"""What several commands take on their command lines."""

import click
import pytest
from click.testing import CliRunner
from commands import biomass

from cli import main
from featurestore.commands.options import former_name, out_place, split_numbers
from featurestore.commands.running import WORDS, with_same_command
from featurestore.errors import UsageError


def test_numbers_are_given_with_commas():
    assert split_numbers("--folds", "0, 2", "0,2") == [0, 2]
    assert split_numbers("--layers", "-4,-1", "-4,-1", negative=True) == [-4, -1]
    assert split_numbers("--folds", None, "0,2") is None


@pytest.mark.parametrize("text", ["", "x", "0,,2", "-1", "1.5", "²"])
def test_other_words_are_refused_with_an_example(text):
    with pytest.raises(UsageError, match="--folds .*: give numbers with commas, e.g. 0,2"):
        split_numbers("--folds", text, "0,2")


@click.command()
@click.option("--epoch", "weights", type=click.Choice(["best", "last"]), default="last")
@former_name("--weights", "--epoch", "weights")
@click.option("--continue", "resume", is_flag=True)
@former_name("--resume", "--continue", "resume", is_flag=True)
def renamed(weights: str, resume: bool) -> None:
    click.echo(f"{weights} {resume}{with_same_command('--continue')}")


@click.command()
@out_place("What is written.")
def writes(out: str) -> None:
    click.echo(out)


class Typed(click.Group):
    """Keeps what was typed, as `biomass` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)


def run(*words: str) -> tuple[str, str, int]:
    result = CliRunner().invoke(Typed(commands={"r": renamed, "w": writes}), words)
    return result.stdout, result.stderr, result.exit_code


def test_a_former_name_works_and_names_the_new_one():
    way_on = "go on with:\nbiomass r --epoch {} --continue"
    out, err, _ = run("r", "--weights", "best", "--resume")
    assert "best True" in out and way_on.format("best") in out
    assert err.splitlines() == [
        "note: --weights is called --epoch now",
        "note: --resume is called --continue now",
    ]
    out, err, _ = run("r", "--weights=best")
    assert "best False" in out and "--epoch=best --continue" in out and err.count("\n") == 1
    assert run("r", "--epoch", "best")[1] == ""
    assert run("r")[0].startswith("last False")


def test_a_former_name_checks_values_and_is_not_in_the_help():
    assert "Invalid value for '--epoch'" in run("r", "--weights", "first")[1]
    shown = run("r", "--help")[0]
    assert "--epoch" in shown and "--weights" not in shown and "--resume" not in shown


def test_an_output_is_the_last_argument_or_an_option():
    assert run("w", "a.h5") == run("w", "--out", "a.h5") == ("a.h5\n", "", 0)
    assert "name what is written: --out OUT" in run("w")[1]
    assert "both a.h5 and --out b.h5 would be written" in run("w", "a.h5", "--out", "b.h5")[1]


@pytest.mark.parametrize(
    "command, former, new",
    [
        ("predict --data . --folds x", "--folds", "--only-folds"),
        ("predict --data . --weights best --only-folds x", "--weights", "--epoch"),
        ("predict --data . --resume --only-folds x", "--resume", "--continue"),
        ("bundle . --out b --weights best --only-folds x", "--weights", "--epoch"),
        ("bundle make . --out b --folds x", "--folds", "--only-folds"),
        ("store verify none.h5 --images .", "--images", "--data"),
        ("store diff none.h5 none.zarr --tokens", "--tokens", "--compare-tokens"),
    ],
)
def test_commands_take_former_names(command, former, new):
    """Each stops at a mistake that follows."""
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code in (2, 3)
    assert result.stderr.startswith(f"note: {former} is called {new} now\nerror: ")


@pytest.mark.parametrize("command", ["store convert", "store extend", "weights convert"])
def test_every_command_that_writes_has_an_out_option(command):
    assert "--out OUT" in biomass(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--data", ".", "--out", "-"],
        ["predict", "--data", ".", "--explain", "-"],
        ["train", "--config", "-", "--plan"],
        ["demo", "--out", "-"],
        ["store", "info", "-"],
        ["store", "convert", "a.h5", "-"],
    ],
    ids=" ".join,
)
def test_a_dash_is_no_file_unless_it_is_written_as_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = biomass(*command, code=2).stderr
    assert said.endswith(
        "no standard stream is read or written here; write ./- for a file named -\n"
    )
    assert not any(tmp_path.iterdir())
    assert run("w", "./-") == ("-\n", "", 0)
