"""The command that cuts a build into parts; `store build` and `store merge --from` follow."""

from pathlib import Path
from typing import Any

import click

from featurestore.commands.build import build_config, build_options
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors, with_same_command
from featurestore.disk.imports import quick_imports


@click.command("plan")
@build_options("Folder of the plan, in which its parts come to lie.", "auto, cpu or cuda.  [auto]")
@script_options
@click.option(
    "--publish",
    metavar="URL",
    help="Each part puts its patches into object storage, where the store comes to lie: "
    "s3://BUCKET/NAME.zarr.  [parts stay in OUT]",
)
@click.option("--parts", required=True, type=click.IntRange(min=1), help="How many parts.")
def store_plan(config: Path | None, parts: int, publish: str | None, **options: Any) -> None:
    """Cut a build into parts, for several machines.

    Checks what `store build` checks, once for all parts, and fixes what they have in common. Then
    build each part by `biomass store build --from OUT --part N`, in any order and on any machine of
    the same kind that sees the folder, and join them by `biomass store merge --from OUT`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    with one_line_errors(with_same_command()):
        with quick_imports():
            from featurestore.parts.plan import STORE, plan_parts

        checked = build_config(config, given)
        folder = checked.out
        store = checked.model_copy(update={"out": folder / STORE})
        plan = plan_parts(store, parts, folder, url=publish)
        tell(plan, plan.values())
