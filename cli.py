"""Commands: parse, call one function, print. Heavy imports wait inside the commands, so that --help
stays instant."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path; click says of one behind a folder that may not be looked into that it does not
    exist."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            try:
                os.stat(value)
            except PermissionError as err:
                self.fail(
                    f"{value}: {err.strerror}: this account may not look into its folder",
                    param,
                    ctx,
                )
            except OSError:
                pass
            raise


# who may not read a file is told by the command, as the Python API tells it
FOLDER = _Path(exists=True, file_okay=False, readable=False, path_type=Path)
FILE = _Path(exists=True, dir_okay=False, readable=False, path_type=Path)
ANY = click.Path(path_type=Path)


class _Store(click.Path):
    """A store's path, or its URL as it was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from featurestore.disk.urls import is_url

        return value if is_url(value) else super().convert(value, param, ctx)


STORE = _Store(path_type=Path)


class _Main(click.Group):
    """All commands; a message that cannot be written ends none of them."""

    def main(self, *args: Any, **options: Any) -> Any:
        from featurestore.disk.messages import secure_standard_streams

        secure_standard_streams()
        return super().main(*args, **options)


@click.group(
    cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="biomass-tokens")
def main() -> None:
    """Frozen ViT tokens in a mapped store, every head of a sweep in one pass, prediction end to
    end."""


@contextmanager
def plain_errors(after: str = "", needs_threads: bool = True) -> Iterator[None]:
    """A BiomassError becomes one line and its exit code, here and nowhere else; a signal 128 + its
    number.

    after : what a user can do after a signal, said when it comes. needs_threads : refuse at once
        where none can be started.
    """
    from featurestore.disk.interrupts import stopped_by_signals
    from featurestore.disk.messages import show_crashes
    from featurestore.disk.refusals import as_ours
    from featurestore.disk.threads import check_thread

    show_crashes()
    with stopped_by_signals(after), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
        try:
            if needs_threads:
                check_thread()
            yield
        except Exception as err:
            told = as_ours(err)
            if told is None:
                raise
            click.echo(f"error: {told}", err=True)
            sys.exit(told.exit_code)


@main.group()
def store() -> None:
    """Make a feature store and look at it."""


@store.command("build")
@click.option(
    "--config", type=FILE, help="YAML with any of these options, named alike (image_size: 960)."
)
@click.option("--data", type=FOLDER, help="Folder with train.csv and its photographs.")
@click.option("--out", type=ANY, help="The store: NAME.h5 or NAME.zarr.")
@click.option(
    "--backbone", help="timm name of a vision transformer.  [vit_huge_plus_patch16_dinov3]"
)
@click.option("--image-size", type=int, help="Side of a tile in pixels.  [960]")
@click.option(
    "--crop",
    type=click.Choice(["squash", "halves", "whole"]),
    help="How a photograph becomes tiles.  [halves]",
)
@click.option(
    "--bits",
    type=click.IntRange(8, 16),
    help="Bits of the values in 16-bit photographs, e.g. 12.  [16]",
)
@click.option("--views", help="How many of the 20 views, or their names with commas.  [20]")
@click.option("--layers", help="Blocks whose tokens are kept, with commas, e.g. -4,-1.  [-1]")
@click.option("--weights", help="FILE.safetensors, or random.  [timm's download]")
@click.option("--device", help="auto, cpu, cuda, cuda:N.  [auto]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="What the backbone computes in.  [fp32]",
)
@click.option("--seed", type=int, help="Keys the views' draws and random weights.  [0]")
@click.option(
    "--tokens",
    type=click.Choice(["all", "pooled"]),
    help="pooled: no patch tokens; 0.3 % of the size at 960 pixels, 7 % at 192.  [all]",
)
@click.option(
    "--pooled-dtype",
    type=click.Choice(["float32", "float16"]),
    help="Of the pooled vectors.  [float32]",
)
@click.option(
    "--thumbs/--no-thumbs", default=None, help="Keep small pictures of the photographs.  [thumbs]"
)
@click.option("--reserve", type=int, help="Rows kept free for images to come.  [0]")
@click.option(
    "--skip-missing",
    is_flag=True,
    default=None,
    help="Go without photographs that are missing or damaged.",
)
@click.option(
    "--allow-outside",
    is_flag=True,
    default=None,
    help="Take photographs from outside the data folder too.",
)
@click.option(
    "--check-space/--no-check-space",
    default=None,
    help="Refuse to begin what the disk cannot hold.  [check]",
)
@click.option(
    "--wait", is_flag=True, default=None, help="Wait for another builder of this store to end."
)
@click.option(
    "--lock/--no-lock",
    default=None,
    help="Keep other builders out, where the file system can.  [lock]",
)
@click.option(
    "--save-weights/--no-save-weights",
    default=None,
    help="Keep the weights beside the store.  [save]",
)
@click.option("--plan", is_flag=True, help="Print images, bytes, memory and hours, and stop.")
def store_build(config: Path | None, plan: bool, **options: Any) -> None:
    """Turn photographs into tokens on disk; goes on where it stopped.

    For example: `biomass store build --data data --out features.h5`.
    """
    with plain_errors("the same command goes on from here"):
        from featurestore.disk.yaml import read_yaml
        from featurestore.write.build import BuildConfig, build_store
        from featurestore.write.plan import plan_build

        given = {key: value for key, value in options.items() if value is not None}
        settings = BuildConfig.check(**{**(read_yaml(config) if config else {}), **given})
        click.echo(plan_build(settings) if plan else build_store(settings))


