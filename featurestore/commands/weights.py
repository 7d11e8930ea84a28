"""The commands about files of backbone weights."""

from pathlib import Path

import click

from featurestore.commands.completion import offered_backbones
from featurestore.commands.next_steps import biomass, say_next
from featurestore.commands.options import FILE, FOLDER, STORE, out_place
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors
from featurestore.disk.imports import quick_imports


@click.command("convert")
@click.argument("source", type=FILE, metavar="IN")
@out_place("The file that is made.", "OUT.safetensors")
@click.option(
    "--memory",
    "memory_gb",
    type=click.FloatRange(min=0, min_open=True),
    help="GB that reading may take.  [4 times the file, at least 2.15]",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@script_options
def weights_convert(source: Path, out: Path, memory_gb: float | None, force: bool) -> None:
    """Make a safetensors file of what torch.save wrote.

    For .pth, .pt and .bin files, which every other command refuses, because they hold pickles. Only
    tensors and plain values are read (torch's weights_only), in a process with limited memory, no
    network where the kernel allows that, and a hook that refuses sockets, processes and writing
    anything but OUT.
    """
    with one_line_errors():
        from featurestore.backbone.convert import convert
        from featurestore.disk.messages import say
        from featurestore.errors import list_some

        memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
        done = convert(source, out, memory_bytes=memory_bytes, force=force)
        if not done.without_network:
            say(
                "note: this kernel gives no empty network namespace; sockets were refused by the "
                "audit hook alone"
            )
        told = f"{out}: {done.n_tensors} tensors, {done.n_bytes / 1e6:.1f} MB"
        if done.left_out:
            told += f"\nleft out, for they are no weights:{list_some(list(done.left_out), 5)}"
        tell(told, {"path": out, **vars(done)})
        say_next(biomass("weights", "check", out))


@click.command("check")
@click.argument("file", type=FILE)
@click.option(
    "--backbone",
    shell_complete=offered_backbones,
    help="timm's name of the model.  [those it could be of]",
)
@click.option("--image-size", type=click.IntRange(min=1), help="Of --backbone.  [the model's own]")
@click.option("--store", type=STORE, help="Compare with the weights that made its tokens.")
@click.option("--json", is_flag=True, help="As JSON, for machines.")
def weights_check(
    file: Path,
    backbone: str | None,
    image_size: int | None,
    store: Path | None,
    json: bool,
) -> None:
    """Say which backbone a file is whole for, and its hash.

    The file is read as `store build --weights` reads it. Exit code 3 if it does not fit, and 5 if
    it fits the backbone of --store, but the tokens were made with other weights.
    """
    with one_line_errors():
        from featurestore.errors import MismatchError, UsageError

        if store and (backbone or image_size):
            raise UsageError("--store says the backbone and its image size; give it alone")
        if image_size and not backbone:
            raise UsageError("--image-size is that of --backbone; give both")
        with quick_imports():
            from featurestore.explore.weights_files import as_json, check_weights

        found = check_weights(file, backbone, image_size, store)
        click.echo(as_json(found) if json else found)
        if not json and not store:
            backbone = found.fits[0].model
            build = ("store", "build", "--data", "data", "--out", "features.h5")
            say_next(biomass(*build, "--backbone", backbone, "--weights", file))
        if store and not found.needed_by:
            raise MismatchError(f"{store}: its tokens were made with other weights")


@click.command("list")
@click.argument("folder", default=".", type=FOLDER, metavar="[DIR]")
@click.option("--json", is_flag=True, help="As JSON, for machines.")
def weights_list(folder: Path, json: bool) -> None:
    """List backbone weights in a folder, and stores that need them.

    Each file is read whole, for its hash. A file that no store needs is compared with the models
    that its shapes point to, which takes some seconds.
    """
    with one_line_errors():
        from featurestore.explore.weights_files import as_json, list_weights

        found = list_weights(folder)
        click.echo(as_json(found) if json else found)
