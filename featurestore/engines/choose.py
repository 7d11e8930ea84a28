"""Which engine runs items: processes of this machine, or the one that `--engine` names."""

from collections.abc import Mapping
from typing import Any

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
    bar: Any,
    sizes: Mapping[str, int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Do all items, as `featurestore.engines.local.run`, whose options these are.

    engine : as `check_engine`; None is processes of this machine, one for each of the devices.
    bar : of `new_bar`: counts items, or their sizes, and says how many nodes of an engine live.
    """
    if engine is None:
        run = local.run
    else:
        run = ray.run
        options["address"] = engine.partition("://")[2] or None

    def finished(name: str) -> None:
        if engine:
            bar.set_postfix({"nodes": ray.n_nodes()}, refresh=False)
        bar.update(sizes[name] if sizes else 1)

    return run(task, items, progress=finished, **options)
