"""The commands about files of backbone weights."""

from pathlib import Path

import click

from featurestore.commands.options import ANY, FILE
from featurestore.commands.running import one_line_errors


@click.command("convert")
@click.argument("source", type=FILE, metavar="IN")
@click.argument("out", type=ANY, metavar="OUT.safetensors")
@click.option(
    "--memory",
    "memory_gb",
    type=click.FloatRange(min=0, min_open=True),
    help="GB that reading may take.  [4 times the file, at least 2.15]",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def weights_convert(source: Path, out: Path, memory_gb: float | None, force: bool) -> None:
    """Make a safetensors file of what torch.save wrote.

    For .pth, .pt and .bin files, which every other command refuses, because they hold pickles. Only
    tensors and plain values are read (torch's weights_only), in a process with limited memory, no
    network where the kernel allows that, and a hook that refuses sockets, processes and writing
    anything but OUT.
    """
    with one_line_errors():
        from featurestore.backbone.convert import convert
        from featurestore.errors import list_some

        memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
        done = convert(source, out, memory_bytes=memory_bytes, force=force)
        if not done.without_network:
            click.echo(
                "note: this kernel gives no empty network namespace; sockets were refused by the "
                "audit hook alone",
                err=True,
            )
        click.echo(f"{out}: {done.n_tensors} tensors, {done.n_bytes / 1e6:.1f} MB")
        if done.left_out:
            click.echo(f"left out, for they are no weights:{list_some(list(done.left_out), 5)}")