@store.command("info")
@click.argument("path", type=STORE, metavar="PATH|URL")
@click.option("--json", "as_json", is_flag=True, help="The spec and counts for machines.")
def store_info(path: Path | str, as_json: bool) -> None:
    """Print what a store or an archive holds.

    Images, views, grid, bytes and backbone.
    """
    with plain_errors():
        from featurestore.format.choose import is_archive
        from featurestore.store import FeatureStore

        if is_archive(path) and not as_json:
            from featurestore.manage.archive import Archive

            click.echo(repr(Archive.open(path)))
            return
        opened = FeatureStore.open(path)
        click.echo(opened.to_json() if as_json else repr(opened))


@store.command("stats")
@click.argument("path", type=STORE, metavar="PATH|URL")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of rows.")
def store_stats(path: Path | str, as_json: bool) -> None:
    """Print statistics of the tokens, per view and kind of token.

    Mean, std, min, max, norm and non-finite values. No token is read.
    """
    with plain_errors():
        from featurestore.store import FeatureStore

        table = FeatureStore.open(path).stats()
        click.echo(table.to_json(orient="records") if as_json else table.to_string(index=False))


@store.command("verify")
@click.argument("path", type=STORE, metavar="PATH")
@click.option(
    "--images", type=FOLDER, help="The data folder: find photographs that changed since, too."
)
@click.option(
    "--repair", "mend", is_flag=True, help="Un-seal what is damaged: the next build makes it again."
)
def store_verify(path: Path, images: Path | None, mend: bool) -> None:
    """Read every byte once and list every bad row.

    Exit code 4 if there is one.
    """
    with plain_errors():
        from featurestore.disk.messages import new_bar
        from featurestore.errors import StoreDamaged, UsageError, list_some
        from featurestore.manage.verify import repair, verify
        from featurestore.store import FeatureStore

        if mend and images:
            raise UsageError(
                "give --images or --repair: a photograph that changed is no damage of the store"
            )
        with (
            FeatureStore.open(path) as opened,
            new_bar("verify", opened.size_bytes, "B", unit_scale=True) as bar,
        ):
            report = repair(path, bar.update) if mend else verify(opened, bar.update, images)
        click.echo(
            f"{path}: {report.n_sealed} of {report.n_images} images sealed; read {report.pace()}"
        )
        if not report:
            done = (
                f"; un-sealed {len(report.damaged)} images, the next build makes them again"
                if mend
                else ""
            )
            raise StoreDamaged(
                f"{path}: {len(report.faults)} faults{done}:{list_some(report.faults, 10_000)}"
            )
        click.echo("all as committed")


