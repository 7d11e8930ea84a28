"""Parts of a plan without a backbone, built and merged in children that tests kill: the server of
`writer_child`, whose requests know two more acts.

act : "part" builds part `part` of the plan at `path`; "merge" merges the plan at `plan` into
    `path`.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import writer_child
from conftest import tiny_frame, tiny_rows, tiny_spec

from featurestore import open_writer
from featurestore.parts import build, plan
from featurestore.parts.build import build_part
from featurestore.parts.merge import merge_parts
from featurestore.parts.plan import PartPlan, plan_parts
from featurestore.write.config import BuildConfig
from featurestore.write.prepare import installed_versions

N_IMAGES = 5


def plan_tiny(folder: Path, monkeypatch) -> PartPlan:
    """The plan of two parts, of one shard and of two."""
    frame = tiny_frame(N_IMAGES)
    made_by = installed_versions() | {"device": "cpu", "precision": "fp32"}
    spec = tiny_spec(frame).changed(made_by=made_by)
    backbone = SimpleNamespace(
        spec=spec.tokens,
        n_rows=1,
        lane=SimpleNamespace(n_behind=0),
        device=torch.device("cpu"),
    )
    prepared = SimpleNamespace(
        frame=frame,
        paths=[Path(path) for path in frame["path"]],
        unusable={},
        backbone=backbone,
        spec=spec,
        n_pending=N_IMAGES,
    )
    folder.mkdir()
    data = folder.parent / "data"
    data.mkdir()
    (data / "train.csv").touch()
    monkeypatch.setattr(plan, "prepare_build", lambda _config: prepared)
    config = BuildConfig.check(data=data, out=folder / "features.zarr")
    return plan_parts(config, 2, folder)


def put_rows(plan: PartPlan, part: int, _backbone: object, out: Path, _progress: bool) -> list:
    """In place of what makes tokens of photographs: rows that depend on the image alone."""
    first, end = plan.bounds[part : part + 2]
    frame = plan.frame(first, end)
    options = {"lock": False, "shard_images": plan.shard_images}
    with open_writer(out, plan.spec, frame, **options) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(plan.spec, first + image))
            writer.commit()
    return []


def part(request: dict, tell: Callable[..., None]) -> None:
    calls = writer_child.count_calls(request.get("kill_at", 0))
    build_part(Path(request["path"]), request["part"], progress=False)
    tell(calls=calls[0])


def merge(request: dict, tell: Callable[..., None]) -> None:
    calls = writer_child.count_calls(request.get("kill_at", 0))
    merge_parts(Path(request["plan"]), Path(request["path"]), remove=request.get("remove", False))
    tell(calls=calls[0])


if __name__ == "__main__":
    writer_child.COUNTED += ("link", "rmdir")
    writer_child.ACTS |= {"part": part, "merge": merge}
    build._build = put_rows
    build.plan_backbone = lambda _plan, _device: None
    writer_child.serve_requests()
