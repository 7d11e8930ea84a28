"""The commands that make and check a bundle."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from featurestore.commands.next_steps import biomass, say_next
from featurestore.commands.options import ANY, FILE, former_name, split_numbers
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors
from featurestore.disk.imports import quick_imports
from predictor.checks import check_backbone_choice, check_is_bundle, check_is_source, check_new


class MakeByDefault(click.Group):
    """`biomass bundle SWEEP --out DIR` is `biomass bundle make SWEEP --out DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *self.get_help_option_names(ctx)}
        return super().parse_args(ctx, args if not args or args[0] in known else ["make", *args])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            return found
        sources = self.commands["make"].params[0]
        return found + sources.shell_complete(ctx, incomplete)


@click.group(cls=MakeByDefault)
def bundle() -> None:
    """Pack all that an offline machine needs to predict.

    `biomass bundle SWEEP --out DIR` is short for `biomass bundle make SWEEP --out DIR`.
    """


@bundle.command("make")
@click.argument("sources", nargs=-1, required=True, type=ANY, metavar="SWEEP|RUN...")
@click.option("--out", required=True, type=ANY, help="The bundle's folder; must not exist.")
@click.option(
    "--points",
    default="chosen",
    show_default=True,
    help="Of sweeps: chosen, best, all, or rows of the board with commas.",
)
@click.option("--only-folds", help="Heads of these folds only, e.g. 0,2.  [all]")
@former_name("--folds", "--only-folds", "only_folds")
@click.option(
    "--epoch",
    "weights",
    type=click.Choice(["best", "last"]),
    default="last",
    show_default=True,
    help="Which epoch's heads.",
)
@former_name("--weights", "--epoch", "weights")
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
@script_options
def bundle_make(
    sources: tuple[Path, ...],
    out: Path,
    only_folds: str | None,
    with_backbone: bool,
    backbone_weights: Path | None,
    backbone_licence: Path | None,
    **options: Any,
) -> None:
    """Put heads, what they need and this program in one folder.

    The program is a wheel; a notebook is there too. The same inputs give the same bytes.
    """
    with one_line_errors():
        folds = split_numbers("--only-folds", only_folds, "0,2")
        check_backbone_choice(with_backbone, backbone_weights, backbone_licence)
        check_new(out)
        for source in sources:
            check_is_source(source)
        # below the checks: a mistake in the options must not wait for torch
        with quick_imports():
            from predictor.bundle.pack import BackboneChoice, make_bundle

        choice = BackboneChoice(
            with_backbone,
            backbone_weights and str(backbone_weights),
            backbone_licence,
        )
        made = make_bundle(sources, out, folds=folds, backbone=choice, **options)
        tell(made, made.values())
        say_next(_predict_with(out))


@bundle.command("check")
@click.argument("folder", type=ANY, metavar="DIR")
@click.option("--sha256", help="Of bundle.json, as it was printed when the bundle was made.")
@script_options
def bundle_check(folder: Path, sha256: str | None) -> None:
    """Read every byte of a bundle and check what it holds.

    Nothing may be changed, missing, extra, too large, too deep, a link or a pickle.
    """
    with one_line_errors():
        check_is_bundle(folder)
        with quick_imports():
            from predictor.bundle.bundle import check_bundle

        checked = check_bundle(folder, sha256)
        tell(checked, checked.values())
        say_next(_predict_with(folder))


def _predict_with(bundle: Path) -> str:
    return biomass("predict", "--bundle", bundle, "--data", "data")