@store.command("import")
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
@click.option(
    "--allow-outside", is_flag=True, help="Take photographs from outside the data folder too."
)
@click.option(
    "--backbone",
    "model",
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
    type=click.Choice(["squash", "whole"]),
    help="How it was cut.",
)
@click.option(
    "--bits",
    type=click.IntRange(8, 16),
    help="Bits of the values in 16-bit photographs, e.g. 12.  [16]",
)
@click.option(
    "--views", help="Names of the files' views, in order.  [the plain flips, then imported_04, ...]"
)
def store_import(folder: Path, **options: Any) -> None:
    """Make a store of an earlier experiment's .npz files.

    FOLDER holds a file {image_id}.npz per image, with arrays cls_0, patches_0, cls_1, ... Goes on
    where it stopped.
    """
    with plain_errors("the same command goes on from here"):
        from featurestore.manage.npz import import_npz

        click.echo(import_npz(folder, **options))


@store.command("extend")
@click.argument("source", type=ANY)
@click.argument("out", type=ANY)
@click.option(
    "--data",
    type=FOLDER,
    help="Folder with train.csv and photographs, of old and new images.  [the old catalog]",
)
@click.option(
    "--views", help="Of the new store: how many of the 20, or names with commas.  [the old ones]"
)
@click.option(
    "--reserve",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows kept free for images to come.",
)
@click.option(
    "--weights",
    help="Of the backbone: FILE.safetensors, or random.  [those the old store was built with]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Of the backbone.  [the old store's]",
)
@click.option(
    "--skip-missing", is_flag=True, help="Go without photographs that are missing or damaged."
)
@click.option(
    "--allow-outside", is_flag=True, help="Take photographs from outside the data folder too."
)
@click.option(
    "--relabel",
    is_flag=True,
    help="Take labels and columns of --data's train.csv, whatever the old store has.",
)
def store_extend(source: Path, out: Path, **options: Any) -> None:
    """Copy a store to one with more images, views or room.

    Also with other labels. The backbone works on what is new alone.
    """
    with plain_errors("the same command goes on from here"):
        from featurestore.manage.extend import extend_store

        click.echo(extend_store(source, out, **options))


@store.command("convert")
@click.argument("source", type=STORE, metavar="SOURCE|URL")
@click.argument("out", type=ANY)
@click.option(
    "--codec",
    type=click.Choice(["zstd", "int8"]),
    help="Write an archive: zstd loses nothing, int8 rounds tokens.",
)
@click.option("--images", help="Ids to keep, with commas, or a file with one a line.  [all]")
@click.option("--views", help="How many of the views, or names with commas.  [all]")
@click.option("--layers", help="Layers to keep, with commas, e.g. -4,-1.  [all]")
@click.option(
    "--tokens",
    type=click.Choice(["all", "pooled"]),
    default="all",
    help="pooled: leave patch tokens out.  [all]",
)
@click.option(
    "--reserve",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows kept free for images to come.",
)
@click.option("--skip-damaged", is_flag=True, help="Leave rotten images out instead of stopping.")
def store_convert(
    source: Path | str,
    out: Path,
    images: str | None,
    views: str | None,
    layers: str | None,
    tokens: str,
    **options: Any,
) -> None:
    """Copy a store: to another format, or a part of it.

    HDF5 to Zarr or back, some images, views or layers, or to an archive and back.
    """
    with plain_errors(
        "nothing is left of it" if options["codec"] else "the same command goes on from here"
    ):
        from featurestore.errors import UsageError
        from featurestore.manage.transfer import convert, open_source

        opened = open_source(source)
        chosen = {
            "images": _words(images),
            "views": _words(views),
            "layers": _numbers("--layers", layers),
        }
        if views and views.isdecimal():
            names = opened.spec.tokens.view_names
            if not 1 <= int(views) <= len(names):
                raise UsageError(f"--views {views}: the store has {len(names)}: {', '.join(names)}")
            chosen["views"] = names[: int(views)]
        with _bytes_bar(
            "store convert", opened.spec, len(chosen["images"] or opened.sealed)
        ) as bar:
            report = convert(
                source, out, **chosen, patches=tokens == "all", progress=bar.update, **options
            )
        click.echo(report)


