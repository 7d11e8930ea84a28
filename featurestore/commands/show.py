"""The commands that read a store: info, stats, verify and diff."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from featurestore.commands.next_steps import biomass, say_next
from featurestore.commands.options import FOLDER, STORE, former_name, max_pixels_option
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors
from featurestore.counts import count_of
from featurestore.disk.imports import quick_imports
from featurestore.disk.terminal import terminal_width
from featurestore.disk.urls import is_url


@click.command("info")
@click.argument("path", type=STORE, metavar="PATH|URL")
@click.option("--json", "as_json", is_flag=True, help="The spec and counts for machines.")
def store_info(path: Path | str, as_json: bool) -> None:
    """Print what a store or an archive holds.

    Images, views, grid, bytes and backbone.
    """
    with one_line_errors():
        with quick_imports():
            from featurestore.format.choose import is_archive
            from featurestore.store import FeatureStore

        if is_archive(path):
            from featurestore.manage.archive import Archive

            opened = Archive.open(path)
            following = biomass("store", "convert", path, "--out", "NAME.h5")
        else:
            opened = FeatureStore.open(path)
            following = biomass("store", "serve", path)
            if opened.n_sealed + len(opened.skipped) < opened.n_images:
                # a store does not know which command began it: build, extend or import
                following = "to continue, run the command that began it once more"
        if as_json:
            click.echo(opened.to_json())
        else:
            tell(repr(opened), indent=15)
        if not as_json and not is_url(path):
            say_next(following)


@click.command("stats")
@click.argument("path", type=STORE, metavar="PATH|URL")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of rows.")
def store_stats(path: Path | str, as_json: bool) -> None:
    """Print statistics of the tokens, per view and kind of token.

    Mean, std, min, max, norm and non-finite values. No token is read.
    """
    with one_line_errors():
        with quick_imports():
            from featurestore.explore.statistics import stats_json, stats_text
            from featurestore.store import FeatureStore

        opened = FeatureStore.open(path)
        click.echo(stats_json(opened) if as_json else stats_text(opened, terminal_width()))


@click.command("verify")
@click.argument("path", type=STORE, metavar="PATH|URL")
@click.option(
    "--data", type=FOLDER, help="The photographs' folder: find those that changed since, too."
)
@former_name("--images", "--data", "data")
@max_pixels_option
@click.option(
    "--repair",
    "mend",
    is_flag=True,
    help="Un-seal what is damaged: the next build makes it again.",
)
@script_options
def store_verify(path: Path, data: Path | None, max_pixels: int | None, mend: bool) -> None:
    """Read every byte once and list every bad row.

    Exit code 4 if there is one.
    """
    with one_line_errors():
        from featurestore.disk.messages import new_bar
        from featurestore.errors import StoreDamaged, UsageError, list_some

        if mend and data:
            raise UsageError(
                "give --data or --repair: a photograph that changed is no damage of the store"
            )
        with quick_imports():
            from featurestore.manage.verify import repair, verify
            from featurestore.store import FeatureStore

        with (
            FeatureStore.open(path) as opened,
            new_bar("verify", opened.size_bytes, "B", unit_scale=True) as bar,
        ):
            if mend:
                report = repair(path, bar.update)
            else:
                report = verify(opened, bar.update, data, max_pixels)
        sealed = count_of(report.n_sealed, "image", report.n_images)
        told = f"{path}: {sealed} sealed; read {report.pace()}"
        if report:
            told += "\nall as committed"
        n_unsealed = len(report.damaged) if mend else 0
        tell(told, {"path": path, **asdict(report), "n_unsealed": n_unsealed})
        if not report:
            done = ""
            advice = ""
            if mend:
                unsealed = count_of(n_unsealed, "image")
                done = f"; un-sealed {unsealed}, which the next build makes again"
            elif report.damaged:
                repair_it = biomass("store", "verify", path, "--repair")
                advice = f"\n`{repair_it}` un-seals them; the next build makes them again"
            faults = list_some(report.faults, 10_000)
            raise StoreDamaged(
                f"{path}: {count_of(len(report.faults), 'fault')}{done}:{faults}{advice}"
            )


@click.command("diff")
@click.argument("a", type=STORE, metavar="A|URL")
@click.argument("b", type=STORE, metavar="B|URL")
@click.option(
    "--compare-tokens",
    is_flag=True,
    help="Read the tokens of rows that differ, and say by how much.",
)
@former_name("--tokens", "--compare-tokens", "compare_tokens", is_flag=True)
@script_options
def store_diff(a: Path | str, b: Path | str, compare_tokens: bool) -> None:
    """Compare spec, images, labels and rows of two stores.

    Exit code 5 if anything differs.
    """
    with one_line_errors():
        from featurestore.errors import MismatchError
        from featurestore.manage.diff import diff_stores

        found = diff_stores(a, b, compare_tokens)
        told = found if found or found.notes else "no difference"
        tell(told, {"differences": found.lines, "notes": found.notes})
        sys.exit(MismatchError.exit_code if found else 0)
