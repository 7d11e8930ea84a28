"""The command that serves stores and sweeps over HTTP."""

from pathlib import Path
from typing import Any

import click

from featurestore.commands.options import ANY, FOLDER, STORE, max_pixels_option
from featurestore.commands.running import one_line_errors


@click.command("serve")
@click.argument("paths", nargs=-1, type=STORE, metavar="[STORE...]")
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
    "--predictions",
    type=ANY,
    help="A predictions.csv of new photographs to look at too, or alone.",
)
@click.option(
    "--explain",
    type=FOLDER,
    help="The folder of its pictures, of `predict --explain`.",
)
@max_pixels_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 or :: for all.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0: a free one.",
)
@click.option(
    "--token",
    envvar="BIOMASS_TOKEN",
    help="What requests must bring; better in BIOMASS_TOKEN.  [made up]",
)
@click.option(
    "--token-file",
    type=ANY,
    help="File that keeps the token over restarts; made, for its owner alone, if not there.",
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
def store_serve(paths: tuple[Path | str, ...], **options: Any) -> None:
    """Serve stores, sweeps and predictions over HTTP, with a page.

    It reads only; Ctrl-C ends it.
    """
    with one_line_errors():
        from featurestore.disk.messages import say
        from service.server import serve

        serve(paths, say=say, **options)