@store.command("merge")
@click.argument("parts", nargs=-1, required=True, type=ANY)
@click.option("--out", required=True, type=ANY, help="The new store: NAME.h5 or NAME.zarr.")
@click.option(
    "--reserve",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows kept free for images to come.",
)
def store_merge(parts: tuple[Path, ...], out: Path, reserve: int) -> None:
    """Make one store of several that hold the same tokens.

    For example, of parts that were built on other machines. Takes all their sealed images.
    """
    with plain_errors("the same command goes on from here"):
        from featurestore.manage.transfer import merge
        from featurestore.store import FeatureStore

        opened = [FeatureStore.open(path) for path in parts]
        with _bytes_bar(
            "store merge", opened[0].spec, sum(len(each.sealed) for each in opened)
        ) as bar:
            click.echo(merge(parts, out, reserve=reserve, progress=bar.update))


@store.command("diff")
@click.argument("a", type=STORE, metavar="A|URL")
@click.argument("b", type=STORE, metavar="B|URL")
@click.option(
    "--tokens", is_flag=True, help="Read the tokens of rows that differ, and say by how much."
)
def store_diff(a: Path | str, b: Path | str, tokens: bool) -> None:
    """Compare spec, images, labels and rows of two stores.

    Exit code 5 if anything differs.
    """
    with plain_errors():
        from featurestore.errors import MismatchError
        from featurestore.manage.diff import diff_stores

        found = diff_stores(a, b, tokens)
        click.echo(str(found) if found or found.notes else "no difference")
        sys.exit(MismatchError.exit_code if found else 0)


@store.command("serve")
@click.argument("paths", nargs=-1, required=True, type=ANY, metavar="STORE...")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    type=FOLDER,
    help="A sweep's folder to look at too; may be repeated.",
)
@click.option(
    "--data",
    type=FOLDER,
    help="The photographs' folder: the page shows them in place of thumbnails.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 or :: for all.",
)
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--token",
    envvar="BIOMASS_TOKEN",
    help="What requests must bring; better in BIOMASS_TOKEN.  [made up]",
)
@click.option(
    "--no-token",
    is_flag=True,
    help="Answer everybody who can reach it; on loopback, else with --insecure.",
)
@click.option("--insecure", is_flag=True, help="With --no-token: on any address.")
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    help="Another name that requests may call the server by.",
)
@click.option("--json", "as_json", is_flag=True, help="Print url, port and token as JSON.")
def store_serve(paths: tuple[Path, ...], **options: Any) -> None:
    """Serve stores and sweeps over HTTP, with a page to look at them.

    It reads only; Ctrl-C ends it.
    """
    with plain_errors():
        from service.server import serve

        serve(paths, say=lambda text: click.echo(text, err=True), **options)


def _words(text: str | None) -> list[str] | None:
    """What a user gave with commas, or as a UTF-8 file with one a line; None stays None."""
    from featurestore.errors import InputError, NoAccessError

    if text is None:
        return None
    try:
        lines = Path(text).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise InputError(
            f"{text}: byte {err.start} is not UTF-8; give a text file with one id a line"
        ) from err
    except PermissionError as err:
        raise NoAccessError.of(err) from err
    except OSError:  # no such file, or longer than a name can be: the words themselves
        lines = text.split(",")
    return [line.strip() for line in lines if line.strip()]


def _numbers(name: str, text: str | None) -> list[int] | None:
    from featurestore.errors import UsageError

    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError as err:
        raise UsageError(f"{name} {text!r}: give numbers with commas, e.g. -4,-1") from err


def _bytes_bar(title: str, spec: Any, n_images: int) -> Any:
    """Progress in bytes of so many images' rows."""
    from featurestore.disk.messages import new_bar
    from featurestore.write.writer import image_bytes

    return new_bar(title, n_images * image_bytes(spec), "B", unit_scale=True)


