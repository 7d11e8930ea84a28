"""Running `biomass` in this process, as a user would type it."""

from click.testing import CliRunner

from cli import main

TINY = ["--backbone", "vit_tiny_patch16_dinov3_qkvb", "--image-size", "64", "--weights", "random", "--device", "cpu"]


def biomass(*arguments: object, code: int = 0):
    """Run a command in this process; its result, once the exit code is the one expected."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
