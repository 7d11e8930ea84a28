"""All commands of `biomass`, grouped.

Each command lies beside what it calls: it parses, calls one function and prints. Heavy imports wait
inside the commands, so that --help stays instant.
"""

from typing import Any

import click

from featurestore.commands import build, copy, parts, show, weights
from featurestore.commands.doctor import doctor
from featurestore.commands.options import HELP
from featurestore.commands.running import WORDS
from featurestore.disk.messages import secure_standard_streams
from featurestore.disk.threads import wait_asleep
from predictor.bundle.command import bundle
from predictor.command import demo, predict
from service.command import store_serve
from trainer.command import train


class Group(click.Group):
    """Its help says of each command a whole sentence, on several lines where the terminal is
    narrow."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command and not command.hidden:
                rows.append((name, command.get_short_help_str(limit=1000)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _Main(Group):
    """All commands; a message that cannot be written ends none of them, and threads that wait leave
    the processor to others."""

    def main(self, *args: Any, **options: Any) -> Any:
        secure_standard_streams()
        wait_asleep()
        return super().main(*args, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # as they were typed, before click takes them: a stopped command says how to go on with it
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)


@click.group(cls=_Main, context_settings=HELP)
@click.version_option(package_name="biomass-tokens")
def main() -> None:
    """Predict numbers and classes from photographs.

    A frozen vision transformer turns photographs into tokens, kept in a store; every head of a
    sweep is trained on them in one pass.

    To begin: `biomass demo` runs the whole path on drawn photographs; `biomass doctor DIR` looks at
    a folder of your own and says what comes next.
    """


@main.group(cls=Group)
def store() -> None:
    """Make a feature store and look at it."""


for command in (
    build.store_build,
    parts.store_plan,
    build.store_import,
    build.store_extend,
    copy.store_convert,
    copy.store_merge,
    show.store_info,
    show.store_stats,
    show.store_verify,
    show.store_diff,
    store_serve,
):
    store.add_command(command)


@main.group("weights", cls=Group)
def weights_group() -> None:
    """Look at files of backbone weights and convert them."""


for command in (weights.weights_convert, weights.weights_list, weights.weights_check):
    weights_group.add_command(command)

for command in (train, predict, bundle, demo, doctor):
    main.add_command(command)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands by the TAB key.

    To have it in every new shell:

    \b
    bash  echo 'eval "$(biomass completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(biomass completion zsh)"' >> ~/.zshrc    (below the line with compinit)
    fish  biomass completion fish > ~/.config/fish/completions/biomass.fish
    """
    from click.shell_completion import get_completion_class

    # the variable is the one click asks for when a program named biomass starts
    click.echo(get_completion_class(shell)(main, {}, "biomass", "_BIOMASS_COMPLETE").source())


if __name__ == "__main__":
    main()
