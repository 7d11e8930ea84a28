"""The commands that copy stores: convert and merge."""

from pathlib import Path
from typing import Any

import click

from featurestore.commands.checks import check_store_name
from featurestore.commands.completion import offered_views
from featurestore.commands.next_steps import biomass, say_next, train_with
from featurestore.commands.options import (
    ANY,
    FOLDER,
    STORE,
    out_place,
    reserve_option,
    split_numbers,
    split_words,
)
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors, with_same_command
from featurestore.disk.imports import quick_imports

scratch_option = click.option(
    "--scratch",
    type=FOLDER,
    help="Where a store is made that then goes to object storage.  [the system's temporary folder]",
)


@click.command("convert")
@click.argument("source", type=STORE, metavar="SOURCE|URL")
@out_place("The new store, NAME.h5, NAME.zarr or s3://BUCKET/NAME.zarr, or archive.", place=STORE)
@click.option(
    "--codec",
    type=click.Choice(["zstd", "int8"]),
    help="Write an archive: zstd loses nothing, int8 rounds tokens.",
)
@click.option("--images", help="Ids to keep, with commas, or a file with one a line.  [all]")
@click.option(
    "--views",
    shell_complete=offered_views,
    help="How many of the views, or names with commas.  [all]",
)
@click.option("--layers", help="Layers to keep, with commas, e.g. -4,-1.  [all]")
@click.option(
    "--tokens",
    type=click.Choice(["all", "pooled"]),
    default="all",
    help="pooled: leave patch tokens out.  [all]",
)
@reserve_option
@click.option("--skip-damaged", is_flag=True, help="Leave rotten images out instead of stopping.")
@scratch_option
@script_options
def store_convert(
    source: Path | str,
    out: Path | str,
    images: str | None,
    views: str | None,
    layers: str | None,
    tokens: str,
    **options: Any,
) -> None:
    """Copy a store: to another format, or a part of it.

    HDF5 to Zarr or back, some images, views or layers, or to an archive and back.
    """
    after = "nothing is left of it" if options["codec"] else with_same_command()
    with one_line_errors(after):
        chosen = {
            "images": split_words(images),
            "views": split_words(views),
            "layers": split_numbers("--layers", layers, "-4,-1", negative=True),
        }
        if not options["codec"]:
            check_store_name(out)
        with quick_imports():
            from featurestore.errors import UsageError
            from featurestore.manage.transfer import convert, open_store_or_archive

        opened = open_store_or_archive(source)
        if views and views.isdecimal():
            names = opened.spec.tokens.view_names
            if not 1 <= int(views) <= len(names):
                raise UsageError(f"--views {views}: the store has {len(names)}: {', '.join(names)}")
            chosen["views"] = names[: int(views)]

        n_images = len(chosen["images"] or opened.sealed)
        with _bytes_bar("store convert", opened.spec, n_images) as bar:
            report = convert(
                source, out, **chosen, patches=tokens == "all", progress=bar.update, **options
            )
        tell(report)
        say_next(biomass("store", "info", out) if options["codec"] else train_with(out))


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=ANY)
@click.option(
    "--out",
    required=True,
    type=STORE,
    help="The new store: NAME.h5, NAME.zarr or s3://BUCKET/NAME.zarr.",
)
@reserve_option
@scratch_option
@script_options
def store_merge(
    parts: tuple[Path, ...], out: Path | str, reserve: int, scratch: Path | None
) -> None:
    """Make one store of several that hold the same tokens.

    For example, of parts that were built on other machines. Takes all their sealed images.
    """
    with one_line_errors(with_same_command()):
        check_store_name(out)
        with quick_imports():
            from featurestore.manage.transfer import merge
            from featurestore.store import FeatureStore

        opened = [FeatureStore.open(path) for path in parts]
        n_images = sum(len(each.sealed) for each in opened)
        with _bytes_bar("store merge", opened[0].spec, n_images) as bar:
            report = merge(parts, out, reserve=reserve, scratch=scratch, progress=bar.update)
        tell(report)
        say_next(train_with(out))


def _bytes_bar(title: str, spec: Any, n_images: int) -> Any:
    """Progress in bytes of so many images' rows."""
    from featurestore.disk.messages import new_bar
    from featurestore.write.writer import image_bytes

    return new_bar(title, n_images * image_bytes(spec), "B", unit_scale=True)
