"""Which engine runs items: processes of this machine, or the one that `--engine` names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.disk.messages import new_bar
from featurestore.engines import local, ray
from featurestore.errors import UsageError

RAY = "ray"


def check_engine(text: str) -> str:
    """`ray` or `ray://HOST:PORT`; UsageError for anything else."""
    name, _, address = text.partition("://")
    is_address = address and address.rpartition(":")[2].isdecimal()
    if name != RAY or not (is_address or text == RAY):
        raise UsageError(
            f"--engine {text}: give ray, or ray://HOST:PORT of the node of `ray start --head`"
        )
    return text


def run_items(
    task: str,
    items: Mapping[str, Mapping[str, Any]],
    *,
    engine: str | None,
    title: str,
    devices: Sequence[str],
    folder: Path,
    threads: int | None = None,
    unit: str = "part",
) -> dict[str, Any]:
    """Do all items, as `featurestore.engines.local.run`, with a bar of them, and of the nodes.

    engine : as `check_engine`; None is processes of this machine, one for each of the devices.
    """
    options = {"devices": devices, "folder": folder, "threads": threads}
    with new_bar(title, len(items), unit) as bar:

        def finished(_name: str) -> None:
            if engine:
                bar.set_postfix({"nodes": ray.n_nodes()}, refresh=False)
            bar.update()

        if engine is None:
            return local.run(task, items, progress=finished, **options)
        address = engine.partition("://")[2] or None
        return ray.run(task, items, progress=finished, address=address, **options)
