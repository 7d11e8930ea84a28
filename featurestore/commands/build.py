"""The commands that make a store: build, import and extend."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from featurestore.commands.checks import (
    check_devices,
    check_store_name,
    check_weights_there,
)
from featurestore.commands.completion import offered_backbones, offered_devices, offered_views
from featurestore.commands.next_steps import same_without, say_next, train_with
from featurestore.commands.options import (
    ANY,
    FILE,
    FOLDER,
    STORE,
    allow_outside_option,
    bits_option,
    csv_option,
    device_option,
    engine_option,
    max_pixels_option,
    out_place,
    precision_option,
    reserve_option,
    scratch_option,
    skip_missing_option,
)
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors, with_same_command
from featurestore.disk.imports import quick_imports
from featurestore.disk.urls import is_elsewhere, published_url
from featurestore.errors import UsageError
from featurestore.photos.view_names import VIEW_NAMES, chosen_names


def build_options(
    out_help: str, device_help: str, place: click.Path = ANY
) -> Callable[[Callable], Callable]:
    """What is built, and of what: options of every command that begins a build.

    place : what --out may be.
    """
    options = (
        click.option(
            "--config",
            type=FILE,
            help="YAML with any of these options, named alike (image_size: 960).",
        ),
        click.option("--data", type=FOLDER, help="Folder with train.csv and its photographs."),
        csv_option("train.csv"),
        click.option("--out", type=place, help=out_help),
        click.option(
            "--backbone",
            shell_complete=offered_backbones,
            help="timm name of a vision transformer.  [vit_huge_plus_patch16_dinov3]",
        ),
        click.option("--image-size", type=int, help="Side of a tile in pixels.  [960]"),
        click.option(
            "--crop",
            help="How a photograph becomes tiles: squash, halves, grid:RxC, center or whole.  "
            "[halves]",
        ),
        click.option(
            "--fit",
            type=click.Choice(["squash", "crop", "pad"]),
            help="What becomes of an aspect that does not fit the crop.  [refused]",
        ),
        bits_option,
        max_pixels_option,
        click.option(
            "--views",
            shell_complete=offered_views,
            help=f"How many of the {len(VIEW_NAMES)} views, or their names with commas.  [20]",
        ),
        click.option(
            "--layers", help="Blocks whose tokens are kept, with commas, e.g. -4,-1.  [-1]"
        ),
        click.option("--weights", help="FILE.safetensors, or random.  [timm's download]"),
        click.option("--device", shell_complete=offered_devices, help=device_help),
        precision_option(
            "What the backbone computes in. auto: the store's, in a new one half where it is fast "
            "and near.  [auto]",
            "auto",
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            help="Tiles that go through the backbone at once.  [one photograph's]",
        ),
        click.option("--seed", type=int, help="Keys the views' draws and random weights.  [0]"),
        click.option(
            "--tokens",
            type=click.Choice(["all", "pooled"]),
            help="pooled: no patch tokens; 0.3 % of the size at 960 pixels, 7 % at 192.  [all]",
        ),
        click.option(
            "--pooled-dtype",
            type=click.Choice(["float32", "float16"]),
            help="Of the pooled vectors.  [float32]",
        ),
        click.option(
            "--thumbs/--no-thumbs",
            default=None,
            help="Keep small pictures of the photographs.  [thumbs]",
        ),
        click.option("--reserve", type=int, help="Rows kept free for images to come.  [0]"),
        skip_missing_option(default=None),
        allow_outside_option(default=None),
        click.option(
            "--check-space/--no-check-space",
            default=None,
            help="Refuse to begin what the disk cannot hold.  [check]",
        ),
        click.option(
            "--save-weights/--no-save-weights",
            default=None,
            help="Keep the weights beside the store.  [save]",
        ),
    )

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command("build")
@build_options(
    "The store: NAME.h5, NAME.zarr or s3://BUCKET/NAME.zarr.",
    "auto, cpu, cuda, cuda:N; several with commas.  [auto]",
    place=STORE,
)
@click.option(
    "--wait",
    is_flag=True,
    default=None,
    help="Wait for another builder of this store to end.",
)
@click.option(
    "--lock/--no-lock",
    default=None,
    help="Keep other builders out, where the file system can.  [lock]",
)
@engine_option
@click.option(
    "--parts",
    "n_parts",
    type=click.IntRange(min=1),
    help="With --engine or a URL: how many.  [one for each file of patches, 64 at most]",
)
@scratch_option("Where parts lie until they are in object storage.  [the plan's folder]")
@click.option("--from", "planned", type=FOLDER, help="Build a part of the plan in this folder.")
@click.option("--part", type=click.IntRange(min=0), help="Which part of it, from 0.")
@click.option("--plan", is_flag=True, help="Print images, bytes, memory and time, and stop.")
@script_options
def store_build(
    config: Path | None,
    plan: bool,
    planned: Path | None,
    part: int | None,
    engine: str | None,
    n_parts: int | None,
    scratch: Path | None,
    **options: Any,
) -> None:
    """Turn photographs into tokens on disk; goes on where it stopped.

    For example: `biomass store build --data data --out features.h5`. With several devices
    (`--device cuda:0,cuda:1`) each has a process that builds parts, which are then merged; with an
    engine the nodes of a cluster do. Parts of a store at a URL are put there one by one.
    """
    given = {key: value for key, value in options.items() if value is not None}
    with one_line_errors(with_same_command()):
        if planned or part is not None:
            of_all = {"config": config, "plan": plan or None, "engine": engine, "parts": n_parts}
            _build_part(planned, part, scratch, of_all | given)
            return
        checked, url = _build_config_and_url(config, given)
        if n_parts and not (engine or url):
            raise UsageError(
                "--parts goes with --engine or a URL; `biomass store plan` cuts without them"
            )
        if scratch and not url:
            raise UsageError("--scratch goes with a URL: a store on a disk is built where it is")
        check_store_name(checked.out)
        # below the checks: a mistake in the options must not wait for torch
        with quick_imports():
            from featurestore.write.build import build_store
            from featurestore.write.plan import plan_build

        if plan:
            one = checked.model_copy(update={"device": checked.device.split(",")[0]})
            found = plan_build(one)
            if url:
                found = replace(found, path=url)
            tell(found, found.values(), indent=10)
            say_next(same_without("--plan"))
            return
        if url or engine or "," in checked.device:
            from featurestore.parts.devices import build_on_devices

            where = {"engine": engine, "n_parts": n_parts, "url": url, "scratch": scratch}
            build_store = partial(build_on_devices, **where)
        tell(build_store(checked))
        say_next(train_with(url or checked.out))


def _build_config_and_url(config: Path | None, given: dict[str, Any]) -> tuple[Any, str | None]:
    """As `build_config`; a URL that the store is to be published at is told apart.

    The config then names what the store is called, which nothing on this machine will be.
    """
    settings = _settings_of(config)
    out = given.get("out", settings.get("out"))
    if not is_elsewhere(out):
        return _checked(config, settings, given), None
    url = published_url(out)
    name = url.rpartition("/")[2]
    return _checked(config, settings, given | {"out": Path(name)}), url


def build_config(config: Path | None, given: dict[str, Any]) -> Any:
    """The BuildConfig of a YAML file, if there is one, and of the options that were given."""
    return _checked(config, _settings_of(config), given)


def _settings_of(config: Path | None) -> dict[str, Any]:
    from featurestore.disk.yaml import read_yaml

    return read_yaml(config) if config else {}


def _checked(config: Path | None, settings: dict[str, Any], given: dict[str, Any]) -> Any:
    from featurestore.write.config import BuildConfig

    checked = BuildConfig.check(config, given, **settings | given)
    check_weights_there("--weights", checked.weights)
    return checked


def _build_part(
    planned: Path | None, part: int | None, scratch: Path | None, given: dict[str, Any]
) -> None:
    if planned is None or part is None:
        raise UsageError("--from and --part go together: the plan's folder, and which part, from 0")
    call = {key: given.pop(key) for key in ("device", "wait", "lock") if key in given}
    # what is left decides what tokens are, and all parts of a store have it from the plan
    fixed = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None]
    if fixed:
        raise UsageError(f"{', '.join(fixed)}: the plan {planned} says it; leave it out")
    with quick_imports():
        from featurestore.parts.build import build_part

    receipt, was_there = build_part(planned, part, **call, scratch=scratch)
    told = "was finished before" if was_there else "is finished"
    text = f"{planned}: part {part} {told}: {receipt}"
    tell(text, {"path": planned, "was_there": was_there} | asdict(receipt))


@click.command("import")
@click.argument("folder", type=FOLDER)
@click.option("--out", required=True, type=ANY, help="The store: NAME.h5 or NAME.zarr.")
@click.option(
    "--csv", type=FILE, help="Labels and paths, one row an image or long.  [train.csv of --data]"
)
@click.option(
    "--data",
    type=FOLDER,
    help="The photographs' folder: sizes, hashes and thumbnails come from there.",
)
@allow_outside_option()
@click.option(
    "--backbone",
    "model",
    shell_complete=offered_backbones,
    default="vit_huge_plus_patch16_dinov3",
    show_default=True,
    help="timm name of the model that made the tokens.",
)
@click.option(
    "--weights",
    type=FILE,
    help="Its .safetensors, for their hash: predict then accepts that backbone.",
)
@click.option(
    "--image-size", type=int, help="Side of a tile in pixels.  [from the number of patches]"
)
@click.option(
    "--crop",
    default="squash",
    show_default=True,
    type=click.Choice(["squash", "center", "whole"]),
    help="How it was cut.",
)
@bits_option
@max_pixels_option
@click.option(
    "--views", help="Names of the files' views, in order.  [the plain flips, then imported_04, ...]"
)
@script_options
def store_import(folder: Path, **options: Any) -> None:
    """Make a store of an earlier experiment's .npz files.

    FOLDER holds a file {image_id}.npz per image, with arrays cls_0, patches_0, cls_1, ... Goes on
    where it stopped.
    """
    with one_line_errors(with_same_command()):
        check_store_name(options["out"])
        check_weights_there("--weights", options["weights"])
        with quick_imports():
            from featurestore.manage.npz import import_npz

        tell(import_npz(folder, **options))
        say_next(train_with(options["out"]))


@click.command("extend")
@click.argument("source", type=ANY)
@out_place("The new store: NAME.h5 or NAME.zarr.")
@click.option(
    "--data",
    type=FOLDER,
    help="Folder with train.csv and photographs, of old and new images.  [the old catalog]",
)
@csv_option("train.csv")
@click.option(
    "--views",
    shell_complete=offered_views,
    help=f"Of the new store: how many of the {len(VIEW_NAMES)}, or names with commas.  "
    "[the old ones]",
)
@reserve_option
@click.option(
    "--weights",
    help="Of the backbone: FILE.safetensors, or random.  [those the old store was built with]",
)
@device_option
@precision_option("Of the backbone.  [the old store's]")
@skip_missing_option()
@allow_outside_option()
@max_pixels_option
@click.option(
    "--relabel",
    is_flag=True,
    help="Take labels and columns of the table, whatever the old store has.",
)
@script_options
def store_extend(source: Path, out: Path, **options: Any) -> None:
    """Copy a store to one with more images, views or room.

    Also with other labels. The backbone works on what is new alone.
    """
    with one_line_errors(with_same_command()):
        check_store_name(out)
        check_devices(options["device"])
        check_weights_there("--weights", options["weights"])
        if options["views"]:
            chosen_names(options["views"], "--views")
        with quick_imports():
            from featurestore.manage.extend import extend_store

        tell(extend_store(source, out, **options))
        say_next(train_with(out))
