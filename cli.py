"""All commands of `biomass`, grouped.

Each command lies beside what it calls: it parses, calls one function and prints. Heavy imports wait
inside the commands, so that --help stays instant.
"""

import sys
from pathlib import Path
from typing import Any

import click

from featurestore.commands import build, copy, show
from featurestore.commands.doctor import doctor
from featurestore.commands.options import ANY, FILE, FOLDER, split_numbers
from featurestore.commands.running import plain_errors
from featurestore.disk.messages import secure_standard_streams
from service.command import store_serve
from trainer.command import train


class _Main(click.Group):
    """All commands; a message that cannot be written ends none of them."""

    def main(self, *args: Any, **options: Any) -> Any:
        secure_standard_streams()
        return super().main(*args, **options)


@click.group(
    cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="biomass-tokens")
def main() -> None:
    """Frozen ViT tokens in a mapped store, every head of a sweep in one pass, prediction end to
    end."""


@main.group()
def store() -> None:
    """Make a feature store and look at it."""


for command in (
    build.store_build,
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

main.add_command(train)
main.add_command(doctor)


@main.command()
@click.option(
    "--data", required=True, type=FOLDER, help="Folder with test.csv and its photographs."
)
@click.option(
    "--out",
    type=ANY,
    help="Where the submission goes.  [submission.csv; with --oof oof_predictions.csv]",
)
@click.option(
    "--run", multiple=True, type=FOLDER, help="A run's folder; given several times, an ensemble."
)
@click.option(
    "--sweep",
    type=FOLDER,
    help="A sweep's folder: its best run.  [the one under runs/ that finished last]",
)
@click.option("--bundle", type=FOLDER, help="A bundle's folder, which is checked first.")
@click.option(
    "--allow-partial", is_flag=True, help="Go without a bundle's heads that are missing or damaged."
)
@click.option("--folds", help="Heads of these folds only, e.g. 0,2.  [all]")
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    help="Which epoch's heads.  [last, or a bundle's own]",
)
@click.option("--tta", help="Views to average: 1, 2, 4 or 8, or names with commas.  [4]")
@click.option(
    "--average", type=click.Choice(["mean", "median"]), help="Over views and heads.  [mean]"
)
@click.option(
    "--constraints",
    type=click.Choice(["order", "clip"]),
    help="How masses are made to balance.  [the run's]",
)
@click.option(
    "--backbone-weights", help="FILE.safetensors, or random.  [those the store was built with]"
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:N; several with commas.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Of the backbone.  [the store's]",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "mean"]),
    help="mean: the training mean for photographs that cannot be used, exit code 6.  [fail]",
)
@click.option(
    "--allow-outside", is_flag=True, help="Take photographs from outside the data folder too."
)
@click.option("--deadline", help="Time from now, e.g. 8h30m: fewer views rather than overrun.")
@click.option(
    "--resume", is_flag=True, help="Take up what a stopped prediction of this output had finished."
)
@click.option(
    "--interval",
    type=float,
    metavar="LEVEL",
    help="e.g. 0.9: adds intervals to the wide table that cover 90 % of a new site's photographs.",
)
@click.option(
    "--blend",
    type=click.Choice(["equal", "fitted"]),
    help="An ensemble's weights; fitted on the out-of-fold tables, whose gain is printed.  [equal, "
    "or the bundle's]",
)
@click.option(
    "--oof",
    is_flag=True,
    help="The training photographs instead, by the heads that held them out; exit code 5 unless "
    "oof.csv says the same.",
)
@click.option(
    "--explain",
    type=ANY,
    help="A folder for a picture per photograph, where the mass is, and report.html with all.",
)
def predict(folds: str | None, **options: Any) -> None:
    """Predict the masses of photographs, end to end.

    For example: `biomass predict --tta 4 --data data`. With --out NAME.csv the wide table goes to
    NAME.predictions.csv, by default to predictions.csv.
    """
    with plain_errors("with --resume the same command goes on from here"):
        from featurestore.disk.messages import say
        from featurestore.errors import UsageError
        from predictor.command import predict_to_file

        if folds is not None and not all(word.strip().isdigit() for word in folds.split(",")):
            raise UsageError(f"--folds {folds!r}: give numbers with commas, e.g. 0,2")
        chosen = [int(word) for word in folds.split(",")] if folds is not None else None
        options["out"] = options["out"] or Path(
            "oof_predictions.csv" if options["oof"] else "submission.csv"
        )
        code = predict_to_file(say=say, folds=chosen, **options)
        click.echo(options["out"])
        sys.exit(code)


class _Bundle(click.Group):
    """`biomass bundle SWEEP --out DIR` is `biomass bundle make SWEEP --out DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *self.get_help_option_names(ctx)}
        return super().parse_args(ctx, args if not args or args[0] in known else ["make", *args])


@main.group(cls=_Bundle)
def bundle() -> None:
    """Pack all that an offline machine needs to predict.

    `biomass bundle SWEEP --out DIR` is short for `biomass bundle make SWEEP --out DIR`.
    """


@bundle.command("make")
@click.argument("sources", nargs=-1, required=True, type=ANY, metavar="SWEEP|RUN...")
@click.option("--out", required=True, type=ANY, help="The bundle's folder; must not exist.")
@click.option(
    "--points",
    default="best",
    show_default=True,
    help="Of sweeps: best, all, or names of runs with commas.",
)
@click.option("--folds", help="Heads of these folds only, e.g. 0,2.  [all]")
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="last",
    show_default=True,
    help="Which epoch's heads.",
)
@click.option(
    "--blend",
    type=click.Choice(["equal", "fitted"]),
    help="How members are weighed, as predict does.  [equal]",
)
@click.option("--with-backbone", is_flag=True, help="The backbone's weights too.")
@click.option("--backbone-weights", type=FILE, help="Their file.  [beside the store]")
@click.option(
    "--backbone-licence",
    type=FILE,
    help="Text of their licence, which DINOv3's must have with them.",
)
def bundle_make(
    sources: tuple[Path, ...],
    out: Path,
    folds: str | None,
    with_backbone: bool,
    backbone_weights: Path | None,
    backbone_licence: Path | None,
    **options: Any,
) -> None:
    """Put heads, what they need and this program in one folder.

    The program is a wheel; a notebook is there too. The same inputs give the same bytes.
    """
    with plain_errors():
        from predictor.bundle.pack import BackboneChoice, make_bundle

        choice = BackboneChoice(
            with_backbone, backbone_weights and str(backbone_weights), backbone_licence
        )
        click.echo(
            make_bundle(
                sources,
                out,
                folds=split_numbers("--folds", folds),
                backbone=choice,
                say=lambda text: click.echo(text, err=True),
                **options,
            )
        )


@bundle.command("check")
@click.argument("folder", type=ANY, metavar="DIR")
@click.option("--sha256", help="Of bundle.json, as it was printed when the bundle was made.")
def bundle_check(folder: Path, sha256: str | None) -> None:
    """Read every byte of a bundle and check what it holds.

    Nothing may be changed, missing, extra, too large, too deep, a link or a pickle.
    """
    with plain_errors():
        from predictor.bundle.bundle import check_bundle

        click.echo(check_bundle(folder, sha256))


@main.command()
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=ANY,
    help="Where everything goes; must not exist.",
)
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Another seed, another pasture."
)
def demo(out: Path, seed: int) -> None:
    """Run the whole path once on a drawn pasture.

    Draw photographs, build a store, train a sweep, predict unseen sites and score them; then again
    by a bundle, with pictures.
    """
    with plain_errors():
        from predictor.demo import run_demo

        run_demo(out, seed, say=click.echo)


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
