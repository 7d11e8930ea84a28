"""Parts that are put into a bucket, and their sealer, killed anywhere: the next call ends at the same
objects, and leaves nothing behind."""

import shutil
from pathlib import Path

import parts_child
import pytest
from test_publish import files
from writer_child import builders

from featurestore.parts.plan import PartPlan

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def child(object_server):
    """A function (path, **request) that builds a part or publishes in a child; see parts_child."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_server.environment().items():
            patch.setenv(name, value)
        with builders(parts_child.__file__) as run:
            yield run


@pytest.fixture
def planned(bucket, memory_path, monkeypatch) -> PartPlan:
    """The plan of two parts, of one shard and of two."""
    monkeypatch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
    return parts_child.plan_tiny(memory_path / "planned", monkeypatch, 2, bucket.url)


@pytest.fixture
def whole(planned, memory_path) -> dict[str, bytes]:
    return files(parts_child.whole_store(memory_path / "whole.zarr", planned.spec))


class Trial:
    """A plan's folder and bucket as they were at one moment, in which a child is killed."""

    def __init__(self, bucket, child, folder: Path, whole: dict[str, bytes]) -> None:
        self.bucket, self.child, self.folder, self.whole = bucket, child, folder, whole
        self.objects = bucket.keys(bucket.url)

    def __call__(self, **kill) -> int:
        """How many durable calls the act makes, after which the store is whole."""
        for key in self.bucket.keys(self.bucket.url):
            self.bucket.remove(self.bucket.url, key)
        for key, content in self.objects.items():
            self.bucket.put(self.bucket.url, key, content)
        folder = Path(shutil.copytree(self.folder, self.folder.with_name("killed")))

        died = self.child(folder, **kill)
        assert died["status"] in (-9, 0), died
        for act in ({"act": "part", "part": 1}, {"act": "publish"}):
            again = self.child(folder, **act)
            assert again["status"] == 0 and "error" not in again, (kill, again)
        assert self.bucket.keys(self.bucket.url) == self.whole, kill
        left = {path.name for path in folder.iterdir()}
        assert left == {"plan.json", "plan.json.lock", "catalog.npy"}, kill
        shutil.rmtree(folder)
        return died.get("calls", 0)


def test_O12_a_part_killed_at_durable_calls_and_puts(bucket, child, planned, whole):
    assert child(planned.folder, act="part", part=0)["status"] == 0
    trial = Trial(bucket, child, planned.folder, whole)
    n_calls = trial(act="part", part=1)
    assert n_calls > 100
    for k in range(1, n_calls + 1, 9):
        trial(act="part", part=1, kill_at=k)


def test_O12_a_sealer_killed_at_durable_calls_and_puts(bucket, child, planned, whole):
    for part in (0, 1):
        assert child(planned.folder, act="part", part=part)["status"] == 0
    trial = Trial(bucket, child, planned.folder, whole)
    n_calls = trial(act="publish")
    assert n_calls > 150
    for k in range(1, n_calls + 1, 13):
        trial(act="publish", kill_at=k)
