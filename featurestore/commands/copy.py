"""The commands that copy stores: convert and merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    scratch_option,
    split_numbers,
    split_words,
)
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors, with_same_command
from featurestore.disk.imports import quick_imports
from featurestore.disk.urls import is_elsewhere

if TYPE_CHECKING:
    from featurestore.parts.plan import PartPlan

made_there_option = scratch_option(
    "Where a store is made that then goes to object storage.  [the system's temporary folder]"
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
@made_there_option
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
                source,
                out,
                **chosen,
                patches=tokens == "all",
                progress=bar.update,
                **options,
            )
        tell(report)
        say_next(biomass("store", "info", out) if options["codec"] else train_with(out))


@click.command("merge")
@click.argument("parts", nargs=-1, type=ANY)
@click.option("--from", "planned", type=FOLDER, help="Merge all parts of the plan in this folder.")
@click.option(
    "--out",
    type=STORE,
    help="The new store: NAME.h5, NAME.zarr or s3://BUCKET/NAME.zarr.  [where the plan says]",
)
@click.option("--remove-parts", is_flag=True, help="With --from: remove the parts afterwards.")
@reserve_option
@made_there_option
@script_options
def store_merge(
    parts: tuple[Path, ...],
    planned: Path | None,
    out: Path | str | None,
    remove_parts: bool,
    **options: Any,
) -> None:
    """Make one store of several that hold the same tokens.

    PART... are stores that were built on other machines, say: all their sealed images are taken.
    --from takes the parts of `biomass store plan`, and makes the store that a build in one piece
    would have made. A Zarr store gets their large files by links, without a copy; one at the URL of
    `store plan --publish` has them already.
    """
    with one_line_errors(with_same_command()):
        from featurestore.errors import UsageError

        if bool(parts) == bool(planned):
            raise UsageError("name the stores to merge, or --from with the folder of a plan")
        if remove_parts and not planned:
            raise UsageError("--remove-parts: removes parts of a plan; give --from, too")
        # before the plan is read: a mistake in the options must not wait for torch
        if out is not None:
            check_store_name(out)
        plan = _plan_of(planned, out) if planned else None
        if plan and plan.url:
            out = plan.url
        if out is None:
            raise UsageError("name what is written: --out")
        if plan:
            report = _merge_planned(plan, out, remove_parts, **options)
        else:
            report = _merge(parts, out, **options)
        tell(report)
        say_next(train_with(out))


def _merge(parts: Sequence[Path], out: Path | str, **options: Any) -> Any:
    with quick_imports():
        from featurestore.manage.transfer import merge
        from featurestore.store import FeatureStore

    opened = [FeatureStore.open(path) for path in parts]
    n_images = sum(len(each.sealed) for each in opened)
    with _bytes_bar("store merge", opened[0].spec, n_images) as bar:
        return merge(parts, out, progress=bar.update, **options)


def _plan_of(planned: Path, out: Path | str | None) -> "PartPlan":
    """The plan in a folder; UsageError where its parts cannot be merged at `out`."""
    with quick_imports():
        from featurestore.parts.plan import load_plan
        from featurestore.parts.publish import check_place

    plan = load_plan(planned)
    if out is not None:
        check_place(plan, out)
    return plan


def _merge_planned(
    plan: "PartPlan",
    out: Path | str,
    remove_parts: bool,
    reserve: int,
    scratch: Path | None,
) -> Any:
    from featurestore.errors import UsageError

    if reserve:
        raise UsageError("--reserve: the plan says it; leave it out")
    with quick_imports():
        from featurestore.parts.merge import merge_parts
        from featurestore.parts.publish import publish_parts

    with _bytes_bar("store merge", plan.spec, plan.n_images) as bar:
        how = {"remove": remove_parts, "progress": bar.update}
        if is_elsewhere(out):
            return publish_parts(plan, out, scratch=scratch, **how)
        return merge_parts(plan, out, **how)


def _bytes_bar(title: str, spec: Any, n_images: int) -> Any:
    """Progress in bytes of so many images' rows."""
    from featurestore.disk.messages import new_bar
    from featurestore.write.writer import image_bytes

    return new_bar(title, n_images * image_bytes(spec), "B", unit_scale=True)