@main.command()
@click.option("--config", type=FILE, help="The sweep's YAML; a list for a scalar is a grid axis.")
@click.option("--resume", type=FOLDER, help="Instead: go on with this stopped sweep.")
@click.option(
    "--store", type=STORE, help="The feature store, or its URL.  [dataset.store of the config]"
)
@click.option(
    "--fold",
    help="Train this fold only; all: every fold, then the best point on all images.  [cv.fold]",
)
@click.option(
    "--folds",
    type=FILE,
    help="A folds.csv, ours or another tool's, in place of new folds.  [cv.folds]",
)
@click.option(
    "--images",
    help="Ids of the images to use, with commas, or a file with one a line.  [all: dataset.images]",
)
@click.option("--out", default="runs", show_default=True, type=ANY, help="Where sweep folders go.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    help="Passes over the tokens.  [as few as trainer.memory_gb allows]",
)
@click.option(
    "--plan", is_flag=True, help="Print heads, passes, bytes read, memory and hours, and stop."
)
@click.option("--yes", is_flag=True, help="Train a grid of more than 1000 points too.")
@click.option(
    "--no-check", is_flag=True, help="Use stored rows without comparing them with their checksums."
)
def train(
    config: Path | None,
    resume: Path | None,
    store: Path | str | None,
    fold: str | None,
    folds: Path | None,
    images: str | None,
    out: Path,
    device: str,
    passes: int | None,
    plan: bool,
    yes: bool,
    no_check: bool,
) -> None:
    """Train all heads of a sweep in one pass.

    For example: `biomass train --config configs/demo.yaml --store features.h5`.
    """
    with plain_errors():  # what goes on after a signal is known once there is a sweep's folder
        from featurestore.errors import IN_PART, InputError, UsageError
        from trainer.loop.grid import SweepConfig
        from trainer.loop.sweep import describe_plan, prepare_sweep, resume_sweep, run_sweep

        if (config is None) == (resume is None):
            raise UsageError(
                "give --config FILE to begin a sweep, or --resume SWEEP to go on with one"
            )
        if resume and (folds or images is not None or passes or plan or fold not in (None, "all")):
            raise UsageError(
                "--resume takes folds, images and passes from the sweep; give it alone, with "
                "--store, or with "
                "--fold all"
            )
        ids = _words(images)
        if ids == []:
            raise InputError(
                f"--images {images!r}: names no image; give ids with commas, or a file with one a "
                "line"
            )
        if resume:
            result = resume_sweep(resume, fold, store, check=not no_check)
        else:
            overrides = {
                "dataset.store": store,
                "cv.fold": int(fold) if fold and fold.isdigit() else fold,
                "cv.folds": folds,
                "trainer.passes": passes,
                "dataset.images": ids,
            }
            sweep = SweepConfig.load(
                config, {key: value for key, value in overrides.items() if value is not None}
            )
            if sweep.n_combinations > 1000 and not yes:
                raise UsageError(
                    f"{config}: a grid of {sweep.n_combinations} points; if that is meant, add "
                    "--yes"
                )
            if plan:
                # what it times is not kept
                click.echo(describe_plan(prepare_sweep(sweep, device, check=False)))
                return
            result = run_sweep(sweep, out, device, check=not no_check)
        is_refitted = (result.path / "refit").exists() and "refit" not in result.failed
        refitted = "\n" + str(result.path / "refit") if is_refitted else ""
        click.echo(f"{result.table()}\n{result.path}{refitted}")
        for name, why in result.failed.items():
            click.echo(f"warning: {name} failed: {why}", err=True)
        if result.failed:
            sys.exit(InputError.exit_code if result.all_failed else IN_PART)


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
                folds=_numbers("--folds", folds),
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


@main.command()
@click.argument("path", default=".", type=STORE, metavar="[PATH|URL]")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of checks.")
def doctor(path: Path | str, as_json: bool) -> None:
    """Say what is wrong with the installation, machine or folder.

    Checks packages, torch, CPU, memory, and the folder, data or store at PATH, or the store at URL
    and the folder for its rows. A folder with train.csv or test.csv is one of data: its tables and
    the photographs' headers are read.

    A command that ended in "Bus error" (SIGBUS): the store was modified while the command read it.
    This says whether it opens now; `biomass store verify` reads all of it.

    Exit code 3 if something will break.
    """
    with plain_errors(needs_threads=False):
        from featurestore.errors import InputError
        from featurestore.explore.doctor import FAIL, examine, table, to_json

        checks = examine(path)
        click.echo(to_json(checks) if as_json else table(checks))
        sys.exit(InputError.exit_code if any(check.level == FAIL for check in checks) else 0)


if __name__ == "__main__":
    main()
