"""A part whose files of patches go straight into a bucket, and what the store is sealed by.

A record holds an attempt's small arrays and the checksum of each of its shards. It is durable
before the first shard is put, so that whatever is in the bucket has a record, whoever was stopped.
Which attempt a shard is of, its creation decides; the part says so, which appears last.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from featurestore.disk import durable
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.threads import Pool
from featurestore.format.layout import Layout
from featurestore.format.zarr import files_of_patches, open_layout
from featurestore.manage.publish import N_THREADS, PutShard, file_md5, put_shard
from featurestore.parts.plan import STORE, PartPlan
from featurestore.read.sources.object_client import ObjectClient

ATTEMPTS = "attempts"
RECORDS = "records"
CHECKSUMS = "checksums.json"
PUT = "put.json"


@dataclass(frozen=True)
class Shard:
    """A file of patches of an attempt, and the object that it is to be."""

    key: str
    path: Path
    md5: str


def put_part(plan: PartPlan, part: int, attempt: Path) -> Path:
    """Put the shards of a finished attempt at a part; a folder that says which attempt each is of.

    Shards that are there already may be those of any attempt at this part.

    Raises what `put_shard` raises.
    """
    layout = open_layout(attempt / STORE)
    shards = _shards(plan, part, attempt, layout)
    _keep_record(plan, attempt, layout, shards)

    put: dict[str, dict] = {}
    if shards:
        client = ObjectClient(plan.url)

        def put_one(shard: Shard) -> PutShard:
            def others() -> list[str]:
                return list(_attempts_at(plan, part, shard.key))

            return put_shard(client, shard.key, shard.path, shard.md5, others)

        with Pool(N_THREADS) as pool:
            for shard, there in zip(shards, pool.map(put_one, shards), strict=True):
                made_by = attempt.name
                if there.md5 != shard.md5:
                    made_by = _attempts_at(plan, part, shard.key)[there.md5]
                put[shard.key] = asdict(there) | {"attempt": made_by}
                check_interrupt()

    told = plan.folder / ATTEMPTS / f"put-{attempt.name}"
    told.parent.mkdir(exist_ok=True)
    told.mkdir()
    durable.write_whole(told / PUT, json.dumps({"attempt": attempt.name, "shards": put}))
    return told


def shards_put(told: bytes) -> dict[str, PutShard]:
    """What a finished part has put, by key; told : its PUT, in its folder."""
    shards = json.loads(told)["shards"]
    return {key: PutShard(each["e_tag"], each["md5"]) for key, each in shards.items()}


def records_of(plan: PartPlan, part: int, folder: Path) -> Iterator[tuple[Path, range]]:
    """The stores with the small arrays of a finished part, and the part's images that each is for.

    Their files of patches are empty.
    """
    told = json.loads((folder / PUT).read_bytes())
    first, end = plan.bounds[part : part + 2]
    unit = plan.shard_images or end - first
    attempts = [each["attempt"] for each in told["shards"].values()] or [told["attempt"]]
    for number, attempt in enumerate(attempts):
        images = range(number * unit, min((number + 1) * unit, end - first))
        yield plan.folder / RECORDS / attempt / STORE, images


def _shards(plan: PartPlan, part: int, attempt: Path, layout: Layout) -> list[Shard]:
    """All shards of an attempt, as they are in the whole store."""
    if plan.shard_images is None:
        return []
    paths = layout.extents["patches"].paths
    first = plan.bounds[part] // plan.shard_images
    numbers = range(first, first + len(paths))
    shards = []
    ours = files_of_patches(plan.spec, plan.n_images, plan.shard_images, numbers)
    for path, (key, offset, index) in zip(paths, ours, strict=True):
        if layout.indices[path] != (offset, index):
            path = _with_index(path, attempt, offset, index)
        shards.append(Shard(key.as_posix(), path, file_md5(path)))
    return shards


def _with_index(path: Path, attempt: Path, offset: int, index: bytes) -> Path:
    """A copy of a shard with another index.

    The only one of a last part has room for its own images, and in the whole store for as many as
    the others.
    """
    copy = attempt / "last-shard"
    shutil.copyfile(path, copy)
    with open(copy, "r+b", buffering=0) as file:
        file.truncate(offset)
        durable.pwrite(file.fileno(), [index], offset)
    return copy


def _keep_record(plan: PartPlan, attempt: Path, layout: Layout, shards: list[Shard]) -> None:
    """Keep all of an attempt but its patches, under its own name."""
    records = plan.folder / RECORDS
    records.mkdir(exist_ok=True)
    patches = set()
    if plan.spec.has_patches:
        patches = set(map(str, layout.extents["patches"].paths))

    def copy(source: str, target: str) -> None:
        if source not in patches:
            shutil.copyfile(source, target)
            return
        offset, index = layout.indices[Path(source)]
        with open(target, "wb", buffering=0) as file:
            durable.pwrite(file.fileno(), [index], offset)

    with durable.appears_whole(records / attempt.name) as partial:
        shutil.copytree(layout.path, partial / STORE, copy_function=copy)
        checksums = {shard.key: shard.md5 for shard in shards}
        (partial / CHECKSUMS).write_text(json.dumps(checksums))


def _attempts_at(plan: PartPlan, part: int, key: str) -> dict[str, str]:
    """Attempts at a part that have a record, by the MD5 of one of its shards."""
    attempts = {}
    for path in (plan.folder / RECORDS).glob(f"{part:05d}-{plan.id[:8]}-*/{CHECKSUMS}"):
        if path.parent.suffix != ".partial":
            md5 = json.loads(path.read_bytes()).get(key)
            attempts[md5] = path.parent.name
    return attempts
