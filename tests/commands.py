"""Running `biomass` in this process, as a user would type it."""

import os
import re
import signal

from click.testing import CliRunner

from cli import main
from featurestore.disk.interrupts import COUNTED_ONCE, KILLING

# the model of the demo: of 4 blocks, half as dear to build with as the smallest of timm
TINY = [
    "--backbone",
    "vit_demo_patch16_dinov3",
    "--image-size",
    "64",
    "--weights",
    "random",
    "--device",
    "cpu",
    "--precision",
    "fp32",
]

# the smallest DINOv3 model of timm's own, for what is about timm's models
TIMM = ["--backbone", "vit_tiny_patch16_dinov3_qkvb", *TINY[2:]]


def biomass(*arguments: object, code: int = 0):
    """Run a command in this process; its result, once the exit code is the one expected."""
    before = {number: signal.getsignal(number) for number in (*KILLING, *COUNTED_ONCE)}
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    # one that was stopped leaves its handlers to the end of its process
    for number, handler in before.items():
        signal.signal(number, handler)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def environment_without_home(**more: object) -> dict[str, str]:
    """Of a child process that computes the same bits, and finds nothing of ours but what it is
    given."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONPATH")}
    return kept | {name: str(value) for name, value in more.items()}


def options_named(text: str) -> set[str]:
    """Options that a text speaks of, less those in a whole command between backticks."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"`biomass [^`]*`", "", text)))


def options_of(*arguments: str) -> set[str]:
    command = main
    for word in arguments:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
