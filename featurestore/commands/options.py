"""Options that commands of all packages share, and lists that a user typed with commas."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from featurestore.commands.completion import NoLocks, offered, offered_devices
from featurestore.commands.running import typed_words
from featurestore.disk.urls import is_elsewhere
from featurestore.errors import InputError, NoAccessError, UsageError


class AnyPath(NoLocks):
    """A path; a folder that this account may not look into is named as the reason.

    click alone would say that the path does not exist, and take `-` for a file's name.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            message = "no standard stream is read or written here; write ./- for a file named -"
            self.fail(message, param, ctx)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            try:
                os.stat(value)
            except PermissionError as err:
                message = f"{value}: {err.strerror}: this account may not look into its folder"
                self.fail(message, param, ctx)
            except OSError:
                pass
            raise


class StorePath(AnyPath):
    """A store's path, or its URL as it was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_elsewhere(value) else super().convert(value, param, ctx)


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
"""Settings of the outermost command: its options for help, and the width of the text."""

# readable=False: a file that this account may not read is the command's to explain, as it is in
# Python
FOLDER = AnyPath(exists=True, file_okay=False, readable=False, path_type=Path)
FILE = AnyPath(exists=True, dir_okay=False, readable=False, path_type=Path)
ANY = AnyPath(path_type=Path)
STORE = StorePath(path_type=Path)

bits_option = click.option(
    "--bits",
    type=click.IntRange(8, 16),
    help="Bits of the values in 16-bit photographs, e.g. 12.  [16]",
)
max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="The most pixels that a photograph may have.  [the store's, 80 million at first]",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=offered_devices,
    help="auto, cpu, cuda, cuda:N.",
)
engine_option = click.option(
    "--engine",
    metavar="ray[://HOST:PORT]",
    shell_complete=offered("ray"),
    help="Run the parts as Ray tasks, on all nodes of the cluster that this machine is in, or "
    "whose head is named.",
)
reserve_option = click.option(
    "--reserve",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows kept free for images to come.",
)


def csv_option(table: str) -> Callable:
    """table : what is read from --data without the option."""
    return click.option(
        "--csv",
        type=FILE,
        help=f"The table to read; its paths start from --data.  [{table} of --data]",
    )


def scratch_option(text: str) -> Callable:
    """text : its help: what lies there, and where without it."""
    return click.option("--scratch", type=FOLDER, help=text)


def precision_option(text: str, *more: str) -> Callable:
    """text : its help, which says where the default comes from; more : further choices."""
    choices = click.Choice([*more, "fp32", "bf16", "fp16"])
    return click.option("--precision", type=choices, help=text)


def allow_outside_option(default: bool | None = False) -> Callable:
    """default : None where a config may set it as well, so that a flag not given is no answer."""
    return click.option(
        "--allow-outside",
        is_flag=True,
        default=default,
        help="Take photographs from outside the data folder too.",
    )


def skip_missing_option(default: bool | None = False) -> Callable:
    """default : as in `allow_outside_option`."""
    return click.option(
        "--skip-missing",
        is_flag=True,
        default=default,
        help="Go without photographs that are missing or damaged.",
    )


def former_name(former: str, option: str, name: str, **attributes: Any) -> Callable:
    """A name that an option had before: it keeps working, hidden, and says what it is called now.

    option, name : as it is typed today, and as the command's function calls it.
    attributes : those of a flag, `is_flag=True`.
    """

    def hand_over(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if not value or ctx.resilient_parsing:  # the latter: a TAB
            return
        click.echo(f"note: {former} is called {option} now", err=True)
        ctx.default_map = {**(ctx.default_map or {}), name: value}
        # a command that is stopped shows how to go on
        words = typed_words(ctx)
        words[:] = [re.sub(f"^{former}(?==|$)", option, word) for word in words]

    return click.option(
        former,
        f"former_{name}",
        hidden=True,
        help=f"Former name of {option}.",
        expose_value=False,
        is_eager=True,
        callback=hand_over,
        **attributes,
    )


def out_place(text: str, metavar: str = "OUT", place: click.Path = ANY) -> Callable:
    """What a command writes, as its last argument or by --out.

    text : help of --out.
    place : what it may be.
    """

    def keep(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
        if value:
            ctx.default_map = {**(ctx.default_map or {}), "out": value}

    def check(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path:
        if value is None:
            raise click.UsageError(f"name what is written: --out {metavar}", ctx)
        named = (ctx.default_map or {}).get("out", value)
        if named != value:
            raise click.UsageError(
                f"both {value} and --out {named} would be written; give one", ctx
            )
        return value

    option = click.option(
        "--out",
        "named_out",
        type=place,
        metavar=metavar,
        expose_value=False,
        is_eager=True,
        callback=keep,
        help=text,
    )
    argument = click.argument(
        "out",
        type=place,
        required=False,
        metavar=f"[{metavar}]",
        callback=check,
    )
    return lambda command: argument(option(command))


def split_words(text: str | None) -> list[str] | None:
    """Words that a user gave with commas, or in a UTF-8 file with one a line; None stays None."""
    if text is None:
        return None
    try:
        words = Path(text).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise InputError(
            f"{text}: byte {err.start} is not UTF-8; give a text file with one id a line"
        ) from err
    except PermissionError as err:
        raise NoAccessError.of(err) from err
    except OSError:  # no such file, or longer than a name can be: the words themselves
        words = text.split(",")
    return [word.strip() for word in words if word.strip()]


def split_numbers(
    option: str,
    text: str | None,
    example: str,
    negative: bool = False,
) -> list[int] | None:
    """Whole numbers that a user gave with commas, from 0 unless `negative`; None stays None."""
    if text is None:
        return None
    pattern = "-?[0-9]+" if negative else "[0-9]+"
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(pattern, word) for word in words):
        raise UsageError(f"{option} {text!r}: give numbers with commas, e.g. {example}")
    return [int(word) for word in words]
