"""Parts of a plan without a backbone, built and merged in children that tests kill: the server of
`writer_child`, whose requests know three more acts.

act : "part" builds part `part` of the plan at `path`; "merge" merges the plan at `plan` into
    `path`; "publish" publishes the plan at `path` where it says.

Durable calls count objects that are created twice: before, and when the server has them.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import writer_child
from conftest import tiny_frame, tiny_rows, tiny_spec

from featurestore import open_writer
from featurestore.format.spec import StoreSpec
from featurestore.parts import build, devices, plan
from featurestore.parts.build import build_part
from featurestore.parts.merge import merge_parts
from featurestore.parts.plan import PartPlan, load_plan, plan_parts
from featurestore.parts.publish import publish_parts
from featurestore.read.sources.object_client import ObjectClient
from featurestore.write.config import BuildConfig
from featurestore.write.prepare import installed_versions

N_IMAGES = 5


def plan_tiny(folder: Path, monkeypatch, n_parts: int = 2, url: str | None = None) -> PartPlan:
    """The plan of two parts, of one shard and of two; or of more, or of one for a bucket."""
    prepare_tiny(folder.parent, monkeypatch)
    config = BuildConfig.check(data=folder.parent / "data", out=folder / "features.zarr")
    folder.mkdir()
    return plan_parts(config, n_parts, folder, url=url)


def prepare_tiny(beside: Path, monkeypatch) -> SimpleNamespace:
    """Have every build prepared without photographs and a backbone; `data` is made."""
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
    (beside / "data").mkdir()
    (beside / "data/train.csv").touch()
    for module in (plan, devices):
        monkeypatch.setattr(module, "prepare_build", lambda _config, save=True: prepared)
    return prepared


def whole_store(path: Path, spec: StoreSpec) -> Path:
    """The store that no parts were made for."""
    with open_writer(path, spec, tiny_frame(N_IMAGES)) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(spec, image))
    return path


def put_rows(plan: PartPlan, part: int, _backbone: object, out: Path, _progress: bool) -> list:
    """In place of what makes tokens of photographs: rows that depend on the image alone."""
    first, end = plan.bounds[part : part + 2]
    frame = plan.frame(first, end)
    options = {"lock": False, "shard_images": plan.shard_images, "appears_late": True}
    with open_writer(out, plan.spec, frame, **options) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(plan.spec, first + image))
            writer.commit()
    return []


def count_calls(kill_at: int) -> list[int]:
    calls = writer_child.count_calls(kill_at)
    create = ObjectClient.create

    def count() -> None:
        calls[0] += 1
        if calls[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(client: ObjectClient, key: str, content: Path | bytes) -> str | None:
        count()
        e_tag = create(client, key, content)
        count()
        return e_tag

    ObjectClient.create = counted
    return calls


def part(request: dict, tell: Callable[..., None]) -> None:
    calls = count_calls(request.get("kill_at", 0))
    build_part(Path(request["path"]), request["part"], progress=False)
    tell(calls=calls[0])


def publish(request: dict, tell: Callable[..., None]) -> None:
    calls = count_calls(request.get("kill_at", 0))
    plan = load_plan(Path(request["path"]))
    publish_parts(plan, plan.url, remove=True)
    tell(calls=calls[0])


def merge(request: dict, tell: Callable[..., None]) -> None:
    calls = writer_child.count_calls(request.get("kill_at", 0))
    plan = load_plan(Path(request["plan"]))
    merge_parts(plan, Path(request["path"]), remove=request.get("remove", False))
    tell(calls=calls[0])


if __name__ == "__main__":
    writer_child.COUNTED += ("link", "rmdir")
    writer_child.ACTS |= {"part": part, "merge": merge, "publish": publish}
    build._build = put_rows
    build.plan_backbone = lambda _plan, _device: None
    writer_child.serve_requests()
